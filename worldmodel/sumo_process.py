"""SUMO itself: netconvert, one running simulation, and the worker process around it. The only file that imports SUMO.

It knows neither torch nor `Scene`, so that a worker starts in half a second and stays small. libsumo holds one simulation a
process; `Simulation` says so when a second one is opened.

The worker (`python -m worldloop.worldmodel.sumo_process`, started by `SumoWorld`) brings a simulation to the present of a scene
and forks: the child drives on with the ego, the parent keeps the present, so that going back there costs a fork and no
simulation. SUMO's own saved states would not do: continued from one, vehicles stand up to metres elsewhere after ten seconds, and
not even the same twice (measured with SUMO 1.28). Simulated again from the beginning, they stand in the same place to the bit.

SUMO gives the middle of the front bumper and degrees clockwise from north; everything that leaves this file is the centre of the
box and radians counter-clockwise from +x, in the network's coordinates.

Values are read agent by agent, which in libsumo is a call within the process (0.2 microseconds); subscriptions are no faster.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, NoReturn
from xml.etree import ElementTree

import defusedxml.ElementTree
import numpy as np

from .networks import Network, make_network

TICK = 0.1
"""Seconds of one simulation step."""

RECIPE_VERSION = 1
"""Version of `Scene.recipe`, JSON with: version, source, begin (tick of step 0), ego, offset of the scene's frame in the network,
agents in the order of dimension A, signals as (traffic light, link index) in the order of dimension S."""

PERSON = "person:"
"""What stands before a pedestrian's id, because SUMO lets vehicles and persons share ids."""

_FIXED_OPTIONS = (
    *("--step-length", str(TICK), "--lateral-resolution", "0.8", "--collision.action", "none", "--time-to-teleport", "-1"),
    *("--intermodal-collision.action", "none", "--no-step-log", "true", "--no-warnings", "true", "--verbose", "false"),
    *("--xml-validation", "never", "--xml-validation.net", "never", "--xml-validation.routes", "never", "--end", "1000000"),
    *("--pedestrian.striping.walkingarea-detail", "24"),
)
"""The sublane model moves vehicles sideways smoothly; nobody is removed or set elsewhere, whatever the ego does."""

_INPUT_OPTIONS = ("net-file", "route-files", "additional-files")
_LEFT_OUT_OPTIONS = frozenset(
    "seed srand random abs-rand log log-file message-log error-log netstate netstate-dump ndump summary tripinfo personinfo "
    "vehroutes personroutes person-fcd device.toc.file configuration-file c C l".split()
)
_LEFT_OUT_PREFIXES = ("save-", "dump-", "write-", "device.ssm.")
"""Options of a user's configuration that make random numbers differ each time or that write files, under all their names."""

_DETECTORS = frozenset(
    "inductionLoop e1Detector instantInductionLoop laneAreaDetector e2Detector entryExitDetector e3Detector edgeData laneData "
    "routeProbe timedEvent vTypeProbe".split()
)


REMEDY = 'pip install "worldloop[sumo]" (in a clone: pip install ".[sumo]", see the README)'


class MissingDependencyError(ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


def require_sumo() -> None:
    """Raise MissingDependencyError if SUMO is not installed, without loading it."""
    for name in ("libsumo", "sumo"):
        if importlib.util.find_spec(name) is None:
            raise MissingDependencyError(f"SUMO is not installed (no module {name}): {REMEDY}")


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingDependencyError(f"SUMO cannot be used ({error}): {REMEDY}") from error


@dataclass(frozen=True)
class Inputs:
    """What a simulation reads: the network file and SUMO's options (input files among them)."""

    network: Path
    options: tuple[str, ...]


def source_inputs(source: dict[str, Any], folder: Path) -> Inputs:
    """Return what SUMO needs for the `source` of a recipe: {"template", "seed"} or {"config", "seed"}; see the two below."""
    if "config" in source:
        return config_inputs(Path(source["config"]), folder)
    return template_inputs(source["template"], source["seed"], folder)


def template_inputs(template: str, seed: int, folder: Path) -> Inputs:
    """Draw a place from a template and let netconvert build it in `folder`; raises as `make_network`, `build_network`."""
    return build_network(make_network(template, seed), folder)


def build_network(texts: Network, folder: Path) -> Inputs:
    """Write the files of a network into `folder` and let netconvert build it.

    Raises:
        ValueError: netconvert refuses (with what it said).
        MissingDependencyError: SUMO is not installed.
    """
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
        raise ValueError(f"netconvert could not build the network in {folder}:\n{done.stderr.strip()}")
    return Inputs(network, ("--net-file", str(network), "--route-files", str(files["demand"])))


def config_inputs(config: Path, folder: Path) -> Inputs:
    """Read a user's .sumocfg: its inputs and how it wants them processed, but none of its outputs and random numbers.

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
            elif not _is_left_out(entry.tag):
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


def _is_left_out(option: str) -> bool:
    """Whether an option of a user's configuration is fixed here, chooses random numbers or writes a file."""
    named = f"--{option}" in _FIXED_OPTIONS or option in _LEFT_OUT_OPTIONS or "output" in option
    return named or option.startswith(_LEFT_OUT_PREFIXES)


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

    def __init__(self, inputs: Inputs, seed: int) -> None:
        self._sumo: Any = _import("libsumo")
        if self._sumo.isLoaded():
            raise RuntimeError("this process runs a SUMO simulation already: close it first, or use another process")
        command = ["sumo", *inputs.options, *_FIXED_OPTIONS, "--seed", str(seed % 2**31)]
        try:
            self._sumo.start(command)
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

    def knows(self, vehicle: str) -> bool:
        """Whether a vehicle is in the network."""
        return vehicle in self._sumo.vehicle.getIDList()

    def speed(self, agent: str) -> float:
        """Return metres per second of an agent that is there."""
        if agent.startswith(PERSON):
            return self._sumo.person.getSpeed(agent.removeprefix(PERSON))
        return self._sumo.vehicle.getSpeed(agent)


class _Branch:
    """A simulation from the present of a scene on, as the worker's child drives it.

    The request "open" says what is asked for: `agents`, `signals` ((light, link) each), `ego`, `offset` of the scene's frame.
    """

    def __init__(self, simulation: Simulation, request: dict[str, Any]) -> None:
        self.simulation, self.request = simulation, request
        self.before: dict[str, np.ndarray] = {}

    def tick(self) -> None:
        frame = self.simulation.observe()
        self.before = dict(zip(frame.ids, frame.pose, strict=True))
        self.simulation.tick()

    def step(self, x: float, y: float, heading: float) -> None:
        """Move the ego to a pose in the scene's frame, everyone else as SUMO wants; an ego that left the network stays away."""
        ego, offset = self.request["ego"], self.request["offset"]
        if self.simulation.knows(ego):
            self.simulation.move(ego, x + offset[0], y + offset[1], heading)
        self.tick()

    def reply(self) -> dict[str, Any]:
        """Return x, y, z, heading and velocity of each agent asked for (None: not there), and the signals' letters."""
        frame, offset = self.simulation.observe(), self.request["offset"]
        now = dict(zip(frame.ids, frame.pose, strict=True))
        agents: list[list[float] | None] = []
        for name in self.request["agents"]:
            if name not in now:
                agents.append(None)
                continue
            x, y, z, heading = now[name].tolist()
            if name in self.before:
                velocity = ((now[name] - self.before[name])[:2] / TICK).tolist()
            else:
                speed = self.simulation.speed(name)
                velocity = [speed * math.cos(heading), speed * math.sin(heading)]
            agents.append([x - offset[0], y - offset[1], z, heading, *velocity])
        shown = self.simulation.signals()
        return {"agents": agents, "signals": "".join(shown[light][link] for light, link in self.request["signals"])}


_REWIND, _LEAVE, _END, _FAILED = 10, 11, 12, 13
_CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)


def _run_child(branch: _Branch, requests: BinaryIO, replies: BinaryIO) -> NoReturn:
    """Drive a branch in a forked process, which must never go on as its parent; its exit code says what comes next."""
    code = _FAILED
    try:
        code = _drive(branch, requests, replies)
    finally:
        if code == _FAILED:
            traceback.print_exc()
        os._exit(code)


def _drive(branch: _Branch, requests: BinaryIO, replies: BinaryIO) -> int:
    """Answer requests about one branch until it is left; returns what the worker shall do next."""
    _send(replies, branch.reply())
    while line := requests.readline():
        request = json.loads(line)
        if request["do"] == "rewind":
            return _REWIND
        if request["do"] == "leave":
            return _LEAVE
        for motion in request["motions"]:
            branch.step(*motion)
        _send(replies, branch.reply())
    return _END


def _send(replies: BinaryIO, reply: dict[str, Any]) -> None:
    replies.write(json.dumps(reply).encode() + b"\n")
    replies.flush()


def _serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """The worker: opens scenes and forks their branches until there are no more requests.

    Requests and replies are lines of JSON, one reply for each request: {"do": "open", "network", "options", "seed", "present" and
    what `_Branch` needs}, {"do": "step", "motions": [[x, y, heading], ...]}, {"do": "rewind"}, {"do": "leave"}.
    """
    while line := requests.readline():
        request = json.loads(line)
        try:
            simulation = Simulation(Inputs(Path(request["network"]), tuple(request["options"])), request["seed"])
        except (ValueError, MissingDependencyError) as error:
            _send(replies, {"error": str(error)})
            continue
        with simulation:
            simulation.tick(request["present"] - 1)
            branch = _Branch(simulation, request)
            branch.tick()
            code = _REWIND
            while code == _REWIND:
                child = os.fork()
                if child == 0:
                    _run_child(branch, requests, replies)
                code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if -code in _CRASHES:
            print(f"SUMO itself crashed ({signal.Signals(-code).name})", file=sys.stderr)
        elif code < 0 and -code != signal.SIGPIPE:  # nobody reads any more: the end of all requests
            print(f"killed ({signal.Signals(-code).name}): is there memory enough for so many workers?", file=sys.stderr)
        if code != _LEAVE:
            sys.exit(0 if code == _END else 1)
        _send(replies, {})


def _main() -> None:
    """Serve on standard input and output; what SUMO itself prints goes to the error output.

    The worker ends with its input: not at Ctrl-C, which is for who started it, and without complaint when nobody reads any more.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _serve(sys.stdin.buffer, replies)


if __name__ == "__main__":
    _main()
