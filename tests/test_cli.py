"""The command line: what the commands write, and one clear message for everything that a user can get wrong."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from models import tiny_model
from scenes import several_roads, straight_road
from worldloop.agents.cli import COMMANDS, main
from worldloop.worldmodel.data.shards import SceneDataset
from worldloop.worldmodel.data.writing import ShardWriter

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands write below the current folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three scenes and a tiny model."""
    folder = tmp_path_factory.mktemp("given")
    with ShardWriter(folder / "roads") as writer:
        writer.add(several_roads(3))
    with ShardWriter(folder / "short") as writer:
        writer.add(straight_road("hand/short", steps=31))
    tiny_model().save_pretrained(folder / "model")
    return folder


def left() -> list[str]:
    """What lies in the current folder, except caches of imports."""
    return sorted(str(path) for path in Path.cwd().rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def refused(capsys: pytest.CaptureFixture[str], *words: str, code: int = 2) -> str:
    """Run a command that must fail with one message and leave nothing; return the message."""
    before = left()
    assert main(words) == code
    error = capsys.readouterr().err
    assert error.count("error:") == 1
    assert "Traceback" not in error
    assert left() == before
    return error


def driver(name: str, number: str) -> None:
    """Write a module with a driver whose actions are all `number`."""
    answer = f"    def act(self, observation, state):\n        return torch.full((len(state), 2), {number})\n"
    Path(f"{name}.py").write_text(f"import torch\nclass Own:\n{answer}")


def test_overview_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"], ["data"], ["train", "--help"]):
        assert main(words) == 0
        shown = capsys.readouterr().out
        assert all(f"worldloop {name}" in shown for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command_has_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([*name.split(), "--help"])
    assert end.value.code == 0
    assert f"worldloop {name}" in capsys.readouterr().out.replace("usage: ", "").split("Example:")[1]


def test_help_answers_without_torch() -> None:
    code = "import sys; from worldloop.agents.cli import main; main(['--help']); assert 'torch' not in sys.modules, 'torch'"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_rollout_writes_rows_record_and_film(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--scenes", f"{place / 'roads'}", "--weights", f"{place / 'model'}", "--horizon", "4", "--films", "2", "--seed", "5"]
    assert main(["rollout", *words, "--out", "mine"]) == 0
    written = ("rollout.mp4", "rollout.png", "run.json", "scenarios.csv", "scenarios.json")
    assert left() == [str(Path.cwd() / "mine" / name) for name in written]
    record = json.loads(Path("mine/run.json").read_text())
    assert (record["command"], record["status"], record["seed"]) == ("rollout", "finished", 5)
    assert record["arguments"]["policy"] == "idm"
    assert record["versions"]["torch"] == torch.__version__
    assert record["results"]["scenarios"] == 3
    rows = json.loads(Path("mine/scenarios.json").read_text())
    assert [(row["scene"], row["seed"], row["steps"]) for row in rows] == [(f"hand/{i}", 5 + i, 4) for i in range(3)]
    with Path("mine/scenarios.csv").open(newline="") as file:
        assert [row["scene"] for row in csv.DictReader(file)] == ["hand/0", "hand/1", "hand/2"]
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("hand/0", "film: mine/rollout.mp4", "3 scenarios, 0 failed"))


def test_interrupting_the_film_keeps_the_rows(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: Path, frames: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("worldloop.agents.drive.write_video", interrupted)
    words = ["--world", "replay", "--scenes", f"{place / 'short'}", "--horizon", "2", "--out", "mine"]
    assert main(["rollout", *words]) == 130
    assert left() == [str(Path.cwd() / "mine" / name) for name in ("run.json", "scenarios.csv", "scenarios.json")]
    assert json.loads(Path("mine/run.json").read_text())["status"] == "finished"
    shown = capsys.readouterr()
    assert "seed 0: 1 scenario, 0 failed" in shown.out
    assert "interrupted" in shown.err


SLEEPY = """
import pathlib, time, torch

class Own:
    def act(self, observation, state):
        pathlib.Path("driving").touch()
        time.sleep(60)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_leaves_nothing_behind(place: Path, number: signal.Signals, code: int) -> None:
    Path("sleepy.py").write_text(SLEEPY)
    start = "import sys; from worldloop.agents.cli import main; sys.exit(main(sys.argv[1:]))"
    words = ["rollout", "--policy", "sleepy:Own", "--world", "replay", "--scenes", f"{place / 'roads'}", "--out", "mine"]
    with subprocess.Popen([sys.executable, "-c", start, *words], stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not Path("driving").exists():
            time.sleep(0.05)
        assert Path("mine.partial").exists()
        process.send_signal(number)
        assert process.stderr is not None
        assert process.stderr.read().endswith("interrupted\n")
    assert process.returncode == code
    assert not Path("mine.partial").exists()
    assert not Path("mine").exists()


def test_scenes_that_cannot_start_do_not_stop_the_others(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ShardWriter(Path("both")) as writer:
        writer.add(straight_road("hand/moment", steps=11))
        writer.add(straight_road("hand/long"))
    words = ["rollout", "--scenes", "both", "--horizon", "3", "--no-video"]
    assert main([*words, "--world", "replay"]) == 1
    shown = capsys.readouterr().out
    assert "2 scenarios, 1 failed" in shown
    assert "failed: hand/moment: cannot start in ReplayWorld: its log ends at the present: take the learned world" in shown
    assert main([*words, "--world", "learned", "--weights", f"{place / 'model'}"]) == 0


def test_default_folder_is_dated(place: Path) -> None:
    assert main(["rollout", "--world", "replay", "--scenes", f"{place / 'roads'}", "--horizon", "2", "--no-video"]) == 0
    (run,) = Path("runs").iterdir()
    assert run.name.startswith("rollout-20")


def test_rollout_with_failed_scenarios_ends_with_one(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    driver("nan_driver", "torch.nan")
    words = ["rollout", "--policy", "nan_driver:Own", "--world", "replay", "--scenes", f"{place / 'roads'}", "--horizon", "2"]
    assert main([*words, "--out", "mine"]) == 1
    shown = capsys.readouterr().out
    assert "3 scenarios, 3 failed" in shown
    assert "failed: hand/0: action of sub-environment 0: acceleration is nan" in shown
    assert json.loads(Path("mine/run.json").read_text())["results"]["failed"] == 3


def test_a_drivers_exit_does_not_look_as_if_all_went_well(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("quits.py").write_text("import sys\nclass Own:\n    def act(self, observation, state):\n        sys.exit(0)\n")
    roads = ["--scenes", f"{place / 'roads'}", "--validation", f"{place / 'short'}"]
    assert main(["train", "clone", "--expert", "quits:Own", "--world", "replay", *roads, "--horizon", "4", "--out", "clone"]) == 2
    assert "a driver's or world's own code called sys.exit(0)" in capsys.readouterr().err


def test_out_of_range_action_fails_the_scenario(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    driver("wild_driver", "99.0")
    words = ["rollout", "--policy", "wild_driver:Own", "--world", "replay", "--scenes", f"{place / 'roads'}", "--horizon", "2"]
    assert main(words) == 1
    assert "acceleration is 99, wanted a number from -8 to 4 m/s2" in capsys.readouterr().out


def test_unknown_names(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    roads = f"{place / 'roads'}"
    assert "did you mean `worldloop rollout`?" in refused(capsys, "rolout")
    assert "'nobody' is unknown: choose one of random" in refused(capsys, "rollout", "--policy", "nobody", "--scenes", roads)
    assert "world='mars' is unknown: choose one of learned" in refused(capsys, "rollout", "--world", "mars", "--scenes", roads)
    message = refused(capsys, "rollout", "--world", "replay", "--scenes", f"{roads}:hand/9")
    assert "no scene matches 'hand/9'" in message
    assert "does not exist" in refused(capsys, "rollout", "--world", "replay", "--scenes", "nowhere")
    assert "unknown format 'dxf'" in refused(capsys, "data", "import", "dxf", roads, "there")
    assert "unknown network template 'moon'" in refused(capsys, "data", "generate", "there", "--templates", "moon")
    assert "nowhere.sumocfg: there is no such file" in refused(capsys, "data", "generate", "there", "--config", "nowhere.sumocfg")


def test_a_horizon_longer_than_the_log(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = ["--scenes", f"{place / 'short'}", "--horizon", "21"]
    message = refused(capsys, "rollout", "--world", "replay", *short)
    assert "--horizon 21: the replay world can run hand/short for 20 steps: choose a shorter one" in message
    learned = ["--world", "learned", "--weights", f"{place / 'model'}"]
    message = refused(capsys, "rollout", "--policy", "replay", *learned, *short)
    assert "--horizon 21: the replay policy can run hand/short for 20 steps" in message
    assert "wanted at least 1 step" in refused(capsys, "rollout", "--world", "replay", "--scenes", short[1], "--horizon", "0")


def test_a_damaged_scene_does_not_stop_the_others(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(place / "roads", "damaged")
    index = json.loads(Path("damaged/index.json").read_text())
    index["scenes"][1]["crc32"] ^= 1
    Path("damaged/index.json").write_text(json.dumps(index))
    words = ["--world", "replay", "--scenes", "damaged", "--horizon", "2", "--no-video", "--out", "mine"]
    assert main(["rollout", *words]) == 1
    shown = capsys.readouterr().out
    assert "3 scenarios, 1 failed" in shown
    assert "failed: hand/1: " in shown


def test_wrong_weights(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    roads = ["--scenes", f"{place / 'roads'}"]
    assert "weights" in refused(capsys, "rollout", "--world", "replay", "--weights", f"{place / 'model'}", *roads)
    assert "roads" in refused(capsys, "rollout", "--weights", f"{place / 'roads'}", *roads)
    Path("model").mkdir()
    for name in ("config.json", "model.safetensors", "vocabulary.safetensors"):
        shutil.copy(place / "model" / name, "model")
    whole = Path("model/model.safetensors").read_bytes()
    Path("model/model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "model.safetensors" in refused(capsys, "rollout", "--weights", "model", *roads)
    Path("model/model.safetensors").write_bytes(whole)
    config = json.loads(Path("model/config.json").read_text())
    Path("model/config.json").write_text(json.dumps(config | {"vocabulary_checksum": 1, "checksum": 1}))
    refused(capsys, "rollout", "--weights", "model", *roads)


def test_missing_truncated_and_foreign_files(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere" in refused(capsys, "data", "import", "pandaset", "nowhere", "there")
    assert "nowhere" in refused(capsys, "data", "info", "nowhere")
    Path("source").mkdir()
    Path("source/001.json.gz").write_bytes(gzip.compress(b'{"dt": 0.1, "ego": ')[:-9])
    assert "001.json.gz" in refused(capsys, "data", "import", "pandaset", "source", "there")
    Path("source/001.json.gz").write_bytes(gzip.compress(b'{"something": "else"}'))
    assert "001.json.gz" in refused(capsys, "data", "import", "pandaset", "source", "there")
    Path("lanelets").mkdir()
    Path("lanelets/a.xml").write_text("<html></html>")
    assert "a.xml" in refused(capsys, "data", "import", "commonroad", "lanelets", "there")
    shutil.copytree(place / "roads", "damaged")
    shard = next(Path("damaged").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:1000])
    assert shard.name in refused(capsys, "data", "info", "damaged")


def test_nothing_is_written_over(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine").mkdir()
    Path("mine/note.txt").write_text("keep me")
    words = ["rollout", "--world", "replay", "--scenes", f"{place / 'roads'}", "--horizon", "2", "--out", "mine"]
    assert "mine: exists already" in refused(capsys, *words)
    assert Path("mine/note.txt").read_text() == "keep me"


def test_train_refuses_missing_data(capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "train", "behavior", "--data", "nowhere", "--validation", "nowhere", "--out", "model")
    assert "nowhere: does not exist" in message


@pytest.mark.parametrize(
    "words",
    [
        ("behavior", "--data", "{roads}", "--validation", "{roads}"),
        ("ppo", "--scenes", "{roads}", "--validation", "{roads}", "--start-from", "nowhere"),
    ],
)
def test_resuming_nothing_is_refused_before_anything_else(
    place: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    """What is asked for could not be trained anyway: but that costs time to find out."""
    given = [word.format(roads=place / "roads") for word in words]
    assert "no run to resume" in refused(capsys, "train", *given, "--out", "gone", "--resume")


def test_numbers_below_zero_are_named_as_they_were_given(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--seed -2: wanted 0 or more" in refused(capsys, "data", "generate", "made", "--seed", "-2")
    words = ["rollout", "--world", "replay", "--scenes", f"{place / 'roads'}", "--horizon", "2", "--films", "-1"]
    assert "--films -1: wanted 0 or more" in refused(capsys, *words)


def test_sumo_absent(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules that cannot be imported stand before the real ones, for the worker processes too."""
    Path("absent").mkdir()
    for name in ("libsumo", "sumo", "sumolib"):
        Path(f"absent/{name}.py").write_text(f'raise ModuleNotFoundError("No module named {name}")\n')
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd() / "absent"))
    monkeypatch.syspath_prepend(str(Path.cwd() / "absent"))
    message = refused(capsys, "data", "generate", "there", "--scenes", "1", "--workers", "1")
    assert 'pip install "worldloop[sumo]"' in message


def test_sumo_world_refuses_scenes_that_sumo_did_not_make(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("libsumo", reason='needs pip install "worldloop[sumo]"')
    assert main(["rollout", "--world", "sumo", "--scenes", f"{place / 'roads'}", "--horizon", "2", "--no-video"]) == 2
    assert "none of the 3 scenes was made by `worldloop data generate`" in capsys.readouterr().err
    assert not (place / "runs").exists()


def test_traceback_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLDLOOP_TRACEBACK", "1")
    with pytest.raises(ValueError, match="no command"):
        main(["nonsense"])


def test_data_info_writes_its_table(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "info", f"{place / 'roads'}", "--out", "told"]) == 0
    shown = capsys.readouterr()
    assert "vehicles" in shown.out
    assert "3/3" in shown.err  # the progress bar
    rows = json.loads(Path("told/info.json").read_text())
    assert rows[-1]["scenes"] == 3
    assert json.loads(Path("told/run.json").read_text())["results"]["splits"] == rows


def test_generate_then_drive_in_the_reference_world(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("libsumo", reason='needs pip install "worldloop[sumo]"')
    words = ["--templates", "t_priority", "--scenes", "2", "--workers", "1", "--steps", "41"]
    assert main(["data", "generate", "made", *words, "--out", "first"]) == 0
    assert main(["data", "generate", "again", *words, "--out", "second"]) == 0
    first, again = SceneDataset("made"), SceneDataset("again")
    assert [entry["crc32"] for entry in first.entries] == [entry["crc32"] for entry in again.entries]
    assert main(["rollout", "--world", "sumo", "--scenes", "made", "--horizon", "5", "--no-video", "--out", "driven"]) == 0
    assert "2 scenarios, 0 failed" in capsys.readouterr().out


def test_shipped_scenes_and_world_drive(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rollout", "--horizon", "3", "--films", "1", "--out", "mine"]) == 0
    rows = json.loads(Path("mine/scenarios.json").read_text())
    assert len(rows) >= 8
    assert all(row["agents_simulated"] > 0 for row in rows)


def test_import_of_real_recordings(capsys: pytest.CaptureFixture[str]) -> None:
    source = SHARED / "pandaset"
    if not source.is_dir():
        pytest.skip(f"{source} is not there: the import of tiny files is tested in test_data.py")
    file, drive = sorted(source.glob("*.json.gz"))[0], ["rollout", "--world", "replay", "--policy", "replay"]
    assert main(["data", "import", "pandaset", str(file), "scenes", "--out", "told"]) == 0
    assert main([*drive, "--scenes", "scenes", "--no-video", "--out", "driven"]) == 0
    assert "0 failed" in capsys.readouterr().out
