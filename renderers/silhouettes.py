"""Agents as shapes seen from above: every outline of every agent of one scene, in pixels, computed at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..worldmodel.scene import TIME_STEP, AgentKind
from ..worldmodel.world import State
from . import palette
from .palette import Colour

# A vehicle from above. Each corner: share of half its length, share of half its width to add lengthwise, share of half its width.
BODY = ((1, 0, 0.6), (1, -0.5, 1), (-1, 0.25, 1), (-1, 0, 0.8), (-1, 0, -0.8), (-1, 0.25, -1), (1, -0.5, -1), (1, 0, -0.6))
CAR_WINDSCREEN = ((1, -1.1, 0.84), (1, -1.85, 0.66), (1, -1.85, -0.66), (1, -1.1, -0.84))
CAR_REAR_WINDOW = ((-1, 0.95, 0.64), (-1, 0.5, 0.76), (-1, 0.5, -0.76), (-1, 0.95, -0.64))
LONG_WINDSCREEN = ((1, -0.15, 0.7), (1, -0.7, 0.84), (1, -0.7, -0.84), (1, -0.15, -0.7))
LONG_REAR_WINDOW = ((1, -1.4, 1), (1, -1.6, 1), (1, -1.6, -1), (1, -1.4, -1))
"""Of a truck or bus: the gap behind the cab."""

LEFT_LIGHT = ((-1, 0, 0.9), (-1, 0.35, 0.95), (-1, 0.35, 0.45), (-1, 0, 0.4))
RIGHT_LIGHT = ((-1, 0, -0.9), (-1, 0.35, -0.95), (-1, 0.35, -0.45), (-1, 0, -0.4))
BOX = ((1, 0, 1), (-1, 0, 1), (-1, 0, -1), (1, 0, -1))
CYCLE = ((1, 0, 0.3), (0.6, 0, 0.6), (-0.6, 0, 0.6), (-1, 0, 0.3), (-1, 0, -0.3), (-0.6, 0, -0.6), (0.6, 0, -0.6), (1, 0, -0.3))

LONG = 3.2
"""Length over width from which a vehicle is drawn as a truck or bus."""

HALO = 0.55
"""Metres that the ego's white outline adds to its length and width."""

CYCLE_MORE = 0.2
"""Metres that cycles are drawn longer and wider, to be seen at all."""

BRAKING = 1.0
"""Deceleration (m/s^2) from which brake lights shine."""

BRAKING_WINDOW = 5
"""Steps of trail whose mean speed is the speed "just before": labels jitter, half a second does not."""


@dataclass(frozen=True)
class Camera:
    """From metres to pixels: what stands at `centre` (2,) comes to the middle, what lies along `up` (radians) points up."""

    centre: np.ndarray
    up: float
    scale: float
    size: tuple[int, int]

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """Return pixels (..., 2), x to the right and y down, of points (..., 2) in metres."""
        sine, cosine = math.sin(self.up), math.cos(self.up)
        turn = self.scale * np.array([[sine, -cosine], [-cosine, -sine]])
        return (points - self.centre) @ turn + [0.5 * self.size[0], 0.5 * self.size[1]]

    def reach(self) -> np.ndarray:
        """Half the sides (2,) in metres of the upright box around what is in sight."""
        sine, cosine = abs(math.sin(self.up)), abs(math.cos(self.up))
        width, height = (0.5 * side / self.scale for side in self.size)
        return np.array([sine * width + cosine * height, cosine * width + sine * height])


class Silhouettes:
    """The agents of one scene as a camera sees them.

    Attributes:
        ego: the ego's index.
        kind: (A,) `AgentKind`.
        drawn: (A,) bool, valid and within sight.
        braking: (A,) bool, see `see_braking`.
        width: (A,) metres.
        radius: (A,) metres of the disc as which a pedestrian is drawn.
        centre: (A, 2) pixels.
        nose: (A, 2) pixels, 0.9 m in front of the centre.
        outline: polygons (A, corners, 2) in pixels by the name of the part.
    """

    def __init__(self, state: State, row: int, camera: Camera) -> None:
        scene = state.scene
        position, heading = state.position[row, :, :2].double().numpy(), state.heading[row].double().numpy()
        size = scene.size[row, :, :2].double().numpy()
        self.ego, self.kind = int(scene.ego[row]), scene.kind[row].numpy()
        self.valid, self.width = state.valid[row].numpy(), size[:, 1]
        margin = camera.reach() + 0.5 * size.max(axis=1, keepdims=True)
        self.drawn = self.valid & (np.abs(position - camera.centre) < margin).all(axis=1)
        self.braking = np.zeros(len(self.kind), dtype=bool)
        self.radius = np.maximum(0.42, 0.5 * size.max(axis=1))
        self._speed = np.hypot(*state.velocity[row].double().numpy().T)
        ahead = np.stack((np.cos(heading), np.sin(heading)), axis=-1)
        self.centre, self.nose = camera.pixels(position), camera.pixels(position + 0.9 * ahead)

        def outline(part: tuple, more: float = 0.0) -> np.ndarray:
            corner, half = np.array(part), 0.5 * (size + more)[:, None]
            along = corner[:, 0] * half[..., 0] + corner[:, 1] * half[..., 1]
            left = corner[:, 2] * half[..., 1]
            turned = along[..., None] * ahead[:, None] + left[..., None] * np.stack((-ahead[:, 1], ahead[:, 0]), axis=-1)[:, None]
            return camera.pixels(position[:, None] + turned)

        long = (size[:, 0] > LONG * size[:, 1])[:, None, None]
        self.outline = {
            "box": outline(BOX),
            "cycle": outline(CYCLE, CYCLE_MORE),
            "cycle edge": outline(CYCLE, CYCLE_MORE + 0.24),
            "body": outline(BODY),
            "windscreen": np.where(long, outline(LONG_WINDSCREEN), outline(CAR_WINDSCREEN)),
            "rear window": np.where(long, outline(LONG_REAR_WINDOW), outline(CAR_REAR_WINDOW)),
            "left light": outline(LEFT_LIGHT),
            "right light": outline(RIGHT_LIGHT),
            "halo": outline(BODY, HALO),
        }

    def colour(self, agent: int) -> Colour:
        """The colour of an agent."""
        return palette.EGO if agent == self.ego else palette.AGENT[AgentKind(int(self.kind[agent]))]

    def see_braking(self, past: np.ndarray, known: np.ndarray) -> None:
        """Light the brake lights of vehicles that are slower now than their trail (A, n, 2), known (A, n), shows them before."""
        if past.shape[1] <= BRAKING_WINDOW:
            return
        recent = past[:, -1 - BRAKING_WINDOW], past[:, -1]
        before = np.hypot(*(recent[1] - recent[0]).T) / (BRAKING_WINDOW * TIME_STEP)
        deceleration = (before - self._speed) / (0.5 * BRAKING_WINDOW * TIME_STEP)
        complete = known[:, -1 - BRAKING_WINDOW :].all(axis=1)
        self.braking = complete & (deceleration > BRAKING) & (self.kind == AgentKind.VEHICLE)
