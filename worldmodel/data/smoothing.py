"""Smooth tracks out of jittery labels: positions, headings and velocities that a body could have had."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..geometry import wrap_angle


class SmoothTrack(NamedTuple):
    """Position (A, T, 2), heading (A, T), velocity (A, T, 2) and valid (A, T) of `smooth_track`; zeros where not valid."""

    position: Tensor
    heading: Tensor
    velocity: Tensor
    valid: Tensor


def whittaker(value: Tensor, weight: Tensor, hold: Tensor, order: int, cutoff: float, time_step: float) -> Tensor:
    """Return the series z (A, T, D) that minimises sum w (value - z)^2 + stiffness * sum (order-th difference of z)^2.

    Whittaker's smoother (Eilers, A perfect smoother, 2003). A sine of frequency f passes with the gain
    1 / (1 + stiffness (2 sin(pi f dt))^(2 order)), so the stiffness follows from the frequency that is to be halved.

    Args:
        value: (A, T, D) float64 measurements.
        weight: (A, T) trust in each of them, 0 where there is none: such steps are interpolated.
        hold: (A, T - 1) bool, steps between which z shall not change.
        order: of the difference that is penalised; 3 leaves constant acceleration as it is.
        cutoff: hertz, the frequency that is damped to one half.
        time_step: seconds.
    """
    steps = value.shape[1]
    identity = torch.eye(steps, dtype=torch.float64)
    rough = torch.diff(identity, n=order, dim=0)
    stiffness = (2 * math.sin(math.pi * cutoff * time_step)) ** (-2 * order)
    penalty = stiffness * rough.T @ rough + 1e-9 * identity
    slope = torch.diff(identity, dim=0)
    parts = []
    for rows in torch.arange(len(value)).split(max(4_000_000 // steps**2, 1)):
        held = torch.einsum("ti,at,tj->aij", slope, 1e6 * hold[rows].double(), slope)
        system = penalty + held + torch.diag_embed(weight[rows].double())
        parts.append(torch.linalg.solve(system, weight[rows, :, None] * value[rows]))
    return torch.cat(parts)


def smooth_track(
    position: Tensor,
    heading: Tensor,
    valid: Tensor,
    *,
    time_step: float = 0.1,
    cutoff: float = 0.5,
    longest_gap: int = 3,
    fewest: int = 5,
) -> SmoothTrack:
    """Return tracks freed from the jitter of labels; what stands is held exactly still.

    Positions pass a Whittaker smoother of third differences (jerk), robust against single jumps (reweighted by 1 / (1 + (r / 0.3
    m)^2), Cauchy's function); tracks of less than 1.2 s, which cannot tell an acceleration, one of second differences. Agents
    slower than 0.2 m/s for a second, and those that stay within 0.5 m, are held where they are. Headings keep the label's axis
    where it lies within 0.5 rad of the direction of travel and take the direction of travel elsewhere; an agent slower than
    0.8 m/s keeps the heading with which it moved last or will move next if the label contradicts it. The sense along the axis
    is voted by the distance travelled, so that no box drives backwards for long and none flips.

    Args:
        position: (A, T, 2) labelled centres.
        heading: (A, T) labelled headings.
        valid: (A, T) bool, where there is a label.
        time_step: seconds between steps.
        cutoff: hertz, motion of this frequency is damped to one half.
        longest_gap: missing steps that are filled; longer gaps stay invalid.
        fewest: stretches with fewer labels become invalid: nothing certain can be said of the motion there.
    """
    valid, filled = known_stretches(valid, longest_gap, fewest)
    step = torch.arange(valid.shape[1])
    before, after = nearest_valid(valid)
    inside = (before >= 0) & (after < len(step))
    weight, value = valid.double(), position.double()
    hold = torch.zeros_like(valid[:, 1:])
    short = valid.sum(-1, keepdim=True)[..., None] < round(1.2 / time_step)

    def solve() -> Tensor:
        straight = whittaker(value, weight, hold, 2, 0.5 * cutoff, time_step)
        return torch.where(short, straight, whittaker(value, weight, hold, 3, cutoff, time_step))

    for _ in range(3):
        smooth = solve()
        weight = valid / (1 + ((value - smooth).square().sum(-1) / 0.3**2))
    hold = still_steps(smooth, valid, inside, time_step)
    smooth = solve()
    start = torch.cat((torch.zeros_like(step[:1]).expand(len(hold), 1), torch.where(hold, 0, step[1:])), dim=-1).cummax(-1).values
    smooth = smooth.gather(1, start[..., None].expand_as(smooth))
    velocity = torch.gradient(smooth, spacing=time_step, dim=1)[0]
    resting = torch.cat((hold[:, :1], hold[:, 1:] & hold[:, :-1], hold[:, -1:]), dim=-1)
    velocity = torch.where(resting[..., None], 0.0, velocity)
    course = smooth_heading(heading.double(), velocity, valid, hold, cutoff, time_step).gather(1, start)
    mask = filled[..., None]
    return SmoothTrack(
        torch.where(mask, smooth, 0.0).float(),
        torch.where(filled, wrap_angle(course), 0.0).float(),
        torch.where(mask, velocity, 0.0).float(),
        filled,
    )


def known_stretches(valid: Tensor, longest_gap: int, fewest: int) -> tuple[Tensor, Tensor]:
    """Return `valid` (A, T) without stretches of fewer than `fewest` labels, and that with gaps up to `longest_gap` filled."""
    before, after = nearest_valid(valid)
    filled = valid | ((before >= 0) & (after < valid.shape[1]) & (after - before - 1 <= longest_gap))
    begins = filled & ~torch.nn.functional.pad(filled[:, :-1], (1, 0))
    stretch = begins.cumsum(-1)
    labels = torch.zeros(len(valid), valid.shape[1] + 1, dtype=torch.int64).scatter_add(1, stretch, valid.long())
    enough = labels.gather(1, stretch) >= fewest
    return valid & enough, filled & enough


def nearest_valid(valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return the index (A, T) of the last valid step at or before each step (-1: none) and of the next one (T: none)."""
    steps = valid.shape[1]
    step = torch.arange(steps)
    before = torch.where(valid, step, -1).cummax(-1).values
    after = torch.where(valid, step, steps).flip(-1).cummin(-1).values.flip(-1)
    return before, after


def still_steps(smooth: Tensor, valid: Tensor, inside: Tensor, time_step: float) -> Tensor:
    """Return between which steps (A, T - 1) agents stand, see `smooth_track`."""
    speed = torch.diff(smooth, dim=1).norm(dim=-1) / time_step
    observed = inside[:, 1:] & inside[:, :-1]
    slow = ((speed < 0.2) | ~observed).double()
    run = min(round(1 / time_step), slow.shape[1])
    eroded = slow.unfold(1, run, 1).amin(-1)
    opened = torch.nn.functional.pad(eroded, (run - 1, run - 1)).unfold(1, run, 1).amax(-1) > 0
    middle = torch.where(valid[..., None], smooth, torch.nan).nanmedian(dim=1, keepdim=True).values.nan_to_num()
    away = torch.where(valid, (smooth - middle).norm(dim=-1), 0.0).amax(-1)
    before, after = nearest_valid(valid)
    last, first = before[:, -1].clamp(min=0), after[:, 0].clamp(max=valid.shape[1] - 1)
    row = torch.arange(len(valid))
    net = (smooth[row, last] - smooth[row, first]).norm(dim=-1) / ((last - first) * time_step).clamp(min=time_step)
    parked = (away < 0.5) & (net < 0.35)
    return (opened | parked[:, None]) & observed


def smooth_heading(label: Tensor, velocity: Tensor, valid: Tensor, hold: Tensor, cutoff: float, time_step: float) -> Tensor:
    """Return continuous headings (A, T), not wrapped, from labels (A, T) and smooth velocities (A, T, 2), see `smooth_track`."""
    speed, travel = velocity.norm(dim=-1), torch.atan2(velocity[..., 1], velocity[..., 0])
    axis = lambda angle: torch.remainder(angle + math.pi / 2, math.pi) - math.pi / 2  # noqa: E731
    moving = valid & (speed > 0.8)
    difference = axis(label - travel)
    known = torch.where(moving & (difference.abs() > 0.5), travel, label)
    trusted = torch.where(moving.any(-1, keepdim=True), moving, valid)
    before, after = nearest_valid(trusted)
    source = torch.where(before >= 0, before, after).clamp(max=valid.shape[1] - 1)
    anchor = known.gather(1, source)
    agrees = valid & (axis(label - anchor).abs() < 0.5)
    known = torch.where(trusted, known, torch.where(agrees, label, anchor))
    turn = axis(torch.diff(known, dim=-1))
    course = torch.cat((known[:, :1], known[:, :1] + turn.cumsum(-1)), dim=-1)
    vote = torch.where(moving, speed * (course - travel).cos(), 0.0).sum(-1, keepdim=True)
    standing = torch.where(valid, (course - label).cos(), 0.0).sum(-1, keepdim=True)
    course = course + torch.where(torch.where(moving.any(-1, keepdim=True), vote, standing) < 0, math.pi, 0.0)
    weight = torch.where(trusted, 1.0, 0.2).double()
    return whittaker(course[..., None], weight, hold, 2, cutoff, time_step)[..., 0]
