"""Argoverse 2 motion forecasting: `scenario_<id>.parquet`, 11 s each, and `log_map_archive_<id>.json` beside it.

Logs are kept whole; the present is step 10 and not the data set's (step 50), so that a scene has the same second of history as
everywhere and ten seconds to play. The ego is the recording car, track "AV". Logged positions wander: they differ from the course
of the logged velocities by 0.4 to 0.55 m/s on average, at the ends of tracks by half the speed, and parked cars drift by a metre.
So positions take their course from the velocities (`_steady`) and are smoothed like others (`smoothing.smooth_track`), by 0.1 m
in the median. There are no boxes and heights: a box is typical of its type (`TYPES`), and an agent stands on the nearest lane.
There are no signals.

The origin is moved near to the ego, since float32 resolves 1 mm at the 10 km that coordinates reach. Maps are cut out of a city
along tiles of 30 m: road edges are the border of the drivable areas, but for the cuts.

Wilson et al., Argoverse 2: Next Generation Datasets for Self-Driving Perception and Forecasting, NeurIPS 2021 (Datasets and
Benchmarks); the forms of the files are those of the package av2 (datasets/motion_forecasting, map).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import shapely
import torch
from torch import Tensor

from ..scene import HISTORY_STEPS, TIME_STEP, AgentKind, LaneLinkKind, PolylineKind, Scene, make_scene
from .lane_graph import Lane, LaneGraph, Neighbour, closed_outline, thin_line
from .lanelets import border
from .polylines import resample_polyline
from .shards import DataError, Skipped
from .smoothing import nearest_valid, smooth_track, whittaker

PATTERNS = ("scenario_*.parquet", "*/scenario_*.parquet")
"""How files of this format are called: each lies in a folder of its own, with its map."""

COLUMNS = (
    *("track_id", "object_type", "timestep", "position_x", "position_y", "heading", "velocity_x", "velocity_y"),
    *("scenario_id", "start_timestamp", "end_timestamp", "num_timestamps", "object_category"),
)

NAMED = 2
"""From this `object_category` on a track is to be predicted: 2 is scored, 3 the focal track; 0 is a fragment, 1 is not scored."""

EGO = "AV"
EGO_SIZE = (4.872, 1.852, 1.476)
"""Ford Fusion Hybrid, the recording cars: 191.8 x 72.9 (without mirrors) x 58.1 inches as published by Ford for 2017."""

EGO_CENTRE = 1.425
"""Metres from the ego's logged point forward to its box centre: half the wheelbase (112.2 inches). The logged point is the rear
axle: in curves it moves along its heading (fitted lever -0.14 m in the sharpest of the samples; the centre's would be 1.4)."""

TYPES: dict[str, tuple[AgentKind, tuple[float, float, float]]] = {
    "vehicle": (AgentKind.VEHICLE, (4.5, 1.92, 1.67)),
    "bus": (AgentKind.VEHICLE, (13.2, 3.14, 3.76)),
    "motorcyclist": (AgentKind.CYCLIST, (2.25, 0.84, 1.34)),
    "cyclist": (AgentKind.CYCLIST, (2.0, 0.73, 1.34)),
    "pedestrian": (AgentKind.PEDESTRIAN, (0.84, 0.82, 1.8)),
    "riderless_bicycle": (AgentKind.OBJECT, (2.0, 0.73, 1.34)),
    "construction": (AgentKind.OBJECT, (0.43, 0.41, 1.01)),
    "static": (AgentKind.OBJECT, (0.43, 0.41, 1.01)),
    "background": (AgentKind.OBJECT, (0.43, 0.41, 1.01)),
    "unknown": (AgentKind.OBJECT, (0.43, 0.41, 1.01)),
}
"""Kind and length, width, height in metres by type. The data has no sizes: these are the medians of the boxes of PandaSet's
categories Car, Bus, Motorcycle, Bicycle, Pedestrian and, for what stands, Cones."""

STANDING = 0.1
WANDER = 0.1
"""Metres a second below which an agent stands, and hertz: what positions do faster than this is believed of velocities alone."""

LANE_KINDS = {"VEHICLE": PolylineKind.LANE, "BUS": PolylineKind.LANE, "BIKE": PolylineKind.BIKE_LANE}

TILE = 30.0
"""Metres: maps are cut along multiples of this."""

SEAM = 0.3
"""Metres between two areas on either side of a cut, at the most."""

MOST_ROWS = 5_000_000


def read_file(file: Path) -> Iterator[Scene | Skipped]:
    """Yield the scene `argoverse2/<scenario id>` of one scenario, or why it is left out.

    Raises:
        DataError: a file is truncated, foreign, lacks a field, or the map is not there.
        ImportError: pyarrow is not installed.
    """
    table = _table(file)
    map_file = file.with_name(file.name.replace("scenario_", "log_map_archive_", 1)).with_suffix(".json")
    try:
        content = json.loads(map_file.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{file}: its map {map_file.name} does not lie beside it: fetch the folder again") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{map_file}: is no whole JSON ({error}): fetch the file again") from error
    try:
        yield _scene(table, content, file, map_file)
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{file}: cannot be used ({error}): correct the file or leave it out") from error


def _table(file: Path) -> dict[str, np.ndarray]:
    """Return the columns (n,) of a scenario, one row for each agent and step."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(f'Argoverse 2 needs pyarrow ({error}): pip install "worldloop[argoverse]"') from error
    try:
        with parquet.ParquetFile(file) as source:
            missing = sorted(set(COLUMNS) - set(source.schema_arrow.names))
            rows = source.metadata.num_rows
            if missing or not 0 < rows <= MOST_ROWS:
                raise DataError(
                    f"{file}: is no Argoverse 2 scenario ({rows} rows, columns {missing} missing): wanted {', '.join(COLUMNS)}"
                )
            table = source.read(columns=list(COLUMNS))
    except DataError:
        raise
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{file}: is no whole parquet file ({error}): fetch the file again") from error
    empty = [name for name in COLUMNS if table[name].null_count]
    if empty:
        raise DataError(f"{file}: has empty entries in the columns {', '.join(empty)}: fetch the file again")
    return {name: table[name].to_numpy() for name in COLUMNS}


def _scene(table: dict[str, np.ndarray], content: Any, file: Path, map_file: Path) -> Scene | Skipped:
    name = str(table["scenario_id"][0])
    step = (table["end_timestamp"][0] - table["start_timestamp"][0]) / max(table["num_timestamps"][0] - 1, 1) * 1e-9
    if abs(step - TIME_STEP) > 0.01 * TIME_STEP:
        raise DataError(f"{file}: scenario {name}: has steps of {step:.3f} s, wanted {TIME_STEP} s: resample it first")
    ids, kind, size, label, valid = _labels(table, name, file)
    named = {str(track) for track, category in zip(table["track_id"], table["object_category"], strict=True) if category >= NAMED}
    if valid.shape[1] <= HISTORY_STEPS:
        return Skipped(file.name, f"{valid.shape[1]} steps, wanted at least {HISTORY_STEPS + 1}")
    if EGO not in ids:
        return Skipped(file.name, f"no track {EGO}, the recording car, so none can be the ego")
    ego = ids.index(EGO)
    heading, position = label[..., 2], _steady(label[..., :2], label[..., 3:], valid)
    position[ego] += EGO_CENTRE * torch.stack((heading[ego].cos(), heading[ego].sin()), dim=-1)
    origin = torch.round(position[ego, HISTORY_STEPS])
    label = smooth_track(position - origin, heading, valid)
    if not label.valid[ego, HISTORY_STEPS]:
        return Skipped(file.name, f"the ego (track {EGO}) is not seen at the present (step {HISTORY_STEPS})")
    try:
        roads = _map(content, origin, name, map_file)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise DataError(
            f"{map_file}: is no map of Argoverse 2 (field {error}): wanted lane_segments, drivable_areas, pedestrian_crossings"
        ) from error
    ground = torch.where(label.valid, _heights(label.position, roads), 0.0)
    height = torch.where(label.valid, ground + 0.5 * size[:, 2:], 0.0)
    keep, seen = label.valid.any(dim=-1), label.valid[ego]
    return make_scene(
        f"argoverse2/{name}",
        recipe="",
        position=torch.cat((label.position, height[..., None]), dim=-1)[keep],
        heading=label.heading[keep],
        velocity=label.velocity[keep],
        valid=label.valid[keep],
        size=size[keep],
        kind=kind[keep],
        to_predict=torch.tensor([id in named for id in ids])[keep],
        ego=keep[:ego].sum(),
        route=roads.route(torch.cat((label.position[ego], ground[ego, :, None]), dim=-1)[seen], label.heading[ego][seen]),
        **roads.tensors(),
    )


def _labels(table: dict[str, np.ndarray], name: str, file: Path) -> tuple[list[str], Tensor, Tensor, Tensor, Tensor]:
    """Return the tracks' ids, kind (A,), size (A, 3), labels (A, T, 5: x, y, heading, velocity) and valid (A, T)."""
    names, first, row = np.unique(table["track_id"].astype(str), return_index=True, return_inverse=True)
    types = table["object_type"][first]
    unknown = sorted(set(map(str, types)) - set(TYPES))
    if unknown:
        raise DataError(f"{file}: scenario {name}: unknown object types {', '.join(unknown)}: known are {', '.join(TYPES)}")
    step = table["timestep"]
    steps = int(step.max()) + 1
    if step.min() < 0 or steps > table["num_timestamps"][0] or len(np.unique(row * steps + step)) != len(step):
        raise DataError(
            f"{file}: scenario {name}: has steps from {step.min()} to {steps - 1}, or twice the same: correct the file"
        )
    if len(names) * steps > MOST_ROWS:
        raise DataError(f"{file}: scenario {name}: {len(names)} tracks of {steps} steps are no scenario: leave it out")
    values = np.stack([table[column].astype(np.float64) for column in COLUMNS[3:8]], axis=-1)
    if not np.isfinite(values).all():
        track = names[row[~np.isfinite(values).all(axis=-1)][0]]
        raise DataError(f"{file}: scenario {name}: track {track}: found NaN or infinity, wanted metres and radians")
    labels = np.zeros((len(names), steps, 5))
    valid = np.zeros((len(names), steps), dtype=bool)
    labels[row, step], valid[row, step] = values, True
    size = [EGO_SIZE if id == EGO else TYPES[type][1] for id, type in zip(names, types, strict=True)]
    kind = torch.tensor([TYPES[type][0] for type in types])
    return names.tolist(), kind, torch.tensor(size), torch.from_numpy(labels), torch.from_numpy(valid)


def _steady(position: Tensor, velocity: Tensor, valid: Tensor) -> Tensor:
    """Return positions (A, T, 2) that move as the velocities say and lie where the logged positions lie on average.

    The difference between the logged positions and the path of the velocities is smoothed (`smoothing.whittaker`, robust against
    single jumps as in `smoothing.smooth_track`) and held where an agent stands, and added to that path: a complementary filter.

    Args:
        position: (A, T, 2) float64 metres.
        velocity: (A, T, 2) float64 metres per second.
        valid: (A, T) bool; velocities last over gaps.
    """
    source = nearest_valid(valid)[0].clamp(min=0)
    velocity = velocity.gather(1, source[..., None].expand_as(velocity))
    path = torch.nn.functional.pad(0.5 * TIME_STEP * (velocity[:, 1:] + velocity[:, :-1]).cumsum(dim=1), (0, 0, 1, 0))
    stands = velocity.norm(dim=-1) < STANDING
    away, weight = position - path, valid.double()
    for _ in range(3):
        smooth = whittaker(away, weight, stands[:, 1:] & stands[:, :-1], 2, WANDER, TIME_STEP)
        weight = valid / (1 + ((away - smooth).square().sum(-1) / 0.3**2))
    return path + smooth


def _map(content: dict[str, Any], origin: Tensor, name: str, file: Path) -> LaneGraph:
    """Return the map, `origin` (2,) at zero.

    Raises:
        DataError: it holds no lane or no drivable area, a lane of an unknown type, or a number that is none.
    """

    def points(entries: list[dict[str, float]], owner: str, least: int = 2) -> Tensor:
        found = torch.tensor([[float(entry[axis]) for axis in "xyz"] for entry in entries], dtype=torch.float64).reshape(-1, 3)
        if len(found) < least or not torch.isfinite(found).all():
            raise DataError(f"{file}: {owner}: found {len(found)} points, or one that is no number, wanted {least} or more")
        return (found - torch.nn.functional.pad(origin, (0, 1))).float()

    segments, areas = content["lane_segments"], content["drivable_areas"]
    if not segments or not areas:
        raise DataError(f"{file}: holds {len(segments)} lane segments and {len(areas)} drivable areas: a scene needs both")
    bounds = {
        id: tuple(points(segment[f"{side}_lane_boundary"], f"lane segment {id}") for side in ("left", "right"))
        for id, segment in segments.items()
    }
    centres = {id: _centre(*pair) for id, pair in bounds.items()}
    lanes = {id: _lane(id, segments, centres, file) for id in segments}
    outlines = [points(area["area_boundary"], f"drivable area {id}", 3) for id, area in areas.items()]
    others = [(line, PolylineKind.ROAD_EDGE) for line in _edges(outlines, origin)]
    others += [(thin_line(line), PolylineKind.LANE_MARKING) for line in _markings(segments, bounds)]
    for id, crossing in content["pedestrian_crossings"].items():
        edges = [points(crossing[edge], f"pedestrian crossing {id}") for edge in ("edge1", "edge2")]
        others.append((closed_outline(_crosswalk(*edges)), PolylineKind.CROSSWALK))
    return LaneGraph(lanes, others)


def _heights(position: Tensor, roads: LaneGraph) -> Tensor:
    """Return the height (A, T) of the nearest point of a centreline at each position (A, T, 2)."""
    points = torch.cat([lane.centre for lane in roads.lanes.values()])
    return points[torch.cdist(position.flatten(0, 1), points[:, :2]).argmin(dim=-1), 2].reshape(position.shape[:2])


def _centre(left: Tensor, right: Tensor) -> tuple[Tensor, float]:
    """Return the centreline (N, 3) between two bounds, about 1 m between points, and the mean width."""
    length = [float(torch.diff(side[:, :2], dim=0).norm(dim=-1).sum()) for side in (left, right)]
    count = max(math.ceil(max(length)), 1)
    left, right = (resample_polyline(side, max(total / count, 1e-9)) for side, total in zip((left, right), length, strict=True))
    if len(left) != len(right):  # a bound of no length, at a point that the lane turns about
        left, right = (side.expand(count + 1, 3) if len(side) == 1 else side for side in (left, right))
    return 0.5 * (left + right), float((left - right)[:, :2].norm(dim=-1).mean())


def _lane(id: str, segments: dict[str, Any], centres: dict[str, tuple[Tensor, float]], file: Path) -> Lane:
    segment, (centre, width) = segments[id], centres[id]
    if segment["lane_type"] not in LANE_KINDS:
        known = ", ".join(LANE_KINDS)
        raise DataError(f"{file}: lane segment {id}: unknown type {segment['lane_type']!r}: known are {known}")
    kind = LANE_KINDS[segment["lane_type"]]
    neighbours = []
    for side in LaneLinkKind.LEFT, LaneLinkKind.RIGHT:
        other = str(segment[f"{side.name.lower()}_neighbor_id"])
        if other in centres and _same_way(centre, centres[other][0]):
            neighbours.append(Neighbour(other, side))
    return Lane(
        id=id,
        centre=centre,
        width=width,
        kind=PolylineKind.JUNCTION_LANE if segment["is_intersection"] and kind == PolylineKind.LANE else kind,
        successors=[str(other) for other in segment["successors"]],
        predecessors=[str(other) for other in segment["predecessors"]],
        neighbours=neighbours,
    )


def _same_way(first: Tensor, second: Tensor) -> bool:
    """Whether two neighbouring lanes run alike: a neighbour may be the oncoming lane."""
    return float((first[-1] - first[0])[:2] @ (second[-1] - second[0])[:2]) > 0


def _markings(segments: dict[str, Any], bounds: dict[str, tuple[Tensor, ...]]) -> list[Tensor]:
    """Return each painted bound (N, 3) once: lanes that lie side by side share it, in one direction or the other."""
    found: dict[frozenset[tuple[float, ...]], Tensor] = {}
    for id, segment in segments.items():
        for side, line in zip(("left", "right"), bounds[id], strict=True):
            if segment[f"{side}_lane_mark_type"] not in ("NONE", "UNKNOWN"):
                found.setdefault(frozenset(tuple(point) for point in line[:, :2].round(decimals=1).tolist()), line)
    return list(found.values())


def _crosswalk(first: Tensor, second: Tensor) -> Tensor:
    """Return the outline (N, 3) between the two edges of a crossing, which may run alike or not."""
    ring = torch.cat((first, second.flip(0)))
    return ring if shapely.Polygon(ring[:, :2].numpy()).is_valid else torch.cat((first, second))


def _edges(outlines: list[Tensor], origin: Tensor) -> list[Tensor]:
    """Return the border of the drivable areas, with the road on its left, open where the map was cut.

    Cuts between two areas of the map are none.
    """
    caps = []
    for outline in outlines:
        ends = torch.stack((outline, outline.roll(-1, dims=0)))[..., :2]  # (2, N, 2)
        tile = ((ends + origin) / TILE).double()
        cut = ((ends[0] == ends[1]) & ((tile - tile.round()).abs().amax(dim=0) * TILE < 0.02)).any(dim=-1)
        caps += list(ends[:, cut].transpose(0, 1).numpy())
    areas = np.array([shapely.make_valid(shapely.Polygon(outline[:, :2].numpy())) for outline in outlines])
    inside = shapely.buffer(shapely.union_all(shapely.buffer(areas, SEAM)), -2 * SEAM)
    return border(areas, [cap for cap in caps if not inside.contains(shapely.Point(cap.mean(axis=0)))], torch.cat(outlines))
