"""Measures: what happened in a step, each defined once, batched over scenes.

Reward, the end of an episode and evaluation all read the numbers of `ego_measures`; `realism.py` measures how real the others
are. What a measure needs from before is an `EgoPast`, a plain record:

    past = start_past(state)
    ... state = world.step(...)
    past = next_past(past, state)
    measures = ego_measures(state, past, road_edges(state.scene))

Boxes are compared from above, without height: on a bridge and below it counts as a collision.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..worldmodel.dynamics import forward_speed
from ..worldmodel.geometry import box_corners, boxes_overlap, project_on_polyline, signed_distance_to_edges, wrap_angle
from ..worldmodel.raster import distance_to_segment, lowest
from ..worldmodel.scene import HISTORY_STEPS, TIME_STEP, PolylineKind, Scene, TensorBatch
from ..worldmodel.world import State

OFF_ROAD_TOLERANCE = 0.3
"""Metres that a corner of the ego may reach beyond the road's edge (nuPlan's drivable area compliance)."""

COMFORT_LIMITS: dict[str, tuple[float, float]] = {
    "acceleration": (-4.05, 2.40),
    "lateral_acceleration": (-4.89, 4.89),
    "yaw_rate": (-0.95, 0.95),
    "yaw_acceleration": (-1.93, 1.93),
    "longitudinal_jerk": (-4.13, 4.13),
    "jerk": (0.0, 8.37),
}
"""nuPlan's limits of comfort: config/simulation_metric/common/ego_is_comfortable_statistics of nuplan-devkit."""

PAST_STEPS = 6
"""Values kept of each acceleration: jerk is the change over 0.5 s, about as long as nuPlan's filters smooth over."""

EDGES_NEAR = 64
"""Edge segments near the ego that are looked at exactly; with segments of 1 to 3 m they reach far beyond a truck's corners."""

WINDOW_BEHIND, WINDOW = 12, 48
"""Route points behind the ego, and in all, between which it is looked for: a route that meets itself again does not confuse."""


@dataclass(frozen=True)
class EgoPast(TensorBatch):
    """What is remembered of B egos from step to step.

    Attributes:
        start: (B,) metres along the route at the reset.
        length: (B,) metres of the whole route.
        arc: (B,) metres along the route now, straight on beyond its end; `progress` (B,) is its change in the last step up to
            the end.
        offset: (B,) metres to the left of the route; `heading_error` (B,) radians against its direction.
        speed: (B,) along the heading.
        heading: (B,).
        edge_distance: (B,) metres by which the farthest corner is beyond the road's edge; `on_road` (B,) bool, whether it has
            been within `OFF_ROAD_TOLERANCE` of the road at any time since the reset.
        acceleration: (B, PAST_STEPS) along the heading, in m/s2, the newest last; `lateral_acceleration` likewise.
        yaw_rate: (B, PAST_STEPS) in rad/s.
    """

    start: Tensor
    length: Tensor
    arc: Tensor
    progress: Tensor
    offset: Tensor
    heading_error: Tensor
    speed: Tensor
    heading: Tensor
    edge_distance: Tensor
    on_road: Tensor
    acceleration: Tensor
    lateral_acceleration: Tensor
    yaw_rate: Tensor


@dataclass(frozen=True)
class RoadEdges(TensorBatch):
    """The segments of all road edges of B scenes: segment (B, N, 2, 2) start and end, the road on their left; valid (B, N)."""

    segment: Tensor
    valid: Tensor

    def widen(self, count: int) -> RoadEdges:
        """Return the same edges with N grown to at least `count`; what is added is invalid."""
        missing = count - self.valid.shape[1]
        if missing <= 0:
            return self
        return self.map(lambda tensor: torch.cat((tensor, tensor.new_zeros(len(tensor), missing, *tensor.shape[2:])), dim=1))


def road_edges(scene: Scene) -> RoadEdges:
    """Collect the road edges of B scenes; N is the largest number of segments that one of them has (at least 1)."""
    point = scene.polyline[..., :2]
    segment = torch.stack((point[:, :, :-1], point[:, :, 1:]), dim=-2).flatten(1, 2)
    usable = scene.polyline_valid[..., :-1] & scene.polyline_valid[..., 1:]
    valid = (usable & (scene.polyline_kind == PolylineKind.ROAD_EDGE)[..., None]).flatten(1)
    count = max(int(valid.sum(dim=1).max()), 1) if valid.shape[1] else 0
    order = (~valid).long().argsort(dim=1, stable=True)[:, :count]
    row = torch.arange(len(scene))[:, None]
    return RoadEdges(segment[row, order], valid[row, order]).widen(1)


def route_place(scene: Scene, position: Tensor, near: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return where positions (B, 2) lie along the routes: arc (B,) in metres, offset to the left (B,), the route's heading (B,).

    Args:
        scene: B scenes.
        position: (B, 2).
        near: (B,) arcs of a moment ago; the route is then searched only from about 20 m before to 70 m behind that place.
    """
    route, valid = scene.route[..., :2], scene.route_valid
    if near is None:
        found = project_on_polyline(position[:, None], route, valid)
        return found[0][:, 0], found[1][:, 0], found[2][:, 0]
    arcs = _route_arcs(scene)
    first = torch.searchsorted(arcs, near[:, None].contiguous(), right=True) - 1
    first = torch.minimum(first, valid.sum(dim=1, keepdim=True) - 2).sub(WINDOW_BEHIND).clamp(min=0)
    index = (first + torch.arange(WINDOW)).clamp(max=route.shape[1] - 1)
    inside = valid.gather(1, index) & (first + torch.arange(WINDOW) < route.shape[1])
    window = route.gather(1, index[..., None].expand(-1, -1, 2))
    arc, offset, heading = project_on_polyline(position[:, None], window, inside)
    return (arc + arcs.gather(1, first))[:, 0], offset[:, 0], heading[:, 0]


def _route_arcs(scene: Scene) -> Tensor:
    """Metres (B, R) from the route's start to each of its points; constant beyond the last one."""
    step = scene.route[:, 1:, :2] - scene.route[:, :-1, :2]
    length = torch.where(scene.route_valid[:, 1:], step.norm(dim=-1), 0.0)
    return torch.cat((length.new_zeros(len(length), 1), length.cumsum(dim=1)), dim=1)


def start_past(state: State, edges: RoadEdges) -> EgoPast:
    """Return the past at a reset: accelerations as the log shows them over the last 0.5 s, or 0 where it shows none."""
    scene, ego = state.scene, state.ego()
    arc, offset, route_heading = route_place(scene, ego.position[:, :2])
    speed = forward_speed(ego)
    row, before, seconds = scene.ego_row(), HISTORY_STEPS - PAST_STEPS + 1, (PAST_STEPS - 1) * TIME_STEP
    heading_then, velocity_then = scene.heading[row, scene.ego, before], scene.velocity[row, scene.ego, before]
    speed_then = velocity_then[:, 0] * heading_then.cos() + velocity_then[:, 1] * heading_then.sin()
    seen = scene.valid[row, scene.ego, before]
    acceleration = torch.where(seen, (speed - speed_then) / seconds, 0.0)
    yaw_rate = torch.where(seen, wrap_angle(ego.heading - heading_then) / seconds, 0.0)
    several = lambda value: value[:, None].repeat(1, PAST_STEPS)  # noqa: E731
    edge_distance = ego_edge_distance(state, edges)
    return EgoPast(
        start=arc,
        length=_route_arcs(scene)[:, -1],
        arc=arc,
        progress=torch.zeros_like(arc),
        offset=offset,
        heading_error=wrap_angle(ego.heading - route_heading),
        speed=speed,
        heading=ego.heading,
        edge_distance=edge_distance,
        on_road=edge_distance <= OFF_ROAD_TOLERANCE,
        acceleration=several(acceleration),
        lateral_acceleration=several(speed * yaw_rate),
        yaw_rate=several(yaw_rate),
    )


def next_past(past: EgoPast, state: State, edges: RoadEdges) -> EgoPast:
    """Return the past one step later, when the world is in `state`."""
    ego = state.ego()
    arc, offset, route_heading = route_place(state.scene, ego.position[:, :2], near=past.arc)
    speed = forward_speed(ego)
    yaw_rate = wrap_angle(ego.heading - past.heading) / TIME_STEP
    push = lambda values, new: torch.cat((values[:, 1:], new[:, None]), dim=1)  # noqa: E731
    edge_distance = ego_edge_distance(state, edges)
    return replace(
        past,
        arc=arc,
        progress=arc.minimum(past.length) - past.arc.minimum(past.length),
        offset=offset,
        heading_error=wrap_angle(ego.heading - route_heading),
        speed=speed,
        heading=ego.heading,
        edge_distance=edge_distance,
        on_road=past.on_road | (edge_distance <= OFF_ROAD_TOLERANCE),
        acceleration=push(past.acceleration, (speed - past.speed) / TIME_STEP),
        lateral_acceleration=push(past.lateral_acceleration, speed * yaw_rate),
        yaw_rate=push(past.yaw_rate, yaw_rate),
    )


def ego_measures(state: State, past: EgoPast) -> dict[str, Tensor]:
    """Return every measure (B,) of the step that led to `state`, by its name.

    `progress` m along the route, none beyond its end; `route_completion` share of the route from the reset to its end; `speed`
    m/s; `collision`; `collided_with` the agent (-1: nobody); `off_road`: a corner is beyond the road's edge, and the ego has
    been on the road before (a log may begin beyond the end of its map); `off_road_measurable`: whether the map has road edges
    at all (where it has none, `off_road` is false and says nothing); `comfort` share of the six `COMFORT_LIMITS` that
    hold; and the accelerations and jerks behind it.
    """
    hit = ego_collision(state)
    motion = ego_comfort(past)
    left = (past.length - past.start).clamp(min=1e-3)
    return {
        "progress": past.progress,
        "route_completion": ((past.arc - past.start) / left).clamp(0.0, 1.0),
        "speed": past.speed,
        "collision": hit >= 0,
        "collided_with": hit,
        "off_road": past.on_road & (past.edge_distance > OFF_ROAD_TOLERANCE),
        "off_road_measurable": past.edge_distance.isfinite(),
        **motion,
    }


def ego_comfort(past: EgoPast) -> dict[str, Tensor]:
    """Return `comfort` (B,), the share of the `COMFORT_LIMITS` that hold, and the six values (B,) by their names."""
    seconds = (PAST_STEPS - 1) * TIME_STEP
    change = lambda values: (values[:, -1] - values[:, 0]) / seconds  # noqa: E731
    forward, lateral = change(past.acceleration), change(past.lateral_acceleration)
    values = {
        "acceleration": past.acceleration[:, -1],
        "lateral_acceleration": past.lateral_acceleration[:, -1],
        "yaw_rate": past.yaw_rate[:, -1],
        "yaw_acceleration": change(past.yaw_rate),
        "longitudinal_jerk": forward,
        "jerk": (forward.square() + lateral.square()).sqrt(),
    }
    held = torch.stack([(values[name] >= low) & (values[name] <= high) for name, (low, high) in COMFORT_LIMITS.items()])
    return {"comfort": held.sum(dim=0) / len(COMFORT_LIMITS), **values}


def ego_collision(state: State) -> Tensor:
    """Return the first agent (B,) int64 whose box overlaps the ego's, -1 where there is none."""
    scene, row = state.scene, state.scene.ego_row()
    corners = box_corners(state.position, state.heading, scene.size)
    others = state.valid.index_put((row, scene.ego), torch.zeros(len(row), dtype=torch.bool))
    hit = boxes_overlap(corners[row, scene.ego][:, None], corners) & others
    return torch.where(hit.any(dim=1), hit.long().argmax(dim=1), -1)


def ego_edge_distance(state: State, edges: RoadEdges) -> Tensor:
    """Return metres (B,) by which the ego's farthest corner is beyond the road's edge, negative on the road.

    Minus infinity where the map has no road edges.
    """
    scene, ego = state.scene, state.ego()
    distance = distance_to_segment(ego.position[:, None, :2], edges.segment[:, :, 0], edges.segment[:, :, 1])
    near, valid = lowest(torch.where(edges.valid, distance, torch.inf), EDGES_NEAR)
    segment = edges.segment[torch.arange(len(state))[:, None], near]
    corners = box_corners(ego.position, ego.heading, scene.size[scene.ego_row(), scene.ego])
    return signed_distance_to_edges(corners, segment, valid[..., None].expand(-1, -1, 2)).amax(dim=1)
