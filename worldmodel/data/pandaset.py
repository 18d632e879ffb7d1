"""PandaSet (Scale AI and Hesai; CC BY 4.0), as reconstructed world-frame tracks: `NNN.json.gz`, one sequence a file.

A file holds `dt`, `ego {t, xyz, yaw}`, `agents [{category, lwh, frame, xyz, yaw}]` and `lane_lines`. Agents outside of the ego's
window of frames are cut away: without the ego's pose their reconstruction drifts. Labels jitter, so tracks are smoothed
(`smoothing.smooth_track`). There is no lane graph and no signal; the route is where the ego drove.

Xiao et al., PandaSet: Advanced Sensor Suite Dataset for Autonomous Driving, ITSC 2021.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..scene import HISTORY_STEPS, TIME_STEP, AgentKind, PolylineKind, Scene, make_scene
from .compressed import read_content
from .polylines import resample_polyline, split_polyline
from .shards import DataError, Skipped
from .smoothing import smooth_track

PATTERNS = ("*.json.gz",)
"""How files of this format are called."""

EGO_SIZE = (5.176, 2.022, 1.777)
"""Chrysler Pacifica (2017 on), the recording car: length and height in metres as in nuplan-devkit's `get_pacifica_parameters`,
width without mirrors as published (79.6 in; that of nuplan-devkit, 2.297 m, is larger)."""

EGO_CENTRE = (1.461, 0.518)
"""Metres from the ego's logged point to its box centre, forward and up. In curves the logged point moves along its heading
(fitted lever -0.1 m), so it is the rear axle; nuplan-devkit's `get_pacifica_parameters` gives the box 4.049 m before and 1.127 m
behind that. Up: half the height less the tyre's radius of 0.37 m."""

KINDS: dict[str, AgentKind] = {
    "Car": AgentKind.VEHICLE,
    "Pickup Truck": AgentKind.VEHICLE,
    "Medium-sized Truck": AgentKind.VEHICLE,
    "Semi-truck": AgentKind.VEHICLE,
    "Towed Object": AgentKind.VEHICLE,
    "Bus": AgentKind.VEHICLE,
    "Emergency Vehicle": AgentKind.VEHICLE,
    "Other Vehicle - Construction Vehicle": AgentKind.VEHICLE,
    "Other Vehicle - Uncommon": AgentKind.VEHICLE,
    "Train": AgentKind.VEHICLE,
    "Tram / Subway": AgentKind.VEHICLE,
    "Motorcycle": AgentKind.CYCLIST,
    "Motorized Scooter": AgentKind.CYCLIST,
    "Bicycle": AgentKind.CYCLIST,
    "Other Vehicle - Pedicab": AgentKind.CYCLIST,
    "Pedestrian": AgentKind.PEDESTRIAN,
    "Pedestrian with Object": AgentKind.PEDESTRIAN,
    "Personal Mobility Device": AgentKind.PEDESTRIAN,
    "Animals - Other": AgentKind.PEDESTRIAN,
    "Animals - Bird": AgentKind.OBJECT,
    "Construction Signs": AgentKind.OBJECT,
    "Signs": AgentKind.OBJECT,
    "Cones": AgentKind.OBJECT,
    "Pylons": AgentKind.OBJECT,
    "Temporary Construction Barriers": AgentKind.OBJECT,
    "Road Barriers": AgentKind.OBJECT,
    "Rolling Containers": AgentKind.OBJECT,
}
"""Who moves like what: motorcycles and scooters are single-track and narrow, hence cyclists; boards, wheelchairs and dogs
move at walking pace on walkways, hence pedestrians; what only stands is an object."""

HEIGHTS = {AgentKind.VEHICLE: 1.7, AgentKind.CYCLIST: 1.4, AgentKind.PEDESTRIAN: 1.8, AgentKind.OBJECT: 1.0}
"""Metres where a box has no height: medians of the boxes that have one."""


def read_file(file: Path) -> Iterator[Scene | Skipped]:
    """Yield the scene `pandaset/NNN` of one sequence, or why it is left out.

    Raises:
        DataError: the file is truncated, foreign, lacks a field, or holds a table of another shape or with NaN or infinity.
    """
    content = read_content(file)
    try:
        record = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: is no whole JSON, plain or gzipped ({error}): fetch the file again") from error
    try:
        steps = len(record["ego"]["t"])
        if abs(float(record["dt"]) - TIME_STEP) > 1e-6:
            raise DataError(f"{file}: has steps of {record['dt']} s, wanted {TIME_STEP} s: resample it first")
        if steps <= HISTORY_STEPS:
            yield Skipped(str(file), f"{steps} steps, wanted at least {HISTORY_STEPS + 1}")
            return
        yield _scene(record, file)
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{file}: cannot be used ({error}): correct the file or leave it out") from error
    except (KeyError, TypeError, IndexError) as error:
        raise DataError(f"{file}: is no PandaSet sequence (field {error}): wanted dt, ego, agents and lane_lines") from error


def _scene(record: dict[str, Any], file: Path) -> Scene:
    name = str(record.get("sequence", file.name.split(".")[0]))
    steps = len(record["ego"]["t"])
    first = round(float(_numbers(record["ego"]["t"], (steps,), "ego.t")[0]) / TIME_STEP)
    position, heading, valid, size, kind = _labels(record, file, first, steps)
    label = smooth_track(position[..., :2], heading, valid)
    height = _heights(position[..., 2], valid, label.valid)
    keep = label.valid.any(dim=-1)
    course = label.heading[keep]
    return make_scene(
        f"pandaset/{name}",
        recipe="",
        position=torch.cat((label.position[keep], height[keep][..., None]), dim=-1),
        heading=course,
        velocity=label.velocity[keep],
        valid=label.valid[keep],
        size=size[keep],
        kind=kind[keep],
        ego=torch.tensor(0),
        route=_route(label.position[0], course[0], label.valid[0], height[0]),
        **_lane_markings(record["lane_lines"]),
    )


def _labels(record: dict[str, Any], file: Path, first: int, steps: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return raw position (A, T, 3), heading (A, T), valid (A, T), size (A, 3) and kind (A,); the ego is agent 0."""
    agents = record["agents"]
    position = torch.zeros(len(agents) + 1, steps, 3, dtype=torch.float64)
    heading = torch.zeros(len(agents) + 1, steps, dtype=torch.float64)
    valid = torch.zeros(len(agents) + 1, steps, dtype=torch.bool)
    size, kind = [EGO_SIZE], [AgentKind.VEHICLE]
    yaw = _numbers(record["ego"]["yaw"], (steps,), "ego.yaw")
    forward, up = EGO_CENTRE
    lever = torch.stack((forward * yaw.cos(), forward * yaw.sin(), torch.full_like(yaw, up)), dim=-1)
    position[0] = _numbers(record["ego"]["xyz"], (steps, 3), "ego.xyz") + lever
    heading[0], valid[0] = yaw, True
    for row, agent in enumerate(agents, start=1):
        if agent["category"] not in KINDS:
            raise DataError(f"{file}: unknown category {agent['category']!r}: known are {', '.join(sorted(KINDS))}")
        count, name = len(agent["frame"]), f"agents[{row - 1}]"
        step = _numbers(agent["frame"], (count,), f"{name}.frame").long() - first
        seen = (step >= 0) & (step < steps)
        position[row, step[seen]] = _numbers(agent["xyz"], (count, 3), f"{name}.xyz")[seen]
        heading[row, step[seen]] = _numbers(agent["yaw"], (count,), f"{name}.yaw")[seen]
        valid[row, step[seen]] = True
        kind.append(KINDS[agent["category"]])
        box = agent["lwh"] if len(agent["lwh"]) != 2 else [*agent["lwh"], HEIGHTS[kind[-1]]]
        size.append(tuple(_numbers(box, (3,), f"{name}.lwh").tolist()))
    return position, heading, valid, torch.tensor(size), torch.tensor(kind)


def _numbers(value: Any, shape: tuple[int, ...], name: str) -> Tensor:
    """Return a table of numbers in float64, none above a million, of which polylines would not fit memory.

    Raises:
        ValueError: it has another shape or holds something else; the message calls it `name`.
    """
    try:
        table = torch.tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{name}: {error}, wanted numbers of shape {shape}") from error
    if table.shape != shape:
        raise ValueError(f"{name}: found shape {tuple(table.shape)}, wanted {shape}")
    if not (table.abs() <= 1e6).all():
        raise ValueError(f"{name}: found NaN or infinity or a number above 1e6")
    return table


def _heights(z: Tensor, labelled: Tensor, valid: Tensor) -> Tensor:
    """Return centre heights (A, T): each track's labels averaged over 0.9 s, since they jitter too and slopes change slowly."""
    weight = labelled.double()
    window = torch.ones(1, 1, 9, dtype=torch.float64)
    total = torch.nn.functional.conv1d((z * weight)[:, None], window, padding=4)[:, 0]
    count = torch.nn.functional.conv1d(weight[:, None], window, padding=4)[:, 0]
    return torch.where(valid, total / count.clamp(min=1), 0.0).float()


def _route(position: Tensor, heading: Tensor, valid: Tensor, height: Tensor) -> Tensor:
    """Return the ego's path (R, 3) about every 2 m, from 20 m behind its first pose to 60 m beyond its last one."""
    step = valid.nonzero()[:, 0]
    path = torch.cat((position[step], height[step, None]), dim=-1)
    moved = [0]
    for index in range(1, len(path)):  # drops the points of a standing car, whose direction is undefined
        if float((path[index, :2] - path[moved[-1], :2]).norm()) > 0.5:
            moved.append(index)
    path, course = path[moved], heading[step[moved]]
    ahead = torch.stack((course.cos(), course.sin(), torch.zeros_like(course)), dim=-1)
    line = torch.cat((path[:1] - 20 * ahead[:1], path, path[-1:] + 60 * ahead[-1:]))
    return resample_polyline(line, 2.0)


def _lane_markings(lines: list[list[list[float]]]) -> dict[str, Tensor]:
    """Return polyline, polyline_valid and polyline_kind of lane lines, about 2.5 m between points, at most 10 points each."""
    pieces = [
        piece
        for row, line in enumerate(lines)
        if len(line) > 1
        for piece in split_polyline(resample_polyline(_numbers(line, (len(line), 3), f"lane_lines[{row}]").float(), 2.5), 10)
    ]
    pieces = [piece for piece in pieces if len(piece) > 1]
    polyline, valid = torch.zeros(len(pieces), 10, 3), torch.zeros(len(pieces), 10, dtype=torch.bool)
    for row, piece in enumerate(pieces):
        polyline[row, : len(piece)], valid[row, : len(piece)] = piece, True
    kind = torch.full((len(pieces),), PolylineKind.LANE_MARKING, dtype=torch.int64)
    return {"polyline": polyline, "polyline_valid": valid, "polyline_kind": kind}
