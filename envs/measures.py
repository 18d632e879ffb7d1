"""Measures: what happened in a step, each defined once, batched over scenes.

Reward, the end of an episode and the driving score all read the numbers of `ego_measures`; `realism.py` measures how real the
others are. What a measure needs from before is an `EgoPast`, a plain record:

    on = ground(state.scene)
    past = start_past(state, on)
    ... state = world.step(...)
    past = next_past(past, state, on)
    measures = ego_measures(state, past)

Thresholds are those of nuPlan's closed-loop metrics (nuplan-devkit, planning/metrics/evaluation_metrics/common) and of NAVSIM
(navsim, planning/simulation/planner/pdm_planner/scoring), written afresh. Lanes are centrelines with a width here and not
polygons, so a junction is where the ego's centre is on a lane that leads over one, and "in several lanes" is where no lane holds
the whole width of the ego. Boxes are compared from above, without height: on a bridge and below it counts as a collision.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..worldmodel.dynamics import forward_speed
from ..worldmodel.geometry import box_corners, boxes_overlap, overlap_times, project_on_polyline, rotate, wrap_angle
from ..worldmodel.scene import HISTORY_STEPS, TIME_STEP, AgentKind, Scene, SignalState, TensorBatch
from ..worldmodel.world import State
from .ground import Ground, LanePlace, edge_distance, lane_place

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
"""Values kept of each acceleration: jerk is the change over 0.5 s. nuPlan's filter of the whole drive (Savitzky-Golay,
1.5 s) is not to be had in a step: a sudden change counts twice as much here; what repeats twice a second escapes both."""

STANDING, BARELY_MOVING = 0.05, 0.005
"""m/s up to which nuPlan takes somebody for standing at a collision, and up to which the ego has no time to collision."""

TIME_TO_COLLISION_HORIZON, LEAST_TIME_TO_COLLISION = 3.0, 0.95
"""Seconds looked ahead, and more than which the ego has to keep (nuPlan's time_to_collision_within_bound)."""

AHEAD, NOT_BEHIND = math.cos(math.radians(30)), math.cos(math.radians(150))
"""Cosines of the angles from the ego's heading within which somebody is ahead, and within which they are not behind."""

REAR_AXLE = 0.282
"""Share of its length by which the ego's rear axle lies behind its centre: nuPlan's car, 1.461 m of 5.176 m."""

FLOW_STEPS = 10
"""nuPlan adds up over 1 s what is driven against the traffic (driving_direction_compliance)."""

MOST_OVERSPEED = 2.23
"""m/s above the limit at which nothing is left of nuPlan's speed limit compliance (5 miles an hour)."""

LEAST_PROGRESS = 2.0
"""Metres that nuPlan takes for the progress of an expert who makes less."""

CENTRED, UNCENTRED_STEPS = 0.5, 20
"""Metres off the centreline that keep the lane, and steps beyond after which it is not kept (NAVSIM's lane keeping)."""

WINDOW_BEHIND, WINDOW, EXPERT_STEPS = 12, 48, 15
"""Route points behind the ego, and in all, between which it is looked for: a route that meets itself again does not confuse. And
steps of the log's ego that are looked for at once."""

MEASURES = (
    *("progress", "route_completion", "expert_progress", "progress_share", "speed"),
    *("collision", "at_fault_collision", "at_fault_object", "time_to_collision", "safe_time_to_collision"),
    *("off_road", "against_flow", "overspeed", "within_speed_limit", "lane_offset", "lane_keeping", "red_light"),
    *("comfort", *COMFORT_LIMITS),
)
"""The measures of a step that a reward may weigh: all of `ego_measures` that count or measure something."""


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
        lane: where the ego is in its lanes.
        against: (B, FLOW_STEPS) metres driven against the flow in each of the last steps.
        uncentred: (B,) int64, for how many steps now the ego has been off its centreline (`CENTRED`) outside of junctions.
        ran_red: (B,) bool, whether its front passed a stop point on its route in the last step while that showed STOP.
        touched: (B, A) bool, whose boxes it has overlapped before now; `touching` (B, A), those that it overlaps for the first
            time. Who overlaps at the reset, where labels do, has been touched before.
        expert: (B, E) metres along the route, up to its end, that the log's ego has made 0, 1, ... steps after the reset.
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
    lane: LanePlace
    against: Tensor
    uncentred: Tensor
    ran_red: Tensor
    touched: Tensor
    touching: Tensor
    expert: Tensor


def route_place(scene: Scene, position: Tensor, near: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return where positions (B, 2) lie along the routes: arc (B,) in metres, offset to the left (B,), the route's heading (B,).

    Args:
        scene: B scenes.
        position: (B, 2); with `near` also (B, N, 2), for arcs, offsets and headings (B, N).
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
    arc, offset, heading = project_on_polyline(position.view(len(scene), -1, 2), window, inside)
    one_or_many = position.shape[:-1]
    return (arc + arcs.gather(1, first)).view(one_or_many), offset.view(one_or_many), heading.view(one_or_many)


def _route_arcs(scene: Scene) -> Tensor:
    """Metres (B, R) from the route's start to each of its points; constant beyond the last one."""
    step = scene.route[:, 1:, :2] - scene.route[:, :-1, :2]
    length = torch.where(scene.route_valid[:, 1:], step.norm(dim=-1), 0.0)
    return torch.cat((length.new_zeros(len(length), 1), length.cumsum(dim=1)), dim=1)


def start_past(state: State, on: Ground) -> EgoPast:
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
    size = scene.size[row, scene.ego]
    beyond = edge_distance(on.edges, ego, size)
    return EgoPast(
        start=arc,
        length=_route_arcs(scene)[:, -1],
        arc=arc,
        progress=torch.zeros_like(arc),
        offset=offset,
        heading_error=wrap_angle(ego.heading - route_heading),
        speed=speed,
        heading=ego.heading,
        edge_distance=beyond,
        on_road=beyond <= OFF_ROAD_TOLERANCE,
        acceleration=several(acceleration),
        lateral_acceleration=several(speed * yaw_rate),
        yaw_rate=several(yaw_rate),
        lane=lane_place(on.lanes, ego, size),
        against=torch.zeros(len(scene), FLOW_STEPS),
        uncentred=torch.zeros_like(state.step),
        ran_red=torch.zeros_like(seen),
        touched=ego_overlaps(state),
        touching=torch.zeros_like(state.valid),
        expert=_expert_way(scene, arc),
    )


def next_past(past: EgoPast, state: State, on: Ground) -> EgoPast:
    """Return the past one step later, when the world is in `state`."""
    ego = state.ego()
    arc, offset, route_heading = route_place(state.scene, ego.position[:, :2], near=past.arc)
    speed = forward_speed(ego)
    yaw_rate = wrap_angle(ego.heading - past.heading) / TIME_STEP
    push = lambda values, new: torch.cat((values[:, 1:], new[:, None]), dim=1)  # noqa: E731
    size = state.scene.size[state.scene.ego_row(), state.scene.ego]
    beyond, lane = edge_distance(on.edges, ego, size), lane_place(on.lanes, ego, size)
    uncentred = (lane.offset.abs() > CENTRED) & ~lane.in_junction
    front = 0.5 * size[:, :1]
    passed = (past.arc[:, None] + front < on.signal_arc) & (arc[:, None] + front >= on.signal_arc)
    red = (state.signal_state == SignalState.STOP) & state.signal_valid & on.signal_on_route
    hit, touched = ego_overlaps(state), past.touched | past.touching
    return replace(
        past,
        arc=arc,
        progress=arc.minimum(past.length) - past.arc.minimum(past.length),
        offset=offset,
        heading_error=wrap_angle(ego.heading - route_heading),
        speed=speed,
        heading=ego.heading,
        edge_distance=beyond,
        on_road=past.on_road | (beyond <= OFF_ROAD_TOLERANCE),
        acceleration=push(past.acceleration, (speed - past.speed) / TIME_STEP),
        lateral_acceleration=push(past.lateral_acceleration, speed * yaw_rate),
        yaw_rate=push(past.yaw_rate, yaw_rate),
        lane=lane,
        against=push(past.against, torch.where(lane.against, speed.clamp(min=0.0) * TIME_STEP, 0.0)),
        uncentred=torch.where(uncentred, past.uncentred + 1, 0),
        ran_red=(passed & red).any(dim=1),
        touched=touched,
        touching=hit & ~touched,
    )


def ego_measures(state: State, past: EgoPast) -> dict[str, Tensor]:
    """Return every measure (B,) of the step that led to `state`, by its name.

    Where it went: `progress` m along the route, none beyond its end; `route_completion` share of the route from the reset to
    its end; `expert_progress` m of it that the log's ego had made by now; `progress_share` what the step adds to the share of all
    that the log's ego will make, which ends at 1; `speed` m/s.

    Whom it met: `collision`: its box overlaps another one; `collided_with` the agent (-1: nobody); `at_fault_collision`: how
    many road users not touched before it met, by nuPlan's rules by its own fault; `at_fault_object`: standing objects likewise;
    `time_to_collision` s, see there; `safe_time_to_collision`: more than `LEAST_TIME_TO_COLLISION`, and no fault now.

    Where it drove: `off_road`: a corner is beyond the road's edge, and the ego has been on the road before (a log may begin
    beyond the end of its map); `off_road_measurable`: whether the map has road edges at all (where it has none, `off_road` is
    false and says nothing); `against_flow` m in the last second; `overspeed` m/s above the lane's limit; `within_speed_limit`,
    1 where it keeps it and 0 from `MOST_OVERSPEED` above it; `lane_offset` m from the centreline; `lane_keeping`: not off it for
    2 s outside of junctions; `red_light`: it passed one.

    How it felt: `comfort` share of the six `COMFORT_LIMITS` that hold, and the accelerations and jerks behind it.
    """
    hit = ego_overlaps(state)
    fault, standing = at_fault(state, past), state.scene.kind == AgentKind.OBJECT
    seconds = time_to_collision(state, past)
    overspeed = (past.speed - past.lane.speed_limit).clamp(min=0.0)
    driven = past.arc.minimum(past.length) - past.start
    expert = past.expert.gather(1, state.step.clamp(max=past.expert.shape[1] - 1)[:, None])[:, 0]
    share = lambda metres: (metres / past.expert[:, -1].clamp(min=LEAST_PROGRESS)).clamp(max=1.0)  # noqa: E731
    return {
        "progress": past.progress,
        "route_completion": ((past.arc - past.start) / (past.length - past.start).clamp(min=1e-3)).clamp(0.0, 1.0),
        "expert_progress": expert,
        "progress_share": share(driven) - share(driven - past.progress),
        "speed": past.speed,
        "collision": hit.any(dim=1),
        "collided_with": torch.where(hit.any(dim=1), hit.long().argmax(dim=1), -1),
        "at_fault_collision": (fault & ~standing).sum(dim=1),
        "at_fault_object": (fault & standing).sum(dim=1),
        "time_to_collision": seconds,
        "safe_time_to_collision": (seconds > LEAST_TIME_TO_COLLISION) & ~fault.any(dim=1),
        "off_road": past.on_road & (past.edge_distance > OFF_ROAD_TOLERANCE),
        "off_road_measurable": past.edge_distance.isfinite(),
        "against_flow": past.against.sum(dim=1),
        "overspeed": overspeed,
        "within_speed_limit": (1 - overspeed / MOST_OVERSPEED).clamp(min=0.0),
        "lane_offset": past.lane.offset.abs(),
        "lane_keeping": past.uncentred < UNCENTRED_STEPS,
        "red_light": past.ran_red,
        **ego_comfort(past),
    }


def _expert_way(scene: Scene, start: Tensor) -> Tensor:
    """Metres (B, E) of route from the arc `start` (B,) that the log's ego has made at each step; held where it is not seen.

    By the ruler of the ego's own progress, as in nuPlan (ego_progress_along_expert_route): jitter and lane changes are no way.
    """
    row, near, arcs = scene.ego_row(), start, []
    place, valid = (value[row, scene.ego, HISTORY_STEPS:] for value in (scene.position, scene.valid))
    for part, seen in zip(place[..., :2].split(EXPERT_STEPS, dim=1), valid.split(EXPERT_STEPS, dim=1), strict=True):
        arc = torch.cat((near[:, None], route_place(scene, part, near)[0]), dim=1)
        last = torch.where(seen, torch.arange(1, seen.shape[1] + 1), 0).cummax(dim=1).values
        arcs.append(arc.gather(1, last))
        near = arcs[-1][:, -1]
    return torch.cat(arcs, dim=1).minimum(_route_arcs(scene)[:, -1:]) - start[:, None]


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


def ego_overlaps(state: State) -> Tensor:
    """Return whose boxes (B, A) overlap the ego's."""
    scene, row = state.scene, state.scene.ego_row()
    corners = box_corners(state.position, state.heading, scene.size)
    return boxes_overlap(corners[row, scene.ego][:, None], corners) & _others(state)


def _others(state: State) -> Tensor:
    """Valid agents (B, A) without the ego."""
    row = state.scene.ego_row()
    return state.valid.index_put((row, state.scene.ego), torch.zeros(len(row), dtype=torch.bool))


def at_fault(state: State, past: EgoPast) -> Tensor:
    """Return which of the boxes that the ego has just met (B, A) are its own fault by nuPlan's rules.

    Never when it stands itself. Else always with somebody who stands; never with somebody behind its rear (150 degrees); with
    others if its front bumper is in their box, or, beside it, if it is not within one lane or not on the road.
    """
    scene, row, ego = state.scene, state.scene.ego_row(), state.ego()
    size = scene.size[row, scene.ego]
    forward = rotate(torch.stack((0.5 * size[:, 0], torch.zeros_like(ego.heading)), dim=-1), ego.heading)
    bumper = box_corners(
        ego.position[:, :2] + forward, ego.heading, torch.stack((torch.full_like(size[:, 1], 0.02), size[:, 1]), -1)
    )
    front = boxes_overlap(bumper[:, None], box_corners(state.position, state.heading, scene.size))
    stands = state.velocity.norm(dim=-1) <= STANDING
    strayed = ~past.lane.within_one | (past.edge_distance > OFF_ROAD_TOLERANCE)
    behind = _cosine_to_others(state) < NOT_BEHIND
    fault = stands | (~behind & (front | strayed[:, None]))
    return past.touching & fault & (past.speed > STANDING)[:, None]


def time_to_collision(state: State, past: EgoPast) -> Tensor:
    """Return seconds (B,) until the ego meets somebody if all keep velocity and heading, in steps of 0.1 s; 3 s where nobody.

    As nuPlan: with those ahead (30 degrees), and, where the ego is in several lanes or in a junction, with all who are not
    behind (150 degrees), who have not been touched yet; an ego that stands meets nobody. The times of nuPlan's steps are found by
    solving for when boxes overlap (`overlap_times`).
    """
    scene, row, cosine = state.scene, state.scene.ego_row(), _cosine_to_others(state)
    corners = box_corners(state.position, state.heading, scene.size)
    own = state.velocity[row, scene.ego]
    first, last = overlap_times(corners[row, scene.ego][:, None], corners, state.velocity - own[:, None])
    seconds = (first.clamp(min=0.0) / TIME_STEP - 1e-4).ceil() * TIME_STEP
    wide = ~past.lane.within_one | past.lane.in_junction
    counts = (cosine > AHEAD) | (wide[:, None] & (cosine > NOT_BEHIND))
    counts &= _others(state) & ~past.touched & ~past.touching & (past.speed > BARELY_MOVING)[:, None] & (seconds < last)
    return torch.where(counts, seconds, TIME_TO_COLLISION_HORIZON).amin(dim=1).clamp(max=TIME_TO_COLLISION_HORIZON)


def _cosine_to_others(state: State) -> Tensor:
    """Cosine (B, A) of the angle between the ego's heading and the way from its rear axle to the centre of each agent."""
    ego, length = state.ego(), state.scene.size[state.scene.ego_row(), state.scene.ego, 0]
    axle = ego.position[:, :2] - (REAR_AXLE * length)[:, None] * torch.stack((ego.heading.cos(), ego.heading.sin()), dim=-1)
    way = state.position[..., :2] - axle[:, None]
    ahead = way[..., 0] * ego.heading.cos()[:, None] + way[..., 1] * ego.heading.sin()[:, None]
    return ahead / way.norm(dim=-1).clamp(min=1e-6)
