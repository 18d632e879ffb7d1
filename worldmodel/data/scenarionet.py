"""ScenarioNet scenarios: the dictionary of MetaDrive's `ScenarioDescription`, pickled (`.pkl`) or as JSON, plain or gzipped.

Pickles are read as plain data (`plain_pickle.py`); nothing in them is run. Two forms of the dictionary are known: the one with
`metadata` (MetaDrive 0.3 on) and the "old format" before it, which has `ts` and `sdc_track_index` (there the id of the ego's
track) at the top, arrays of one column, and polygons whose type its converter lost: these are left out, since nobody can tell a
crosswalk from a speed bump.

The origin is moved near to the ego, since float32 resolves 1 mm at the 20 km that coordinates reach. Logs are kept whole and as
they were recorded, jitter included, since scores on their source (Waymo Open Motion for most) are defined so. The present is step
10 of the log, whatever `current_time_index` says: that index is Waymo's for its cuts of 9 s, where it is 10, and logs of 20 s
lack it or repeat it. A scene has one signal for each controlled lane, at its `stop_point` (mostly where the lane begins). Signals
of lanes that the map does not hold are left out, and so are stop signs, speed bumps, driveways and the outlines of walkways, for
which a `Scene` has no place. Road edges are the file's; where it has none (nuPlan, nuScenes), they are the border of its lanes.

Li et al., ScenarioNet: Open-Source Platform for Large-Scale Traffic Scenario Simulation and Modeling, NeurIPS 2023.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import shapely
import torch
from torch import Tensor

from ..scene import HISTORY_STEPS, TIME_STEP, AgentKind, LaneLinkKind, PolylineKind, Scene, SignalState, make_scene
from .compressed import read_content
from .lane_graph import Lane, LaneGraph, Neighbour, closed_outline, mark_crossings, thin_line
from .lanelets import border
from .plain_pickle import RefusedPickleError, load_plain
from .shards import DataError, Skipped

PATTERNS = ("*.pkl", "*/*.pkl", "*.json", "*.json.gz")
"""How files of this format are called; ScenarioNet's converters put the pickles of each worker into a folder."""

INDEX_FILES = ("dataset_summary.pkl", "dataset_mapping.pkl")

MOST_STATES = 5_000_000
MOST_POINTS_OF_MAP = 5_000_000
"""Agents times steps, and points: some hundred times what a scenario of 20 s needs. More is no scenario."""

KINDS: dict[str, AgentKind] = {
    "VEHICLE": AgentKind.VEHICLE,
    "PEDESTRIAN": AgentKind.PEDESTRIAN,
    "CYCLIST": AgentKind.CYCLIST,
    **dict.fromkeys(("OTHER", "UNSET", "TRAFFIC_OBJECT", "TRAFFIC_CONE", "TRAFFIC_BARRIER"), AgentKind.OBJECT),
}

STATE_FIELDS = ("position", "heading", "velocity", "valid", "size", "length", "width", "height")

LANE_KINDS: dict[str, PolylineKind] = {
    "LANE_SURFACE_STREET": PolylineKind.LANE,
    "LANE_FREEWAY": PolylineKind.LANE,
    "LANE_UNKNOWN": PolylineKind.LANE,
    "LANE_SURFACE_UNSTRUCTURE": PolylineKind.JUNCTION_LANE,
    "LANE_BIKE_LANE": PolylineKind.BIKE_LANE,
}
EDGES = ("ROAD_EDGE_BOUNDARY", "ROAD_EDGE_MEDIAN")
MARKING = "ROAD_LINE_"
UNUSED = {"UNKNOWN", "UNKNOWN_LINE", "STOP_SIGN", "stop_sign", "SPEED_BUMP", "DRIVEWAY", "ROAD_EDGE_SIDEWALK"}

USUAL_WIDTH = {PolylineKind.BIKE_LANE: 1.5}
PLAUSIBLE_WIDTH = {PolylineKind.BIKE_LANE: (0.8, 3.0)}
"""Metres, of what is no bike lane 3.5 and (2.2, 6.0): see `_widths`."""

COLOURS: dict[str | None, SignalState] = {
    "LANE_STATE_UNKNOWN": SignalState.UNKNOWN,
    "LANE_STATE_STOP": SignalState.STOP,
    "LANE_STATE_ARROW_STOP": SignalState.STOP,
    "LANE_STATE_CAUTION": SignalState.CAUTION,
    "LANE_STATE_ARROW_CAUTION": SignalState.CAUTION,
    "LANE_STATE_GO": SignalState.GO,
    "LANE_STATE_ARROW_GO": SignalState.GO,
    "LANE_STATE_FLASHING_STOP": SignalState.UNKNOWN,
    "LANE_STATE_FLASHING_CAUTION": SignalState.UNKNOWN,
    "TRAFFIC_LIGHT_UNKNOWN": SignalState.UNKNOWN,
    "TRAFFIC_LIGHT_RED": SignalState.STOP,
    "TRAFFIC_LIGHT_YELLOW": SignalState.CAUTION,
    "TRAFFIC_LIGHT_GREEN": SignalState.GO,
}
"""Flashing signals bind nobody, as in `SignalState`."""

MPH = 0.44704
"""Metres per second."""


def read_file(file: Path) -> Iterator[Scene | Skipped]:
    """Yield the scene `scenarionet/<id>` of one scenario, or why it is left out.

    Raises:
        DataError: the file is truncated, foreign, too large, lacks a field, or is a pickle of other than plain data.
    """
    if file.name in INDEX_FILES:
        yield Skipped(file.name, "lists the scenarios of a folder and is none itself")
        return
    record = _load(file)
    try:
        yield _scene(record, file)
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{file}: cannot be used ({error}): correct the file or leave it out") from error
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise DataError(
            f"{file}: is no ScenarioNet scenario (field {error}): wanted id, tracks, map_features, dynamic_map_states, metadata"
        ) from error


def _load(file: Path) -> dict[str, Any]:
    """Return the dictionary that a file holds."""
    try:
        content = read_content(file)
        record = load_plain(content) if file.suffix == ".pkl" else json.loads(content)
    except RefusedPickleError as error:
        raise DataError(f"{file}: refused, it holds {error}: fetch the file again from someone you trust") from error
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: is no whole JSON, plain or gzipped ({error}): fetch the file again") from error
    if not isinstance(record, dict) or not {"id", "tracks", "map_features", "dynamic_map_states"} <= record.keys():
        raise DataError(f"{file}: is no ScenarioNet scenario: wanted id, tracks, map_features, dynamic_map_states and metadata")
    return record


def _scene(record: dict[str, Any], file: Path) -> Scene | Skipped:
    head = record.get("metadata", record)
    name = str(record["id"])
    if head.get("coordinate", "waymo") not in ("waymo", "metadrive"):
        raise DataError(
            f"{file}: scenario {name}: unknown coordinate system {head['coordinate']!r}: known are waymo and metadrive"
        )
    steps = _steps(np.asarray(head["ts"], dtype=np.float64), name, file)
    if steps <= HISTORY_STEPS:
        return Skipped(file.name, f"{steps} steps, wanted at least {HISTORY_STEPS + 1}")
    tracks = _tracks(record["tracks"], steps, name, file)
    ego_id = str(head["sdc_id"] if "sdc_id" in head else head["sdc_track_index"])
    if ego_id not in tracks["ids"]:
        raise DataError(f"{file}: scenario {name}: has no track {ego_id}, which it names as the ego's: correct the file")
    ids = tracks.pop("ids")
    ego, named = ids.index(ego_id), [str(id) for id in head.get("tracks_to_predict") or ()]
    if missing := sorted(set(named) - set(ids)):
        raise DataError(f"{file}: scenario {name}: has no track {missing[0]}, which it names to be predicted: correct the file")
    tracks["to_predict"] = torch.tensor([id in named for id in ids])
    seen = tracks["valid"][ego]
    if not seen[HISTORY_STEPS]:
        return Skipped(file.name, f"the ego (track {ego_id}) is not seen at the present (step {HISTORY_STEPS})")
    origin = torch.floor(tracks["position"][ego, HISTORY_STEPS]) * torch.tensor([1.0, 1.0, 0.0])
    tracks["position"] = torch.where(tracks["valid"][..., None], tracks["position"] - origin, 0.0).float()
    roads = _map(record["map_features"], origin.numpy(), name, file)
    ground = tracks["position"][ego][seen] - torch.tensor([0.0, 0.0, 0.5]) * tracks["size"][ego, 2]
    keep = tracks["valid"].any(dim=-1)
    return make_scene(
        f"scenarionet/{name}",
        recipe="",
        **{field: tensor[keep] for field, tensor in tracks.items()},
        ego=keep[:ego].sum(),
        route=roads.route(ground, tracks["heading"][ego][seen]),
        **roads.tensors(),
        **_signals(record["dynamic_map_states"], roads, origin.numpy(), steps, name, file),
    )


def _steps(time: np.ndarray, name: str, file: Path) -> int:
    """Return how many steps there are.

    Raises:
        DataError: a time (n,) in seconds lies further from the grid of 10 Hz than half a step.
    """
    grid = np.arange(len(time)) * TIME_STEP
    if time.ndim != 1 or not len(time) or not (np.abs(time - time[0] - grid) < 0.5 * TIME_STEP).all():
        every = float(np.median(np.diff(time))) if time.size > 1 else 0.0
        raise DataError(f"{file}: scenario {name}: has steps of {every:.3f} s, wanted {TIME_STEP} s: resample it first")
    return len(time)


def _tracks(tracks: dict[str, Any], steps: int, name: str, file: Path) -> dict[str, Any]:
    """Return the tracks' ids as a list and, as in a `Scene`, position (float64), heading, velocity, valid, size and kind."""
    if len(tracks) * steps > MOST_STATES:
        raise DataError(f"{file}: scenario {name}: {len(tracks)} tracks of {steps} steps are no scenario: leave it out")
    rows: list[tuple[np.ndarray, ...]] = []
    kind: list[AgentKind] = []
    for id, track in tracks.items():
        if track["type"] not in KINDS:
            known = ", ".join(KINDS)
            raise DataError(f"{file}: scenario {name}: track {id}: unknown type {track['type']!r}: known are {known}")
        kind.append(KINDS[track["type"]])
        state = {field: np.asarray(value, dtype=np.float64) for field, value in track["state"].items() if field in STATE_FIELDS}
        if "size" not in state:
            state["size"] = np.concatenate([state[field].reshape(-1, 1) for field in ("length", "width", "height")], axis=1)
        wrong = [f"{field} {value.shape}" for field, value in state.items() if len(value) != steps]
        if wrong:
            raise DataError(f"{file}: scenario {name}: track {id}: found {', '.join(wrong)}, wanted {steps} steps")
        valid = state["valid"].reshape(steps) > 0.5
        position = np.zeros((steps, 3))
        position[:, : state["position"].shape[1]] = state["position"]
        size = np.median(state["size"].reshape(steps, 3)[valid], axis=0) if valid.any() else np.zeros(3)
        rows.append((position, state["heading"].reshape(steps), state["velocity"].reshape(steps, -1)[:, :2], valid, size))
    position, heading, velocity, valid, size = (torch.from_numpy(np.stack(part)) for part in zip(*rows, strict=True))
    return {
        "ids": list(map(str, tracks)),
        "position": position,
        "heading": torch.where(valid, heading, 0.0).float(),
        "velocity": torch.where(valid[..., None], velocity, 0.0).float(),
        "valid": valid,
        "size": size.float(),
        "kind": torch.tensor(kind),
    }


def _map(features: dict[str, Any], origin: np.ndarray, name: str, file: Path) -> LaneGraph:
    """Return the map, `origin` (3,) at zero.

    Raises:
        DataError: it holds no lane, a feature of an unknown type, or more points than any map.
    """
    lanes: dict[str, Lane] = {}
    others: list[tuple[Tensor, PolylineKind]] = []
    points = 0
    for id, feature in features.items():
        kind = feature["type"]
        if not isinstance(kind, str) or kind in UNUSED:  # see above for types that are no text
            continue
        if kind not in (*LANE_KINDS, *EDGES, "CROSSWALK") and not kind.startswith(MARKING):
            raise DataError(f"{file}: scenario {name}: map feature {id}: unknown type {kind!r}: convert it with a known version")
        line = _points(feature["polygon" if kind == "CROSSWALK" and "polygon" in feature else "polyline"], origin)
        points += len(line)
        if points > MOST_POINTS_OF_MAP:
            raise DataError(f"{file}: scenario {name}: its map holds more than {MOST_POINTS_OF_MAP} points: leave it out")
        if not torch.isfinite(line).all():
            raise DataError(f"{file}: scenario {name}: map feature {id}: found NaN or infinity, wanted metres: correct the file")
        if len(line) < 2 or float(torch.diff(line[:, :2], dim=0).norm(dim=-1).sum()) < 0.1:
            continue
        if kind in LANE_KINDS:
            lanes[str(id)] = _lane(str(id), feature, line, features)
        elif kind == "CROSSWALK":
            others.append((closed_outline(line), PolylineKind.CROSSWALK))
        else:
            others.append((thin_line(line), PolylineKind.ROAD_EDGE if kind in EDGES else PolylineKind.LANE_MARKING))
    if not lanes:
        raise DataError(f"{file}: scenario {name}: holds no lane: a scene needs a road network")
    _widths(lanes, {str(id): feature for id, feature in features.items()})
    mark_crossings(lanes.values())
    if not any(kind == PolylineKind.ROAD_EDGE for _, kind in others):
        others += [(edge, PolylineKind.ROAD_EDGE) for edge in _edges(lanes)]
    return LaneGraph(lanes, others)


def _edges(lanes: dict[str, Lane]) -> list[Tensor]:
    """Return the border of all lanes, with the road on its left, open where lanes go on beyond the map."""
    caps = []
    for lane in lanes.values():
        for names, end, before in ((lane.predecessors, 0, 1), (lane.successors, -1, -2)):
            if not any(name in lanes for name in names):
                along = lane.centre[end, :2] - lane.centre[before, :2]
                across = 0.5 * lane.width * torch.stack((-along[1], along[0])) / along.norm().clamp(min=1e-6)
                caps.append(torch.stack((lane.centre[end, :2] + across, lane.centre[end, :2] - across)).numpy())
    return border(np.array([lane.outline for lane in lanes.values()]), caps, torch.cat([x.centre for x in lanes.values()]))


def _points(points: Any, origin: np.ndarray) -> Tensor:
    """Return points as (N, 3) metres from `origin`; a missing z is 0."""
    found = np.asarray(points, dtype=np.float64).reshape(len(points), -1)[:, :3]
    return torch.from_numpy(np.pad(found, ((0, 0), (0, 3 - found.shape[1]))) - origin).float()


def _lane(id: str, feature: dict[str, Any], line: Tensor, features: dict[str, Any]) -> Lane:
    limit = float(feature.get("speed_limit_mph", 0.0)) * MPH
    kind = LANE_KINDS[feature["type"]]
    return Lane(
        id=id,
        centre=line,
        width=0.0,
        kind=PolylineKind.JUNCTION_LANE if feature.get("interpolating") and kind == PolylineKind.LANE else kind,
        speed_limit=limit if limit > 0 else None,
        successors=[str(name) for name in feature.get("exit_lanes", ())],
        predecessors=[str(name) for name in feature.get("entry_lanes", ())],
        neighbours=[
            _neighbour(found, len(line), features, side)
            for key, side in (("left_neighbor", LaneLinkKind.LEFT), ("right_neighbor", LaneLinkKind.RIGHT))
            for found in feature.get(key) or ()
        ],
    )


def _width(feature: dict[str, Any], line: Tensor, kind: PolylineKind) -> float | None:
    """Return the width of a lane, None if the file has none that can be believed.

    Twice the way to its nearer bound, of which the file has one for each point and side, and often a wrong one for the farther
    side; or its area by its length.
    """
    found = 0.0
    if "width" in feature:
        nearer = np.asarray(feature["width"], dtype=np.float64).reshape(-1, 2).min(axis=1)
        found = 2 * float(np.median(nearer[nearer > 0])) if (nearer > 0).any() else 0.0
    elif feature.get("polygon") is not None and len(feature["polygon"]) > 2:
        length = float(torch.diff(line[:, :2], dim=0).norm(dim=-1).sum())
        found = shapely.Polygon(np.asarray(feature["polygon"], dtype=np.float64)[:, :2]).area / length
    least, most = PLAUSIBLE_WIDTH.get(kind, (2.2, 6.0))
    return found if least <= found <= most else None


def _widths(lanes: dict[str, Lane], features: dict[str, Any]) -> None:
    """Give every lane its width; if it has none the mean of the lanes that it joins, if they have none the usual one."""
    known = {name: width for name, lane in lanes.items() if (width := _width(features[name], lane.centre, lane.kind)) is not None}
    for name, lane in lanes.items():
        joined = [known[other] for other in (*lane.predecessors, *lane.successors) if other in known]
        usual = USUAL_WIDTH.get(lane.kind, 3.5)
        lane.width = known.get(name, float(np.mean(joined)) if joined else usual)


def _neighbour(found: Any, points: int, features: dict[str, Any], side: LaneLinkKind) -> Neighbour:
    """Return a neighbour written as an id, or as a dictionary of its id and of the points from and to which it lies beside."""
    if not isinstance(found, dict):
        return Neighbour(str(found), side)
    id = str(found["feature_id"] if "feature_id" in found else found["id"])
    if "self_start_index" not in found or id not in features or "polyline" not in features[id]:
        return Neighbour(id, side)

    def shares(which: str, count: int) -> tuple[float, float]:
        first, last = (int(found[f"{which}_{end}_index"]) / max(count - 1, 1) for end in ("start", "end"))
        return first, last

    return Neighbour(id, side, shares("self", points), shares("neighbor", len(features[id]["polyline"])))


def _signals(signals: Any, roads: LaneGraph, origin: np.ndarray, steps: int, name: str, file: Path) -> dict[str, Tensor]:
    """Return the signal fields."""
    if not isinstance(signals, dict):  # the old format, which its converter left empty: one list with an empty dictionary a step
        if any(entry for step in signals for entry in step):
            raise DataError(f"{file}: scenario {name}: has signals in the old form: convert it with MetaDrive 0.3 or later")
        return {}
    rows = []
    for id, signal in signals.items():
        states = list(signal["state"]["object_state"])
        unknown = sorted({str(state) for state in states if state is not None and state not in COLOURS})
        if unknown or len(states) != steps:
            raise DataError(
                f"{file}: scenario {name}: signal {id}: found {len(states)} states, unknown {unknown}, wanted {steps} of "
                f"{', '.join(map(str, COLOURS))}"
            )
        lane = roads.lanes.get(str(_once(signal, "lane")))
        if lane is None or not lane.pieces:
            continue
        stop = _once(signal, "stop_point")
        point, heading, piece = roads.stop_at(lane.id, None if stop is None else _points([stop], origin)[0])
        rows.append(
            (
                point,
                torch.tensor(heading),
                torch.tensor(piece),
                torch.tensor([COLOURS.get(state, SignalState.UNKNOWN) for state in states]),
                torch.tensor([state is not None for state in states]),
            )
        )
    if not rows:
        return {}
    fields = ("signal_position", "signal_heading", "signal_lane", "signal_state", "signal_valid")
    return {field: torch.stack(part) for field, part in zip(fields, zip(*rows, strict=True), strict=True)}


def _once(signal: dict[str, Any], field: str) -> Any:
    """Return what a signal says once, or in early versions at every step at which it was seen; None if never."""
    if field in signal:
        return signal[field]
    return next((value for value in signal["state"].get(field, ()) if value is not None), None)
