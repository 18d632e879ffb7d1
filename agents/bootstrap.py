"""Bootstrap over recordings: how far a figure would move if others had been drawn (Efron, "Bootstrap methods", 1979).

Scenes that show the same moments (`worldmodel/data/recordings.py`) are drawn together: copies say nothing twice (the cluster
bootstrap; Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 3.8).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..worldmodel.run import seeded_generator

RESAMPLES = 1000
"""Bootstrap resamples of scenes for the 95 % intervals."""


def resampled(count: int, seed: int) -> Tensor:
    """Return which of `count` scenes are drawn in each resample, (RESAMPLES, count) int64; one scene has no resamples (0, 1).

    It says nothing of how others would be, while a thousand copies of it would look like certainty.
    """
    many = RESAMPLES if count > 1 else 0
    return torch.randint(count, (many, count), generator=seeded_generator(seed, "bootstrap"))


def by_recording(values: Tensor, recording: Sequence[int]) -> Tensor:
    """Return the sums (C, ...) of values (N, ...) over the scenes of each of C recordings, to be drawn by `resampled(C, ...)`."""
    _, place = torch.tensor(recording, dtype=torch.int64).unique(return_inverse=True)
    return values.new_zeros(int(place.max()) + 1, *values.shape[1:]).index_add(0, place, values)


def interval(values: Tensor) -> tuple[float | None, float | None]:
    """Return the 2.5 and 97.5 percentiles of those of the values (R,) that are finite; None, None where none is."""
    found = values.double()
    found = found[found.isfinite()]
    if len(found) == 0:
        return None, None
    low, high = found.quantile(found.new_tensor([0.025, 0.975])).tolist()
    return low, high


def counted(count: int, one: str, many: str = "") -> str:
    """Return how many there are as text: 1 scene, 2 scenes."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def cell(row: Mapping[str, Any], name: str, scale: float = 1, unit: str = "", places: int = 2) -> str:
    """Return a figure of a row as text: `value unit [low, high]` from `name`, `name_low`, `name_high`, or "none".

    Without an interval (one scene) there are no brackets.
    """
    if row.get(name) is None:
        return "none"
    value, low, high = (
        None if number is None else f"{scale * number:.{places}f}"
        for number in (row[name], row.get(f"{name}_low"), row.get(f"{name}_high"))
    )
    return f"{value}{unit}" if low is None else f"{value}{unit} [{low}, {high}]"
