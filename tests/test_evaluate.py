"""Evaluation with processes: what fails fails alone, numbers do not depend on workers, a kill loses nothing."""

from __future__ import annotations

import csv
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import tiny_model
from scenes import damaged, moved, straight_road
from worldloop.agents.cli import main
from worldloop.agents.crew import Crew, Job, Task
from worldloop.agents.fingerprints import fingerprints
from worldloop.agents.ranking import agreement, by_scene, leader_row, paired
from worldloop.agents.rows import write_rows
from worldloop.worldmodel.data.shards import SceneDataset
from worldloop.worldmodel.data.writing import ShardWriter
from worldloop.worldmodel.scene import Scene

DRIVERS = """
import time
import torch

class Awkward:
    \"\"\"Drives straight on; in the scenes that `where` names it does something else.\"\"\"
    where, what = "", None

    def act(self, observation, state):
        action = torch.zeros(len(state), 2)
        for row, name in enumerate(state.scene.id):
            if name == self.where:
                action[row] = type(self).what()
        return action

def raises():
    raise RuntimeError("no idea")

class Raises(Awkward):
    where, what = "hand/1", raises

class Nan(Awkward):
    where, what = "hand/1", lambda: torch.nan

class Wild(Awkward):
    where, what = "hand/1", lambda: 9.0

class Hangs(Awkward):
    where, what = "hand/1", lambda: time.sleep(1000)

    def act(self, observation, state):
        return super().act(observation, state) if (state.step > 0).all() else torch.zeros(len(state), 2)

class Dies(Awkward):
    where, what = "hand/1", lambda: __import__("os")._exit(7)

class Quits(Awkward):
    where, what = "hand/1", lambda: __import__("sys").exit(0)

class Straight(Awkward):
    pass
"""


BROKEN = """
import torch
from worldloop.envs import vector

class Driver:
    def act(self, observation, state):
        def broken(*_):
            raise RuntimeError("a bug of the environment")
        vector.ego_measures = broken  # what the environment calls after the policy has answered well
        return torch.zeros(len(state), 2)
"""


def data_set(folder: Path, *scenes: Scene) -> None:
    with ShardWriter(folder) as writer:
        for scene in scenes:
            writer.add(scene)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    roads = [
        moved(straight_road(f"hand/{i}", ego_speed=6.0 + i, leader_gap=20.0 + 3 * i), 0.3 * i, (9.0, -4.0)) for i in range(4)
    ]
    data_set(tmp_path / "roads", *roads)
    (tmp_path / "awkward_driver.py").write_text(DRIVERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "awkward_driver", raising=False)  # that of another test, in another folder
    return tmp_path


def rows(folder: str) -> list[dict[str, str]]:
    with Path(folder, "scenarios.csv").open() as file:
        return [{name: value for name, value in row.items() if name != "steps_per_second"} for row in csv.DictReader(file)]


def words(out: str, *more: str, policies: tuple[str, ...] = ("idm",)) -> list[str]:
    fixed = ["evaluate", "--scenes", "roads", "--worlds", "replay", "--horizon", "12", "--batch", "2", "--out", out]
    return [*fixed, "--policies", *policies, *more]


def test_rows_leaders_and_pairs_and_the_same_with_other_workers(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words("one", "--workers", "1", "--seeds", "0", "5", policies=("idm", "constant"))) == 0
    shown = capsys.readouterr().out
    assert "16 scenarios" in shown
    assert max(map(len, shown.splitlines())) <= 120
    assert "are not told apart by these scenes" in shown  # four scenes cannot
    assert main(words("two", "--workers", "2", "--seeds", "0", "5", policies=("idm", "constant"))) == 0
    assert rows("one") == rows("two")
    assert [(row["policy"], row["scene"], row["seed"]) for row in rows("one")][:5] == [
        *(("idm", f"hand/{i}", str(i)) for i in range(4)),
        ("idm", "hand/0", "5"),
    ]
    assert main(["evaluate", "--repeat", "one", "--out", "again", "--workers", "1"]) == 0
    assert rows("again") == rows("one")
    results = json.loads(Path("again/run.json").read_text())["results"]
    assert [line["scenarios"] for line in results["leaders"]] == [8, 8]
    assert results["pairs"][0]["scenes"] == 4


@pytest.mark.parametrize(
    ("driver", "told"),
    [
        ("Raises", "the policy raised RuntimeError: no idea"),
        ("Nan", "action of sub-environment 0: acceleration is nan"),
        ("Wild", "action of sub-environment 0: acceleration is 9, wanted a number from -8 to 4"),
        ("Hangs", "no step within 3 s: the policy or the world never returned"),
        ("Dies", "the process that drove it died with exit code 7"),
        ("Quits", "the policy raised SystemExit: 0"),
    ],
)
def test_a_policy_fails_its_scenario_alone(place: Path, capsys: pytest.CaptureFixture[str], driver: str, told: str) -> None:
    assert main(words("out", "--workers", "1", "--time-limit", "3", policies=(f"awkward_driver:{driver}",))) == 1
    found = rows("out")
    assert [row["ended"] for row in found] == ["horizon", "policy_failed", "horizon", "horizon"]
    assert told in found[1]["error"]
    assert f"failed: awkward_driver:{driver} in replay: hand/1: {told}" in capsys.readouterr().out
    if driver == "Raises":
        assert 'raise RuntimeError("no idea")' in found[1]["trace"]
    leader = json.loads(Path("out/run.json").read_text())["results"]["leaders"][0]
    assert leader["failed_by_policy"] == 1
    assert leader["nuplan"] == pytest.approx(0.75, abs=0.02)


def test_a_scene_that_cannot_start_is_told_and_counts_for_nobody(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged(place / "bad", straight_road("hand/bad"))
    data_set(place / "short", straight_road("hand/short", steps=14), straight_road("hand/long"))
    assert main([*words("out"), "--scenes", "short"]) == 1
    assert "hand/short" in capsys.readouterr().out
    leader = json.loads(Path("out/run.json").read_text())["results"]["leaders"][0]
    assert (leader["scenarios"], leader["failed"], leader["failed_by_policy"]) == (2, 1, 0)
    assert leader["nuplan"] > 0.5
    both = words("both", policies=("idm", "constant"))
    data_set(place / "moment", straight_road("hand/moment", steps=11), straight_road("hand/long"))
    assert main([*both, "--scenes", "moment", "--worlds", "replay", "constant_velocity"]) == 1
    told = "hand/moment: cannot start in ReplayWorld: its log ends at the present: take the learned world, or leave it out"
    shown = capsys.readouterr().out
    assert f"failed: idm, constant in replay: {told}\n" in shown
    assert "left out of every score in replay: 1 scene that cannot start there\n" in shown
    assert [(row["world"], row["ended"]) for row in rows("both") if row["scene"] == "hand/moment"] == [
        *[("replay", "failed")] * 2,
        *[("constant_velocity", "horizon")] * 2,
    ]
    assert main([*words("none"), "--scenes", "bad"]) == 2
    assert "of 1 scenario all failed, the first one: hand/bad" in capsys.readouterr().err


def test_rows_are_parquet_too_with_the_same_types_in_every_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason='needs pip install "worldloop[parquet]"')
    data_set(place / "short", straight_road("hand/short", steps=14), straight_road("hand/long"))
    assert main(words("good")) == 0
    assert main([*words("bad"), "--scenes", "short"]) == 1
    good, bad = (parquet.read_table(f"{name}/scenarios.parquet") for name in ("good", "bad"))
    assert good.schema.equals(bad.schema)
    assert [str(good.schema.field(name).type) for name in ("error", "off_road", "seed", "term_progress")] == [
        *("string", "bool", "int64", "double")
    ]
    for table, out in ((good, "good"), (bad, "bad")):
        shown = [{name: "" if value is None else str(value) for name, value in row.items()} for row in table.to_pylist()]
        for row in shown:
            row.pop("steps_per_second")
        assert shown == rows(out)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert [file.name for file in write_rows(place, good.to_pylist())] == ["scenarios.csv"]


def test_repeat_takes_all_that_matters_from_the_record(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--repeat", "nowhere", "--out", "out"]) == 2
    assert "nowhere/run.json: not found" in capsys.readouterr().err
    assert main(["evaluate", "--repeat", "nowhere", "--seeds", "7", "--out", "out"]) == 2
    assert "--repeat takes --seeds from nowhere/run.json: leave it out" in capsys.readouterr().err


def test_what_has_changed_since_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = ["evaluate", "--repeat", "out", "--out", "again"]
    resumed = words("out", "--resume", policies=("awkward_driver:Straight",))
    assert main(words("out", policies=("awkward_driver:Straight",))) == 0
    inputs = json.loads(Path("out/run.json").read_text())["inputs"]
    assert list(inputs) == ["scenes roads", "policy awkward_driver:Straight"]
    (place / "awkward_driver.py").write_text(DRIVERS + "\n# mended\n")
    for command in (again, resumed):
        assert main(command) == 2
        told = capsys.readouterr().err
        assert "out/run.json: policy awkward_driver:Straight has changed since that run (sha256 " in told
        assert "put back what was there, or start a new run" in told
    (place / "awkward_driver.py").write_text(DRIVERS)
    assert main(again) == 0
    shutil.rmtree(place / "roads")
    data_set(place / "roads", *(straight_road(f"hand/{i}", ego_speed=7.0) for i in range(4)))
    for command in (["evaluate", "--repeat", "out", "--out", "third"], resumed):
        assert main(command) == 2
        assert "scenes roads has changed since that run" in capsys.readouterr().err
    assert not Path("third").exists()


def test_weights_are_known_by_what_they_are(tmp_path: Path) -> None:
    data_set(tmp_path / "roads", straight_road())
    scenes, folder = SceneDataset(tmp_path / "roads"), tmp_path / "model"
    tiny_model().save_pretrained(folder)
    known = fingerprints(scenes, ["learned"], folder, ["idm"])
    assert list(known) == [f"scenes {tmp_path / 'roads'}", f"weights {folder}"]
    (folder / "README.md").write_text("a card changes nothing")
    assert fingerprints(scenes, ["learned_open"], folder, ["idm"]) == known
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    assert fingerprints(scenes, ["learned"], folder, ["idm"])[f"weights {folder}"] != known[f"weights {folder}"]
    assert list(fingerprints(scenes, ["replay"], folder, ["idm"])) == list(known)[:1]


def test_films_need_no_file_descriptors(place: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
    try:
        assert main(words("out", "--workers", "2")) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert Path("out/report.html").read_text().count('"frames":') == 2


def test_an_error_of_ours_is_not_put_on_the_policy(place: Path) -> None:
    (place / "broken_world.py").write_text(BROKEN)
    task, job = Task("roads", horizon=5), Job("broken_world:Driver", "replay", 0, (0, 1))
    with Crew(task, 1, 60.0) as crew:
        ((_, driven),) = crew.drive([job])
    assert [scenario.ended for scenario, _ in driven] == ["failed", "failed"]
    assert [scenario.error for scenario, _ in driven] == ["RuntimeError: a bug of the environment"] * 2


def test_a_worker_that_dies_between_jobs_is_replaced(place: Path) -> None:
    task = Task("roads", horizon=5)
    with Crew(task, 1, 60.0) as crew:
        list(crew.drive([Job("idm", "replay", 0, (0,))]))
        crew.workers[0].process.kill()
        crew.workers[0].process.join()
        ((_, driven),) = crew.drive([Job("idm", "replay", 0, (1,))])  # it died between two jobs
    assert [scenario.error for scenario, _ in driven] == [None]


def test_a_killed_evaluation_goes_on_where_it_was(place: Path) -> None:
    whole = words("whole", "--workers", "1", policies=("idm", "awkward_driver:Straight"))
    assert main(whole) == 0
    command = [
        sys.executable,
        "-m",
        "worldloop.agents.cli",
        *words("cut", "--workers", "1", policies=("idm", "awkward_driver:Straight")),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    log = Path("cut/metrics.jsonl")
    for _ in range(600):
        if log.is_file() and log.read_text().count("\n") >= 3:
            break
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert log.read_text().count("\n") < 6  # two jobs of the log's ego, two of each policy
    with log.open("a") as file:
        file.write('{"step": 5, "rows": [{"po')  # what a kill in the middle of a line leaves
    assert main([*words("cut", "--workers", "2", policies=("idm", "awkward_driver:Straight")), "--resume"]) == 0
    assert rows("cut") == rows("whole")


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--worlds", "metaverse"], "--worlds metaverse: unknown, choose among learned"),
        (["--policies", "idmm"], "policy 'idmm' is unknown (did you mean idm?)"),
        (["--policies", "idm", "idm"], "--policies idm idm: wanted at least one, and each once"),
        (["--worlds", "sumo"], "none of the 4 scenes was made by `worldloop data generate`"),
        (["--workers", "0"], "--workers >= 1"),
        (["--horizon", "0"], "--horizon 0: wanted at least 1 step"),
        (["--show", "hand/9"], "hand/9"),
        (["--scenes", "roads:none*"], "none*"),
    ],
)
def test_bad_input_is_refused(place: Path, capsys: pytest.CaptureFixture[str], more: list[str], complaint: str) -> None:
    assert main([*words("out"), *more]) == 2
    assert complaint in " ".join(capsys.readouterr().err.split())
    assert not Path("out").exists()


def line(scene: str, score: float, seed: int = 0, ended: str = "horizon") -> dict[str, object]:
    terms = ("no_at_fault_collision", "drivable_area", "traffic_light", "progress", "time_to_collision")
    more = {f"term_{name}": score for name in (*terms, "speed_limit", "lane_keeping", "comfort")}
    error = None if ended == "horizon" else "why"
    fixed = {"scene": scene, "seed": seed, "nuplan": score, "epdms": score, "ended": ended, "error": error, "off_road": False}
    return {**fixed, **more}


def test_means_are_over_scenes_and_failures_count_by_who_is_to_blame() -> None:
    rows = [line("a", 1.0), line("a", 0.5, 1), line("b", 0.25), line("c", 0.9, 0, "policy_failed"), line("d", 0.9, 0, "failed")]
    assert by_scene(rows, "nuplan") == {"a": 0.75, "b": 0.25, "c": 0.0}
    leader = leader_row(rows, 0)
    assert leader["nuplan"] == pytest.approx(1.0 / 3)
    assert (leader["failed"], leader["failed_by_policy"]) == (2, 1)
    assert leader["off_road"] == pytest.approx(0.75)  # of a: 1 of 2 drives, of b: 1 of 1; a policy that failed drove nowhere


def test_paired_differences() -> None:
    first, second = [line(f"s{i}", 0.8) for i in range(12)], [line(f"s{i}", 0.7 - 0.01 * i) for i in range(12)]
    found = paired(first, second, "nuplan", 0)
    assert found["difference"] == pytest.approx(0.155)
    assert found["p_value"] == pytest.approx(2 / 2**12, abs=1e-3)  # all signs alike: 2 of 4096 flips are as extreme
    assert paired(first, first, "nuplan", 0)["p_value"] == 1.0
    assert paired(first, [line("z", 1.0)], "nuplan", 0)["difference"] is None


def test_agreement_of_two_worlds() -> None:
    scores = torch.linspace(0.1, 0.9, 12, dtype=torch.float64)[:, None] + torch.zeros(12, 30, dtype=torch.float64)
    same = agreement(scores, scores * 0.5, 0)
    assert (same["kendall"], same["spearman"]) == (pytest.approx(1.0), pytest.approx(1.0))
    assert same["pearson"] == pytest.approx(1.0)
    assert same["error"] == pytest.approx(0.25)
    assert agreement(scores, scores.flip(0), 0)["kendall"] == pytest.approx(-1.0)
    assert agreement(scores, torch.ones_like(scores), 0)["spearman"] is None
    swapped = scores.clone()
    swapped[[0, 1]] = swapped[[1, 0]]
    assert agreement(scores, swapped, 0)["kendall"] == pytest.approx(1 - 2 * 2 / (12 * 11))


@settings(max_examples=3, deadline=None)
@given(values=st.lists(st.floats(0.0, 1.0), min_size=3, max_size=8))
def test_agreement_does_not_depend_on_the_order_of_policies(values: list[float]) -> None:
    first = torch.tensor(values, dtype=torch.float64)[:, None].expand(-1, 5)
    second = torch.rand(len(values), 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    order = torch.arange(len(values)).flip(0)
    one, other = agreement(first, second, 0), agreement(first[order], second[order], 0)
    for name in ("kendall", "spearman", "pearson", "error"):
        assert (one[name] is None) == (other[name] is None)
        assert one[name] is None or one[name] == pytest.approx(other[name], abs=1e-9)
