"""OpenBorders: road users leave where the mapped roads end and others enter, so that a world can run for minutes.

Worlds move whoever is there at the present, and nobody else: after a while all have driven off and the roads are empty. Here the
places of dimension A are used again. What the wrapped world (learned or of rules) decides is how everyone moves; who leaves and
who enters are rules, none of it is learned:

- Whoever has driven past the end of a lane that nothing follows, or is farther than `FAR` from everything that the map or the log
  knows, leaves. The ego (whoever is driven from outside) and objects never do.
- Vehicles and cyclists that stand in a collision are cleared away after `WRECK_SECONDS`, else the first crash closes a road for
  good. SUMO does likewise, and at once (its default `--collision.action teleport`). Boxes that overlap in the log already stay.
- Each leaving is answered by one entry of a road user of the same kind and size, as soon as there is room: the number of road
  users stays that of the log, as in ring roads and other closed systems of traffic research (Treiber, Kesting, Traffic Flow
  Dynamics, 2013); demand by entrance follows what the log shows there.
- Vehicles and cyclists enter at the start of lanes that nothing precedes, pedestrians at the free ends of walkways, and anybody
  where the log saw one of the kind come in after the present. Where a kind has no such place (a map without lanes) it enters
  where the log first saw one that moved.
- An entrance is drawn with a weight of one more than the road users that the log shows near it (Laplace's rule of succession).
  The entering one drives as fast as those did on average, and not faster than the gaps of the intelligent driver model allow
  (Treiber, Hennecke, Helbing, 2000); if that is less than half as fast, or it would cut off someone behind or appear near the
  ego, it waits.

Borders open every `ticks` steps, when the learned world decides. A place is empty for one such interval at least: whoever
enters is nobody's continuation, and nothing draws or measures a jump from one road user to the other.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from .behavior import unit
from .dynamics import IntelligentDriver, Motion
from .geometry import box_corners, boxes_overlap, polyline_direction, to_local, wrap_angle
from .raster import distance_to_segment
from .sampling import hashed_uniform
from .scene import HISTORY_STEPS, TIME_STEP, AgentKind, LaneLinkKind, PolylineKind, Scene
from .world import LearnedWorld, ReplayWorld, State, World, movable

FAR = 15.0
"""Metres from every point of the map and of the log's tracks beyond which a road user has left."""

PAST_END, BEYOND, ON_LANE = 2.0, 30.0, 2.0
"""Metres past the end of a lane between which its users have left it, unless another centreline is within ON_LANE."""

SAME_WAY = math.pi / 4
"""Radians between directions that count as the same."""

NEAR = 30.0
"""Metres around an entrance within which the log's traffic tells how many and how fast they come."""

STANDING = 0.5
"""m/s below which a road user neither leaves nor tells how fast traffic is."""

WRECK_SECONDS = 3.0
"""How long a vehicle stands in a collision before it is cleared away."""

CLEAR_OF_EGO = 25.0
"""Metres around the driven in which nobody appears."""

BESIDE = 0.5
"""Metres of air that an entering road user wants at its sides."""

DRAWS = 6
"""How often, each time the borders open, a waiting road user of a scene is drawn an entrance."""

FREE_SPEED = (50 / 3.6, 1.3, 4.0)
"""m/s by kind where neither log nor map tell a speed."""

KINDS = (AgentKind.VEHICLE, AgentKind.PEDESTRIAN, AgentKind.CYCLIST)

LOG_STRIDE = 5
"""Steps of the log between the poses that count."""

PAIRS_AT_ONCE = 4_000_000

BORDER_CHANNEL = 4_000_000
"""Keeps these random numbers apart from those that others draw from the same key."""


class DrivingWorld(World, Protocol):
    """A world that can drive the ego as well, with None for its motion, and lets agents begin anew in the middle of a run."""

    def step(self, state: State, ego: Motion | None) -> State:
        """See `World.step`."""
        ...

    def enter(self, state: State, who: Tensor) -> State:
        """Return the state in which agents `who` (B, A) bool begin anew where they are."""
        ...


class OpenBorders:
    """A world whose road users leave and are followed by others; satisfies `World` and `open_loop.Simulator`.

    Args:
        world: what moves everyone: `LearnedWorld`, `IdmWorld`, `ConstantVelocityWorld`, or another one that moves whoever is
            valid in the `State` from where it is, and has `enter`.

    What is remembered stands in `State.memory`: `border_entry` (B, E, 4) x, y, z of the ground and heading of the entrances,
    `border_weight` and `border_speed` (B, E, 3) by kind, `border_exit` (B, L, 3) end and direction of lanes that nothing follows
    and `border_exit_valid` (B, L), `border_place` (B, A) bool who may leave, `border_wreck` (B, A) int64 steps that each has
    stood in a collision, `border_entries` (B, A) int64 how often a place has been taken again.
    """

    def __init__(self, world: DrivingWorld) -> None:
        if isinstance(world, ReplayWorld):
            raise ValueError("found log replay, in which road users come and go as logged: open the borders of another world")
        self.world, self.calibrated = world, getattr(world, "calibrated", False)
        self.ticks = world.model.config.decision_ticks if isinstance(world, LearnedWorld) else 5

    def horizon(self, scenes: Scene) -> Tensor | None:
        """See `World.horizon`."""
        return self.world.horizon(scenes)

    @torch.no_grad()
    def reset(self, scenes: Scene, key: Tensor) -> State:
        """See `World.reset`."""
        state = self.world.reset(scenes, key)
        entry, allowed, limit = entrances(scenes)
        weight, speed = _traffic(scenes, entry, allowed, limit)
        ends, ends_valid = _lane_ends(scenes)
        memory = {
            "border_entry": entry,
            "border_weight": weight,
            "border_speed": speed,
            "border_exit": ends,
            "border_exit_valid": ends_valid,
            "border_place": movable(state),
            "border_wreck": torch.zeros(state.valid.shape, dtype=torch.int64),
            "border_entries": torch.zeros(state.valid.shape, dtype=torch.int64),
        }
        return replace(state, memory=state.memory | memory)

    @torch.no_grad()
    def step(self, state: State, ego: Motion | None) -> State:
        """See `World.step`."""
        state = self.world.step(state, ego)
        due = (state.step % self.ticks == 0)[:, None]
        waiting = state.memory["border_place"] & ~state.valid & due
        held = state.memory["border_wreck"]
        wreck = torch.where(due, (held + self.ticks) * wrecked(state), held)
        stays = state.driven | state.valid & ~(leaves(state, due) | (due & (wreck * TIME_STEP >= WRECK_SECONDS)))
        memory = state.memory | {"border_wreck": wreck}
        state = replace(state, memory=memory, valid=stays, simulated=state.simulated & stays)
        state = replace(state, uncertainty=torch.where(stays, state.uncertainty, 0.0))
        return self._admit(state, waiting) if waiting.any() else state

    def _admit(self, state: State, waiting: Tensor) -> State:
        """Return the state with some of the `waiting` (B, A) on the road again, `DRAWS` tries for each scene."""
        rows = waiting.any(dim=1).nonzero()[:, 0]
        few, queue = state.take(rows), waiting[rows]
        entered = torch.zeros_like(queue)
        for draw in range(DRAWS):
            few, enters = _try_entry(few, queue & ~entered, draw)
            entered = entered | enters
        memory = few.memory | {"border_entries": few.memory["border_entries"] + entered.long()}
        state = state.put(rows, replace(few, memory=memory))
        who = torch.zeros_like(waiting).index_copy(0, rows, entered)
        return self.world.enter(state, who) if entered.any() else state


def wrecked(state: State) -> Tensor:
    """Return which vehicles and cyclists (B, A) stand in a collision to which they have driven."""
    scene = state.scene
    shift = (state.position - scene.position[:, :, HISTORY_STEPS])[..., :2].norm(dim=-1)
    driven = (shift > 1.0) | (state.memory["border_entries"] > 0)
    may = state.memory["border_place"] & (scene.kind != AgentKind.PEDESTRIAN) & driven
    return may & (state.velocity.norm(dim=-1) < STANDING) & touching(state)


def touching(state: State) -> Tensor:
    """Return who (B, A) overlaps anybody or anything, seen from above."""
    size, valid = state.scene.size, state.valid
    corners, reach = box_corners(state.position, state.heading, size), 0.5 * size[..., :2].norm(dim=-1)
    apart = (state.position[:, :, None, :2] - state.position[:, None, :, :2]).norm(dim=-1)
    near = (apart < reach[:, :, None] + reach[:, None]) & valid[:, :, None] & valid[:, None]
    row, one, other = near.triu(1).nonzero(as_tuple=True)
    hit = boxes_overlap(corners[row, one], corners[row, other])
    row, one, other = row[hit], one[hit], other[hit]
    found = torch.zeros_like(valid)
    found[row, one], found[row, other] = True, True
    return found


def leaves(state: State, due: Tensor) -> Tensor:
    """Return who (B, A) has left the roads; asked only where `due` (B, 1) and of those that move."""
    scene, leaving = state.scene, torch.zeros_like(state.valid)
    moving = state.velocity.norm(dim=-1) > STANDING
    row, agent = (state.memory["border_place"] & state.valid & moving & due).nonzero(as_tuple=True)
    if len(row) == 0:
        return leaving
    place, heading = state.position[row, agent, :2], state.heading[row, agent]
    ends = state.memory["border_exit"][row]
    past = to_local(place[:, None], ends[..., :2], ends[..., 2])
    within = (
        (past[..., 0] > PAST_END) & (past[..., 0] < BEYOND) & (past[..., 1].abs() < 0.5 * scene.lane_width[row].clamp(min=3.5))
    )
    along = wrap_angle(heading[:, None] - ends[..., 2]).abs() < SAME_WAY
    through = (within & along & state.memory["border_exit_valid"][row]).any(-1) & (scene.kind[row, agent] != AgentKind.PEDESTRIAN)
    through = through.index_put((through,), ~_on_lane(scene, row[through], place[through]))
    return leaving.index_put((row, agent), through | ~_known(scene, row, place))


def in_known_area(state: State) -> Tensor:
    """Return who (B, A) is valid and within `FAR` of the map or of a place that the log shows somebody at."""
    row, agent = state.valid.nonzero(as_tuple=True)
    return torch.zeros_like(state.valid).index_put((row, agent), _known(state.scene, row, state.position[row, agent, :2]))


def _known(scene: Scene, row: Tensor, place: Tensor) -> Tensor:
    """Whether places (N, 2) of scenes `row` (N,) are within `FAR` of anything mapped or logged."""
    logged = slice(None, None, LOG_STRIDE)
    point = torch.cat((scene.polyline[..., :2].flatten(1, 2), scene.position[:, :, logged, :2].flatten(1, 2)), dim=1)
    valid = torch.cat((scene.polyline_valid.flatten(1), scene.valid[:, :, logged].flatten(1)), dim=1)
    near = [
        ((point[row[some]] - place[some, None]).square().sum(-1).masked_fill(~valid[row[some]], torch.inf)).amin(-1) < FAR**2
        for some in torch.arange(len(row)).split(max(PAIRS_AT_ONCE // point.shape[1], 1))
    ]
    return torch.cat(near) if near else torch.zeros(0, dtype=torch.bool)


def _on_lane(scene: Scene, row: Tensor, place: Tensor) -> Tensor:
    """Whether places (N, 2) of scenes `row` (N,) are within `ON_LANE` of a lane's centre."""
    lane = _driven(scene)[..., None] & scene.polyline_valid[..., 1:]
    start, end = scene.polyline[..., :-1, :2], scene.polyline[..., 1:, :2]
    near = [
        (distance_to_segment(place[some, None, None], start[row[some]], end[row[some]]) < ON_LANE) & lane[row[some]]
        for some in torch.arange(len(row)).split(max(PAIRS_AT_ONCE // max(lane[0].numel(), 1), 1))
    ]
    return torch.cat(near).flatten(1).any(-1) if near else torch.zeros(0, dtype=torch.bool)


def _driven(scene: Scene) -> Tensor:
    """Which polylines (B, L) are lanes, of cars or bikes."""
    return scene.polyline_valid[..., 0] & (scene.polyline_kind <= PolylineKind.BIKE_LANE)


def _linked(scene: Scene, end: int) -> Tensor:
    """Which polylines (B, L) are the first (`end` 0) or second (1) of a link from one to its successor."""
    follows = scene.lane_link_valid & (scene.lane_link_kind == LaneLinkKind.SUCCESSOR)
    count = torch.zeros(scene.polyline_kind.shape, dtype=torch.int64)
    return count.scatter_add(1, scene.lane_link[..., end], follows.long()) > 0 if scene.lane_link.shape[1] else count > 0


def _last_point(scene: Scene) -> Tensor:
    """End (B, L, 4) of every polyline: x, y, z and the direction there."""
    last = (scene.polyline_valid.sum(-1) - 1).clamp(min=0)[..., None]
    point = scene.polyline.gather(2, last[..., None].expand(-1, -1, -1, 3))[:, :, 0]
    return torch.cat((point, polyline_direction(scene.polyline[..., :2], scene.polyline_valid).gather(2, last)), dim=-1)


def _lane_ends(scene: Scene) -> tuple[Tensor, Tensor]:
    """End and direction (B, L, 3) of every polyline, and which (B, L) are lanes that nothing follows."""
    return _last_point(scene)[..., [0, 1, 3]], _driven(scene) & ~_linked(scene, 0)


def entrances(scene: Scene) -> tuple[Tensor, Tensor, Tensor]:
    """Return where road users can enter, E = 2 L + A places.

    Returns:
        entry: (B, E, 4) x, y, z of the ground, heading. allowed: (B, E, 3) bool by kind. limit: (B, E) speed limit, 0 unknown.
    """
    lines, agents = scene.polyline_kind.shape[1], scene.kind.shape[1]
    direction = polyline_direction(scene.polyline[..., :2], scene.polyline_valid)[..., :1]
    starts, ends = torch.cat((scene.polyline[:, :, 0], direction), dim=-1), _last_point(scene)
    ends = torch.cat((ends[..., :3], wrap_angle(ends[..., 3:] + math.pi)), dim=-1)
    first = scene.valid.long().argmax(-1)[..., None]
    pick = lambda tensor: tensor.gather(2, first[..., None].expand(-1, -1, -1, tensor.shape[-1]))[:, :, 0]  # noqa: E731
    ground = pick(scene.position) - torch.nn.functional.pad(0.5 * scene.size[..., 2:], (2, 0))
    logged = torch.cat((ground, scene.heading.gather(2, first)), dim=-1)
    begins = _driven(scene) & ~_linked(scene, 1)
    bikes = scene.polyline_kind == PolylineKind.BIKE_LANE
    lane = torch.stack((begins & ~bikes, torch.zeros_like(begins), begins), dim=-1)
    walks = [torch.nn.functional.pad(_free_end(scene, end)[..., None], (1, 1)) for end in (starts, ends)]
    moved = scene.valid.any(-1) & (pick(scene.velocity).norm(dim=-1) > STANDING)
    moved = moved.index_put((scene.ego_row(), scene.ego), torch.tensor(False))
    seen = moved[..., None] & (scene.kind[..., None] == torch.tensor(KINDS))
    late = seen & (first > HISTORY_STEPS)
    allowed = torch.cat((lane | walks[0], walks[1], late), dim=1)
    allowed[:, 2 * lines :] |= seen & ~allowed.any(dim=1, keepdim=True)
    limit = torch.where(scene.speed_limit_valid, scene.speed_limit, 0.0)
    return torch.cat((starts, ends, logged), dim=1), allowed, torch.nn.functional.pad(limit, (0, lines + agents))


def _free_end(scene: Scene, end: Tensor) -> Tensor:
    """Which `end` (B, L, 4) of the polylines is that of a walkway that no other walkway or crosswalk goes on from."""
    walkway = scene.polyline_valid[..., 0] & (scene.polyline_kind == PolylineKind.WALKWAY)
    other = scene.polyline_valid & (walkway | (scene.polyline_kind == PolylineKind.CROSSWALK))[..., None]
    free = torch.zeros_like(walkway)
    for row in walkway.any(dim=1).nonzero()[:, 0].tolist():  # at the reset alone
        apart = (end[row, :, None, None, :2] - scene.polyline[row, None, ..., :2]).norm(dim=-1)
        touched = ((apart < 2.0) & other[row]).any(-1) & ~torch.eye(len(apart), dtype=torch.bool)
        free[row] = walkway[row] & ~touched.any(-1)
    return free


def _traffic(scene: Scene, entry: Tensor, allowed: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and speed (B, E, 3) of entrances by kind, from the log's traffic near them; weight 0 where not allowed."""
    place, heading = scene.position[:, :, ::LOG_STRIDE, :2], scene.heading[:, :, ::LOG_STRIDE]
    pace, valid = scene.velocity[:, :, ::LOG_STRIDE].norm(dim=-1), scene.valid[:, :, ::LOG_STRIDE]
    kind = (scene.kind[..., None] == torch.tensor(KINDS)).float()
    default = torch.where(limit[..., None] > 0, limit[..., None], torch.tensor(FREE_SPEED))
    default = torch.cat((default[..., :1], torch.tensor(FREE_SPEED[1:]).expand_as(default[..., 1:])), dim=-1)
    weights, speeds = [], []
    for rows in torch.arange(len(scene)).split(max(PAIRS_AT_ONCE // (entry.shape[1] * valid[0].numel()), 1)):
        apart = (entry[rows, :, None, None, :2] - place[rows, None]).square().sum(-1)
        along = wrap_angle(entry[rows, :, None, None, 3] - heading[rows, None]).abs() < SAME_WAY
        near = (apart < NEAR**2) & along & (valid & (pace > STANDING))[rows, None]
        moments, sums = near.sum(-1).float() @ kind[rows], torch.where(near, pace[rows, None], 0.0).sum(-1) @ kind[rows]
        weights.append(near.any(-1).float() @ kind[rows] + 1.0)
        speeds.append(torch.where(moments > 0, sums / moments.clamp(min=1), default[rows]))
    return torch.where(allowed, torch.cat(weights), 0.0), torch.cat(speeds)


def _try_entry(state: State, queue: Tensor, draw: int) -> tuple[State, Tensor]:
    """Draw one of the `queue` (B, A) of each scene an entrance; return the state with it there, if there is room, and who."""
    scene, memory, row = state.scene, state.memory, torch.arange(len(state))
    chance = lambda number, which: hashed_uniform(  # noqa: E731
        state.key[:, None], state.step[:, None], torch.tensor(BORDER_CHANNEL + 2 * draw + which), number
    )
    agent = torch.where(queue, chance(torch.arange(queue.shape[1]), 0), -1.0).argmax(-1)
    # Starts of lines, their ends, and agents of the log are numbered apart: padding of one must not renumber the others.
    counts = (scene.polyline_kind.shape[1], scene.polyline_kind.shape[1], scene.kind.shape[1])
    places = torch.cat([3 * torch.arange(count) + group for group, count in enumerate(counts)])
    kind = scene.kind[row, agent]
    weight = memory["border_weight"][row, :, kind]
    # The first of exponential arrivals with these rates is drawn with a chance in proportion to its rate.
    arrival = torch.where(weight > 0, -chance(places, 1).log() / weight.clamp(min=1e-6), torch.inf)
    choice = arrival.argmin(-1)
    pose, wanted = memory["border_entry"][row, choice], memory["border_speed"][row, choice, kind]
    size = scene.size[row, agent]
    speed, room = _room(state, pose, size, wanted)
    enters = queue.any(-1) & (weight > 0).any(-1) & room
    who = torch.zeros_like(queue).index_put((row, agent), enters)
    put = lambda held, new: torch.where(who.reshape(who.shape + (1,) * (held.ndim - 2)), new[:, None], held)  # noqa: E731
    ground = torch.cat((pose[:, :2], pose[:, 2:3] + 0.5 * size[:, 2:]), dim=-1)
    moved = replace(
        state,
        position=put(state.position, ground),
        heading=put(state.heading, pose[:, 3]),
        velocity=put(state.velocity, speed[:, None] * unit(pose[:, 3])),
        valid=state.valid | who,
        simulated=state.simulated & ~who,
    )
    return moved, who


def _room(state: State, pose: Tensor, size: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Speed (B,) with which a box `size` (B, 3) can enter at `pose` (B, 4), at most `wanted` (B,), and whether there is room."""
    scene, driver = state.scene, IntelligentDriver()
    other = to_local(state.position[..., :2], pose[:, None, :2], pose[:, None, 3])
    turn = state.heading - pose[:, None, 3]
    length, width = scene.size[..., 0], scene.size[..., 1]
    beside = 0.5 * (length * turn.sin().abs() + width * turn.cos().abs() + size[:, None, 1]) + BESIDE
    apart = 0.5 * (length * turn.cos().abs() + width * turn.sin().abs() + size[:, None, 0])
    in_way = state.valid & (other[..., 1].abs() < beside)
    gap = other[..., 0].abs() - apart - driver.standstill_gap
    pace = (state.velocity * unit(pose[:, None, 3])).sum(-1)
    ahead, behind = in_way & (other[..., 0] >= 0), in_way & (other[..., 0] < 0)
    room = gap.clamp(min=0)
    stop = (pace.clamp(min=0).square() + 2 * driver.comfortable_braking * room).sqrt()
    allowed = torch.where(ahead, torch.minimum(stop, room / driver.time_headway), torch.inf).amin(-1)
    speed = torch.minimum(wanted, allowed)
    braking = (pace.clamp(min=0).square() - speed[:, None].square()).clamp(min=0) / (2 * driver.comfortable_braking)
    cut_off = behind & (gap < torch.maximum(0.5 * driver.time_headway * pace.clamp(min=0), braking))
    near = ((state.position[..., :2] - pose[:, None, :2]).norm(dim=-1) <= CLEAR_OF_EGO) & state.driven
    return speed, ~near.any(-1) & (speed >= 0.5 * wanted) & ~(in_way & (gap < 0)).any(-1) & ~cut_off.any(-1)
