"""Waymo Open Motion Dataset: TFRecord files of `Scenario` messages (`waymo_records.py`), many scenarios a file.

Row i of a scene's agents is track i of the scenario, and tracks stand as they were recorded, not smoothed: they come from an
offline tracker, and the sim agents challenge scores against them as they are. The origin is moved near to the ego, since float32
resolves 1 mm at the 20 km that coordinates reach. Size: that of the valid step nearest to the present. Stop signs, speed bumps,
driveways and the paint of road lines have no place in a `Scene` and are left out, as are lanes of a single point and signals of
lanes that are not in the map.

Ettinger et al., Large Scale Interactive Motion Forecasting for Autonomous Driving: The Waymo Open Motion Dataset, ICCV 2021.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import shapely
import torch
from torch import Tensor

from ..scene import HISTORY_STEPS, TIME_STEP, AgentKind, LaneLinkKind, PolylineKind, Scene, SignalState, make_scene
from .lane_graph import Lane, LaneGraph, Neighbour, closed_outline, mark_crossings, thin_line
from .shards import DataError, Skipped
from .waymo_records import parse_scenario, read_records

PATTERNS = ("*.tfrecord", "*.tfrecord-*-of-*")
"""How files of this format are called."""

KINDS = {1: AgentKind.VEHICLE, 2: AgentKind.PEDESTRIAN, 3: AgentKind.CYCLIST, 4: AgentKind.OBJECT}
"""By `Track.ObjectType`; 0 is "unset", which scenario.proto calls an error."""

LANE_KINDS = {0: PolylineKind.LANE, 1: PolylineKind.LANE, 2: PolylineKind.LANE, 3: PolylineKind.BIKE_LANE}
"""By `LaneCenter.LaneType`: undefined, freeway, surface street, bike lane."""

STATES = {
    **dict.fromkeys((0, 7, 8), SignalState.UNKNOWN),
    **dict.fromkeys((1, 4), SignalState.STOP),
    **dict.fromkeys((2, 5), SignalState.CAUTION),
    **dict.fromkeys((3, 6), SignalState.GO),
}
"""By `TrafficSignalLaneState.State`; 1 to 3 are arrows, 7 and 8 flash red and yellow."""

FEATURES = ("lane", "road_line", "road_edge", "stop_sign", "crosswalk", "speed_bump", "driveway")

METRES_PER_SECOND = 0.44704
"""One mile an hour."""

USUAL_WIDTH = {PolylineKind.LANE: 3.5, PolylineKind.BIKE_LANE: 1.5}
PLAUSIBLE_WIDTH = {PolylineKind.LANE: (2.2, 6.0), PolylineKind.BIKE_LANE: (0.8, 3.0)}
"""Metres. The data has no lane widths: see `_widths`."""


def read_file(file: Path) -> Iterator[Scene | Skipped]:
    """Yield the scene `waymo/<scenario id>` of every record, or why it is left out.

    Raises:
        DataError: the file is damaged or foreign, or a scenario breaks the format; the message names the record, from 0.
    """
    for number, data in enumerate(read_records(file)):
        where = f"{file}: record {number}"
        try:
            scenario = parse_scenario(data)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        yield read_scenario(scenario, f"waymo/{scenario.scenario_id or f'{file.name}-{number}'}", where)


def read_scenario(scenario: Any, id: str, where: str) -> Scene | Skipped:
    """Return the scene called `id` of a `Scenario` message, or why it is left out; `where` begins messages.

    Raises:
        DataError: the scenario breaks the format.
    """
    steps, ego = len(scenario.timestamps_seconds), scenario.sdc_track_index
    try:
        _check(scenario)
        if steps <= HISTORY_STEPS:
            return Skipped(where, f"{steps} steps, wanted at least {HISTORY_STEPS + 1}")
        if scenario.current_time_index != HISTORY_STEPS:
            return Skipped(where, f"its present is step {scenario.current_time_index}, wanted {HISTORY_STEPS}")
        if not scenario.tracks[ego].states[HISTORY_STEPS].valid:
            return Skipped(where, f"its ego is not valid at the present (step {HISTORY_STEPS})")
        present = scenario.tracks[ego].states[HISTORY_STEPS]
        origin = np.array([np.floor(present.center_x), np.floor(present.center_y), 0.0])
        graph = lane_graph(scenario.map_features, origin)
        tracks = _tracks(scenario, origin)
        seen = tracks["valid"][ego]
        ground = tracks["position"][ego] - torch.tensor([0.0, 0.0, 0.5]) * tracks["size"][ego, 2]
        return make_scene(
            id,
            recipe="",
            ego=torch.tensor(ego),
            to_predict=_named(scenario),
            route=graph.route(ground[seen], tracks["heading"][ego][seen]),
            **tracks,
            **graph.tensors(),
            **_signals(scenario.dynamic_map_states, graph, origin, steps),
        )
    except ValueError as error:
        raise DataError(f"{where}: {id} cannot be used ({error}): leave the file out") from error


def _check(scenario: Any) -> None:
    """Raise ValueError unless the scenario's parts fit together."""
    time, steps = np.array(scenario.timestamps_seconds), len(scenario.timestamps_seconds)
    if not 0 <= scenario.sdc_track_index < len(scenario.tracks):
        raise ValueError(f"found the ego's index {scenario.sdc_track_index} and {len(scenario.tracks)} tracks: it has no ego")
    if len(scenario.dynamic_map_states) not in (0, steps):
        raise ValueError(f"found {len(scenario.dynamic_map_states)} dynamic map states for {steps} timestamps")
    if steps > 1 and np.abs(np.diff(time) - TIME_STEP).max() > 0.3 * TIME_STEP:
        raise ValueError(f"found steps from {np.diff(time).min():.3f} to {np.diff(time).max():.3f} s, wanted {TIME_STEP} s")
    for index, track in enumerate(scenario.tracks):
        if len(track.states) != steps:
            raise ValueError(f"track {index}: found {len(track.states)} states for {steps} timestamps")
        if track.object_type not in KINDS:
            raise ValueError(f"track {index}: found object type {track.object_type}, known are {', '.join(map(str, KINDS))}")


def _named(scenario: Any) -> Tensor:
    """Return which tracks (A,) the scenario names to be predicted.

    Raises:
        ValueError: one of them is not there.
    """
    named = [entry.track_index for entry in scenario.tracks_to_predict]
    if wrong := [index for index in named if not 0 <= index < len(scenario.tracks)]:
        raise ValueError(f"tracks_to_predict names track {wrong[0]}, found {len(scenario.tracks)} tracks")
    return torch.zeros(len(scenario.tracks), dtype=torch.bool).index_fill(0, torch.tensor(named, dtype=torch.int64), True)


def _tracks(scenario: Any, origin: np.ndarray) -> dict[str, Tensor]:
    """Return the fields of the agents, and zeros where they were not seen."""
    names = ("center_x", "center_y", "center_z", "velocity_x", "velocity_y", "length", "width", "height", "heading", "valid")
    states = [[[getattr(state, name) for name in names] for state in track.states] for track in scenario.tracks]
    values = torch.tensor(states, dtype=torch.float64)
    valid = values[..., 9] > 0
    values[..., :3] -= torch.from_numpy(origin)
    values = torch.where(valid[..., None], values, 0.0).float()
    away = (torch.arange(values.shape[1]) - HISTORY_STEPS).abs()
    nearest = torch.where(valid, away, len(away)).argmin(dim=-1)
    return {
        "position": values[..., :3],
        "velocity": values[..., 3:5],
        "heading": values[..., 8],
        "valid": valid,
        "size": values[torch.arange(len(values)), nearest, 5:8],
        "kind": torch.tensor([KINDS[track.object_type] for track in scenario.tracks]),
    }


def _points(points: Iterable[Any], origin: np.ndarray) -> Tensor:
    """Return map points as (N, 3) metres from `origin`."""
    rows = np.array([(point.x, point.y, point.z) for point in points]).reshape(-1, 3)
    return torch.from_numpy(rows - origin).float()


def lane_graph(features: Iterable[Any], origin: np.ndarray) -> LaneGraph:
    """Return the lanes and all other lines of a map, `origin` (3,) at zero.

    Raises:
        ValueError: a feature is of an unknown kind, or two have the same id.
    """
    lanes: dict[str, Lane] = {}
    messages: dict[str, Any] = {}
    borders: dict[str, Tensor] = {}
    others: list[tuple[Tensor, PolylineKind]] = []
    for feature in features:
        kind, name = next((kind for kind in FEATURES if feature.HasField(kind)), None), str(feature.id)
        if kind is None:
            raise ValueError(f"map feature {name} is none of {', '.join(FEATURES)}")
        if name in messages:
            raise ValueError(f"two map features have the id {name}")
        messages[name] = content = getattr(feature, kind)
        if kind == "lane" and len(content.polyline) > 1:
            lanes[name] = _lane(name, content, _points(content.polyline, origin))
        elif kind in ("road_line", "road_edge") and len(content.polyline) > 1:
            borders[name] = _points(content.polyline, origin)
            others.append(
                (thin_line(borders[name]), PolylineKind.ROAD_EDGE if kind == "road_edge" else PolylineKind.LANE_MARKING)
            )
        elif kind == "crosswalk" and len(content.polygon) > 2:
            others.append((closed_outline(_points(content.polygon, origin)), PolylineKind.CROSSWALK))
    lengths = {name: _length_shares(lane.centre) for name, lane in lanes.items()}
    for name, lane in lanes.items():
        lane.neighbours = _neighbours(messages[name], lengths[name], lengths)
    _widths(lanes, messages, borders)
    mark_crossings(lanes.values())
    return LaneGraph(lanes, others)


def _lane(name: str, content: Any, centre: Tensor) -> Lane:
    if content.type not in LANE_KINDS:
        raise ValueError(f"lane {name}: found type {content.type}, known are {', '.join(map(str, LANE_KINDS))}")
    kind = LANE_KINDS[content.type]
    return Lane(
        id=name,
        centre=centre,
        width=USUAL_WIDTH[kind],
        kind=PolylineKind.JUNCTION_LANE if content.interpolating and kind == PolylineKind.LANE else kind,
        speed_limit=METRES_PER_SECOND * content.speed_limit_mph if content.speed_limit_mph > 0 else None,
        successors=[str(other) for other in content.exit_lanes],
        predecessors=[str(other) for other in content.entry_lanes],
    )


def _neighbours(content: Any, own: np.ndarray, lengths: dict[str, np.ndarray]) -> list[Neighbour]:
    """Return the lanes to change to; the stretches, given as indices of points, become shares of length (`_length_shares`)."""

    def stretch(shares: np.ndarray, start: int, end: int) -> tuple[float, float]:
        first, last = (float(shares[min(max(index, 0), len(shares) - 1)]) for index in (start, end))
        return first, last

    return [
        Neighbour(
            str(entry.feature_id),
            side,
            stretch(own, entry.self_start_index, entry.self_end_index),
            stretch(lengths[str(entry.feature_id)], entry.neighbor_start_index, entry.neighbor_end_index),
        )
        for side, entries in ((LaneLinkKind.LEFT, content.left_neighbors), (LaneLinkKind.RIGHT, content.right_neighbors))
        for entry in entries
        if str(entry.feature_id) in lengths
    ]


def _length_shares(line: Tensor) -> np.ndarray:
    """Return which share of the length of a line (N, 3) lies before each of its points (N,)."""
    arc = np.concatenate(([0.0], np.hypot(*np.diff(line[:, :2].numpy(), axis=0).T).cumsum()))
    return arc / max(arc[-1], 1e-6)


def _widths(lanes: dict[str, Lane], messages: dict[str, Any], borders: dict[str, Tensor]) -> None:
    """Give every lane the width that follows from the lines beside it.

    That is the sum of the median distances of its points from the boundaries on its left and on its right, or twice the one where
    only one side has any. A lane without (those in junctions have none) or with an implausible result takes the mean of the lanes
    that it joins, and the usual width where they have none either.
    """
    known: dict[str, float] = {}
    for name, lane in lanes.items():
        sides = [
            np.median(np.concatenate(offsets))
            for boundaries in (messages[name].left_boundaries, messages[name].right_boundaries)
            if (offsets := [offset for boundary in boundaries for offset in _offsets(lane.centre, boundary, borders)])
        ]
        kind = PolylineKind.BIKE_LANE if lane.kind == PolylineKind.BIKE_LANE else PolylineKind.LANE
        width = float(sum(sides)) * 2 / max(len(sides), 1)
        least, most = PLAUSIBLE_WIDTH[kind]
        if least <= width <= most:
            known[name] = width
    for name, lane in lanes.items():
        joined = [known[other] for other in (*lane.predecessors, *lane.successors) if other in known]
        lane.width = known.get(name, float(np.mean(joined)) if joined else lane.width)


def _offsets(centre: Tensor, boundary: Any, borders: dict[str, Tensor]) -> list[np.ndarray]:
    """Return the distances (n,) of the lane's points from the boundary that belongs to them, [] if it is not there."""
    line = borders.get(str(boundary.boundary_feature_id))
    points = centre[max(boundary.lane_start_index, 0) : boundary.lane_end_index + 1, :2]
    if line is None or not len(points):
        return []
    return [np.asarray(shapely.distance(shapely.points(points.numpy()), shapely.LineString(line[:, :2].numpy())))]


def _signals(states: Iterable[Any], graph: LaneGraph, origin: np.ndarray, steps: int) -> dict[str, Tensor]:
    """Return the signal fields, one signal for each lane that ever has one; a step in which it is not listed is not valid."""
    rows: dict[str, tuple[Tensor, float, int]] = {}
    seen: dict[tuple[str, int], SignalState] = {}
    for step, moment in enumerate(states):
        for entry in moment.lane_states:
            name = str(entry.lane)
            if name not in graph.lanes or not graph.lanes[name].pieces:
                continue
            if entry.state not in STATES:
                raise ValueError(f"signal of lane {name}: found state {entry.state}, known are {', '.join(map(str, STATES))}")
            seen[name, step] = STATES[entry.state]
            if name not in rows:
                given = _points([entry.stop_point], origin)[0] if entry.HasField("stop_point") else None
                rows[name] = graph.stop_at(name, given)
    if not rows:
        return {}
    number = {name: row for row, name in enumerate(rows)}
    state, valid = torch.zeros(len(rows), steps, dtype=torch.int64), torch.zeros(len(rows), steps, dtype=torch.bool)
    for (name, step), shown in seen.items():
        state[number[name], step], valid[number[name], step] = int(shown), True
    position, heading, piece = zip(*rows.values(), strict=True)
    return {
        "signal_position": torch.stack(position),
        "signal_heading": torch.tensor(heading),
        "signal_lane": torch.tensor(piece),
        "signal_state": state,
        "signal_valid": valid,
    }
