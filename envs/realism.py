"""The realism meta-metric of the Waymo sim agents challenge: how likely a world's futures make what really happened.

For every scored object the features of all its rollouts form a distribution; the log's feature is looked up in it. The likelihood
of a feature is the geometric mean of those probabilities over objects (and steps), the meta-metric the weighted mean of the
likelihoods (Montali et al., "The Waymo Open Sim Agents Challenge", NeurIPS 2023; waymo-open-dataset 1.6.7, configurations of 2024
and 2025). Agrees with the official scorer to three decimals, see tests/test_realism.py.

    scored = scored_agents(scenes)
    simulated = object_features(scenes, simulate(...), scored)
    logged = object_features(scenes, logged_futures(scenes, steps), scored)
    result = score_realism(simulated, logged)
    result.meta_metric(2025)

Terms that a scene cannot have (no road edges, no signals, no vehicle for the time to collision) are left out and the weights of
the others made to sum to one; `Realism.left_out` names them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..worldmodel.scene import TensorBatch
from .realism_features import FEATURES, ObjectFeatures

INDICATIONS = ("collision_indication", "offroad_indication", "traffic_light_violation")
"""Features that are asked once a rollout: did it ever happen?"""

MOTIONS = ("linear_speed", "linear_acceleration", "angular_speed", "angular_acceleration")
"""Features that are differences in time."""

HISTOGRAMS: dict[str, tuple[float, float, int]] = {
    "linear_speed": (0.0, 25.0, 10),
    "linear_acceleration": (-12.0, 12.0, 11),
    "angular_speed": (-0.628, 0.628, 11),
    "angular_acceleration": (-3.14, 3.14, 11),
    "distance_to_nearest_object": (-5.0, 40.0, 10),
    "time_to_collision": (0.0, 5.0, 10),
    "distance_to_road_edge": (-20.0, 40.0, 10),
}
"""Lowest and highest value and number of bins, the same in 2024 and 2025 (the challenge's `.textproto` files)."""

HISTOGRAM_PSEUDOCOUNT, INDICATION_PSEUDOCOUNT = 0.1, 0.001
"""Added to every bin; the second is the default of the challenge's protocol buffer."""

WEIGHTS: dict[int, dict[str, float]] = {
    2024: dict(zip(FEATURES, (0.05, 0.05, 0.05, 0.05, 0.10, 0.25, 0.10, 0.10, 0.25, 0.0), strict=True)),
    2025: dict(zip(FEATURES, (0.05, 0.05, 0.05, 0.05, 0.10, 0.25, 0.10, 0.05, 0.25, 0.05), strict=True)),
}
"""Share of each feature in the meta-metric, by the challenge's year."""


@dataclass(frozen=True)
class Realism(TensorBatch):
    """What `score_realism` finds in B scenes; F features in the order of `FEATURES`.

    Attributes:
        likelihood: (B, F) between 0 and 1. counted: (B, F) bool, where there is one.
        collision_rate: (B,) share of scored objects and rollouts in which the object overlaps another one at some time.
        off_road_rate: (B,) share in which it has a corner beyond the road's edge at some time. Both only look where the log is
            valid.
        red_light_rate: (B,) share in which it crosses a stop line at red.
    """

    likelihood: Tensor
    counted: Tensor
    collision_rate: Tensor
    off_road_rate: Tensor
    red_light_rate: Tensor

    def meta_metric(self, year: int) -> Tensor:
        """Return the realism meta-metric (B,) of the challenge's configuration of `year`.

        Raises:
            ValueError: there is no such configuration, or a scene has no term at all.
        """
        return meta_metric(self.likelihood, self.counted, year)

    def left_out(self, year: int) -> list[tuple[str, ...]]:
        """Return for each scene the terms of the meta-metric of `year` that it has no value for."""
        return [
            tuple(name for name, there in zip(FEATURES, row, strict=True) if WEIGHTS[year][name] > 0 and not there)
            for row in self.counted.tolist()
        ]


def meta_metric(likelihood: Tensor, counted: Tensor, year: int) -> Tensor:
    """Return the weighted mean (...) of likelihoods (..., F) over the features that are `counted` (..., F).

    Raises:
        ValueError: there is no configuration of that year, or no term is counted.
    """
    if year not in WEIGHTS:
        raise ValueError(f"found configuration {year}, wanted one of {', '.join(map(str, WEIGHTS))}")
    weight = torch.where(counted, torch.tensor([WEIGHTS[year][name] for name in FEATURES], dtype=likelihood.dtype), 0.0)
    total = weight.sum(-1)
    if (total <= 0).any():
        raise ValueError("a scene has no term of the meta-metric: leave it out")
    return (weight * likelihood).sum(-1) / total


def score_realism(simulated: ObjectFeatures, logged: ObjectFeatures) -> Realism:
    """Return the likelihood of the log's features under the simulated ones, scene by scene.

    Args:
        simulated: of K futures.
        logged: of the log (K = 1), for the same objects and steps; its validity says what is asked.

    Raises:
        ValueError: the two speak of different objects, or of different numbers of steps.
    """
    if not torch.equal(simulated.row, logged.row) or not torch.equal(simulated.agent, logged.agent):
        raise ValueError("simulated and logged features: found different objects, wanted the same ones in the same order")
    if simulated.valid.shape[-1] != logged.valid.shape[-1] or logged.valid.shape[1] != 1:
        raise ValueError(
            f"found futures of shape {tuple(simulated.valid.shape[1:])} and a log of {tuple(logged.valid.shape[1:])}, wanted "
            "(rollouts, steps) and (1, steps) with the same steps"
        )
    asked, scenes = asked_steps(logged), len(logged.edges)
    exists = dict.fromkeys(FEATURES, torch.ones(scenes, dtype=torch.bool))
    exists |= {"offroad_indication": logged.edges, "traffic_light_violation": logged.signals}
    likelihoods, counts = [], []
    for name in FEATURES:
        if name in INDICATIONS:
            probability, where = _indication(name, simulated, logged, asked[name]), torch.ones_like(logged.row[:, None]) > 0
        else:
            probability, where = _histogram(name, simulated, logged), asked[name]
        total = torch.zeros(scenes).index_add(0, logged.row, torch.where(where, probability, 0.0).flatten(1).sum(1))
        count = torch.zeros(scenes).index_add(0, logged.row, where.flatten(1).sum(1).float())
        likelihoods.append(torch.where(count > 0, (total / count.clamp(min=1)).exp(), 0.0))
        counts.append((count > 0) & exists[name])
    rates = [_rate(ever(simulated, name, asked[name]), logged.row, scenes) for name in INDICATIONS]
    return Realism(torch.stack(likelihoods, dim=-1), torch.stack(counts, dim=-1), *rates)


def asked_steps(logged: ObjectFeatures) -> dict[str, Tensor]:
    """Return by feature which objects and steps (N, T) of the log count.

    A speed needs both neighbouring steps after the present to be valid, an acceleration the speeds of both. Simulated speeds may
    reach back into the history; that asymmetry is the challenge's.
    """

    def both(valid: Tensor) -> Tensor:
        found = torch.zeros_like(valid)
        found[:, 1:-1] = valid[:, 2:] & valid[:, :-2]  # nothing at all where there are fewer than three steps
        return found

    asked = {name: logged.defined[name][:, 0] for name in FEATURES}
    speed = both(logged.valid[:, 0])
    asked |= dict.fromkeys(("linear_speed", "angular_speed"), speed)
    asked |= dict.fromkeys(("linear_acceleration", "angular_acceleration"), both(speed))
    return asked


def ever(features: ObjectFeatures, name: str, asked: Tensor) -> Tensor:
    """Return whether an indication holds at some asked (N, T) step of each object and rollout (N, K)."""
    return (features.values[name] & asked[:, None]).any(-1)


def histogram_counts(name: str, value: Tensor, defined: Tensor) -> Tensor:
    """Return how many of the values (N, ...) that are `defined` fall into each bin (N, bins) of a feature's histogram."""
    bins = HISTOGRAMS[name][2]
    empty = torch.zeros(len(value), bins)
    return empty.scatter_add(1, histogram_bin(name, value).flatten(1), defined.flatten(1).float())


def histogram_bin(name: str, value: Tensor) -> Tensor:
    """Return the bin (...) int64 of values (...); what lies outside of the range counts in the outermost bins."""
    low, high, bins = HISTOGRAMS[name]
    edges = torch.linspace(low, high, bins + 1)
    return (torch.bucketize(value.contiguous(), edges, right=True) - 1).clamp(0, bins - 1)


def _histogram(name: str, simulated: ObjectFeatures, logged: ObjectFeatures) -> Tensor:
    """Log probability (N, T) of the log's value; all steps and rollouts of an object together form its distribution.

    Speeds and accelerations at the last steps have no neighbour; the official scorer counts them in the highest bin.
    """
    counts = histogram_counts(name, simulated.values[name], simulated.defined[name]) + HISTOGRAM_PSEUDOCOUNT
    if name in MOTIONS:
        counts[:, -1] += (~simulated.defined[name]).flatten(1).sum(1)
    share = (counts / counts.sum(-1, keepdim=True)).log()
    return share.gather(1, histogram_bin(name, logged.values[name][:, 0]))


def _indication(name: str, simulated: ObjectFeatures, logged: ObjectFeatures, asked: Tensor) -> Tensor:
    """Log probability (N, 1) of what the log shows of each object."""
    happens, happened = ever(simulated, name, asked), ever(logged, name, asked)
    agree = (happens == happened).sum(-1, keepdim=True)
    probability = (agree + INDICATION_PSEUDOCOUNT) / (happens.shape[1] + 2 * INDICATION_PSEUDOCOUNT)
    return probability.log()


def _rate(happens: Tensor, row: Tensor, scenes: int) -> Tensor:
    """Mean (B,) over the objects of each scene and over rollouts; `happens` (N, K)."""
    total = torch.zeros(scenes).index_add(0, row, happens.float().mean(1))
    return total / torch.bincount(row, minlength=scenes).clamp(min=1)
