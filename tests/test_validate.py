"""Validation on a few generated scenes: the whole command, and its figures on rows made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from worldloop.agents.cli import main
from worldloop.agents.validate import REFERENCE, Validate, report, run_validate, score_lines, training_figures


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "scenes"
    assert (
        main(["data", "generate", str(folder), "--templates", "arterial", "--scenes", "3", "--seed", "3", "--steps", "41"]) == 0
    )
    return folder


def test_the_whole_command(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["validate", "--scenes", str(scenes), "--policies", "idm", "constant", "reckless", "--horizon", "12"]
    words += ["--trained", "idm", "--untrained", "constant", "--trained-outside", "idm"]
    assert main([*words, "--workers", "1", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "log replay against SUMO: Spearman" in shown
    assert (out / "agreement.png").stat().st_size > 10_000
    results = json.loads((out / "run.json").read_text())["results"]
    assert results["agreement"]["learned"]["policies"] == 3
    assert results["training"]["lift"] == pytest.approx(1.0)
    told = (out / "report.md").read_text()
    assert "3 drivers on 3 starts" in told
    for line in results["scores"]:
        assert f"| {line['policy']} | {line['sumo']:.2f}" in told
    assert main([*words, "--out", str(out), "--resume"]) == 0  # all is there: nothing is driven again
    assert json.loads((out / "run.json").read_text())["results"] == results


def test_too_few_policies_are_refused(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wanted at least three"):
        run_validate(Validate(str(scenes), policies=("idm", "constant"), out=tmp_path / "out"))


def row(policy: str, world: str, score: float) -> dict[str, Any]:
    terms = ("no_at_fault_collision", "drivable_area", "traffic_light", "progress", "time_to_collision", "speed_limit")
    more = {f"term_{name}": score for name in (*terms, "lane_keeping", "comfort")}
    fixed = {"scene": "a", "seed": 0, "nuplan": score, "epdms": score, "ended": "horizon", "error": None, "off_road": False}
    return {**fixed, **more, "policy": policy, "world": world}


def test_lift_and_exploitability() -> None:
    scores = {"before": (0.5, 0.45, 0.5), "after": (0.9, 0.8, 0.9), "outside": (0.8, 0.88, 0.8)}
    worlds = ("learned", REFERENCE, "replay")
    rows = [row(name, world, value) for name, values in scores.items() for world, value in zip(worlds, values, strict=True)]
    lines = score_lines(rows, tuple(scores), 0)
    assert [line["policy"] for line in lines] == ["outside", "after", "before"]  # the best in the reference world first
    args = Validate("made", trained="after", untrained="before", trained_outside="outside")
    found = training_figures(lines, args)
    assert found["lift"] == pytest.approx(0.8 / 0.88)
    assert found["exploitability"] == pytest.approx((0.9 - 0.8) - (0.5 - 0.45))
    assert training_figures(lines, Validate("made")) == {}
    agreement = {name: dict.fromkeys(("policies", "scenes"), 3) for name in ("learned", "replay")}
    assert "exploitability: 0.050" in report(lines, agreement, found)
