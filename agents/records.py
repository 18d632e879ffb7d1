"""What finished runs have recorded: read again by the commands that compare them or write them up."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..worldmodel.files import replacing, write_text
from ..worldmodel.lineage import TRAINING_FILE, read_stages


def finished_record(folder: Path, *commands: str) -> dict[str, Any]:
    """Return the `run.json` of a finished run of one of these commands.

    Raises:
        ValueError: there is none, it is not readable, of another command, or not finished.
    """
    path = folder / "run.json"
    try:
        record = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path}: not found: name the folder of a finished run") from None
    except ValueError as error:
        raise ValueError(f"{path}: not readable ({error}): run it again") from error
    wanted = " or ".join(f"`worldloop {command}`" for command in commands)
    if record.get("command") not in commands:
        raise ValueError(f"{path}: is of `worldloop {record.get('command')}`, wanted one of {wanted}")
    if record.get("status") != "finished":
        raise ValueError(f"{path}: the run is {record.get('status')}, wanted a finished one: resume it first, or run it again")
    return record


def trained_model(place: Path, command: str) -> Path:
    """Return the folder of the weights that a finished training has left, or `place` itself if it holds such weights.

    Raises:
        ValueError: it is neither, or the weights do not say what they were trained on.
    """
    folder = place
    if not (place / TRAINING_FILE).is_file():
        finished_record(place, command)
        folder = place / "model"
    if not read_stages(folder):
        raise ValueError(f"{folder}: holds no {TRAINING_FILE}, so nobody can say what it was trained on: train it again")
    return folder


def ship(source: Path, folder: Path, names: Sequence[str]) -> None:
    """Copy files of a trained model into a folder, each whole or not at all; nothing is to be done where it lies there."""
    if source.resolve() == folder.resolve():
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        with replacing(folder / name) as partial:
            shutil.copyfile(source / name, partial)


def renew_text(readme: Path, begin: str, end: str, text: str) -> None:
    """Put a text between two lines of a README, in place of what stands there.

    Raises:
        ValueError: it has no such lines.
    """
    old = readme.read_text()
    if begin not in old or end not in old:
        raise ValueError(f"{readme}: no lines {begin!r} and {end!r} to put the table between: add them")
    write_text(readme, f"{old[: old.index(begin)]}{begin}\n{text}\n{old[old.index(end) :]}")
