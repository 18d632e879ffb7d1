"""Run folders: what a command was asked, with which seed and versions, what it measured, and how it ended.

A run folder holds `run.json` (one record of the whole run), `metrics.jsonl` (one line a logged step, append-only) and whatever
the command itself writes. A short command (a rollout) works in `<folder>.partial`, which takes its final name only when all is
written; a long one (training) works in the final folder and can be resumed after a kill.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .files import write_json, write_text
from .partial import require_abandoned

if TYPE_CHECKING:
    import torch

RECORDED_PACKAGES = ("worldloop", "torch", "numpy", "gymnasium", "safetensors")


@dataclass
class Run:
    """One run folder that is open for writing.

    Attributes:
        folder: where to write; of a short run the temporary folder.
        record: what `run.json` holds: command, arguments, inputs, seed, versions, machine, started, status, seconds,
            results.
    """

    folder: Path
    record: dict[str, Any]
    _clock: float = field(default_factory=time.monotonic)

    def log(self, step: int, **metrics: Any) -> None:
        """Append one line `{"step": step, ...}` to `metrics.jsonl`."""
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")

    def finish(self, results: Mapping[str, Any]) -> None:
        """Write the results and the seconds taken into `run.json` and mark the run as finished."""
        self.record |= {"status": "finished", "results": dict(results)}
        self.checkpoint()

    def checkpoint(self) -> None:
        """Write the record with the seconds taken until now, so that a kill does not lose them."""
        now = time.monotonic()
        self.record["seconds"] = round(self.record["seconds"] + now - self._clock, 3)
        self._clock = now
        write_json(self.folder / "run.json", self.record)


def start_run(
    folder: Path, command: str, arguments: Mapping[str, Any], seed: int, inputs: Mapping[str, str] | None = None
) -> Run:
    """Create a run folder with its `run.json` (status "running"); `inputs` are fingerprints of what it reads, by name.

    Raises:
        FileExistsError: the folder exists and is not empty.
    """
    require_free(folder)
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(folder, _record(command, arguments, seed) | {"inputs": dict(inputs or {})})
    write_json(folder / "run.json", run.record)
    return run


def resume_run(
    folder: Path, step: int, arguments: Mapping[str, Any], free: Collection[str], inputs: Mapping[str, str] | None = None
) -> Run:
    """Open the folder of a killed run again at `step`; lines of `metrics.jsonl` that lie after it or are torn are dropped.

    `arguments` are what it goes on with, and what its record then holds; those named in `free` may differ from the former ones.

    Raises:
        FileNotFoundError: there is no `run.json` in the folder.
        ValueError: another argument differs, or what stands under the name of an input.
    """
    path = _require_run(folder)
    record = json.loads(path.read_text())
    arguments = json.loads(json.dumps(dict(arguments), default=str))  # as they stand in the record
    for name, value in record["arguments"].items():
        if name not in free and arguments.get(name) != value:
            raise ValueError(
                f"{path}: was started with {name} {value}, found {arguments.get(name)}: resume with the same, or anew"
            )
    require_same_inputs(path, record, inputs or {})
    record |= {"status": "running", "arguments": arguments}
    lines = [row for row in read_metrics(folder) if row["step"] <= step]
    if lines:
        write_text(folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in lines))
    else:
        (folder / "metrics.jsonl").unlink(missing_ok=True)
    write_json(path, record)
    return Run(folder, record)


def _require_run(folder: Path) -> Path:
    """Return the record of the run in `folder`, which has to be there."""
    path = folder / "run.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found, so there is no run to resume: start one without resuming")
    return path


def require_same_inputs(path: Path, record: Mapping[str, Any], inputs: Mapping[str, str]) -> None:
    """Raise ValueError if the run of this record (of `path`) read something else by the name of one of the `inputs`.

    What the record has no fingerprint of is taken as it is.
    """
    for name, digest in record.get("inputs", {}).items():
        if name in inputs and inputs[name] != digest:
            raise ValueError(
                f"{path}: {name} has changed since that run (sha256 {digest[:12]} then, {inputs[name][:12]} now), so rows would "
                "not agree: put back what was there, or start a new run"
            )


def require_new(folder: Path, resume: bool) -> None:
    """Refuse, before anything costly is done, a new training in a folder that is taken, and to resume one where there is none.

    Raises:
        FileExistsError: it holds a training already, or anything else. FileNotFoundError: there is no run to resume.
    """
    if resume:
        _require_run(folder)
        return
    if (folder / "run.json").is_file():
        raise FileExistsError(f"{folder}: holds a training already: go on with it by --resume, or name another place")
    require_free(folder)


@contextmanager
def training_run(
    folder: Path, command: str, arguments: Mapping[str, Any], seed: int, step: int, say: Callable[[str], None]
) -> Iterator[Run]:
    """Open the run of a training, new or, where `arguments` say resume, at `step`; interrupted it says so and how to go on.

    Raises:
        FileExistsError, FileNotFoundError, ValueError: see `start_run` and `resume_run`.
    """
    if arguments["resume"]:
        run = resume_run(folder, step, arguments, free=("resume", "steps", "evaluate_every"))
    else:
        run = start_run(folder, command, json.loads(json.dumps(dict(arguments), default=str)), seed)
    try:
        yield run
    except KeyboardInterrupt:
        run.record["status"] = "interrupted"
        run.checkpoint()
        say("go on with it by the same command and --resume")
        raise


@contextmanager
def whole_run(folder: Path, command: str, arguments: Mapping[str, Any], seed: int) -> Iterator[Run]:
    """Open a run that appears under `folder` only when the block has ended well; after an error nothing is left.

    Raises:
        FileExistsError: the folder exists and is not empty, or another process is writing it.
    """
    require_free(folder)
    partial = folder.with_name(folder.name + ".partial")
    _clear(partial)
    try:
        run = start_run(partial, command, arguments, seed)
        yield run
        if folder.exists():
            folder.rmdir()
        os.replace(partial, folder)
        run.folder = folder
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _clear(partial: Path) -> None:
    """Remove what a killed run has left, and nothing else."""
    if not partial.exists():
        return
    record = partial / "run.json"
    if record.is_file():
        require_abandoned(partial, int(json.loads(record.read_text())["process"]))
    elif not partial.is_dir() or any(partial.iterdir()):
        raise FileExistsError(f"{partial}: is in the way and no run has left it: move it or name another place")
    shutil.rmtree(partial)


def dated_folder(command: str) -> Path:
    """Return `runs/<command>-<date>-<time>`, where a run goes that was not told where to."""
    now = datetime.now()
    return Path("runs") / f"{command.replace(' ', '-')}-{now:%Y%m%d-%H%M%S}-{now.microsecond // 1000:03d}"


def require_free(folder: Path) -> None:
    """Raise FileExistsError if `folder` is a file or holds anything, ValueError if it cannot be made as it has no name."""
    if not folder.name:
        raise ValueError(f"{folder}: names no folder that could be made: give it a name, as in runs/mine")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise FileExistsError(f"{folder}: exists already and is never written over: name another place or remove it")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of `metrics.jsonl` in order; a last line that a kill has torn is left out."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    text = path.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def seeded_generator(seed: int, purpose: str) -> torch.Generator:
    """Return a generator for one purpose of a run; generators of different purposes are independent of each other.

    Args:
        seed: any non-negative integer.
        purpose: what the numbers are for, such as "scenes"; part of the seed, so it must not change between releases.

    Raises:
        ValueError: the seed is negative.
    """
    import torch  # 2 s that `worldloop --help` shall not pay

    if seed < 0:
        raise ValueError(f"seed: found {seed}, wanted a number >= 0")
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _record(command: str, arguments: Mapping[str, Any], seed: int) -> dict[str, Any]:
    return {
        "command": command,
        "arguments": dict(arguments),
        "seed": seed,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in RECORDED_PACKAGES},
        "machine": {"system": platform.platform(), "cores": os.cpu_count()},
        "process": os.getpid(),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "status": "running",
        "seconds": 0.0,
        "results": None,
    }
