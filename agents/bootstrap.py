"""Bootstrap over scenes: how far a figure would move if other scenes had been drawn (Efron, "Bootstrap methods", 1979)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..worldmodel.run import seeded_generator

RESAMPLES = 1000
"""Bootstrap resamples of scenes for the 95 % intervals."""


def resampled(count: int, seed: int) -> Tensor:
    """Return which of `count` scenes are drawn in each resample, (RESAMPLES, count) int64."""
    return torch.randint(count, (RESAMPLES, count), generator=seeded_generator(seed, "bootstrap"))


def interval(values: Tensor) -> tuple[float | None, float | None]:
    """Return the 2.5 and 97.5 percentiles of those of the values (R,) that are finite; None, None where none is."""
    found = values.double()
    found = found[found.isfinite()]
    if len(found) == 0:
        return None, None
    low, high = found.quantile(found.new_tensor([0.025, 0.975])).tolist()
    return low, high
