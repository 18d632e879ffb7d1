"""What stands still around the road: buildings, trees, street lamps and signals, placed from the map and the scene's id alone.

The same scene has the same town in every run; nothing stands on a road or where a road user of the log was.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import shapely
import torch
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry
from torch import Tensor

from ..worldmodel.paint import seed_of
from ..worldmodel.perspective import (
    SIGNAL_HEIGHT,
    SIGNAL_MIDDLE,
    SIGNAL_POLE,
    SIGNAL_SPACING,
    SIGNAL_THICKNESS,
    SIGNAL_WIDTH,
    signal_boards,
)
from ..worldmodel.scene import Scene
from .ground import Ground, Roads, paint_ground, roads_of
from .meshes import Mesh, Part, ball, box, frustum, join, quad, soup, tube

BAY, STOREY = 2.6, 3.1
"""Metres between the middles of windows that lie side by side, and above each other."""

BUILT_WITHIN, PLANTED_WITHIN = 150.0, 100.0
"""Metres from the ego's log and route within which buildings and trees stand."""

SETBACK = (4.5, 16.0)
TREE_SPACING, LAMP_SPACING = (10.0, 22.0), 27.0
LAMP_HEIGHT, LAMP_ARM = 7.0, 1.8

WALLS = np.array(
    [
        (0.42, 0.36, 0.28),
        (0.3, 0.12, 0.075),
        (0.5, 0.48, 0.44),
        (0.34, 0.3, 0.26),
        (0.22, 0.23, 0.25),
        (0.46, 0.34, 0.2),
        (0.36, 0.2, 0.14),
        (0.55, 0.53, 0.5),
    ]
)
ROOFS = np.array([(0.1, 0.095, 0.09), (0.18, 0.07, 0.045), (0.14, 0.14, 0.145)])
LEAVES = np.array([(0.045, 0.1, 0.02), (0.06, 0.12, 0.025), (0.035, 0.085, 0.03), (0.09, 0.12, 0.02)])


VIEW_LENGTH, VIEW_WIDTH = 45.0, (0.6, 1.0)
"""Metres before a stop point from which on nothing hides its signal, and to each side at the signal and at that end."""


@dataclass(frozen=True)
class Scenery:
    """All that stands still in one scene.

    Attributes:
        ground: the textures at z = 0.
        mesh: everything above it. The owner of a wall is its building, of a lamp of a signal that signal.
        centre: (N, 2) metres of the buildings.
        lamps: (M, 2) metres of the street lamps' lights.
    """

    ground: Ground
    mesh: Mesh
    centre: Tensor
    lamps: NDArray[np.float64]


def build_scenery(scene: Scene, row: int) -> Scenery:
    """Build what stands still in scene `row` of a batch."""
    roads = roads_of(scene, row)
    random = np.random.default_rng(seed_of(scene.id[row]))
    logged = scene.position[row, scene.ego[row]][scene.valid[row, scene.ego[row]]][:, :2]
    way = torch.cat((logged[:: max(len(logged) - 1, 1)], scene.route[row][scene.route_valid[row]][:, :2])).double().numpy()
    way = shapely.LineString(way)
    buildings, plots, centre = _buildings(roads, way, random)
    free = shapely.union_all([roads.road.buffer(1.0), roads.taken.buffer(0.8), *plots])
    boards = signal_boards(scene.take([row]))
    views = _views(scene, row, boards)
    trees = _trees(roads, way, free.union(views), random)
    lamps, heads = _lamps(roads, way, views)
    meshes = [*buildings, *trees, *lamps, *_signals(scene, row, boards, roads.road)]
    return Scenery(paint_ground(scene, row, roads), join(meshes), torch.from_numpy(centre).float(), heads)


def _along(area: BaseGeometry, distance: float, spacing: float) -> Iterator[tuple[NDArray[np.float64], float]]:
    """Yield points `spacing` m apart around an area, `distance` m away from it, with the direction in which the area lies."""
    for part in shapely.get_parts(area.buffer(distance, quad_segs=3)):
        for ring in (part.exterior, *part.interiors):
            count = int(ring.length / spacing)
            if count < 2:
                continue
            at = (np.arange(count) + 0.5) * ring.length / count
            here, ahead = (shapely.get_coordinates(shapely.line_interpolate_point(ring, at + d)) for d in (0.0, 0.4))
            step = ahead - here
            clockwise = not shapely.is_ccw(ring)
            inward = np.stack((step[:, 1], -step[:, 0]) if clockwise else (-step[:, 1], step[:, 0]), axis=-1)
            hole = ring is not part.exterior
            yield from zip(here, np.arctan2(*((-inward if hole else inward).T[::-1])), strict=True)


def _buildings(
    roads: Roads, way: shapely.LineString, random: np.random.Generator
) -> tuple[list[Mesh], list[shapely.Polygon], NDArray[np.float64]]:
    """Boxes with their fronts to the road, none on another one, a road, a pavement or where road users were."""
    area = roads.pavement
    kept_free = shapely.union_all([area.buffer(1.5), roads.road.buffer(3.0), roads.taken.buffer(1.5)])
    near = way.buffer(BUILT_WITHIN)
    shapely.prepare(kept_free)
    shapely.prepare(near)
    meshes, plots, centres = [], [], []
    town = roads.town
    for ring, setback in enumerate((SETBACK[0], SETBACK[0] + 24.0) if town else (SETBACK[1], SETBACK[1] + 30.0)):
        for front, facing in _along(area, setback, 7.0 if town else 13.0):
            bays, storeys = int(random.integers(4, 9)), int(random.integers(2, 6) + 3 * ring * town)
            width, depth = bays * BAY + 0.6, random.uniform(8.0, 14.0)
            skip, pitched = random.random() < (0.1 if town else 0.55), storeys <= 3
            if skip or not near.contains(shapely.Point(front)):
                continue
            away = -np.array([np.cos(facing), np.sin(facing)])
            side = np.array([-away[1], away[0]])
            back = front + depth * away
            plot = shapely.Polygon(
                [front + 0.5 * width * side, front - 0.5 * width * side, back - 0.5 * width * side, back + 0.5 * width * side]
            )
            if kept_free.intersects(plot) or any(plot.intersects(other) for other in plots):
                continue
            colour = random.choice(WALLS) * random.uniform(0.8, 1.15)
            roof = random.choice(ROOFS)
            centre = front + 0.5 * depth * away
            mesh = _building(depth, width, storeys * STOREY, colour, roof, pitched)
            meshes.append(mesh.placed(centre, facing, len(plots)))
            plots.append(plot.buffer(1.0, join_style="mitre"))
            centres.append(centre)
    return meshes, plots, np.array(centres).reshape(-1, 2)


def _building(depth: float, width: float, height: float, wall, roof, pitched: bool) -> Mesh:
    """A house with its front along +x: walls, and a flat roof behind a parapet or a gable."""
    x, y = 0.5 * depth, 0.5 * width
    walls = frustum(0.0, height, (-x, x, -y, y), (-x, x, -y, y), Part.WALL, wall, closed=False)
    if not pitched:
        ledge = box((-x - 0.15, -y - 0.15, height), (x + 0.15, y + 0.15, height + 0.7), Part.ROOF, wall * 0.75)
        plant = box((-0.3 * x, -0.3 * y, height + 0.7), (0.3 * x, 0.3 * y, height + 2.2), Part.ROOF, roof)
        return join([walls, ledge, plant])
    rise = 0.42 * x
    eaves, over = height - 0.1, 0.4
    points = [(-x - over, -y - over, eaves), (x + over, -y - over, eaves), (x + over, y + over, eaves)]
    points += [(-x - over, y + over, eaves), (0, -y - over, eaves + rise), (0, y + over, eaves + rise)]
    slopes = soup(points, [(1, 2, 5), (1, 5, 4), (3, 0, 4), (3, 4, 5), (3, 2, 1), (3, 1, 0)], Part.ROOF, roof)
    gables = soup(points, [(0, 1, 4), (2, 3, 5)], Part.ROOF, wall)
    chimney = box((0.3 * x, 0.4 * y, height), (0.3 * x + 0.6, 0.4 * y + 0.8, height + rise + 0.5), Part.ROOF, wall * 0.6)
    return join([walls, slopes, gables, chimney])


def _trees(roads: Roads, way: shapely.LineString, free: BaseGeometry, random: np.random.Generator) -> list[Mesh]:
    """Trees beside the pavement and some farther away, of five shapes."""
    shapes = [_tree(random) for _ in range(5)]
    near = way.buffer(PLANTED_WITHIN)
    shapely.prepare(free)
    shapely.prepare(near)
    meshes = []
    for distance, spacing, every in ((1.7, TREE_SPACING[0], 0.5), (9.0, TREE_SPACING[1], 0.7), (32.0, 12.0, 0.7)):
        for place, _ in _along(roads.pavement, distance, spacing):
            shift, shape, turn = random.uniform(-0.4, 0.4, 2), int(random.integers(5)), random.uniform(0, 6.28)
            point = shapely.Point(place + shift)
            if random.random() < every and near.contains(point) and not free.intersects(point.buffer(1.0)):
                meshes.append(shapes[shape].placed(place + shift, turn))
    return meshes


def _tree(random: np.random.Generator) -> Mesh:
    """A trunk and a crown of a few balls."""
    tall, colour = random.uniform(0.85, 1.35), random.choice(LEAVES)
    made = [tube((0, 0, 0), (0, 0, 2.6 * tall), (0.17, 0.11), Part.WOOD, sides=5)]
    for _ in range(4):
        middle = (*random.uniform(-0.8, 0.8, 2), random.uniform(2.9, 4.6) * tall)
        radius = random.uniform(1.0, 1.55)
        made.append(ball(middle, (radius, radius, 0.85 * radius), Part.LEAF, colour * random.uniform(0.75, 1.25), 4, 6))
    return join(made)


def _views(scene: Scene, row: int, boards: tuple[Tensor, Tensor, Tensor]) -> BaseGeometry:
    """Where drivers look along to a signal, from their lane to its board (`signal_boards`): nothing may stand there."""
    place, heading, _ = (values[0] for values in boards)
    views = []
    for signal in scene.signal_valid[row].any(dim=-1).nonzero()[:, 0].tolist():
        turn = float(heading[signal])
        ahead, left = np.array([np.cos(turn), np.sin(turn)]), np.array([-np.sin(turn), np.cos(turn)])
        board, stop = place[signal].double().numpy(), scene.signal_position[row, signal, :2].double().numpy()
        ends = ((board, VIEW_WIDTH[0]), (stop - VIEW_LENGTH * ahead, VIEW_WIDTH[1]))
        views.append(shapely.MultiPoint([end + side * half * left for end, half in ends for side in (-1, 1)]).convex_hull)
    return shapely.union_all(views)


def _lamps(roads: Roads, way: shapely.LineString, views: BaseGeometry) -> tuple[list[Mesh], NDArray[np.float64]]:
    """Street lamps along the kerb, their arms over the road, and where their lights hang (M, 2); none stands in `views`."""
    pole = join(
        [
            tube((0, 0, 0), (0, 0, LAMP_HEIGHT), (0.085, 0.055), Part.POLE, sides=5),
            tube((0, 0, LAMP_HEIGHT), (LAMP_ARM, 0, LAMP_HEIGHT + 0.25), (0.05, 0.04), Part.POLE, sides=4),
            box((LAMP_ARM - 0.1, -0.13, LAMP_HEIGHT + 0.16), (LAMP_ARM + 0.55, 0.13, LAMP_HEIGHT + 0.26), Part.POLE),
            box((LAMP_ARM - 0.05, -0.1, LAMP_HEIGHT + 0.12), (LAMP_ARM + 0.5, 0.1, LAMP_HEIGHT + 0.16), Part.LAMP),
        ]
    )
    near = way.buffer(PLANTED_WITHIN)
    shapely.prepare(near)
    taken = roads.taken.buffer(0.4).union(views)
    meshes, heads = [], []
    for place, facing in _along(roads.road, 0.9, LAMP_SPACING):
        if near.contains(shapely.Point(place)) and not taken.intersects(shapely.Point(place)):
            meshes.append(pole.placed(place, facing))
            heads.append(place + LAMP_ARM * np.array([np.cos(facing), np.sin(facing)]))
    return meshes, np.array(heads).reshape(-1, 2)


def _signals(scene: Scene, row: int, boards: tuple[Tensor, Tensor, Tensor], road: BaseGeometry) -> list[Mesh]:
    """The boards where `signal_boards` hangs them; a pole stands off the road, with an arm where that is farther away."""
    place, heading, pole = (values[0] for values in boards)
    meshes = []
    for signal in scene.signal_valid[row].any(dim=-1).nonzero()[:, 0].tolist():
        middle, turn = place[signal].double().numpy(), float(heading[signal])
        right = np.array([np.sin(turn), -np.cos(turn)])
        foot = next((d for d in np.arange(0.0, 18.0, 0.5) if not road.intersects(shapely.Point(middle + d * right))), 0.0)
        meshes.append(_signal(foot if pole[signal] else None).placed(middle, turn, signal))
    return meshes


def _signal(foot: float | None) -> Mesh:
    """A board with three lamps that drivers who look along +x see.

    Its pole stands `foot` m to its right; without one of its own (None) it hangs on an arm from the board to its left.
    """
    width, thickness, middle = SIGNAL_WIDTH, SIGNAL_THICKNESS, SIGNAL_MIDDLE
    low, high = middle - 0.5 * SIGNAL_HEIGHT, middle + 0.5 * SIGNAL_HEIGHT
    front, behind = -0.5 * thickness, 0.5 * (thickness + SIGNAL_POLE)
    made = [box((front, -0.5 * width, low), (-front, 0.5 * width, high), Part.BOARD)]
    for part, z in ((Part.RED, middle + 0.31), (Part.AMBER, middle), (Part.GREEN, middle - 0.31)):
        angle = np.arange(10) / 10 * 2 * np.pi
        disc = np.stack((np.full(10, front - 0.012), -0.13 * np.cos(angle), z + 0.13 * np.sin(angle)), axis=-1)
        made.append(soup(disc, [(0, i, i + 1) for i in range(1, 9)], part))
        rim, top = front - 0.1, z + 0.15
        made.append(quad((rim, 0.15, top), (front, 0.15, top), (front, -0.15, top), (rim, -0.15, top), Part.BOARD))
    if foot is not None:
        made.append(tube((behind, -foot, 0.0), (behind, -foot, high), (0.5 * SIGNAL_POLE,) * 2, Part.POLE, sides=6))
    held = SIGNAL_SPACING if foot is None else -foot
    if held:
        made.append(tube((behind, held, high - 0.1), (behind, 0.0, high - 0.1), (0.05, 0.04), Part.POLE, sides=4))
    return join(made)
