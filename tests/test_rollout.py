"""The closed loop: rows are the same however scenes are batched, and a failure is counted and hits nobody else."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import tiny_model
from scenes import several_roads, straight_road, unchecked
from torch import Tensor
from worldloop.agents.policy import POLICIES, load_policy
from worldloop.agents.rollout import STEPS_WITHOUT_LOG, Scenario, open_scenes, rollout
from worldloop.agents.rules import ConstantPolicy, IdmPolicy, ReplayPolicy
from worldloop.worldmodel.data.shards import SceneDataset
from worldloop.worldmodel.data.writing import SCENES_PER_SHARD, ShardWriter
from worldloop.worldmodel.dynamics import Motion
from worldloop.worldmodel.scene import HISTORY_STEPS, Scene
from worldloop.worldmodel.uncertainty import Calibration
from worldloop.worldmodel.world import ConstantVelocityWorld, LearnedWorld, ReplayWorld, State


def data_set(folder: Path, *scenes: Scene) -> SceneDataset:
    with ShardWriter(folder) as writer:
        for scene in scenes:
            writer.add(scene)
    return SceneDataset(folder)


@pytest.fixture
def roads(tmp_path: Path) -> SceneDataset:
    return data_set(tmp_path / "roads", several_roads(5))


def without_times(rows: Sequence[Scenario]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.row().items() if name != "steps_per_second"} for row in rows]


@pytest.mark.parametrize("name", POLICIES)
def test_rows_do_not_depend_on_the_batch(roads: SceneDataset, name: str) -> None:
    world = LearnedWorld(tiny_model())
    runs = [rollout(load_policy(name), world, roads, seed=3, steps=15, batch=batch) for batch in (1, 2, 5)]
    assert [row.error for row in runs[0].scenarios] == [None] * 5
    for run in runs[1:]:
        for mine, theirs in zip(without_times(runs[0].scenarios), without_times(run.scenarios), strict=True):
            assert mine == pytest.approx(theirs, abs=1e-4)


def test_same_seed_same_rows(roads: SceneDataset) -> None:
    world = LearnedWorld(tiny_model())
    first, again, other = (rollout(load_policy("random"), world, roads, seed=seed, steps=10) for seed in (0, 0, 9))
    assert without_times(first.scenarios) == without_times(again.scenarios)
    assert without_times(first.scenarios) != without_times(other.scenarios)


def test_numbers_of_a_drive_that_is_known(tmp_path: Path) -> None:
    """10 m/s for 30 steps among agents at constant velocity: 30 m, 4 others simulated (the cone stands), no contact."""
    run = rollout(ConstantPolicy(), ReplayWorld(), data_set(tmp_path / "one", straight_road()), steps=30)
    row = run.scenarios[0]
    assert (row.scene, row.ended, row.steps) == ("hand/straight", "horizon", 30)
    assert (row.collision, row.off_road, row.error) == (False, False, None)
    assert row.progress == pytest.approx(30.0, abs=0.1)
    assert row.route_completion == pytest.approx(30 / 180, abs=1e-3)
    assert row.agents_simulated == 4
    assert row.comfort == pytest.approx(1.0)
    assert row.reward == pytest.approx(0.1 * row.progress + 0.02 * 30, abs=1e-3)
    assert run.summary()["collision_rate"] == 0.0


def test_collision_ends_a_scenario_and_the_others_go_on(tmp_path: Path) -> None:
    near, far = straight_road("hand/near", ego_speed=14.0, leader_gap=8.0), straight_road("hand/far", leader_gap=60.0)
    run = rollout(ConstantPolicy(), ReplayWorld(), data_set(tmp_path / "two", near, far), steps=40, film=2)
    first, second = run.scenarios
    assert (first.ended, first.collision) == ("collision", True)
    assert 8 <= first.steps <= 10  # (8 - 4.5) m at 4 m/s
    assert (second.ended, second.collision, second.steps) == ("horizon", False, 40)
    assert [len(run.films[name].states) for name in ("hand/near", "hand/far")] == [first.steps + 1, 41]
    assert run.films["hand/near"].rewards[-1] == pytest.approx(first.reward)
    assert run.films["hand/far"].states[-1].step.tolist() == [40]


def test_off_road_is_unknown_where_the_map_has_no_edges(tmp_path: Path) -> None:
    run = rollout(IdmPolicy(), ReplayWorld(), data_set(tmp_path / "one", straight_road(edges=False)), steps=5)
    assert run.scenarios[0].off_road is None
    assert run.summary()["off_road_rate"] is None


def test_without_a_horizon_each_scene_is_as_long_as_its_log(tmp_path: Path) -> None:
    scenes = data_set(tmp_path / "two", straight_road("hand/a", steps=31), straight_road("hand/b", steps=41))
    for world in (ReplayWorld(), ConstantVelocityWorld()):
        run = rollout(ReplayPolicy(), world, scenes)
        assert [(row.steps, row.ended, row.error) for row in run.scenarios] == [(20, "horizon", None), (30, "horizon", None)]


class Faulty:
    """Drives straight on, but answers NaN in the scenes whose ego is slow."""

    def act(self, observation: Any, state: State) -> Tensor:
        slow = state.scene.velocity[state.scene.ego_row(), state.scene.ego, HISTORY_STEPS].norm(dim=-1) < 7.5
        return torch.where(slow[:, None], torch.nan, torch.zeros(len(state), 2))


def test_failed_scenarios_are_counted_and_the_others_driven(roads: SceneDataset) -> None:
    run = rollout(Faulty(), ReplayWorld(), roads, steps=5)
    assert [row.ended for row in run.scenarios] == ["policy_failed", "policy_failed", "horizon", "horizon", "horizon"]
    assert [row.scene for row in run.scenarios] == list(roads.ids)
    assert "nan" in (run.scenarios[0].error or "")
    summary = run.summary()
    assert (summary["scenarios"], summary["failed"]) == (5, 2)
    assert summary["progress"] == pytest.approx(np.mean([row.progress for row in run.scenarios[2:]]))


def test_a_damaged_scene_fails_alone(tmp_path: Path) -> None:
    roads = data_set(tmp_path / "roads", several_roads(4))
    bad = roads.entries[1] | {"crc32": 1}
    roads.entries[1] = bad
    run = rollout(IdmPolicy(), ReplayWorld(), roads, steps=5)
    assert [row.error is None for row in run.scenarios] == [True, False, True, True]
    assert "damaged" in (run.scenarios[1].error or "")


def test_the_scenes_of_a_truncated_shard_fail_alone(tmp_path: Path) -> None:
    """The second shard, of the two scenes that the first one has no room for, breaks off; so does the whole first one, then."""
    road = straight_road("hand/0", steps=14)
    many = [replace(road, id=(f"hand/{number}",)) for number in range(SCENES_PER_SHARD + 2)]
    data_set(tmp_path / "roads", *many)
    shards = sorted((tmp_path / "roads").glob("*.safetensors"))
    shards[1].write_bytes(shards[1].read_bytes()[:-100])
    last = SceneDataset(tmp_path / "roads").subset("hand/12*")  # hand/12, and 120 to 129 of which 128 and 129 are lost
    run = rollout(ConstantPolicy(), ReplayWorld(), last, steps=2)
    assert [row.scene for row in run.scenarios if row.error is not None] == ["hand/128", "hand/129"]
    assert all("shard-00001.safetensors: cannot be read" in (row.error or "") for row in run.scenarios[-2:])
    shards[0].write_bytes(b"")
    run = rollout(ConstantPolicy(), ReplayWorld(), SceneDataset(tmp_path / "roads").subset("hand/12*"), steps=2)
    assert run.summary()["failed"] == len(run.scenarios) == 11


def test_a_scene_that_breaks_the_contract_fails_alone(tmp_path: Path) -> None:
    first, second, third = (straight_road(f"hand/{number}") for number in range(3))
    bad = replace(second, ego=torch.tensor([99]))
    run = rollout(IdmPolicy(), ReplayWorld(), SceneDataset(unchecked(tmp_path / "set", first, bad, third)), steps=3)
    assert [row.error is None for row in run.scenarios] == [True, False, True]
    assert "shard-00000.safetensors: hand/1: ego: index outside of the 6 agents" in (run.scenarios[1].error or "")


class Fragile(ReplayWorld):
    """Replay by a process of its own that dies of one scene."""

    def step(self, state: State, ego: Motion) -> State:
        if "hand/2" in state.scene.id:
            raise ChildProcessError("the worker ended with code -9")
        return super().step(state, ego)


def test_a_worker_that_dies_of_a_scene_fails_that_scene_alone(roads: SceneDataset) -> None:
    run = rollout(IdmPolicy(), Fragile(), roads, steps=3)
    assert [row.error is None for row in run.scenarios] == [True, True, False, True, True]
    assert (run.scenarios[2].error or "").startswith("the worker ended with code -9")


class Picky:
    """A user's driver that complains about one scene."""

    def act(self, observation: Any, state: State) -> Tensor:
        if "hand/3" in state.scene.id:
            raise ValueError("hand/3: not my road")
        return torch.zeros(len(state), 2)


def test_an_error_in_a_users_driver_is_told_with_its_line(roads: SceneDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    line = Picky.act.__code__.co_firstlineno + 2
    run = rollout(Picky(), ReplayWorld(), roads, steps=3)
    told = f"not my road ({__file__}:{line})"
    assert [row.error for row in run.scenarios] == [None, None, None, told, None]
    assert f'{__file__}", line {line}, in act' in (run.scenarios[3].trace or "")
    monkeypatch.setenv("WORLDLOOP_TRACEBACK", "1")
    with pytest.raises(ValueError, match="not my road"):
        rollout(Picky(), ReplayWorld(), roads, steps=3)


def test_wrong_shape_of_actions_is_named(roads: SceneDataset) -> None:
    class Single:
        def act(self, observation: Any, state: State) -> np.ndarray:
            return np.zeros(2, np.float32)

    run = rollout(Single(), ReplayWorld(), roads, steps=5)
    assert all("shape (2,), wanted (1, 2)" in (row.error or "") for row in run.scenarios)


def test_a_policy_that_forgets_to_return_is_told_so(roads: SceneDataset) -> None:
    class Forgets:
        def act(self, observation: Any, state: State) -> None:
            pass

    run = rollout(Forgets(), ReplayWorld(), roads, steps=5)  # pyright: ignore[reportArgumentType]
    assert all((row.error or "").startswith("the policy returned None, wanted actions of shape (1, 2)") for row in run.scenarios)


def test_arguments_out_of_range(roads: SceneDataset) -> None:
    for wrong in ({"batch": 0}, {"steps": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match="wanted batch and horizon >= 1"):
            rollout(IdmPolicy(), ReplayWorld(), roads, **wrong)


def test_scenes_by_folder_and_pattern(roads: SceneDataset) -> None:
    assert open_scenes(roads.path).ids == roads.ids
    assert open_scenes(f"{roads.path}:hand/[13]").ids == ("hand/1", "hand/3")
    with pytest.raises(ValueError, match="no scene matches 'nobody'"):
        open_scenes(f"{roads.path}:nobody")
    with pytest.raises(ValueError, match="does not exist"):
        open_scenes(roads.path.with_name("elsewhere"))
    roads.path.rename(roads.path.with_name("a:b"))
    assert open_scenes(roads.path.with_name("a:b")).ids == roads.ids


def test_a_data_set_called_demo_goes_before_the_shipped_one(roads: SceneDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(roads.path.parent)
    shipped = open_scenes("demo").ids
    assert open_scenes("demo:sumo/merge").ids == tuple(name for name in shipped if name.startswith("sumo/merge"))
    roads.path.rename("demo")
    assert open_scenes("demo").ids == roads.ids
    assert open_scenes("demo:hand/4").ids == ("hand/4",)


class Bounded(ConstantVelocityWorld):
    """A world that goes on without a log, but not for ever."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def horizon(self, scenes: Scene) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return torch.full((len(scenes),), self.steps)


def test_a_moment_without_a_future_is_driven_where_the_world_can_go_on(tmp_path: Path) -> None:
    moment = data_set(tmp_path / "moment", replace(straight_road(steps=HISTORY_STEPS + 1), id=("hand/moment",)))
    row = rollout(IdmPolicy(), LearnedWorld(tiny_model()), moment).scenarios[0]
    assert row.error is None
    assert row.ended != "horizon" or row.steps == STEPS_WITHOUT_LOG
    clear = data_set(tmp_path / "clear", straight_road(steps=HISTORY_STEPS + 1, follower_gap=100.0))
    for possible, steps in ((50, 50), (600, STEPS_WITHOUT_LOG)):
        row = rollout(ConstantPolicy(speed=5.0), Bounded(possible), clear).scenarios[0]
        assert (row.steps, row.ended) == (steps, "horizon")
    assert "its log ends at the present" in (rollout(IdmPolicy(), ReplayWorld(), moment).scenarios[0].error or "")
    assert "where the log ends" in (rollout(ReplayPolicy(), LearnedWorld(tiny_model()), moment).scenarios[0].error or "")


def test_a_mistake_in_a_policy_fails_the_scenario_and_says_where(tmp_path):
    class Mistaken:
        def act(self, observation, state):
            return observation["nothere"]

    run = rollout(Mistaken(), ReplayWorld(), data_set(tmp_path / "two", several_roads(2)), steps=3)
    assert [row.ended for row in run.scenarios] == ["policy_failed", "policy_failed"]
    assert "the policy raised KeyError: 'nothere'" in (run.scenarios[0].error or "")
    assert "test_rollout.py:" in (run.scenarios[0].error or "")


@pytest.mark.parametrize("code", [None, 0, 3, "no way on"])
def test_a_policy_that_exits_fails_its_scenario_alone(roads: SceneDataset, code: int | str | None) -> None:
    class Quits(ConstantPolicy):
        def act(self, observation: Any, state: State) -> Tensor:
            if "hand/1" in state.scene.id:
                sys.exit(code)
            return super().act(observation, state)

    run = rollout(Quits(), ReplayWorld(), roads, steps=3)
    assert [row.ended for row in run.scenarios] == ["horizon", "policy_failed", "horizon", "horizon", "horizon"]
    assert "the policy raised SystemExit" in (run.scenarios[1].error or "")


def test_rows_say_how_unsure_the_world_is_where_it_can(roads: SceneDataset) -> None:
    """With an error of t metres t seconds after the start, 2 m are passed after 2 s: 3 s of driving are 1.55 m on average."""
    grows = LearnedWorld(tiny_model(), calibration=Calibration(0.0, 0.0, 1.0))
    for row in rollout(ConstantPolicy(), grows, roads, steps=30).scenarios:
        seconds = row.steps * 0.1
        assert row.uncertainty == pytest.approx(0.5 * (0.1 + seconds), abs=1e-4)
        assert row.safe_horizon == pytest.approx(min(seconds, 2.0))
    silent = rollout(ConstantPolicy(), LearnedWorld(tiny_model()), roads, steps=5)
    assert {(row.uncertainty, row.safe_horizon) for row in silent.scenarios} == {(None, None)}
    assert silent.summary()["safe_horizon"] is None
