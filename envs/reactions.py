"""Reactions: how others answer what the ego does, read from two branches of one moment that differ by the ego's motion alone.

The definitions behind `worldloop counterfactual` (the first rung of arXiv 2606.15032's ladder of trust, as numbers). Branches of
a world share their random keys, so that whoever the ego does not concern does the same in both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..worldmodel.open_loop import Trace
from ..worldmodel.scene import TIME_STEP

AFFECTED, UNAFFECTED = 1.0, 0.1
"""Metres between an agent's places in two branches of the reference world: more at some time, and it is affected; never more than
the second, and it is not."""

SAME = 0.5
"""An agent whose travelled distance changes by no more than so many metres goes neither slower nor faster."""

SPEED_DEPARTURE, ACCELERATION_DEPARTURE = 0.5, 0.3
"""m/s and m/s2 by which a follower's motion has to depart from the kept branch to be an answer."""


def common_steps(trace: Trace, kept: Trace) -> Tensor:
    """Return for how many steps (B, A) after the present agents are valid in both branches; -1 if not even at the present."""
    return (trace.valid & kept.valid).long().cumprod(-1).sum(-1) - 1


def path_change(trace: Trace, kept: Trace) -> Tensor:
    """Return the largest distance (B, A) in metres between an agent's places in two branches at one time, while it is there."""
    apart = (trace.position - kept.position).norm(dim=-1)
    here = torch.arange(apart.shape[-1]) <= common_steps(trace, kept)[..., None]
    return torch.where(here, apart, 0.0).amax(-1)


def mean_change(trace: Trace, kept: Trace) -> Tensor:
    """Return the mean distance (B, A) in metres between an agent's places in two branches at one time, while it is there."""
    apart = (trace.position - kept.position).norm(dim=-1)
    here = torch.arange(apart.shape[-1]) <= common_steps(trace, kept)[..., None]
    return torch.where(here, apart, 0.0).sum(-1) / here.sum(-1).clamp(min=1)


def held_speed(of: Trace, trace: Trace, kept: Trace) -> Tensor:
    """Return the speeds (B, A, T + 1) of one of two branches, the last one held from where an agent is not in both any more."""
    last = common_steps(trace, kept)[..., None].clamp(min=0)
    return of.speed.gather(-1, torch.arange(of.speed.shape[-1]).expand_as(of.speed).minimum(last))


def travelled(trace: Trace, steps: Tensor) -> Tensor:
    """Return the metres (B, A) that agents drive within the first `steps` (A,) steps."""
    way = (trace.position[:, :, 1:] - trace.position[:, :, :-1]).norm(dim=-1)
    return torch.where(torch.arange(way.shape[-1]) < steps[..., None], way, 0.0).sum(-1)


def response_sign(change: Tensor) -> Tensor:
    """Return -1 for slower, 0 for the same, 1 for faster, of changes (...) of the travelled distance in metres."""
    return torch.where(change.abs() <= SAME, 0.0, change.sign()).long()


def response_delay(speed: Tensor, kept: Tensor) -> Tensor:
    """Return after how many seconds (...) a motion departs from the kept one, infinite where it never does.

    Args:
        speed: (..., T + 1) m/s at every step, the present first.
        kept: (..., T + 1) m/s in the kept branch.
    """
    acceleration = torch.diff(speed - kept, dim=-1) / TIME_STEP
    departs = ((speed - kept)[..., 1:].abs() > SPEED_DEPARTURE) | (acceleration.abs() > ACCELERATION_DEPARTURE)
    first = (departs.long().argmax(-1) + 1) * TIME_STEP
    return torch.where(departs.any(-1), first, torch.inf)


def other_key_distance(trace: Trace, other: Trace) -> Tensor:
    """Return the mean distance (A,) over time between agents' places in two branches, over all pairs of rows of different keys.

    Of one branch with itself this is how far futures lie apart by chance. Twice the distance between two branches less each one's
    own is the energy distance of their futures, 0 if and only if both are distributed alike (Szekely and Rizzo, "Energy
    statistics", Journal of Statistical Planning and Inference 143, 2013).
    """
    rows = len(trace.position)
    apart = (trace.position[:, None] - other.position[None]).norm(dim=-1).mean(-1)
    different = ~torch.eye(rows, dtype=torch.bool)
    return apart[different].mean(0)
