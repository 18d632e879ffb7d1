"""Lanelets (Bender, Ziegler, Stiller, IV 2014), as CommonRoad writes them, as the map of a `Scene`.

A lanelet is a stretch of lane between a left and a right bound. Its centreline becomes pieces of at most 10 points 2.5 m apart.
Road edges are the border of the union of all lanelets that vehicles use, open where the road goes on beyond the map.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np
import shapely
import torch
from torch import Tensor

from ..geometry import polyline_direction, project_on_polyline, resample_polyline, split_polyline, wrap_angle
from ..scene import LaneLinkKind, PolylineKind
from .shards import DataError

SPACING, MOST_POINTS = 2.5, 10
CROSSING_ANGLE = 0.5
"""Radians between two overlapping lanelets from which on they cross and do not merely merge or fork."""

GAP = 0.3
"""Metres: gaps up to twice this between lanelets are closed, and edges end this near to where the map ends."""

FAR = 10_000.0
"""Metres from the origin from which on float32 is too coarse for positions (there it still tells 1 mm)."""

FARTHEST = 1e6
"""Metres from the first lanelet (or the origin) beyond which nothing can be meant to lie; polylines of that length fit memory."""

SPEED_SIGNS = {"274", "r2-1", "r301"}
"""Signs of a speed limit by number: Germany (and the countries that took over its numbers), USA, Spain; values are in m/s."""

KINDS = {
    "bicycleLane": PolylineKind.BIKE_LANE,
    "sidewalk": PolylineKind.WALKWAY,
    "crosswalk": PolylineKind.CROSSWALK,
    "intersection": PolylineKind.JUNCTION_LANE,
}


@dataclass
class Lanelet:
    """One lanelet: bounds (N, 3) in driving direction, neighbours as (id, same direction), and the numbers of its polylines."""

    id: str
    left: Tensor
    right: Tensor
    kind: PolylineKind
    successors: list[str]
    predecessors: list[str]
    beside: dict[str, tuple[str, bool]]
    speed_limit: float | None
    lights: list[str]
    stop_line: Tensor | None
    pieces: list[int] = field(default_factory=list)

    @property
    def centre(self) -> Tensor:
        """Points (N, 3) midway between the bounds."""
        return 0.5 * (self.left + self.right)

    @property
    def outline(self) -> shapely.Geometry:
        """The lanelet's surface."""
        return shapely.make_valid(shapely.Polygon(torch.cat((self.left, self.right.flip(0)))[:, :2].numpy()))


def place(point: Element, origin: tuple[float, float] = (0.0, 0.0)) -> list[float]:
    """Return x, y, z of an element less `origin`; a missing x or y is NaN, a missing z is 0."""
    x, y = (float(point.findtext(axis, "nan")) - start for axis, start in zip("xy", origin, strict=True))
    return [x, y, float(point.findtext("z", "0"))]


def point_list(element: Element, origin: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    """Return the points (N, 3) of all `<point>` children less `origin`, subtracted before they become float32."""
    rows = [place(point, origin) for point in element.findall("point")]
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 3)


def find_origin(root: Element) -> tuple[float, float]:
    """Return x, y in the file's coordinates from which those of the scene count, so that float32 is fine enough for them.

    It is (0, 0) where all coordinates of lanelets are below `FAR`, else the whole metres of the first point.
    """
    points = [place(point)[:2] for point in root.iterfind("lanelet/*/point")]
    is_near = all(abs(value) < FAR for point in points for value in point)
    x, y = (0.0, 0.0) if is_near else np.floor(points[0]).tolist()
    return x, y


def read_map(root: Element, file: Path, origin: tuple[float, float]) -> RoadMap:
    """Return the map of a scenario, less `origin`.

    Raises:
        DataError: there is no lanelet for vehicles, or the bounds of one differ in their numbers of points or hold NaN.
    """
    signs = {
        sign.get("id"): float(entry.findtext("additionalValue", "nan"))
        for sign in root.findall("trafficSign")
        for entry in sign.findall("trafficSignElement")
        if entry.findtext("trafficSignID", "").strip().lower() in SPEED_SIGNS and entry.find("additionalValue") is not None
    }
    inside = {
        reference.get("ref")
        for incoming in root.findall("intersection/incoming")
        for tag in ("successorsRight", "successorsStraight", "successorsLeft")
        for reference in incoming.findall(tag)
    }
    lanelets = {}
    for element in root.findall("lanelet"):
        lanelet = _lanelet(element, signs, origin)
        if len(lanelet.left) != len(lanelet.right) or len(lanelet.left) < 2:
            raise DataError(
                f"{file}: lanelet {lanelet.id}: bounds of {len(lanelet.left)} and {len(lanelet.right)} points, "
                "wanted equally many"
            )
        if not (lanelet.centre.abs() <= FARTHEST).all():
            raise DataError(f"{file}: lanelet {lanelet.id}: found NaN or infinity or a number above 1e6 in it: correct the file")
        if lanelet.id in inside and lanelet.kind == PolylineKind.LANE:
            lanelet.kind = PolylineKind.JUNCTION_LANE
        lanelets[lanelet.id] = lanelet
    if not lanelets:
        raise DataError(f"{file}: holds no lanelet: a scenario needs a road network")
    used = [lanelet for lanelet in lanelets.values() if lanelet.kind not in (PolylineKind.WALKWAY, PolylineKind.CROSSWALK)]
    if not any(lanelet.centre.diff(dim=0).any() for lanelet in used):
        raise DataError(f"{file}: holds no lanelet for vehicles that has a length: a scenario needs a road network")
    return RoadMap(lanelets)


def _lanelet(element: Element, signs: dict[str | None, float], origin: tuple[float, float]) -> Lanelet:
    def references(tag: str) -> list[str]:
        return [found.get("ref", "") for found in element.findall(tag)]

    beside = {}
    for side, tag in (("left", "adjacentLeft"), ("right", "adjacentRight")):
        found = element.find(tag)
        if found is not None:
            beside[side] = (found.get("ref", ""), found.get("drivingDir") == "same")
    limits = [signs[sign] for sign in references("trafficSignRef") if sign in signs]
    written = element.findtext("speedLimit")
    types = [found.text.strip() for found in element.findall("laneletType") if found.text]
    stop = element.find("stopLine")
    stop_line = point_list(stop, origin) if stop is not None else None
    left, right = element.find("leftBound"), element.find("rightBound")
    if left is None or right is None:
        raise KeyError(f"<leftBound> or <rightBound> of lanelet {element.get('id')}")
    return Lanelet(
        id=element.get("id", ""),
        left=point_list(left, origin),
        right=point_list(right, origin),
        kind=next((KINDS[name] for name in types if name in KINDS), PolylineKind.LANE),
        successors=references("successor"),
        predecessors=references("predecessor"),
        beside=beside,
        speed_limit=float(written) if written is not None else min(limits, default=None),
        lights=references("trafficLightRef"),
        stop_line=stop_line if stop_line is not None and len(stop_line) else None,
    )


class RoadMap:
    """The lanelets of a scenario and the polylines made of them.

    Attributes:
        lanelets: by id.
        lights: the traffic lights that each lanelet refers to.
    """

    def __init__(self, lanelets: dict[str, Lanelet]):
        """Cut the lanelets into polylines and find markings and edges."""
        self.lanelets = lanelets
        self.lights = {name: lanelet.lights for name, lanelet in lanelets.items() if lanelet.lights}
        self._lines: list[Tensor] = []
        self._kinds: list[PolylineKind] = []
        self._widths: list[float] = []
        self._limits: list[float | None] = []
        self._owners: list[str] = []
        _mark_crossings(lanelets)
        for lanelet in lanelets.values():
            self._add_lane(lanelet)
        self._lanes = len(self._lines)
        for line in _markings(lanelets):
            self._add(resample_polyline(line, SPACING), PolylineKind.LANE_MARKING)
        for line in road_edges(lanelets):
            self._add(line, PolylineKind.ROAD_EDGE)
        self._pack()

    def _add(
        self, line: Tensor, kind: PolylineKind, width: float = 0.0, limit: float | None = None, owner: str = ""
    ) -> list[int]:
        first = len(self._lines)
        for piece in split_polyline(line, MOST_POINTS):
            if len(piece) > 1:
                self._lines.append(piece)
                self._kinds.append(kind)
                self._widths.append(width)
                self._limits.append(limit)
                self._owners.append(owner)
        return list(range(first, len(self._lines)))

    def _add_lane(self, lanelet: Lanelet) -> None:
        if lanelet.kind == PolylineKind.CROSSWALK:
            ring = torch.cat((lanelet.left, lanelet.right.flip(0), lanelet.left[:1]))
            self._add(ring, lanelet.kind)
            return
        width = float((lanelet.left - lanelet.right).norm(dim=-1).mean())
        line = resample_polyline(lanelet.centre, SPACING)
        lanelet.pieces = self._add(line, lanelet.kind, width, lanelet.speed_limit, lanelet.id)

    def _pack(self) -> None:
        most = max(map(len, self._lines))
        self._polyline = torch.zeros(len(self._lines), most, 3)
        self._valid = torch.zeros(len(self._lines), most, dtype=torch.bool)
        for row, line in enumerate(self._lines):
            self._polyline[row, : len(line)], self._valid[row, : len(line)] = line, True

    def tensors(self) -> dict[str, Tensor]:
        """Return the map fields of a `Scene`."""
        links = self._links()
        return {
            "polyline": self._polyline,
            "polyline_valid": self._valid,
            "polyline_kind": torch.tensor(self._kinds),
            "lane_width": torch.tensor(self._widths),
            "speed_limit": torch.tensor([limit or 0.0 for limit in self._limits]),
            "speed_limit_valid": torch.tensor([limit is not None for limit in self._limits]),
            "lane_link": torch.tensor([link[:2] for link in links], dtype=torch.int64).reshape(-1, 2),
            "lane_link_kind": torch.tensor([link[2] for link in links], dtype=torch.int64),
            "lane_link_valid": torch.ones(len(links), dtype=torch.bool),
        }

    def _links(self) -> list[tuple[int, int, LaneLinkKind]]:
        links = []
        for lanelet in self.lanelets.values():
            pieces = lanelet.pieces
            links += [(pieces[i], pieces[i + 1], LaneLinkKind.SUCCESSOR) for i in range(len(pieces) - 1)]
            for name in lanelet.successors:
                following = self.lanelets[name].pieces if name in self.lanelets else []
                if pieces and following:
                    links.append((pieces[-1], following[0], LaneLinkKind.SUCCESSOR))
            for side, kind in (("left", LaneLinkKind.LEFT), ("right", LaneLinkKind.RIGHT)):
                name, same = lanelet.beside.get(side, ("", False))
                others = self.lanelets[name].pieces if same and name in self.lanelets else []
                for place, piece in enumerate(pieces if others else []):
                    share = (place + 0.5) / len(pieces)
                    links.append((piece, others[int(share * len(others))], kind))
        return links

    def stop_point(self, name: str) -> tuple[Tensor, Tensor, int]:
        """Return where traffic of a lanelet stops (3,), its heading there (), and the polyline: its stop line, else its end."""
        lanelet = self.lanelets[name]
        row = lanelet.pieces[-1]
        line = self._lines[row]
        point = line[-1] if lanelet.stop_line is None else lanelet.stop_line.mean(dim=0)
        step = line[-1] - line[-2]
        return point, torch.atan2(step[1], step[0]), row

    def _match(self, position: Tensor, heading: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the lane polyline (N,) nearest to each position (N, 2), arc, offset to the left, and lane heading (N,).

        The offset is infinite where no lane is there, or none within 45 degrees of `heading`.
        """
        line, valid = self._polyline[: self._lanes, :, :2], self._valid[: self._lanes]
        arc, offset, course = project_on_polyline(position.expand(len(line), *position.shape), line, valid)
        segment = torch.where(valid[:, 1:], torch.diff(line, dim=1).norm(dim=-1), 0.0)
        width = torch.tensor(self._widths[: self._lanes])
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
        """Return a route (R, 3) of points 2 m apart along the lanes that a track (N, 2), (N,) follows.

        The track is shifted onto the centrelines of the lanes that it matches; the shift is averaged over 16 m, so that the route
        glides from lane to lane where the track does. Where no lane matches the track itself is the route. It begins 20 m behind
        the track along preceding lanes and ends 60 m beyond it along succeeding ones, straight on where the map ends.
        """
        keep = [0]
        for index in range(1, len(position)):
            if float((position[index] - position[keep[-1]]).norm()) > 0.5:
                keep.append(index)
        position, heading = position[keep], heading[keep]
        row, _, offset, course = self._match(position, heading)
        known = ~offset.isinf()
        normal = torch.stack((course.sin(), -course.cos()), dim=-1)
        shift = torch.where(known[:, None], offset[:, None] * normal, 0.0).nan_to_num()
        arc = torch.diff(position, dim=0, prepend=position[:1]).norm(dim=-1).cumsum(0)
        near = ((arc[:, None] - arc).abs() <= 8).float()
        path = position + (near @ shift) / near.sum(-1, keepdim=True)
        ends = [(int(row[end]) if known[end] else None, path[end], float(heading[end])) for end in (0, -1)]
        behind, ahead = self._extend(*ends[0], 20.0, forwards=False), self._extend(*ends[1], 60.0, forwards=True)
        line = torch.cat((behind.flip(0), path, ahead))
        return resample_polyline(torch.nn.functional.pad(line, (0, 1)), 2.0)

    def _extend(self, row: int | None, point: Tensor, heading: float, length: float, *, forwards: bool) -> Tensor:
        """Return points (M, 2) that lead `length` metres on from `point`, along lane polylines from `row` on, then straight."""
        sign = 1 if forwards else -1
        direction = sign * torch.tensor([np.cos(heading), np.sin(heading)], dtype=torch.float32)
        points, left = [point], length
        visited: set[int] = set()
        while row is not None and row not in visited and left > 0:
            visited.add(row)
            line = self._lines[row][:, :2]
            for vertex in line if forwards else line.flip(0):
                step = vertex - points[-1]
                nearest = 5.0 if len(points) == 1 else 0.3  # glides from the track onto the centreline
                if float(step @ direction) > nearest and left > 0:
                    points.append(vertex)
                    left -= float(step.norm())
                    direction = step / step.norm()
            row = self._straightest(row, direction, forwards)
        if left > 0:
            points.append(points[-1] + left * direction)
        return torch.stack(points[1:])

    def _straightest(self, row: int, direction: Tensor, forwards: bool) -> int | None:
        """Return the lane polyline after (before) `row` that turns least, None where the map ends."""
        lanelet = self.lanelets[self._owners[row]]
        place = lanelet.pieces.index(row) + (1 if forwards else -1)
        if 0 <= place < len(lanelet.pieces):
            return lanelet.pieces[place]
        names = lanelet.successors if forwards else lanelet.predecessors
        found = [self.lanelets[name].pieces for name in names if name in self.lanelets and self.lanelets[name].pieces]

        def straightness(pieces: list[int]) -> float:
            step = self._lines[pieces[-1]][-1, :2] - self._lines[pieces[0]][0, :2]
            return (1 if forwards else -1) * float(step @ direction / step.norm().clamp(min=1e-6))

        best = max(found, key=straightness, default=None)
        return None if best is None else best[0 if forwards else -1]


def _mark_crossings(lanelets: dict[str, Lanelet]) -> None:
    """Make lanes that overlap others crosswise junction lanes; 2018b names no intersections."""
    lanes = [lanelet for lanelet in lanelets.values() if lanelet.kind in (PolylineKind.LANE, PolylineKind.JUNCTION_LANE)]
    outlines = [lanelet.outline for lanelet in lanes]
    tree = shapely.STRtree(outlines)
    for first, second in tree.query(outlines, predicate="intersects").T:
        if first >= second:
            continue
        overlap = shapely.intersection(outlines[first], outlines[second])
        if overlap.area < 2.0:
            continue
        middle = torch.tensor([[overlap.centroid.x, overlap.centroid.y]])
        course = []
        for lanelet in (lanes[first], lanes[second]):
            line = resample_polyline(lanelet.centre[:, :2], SPACING)
            nearest = (line - middle).norm(dim=-1).argmin()
            course.append(polyline_direction(line, torch.ones(len(line), dtype=torch.bool))[nearest])
        if CROSSING_ANGLE < float(wrap_angle(course[0] - course[1]).abs()) < torch.pi - CROSSING_ANGLE:
            lanes[first].kind = lanes[second].kind = PolylineKind.JUNCTION_LANE


def _markings(lanelets: dict[str, Lanelet]) -> list[Tensor]:
    """Return each bound (N, 3) that two lanes share, once; on crossings nothing is painted."""
    lines = []
    for lanelet in lanelets.values():
        name, same = lanelet.beside.get("left", ("", False))
        other = lanelets.get(name)
        if other is None or PolylineKind.JUNCTION_LANE in (lanelet.kind, other.kind):
            continue
        if same or lanelet.id < name or other.beside.get("left", ("", False))[0] != lanelet.id:
            lines.append(lanelet.left)
    return lines


def road_edges(lanelets: dict[str, Lanelet]) -> list[Tensor]:
    """Return the edges (N, 3) of the union of all lanelets that vehicles use, with the road on their left."""
    used = [x for x in lanelets.values() if x.kind not in (PolylineKind.WALKWAY, PolylineKind.CROSSWALK)]
    swollen = shapely.union_all(shapely.buffer([x.outline for x in used], GAP, join_style="mitre", mitre_limit=2.0))
    surface = shapely.buffer(swollen, -GAP, join_style="mitre", mitre_limit=2.0)
    caps = []
    for lanelet in used:
        for place, names in ((0, lanelet.predecessors), (-1, lanelet.successors)):
            if not any(name in lanelets for name in names):
                caps.append(torch.stack((lanelet.left[place], lanelet.right[place]))[:, :2].numpy())
    ends = shapely.multilinestrings(caps) if caps else shapely.MultiLineString()
    points = torch.cat([torch.cat((x.left, x.right)) for x in used])
    lines = []
    for polygon in shapely.get_parts(surface):
        polygon = shapely.geometry.polygon.orient(polygon, 1.0)
        rings = [polygon.exterior, *(hole for hole in polygon.interiors if shapely.Polygon(hole).area > 2.0)]
        for line in (part for ring in rings for part in _open_ring(ring, ends)):
            line = torch.from_numpy(shapely.get_coordinates(line)).float()
            height = points[torch.cdist(line, points[:, :2]).argmin(-1), 2]
            lines.append(torch.cat((line, height[:, None]), dim=-1))
    return lines


def _open_ring(ring: shapely.LinearRing, ends: shapely.MultiLineString) -> list[shapely.Geometry]:
    """Return the parts of a closed border that do not run along the map's ends, vertices at most 2.5 m apart."""
    points = shapely.get_coordinates(shapely.segmentize(ring.simplify(0.05), 1.0))[:-1]
    keep = np.ones(len(points), dtype=bool) if ends.is_empty else shapely.distance(shapely.points(points), ends) > GAP
    if not keep.all():
        first = int(np.argmin(keep))
        points, keep = np.roll(points, -first, axis=0), np.roll(keep, -first)
        runs = np.split(np.arange(len(points)), np.flatnonzero(np.diff(keep.astype(int))) + 1)
        parts = [points[run] for run in runs if keep[run[0]] and len(run) > 1]
    else:
        parts = [np.concatenate((points, points[:1]))]
    return [shapely.segmentize(shapely.LineString(part).simplify(0.05), SPACING) for part in parts]
