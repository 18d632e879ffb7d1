"""Session: one scene after the other, driven in one world or another, and taken down; knows no window and no keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor

from ..envs.vector import WORLDS, DriveVectorEnv
from ..renderers.cockpit import SHOWN_STEPS, Follower
from ..worldmodel.data.shards import SceneDataset
from ..worldmodel.dynamics import forward_speed
from ..worldmodel.geometry import to_local
from ..worldmodel.scene import TIME_STEP, Scene
from ..worldmodel.sight import SceneCamera
from ..worldmodel.sumo_process import MissingDependencyError, require_sumo
from ..worldmodel.world import ReplayWorld, State, World
from .crew import open_named_world
from .driven import Recorder
from .interventions import follower
from .policy import Policy
from .rollout import Scenario, Tally, chosen_action

LONGEST = 36_000
"""Steps of an episode where the world has no end: an hour."""

SMOOTHED = 5
"""Steps over which the acceleration of who drives behind is measured."""


@dataclass(frozen=True)
class Finished:
    """An episode that was driven: what was taken down, its row, and for how many steps who drove."""

    recorder: Recorder
    scenario: Scenario
    drivers: Mapping[str, int]


class Session:
    """Drives one scene at a time.

    Attributes:
        env: of the present episode, in physical actions, with one sub-environment.
        recorder: takes it down.
        over: whether the world cannot go on (the log has ended).
        finished: the episodes before, those without a step left out.
        info: of the last step; reward: summed, by term in totals.
    """

    env: DriveVectorEnv
    recorder: Recorder

    def __init__(
        self,
        scenes: SceneDataset,
        camera: SceneCamera | None = None,
        reward: str = "progress",
        weights: Path | None = None,
    ) -> None:
        self.scenes, self.camera, self.reward, self.weights = scenes, camera, reward, weights
        self.finished: list[Finished] = []
        self._worlds: dict[str, World] = {}
        self._begun = False

    def begin(self, number: int, world: str, seed: int) -> None:
        """Begin scene `number` in a world, after finishing the one before, if this can be done at all.

        Raises:
            ValueError, OSError: scene or world cannot be opened; what was driven before goes on then.
        """
        number %= len(self.scenes)
        scene = self.scenes.load(number)
        env = self._open(scene, world)
        seen, _ = env.reset(seed=seed, options={"scene": scene})
        self.finish("left")
        self.env, self.recorder = env, Recorder(scene, world, number, seed)
        self._seen, self._begun = seen, True
        self.over, self.info, self.totals = False, {}, Counter[str]()
        self.action, self.drivers = torch.zeros(2), Counter[str]()
        self._tally = Tally(1, getattr(env.world, "calibrated", False))

    def _open(self, scene: Scene, name: str) -> DriveVectorEnv:
        if name not in self._worlds:
            self._worlds[name] = open_named_world(name, self.weights)
        world = self._worlds[name]
        return DriveVectorEnv(
            1,
            scene,
            world,
            action="physical",
            horizon=LONGEST if world.horizon(scene) is None else None,
            terminate_on=(),
            reward=self.reward,
            camera=self.camera,
            autoreset_mode=AutoresetMode.DISABLED,
        )

    @property
    def state(self) -> State:
        """The present, of one scene."""
        return self.env.state

    @property
    def speed(self) -> float:
        """Of the ego, m/s along its heading."""
        return float(forward_speed(self.state.ego())[0])

    def choose(self, policy: Policy) -> Tensor:
        """Return what a policy does now, (1, 2).

        Raises:
            PolicyError: it raised, or what it returned is no action.
        """
        return chosen_action(policy, self._seen, self.env)

    def step(self, action: Tensor, driver: str) -> None:
        """Drive 0.1 s with an action (1, 2) in m/s2 and 1/m, and take it down as `driver`'s."""
        began = perf_counter()
        action = action.to(torch.float32)
        self._seen, reward, _, truncated, self.info = self.env.step(action)
        self._tally.add(np.ones(1, np.bool_), reward, self.info)
        self._tally.seconds += perf_counter() - began
        self.action, self.over = action[0], bool(truncated[0])
        self.drivers[driver] += 1
        terms = {name: float(value[0]) for name, value in self.terms().items()}
        self.totals.update(terms)
        ego, measures = self.state.ego(), self.info["measures"]
        row = {
            "step": int(self.state.step[0]),
            "driver": driver,
            "acceleration": float(action[0, 0]),
            "curvature": float(action[0, 1]),
            "x": float(ego.position[0, 0]),
            "y": float(ego.position[0, 1]),
            "heading": float(ego.heading[0]),
            "speed": self.speed,
            "reward": float(reward[0]),
            **{f"reward_{name}": value for name, value in terms.items()},
            "uncertainty": float(self.info["uncertainty"][0]),
            "collision": bool(measures["collision"][0]),
            "off_road": bool(measures["off_road"][0]),
        }
        self.recorder.add(self.state, row)

    def terms(self) -> dict[str, np.ndarray]:
        """Return the reward's terms (1,) of the last step by name; zeros before the first."""
        told = self.info.get("reward_terms", {})
        return {name: told.get(name, np.zeros(1)) for name in self.env.weights}

    def happened(self, name: str) -> bool:
        """Return whether a measure was 1 in the last step."""
        return bool(self.info["measures"][name][0]) if "measures" in self.info else False

    def uncertainty(self) -> float | None:
        """Return the metres of error to expect of the others, None where the world does not say."""
        if not getattr(self.env.world, "calibrated", False):
            return None
        return float(self.info["uncertainty"][0]) if self.info else 0.0

    def behind(self) -> tuple[Follower | None, dict[str, np.ndarray]]:
        """Return who drives behind the ego, and the speeds of both over the last steps."""
        state, ego = self.state, int(self.state.scene.ego)
        speed = self.recorder.lately("velocity", SHOWN_STEPS)[0].norm(dim=-1)
        speed = torch.where(self.recorder.lately("valid", SHOWN_STEPS)[0], speed, torch.nan).numpy()
        place = follower(state)
        if place is None:
            return None, {"you": speed[ego]}
        away = to_local(state.position[0, place, :2], state.position[0, ego, :2], state.heading[0, ego])
        gap = float(-away[0]) - 0.5 * float(state.scene.size[0, place, 0] + state.scene.size[0, ego, 0])
        late = speed[place, -1 - min(SMOOTHED, speed.shape[1] - 1) :]
        change = float(late[-1] - late[0]) / (TIME_STEP * max(len(late) - 1, 1))
        told = Follower(max(gap, 0.0), float(late[-1]), change if np.isfinite(change) else 0.0)
        return told, {"you": speed[ego], "behind": speed[place]}

    def possible_worlds(self) -> list[str]:
        """Return the names of the worlds that the present scene can be driven in, in the order of `WORLDS`."""
        cannot = set()
        if int(ReplayWorld().horizon(self.recorder.scene)[0]) < 1:
            cannot.add("replay")
        try:
            require_sumo()
            cannot |= set() if self.recorder.scene.recipe[0] else {"sumo"}
        except MissingDependencyError:
            cannot.add("sumo")
        return [name for name in WORLDS if name not in cannot]

    def finish(self, ended: str) -> None:
        """End the present episode, if there is one, and keep it if anything was driven."""
        if not self._begun:
            return
        self._begun = False
        recorder = self.recorder
        if recorder.rows:
            ended = "horizon" if self.over else ended
            scenario = self._tally.scenario(0, recorder.scene.id[0], recorder.seed, ended)
            self.finished.append(Finished(recorder, scenario, dict(self.drivers)))
        self.env.close()

    def close(self) -> None:
        """Close the worlds that run processes."""
        for world in self._worlds.values():
            getattr(world, "close", lambda: None)()
        self._worlds = {}

    def results(self) -> list[tuple[Recorder, dict[str, Any]]]:
        """Return the finished episodes, each with what came of it, for `driven.write_drive`."""
        told = []
        for done in self.finished:
            row = {name: value for name, value in done.scenario.row().items() if name not in ("scene", "seed", "trace", "error")}
            told.append((done.recorder, {**row, "drivers": dict(done.drivers)}))
        return told
