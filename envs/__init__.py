"""The loop as reinforcement learning sees it: spaces, measures, reward, and `worldloop/Drive-v0`.

import gymnasium
import worldloop.envs

env = gymnasium.make("worldloop/Drive-v0")
envs = gymnasium.make_vec("worldloop/Drive-v0", num_envs=8)
"""

import gymnasium

from .action import ActionSpace
from .observation import ObservationSize
from .reward import PRESETS
from .single import DriveEnv
from .vector import WORLDS, DriveVectorEnv, open_world

__all__ = ["PRESETS", "WORLDS", "ActionSpace", "DriveEnv", "DriveVectorEnv", "ObservationSize", "open_world"]

gymnasium.register(
    id="worldloop/Drive-v0",
    entry_point="worldloop.envs.single:DriveEnv",
    vector_entry_point="worldloop.envs.vector:DriveVectorEnv",
)

gymnasium.register(
    id="worldloop/Camera-v0",
    entry_point="worldloop.envs.video:CameraEnv",
    vector_entry_point="worldloop.envs.video:CameraVectorEnv",
)
