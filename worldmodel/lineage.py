"""What weights were trained on, kept beside them in `training.json`: every training that led to them, the first one first.

    {"stages": [{"arguments": {...}, "optimiser_steps", "seconds", "cores", "validation_loss"}, ...]}

Paths lose the folders that mean something on one machine only: of `/home/me/scenes/ngsim:*US101*=2` stays `ngsim:*US101*=2`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .files import write_json

TRAINING_FILE = "training.json"

Stage = dict[str, Any]


def without_folders(value: Any) -> Any:
    """Return paths, alone or in a list, without the folders that only mean something on the machine of the run."""
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [without_folders(entry) for entry in value]
    if isinstance(value, str) and "/" in value.partition(":")[0]:
        place, colon, rest = value.partition(":")
        return Path(place).name + colon + rest
    return value


def read_stages(folder: Path) -> list[Stage]:
    """Return the trainings that led to the weights in a folder, [] if it does not say.

    Raises:
        ValueError: its `training.json` is broken.
    """
    path = folder / TRAINING_FILE
    try:
        stages = json.loads(path.read_text())["stages"]
        if not all(isinstance(stage["arguments"]["data"], list) for stage in stages):
            raise ValueError("a stage without data")
        return stages
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, LookupError) as error:
        raise ValueError(f"{path}: cannot be read ({error}): copy the weights again, or remove it") from error


def stages_before(start_from: Path | None) -> list[Stage]:
    """Return the trainings that led to the weights that a training begins with, [] if it begins with none.

    Raises:
        ValueError: the weights do not say: nobody can hold anything out from them.
    """
    stages = [] if start_from is None else read_stages(start_from)
    if start_from is not None and not stages:
        raise ValueError(
            f"--start-from {start_from}: holds no {TRAINING_FILE}, so nobody can say what it was trained on and what is held out "
            "from it: take weights that `worldloop train` has written"
        )
    return stages


def write_stages(folder: Path, before: Sequence[Stage], arguments: Mapping[str, Any], **done: Any) -> None:
    """Write the trainings `before` and this one, with the `arguments` that it was asked with, into a folder of weights."""
    asked = {name: without_folders(value) for name, value in arguments.items() if name not in ("out", "resume")}
    write_json(folder / TRAINING_FILE, {"stages": [*before, {"arguments": asked, **done}]})


def patterns(stages: Iterable[Stage], argument: str = "data") -> dict[str, list[str]]:
    """Return by the name of the folder what was taken of it in `data` or `validation`: patterns of ids, "" for all."""
    found: dict[str, list[str]] = {}
    for stage in stages:
        for text in stage["arguments"][argument]:
            name, _, pattern = text.partition("=")[0].partition(":")
            found.setdefault(name, []).append(pattern)
    return found
