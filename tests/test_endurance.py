"""`worldloop endurance`: its sums against cases worked out by hand, and a whole run."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pytest
import torch
from models import tiny_model
from scenes import EGO, FOLLOWER, LEADER, damaged, several_roads, straight_road
from worldloop.agents.endurance import (
    SPEED_BINS,
    SUMS,
    Endurance,
    Tally,
    endure,
    quantile,
    run_endurance,
    summarise,
    wasserstein,
)
from worldloop.worldmodel.borders import touching
from worldloop.worldmodel.data.writing import ShardWriter
from worldloop.worldmodel.world import ConstantVelocityWorld, logged_state


def arguments(**options) -> Endurance:
    return Endurance(**({"scenes": (), "rollouts": 1, "seconds": 4, "window": 2} | options))


def test_sums_by_hand():
    """Leader, follower and neighbour drive 10, 10 and 8 m/s, a pedestrian walks 1 m/s; the cone stands, the ego is left out."""
    tally = endure(ConstantVelocityWorld(), straight_road(), arguments(rollouts=3), torch.Generator().manual_seed(0))
    sums = dict(zip(SUMS, tally.sums.T[0].tolist(), strict=True))
    assert sums["samples"] == 3 * 2  # futures, looks a second
    assert sums["agents"] == 3 * 2 * 4
    assert sums["speed"] == pytest.approx(3 * 2 * 29, rel=1e-4)
    assert sums["minutes"] == pytest.approx(3 * 4 / 60)
    assert sums["contacts"] == 0
    assert (sums["off_road"], sums["off_road_asked"]) == (0, 3 * 2 * 3)
    assert tally.speeds.sum(-1).tolist() == [3 * 2 * 4 * 2] * 2


def test_a_collision_is_counted_once_for_each_who_has_it():
    """The follower, 20 m behind and 4.5 m long, drives 10 m/s faster than the leader stands; it passes through in 0.9 s."""
    scene = straight_road(leader_gap=100.0, follower_gap=-80.0)
    velocity = scene.velocity.index_fill(1, torch.tensor([LEADER]), 0.0)
    tally = endure(ConstantVelocityWorld(), replace(scene, velocity=velocity), arguments(), torch.Generator().manual_seed(0))
    assert tally.sums[SUMS.index("contacts")].tolist() == [0, 2, 0, 0]  # 1.55 s until they touch


def test_who_leaves_the_known_area_counts_no_more():
    """A log of 1.1 s and a map that ends at x = 200: the leader, from x = 180 at 10 m/s, is 15 m beyond it after 3.5 s."""
    scene = straight_road(leader_gap=180.0, steps=11)
    tally = endure(ConstantVelocityWorld(), scene, arguments(seconds=5), torch.Generator().manual_seed(0))
    assert tally.sums[SUMS.index("agents")].tolist() == [8, 8, 8, 6, 6]


def test_touching_by_hand():
    scene = straight_road(leader_gap=4.4, follower_gap=4.6)  # cars of 4.5 m
    assert touching(logged_state(scene, torch.zeros(1, dtype=torch.int64)))[0].nonzero()[:, 0].tolist() == [EGO, LEADER]
    hidden = replace(scene, valid=scene.valid.index_fill(1, torch.tensor([LEADER]), False))
    assert not touching(logged_state(hidden, torch.zeros(1, dtype=torch.int64))).any()
    assert not touching(logged_state(scene, torch.zeros(1, dtype=torch.int64)))[0, FOLLOWER]


def speeds(*metres_per_second: float) -> torch.Tensor:
    counts = torch.zeros(SPEED_BINS, dtype=torch.float64)
    for value in metres_per_second:
        counts[round(value * 10)] += 1
    return counts


def test_the_distance_of_distributions_by_hand():
    same = torch.stack((speeds(1, 2, 3), speeds(1, 1, 2, 2, 3, 3)))
    moved = torch.stack((speeds(1, 2, 3), speeds(3, 4, 5)))
    half = torch.stack((speeds(0, 0), speeds(0, 5)))
    assert wasserstein(torch.stack((same, moved, half))).tolist() == pytest.approx([0, 2, 2.5])
    assert quantile(speeds(1, 2, 3, 4), 0.5) == pytest.approx(2.05)
    assert quantile(speeds(), 0.5) is None


def made(agents: tuple[float, float], speed: float = 5.0, contacts: float = 1.0) -> Tally:
    """Two seconds: so many road users, all at `speed`."""
    sums = torch.zeros(len(SUMS), 2, dtype=torch.float64)
    sums[SUMS.index("samples")] = 1
    sums[SUMS.index("agents")] = torch.tensor(agents, dtype=torch.float64)
    sums[SUMS.index("speed")] = speed * sums[SUMS.index("agents")]
    sums[SUMS.index("contacts")], sums[SUMS.index("minutes")] = contacts, 2.0
    return Tally(sums, torch.stack((speeds(speed), speeds(speed))))


def test_summary_by_hand():
    found = summarise([made((10, 9)), made((30, 21))], [0, 1], 1, 0)
    assert (found["density_start"], found["density_end"]) == (20, 15)
    assert found["density_ratio"] == pytest.approx(0.75)
    assert (found["density_ratio_low"], found["density_ratio_high"]) == pytest.approx((0.7, 0.9))
    assert found["speed_ratio"] == pytest.approx(1)
    assert found["collisions_start"] == pytest.approx(0.5)
    assert found["off_road_ratio"] is None
    assert found["speed_distance_ratio"] == 0
    assert found["within"]
    copied = summarise([made((10, 9)), made((10, 9)), made((30, 21))], [0, 0, 2], 1, 0)
    assert copied["recordings"] == 2
    assert (copied["density_ratio_low"], copied["density_ratio_high"]) == pytest.approx((0.7, 0.9))
    assert not summarise([made((10, 7))], [0], 1, 0)["within"]
    assert summarise([made((10, 10), contacts=0.0)], [0], 1, 0)["within"]  # nobody collides, neither first nor last


def test_a_run_writes_figures_and_curves(tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    with ShardWriter(tmp_path / "roads") as writer:
        writer.add(several_roads(2))
    roads = (str(tmp_path / "roads"),)
    assert run_endurance(arguments(scenes=roads, weights=tmp_path / "model", rollouts=2, out=tmp_path / "run")) == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "finished"
    worlds = [row["world"] for row in record["results"]["worlds"]]
    assert worlds == ["learned, open", "learned, closed", "IDM, open", "IDM, closed"]
    for row in record["results"]["worlds"]:
        assert row["scenes"] == 2
        assert row["density_ratio_low"] <= row["density_ratio"] <= row["density_ratio_high"]
    assert len(list(csv.DictReader((tmp_path / "run" / "scenes.csv").open()))) == 2 * 4 * 4
    assert (tmp_path / "run" / "endurance.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("options", [{"rollouts": 0}, {"seconds": 3}, {"window": 0}])
def test_bad_arguments_are_refused(options):
    with pytest.raises(ValueError, match="wanted at least 1"):
        run_endurance(arguments(**options))


def test_no_scenes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="found no scenes"):
        run_endurance(arguments(out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_damaged_scene_is_counted_and_the_others_run(tmp_path, capsys):
    tiny_model().save_pretrained(tmp_path / "model")
    args = arguments(scenes=(damaged(tmp_path / "roads", several_roads(2)),), weights=tmp_path / "model", out=tmp_path / "run")
    assert run_endurance(args) == 1
    results = json.loads((tmp_path / "run" / "run.json").read_text())["results"]
    assert [row["scenes"] for row in results["worlds"]] == [1, 1, 1, 1]
    assert results["failed"] == 1
    assert "failed: hand/0: " in capsys.readouterr().err
    alone = replace(args, scenes=(f"{tmp_path / 'roads'}:hand/0",), out=tmp_path / "second")
    with pytest.raises(ValueError, match="of 1 scene all failed, the first one: hand/0"):
        run_endurance(alone)
    assert not (tmp_path / "second").exists()
