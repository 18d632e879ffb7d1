"""Perspective layouts as tensors: what the cameras of a rig see of a `State`, as layers of meaning instead of colours.

Two exact mechanisms, neither with a loop over agents, scenes or cameras:

- What lies on the ground is polygons, projected edge by edge: a layer holds how much of each pixel they cover (`projection.py`).
- Boxes are met by rays (the slab test of Kay and Kajiya, "Ray tracing complex scenes", 1986), one ray through the middle of each
  pixel of the rectangle that holds the box. Of all boxes in a pixel the nearest is seen, and it hides the ground.

The ground is flat and every box stands on it, see `rig.py`. A camera sees no route, and not the ego's own box.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .geometry import rotate, to_local
from .paint import as_bytes, paint_of
from .projection import NEAR, View, clip, cover, view_of
from .raster import RoadPieces, lowest
from .rig import Rig
from .scene import PolylineKind, Scene
from .signals import signal_places
from .world import State

GROUND_CHANNELS = ("road", "walkway", "lines", "crosswalk", "edges")
SIGNAL_CHANNELS = ("signal_off", "signal_stop", "signal_caution", "signal_go")
KIND_CHANNELS = ("vehicle", "pedestrian", "cyclist", "object")
FACE_CHANNELS = ("front", "rear", "side")
PAINT_CHANNELS = ("red", "green", "blue")
LAYOUT_CHANNELS = (
    *GROUND_CHANNELS,
    *SIGNAL_CHANNELS,
    *KIND_CHANNELS,
    *FACE_CHANNELS,
    "heading_cos",
    "heading_sin",
    *PAINT_CHANNELS,
    "nearness",
)
"""Layers of a perspective layout, in order; see `perspective_layout`."""

SIGNAL_WIDTH, SIGNAL_HEIGHT, SIGNAL_THICKNESS = 0.4, 1.0, 0.1
SIGNAL_MIDDLE = 4.5
SIGNAL_ASIDE = 0.8
SIGNAL_SPACING = 0.5
SIGNAL_POLE = 0.12
"""Metres: size of the board that a signal is; how high its centre hangs; how far from the right rim of its lane; from one board
to the next of signals that share a stop point; and the thickness of the pole under it, from the ground to the board."""

USUAL_WIDTH = {
    PolylineKind.LANE: 3.5,
    PolylineKind.JUNCTION_LANE: 3.5,
    PolylineKind.BIKE_LANE: 1.5,
    PolylineKind.WALKWAY: 2.0,
    PolylineKind.LANE_MARKING: 7.0,
}
"""Metres of surface around a line where the scene knows no width; around markings only where a scene has no lanes."""

LINE_WIDTH, EDGE_WIDTH = 0.15, 0.25
THINNEST_LINE, SMALLEST_BOX = 0.9, 1.2
"""Pixels that lines are at least thick, boxes wide and high: what is farther away must neither break nor come and go."""

SEAM, OVERLAP = 0.1, 0.2
"""Metres by which surfaces are wider and, at each end of a piece, longer than recorded, so that no crack shows between two."""

SURFACE_PIECES, LINE_PIECES, CROSSWALKS, BOXES, SIGNALS = 128, 128, 16, 48, 16
"""How many of each a layout shows at most, the nearest in view first."""

REACH, FULL_NEARNESS = 120.0, 2.0
"""Metres: nothing farther from the ego is drawn; and the depth at which nearness is full."""

_DRIVEN = (PolylineKind.LANE, PolylineKind.JUNCTION_LANE, PolylineKind.BIKE_LANE)
_CORNERS = torch.tensor([[x, y, z] for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (0.0, 1.0)])
_EDGES = torch.tensor([[0, 2, 4, 6, 0, 1, 4, 5, 0, 1, 2, 3], [1, 3, 5, 7, 2, 3, 6, 7, 4, 5, 6, 7]])


def perspective_layout(state: State, pieces: RoadPieces, rig: Rig) -> Tensor:
    """Return layouts (B, C, H, W, len(LAYOUT_CHANNELS)) uint8: what each camera of the rig sees of each scene.

    Values: ground channels hold how much of a pixel is covered, 0..255, and 0 where a box stands before it. `lines` are the
    recorded lane markings; where a scene has none, the boundaries of its lanes at half their width. `signal_*`, kinds and faces
    are 0 or 255, by what the middle of the pixel meets first. A signal's board is lit on the side that it shows to its drivers;
    its back, its pole, and a board of unknown state are `signal_off`. A road user's box is `front`, `rear` or `side`, or none of
    them on its top. `heading_cos` and `heading_sin` are of the road user's heading to the left of the optical axis, 1 + 127 (1 +
    value), 0 where there is none. `red`, `green` and `blue` are its main colour (`paint.paint_of`), so that a picture painted
    from the layout gives it the same one at every sight. `nearness` is 255 sqrt(2 m / depth) of ground and boxes, 0 in the sky;
    see `layout_depth`.

    Args:
        state: B moments.
        pieces: their maps, `raster.road_pieces(state.scene)`.
        rig: C cameras of H x W pixels.
    """
    view = view_of(rig)
    place, turn = state.ego().position[:, :2].contiguous(), state.ego().heading.contiguous()
    edges = [_surface_edges(state.scene, pieces, place, turn, view), _line_edges(pieces, place, turn, view)]
    start, end, sign, layer = (torch.cat([edge[part] for edge in edges], dim=-1) for part in range(4))
    batch, channels = len(state), len(LAYOUT_CHANNELS)
    image = torch.zeros(batch, len(rig), rig.height, rig.width, channels, dtype=torch.uint8)
    image[..., : len(GROUND_CHANNELS)] = cover(start, end, sign, layer, len(GROUND_CHANNELS), rig)
    pixel, box, depth, face = _visible(_boxes(state, place, turn, view), view, rig)
    flat = image.view(-1, channels)
    seen = torch.zeros(len(pixel), channels, dtype=torch.uint8)
    lit = torch.where(face == 0, box.front_channel, box.channel)
    seen.scatter_(1, lit[:, None], 255)
    first_face = LAYOUT_CHANNELS.index("front")
    is_agent = box.channel >= LAYOUT_CHANNELS.index(KIND_CHANNELS[0])
    faced = is_agent & (face < len(FACE_CHANNELS))
    seen[faced, first_face + face[faced]] = 255
    for name, value in (("heading_cos", box.heading.cos()), ("heading_sin", box.heading.sin())):
        seen[:, LAYOUT_CHANNELS.index(name)] = torch.where(is_agent, (128 + 127 * value).round(), 0.0).to(torch.uint8)
    red = LAYOUT_CHANNELS.index(PAINT_CHANNELS[0])
    seen[:, red : red + 3] = as_bytes(paint_of(state.scene)).flatten(0, 1)[box.agent] * is_agent[:, None]
    flat[pixel] = seen
    inverse = view.ground.repeat(batch, 1).flatten()
    inverse[pixel] = 1.0 / depth
    flat[:, -1] = (255 * (FULL_NEARNESS * inverse).clamp(max=1.0).sqrt()).round().to(torch.uint8)
    return image


def layout_depth(layout: Tensor) -> Tensor:
    """Return metres (...) along the optical axis to what is seen in layouts (..., K): 2 m or more, infinite in the sky.

    Eight bits keep it to about 1 % at 10 m and 2 % at 40 m.
    """
    return FULL_NEARNESS / (layout[..., LAYOUT_CHANNELS.index("nearness")].float() / 255).square()


def signal_boards(scene: Scene) -> tuple[Tensor, Tensor, Tensor]:
    """Return where the signals of B scenes are seen: 3-D renderers draw them there too.

    A board hangs at the stop point, to the right of its lane: `SIGNAL_ASIDE` from its rim. Signals for several ways out of one
    lane share a stop point: theirs hang side by side, the one for the leftmost way on the left, where the pole is.

    Returns:
        place: (B, S, 2) metres, the middle of each board.
        heading: (B, S) radians, the driving direction of those who see its front.
        pole: (B, S) bool, whether it has a pole of its own.
    """
    places = signal_places(scene)
    width = scene.lane_width.gather(1, scene.signal_lane) if scene.lane_width.shape[1] else torch.zeros(places.shape[:2])
    aside = 0.5 * torch.where(width > 0, width, USUAL_WIDTH[PolylineKind.LANE]) + SIGNAL_ASIDE
    point, leftness, order = places[..., :2], places[..., 4], torch.arange(places.shape[1])
    exists = scene.signal_valid.any(dim=-1)
    together = ((point[:, :, None] - point[:, None]).square().sum(-1) < 1.0) & exists[:, None]
    more_left = leftness[:, None] > leftness[:, :, None]
    before = together & (more_left | ((leftness[:, None] == leftness[:, :, None]) & (order < order[:, None])))
    right = aside + SIGNAL_SPACING * before.sum(-1)
    return point + rotate(torch.stack((torch.zeros_like(right), -right), dim=-1), places[..., 2]), places[..., 2], ~before.any(-1)


def _nearest(pieces: RoadPieces, wanted: Tensor, place: Tensor, turn: Tensor, view: View) -> Tensor:
    """Metres (B, N) from the ego to each wanted piece in view, infinite for all others."""
    x, y = to_local(pieces.point, place[:, None, None], turn[:, None, None]).flatten(1, 2).unbind(-1)
    distance = (x.square() + y.square()).view(pieces.point.shape[:3]).amin(-1).sqrt()
    shown = view.shows(x, y, 5.0).view(pieces.point.shape[:3]).any(-1)
    return torch.where(wanted & shown & (distance < REACH), distance, torch.inf)


def _normals(point: Tensor) -> Tensor:
    """Vectors (..., P, 2) to the left at each vertex of lines, mitred: moved along them a line stays parallel to itself."""
    step = point[..., 1:, :] - point[..., :-1, :]
    left = torch.stack((-step[..., 1], step[..., 0]), dim=-1) / step.square().sum(-1, keepdim=True).sqrt().clamp(min=1e-6)
    before, after = torch.cat((left[..., :1, :], left), dim=-2), torch.cat((left, left[..., -1:, :]), dim=-2)
    return (before + after) / (1 + (before * after).sum(-1, keepdim=True)).clamp(min=0.4)


def _surface_edges(
    scene: Scene, pieces: RoadPieces, place: Tensor, turn: Tensor, view: View
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Edges of roads, walkways and crosswalks: start and end (2, B, C, E) pixels, sign (B, C, E), layer (B, C, E)."""
    row = torch.arange(len(place))[:, None]
    driven = pieces.valid & (torch.stack([pieces.kind == kind for kind in _DRIVEN]).any(dim=0))
    walked = pieces.valid & (pieces.kind == PolylineKind.WALKWAY)
    marked = pieces.valid & (pieces.kind == PolylineKind.LANE_MARKING) & ~driven.any(dim=1, keepdim=True)
    index, found = lowest(_nearest(pieces, driven | walked | marked, place, turn, view), SURFACE_PIECES)
    kind, width = pieces.kind[row, index], pieces.lane_width[row, index]
    usual = torch.tensor([USUAL_WIDTH.get(kind, 0.0) for kind in PolylineKind])
    half = 0.5 * (torch.where(width > 0, width, usual[kind]) + SEAM)[..., None, None]
    point = to_local(pieces.point[row, index], place[:, None, None], turn[:, None, None])
    left = _normals(point)
    along = torch.stack((left[..., 1], -left[..., 0]), dim=-1) * OVERLAP
    longer = torch.cat((point[..., :1, :] - along[..., :1, :], point[..., 1:-1, :], point[..., -1:, :] + along[..., -1:, :]), -2)
    ring = torch.cat((longer + half * left, (longer - half * left).flip(-2)), dim=-2)
    sign, layer = found.int(), torch.where(kind == PolylineKind.WALKWAY, 1, 0)
    shape = ring.shape[1:3]
    start, end = ring.flatten(1, 2), ring.roll(-1, dims=2).flatten(1, 2)
    sign, layer = (value[..., None].expand(-1, *shape).flatten(1, 2) for value in (sign, layer))
    crossing = _crosswalk_edges(scene, place, turn)
    start, end, sign = (torch.cat(pair, dim=1) for pair in zip((start, end, sign), crossing, strict=True))
    layer = torch.nn.functional.pad(layer, (0, crossing[2].shape[1]), value=GROUND_CHANNELS.index("crosswalk"))
    first, last = clip(view.see(*start.unbind(-1)), view.see(*end.unbind(-1)))
    cameras = (-1, len(view.origin), -1)
    return view.pixel(first), view.pixel(last), sign[:, None].expand(cameras), layer[:, None].expand(cameras)


def _crosswalk_edges(scene: Scene, place: Tensor, turn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Edges of the outlines of crosswalks on the ground: start and end (B, E, 2), sign (B, E), so that all turn the same way."""
    if not scene.polyline.shape[1]:
        return place.new_zeros(len(place), 0, 2), place.new_zeros(len(place), 0, 2), turn.new_zeros(len(place), 0).int()
    distance = (scene.polyline[:, :, 0, :2] - place[:, None]).square().sum(-1).sqrt()
    wanted = (scene.polyline_kind == PolylineKind.CROSSWALK) & scene.polyline_valid[:, :, 0] & (distance < REACH)
    index, found = lowest(torch.where(wanted, distance, torch.inf), CROSSWALKS)
    row = torch.arange(len(place))[:, None]
    start = to_local(scene.polyline[row, index, :, :2], place[:, None, None], turn[:, None, None])
    valid = scene.polyline_valid[row, index] & found[..., None]
    last = torch.cat((~valid[..., 1:], torch.ones_like(valid[..., :1])), dim=-1)
    end = torch.where(last[..., None], start[..., :1, :], start.roll(-1, dims=-2))
    # The shoelace formula, point by point in order: a sum over P would depend on how far a batch pads P.
    area = torch.where(valid, start[..., 0] * end[..., 1] - start[..., 1] * end[..., 0], 0.0).double().cumsum(-1)[..., -1:]
    sign = torch.where(valid, -area.sign(), 0.0).int()
    return start.flatten(1, 2), end.flatten(1, 2), sign.flatten(1, 2)


def _line_edges(pieces: RoadPieces, place: Tensor, turn: Tensor, view: View) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Edges of markings and road edges, as `_surface_edges` has them: each segment is four, around it in the image."""
    row, count = torch.arange(len(place))[:, None], pieces.valid.shape[1]
    marking = pieces.valid & (pieces.kind == PolylineKind.LANE_MARKING)
    drawn = marking | (pieces.valid & (pieces.kind == PolylineKind.ROAD_EDGE))
    lane = pieces.valid & ((pieces.kind == PolylineKind.LANE) | (pieces.kind == PolylineKind.BIKE_LANE))
    implied = lane & ~marking.any(dim=1, keepdim=True)
    distance = _nearest(pieces, drawn | implied, place, turn, view)
    sides = [torch.where(mask, distance, torch.inf) for mask in (drawn, implied, implied)]
    index, found = lowest(torch.cat(sides, dim=1), LINE_PIECES)
    index, side = index % count, torch.tensor([0.0, 0.5, -0.5])[index // count]
    kind, width = pieces.kind[row, index], pieces.lane_width[row, index]
    usual = torch.tensor([USUAL_WIDTH.get(kind, 0.0) for kind in PolylineKind])
    point = to_local(pieces.point[row, index], place[:, None, None], turn[:, None, None])
    point = point + (side * torch.where(width > 0, width, usual[kind]))[..., None, None] * _normals(point)
    start, end = point[:, :, :-1].flatten(1, 2), point[:, :, 1:].flatten(1, 2)
    step = end - start
    edge = (kind == PolylineKind.ROAD_EDGE)[..., None].expand(-1, -1, point.shape[2] - 1).flatten(1, 2)
    scale = torch.where(edge, EDGE_WIDTH, LINE_WIDTH) / step.square().sum(-1).sqrt().clamp(min=1e-6)
    aside = view.see(-step[..., 1] * scale, step[..., 0] * scale) - view.shift.T[:, None, :, None]
    first, last = clip(view.see(*start.unbind(-1)), view.see(*end.unbind(-1)))
    middle = (view.pixel(first), view.pixel(last))
    along = middle[1] - middle[0]
    along = along / along.square().sum(0).sqrt().clamp(min=1e-6)
    across = torch.stack((along[1], -along[0]))
    corners = []
    for seen, at in zip((first, last), middle, strict=True):
        width = ((view.pixel(seen + 0.5 * aside) - view.pixel(seen - 0.5 * aside)) * across).sum(0).abs()
        offset = 0.5 * width.clamp(min=THINNEST_LINE) * across
        corners.append((at - offset, at + offset))
    (d, a), (c, b) = corners  # seen along the line, a and b are on its left: a, b, c, d is clockwise
    edges = [torch.cat(points, dim=-1) for points in ((a, b, c, d), (b, c, d, a))]
    found = found[..., None].expand(-1, -1, point.shape[2] - 1).flatten(1, 2)
    layer = torch.where(edge, GROUND_CHANNELS.index("edges"), GROUND_CHANNELS.index("lines"))
    sign, layer = (value[:, None].expand(-1, len(view.origin), -1).repeat(1, 1, 4) for value in (found.int(), layer))
    return edges[0], edges[1], sign, layer


@dataclass(frozen=True)
class _Boxes:
    """Boxes that stand or hang upright, of every camera of every scene: tensors of one shape.

    Attributes:
        x, y: metres from the camera along the ego's axes. heading: radians from the optical axis; turn: from the ego's.
        length, width: metres. bottom, top: metres above the ground.
        front_channel, channel: int64, what its front is, and its other sides.
        agent: int64 into all B A road users, 0 for boxes that are none.
        valid: bool.
    """

    x: Tensor
    y: Tensor
    heading: Tensor
    turn: Tensor
    length: Tensor
    width: Tensor
    bottom: Tensor
    top: Tensor
    front_channel: Tensor
    channel: Tensor
    agent: Tensor
    valid: Tensor

    def take(self, index: Tensor) -> _Boxes:
        """Return the boxes `index` (n,) of all, each field (n,)."""
        return _Boxes(**{name: value.flatten()[index] for name, value in vars(self).items()})


def _boxes(state: State, place: Tensor, turn: Tensor, view: View) -> _Boxes:
    """Return the boxes (B, C, BOXES + 2 SIGNALS) nearest to the ego: road users, the boards of signals, their poles."""
    scene, row = state.scene, state.scene.ego_row()[:, None]
    point = to_local(state.position[..., :2], place[:, None], turn[:, None])
    others = state.valid & (torch.arange(point.shape[1]) != scene.ego[:, None])
    who, found = _nearest_boxes(point, others, BOXES, view)
    length, width, height = scene.size[row, who].unbind(-1)
    ground, kind = torch.zeros_like(height), scene.kind[row, who] + LAYOUT_CHANNELS.index(KIND_CHANNELS[0])
    number = who + torch.arange(len(who))[:, None] * point.shape[1]
    agents = [*point[row, who].unbind(-1), (state.heading - turn[:, None])[row, who]]
    agents += [length, width, ground, height, kind, kind, number]
    board, heading, pole = signal_boards(scene)
    board = to_local(board, place[:, None], turn[:, None])
    which, hangs = _nearest_boxes(board, state.signal_valid, SIGNALS, view)
    off = torch.full_like(which, LAYOUT_CHANNELS.index(SIGNAL_CHANNELS[0]))
    x, y = _rows(board, which).unbind(-1)
    facing = _rows(heading - turn[:, None], which) + math.pi
    lit = off + _rows(state.signal_state, which)
    low, high = SIGNAL_MIDDLE - 0.5 * SIGNAL_HEIGHT, SIGNAL_MIDDLE + 0.5 * SIGNAL_HEIGHT
    sizes = [(SIGNAL_THICKNESS, SIGNAL_WIDTH, low, high), (SIGNAL_POLE, SIGNAL_POLE, 0.0, low)]
    boards, poles = ([x, y, facing, *(torch.full_like(x, value) for value in size)] for size in sizes)
    none = torch.zeros_like(which)
    columns = zip(agents, [*boards, lit, off, none], [*poles, off, off, none], strict=True)
    x, y, turned, *rest = (torch.cat(column, dim=1)[:, None].expand(-1, len(view.origin), -1) for column in columns)
    valid = torch.cat((found, hangs, hangs & _rows(pole, which)), dim=1)[:, None].expand(x.shape)
    x, y = x - view.origin[:, :1], y - view.origin[:, 1:2]
    pixel = (x.square() + y.square()).sqrt() / view.intrinsics[:, :2].amin(dim=1)[:, None]
    length, width, bottom, top, front, side, agent = rest
    length, width = (value.maximum(SMALLEST_BOX * pixel) for value in (length, width))
    top = top.maximum(bottom + SMALLEST_BOX * pixel)
    return _Boxes(x, y, turned - view.yaw[:, None], turned, length, width, bottom, top, front, side, agent, valid)


def _rows(value: Tensor, index: Tensor) -> Tensor:
    """Rows `index` (B, k) of dimension N of `value` (B, N, ...), which may have none; what is not found is anything."""
    value = torch.cat((value, value.new_zeros(len(value), 1, *value.shape[2:])), dim=1)
    return value[torch.arange(len(value))[:, None], index]


def _nearest_boxes(point: Tensor, wanted: Tensor, count: int, view: View) -> tuple[Tensor, Tensor]:
    """Return which of points (B, N, 2) of the ego's frame are wanted, in view and nearest, as `raster.lowest` does."""
    x, y = point.unbind(-1)
    distance = (x.square() + y.square()).sqrt()
    shown = wanted & (distance < REACH) & view.shows(x, y, 12.0)
    return lowest(torch.where(shown, distance, torch.inf), count)


def _visible(boxes: _Boxes, view: View, rig: Rig) -> tuple[Tensor, _Boxes, Tensor, Tensor]:
    """Find the nearest box in every pixel that one is seen in.

    Returns:
        pixel: (n,) into all B C H W, each at most once.
        box: the boxes (n,) there.
        depth: (n,) metres along the optical axis.
        face: (n,) int64 into `FACE_CHANNELS`; 3 for its top or bottom.
    """
    low, extent = _rectangles(boxes, view, rig)
    count = extent.prod(dim=0).flatten()
    chosen = count.nonzero()[:, 0]
    low, extent, count = low.flatten(1)[:, chosen], extent.flatten(1)[:, chosen], count[chosen]
    pair = torch.repeat_interleave(torch.arange(len(chosen)), count)
    number = torch.arange(len(pair)) - (count.cumsum(0) - count)[pair]
    column, row = low[0, pair] + number % extent[0, pair], low[1, pair] + number // extent[0, pair]
    image = chosen // boxes.x.shape[-1]
    pixel = (image[pair] * rig.height + row) * rig.width + column
    picked, camera = boxes.take(chosen), image % len(rig)
    ray = view.rays[pixel % len(view.rays)]
    cos, sin = picked.turn.cos(), picked.turn.sin()
    forward = (cos[pair] * ray[:, 0] + sin[pair] * ray[:, 1], cos[pair] * ray[:, 1] - sin[pair] * ray[:, 0], ray[:, 2])
    middle = (
        cos * picked.x + sin * picked.y,
        cos * picked.y - sin * picked.x,
        0.5 * (picked.bottom + picked.top) - view.origin[camera, 2],
    )
    half = (0.5 * picked.length, 0.5 * picked.width, 0.5 * (picked.top - picked.bottom))
    enter, leave = [], []
    for direction, centre, size in zip(forward, middle, half, strict=True):
        inverse = 1.0 / torch.where(direction.abs() < 1e-9, 1e-9, direction)
        at, thick = centre[pair] * inverse, size[pair] * inverse.abs()
        enter.append(at - thick)
        leave.append(at + thick)
    depth, axis = torch.stack(enter).max(dim=0)
    hit = ((depth < torch.stack(leave).amin(dim=0)) & (depth > NEAR)).nonzero()[:, 0]
    pixel, pair, depth, axis = pixel[hit], pair[hit], depth[hit], axis[hit]
    rear = forward[0][hit] > 0
    # Nearest first; of two at the same depth the one that is nearer to the ego, so that no order of writing decides.
    nearest = torch.full((len(view.rays) * len(boxes.x),), torch.inf).scatter_reduce_(0, pixel, depth, "amin")
    first = torch.where(depth == nearest[pixel], pair, len(chosen))
    winner = torch.full(nearest.shape, len(chosen)).scatter_reduce_(0, pixel, first, "amin")
    kept = (winner[pixel] == first).nonzero()[:, 0]
    face = torch.where(axis == 0, rear.long(), axis + 1)[kept]
    return pixel[kept], boxes.take(chosen[pair[kept]]), depth[kept], face


def _rectangles(boxes: _Boxes, view: View, rig: Rig) -> tuple[Tensor, Tensor]:
    """Return the first column and row (2, B, C, K) of the pixels that hold each box, and how many they are: 0 if it is unseen."""
    cos, sin = boxes.turn.cos()[..., None], boxes.turn.sin()[..., None]
    along, across = 0.5 * boxes.length[..., None] * _CORNERS[:, 0], 0.5 * boxes.width[..., None] * _CORNERS[:, 1]
    x, y = boxes.x[..., None] + cos * along - sin * across, boxes.y[..., None] + sin * along + cos * across
    z = torch.lerp(boxes.bottom[..., None], boxes.top[..., None], _CORNERS[:, 2]) - view.origin[:, 2, None, None]
    axes = view.axes.permute(1, 0, 2)[:, None, :, None, None]
    corner = axes[..., 0] * x + axes[..., 1] * y + axes[..., 2] * z
    depth, *aside = torch.cat(clip(corner[..., _EDGES[0]], corner[..., _EDGES[1]]), dim=-1)
    before = depth > 0.99 * NEAR  # of an edge behind the camera, clip leaves a point that is
    shown = boxes.valid & before.any(-1)
    lows, extents = [], []
    for axis, size in enumerate((rig.width, rig.height)):
        focal, centre = view.intrinsics[:, axis, None, None], view.intrinsics[:, 2 + axis, None, None]
        at = centre - focal * aside[axis] / depth.clamp(min=0.99 * NEAR)
        low = (torch.where(before, at, torch.inf).amin(-1) - 0.51).ceil().clamp(0, size).long()
        high = (torch.where(before, at, -torch.inf).amax(-1) + 0.51).floor().clamp(0, size).long()
        lows.append(low)
        extents.append(torch.where(shown, (high - low).clamp(min=0), 0))
    return torch.stack(lows), torch.stack(extents)
