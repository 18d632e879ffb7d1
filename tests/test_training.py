"""Drivers that learn: advantages in closed form, a network that keeps its contracts, trainings that can be killed."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import tiny_model
from rich.console import Console
from scenes import EGO, moved, several_roads, straight_road
from worldloop.agents.cli import main
from worldloop.agents.network import DriverNetwork, NetworkConfig, NetworkPolicy, Normaliser, as_tensors
from worldloop.agents.policy import load_policy
from worldloop.agents.ppo import Ppo, Trainer, event_files, gae, train
from worldloop.envs import PRESETS, DriveVectorEnv
from worldloop.worldmodel.data.writing import ShardWriter
from worldloop.worldmodel.run import read_metrics, start_run
from worldloop.worldmodel.scene import Scene


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def test_advantages_of_a_chain_that_ends_worked_out_by_hand() -> None:
    no, end = column(False, False, False), column(False, False, True)
    advantage, target = gae(column(1, 1, 1), column(0, 0, 0), column(0, 0, 9), end.bool(), end.bool(), 0.5, 1.0)
    assert target[:, 0].tolist() == [1.75, 1.5, 1.0]  # the 9 beyond the end counts for nothing
    assert torch.equal(advantage, target)
    advantage, _ = gae(column(1, 1, 1), column(0, 0, 0), column(0, 0, 9), no.bool(), end.bool(), 0.5, 1.0)
    assert advantage[:, 0].tolist() == [1.75 + 0.125 * 9, 1.5 + 0.25 * 9, 1.0 + 0.5 * 9]  # truncated: it does


def test_nothing_leaks_from_one_episode_into_the_one_before() -> None:
    over = column(False, True, False).bool()
    first, _ = gae(column(1, 1, 5), column(0, 0, 0), column(0, 2, 0), column(False, False, False).bool(), over, 0.9, 0.8)
    second, _ = gae(column(1, 1, -5), column(0, 0, 0), column(0, 2, 7), column(False, False, False).bool(), over, 0.9, 0.8)
    assert torch.equal(first[:2], second[:2])


@settings(max_examples=30, deadline=None)
@given(reward=st.floats(-2.0, 2.0), discount=st.floats(0.1, 0.99), trace=st.floats(0.0, 1.0), steps=st.integers(1, 30))
def test_true_values_have_no_advantage(reward: float, discount: float, trace: float, steps: int) -> None:
    worth = reward / (1 - discount)  # of a reward a step for ever
    values = torch.full((steps, 1), worth, dtype=torch.float64)
    over = torch.zeros(steps, 1, dtype=torch.bool)
    over[-1] = True
    rewards = torch.full((steps, 1), reward, dtype=torch.float64)
    advantage, target = gae(rewards, values, values, torch.zeros_like(over), over, discount, trace)
    torch.testing.assert_close(advantage, torch.zeros_like(advantage), atol=1e-9, rtol=0)
    torch.testing.assert_close(target, values)


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(0, 20), min_size=1, max_size=5))
def test_running_moments_are_those_of_all_rows(sizes: list[int]) -> None:
    generator = torch.Generator().manual_seed(1)
    parts = [3 + 2 * torch.randn(size, 4, generator=generator) for size in sizes]
    running = Normaliser(4)
    for part in parts:
        running.update(part)
    rows = torch.cat(parts)
    if len(rows):
        torch.testing.assert_close(running.mean, rows.mean(dim=0), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(running.square, rows.var(dim=0, unbiased=False), atol=1e-4, rtol=1e-3)


def observed(scene: Scene) -> dict[str, torch.Tensor]:
    env = DriveVectorEnv(len(scene), scene, "constant_velocity")
    seen, _ = env.reset(seed=0, options={"scene": list(scene.id)})
    assert isinstance(seen, dict)
    return as_tensors(seen)


def test_the_order_of_rows_means_nothing_and_masked_rows_say_nothing() -> None:
    network, seen = DriverNetwork().eval(), observed(several_roads())
    network.learn_scales(seen)
    mean, spread, value = network(seen)
    assert (mean.shape, spread.shape, value.shape) == ((4, 2), (2,), (4,))
    shuffled = dict(seen)
    for name in ("agents", "polylines", "signals"):
        order = torch.randperm(seen[name].shape[1], generator=torch.Generator().manual_seed(2))
        for part in (name, f"{name}_mask", *(["polylines_points"] if name == "polylines" else [])):
            shuffled[part] = seen[part][:, order]
    torch.testing.assert_close(network(shuffled)[0], mean)
    noise = {**seen, "agents": torch.where(seen["agents_mask"].bool()[..., None], seen["agents"], 7.0)}
    torch.testing.assert_close(network(noise)[0], mean)


def test_the_drive_does_not_depend_on_the_frame() -> None:
    network = DriverNetwork().eval()
    here, there = observed(straight_road()), observed(moved(straight_road(), 2.0, (100.0, -50.0)))
    torch.testing.assert_close(network(there)[0], network(here)[0], atol=1e-4, rtol=0)


def test_a_saved_driver_drives_the_same(tmp_path: Path) -> None:
    network, seen = DriverNetwork(NetworkConfig(width=8, hidden=16)), observed(several_roads())
    network.learn_scales(seen)
    network.save_pretrained(tmp_path / "model")
    policy = load_policy(str(tmp_path / "model"))
    assert isinstance(policy, NetworkPolicy)
    assert torch.equal(policy.network(seen)[0], network.eval()(seen)[0])
    env = DriveVectorEnv(4, several_roads(), "constant_velocity", action="physical")
    shown, _ = env.reset(seed=0)
    env.step(policy.act(shown, env.state).numpy())
    with pytest.raises(ValueError, match='sees the "state" observation, found an image'):
        policy.act(np.zeros((1, 96, 96, 7)), None)


def test_broken_drivers_are_refused(tmp_path: Path) -> None:
    DriverNetwork(NetworkConfig(width=8, hidden=16)).save_pretrained(tmp_path / "model")
    (tmp_path / "model/config.json").write_text(json.dumps({"driver": 1, "width": 9, "hidden": 16, "route_points": 20}))
    with pytest.raises(ValueError, match="model: not a driver's network"):
        load_policy(str(tmp_path / "model"))
    tiny_model().save_pretrained(tmp_path / "behaviour")
    with pytest.raises(ValueError, match="behaviour: not a driver's network .it is of something else."):
        load_policy(str(tmp_path / "behaviour"))
    (tmp_path / "model/model.safetensors").unlink()
    with pytest.raises(ValueError, match="not found|not a driver's network"):
        load_policy(str(tmp_path / "model"))


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, count in (("made", 6), ("held", 2)):
        with ShardWriter(tmp_path / name) as writer:
            for i in range(count):
                road = straight_road(f"hand/{name}{i}", ego_speed=6.0 + i, leader_gap=60.0)
                alone = torch.arange(6)[None, :, None] == EGO
                writer.add(replace(road, valid=road.valid & alone))
    return tmp_path


def test_a_clone_learns_its_expert(places: Path) -> None:
    words = ["train", "clone", "--expert", "constant", "--scenes", "made", "--validation", "held", "--world", "constant_velocity"]
    words += [
        "--rounds",
        "2",
        "--steps",
        "480",
        "--envs",
        "6",
        "--epochs",
        "30",
        "--batch",
        "64",
        "--horizon",
        "40",
        "--threads",
        "1",
    ]
    assert main([*words, "--out", "clone"]) == 0
    rows = [json.loads(line) for line in Path("clone/metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < 0.05 * losses[0]
    assert rows[-1]["nuplan"] > 0.9
    assert rows[-1]["moments"] == 960
    assert Path("clone/learning_curves.png").stat().st_size > 5_000
    assert (
        main(
            ["rollout", "--policy", "clone/model", "--world", "constant_velocity", "--scenes", "held", "--no-video", "--out", "r"]
        )
        == 0
    )


def test_a_truncated_episode_is_worth_what_would_have_come(places: Path) -> None:
    args = Ppo("made", "held", world="constant_velocity", envs=3, rollout_steps=12)
    trainer = Trainer(args, DriverNetwork(NetworkConfig(width=8, hidden=16)))

    def begun() -> tuple[DriveVectorEnv, dict[str, torch.Tensor]]:
        env = DriveVectorEnv(3, "made", "constant_velocity", horizon=5)
        seen, _ = env.reset(seed=4)
        assert isinstance(seen, dict)
        return env, as_tensors(seen)

    env, seen = begun()
    batch, _ = trainer.drive(env, seen)
    part = {name: batch[name].view(12, 3, -1).squeeze(-1) for name in ("action", "reward", "target", "over", "terminated")}
    assert part["over"].sum() == 6
    assert not part["terminated"].any()
    again, _ = begun()
    for step in range(12):
        *_, truncated, infos = again.step(part["action"][step].clamp(-1, 1).numpy())
        assert truncated.tolist() == part["over"][step].tolist()
        for row in np.flatnonzero(truncated):
            final = {name: torch.from_numpy(array[None]) for name, array in infos["final_obs"][row].items()}
            expected = part["reward"][step, row] + args.discount * trainer.network(final)[2][0]
            assert part["target"][step, row].item() == pytest.approx(expected.item(), abs=1e-5)


def test_a_checkpoint_holds_all_that_goes_on(tmp_path: Path) -> None:
    args = Ppo("made", "held", envs=2, rollout_steps=4, minibatches=2)
    trainer = Trainer(args, DriverNetwork(NetworkConfig(width=8, hidden=16)))
    seen = observed(several_roads())
    batch = {f"seen_{name}": tensor for name, tensor in seen.items()}
    batch |= {name: torch.arange(4.0) for name in ("likelihood", "value", "advantage", "target")} | {"action": torch.zeros(4, 2)}
    trainer.learn(batch)
    trainer.best = 0.25
    trainer.save(tmp_path)
    other = Trainer(args, DriverNetwork(NetworkConfig(width=8, hidden=16)))
    other.load(tmp_path)
    assert (other.update, other.best) == (1, 0.25)
    for name, tensor in trainer.network.state_dict().items():
        assert torch.equal(other.network.state_dict()[name], tensor)
    trainer.learn(batch)
    other.learn(batch)  # the same order of rows, the same moments of Adam
    for name, tensor in trainer.network.state_dict().items():
        assert torch.equal(other.network.state_dict()[name], tensor)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a run."""
    reason = 'needs pip install "worldloop[tensorboard]"'
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason=reason)
    events = event_accumulator.EventAccumulator(str(folder)).Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_events_that_a_kill_has_left_are_not_shown(tmp_path: Path) -> None:
    with event_files(tmp_path, 0) as note:
        for step in range(1, 6):
            note(step, {"reward": step})
    time.sleep(1.1)  # TensorBoard reads files in the order of their names, which tell seconds
    with event_files(tmp_path, 3) as note:
        note(4, {"reward": 40.0})
    assert scalars(tmp_path) == {"reward": [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]}


def test_without_tensorboard_a_training_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with event_files(tmp_path, 0) as note:
        note(1, {"reward": 1.0})
    assert 'pip install "worldloop[tensorboard]"' in capsys.readouterr().out
    assert not any(tmp_path.iterdir())


def test_ppo_learns_to_go_and_goes_on_after_a_kill(places: Path) -> None:
    words = ["train", "ppo", "--scenes", "made", "--validation", "held", "--world", "constant_velocity", "--reward", "progress"]
    words += [
        "--envs",
        "8",
        "--rollout-steps",
        "32",
        "--horizon",
        "40",
        "--evaluate-every",
        "4",
        "--threads",
        "1",
        "--out",
        "ppo",
    ]
    assert main([*words, "--steps", "1024"]) == 0
    rows = [json.loads(line) for line in Path("ppo/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    with Path("ppo/metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "rew')
    assert main([*words, "--steps", "4096", "--resume"]) == 0
    rows = [json.loads(line) for line in Path("ppo/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 17))
    assert all(
        sum(row[f"reward/{term}"] for term in PRESETS["progress"]) == pytest.approx(row["reward"], abs=1e-6) for row in rows
    )
    early, late = (np.mean([row["reward"] for row in part]) for part in (rows[:3], rows[-3:]))
    assert late > early
    assert (
        max(row["nuplan"] for row in rows if "nuplan" in row) == json.loads(Path("ppo/run.json").read_text())["results"]["best"]
    )
    assert isinstance(load_policy("ppo/model"), NetworkPolicy)
    shown = scalars(Path("ppo"))
    assert set(shown) == {name for row in rows for name in row} - {"step"}
    for name, events in shown.items():
        written = [(row["step"], pytest.approx(row[name], rel=1e-6, abs=1e-6)) for row in rows if name in row]
        assert events == written, name


def test_a_start_that_is_never_surpassed_stays_the_best(places: Path) -> None:
    start = DriverNetwork(NetworkConfig(width=8, hidden=16))
    start.save_pretrained(Path("start"))
    found = iter([{"nuplan": 0.5, "epdms": 0.5}, {"nuplan": 0.4, "epdms": 0.4}])
    args = Ppo("made", "held", world="constant_velocity", start_from=Path("start"), steps=16, envs=2, rollout_steps=8)
    trainer, env = Trainer(args, DriverNetwork.from_pretrained(Path("start"))), DriveVectorEnv(2, "made", "constant_velocity")
    results = train(trainer, env, start_run(Path("ppo"), "train ppo", {}, 0), lambda: next(found), Console(quiet=True))
    assert (results["nuplan"], results["best"]) == (0.4, 0.5)
    assert [(row["step"], row["nuplan"]) for row in read_metrics(Path("ppo"))] == [(0, 0.5), (1, 0.4)]
    kept = DriverNetwork.from_pretrained(Path("ppo/model")).state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in start.state_dict().items())


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--validation", "made"], "hand/made0 is a training scene too"),
        (["--envs", "0"], "wanted --steps, --envs"),
        (["--resume"], "--resume: wanted --out"),
        (["--start-from", "nowhere"], "nowhere/config.json: not found"),
        (["--reward", "miles"], "reward='miles' is unknown"),
    ],
)
def test_bad_input_is_refused(places: Path, capsys: pytest.CaptureFixture[str], more: list[str], complaint: str) -> None:
    assert main(["train", "ppo", "--scenes", "made", "--validation", "held", *more]) == 2
    assert complaint in " ".join(capsys.readouterr().err.split())
