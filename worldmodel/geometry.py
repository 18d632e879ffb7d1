"""Frames, boxes and polylines: pure batched functions on tensors, in metres and radians.

Every function broadcasts over leading dimensions; no loop over agents or scenes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


def wrap_angle(angle: Tensor) -> Tensor:
    """Return `angle` (...) brought into [-pi, pi)."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


def rotate(vector: Tensor, angle: Tensor) -> Tensor:
    """Return `vector` (..., 2) turned counter-clockwise by `angle` (...)."""
    cosine, sine = angle.cos(), angle.sin()
    x, y = vector.unbind(-1)
    return torch.stack((x * cosine - y * sine, x * sine + y * cosine), dim=-1)


def to_local(point: Tensor, origin: Tensor, heading: Tensor) -> Tensor:
    """Return `point` (..., 2) seen from a frame at `origin` (..., 2) that looks along `heading` (...)."""
    return rotate(point - origin, -heading)


def to_global(point: Tensor, origin: Tensor, heading: Tensor) -> Tensor:
    """Inverse of `to_local`."""
    return rotate(point, heading) + origin


def box_corners(position: Tensor, heading: Tensor, size: Tensor) -> Tensor:
    """Return the corners (..., 4, 2) of boxes, counter-clockwise from front left.

    Args:
        position: (..., 2 or more) centres; only x and y are used.
        heading: (...) radians.
        size: (..., 2 or more) length, width.
    """
    signs = position.new_tensor([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])
    offsets = 0.5 * size[..., None, :2] * signs
    return rotate(offsets, heading[..., None]) + position[..., None, :2]


def boxes_overlap(corners_a: Tensor, corners_b: Tensor) -> Tensor:
    """Return whether boxes given by corners (..., 4, 2) overlap (...), by the separating axis theorem; touching is no overlap."""
    separated: Tensor | bool = False
    for corners in (corners_a, corners_b):
        for first in (0, 1):
            axis = corners[..., first + 1, :] - corners[..., first, :]
            span_a = (corners_a * axis[..., None, :]).sum(dim=-1)
            span_b = (corners_b * axis[..., None, :]).sum(dim=-1)
            separated = separated | (span_a.amax(-1) <= span_b.amin(-1)) | (span_b.amax(-1) <= span_a.amin(-1))
    return ~torch.as_tensor(separated)


def box_distance(
    position_a: Tensor, heading_a: Tensor, size_a: Tensor, position_b: Tensor, heading_b: Tensor, size_b: Tensor
) -> Tensor:
    """Return the metres (...) between two boxes, 0 where they overlap; positions (..., 2), headings (...), sizes (..., 2)."""
    corners_a, corners_b = box_corners(position_a, heading_a, size_a), box_corners(position_b, heading_b, size_b)
    nearest = []
    for points, position, heading, size in (
        (corners_b, position_a, heading_a, size_a),
        (corners_a, position_b, heading_b, size_b),
    ):
        local = to_local(points, position[..., None, :], heading[..., None])
        outside = (local.abs() - 0.5 * size[..., None, :2]).clamp(min=0.0)
        nearest.append(outside.norm(dim=-1).amin(-1))
    # Of two boxes that do not overlap, the nearest pair of points holds a corner.
    return torch.where(boxes_overlap(corners_a, corners_b), 0.0, torch.minimum(*nearest))


def project_on_polyline(point: Tensor, polyline: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return where points lie along a polyline.

    Args:
        point: (..., N, 2) query points.
        polyline: (..., R, 2) vertices.
        valid: (..., R) bool, a prefix.

    Returns:
        arc: (..., N) metres along the polyline. Beyond its ends the first and last segment go on straight, so arc may be
            negative or exceed the length.
        offset: (..., N) metres to the left of the polyline (negative: right).
        heading: (..., N) direction of the nearest segment.
    """
    start, step = polyline[..., :-1, :], polyline[..., 1:, :] - polyline[..., :-1, :]
    usable = valid[..., 1:]
    length = torch.where(usable, step.norm(dim=-1), 0.0)
    before = length.cumsum(-1) - length
    last = usable.long().sum(-1, keepdim=True) - 1
    index = torch.arange(length.shape[-1])
    direction = step / length.clamp(min=1e-6)[..., None]
    relative = point[..., :, None, :] - start[..., None, :, :]
    along = (relative * direction[..., None, :, :]).sum(-1)
    left = direction[..., None, :, 0] * relative[..., 1] - direction[..., None, :, 1] * relative[..., 0]
    low = torch.where(index == 0, -torch.inf, 0.0)
    high = torch.where(index == last, torch.inf, length)
    outside = along - torch.minimum(torch.maximum(along, low[..., None, :]), high[..., None, :])
    distance = torch.where((usable & (length > 1e-6))[..., None, :], left.square() + outside.square(), torch.inf)
    nearest = distance.argmin(-1, keepdim=True)
    pick_segment = lambda value: value[..., None, :].expand(distance.shape).gather(-1, nearest)[..., 0]  # noqa: E731
    clamped = (along - outside).gather(-1, nearest)[..., 0]
    side = torch.sign(left.gather(-1, nearest)[..., 0])
    offset = distance.gather(-1, nearest)[..., 0].sqrt() * side
    heading = torch.atan2(pick_segment(direction[..., 1]), pick_segment(direction[..., 0]))
    return pick_segment(before) + clamped, offset, heading


def point_on_polyline(arc: Tensor, polyline: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return position (..., N, 2) and heading (..., N) at `arc` (..., N) metres along; goes on straight beyond the ends."""
    start, step = polyline[..., :-1, :], polyline[..., 1:, :] - polyline[..., :-1, :]
    usable = valid[..., 1:]
    length = torch.where(usable, step.norm(dim=-1), 0.0)
    end = length.cumsum(-1)
    last = usable.long().sum(-1, keepdim=True) - 1
    nearest = torch.minimum(torch.searchsorted(end.contiguous(), arc.contiguous(), right=True), last).clamp(min=0)
    pick = nearest[..., None].expand(*nearest.shape, 2)
    direction = (step / length.clamp(min=1e-6)[..., None]).gather(-2, pick)
    along = arc - (end - length).gather(-1, nearest)
    return start.gather(-2, pick) + along[..., None] * direction, torch.atan2(direction[..., 1], direction[..., 0])


def signed_distance_to_edges(point: Tensor, edge: Tensor, valid: Tensor) -> Tensor:
    """Return metres from points to the nearest road edge: negative on the road (left of the edge), positive beyond it.

    Where two segments share the nearest vertex, the one that sees the point more from the side decides the sign (the other one
    sees it from behind its end and may call a point inside a corner outside).

    Args:
        point: (..., N, 2).
        edge: (..., L, P, 2) vertices.
        valid: (..., L, P) bool.

    Returns:
        (..., N); minus infinity where there is no edge at all.
    """
    start = edge[..., :-1, :].flatten(-3, -2)
    step = (edge[..., 1:, :] - edge[..., :-1, :]).flatten(-3, -2)
    usable = (valid[..., 1:] & valid[..., :-1]).flatten(-2, -1)
    length = step.norm(dim=-1).clamp(min=1e-6)
    direction = step / length[..., None]
    relative = point[..., :, None, :] - start[..., None, :, :]
    along = (relative * direction[..., None, :, :]).sum(-1)
    left = direction[..., None, :, 0] * relative[..., 1] - direction[..., None, :, 1] * relative[..., 0]
    outside = along - torch.minimum(along.clamp(min=0), length[..., None, :])
    distance = (left.square() + outside.square()).sqrt()
    rank = torch.where(usable[..., None, :], distance + 1e-3 * (1 - left.abs() / distance.clamp(min=1e-6)), torch.inf)
    best, nearest = rank.min(-1, keepdim=True)
    signed = torch.where(left > 0, -distance, distance).gather(-1, nearest)
    return torch.where(best.isinf(), -torch.inf, signed)[..., 0]


def polyline_direction(polyline: Tensor, valid: Tensor) -> Tensor:
    """Return the heading (..., P) at each vertex of polylines (..., P, 2): towards the next one, the last like the one before."""
    step = polyline[..., 1:, :] - polyline[..., :-1, :]
    heading = torch.atan2(step[..., 1], step[..., 0])
    heading = torch.cat((heading, heading[..., -1:]), dim=-1)
    last = (valid.long().sum(-1, keepdim=True) - 1).clamp(min=0)
    before = heading.gather(-1, (last - 1).clamp(min=0))
    return torch.where(torch.arange(valid.shape[-1]) >= last, before, heading)


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
