"""`worldloop fidelity` on hand-made roads with a tiny real model."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace

import pytest
import torch
from models import tiny_model
from scenes import damaged, several_roads, straight_road
from worldloop.agents.fidelity import FIGURES, Fidelity, finish_rows, run_fidelity, score, summarise
from worldloop.envs.realism import FEATURES
from worldloop.envs.realism_features import object_features
from worldloop.worldmodel.data.writing import ShardWriter
from worldloop.worldmodel.open_loop import logged_futures, scored_agents


@pytest.fixture
def weights(tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def data_set(folder, *scenes):
    with ShardWriter(folder) as writer:
        for scene in scenes:
            writer.add(scene)
    return str(folder)


def test_a_run_writes_figures_distributions_and_pictures(tmp_path, weights):
    bare = straight_road("bare/1", steps=31, edges=False)
    bare = replace(bare, signal_valid=bare.signal_valid & False)
    sources = (data_set(tmp_path / "roads", several_roads(2)), data_set(tmp_path / "bare", bare))
    run_fidelity(Fidelity(scenes=sources, weights=weights, rollouts=3, horizon=25, out=tmp_path / "run"))
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    results = record["results"]
    assert record["status"] == "finished"
    assert results["steps"] == [20, 25]
    assert results["left_out"] == {
        "distance_to_road_edge": 1,
        "offroad_indication": 1,
        "traffic_light_violation": 1,
    }
    worlds = {row["world"]: row for row in results["worlds"]}
    assert list(worlds) == ["learned", "IDM along the lane", "constant velocity", "log"]
    assert worlds["log"]["rmm_ratio"] == 1
    assert worlds["log"]["min_ade"] == 0
    assert worlds["constant velocity"]["min_ade"] == pytest.approx(0, abs=1e-3)  # everyone does drive so
    assert worlds["learned"]["rmm"] < worlds["log"]["rmm"]
    for row in worlds.values():
        for name in FIGURES:
            if row[name] is None:
                assert name == "min_ade_3s" or (name, row["world"]) == ("rmm_lead", "learned")  # logs of less than 3 s
                continue
            assert row[f"{name}_low"] - 1e-9 <= row[name] <= row[f"{name}_high"] + 1e-9
    rows = list(csv.DictReader((tmp_path / "run" / "scenes.csv").open()))
    assert len(rows) == 3 * 4
    assert [row["off_road_rate"] for row in rows if row["scene"] == "bare/1"] == [""] * 4
    distributions = json.loads((tmp_path / "run" / "distributions.json").read_text())
    for name in FEATURES:
        assert sum(distributions[name]["recorded"]) == pytest.approx(1)
        assert all(sum(found) == pytest.approx(1) for found in distributions[name]["worlds"].values())
        assert (tmp_path / "run" / "distributions" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


def test_red_lights_count_where_the_data_set_has_signals():
    with_signals, scene = straight_road(), straight_road()
    without = replace(scene, signal_valid=scene.signal_valid & False)

    def row(scene):
        futures, scored = logged_futures(scene, 20), scored_agents(scene, ego_too=True)
        return score(futures, scene, object_features(scene, futures, scored))[0]

    alone, together = [row(without)], [row(without), row(with_signals)]
    finish_rows(alone, 2025)
    finish_rows(together, 2025)
    assert alone[0]["traffic_light_violation"] is None
    assert together[0]["traffic_light_violation"] > 0.99
    assert together[0]["rmm"] == pytest.approx(0.95 * alone[0]["rmm"] + 0.05 * together[0]["traffic_light_violation"])


def test_summary_by_hand():
    rows = [{name: value for name in FIGURES} | {"rmm": value} for value in (0.2, 0.4)]
    rows[1] |= {"off_road_rate": None}
    log = [{"rmm": 0.5}, {"rmm": 0.7}]
    better = [{"rmm": 0.3}, {"rmm": 0.6}]
    found = summarise(rows, log, better, [0, 1], 0)
    assert found["rmm"] == pytest.approx(0.3)
    assert found["rmm_ratio"] == pytest.approx(0.6 / 1.2)
    assert found["off_road_rate"] == pytest.approx(0.2)
    assert (found["rmm_low"], found["rmm_high"]) == pytest.approx((0.2, 0.4))
    assert found["rmm_lead"] == pytest.approx(0.15)
    assert (found["rmm_lead_low"], found["rmm_lead_high"]) == pytest.approx((0.1, 0.2))
    assert summarise(rows, log, rows, [0, 1], 0)["rmm_lead"] is None
    assert summarise([{name: None for name in FIGURES} | {"rmm": 0.5}], log[:1], better[:1], [0], 0)["min_ade"] is None


def test_copies_of_a_recording_do_not_narrow_the_intervals():
    values = (0.2, 0.4)
    rows = [{name: value for name in FIGURES} | {"rmm": value} for value in values for _ in range(20)]
    apart, together = (summarise(rows, rows, rows, recording, 0) for recording in (range(40), [0] * 20 + [20] * 20))
    assert together["recordings"] == 2
    assert (together["rmm_low"], together["rmm_high"]) == pytest.approx(values)
    assert apart["rmm_high"] - apart["rmm_low"] < 0.1


def test_a_broken_scene_is_counted_and_the_others_are_scored(tmp_path, weights, capsys):
    roads = (damaged(tmp_path / "damaged", several_roads(2)), data_set(tmp_path / "ends", straight_road(steps=11)))
    assert run_fidelity(Fidelity(scenes=roads, weights=weights, rollouts=2, out=tmp_path / "run")) == 1
    results = json.loads((tmp_path / "run" / "run.json").read_text())["results"]
    assert [row["scenes"] for row in results["worlds"]] == [1, 1, 1, 1]
    assert results["failed"] == 2
    assert "its log ends at the present" in capsys.readouterr().err


def test_a_world_of_ones_own_is_scored(tmp_path, monkeypatch):
    """Going straight on is one of the references: brought along as one's own world it scores the same."""
    text = "from worldloop.worldmodel.world import ConstantVelocityWorld\n\nstraight = ConstantVelocityWorld()\nnothing = 3\n"
    (tmp_path / "my_fidelity_world.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    roads = (data_set(tmp_path / "roads", several_roads(2)),)
    assert run_fidelity(Fidelity(scenes=roads, world="my_fidelity_world:straight", rollouts=2, out=tmp_path / "run")) == 0
    results = json.loads((tmp_path / "run" / "run.json").read_text())["results"]
    own, _, reference, _ = results["worlds"]
    assert own.pop("world") == "my_fidelity_world:straight"
    assert reference.pop("world") == "constant velocity"
    leads = [{name: row.pop(name) for name in list(row) if name.startswith("rmm_lead")} for row in (own, reference)]
    assert [set(lead.values()) for lead in leads] == [{None}, {0.0}]
    assert own == reference
    assert "weights_checksum" not in results
    broken = "worlds = {}\n\nclass Broken(type(straight)):\n    def step(self, state, ego):\n        return worlds['mars']\n"
    nothing = "\n\nclass Nothing(type(straight)):\n    def reset(self, scenes, key):\n        pass\n"
    lost = """
from dataclasses import replace

class Lost(type(straight)):
    def step(self, state, ego):
        return replace(super().step(state, ego), valid=state.driven)

class Nowhere(type(straight)):
    def step(self, state, ego):
        return replace(super().step(state, ego), heading=state.heading * float("nan"))
"""
    (tmp_path / "my_broken_world.py").write_text(text + broken + nothing + lost)
    place = f"{tmp_path / 'my_broken_world.py'}:9"
    for world, told in (
        ("my_broken_world:Broken", f"hand/0: the world's step raised KeyError: 'mars' ({place})"),
        ("my_broken_world:Nothing", "hand/0: the world's reset returned a NoneType, wanted a State of 2 scenes"),
        ("my_broken_world:Lost", "hand/0: the world's step let road users vanish"),
        ("my_broken_world:Nowhere", "hand/0: the world's step returned places or headings that are NaN or infinite"),
    ):
        with pytest.raises(ValueError, match=f"of 2 scenes all failed, the first one: {re.escape(told)}"):
            run_fidelity(Fidelity(scenes=roads, world=world, rollouts=2, out=tmp_path / "broken"))
        assert not (tmp_path / "broken").exists()
    for world, message in (("sumo", "wanted learned or"), ("my_fidelity_world:nothing", "a int without reset and step")):
        with pytest.raises(ValueError, match=message):
            run_fidelity(Fidelity(scenes=roads, world=world))
    with pytest.raises(ValueError, match="epsilon are for the learned world"):
        run_fidelity(Fidelity(scenes=roads, world="my_fidelity_world:straight", epsilon=0.5))
    with pytest.raises(ValueError, match="is for the learned world"):
        run_fidelity(Fidelity(scenes=roads, world="my_fidelity_world:straight", weights=tmp_path))


def test_bad_input_is_refused(tmp_path, weights):
    roads = (data_set(tmp_path / "roads", straight_road(steps=11)),)
    with pytest.raises(ValueError, match="wanted at least 1 of each"):
        run_fidelity(Fidelity(scenes=roads, weights=weights, rollouts=0))
    with pytest.raises(ValueError, match="its log ends at the present"):
        run_fidelity(Fidelity(scenes=roads, weights=weights, out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    assert torch.is_grad_enabled()
