"""SUMO itself: netconvert, one running simulation, and the worker process around it. The only file that imports SUMO.

It knows neither torch nor `Scene`, so that a worker starts in half a second and stays small. libsumo holds one simulation a
process; `Simulation` says so when a second one is opened.

SUMO gives the middle of the front bumper and degrees clockwise from north; everything that leaves this file is the centre of the
box and radians counter-clockwise from +x, in the network's coordinates.

Values are read agent by agent: libsumo's subscriptions give the same values about three times slower, as nested dictionaries.
"""

from __future__ import annotations

import importlib
import math
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import defusedxml.ElementTree
import numpy as np

from .networks import make_network

TICK = 0.1
"""Seconds of one simulation step."""

PERSON = "person:"
"""What stands before a pedestrian's id, because SUMO lets vehicles and persons share ids."""

_FIXED_OPTIONS = (
    *("--step-length", str(TICK), "--lateral-resolution", "0.8", "--collision.action", "none", "--time-to-teleport", "-1"),
    *("--intermodal-collision.action", "none", "--no-step-log", "true", "--no-warnings", "true", "--verbose", "false"),
    *("--xml-validation", "never", "--xml-validation.net", "never", "--xml-validation.routes", "never", "--end", "1000000"),
    *("--pedestrian.striping.walkingarea-detail", "24"),
    *("--save-state.rng", "true", "--save-state.transportables", "true", "--save-state.precision", "17"),
)
"""The sublane model moves vehicles sideways smoothly; nobody is removed or set elsewhere, whatever the ego does."""

_INPUT_OPTIONS = ("net-file", "route-files", "additional-files")
_DETECTORS = frozenset(
    "inductionLoop e1Detector instantInductionLoop laneAreaDetector e2Detector entryExitDetector e3Detector edgeData laneData "
    "routeProbe timedEvent vTypeProbe".split()
)


class MissingDependencyError(ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingDependencyError(f'SUMO cannot be used ({error}): pip install "worldloop[sumo]"') from error


@dataclass(frozen=True)
class Inputs:
    """What a simulation reads: the network file and SUMO's options (input files among them)."""

    network: Path
    options: tuple[str, ...]


def template_inputs(template: str, seed: int, folder: Path) -> Inputs:
    """Write the files of a network template into `folder` and let netconvert build the network.

    Raises:
        ValueError: unknown template, or netconvert refuses (with what it said).
        MissingDependencyError: SUMO is not installed.
    """
    texts = make_network(template, seed)
    files = {name: folder / f"{name}.xml" for name in ("nodes", "edges", "connections", "demand")}
    for name, path in files.items():
        path.write_text(getattr(texts, name), encoding="utf-8")
    network = folder / "network.net.xml"
    command = [str(Path(_import("sumo").SUMO_HOME) / "bin" / "netconvert")]
    for option in ("node", "edge", "connection"):
        command += [f"--{option}-files", str(files[f"{option}s"])]
    command += ["--no-turnarounds", "--walkingareas", "--offset.disable-normalization", "--output-file", str(network)]
    command += ["--junctions.internal-link-detail", "30", "--junctions.corner-detail", "8", "--precision", "4", *texts.options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"netconvert could not build template {template!r} with seed {seed}:\n{done.stderr.strip()}")
    return Inputs(network, ("--net-file", str(network), "--route-files", str(files["demand"])))


def config_inputs(config: Path, folder: Path) -> Inputs:
    """Read a user's .sumocfg: its inputs and how it wants them processed, but none of its outputs.

    Detectors write files beside the configuration, so additional files go without them, as copies in `folder`.

    Raises:
        FileNotFoundError: the configuration or a file that it names is not there.
        ValueError: it is no SUMO configuration or names no network.
    """
    root = _parse(config)
    inputs: dict[str, list[Path]] = {}
    options: list[str] = []
    for section in root:
        if section.tag in ("output", "report", "gui_only", "traci_server"):
            continue
        for entry in [section] if "value" in section.attrib else section:
            value = entry.get("value", "")
            if entry.tag in _INPUT_OPTIONS:
                inputs[entry.tag] = [config.parent / name.strip() for name in value.split(",")]
            elif "output" not in entry.tag and f"--{entry.tag}" not in _FIXED_OPTIONS and entry.tag != "seed":
                options += [f"--{entry.tag}", value]
    if "net-file" not in inputs:
        raise ValueError(f"{config}: found no net-file in it, wanted a SUMO configuration (.sumocfg) with a network")
    for path in [path for paths in inputs.values() for path in paths]:
        if not path.is_file():
            raise FileNotFoundError(f"{config}: the file {path} that it names is not there")
    for number, path in enumerate(inputs.get("additional-files", [])):
        inputs["additional-files"][number] = _without_detectors(path, folder / f"{number}_{path.name}")
    for name, paths in inputs.items():
        options += [f"--{name}", ",".join(str(path.resolve()) for path in paths)]
    return Inputs(inputs["net-file"][0].resolve(), tuple(options))


def _parse(path: Path) -> ElementTree.Element:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    try:
        root = defusedxml.ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"{path}: not readable as XML ({error}): a SUMO file is wanted") from error
    assert root is not None
    return root


def _without_detectors(source: Path, copy: Path) -> Path:
    root = _parse(source)
    for child in list(root):
        if child.tag in _DETECTORS:
            root.remove(child)
    ElementTree.ElementTree(root).write(copy, encoding="utf-8", xml_declaration=True)
    return copy


@dataclass(frozen=True)
class Frame:
    """Everyone at one moment: n ids, `pose` (n, 4) x, y, z of the box's centre and heading, n lane ids ("" for persons)."""

    ids: list[str]
    pose: np.ndarray
    lane: list[str]


class Simulation:
    """The one SUMO simulation of this process, stepped by 0.1 s; a context manager.

    Raises:
        MissingDependencyError: SUMO is not installed.
        RuntimeError: this process runs one already.
        ValueError: SUMO refuses its input, with what it said.
    """

    def __init__(self, inputs: Inputs, seed: int, state: Path | None = None) -> None:
        self._sumo: Any = _import("libsumo")
        if self._sumo.isLoaded():
            raise RuntimeError("this process runs a SUMO simulation already: close it first, or use another process")
        command = ["sumo", *inputs.options, *_FIXED_OPTIONS, "--seed", str(seed % 2**31)]
        try:
            self._sumo.start(command + (["--load-state", str(state)] if state else []))
        except (self._sumo.TraCIException, self._sumo.FatalTraCIError) as error:
            raise ValueError(f"SUMO cannot run {inputs.network}: {error}") from error
        self._body: dict[str, tuple[float, float, float, str]] = {}

    def __enter__(self) -> Simulation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the simulation."""
        if self._sumo.isLoaded():
            self._sumo.close()

    def tick(self, count: int = 1) -> None:
        """Go on by `count` steps of 0.1 s."""
        for _ in range(count):
            self._sumo.simulationStep()

    def body(self, agent: str) -> tuple[float, float, float, str]:
        """Return length, width, height in metres and SUMO's vehicle class of an agent that is or was there."""
        if agent not in self._body:
            is_person = agent.startswith(PERSON)
            domain, name = (self._sumo.person, agent.removeprefix(PERSON)) if is_person else (self._sumo.vehicle, agent)
            kind = "pedestrian" if is_person else domain.getVehicleClass(name)
            self._body[agent] = (domain.getLength(name), domain.getWidth(name), domain.getHeight(name), kind)
        return self._body[agent]

    def observe(self, lanes: bool = False) -> Frame:
        """Return where everyone is; lane ids only if asked for. Persons in vehicles are not seen."""
        vehicle, person = self._sumo.vehicle, self._sumo.person
        ids, front, lane = [], [], []
        for name in vehicle.getIDList():
            x, y, z = vehicle.getPosition3D(name)
            ids.append(name)
            front.append((x, y, z, vehicle.getAngle(name), *self.body(name)[:3]))
            lane.append(vehicle.getLaneID(name) if lanes else "")
        for name in person.getIDList():
            if not person.getVehicle(name):
                x, y, z = person.getPosition3D(name)
                ids.append(PERSON + name)
                front.append((x, y, z, person.getAngle(name), *self.body(PERSON + name)[:3]))
                lane.append("")
        values = np.array(front, dtype=np.float64).reshape(-1, 7)
        heading = np.deg2rad(90.0 - values[:, 3])
        half = 0.5 * values[:, 4]
        pose = np.stack(
            (
                values[:, 0] - half * np.cos(heading),
                values[:, 1] - half * np.sin(heading),
                values[:, 2] + 0.5 * values[:, 6],
                (heading + np.pi) % (2 * np.pi) - np.pi,
            ),
            axis=1,
        )
        seen = np.abs(values[:, :2]).max(axis=1, initial=0) < 1e8  # SUMO's "nowhere" is -2^30
        if not seen.all():
            places = np.flatnonzero(seen)
            return Frame([ids[i] for i in places], pose[places], [lane[i] for i in places])
        return Frame(ids, pose, lane)

    def route(self, vehicle: str) -> tuple[list[str], int]:
        """Return the edges of a vehicle's route and the index of the one it is on (or has just left, in a junction)."""
        return list(self._sumo.vehicle.getRoute(vehicle)), self._sumo.vehicle.getRouteIndex(vehicle)

    def signals(self) -> dict[str, str]:
        """Return what every traffic light shows: one of SUMO's letters for each of its links."""
        light = self._sumo.trafficlight
        return {name: light.getRedYellowGreenState(name) for name in light.getIDList()}

    def signal_phases(self) -> dict[str, list[str]]:
        """Return all that every traffic light can show, over the phases of all its programs."""
        light = self._sumo.trafficlight
        return {
            name: [phase.state for logic in light.getAllProgramLogics(name) for phase in logic.phases]
            for name in light.getIDList()
        }

    def move(self, vehicle: str, x: float, y: float, heading: float) -> None:
        """Put the centre of a vehicle's box where it has driven to in the coming step; it may leave its lane, its route stays."""
        half = 0.5 * self.body(vehicle)[0]
        front = (x + half * math.cos(heading), y + half * math.sin(heading))
        self._sumo.vehicle.moveToXY(vehicle, "", -1, *front, angle=(90.0 - math.degrees(heading)) % 360.0, keepRoute=2)

    def save(self, path: Path) -> None:
        """Write the simulation's state, for the `state` of another `Simulation` of the same inputs."""
        self._sumo.simulation.saveState(str(path))
