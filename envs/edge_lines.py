"""Signed distance to road edges in three dimensions, as the realism meta-metric measures it.

The nearest segment is looked for in space with heights stretched, so that a car on a bridge is held against the bridge's edges;
the distance is then taken in the plane. Polylines are cut into short pieces in a `Scene`: pieces that share a point are joined
again here, because at a corner two neighbouring segments together decide which side a point is on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..worldmodel.scene import PolylineKind, Scene

HEIGHT_STRETCH = 3.0
"""Differences of height count this many times when the nearest segment is looked for (waymo-open-dataset)."""

CLOSED_WITHIN = 1.0
"""Metres between the end and the start of an edge that goes round, such as a traffic island's (waymo-open-dataset)."""

JOINED_WITHIN = 0.01
"""Metres between the end of one piece and the start of the next."""

CELL, CELL_HEIGHT = 2.0, 0.5
STEEPEST = 0.3
"""Segments are chosen for whole cells of this size; the choice is exact for edges that climb at most 30 %."""

PAIRS_AT_ONCE = 1_000_000
"""Pairs of a point and a segment that are worked out at once: some 100 MB."""


@dataclass(frozen=True)
class EdgeLines:
    """The N segments of one scene's road edges, the road on their left.

    Attributes:
        start: (N, 3), step: (N, 3) from the start to the end.
        before: (N,) int64 the segment that ends where this one starts, itself where there is none; after: (N,) likewise.
    """

    start: Tensor
    step: Tensor
    before: Tensor
    after: Tensor


def edge_lines(scene: Scene) -> EdgeLines:
    """Collect and join the road edges of one scene (B = 1); N may be 0."""
    chosen = (scene.polyline_kind[0] == PolylineKind.ROAD_EDGE) & scene.polyline_valid[0, :, 1:].any(-1)
    point, valid = scene.polyline[0, chosen], scene.polyline_valid[0, chosen]
    line, place = valid[:, 1:].nonzero(as_tuple=True)
    count = valid[:, 1:].sum(-1)
    first = count.cumsum(0) - count
    last = first + count - 1
    number = torch.arange(len(line))
    before, after = number - (place > 0).long(), number + (place < count[line] - 1).long()
    head, tail = point[:, 0], point[torch.arange(len(point)), count]
    following = _following_piece(head, tail)
    joined = (following >= 0).nonzero()[:, 0]
    after[last[joined]] = first[following[joined]]
    before[first[following[joined]]] = last[joined]
    return EdgeLines(point[line, place], point[line, place + 1] - point[line, place], before, after)


def _following_piece(head: Tensor, tail: Tensor) -> Tensor:
    """Index (L,) of the piece that goes on where each ends, -1 where none does; head and tail (L, 3) are their ends."""
    if len(head) == 0:
        return torch.zeros(0, dtype=torch.int64)
    gap, following = torch.cdist(tail, head, compute_mode="donot_use_mm_for_euclid_dist").min(-1)
    following = torch.where(gap < JOINED_WITHIN, following, -1)
    own = torch.arange(len(head))
    # Who comes before: walk to the first piece of every chain in doubling steps.
    origin = own.index_put((following[following >= 0],), own[following >= 0])
    for _ in range(math.ceil(math.log2(len(head))) + 1):
        origin = origin[origin]
    closed = (following < 0) & ((tail - head[origin]).norm(dim=-1) < CLOSED_WITHIN)
    return torch.where(closed, origin, following)


def signed_distance(point: Tensor, lines: EdgeLines) -> Tensor:
    """Return metres (Q,) in the plane from points (Q, 3) to the nearest edge: negative on the road, positive beyond its edge.

    Raises:
        ValueError: there are no segments.
    """
    if len(lines.start) == 0:
        raise ValueError("no road edges to measure a distance to: leave the feature out")
    size = point.new_tensor([CELL, CELL, CELL_HEIGHT])
    origin = point.amin(0)
    cell = ((point - origin) / size).long()
    spread = cell.amax(0) + 1
    number, member = torch.unique((cell[:, 0] * spread[1] + cell[:, 1]) * spread[2] + cell[:, 2], return_inverse=True)
    used = torch.stack((number // (spread[1] * spread[2]), number // spread[2] % spread[1], number % spread[2]), dim=-1)
    segments = _segments_near((used + 0.5) * size + origin, lines)
    nearest = []
    for rows in torch.arange(len(point)).split(max(PAIRS_AT_ONCE // segments.shape[1], 1)):
        choice = segments[member[rows]]
        best = _stretched_distance(point[rows, None], lines.start[choice], lines.step[choice]).argmin(-1)
        nearest.append(choice.gather(1, best[:, None])[:, 0])
    return _signed_to_segment(point, lines, torch.cat(nearest))


def _segments_near(centre: Tensor, lines: EdgeLines) -> Tensor:
    """Indices (C, n) of all segments that can be the nearest one to some point of the cells around `centre` (C, 3)."""
    across = CELL / math.sqrt(2)
    slack = 2 * math.hypot(across, HEIGHT_STRETCH * (0.5 * CELL_HEIGHT + STEEPEST * across))
    distances, counts = [], []
    for rows in centre.split(max(PAIRS_AT_ONCE // len(lines.start), 1)):
        distance = _stretched_distance(rows[:, None], lines.start, lines.step)
        counts.append((distance <= distance.amin(-1, keepdim=True) + slack).sum(-1).amax())
        distances.append(distance.topk(min(128, distance.shape[1]), dim=-1, largest=False).indices)
    return torch.cat(distances)[:, : int(torch.stack(counts).amax())]


def _stretched_distance(point: Tensor, start: Tensor, step: Tensor) -> Tensor:
    """Metres (...) from points (..., 3) to segments (..., 3) at the nearest place in the plane, heights stretched."""
    x, y, z = (point - start).unbind(-1)
    along, aside, up = step.unbind(-1)
    share = ((x * along + y * aside) / (along.square() + aside.square()).clamp(min=1e-12)).clamp(0.0, 1.0)
    return ((x - share * along).square() + (y - share * aside).square() + (HEIGHT_STRETCH * (z - share * up)).square()).sqrt()


def _signed_to_segment(point: Tensor, lines: EdgeLines, segment: Tensor) -> Tensor:
    """Signed distance (Q,) in the plane from points (Q, 3) to one segment each."""
    cross = lambda a, b: a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]  # noqa: E731
    right_of = lambda index: torch.sign(cross(point - lines.start[index], lines.step[index]))  # noqa: E731
    before, after, step = lines.before[segment], lines.after[segment], lines.step[segment]
    from_start = point - lines.start[segment]
    share = (from_start * step)[:, :2].sum(-1) / step[:, :2].square().sum(-1).clamp(min=1e-12)
    side, side_before, side_after = right_of(segment), right_of(before), right_of(after)

    def at_corner(convex: Tensor, other: Tensor) -> Tensor:
        # Where the edge bends towards the road, being right of either segment is outside; else of both.
        return torch.where(convex, torch.maximum(side, other), torch.minimum(side, other))

    sign = torch.where(share < 0, at_corner(cross(lines.step[before], step) > 0, side_before), side)
    sign = torch.where(share > 1, at_corner(cross(step, lines.step[after]) > 0, side_after), sign)
    return sign * (from_start - share.clamp(0.0, 1.0)[:, None] * step)[:, :2].norm(dim=-1)
