"""Real data in: one file a format, one on-disk form (`shards.py`), and the table of readers."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from ..scene import Scene
from .shards import DataError, SceneDataset, Skipped

__all__ = ["READERS", "DataError", "SceneDataset", "Skipped", "find_files", "read", "reader"]

READERS: dict[str, str] = {
    "argoverse2": ".argoverse2",
    "commonroad": ".commonroad",
    "donkeycar": ".donkeycar",
    "frames": ".frames",
    "gpudrive": ".gpudrive",
    "pandaset": ".pandaset",
    "scenarionet": ".scenarionet",
    "waymo": ".waymo",
}
"""Format name to module; each has `PATTERNS`, by which its files are found, and `read_file(file)`: scenes, or clips."""


def reader(format: str) -> ModuleType:
    """Return the module that reads `format`.

    Raises:
        DataError: the format is unknown; the message names the known ones.
    """
    if format not in READERS:
        raise DataError(f"unknown format {format!r}: known are {', '.join(sorted(READERS))}")
    return importlib.import_module(READERS[format], __name__)


def find_files(format: str, path: str | Path) -> list[Path]:
    """Return the files of a format at `path`, a folder or one file, in order.

    Raises:
        DataError: there is none.
    """
    path, patterns = Path(path), reader(format).PATTERNS
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder")
    if path.is_file():
        return [path]
    found = sorted({file for pattern in patterns for file in path.glob(pattern)}) if path.is_dir() else []
    if not found:
        raise DataError(f"{path}: no {format} file ({', '.join(patterns)}) here: name their folder or one of them")
    return found


def read(format: str, path: str | Path) -> Iterator[Scene | Skipped]:
    """Yield the scenes at `path` (a folder or one file), and `Skipped` for each one left out on purpose."""
    for file in find_files(format, path):
        yield from reader(format).read_file(file)
