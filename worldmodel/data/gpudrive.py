"""GPUDrive's JSON: scenarios of the Waymo Open Motion Dataset, converted, one a file, plain or gzipped.

What the conversion kept is put back into a `Scenario` message and read by `waymo.py`. The files carry no lane graph: a lane is
followed by those that start where it ends. Where points coincide within 0.1 m that is exactly what Waymo's own files say, for all
326 links of two scenarios. Neighbours and speed limits are lost. Files of the first years (and of Nocturne, from which the form
comes) write headings in degrees, have no heights and no ids, and do not say which vehicle recorded them: it is the last object,
as in Waymo's own files (in all samples it has the size of Waymo's car and is seen at every step).

Kazemkhani et al., GPUDrive: Data-driven, multi-agent driving simulation at 1 million FPS, ICLR 2025.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..scene import HISTORY_STEPS, TIME_STEP, AgentKind, Scene
from .compressed import read_content
from .pandaset import HEIGHTS
from .shards import DataError, Skipped
from .waymo import KINDS, read_scenario
from .waymo_records import Scenario

PATTERNS = ("*.json", "*.json.gz")
"""How files of this format are called."""

OBJECT_TYPES = {"unset": 0, "vehicle": 1, "pedestrian": 2, "cyclist": 3, "other": 4}
STATES = {
    "unknown": 0,
    "arrow_stop": 1,
    "arrow_caution": 2,
    "arrow_go": 3,
    "stop": 4,
    "caution": 5,
    "go": 6,
    "flashing_stop": 7,
    "flashing_caution": 8,
}
"""GPUDrive's words for Waymo's numbers."""

JOIN = 0.1
"""Metres between the end of a lane and the start of the next one at the most."""

AREAS, LINES = ("crosswalk", "speed_bump", "driveway"), ("lane", "road_line", "road_edge")


def read_file(file: Path) -> Iterator[Scene | Skipped]:
    """Yield the scene `gpudrive/<file name without its ending>`, or why it is left out.

    Raises:
        DataError: the file is truncated, foreign, or lacks a field.
    """
    try:
        record = json.loads(read_content(file))
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: is no whole JSON file, plain or gzipped ({error}): fetch the file again") from error
    try:
        scenario = _scenario(record)
        yield read_scenario(scenario, f"gpudrive/{file.name.removesuffix('.gz').removesuffix('.json')}", str(file))
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{file}: cannot be used ({error}): correct the file or leave it out") from error
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise DataError(f"{file}: is no GPUDrive scene (field {error}): wanted objects, roads and tl_states") from error


def _scenario(record: dict[str, Any]) -> Any:
    """Return the `Scenario` that a file was made from, as far as it says."""
    objects, roads = record["objects"], record["roads"]
    steps = max((len(entry["position"]) for entry in objects), default=0)
    scenario = Scenario(scenario_id=str(record.get("scenario_id", "")), current_time_index=HISTORY_STEPS)
    scenario.timestamps_seconds.extend(TIME_STEP * step for step in range(steps))
    headings = [abs(h) for entry in objects for h, seen in zip(entry["heading"], entry["valid"], strict=False) if seen]
    unit = math.pi / 180 if max(headings, default=0.0) > 2 * math.pi else 1.0
    for number, entry in enumerate(objects):
        _add_track(scenario, number, entry, unit)
    for number, road in enumerate(roads):
        _add_feature(scenario, number, road)
    _join_lanes(scenario)
    for _ in range(steps):
        scenario.dynamic_map_states.add()
    for lane, light in record["tl_states"].items():
        heights = light.get("z", [0.0] * len(light["x"]))
        for step, word, *point in zip(light["time_index"], light["state"], light["x"], light["y"], heights, strict=True):
            if word not in STATES or not 0 <= step < steps:
                raise ValueError(f"signal of lane {lane}: found state {word!r} at step {step} of {steps}")
            stop_point = dict(zip("xyz", point, strict=True))
            scenario.dynamic_map_states[step].lane_states.add(lane=int(lane), state=STATES[word], stop_point=stop_point)
    metadata = record.get("metadata") or {}
    scenario.sdc_track_index = metadata.get("sdc_track_index", len(objects) - 1)
    for named in metadata.get("tracks_to_predict") or ():
        scenario.tracks_to_predict.add(track_index=named["track_index"])
    return scenario


def _add_track(scenario: Any, number: int, entry: dict[str, Any], unit: float) -> None:
    """Add an object as a track; `unit` is radians for one of its headings."""
    if entry["type"] not in OBJECT_TYPES:
        raise ValueError(f"object {number}: found type {entry['type']!r}, known are {', '.join(OBJECT_TYPES)}")
    series = [entry[name] for name in ("position", "heading", "velocity", "valid")]
    if {len(values) for values in series} != {len(scenario.timestamps_seconds)}:
        found = ", ".join(str(len(values)) for values in series)
        wanted = len(scenario.timestamps_seconds)
        raise ValueError(f"object {number}: found {found} positions, headings, velocities and valids, wanted {wanted} of each")
    track = scenario.tracks.add(id=entry.get("id", number), object_type=OBJECT_TYPES[entry["type"]])
    height = entry.get("height", HEIGHTS[KINDS.get(track.object_type, AgentKind.OBJECT)])
    for place, heading, velocity, seen in zip(*series, strict=True):
        if not seen:
            track.states.add(valid=False)
            continue
        track.states.add(
            center_x=place["x"],
            center_y=place["y"],
            center_z=place.get("z", 0.5 * height),
            length=entry["length"],
            width=entry["width"],
            height=height,
            heading=math.remainder(unit * heading, 2 * math.pi),
            velocity_x=velocity["x"],
            velocity_y=velocity["y"],
            valid=True,
        )


def _add_feature(scenario: Any, number: int, road: dict[str, Any]) -> None:
    """Add a road as a map feature; without an id it is called by its number."""
    kind, name = road["type"], road.get("id", number)
    points = [{"x": point["x"], "y": point["y"], "z": point.get("z", 0.0)} for point in road["geometry"]]
    if kind == "lane":
        content: dict[str, Any] = {"polyline": points, "type": road.get("map_element_id", 0)}
    elif kind in LINES:
        content = {"polyline": points}
    elif kind in AREAS:
        content = {"polygon": points}
    elif kind == "stop_sign":
        content = {"position": points[0]}
    else:
        raise ValueError(f"road {number}: found type {kind!r}, known are {', '.join((*LINES, *AREAS, 'stop_sign'))}")
    scenario.map_features.add(id=name, **{kind: content})


def _join_lanes(scenario: Any) -> None:
    """Make lanes that begin where another one ends its exits."""
    lanes = [feature for feature in scenario.map_features if feature.HasField("lane") and len(feature.lane.polyline) > 1]
    ends = [
        torch.tensor([[p.x, p.y, p.z] for p in (feature.lane.polyline[place] for feature in lanes)], dtype=torch.float64)
        for place in (-1, 0)
    ]
    if lanes:
        apart = torch.cdist(
            ends[0], ends[1], compute_mode="donot_use_mm_for_euclid_dist"
        )  # the other way rounds far from the origin
        for before, after in (apart < JOIN).nonzero().tolist():
            if before != after:
                lanes[before].lane.exit_lanes.append(lanes[after].id)
                lanes[after].lane.entry_lanes.append(lanes[before].id)
