"""Layouts as tensors: the map sampled evenly, and batched bird's-eye images made of such samples.

Every shape is drawn by points that lie closer together than pixels do: polylines are cut into pieces of at most 25 m with ten
points each, boxes carry a grid of points. So a whole batch is a few gathers and scatters, without a loop over agents or scenes,
and a scene's image does not depend on the batch that it stands in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .geometry import point_on_polyline, rotate, to_local
from .scene import AgentKind, PolylineKind, Scene, SignalState, TensorBatch

PIECE_LENGTH = 25.0
PIECE_POINTS = 10

CHANNELS = ("road", "lines", "route", "signals", "vehicles", "vulnerable", "ego")
"""Layers of a bird's-eye image, in order."""

MARKING_VALUE, EDGE_VALUE = 128, 255
SIGNAL_VALUES = {SignalState.UNKNOWN: 60, SignalState.GO: 120, SignalState.CAUTION: 190, SignalState.STOP: 255}

LANE_PIECES, LINE_PIECES = 96, 128
"""How many pieces of lanes (whose surface is drawn) and of other polylines an image holds at most, the nearest first."""

WIDEST_LANE = 5.0


@dataclass(frozen=True)
class RoadPieces(TensorBatch):
    """The map of B scenes cut into N pieces of at most `PIECE_LENGTH` m.

    Attributes:
        point: (B, N, PIECE_POINTS, 2) evenly spaced along each piece, in its polyline's direction.
        polyline: (B, N) int64, the polyline that it is cut from.
        kind: (B, N) int64 `PolylineKind`.
        lane_width: (B, N) metres, 0 for what is no lane.
        speed_limit: (B, N) metres per second, 0 where none is known.
        sag: (B, N) metres, the farthest of its points from the chord between its ends.
        valid: (B, N) bool, a prefix.
    """

    point: Tensor
    polyline: Tensor
    kind: Tensor
    lane_width: Tensor
    speed_limit: Tensor
    sag: Tensor
    valid: Tensor

    def widen(self, count: int) -> RoadPieces:
        """Return the same pieces with N grown to at least `count`; what is added is invalid."""
        missing = count - self.valid.shape[1]
        if missing <= 0:
            return self
        return self.map(lambda tensor: torch.cat((tensor, tensor.new_zeros(len(tensor), missing, *tensor.shape[2:])), dim=1))


def road_pieces(scene: Scene) -> RoadPieces:
    """Cut the polylines of B scenes; N is the largest number of pieces that one of them has (at least 1)."""
    batch, lines = scene.polyline_kind.shape
    vertex, vertex_valid = scene.polyline[..., :2].flatten(0, 1), scene.polyline_valid.flatten(0, 1)
    step = vertex[:, 1:] - vertex[:, :-1]
    length = torch.where(vertex_valid[:, 1:], step.square().sum(-1).sqrt(), 0.0).sum(-1)
    pieces = torch.where(length > 0, (length / PIECE_LENGTH).ceil().long(), 0)
    line = torch.repeat_interleave(torch.arange(batch * lines), pieces)
    number = torch.arange(len(line)) - (pieces.cumsum(0) - pieces)[line]
    share = (number[:, None] + torch.linspace(0.0, 1.0, PIECE_POINTS)) / pieces[line, None]
    point = point_on_polyline(share * length[line, None], vertex[line], vertex_valid[line])[0]
    row = line // max(lines, 1)
    count = torch.bincount(row, minlength=batch)
    place = torch.arange(len(line)) - (count.cumsum(0) - count)[row]
    width = max(int(count.max()), 1)

    def arrange(value: Tensor) -> Tensor:
        """Put the values (all pieces, ...) of every scene into a row of its own (B, N, ...)."""
        return value.new_zeros(batch, width, *value.shape[1:]).index_put((row, place), value)

    first, last = point[:, :1], point[:, -1:]
    limit = torch.where(scene.speed_limit_valid, scene.speed_limit, 0.0)
    return RoadPieces(
        point=arrange(point),
        polyline=arrange(line % max(lines, 1)),
        kind=arrange(scene.polyline_kind.flatten()[line]),
        lane_width=arrange(scene.lane_width.flatten()[line]),
        speed_limit=arrange(limit.flatten()[line]),
        sag=arrange(distance_to_segment(point, first, last).amax(dim=1)),
        valid=arrange(torch.ones(len(line), dtype=torch.bool)),
    )


def distance_to_segment(point: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Return the distance (...) of points (..., 2) from the segments between `start` and `end` (..., 2)."""
    span, relative = end - start, point - start
    share = (relative * span).sum(-1) / span.square().sum(-1).clamp(min=1e-9)
    return (relative - share.clamp(0.0, 1.0)[..., None] * span).square().sum(-1).sqrt()


def lowest(rank: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return which of `rank` (B, N) are lowest, in one order that neither N nor the rest of the batch changes.

    Of equals (pieces of one polyline share an end) the first comes first; `Tensor.topk` promises no order among them, and
    returns another one when N grows.

    Returns:
        index: (B, count) int64 into dimension N, the lowest first; 0 where nothing is found.
        found: (B, count) bool; what is infinite is not found, nor is anything beyond N.
    """
    missing = max(count - rank.shape[1], 0)
    rank, index = torch.nn.functional.pad(rank, (0, missing), value=torch.inf).sort(dim=1, stable=True)
    found = rank[:, :count] < torch.inf
    return torch.where(found, index[:, :count], 0), found


def nearest_pieces(
    pieces: RoadPieces, origin: Tensor, count: int, radius: float, kinds: Sequence[PolylineKind] | None = None
) -> tuple[Tensor, Tensor]:
    """Return which pieces lie nearest to `origin` (B, 2).

    Pieces are ranked by the distance of the chord between their ends, less their sag: never more than the true distance.

    Args:
        pieces: the map of B scenes.
        origin: (B, 2) where to look from.
        count: how many to return, k.
        radius: metres; pieces farther away are not returned.
        kinds: the kinds to look for, all of them if None.

    Returns:
        index: (B, k) int64 into dimension N, the nearest first.
        found: (B, k) bool; fewer than `count` may lie within the radius.
    """
    distance = distance_to_segment(origin[:, None], pieces.point[:, :, 0], pieces.point[:, :, -1]) - pieces.sag
    wanted = pieces.valid & (distance < radius)
    if kinds is not None:
        wanted &= torch.isin(pieces.kind, torch.tensor([int(kind) for kind in kinds]))
    return lowest(torch.where(wanted, distance, torch.inf), count)


@dataclass(frozen=True)
class ImageGrid:
    """The pixels of a bird's-eye image: the ego looks up, and `ahead` m before its centre lies the image's centre."""

    height: int = 96
    width: int = 96
    metres_per_pixel: float = 0.75
    ahead: float = 0.0

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 1 or not self.metres_per_pixel > 0:
            raise ValueError(f"{self}: height, width and metres_per_pixel must be positive")

    @property
    def radius(self) -> float:
        """Metres from the ego to the farthest pixel."""
        return math.hypot(self.height * self.metres_per_pixel / 2 + abs(self.ahead), self.width * self.metres_per_pixel / 2)

    def samples(self, metres: float) -> int:
        """How many points make a gapless line of `metres` metres."""
        return math.ceil(metres / self.metres_per_pixel) + 1


def bird_eye_image(
    scene: Scene,
    pieces: RoadPieces,
    position: Tensor,
    heading: Tensor,
    valid: Tensor,
    signal_state: Tensor,
    signal_valid: Tensor,
    grid: ImageGrid,
) -> Tensor:
    """Return images (B, height, width, len(CHANNELS)) uint8 of B moments, each in its ego's frame, forward up, left on the left.

    Values: road (where lanes with a width lie), route, vehicles, vulnerable (pedestrians, cyclists) and ego are 0 or 255. Lines
    are 128 for markings, crosswalks and walkways, 255 for road edges. Signals are a square of 2 m at the stop point: 255 stop,
    190 caution, 120 go, 60 unknown. Standing objects are drawn among the vehicles.

    Args:
        scene: B scenes.
        pieces: their maps, `road_pieces(scene)`.
        position: (B, A, 2 or more) box centres.
        heading: (B, A) radians.
        valid: (B, A) bool.
        signal_state: (B, S) int64 `SignalState`.
        signal_valid: (B, S) bool.
        grid: size and scale.
    """
    row = scene.ego_row()
    origin, turn = position[row, scene.ego, :2], heading[row, scene.ego]
    canvas = _Canvas(grid, origin, turn)
    lanes = (PolylineKind.LANE, PolylineKind.JUNCTION_LANE, PolylineKind.BIKE_LANE)
    road = _lane_surface(pieces, *nearest_pieces(pieces, origin, LANE_PIECES, grid.radius, lanes), grid)
    rest = [kind for kind in PolylineKind if kind not in lanes]
    index, found = nearest_pieces(pieces, origin, LINE_PIECES, grid.radius, rest)
    line = _densify(_pick(pieces.point, index), grid.samples(PIECE_LENGTH / (PIECE_POINTS - 1)))
    edge = pieces.kind.gather(1, index) == PolylineKind.ROAD_EDGE
    brightness = torch.where(edge, EDGE_VALUE, MARKING_VALUE)[..., None].expand(line.shape[:-1])
    way = _densify(scene.route[..., None, :, :2], grid.samples(4.0))[:, 0]
    way_valid = scene.route_valid[:, 1:].repeat_interleave(grid.samples(4.0) - 1, dim=1)
    way_valid = torch.cat((way_valid, way_valid.new_zeros(len(way), 1)), dim=1)
    square = torch.full((*signal_valid.shape, 2), 2.0)
    shown = torch.tensor([SIGNAL_VALUES[state] for state in SignalState])[signal_state]
    soft = (scene.kind == AgentKind.PEDESTRIAN) | (scene.kind == AgentKind.CYCLIST)
    sort = torch.where(valid, soft.long(), -1).index_put((row, scene.ego), torch.tensor(2))  # vehicles, vulnerable, ego
    layers = [
        canvas.layer(*road),
        canvas.layer(line, found, brightness),
        canvas.layer(way, way_valid),
        *canvas.boxes(scene.signal_position, scene.signal_heading, square, signal_valid.long() - 1, 1, shown),
        *canvas.boxes(position, heading, scene.size, sort, 3),
    ]
    return torch.stack(layers, dim=-1)


@dataclass(frozen=True)
class _Canvas:
    """Puts points (B, ..., 2) into pixels of images that look along `heading` (B,) from `origin` (B, 2)."""

    grid: ImageGrid
    origin: Tensor
    heading: Tensor

    def layer(self, point: Tensor, mask: Tensor, value: Tensor | None = None) -> Tensor:
        """Return (B, height, width) uint8; `mask` (B, ...) may lack the last dimensions of the points, `value` is 255 if None."""
        mask = mask.view(*mask.shape, *[1] * (point.ndim - 1 - mask.ndim)).expand(point.shape[:-1]).flatten(1)
        local = to_local(point.flatten(1, -2), self.origin[:, None], self.heading[:, None])
        row = torch.arange(len(mask))[:, None].expand_as(mask)
        return self._paint(local[mask], row[mask], len(mask), None if value is None else value.flatten(1)[mask])

    def boxes(
        self, position: Tensor, heading: Tensor, size: Tensor, layer: Tensor, layers: int, value: Tensor | None = None
    ) -> Tensor:
        """Return (layers, B, height, width) uint8 with boxes (B, A), each in its `layer` (none if negative), of `value` or 255.

        A grid of points fills what lies of a box within the image's radius, so that no box is too long and a far one costs
        nothing. They lie closer than 1 / sqrt(2) pixels: however it is turned, each pixel within it holds one.
        """
        place, turn = to_local(position[..., :2], self.origin[:, None], self.heading[:, None]), heading - self.heading[:, None]
        ego, half = rotate(-place, -turn), 0.5 * size[..., :2]
        low, high = torch.maximum(-half, ego - self.grid.radius), torch.minimum(half, ego + self.grid.radius)
        count = ((high - low) / (0.7 * self.grid.metres_per_pixel)).ceil().long() + 1
        count = torch.where(((layer >= 0) & (high >= low).all(dim=-1))[..., None], count, 0).flatten(0, 1)
        points = count.prod(dim=-1)
        box = torch.repeat_interleave(points)
        number, across = torch.arange(len(box)) - (points.cumsum(0) - points)[box], count[box, 1]
        share = torch.stack((number // across, number % across), dim=-1) / (count[box] - 1).clamp(min=1)
        low, high, place, turn = (entry.flatten(0, 1)[box] for entry in (low, high, place, turn))
        local, batch = rotate(low + share * (high - low), turn) + place, len(layer)
        image = layer.flatten()[box] * batch + box // layer.shape[1]
        painted = self._paint(local, image, layers * batch, None if value is None else value.flatten()[box])
        return painted.view(layers, batch, *painted.shape[1:])

    def _paint(self, local: Tensor, image: Tensor, images: int, value: Tensor | None) -> Tensor:
        """Return (images, height, width) uint8 with points (n, 2) of an ego's frame in `image` (n,); the highest value wins."""
        grid, (x, y), shape = self.grid, local.unbind(-1), (images, self.grid.height, self.grid.width)
        line = (0.5 * grid.height - (x - grid.ahead) / grid.metres_per_pixel).floor().long()
        column = (0.5 * grid.width - y / grid.metres_per_pixel).floor().long()
        inside = (line >= 0) & (line < grid.height) & (column >= 0) & (column < grid.width)
        pixel = torch.where(inside, (image * grid.height + line) * grid.width + column, math.prod(shape))
        painted = torch.zeros(math.prod(shape) + 1, dtype=torch.uint8)
        if value is None:
            painted.scatter_(0, pixel, 255)
        else:
            painted.scatter_reduce_(0, pixel, value.to(torch.uint8), "amax")
        return painted[:-1].view(shape)


def _pick(value: Tensor, index: Tensor) -> Tensor:
    """Rows `index` (B, k) of dimension N of `value` (B, N, ...)."""
    return value[torch.arange(len(value))[:, None], index]


def _densify(point: Tensor, count: int) -> Tensor:
    """Put `count` - 1 points on each segment of polylines (..., P, 2), the last kept: (..., (P - 1) (count - 1) + 1, 2)."""
    share = torch.arange(count - 1, dtype=point.dtype) / (count - 1)
    start, step = point[..., :-1, :], point[..., 1:, :] - point[..., :-1, :]
    between = start[..., None, :] + share[:, None] * step[..., None, :]
    return torch.cat((between.flatten(-3, -2), point[..., -1:, :]), dim=-2)


def _lane_surface(pieces: RoadPieces, index: Tensor, found: Tensor, grid: ImageGrid) -> tuple[Tensor, Tensor]:
    """Points (B, k, n, 2) that cover the chosen lanes to their full width, and which pieces hold (B, k)."""
    width = _pick(pieces.lane_width, index).clamp(max=WIDEST_LANE)
    middle = _densify(_pick(pieces.point, index), grid.samples(PIECE_LENGTH / (PIECE_POINTS - 1)))
    step = torch.cat((middle[..., 1:, :] - middle[..., :-1, :], middle[..., -1:, :] - middle[..., -2:-1, :]), dim=-2)
    left = torch.stack((-step[..., 1], step[..., 0]), dim=-1) / step.square().sum(-1, keepdim=True).sqrt().clamp(min=1e-6)
    across = torch.linspace(-0.5, 0.5, grid.samples(WIDEST_LANE))
    offset = width[..., None, None, None] * across[:, None] * left[..., None, :]
    return (middle[..., None, :] + offset).flatten(2, 3), found & (width > 0)
