"""Run folders: whole or not at all, never over something else, resumed as they were begun."""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from worldloop.worldmodel.checkpoint import use_bfloat16
from worldloop.worldmodel.files import write_tensors, write_text
from worldloop.worldmodel.run import dated_folder, require_free, resume_run, start_run, whole_run


def test_a_run_appears_when_it_is_whole_and_an_error_leaves_nothing(tmp_path: Path):
    with whole_run(tmp_path / "good", "test", {}, 0) as run:
        assert not (tmp_path / "good").exists()
        run.finish({"answer": 42})
    record = json.loads((tmp_path / "good" / "run.json").read_text())
    assert (record["status"], record["results"]) == ("finished", {"answer": 42})
    with pytest.raises(ZeroDivisionError), whole_run(tmp_path / "bad", "test", {}, 0):
        _ = 1 / 0
    assert [path.name for path in tmp_path.iterdir()] == ["good"]


def test_what_a_killed_run_left_is_removed_and_nothing_else(tmp_path: Path):
    left = tmp_path / "mine.partial"
    start_run(left, "test", {}, 0)
    with (
        pytest.raises(FileExistsError, match=r"process \d+ is writing it"),
        whole_run(tmp_path / "mine", "test", {}, 0),
    ):
        pass
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True)
    record = json.loads((left / "run.json").read_text())
    (left / "run.json").write_text(json.dumps(record | {"process": int(gone.stdout)}))
    with whole_run(tmp_path / "mine", "test", {}, 0):
        pass
    foreign = tmp_path / "keep.partial"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="no run has left it"), whole_run(tmp_path / "keep", "test", {}, 0):
        pass
    assert (foreign / "thesis.tex").exists()


def test_folders_by_date_differ_within_a_second():
    first = dated_folder("data info")
    time.sleep(0.002)
    assert first != dated_folder("data info")


def test_a_place_without_a_name_is_refused():
    with pytest.raises(ValueError, match="names no folder"):
        require_free(Path())


def test_a_resumed_run_keeps_its_arguments(tmp_path: Path):
    start_run(tmp_path / "run", "test", {"rate": 1, "steps": 5, "resume": False}, 0)
    with pytest.raises(ValueError, match="was started with rate 1, found 2"):
        resume_run(tmp_path / "run", 0, {"rate": 2, "steps": 5, "resume": True}, free=("resume", "steps"))
    run = resume_run(tmp_path / "run", 0, {"rate": 1, "steps": 9, "resume": True}, free=("resume", "steps"))
    assert run.record["arguments"]["steps"] == 9
    with pytest.raises(FileNotFoundError, match="no run to resume"):
        resume_run(tmp_path / "other", 0, {}, free=())


def test_tensors_are_readable_by_others_and_a_full_disk_is_named(tmp_path: Path):
    path = tmp_path / "some.safetensors"
    tensors = {"a": torch.arange(6.0).view(2, 3).T}
    write_tensors(path, tensors)
    assert torch.equal(load_file(path)["a"], tensors["a"])
    assert path.stat().st_mode & 0o777 == tmp_path.stat().st_mode & 0o666
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match=r"some\.safetensors: cannot be written .*: free some space"):
            write_tensors(path, {"a": torch.zeros(1000)})
        with pytest.raises(OSError, match=r"note\.txt: cannot be written .*: free some space"):
            write_text(tmp_path / "note.txt", "x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["some.safetensors"]


@pytest.mark.parametrize(
    ("asked", "processor", "wanted"),
    [
        (None, "AVX2", False),
        (None, "AVX512", True),
        (True, "AVX2", True),
        (False, "AVX512", False),
    ],
)
def test_a_training_multiplies_in_what_the_processor_is_fast_in(asked, processor, wanted, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: processor)
    assert use_bfloat16(asked) == wanted
