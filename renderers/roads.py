"""The static part of bird's-eye pictures: the map of one scene as coloured polygons in metres, in painter's order.

Roads are drawn as maps are: first a wider rim under every surface, then the surfaces, so that lanes that touch melt into one road
with a kerb around it. Where a scene records no lane markings, they follow from the lane graph: dashed where a lane has a
neighbour to change to, solid where it has none. Where it records markings alone (PandaSet), a lane's width of asphalt is drawn on
either side of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from torch import Tensor

from ..worldmodel.scene import LaneLinkKind, PolylineKind, Scene
from . import palette
from .palette import Colour

DRIVEN = (PolylineKind.LANE, PolylineKind.JUNCTION_LANE, PolylineKind.BIKE_LANE)
USUAL_WIDTH = {
    PolylineKind.LANE: 3.5,
    PolylineKind.JUNCTION_LANE: 3.5,
    PolylineKind.BIKE_LANE: 1.5,
    PolylineKind.WALKWAY: 2.0,
}
"""Metres, for lanes of unknown width (0 in the scene)."""

KERB_WIDTH = 0.3
OVERLAP = 0.3
LINE_WIDTH = 0.16
DASH, GAP = 3.0, 6.0
"""Metres painted and left out of a broken lane line (Vienna Convention practice in towns)."""

JOIN = 0.3
"""Metres between the ends of two pieces that are one line."""

STRIPE, STRIPE_SPACING = 0.5, 1.0
ARROW_SPACING = 30.0


@dataclass(frozen=True)
class Shapes:
    """Filled polygons in painter's order.

    Attributes:
        points: (N, 2) metres, all polygons one after the other.
        first: (M + 1,) where each polygon starts in `points`.
        colours: M colours.
        low: (M, 2) and
        high: (M, 2), the bounding boxes, with which what is out of sight is left out.
    """

    points: np.ndarray
    first: np.ndarray
    colours: list[Colour]
    low: np.ndarray
    high: np.ndarray


def ribbon(line: np.ndarray, width: float | np.ndarray) -> np.ndarray:
    """Return the outline (2 n, 2) of a band of `width` (or (n,) widths) metres around an open line (n, 2), n >= 2."""
    offset = 0.5 * np.broadcast_to(np.asarray(width, dtype=np.float64), (len(line),))[:, None] * _left_normals(line)
    return np.concatenate((line + offset, (line - offset)[::-1]))


def _surface(line: np.ndarray, width: float) -> np.ndarray:
    """A ribbon a little longer than its line, so that no crack shows where the next one goes on at an angle."""
    start, end = line[0] - line[1], line[-1] - line[-2]
    longer = line.copy()
    longer[0] += OVERLAP * start / np.hypot(*start)
    longer[-1] += OVERLAP * end / np.hypot(*end)
    return ribbon(longer, width)


def _left_normals(line: np.ndarray) -> np.ndarray:
    """Vectors (n, 2) to the left at each vertex, mitred: moved along them a line stays parallel to itself."""
    step = np.diff(line, axis=0)
    normal = np.stack((-step[:, 1], step[:, 0]), axis=1) / np.maximum(np.hypot(*step.T), 1e-9)[:, None]
    before, after = np.concatenate((normal[:1], normal)), np.concatenate((normal, normal[-1:]))
    # |before + after|^2 / 2 = 1 + cos(turn); its floor keeps the mitre of a hairpin short.
    return (before + after) / np.maximum(1 + (before * after).sum(axis=1), 0.4)[:, None]


def clean_line(line: np.ndarray) -> np.ndarray:
    """Return the line (n, 2) without points closer than 5 cm to the one before."""
    keep = np.ones(len(line), dtype=bool)
    keep[1:] = np.hypot(*np.diff(line, axis=0).T) > 0.05
    return line[keep]


def dashes(line: np.ndarray, on: float, off: float) -> list[np.ndarray]:
    """Return the painted pieces (3, 2) of a broken line along (n, 2): `on` metres long, `off` metres apart, evenly placed."""
    arc = np.concatenate(([0.0], np.hypot(*np.diff(line, axis=0).T).cumsum()))
    count = max(int(round(arc[-1] / (on + off))), 1)
    period = arc[-1] / count
    start = (np.arange(count) + 0.5 * off / (on + off)) * period
    at = start[:, None] + np.array([0.0, 0.5, 1.0]) * period * on / (on + off)
    return list(np.stack((np.interp(at, arc, line[:, 0]), np.interp(at, arc, line[:, 1])), axis=-1))


def crosswalk_stripes(outline: np.ndarray) -> list[np.ndarray]:
    """Return the painted stripes of a crosswalk (polygons) given its outline (n, 2): across its longer side."""
    polygon = shapely.make_valid(shapely.Polygon(outline))
    box = shapely.oriented_envelope(polygon)
    if not isinstance(box, shapely.Polygon):  # an outline without area
        return []
    corner = shapely.get_coordinates(box)
    along, across = corner[1] - corner[0], corner[3] - corner[0]
    if np.hypot(*along) < np.hypot(*across):
        along, across = across, along
    length = np.hypot(*along)
    count = max(round(length / STRIPE_SPACING), 1)
    middle = (np.arange(count) + 0.5) / count * length
    stripes = [
        corner[0] + along / length * (at + np.array([-0.5, 0.5, 0.5, -0.5])[:, None] * STRIPE) + across * [[0], [0], [1], [1]]
        for at in middle
    ]
    pieces = shapely.get_parts(shapely.intersection(shapely.polygons(np.stack(stripes)), polygon))
    return [shapely.get_coordinates(piece.exterior)[:-1] for piece in pieces if isinstance(piece, shapely.Polygon) and piece.area]


def map_shapes(scene: Scene, row: int) -> Shapes:
    """Return the map of scene `row` of a batch as polygons, in painter's order."""
    kinds = scene.polyline_kind[row].tolist()
    counts = scene.polyline_valid[row].sum(dim=-1).tolist()
    points = scene.polyline[row, :, :, :2].double().numpy()
    lines = {index: clean_line(points[index, :count]) for index, count in enumerate(counts) if count >= 2}
    lines = {index: line for index, line in lines.items() if len(line) >= 2}
    of_kind = {kind: [index for index in lines if kinds[index] == kind] for kind in PolylineKind}
    widths = _widths(scene, row, kinds)

    painted: list[tuple[Colour, np.ndarray]] = []
    if not any(of_kind[kind] for kind in DRIVEN):
        asphalt, width = palette.SURFACE[PolylineKind.LANE], 2 * USUAL_WIDTH[PolylineKind.LANE]
        painted += [(asphalt, _surface(lines[index], width)) for index in of_kind[PolylineKind.LANE_MARKING]]
    for kind in (PolylineKind.WALKWAY, *DRIVEN):
        rim = 0.0 if kind == PolylineKind.WALKWAY else 2 * KERB_WIDTH
        colour = palette.KERB if rim else palette.SURFACE[kind]
        painted += [(colour, _surface(lines[index], widths[index] + rim)) for index in of_kind[kind]]
    for kind in (PolylineKind.BIKE_LANE, PolylineKind.LANE, PolylineKind.JUNCTION_LANE):
        painted += [(palette.SURFACE[kind], _surface(lines[index], widths[index] + 0.1)) for index in of_kind[kind]]
    for index in of_kind[PolylineKind.CROSSWALK]:
        painted += [(palette.CROSSWALK, stripe) for stripe in crosswalk_stripes(lines[index])]
    for index in of_kind[PolylineKind.LANE]:
        painted += [(palette.LANE_ARROW, arrow) for arrow in _lane_arrows(lines[index])]
    for index in of_kind[PolylineKind.ROAD_EDGE]:
        painted.append((palette.KERB, ribbon(lines[index], KERB_WIDTH)))
    painted += [(palette.MARKING, mark) for mark in _markings(scene, row, lines, of_kind, widths)]
    return _pack(painted)


@dataclass(frozen=True)
class StopLines:
    """Where signals are drawn: `middle` (n, 2) metres, `across` (n, 2) from the right to the left end, `heading` (n,) radians."""

    middle: np.ndarray
    across: np.ndarray
    heading: np.ndarray


def stop_lines(scene: Scene, row: int, which: Tensor) -> StopLines:
    """Return the stop lines of signals `which` (n,) of scene `row`.

    Signals for different ways out of one lane share its stop point: they divide its width, the one for the leftmost way on the
    left.
    """
    point = scene.signal_position[row, which, :2].double().numpy()
    heading = scene.signal_heading[row, which].double().numpy()
    lane = scene.signal_lane[row, which]
    width = scene.lane_width[row, lane].double().numpy()
    left = np.stack((-np.sin(heading), np.cos(heading)), axis=-1)
    last = (scene.polyline_valid[row, lane].sum(dim=-1) - 1).clamp(min=0)
    end = scene.polyline[row, lane, last, :2].double().numpy()
    leftness = ((end - point) * left).sum(axis=-1)
    together = np.linalg.norm(point[:, None] - point, axis=-1) < 1.0
    count = together.sum(axis=1)
    order = np.arange(len(which))
    before = together & ((leftness > leftness[:, None]) | ((leftness == leftness[:, None]) & (order < order[:, None])))
    share = np.where(width > 0, width, USUAL_WIDTH[PolylineKind.LANE]) / np.maximum(count, 1)
    shift = (0.5 * (count - 1) - before.sum(axis=1)) * share
    return StopLines(point + shift[:, None] * left, share[:, None] * left, heading)


def _widths(scene: Scene, row: int, kinds: list[int]) -> list[float]:
    usual = {int(kind): width for kind, width in USUAL_WIDTH.items()}
    known = scene.lane_width[row].tolist()
    return [width if width > 0 else usual.get(kind, 0.0) for kind, width in zip(kinds, known, strict=True)]


def _lane_arrows(line: np.ndarray) -> list[np.ndarray]:
    """Slim triangles (3, 2) on the lane that show its driving direction."""
    arc = np.concatenate(([0.0], np.hypot(*np.diff(line, axis=0).T).cumsum()))
    if arc[-1] < 0.5 * ARROW_SPACING:
        return []
    count = max(int(arc[-1] / ARROW_SPACING), 1)
    at = (np.arange(count) + 0.5) / count * arc[-1]
    tip, tail = (np.stack([np.interp(at + d, arc, line[:, i]) for i in (0, 1)], axis=1) for d in (1.0, -1.0))
    side = 0.2 * (tip - tail)[:, ::-1] * [-1, 1]
    return list(np.stack((tip, tail + side, tail - side), axis=1))


def _markings(
    scene: Scene, row: int, lines: dict[int, np.ndarray], of_kind: dict[PolylineKind, list[int]], widths: list[float]
) -> list[np.ndarray]:
    """Recorded lane markings, or those that the lane graph implies."""
    lanes = of_kind[PolylineKind.LANE]
    recorded = [lines[index] for index in of_kind[PolylineKind.LANE_MARKING]]
    if recorded:
        styled = list(zip(recorded, _between_opposite(recorded, [lines[index] for index in lanes]), strict=True))
    else:
        styled = []
        left, right = _lanes_with_neighbour(scene, row)
        for side, neighbours in ((0.5, left), (-0.5, right)):
            for index in lanes:
                solid = index not in neighbours
                if side < 0 and not solid:
                    continue  # a line between two lanes is painted once, by the lane on its right
                inset = np.sign(side) * LINE_WIDTH if solid else 0.0
                boundary = clean_line(lines[index] + (side * widths[index] - inset) * _left_normals(lines[index]))
                styled += [(boundary, solid)] if len(boundary) > 1 else []
    marks = []
    for line, solid in _joined(styled):
        marks += [ribbon(piece, LINE_WIDTH) for piece in ([line] if solid else dashes(line, DASH, GAP))]
    return marks


def _joined(styled: list[tuple[np.ndarray, bool]]) -> list[tuple[np.ndarray, bool]]:
    """Put pieces of one line together again, which readers cut and hand on one after the other: dashes then keep their rhythm."""
    whole: list[tuple[np.ndarray, bool]] = []
    for line, solid in styled:
        if whole and whole[-1][1] == solid and np.hypot(*(line[0] - whole[-1][0][-1])) < JOIN:
            whole[-1] = np.concatenate((whole[-1][0], line[1:])), solid
        else:
            whole.append((line, solid))
    return whole


def _between_opposite(markings: list[np.ndarray], lanes: list[np.ndarray]) -> list[bool]:
    """Whether the lanes left and right of each marking's middle run in opposite directions: then it is a solid line."""
    if not lanes:
        return [False] * len(markings)
    starts = np.concatenate([lane[:-1] for lane in lanes])
    steps = np.concatenate([np.diff(lane, axis=0) for lane in lanes])
    middle = np.stack([line[(len(line) - 1) // 2 :][:2].mean(axis=0) for line in markings])
    along = np.stack([np.diff(line[(len(line) - 1) // 2 :][:2], axis=0)[0] for line in markings])
    normal = np.stack((-along[:, 1], along[:, 0]), axis=1) / np.hypot(*along.T)[:, None]
    beside = middle[:, None] + normal[:, None] * np.array([[1.75], [-1.75]])  # (markings, 2 sides, xy)
    away = beside[:, :, None] - starts
    share = ((away * steps).sum(axis=-1) / np.maximum((steps * steps).sum(axis=-1), 1e-9)).clip(0, 1)
    distance = np.linalg.norm(away - share[..., None] * steps, axis=-1)
    nearest = distance.argmin(axis=-1)
    towards = (steps[nearest] * along[:, None]).sum(axis=-1)
    return ((towards[:, 0] * towards[:, 1] < 0) & (distance.min(axis=-1) < 1.75).all(axis=1)).tolist()


def _lanes_with_neighbour(scene: Scene, row: int) -> tuple[set[int], set[int]]:
    """The lanes that have a lane to change to on their left, on their right; a link counts for both of its lanes."""
    kept = scene.lane_link_valid[row]
    links, kinds = scene.lane_link[row][kept].tolist(), scene.lane_link_kind[row][kept].tolist()
    to_left = [link for link, kind in zip(links, kinds, strict=True) if kind == LaneLinkKind.LEFT]
    to_right = [link for link, kind in zip(links, kinds, strict=True) if kind == LaneLinkKind.RIGHT]
    left = {a for a, _ in to_left} | {b for _, b in to_right}
    return left, {a for a, _ in to_right} | {b for _, b in to_left}


def _pack(painted: list[tuple[Colour, np.ndarray]]) -> Shapes:
    if not painted:
        empty = np.zeros((0, 2))
        return Shapes(empty, np.zeros(1, dtype=np.int64), [], empty, empty)
    first = np.concatenate(([0], np.cumsum([len(polygon) for _, polygon in painted])))
    points = np.concatenate([polygon for _, polygon in painted])
    return Shapes(
        points=points,
        first=first,
        colours=[colour for colour, _ in painted],
        low=np.minimum.reduceat(points, first[:-1]),
        high=np.maximum.reduceat(points, first[:-1]),
    )
