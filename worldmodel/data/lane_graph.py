"""Lanes of a recorded map as polylines of a `Scene`, the links between them, and the way that a track takes along them.

Every centreline becomes pieces of at most 10 points 2.5 m apart; pieces of one lane are linked as successors.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import shapely
import torch
from torch import Tensor

from ..geometry import polyline_direction, project_on_polyline, wrap_angle
from ..scene import LaneLinkKind, PolylineKind
from .polylines import resample_polyline, split_polyline

SPACING, MOST_POINTS = 2.5, 10
CROSSING_ANGLE = 0.5
"""Radians between two overlapping lanes from which on they cross and do not merely merge or fork."""

LEAST_OVERLAP = 2.0
"""Square metres; lanes that share less merely touch."""

CLEARANCE = 2.0
"""Metres of height from which on two overlapping lanes lie on different levels and do not cross."""

SIMPLIFIED = 0.02
"""Metres by which edges and markings may leave the recorded line, so that straight stretches need few points; the realism
meta-metric sees whether a corner is beyond the edge, and 0.05 m change an answer in a hundred."""


@dataclass(frozen=True)
class Neighbour:
    """A lane of the same direction to change to: its id, on which side, and along which shares (from, to) of either length."""

    id: str
    side: LaneLinkKind
    own: tuple[float, float] = (0.0, 1.0)
    other: tuple[float, float] = (0.0, 1.0)


@dataclass(kw_only=True)
class Lane:
    """One lane: centreline (N, 3) in driving direction, width in metres, limit in m/s, the lanes around it by id.

    Attributes:
        pieces: numbers of its polylines, filled in by `LaneGraph`.
    """

    id: str
    centre: Tensor
    width: float
    kind: PolylineKind = PolylineKind.LANE
    speed_limit: float | None = None
    successors: list[str] = field(default_factory=list)
    predecessors: list[str] = field(default_factory=list)
    neighbours: list[Neighbour] = field(default_factory=list)
    pieces: list[int] = field(default_factory=list)

    @property
    def outline(self) -> shapely.Geometry:
        """The lane's surface."""
        return shapely.make_valid(
            shapely.buffer(shapely.LineString(self.centre[:, :2].numpy()), self.width / 2, cap_style="flat")
        )


class LaneGraph:
    """The lanes of a scene and all polylines of its map.

    Attributes:
        lanes: by id. Ids that lanes refer to may be missing here, since maps are cut out of larger ones.
    """

    def __init__(self, lanes: dict[str, Lane], others: Iterable[tuple[Tensor, PolylineKind]] = ()):
        """Cut `lanes`, which need two points at least, and `others` (polylines (N, 3) as they shall be) into pieces."""
        self.lanes = lanes
        self._lines: list[Tensor] = []
        self._kinds: list[PolylineKind] = []
        self._widths: list[float] = []
        self._limits: list[float | None] = []
        self._owners: list[str] = []
        for lane in lanes.values():
            lane.pieces = self._add(resample_polyline(lane.centre, SPACING), lane.kind)
            self._widths += [lane.width] * len(lane.pieces)
            self._limits += [lane.speed_limit] * len(lane.pieces)
            self._owners += [lane.id] * len(lane.pieces)
        self._lane_pieces = len(self._lines)
        for line, kind in others:
            self._add(line, kind)
        self._polyline = torch.zeros(len(self._lines), max(map(len, self._lines), default=2), 3)
        self._valid = torch.zeros(self._polyline.shape[:2], dtype=torch.bool)
        for row, line in enumerate(self._lines):
            self._polyline[row, : len(line)], self._valid[row, : len(line)] = line, True

    def _add(self, line: Tensor, kind: PolylineKind) -> list[int]:
        first = len(self._lines)
        self._lines += [piece for piece in split_polyline(line, MOST_POINTS) if len(piece) > 1]
        self._kinds += [kind] * (len(self._lines) - first)
        return list(range(first, len(self._lines)))

    def tensors(self) -> dict[str, Tensor]:
        """Return the map fields of a `Scene`."""
        links = self._links()
        beyond = len(self._lines) - self._lane_pieces
        limits = self._limits + [None] * beyond
        return {
            "polyline": self._polyline,
            "polyline_valid": self._valid,
            "polyline_kind": torch.tensor(self._kinds, dtype=torch.int64),
            "lane_width": torch.tensor(self._widths + [0.0] * beyond),
            "speed_limit": torch.tensor([limit or 0.0 for limit in limits]),
            "speed_limit_valid": torch.tensor([limit is not None for limit in limits], dtype=torch.bool),
            "lane_link": torch.tensor([link[:2] for link in links], dtype=torch.int64).reshape(-1, 2),
            "lane_link_kind": torch.tensor([link[2] for link in links], dtype=torch.int64),
            "lane_link_valid": torch.ones(len(links), dtype=torch.bool),
        }

    def _links(self) -> list[tuple[int, int, LaneLinkKind]]:
        links = []
        for lane in self.lanes.values():
            pieces = lane.pieces
            links += [(pieces[i], pieces[i + 1], LaneLinkKind.SUCCESSOR) for i in range(len(pieces) - 1)]
            for name in lane.successors:
                if pieces and name in self.lanes and self.lanes[name].pieces:
                    links.append((pieces[-1], self.lanes[name].pieces[0], LaneLinkKind.SUCCESSOR))
            for neighbour in lane.neighbours:
                if neighbour.id in self.lanes:
                    links += self._links_beside(lane, neighbour)
        return list(dict.fromkeys(links))

    def _links_beside(self, lane: Lane, neighbour: Neighbour) -> list[tuple[int, int, LaneLinkKind]]:
        """Return a link from each piece whose middle lies beside the neighbour to the piece that it lies beside of."""
        others, links = self.lanes[neighbour.id].pieces, []
        if not others:
            return []
        own = [0, *torch.tensor([len(self._lines[piece]) - 1 for piece in lane.pieces]).cumsum(0).tolist()]
        steps = sum(len(self._lines[piece]) - 1 for piece in others)
        start, end = neighbour.own
        for place, piece in enumerate(lane.pieces):
            middle = 0.5 * (own[place] + own[place + 1]) / own[-1]
            if start <= middle <= end:
                share = (middle - start) / max(end - start, 1e-6)
                share = neighbour.other[0] + share * (neighbour.other[1] - neighbour.other[0])
                links.append((piece, others[min(int(share * steps) // (MOST_POINTS - 1), len(others) - 1)], neighbour.side))
        return links

    def stop_at(self, name: str, point: Tensor | None) -> tuple[Tensor, float, int]:
        """Return a stop point (3,) of a lane (None: its start), the heading there, and the nearest polyline of the lane."""
        pieces = self.lanes[name].pieces
        point = self._lines[pieces[0]][0] if point is None else point
        line, valid = self._polyline[pieces, :, :2], self._valid[pieces]
        distance = torch.where(valid, (line - point[:2]).norm(dim=-1), torch.inf).amin(dim=-1)
        place = int(distance.argmin())
        heading = project_on_polyline(point[None, :2], line[place], valid[place])[2]
        return point, float(heading), pieces[place]

    def _match(self, position: Tensor, heading: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the lane polyline (N,) nearest to each position (N, 2), arc, offset to the left, and lane heading (N,).

        The offset is infinite where no lane is there, or none within 45 degrees of `heading`.
        """
        if not self._lane_pieces:
            nothing = torch.zeros(len(position))
            return nothing.long(), nothing, torch.full_like(nothing, torch.inf), nothing
        line, valid = self._polyline[: self._lane_pieces, :, :2], self._valid[: self._lane_pieces]
        arc, offset, course = project_on_polyline(position.expand(len(line), *position.shape), line, valid)
        segment = torch.where(valid[:, 1:], torch.diff(line, dim=1).norm(dim=-1), 0.0)
        width = torch.tensor(self._widths)
        there = (arc > -0.5) & (arc < segment.sum(-1)[:, None] + 0.5) & (offset.abs() < 0.5 * width[:, None] + 0.5)
        cost = offset.abs()
        if heading is not None:
            turned = wrap_angle(course - heading).abs()
            there &= turned < torch.pi / 4
            cost = cost + 2 * turned
        best, row = torch.where(there, cost, torch.inf).min(dim=0)
        pick = lambda value: value.gather(0, row[None])[0]  # noqa: E731
        return row, pick(arc), torch.where(best.isinf(), torch.inf, pick(offset)), pick(course)

    def heading_at(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Return the direction (N,) of the lane at positions (N, 2), and whether (N,) they lie on one within 1.5 m."""
        _, _, offset, course = self._match(position, None)
        return course, offset.abs() < 1.5

    def route(self, position: Tensor, heading: Tensor) -> Tensor:
        """Return a route (R, 3) of points 2 m apart along the lanes that a track (N, 3), (N,) follows.

        The track is shifted onto the centrelines of the lanes that it matches; the shift is averaged over 16 m, so that the route
        glides from lane to lane where the track does. Where no lane matches the track itself is the route. It begins 20 m behind
        the track along preceding lanes and ends 60 m beyond it along succeeding ones, straight on where the map ends.
        """
        keep = [0]
        for index in range(1, len(position)):
            if float((position[index] - position[keep[-1]])[:2].norm()) > 0.5:
                keep.append(index)
        position, heading = position[keep], heading[keep]
        row, _, offset, course = self._match(position[:, :2], heading)
        known = ~offset.isinf()
        normal = torch.stack((course.sin(), -course.cos(), torch.zeros_like(course)), dim=-1)
        shift = torch.where(known[:, None], offset[:, None] * normal, 0.0).nan_to_num()
        arc = torch.diff(position[:, :2], dim=0, prepend=position[:1, :2]).norm(dim=-1).cumsum(0)
        near = ((arc[:, None] - arc).abs() <= 8).float()
        path = position + (near @ shift) / near.sum(-1, keepdim=True)
        ends = [(int(row[end]) if known[end] else None, path[end], float(heading[end])) for end in (0, -1)]
        behind, ahead = self._extend(*ends[0], 20.0, forwards=False), self._extend(*ends[1], 60.0, forwards=True)
        return resample_polyline(torch.cat((behind.flip(0), path, ahead)), 2.0)

    def _extend(self, row: int | None, point: Tensor, heading: float, length: float, *, forwards: bool) -> Tensor:
        """Return points (M, 3) that lead `length` metres on from `point`, along lane polylines from `row` on, then straight."""
        sign = 1 if forwards else -1
        direction = sign * torch.tensor([np.cos(heading), np.sin(heading)], dtype=torch.float32)
        points, left = [point], length
        visited: set[int] = set()
        while row is not None and row not in visited and left > 0:
            visited.add(row)
            line = self._lines[row]
            for vertex in line if forwards else line.flip(0):
                step = (vertex - points[-1])[:2]
                nearest = 5.0 if len(points) == 1 else 0.3  # glides from the track onto the centreline
                if float(step @ direction) > nearest and left > 0:
                    points.append(vertex)
                    left -= float(step.norm())
                    direction = step / step.norm()
            row = self._straightest(row, direction, forwards)
        if left > 0:
            points.append(points[-1] + left * torch.nn.functional.pad(direction, (0, 1)))
        return torch.stack(points[1:])

    def _straightest(self, row: int, direction: Tensor, forwards: bool) -> int | None:
        """Return the lane polyline after (before) `row` that turns least, None where the map ends."""
        lane = self.lanes[self._owners[row]]
        place = lane.pieces.index(row) + (1 if forwards else -1)
        if 0 <= place < len(lane.pieces):
            return lane.pieces[place]
        names = lane.successors if forwards else lane.predecessors
        found = [self.lanes[name].pieces for name in names if name in self.lanes and self.lanes[name].pieces]

        def straightness(pieces: list[int]) -> float:
            step = self._lines[pieces[-1]][-1, :2] - self._lines[pieces[0]][0, :2]
            return (1 if forwards else -1) * float(step @ direction / step.norm().clamp(min=1e-6))

        best = max(found, key=straightness, default=None)
        return None if best is None else best[0 if forwards else -1]


def mark_crossings(lanes: Iterable[Lane]) -> None:
    """Make lanes that overlap others crosswise on the same level junction lanes, for maps that name no intersections."""
    lanes = [lane for lane in lanes if lane.kind in (PolylineKind.LANE, PolylineKind.JUNCTION_LANE)]
    outlines = np.array([lane.outline for lane in lanes], dtype=object)
    lines = [resample_polyline(lane.centre, SPACING) for lane in lanes]
    courses = [polyline_direction(line[:, :2], torch.ones(len(line), dtype=torch.bool)) for line in lines]
    pairs = shapely.STRtree(outlines).query(outlines, predicate="intersects").T
    pairs = pairs[pairs[:, 0] < pairs[:, 1]]
    overlaps = shapely.intersection(outlines[pairs[:, 0]], outlines[pairs[:, 1]])
    large = shapely.area(overlaps) >= LEAST_OVERLAP
    middles = torch.from_numpy(shapely.get_coordinates(shapely.centroid(overlaps[large]))).float()
    for (first, second), middle in zip(pairs[large], middles, strict=True):
        nearest = [int((lines[lane][:, :2] - middle).norm(dim=-1).argmin()) for lane in (first, second)]
        turn = float(wrap_angle(courses[first][nearest[0]] - courses[second][nearest[1]]).abs())
        climb = abs(float(lines[first][nearest[0], 2] - lines[second][nearest[1], 2]))
        if CROSSING_ANGLE < turn < torch.pi - CROSSING_ANGLE and climb < CLEARANCE:
            lanes[first].kind = lanes[second].kind = PolylineKind.JUNCTION_LANE


def thin_line(points: Tensor) -> Tensor:
    """Return a polyline (N, 3) of 2 points or more without those that a straight line replaces, at most 2.5 m between points."""
    line = shapely.simplify(shapely.LineString(points.numpy()), SIMPLIFIED)
    return torch.from_numpy(shapely.get_coordinates(shapely.segmentize(line, SPACING), include_z=True)).float()


def closed_outline(points: Tensor) -> Tensor:
    """Return a polygon (N, 3) with its first point once more at the end, freed from details until it is one piece."""
    ring, tolerance = torch.cat((points, points[:1])), SIMPLIFIED
    while len(ring) > MOST_POINTS:
        ring = torch.from_numpy(
            shapely.get_coordinates(shapely.simplify(shapely.LineString(ring.numpy()), tolerance), include_z=True)
        )
        tolerance *= 2
    return ring.float()
