"""Interventions: what the ego is made to do from a given moment on, instead of keeping its course.

All motions are planned once, against the log, with the kinematic bicycle, and are then forced upon the ego in every world alike:
worlds differ by how the others answer, not by what the ego does. Keeping its course is following its log. Every intervention
steers along the ego's route, at the distance to its side that the ego has at the present, by pure pursuit (Coulter,
CMU-RI-TR-92-01, 1992):

- hard_brake: 6 m/s2 until it stands. stop: the same with 2 m/s2.
- accelerate: 2 m/s2 for 3 s, whatever signals and limits say, but not into whoever drives ahead in the log.
- swerve: up to 1.5 m to the side and back within 3 s, towards a neighbouring lane that is free, else to the right, with the
  speeds of the log.
- cut_in: within 2.5 s into the neighbouring lane, on the side where somebody drives behind if there is one, with the
  speeds of the log, but not into whoever drives ahead there.
- creep: at 2 m/s into the junction ahead, standing with its front 4 m inside.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from ..worldmodel.dynamics import IntelligentDriver, KinematicBicycle, Motion, forward_speed
from ..worldmodel.geometry import point_on_polyline, project_on_polyline, to_local, wrap_angle
from ..worldmodel.open_loop import logged_ego
from ..worldmodel.scene import DERIVED, HISTORY_STEPS, TIME_STEP, AgentKind, PolylineKind, Scene
from ..worldmodel.world import ReplayWorld, State, World

Intervention = Literal["hard_brake", "stop", "accelerate", "swerve", "cut_in", "creep"]
INTERVENTIONS: tuple[Intervention, ...] = get_args(Intervention)
KEEP = "keep"
"""The branch that all interventions are held against: the ego as logged."""

CAR = KinematicBicycle()
NEAR_DRIVER = IntelligentDriver(time_headway=0.8, acceleration=3.0, comfortable_braking=3.0, hardest_braking=6.0)
"""Follows whoever is ahead closely; only so that the ego's box does not drive through others."""

HARD_BRAKING, COMFORTABLE_BRAKING = -6.0, -2.0
ACCELERATION, ACCELERATING = 2.0, 3.0
"""m/s2, and for how many seconds."""

SWERVE_WIDTH, SWERVE_TIME, CHANGE_TIME = 1.5, 3.0, 2.5
PREVIEW = 0.8
"""Seconds that pure pursuit looks ahead, at least 4 and at most 20 m."""

CREEP_SPEED, CREEP_DEPTH, CREEP_REACH = 2.0, 4.0, 40.0
"""m/s, metres into the junction, and how far before it the ego's front may be at the present."""

RECORDED = ("position", "heading", "velocity", "valid", "signal_state", "signal_valid")
"""What a state shows of what a scene logs."""

SLOWEST = 3.0
"""An ego slower than this many m/s has nothing to brake, and only creeps."""

FARTHEST_FOLLOWER = 40.0
"""Metres along the route behind the ego within which someone follows it."""

IN_LANE = 1.5
"""Metres beside the middle of the ego's way within which others are in its lane."""

SMALLEST_DEPARTURE = 0.5
"""An intervention that leads the ego nowhere farther than this many metres from its log is none."""


@dataclass(frozen=True)
class Plan:
    """The ego's motions in one scene.

    Attributes:
        branches: K names, `KEEP` first.
        motion: (K, T, ...) where the ego is after each step of 0.1 s.
        follower: K places of who drives behind it in its lane (for a cut in: in the lane that it comes into), or None.
        refused: why an intervention cannot be made from this scene, by its name.
    """

    branches: tuple[str, ...]
    motion: Motion
    follower: tuple[int | None, ...]
    refused: dict[str, str]


@dataclass(frozen=True)
class _Way:
    """Where everyone is along the ego's route, for B scenes: arc, offset to the left and turn against it, all (B, A)."""

    arc: Tensor
    offset: Tensor
    turn: Tensor

    @classmethod
    def of(cls, state: State) -> _Way:
        route, valid = state.scene.route[..., :2], state.scene.route_valid
        arc, offset, course = project_on_polyline(state.position[..., :2], route, valid)
        return cls(arc, offset, wrap_angle(state.heading - course))


def plan_interventions(scene: Scene, wanted: tuple[Intervention, ...], steps: int) -> Plan:
    """Plan those interventions that can be made from a scene (B = 1).

    Raises:
        ValueError: `steps` is 0, or the log is shorter than that, so there is no course to keep for so long.
    """
    longest = int(ReplayWorld().horizon(scene)[0])
    if steps < 1:
        raise ValueError("its log ends at the present, so there is no course to leave: leave the scene out")
    if longest < steps:
        raise ValueError(
            f"its log goes on for {TIME_STEP * longest:g} s, but the ego shall keep its course for "
            f"{TIME_STEP * steps:g} s: take a --horizon of {TIME_STEP * longest:g} or less, or leave the scene out"
        )
    state = ReplayWorld().reset(scene, torch.zeros(1, dtype=torch.int64))
    entry, refused = math.inf, {}
    moving = float(forward_speed(state.ego())) >= SLOWEST
    for name in wanted:
        if not moving and name != "creep":
            refused[name] = f"the ego is slower than {SLOWEST:g} m/s"
    sides = _free_sides(state)
    if "cut_in" in wanted and moving and not sides:
        refused["cut_in"] = "no room in a neighbouring lane"
    if "creep" in wanted:
        entry = _junction_entry(state)
        if math.isinf(entry):
            refused["creep"] = f"no junction within {CREEP_REACH:g} m that nobody stands before"
    made = tuple(name for name in wanted if name not in refused)
    branches = (KEEP, *made)
    lane = sides[0] if sides else 0.0
    swerve = math.copysign(SWERVE_WIDTH, lane if sides else -1.0)
    shifts = torch.tensor([{"cut_in": lane, "swerve": swerve}.get(name, 0.0) for name in branches])
    motion = _drive(scene, branches, shifts, entry, steps)
    apart = (motion.position - motion.position[:1]).norm(dim=-1).amax(-1)
    gone = [number for number, name in enumerate(branches) if name == KEEP or float(apart[number]) >= SMALLEST_DEPARTURE]
    refused |= {name: "the log does nearly the same" for number, name in enumerate(branches) if number not in gone}
    followers = tuple(follower(state, lane if branches[number] == "cut_in" else 0.0) for number in gone)
    return Plan(tuple(branches[number] for number in gone), motion.take(gone), followers, refused)


def answered_scene(scene: Scene, world: World, plan: Plan, name: str) -> Scene:
    """Return a scene (B = 1) as `world` goes on with it when the ego makes the intervention `name` of its plan.

    The log up to the present stays; from there on it is what the world shows, without the recipe that would lead elsewhere.
    """
    branch, moments = plan.branches.index(name), []
    state = world.reset(scene, torch.zeros(1, dtype=torch.int64))
    for step in range(plan.motion.heading.shape[1]):
        state = world.step(state, plan.motion.map(lambda tensor, at=(branch, step): tensor[at][None]))
        moments.append(state)
    shown = {key: torch.stack([getattr(moment, key) for moment in moments], dim=2) for key in RECORDED}
    whole = {key: torch.cat((getattr(scene, key)[:, :, : HISTORY_STEPS + 1], part), dim=2) for key, part in shown.items()}
    return replace(scene, id=(f"{scene.id[0]}{DERIVED}{name}",), recipe=("",), **whole)


def follower(state: State, shift: float = 0.0) -> int | None:
    """Return who drives behind the ego of a state (B = 1), in its lane or the one `shift` metres to its left; None if nobody."""
    way, ego = _Way.of(state), int(state.scene.ego)
    behind = way.arc[0, ego] - way.arc[0]
    drives = (state.scene.kind[0] == AgentKind.VEHICLE) | (state.scene.kind[0] == AgentKind.CYCLIST)
    in_lane = (way.offset[0] - way.offset[0, ego] - shift).abs() < IN_LANE
    same_way = way.turn[0].abs() < math.pi / 4
    found = state.valid[0] & drives & in_lane & same_way & (behind > 0) & (behind < FARTHEST_FOLLOWER)
    found[ego] = False
    return int(torch.where(found, behind, torch.inf).argmin()) if found.any() else None


def _free_sides(state: State) -> list[float]:
    """Shifts in metres to the left (negative: right) into neighbouring lanes with room, the one with a follower first."""
    scene, ego = state.scene, state.ego()
    if scene.polyline.shape[1] == 0:
        return []
    lines, valid = scene.polyline[0, :, :, :2], scene.polyline_valid[0]
    arc, offset, course = (x[:, 0] for x in project_on_polyline(ego.position[:, :2].expand(len(lines), 1, 2), lines, valid))
    pieces = torch.where(valid[:, 1:], (lines[:, 1:] - lines[:, :-1]).norm(dim=-1), 0.0).sum(-1)
    beside = (arc >= 0) & (arc <= pieces) & (offset.abs() > 2.0) & (offset.abs() < 5.0)
    along = wrap_angle(course - ego.heading).abs() < math.pi / 8
    found = offset[beside & along & (scene.polyline_kind[0] == PolylineKind.LANE)]
    way, place = _Way.of(state), int(scene.ego)
    shifts = []
    for lane in (found[found < 0], found[found > 0]):  # the ego is right of the lane on its left
        if len(lane):
            shift = -float(lane[lane.abs().argmin()])
            near = (way.offset[0] - way.offset[0, place] - shift).abs() < 2.0
            gap = (way.arc[0] - way.arc[0, place]).abs() - 0.5 * (scene.size[0, :, 0] + scene.size[0, place, 0])
            closing = (state.velocity[0].norm(dim=-1) - state.velocity[0, place].norm()) * torch.sign(
                way.arc[0, place] - way.arc[0]
            )
            near[place] = False
            if not (state.valid[0] & near & (gap < 2.0 + closing.clamp(min=0.0))).any():
                shifts.append(shift)
    return sorted(shifts, key=lambda shift: follower(state, shift) is None)


def _junction_entry(state: State) -> float:
    """Arc along the route at which the next junction begins, infinite if none is near or others are before it."""
    scene, way, ego = state.scene, _Way.of(state), int(state.scene.ego)
    inner = scene.polyline_kind[0] == PolylineKind.JUNCTION_LANE
    start = scene.polyline[:, inner, 0, :2]
    if start.shape[1] == 0:
        return math.inf
    arc, offset, course = (x[0] for x in project_on_polyline(start, scene.route[..., :2], scene.route_valid))
    step = scene.polyline[0, inner, 1, :2] - start[0]
    front = float(way.arc[0, ego] + 0.5 * scene.size[0, ego, 0])
    aligned = wrap_angle(torch.atan2(step[:, 1], step[:, 0]) - course).abs() < math.pi / 8
    ahead = arc[(offset.abs() < 1.0) & aligned & (arc > front - 1.0) & (arc < front + CREEP_REACH)]
    if len(ahead) == 0:
        return math.inf
    entry = float(ahead.min())
    between = (way.arc[0] > way.arc[0, ego]) & (way.arc[0] < entry) & (way.offset[0] - way.offset[0, ego]).abs().lt(IN_LANE)
    return math.inf if (between & state.valid[0]).any() else entry


def _drive(scene: Scene, branches: tuple[str, ...], shift: Tensor, entry: float, steps: int) -> Motion:
    """Return the ego's motions (K, T, ...), everyone else on the log."""
    many, world = scene.repeat(len(branches)), ReplayWorld()
    state = world.reset(many, torch.zeros(len(branches), dtype=torch.int64))
    way = _Way.of(state)
    row, ego = many.ego_row(), many.ego
    held = way.offset[row, ego]
    is_kind = {name: torch.tensor([branch == name for branch in branches]) for name in (KEEP, *INTERVENTIONS)}
    moments: list[Motion] = []
    for step in range(steps):
        car, time = state.ego(), TIME_STEP * step
        beside = torch.where(is_kind["swerve"], shift * _bump((time + PREVIEW) / SWERVE_TIME), 0.0)
        beside = torch.where(is_kind["cut_in"], shift * _ramp((time + PREVIEW) / CHANGE_TIME), beside)
        target = logged_ego(many, step + 1)
        as_logged = (forward_speed(target) - forward_speed(car)) / TIME_STEP
        lane = held + torch.where(is_kind["cut_in"], shift, 0.0)
        acceleration = torch.where(is_kind["swerve"], as_logged, _acceleration(state, is_kind, time, lane, entry, as_logged))
        action = torch.stack((acceleration, _pursue(state, held + beside)), dim=-1)
        logged = CAR.action(car, target)
        following = CAR.step(car, torch.where(is_kind[KEEP][:, None], logged, action))
        state = world.step(state, following)
        moments.append(following)
    stack = lambda name: torch.stack([getattr(moment, name) for moment in moments], dim=1)  # noqa: E731
    return Motion(stack("position"), stack("heading"), stack("velocity"))


def _bump(phase: float) -> float:
    return math.sin(math.pi * phase) ** 2 if 0 < phase < 1 else 0.0


def _ramp(phase: float) -> float:
    return math.sin(0.5 * math.pi * min(max(phase, 0.0), 1.0)) ** 2


def _acceleration(state: State, is_kind: dict[str, Tensor], time: float, lane: Tensor, entry: float, as_logged: Tensor) -> Tensor:
    """What the interventions want (K,) in m/s2; `lane` (K,) is the offset from the route that they head for."""
    way, row, ego = _Way.of(state), state.scene.ego_row(), state.scene.ego
    speed, length = forward_speed(state.ego()).clamp(min=0.0), state.scene.size[row, ego, 0]
    arc = way.arc[row, ego]
    wanted = torch.where(is_kind["cut_in"], as_logged, 0.0)
    if time < ACCELERATING - 1e-6:
        wanted = torch.where(is_kind["accelerate"], ACCELERATION, wanted)
    if math.isfinite(entry):
        room = entry - arc - 0.5 * length
        approach = torch.minimum((CREEP_SPEED**2 + 4.0 * room.clamp(min=0.0)).sqrt(), speed.clamp(min=CREEP_SPEED))
        halt = (4.0 * (room + CREEP_DEPTH).clamp(min=0.0)).sqrt()
        creep = ((torch.minimum(approach, halt) - speed) / 0.5).clamp(-4.0, 1.5)
        wanted = torch.where(is_kind["creep"], creep, wanted)
    turn = way.turn
    size = state.scene.size
    half_along = 0.5 * (size[..., 0] * turn.cos().abs() + size[..., 1] * turn.sin().abs())
    half_across = 0.5 * (size[..., 0] * turn.sin().abs() + size[..., 1] * turn.cos().abs())
    reach = half_across + 0.5 * size[row, ego, 1][:, None] + 0.2
    in_way = ((way.offset - way.offset[row, ego][:, None]).abs() < reach) | ((way.offset - lane[:, None]).abs() < reach)
    same_way = turn.abs() < 0.5 * math.pi
    counts = (state.valid & in_way & same_way & (way.arc > arc[:, None])).index_put((row, ego), torch.tensor(False))
    gap = torch.where(counts, way.arc - half_along - (arc + 0.5 * length)[:, None], torch.inf)
    ahead = state.velocity.norm(dim=-1) * turn.cos()
    limit = NEAR_DRIVER.response(speed, torch.full_like(speed, CAR.max_speed), gap, speed[:, None] - ahead)
    wanted = torch.minimum(wanted, limit)
    wanted = torch.where(is_kind["stop"], COMFORTABLE_BRAKING, wanted)
    return torch.where(is_kind["hard_brake"], HARD_BRAKING, wanted)


def _pursue(state: State, offset: Tensor) -> Tensor:
    """Curvature (K,) of the arc to a point that is `offset` (K,) metres to the left of the route, `PREVIEW` ahead."""
    car, route, valid = state.ego(), state.scene.route[..., :2], state.scene.route_valid
    arc = project_on_polyline(car.position[:, None, :2], route, valid)[0]
    target, course = point_on_polyline(arc + (PREVIEW * forward_speed(car)).clamp(4.0, 20.0)[:, None], route, valid)
    side = torch.stack((-course.sin(), course.cos()), dim=-1)
    local = to_local((target + offset[:, None, None] * side)[:, 0], car.position[:, :2], car.heading)
    return 2 * local[:, 1] / local.square().sum(-1).clamp(min=1.0)
