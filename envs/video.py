"""`worldloop/Camera-v0`: a world that is nothing but a learned camera, moved by actions alone.

There is no explicit state here: a real recording said what a camera sees after which action, and a network has learned to go on.
It is what a data set offers that has frames and actions and no labels. See `Drive-v0` for worlds that know where everything is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import torch
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from ..worldmodel.data.clips import Clip, ClipDataset
from ..worldmodel.shipped import SHIPPED_VIDEO
from .vector import reset_mask, seeds_of

if TYPE_CHECKING:
    from ..worldmodel.camera import CameraModel, Footage

Info = dict[str, Any]


class CameraVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """`num_envs` copies of `worldloop/Camera-v0`, painted as one batch; see `CameraEnv` for what they do.

    An episode that ends is followed by the next one in the same step (`AutoresetMode.SAME_STEP`); what it ended with stands in
    `infos["final_obs"]` and `infos["final_info"]`. `reset(seed=s)` gives sub-environment i the seed s + i.

    Attributes:
        camera: the `CameraModel`.
        clips: the recordings that episodes begin with, or None.
        footage: the memory of all cameras; it is replaced at every step and never changed.
    """

    metadata = {"render_modes": ["rgb_array"], "autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(
        self,
        num_envs: int = 1,
        camera: str | Path | CameraModel | None = None,
        clips: str | Path | ClipDataset | None = None,
        *,
        horizon: int = 200,
        steps: int = 2,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode = AutoresetMode.SAME_STEP,
    ) -> None:
        """Open camera and clips; see `CameraEnv` for the arguments.

        Raises:
            ValueError: an argument is impossible, or the clips do not fit the camera.
        """
        from ..worldmodel.camera import CameraModel, load_camera  # diffusers takes seconds to import
        from ..worldmodel.camera_windows import require_fit

        if min(num_envs, horizon, steps) < 1:
            raise ValueError(f"num_envs={num_envs}, horizon={horizon}, steps={steps}: wanted at least 1 of each")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode={render_mode!r} is unknown: choose rgb_array, or None")
        if autoreset_mode not in (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED):
            raise ValueError(f"autoreset_mode={autoreset_mode}: wanted SAME_STEP or DISABLED")
        self.num_envs, self.horizon, self.steps, self.render_mode = num_envs, horizon, steps, render_mode
        self.camera = camera if isinstance(camera, CameraModel) else load_camera(camera or SHIPPED_VIDEO)
        config: Any = self.camera.config
        self.clips = clips if clips is None or isinstance(clips, ClipDataset) else ClipDataset.named(str(clips))
        if self.clips is not None:
            require_fit(self.camera, [self.clips], config.past)
        self.autoreset_mode = autoreset_mode
        self.metadata = {**self.metadata, "autoreset_mode": autoreset_mode, "render_fps": round(config.rate)}
        low, high = np.array(config.action_low, np.float32), np.array(config.action_high, np.float32)
        self._low, self._high = low, high
        self.single_action_space = gymnasium.spaces.Box(low, high, dtype=np.float32)
        self.single_observation_space = gymnasium.spaces.Box(0, 255, (config.height, config.width, 3), np.uint8)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.generators = [seeding.np_random()[0] for _ in range(num_envs)]
        self.footage: Footage | None = None
        self._frame = torch.zeros(num_envs, config.height, config.width, 3, dtype=torch.uint8)
        self._key, self._step = torch.zeros(num_envs, dtype=torch.int64), torch.zeros(num_envs, dtype=torch.int64)
        self._names = [""] * num_envs
        self._over = np.ones(num_envs, dtype=np.bool_)

    def reset(self, *, seed: int | Sequence[int | None] | None = None, options: Info | None = None) -> tuple[np.ndarray, Info]:
        """Begin new episodes.

        Args:
            seed: one number, to which each sub-environment's place is added, or one each.
            options: `{"clip": id}` or `{"clip": (id, frame)}` for all: where in the recordings to begin; `{"reset_mask": ...}`.

        Raises:
            ValueError: an unknown option, seeds or mask of another length, a clip where there are none.
        """
        options = dict(options or {})
        mask, clip = reset_mask(options.pop("reset_mask", None), self.num_envs), options.pop("clip", None)
        if options:
            raise ValueError(f"reset options {sorted(options)} are unknown: wanted clip, reset_mask")
        for row, given in enumerate(seeds_of(seed, self.num_envs)):
            if given is not None and mask[row]:
                self.generators[row] = seeding.np_random(given)[0]
        self._begin(np.flatnonzero(mask).tolist(), clip)
        return self._frame.numpy().copy(), self._info(mask)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, Info]:
        """Act; see what the camera then shows.

        Raises:
            ValueError: an action is out of range.
            ResetNeeded: no episode has begun, or one is over.
        """
        if self.footage is None or self._over.any():
            raise gymnasium.error.ResetNeeded("an episode is over or none has begun: call reset()")
        actions = np.asarray(actions, np.float32)
        if actions.shape != self.action_space.shape or not ((actions >= self._low) & (actions <= self._high)).all():
            raise ValueError(f"actions: found {actions.tolist()}, wanted {self.num_envs} within {self._low} to {self._high}")
        self._step = self._step + 1
        self._frame, self.footage = self.footage.paint(
            self.camera, self._key, self._step, torch.from_numpy(actions), steps=self.steps
        )
        nothing = np.zeros(self.num_envs)
        truncated = (self._step >= self.horizon).numpy()
        infos = self._info(np.ones(self.num_envs, dtype=np.bool_))
        self._over = truncated.copy()
        if truncated.any() and self.autoreset_mode == AutoresetMode.SAME_STEP:
            last, ended = np.full(self.num_envs, None, dtype=object), self._info(truncated)
            for row in np.flatnonzero(truncated).tolist():
                last[row] = self._frame[row].numpy().copy()
            self._begin(np.flatnonzero(truncated).tolist(), None)
            infos = self._info(np.ones(self.num_envs, dtype=np.bool_))
            infos |= {"final_obs": last, "_final_obs": truncated, "final_info": ended, "_final_info": truncated}
        return self._frame.numpy().copy(), nothing, np.zeros(self.num_envs, dtype=np.bool_), truncated, infos

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Return the frames (H, W, 3) uint8 of all cameras."""
        return tuple(self._frame.numpy().copy()) if self.render_mode == "rgb_array" else None

    def _begin(self, rows: list[int], clip: Any) -> None:
        """Start episodes in `rows`: from a recording's frames, or from a frame that the camera imagines."""
        from ..worldmodel.camera import FIRST_STEPS, Footage, to_bytes

        limits = np.iinfo(np.int64)
        key = torch.tensor([int(self.generators[row].integers(limits.min, limits.max)) for row in rows])
        begun, zero = Footage.blank(self.camera, len(rows)), torch.zeros(len(rows), dtype=torch.int64)
        names = ["imagined"] * len(rows)
        if self.clips is None:
            if clip is not None:
                raise ValueError(f"options['clip']={clip!r}: this environment has no recordings: make it with clips=FOLDER")
            frame, begun = begun.paint(self.camera, key, zero, steps=FIRST_STEPS)
        else:
            starts = [self._recorded(clip, row) for row in rows]
            names = [start.id for start in starts]
            for place in range(len(starts[0])):
                frame = torch.stack([start.frames[place] for start in starts])
                done = torch.stack([start.action[max(place - 1, 0)] for start in starts])
                with torch.inference_mode():
                    begun = begun.add(to_bytes(self.camera.encode(frame), self.camera).clone(), done)
        self._over[rows] = False
        if self.footage is None or len(rows) == self.num_envs:
            self.footage = begun if len(rows) == self.num_envs else Footage.blank(self.camera, self.num_envs).put(rows, begun)
        else:
            self.footage = self.footage.put(rows, begun)
        self._frame, self._key, self._step = self._frame.clone(), self._key.clone(), self._step.clone()
        self._frame[rows], self._key[rows], self._step[rows] = frame, key, 0
        for row, name in zip(rows, names, strict=True):
            self._names[row] = name

    def _recorded(self, clip: Any, row: int) -> Clip:
        """Return the K frames of a recording that an episode begins with: those asked for, or random ones."""
        assert self.clips is not None
        past = int(self.camera.config["past"])
        if clip is None:
            usable = [number for number, length in enumerate(self.clips.lengths) if length >= past]
            if not usable:
                raise ValueError(f"{self.clips.path}: no clip has {past} frames, the fewest to begin with")
            number = usable[int(self.generators[row].integers(len(usable)))]
            start = int(self.generators[row].integers(self.clips.lengths[number] - past + 1))
        else:
            name, start = (clip, 0) if isinstance(clip, str) else clip
            number = self.clips.index_of(name)
        return self.clips.window(number, start, past)

    def _info(self, mask: np.ndarray) -> Info:
        names = np.array(self._names, dtype=object)
        return {"steps": self._step.numpy().copy(), "_steps": mask, "clip": names, "_clip": mask}


class CameraEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """See what a camera would show after each action, in a world learned from video alone.

    ## Description
    The shipped camera was trained on the frames of a radio-controlled car that drives round a track of tape on a floor, with its
    steering and throttle. An episode begins with frames of a recording (`clips`), or with one that the camera imagines; from then on
    every frame is painted.

    ## Action space
    `Box(low, high, (D,), float32)` in the units of the recording, within what it has seen (`env.unwrapped.vector.camera.config` names
    the actions); of the shipped camera steering (-1 is full left, 1 full right, as DonkeyCar has it) and throttle.

    ## Observation space
    `Box(0, 255, (H, W, 3), uint8)`, red, green, blue.

    ## Reward
    Always 0: nothing in a recording says what is good. Wrap the environment with a reward of your own.

    ## Episode end
    `truncated` after `horizon` steps; never `terminated`.

    ## Info
    `steps` since the reset; `clip`, the recording that the episode began with, or `imagined`.

    ## Arguments
    | argument | default | meaning |
    |---|---|---|
    | `camera` | `None` | the shipped camera, a folder or Hub id of a trained one, or a `CameraModel` |
    | `clips` | `None` | folder of clips (`worldloop data import donkeycar`, `frames`) to begin with; None: begin with an imagined frame |
    | `horizon` | `200` | steps |
    | `steps` | `2` | Euler steps for each frame: more are slower |
    | `render_mode` | `None` | `"rgb_array"`: `render()` returns the frame |
    """  # noqa: E501 (rows of tables)

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(
        self,
        camera: str | Path | CameraModel | None = None,
        clips: str | Path | ClipDataset | None = None,
        *,
        horizon: int = 200,
        steps: int = 2,
        render_mode: str | None = None,
    ) -> None:
        """Open camera and clips.

        Raises:
            ValueError: an argument is impossible, or the clips do not fit the camera.
        """
        self.vector = CameraVectorEnv(
            1, camera, clips, horizon=horizon, steps=steps, render_mode=render_mode, autoreset_mode=AutoresetMode.DISABLED
        )
        self.render_mode, self.metadata = render_mode, {**self.metadata, "render_fps": self.vector.metadata["render_fps"]}
        self.observation_space, self.action_space = self.vector.single_observation_space, self.vector.single_action_space

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[np.ndarray, Info]:
        """Begin an episode; `options={"clip": id}` or `(id, frame)` says with which frames."""
        super().reset(seed=seed)
        self.vector.generators[0] = self.np_random
        seen, infos = self.vector.reset(options=options)
        return seen[0], {"steps": 0, "clip": infos["clip"][0]}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, Info]:
        """Act; see `CameraVectorEnv.step`."""
        seen, reward, terminated, truncated, infos = self.vector.step(np.asarray(action)[None])
        info = {"steps": int(infos["steps"][0]), "clip": infos["clip"][0]}
        return seen[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), info

    def render(self) -> np.ndarray | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the frame (H, W, 3) uint8."""
        frames = self.vector.render()
        return None if frames is None else frames[0]
