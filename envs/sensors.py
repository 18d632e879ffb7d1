"""Depth, classes, instances and a LiDAR of the 3-D renderer as observations: a Gymnasium wrapper around `DriveEnv`.

Batches have the same from `SceneRenderer.draw` and `sweep` with the `state` of `DriveVectorEnv`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from ..worldmodel.rig import RIGS, Rig
from .single import DriveEnv

if TYPE_CHECKING:
    from ..renderers.lidar import Lidar

SHOWN = ("colour", "depth", "semantic", "instance")
"""Fields of `scene3d.Frames` that can be observed."""

FARTHEST = 1000.0
"""Metres that the sky is said to be away: a space with infinity in it cannot be sampled."""


class SensorObservation(gym.ObservationWrapper[dict[str, Any], Any, Any], gym.utils.RecordConstructorArgs):
    """Adds what a car's sensors would measure to the observations of a `DriveEnv`.

    An observation becomes a dictionary: `observation` is what it was; of a rig of C cameras of H x W pixels

    | key | shape | meaning |
    |---|---|---|
    | `colour` | (C, H, W, 3) uint8 | red, green, blue |
    | `depth` | (C, H, W) float32 | metres along the optical axis, `FARTHEST` in the sky |
    | `semantic` | (C, H, W) uint8 | `worldloop.renderers.meshes.Semantic` |
    | `instance` | (C, H, W) int16 | the road user's place in the scene plus one, 0 where there is none |

    and `lidar` is (steps, beams) float32: metres of each ray of `Lidar.directions`, 0 where nothing came back.

    Args:
        env: a `DriveEnv`, bare or wrapped.
        show: keys of the table.
        rig: the cameras, by a name of `worldmodel.rig.RIGS` or as a `Rig`.
        lidar: a LiDAR, if there is one.
        appearance: time of day or weather of `colour`.

    Raises:
        ValueError: an unknown key or rig, the environment is no `DriveEnv`, or nothing is asked for.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        show: tuple[str, ...] = ("depth", "semantic"),
        rig: str | Rig = "front",
        lidar: Lidar | None = None,
        appearance: str = "day",
    ) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, show=show, rig=rig, lidar=lidar, appearance=appearance)
        gym.ObservationWrapper.__init__(self, env)
        if not isinstance(env.unwrapped, DriveEnv):
            raise ValueError(f"env: found {type(env.unwrapped).__name__}, wanted a DriveEnv, which has a state to look at")
        if isinstance(rig, str) and rig not in RIGS:
            raise ValueError(f"rig={rig!r} is unknown: choose one of {', '.join(RIGS)}, or give a Rig")
        if unknown := [name for name in show if name not in SHOWN]:
            raise ValueError(f"show: {unknown[0]!r} is unknown: choose of {', '.join(SHOWN)}")
        if not show and lidar is None:
            raise ValueError(f"nothing is asked for: show some of {', '.join(SHOWN)}, or give a lidar")
        self.show, self.lidar = tuple(show), lidar
        modules = (importlib.import_module(f"..renderers.{name}", __package__) for name in ("scene3d", "lidar"))
        scene3d, self._lidars = modules  # are loaded, and Open3D with them, where somebody has sensors
        self.renderer = scene3d.SceneRenderer(RIGS[rig] if isinstance(rig, str) else rig, appearance)
        shape = (len(self.renderer.rig), self.renderer.rig.height, self.renderer.rig.width)
        found: dict[str, spaces.Space[Any]] = {
            "colour": spaces.Box(0, 255, (*shape, 3), np.uint8),
            "depth": spaces.Box(0.0, FARTHEST, shape, np.float32),
            "semantic": spaces.Box(0, 255, shape, np.uint8),
            "instance": spaces.Box(0, np.iinfo(np.int16).max, shape, np.int16),
        }
        known: dict[str, spaces.Space[Any]] = {"observation": env.observation_space} | {name: found[name] for name in self.show}
        if lidar is not None:
            known["lidar"] = spaces.Box(0.0, lidar.reach, (lidar.steps, lidar.beams), np.float32)
        self.observation_space = spaces.Dict(known)

    def observation(self, observation: Any) -> dict[str, Any]:
        """Return `observation` with what the sensors measure of the environment's state."""
        state = self.env.unwrapped.state  # pyright: ignore[reportAttributeAccessIssue]
        measured = {"observation": observation}
        if self.show:
            frames = self.renderer.draw(state)
            measured |= {name: getattr(frames, name)[0].numpy() for name in self.show}
        if "depth" in measured:
            measured["depth"] = measured["depth"].clip(max=FARTHEST)
        if self.lidar is not None:
            (turn,) = self._lidars.sweep(self.renderer, state, self.lidar)
            ranges = np.zeros(self.lidar.steps * self.lidar.beams, np.float32)
            ranges[turn.ray.numpy()] = turn.range.numpy()
            measured["lidar"] = ranges.reshape(self.lidar.steps, self.lidar.beams)
        return measured
