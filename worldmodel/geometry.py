"""Frames, boxes and polylines: pure batched functions on tensors, in metres and radians.

Every function broadcasts over leading dimensions; no loop over agents or scenes.
"""

from __future__ import annotations

import math

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


def overlap_times(corners_a: Tensor, corners_b: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor]:
    """Return from when to when (...), in seconds, boxes overlap while b moves past a without turning.

    By the separating axis theorem: the boxes overlap while their shadows do on all four axes. Times before now are negative;
    where they never overlap the first time is not below the second.

    Args:
        corners_a: (..., 4, 2).
        corners_b: (..., 4, 2).
        velocity: (..., 2) m/s of b, seen from a.
    """
    first, last = [], []
    for corners in (corners_a, corners_b):
        for side in (0, 1):
            axis = corners[..., side + 1, :] - corners[..., side, :]
            span_a = (corners_a * axis[..., None, :]).sum(dim=-1)
            span_b = (corners_b * axis[..., None, :]).sum(dim=-1)
            low, high = span_a.amin(-1) - span_b.amax(-1), span_a.amax(-1) - span_b.amin(-1)  # what b's shadow has to move
            speed = (velocity * axis).sum(dim=-1)
            meets = (low < 0) & (high > 0)
            still, by = speed.abs() < 1e-6, torch.where(speed.abs() < 1e-6, 1.0, speed)
            first.append(torch.where(still, torch.where(meets, -torch.inf, torch.inf), torch.minimum(low / by, high / by)))
            last.append(torch.where(still, torch.where(meets, torch.inf, -torch.inf), torch.maximum(low / by, high / by)))
    return torch.stack(first).amax(dim=0), torch.stack(last).amin(dim=0)


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
