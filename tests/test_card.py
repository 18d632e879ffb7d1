import json
import shutil

import pytest
import torch
from models import tiny_model
from worldloop.agents.card import BEGIN, END, Card, fidelity_table, run_card
from worldloop.worldmodel.uncertainty import Calibration, weights_checksum


def figures(world, value):
    names = ("rmm", "rmm_ratio", "min_ade_3s", "min_ade", "collision_rate", "off_road_rate")
    return {"world": world, "scenes": 3} | {f"{name}{end}": value for name in names for end in ("", "_low", "_high")}


@pytest.fixture
def runs(tmp_path):
    training, fidelity = tmp_path / "training", tmp_path / "fidelity"
    tiny_model().save_pretrained(training / "model")
    fidelity.mkdir()
    machine = {"cores": 2}
    arguments = {
        "data": ["/home/someone/scenes/ngsim:*US101*=2"],
        "validation": ["/home/someone/scenes/ngsim:*Peach*"],
        "out": "x",
    }
    record = {
        "command": "train behavior",
        "status": "finished",
        "arguments": arguments,
        "machine": machine,
        "results": {"optimiser_steps": 7},
    }
    (training / "run.json").write_text(json.dumps(record))
    rows = [
        {"step": 3, "steps_per_second": 0.06},
        {"step": 7, "steps_per_second": 0.4, "loss": 3.0},
        {"step": 7, "validation_loss": 2.5},
    ]
    (training / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = {
        "rollouts": 32,
        "horizon": 80,
        "temperature": 1.0,
        "epsilon": 0.9,
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
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
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
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    assert "| log | 0.00" in text
    for name in ("config.json", "model.safetensors", "vocabulary.safetensors"):
        assert (tmp_path / "shipped" / name).read_bytes() == (runs[0] / "model" / name).read_bytes()


def test_the_card_of_fine_tuned_weights_tells_both_runs(runs, tmp_path):
    tuned = tmp_path / "tuned"
    shutil.copytree(runs[0], tuned)
    record = json.loads((tuned / "run.json").read_text())
    (tuned / "metrics.jsonl").write_text((tuned / "metrics.jsonl").read_text().replace("0.06", "3.0"))
    record["arguments"] |= {"start_from": str(runs[0] / "model"), "data": ["/home/someone/scenes/ngsim:*Lanker*=3"]}
    (tuned / "run.json").write_text(json.dumps(record))
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
    assert table[0].startswith("3 validation scenes (`ngsim:*Peach*`), 12 scored road users, 32 futures each over 2 to 8 s")
    assert "traffic light violation (3 scenes)" in table.pop()
    assert len(table) == 7
    assert torch.tensor([len(line.split("|")) for line in table[2:6]]).unique().tolist() == [9]


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
    record |= {"scenes": ["ngsim:*US101*"], "limit": 5, "count": 4, "rollouts": 8, "temperature": 1.0, "epsilon": 0.8}
    (runs[0] / "model" / "uncertainty.json").write_text(json.dumps(record))
    run_card(Card(*runs, folder=tmp_path / "shipped"))
    assert "fitted to 8 futures of each of 4 scenes (`ngsim:*US101*`" in (tmp_path / "shipped" / "README.md").read_text()
    assert Calibration.load(tmp_path / "shipped") == Calibration(0.1, 0.9, 1.1)
    (runs[0] / "model" / "uncertainty.json").unlink()
    run_card(Card(*runs, folder=tmp_path / "shipped"))
    assert "Not calibrated" in (tmp_path / "shipped" / "README.md").read_text()
    assert Calibration.load(tmp_path / "shipped") is None
