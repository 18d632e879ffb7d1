"""Wheel: what keys and gamepads mean to a car.

A key is down or up; a steering wheel is not. So the wheel turns towards where a key points and comes back faster, pedals are
pressed down gradually, and a full turn of the wheel is what the tyres and the passengers bear at the present speed. All is a pure
function from wheel to wheel, which a script of keys drives in tests as hands do.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from ..renderers.window import Pad
from ..worldmodel.dynamics import KinematicBicycle
from ..worldmodel.scene import TIME_STEP

CAR = KinematicBicycle()

TURNING, RETURNING = 2.2, 4.0
"""Shares of a full turn a second, away from the middle and back to it."""

LATERAL = 4.5
"""m/s2 to the side at a full turn: half of what the tyres hold, twice what is comfortable."""

ACCELERATION, BRAKING, COASTING = 3.0, -5.0, -0.3
"""m/s2 of keys that are held down, and of none."""

PRESSING, HITTING = 8.0, 30.0
"""m/s3: how fast the accelerator is pressed down, and how fast the brake is, or a pedal let go."""


@dataclass(frozen=True)
class Wheel:
    """Steering -1 (right) to 1 (left) of a full turn, and acceleration in m/s2 by the pedals."""

    steering: float = 0.0
    acceleration: float = 0.0

    def turn(self, held: Collection[str], pad: Pad | None = None) -> Wheel:
        """Return the wheel 0.1 s later, with commands `held` (of `renderers.window.COMMANDS`) or a gamepad in use."""
        wanted = float(("left" in held) - ("right" in held))
        pedal = BRAKING if "brake" in held else ACCELERATION if "accelerate" in held else COASTING
        if pad is not None and not held:
            pedal = pad.brake * CAR.min_acceleration if pad.brake > 0 else pad.accelerator * CAR.max_acceleration or COASTING
            return Wheel(pad.steering, pedal)
        back = RETURNING if wanted * self.steering <= 0 else TURNING
        steering = _towards(self.steering, wanted, (back if self.steering else TURNING) * TIME_STEP)
        return Wheel(steering, _towards(self.acceleration, pedal, (PRESSING if pedal > 0 else HITTING) * TIME_STEP))

    def action(self, speed: float) -> tuple[float, float]:
        """Return acceleration in m/s2 and curvature in 1/m at a speed in m/s."""
        return self.acceleration, self.steering * full_turn(speed)


def full_turn(speed: float) -> float:
    """Return the curvature in 1/m of a full turn of the wheel at a speed in m/s."""
    return min(CAR.max_curvature, LATERAL / max(speed, 1.0) ** 2)


def _towards(value: float, wanted: float, most: float) -> float:
    return value + min(max(wanted - value, -most), most)
