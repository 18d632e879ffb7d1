"""Any video with actions: pictures and a table, a folder a recording.

    drive_a/000001.png ...        numbered pictures, PNG or JPEG; a number that is missing is a gap
    drive_a/actions.csv           a header with the names of the actions, then a row a picture, in the order of the numbers
    drive_a/clip.json             {"rate": 20}, frames a second; not needed where the import is told (`--rate`)

Row t is what was done while picture t was seen. The clips of `drive_a` are called `drive_a/0000`, `drive_a/0001`, ...: a
recording is cut at its gaps and into pieces of at most so many frames.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from .clips import LONGEST, Clip, pieces, runs
from .images import read_frames
from .shards import DataError, Skipped

PATTERNS = ("actions.csv", "*/actions.csv")
"""How files of this format are called: a recording is found by its actions."""

NUMBERED = re.compile(r"(?:.*\D)?(\d+)\.(?:png|jpe?g)", re.IGNORECASE)
SHORTEST = 2
"""Frames: fewer show no action's effect."""


def read_file(
    file: Path, size: tuple[int, int] | None = None, rate: float | None = None, longest: int = LONGEST
) -> Iterator[Clip | Skipped]:
    """Yield the clips of the recording whose actions are `file`.

    Args:
        file: an `actions.csv`.
        size: height and width that the frames are to have; None keeps theirs.
        rate: frames a second, where no clip.json beside the file says it.
        longest: frames of a clip at the most.

    Raises:
        DataError: a picture, row or number is missing or not what the module says.
    """
    folder, names, actions = file.parent, *_read_actions(file)
    pictures = _pictures(folder)
    if len(pictures) != len(actions):
        raise DataError(f"{file}: has {len(actions)} rows below its header, wanted {len(pictures)}: one for each picture")
    rate, recording = _read_rate(folder / "clip.json", rate), folder.resolve().name
    numbers = list(pictures)
    gaps = [t > 0 and number != numbers[t - 1] + 1 for t, number in enumerate(numbers)]
    made = 0
    for run in runs(gaps):
        if len(run) < SHORTEST:
            where = f"{folder}: {pictures[numbers[run.start]]}"
            yield Skipped(where, f"stands alone between gaps, wanted at least {SHORTEST} frames in a row")
            continue
        for piece in pieces(run, longest):
            frames = read_frames([pictures[numbers[t]] for t in piece], lambda n: (folder / n).read_bytes(), str(folder), size)
            yield Clip(f"{recording}/{made:04d}", frames, actions[piece.start : piece.stop], names, rate, numbers[piece.start])
            made += 1


def _pictures(folder: Path) -> dict[int, str]:
    """Return the names of the pictures by their number, in order."""
    pictures: dict[int, str] = {}
    for path in sorted(folder.iterdir()):
        if match := NUMBERED.fullmatch(path.name):
            number = int(match[1])
            if number in pictures:
                raise DataError(f"{folder}: {pictures[number]} and {path.name} have the same number: leave one out")
            pictures[number] = path.name
    return {number: pictures[number] for number in sorted(pictures)}


def _read_actions(file: Path) -> tuple[tuple[str, ...], torch.Tensor]:
    """Return the names of the actions and their values (T, D)."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            rows = list(csv.reader(opened, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{file}: is no CSV file ({error}): write a header and a row a picture") from error
    names = tuple(name.strip() for name in rows[0]) if rows else ()
    if not names or not all(names) or len(set(names)) != len(names):
        raise DataError(f"{file}: has the header {','.join(names)!r}, wanted a name for each action, each another")
    values = [[_number(value) for value in row] for row in rows[1:]]
    for number, row in enumerate(values, 2):
        if len(row) != len(names) or not all(map(math.isfinite, row)):
            wanted = f"{len(names)} finite numbers ({', '.join(names)})"
            raise DataError(f"{file}: line {number}: found {','.join(rows[number - 1])!r}, wanted {wanted}")
    return names, torch.tensor(values, dtype=torch.float32).view(-1, len(names))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _read_rate(file: Path, told: float | None) -> float:
    """Return the frames a second that clip.json says, or that the import was told where there is none."""
    if not file.exists():
        if told is None:
            raise DataError(f'{file}: is missing, so the rate is not known: write {{"rate": 20}} into it or give --rate')
        return told
    try:
        said: Any = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: is no JSON ({error}): correct it") from error
    rate: Any = said.get("rate") if isinstance(said, dict) else None
    if type(rate) not in (int, float) or not 0 < rate < math.inf or set(said) != {"rate"}:
        raise DataError(f'{file}: found {str(said)[:80]}, wanted {{"rate": 20}} (frames a second) and nothing else')
    if told not in (None, rate):
        raise DataError(f"{file}: says {rate} Hz, --rate says {told}: leave one of them out")
    return float(rate)
