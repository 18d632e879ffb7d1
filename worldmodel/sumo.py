"""Generated scenes: SUMO drives traffic through a network, and windows of it become a `Scene` each.

A network is one of our templates (`TEMPLATES`, drawn anew from every seed, see `networks.py`) or a user's .sumocfg. After a
warm-up the simulation is recorded at 10 Hz, and several egos are picked out of every recorded window, with a liking for those
that move and have others near; about one in ten never moves, mostly at a red light. `Scene.recipe` says how to start the same
moment again, which is what `SumoWorld` does.

What a scene holds: the (at most) 64 agents nearest to the ego within 80 m, the map within 120 m of where the ego drives (at most
256 polylines, the nearest), the signals there, and the centreline of the ego's route. Positions count from a whole number of
metres near the ego, so that float32 is fine enough.

Signals: a lane whose ways through the junction always show the same has one signal, which controls that lane's last polyline.
Where they differ (a left turn with its own phase) every way has its own signal, which controls the first polyline of the lane in
the junction. Either way the stop point is the end of the lane before the junction.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .networks import TEMPLATES
from .scene import HISTORY_STEPS, TIME_STEP, AgentKind, PolylineKind, Scene, make_scene
from .sumo_map import LETTER_STATES, POINTS, LaneUse, RoadMap, read_road_map, route_centreline
from .sumo_process import RECIPE_VERSION, MissingDependencyError, Simulation, require_sumo, source_inputs
from .sumo_world import SumoWorld

__all__ = ["TEMPLATES", "MissingDependencyError", "SumoWorld", "generate", "require_sumo"]

AGENT_RADIUS, MOST_AGENTS = 80.0, 64
MAP_RADIUS, MOST_POLYLINES = 120.0, 256
ROUTE_SPACING, FEWEST_ROUTE_POINTS = 2.0, 128
_FARTHER = np.array([1.0, 1.0, 1.5, 2.0, 1.0, 1.5, 1.0])
"""By `PolylineKind`: how much less a polyline matters, where there are too many of them."""

SEEDS_APART = 10_000
"""Simulations of one seed are numbered from seed * SEEDS_APART on, so that different seeds share no network."""


def generate(source: str | Path, seed: int, scenes: int, *, steps: int = 111, egos: int = 2, windows: int = 2) -> Iterator[Scene]:
    """Simulate traffic and yield `scenes` scenes (B = 1 each).

    The same arguments give the same scenes. Each simulation runs to its end before its scenes are handed out, so that several
    such iterators can be used in turn in one process.

    Args:
        source: one of `TEMPLATES`, or the path of a .sumocfg.
        seed: of networks and traffic; each simulation draws another network (with a .sumocfg: other random numbers).
        scenes: how many.
        steps: T, of 0.1 s; the present is step HISTORY_STEPS.
        egos: how many scenes one recorded window gives at most.
        windows: how many windows one simulation gives.

    Raises:
        ValueError: unknown template, a number out of range, netconvert or SUMO refuse their input.
        FileNotFoundError: the .sumocfg or a file that it names is not there.
        MissingDependencyError: SUMO is not installed.
        RuntimeError: SUMO is in use in this process.
        ValueError: there is no traffic to pick an ego from.
    """
    for name, value, least in (
        ("seed", seed, 0),
        ("scenes", scenes, 1),
        ("steps", steps, HISTORY_STEPS + 1),
        ("egos", egos, 1),
        ("windows", windows, 1),
    ):
        if value < least:
            raise ValueError(f"{name}: found {value}, wanted at least {least}")
    require_sumo()
    is_config = Path(source).suffix == ".sumocfg"
    if is_config and not Path(source).is_file():
        raise FileNotFoundError(f"{source}: there is no such file: give the path of a .sumocfg or one of {', '.join(TEMPLATES)}")
    if not is_config and source not in TEMPLATES:
        raise ValueError(f"unknown network template {str(source)!r}: known are {', '.join(TEMPLATES)}, or give a .sumocfg file")
    return _generate(str(Path(source).resolve()) if is_config else str(source), seed, scenes, steps, egos, windows)


def _generate(source: str, seed: int, scenes: int, steps: int, egos: int, windows: int) -> Iterator[Scene]:
    made = empty = 0
    number = seed * SEEDS_APART
    while made < scenes:
        found = _simulate(source, number, steps, egos, windows)
        empty = 0 if found else empty + 1
        if empty == 5:
            raise ValueError(
                f"{source}: no car stays in the network for {steps} steps of 0.1 s: take fewer steps or more traffic"
            )
        yield from found[: scenes - made]
        made += len(found)
        number += 1


def _agent_kind(vehicle_class: str) -> AgentKind:
    """Return the kind of SUMO's vehicle class."""
    return {"pedestrian": AgentKind.PEDESTRIAN, "bicycle": AgentKind.CYCLIST}.get(vehicle_class, AgentKind.VEHICLE)


def _simulate(source: str, number: int, steps: int, egos: int, windows: int) -> list[Scene]:
    """Run one simulation and return its scenes, one of every window before the second of any: they show more."""
    random = np.random.default_rng([number, *source.encode()])
    is_template = source in TEMPLATES
    origin = {"template" if is_template else "config": source, "seed": number}
    name = f"sumo/{source if is_template else Path(source).parent.name + '-' + Path(source).stem}/{number}"
    made: list[list[Scene]] = []
    with tempfile.TemporaryDirectory(prefix="worldloop-") as folder:
        inputs = source_inputs(origin, Path(folder))
        road = read_road_map(inputs.network)
        with Simulation(inputs, number) as simulation:
            lights = _Lights(road, simulation)
            tick = int(random.integers(400, 900))
            simulation.tick(tick)
            for _ in range(windows):
                window = _record(simulation, tick + 1, steps)
                made.append(
                    [
                        _make_scene(f"{name}/{window.begin}/{window.ids[ego]}", origin, road, lights, window, ego, simulation)
                        for ego in _pick_egos(window, egos, random)
                    ]
                )
                pause = int(random.integers(20, 80))
                simulation.tick(pause)
                tick += steps + pause
    return [scene for rank in zip_longest(*made) for scene in rank if scene is not None]


@dataclass(frozen=True)
class _Window:
    """A recorded stretch: n agents in order of appearance, T steps.

    Attributes:
        begin: SUMO tick of step 0.
        pose: (n, T, 4) x, y, z, heading; velocity: (n, T, 2); valid: (n, T); size: (n, 3); kind: (n,).
        lane: (n, T) lane ids.
        shown: what every traffic light showed at each step.
    """

    begin: int
    ids: list[str]
    pose: np.ndarray
    velocity: np.ndarray
    valid: np.ndarray
    size: np.ndarray
    kind: np.ndarray
    lane: np.ndarray
    shown: list[dict[str, str]]


def _record(simulation: Simulation, begin: int, steps: int) -> _Window:
    """Record `steps` steps from tick `begin` on; the tick before it only serves the velocity of step 0."""
    place: dict[str, int] = {}
    frames, shown = [simulation.observe(lanes=True)], []
    for _ in range(steps):
        simulation.tick()
        frames.append(simulation.observe(lanes=True))
        shown.append(simulation.signals())
    rows = [[place.setdefault(name, len(place)) for name in frame.ids] for frame in frames]
    pose, valid = np.zeros((len(place), steps + 1, 4)), np.zeros((len(place), steps + 1), dtype=bool)
    lane = np.full((len(place), steps + 1), "", dtype=object)
    for step, (row, frame) in enumerate(zip(rows, frames, strict=True)):
        pose[row, step], valid[row, step], lane[row, step] = frame.pose, True, frame.lane
    velocity = np.zeros((len(place), steps + 1, 2))
    known = valid[:, 1:] & valid[:, :-1]
    velocity[:, 1:][known] = (np.diff(pose[..., :2], axis=1) / TIME_STEP)[known]
    entered = valid[:, :-1] & np.concatenate((np.ones_like(valid[:, :1]), ~valid[:, :-2]), axis=1) & valid[:, 1:]
    velocity[:, :-1][entered] = velocity[:, 1:][entered]
    bodies = [simulation.body(name) for name in place]
    return _Window(
        begin=begin,
        ids=list(place),
        pose=pose[:, 1:],
        velocity=velocity[:, 1:],
        valid=valid[:, 1:],
        size=np.array([body[:3] for body in bodies]).reshape(-1, 3),
        kind=np.array([_agent_kind(body[3]) for body in bodies], dtype=np.int64),
        lane=lane[:, 1:],
        shown=shown,
    )


def _pick_egos(window: _Window, most: int, random: np.random.Generator) -> np.ndarray:
    """Return agents to be egos: cars that stay throughout, rather those that move and have others within 30 m."""
    is_car = (window.kind == AgentKind.VEHICLE) & (window.size[:, 0] >= 3) & (window.size[:, 0] <= 6)
    able = np.flatnonzero(is_car & window.valid.all(axis=1))
    if not len(able):
        return able
    now = window.pose[:, HISTORY_STEPS, :2]
    near = np.linalg.norm(now[able][:, None] - now[None], axis=-1) < 30
    company = (near & window.valid[None, :, HISTORY_STEPS]).sum(axis=1) - 1
    moved = np.linalg.norm(window.pose[able, -1, :2] - window.pose[able, 0, :2], axis=-1) > 5
    weight = (1.0 + np.minimum(company, 10)) * np.where(moved, 1.0, 0.15)
    return random.choice(able, size=min(most, len(able)), replace=False, p=weight / weight.sum())


class _Lights:
    """The signals of a network, as the module's text defines them."""

    def __init__(self, road: RoadMap, simulation: Simulation) -> None:
        phases = simulation.signal_phases()
        ways: dict[str, list[Any]] = {}
        for light in road.lights:
            if light.before in road.piece and all(light.link < len(phase) for phase in phases.get(light.light, [""])):
                ways.setdefault(light.before, []).append(light)
        self.link: list[tuple[str, int]] = []
        piece, position, heading = [], [], []
        for lane, lights in ways.items():
            course = {tuple(int(LETTER_STATES[ord(phase[way.link])]) for phase in phases[way.light]) for way in lights}
            alike = len(course) == 1
            end = road.lanes[lane].shape
            for way in lights[:1] if alike else lights:
                self.link.append((way.light, way.link))
                piece.append(road.piece[lane][1] if alike else road.piece[way.through][0])
                position.append(end[-1])
                heading.append(np.arctan2(*(end[-1] - end[-2])[1::-1]))
        self.piece = np.array(piece, dtype=np.int64)
        self.position, self.heading = np.array(position).reshape(-1, 3), np.array(heading)

    def states(self, which: np.ndarray, shown: list[dict[str, str]]) -> np.ndarray:
        """Return the `SignalState` (S, T) of the signals `which` (S,)."""
        letters = [[ord(step[light][link]) for step in shown] for light, link in (self.link[place] for place in which)]
        return LETTER_STATES[np.array(letters, dtype=np.int64).reshape(len(which), len(shown))]


def _make_scene(
    name: str, origin: dict[str, Any], road: RoadMap, lights: _Lights, window: _Window, ego: int, simulation: Simulation
) -> Scene:
    """Cut the scene around one ego out of a window."""
    path = window.pose[ego, :, :2]
    offset = np.array([*np.floor(path[HISTORY_STEPS]), 0.0])
    distance = np.where(window.valid, np.linalg.norm(window.pose[..., :2] - path, axis=-1), np.inf)
    now = window.valid[:, HISTORY_STEPS]
    rank = np.where(now, distance[:, HISTORY_STEPS], distance.min(axis=1) + AGENT_RADIUS)
    rank[ego] = -1.0
    order = np.argsort(rank, kind="stable")[:MOST_AGENTS]
    agents = order[distance[order].min(axis=1) <= AGENT_RADIUS]
    pieces = _crop(road, path)
    place = np.full(len(road.point), -1)
    place[pieces] = np.arange(len(pieces))
    link = place[road.link]
    linked = (link >= 0).all(axis=1)
    signals = np.flatnonzero(place[lights.piece] >= 0) if len(lights.piece) else np.zeros(0, dtype=np.int64)
    route = _route(road, window, ego, *simulation.route(window.ids[ego])) - offset
    valid = window.valid[agents]
    mask, points = valid[..., None], np.arange(POINTS) < road.count[pieces, None]
    is_lane = np.isin(road.kind[pieces], (PolylineKind.LANE, PolylineKind.JUNCTION_LANE, PolylineKind.BIKE_LANE))
    recipe = {
        "version": RECIPE_VERSION,
        "source": origin,
        "begin": window.begin,
        "ego": window.ids[ego],
        "offset": offset[:2].tolist(),
        "agents": [window.ids[agent] for agent in agents],
        "signals": [lights.link[signal] for signal in signals],
    }
    arrays = {
        "position": np.where(mask, window.pose[agents, :, :3] - offset, 0),
        "heading": np.where(valid, window.pose[agents, :, 3], 0),
        "velocity": np.where(mask, window.velocity[agents], 0),
        "valid": valid,
        "size": window.size[agents],
        "kind": window.kind[agents],
        "ego": np.array(0),
        "polyline": np.where(points[..., None], road.point[pieces] - offset, 0),
        "polyline_valid": points,
        "polyline_kind": road.kind[pieces],
        "lane_width": road.width[pieces],
        "speed_limit": np.where(is_lane, road.speed[pieces], 0),
        "speed_limit_valid": is_lane & (road.speed[pieces] > 0),
        "lane_link": link[linked],
        "lane_link_kind": road.link_kind[linked],
        "lane_link_valid": np.ones(int(linked.sum()), dtype=bool),
        "signal_position": lights.position[signals] - offset,
        "signal_lane": place[lights.piece[signals]],
        "signal_heading": lights.heading[signals],
        "signal_state": lights.states(signals, window.shown),
        "signal_valid": np.ones((len(signals), len(window.shown)), dtype=bool),
        "route": route,
        "route_valid": np.ones(len(route), dtype=bool),
    }
    return make_scene(
        name, recipe=json.dumps(recipe), **{key: torch.from_numpy(np.asarray(value)) for key, value in arrays.items()}
    )


def _crop(road: RoadMap, path: np.ndarray) -> np.ndarray:
    """Return the pieces near the way (T, 2) of the ego, in the network's order."""
    way = path[::5]
    low, high = way.min(axis=0) - MAP_RADIUS, way.max(axis=0) + MAP_RADIUS
    able = np.flatnonzero(((road.point[:, 0, :2] > low - 30) & (road.point[:, 0, :2] < high + 30)).all(axis=1))
    points = road.point[able, :, :2]
    distance = np.linalg.norm(points[:, :, None] - way, axis=-1).min(axis=2)
    distance = np.where(np.arange(POINTS) < road.count[able, None], distance, np.inf).min(axis=1)
    able, distance = able[distance <= MAP_RADIUS], distance[distance <= MAP_RADIUS]
    nearest = np.argsort(distance * _FARTHER[road.kind[able]], kind="stable")[:MOST_POLYLINES]
    return np.sort(able[nearest])


def _route(road: RoadMap, window: _Window, ego: int, edges: list[str], index: int) -> np.ndarray:
    """Return the centreline (R, 3) of the ego's route every 2 m, where its edges reach so far.

    It begins 20 m behind step 0 and ends at least 150 m ahead of the present and 50 m beyond the log.
    """
    used = _lane_uses(road, window, ego, edges, index)
    first = max(min(used, default=index) - 3, 0)
    length = lambda name: float(np.linalg.norm(np.diff(road.lanes[name].shape[:, :2], axis=0), axis=1).sum())  # noqa: E731
    last, ahead = max(used, default=index), 0.0
    while last + 1 < len(edges) and ahead < 200.0:
        last += 1
        ahead += length(road.edge[edges[last]][0])
    line = route_centreline(road, edges[first : last + 1], {place - first: use for place, use in used.items()})
    arc = np.concatenate(([0.0], np.linalg.norm(np.diff(line[:, :2], axis=0), axis=1).cumsum()))
    grid = np.arange(0.0, arc[-1], 0.5)
    dense = np.stack([np.interp(grid, arc, line[:, column]) for column in range(3)], axis=1)
    gap = np.linalg.norm(dense[:, :2] - window.pose[ego, 0, :2], axis=1)
    begin = max(grid[int(np.argmax(gap <= gap.min() + 0.5))] - 20.0, 0.0)
    driven = np.linalg.norm(np.diff(window.pose[ego, :, :2], axis=0), axis=1)
    needed = 20.0 + max(driven.sum() + 60.0, driven[:HISTORY_STEPS].sum() + 160.0)
    count = max(FEWEST_ROUTE_POINTS, int(np.ceil(needed / ROUTE_SPACING)) + 1)
    wanted = begin + ROUTE_SPACING * np.arange(count)
    wanted = wanted[wanted <= max(arc[-1], begin + ROUTE_SPACING)]
    return np.stack([np.interp(wanted, arc, line[:, column]) for column in range(3)], axis=1)


def _lane_uses(road: RoadMap, window: _Window, ego: int, edges: list[str], index: int) -> dict[int, LaneUse]:
    """Return, by place in the route, which lanes the ego took in the window; `index` is its place at the window's end."""
    runs: list[tuple[str, list[int]]] = []
    for step, lane in enumerate(window.lane[ego]):
        if lane and not lane.startswith(":"):
            edge = lane.rsplit("_", 1)[0]
            if not runs or runs[-1][0] != edge:
                runs.append((edge, []))
            runs[-1][1].append(step)
    uses: dict[int, LaneUse] = {}
    place = index + 1
    for edge, taken in reversed(runs):
        earlier = [number for number in range(min(place, len(edges))) if edges[number] == edge]
        if not earlier:
            break
        gone = bool(uses) or window.lane[ego, -1].startswith(":")
        place = earlier[-1]
        names = [window.lane[ego, step] for step in taken]
        entry, leaving = (road.edge[edge].index(name) for name in (names[0], names[-1]))
        changes = [step for step, name, former in zip(taken[1:], names[1:], names[:-1], strict=True) if name != former]
        share = _share(road, names[-1], window.pose[ego, changes[-1] if changes else taken[-1], :2])
        if not gone and not changes:
            share = (share + 1) / 2
        uses[place] = LaneUse(entry, leaving if gone else None, share)
    return uses


def _share(road: RoadMap, lane: str, point: np.ndarray) -> float:
    """Return at which share of a lane's length a point lies, to the nearest metre or so."""
    line = np.stack(
        [
            np.interp(np.linspace(0, 1, 201), np.linspace(0, 1, len(road.lanes[lane].shape)), column)
            for column in road.lanes[lane].shape[:, :2].T
        ],
        axis=1,
    )
    arc = np.concatenate(([0.0], np.linalg.norm(np.diff(line, axis=0), axis=1).cumsum()))
    return float(arc[np.linalg.norm(line - point, axis=1).argmin()] / max(arc[-1], 1e-6))
