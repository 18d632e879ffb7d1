"""Reward: a weighted sum of measures, every term by its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RewardWeights:
    """What each measure of a step (`envs/measures.py`) is worth; a field's name is the measure's name.

    With these values, driving well at 10 m/s earns 0.12 a step and 10 in an episode of 8 s, half of which a crash costs.

    Attributes:
        progress: for each metre along the route.
        collision: for a step in which the ego's box overlaps another one.
        off_road: for a step in which a corner of the ego is beyond the road's edge.
        comfort: for a step in which all comfort limits hold; in proportion where only some do.
    """

    progress: float = 0.1
    collision: float = -5.0
    off_road: float = -5.0
    comfort: float = 0.02


def reward_terms(measures: Mapping[str, Tensor], weights: RewardWeights) -> dict[str, Tensor]:
    """Return each weighted measure (B,) float64 by its name; their sum is the reward."""
    return {name: weight * measures[name].to(torch.float64) + 0.0 for name, weight in asdict(weights).items()}  # no -0.0
