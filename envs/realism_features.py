"""What the realism meta-metric looks at: ten features of every scored object, in every rollout, at every step.

The definitions are those of the Waymo sim agents challenge (waymo-open-dataset 1.6.7, `wdl_limited/sim_agents_metrics/`; Montali
et al., "The Waymo Open Sim Agents Challenge", NeurIPS 2023), written afresh. Objects valid at the present take part; those that a
log shows later do not. Boxes are compared from above, without height.

Pairs are many (objects x objects x rollouts x steps) and nearly all too far apart to matter. So bounds that take a few operations
a pair choose the pairs that can decide a value, and only those are worked out exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..worldmodel.geometry import rotate, to_local, wrap_angle
from ..worldmodel.open_loop import Futures
from ..worldmodel.raster import distance_to_segment
from ..worldmodel.scene import HISTORY_STEPS, TIME_STEP, AgentKind, LaneLinkKind, PolylineKind, Scene, SignalState
from .edge_lines import EdgeLines, edge_lines, signed_distance

FEATURES = (
    "linear_speed",
    "linear_acceleration",
    "angular_speed",
    "angular_acceleration",
    "distance_to_nearest_object",
    "collision_indication",
    "time_to_collision",
    "distance_to_road_edge",
    "offroad_indication",
    "traffic_light_violation",
)
"""Names as in the challenge; the three indications are true or false, the others numbers."""

CORNER_ROUNDING = 0.7
"""Corners of boxes are rounded with this share of half the shorter side."""

FARTHEST = 40.0
"""Metres at which `distance_to_nearest_object` is cut off: the top of its histogram."""

LONGEST_TIME = 5.0
"""Seconds at which `time_to_collision` is cut off."""

WIDEST_TURN, WIDEST_TURN_AT_SIDE = math.radians(75.0), math.radians(10.0)
SMALL_OVERLAP = 0.5
"""Who is ahead is followed if its heading differs by at most the first angle, by the second where less than 0.5 m overlap."""

LANE_BEGINS = 0.5
"""Metres after its start from which a lane is somebody's lane. Where one lane ends and the next begins both are equally near; the
official scorer gives the place to the one that ends, and so does this."""

PAIRS_AT_ONCE = 1_000_000
"""Pairs of objects whose bounds are worked out at once: some 100 MB."""


@dataclass(frozen=True)
class ObjectFeatures:
    """Features of the N scored objects of B scenes in K futures of T steps.

    Attributes:
        row: (N,) int64, the scene of each object. agent: (N,) int64, its place in the scene.
        vehicle: (N,) bool.
        valid: (N, K, T) bool, where the object is there.
        values: by the name of the feature (N, K, T), float32 in m, m/s, m/s2, rad/s, rad/s2 and s, or bool.
        defined: by the same names (N, K, T) bool, where there is such a value; zero or false elsewhere.
        edges: (B,) bool, whether the map has road edges. signals: (B,) bool, whether the scene has signals.
    """

    row: Tensor
    agent: Tensor
    vehicle: Tensor
    valid: Tensor
    values: dict[str, Tensor]
    defined: dict[str, Tensor]
    edges: Tensor
    signals: Tensor


@dataclass(frozen=True)
class _Rollouts:
    """One scene's futures with the last two steps of history in front.

    Attributes:
        position: (K, A, T + 2, 3), valid: (K, A, T + 2).
        heading: (K, A, T + 2) without jumps of a turn, from the present's value on.
        size: (A, 3), kind: (A,).
        scored: (E,) int64 places in A.
    """

    position: Tensor
    heading: Tensor
    valid: Tensor
    size: Tensor
    kind: Tensor
    scored: Tensor


def object_features(scenes: Scene, futures: Futures, scored: Tensor) -> ObjectFeatures:
    """Return the features of the agents `scored` (B, A) in B scenes' futures; scenes are worked through one by one.

    Raises:
        ValueError: no agent is scored, or one that is not valid at the present.
    """
    present = scenes.valid[:, :, HISTORY_STEPS]
    if not scored.any():
        raise ValueError(f"{scenes.id[0]}: no object to score in {len(scenes)} scenes: leave them out")
    if (scored & ~present).any():
        row, agent = (scored & ~present).nonzero()[0].tolist()
        raise ValueError(f"{scenes.id[row]}: agent {agent} is to be scored and not valid at the present: leave it out")
    parts = [_scene_features(scenes.take([row]), futures.take([row]), scored[row]) for row in range(len(scenes))]
    row, agent = scored.nonzero(as_tuple=True)
    values, defined = (
        {name: torch.cat([part[kind][name] for part in parts]) for name in FEATURES} for kind in ("values", "defined")
    )
    return ObjectFeatures(
        row=row,
        agent=agent,
        vehicle=scenes.kind[row, agent] == AgentKind.VEHICLE,
        valid=torch.cat([futures.valid[i, :, scored[i]].transpose(0, 1) for i in range(len(scenes))]),
        values=values,
        defined=defined,
        edges=_has_edges(scenes),
        signals=scenes.signal_valid.flatten(1).any(1),
    )


def _has_edges(scenes: Scene) -> Tensor:
    segment = scenes.polyline_valid[..., 1:].any(-1)
    return (segment & (scenes.polyline_kind == PolylineKind.ROAD_EDGE)).any(-1)


def _scene_features(scene: Scene, futures: Futures, scored: Tensor) -> dict[str, dict[str, Tensor]]:
    """Return `values` and `defined` of `ObjectFeatures` for one scene (B = 1): by name, (E, K, T)."""
    rollouts = _with_history(scene, futures, scored.nonzero()[:, 0])
    values, defined = _motion_features(rollouts)
    distance, time = _pair_features(rollouts)
    there = rollouts.valid[:, rollouts.scored, 2:].transpose(0, 1)
    vehicle = (rollouts.kind[rollouts.scored] == AgentKind.VEHICLE)[:, None, None]
    values |= {"distance_to_nearest_object": distance, "collision_indication": distance < 0, "time_to_collision": time}
    defined |= {"distance_to_nearest_object": there, "collision_indication": there, "time_to_collision": there & vehicle}
    lines = edge_lines(scene)
    edge = _edge_distance(rollouts, lines) if len(lines.start) else torch.zeros_like(distance)
    known = there & bool(len(lines.start))
    values |= {"distance_to_road_edge": edge, "offroad_indication": edge > 0}
    defined |= {"distance_to_road_edge": known, "offroad_indication": known}
    values["traffic_light_violation"] = _red_light(rollouts, scene)
    defined["traffic_light_violation"] = there
    return {
        "values": {name: torch.where(defined[name], values[name], torch.zeros((), dtype=values[name].dtype)) for name in values},
        "defined": defined,
    }


def _with_history(scene: Scene, futures: Futures, scored: Tensor) -> _Rollouts:
    now = slice(HISTORY_STEPS - 1, HISTORY_STEPS + 1)
    present = scene.valid[:, :, HISTORY_STEPS]

    def join(log: Tensor, future: Tensor) -> Tensor:
        past = log[0, :, now]
        return torch.cat((past.expand(future.shape[1], *past.shape), future[0]), dim=2)

    heading = join(scene.heading, futures.heading)
    turned = torch.nn.functional.pad(wrap_angle(heading.diff(dim=-1)).cumsum(-1), (1, 0))
    return _Rollouts(
        join(scene.position, futures.position),
        heading[..., 1:2] + turned - turned[..., 1:2],
        join(scene.valid, futures.valid) & present[0, :, None],
        scene.size[0],
        scene.kind[0],
        scored,
    )


def _difference(value: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return half the change (..., T) from the step before to the step after, and where both are valid; nothing at the ends."""
    pad = torch.nn.functional.pad
    defined = pad(valid[..., 2:] & valid[..., :-2], (1, 1))
    return torch.where(defined, pad(0.5 * (value[..., 2:] - value[..., :-2]), (1, 1)), 0.0), defined


def _speeds(position: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return speeds (...) of positions (..., T, D) and where they are defined."""
    parts = [_difference(coordinate, valid) for coordinate in position.unbind(-1)]
    return torch.stack([part[0] for part in parts], dim=-1).norm(dim=-1) / TIME_STEP, parts[0][1]


def _motion_features(rollouts: _Rollouts) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Speeds and accelerations (E, K, T) of the scored objects; angles are wrapped over two steps, as the challenge does."""
    pick = lambda tensor: tensor[:, rollouts.scored].transpose(0, 1)  # noqa: E731
    position, heading, valid = pick(rollouts.position), pick(rollouts.heading), pick(rollouts.valid)
    speed, moves = _speeds(position, valid)
    acceleration, accelerates = _difference(speed, moves)
    turn = wrap_angle(2 * _difference(heading, valid)[0]) / 2
    swing = wrap_angle(2 * _difference(turn, moves)[0]) / 2
    values = {
        "linear_speed": speed,
        "linear_acceleration": acceleration / TIME_STEP,
        "angular_speed": turn / TIME_STEP,
        "angular_acceleration": swing / TIME_STEP**2,
    }
    defined = dict(zip(values, (moves, accelerates, moves, accelerates), strict=True))
    return {name: value[..., 2:] for name, value in values.items()}, {name: mask[..., 2:] for name, mask in defined.items()}


def _pair_features(rollouts: _Rollouts) -> tuple[Tensor, Tensor]:
    """Return distance to the nearest object and time to collision (E, K, T), some moments (k, t) at a time.

    Speeds beyond the last step are unknown and give no time to collision. The official scorer reads the place of an object that a
    log does not show as the distant origin of the map, so one that is seen only before or only after a step is infinitely fast.
    """
    speed, _ = _speeds(rollouts.position[..., :2], rollouts.valid)
    one_side = torch.nn.functional.pad(rollouts.valid[..., 2:] ^ rollouts.valid[..., :-2], (1, 1))
    speed = torch.where(one_side, torch.inf, speed)
    known = torch.arange(speed.shape[-1]).expand_as(speed) < speed.shape[-1] - 1
    flat = lambda tensor: tensor[:, :, 2:].transpose(1, 2).flatten(0, 1)  # noqa: E731
    place, heading, valid = flat(rollouts.position[..., :2]), flat(rollouts.heading), flat(rollouts.valid)
    speed, known = flat(speed), flat(known)
    moments = max(PAIRS_AT_ONCE // (len(rollouts.scored) * place.shape[1]), 1)
    distances, times = [], []
    for chosen in torch.arange(len(place)).split(moments):
        boxes = place[chosen], heading[chosen], valid[chosen], rollouts.size, rollouts.scored
        distances.append(nearest_object_distance(*boxes))
        times.append(time_to_collision(*boxes, speed[chosen], known[chosen]))
    shape = (len(rollouts.position), -1, len(rollouts.scored))
    return tuple(torch.cat(parts).view(shape).permute(2, 0, 1) for parts in (distances, times))  # type: ignore[return-value]


def nearest_object_distance(place: Tensor, heading: Tensor, valid: Tensor, size: Tensor, scored: Tensor) -> Tensor:
    """Return metres (M, E) from scored boxes to the nearest other one, negative where they overlap, `FARTHEST` at the most.

    Args:
        place: (M, A, 2) centres at M moments.
        heading: (M, A).
        valid: (M, A) bool.
        size: (A, 2 or more) length, width.
        scored: (E,) int64 places in A.
    """
    inner, outer = 0.5 * size[:, :2].amin(-1), 0.5 * size[:, :2].norm(dim=-1)
    apart = torch.cdist(place[:, scored], place, compute_mode="donot_use_mm_for_euclid_dist")
    usable = valid[:, scored, None] & valid[:, None] & (scored[:, None] != torch.arange(len(size)))
    apart = torch.where(usable, apart, torch.inf)
    # A box holds the disc of its shorter side and lies in that of its diagonal.
    at_most = (apart - inner - inner[scored, None]).amin(-1).clamp(max=FARTHEST)
    moment, one, other = (apart - outer - outer[scored, None] <= at_most[..., None]).nonzero(as_tuple=True)
    me = scored[one]
    distance = rounded_box_distance(
        to_local(place[moment, other], place[moment, me], heading[moment, me]),
        heading[moment, other] - heading[moment, me],
        size[me, :2],
        size[other, :2],
    )
    nearest = torch.full((len(place) * len(scored),), FARTHEST)
    return nearest.scatter_reduce(0, moment * len(scored) + one, distance, "amin").view(len(place), len(scored))


def rounded_box_distance(shift: Tensor, turn: Tensor, size_a: Tensor, size_b: Tensor) -> Tensor:
    """Return the signed distance (P,) of boxes with rounded corners; negative: how deep the Minkowski sum holds the origin.

    Each box is a rectangle, smaller on every side by the radius, and all within that radius of it.

    Args:
        shift: (P, 2) centre of box b in the frame of box a.
        turn: (P,) heading of b in that frame.
        size_a: (P, 2) length and width of a.
        size_b: (P, 2) of b.
    """
    radius_a, radius_b = (0.5 * CORNER_ROUNDING * size.amin(-1, keepdim=True) for size in (size_a, size_b))
    half_a, half_b = 0.5 * size_a - radius_a, 0.5 * size_b - radius_b
    cosine, sine = turn.cos().abs()[:, None], turn.sin().abs()[:, None]
    seen_back = rotate(-shift, -turn)
    gap_a = shift.abs() - half_a - (half_b * cosine + half_b.flip(-1) * sine)
    gap_b = seen_back.abs() - half_b - (half_a * cosine + half_a.flip(-1) * sine)
    separation = torch.maximum(gap_a, gap_b).amax(-1)
    # Two convex shapes that do not touch are nearest at a corner of one of them.
    signs = shift.new_tensor([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])
    corners_b = shift[:, None] + rotate(signs * half_b[:, None], turn[:, None])
    corners_a = seen_back[:, None] + rotate(signs * half_a[:, None], -turn[:, None])
    reach = lambda corners, half: (corners.abs() - half[:, None]).clamp(min=0).norm(dim=-1).amin(-1)  # noqa: E731
    outside = torch.minimum(reach(corners_b, half_a), reach(corners_a, half_b))
    return torch.where(separation > 0, outside, separation) - (radius_a + radius_b)[:, 0]


def time_to_collision(
    place: Tensor, heading: Tensor, valid: Tensor, size: Tensor, scored: Tensor, speed: Tensor, known: Tensor
) -> Tensor:
    """Return seconds (M, E) until scored boxes reach the one that they follow at present speeds, `LONGEST_TIME` at the most.

    Followed is the nearest box ahead that overlaps the straight way of the scored one and heads alike (see `WIDEST_TURN`). As in
    the official scorer headings are compared as they stand: the same direction recorded one turn apart is not alike.

    Args:
        place: (M, A, 2) centres at M moments.
        heading: (M, A).
        valid: (M, A) bool.
        size: (A, 2 or more) length, width.
        scored: (E,) int64 places in A.
        speed: (M, A) metres per second, may be infinite.
        known: (M, A) bool, where the speed says something; elsewhere nobody is reached.
    """
    length, width, outer = size[:, 0], size[:, 1], 0.5 * size[:, :2].norm(dim=-1)
    shift = place[:, None] - place[:, scored, None]
    cosine, sine = heading[:, scored, None].cos(), heading[:, scored, None].sin()
    along = shift[..., 0] * cosine + shift[..., 1] * sine - 0.5 * length[scored, None]
    across = (shift[..., 1] * cosine - shift[..., 0] * sine).abs() - 0.5 * width[scored, None]
    # Whoever is farther than this cannot be reached in time, and does not hide anyone who can.
    within = (LONGEST_TIME * torch.where(known, speed, 0.0))[:, scored, None]
    possible = (along > 0) & (across < outer) & (along - outer < within) & valid[:, scored, None] & valid[:, None]
    moment, one, other = possible.nonzero(as_tuple=True)
    me, pair = scored[one], (moment, one, other)
    turn = heading[moment, other] - heading[moment, me]
    cosine, sine = turn.cos().abs(), turn.sin().abs()
    gap = along[pair] - 0.5 * (length[other] * cosine + width[other] * sine)
    overlap = across[pair] - 0.5 * (length[other] * sine + width[other] * cosine)
    alike = (turn.abs() <= WIDEST_TURN) & ((overlap < -SMALL_OVERLAP) | (turn.abs() <= WIDEST_TURN_AT_SIDE))
    followed = (gap > 0) & (overlap < 0) & alike
    count, place_of_pair = len(place) * len(scored), moment * len(scored) + one
    gap = torch.where(followed, gap, torch.inf)
    nearest = torch.full((count,), torch.inf).scatter_reduce(0, place_of_pair, gap, "amin")
    faster = (speed[moment, me] - speed[moment, other]).nan_to_num(nan=0.0, posinf=torch.inf)
    closing = torch.where(known[moment, other] & known[moment, me], faster, 0.0)
    leads = followed & (gap == nearest[place_of_pair]) & (closing > 0)
    seconds = torch.where(leads, gap / closing, LONGEST_TIME)
    result = torch.full((count,), LONGEST_TIME).scatter_reduce(0, place_of_pair, seconds, "amin")
    return result.view(len(place), len(scored))


def _edge_distance(rollouts: _Rollouts, lines: EdgeLines) -> Tensor:
    """Metres (E, K, T) from the corner that is farthest outside to the road's edge, negative on the road."""
    position, heading = rollouts.position[:, rollouts.scored, 2:], rollouts.heading[:, rollouts.scored, 2:]
    valid = rollouts.valid[:, rollouts.scored, 2:]
    half = 0.5 * rollouts.size[rollouts.scored]
    signs = half.new_tensor([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])
    offset = rotate((signs * half[:, None, :2])[:, None], heading[..., None])
    bottom = position[..., 2] - half[:, None, 2]
    corners = torch.cat((position[..., None, :2] + offset, bottom[..., None, None].expand(*offset.shape[:-1], 1)), dim=-1)
    farthest = torch.zeros(valid.shape)
    farthest[valid] = signed_distance(corners[valid].flatten(0, 1), lines).view(-1, 4).amax(-1)
    return farthest.transpose(0, 1)


def _red_light(rollouts: _Rollouts, scene: Scene) -> Tensor:
    """Whether (E, K, T) the centre of a vehicle crosses the stop point of its lane in this step while the signal shows STOP.

    Its lane is the nearest one; a lane that follows the signal's own counts as well, for maps whose signals stand at a lane's end
    or whose lanes are cut into pieces.
    """
    place, valid = rollouts.position[:, rollouts.scored, 1:, :2], rollouts.valid[:, rollouts.scored, 1:]
    steps = place.shape[2] - 1
    result = torch.zeros(len(place), len(rollouts.scored), steps, dtype=torch.bool)
    at = (HISTORY_STEPS + 1 + torch.arange(steps)).clamp(max=scene.steps - 1)
    red = (scene.signal_valid & (scene.signal_state == SignalState.STOP))[0][:, at].T
    heading = scene.signal_heading[0]
    direction = torch.stack((heading.cos(), heading.sin()), dim=-1)
    ahead = ((place[..., None, :] - scene.signal_position[0, :, :2]) * direction).sum(-1)
    vehicle = rollouts.kind[rollouts.scored] == AgentKind.VEHICLE
    there = valid[..., 1:] & valid[..., :-1] & vehicle[:, None]
    crossing = (ahead[..., :-1, :] < 0) & (ahead[..., 1:, :] > 0) & red & there[..., None]
    rollout, one, step, signal = crossing.nonzero(as_tuple=True)
    if len(signal):
        lane = _nearest_lane(place[rollout, one, step + 1], scene)
        own = scene.signal_lane[0, signal]
        result[rollout, one, step] |= (lane == own) | _follows(scene, own, lane)
    return result.transpose(0, 1)


def _nearest_lane(place: Tensor, scene: Scene) -> Tensor:
    """Index (Q,) of the lane for cars that is nearest to points (Q, 2) of one scene (B = 1); -1 where it has none."""
    kind, usable = scene.polyline_kind[0], scene.polyline_valid[0, :, 1:]
    lane = (kind == PolylineKind.LANE) | (kind == PolylineKind.JUNCTION_LANE)
    line, segment = (usable & lane[:, None]).nonzero(as_tuple=True)
    if len(line) == 0:
        return torch.full((len(place),), -1)
    point = scene.polyline[0, ..., :2]
    start, end = point[line, segment], point[line, segment + 1]
    rows = place.split(max(PAIRS_AT_ONCE // len(line), 1))
    step = end - start
    late = torch.where(segment == 0, LANE_BEGINS / step.norm(dim=-1).clamp(min=LANE_BEGINS), 0.0)
    start = start + late[:, None] * step
    return torch.cat([line[distance_to_segment(part[:, None], start, end).argmin(-1)] for part in rows])


def _follows(scene: Scene, first: Tensor, second: Tensor) -> Tensor:
    """Whether lanes `second` (Q,) follow lanes `first` (Q,) in one scene (B = 1)."""
    link, successor = scene.lane_link[0], scene.lane_link_valid[0] & (scene.lane_link_kind[0] == LaneLinkKind.SUCCESSOR)
    return ((link == torch.stack((first, second), dim=-1)[:, None]).all(-1) & successor).any(-1)
