"""`worldloop counterfactual`: figures worked out by hand, interventions on hand-made roads, runs with a tiny real model."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
from dataclasses import replace

import pytest
import torch
from models import tiny_model
from scenes import EGO, FOLLOWER, LEADER, NEIGHBOUR, several_roads, straight_road
from worldloop.agents import cli
from worldloop.agents.counterfactual import COUNTS, FIGURES, KEEP, Counterfactual, run_counterfactual, summarise
from worldloop.agents.data import Intervene, run_intervene
from worldloop.agents.interventions import INTERVENTIONS, answered_scene, follower, plan_interventions
from worldloop.envs.reactions import (
    held_speed,
    mean_change,
    other_key_distance,
    path_change,
    response_delay,
    response_sign,
    travelled,
)
from worldloop.worldmodel.data import SceneDataset
from worldloop.worldmodel.data.writing import ShardWriter
from worldloop.worldmodel.open_loop import Trace, box_distance, force_ego
from worldloop.worldmodel.world import ConstantVelocityWorld, LearnedWorld, ReplayWorld

needs_sumo = pytest.mark.skipif(importlib.util.find_spec("libsumo") is None, reason="needs SUMO")


def data_set(folder, *scenes):
    with ShardWriter(folder) as writer:
        for scene in scenes:
            writer.add(scene)
    return str(folder)


def straight(*speeds: float, steps: int = 10) -> Trace:
    """One agent (A = 1) in each row, from the origin along +x at the given speeds."""
    speed = torch.tensor(speeds)[:, None, None].expand(-1, 1, steps + 1)
    along = speed * 0.1 * torch.arange(steps + 1)
    return Trace(torch.stack((along, 0 * along), dim=-1), 0 * along, speed, torch.ones_like(along, dtype=torch.bool))


def test_delay_is_when_speed_or_acceleration_departs() -> None:
    kept = torch.full((4, 11), 10.0)
    brakes = kept.clone()
    brakes[0, 4:] -= 0.1 * torch.arange(1.0, 8.0)  # 1 m/s2 from the step that ends at 0.4 s on
    brakes[1] -= 0.02 * torch.arange(11.0)  # 0.2 m/s2 and at most 0.2 m/s: no answer
    brakes[2] -= 0.029 * torch.arange(11.0) * 2  # 0.58 m/s2 at once
    slow = kept - 0.025 * torch.arange(11.0)
    assert response_delay(brakes, kept).tolist()[:3] == pytest.approx([0.4, math.inf, 0.1])
    assert response_delay(slow, kept).isinf().all()
    long = torch.full((31,), 10.0)
    assert float(response_delay(long - 0.025 * torch.arange(31.0), long)) == pytest.approx(2.1)  # 0.525 m/s after 2.1 s


def test_distance_driven_and_its_sign() -> None:
    kept, moved = straight(10.0, 10.0, 10.0), straight(9.0, 10.4, 12.0)
    steps = torch.tensor([10])
    change = (travelled(moved, steps) - travelled(kept, steps))[:, 0]
    assert change.tolist() == pytest.approx([-1.0, 0.4, 2.0], abs=1e-4)
    assert response_sign(change).tolist() == [-1, 0, 1]
    assert travelled(kept, torch.tensor([3]))[0, 0] == pytest.approx(3.0, abs=1e-4)
    assert path_change(moved, kept)[:, 0].tolist() == pytest.approx([1.0, 0.4, 2.0], abs=1e-4)
    gone = replace(moved, valid=moved.valid & (torch.arange(11) < 6))  # leaves after 0.5 s
    assert path_change(gone, kept)[:, 0].tolist() == pytest.approx([0.5, 0.2, 1.0], abs=1e-4)


def test_energy_distance_is_zero_of_a_branch_with_itself_only() -> None:
    kept, moved = straight(10.0, 12.0), straight(5.0, 7.0)
    chance, cross = other_key_distance(kept, kept), other_key_distance(moved, kept)
    assert float(chance) == pytest.approx(1.0)  # 2 m/s apart, 0.5 s on average
    assert float(cross) == pytest.approx(2.5)  # 7 and 3 m/s apart
    assert float(2 * cross - chance - other_key_distance(moved, moved)) == pytest.approx(3.0)


def test_gap_between_boxes() -> None:
    size, none = torch.tensor([4.0, 2.0]), torch.tensor(0.0)
    at = lambda x, y, turn=0.0: box_distance(torch.zeros(2), none, size, torch.tensor([x, y]), torch.tensor(turn), size)  # noqa: E731
    assert float(at(10.0, 0.0)) == pytest.approx(6.0)
    assert float(at(7.0, 6.0)) == pytest.approx(5.0)  # 3 ahead and 4 beside
    assert float(at(0.0, 5.0, math.pi / 2)) == pytest.approx(2.0)
    assert float(at(3.0, 1.0)) == 0


def test_a_scene_gives_each_intervention_its_motion() -> None:
    scene = straight_road(leader_gap=70.0)
    scene.position[0, NEIGHBOUR, :, 0] += 60.0
    plan = plan_interventions(scene, INTERVENTIONS, 60)
    assert plan.branches == (KEEP, "hard_brake", "stop", "accelerate", "swerve", "cut_in")
    assert list(plan.refused) == ["creep"]
    x, y = plan.motion.position[..., 0], plan.motion.position[..., 1]
    speed = plan.motion.velocity.norm(dim=-1)
    assert x[:, -1].tolist() == pytest.approx([60.0, 100 / 12, 25.0, 60 + 9 + 18, 60.0, 60.0], abs=0.6)
    assert speed[:, -1].tolist() == pytest.approx([10, 0, 0, 16, 10, 10], abs=0.2)
    assert y[:4].abs().max() < 0.01
    assert 1.0 < float(y[4].max()) < 1.5
    assert abs(float(y[4, -1])) < 0.1
    assert float(y[5, -1]) == pytest.approx(3.5, abs=0.1)
    assert plan.follower[:5] == (FOLLOWER,) * 5
    assert plan.follower[5] is None  # the neighbour is ahead


def test_who_accelerates_does_not_run_into_who_is_ahead() -> None:
    scene = straight_road(leader_gap=25.0)
    x = plan_interventions(scene, ("accelerate",), 60).motion.position[1, :, 0]
    assert (scene.position[0, LEADER, 11:71, 0] - x - 4.5 > 1.0).all()


def test_nobody_cuts_into_a_box_and_who_stands_only_creeps() -> None:
    scene = straight_road(ego_speed=10.0)
    beside = scene.position.clone()
    beside[0, NEIGHBOUR, :, 0] = scene.position[0, EGO, :, 0] + 1.0
    plan = plan_interventions(replace(scene, position=beside), ("cut_in", "stop"), 60)
    assert plan.refused == {"cut_in": "no room in a neighbouring lane"}
    standing = plan_interventions(straight_road(ego_speed=0.0), INTERVENTIONS, 60)
    assert standing.branches == (KEEP,)
    assert len(standing.refused) == len(INTERVENTIONS)


def test_the_follower_is_the_nearest_behind_in_the_lane() -> None:
    state = ReplayWorld().reset(straight_road(), torch.zeros(1, dtype=torch.int64))
    assert follower(state) == FOLLOWER
    behind = replace(state, position=state.position.clone())
    behind.position[0, NEIGHBOUR, 0] = -12.0
    assert follower(behind) == FOLLOWER
    assert follower(behind, 3.5) == NEIGHBOUR
    far = ReplayWorld().reset(straight_road(follower_gap=45.0), torch.zeros(1, dtype=torch.int64))
    assert follower(far) is None


def test_worlds_get_the_same_ego_and_whom_it_does_not_concern_stays() -> None:
    scene, keys = straight_road(), torch.arange(3)
    plan = plan_interventions(scene, ("hard_brake",), 20)
    kept, braked = (plan.motion.map(lambda tensor, at=at: tensor[at]) for at in (0, 1))
    for world in (ConstantVelocityWorld(), LearnedWorld(tiny_model())):
        first, second, again = (force_ego(world, scene, motion, keys) for motion in (kept, braked, kept))
        assert torch.equal(second.position[:, EGO, 1:], braked.position[:, :2].expand(3, -1, -1))
        assert torch.equal(first.position, again.position)
        if isinstance(world, ConstantVelocityWorld):
            assert path_change(second, first)[:, EGO + 1 :].max() == 0
            assert second.gap(scene.size[0], EGO, FOLLOWER)[0, 0] == pytest.approx(15.5)


def test_summary_by_hand() -> None:
    def row(scene, intervention, agreeing, affected, collisions, followers):
        found = dict.fromkeys((*COUNTS, *(name for pair in FIGURES.values() for name in pair)), 0.0)
        found |= {"agreeing": agreeing, "affected": affected, "collisions": collisions, "followers": followers}
        return {"scene": scene, "recording": "ab".index(scene[0]), "intervention": intervention, "world": "learned"} | found

    rows = [
        row("a", KEEP, 0, 0, 1, 1),
        row("a", "stop", 1, 2, 0.5, 1),
        row("b", "stop", 1, 1, 0, 1),
        row("b", "swerve", 0, 2, 0, 0),
    ]
    found = {of["intervention"]: of for of in summarise(rows, 0)}
    assert list(found) == [KEEP, "stop", "swerve", "all"]
    assert found["stop"]["sign_agreement"] == pytest.approx(2 / 3)
    assert (found["stop"]["sign_agreement_low"], found["stop"]["sign_agreement_high"]) == pytest.approx((0.5, 1.0))
    assert found["swerve"]["follower_collision_rate"] is None
    assert found["all"]["sign_agreement"] == pytest.approx(2 / 5)
    assert found["all"]["follower_collision_rate"] == pytest.approx(0.25)
    assert (found["all"]["scenes"], found["all"]["cases"], found["all"]["affected"]) == (2, 3, 5)
    assert found["swerve"]["sign_agreement_low"] is None, "one recording alone has no interval"
    twins = {of["intervention"]: of for of in summarise([*rows, *(row | {"scene": row["scene"] + "2"} for row in rows)], 0)}
    for name in ("sign_agreement", "sign_agreement_low", "sign_agreement_high"):
        assert twins["stop"][name] == pytest.approx(found["stop"][name]), "another ego of the same moments says nothing new"
    assert (twins["stop"]["scenes"], twins["stop"]["recordings"]) == (4, 2)


def test_a_run_on_scenes_without_a_recipe(tmp_path) -> None:
    tiny_model().save_pretrained(tmp_path / "model")
    short = straight_road("hand/short", steps=20)
    scenes = data_set(tmp_path / "roads", several_roads(2), short)
    args = Counterfactual(scenes, rollouts=2, horizon=2.0, weights=tmp_path / "model", out=tmp_path / "run")
    with pytest.raises(ValueError, match="3 of the 3 scenes were not made by `worldloop data generate`.*--world learned"):
        run_counterfactual(args)
    assert run_counterfactual(replace(args, world="learned")) == 1  # the short one fails
    results = json.loads((tmp_path / "run" / "run.json").read_text())["results"]
    assert (results["scenes"], results["failed"]) == (3, 1)
    (failure,) = csv.DictReader((tmp_path / "run" / "failures.csv").open())
    assert failure["scene"] == "hand/short"
    assert "take a --horizon of 0.9 or less" in failure["error"]
    assert {row["world"] for row in results["figures"]} == {"learned"}
    assert (tmp_path / "run" / "hard_brake.png").read_bytes()[:4] == b"\x89PNG"
    assert run_counterfactual(replace(args, world="learned", limit=2, out=tmp_path / "second")) == 0
    alone = replace(args, scenes=data_set(tmp_path / "short", short), world="learned", out=tmp_path / "third")
    with pytest.raises(ValueError, match="of 1 scene all failed, the first one"):
        run_counterfactual(alone)
    assert not (tmp_path / "third").exists()
    creeping = replace(args, world="learned", limit=2, interventions=("creep",), out=tmp_path / "third")
    with pytest.raises(ValueError, match="none of the 2 scenes lets the ego do what was asked for"):
        run_counterfactual(creeping)  # there is no junction
    with pytest.raises(ValueError, match="wanted at least 2 rollouts"):
        run_counterfactual(replace(args, rollouts=1, out=tmp_path / "third"))


def test_without_sumo_the_error_names_the_extra(tmp_path, monkeypatch, capsys) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "libsumo" else find(name, *rest))
    assert cli.main(["counterfactual", "--limit", "1", "--out", str(tmp_path / "run")]) == 2
    assert 'pip install "worldloop[sumo]"' in capsys.readouterr().err


@needs_sumo
def test_a_run_with_the_reference(tmp_path) -> None:
    tiny_model().save_pretrained(tmp_path / "model")
    args = Counterfactual(
        "demo:*merge*", ("hard_brake", "swerve"), rollouts=2, horizon=3.0, weights=tmp_path / "model", out=tmp_path / "run"
    )
    assert run_counterfactual(args) == 0
    rows = list(csv.DictReader((tmp_path / "run" / "cases.csv").open()))
    assert {row["world"] for row in rows} == {"learned", "sumo"}
    for row in rows:
        signs = sum(int(float(row[name])) for name in ("slower", "same", "faster"))
        assert signs == int(float(row["affected"]))
        if row["world"] == "sumo":
            assert float(row["agreeing"]) == signs
            assert float(row["change"]) <= 0.1 * float(row["unaffected"])
    found = list(csv.DictReader((tmp_path / "run" / "responses.csv").open()))
    assert len(found) == sum(int(float(row["affected"])) for row in rows if row["world"] == "sumo")


def test_who_is_gone_in_one_branch_is_compared_while_in_both() -> None:
    """The same motion, but in one branch the agent leaves two steps earlier: its places are zeros from then on."""
    kept = straight(8.0)
    moved = replace(kept, valid=kept.valid.clone(), position=kept.position.clone())
    moved.valid[..., -2:], moved.position[..., -2:, :] = False, 0.0
    assert mean_change(moved, kept).max() == 0
    speeds = [held_speed(trace, moved, kept) for trace in (moved, kept)]
    assert response_delay(*speeds).isinf().all()


def test_answered_scenes_keep_the_past_and_hold_what_the_world_showed() -> None:
    scene = straight_road(ego_speed=10.0, steps=41)
    plan = plan_interventions(scene, ("swerve", "hard_brake"), 30)
    braked = answered_scene(scene, ConstantVelocityWorld(), plan, "hard_brake")
    braked.validate()
    assert braked.id == (f"{scene.id[0]}#hard_brake",)
    assert braked.recipe == ("",), "SUMO would start the scene without the intervention"
    assert torch.equal(braked.position[:, :, :11], scene.position[:, :, :11])
    speed = braked.velocity[0, EGO, 10:].norm(dim=-1)
    assert torch.allclose(-torch.diff(speed)[:15] / 0.1, torch.full((15,), 6.0), atol=0.05)
    ahead = scene.position[0, LEADER, 10] + 3.0 * torch.nn.functional.pad(scene.velocity[0, LEADER, 10], (0, 1))
    assert torch.allclose(braked.position[0, LEADER, 40], ahead, atol=1e-3), "others are the world's"


@needs_sumo
def test_interventions_in_sumo_become_scenes_in_which_followers_answer(tmp_path) -> None:
    assert cli.main(["data", "generate", str(tmp_path / "made"), "--templates", "arterial", "--scenes", "8", "--seed", "3"]) == 0
    line = ["data", "intervene", str(tmp_path / "made"), str(tmp_path / "moved"), "--interventions", "hard_brake"]
    assert cli.main([*line, "--workers", "1", "--out", str(tmp_path / "run")]) == 0
    made, moved = SceneDataset(tmp_path / "made"), SceneDataset(tmp_path / "moved")
    assert len(moved) > 0
    changed = 0.0
    for scene in moved:
        before = made.load(scene.id[0].removesuffix("#hard_brake"))
        apart = (scene.position - before.position).norm(dim=-1)
        assert scene.valid[0, int(scene.ego), -1]
        assert apart[0, int(scene.ego), -1] > 0.5
        assert apart[:, :, :11].max() == 0
        both = (scene.valid & before.valid).index_fill(1, scene.ego, False)
        changed = max(changed, float(torch.where(both, apart, 0.0).max()))
    assert changed > 1.0, "somebody answers"
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["results"]["interventions"] == {"hard_brake": len(moved)}
    with pytest.raises(ValueError, match="were not made by `worldloop data generate`"):
        run_intervene(Intervene(str(tmp_path / "moved"), tmp_path / "again", out=tmp_path / "refused"))


@needs_sumo
def test_a_scene_that_fails_is_counted_and_one_without_a_future_stops_nothing(tmp_path, capsys) -> None:
    for name, steps in (("long", 60), ("short", 11)):
        line = ["data", "generate", str(tmp_path / name), "--templates", "arterial", "--scenes", "2", "--steps", str(steps)]
        assert cli.main([*line, "--workers", "1", "--out", str(tmp_path / f"made {name}")]) == 0
    with ShardWriter(tmp_path / "both") as writer:
        for name in ("long", "short"):
            for number, scene in enumerate(SceneDataset(tmp_path / name)):
                writer.add(replace(scene, id=(f"{name}/{number}",)))
    line = ["data", "intervene", str(tmp_path / "both"), str(tmp_path / "moved"), "--interventions", "hard_brake", "creep"]
    assert cli.main([*line, "--workers", "1", "--out", str(tmp_path / "run")]) == 1
    with (tmp_path / "run" / "failures.csv").open() as file:
        failures = list(csv.DictReader(file))
    assert [row["scene"] for row in failures] == ["short/0", "short/1"]
    assert "its log ends at the present" in failures[0]["error"]
    results = json.loads((tmp_path / "run" / "run.json").read_text())["results"]
    assert results["failed"] == 2
    assert results["scenes"] + sum(row["scenes"] for row in results["left_out"]) == 2 * 2, "all that was asked is accounted for"
    only = [*line[:2], f"{tmp_path / 'both'}:short/*", *line[3:]]
    assert cli.main([*only, "--overwrite", "--out", str(tmp_path / "none")]) == 2
    assert "the first one: short/0, all: its log ends" in " ".join(capsys.readouterr().err.split())
    assert cli.main(["data", "intervene", str(tmp_path / "long"), str(tmp_path / "long"), "--overwrite"]) == 2
    assert len(SceneDataset(tmp_path / "long")) == 2


def test_what_cannot_be_intervened_in_is_refused(tmp_path, capsys) -> None:
    place = data_set(tmp_path / "recorded", straight_road())
    assert cli.main(["data", "intervene", place, str(tmp_path / "new")]) == 2
    assert "1 of the 1 scenes were not made by" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "new").exists()
