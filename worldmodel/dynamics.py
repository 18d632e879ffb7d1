"""Dynamics: what a body does with an action, and which action explains a motion.

A car is a kinematic bicycle: it moves along arcs of constant curvature, and its heading is the direction in which it moves.
Action and inverse are the pair of Waymax's invertible bicycle model (Gulino et al., "Waymax", NeurIPS 2023), written afresh
with exact arcs instead of its first-order step. The box centre is taken for the point that has no side slip (truly the middle
of the rear axle): motions of logs hold the centre, and the difference stays below half a metre at a car's tightest turn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .geometry import rotate, to_local, wrap_angle
from .scene import TIME_STEP, TensorBatch

STANDSTILL = 1e-3
"""Speeds below this many m/s, and ways below this many m, count as standing: heading and curvature cannot be told from them."""

CORRECTION_RATE = 2.0
"""Share of a position error that `KinematicBicycle.action` takes back per second while it follows what no action reaches."""


@dataclass(frozen=True)
class Motion(TensorBatch):
    """Where a body is and how it moves: position (..., 3) metres, heading (...) radians, velocity (..., 2) metres per second."""

    position: Tensor
    heading: Tensor
    velocity: Tensor


@dataclass(frozen=True)
class KinematicBicycle:
    """A car. Actions (..., 2) hold acceleration in m/s2 and path curvature in 1/m (positive: to the left), kept for 0.1 s.

    Braking ends at standstill and never reverses; a car that rolls backwards at first stands still at once. Speed ends at
    `max_speed`. Where tyres would not hold, the car turns less than asked: speed squared times curvature stays within `grip`.

    Attributes:
        min_acceleration: hardest braking in m/s2; 8 is an emergency stop on dry asphalt (friction of 0.8).
        max_acceleration: 4 m/s2 is a strong passenger car; nuPlan's comfort limit is 2.4.
        max_curvature: 0.2 1/m is a turning circle of 10 m, that of a compact car.
        max_speed: 45 m/s (162 km/h), above every speed in the training data.
        grip: largest lateral acceleration in m/s2; 9 is a friction of 0.9 on dry asphalt.
    """

    min_acceleration: float = -8.0
    max_acceleration: float = 4.0
    max_curvature: float = 0.2
    max_speed: float = 45.0
    grip: float = 9.0

    def __post_init__(self) -> None:
        if not self.min_acceleration < 0 < self.max_acceleration:
            raise ValueError(
                f"acceleration limits {self.min_acceleration} and {self.max_acceleration}: wanted one below and one above 0"
            )
        for name in ("max_curvature", "max_speed", "grip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: found {getattr(self, name)}, wanted a number above 0")

    def clip(self, action: Tensor) -> Tensor:
        """Return actions (..., 2) brought within the limits of acceleration and curvature."""
        acceleration = action[..., 0].clamp(self.min_acceleration, self.max_acceleration)
        return torch.stack((acceleration, action[..., 1].clamp(-self.max_curvature, self.max_curvature)), dim=-1)

    def step(self, motion: Motion, action: Tensor) -> Motion:
        """Return where the car is after 0.1 s of `action` (..., 2), exactly: acceleration and curvature are constant in between.

        The height is kept. Actions are clipped to the limits.
        """
        action = self.clip(action)
        speed = forward_speed(motion).clamp(min=0.0)
        acceleration = action[..., 0]
        following = (speed + acceleration * TIME_STEP).clamp(min=0.0, max=self.max_speed)
        way = 0.5 * (speed + following) * TIME_STEP
        stops = speed + acceleration * TIME_STEP < 0
        way = torch.where(stops, speed.square() / (-2 * acceleration).clamp(min=1e-6), way)
        turn = way * self._held_curvature(action[..., 1], speed, following)
        chord = way * _sine_ratio(0.5 * turn)
        step = rotate(torch.stack((chord, torch.zeros_like(chord)), dim=-1), motion.heading + 0.5 * turn)
        heading = wrap_angle(motion.heading + turn)
        return replace(
            motion,
            position=torch.cat((motion.position[..., :2] + step, motion.position[..., 2:]), dim=-1),
            heading=heading,
            velocity=torch.stack((following * heading.cos(), following * heading.sin()), dim=-1),
        )

    def action(self, motion: Motion, following: Motion) -> Tensor:
        """Return the action (..., 2) that leads from `motion` to `following` in 0.1 s: the inverse of `step`.

        Where no action leads there (a log, say), speed and heading aim for those of `following`, and the position error that
        would remain is taken back at `CORRECTION_RATE`, to the side as a Stanley controller does (Hoffmann et al., "Autonomous
        automobile trajectory tracking", ACC 2007): errors do not add up. The action is within the limits.
        """
        speed, target = forward_speed(motion).clamp(min=0.0), forward_speed(following).clamp(min=0.0)
        ahead, left = to_local(following.position[..., :2], motion.position[..., :2], motion.heading).unbind(-1)
        turn = wrap_angle(following.heading - motion.heading)
        chord = ahead * (0.5 * turn).cos() + left * (0.5 * turn).sin()
        aside = left * (0.5 * turn).cos() - ahead * (0.5 * turn).sin()
        driven = chord / _sine_ratio(0.5 * turn)
        stops = (target < STANDSTILL) & (driven > 0)
        way = torch.where(stops, driven.clamp(max=0.5 * TIME_STEP * speed), 0.5 * (speed + target) * TIME_STEP)
        braking = -speed.square() / (2 * way).clamp(min=1e-6)
        correction = CORRECTION_RATE / TIME_STEP * (driven - way)
        acceleration = torch.where(stops, braking, (target - speed) / TIME_STEP + correction)
        turn = turn + (CORRECTION_RATE * aside / target.clamp(min=2.0)).clamp(-0.3, 0.3)
        curvature = torch.where(way > STANDSTILL, turn / way.clamp(min=STANDSTILL), 0.0)
        return self.clip(torch.stack((acceleration, curvature), dim=-1))

    def _held_curvature(self, curvature: Tensor, speed: Tensor, following: Tensor) -> Tensor:
        """Curvature (...) that the tyres hold at the higher one of two speeds (...)."""
        most = self.grip / torch.maximum(speed, following).square().clamp(min=1e-6)
        return torch.minimum(torch.maximum(curvature, -most), most)


def forward_speed(motion: Motion) -> Tensor:
    """Return the speed (...) along the heading, negative when the body rolls backwards."""
    return motion.velocity[..., 0] * motion.heading.cos() + motion.velocity[..., 1] * motion.heading.sin()


def _sine_ratio(angle: Tensor) -> Tensor:
    """Return sin(x) / x, which is chord over arc for half the turned angle; 1 at zero."""
    small = angle.abs() < 1e-3
    safe = torch.where(small, torch.ones_like(angle), angle)
    return torch.where(small, 1 - angle.square() / 6, safe.sin() / safe)


@dataclass(frozen=True)
class IntelligentDriver:
    """How hard a driver accelerates behind others: IDM (Treiber, Hennecke, Helbing, Phys. Rev. E 62, 1805, 2000).

    Attributes:
        time_headway: T, seconds to the leader (paper: 1.6).
        standstill_gap: s0, metres between bumpers at rest (paper: 2).
        acceleration: a, m/s2 (paper: 0.73, for motorways; 1.5 starts at signals as people do).
        comfortable_braking: b, m/s2 (paper: 1.67).
        hardest_braking: m/s2, what an emergency gets.
    """

    time_headway: float = 1.6
    standstill_gap: float = 2.0
    acceleration: float = 1.5
    comfortable_braking: float = 1.67
    hardest_braking: float = 8.0

    def response(self, speed: Tensor, wanted: Tensor, gap: Tensor, closing: Tensor) -> Tensor:
        """Return accelerations (...) in m/s2.

        Args:
            speed: (...) m/s.
            wanted: (...) m/s on a free road.
            gap: (..., N) metres to N things ahead, infinite where there is nothing; the one that demands most counts.
            closing: (..., N) m/s, own speed less theirs.
        """
        free = self.acceleration * (1 - (speed / wanted.clamp(min=0.1)) ** 4)
        free = free.clamp(min=-self.comfortable_braking)
        braking_term = speed[..., None] * closing / (2 * math.sqrt(self.acceleration * self.comfortable_braking))
        desired_gap = self.standstill_gap + (speed[..., None] * self.time_headway + braking_term).clamp(min=0)
        tightest = (desired_gap / gap.clamp(min=0.1)).amax(-1) if gap.shape[-1] else torch.zeros_like(speed)
        return (free - self.acceleration * tightest.square()).clamp(min=-self.hardest_braking)
