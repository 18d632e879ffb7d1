"""Drivers made of rules: random, constant speed, log replay, and the intelligent driver model (IDM).

They read the `State` and nothing else, hold no memory, and answer a whole batch at once; the random driver draws from the key of
each scene, so a scene gets the same actions alone and in a batch. Route followers steer by pure pursuit (Coulter,
"Implementation of the pure pursuit path tracking algorithm", CMU-RI-TR-92-01, 1992): along the arc that leads to a point ahead on
the route.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..envs.ground import signals_along
from ..worldmodel.dynamics import IntelligentDriver, KinematicBicycle, Motion, forward_speed
from ..worldmodel.geometry import point_on_polyline, polyline_direction, project_on_polyline, to_local, wrap_angle
from ..worldmodel.sampling import hashed_uniform
from ..worldmodel.scene import HISTORY_STEPS, PolylineKind, SignalState
from ..worldmodel.world import State

PATH_BEHIND = 4.0
PATH_AHEAD = 100.0
PATH_SPACING = 2.0
"""The piece of the route that rules look at: metres behind and ahead of the ego, and between its points."""

RANDOM_CHANNEL = 1_000_000
"""Keeps the random driver's numbers apart from those that a world draws from the same key."""

CAR = KinematicBicycle()


@dataclass(frozen=True)
class RandomPolicy:
    """Smooth random driving: fresh random targets every second, linear in between.

    Attributes:
        acceleration: largest acceleration and braking in m/s2.
        lateral: largest lateral acceleration in m/s2, which bounds the curvature at speed.
    """

    acceleration: float = 3.0
    lateral: float = 2.0
    knot_steps: int = 10

    def act(self, observation: Any, state: State) -> Tensor:
        """See `Policy.act`."""
        knot, phase = state.step // self.knot_steps, (state.step % self.knot_steps) / self.knot_steps
        channels = torch.arange(2) + RANDOM_CHANNEL
        before, after = (hashed_uniform(state.key[:, None], k[:, None], channels) for k in (knot, knot + 1))
        noise = 2 * torch.lerp(before, after, phase[:, None]) - 1
        speed = forward_speed(state.ego())
        curvature = noise[:, 1] * self.lateral / speed.clamp(min=4.0).square()
        return _bounded(noise[:, 0] * self.acceleration, curvature)


@dataclass(frozen=True)
class ConstantPolicy:
    """Keeps the speed that the ego has at the present of the log, along the route, whatever stands there.

    Attributes:
        speed: another speed to keep, in m/s.
    """

    speed: float | None = None

    def act(self, observation: Any, state: State) -> Tensor:
        """See `Policy.act`."""
        speed = forward_speed(state.ego())
        wanted = _logged_speed(state) if self.speed is None else torch.full_like(speed, self.speed)
        return _bounded((wanted - speed) / 0.5, _pursue(state, speed))


@dataclass(frozen=True)
class ReplayPolicy:
    """Drives as the log's ego did, by inverse dynamics towards where the log shows it next.

    The target is measured from where the ego really is, so errors do not add up. Where the log does not show the ego, it keeps
    its speed and goes straight.
    """

    def act(self, observation: Any, state: State) -> Tensor:
        """See `Policy.act`.

        Raises:
            ValueError: the log of a scene is over.
        """
        scene, now = state.scene, HISTORY_STEPS + state.step
        if (now + 1 >= scene.steps).any():
            row = int((now + 1 >= scene.steps).nonzero()[0])
            raise ValueError(
                f"{scene.id[row]}: the replay policy cannot go on after {int(state.step[row])} steps, where the log ends: "
                "use a shorter horizon or another policy"
            )
        row, ego, ahead = scene.ego_row(), scene.ego, now + 1
        target = Motion(scene.position[row, ego, ahead], scene.heading[row, ego, ahead], scene.velocity[row, ego, ahead])
        action = CAR.action(state.ego(), target)
        return torch.where(scene.valid[row, ego, ahead][:, None], action, 0.0)


@dataclass(frozen=True)
class IdmPolicy:
    """Follows its route by the intelligent driver model (Treiber, Hennecke, Helbing, Phys. Rev. E 62, 1805, 2000), obeys signals.

    The leader is whoever first stands or moves in the corridor that the ego's box sweeps along its route, now or, at its present
    velocity, within `foresight` (so someone who is about to cross or cut in counts). Signals whose stop point lies on the route
    are leaders that stand, at STOP, and at CAUTION where braking comfortably is enough. The wanted speed is the lane's limit,
    lower before and in bends.

    Attributes:
        free_speed: wanted speed in m/s where the lane has no limit (50 km/h), or the log's speed if that is higher.
        speed_factor: wanted share of that speed or the limit.
        driver: how hard it accelerates behind others.
        lateral: largest lateral acceleration in bends, m/s2.
        margin: metres of air on each side of the ego's box.
        foresight: seconds for which others are foreseen.
        sight: metres ahead within which others are seen at all.
        obeys_signals: whether it stops at red lights.
    """

    free_speed: float = 50 / 3.6
    speed_factor: float = 1.0
    driver: IntelligentDriver = IntelligentDriver()
    lateral: float = 2.0
    margin: float = 0.3
    foresight: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5)
    sight: float = PATH_AHEAD
    obeys_signals: bool = True

    def act(self, observation: Any, state: State) -> Tensor:
        """See `Policy.act`."""
        return self.drive(state, torch.full((len(state),), self.speed_factor), torch.zeros(len(state)))

    def drive(self, state: State, speed_factor: Tensor, offset: Tensor) -> Tensor:
        """Return actions (B, 2) with a share of the wanted speed (B,) and metres to the left of the route (B,) for each scene."""
        speed = forward_speed(state.ego())
        path = _route_ahead(state, offset)
        gap, closing = (
            torch.cat(parts, dim=1)
            for parts in zip(self._others(state, path, speed), self._signals(state, path, speed), strict=True)
        )
        acceleration = self.driver.response(speed, self._wanted_speed(state, path, speed_factor), gap, closing)
        return _bounded(acceleration, _pursue(state, speed, offset))

    def _others(self, state: State, path: RouteAhead, speed: Tensor) -> tuple[Tensor, Tensor]:
        """Gap (B, N) to whoever is or comes into the corridor, infinite for the rest, and closing speed (B, N)."""
        batch, agents = state.valid.shape
        scene, row = state.scene, state.scene.ego_row()
        times = torch.tensor(self.foresight)
        points = state.position[:, None, :, :2] + times[:, None, None] * state.velocity[:, None]
        arc, offset, heading = (
            x.view(batch, len(times), agents) for x in project_on_polyline(points.flatten(1, 2), path.points, path.valid)
        )
        turn = state.heading[:, None] - heading
        length, width = scene.size[:, None, :, 0], scene.size[:, None, :, 1]
        half_along = 0.5 * (length * turn.cos().abs() + width * turn.sin().abs())
        half_across = 0.5 * (length * turn.sin().abs() + width * turn.cos().abs())
        ego_arc = path.ego_arc[:, None, None]
        ego_length, ego_width = scene.size[row, scene.ego, :2].T[..., None, None]
        inside = offset.abs() < half_across + 0.5 * ego_width + self.margin
        ahead = (arc[:, :1] > ego_arc) & (arc < ego_arc + min(self.sight, PATH_AHEAD))
        passed = ego_arc + speed[:, None, None] * times[:, None] > arc + half_along + 0.5 * ego_length
        others = state.valid.index_put((row, scene.ego), torch.zeros(batch, dtype=torch.bool))[:, None]
        counts = others & inside & ahead & ~passed
        gap = arc - half_along - ego_arc - 0.5 * ego_length
        direction = torch.stack((heading.cos(), heading.sin()), dim=-1)
        closing = speed[:, None, None] - (state.velocity[:, None] * direction).sum(-1)
        return torch.where(counts, gap, torch.inf).flatten(1), closing.flatten(1)

    def _signals(self, state: State, path: RouteAhead, speed: Tensor) -> tuple[Tensor, Tensor]:
        """Gap (B, S) to the stop points that bind the ego, infinite for the rest, and closing speed (B, S)."""
        scene, row = state.scene, state.scene.ego_row()
        arc, holds = signals_along(scene, path.points, path.valid)
        room = arc - path.ego_arc[:, None] - 0.5 * scene.size[row, scene.ego, 0][:, None]
        needed = speed[:, None].square() / (2 * room.clamp(min=0.1))
        stop = (state.signal_state == SignalState.STOP) & (needed < self.driver.hardest_braking)
        caution = (state.signal_state == SignalState.CAUTION) & (needed < self.driver.comfortable_braking)
        binding = state.signal_valid & holds & (arc > path.ego_arc[:, None]) & (arc < PATH_BEHIND + PATH_AHEAD)
        binding &= self.obeys_signals
        gap = room + self.driver.standstill_gap - 1.0  # the front comes to rest one metre before the line
        return torch.where(binding & (stop | caution), gap, torch.inf), speed[:, None].expand_as(gap)

    def _wanted_speed(self, state: State, path: RouteAhead, factor: Tensor) -> Tensor:
        """Speed (B,) that the lane and the bends ahead allow, if the ego brakes comfortably before them."""
        limit, known = _speed_limit(state)
        wanted = factor * torch.where(known, limit, _logged_speed(state).clamp(min=self.free_speed))
        bend = wrap_angle(path.heading[:, 3:] - path.heading[:, :-3]).abs() / (3 * PATH_SPACING)
        distance = (torch.arange(bend.shape[1]) * PATH_SPACING - PATH_BEHIND).clamp(min=0.0)
        allowed = (self.lateral / bend.clamp(min=1e-3) + 2 * self.driver.comfortable_braking * distance).sqrt()
        return torch.minimum(wanted, allowed.amin(dim=1))


def cautious() -> IdmPolicy:
    """Return a driver who keeps far away, drives below the limit and accelerates and brakes softly."""
    driver = IntelligentDriver(time_headway=2.5, standstill_gap=4.0, acceleration=1.0, comfortable_braking=1.2)
    return IdmPolicy(speed_factor=0.8, driver=driver, lateral=1.5, margin=0.6, foresight=(0.0, 0.5, 1.0, 1.5, 2.0))


def aggressive() -> IdmPolicy:
    """Return a driver who tailgates, drives above the limit and accelerates and brakes hard."""
    driver = IntelligentDriver(time_headway=0.7, standstill_gap=1.0, acceleration=3.0, comfortable_braking=4.0)
    return IdmPolicy(speed_factor=1.2, driver=driver, lateral=4.0, margin=0.1, foresight=(0.0, 0.5))


@dataclass(frozen=True)
class NoisyPolicy:
    """Drives as another driver, plus `amount` times the smooth noise of `RandomPolicy`."""

    amount: float
    driver: IdmPolicy = IdmPolicy()

    def act(self, observation: Any, state: State) -> Tensor:
        """See `Policy.act`."""
        action = self.driver.act(observation, state) + self.amount * RandomPolicy().act(observation, state)
        return _bounded(action[:, 0], action[:, 1])


IMPAIRED: dict[str, Callable[[], IdmPolicy | NoisyPolicy]] = {
    "slow": lambda: IdmPolicy(speed_factor=0.4),
    "speeding": lambda: IdmPolicy(speed_factor=1.6, lateral=3.5),
    "red_runner": lambda: IdmPolicy(obeys_signals=False),
    "short_sighted": lambda: IdmPolicy(sight=12.0, foresight=(0.0,)),
    "blind": lambda: IdmPolicy(sight=0.0),
    "noisy": lambda: NoisyPolicy(0.3),
    "drunk": lambda: NoisyPolicy(0.6),
    "reckless": lambda: NoisyPolicy(1.0, IdmPolicy(sight=0.0, obeys_signals=False, speed_factor=1.3)),
}
"""Drivers with one fault each: what a score has to tell from good ones, in every world (`worldloop validate`)."""


@dataclass(frozen=True)
class RouteAhead:
    """The route near the ego: points (B, K, 2), their headings (B, K), all valid (B, K), and the ego's arc (B,) along them."""

    points: Tensor
    heading: Tensor
    valid: Tensor
    ego_arc: Tensor


def _route_ahead(state: State, offset: Tensor) -> RouteAhead:
    route, valid = state.scene.route[..., :2], state.scene.route_valid
    arc = project_on_polyline(state.ego().position[:, None, :2], route, valid)[0]
    stations = torch.arange(-PATH_BEHIND, PATH_AHEAD + PATH_SPACING, PATH_SPACING)
    points, heading = point_on_polyline(arc + stations, route, valid)
    points = points + offset[:, None, None] * torch.stack((-heading.sin(), heading.cos()), dim=-1)
    whole = torch.ones(points.shape[:-1], dtype=torch.bool)
    ego_arc = project_on_polyline(state.ego().position[:, None, :2], points, whole)[0][:, 0]
    return RouteAhead(points, heading, whole, ego_arc)


def _pursue(state: State, speed: Tensor, offset: Tensor | float = 0.0) -> Tensor:
    """Curvature (B,) of the arc from the ego to a point on the route, or beside it, 0.8 s (4 to 20 m) ahead."""
    ego, route, valid = state.ego(), state.scene.route[..., :2], state.scene.route_valid
    arc = project_on_polyline(ego.position[:, None, :2], route, valid)[0]
    target, heading = (found[:, 0] for found in point_on_polyline(arc + (0.8 * speed).clamp(4.0, 20.0)[:, None], route, valid))
    target = target + torch.stack((-heading.sin() * offset, heading.cos() * offset), dim=-1)
    local = to_local(target, ego.position[:, :2], ego.heading)
    return 2 * local[:, 1] / local.square().sum(-1).clamp(min=1.0)


def _logged_speed(state: State) -> Tensor:
    """Speed (B,) of the ego at the present of the log."""
    return state.scene.velocity[state.scene.ego_row(), state.scene.ego, HISTORY_STEPS].norm(dim=-1)


def _bounded(acceleration: Tensor, curvature: Tensor) -> Tensor:
    """Join to actions (B, 2) within the limits of the car."""
    return CAR.clip(torch.stack((acceleration, curvature), dim=-1))


def _speed_limit(state: State) -> tuple[Tensor, Tensor]:
    """Limit (B,) of the lane that the ego is in, and whether there is one (B,)."""
    scene, ego = state.scene, state.ego()
    lanes = (scene.polyline_kind == PolylineKind.LANE) | (scene.polyline_kind == PolylineKind.JUNCTION_LANE)
    if scene.polyline.shape[1] == 0:
        return torch.zeros(len(scene)), torch.zeros(len(scene), dtype=torch.bool)
    line, valid = scene.polyline[..., :2], scene.polyline_valid & (lanes & scene.speed_limit_valid)[..., None]
    distance = (line - ego.position[:, None, None, :2]).norm(dim=-1)
    along = wrap_angle(polyline_direction(line, scene.polyline_valid) - ego.heading[:, None, None]).abs() < math.pi / 4
    nearest, lane = torch.where(valid & along, distance, torch.inf).amin(dim=2).min(dim=1)
    return scene.speed_limit[scene.ego_row(), lane], nearest < 15.0
