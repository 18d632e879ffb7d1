"""`worldloop compare`: stored runs side by side, with what changed between them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from worldloop.agents.bootstrap import cell, interval, resampled
from worldloop.agents.compare import BEGIN, END, Compare, run_compare
from worldloop.worldmodel.lineage import read_stages, write_stages
from worldloop.worldmodel.shipped import SHIPPED_WEIGHTS, SIZES
from worldloop.worldmodel.uncertainty import weights_checksum


def write(folder, command, arguments, results, status="finished"):
    folder.mkdir(parents=True, exist_ok=True)
    record = {"command": command, "status": status, "started": "today", "arguments": arguments, "results": results}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def spread(**values):
    return {
        name + end: value + shift for name, value in values.items() for end, shift in (("", 0), ("_low", -0.1), ("_high", 0.1))
    }


def training(folder, **changes):
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "model.safetensors").write_text(folder.name)
    config = {"vocabulary_size": len(folder.name), "motion_inputs": 6 if folder.name == "two" else 5}
    (folder / "model" / "config.json").write_text(json.dumps(config))
    arguments = {"data": ["/home/someone/sets/made=2"], "steps": 100, "start_from": None, "out": str(folder)} | changes
    before = read_stages(Path(arguments["start_from"])) if arguments["start_from"] else []
    write_stages(folder / "model", before, arguments, optimiser_steps=arguments["steps"])
    return write(folder, "train behavior", arguments, {})


def checksum(run):
    return weights_checksum(run / "model")


def fidelity(folder, run, epsilon=0.005, log=1.0, failed=0, **changes):
    arguments = {"scenes": ["/home/someone/sets/held"], "rollouts": 32, "horizon": 80, "config": 2025, "seed": 0}
    arguments |= {"weights": str(run / "model") if run else None, "temperature": 1.0, "epsilon": epsilon} | changes
    figures = spread(rmm_ratio=0.9, min_ade=1.0, collision_rate=0.2, off_road_rate=0.3)
    worlds = [{"world": "learned"} | figures, {"world": "log", "rmm": log, "rmm_lead": float(len(folder.name))}]
    results = {"worlds": worlds, "weights_checksum": checksum(run) if run else None, "failed": failed}
    return write(folder, "fidelity", arguments, results)


@pytest.fixture
def runs(tmp_path):
    first = training(tmp_path / "first")
    second = training(
        tmp_path / "second", data=["/elsewhere/made=3", "/elsewhere/moved"], steps=50, start_from=str(first / "model")
    )
    return fidelity(tmp_path / "a", first), fidelity(tmp_path / "b", second), fidelity(tmp_path / "c", second, 0.01)


def test_every_row_says_what_changed_and_figures_find_their_row(runs, tmp_path, capsys):
    arguments, of = {"temperature": 1.0, "epsilon": 0.01}, checksum(tmp_path / "second")
    reactions = [
        {"intervention": "hard_brake", "world": "learned"} | spread(follower_collision_rate=0.4),
        {"intervention": "all", "world": "sumo"} | spread(sign_agreement=1.0),
        {"intervention": "all", "world": "learned"} | spread(sign_agreement=0.6),
    ]
    beside = (
        write(tmp_path / "cf", "counterfactual", arguments, {"figures": reactions, "weights_checksum": of}),
        write(tmp_path / "end", "endurance", arguments, {"worlds": [spread(speed_ratio=0.8)], "weights_checksum": of}),
        write(
            tmp_path / "cal",
            "calibrate",
            arguments,
            {"check": {"rank_correlations": [spread(stated=0.7)]}, "weights_checksum": of},
        ),
    )
    out = run_compare(Compare(runs, beside, tmp_path / "out"))
    with (out / "steps.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["row"] for row in rows] == ["a", "b", "c"]
    assert rows[0]["change"] == "the start"
    assert rows[1]["change"] == "stage 2 added: data made=3, moved, steps 50"
    assert rows[2]["change"] == "sampling: epsilon 0.005 -> 0.01"
    figures = ("sign_agreement", "hard_brake_collisions", "speed_ratio", "rank_correlation", "hard_brake_collisions_low")
    assert [rows[1][name] for name in figures] == [""] * 5
    assert [float(rows[2][name]) for name in figures] == pytest.approx([0.6, 0.4, 0.8, 0.7, 0.3])
    text = (out / "steps.md").read_text()
    assert "| c | sampling: epsilon 0.005 -> 0.01 | 0.900 [0.800, 1.000] | 1.00 [0.90, 1.10] | 20.0 [10.0, 30.0] |" in text
    assert '"made=3"' in text
    assert "someone" not in text
    assert "elsewhere" not in text
    assert "40.0 [30.0, 50.0]" in capsys.readouterr().out


def test_a_world_of_ones_own_is_a_row(runs, tmp_path):
    own = fidelity(tmp_path / "own", None, world="mine:world")
    out = run_compare(Compare((runs[0], own), out=tmp_path / "out"))
    rows = json.loads((out / "run.json").read_text())["results"]["rows"]
    assert rows[1]["change"] == "network: left out; stage 1: left out; sampling: left out; world: mine:world"


def test_a_changed_argument_and_changed_data_are_named(tmp_path):
    one = training(tmp_path / "one")
    two = training(tmp_path / "two", data=["/elsewhere/made=3", "/elsewhere/moved"], steps=50)
    run_compare(Compare((fidelity(tmp_path / "a", one), fidelity(tmp_path / "b", two)), out=tmp_path / "out"))
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["results"]["rows"][1]["change"] == (
        "network: motion_inputs 5 -> 6; stage 1: + made=3, + moved, - made=2, steps 100 -> 50"
    )


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda runs, place: (runs[0], runs[0]), "a: has the same weights and sampling as .*a: name one"),
        (lambda runs, place: (), "found no runs"),
        (lambda runs, place: (place / "none",), r"none/run\.json: not found"),
        (lambda runs, place: (runs[0], fidelity(place / "d", place / "first", rollouts=4)), "d: differs from .*a in rollouts"),
        (
            lambda runs, place: (runs[0], fidelity(place / "d", place / "second", 0.1, log=0.9)),
            "d: the log itself scores otherwise",
        ),
        (
            lambda runs, place: (fidelity(place / "d", place / "second", 0.1, failed=1),),
            "d: scenes have failed in it",
        ),
        (lambda runs, place: (place / "first",), "is of `worldloop train behavior`, wanted one of `worldloop fidelity`"),
        (lambda runs, place: (fidelity(place / "d", None),), "names no weights"),
    ],
)
def test_what_cannot_be_compared_is_refused(runs, tmp_path, spoil, message):
    with pytest.raises(ValueError, match=message):
        run_compare(Compare(spoil(runs, tmp_path), out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_weights_that_have_changed_since_are_refused(runs, tmp_path):
    (tmp_path / "second" / "model" / "model.safetensors").write_text("trained on")
    with pytest.raises(ValueError, match="b: scored weights that .*second/model does not hold any more"):
        run_compare(Compare(runs, out=tmp_path / "out"))


def test_shipped_weights_are_a_row(runs, tmp_path):
    shipped = fidelity(tmp_path / "s", tmp_path / "first", 0.2, weights=None)
    record = json.loads((shipped / "run.json").read_text())
    record["results"]["weights_checksum"] = weights_checksum(SHIPPED_WEIGHTS)
    (shipped / "run.json").write_text(json.dumps(record))
    out = run_compare(Compare((shipped, runs[0]), out=tmp_path / "out"))
    assert '"pandaset:pandaset/041=0.1"' in (out / "steps.md").read_text()


def test_weights_by_name_and_copied_ones_are_rows_too(runs, tmp_path, monkeypatch):
    """Shipped in another size, with their recipe beside them, or copied without it: the figures are there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "copied").mkdir()
    (tmp_path / "copied" / "model.safetensors").write_text("other weights")
    named = fidelity(tmp_path / "s", tmp_path / "first", 0.2, weights="small")
    copied = fidelity(tmp_path / "t", tmp_path / "first", weights=str(tmp_path / "copied"))
    for run, folder in ((named, SIZES["small"]), (copied, tmp_path / "copied")):
        record = json.loads((run / "run.json").read_text())
        record["results"]["weights_checksum"] = weights_checksum(folder)
        (run / "run.json").write_text(json.dumps(record))
    text = (run_compare(Compare((named, copied), out=tmp_path / "out")) / "steps.md").read_text()
    assert '"pandaset:pandaset/041=0.1"' in text
    assert '"weights": "copied, checksum ' in text


def test_the_figures_go_into_a_readme_without_what_changed(runs, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("nothing")
    with pytest.raises(ValueError, match="no lines"):
        run_compare(Compare(runs, out=tmp_path / "none", readme=readme))
    assert not (tmp_path / "none").exists()
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    run_compare(Compare(runs, out=tmp_path / "out", readme=readme))
    lines = readme.read_text().splitlines()
    assert lines[0] == "before"
    assert lines[-1] == "after"
    assert lines[2].startswith("| row | RMM, of the log's | minADE (m) |")
    assert [line.split(" | ")[0] for line in lines[4:7]] == ["| a", "| b", "| c"]
    assert "old" not in lines


def test_one_scene_has_a_figure_and_no_interval():
    figures = torch.tensor([0.25])
    assert interval(figures[resampled(1, 0)].mean(1)) == (None, None)
    low, high = interval(torch.tensor([0.0, 1.0])[resampled(2, 0)].mean(1))
    assert (low, high) == (0.0, 1.0)
    assert cell({"rate": 0.25, "rate_low": None, "rate_high": None}, "rate", 100, " %", 1) == "25.0 %"
    assert cell({"rate": 0.25, "rate_low": 0.2, "rate_high": 0.5}, "rate", 100, " %", 1) == "25.0 % [20.0, 50.0]"
    assert cell({"rate": None}, "rate") == "none"


def test_a_run_beside_has_to_fit(runs, tmp_path):
    own = {"weights_checksum": checksum(tmp_path / "second"), "figures": [{"intervention": "all", "world": "learned"}]}
    run = lambda name, **changes: write(  # noqa: E731
        tmp_path / name, "counterfactual", {"temperature": 1.0, "epsilon": 0.01, "horizon": 6.0} | changes, own
    )
    for beside, message in (
        ((run("p", epsilon=0.5),), "p: is of weights or a sampling that no fidelity run has"),
        ((run("q"), run("r")), "r: has the same weights and sampling as .*q"),
        ((run("s"), run("t", epsilon=0.005, horizon=2.0)), "t: differs from .*s in horizon"),
    ):
        with pytest.raises(ValueError, match=message):
            run_compare(Compare(runs, beside, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
