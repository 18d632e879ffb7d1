"""Polylines of maps, brought to even spacing and to lengths that a `Scene` holds."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def resample_polyline(points: Tensor, spacing: float) -> Tensor:
    """Return an open polyline (N, D) with points about `spacing` metres apart (M, D), ends kept; repeated points are dropped."""
    keep = torch.ones(len(points), dtype=torch.bool)
    keep[1:] = (points[1:, :2] - points[:-1, :2]).norm(dim=-1) > 1e-4
    points = points[keep]
    if len(points) < 2:
        return points
    arc = torch.zeros(len(points))
    arc[1:] = (points[1:, :2] - points[:-1, :2]).norm(dim=-1).cumsum(0)
    count = max(int(math.ceil(float(arc[-1]) / spacing - 1e-4)), 1) + 1
    wanted = torch.linspace(0, float(arc[-1]), count)
    segment = torch.searchsorted(arc, wanted, right=True).clamp(1, len(points) - 1) - 1
    share = (wanted - arc[segment]) / (arc[segment + 1] - arc[segment])
    return points[segment] + share[:, None] * (points[segment + 1] - points[segment])


def split_polyline(points: Tensor, most: int) -> list[Tensor]:
    """Cut a polyline (N, D) into pieces of at most `most` points; neighbours share their cut point."""
    return [points[first : first + most] for first in range(0, max(len(points) - 1, 1), most - 1)]
