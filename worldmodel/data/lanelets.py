"""Lanelets (Bender, Ziegler, Stiller, IV 2014), as CommonRoad writes them, as the map of a `Scene`.

A lanelet is a stretch of lane between a left and a right bound; what follows from its centreline is in `lane_graph.py`. Road
edges are the border of the union of all lanelets that vehicles use, open where the road goes on beyond the map.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np
import shapely
import torch
from torch import Tensor

from ..scene import LaneLinkKind, PolylineKind
from .lane_graph import SPACING, Lane, LaneGraph, Neighbour, mark_crossings
from .polylines import resample_polyline
from .shards import DataError

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


@dataclass(kw_only=True)
class Lanelet(Lane):
    """A lane between bounds (N, 3) in driving direction; `beside` names the lanelet on each side and whether it runs likewise."""

    left: Tensor
    right: Tensor
    beside: dict[str, tuple[str, bool]]
    lights: list[str]
    stop_line: Tensor | None

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
        lanelet = _lanelet(element, signs, origin, file)
        if lanelet.id in inside and lanelet.kind == PolylineKind.LANE:
            lanelet.kind = PolylineKind.JUNCTION_LANE
        lanelets[lanelet.id] = lanelet
    if not lanelets:
        raise DataError(f"{file}: holds no lanelet: a scenario needs a road network")
    used = [lanelet for lanelet in lanelets.values() if lanelet.kind not in (PolylineKind.WALKWAY, PolylineKind.CROSSWALK)]
    if not any(lanelet.centre.diff(dim=0).any() for lanelet in used):
        raise DataError(f"{file}: holds no lanelet for vehicles that has a length: a scenario needs a road network")
    return RoadMap(lanelets)


def _lanelet(element: Element, signs: dict[str | None, float], origin: tuple[float, float], file: Path) -> Lanelet:
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
    bounds = element.find("leftBound"), element.find("rightBound")
    if bounds[0] is None or bounds[1] is None:
        raise KeyError(f"<leftBound> or <rightBound> of lanelet {element.get('id')}")
    left, right = point_list(bounds[0], origin), point_list(bounds[1], origin)
    if len(left) != len(right) or len(left) < 2:
        raise DataError(
            f"{file}: lanelet {element.get('id')}: bounds of {len(left)} and {len(right)} points, wanted equally many"
        )
    if not (torch.cat((left, right)).abs() <= FARTHEST).all():
        raise DataError(
            f"{file}: lanelet {element.get('id')}: found NaN or infinity or a number above 1e6 in it: correct the file"
        )
    sides = {"left": LaneLinkKind.LEFT, "right": LaneLinkKind.RIGHT}
    return Lanelet(
        id=element.get("id", ""),
        centre=0.5 * (left + right),
        width=float((left - right).norm(dim=-1).mean()),
        left=left,
        right=right,
        kind=next((KINDS[name] for name in types if name in KINDS), PolylineKind.LANE),
        successors=references("successor"),
        predecessors=references("predecessor"),
        neighbours=[Neighbour(name, sides[side]) for side, (name, same) in beside.items() if same],
        beside=beside,
        speed_limit=float(written) if written is not None else min(limits, default=None),
        lights=references("trafficLightRef"),
        stop_line=stop_line if stop_line is not None and len(stop_line) else None,
    )


class RoadMap(LaneGraph):
    """The lanelets of a scenario and the polylines made of them.

    Attributes:
        lanelets: by id, crosswalks too.
        lights: the traffic lights that each lanelet refers to.
    """

    def __init__(self, lanelets: dict[str, Lanelet]):
        """Find crossings, markings and edges; lanelets that are crosswalks become outlines."""
        mark_crossings(lanelets.values())
        crosswalks = [lanelet for lanelet in lanelets.values() if lanelet.kind == PolylineKind.CROSSWALK]
        rings = [torch.cat((lanelet.left, lanelet.right.flip(0), lanelet.left[:1])) for lanelet in crosswalks]
        super().__init__(
            {name: lanelet for name, lanelet in lanelets.items() if lanelet.kind != PolylineKind.CROSSWALK},
            [
                *((ring, PolylineKind.CROSSWALK) for ring in rings),
                *((resample_polyline(line, SPACING), PolylineKind.LANE_MARKING) for line in _markings(lanelets)),
                *((line, PolylineKind.ROAD_EDGE) for line in road_edges(lanelets)),
            ],
        )
        self.lanelets = lanelets
        self.lights = {name: lanelet.lights for name, lanelet in lanelets.items() if lanelet.lights}

    def stop_point(self, name: str) -> tuple[Tensor, Tensor, int]:
        """Return where traffic of a lanelet stops (3,), its heading there (), and the polyline: its stop line, else its end."""
        lanelet = self.lanelets[name]
        row = lanelet.pieces[-1]
        line = self._lines[row]
        point = line[-1] if lanelet.stop_line is None else lanelet.stop_line.mean(dim=0)
        step = line[-1] - line[-2]
        return point, torch.atan2(step[1], step[0]), row


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
    caps = []
    for lanelet in used:
        for place, names in ((0, lanelet.predecessors), (-1, lanelet.successors)):
            if not any(name in lanelets for name in names):
                caps.append(torch.stack((lanelet.left[place], lanelet.right[place]))[:, :2].numpy())
    return border(np.array([lanelet.outline for lanelet in used]), caps, torch.cat([torch.cat((x.left, x.right)) for x in used]))


def border(areas: np.ndarray, caps: list[np.ndarray], points: Tensor) -> list[Tensor]:
    """Return the edges (N, 3) of the union of `areas` (shapely polygons), with the union on their left.

    Args:
        areas: polygons; gaps of up to 0.6 m between them are closed.
        caps: lines (2, 2) at which the map ends and the road goes on: no edge runs along them.
        points: (M, 3), of which the nearest gives the height of an edge's vertex.
    """
    swollen = shapely.union_all(shapely.buffer(areas, GAP, join_style="mitre", mitre_limit=2.0))
    surface = shapely.buffer(swollen, -GAP, join_style="mitre", mitre_limit=2.0)
    ends = shapely.MultiLineString(caps)
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
