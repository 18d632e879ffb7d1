import json
import shutil

import pytest
import torch
from models import tiny_model
from worldloop.agents.card import BEGIN, END, Card, run_card
from worldloop.agents.card_tables import fidelity_table
from worldloop.worldmodel.lineage import read_stages, write_stages
from worldloop.worldmodel.train_behavior import what_was_done
from worldloop.worldmodel.uncertainty import Calibration, weights_checksum


def figures(world, value):
    names = ("rmm", "rmm_ratio", "rmm_lead", "min_ade_3s", "min_ade", "collision_rate", "off_road_rate")
    return {"world": world, "scenes": 3, "recordings": 2} | {
        f"{name}{end}": value for name in names for end in ("", "_low", "_high")
    }


@pytest.fixture
def runs(tmp_path):
    training, fidelity = tmp_path / "training", tmp_path / "fidelity"
    tiny_model().save_pretrained(training / "model")
    fidelity.mkdir()
    arguments = {
        "data": ["/home/someone/scenes/ngsim:*US101*=2"],
        "validation": ["/home/someone/scenes/ngsim:*Peach*"],
        "out": "x",
    }
    record = {"command": "train behavior", "status": "finished", "arguments": arguments}
    (training / "run.json").write_text(json.dumps(record))
    rows = [
        {"step": 3, "steps_per_second": 0.06},
        {"step": 7, "steps_per_second": 0.4, "loss": 3.0},
        {"step": 7, "validation_loss": 2.5},
    ]
    (training / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_stages(training / "model", [], arguments, **(what_was_done(training, 7) | {"cores": 2}))
    arguments = {
        "rollouts": 32,
        "horizon": 80,
        "temperature": 1.0,
        "epsilon": 0.9,
        "limit": None,
        "scenes": ["/home/someone/scenes/ngsim:*Peach*"],
    }
    results = {
        "worlds": [figures("learned", 0.25), figures("log", 0.0)],
        "config": 2025,
        "steps": [20, 80],
        "objects": 12,
        "left_out": {"traffic_light_violation": 3},
        "weights_checksum": weights_checksum(training / "model"),
    }
    record = {"command": "fidelity", "status": "finished", "arguments": arguments, "results": results}
    (fidelity / "run.json").write_text(json.dumps(record))
    return training, fidelity


def test_the_card_holds_what_the_runs_recorded_and_the_weights_are_copied(runs, tmp_path):
    readme = tmp_path / "README.md"
    begin, end = (text.format(name="fidelity") for text in (BEGIN, END))
    readme.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    run_card(Card(*runs, folder=tmp_path / "shipped", readme=readme))
    card = (tmp_path / "shipped" / "README.md").read_text()
    for part in (
        "- `ngsim:*US101*`",
        '"ngsim:*US101*=2"',
        "7 optimiser steps in 60 seconds on 2",
        "2.500 nats",
        "| learned | 0.250 [0.250, 0.250] | 0.25",
        "25.0 [",
    ):
        assert part in card
    assert "someone" not in card
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith(f"{end}\nafter\n")
    assert "old" not in text
    assert "| log | 0.00" in text
    for name in ("config.json", "model.safetensors", "vocabulary.safetensors"):
        assert (tmp_path / "shipped" / name).read_bytes() == (runs[0] / "model" / name).read_bytes()


def test_the_card_of_fine_tuned_weights_tells_both_runs(runs, tmp_path):
    tuned = tmp_path / "tuned"
    shutil.copytree(runs[0], tuned)
    arguments = {
        "start_from": runs[0] / "model",
        "data": ["/home/someone/scenes/ngsim:*Lanker*=3"],
        "validation": ["ngsim:*Peach*"],
    }
    done = {"optimiser_steps": 7, "seconds": 11.0, "cores": 2, "validation_loss": 2.25}
    write_stages(tuned / "model", read_stages(runs[0] / "model"), arguments, **done)
    run_card(Card(tuned, runs[1], folder=tmp_path / "shipped"))
    card = (tmp_path / "shipped" / "README.md").read_text()
    assert (
        card.index("1. `worldloop train")
        < card.index("in 60 seconds")
        < card.index("2. `worldloop train")
        < card.index("in 11 seconds")
    )
    assert "- `ngsim:*US101*`\n- `ngsim:*Lanker*`" in card
    assert '"start_from": "model"' in card
    assert "someone" not in card


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"results": {"weights_checksum": 1}}, "scored other weights than those of"),
        ({"arguments": {"scenes": ["scenes/ngsim:*Lanker*"]}}, "wanted scenes that the training held out: ngsim:"),
        ({"command": "rollout"}, "is of `worldloop rollout`, wanted one of `worldloop fidelity`"),
    ],
)
def test_figures_of_other_weights_or_of_scenes_trained_on_are_refused(runs, tmp_path, change, message):
    path = runs[1] / "run.json"
    record = json.loads(path.read_text())
    for name, value in change.items():
        record[name] = record[name] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=message):
        run_card(Card(*runs, folder=tmp_path / "shipped"))
    assert not (tmp_path / "shipped").exists()


def test_unfinished_runs_and_a_readme_without_place_are_refused(runs, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("nothing")
    with pytest.raises(ValueError, match="to put the table between"):
        run_card(Card(*runs, folder=tmp_path / "shipped", readme=readme))
    assert not (tmp_path / "shipped").exists()
    record = json.loads((runs[1] / "run.json").read_text())
    (runs[1] / "run.json").write_text(json.dumps(record | {"status": "running"}))
    with pytest.raises(ValueError, match="the run is running"):
        run_card(Card(*runs, folder=tmp_path / "shipped"))


def test_the_table_has_a_row_for_each_world(runs):
    table = fidelity_table(json.loads((runs[1] / "run.json").read_text())).splitlines()
    assert table[0].startswith("3 scenes of 2 recordings (`ngsim:*Peach*`), 12 scored road users, 32 futures each over 2 to 8 s")
    assert "traffic light violation (3 scenes)" in table.pop()
    assert len(table) == 7
    assert torch.tensor([len(line.split("|")) for line in table[2:6]]).unique().tolist() == [10]


def test_where_no_map_has_road_edges_the_table_says_so(runs):
    record = json.loads((runs[1] / "run.json").read_text())
    for row in record["results"]["worlds"]:
        row |= {name: None for name in row if name.startswith("off_road")}
    rows = [line for line in fidelity_table(record).splitlines() if line.startswith(("| learned", "| log"))]
    assert [line.endswith("| no road edges |") for line in rows] == [True, True]


def test_the_calibration_travels_with_its_weights_and_never_with_others(runs, tmp_path):
    record = {
        "coefficients": {"offset": 0.1, "spread": 0.9, "time": 1.1},
        "weights_checksum": weights_checksum(runs[0] / "model"),
    }
    record |= {"scenes": ["ngsim:*US101*"], "limit": 5, "count": 4, "known": 1, "rollouts": 8, "temperature": 1.0, "epsilon": 0.8}
    (runs[0] / "model" / "uncertainty.json").write_text(json.dumps(record))
    run_card(Card(*runs, folder=tmp_path / "shipped"))
    assert "fitted to 8 futures of each of 4 scenes (`ngsim:*US101*`" in (tmp_path / "shipped" / "README.md").read_text()
    assert Calibration.load(tmp_path / "shipped") == Calibration(0.1, 0.9, 1.1)
    (runs[0] / "model" / "uncertainty.json").unlink()
    run_card(Card(*runs, folder=tmp_path / "shipped"))
    assert "Not calibrated" in (tmp_path / "shipped" / "README.md").read_text()
    assert Calibration.load(tmp_path / "shipped") is None


def test_a_calibration_that_does_not_say_what_the_weights_knew_is_refused(runs, tmp_path):
    record = {
        "coefficients": {"offset": 0.1, "spread": 0.9, "time": 1.1},
        "weights_checksum": weights_checksum(runs[0] / "model"),
    }
    (runs[0] / "model" / "uncertainty.json").write_text(json.dumps(record | {"temperature": 1.0, "epsilon": 0.8}))
    with pytest.raises(ValueError, match=r"uncertainty\.json: is of an older release: run `worldloop calibrate --fit` anew"):
        run_card(Card(*runs, folder=tmp_path / "shipped"))


def spread(**values):
    return {name + end: value for name, value in values.items() for end in ("", "_low", "_high")}


def beside(folder, command, arguments, results, of):
    folder.mkdir()
    record = {"command": command, "status": "finished", "arguments": arguments, "results": results | {"weights_checksum": of}}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def test_what_else_was_measured_has_tables_in_card_and_readme(runs, tmp_path):
    """Also for weights that are shipped already: their card is written anew where they lie."""
    of, held = weights_checksum(runs[0] / "model"), ["scenes/ngsim:*Peach*"]
    measured = json.loads((runs[1] / "run.json").read_text())
    unknown = measured["results"] | {"known": 0, "worlds": [figures("learned", 0.875)]}
    reactions = [
        {"intervention": name, "world": world, "affected": 5, "followers": 4, "recordings": 2}
        | spread(sign_agreement=0.625, follower_collision_rate=share, response_delay=0.5)
        for name in ("hard_brake", "all")
        for world, share in (("learned", 0.25), ("sumo", 0.0))
    ]
    minute = {"world": "learned, open", "scenes": 14, "recordings": 8}
    minute |= spread(density_ratio=1.01, speed_ratio=0.59, collisions_ratio=0.5, off_road_ratio=0.9, speed_distance_ratio=0.4)
    ranks = [{"rows": "all", "measured_metres": 2.8, "stated_metres": 1.9} | spread(stated=0.83, time=0.5)]
    check = {"scenes": 3, "rank_correlations": ranks, "tolerance": 2.0, "longest": 8.0}
    check |= {"safe_horizon_stated": 4.5, "safe_horizon_measured": None}
    folders = (
        beside(
            tmp_path / "cf",
            "counterfactual",
            {"scenes": "made", "rollouts": 8, "horizon": 6.0},
            {"scenes": 9, "figures": reactions},
            of,
        ),
        beside(
            tmp_path / "end",
            "endurance",
            {"scenes": held, "rollouts": 4, "limit": None, "seconds": 60, "window": 10},
            {"worlds": [minute]},
            of,
        ),
        beside(tmp_path / "cal", "calibrate", {"scenes": held, "rollouts": 8}, {"check": check | {"known": 0}}, of),
        beside(tmp_path / "zero", "fidelity", measured["arguments"] | {"scenes": ["waymo"], "limit": 9}, unknown, of),
    )
    readme = tmp_path / "README.md"
    names = ("fidelity", "zero_shot", "reactions", "endurance", "uncertainty")
    readme.write_text("".join(f"{BEGIN.format(name=name)}\nold\n{END.format(name=name)}\n" for name in names))
    run_card(Card(*runs, folder=tmp_path / "shipped"))
    run_card(Card(tmp_path / "shipped", runs[1], folders, folder=tmp_path / "shipped", readme=readme))
    for text in ((tmp_path / "shipped" / "README.md").read_text(), readme.read_text()):
        assert "| hard brake | 5 | 62.5 [62.5, 62.5] | 4 | 0.0 [0.0, 0.0] | 25.0 [25.0, 25.0] | 0.50 [" in text
        assert "| learned, open | 1.01 [1.01, 1.01] | 0.59 [" in text
        assert "(`waymo`, at most 9 of each)" in text
        assert "| learned | 0.875 [0.875, 0.875] | 0.875" in text
        assert "| all | 2.80 | 1.90 | 0.83 [" in text
        assert "passes 2 m at 4.5 s as stated, never as measured, of 8 s" in text
        assert "old" not in text.split()
    for spoiled, message in (
        (
            beside(tmp_path / "a", "counterfactual", {"scenes": "sets/ngsim:*Peach*"}, {}, of),
            "scenes of ngsim, which the weights were",
        ),
        (beside(tmp_path / "b", "endurance", {"scenes": ["ngsim:*US101*"]}, {}, of), "wanted scenes that the training held out"),
        (beside(tmp_path / "c", "calibrate", {"scenes": []}, {}, of), "has fitted and checked nothing"),
        (beside(tmp_path / "d", "endurance", {"scenes": held}, {}, 1), "d: scored other weights than"),
        (beside(tmp_path / "e", "fidelity", {"scenes": ["waymo"]}, {"known": 2}, of), "the weights know some of its scenes"),
        (beside(tmp_path / "f", "calibrate", {"scenes": held}, {"check": {"known": 2}}, of), "the weights know some"),
    ):
        with pytest.raises(ValueError, match=message):
            run_card(Card(*runs, (spoiled,), folder=tmp_path / "other"))
    assert not (tmp_path / "other").exists()


def test_weights_that_do_not_say_what_they_were_trained_on_get_no_card(runs, tmp_path):
    (runs[0] / "model" / "training.json").unlink()
    with pytest.raises(ValueError, match="so nobody can say what it was trained on"):
        run_card(Card(*runs, folder=tmp_path / "shipped"))
