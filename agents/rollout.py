"""The closed loop: a policy drives scenes in a world, and every scenario leaves a row.

    observation, state -> policy.act -> action -> DriveVectorEnv.step -> observation, measures

Scenes are driven in batches; a scenario's row is the same whatever batch it was in, for it has its own seed. Where a batch fails,
it is halved until the scenario that is to blame stands alone: that one is reported as failed, with its error, and the others are
driven.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode

from ..envs.scenarios import SHIPPED_SCENES
from ..envs.score import TERMS, DrivingRecord, driving_terms, epdms, nuplan_score
from ..envs.vector import DriveVectorEnv, Observation
from ..worldmodel.data.shards import SceneDataset
from ..worldmodel.scene import TIME_STEP, Scene
from ..worldmodel.world import ReplayWorld, State, World
from . import TRACEBACK
from .policy import Policy

SCENE_ERRORS = (ValueError, OSError)
"""What fails a scenario and not the run: a broken scene or recipe, a log that is too short, a SUMO that died."""


class PolicyError(ValueError):
    """A policy raised, or returned what is no action: it has failed its scenario, and not the scene."""


SAFE_ERROR = 2.0
"""Metres of expected error up to which a rollout is to be believed: about half a car's length."""

STEPS_WITHOUT_LOG = 80
"""Horizon of scenes that are a moment without a future."""

Tell = Callable[[int, int, str], None]
"""Is called with (scenarios done, scenarios in all, what is at hand)."""


@dataclass(frozen=True)
class Scenario:
    """What came of one scene.

    Attributes:
        scene: its id.
        seed: drive this scene alone with this seed, and the same happens.
        ended: "horizon", one of `terminate_on`, "failed" (the scene, the world), or "policy_failed".
        steps: of 0.1 s.
        progress: metres along the route.
        route_completion: share of the route from the start to its end.
        collision: whether the ego's box met another one.
        off_road: whether the ego left the road; None where the map does not say where the road ends.
        comfort: mean share of nuPlan's comfort limits that held.
        nuplan: nuPlan's closed-loop score of what was driven, 0 to 1; `epdms` NAVSIM's, without what needs plans or the human.
        terms: what both are made of, by name (`envs/score.py`).
        agents_simulated: mean number of road users that the world moved in a step.
        uncertainty: metres of error to expect of the road users, mean over them and the steps; None where the world does not say.
        safe_horizon: seconds from the start until that error, as a mean over the road users, passes SAFE_ERROR; as long as the
            scenario where it does not.
        reward: the sum of all steps (the return).
        steps_per_second: steps over the wall-clock time spent on this scenario (of a batch: its share).
        error: why it failed, else None; `trace` the whole story of it.
    """

    scene: str
    seed: int
    ended: str
    steps: int = 0
    progress: float = 0.0
    route_completion: float = 0.0
    collision: bool = False
    off_road: bool | None = None
    comfort: float = 0.0
    nuplan: float = 0.0
    epdms: float = 0.0
    agents_simulated: float = 0.0
    uncertainty: float | None = None
    safe_horizon: float | None = None
    reward: float = 0.0
    steps_per_second: float = 0.0
    error: str | None = None
    trace: str | None = None
    terms: dict[str, float] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """Return it flat, for a table: every term in a column `term_...`."""
        flat = {name: value for name, value in vars(self).items() if name != "terms"}
        return flat | {f"term_{name}": self.terms.get(name) for name in TERMS}


@dataclass
class Film:
    """What a scenario looked like: its states (B = 1, the world's memory left out), the reward until each, what was seen."""

    states: list[State] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    observations: list[dict[str, np.ndarray]] = field(default_factory=list)


@dataclass(frozen=True)
class Rollout:
    """All scenarios in the order of the scenes, films of the first ones by scene id, and seconds taken."""

    scenarios: tuple[Scenario, ...]
    films: dict[str, Film]
    seconds: float

    def summary(self) -> dict[str, Any]:
        """Return counts, and means over the scenarios that did not fail (None where there is none)."""
        driven = [row for row in self.scenarios if row.error is None]
        mean = lambda values: fmean(values) if (values := list(values)) else None  # noqa: E731
        return {
            "scenarios": len(self.scenarios),
            "failed": len(self.scenarios) - len(driven),
            "progress": mean(row.progress for row in driven),
            "route_completion": mean(row.route_completion for row in driven),
            "collision_rate": mean(row.collision for row in driven),
            "off_road_rate": mean(row.off_road for row in driven if row.off_road is not None),
            "comfort": mean(row.comfort for row in driven),
            "nuplan": mean(row.nuplan for row in driven),
            "epdms": mean(row.epdms for row in driven),
            "agents_simulated": mean(row.agents_simulated for row in driven),
            "uncertainty": mean(row.uncertainty for row in driven if row.uncertainty is not None),
            "safe_horizon": mean(row.safe_horizon for row in driven if row.safe_horizon is not None),
            "reward": mean(row.reward for row in driven),
            "steps_per_second": sum(row.steps for row in driven) / self.seconds,
        }


def open_scenes(place: str | Path) -> SceneDataset:
    """Return the data set `FOLDER`, or the scenes of `FOLDER:GLOB`; the folder `demo` is the shipped one, unless one stands here.

    Raises:
        ValueError: there is no data set, or no scene in it matches.
    """
    folder, colon, pattern = str(place).partition(":")
    if folder == "demo" and not Path("demo", "index.json").exists():
        folder = str(SHIPPED_SCENES)
    return SceneDataset.named(folder + colon + pattern)


def rollout(
    policy: Policy,
    world: World,
    scenes: SceneDataset,
    *,
    seed: int = 0,
    steps: int | None = None,
    batch: int = 8,
    film: int = 0,
    terminate_on: Sequence[str] = ("collision", "off_road"),
    tell: Tell = lambda done, total, name: None,
) -> Rollout:
    """Drive every scene once.

    Args:
        policy: drives the ego.
        world: moves everyone else.
        scenes: where to start.
        seed: scenario i gets `seed` + i.
        steps: horizon in steps of 0.1 s; None: as long as each scene's log, or STEPS_WITHOUT_LOG where it ends at the present and
            the world can go on without it.
        batch: scenes driven at once.
        film: keep the states of so many scenarios, the first ones.
        terminate_on: measures that end a scenario, of `envs.vector.TERMINATIONS`.
        tell: is told the progress.

    Raises:
        ValueError: an argument is out of range.
    """
    if batch < 1 or (steps is not None and steps < 1) or seed < 0:
        raise ValueError(f"found --batch {batch}, --horizon {steps}, --seed {seed}: wanted batch and horizon >= 1, seed >= 0")
    began, rows, films = perf_counter(), [], {}
    drive = Batches(policy, world, scenes, scenes.sizes(readable=True), steps, terminate_on, tell)
    for first in range(0, len(scenes), batch):
        numbers = list(range(first, min(first + batch, len(scenes))))
        for scenario, kept in drive.run(numbers, seed, range(film)):
            rows.append(scenario)
            if kept is not None:
                films[scenario.scene] = kept
    tell(len(scenes), len(scenes), "")
    return Rollout(tuple(rows), films, perf_counter() - began)


@dataclass(frozen=True)
class Batches:
    """Drives scenes in batches; what all batches of a rollout share. `tell` is called with (first number, all, step)."""

    policy: Policy
    world: World
    scenes: SceneDataset
    sizes: dict[str, int]
    steps: int | None
    terminate_on: Sequence[str]
    tell: Tell

    def run(self, numbers: Sequence[int], seed: int, film: Collection[int] = ()) -> list[tuple[Scenario, Film | None]]:
        """Drive some scenes by their numbers as one batch, or in halves if that fails; keep the films of those in `film`."""
        seeds = [seed + number for number in numbers]
        try:
            scenes = self.scenes.load(numbers).pad(self.sizes)
            limits = self._limits(scenes)
            end = None if self.world.horizon(scenes) is not None and self.steps is None else int(limits.max())
            env = DriveVectorEnv(
                len(numbers),
                scenes,
                self.world,
                action="physical",
                horizon=end,
                terminate_on=self.terminate_on,
                autoreset_mode=AutoresetMode.DISABLED,
            )
            try:
                watched = [number in film for number in numbers]
                return drive(self.policy, env, seeds, limits, watched, lambda step: self.tell(numbers[0], len(self.scenes), step))
            finally:
                env.close()
        except SCENE_ERRORS as error:
            if os.environ.get(TRACEBACK):
                raise
            if len(numbers) == 1:
                name = self.scenes.ids[numbers[0]]
                trace = "".join(traceback.format_exception(error))
                ended = "policy_failed" if isinstance(error, PolicyError) else "failed"
                return [(Scenario(name, seeds[0], ended, error=_told(error, name), trace=trace), None)]
            middle = len(numbers) // 2
            return [row for half in (numbers[:middle], numbers[middle:]) for row in self.run(half, seed, film)]

    def _limits(self, scenes: Scene) -> np.ndarray:
        """Steps (B,) that each scenario takes."""
        if self.steps is not None:
            return np.full(len(scenes), self.steps)
        logged, possible = ReplayWorld().horizon(scenes), self.world.horizon(scenes)
        beyond = torch.full_like(logged, STEPS_WITHOUT_LOG) if possible is None else possible.clamp(max=STEPS_WITHOUT_LOG)
        return torch.where(logged < 1, beyond, logged).numpy()


def _told(error: Exception, scene: str) -> str:
    """Return an error of a scene on one line, with its place if it was raised outside of worldloop: in a user's driver."""
    *_, (frame, line) = traceback.walk_tb((error.__cause__ or error).__traceback__)
    ours = frame.f_globals.get("__name__", "").startswith("worldloop.")
    place = "" if ours else f" ({frame.f_code.co_filename}:{line})"
    return " ".join(str(error).removeprefix(f"{scene}: ").split()) + place


def drive(
    policy: Policy,
    env: DriveVectorEnv,
    seeds: Sequence[int],
    limits: np.ndarray,
    watched: Sequence[bool],
    tell: Callable[[str], None],
) -> list[tuple[Scenario, Film | None]]:
    """Drive the scenes of `env` (as many as it has sub-environments, in physical actions) until each has ended.

    A sub-environment whose scenario has ended begins it again, unseen, until the last one is done.
    """
    names = env.scenarios.ids
    observation, _ = env.reset(seed=list(seeds), options={"scene": list(names)})
    tally = Tally(len(seeds), getattr(env.world, "calibrated", False))
    films = [Film() if wanted else None for wanted in watched]
    live = np.ones(len(seeds), dtype=np.bool_)
    ended = [""] * len(seeds)
    _record(films, live, env.state, tally.reward, observation)
    while live.any():
        began = perf_counter()
        observation, reward, terminated, truncated, info = env.step(chosen_action(policy, observation, env))
        tally.add(live, reward, info)
        tally.seconds[live] += (perf_counter() - began) / live.sum()
        _record(films, live, env.state, tally.reward, observation)
        over = terminated | truncated | (env.state.step.numpy() >= limits)
        for row in np.flatnonzero(over & live):
            measures = info["measures"]
            ended[row] = next((name for name in env.terminate_on if terminated[row] and measures[name][row]), "horizon")
        live &= ~over
        if over.any() and live.any():
            observation, _ = env.reset(seed=list(seeds), options={"scene": list(names), "reset_mask": over})
        tell(f"step {int(tally.steps.max())}")
    return [(tally.scenario(row, names[row], seeds[row], ended[row]), films[row]) for row in range(len(seeds))]


class Tally:
    """Sums over the steps of B scenarios."""

    def __init__(self, count: int, calibrated: bool) -> None:
        self.calibrated = calibrated
        self.steps, self.safe = np.zeros((2, count), dtype=np.int64)
        self.seconds, self.reward, self.progress, self.completion, self.comfort, self.simulated = np.zeros((6, count))
        self.uncertainty = np.zeros(count)
        self.collision, self.off_road, self.measurable = np.zeros((3, count), dtype=np.bool_)
        self.record = DrivingRecord.begin(count)

    def add(self, live: np.ndarray, reward: np.ndarray, info: dict[str, Any]) -> None:
        """Add one step of the scenarios that are still `live`."""
        measures = info["measures"]
        self.safe += live & (self.safe == self.steps) & (info["uncertainty"] <= SAFE_ERROR)
        self.steps += live
        self.uncertainty += live * info["uncertainty"]
        self.reward += live * reward
        self.progress += live * measures["progress"]
        self.completion = np.where(live, np.maximum(self.completion, measures["route_completion"]), self.completion)
        self.comfort += live * measures["comfort"]
        self.simulated += live * info["agents_simulated"]
        self.collision |= live & measures["collision"]
        self.off_road |= live & measures["off_road"]
        self.measurable |= live & measures["off_road_measurable"]
        found = {name: torch.from_numpy(values) for name, values in measures.items()}
        self.record = self.record.add(found, torch.from_numpy(live))

    def scenario(self, row: int, scene: str, seed: int, ended: str) -> Scenario:
        """Return the row of one scenario."""
        steps = int(self.steps[row])
        terms = driving_terms(self.record.take([row]))
        return Scenario(
            scene=scene,
            seed=seed,
            ended=ended,
            steps=steps,
            progress=float(self.progress[row]),
            route_completion=float(self.completion[row]),
            collision=bool(self.collision[row]),
            off_road=bool(self.off_road[row]) if self.measurable[row] else None,
            comfort=float(self.comfort[row]) / steps,
            nuplan=nuplan_score(terms).item(),
            epdms=epdms(terms).item(),
            terms={name: round(value.item(), 6) for name, value in terms.items()},
            agents_simulated=float(self.simulated[row]) / steps,
            uncertainty=float(self.uncertainty[row]) / steps if self.calibrated else None,
            safe_horizon=float(self.safe[row]) * TIME_STEP if self.calibrated else None,
            reward=float(self.reward[row]),
            steps_per_second=steps / float(self.seconds[row]),
        )


def chosen_action(policy: Policy, observation: Any, env: DriveVectorEnv) -> torch.Tensor:
    """Return what a policy answers as a tensor, if it has the shape of actions; the environment checks the numbers.

    Raises:
        ValueError: the shape is another one, or the policy's own code is at fault.
    """
    try:
        if (answer := policy.act(observation, env.state)) is None:
            raise ValueError(f"the policy returned None, wanted actions of shape ({env.num_envs}, 2), one a scene")
        tensor = torch.as_tensor(answer)
    except (Exception, SystemExit) as error:  # a user's code may raise anything, which fails its scenario and not the rollout
        told = str(error) if isinstance(error, ValueError) else f"the policy raised {type(error).__name__}: {error}"
        raise PolicyError(told) from error
    if tensor.shape != (env.num_envs, 2):
        raise PolicyError(f"the policy returned actions of shape {tuple(tensor.shape)}, wanted ({env.num_envs}, 2), one a scene")
    try:
        env.actions.decode(tensor)
    except ValueError as error:
        raise PolicyError(str(error)) from error
    return tensor


def _record(films: Sequence[Film | None], live: np.ndarray, state: State, reward: np.ndarray, seen: Observation) -> None:
    """Append the present of every scenario that is watched and still runs."""
    assert isinstance(seen, dict)
    for row in np.flatnonzero(live).tolist():
        if (kept := films[row]) is not None:
            scene = kept.states[0].scene if kept.states else state.scene.take([row])
            moment = {
                name: value[row : row + 1].clone() for name, value in vars(state).items() if isinstance(value, torch.Tensor)
            }
            kept.states.append(State(scene=scene, memory={}, **moment))
            kept.rewards.append(float(reward[row]))
            kept.observations.append({name: array[row].copy() for name, array in seen.items()})
