"""A SUMO network file as the map of a `Scene`: lanes, links, walkways, crosswalks, markings, road edges, signals, routes.

The network is read once (`read_road_map`) into arrays of short polylines, about 2.5 m between points and at most `POINTS` of
them; every scene then crops these arrays. Imports no SUMO: a .net.xml is plain XML
(https://sumo.dlr.de/docs/Networks/SUMO_Road_Networks.html).

Road edges are the border of the union of all lanes on which something drives (bicycles too) and of the junctions' surfaces
without the walking areas. At the ends of the network, where the road only stops being modelled, the border is left open.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import defusedxml.ElementTree
import numpy as np
import shapely
import torch
from shapely.geometry import LineString, MultiLineString, Polygon

from .data.compressed import read_content
from .data.polylines import resample_polyline, split_polyline
from .scene import LaneLinkKind, PolylineKind, SignalState

POINTS = 10
"""P, the most points of one polyline."""

SPACING = 2.5
"""Metres between two points of a polyline."""

LETTER_STATES = np.full(128, SignalState.UNKNOWN, dtype=np.int64)
"""The `SignalState` of SUMO's letters for a signal, by their ASCII code; u is red and yellow together."""
for _letters, _state in (("Gg", SignalState.GO), ("yY", SignalState.CAUTION), ("ru", SignalState.STOP)):
    LETTER_STATES[[ord(_letter) for _letter in _letters]] = _state

_MOTOR = frozenset(
    "passenger private taxi bus coach delivery truck trailer motorcycle moped evehicle emergency authority army vip hov custom1 "
    "custom2".split()
)
_CROSSWALK_POINTS = 4


@dataclass(frozen=True)
class Lane:
    """One lane: `shape` (n, 3) and width in metres, speed limit, what it is (None: rails and other things that we leave out)."""

    id: str
    shape: np.ndarray
    width: float
    speed: float
    kind: PolylineKind | None


@dataclass(frozen=True)
class Light:
    """One signalised way through a junction: traffic light, index of its link, the lane before it and the one in the junction."""

    light: str
    link: int
    before: str
    through: str


@dataclass
class RoadMap:
    """A network in pieces.

    Attributes:
        lanes: every lane by id, those in junctions included (their ids begin with a colon).
        edge: lane ids of every edge outside of junctions, from right to left.
        successor: lane ids that follow a lane id, through junctions step by step.
        ways: for every lane id before a junction: (lane id after it, lane ids in it).
        lights: all signalised ways of vehicles.
        point: (N, POINTS, 3) float64 metres; count: (N,) of them are valid.
        kind: (N,) `PolylineKind`; width, speed: (N,), 0 where it has none.
        piece: first and last piece of a lane id.
        link: (M, 2) pieces; link_kind: (M,) `LaneLinkKind`.
    """

    lanes: dict[str, Lane] = field(default_factory=dict)
    edge: dict[str, list[str]] = field(default_factory=dict)
    successor: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    ways: dict[str, list[tuple[str, list[str]]]] = field(default_factory=lambda: defaultdict(list))
    lights: list[Light] = field(default_factory=list)
    point: np.ndarray = field(default_factory=lambda: np.zeros((0, POINTS, 3)))
    count: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    kind: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    width: np.ndarray = field(default_factory=lambda: np.zeros(0))
    speed: np.ndarray = field(default_factory=lambda: np.zeros(0))
    piece: dict[str, tuple[int, int]] = field(default_factory=dict)
    link: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), dtype=np.int64))
    link_kind: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


def read_road_map(path: Path) -> RoadMap:
    """Read a .net.xml (or .net.xml.gz).

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is not a SUMO network, or unpacks to more than `compressed.MOST_BYTES`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    content = read_content(path)
    try:
        root = defusedxml.ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise ValueError(f"{path}: not readable as XML ({error}): a SUMO network (.net.xml) is wanted") from error
    if root.tag != "net":
        raise ValueError(f"{path}: found <{root.tag}>, wanted a SUMO network (<net>)")
    road = RoadMap()
    _read_lanes(road, root)
    _read_connections(road, root)
    _Pieces(road).build(root)
    return road


def _shape(text: str) -> np.ndarray:
    rows = [[float(value) for value in point.split(",")] for point in text.split()]
    return np.array([row + [0.0] * (3 - len(row)) for row in rows])


def _allows(lane: ElementTree.Element) -> tuple[bool, bool, bool]:
    """Whether motor vehicles, bicycles and pedestrians may use a lane."""
    allow, disallow = lane.get("allow"), set((lane.get("disallow") or "").split())
    if allow is not None and allow != "all":
        allowed = set(allow.split())
        return bool(allowed & _MOTOR), "bicycle" in allowed, "pedestrian" in allowed
    nobody = "all" in disallow
    return (
        not nobody and bool(_MOTOR - disallow),
        not nobody and "bicycle" not in disallow,
        not nobody and "pedestrian" not in disallow,
    )


def _read_lanes(road: RoadMap, root: ElementTree.Element) -> None:
    for edge in root.iter("edge"):
        function = edge.get("function", "normal")
        if function == "walkingarea":
            continue
        names = []
        for lane in edge.iter("lane"):
            motor, bicycle, pedestrian = _allows(lane)
            kind = None
            if function == "crossing":
                kind = PolylineKind.CROSSWALK
            elif motor:
                kind = PolylineKind.JUNCTION_LANE if function == "internal" else PolylineKind.LANE
            elif bicycle:
                kind = PolylineKind.BIKE_LANE
            elif pedestrian:
                kind = PolylineKind.WALKWAY
            name = lane.attrib["id"]
            speed, width = float(lane.get("speed", 0)), float(lane.get("width", 3.2))
            road.lanes[name] = Lane(name, _shape(lane.attrib["shape"]), width, speed, kind)
            names.append(name)
        if function == "normal":
            road.edge[edge.attrib["id"]] = names


def _read_connections(road: RoadMap, root: ElementTree.Element) -> None:
    """Fill in which lane follows which, the ways through junctions, and the signalised ones among them."""
    direct: dict[str, str] = {}
    outer = []
    for connection in root.iter("connection"):
        get = connection.attrib
        before, after = f"{get['from']}_{get['fromLane']}", f"{get['to']}_{get['toLane']}"
        if before not in road.lanes or after not in road.lanes:
            continue
        following = get.get("via", after)
        if following not in road.lanes:
            continue
        road.successor[before].append(following)
        if before.startswith(":"):
            direct[before] = following
        else:
            outer.append((before, after, get))
    for before, after, get in outer:
        through = []
        lane = get.get("via", after)
        while lane != after and lane in direct and len(through) < 8:
            through.append(lane)
            lane = direct[lane]
        road.ways[before].append((after, through))
        if "tl" in get and through and road.lanes[through[0]].kind is not None:
            road.lights.append(Light(get["tl"], int(get["linkIndex"]), before, through[0]))


class _Pieces:
    """Cuts a network into polylines and writes them into its `RoadMap`."""

    def __init__(self, road: RoadMap) -> None:
        self.road = road
        self.rows: list[tuple[np.ndarray, PolylineKind, float, float]] = []

    def build(self, root: ElementTree.Element) -> None:
        road = self.road
        for lane in road.lanes.values():
            if lane.kind == PolylineKind.CROSSWALK:
                self.rows.append((_outline(lane), lane.kind, 0.0, 0.0))
            elif lane.kind is not None:
                speed = 0.0 if lane.kind == PolylineKind.WALKWAY else lane.speed
                road.piece[lane.id] = self._add(lane.shape, lane.kind, lane.width, speed)
        self._add_markings(root)
        for border in _road_edges(road, root):
            self._add(border, PolylineKind.ROAD_EDGE)
        count = len(self.rows)
        road.point, road.count = np.zeros((count, POINTS, 3)), np.array([len(row[0]) for row in self.rows], dtype=np.int64)
        for place, row in enumerate(self.rows):
            road.point[place, : len(row[0])] = row[0]
        road.kind = np.array([row[1] for row in self.rows], dtype=np.int64)
        road.width, road.speed = np.array([row[2] for row in self.rows]), np.array([row[3] for row in self.rows])
        self._link()

    def _add(self, line: np.ndarray, kind: PolylineKind, width: float = 0.0, speed: float = 0.0) -> tuple[int, int]:
        first = len(self.rows)
        for piece in split_polyline(torch.from_numpy(resample(line, SPACING)), POINTS):
            self.rows.append((piece.numpy(), kind, width, speed))
        return first, len(self.rows) - 1

    def _add_markings(self, root: ElementTree.Element) -> None:
        """Lines between lanes of one direction, and the one between the two directions of a road."""
        road, ends = self.road, {edge.get("id"): (edge.get("from"), edge.get("to")) for edge in root.iter("edge")}
        by_ends = {(ends[edge][0], ends[edge][1]): edge for edge in road.edge}
        driven = (PolylineKind.LANE, PolylineKind.BIKE_LANE)
        for edge, names in road.edge.items():
            lanes = [road.lanes[name] for name in names if road.lanes[name].kind in driven]
            for lane in lanes[:-1]:
                self._add(_offset(resample(lane.shape, SPACING), lane.width / 2), PolylineKind.LANE_MARKING)
            opposite = by_ends.get((ends[edge][1], ends[edge][0]))
            if lanes and opposite is not None and edge < opposite and road.lanes[road.edge[opposite][-1]].kind in driven:
                mine, theirs = lanes[-1], road.lanes[road.edge[opposite][-1]]
                line = _offset(resample(mine.shape, SPACING), mine.width / 2)
                other = LineString(_offset(resample(theirs.shape, SPACING), theirs.width / 2)[:, :2])
                if shapely.distance(shapely.points(line[:, :2]), other).max() < 1.0:
                    self._add(line, PolylineKind.LANE_MARKING)

    def _link(self) -> None:
        """Join the pieces: along lanes, through junctions, and to the neighbour on which one may change."""
        road, links = self.road, []
        for name, (first, last) in road.piece.items():
            links += [(piece, piece + 1, LaneLinkKind.SUCCESSOR) for piece in range(first, last)]
            links += [
                (last, road.piece[after][0], LaneLinkKind.SUCCESSOR) for after in road.successor[name] if after in road.piece
            ]
        middle = np.array([road.point[place, count // 2, :2] for place, count in enumerate(road.count)]).reshape(-1, 2)
        for names in road.edge.values():
            lanes = [name for name in names if road.lanes[name].kind == PolylineKind.LANE]
            for right, left in zip(lanes[:-1], lanes[1:], strict=True):
                for start, goal, side in ((right, left, LaneLinkKind.LEFT), (left, right, LaneLinkKind.RIGHT)):
                    here, there = (np.arange(road.piece[lane][0], road.piece[lane][1] + 1) for lane in (start, goal))
                    nearest = np.linalg.norm(middle[here][:, None] - middle[there][None], axis=-1).argmin(axis=1)
                    links += [(int(piece), int(there[n]), side) for piece, n in zip(here, nearest, strict=True)]
        table = np.array(links, dtype=np.int64).reshape(-1, 3)
        road.link, road.link_kind = table[:, :2], table[:, 2]


def resample(line: np.ndarray, spacing: float) -> np.ndarray:
    """Return a polyline (n, 3) with points about `spacing` metres apart; at least two points, even of a very short line."""
    found = resample_polyline(torch.from_numpy(line - line[0]), spacing).numpy() + line[0]
    return found if len(found) > 1 else np.stack((line[0], line[-1]))


def _offset(line: np.ndarray, left: float) -> np.ndarray:
    """Return a polyline shifted to its left, vertex by vertex."""
    along = np.gradient(line[:, :2], axis=0)
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
    return line + left * np.stack((-along[:, 1], along[:, 0], np.zeros(len(line))), axis=1)


def _outline(crossing: Lane) -> np.ndarray:
    """Return the closed outline of a crosswalk of at most POINTS points."""
    centre = crossing.shape
    if len(centre) > _CROSSWALK_POINTS:
        centre = centre[np.linspace(0, len(centre) - 1, _CROSSWALK_POINTS).round().astype(int)]
    left, right = _offset(centre, crossing.width / 2), _offset(centre, -crossing.width / 2)
    return np.concatenate((right, left[::-1], right[:1]))


def _road_edges(road: RoadMap, root: ElementTree.Element) -> Iterable[np.ndarray]:
    """Yield the borders of the road, the road on their left."""
    driven = (PolylineKind.LANE, PolylineKind.JUNCTION_LANE, PolylineKind.BIKE_LANE)
    surfaces = [
        LineString(lane.shape[:, :2]).buffer(lane.width / 2, cap_style="flat", join_style="mitre")
        for lane in road.lanes.values()
        if lane.kind in driven and np.ptp(lane.shape[:, :2], axis=0).max() > 1e-3
    ]
    if not surfaces:
        return
    walks = [
        Polygon(_shape(lane.attrib["shape"])[:, :2]).buffer(0)
        for edge in root.iter("edge")
        if edge.get("function") == "walkingarea"
        for lane in edge.iter("lane")
        if len(lane.attrib["shape"].split()) > 2
    ]
    junctions = [
        Polygon(_shape(junction.attrib["shape"])[:, :2]).buffer(0)
        for junction in root.iter("junction")
        if junction.get("type") not in ("internal", "dead_end") and len(junction.get("shape", "").split()) > 2
    ]
    squares = shapely.difference(shapely.union_all(junctions), shapely.union_all(walks))
    whole = shapely.union_all([*surfaces, squares])
    for width in (0.2, -0.7, 0.5):  # closes the cracks between lanes, then takes off what is too narrow to drive on
        whole = whole.buffer(width, join_style="mitre")
    whole = whole.simplify(0.03)
    caps, heights = _open_ends(road, root), _Heights(road)
    for polygon in getattr(whole, "geoms", [whole]):
        oriented = shapely.geometry.polygon.orient(polygon)
        for ring in (oriented.exterior, *oriented.interiors):
            if Polygon(ring).area > 4.0:
                for part in _cut_ring(ring, caps):
                    yield heights.lift(part)


class _Heights:
    """The height of the nearest lane, for the borders, which are computed on the plane."""

    def __init__(self, road: RoadMap) -> None:
        self.points = np.concatenate([lane.shape for lane in road.lanes.values()])
        self.tree = None
        if self.points[:, 2].any():
            self.tree = shapely.STRtree([shapely.Point(x, y) for x, y, _ in self.points])

    def lift(self, line: np.ndarray) -> np.ndarray:
        """Return a line (n, 2) as (n, 3)."""
        height = np.zeros(len(line)) if self.tree is None else self.points[self.tree.nearest(shapely.points(line)), 2]
        return np.concatenate((line, height[:, None]), axis=1)


def _open_ends(road: RoadMap, root: ElementTree.Element) -> MultiLineString:
    """Return the lines across the lanes where the network ends."""
    dead = {junction.get("id") for junction in root.iter("junction") if junction.get("type") == "dead_end"}
    caps = []
    for edge in root.iter("edge"):
        for name in road.edge.get(edge.attrib["id"], []):
            lane = road.lanes[name]
            borders = [_offset(lane.shape, side * (lane.width / 2 + 0.3))[:, :2] for side in (-1, 1)]
            caps += [[border[place] for border in borders] for place, end in ((0, "from"), (-1, "to")) if edge.get(end) in dead]
    return MultiLineString(caps)


def _cut_ring(ring: shapely.LinearRing, caps: MultiLineString) -> Iterable[np.ndarray]:
    """Yield the parts (n, 2) of a ring that do not lie on `caps`."""
    points = shapely.get_coordinates(shapely.segmentize(ring, 0.5))
    if caps.is_empty:
        yield points
        return
    kept = np.asarray(shapely.distance(shapely.points(points), caps)) > 0.35
    if kept.all():
        yield points
        return
    points, kept = points[:-1], kept[:-1]
    turn = int(np.flatnonzero(~kept)[0])
    points, kept = np.roll(points, -turn, axis=0), np.roll(kept, -turn)
    change = np.flatnonzero(np.diff(np.concatenate(([False], kept, [False])).astype(int)))
    for first, last in change.reshape(-1, 2):
        if last - first > 2:
            yield points[first:last]


@dataclass(frozen=True)
class LaneUse:
    """Which lanes (indices from the right) a vehicle took on an edge, and at which share of its length it changed; None: open."""

    entry: int
    leaving: int | None
    change: float


def route_centreline(road: RoadMap, edges: list[str], used: dict[int, LaneUse]) -> np.ndarray:
    """Return the centreline (n, 3) along the lanes of a route.

    Where it is known which lanes the vehicle took it follows these, elsewhere those that need the fewest lane changes; the
    cheapest sequence is found by dynamic programming over (edge, lane). Where the lane changes, it glides to the other one.

    Args:
        road: the network.
        edges: edge ids of the route in order; it ends early where the network does not connect two of them.
        used: by place in `edges`, what is known.
    """
    best: list[dict[int, tuple[float, int, int, list[str]]]] = []
    for place, edge in enumerate(edges):
        known, lanes = used.get(place), road.edge[edge]
        reach: dict[int, tuple[float, int, list[str]]] = {}
        if place == 0:
            reach = {lane: (0.0, -1, []) for lane in range(len(lanes)) if road.lanes[lanes[lane]].kind == PolylineKind.LANE}
        else:
            for before, (cost, *_) in best[-1].items():
                for after, through in road.ways[road.edge[edges[place - 1]][before]]:
                    if after in lanes and cost < reach.get(lanes.index(after), (np.inf,))[0]:
                        reach[lanes.index(after)] = (cost, before, through)
        options: dict[int, tuple[float, int, int, list[str]]] = {}
        for entry, (cost, before, through) in reach.items():
            cost += 100.0 * (known is not None and known.entry != entry)
            for leaving, name in enumerate(lanes):
                price = cost + abs(leaving - entry) + 100.0 * (known is not None and known.leaving not in (None, leaving))
                if road.lanes[name].kind == PolylineKind.LANE and price < options.get(leaving, (np.inf,))[0]:
                    options[leaving] = (price, entry, before, through)
        if not options:
            break
        best.append(options)
    if not best:
        raise ValueError(f"no lane for vehicles on edge {edges[0]!r}, wanted a route along driveable lanes")
    parts: list[np.ndarray] = []
    leaving = min(best[-1], key=lambda lane: best[-1][lane][0])
    for place in range(len(best) - 1, -1, -1):
        _, entry, before, through = best[place][leaving]
        change = used[place].change if place in used else 0.5
        first, last = (road.lanes[road.edge[edges[place]][lane]].shape for lane in (entry, leaving))
        parts.append(first if entry == leaving else _glide(first, last, change))
        parts += [road.lanes[name].shape for name in reversed(through)]
        leaving = before
    return np.concatenate(parts[::-1])


def _glide(first: np.ndarray, last: np.ndarray, change: float) -> np.ndarray:
    """Return a line that passes smoothly from one lane to its neighbour, over 40 m around the share `change` of its length."""
    length = max(float(np.linalg.norm(np.diff(first[:, :2], axis=0), axis=1).sum()), 1.0)
    count = max(int(length / 2), 8) + 1
    a, b = (_even(line, count) for line in (first, last))
    half = min(20.0 / length, 0.5)
    share = np.clip((np.linspace(0, 1, count) - np.clip(change, half, 1 - half) + half) / (2 * half), 0, 1)
    weight = (share * share * (3 - 2 * share))[:, None]
    return a * (1 - weight) + b * weight


def _even(line: np.ndarray, count: int) -> np.ndarray:
    arc = np.concatenate(([0.0], np.linalg.norm(np.diff(line[:, :2], axis=0), axis=1).cumsum()))
    wanted = np.linspace(0, arc[-1], count)
    return np.stack([np.interp(wanted, arc, line[:, column]) for column in range(3)], axis=1)
