"""Reward: a weighted sum of measures, every term by its name.

A reward is a preset of `PRESETS` or weights of one's own, `{measure: weight}`; each step it is the sum of weight times measure.
Progress is the difference of a potential (metres along the route, or the share of the expert's way, up to 1): going back costs
what going there earned, so nothing is gained by going to and fro (Ng, Harada, Russell, "Policy invariance under reward
transformations", ICML 1999).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping

import torch
from torch import Tensor

from .measures import MEASURES

EPISODE = 80
"""Steps over which the presets of the driving scores spread what is scored once an episode there (8 s)."""

PRESETS: dict[str, dict[str, float]] = {
    "progress": {"progress": 0.1, "collision": -5.0, "off_road": -5.0, "comfort": 0.02},
    "nuplan": {
        "progress_share": 5 / 16,
        "safe_time_to_collision": 5 / 16 / EPISODE,
        "within_speed_limit": 4 / 16 / EPISODE,
        "comfort": 2 / 16 / EPISODE,
        "at_fault_collision": -1.0,
        "at_fault_object": -0.5,
        "off_road": -1.0,
        "against_flow": -1 / 60,
    },
    "epdms": {
        "progress_share": 5 / 14,
        "safe_time_to_collision": 5 / 14 / EPISODE,
        "lane_keeping": 2 / 14 / EPISODE,
        "comfort": 2 / 14 / EPISODE,
        "at_fault_collision": -1.0,
        "at_fault_object": -0.5,
        "off_road": -1.0,
        "against_flow": -1 / 60,
        "red_light": -1.0,
    },
}
"""Weights by name. `progress`: driving well at 10 m/s earns 0.12 a step and 10 in 8 s, half of which a crash costs. `nuplan` and
`epdms`: what those scores (`score.py`) weigh, earned bit by bit, up to 1 in 8 s; what multiplies a score by 0 costs 1 when it
happens. A metre against the flow counts in `against_flow` for ten steps, so six metres, at which the score is 0, cost 1."""


def reward_weights(reward: str | Mapping[str, float]) -> dict[str, float]:
    """Return the weights of a preset, or those given, by the names of their measures.

    Raises:
        ValueError: no such preset, or a term is no measure or its weight no finite number; the message names it.
    """
    if isinstance(reward, str):
        if reward not in PRESETS:
            raise ValueError(f"reward={reward!r} is unknown: choose one of {', '.join(PRESETS)}, or weights by measure")
        return dict(PRESETS[reward])
    if not isinstance(reward, Mapping) or not reward:
        raise ValueError(
            f"reward={reward!r}: wanted one of {', '.join(PRESETS)}, or weights by measure: {{'progress': 0.1, ...}}"
        )
    for name, weight in reward.items():
        if name not in MEASURES:
            near = difflib.get_close_matches(str(name), MEASURES, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ValueError(f"reward term {name!r} is no measure{hint}: choose among {', '.join(MEASURES)}")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not abs(weight) < float("inf"):
            raise ValueError(f"reward term {name!r}: found weight {weight!r}, wanted a finite number")
    return {name: float(weight) for name, weight in reward.items()}


def reward_terms(measures: Mapping[str, Tensor], weights: Mapping[str, float]) -> dict[str, Tensor]:
    """Return each weighted measure (B,) float64 by its name; their sum is the reward."""
    return {name: weight * measures[name].to(torch.float64) + 0.0 for name, weight in weights.items()}  # no -0.0
