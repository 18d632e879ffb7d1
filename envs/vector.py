"""The vector environment: many scenes driven at once, the only implementation of the loop.

    action -> dynamics: ego's motion -> world.step -> measures -> reward, end of episode -> observation

Everything that an episode carries stands in one `Episode` batch. A sub-environment differs from the others only by its rows there
and by its own random generator, which picks its scenes and their keys; so it does exactly what it would do alone.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import torch
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from ..worldmodel.dynamics import KinematicBicycle
from ..worldmodel.raster import RoadPieces, road_pieces
from ..worldmodel.scene import HISTORY_STEPS, Scene, TensorBatch, stack
from ..worldmodel.world import ConstantVelocityWorld, LearnedWorld, ReplayWorld, State, World
from .action import ActionSpace
from .ground import Ground, ground
from .measures import EgoPast, ego_measures, next_past, start_past
from .observation import ObservationSize, observation_space, observe, to_numpy
from .reward import reward_terms, reward_weights
from .scenarios import Scenarios, Source

if TYPE_CHECKING:
    from ..worldmodel.rig import Rig
    from ..worldmodel.sight import SceneCamera, Sight

TERMINATIONS = ("collision", "at_fault_collision", "off_road", "red_light")
"""Measures that may end an episode."""

TRAIL_STEPS = 20
"""Past positions that a picture shows."""

Observation = dict[str, np.ndarray] | np.ndarray
Info = dict[str, Any]


def _lazily(module: str, name: str) -> Callable[[], World]:
    """Return what makes the world `name` of a module that is only imported then."""
    return lambda: getattr(importlib.import_module(module, __package__), name)()


def _learned_open_world() -> World:
    from ..worldmodel.borders import OpenBorders  # needed for long rollouts alone

    return OpenBorders(LearnedWorld.from_pretrained())


WORLDS: dict[str, Callable[[], World]] = {
    "learned": LearnedWorld.from_pretrained,
    "learned_open": _learned_open_world,
    "replay": ReplayWorld,
    "constant_velocity": ConstantVelocityWorld,
    "idm": _lazily("..worldmodel.idm", "IdmWorld"),
    "sumo": _lazily("..worldmodel.sumo", "SumoWorld"),
}
"""Worlds by the name that environments and the command line take."""


@dataclass(frozen=True)
class Episode(TensorBatch):
    """All that B running episodes carry.

    Attributes:
        state: the world's.
        past: what measures remember of the ego.
        on: what measures and observations need of the maps.
        pieces: the maps, evenly sampled, for observations.
        action: (B, 2) m/s2 and 1/m of the last step.
        horizon: (B,) int64, steps until the episode is truncated.
        reward: (B,) float64, the sum so far.
        trail: (B, A, n, 2) past positions, the present last, trail_valid (B, A, n); n is 0 where nothing is rendered.
        sight: what the cameras show, where there is one.
    """

    state: State
    past: EgoPast
    on: Ground
    pieces: RoadPieces
    action: Tensor
    horizon: Tensor
    reward: Tensor
    trail: Tensor
    trail_valid: Tensor
    sight: Sight | None = None

    def widen(self, other: Episode) -> Episode:
        """Return the same episodes with room for at least as many map pieces and segments as `other` has."""
        return replace(self, on=self.on.widen(other.on), pieces=self.pieces.widen(other.pieces.valid.shape[1]))

    def put_episodes(self, index: Sequence[int], other: Episode) -> Episode:
        """Return a copy in which rows `index` (n,) are those of `other`, both brought to the same widths."""
        return self.widen(other).put(index, other.widen(self))


class DriveVectorEnv(VectorEnv[Observation, Any, np.ndarray]):
    """`num_envs` copies of `worldloop/Drive-v0`, stepped as one batch; see `DriveEnv` for what they do.

    Differences to `DriveEnv`: arrays have a leading dimension `num_envs`; infos follow Gymnasium's convention (each entry `name`
    has a mask `_name`); an episode that ends is followed by the next one in the same step, as `AutoresetMode.SAME_STEP` says, and
    what it ended with stands in `infos["final_obs"]` and `infos["final_info"]`.

    `reset(seed=s)` gives sub-environment i the seed s + i; it then does, bit for bit, what `DriveEnv` does after
    `reset(seed=s + i)`. Options of `reset`: `"scene"` (an id, a number or a `Scene` for all, or a sequence with one for each),
    `"reset_mask"` ((num_envs,) bool, which sub-environments are reset).

    Attributes:
        state: the `State` of all scenes.
        scenarios: the scenes to choose from, with `ids`.
        actions: the `ActionSpace`; its `decode` and `encode` convert between this environment's actions and physical ones.
        world: what moves the others.
        dynamics: the car.
        camera: what shows the egos' cameras, or None.
    """

    metadata = {"render_modes": ["human", "rgb_array", "camera"], "render_fps": 10, "autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(
        self,
        num_envs: int = 1,
        scenes: Source = None,
        world: str | World = "learned",
        *,
        observation: str = "state",
        action: str = "continuous",
        horizon: int | None = 80,
        terminate_on: Sequence[str] = ("collision", "off_road"),
        reward: str | Mapping[str, float] = "progress",
        dynamics: KinematicBicycle = KinematicBicycle(),  # noqa: B008 (frozen)
        size: ObservationSize = ObservationSize(),  # noqa: B008 (frozen)
        camera: str | SceneCamera | None = None,
        rig: str | Rig | None = None,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode = AutoresetMode.SAME_STEP,
    ) -> None:
        """Open scenes and world; see `DriveEnv` for the arguments.

        Raises:
            ValueError: an argument is unknown or impossible; the message names it and what is wanted.
        """
        self._check_arguments(num_envs, horizon, terminate_on, render_mode, autoreset_mode)
        if not isinstance(size, ObservationSize):
            raise ValueError(f"size={size!r}: wanted ObservationSize(...) of worldloop.envs")
        self.num_envs, self.horizon, self.terminate_on = num_envs, horizon, tuple(terminate_on)
        self.weights, self.dynamics, self.size, self.observation = reward_weights(reward), dynamics, size, observation
        self.render_mode, self.autoreset_mode = render_mode, autoreset_mode
        self.actions = ActionSpace(action, dynamics)
        self.single_action_space, self.action_space = self.actions.space, batch_space(self.actions.space, num_envs)
        self.camera: SceneCamera | None = None
        if rig or camera is not None or "camera" in (observation, render_mode):
            from .cameras import open_camera  # is loaded where a camera is wanted

            self.camera = open_camera(camera, rig)
        modes = [mode for mode in self.metadata["render_modes"] if mode != "camera" or self.camera is not None]
        self.metadata = {**self.metadata, "render_modes": modes, "autoreset_mode": autoreset_mode}
        self.single_observation_space = observation_space(observation, size, None if self.camera is None else self.camera.rig)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.world = open_world(world)
        self.scenarios = Scenarios(scenes)
        drawn = [seeding.np_random() for _ in range(num_envs)]
        self.generators, self._seeds = [generator for generator, _ in drawn], [seed for _, seed in drawn]
        self._episode: Episode | None = None
        self._over = np.zeros(num_envs, dtype=np.bool_)
        self._pictures: Any = None
        self._owns_world = isinstance(world, str)

    @staticmethod
    def _check_arguments(
        num_envs: int, horizon: int | None, terminate_on: Sequence[str], render_mode: str | None, autoreset_mode: AutoresetMode
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs={num_envs}: wanted at least 1")
        if horizon is not None and (isinstance(horizon, bool) or not isinstance(horizon, int | np.integer) or horizon < 1):
            raise ValueError(f"horizon={horizon}: wanted at least 1 step of 0.1 s, or None for as long as the log is")
        unknown = [name for name in terminate_on if name not in TERMINATIONS]
        if isinstance(terminate_on, str) or unknown:
            raise ValueError(f"terminate_on={terminate_on!r}: wanted a list of some of {', '.join(TERMINATIONS)}")
        modes = DriveVectorEnv.metadata["render_modes"]
        if render_mode is not None and render_mode not in modes:
            raise ValueError(f"render_mode={render_mode!r} is unknown: choose one of {', '.join(modes)}, or None")
        if autoreset_mode not in (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED):
            raise ValueError(f"autoreset_mode={autoreset_mode}: wanted SAME_STEP or DISABLED")

    @property
    def state(self) -> State:
        """The state of all scenes; it is replaced at every step and never changed."""
        return self._running().state

    @property
    def past(self) -> EgoPast:
        """What measures remember of all egos."""
        return self._running().past

    @property
    def sight(self) -> Sight | None:
        """What the cameras show of `state`; None without one."""
        return self._running().sight

    @property
    def np_random(self) -> tuple[np.random.Generator, ...]:
        """The generators of the sub-environments."""
        return tuple(self.generators)

    @property
    def np_random_seed(self) -> tuple[int, ...]:
        """The seeds of the sub-environments, drawn at random where `reset` was given none."""
        return tuple(self._seeds)

    def _running(self) -> Episode:
        if self._episode is None:
            raise gymnasium.error.ResetNeeded("no episode has begun: call reset() first")
        return self._episode

    def reset(self, *, seed: int | Sequence[int | None] | None = None, options: Info | None = None) -> tuple[Observation, Info]:
        """Begin new episodes; see the class for `options`.

        Raises:
            ValueError: an unknown option or scene, or the horizon is longer than the world can go.
        """
        options = dict(options or {})
        mask = reset_mask(options.pop("reset_mask", None), self.num_envs)
        scene = options.pop("scene", None)
        if options:
            raise ValueError(f"reset options {sorted(options)} are unknown: wanted scene, reset_mask")
        rows = np.flatnonzero(mask).tolist()
        for row, given in enumerate(seeds_of(seed, self.num_envs)):
            if given is not None and mask[row]:
                self.generators[row], self._seeds[row] = seeding.np_random(given)
        with torch.no_grad():
            scenes = self._choose(scene, rows)
            begun = self._begin(scenes, rows)
            self.scenarios.sizes = {letter: size for letter, size in scenes.sizes().items() if letter != "B"}
            self._episode = begun if len(rows) == self.num_envs else self._running().put_episodes(rows, begun)
            seen = self._observe(self._episode)
        self._over[rows] = False
        if self.render_mode == "human":
            self.render()
        return seen, self._state_info(mask)

    def step(self, actions: Any) -> tuple[Observation, np.ndarray, np.ndarray, np.ndarray, Info]:
        """Drive 0.1 s; episodes that end are followed by new ones (`AutoresetMode.SAME_STEP`) or wait for `reset` (`DISABLED`).

        Args:
            actions: a batch of `action_space`.

        Raises:
            ValueError: an action is NaN, infinite or out of range.
            ResetNeeded: an episode is over, or none has begun.
        """
        episode = self._running()
        if self._over.any():
            over = np.flatnonzero(self._over).tolist()
            raise gymnasium.error.ResetNeeded(f"the episode of sub-environment {over[0]} is over: call reset() before step()")
        with torch.no_grad():
            episode, measures, terms = self._advance(episode, self.actions.decode(actions))
            self._episode = episode
            seen = self._observe(episode)
        reward = torch.stack(list(terms.values())).sum(dim=0).numpy()
        no_end = torch.zeros(self.num_envs, dtype=torch.bool)
        terminated = torch.stack([no_end, *(measures[name].bool() for name in self.terminate_on)]).any(dim=0).numpy()
        truncated = (episode.state.step >= episode.horizon).numpy()
        self._over = terminated | truncated
        every = np.ones(self.num_envs, dtype=np.bool_)
        if self._over.any() and self.autoreset_mode == AutoresetMode.SAME_STEP:
            infos = self._final(seen, measures, terms)
            running = ~self._over
            self._autoreset(seen)
            if running.any():
                infos |= self._step_info(measures, terms, running)
        else:
            infos = self._step_info(measures, terms, every)
        infos |= self._state_info(every)
        if self.render_mode == "human":
            self.render()
        return seen, reward, terminated, truncated, infos

    def render(self, most: int | None = None) -> tuple[np.ndarray, ...] | None:
        """Return pictures (height, width, 3) uint8 of all or the first `most` scenes, or show one in a window (`human`).

        `rgb_array` and `human` look from above and mark what a `"state"` observation holds; `camera` looks through the cameras.
        """
        if self.render_mode is None:
            gymnasium.logger.warn(
                "render() draws nothing without a render_mode: make the environment with render_mode='rgb_array'"
            )
            return None
        from .pictures import Pictures  # only loaded where someone looks at them

        self._pictures = self._pictures or Pictures(self.render_mode, self.size, self.metadata["render_fps"])
        episode = self._running()
        return self._pictures.render(episode, self._observe(episode), most)

    def close_extras(self, **kwargs: Any) -> None:
        """Close the window, and the world if it was opened here and runs processes (SUMO does)."""
        if self._pictures is not None:
            self._pictures.close()
            self._pictures = None
        close = getattr(self.world, "close", None)
        if self._owns_world and close is not None:
            close()

    def _choose(self, scene: Any, rows: list[int]) -> Scene:
        """Return the scenes that `rows` start with: those asked for, else what each row's generator picks."""
        several = scene.ndim > 0 if isinstance(scene, np.ndarray) else isinstance(scene, Sequence)
        every = list(scene) if several and not isinstance(scene, str | bytes) else [scene] * self.num_envs
        if len(every) != self.num_envs:
            raise ValueError(f"options['scene']: found {len(every)}, wanted one for each of the {self.num_envs} sub-environments")
        wanted = [every[row] for row in rows]
        if not any(isinstance(one, Scene) for one in wanted):
            return self.scenarios.load([self._number(one, row) for one, row in zip(wanted, rows, strict=True)])
        if isinstance(scene, Scene) and len(scene) == self.num_envs:
            return self._fit(scene.validate().take(rows))
        parts = []
        for one, row in zip(wanted, rows, strict=True):
            if isinstance(one, Scene) and len(one) != 1:
                raise ValueError(f"options['scene']: found a batch of {len(one)} scenes, wanted 1 or {self.num_envs}")
            parts.append(one.validate() if isinstance(one, Scene) else self.scenarios.load([self._number(one, row)]))
        return self._fit(stack(parts))

    def _number(self, scene: Any, row: int) -> int:
        return self.scenarios.pick(self.generators[row]) if scene is None else self.scenarios.number(scene)

    def _fit(self, scenes: Scene) -> Scene:
        """Return foreign scenes padded to the common sizes, or to larger ones if all sub-environments are reset."""
        sizes, common = scenes.sizes(), self.scenarios.sizes
        larger = {letter: size for letter, size in sizes.items() if size > common.get(letter, size)}
        if larger and len(scenes) < self.num_envs:
            raise ValueError(
                f"{scenes.id[0]}: larger than the environment's scenes in {larger} against "
                f"{ {letter: common[letter] for letter in larger} }: reset all sub-environments, or make an environment with it"
            )
        return scenes.pad({letter: max(size, sizes[letter]) for letter, size in common.items()})

    def _begin(self, scenes: Scene, rows: list[int]) -> Episode:
        """Return new episodes with `scenes`, one for each of `rows`."""
        limits = np.iinfo(np.int64)
        keys = [self.generators[row].integers(limits.min, limits.max, dtype=np.int64, endpoint=True) for row in rows]
        horizon = self._horizons(scenes)
        state = self.world.reset(scenes, torch.from_numpy(np.array(keys, dtype=np.int64)))
        trail = scenes.position[:, :, :0, :2]
        trail_valid = scenes.valid[:, :, :0]
        if self.render_mode is not None:
            now = slice(0, HISTORY_STEPS + 1)
            missing = TRAIL_STEPS - HISTORY_STEPS - 1
            trail = torch.nn.functional.pad(scenes.position[:, :, now, :2], (0, 0, missing, 0))
            trail_valid = torch.nn.functional.pad(scenes.valid[:, :, now], (missing, 0))
        on = ground(scenes)
        return Episode(
            state=state,
            past=start_past(state, on),
            on=on,
            pieces=road_pieces(scenes),
            action=torch.zeros(len(scenes), 2),
            horizon=horizon,
            reward=torch.zeros(len(scenes), dtype=torch.float64),
            trail=trail,
            trail_valid=trail_valid,
            sight=None if self.camera is None else self.camera.begin(state),
        )

    def _horizons(self, scenes: Scene) -> Tensor:
        """Return the steps (B,) after which each episode is truncated."""
        possible = self.world.horizon(scenes)
        if possible is not None and (possible < 1).any():
            what = f"{scenes.id[int((possible < 1).nonzero()[0])]}: cannot start in {type(self.world).__name__}"
            raise ValueError(f"{what}: its log ends at the present: take the learned world, or leave it out")
        if self.horizon is None:
            if possible is None:
                raise ValueError("horizon=None: this world has no end, so give a number of steps")
            return possible
        if possible is not None and (possible < self.horizon).any():
            row = int((possible < self.horizon).nonzero()[0])
            raise ValueError(
                f"{scenes.id[row]}: {type(self.world).__name__} can run this scene for {int(possible[row])} steps, found "
                f"horizon={self.horizon}: use horizon={int(possible[row])}, horizon=None (as long as it can), or another world"
            )
        return torch.full((len(scenes),), self.horizon, dtype=torch.int64)

    def _advance(self, episode: Episode, action: Tensor) -> tuple[Episode, dict[str, Tensor], dict[str, Tensor]]:
        """Return the episodes 0.1 s later, what happened (B,) by measure, and what it is worth (B,) by term."""
        state = self.world.step(episode.state, self.dynamics.step(episode.state.ego(), action))
        past = next_past(episode.past, state, episode.on)
        measures = ego_measures(state, past)
        terms = reward_terms(measures, self.weights)
        trail, trail_valid = episode.trail, episode.trail_valid
        if trail.shape[2]:
            trail = torch.cat((trail[:, :, 1:], state.position[:, :, None, :2]), dim=2)
            trail_valid = torch.cat((trail_valid[:, :, 1:], state.valid[..., None]), dim=2)
        total = episode.reward + torch.stack(list(terms.values())).sum(dim=0)
        episode = replace(episode, state=state, past=past, action=action, reward=total, trail=trail, trail_valid=trail_valid)
        if self.camera is not None and episode.sight is not None:
            episode = replace(episode, sight=self.camera.follow(episode.sight, state, action))
        return episode, measures, terms

    def _observe(self, episode: Episode) -> Observation:
        if self.observation == "camera" and episode.sight is not None:
            frame = episode.sight.frame
            return (frame[:, 0] if frame.shape[1] == 1 else frame).numpy(force=True).copy()
        seen = observe(self.observation, self.size, episode.state, episode.past, episode.pieces, episode.on, episode.action)
        return to_numpy(seen)

    def _autoreset(self, seen: Observation) -> None:
        """Begin new episodes where one is over, and put what they see into `seen`."""
        rows = np.flatnonzero(self._over).tolist()
        with torch.no_grad():
            begun = self._begin(self._choose(None, rows), rows)
            self._episode = self._running().put_episodes(rows, begun)
            fresh = self._observe(begun)
        if isinstance(seen, dict):
            assert isinstance(fresh, dict)
            for name, array in seen.items():
                array[rows] = fresh[name]
        else:
            seen[rows] = fresh
        self._over = np.zeros(self.num_envs, dtype=np.bool_)

    def _final(self, seen: Observation, measures: dict[str, Tensor], terms: dict[str, Tensor]) -> Info:
        """Return `final_obs` and `final_info` of the episodes that are over."""
        last = np.full(self.num_envs, None, dtype=object)
        for row in np.flatnonzero(self._over):
            copy = {name: array[row].copy() for name, array in seen.items()} if isinstance(seen, dict) else seen[row].copy()
            last[row] = copy
        info = self._state_info(self._over) | self._step_info(measures, terms, self._over)
        return {"final_obs": last, "_final_obs": self._over.copy(), "final_info": info, "_final_info": self._over.copy()}

    def _state_info(self, mask: np.ndarray) -> Info:
        """Return what reset and step both tell of the sub-environments in `mask`."""
        state = self.state
        names = np.full(self.num_envs, None, dtype=object)
        names[mask] = np.array(state.scene.id, dtype=object)[mask]
        simulated = (state.simulated & state.valid).sum(dim=1)
        unsure = state.uncertainty.double().sum(dim=1) / simulated.clamp(min=1)
        info = _masked({"steps": state.step, "agents_simulated": simulated, "uncertainty": unsure}, mask)
        return {"scene": names, "_scene": mask.copy(), **info}

    def _step_info(self, measures: dict[str, Tensor], terms: dict[str, Tensor], mask: np.ndarray) -> Info:
        """Return what only a step tells."""
        return {
            "reward_terms": _masked(terms, mask),
            "_reward_terms": mask.copy(),
            "measures": _masked(measures, mask),
            "_measures": mask.copy(),
        }


def reset_mask(mask: Any, count: int) -> np.ndarray:
    """Return which of `count` sub-environments `reset` begins anew: (count,) bool, all of them if nothing is said."""
    if mask is None:
        return np.ones(count, dtype=np.bool_)
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != (count,) or not mask.any():
        raise ValueError(f"options['reset_mask']: found {mask!r}, wanted ({count},) bool with at least one True")
    return mask


def seeds_of(seed: int | Sequence[int | None] | None, count: int) -> list[int | None]:
    """Return the seed of each of `count` sub-environments, None for those that keep their generators."""
    if seed is None or isinstance(seed, int | np.integer):
        return [None if seed is None else int(seed) + row for row in range(count)]
    if len(seed) != count:
        raise ValueError(f"seed: found a list of {len(seed)}, wanted one for each of the {count} sub-environments")
    return list(seed)


def open_world(world: str | World) -> World:
    """Return a world given by its name in `WORLDS`, or the object itself.

    Raises:
        ValueError: no such name, or the object is no world.
    """
    if isinstance(world, str):
        if world not in WORLDS:
            raise ValueError(f"world={world!r} is unknown: choose one of {', '.join(WORLDS)}, or give a World object")
        return WORLDS[world]()
    if not all(callable(getattr(world, name, None)) for name in ("horizon", "reset", "step")):
        raise ValueError(f"world: found {type(world).__name__}, wanted a name or an object with horizon, reset and step")
    return world


def _masked(values: dict[str, Tensor], mask: np.ndarray) -> Info:
    """Return values (B,) as Gymnasium's infos hold them: zero outside of `mask`, and a mask beside each; floats as float64."""
    info: Info = {}
    for name, value in values.items():
        array = value.numpy()
        array = array.astype(np.float64) if array.dtype.kind == "f" else array.copy()
        array[~mask] = 0
        info[name], info[f"_{name}"] = array, mask.copy()
    return info
