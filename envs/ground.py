"""Ground: what the map says of the place where the ego is: lanes, road edges, and the signals on its route.

`ground(scene)` collects, once an episode, what does not change; `lane_place` and `edge_distance` ask it at every step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from ..worldmodel.dynamics import Motion
from ..worldmodel.geometry import box_corners, project_on_polyline, signed_distance_to_edges, wrap_angle
from ..worldmodel.raster import distance_to_segment, lowest
from ..worldmodel.scene import PolylineKind, Scene, TensorBatch

EDGES_NEAR = 64
"""Edge segments near the ego that are looked at exactly; with segments of 1 to 3 m they reach far beyond a truck's corners."""

USUAL_LANE_WIDTH = 3.5
"""Metres, of lanes whose width the map does not tell, and of the route where it stands for them."""

Batch = TypeVar("Batch", bound=TensorBatch)


@dataclass(frozen=True)
class Segments(TensorBatch):
    """Pieces of polylines of B scenes: segment (B, N, 2, 2) start and end, valid (B, N)."""

    segment: Tensor
    valid: Tensor


Pieces = TypeVar("Pieces", bound=Segments)


@dataclass(frozen=True)
class Lanes(Segments):
    """Segments of the lanes' centrelines in driving direction; where a map has no lanes, the route stands for one.

    Attributes:
        half_width: (B, N) metres.
        speed_limit: (B, N) m/s, infinite where none is known.
        junction: (B, N) bool, whether the lane leads over a junction.
    """

    half_width: Tensor
    speed_limit: Tensor
    junction: Tensor


@dataclass(frozen=True)
class Ground(TensorBatch):
    """What measures and observations need of B maps.

    Attributes:
        edges: the road's edges, the road on their left.
        lanes: the lanes of cars.
        signal_arc: (B, S) metres along the route at which each stop point lies.
        signal_on_route: (B, S) bool, whether the signal is one that the ego will pass on its route.
    """

    edges: Segments
    lanes: Lanes
    signal_arc: Tensor
    signal_on_route: Tensor

    def widen(self, other: Ground) -> Ground:
        """Return the same with room for at least as many segments as `other` has; what is added is invalid."""
        edges, lanes = widened(self.edges, other.edges.valid.shape[1]), widened(self.lanes, other.lanes.valid.shape[1])
        return replace(self, edges=edges, lanes=lanes)

    def near(self, position: Tensor, radius: float) -> Ground:
        """Return the same with only those segments within `radius` m of `position` (B, 2): less to search."""
        edges, lanes = (_nearby(pieces, position, radius) for pieces in (self.edges, self.lanes))
        return replace(self, edges=edges, lanes=lanes)


def widened(batch: Batch, count: int) -> Batch:
    """Return a batch of tensors (B, N, ...) with N grown to at least `count`; what is added is zero, so invalid."""

    def grow(tensor: Tensor) -> Tensor:
        missing = max(count - tensor.shape[1], 0)
        return torch.cat((tensor, tensor.new_zeros(len(tensor), missing, *tensor.shape[2:])), dim=1)

    return batch.map(grow)


def ground(scene: Scene) -> Ground:
    """Collect what is needed of B maps; the number of segments is the largest that one of them has, at least 1."""
    start, end = scene.polyline[..., :-1, :2], scene.polyline[..., 1:, :2]
    usable = scene.polyline_valid[..., :-1] & scene.polyline_valid[..., 1:]
    kind = scene.polyline_kind
    points = usable.shape[-1]
    segment = torch.stack((start, end), dim=-2).flatten(1, 2)
    is_lane = (kind == PolylineKind.LANE) | (kind == PolylineKind.JUNCTION_LANE)
    width = torch.where(scene.lane_width > 0, scene.lane_width, USUAL_LANE_WIDTH)
    limit = torch.where(scene.speed_limit_valid, scene.speed_limit, torch.inf)
    each = lambda value: value[..., None].expand(-1, -1, points).flatten(1)  # noqa: E731
    lanes = Lanes(
        segment,
        (usable & is_lane[..., None]).flatten(1),
        each(0.5 * width),
        each(limit),
        each(kind == PolylineKind.JUNCTION_LANE),
    )
    edges = Segments(segment, (usable & (kind == PolylineKind.ROAD_EDGE)[..., None]).flatten(1))
    signals = signals_along(scene, scene.route[..., :2], scene.route_valid)
    return Ground(_valid_first(edges), _valid_first(_with_route(lanes, scene)), *signals)


def _with_route(lanes: Lanes, scene: Scene) -> Lanes:
    """Return the lanes and the segments of the route behind them, valid where a scene has no lane."""
    route = torch.stack((scene.route[:, :-1, :2], scene.route[:, 1:, :2]), dim=-2)
    valid = scene.route_valid[:, :-1] & scene.route_valid[:, 1:] & ~lanes.valid.any(dim=1, keepdim=True)
    shape = valid.shape
    instead = Lanes(
        route,
        valid,
        torch.full(shape, 0.5 * USUAL_LANE_WIDTH),
        torch.full(shape, torch.inf),
        torch.zeros(shape, dtype=torch.bool),
    )
    return Lanes(**{name: torch.cat((value, getattr(instead, name)), dim=1) for name, value in vars(lanes).items()})


def _valid_first(batch: Pieces) -> Pieces:
    """Return segments with the valid ones first, cut to as many as the fullest scene has."""
    count = max(int(batch.valid.sum(dim=1).max()), 1) if batch.valid.shape[1] else 0
    order = (~batch.valid).long().argsort(dim=1, stable=True)[:, :count]
    row = torch.arange(len(order))[:, None]
    return widened(batch.map(lambda tensor: tensor[row, order]), 1)


def _nearby(batch: Pieces, position: Tensor, radius: float) -> Pieces:
    distance = distance_to_segment(position[:, None], batch.segment[:, :, 0], batch.segment[:, :, 1])
    return _valid_first(replace(batch, valid=batch.valid & (distance < radius)))


def signals_along(scene: Scene, path: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the signals of B scenes stand along paths, and which of them hold for who drives there.

    A signal holds if its stop point lies within 2 m of the path in the path's direction (45 degrees) and the lane that it
    controls also ends within 2 m of it: signals for other turns share the stop point.

    Args:
        scene: B scenes.
        path: (B, K, 2) points of the route or of a piece of it.
        valid: (B, K) bool.

    Returns:
        arc: (B, S) metres along the path.
        holds: (B, S) bool.
    """
    arc, offset, heading = project_on_polyline(scene.signal_position[..., :2], path, valid)
    holds = (offset.abs() < 2.0) & (wrap_angle(scene.signal_heading - heading).abs() < 0.25 * math.pi)
    if scene.polyline.shape[1]:
        row, lane = scene.ego_row()[:, None], scene.signal_lane
        last = (scene.polyline_valid[row, lane].long().sum(dim=-1) - 1).clamp(min=0)
        exit = scene.polyline[row, lane, last][..., :2]
        holds &= project_on_polyline(exit, path, valid)[1].abs() < 2.0
    return arc, holds


@dataclass(frozen=True)
class LanePlace(TensorBatch):
    """Where B cars are in their lanes.

    Attributes:
        offset: (B,) metres to the left of the nearest centreline that runs along the car (within 45 degrees); infinite where
            there is none.
        speed_limit: (B,) m/s of that lane, infinite where none is known or the car is more than a lane away.
        within_one: (B,) bool, whether a lane holds the whole width of the car.
        in_junction: (B,) bool, whether the centre is on a lane that leads over a junction.
        against: (B,) bool, whether the centre is on lanes, all of which run the other way.
    """

    offset: Tensor
    speed_limit: Tensor
    within_one: Tensor
    in_junction: Tensor
    against: Tensor


def lane_place(lanes: Lanes, motion: Motion, size: Tensor) -> LanePlace:
    """Return where cars with `motion` (B, ...) and size (B, 2 or more) are in their lanes."""
    point = motion.position[:, None, :2]
    start, end = lanes.segment[:, :, 0], lanes.segment[:, :, 1]
    step = end - start
    direction = step / step.square().sum(-1, keepdim=True).sqrt().clamp(min=1e-6)
    forward_x, forward_y = motion.heading.cos()[:, None], motion.heading.sin()[:, None]
    cosine = direction[..., 0] * forward_x + direction[..., 1] * forward_y
    sine = direction[..., 0] * forward_y - direction[..., 1] * forward_x
    distance = torch.where(lanes.valid, distance_to_segment(point, start, end), torch.inf)
    across = 0.5 * (size[:, :1] * sine.abs() + size[:, 1:2] * cosine.abs())
    along = cosine > math.cos(0.25 * math.pi)
    inside = distance <= lanes.half_width
    nearest, index = torch.where(along, distance, torch.inf).min(dim=1)
    pick = lambda value: value.gather(1, index[:, None])[:, 0]  # noqa: E731
    relative = point - start
    left = pick(direction[..., 0] * relative[..., 1] - direction[..., 1] * relative[..., 0])
    close = nearest <= 3 * pick(lanes.half_width)
    return LanePlace(
        offset=torch.where(left < 0, -nearest, nearest),
        speed_limit=torch.where(close, pick(lanes.speed_limit), torch.inf),
        within_one=(along & (distance + across <= lanes.half_width)).any(dim=1),
        in_junction=(inside & lanes.junction).any(dim=1),
        against=inside.any(dim=1) & ~(inside & (cosine > 0)).any(dim=1),
    )


def edge_distance(edges: Segments, motion: Motion, size: Tensor) -> Tensor:
    """Return metres (B,) by which a car's farthest corner is beyond the road's edge, negative on the road.

    Minus infinity where the map has no road edges.

    Args:
        edges: the road's edges of B scenes.
        motion: (B, ...).
        size: (B, 2 or more).
    """
    distance = distance_to_segment(motion.position[:, None, :2], edges.segment[:, :, 0], edges.segment[:, :, 1])
    near, valid = lowest(torch.where(edges.valid, distance, torch.inf), EDGES_NEAR)
    segment = edges.segment[torch.arange(len(near))[:, None], near]
    corners = box_corners(motion.position, motion.heading, size)
    return signed_distance_to_edges(corners, segment, valid[..., None].expand(-1, -1, 2)).amax(dim=1)
