"""IdmWorld: others drive by the intelligent driver model along their lanes, the rule-based reference beside a learned world.

Vehicles and cyclists take the lane that they are in and those that follow it; where a lane has several successors each future
draws one, and each draws how fast its drivers like to be, as SUMO does (its default `speedFactor`). They keep their place in the
lane, slow down in bends, follow whoever stands or moves in their way, and stop at signals. Whoever is in no lane goes straight
on; whoever stands beside the lanes is parked. Pedestrians keep their velocity.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from .dynamics import IntelligentDriver, Motion
from .geometry import point_on_polyline, project_on_polyline, wrap_angle
from .raster import distance_to_segment
from .sampling import hashed_uniform
from .scene import TIME_STEP, AgentKind, LaneLinkKind, PolylineKind, Scene, SignalState
from .world import State, after_step, logged_state, movable

LANES_AHEAD = 16
"""Pieces of lanes that a path is made of at most; with pieces of 22 m it goes 350 m."""

NEAR_LANE, ALONG_LANE = 3.0, math.pi / 4
"""Metres to the middle of a lane and radians from its direction within which an agent is in it."""

STANDING, PARKED_OFFSET = 0.3, 1.0
"""An agent slower than this many m/s whose centre is more than this many metres beside the lane's centre is parked."""

SIGHT, STATION = 60.0, 3.0
"""Metres of the path ahead that a driver looks at, and between the places on it that others are held against."""

WATCHED = 12
"""Agents ahead that a driver looks at, the nearest ones."""

PLACES_AT_ONCE = 2_000_000
"""Pairs of an agent and a segment of a lane that are held at once."""

MARGIN = 0.2
"""Metres of air beside a driver's box."""

FREE_SPEED = 50 / 3.6
"""Wanted speed in m/s of vehicles where the lane has no limit."""

LATERAL_ACCELERATION = 2.0
"""m/s2 in bends."""

SPEED_SPREAD = 0.1
"""Standard deviation of the share of the limit that drivers like (SUMO's default)."""

LANE_CHANNEL, SPEED_CHANNEL = 2_000_000, 3_000_000
"""Keep these random numbers apart from those that others draw from the same key."""


class IdmWorld:
    """See the module's text; satisfies `World` and `open_loop.Simulator`."""

    def __init__(self, driver: IntelligentDriver | None = None) -> None:
        self.driver = driver or IntelligentDriver()

    def horizon(self, scenes: Scene) -> None:
        """No end; beyond the end of their path agents go straight on."""

    @torch.no_grad()
    def reset(self, scenes: Scene, key: Tensor) -> State:
        """See `World.reset`."""
        state = logged_state(scenes, key)
        return replace(state, memory=self._ways(state))

    @torch.no_grad()
    def enter(self, state: State, who: Tensor) -> State:
        """Return the state in which agents `who` (B, A) bool begin anew where they are: lane, way, wanted speed."""
        rows = who.any(dim=1).nonzero()[:, 0]
        fresh, memory = self._ways(state.take(rows)), dict(state.memory)
        for name, value in fresh.items():
            held = memory[name]
            chosen = who[rows].reshape(*value.shape[:2], *[1] * (value.ndim - 2))
            memory[name] = held.index_copy(0, rows, torch.where(chosen, value, held[rows]))
        return replace(state, memory=memory)

    def _ways(self, state: State) -> dict[str, Tensor]:
        """What everyone has to remember who begins to drive at this moment."""
        scenes, key = state.scene, state.key + state.step
        lane, in_lane = _present_lane(state)
        lanes = _lanes_ahead(scenes, lane, in_lane, key)
        path, valid = _path(state, lanes)
        arc, offset, course = (x[..., 0] for x in project_on_polyline(state.position[:, :, None, :2], path, valid))
        speed = (state.velocity * torch.stack((state.heading.cos(), state.heading.sin()), dim=-1)).sum(-1).clamp(min=0.0)
        parked = (speed < STANDING) & (~in_lane | (offset.abs() > PARKED_OFFSET))
        stop = project_on_polyline(scenes.signal_position[:, None, :, :2].expand(*arc.shape, -1, 2), path, valid)[0]
        bound = (lanes[..., None] == scenes.signal_lane[:, None, None]).any(2)
        return {
            "path": path,
            "path_valid": valid,
            "arc": arc,
            "offset": offset,
            "turn": wrap_angle(state.heading - course),
            "speed": speed,
            "wanted": torch.where(parked, 0.0, _wanted_speed(scenes, lane, in_lane, speed, key)),
            "stop_arc": torch.where(bound, stop, -torch.inf),
        }

    @torch.no_grad()
    def step(self, state: State, ego: Motion | None) -> State:
        """See `World.step`."""
        memory, driving = state.memory, _drives(state.scene)
        speed = memory["speed"]
        gap, closing = (torch.cat(parts, dim=-1) for parts in zip(_others(state), self._signals(state), strict=True))
        wanted = torch.minimum(memory["wanted"], self._speed_in_bends(state))
        faster = (speed + TIME_STEP * self.driver.response(speed, wanted, gap, closing)).clamp(min=0.0)
        faster = torch.where(memory["wanted"] > 0, faster, 0.0)
        arc = memory["arc"] + 0.5 * (speed + faster) * TIME_STEP
        turn = memory["turn"] * math.exp(-TIME_STEP)
        # A chord of 4 m turns smoothly where the polyline has a corner.
        place, direction = point_on_polyline(
            arc[..., None] + torch.tensor([-2.0, 0.0, 2.0]), memory["path"], memory["path_valid"]
        )
        chord = place[..., 2, :] - place[..., 0, :]
        course = torch.atan2(chord[..., 1], chord[..., 0])
        side = torch.stack((-direction[..., 1].sin(), direction[..., 1].cos()), dim=-1)
        place = place[..., 1, :] + memory["offset"][..., None] * side
        moving = movable(state, ego is None)
        walked = state.position[..., :2] + TIME_STEP * state.velocity
        place = torch.where((moving & driving)[..., None], place, torch.where(moving[..., None], walked, state.position[..., :2]))
        turned = state.heading + wrap_angle(course + turn - state.heading)
        position = torch.cat((place, state.position[..., 2:]), dim=-1)
        following = after_step(state, ego, position, torch.where(moving & driving, turned, state.heading))
        return replace(following, memory=memory | {"arc": arc, "turn": turn, "speed": faster})

    def _signals(self, state: State) -> tuple[Tensor, Tensor]:
        """Gap (B, A, S) to the stop points that bind each agent, infinite for the rest, and closing speed (B, A, S)."""
        speed = state.memory["speed"][..., None]
        room = state.memory["stop_arc"] - state.memory["arc"][..., None] - 0.5 * state.scene.size[..., :1]
        needed = speed.square() / (2 * room.clamp(min=0.1))
        shows = lambda light: (state.signal_valid & (state.signal_state == light))[:, None]  # noqa: E731
        stop = shows(SignalState.STOP) & (needed < self.driver.hardest_braking)
        caution = shows(SignalState.CAUTION) & (needed < self.driver.comfortable_braking)
        gap = room + self.driver.standstill_gap - 1.0  # the front comes to rest one metre before the line
        return torch.where((stop | caution) & (room > -1.0), gap, torch.inf), speed.expand_as(gap)

    def _speed_in_bends(self, state: State) -> Tensor:
        """Speed (B, A) that the bends ahead allow if the driver brakes comfortably before them."""
        ahead = torch.arange(0.0, SIGHT, STATION)
        heading = point_on_polyline(state.memory["arc"][..., None] + ahead, state.memory["path"], state.memory["path_valid"])[1]
        bend = wrap_angle(heading[..., 2:] - heading[..., :-2]).abs() / (2 * STATION)
        allowed = LATERAL_ACCELERATION / bend.clamp(min=1e-3) + 2 * self.driver.comfortable_braking * ahead[:-2]
        return allowed.sqrt().amin(-1)


def _drives(scenes: Scene) -> Tensor:
    return (scenes.kind == AgentKind.VEHICLE) | (scenes.kind == AgentKind.CYCLIST)


def _present_lane(state: State) -> tuple[Tensor, Tensor]:
    """The lane (B, A) int64 that each agent is in, and whether it is in one."""
    scenes = state.scene
    if scenes.polyline.shape[1] == 0:
        return torch.zeros(state.valid.shape, dtype=torch.int64), torch.zeros_like(state.valid)
    car_lane = (scenes.polyline_kind == PolylineKind.LANE) | (scenes.polyline_kind == PolylineKind.JUNCTION_LANE)
    bike_lane = scenes.polyline_kind == PolylineKind.BIKE_LANE
    cyclist = (scenes.kind == AgentKind.CYCLIST)[..., None]
    start, end = scenes.polyline[..., :-1, :2], scenes.polyline[..., 1:, :2]
    course = torch.atan2(*(end - start).flip(-1).unbind(-1))
    usable = scenes.polyline_valid[..., 1:]
    distances = []
    # Some scenes at a time: a piece of the map for every agent is much to hold for all at once.
    for rows in torch.arange(len(scenes)).split(max(PLACES_AT_ONCE // max(course[0].numel() * state.valid.shape[1], 1), 1)):
        along = wrap_angle(course[rows, None] - state.heading[rows, :, None, None]).abs() < ALONG_LANE
        apart = distance_to_segment(state.position[rows, :, None, None, :2], start[rows, None], end[rows, None])
        distances.append(torch.where(usable[rows, None] & along, apart, torch.inf).amin(-1))
    distance = torch.cat(distances)
    allowed = car_lane[:, None] | (bike_lane[:, None] & cyclist)
    nearest, lane = torch.where(allowed, distance, torch.inf).min(-1)
    return lane, (nearest < NEAR_LANE) & _drives(scenes) & state.valid


def _lanes_ahead(scenes: Scene, lane: Tensor, in_lane: Tensor, key: Tensor) -> Tensor:
    """The lanes (B, A, LANES_AHEAD) that agents will take, -1 beyond the end; at forks each agent draws one."""
    if scenes.lane_link.shape[1] == 0:
        return torch.where(in_lane, lane, -1)[..., None].expand(-1, -1, LANES_AHEAD)
    follows = scenes.lane_link_valid & (scenes.lane_link_kind == LaneLinkKind.SUCCESSOR)
    first = torch.where(follows, scenes.lane_link[..., 0], scenes.polyline.shape[1])
    first, order = first.sort(dim=1, stable=True)
    then = scenes.lane_link[..., 1].gather(1, order)
    agent = torch.arange(lane.shape[1])
    lanes = [torch.where(in_lane, lane, -1)]
    for number in range(1, LANES_AHEAD):
        begin, end = (torch.searchsorted(first, lanes[-1], right=right) for right in (False, True))
        draw = hashed_uniform(key[:, None], agent, torch.tensor(LANE_CHANNEL + number))
        choice = begin + (draw * (end - begin)).long()
        after = then.gather(1, choice.clamp(max=then.shape[1] - 1))
        lanes.append(torch.where(end > begin, after, -1))
    return torch.stack(lanes, dim=-1)


def _path(state: State, lanes: Tensor) -> tuple[Tensor, Tensor]:
    """Points (B, A, R, 2) and mask (a prefix) of the way along `lanes`; straight ahead of the agent where there is none."""
    scenes, row = state.scene, torch.arange(len(lanes))[:, None, None]
    ahead = torch.stack((state.heading.cos(), state.heading.sin()), dim=-1)
    straight = torch.stack((state.position[..., :2], state.position[..., :2] + ahead), dim=2)
    if scenes.polyline.shape[1] == 0:
        return straight, torch.ones(straight.shape[:-1], dtype=torch.bool)
    point = scenes.polyline[row, lanes.clamp(min=0), :, :2]
    valid = scenes.polyline_valid[row, lanes.clamp(min=0)] & (lanes >= 0)[..., None]
    # A lane begins where the one before it ends: that point would be there twice.
    valid = torch.cat((valid[:, :, :1], valid[:, :, 1:] & (torch.arange(valid.shape[-1]) > 0)), dim=2).flatten(2)
    # Ways are as wide as the map allows, however short: rows of batches put together later must fit.
    order = (~valid).long().argsort(dim=-1, stable=True)
    point = point.flatten(2, 3).gather(2, order[..., None].expand(-1, -1, -1, 2))
    valid = valid.gather(2, order)
    none = ~valid[..., :1]
    point = torch.cat((torch.where(none[..., None], straight, point[:, :, :2]), point[:, :, 2:]), dim=2)
    return point, torch.cat((valid[..., :2] | none, valid[..., 2:]), dim=-1)


def _wanted_speed(scenes: Scene, lane: Tensor, in_lane: Tensor, speed: Tensor, key: Tensor) -> Tensor:
    """Speed (B, A) on a free road: the limit of the present lane, about as each driver likes it, or the present speed."""
    agent, channels = torch.arange(lane.shape[1]), torch.arange(2) + SPEED_CHANNEL
    one, other = hashed_uniform(key[:, None, None], agent[:, None], channels).unbind(-1)
    normal = (-2 * one.log()).sqrt() * (2 * math.pi * other).cos()  # Box and Muller, 1958
    share = 1 + SPEED_SPREAD * normal.clamp(-2.0, 2.0)
    if scenes.polyline.shape[1] == 0:
        limit = torch.full_like(speed, FREE_SPEED)
    else:
        known = in_lane & scenes.speed_limit_valid.gather(1, lane)
        limit = torch.where(known, scenes.speed_limit.gather(1, lane), FREE_SPEED)
    return torch.where((scenes.kind == AgentKind.VEHICLE) & in_lane, torch.maximum(share * limit, speed), speed)


def _others(state: State) -> tuple[Tensor, Tensor]:
    """Gap (B, A, W) to the nearest agents ahead, infinite if not in the way, and closing speed (B, A, W)."""
    memory, size, place = state.memory, state.scene.size, state.position[..., :2]
    batch, agents = state.valid.shape
    row = torch.arange(batch)[:, None, None]
    shift = place[:, None] - place[:, :, None]
    forward = shift[..., 0] * state.heading.cos()[..., None] + shift[..., 1] * state.heading.sin()[..., None]
    apart = torch.where((forward > 0) & state.valid[:, None], shift.norm(dim=-1), torch.inf)
    apart, other = apart.topk(min(WATCHED, agents), dim=-1, largest=False)
    ahead = torch.arange(0.0, SIGHT, STATION)
    station, course = point_on_polyline(memory["arc"][..., None] + ahead, memory["path"], memory["path_valid"])
    relative = place[row, other][:, :, :, None] - station[:, :, None]
    nearest = relative.square().sum(-1).argmin(-1)
    course = course.gather(2, nearest)
    relative = relative.gather(3, nearest[..., None, None].expand(-1, -1, -1, 1, 2))[..., 0, :]
    cosine, sine = course.cos(), course.sin()
    along = ahead[nearest] + relative[..., 0] * cosine + relative[..., 1] * sine
    across = relative[..., 1] * cosine - relative[..., 0] * sine - memory["offset"][..., None]
    turn = state.heading[row, other] - course
    length, width = size[..., 0][row, other], size[..., 1][row, other]
    half_along = 0.5 * (length * turn.cos().abs() + width * turn.sin().abs())
    half_across = 0.5 * (length * turn.sin().abs() + width * turn.cos().abs())
    in_way = (across.abs() < half_across + 0.5 * size[..., 1, None] + MARGIN) & (along > 0) & apart.isfinite()
    velocity = state.velocity[row, other]
    closing = memory["speed"][..., None] - (velocity[..., 0] * cosine + velocity[..., 1] * sine)
    gap = along - half_along - 0.5 * size[..., 0, None]
    return torch.where(in_way, gap, torch.inf), closing
