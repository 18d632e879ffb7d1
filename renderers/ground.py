"""The ground of one scene as a pyramid of textures: what lies where, painted once and looked up where a ray meets z = 0.

Every texel holds four shares of 0..255: asphalt, paint, pavement, kerb; what is left is grass. Paint lies on asphalt. Thin
lines stay whole however far away they are, because a texel of a coarse level is the mean of those below it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from shapely.geometry.base import BaseGeometry
from torch import Tensor

from ..worldmodel.scene import HISTORY_STEPS, AgentKind, PolylineKind, Scene
from . import palette
from .meshes import Semantic
from .roads import DRIVEN, USUAL_WIDTH, clean_line, map_shapes, ribbon, stop_lines

ASPHALT, PAINT, PAVEMENT, KERB, BIKE = (255, 0, 0, 0), (255, 255, 0, 0), (0, 0, 255, 0), (0, 0, 0, 255), (170, 0, 85, 0)
FINEST = 0.125
"""Metres of the finest texel; each level has twice as long ones."""

FAR = 2
"""The level from which on the whole map is held; finer ones reach `NEAR_REACH` m around the ego's log and route."""

LEVELS = 6
NEAR_REACH, FAR_REACH = 50.0, 350.0
GAPS = 2.5
"""Metres: holes between lanes up to twice as wide are asphalt too."""

KERB_WIDTH, PAVEMENT_WIDTH = 0.22, 3.0
STOP_BAR = 0.4
LOG_STRIDE = 8
HALVES = 0x00FF00FF


@dataclass(frozen=True)
class Ground:
    """Textures of one scene, all levels in one row of numbers.

    Attributes:
        texels: (N,) int32, four shares of 8 bits.
        origin: (LEVELS, 2) metres, the corner of each level's first texel.
        shape: (LEVELS, 2) int64, columns and rows; first: (LEVELS,) int64, where each level begins.
        near: (4,) low x, high x, low y, high y of what the finest levels cover.
    """

    texels: Tensor
    origin: Tensor
    shape: Tensor
    first: Tensor
    near: tuple[float, float, float, float]

    def shares(self, x: Tensor, y: Tensor, footprint: Tensor) -> Tensor:
        """Return asphalt, paint, pavement, kerb (4, N) in 0..1 at points (N,) of which a pixel covers `footprint` (N,) metres."""
        level = (footprint * (1.0 / FINEST)).clamp_(min=1.0).log2_().add_(0.5).to(torch.int64)
        low_x, high_x, low_y, high_y = self.near
        outside = (x < low_x) | (x > high_x) | (y < low_y) | (y > high_y)
        level = torch.where(outside, level.clamp(min=FAR), level).clamp_(max=LEVELS - 1)
        scale = torch.tensor([2.0**-number / FINEST for number in range(LEVELS)])[level]
        shape = self.shape[:, 0][level], self.shape[:, 1][level]
        u = (x - self.origin[:, 0][level]) * scale - 0.5
        v = (y - self.origin[:, 1][level]) * scale - 0.5
        column = torch.minimum(u.clamp_(min=0.0), (shape[0] - 1.01).float())
        row = torch.minimum(v.clamp_(min=0.0), (shape[1] - 1.01).float())
        left, top = column.to(torch.int32), row.to(torch.int32)
        right_share, low_share = ((column - left) * 256.0).to(torch.int32), ((row - top) * 256.0).to(torch.int32)
        at = self.first[level] + top * shape[0] + left
        a, b = self.texels[at], self.texels[at + 1]
        at += shape[0]
        c, d = self.texels[at], self.texels[at + 1]
        planes = []
        for shift in (0, 8):  # two shares at a time in the halves of one number, each in 8 of its 16 bits
            upper = _mix((a >> shift) & HALVES, (b >> shift) & HALVES, right_share)
            lower = _mix((c >> shift) & HALVES, (d >> shift) & HALVES, right_share)
            both = _mix(upper, lower, low_share)
            planes += [both & 255, (both >> 16) & 255]
        asphalt, pavement, paint, kerb = planes
        found = torch.stack((asphalt, paint, pavement, kerb)).float().mul_(1.0 / 255.0)
        sharper = (FINEST / footprint).clamp_(1.0, 2.5)  # texels that are magnified keep crisp edges
        return ((found - 0.5).mul_(sharper)).add_(0.5).clamp_(0.0, 1.0)

    def classes(self, x: Tensor, y: Tensor) -> Tensor:
        """Return what points (N,) lie on as `Semantic` (N,) uint8."""
        asphalt, paint, pavement, kerb = self.shares(x, y, torch.full_like(x, 0.5 * FINEST)) > 0.5
        found = torch.where(asphalt, torch.where(paint, int(Semantic.MARKING), int(Semantic.ROAD)), int(Semantic.GRASS))
        found = torch.where(pavement, int(Semantic.PAVEMENT), found)
        return torch.where(kerb, int(Semantic.KERB), found).to(torch.uint8)


def _mix(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """`a` + (`b` - `a`) * share / 256 in both 16-bit halves of int32."""
    return ((a * (256 - share) + b * share) >> 8) & HALVES


@dataclass(frozen=True)
class Roads:
    """The road as one area, and what else the ground is made of.

    Attributes:
        road: everything that is driven on. pavement: beside it, in towns.
        taken: where road users were, which nothing may be built on.
        town: whether people walk here: else it is a highway.
    """

    road: BaseGeometry
    pavement: BaseGeometry
    taken: BaseGeometry
    town: bool


def roads_of(scene: Scene, row: int) -> Roads:
    """Return the areas of scene `row`."""
    kinds, counts = scene.polyline_kind[row].tolist(), scene.polyline_valid[row].sum(dim=-1).tolist()
    points, widths = scene.polyline[row, :, :, :2].double().numpy(), scene.lane_width[row].tolist()
    driven, walked, limits = [], [], []
    has_lanes = any(kind in DRIVEN and count > 1 for kind, count in zip(kinds, counts, strict=True))
    for index, (kind, count) in enumerate(zip(kinds, counts, strict=True)):
        line = clean_line(points[index, :count]) if count > 1 else points[index, :0]
        if len(line) < 2:
            continue
        width = widths[index] or USUAL_WIDTH.get(PolylineKind(kind), 0.0)
        if kind in DRIVEN or (kind == PolylineKind.LANE_MARKING and not has_lanes):
            driven.append(shapely.LineString(line).buffer(0.5 * (width or 7.0), cap_style="flat", quad_segs=2))
            limits += [scene.speed_limit[row, index].item()] if scene.speed_limit_valid[row, index] else []
        elif kind == PolylineKind.WALKWAY:
            walked.append(shapely.LineString(line).buffer(0.5 * width, cap_style="flat", quad_segs=2))
    taken = _footprints(scene, row, None)
    if not has_lanes:  # where only markings are recorded, the road is also where vehicles were
        route = scene.route[row][scene.route_valid[row]][:, :2].double().numpy()
        driven += [shapely.LineString(route).buffer(3.5), _footprints(scene, row, AgentKind.VEHICLE).buffer(1.2)]
    gaps = GAPS if has_lanes else 3 * GAPS
    road = shapely.union_all(driven).buffer(gaps, quad_segs=2).buffer(-gaps, quad_segs=2).simplify(0.03 if has_lanes else 0.4)
    town = bool(walked) or not has_lanes or PolylineKind.CROSSWALK in kinds or bool(limits and min(limits) < 16.0)
    pavement = shapely.union_all([road.buffer(PAVEMENT_WIDTH, quad_segs=3), *walked]) if town else road.buffer(1.2, quad_segs=3)
    return Roads(road, pavement, taken, town)


def _footprints(scene: Scene, row: int, kind: AgentKind | None) -> BaseGeometry:
    """The area that agents (of one kind) stood on during the log."""
    chosen = scene.valid[row, :, ::LOG_STRIDE].clone()
    chosen[:, 0] |= scene.valid[row, :, HISTORY_STEPS]
    chosen &= (scene.kind[row] == kind)[:, None] if kind is not None else True
    agent, step = chosen.nonzero(as_tuple=True)
    x, y = scene.position[row, agent, step * LOG_STRIDE, :2].double().unbind(-1)
    radius = 0.5 * scene.size[row, agent, :2].amax(dim=-1).double()
    discs = shapely.buffer(shapely.points(x.numpy(), y.numpy()), radius.numpy().clip(0.5), quad_segs=2)
    return shapely.union_all(discs)


def paint_ground(scene: Scene, row: int, roads: Roads) -> Ground:
    """Paint the ground of scene `row`."""
    logged = scene.position[row, scene.ego[row]][scene.valid[row, scene.ego[row]]][:, :2]
    way = torch.cat((logged, scene.route[row][scene.route_valid[row]][:, :2])).double()
    low, high = way.amin(0).numpy(), way.amax(0).numpy()
    inner, outer = (
        np.clip(shapely.bounds(roads.pavement), np.tile(low - reach, 2), np.tile(high + reach, 2)) + [-4.0, -4.0, 4.0, 4.0]
        for reach in (NEAR_REACH, FAR_REACH)
    )
    marks = _marks(scene, row)
    near = _levels(_paint(roads, marks, inner, 0.5 * FINEST), 2, FAR)
    far = _levels(_paint(roads, marks, outer, 0.5 * FINEST * 2**FAR), 2, LEVELS - FAR)
    levels = near + far
    sizes = [level.shape for level in levels]
    corner = torch.tensor(np.stack([inner[:2]] * FAR + [outer[:2]] * (LEVELS - FAR)), dtype=torch.float32)
    return Ground(
        texels=torch.from_numpy(np.concatenate([level.ravel() for level in levels])),
        origin=corner,
        shape=torch.tensor([(width, height) for height, width in sizes]),
        first=torch.tensor(np.cumsum([0, *(height * width for height, width in sizes[:-1])])),
        near=(inner[0] + 1.0, inner[2] - 1.0, inner[1] + 1.0, inner[3] - 1.0),
    )


def _marks(scene: Scene, row: int) -> list[tuple[tuple[int, int, int, int], NDArray[np.float64]]]:
    """What is painted on the road: polygons in painter's order with their shares."""
    roles = {palette.SURFACE[PolylineKind.BIKE_LANE]: BIKE, palette.CROSSWALK: PAINT, palette.MARKING: PAINT}
    shapes = map_shapes(scene, row)
    pieces = zip(shapes.colours, np.split(shapes.points, shapes.first[1:-1]), strict=True) if shapes.colours else ()
    marks = [(roles[colour], polygon) for colour, polygon in pieces if colour in roles]
    known = scene.signal_valid[row].any(dim=-1).nonzero()[:, 0]
    if len(known):
        bars = stop_lines(scene, row, known)
        ends = np.stack((bars.middle - 0.5 * bars.across, bars.middle + 0.5 * bars.across), axis=1)
        marks += [(PAINT, ribbon(end, STOP_BAR)) for end in ends if np.hypot(*(end[1] - end[0])) > 0.05]
    return marks


def _paint(roads: Roads, marks: list, bounds: NDArray[np.float64], texel: float) -> Image.Image:
    """Return a picture (CMYK: four plain channels) of the area `bounds` (low x, low y, high x, high y)."""
    corner = bounds[:2]
    columns, rows = (np.ceil((bounds[2:] - corner) / texel / 64).astype(int) * 64).tolist()
    picture = Image.new("CMYK", (columns, rows))
    for area, shares in ((roads.pavement, PAVEMENT), (roads.road.buffer(KERB_WIDTH, quad_segs=3), KERB), (roads.road, ASPHALT)):
        mask = Image.new("L", (columns, rows))
        draw = ImageDraw.Draw(mask)
        parts = [part for part in shapely.get_parts(area) if isinstance(part, shapely.Polygon)]
        for part in sorted(parts, key=lambda part: -part.area):
            for fill, ring in ((255, part.exterior), *((0, hole) for hole in part.interiors)):
                draw.polygon(((shapely.get_coordinates(ring) - corner) / texel).ravel().tolist(), fill=fill)
        picture.paste(shares, mask=mask)
    draw = ImageDraw.Draw(picture)
    for shares, polygon in marks:
        if (polygon.max(axis=0) > corner).all() and (polygon.min(axis=0) < bounds[2:]).all():
            draw.polygon(((polygon - corner) / texel).ravel().tolist(), fill=shares)
    return picture.filter(ImageFilter.BoxBlur(1))  # slanting edges become even slopes, which `shares` makes sharp again


def _levels(picture: Image.Image, factor: int, count: int) -> list[NDArray[np.int32]]:
    """Return `count` levels (rows, columns), the first one `factor` times as coarse as the picture, each next twice the last."""
    levels = []
    for _ in range(count):
        picture = picture.reduce(factor)
        levels.append(np.asarray(picture).copy().view("<i4")[..., 0])
        factor = 2
    return levels
