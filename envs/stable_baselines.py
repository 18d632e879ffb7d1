"""The vector environment as Stable-Baselines3 wants it: a `VecEnv` that steps all scenes as one batch.

    model = PPO("MultiInputPolicy", VecMonitor(DriveVecEnv(DriveVectorEnv(8))))

Stable-Baselines3 has a convention of its own, older than Gymnasium's: `done` for both kinds of end, a list of infos, and in the
info of an episode that ends `terminal_observation` and `TimeLimit.truncated`, by which its algorithms tell "out of time" from
"over". All of it is read from `final_obs` and `final_info`; the answers are, bit for bit, those of its `DummyVecEnv` around
single environments. A single environment needs no adapter: `PPO("MultiInputPolicy", gymnasium.make("worldloop/Drive-v0"))`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from .single import row_info
from .vector import DriveVectorEnv, Info, Observation

try:
    from stable_baselines3.common.vec_env import VecEnv
except ImportError as error:
    raise ImportError(f'stable_baselines3 cannot be used ({error}): pip install "worldloop[sb3]"') from error

Indices = None | int | Sequence[int]


class DriveVecEnv(VecEnv):
    """A `DriveVectorEnv` behind the interface of Stable-Baselines3.

    Attributes:
        envs: the vector environment.
    """

    def __init__(self, envs: DriveVectorEnv) -> None:
        """Take a vector environment over; it is closed with this one.

        Raises:
            ValueError: it is no `DriveVectorEnv`, or its episodes are not followed by new ones in the same step.
        """
        if not isinstance(envs, DriveVectorEnv):
            raise ValueError(f"envs: found {type(envs).__name__}, wanted a DriveVectorEnv; a single environment needs no adapter")
        if envs.autoreset_mode != AutoresetMode.SAME_STEP:
            raise ValueError(f"envs: found autoreset_mode={envs.autoreset_mode}, wanted AutoresetMode.SAME_STEP, the default")
        self.envs = envs
        self._actions: Any = None
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)

    def reset(self) -> Observation:
        """Begin new episodes, with what `seed` and `set_options` have set, and put their infos into `reset_infos`."""
        names = sorted({name for options in self._options for name in options})
        options = {name: [one.get(name) for one in self._options] for name in names}
        seen, infos = self.envs.reset(seed=self._seeds, options=options)
        self.reset_infos = [row_info(infos, row) for row in range(self.num_envs)]
        self._reset_seeds()
        self._reset_options()
        return seen

    def step_async(self, actions: np.ndarray) -> None:
        """Take the actions (num_envs, ...) of the step that `step_wait` drives."""
        self._actions = actions

    def step_wait(self) -> tuple[Observation, np.ndarray, np.ndarray, list[Info]]:
        """Drive 0.1 s; where an episode ends, what is seen and `reset_infos` are the next one's, all else its own.

        Raises:
            ValueError: an action is NaN, infinite or out of range.
        """
        seen, reward, terminated, truncated, infos = self.envs.step(self._actions)
        over, last, final = terminated | truncated, infos.pop("final_obs", None), infos.pop("final_info", None)
        rows = [row_info(infos, row) for row in range(self.num_envs)]
        for row in np.flatnonzero(over).tolist():
            self.reset_infos[row], rows[row] = rows[row], row_info(final, row)
            rows[row]["terminal_observation"] = last[row]
        for row, info in enumerate(rows):
            info["TimeLimit.truncated"] = bool(truncated[row] and not terminated[row])
        return seen, reward.astype(np.float32), over, rows

    def close(self) -> None:
        """Close the vector environment."""
        self.envs.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """Return a picture of every scene; `render_mode` has to be `"rgb_array"`."""
        return self.envs.render() or [None] * self.num_envs

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        """Return an attribute of each sub-environment as `DriveEnv` has it; what none has of its own is that of the batch."""
        rows = list(self._get_indices(indices))
        if attr_name == "state":
            return [self.envs.state.take([row]) for row in rows]
        if attr_name in ("np_random", "np_random_seed"):
            return [getattr(self.envs, attr_name)[row] for row in rows]
        single = f"single_{attr_name}" if attr_name in ("observation_space", "action_space") else attr_name
        return [getattr(self.envs, single)] * len(rows)

    def set_attr(self, attr_name: str, value: Any, indices: Indices = None) -> None:
        """Set an attribute of the vector environment, such as `horizon`.

        Raises:
            ValueError: only some sub-environments are meant.
        """
        if set(self._get_indices(indices)) != set(range(self.num_envs)):
            raise ValueError(f"set_attr({attr_name!r}): found indices={indices!r}, wanted None: one batch has one {attr_name}")
        setattr(self.envs, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Indices = None, **method_kwargs: Any) -> list[Any]:
        """Call a method of the vector environment once, for the whole batch.

        Returns:
            each sub-environment's part where the answer is a sequence with one part for each, otherwise the answer for each.

        Raises:
            ValueError: it would begin or drive episodes behind the back of this class.
        """
        if method_name in ("reset", "step"):
            raise ValueError(f"env_method({method_name!r}): call {method_name}() of the VecEnv itself (see seed and set_options)")
        answer = getattr(self.envs, method_name)(*method_args, **method_kwargs)
        shared = not isinstance(answer, tuple | list | np.ndarray) or len(answer) != self.num_envs
        return [answer if shared else answer[row] for row in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: Any, indices: Indices = None) -> list[bool]:
        """Return False for each: no wrapper is around any of them; `VecMonitor` takes the place of `Monitor`."""
        return [False for _ in self._get_indices(indices)]
