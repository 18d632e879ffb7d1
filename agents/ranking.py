"""How policies compare: means with intervals, paired tests, and whether two worlds rank them alike.

All intervals are bootstraps over scenes: the seeds of a scene stay together, as they share its start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from ..worldmodel.run import seeded_generator
from .bootstrap import interval, resampled

FIGURES = {
    "nuplan": "nuplan",
    "epdms": "epdms",
    "at_fault_collision": "term_no_at_fault_collision",
    "off_road": "term_drivable_area",
    "red_light": "term_traffic_light",
    "progress": "term_progress",
    "time_to_collision": "term_time_to_collision",
    "speed_limit": "term_speed_limit",
    "lane_keeping": "term_lane_keeping",
    "comfort": "term_comfort",
}
"""Columns of the leader table, and the columns of the rows that they are means of."""

FAULTS = ("at_fault_collision", "off_road", "red_light")
"""Of these the share of scenarios in which it happened is told."""

FLIPS = 10_000
"""Random sign flips of the paired permutation test."""


def scored(row: Mapping[str, Any]) -> bool:
    """Whether a row counts: driven, or failed by its policy, which then scores 0; a scene that cannot start counts for nobody."""
    return row["ended"] != "failed"


def value_of(row: Mapping[str, Any], column: str) -> float:
    """Return a figure of a row, 0 where the policy has failed it."""
    return 0.0 if row["error"] is not None else float(row[column])


def by_scene(rows: Sequence[Mapping[str, Any]], column: str) -> dict[str, float]:
    """Return the mean of a column over the seeds of each scene."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if scored(row):
            found.setdefault(row["scene"], []).append(value_of(row, column))
    return {scene: float(np.mean(values)) for scene, values in found.items()}


def fault_shares(rows: Sequence[Mapping[str, Any]], name: str, column: str) -> dict[str, float]:
    """Return the share of each scene's drives in which a fault happened; what failed, or has no road edges, tells nothing."""
    found: dict[str, list[bool]] = {}
    for row in rows:
        if row["error"] is None and not (name == "off_road" and row["off_road"] is None):
            found.setdefault(row["scene"], []).append(float(row[column]) < 1)
    return {scene: float(np.mean(values)) for scene, values in found.items()}


def leader_row(rows: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Any]:
    """Return counts and the `FIGURES` of one policy in one world, each with `_low` and `_high`."""
    line: dict[str, Any] = {
        "scenarios": len(rows),
        "failed": sum(row["error"] is not None for row in rows),
        "failed_by_policy": sum(row["ended"] == "policy_failed" for row in rows),
    }
    for name, column in FIGURES.items():
        scenes = fault_shares(rows, name, column) if name in FAULTS else by_scene(rows, column)
        values = torch.tensor(list(scenes.values()), dtype=torch.float64)
        means = values[resampled(len(values), seed)].mean(dim=1) if len(values) else values
        line[name] = values.mean().item() if len(values) else None
        line[f"{name}_low"], line[f"{name}_high"] = interval(means)
    return line


def paired(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]], column: str, seed: int) -> dict[str, Any]:
    """Return by how much the first policy is better than the second on the scenes that both drove.

    `difference` of the means with its interval, and `p_value` of the hypothesis that there is none: two-sided, by flipping the
    signs of the scenes' differences at random (Fisher's paired permutation test).
    """
    ours, theirs = by_scene(first, column), by_scene(second, column)
    common = [scene for scene in ours if scene in theirs]
    gaps = torch.tensor([ours[scene] - theirs[scene] for scene in common], dtype=torch.float64)
    if not len(gaps):
        return {"scenes": 0, "difference": None, "difference_low": None, "difference_high": None, "p_value": None}
    low, high = interval(gaps[resampled(len(gaps), seed)].mean(dim=1))
    generator = seeded_generator(seed, "flips")
    signs = torch.randint(0, 2, (FLIPS, len(gaps)), generator=generator, dtype=torch.float64) * 2 - 1
    extreme = ((signs * gaps).mean(dim=1).abs() >= gaps.mean().abs() - 1e-12).sum().item()
    return {
        "scenes": len(gaps),
        "difference": gaps.mean().item(),
        "difference_low": low,
        "difference_high": high,
        "p_value": (extreme + 1) / (FLIPS + 1),
    }


def agreement(first: Tensor, second: Tensor, seed: int) -> dict[str, Any]:
    """Return how well scores in one world tell those in another one.

    Kendall's tau-b, Spearman's and Pearson's correlation of the policies' mean scores and the mean absolute error between them,
    each with the 95 % interval of a bootstrap over scenes.

    Args:
        first: (P, N) scores of P policies on the same N scenes, in one world.
        second: (P, N) in the other one.
        seed: of the resampling.
    """
    drawn = resampled(first.shape[1], seed)
    found: dict[str, Any] = {"policies": len(first), "scenes": first.shape[1]}
    pairs = [(first.mean(dim=1), second.mean(dim=1))]
    pairs += [(first[:, row].mean(dim=1), second[:, row].mean(dim=1)) for row in drawn]
    for name, measure in MEASURES.items():
        values = [measure(a.numpy().round(9), b.numpy().round(9)) for a, b in pairs]  # equal but for rounding is equal
        found[name] = values[0] if np.isfinite(values[0]) else None
        found[f"{name}_low"], found[f"{name}_high"] = interval(torch.tensor(values[1:], dtype=torch.float64))
    return found


def _quiet(function: Any) -> Any:
    def correlation(a: np.ndarray, b: np.ndarray) -> float:
        return float("nan") if np.ptp(a) == 0 or np.ptp(b) == 0 else float(function(a, b).statistic)

    return correlation


MEASURES = {
    "kendall": _quiet(stats.kendalltau),
    "spearman": _quiet(stats.spearmanr),
    "pearson": _quiet(stats.pearsonr),
    "error": lambda a, b: float(np.abs(a - b).mean()),
}
"""What `agreement` measures; a correlation with what is constant is undefined."""
