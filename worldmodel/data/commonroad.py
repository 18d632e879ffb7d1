"""CommonRoad scenarios, XML 2018b and 2020a, plain or gzipped: lanelets, signals, obstacles.

The planning problem's own vehicle is not in the log (in the NGSIM scenarios its start lies at least 2.6 m from every recorded
car), so the ego is a recorded vehicle, chosen by rule (`choose_ego`): replay, route and scoring need its log. The present is
step 10 after the first recorded one. Large coordinates (UTM) are counted from near the first lanelet (`find_origin`). Recorded
tracks jitter, so they are smoothed (`smoothing.smooth_track`). Scenarios whose `source` says that the recording was edited are
skipped.

Althoff, Koschi, Manzinger: CommonRoad: Composable Benchmarks for Motion Planning on Roads, IV 2017; the formats are described in
"CommonRoad: Documentation of the XML Format", versions 2018b and 2020a.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

import defusedxml.ElementTree
import torch
from defusedxml import DefusedXmlException
from torch import Tensor

from ..scene import HISTORY_STEPS, TIME_STEP, AgentKind, Scene, SignalState, make_scene
from .compressed import read_content
from .lanelets import FARTHEST, RoadMap, find_origin, place, point_list, read_map
from .shards import DataError, Skipped
from .smoothing import SmoothTrack, smooth_track

PATTERNS = ("*.xml", "*.xml.gz")
"""How files of this format are called."""

VERSIONS = ("2018b", "2020a")

EDITED = ("optimized towards criticality", "Set-based Prediction")
"""Texts in the `source` attribute of scenarios whose traffic is not as recorded."""

MOST_STEPS = 36_000
"""T at most: an hour, which only a wrong time exceeds."""

TYPES: dict[str, tuple[AgentKind, float]] = {
    "car": (AgentKind.VEHICLE, 1.5),
    "taxi": (AgentKind.VEHICLE, 1.5),
    "parkedVehicle": (AgentKind.VEHICLE, 1.5),
    "priorityVehicle": (AgentKind.VEHICLE, 2.2),
    "truck": (AgentKind.VEHICLE, 3.5),
    "bus": (AgentKind.VEHICLE, 3.2),
    "train": (AgentKind.VEHICLE, 3.5),
    "motorcycle": (AgentKind.CYCLIST, 1.5),
    "bicycle": (AgentKind.CYCLIST, 1.7),
    "pedestrian": (AgentKind.PEDESTRIAN, 1.7),
}
"""Kind and height in metres by obstacle type (the format has no heights); what is not named here and stands is an object 1 m
high, what is not named and moves is a vehicle."""

COLOURS = {
    "red": SignalState.STOP,
    "redYellow": SignalState.STOP,
    "yellow": SignalState.CAUTION,
    "green": SignalState.GO,
    "inactive": SignalState.UNKNOWN,
}


@dataclass(frozen=True)
class Track:
    """One obstacle as recorded: time (n,) in seconds, position (n, 2), heading (n,), size of 3, kind; `static` stands always."""

    time: Tensor
    position: Tensor
    heading: Tensor
    size: tuple[float, float, float]
    kind: AgentKind
    static: bool


def read_file(file: Path) -> Iterator[Scene | Skipped]:
    """Yield the scene `commonroad/<benchmarkID>` of one scenario, or why it is left out.

    Raises:
        DataError: the file is truncated, foreign, of an unknown version, or lacks an element.
    """
    root = _parse(file)
    source = root.get("source", "")
    if any(text in source for text in EDITED):
        yield Skipped(file.name, f"its traffic is not as recorded (source: {source})")
        return
    try:
        yield _scene(root, file)
    except DataError:
        raise
    except KeyError as error:
        raise DataError(f"{file}: lacks an element of the CommonRoad format ({error}): validate it against the schema") from error
    except ValueError as error:
        raise DataError(f"{file}: cannot be used ({error}): correct the file or leave it out") from error


def _parse(file: Path) -> Element:
    """Return the root element of a plain or gzipped scenario."""
    content = read_content(file)
    try:
        root = defusedxml.ElementTree.fromstring(content)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise DataError(f"{file}: is no whole XML file, plain or gzipped ({error}): fetch the file again") from error
    version = root.get("commonRoadVersion", "none")
    if root.tag != "commonRoad" or version not in VERSIONS:
        raise DataError(
            f"{file}: root element <{root.tag}> of version {version}, wanted <commonRoad> of {' or '.join(VERSIONS)}: "
            "convert it first"
        )
    return root


def _scene(root: Element, file: Path) -> Scene | Skipped:
    step_size = float(root.get("timeStepSize", TIME_STEP))
    if not 0 < step_size < math.inf:
        raise DataError(f"{file}: timeStepSize {root.get('timeStepSize')}, wanted a number of seconds above 0: correct the file")
    origin = find_origin(root)
    roads = read_map(root, file, origin)
    tracks = [track for element in root if (track := _track(element, step_size, origin)) is not None]
    moving = [track for track in tracks if not track.static]
    if not moving:
        return Skipped(file.name, "no recorded vehicle, so none can be the ego")
    start = min(float(track.time[0]) for track in moving)
    steps = math.floor((max(float(track.time[-1]) for track in moving) - start) / TIME_STEP + 1e-6) + 1
    if steps <= HISTORY_STEPS:
        return Skipped(file.name, f"{steps} steps, wanted at least {HISTORY_STEPS + 1}")
    if steps > MOST_STEPS:
        raise DataError(f"{file}: spans {steps} steps of {TIME_STEP} s, wanted at most {MOST_STEPS}: cut it into parts")
    smooth = smooth_track(*_on_grid(tracks, start, steps))
    keep = smooth.valid.any(dim=-1)
    smooth = SmoothTrack(*(part[keep] for part in smooth))
    kind = torch.tensor([track.kind for track in tracks])[keep]
    size = torch.tensor([track.size for track in tracks])[keep]
    static = torch.tensor([track.static for track in tracks])[keep]
    ego = choose_ego(smooth, (kind == AgentKind.VEHICLE) & ~static)
    if ego is None:
        return Skipped(file.name, f"no recorded vehicle at the present (step {HISTORY_STEPS}), so none can be the ego")
    smooth = smooth._replace(heading=_along_lanes(smooth, roads, (kind == AgentKind.VEHICLE) & ~static))
    height = torch.where(smooth.valid, 0.5 * size[:, 2:], 0.0)
    seen = smooth.valid[ego]
    return make_scene(
        f"commonroad/{root.get('benchmarkID', file.name.split('.')[0])}",
        recipe="",
        position=torch.cat((smooth.position, height[..., None]), dim=-1),
        heading=smooth.heading,
        velocity=smooth.velocity,
        valid=smooth.valid,
        size=size,
        kind=kind,
        ego=torch.tensor(ego),
        route=roads.route(torch.nn.functional.pad(smooth.position[ego][seen], (0, 1)), smooth.heading[ego][seen]),
        **roads.tensors(),
        **_signals(root, roads, round(start / step_size), steps, step_size),
    )


def choose_ego(track: SmoothTrack, eligible: Tensor) -> int | None:
    """Return which of the tracks is the ego: of the eligible ones valid at the present, the one that travels furthest.

    Only those valid for at least nine tenths of the longest time among them count; of equals the first is taken. None: there is
    none.
    """
    eligible = eligible & track.valid[:, HISTORY_STEPS]
    if not eligible.any():
        return None
    duration = torch.where(eligible, track.valid[:, HISTORY_STEPS:].sum(-1), 0)
    distance = torch.where(track.valid, track.velocity.norm(dim=-1), 0.0)[:, HISTORY_STEPS:].sum(-1)
    return int(torch.where(eligible & (duration >= 0.9 * duration.max()), distance, -1.0).argmax())


def _along_lanes(track: SmoothTrack, roads: RoadMap, eligible: Tensor) -> Tensor:
    """Return headings (A, T) in which vehicles that stand all the time look along the lane that they stand in.

    A recorded heading is the direction between two positions, so that of a car that never moves is noise.
    """
    standing = eligible & (track.velocity.abs().amax(dim=(1, 2)) == 0)
    first = track.valid.long().argmax(dim=-1)
    row = torch.arange(len(first))
    lane, known = roads.heading_at(track.position[row, first])
    return torch.where((standing & known)[:, None] & track.valid, lane[:, None], track.heading)


def _number(element: Element) -> float:
    """Return the value of `<exact>`, or the middle of `<intervalStart>` and `<intervalEnd>`."""
    exact = element.findtext("exact")
    if exact is not None:
        return float(exact)
    return 0.5 * (float(element.findtext("intervalStart", "nan")) + float(element.findtext("intervalEnd", "nan")))


def _place(element: Element, origin: tuple[float, float]) -> list[float]:
    """Return x, y of a `<position>` less `origin`: its point, or the middle of its area."""
    for tag in ("point", "rectangle/center", "circle/center"):
        found = element.find(tag)
        if found is not None:
            return place(found, origin)[:2]
    found = element.find("circle") if element.find("circle") is not None else element.find("polygon")
    if found is None or found.tag == "circle":  # a shape without <center> is centred on the file's origin
        return [0.0 - origin[0], 0.0 - origin[1]]
    return point_list(found, origin).mean(dim=0)[:2].tolist()


def _shape(element: Element) -> tuple[float, float, float, float, float]:
    """Return length, width, turn, and the offset x, y of the box around a `<shape>`, in the obstacle's frame."""
    rectangle, circle, polygon = element.find("rectangle"), element.find("circle"), element.find("polygon")
    if rectangle is not None:
        length, width = (float(rectangle.findtext(tag, "nan")) for tag in ("length", "width"))
        x, y = (float(rectangle.findtext(f"center/{axis}", "0")) for axis in "xy")
        return length, width, float(rectangle.findtext("orientation", "0")), x, y
    if circle is not None:
        diameter = 2 * float(circle.findtext("radius", "nan"))
        x, y = (float(circle.findtext(f"center/{axis}", "0")) for axis in "xy")
        return diameter, diameter, 0.0, x, y
    if polygon is None:
        raise KeyError("<rectangle>, <circle> or <polygon> in <shape>")
    points = point_list(polygon)[:, :2]
    if not len(points):
        raise ValueError("<polygon> without points in <shape>")
    low, high = points.amin(dim=0), points.amax(dim=0)
    length, width = (high - low).tolist()
    x, y = (0.5 * (low + high)).tolist()
    return length, width, 0.0, x, y


def _track(element: Element, step_size: float, origin: tuple[float, float]) -> Track | None:
    """Return the obstacle that an element of the root describes, less `origin`, None if it is something else."""
    if element.tag not in ("obstacle", "dynamicObstacle", "staticObstacle"):
        return None
    static = element.tag == "staticObstacle" or element.findtext("role") == "static"
    kind, height = TYPES.get(element.findtext("type", ""), (AgentKind.OBJECT, 1.0) if static else (AgentKind.VEHICLE, 1.5))
    states = [_child(element, "initialState"), *([] if static else element.findall("trajectory/state"))]
    time = torch.tensor([_number(_child(state, "time")) for state in states], dtype=torch.float64) * step_size
    position = torch.tensor([_place(_child(state, "position"), origin) for state in states], dtype=torch.float64)
    heading = torch.tensor([_number(_child(state, "orientation")) for state in states], dtype=torch.float64)
    if not (time.isfinite().all() and (time.diff() > 0).all()):
        raise ValueError(f"obstacle {element.get('id')}: the times of its states do not rise")
    for field, value in (("position", position), ("orientation", heading)):
        if not (value.abs() <= FARTHEST).all():
            raise ValueError(f"obstacle {element.get('id')}: {field}: found NaN or infinity or a number above 1e6")
    length, width, turn, x, y = _shape(_child(element, "shape"))
    offset = torch.stack((heading.cos() * x - heading.sin() * y, heading.sin() * x + heading.cos() * y), dim=-1)
    return Track(time, position + offset, heading + turn, (length, width, height), kind, static)


def _on_grid(tracks: list[Track], start: float, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return position (A, T, 2), heading (A, T) and valid (A, T) at 10 Hz; other rates are interpolated or leave gaps."""
    position = torch.zeros(len(tracks), steps, 2, dtype=torch.float64)
    heading = torch.zeros(len(tracks), steps, dtype=torch.float64)
    valid = torch.zeros(len(tracks), steps, dtype=torch.bool)
    for row, track in enumerate(tracks):
        if track.static:
            position[row], heading[row], valid[row] = track.position[0], track.heading[0], True
            continue
        place = (track.time - start) / TIME_STEP
        index = place.round().long()
        if (place - index).abs().max() < 1e-3:
            position[row, index], heading[row, index], valid[row, index] = track.position, track.heading, True
            continue
        grid = torch.arange(math.ceil(float(place[0])), math.floor(float(place[-1])) + 1)
        after = torch.searchsorted(place, grid.double(), right=True).clamp(1, len(place) - 1)
        share = (grid - place[after - 1]) / (place[after] - place[after - 1])
        turn = torch.remainder(torch.diff(track.heading) + math.pi, 2 * math.pi) - math.pi
        position[row, grid] = track.position[after - 1] + share[:, None] * (track.position[after] - track.position[after - 1])
        heading[row, grid] = track.heading[after - 1] + share * turn[after - 1]
        valid[row, grid] = True
    return position, heading, valid


def _signals(root: Element, roads: RoadMap, first: int, steps: int, step_size: float) -> dict[str, Tensor]:
    """Return the signal fields: one signal for each lanelet that refers to a traffic light, but crosswalks.

    Where several lights stand on one lanelet, the one for all directions is taken, else the one for straight on, else the first:
    a `Scene` has one signal a lane. The phase is (step - offset) modulo the cycle, as commonroad-io counts it.
    """
    lights = {light.get("id"): light for light in root.findall("trafficLight")}
    time = first + (torch.arange(steps) * (TIME_STEP / step_size)).floor().long()
    rank = {"all": 0, "straight": 1}
    rows = []
    for lanelet, references in roads.lights.items():
        known = [lights[reference] for reference in references if reference in lights]
        light = min(known, key=lambda light: rank.get(light.findtext("direction", "all"), 2), default=None)
        if light is None or light.find("cycle") is None or not roads.lanelets[lanelet].pieces:
            continue
        cycle = _child(light, "cycle")
        durations = [int(_text(entry, "duration")) for entry in cycle.findall("cycleElement")]
        if not 0 < sum(durations) < 2**31 or min(durations) < 0:
            raise ValueError(f"traffic light {light.get('id')}: found a cycle of durations {durations}, wanted them above 0")
        duration = torch.tensor(durations)
        colour = torch.tensor([COLOURS[_text(entry, "color")] for entry in cycle.findall("cycleElement")])
        phase = torch.remainder(time - int(cycle.findtext("timeOffset", "0")), duration.sum())
        state = colour[torch.searchsorted(duration.cumsum(0), phase, right=True)]
        if light.findtext("active", "true").strip() == "false":
            state = torch.full_like(state, SignalState.UNKNOWN)
        rows.append((*roads.stop_point(lanelet), state))
    if not rows:
        return {}
    position, heading, lane, state = zip(*rows, strict=True)
    return {
        "signal_position": torch.stack(position),
        "signal_heading": torch.stack(heading),
        "signal_lane": torch.tensor(lane),
        "signal_state": torch.stack(state),
        "signal_valid": torch.ones(len(rows), steps, dtype=torch.bool),
    }


def _child(element: Element, tag: str) -> Element:
    found = element.find(tag)
    if found is None:
        raise KeyError(f"<{tag}> in <{element.tag}>")
    return found


def _text(element: Element, tag: str) -> str:
    return (_child(element, tag).text or "").strip()
