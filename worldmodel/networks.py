"""Road networks and traffic of our own as SUMO's XML input, written as text; imports no SUMO.

A template is a kind of place (four-way signalised crossing, roundabout, T with priority, motorway merge, arterial with
pedestrians). Everything else about it follows from the seed: lane counts, speed limits, arm lengths, angles, curvature, signal
timing, who drives there and how. The same template and seed give the same text, byte for byte.

Drivers differ as people do: every vehicle type is drawn from a cautious, a normal or an aggressive style, which sets SUMO's
car-following, junction and lane-change parameters (https://sumo.dlr.de/docs/Definition_of_Vehicles,_Vehicle_Types,_and_Routes.html).
The car-following models are Krauss (with its dawdling held for a second, because dawdling drawn anew every 0.1 s is mere jitter),
IDM and EIDM.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any


@dataclass(frozen=True)
class Network:
    """The texts that netconvert and SUMO read.

    Attributes:
        nodes, edges, connections: netconvert's plain XML (`connections` also holds the pedestrian crossings).
        demand: vehicle types, flows and pedestrians for SUMO.
        options: further command-line options of netconvert.
    """

    nodes: str
    edges: str
    connections: str
    demand: str
    options: tuple[str, ...] = ()


@dataclass
class _Plan:
    """A network while it is drawn: elements by file, and which trips it can carry."""

    nodes: list[str] = field(default_factory=list)
    edges: list[str] = field(default_factory=list)
    connections: list[str] = field(default_factory=list)
    trips: list[tuple[str, str, float]] = field(default_factory=list)
    walks: list[tuple[str, str]] = field(default_factory=list)
    options: list[str] = field(default_factory=list)

    def node(self, name: str, x: float, y: float, kind: str = "priority") -> None:
        self.nodes.append(element("node", id=name, x=x, y=y, type=kind))

    def edge(self, name: str, start: str, end: str, lanes: int, speed: float, priority: int, **extra: Any) -> None:
        self.edges.append(
            element("edge", id=name, **{"from": start, "to": end}, numLanes=lanes, speed=speed, priority=priority, **extra)
        )

    def network(self, drivers: list[str], flows: list[str]) -> Network:
        return Network(
            nodes=_document("nodes", self.nodes),
            edges=_document("edges", self.edges),
            connections=_document("connections", self.connections),
            demand=_document("routes", drivers + flows),
            options=tuple(self.options),
        )


def element(name: str, children: Sequence[str] = (), **attributes: Any) -> str:
    """Return one XML element; floats get three decimals, so that text does not depend on the platform's printing."""
    written = " ".join(
        f'{key}="{value:.3f}"' if isinstance(value, float) else f'{key}="{value}"' for key, value in attributes.items()
    )
    return f"<{name} {written}>{''.join(children)}</{name}>" if children else f"<{name} {written}/>"


def _document(root: str, elements: Sequence[str]) -> str:
    return "\n".join([f"<{root}>", *elements, f"</{root}>"]) + "\n"


def _polar(radius: float, angle: float) -> tuple[float, float]:
    return radius * math.cos(angle), radius * math.sin(angle)


@dataclass(frozen=True)
class _Arm:
    """A two-way road from a junction outwards."""

    angle: float
    length: float
    lanes_in: int
    lanes_out: int
    speed: float
    priority: int
    sidewalk: bool
    bicycle_lane: bool


def _add_arm(plan: _Plan, random: Random, name: str, junction: str, at: tuple[float, float], arm: _Arm) -> None:
    """Add the outer node and the edges `name`_in (towards the junction) and `name`_out; further out the road may bend."""
    bend = random.uniform(-0.06, 0.06) * arm.length
    along, across = _polar(1.0, arm.angle), _polar(1.0, arm.angle + math.pi / 2)
    points = []
    for share in (0.0, *(0.3 + part * 0.7 / 24 for part in range(25))):
        side = bend * max(share - 0.3, 0.0) ** 2 / 0.49
        points.append(
            (at[0] + share * arm.length * along[0] + side * across[0], at[1] + share * arm.length * along[1] + side * across[1])
        )
    plan.node(f"{name}_end", *points[-1])
    shape = lambda row: " ".join(f"{x:.3f},{y:.3f}" for x, y in row)  # noqa: E731
    extra: dict[str, Any] = {}
    if arm.sidewalk:
        extra["sidewalkWidth"] = random.choice((2.0, 2.5, 3.0))
    if arm.bicycle_lane:
        extra["bikeLaneWidth"] = random.choice((1.5, 2.0))
    plan.edge(f"{name}_in", f"{name}_end", junction, arm.lanes_in, arm.speed, arm.priority, shape=shape(points[::-1]), **extra)
    plan.edge(f"{name}_out", junction, f"{name}_end", arm.lanes_out, arm.speed, arm.priority, shape=shape(points), **extra)


def _cross_arms(plan: _Plan, junction: str, arms: Sequence[str], priority: bool) -> None:
    """Let pedestrians cross the given arms (or pairs of edges) at a junction."""
    for arm in arms:
        edges = f"{arm}_in {arm}_out"
        plan.connections.append(element("crossing", node=junction, edges=edges, priority=str(priority).lower(), width=3.5))


def _four_way(random: Random) -> _Plan:
    """A signalised crossing of two roads."""
    plan = _Plan()
    sidewalk, bicycle_lane = random.random() < 0.6, random.random() < 0.3
    lanes = [random.choice((1, 2, 2, 3)), random.choice((1, 1, 2, 2))]
    speeds = [random.choice((11.11, 13.89, 16.67)), random.choice((8.33, 11.11, 13.89))]
    skew = random.uniform(-0.3, 0.3)
    plan.node("c", 0.0, 0.0, "traffic_light")
    names = ["east", "north", "west", "south"]
    for turn, name in enumerate(names):
        road = turn % 2
        angle = turn * math.pi / 2 + (skew if road else 0.0) + random.uniform(-0.1, 0.1)
        incoming = min(lanes[road] + (random.random() < 0.3), 3)
        arm = _Arm(angle, random.uniform(120, 200), incoming, lanes[road], speeds[road], 2 - road, sidewalk, bicycle_lane)
        _add_arm(plan, random, name, "c", (0.0, 0.0), arm)
    _pair_all(plan, names, random)
    if sidewalk:
        _cross_arms(plan, "c", names, priority=True)
    plan.options += ["--tls.layout", random.choice(("opposites", "opposites", "incoming"))]
    plan.options += [
        "--tls.default-type",
        random.choice(("static", "actuated")),
        "--tls.cycle.time",
        str(random.choice((60, 75, 90))),
    ]
    return plan


def _pair_all(plan: _Plan, names: Sequence[str], random: Random) -> None:
    """Let traffic go from every arm to every other one, some ways being more liked than others."""
    liked = {name: random.uniform(0.5, 1.5) for name in names}
    for start in names:
        for goal in names:
            if start != goal:
                plan.trips.append((f"{start}_in", f"{goal}_out", liked[start] * liked[goal]))
                plan.walks.append((f"{start}_in", f"{goal}_out"))


def _roundabout(random: Random) -> _Plan:
    """A roundabout with three to five arms; who is in it has the right of way."""
    plan = _Plan()
    count = random.choice((3, 4, 4, 4, 5))
    ring_lanes = random.choice((1, 1, 1, 2))
    radius = random.uniform(16, 22) + (4 if count == 5 else 0) + 3 * (ring_lanes - 1)
    speed, ring_speed = random.choice((8.33, 11.11, 13.89)), random.uniform(6.9, 9.0)
    turn = random.uniform(0, 2 * math.pi)
    angles = [turn + (place + random.uniform(-0.12, 0.12)) * 2 * math.pi / count for place in range(count)]
    names = [f"arm{place}" for place in range(count)]
    for place, angle in enumerate(angles):
        plan.node(f"r{place}", *_polar(radius, angle))
    for place, angle in enumerate(angles):
        following = (place + 1) % count
        sweep = (angles[following] - angle) % (2 * math.pi)
        arc = [_polar(radius, angle + sweep * part / 48) for part in range(49)]
        shape = " ".join(f"{x:.3f},{y:.3f}" for x, y in arc)
        plan.edge(f"ring{place}", f"r{place}", f"r{following}", ring_lanes, ring_speed, 5, shape=shape)
        lanes = random.choice((1, ring_lanes))
        arm = _Arm(angle, random.uniform(100, 170), lanes, lanes, speed, 1, False, False)
        _add_arm(plan, random, names[place], f"r{place}", _polar(radius, angle), arm)
    rings = " ".join(f"ring{place}" for place in range(count))
    nodes = " ".join(f"r{place}" for place in range(count))
    plan.edges.append(element("roundabout", nodes=nodes, edges=rings))
    _pair_all(plan, names, random)
    return plan


def _t_priority(random: Random) -> _Plan:
    """A side road that meets a main road which has priority."""
    plan = _Plan()
    sidewalk, bicycle_lane = random.random() < 0.5, random.random() < 0.3
    lanes, speed = random.choice((1, 1, 2)), random.choice((11.11, 13.89, 16.67, 19.44))
    plan.node("c", 0.0, 0.0, random.choice(("priority", "priority", "priority_stop")))
    side = math.pi / 2 + random.uniform(-0.45, 0.45)
    for name, angle in (("west", math.pi + random.uniform(-0.15, 0.15)), ("east", random.uniform(-0.15, 0.15)), ("side", side)):
        main = name != "side"
        arm = _Arm(
            angle,
            random.uniform(120, 200) if main else random.uniform(90, 150),
            lanes if main else 1,
            lanes if main else 1,
            speed if main else random.choice((8.33, 11.11)),
            3 if main else 1,
            sidewalk,
            bicycle_lane,
        )
        _add_arm(plan, random, name, "c", (0.0, 0.0), arm)
    _pair_all(plan, ["west", "east", "side"], random)
    if sidewalk:
        _cross_arms(plan, "c", ["side"] if speed > 14 else ["side", "west"], priority=True)
    return plan


def _merge(random: Random) -> _Plan:
    """A motorway with an on-ramp; in some, the extra lane leads on to an off-ramp, so that traffic weaves."""
    plan = _Plan()
    lanes, speed = random.choice((2, 2, 3, 4)), random.choice((22.22, 27.78, 30.56, 33.33))
    before, shared, after = random.uniform(280, 380), random.uniform(160, 280), random.uniform(300, 400)
    weave, slope = random.random() < 0.4, random.uniform(0.12, 0.3)
    ramp_speed = random.choice((13.89, 16.67, 19.44))
    plan.node("start", -before, random.uniform(-25, 25))
    plan.node("gore", 0.0, 0.0)
    plan.node("nose", shared, 0.0)
    plan.node("end", shared + after, random.uniform(-30, 30))
    width = 3.5
    plan.edge("before", "start", "gore", lanes, speed, 10, width=width)
    plan.edge("shared", "gore", "nose", lanes + 1, speed, 10, width=width)
    plan.edge("after", "nose", "end", lanes, speed, 10, width=width)
    drop = random.uniform(160, 220)
    bend = " ".join(
        f"{-drop * share:.3f},{-width * lanes - drop * slope * share**2:.3f}" for share in (1 - part / 24 for part in range(25))
    )
    plan.node("ramp_start", -drop, -width * lanes - drop * slope)
    plan.edge("ramp", "ramp_start", "gore", 1, ramp_speed, 5, width=width, shape=bend)
    join = lambda start, lane, end, to: element("connection", **{"from": start}, to=end, fromLane=lane, toLane=to)  # noqa: E731
    plan.connections.append(join("ramp", 0, "shared", 0))
    plan.connections += [join("before", lane, "shared", lane + 1) for lane in range(lanes)]
    plan.connections += [join("shared", lane + 1, "after", lane) for lane in range(lanes)]
    plan.trips += [("before", "after", 5.0 * lanes), ("ramp", "after", random.uniform(2.0, 5.0))]
    if weave:
        bend = " ".join(
            f"{shared + drop * share:.3f},{-width * lanes - drop * slope * share**2:.3f}"
            for share in (part / 24 for part in range(25))
        )
        plan.node("exit_end", shared + drop, -width * lanes - drop * slope)
        plan.edge("exit", "nose", "exit_end", 1, ramp_speed, 5, width=width, shape=bend)
        plan.connections.append(join("shared", 0, "exit", 0))
        plan.trips += [("before", "exit", random.uniform(1.0, 3.0))]
    return plan


def _arterial(random: Random) -> _Plan:
    """A wide street with two signalised junctions and a crossing between them that pedestrians use."""
    plan = _Plan()
    lanes, speed = random.choice((2, 2, 3)), random.choice((11.11, 13.89, 13.89, 16.67))
    bicycle_lane = random.random() < 0.4
    first, second = random.uniform(80, 130), random.uniform(80, 130)
    walk: dict[str, Any] = {"sidewalkWidth": random.choice((2.0, 3.0))}
    if bicycle_lane:
        walk["bikeLaneWidth"] = 1.5
    middle = random.choice(("traffic_light", "priority", "priority"))
    plan.node("a", -first, 0.0, "traffic_light")
    plan.node("m", 0.0, random.uniform(-6, 6), middle)
    plan.node("b", second, 0.0, "traffic_light")
    for start, end in (("a", "m"), ("m", "b")):
        plan.edge(f"{start}{end}_in", start, end, lanes, speed, 4, **walk)
        plan.edge(f"{start}{end}_out", end, start, lanes, speed, 4, **walk)
    names = []
    for junction, at, outward in (("a", -first, math.pi), ("b", second, 0.0)):
        arms = [(f"{junction}_main", outward + random.uniform(-0.1, 0.1), lanes, speed, 4)]
        for side in random.choice(((1,), (-1,), (1, -1), (1, -1))):
            angle = side * math.pi / 2 + random.uniform(-0.2, 0.2)
            arms.append((f"{junction}_{'left' if side > 0 else 'right'}", angle, 1, random.choice((8.33, 11.11)), 1))
        for name, angle, count, limit, priority in arms:
            arm = _Arm(angle, random.uniform(80, 140), count, count, limit, priority, True, bicycle_lane)
            _add_arm(plan, random, name, junction, (at, 0.0), arm)
            names.append(name)
        _cross_arms(plan, junction, [name for name, *_ in arms], priority=True)
    _cross_arms(plan, "a", ["am"], priority=True)
    _cross_arms(plan, "b", ["mb"], priority=True)
    _cross_arms(plan, "m", ["am"], priority=True)
    _pair_all(plan, names, random)
    plan.trips += [("a_main_in", "b_main_out", 4.0), ("b_main_in", "a_main_out", 4.0)]
    plan.walks += [("am_in", "am_out"), ("mb_in", "am_out"), ("am_out", "mb_in"), ("mb_out", "mb_in")] * 2
    plan.options += [
        "--tls.default-type",
        random.choice(("static", "actuated")),
        "--tls.cycle.time",
        str(random.choice((50, 60, 75))),
    ]
    return plan


@dataclass(frozen=True)
class _Traffic:
    """How much goes on: vehicles, bicycles and pedestrians an hour (low, high), and the share of trucks."""

    vehicles: tuple[float, float]
    bicycles: tuple[float, float]
    pedestrians: tuple[float, float]
    trucks: float


_TEMPLATES: dict[str, tuple[Callable[[Random], _Plan], _Traffic]] = {
    "crossing": (_four_way, _Traffic((900, 2200), (60, 250), (200, 700), 0.07)),
    "roundabout": (_roundabout, _Traffic((700, 1700), (0, 120), (0, 0), 0.07)),
    "t_priority": (_t_priority, _Traffic((600, 1400), (40, 200), (100, 400), 0.07)),
    "merge": (_merge, _Traffic((2200, 4800), (0, 0), (0, 0), 0.15)),
    "arterial": (_arterial, _Traffic((1200, 2600), (60, 250), (500, 1400), 0.05)),
}

TEMPLATES: tuple[str, ...] = tuple(_TEMPLATES)
"""Names of the kinds of places that `make_network` can draw."""


def make_network(template: str, seed: int) -> Network:
    """Draw a place and its traffic.

    Args:
        template: one of `TEMPLATES`.
        seed: everything about it that varies; the same seed gives the same text.

    Raises:
        ValueError: there is no such template.
    """
    if template not in _TEMPLATES:
        raise ValueError(f"unknown network template {template!r}: known are {', '.join(TEMPLATES)}, or give a .sumocfg file")
    random = Random(f"{template}:{seed}")
    draw, traffic = _TEMPLATES[template]
    plan = draw(random)
    return plan.network(_drivers(random, traffic), _flows(random, plan, traffic))


_STYLED = ("tau", "accel", "decel", "minGap", "impatience", "lcSpeedGain", "lcAssertive", "speed")
_STYLES: tuple[tuple[float, tuple[tuple[float, float], ...]], ...] = (
    (0.3, ((1.5, 2.2), (1.3, 2.0), (2.5, 3.5), (2.2, 3.5), (0.0, 0.1), (0.3, 0.8), (0.8, 1.0), (0.82, 0.98))),  # cautious
    (0.5, ((1.0, 1.5), (1.8, 2.6), (3.0, 4.0), (1.5, 2.5), (0.0, 0.3), (0.8, 1.5), (1.0, 1.3), (0.95, 1.1))),  # normal
    (0.2, ((0.7, 1.0), (2.4, 3.4), (3.5, 4.5), (1.0, 1.6), (0.3, 0.7), (1.5, 3.0), (1.2, 1.8), (1.08, 1.3))),  # aggressive
)
"""Share of each style and the ranges of `_STYLED`; deceleration and headway span what Treiber and Kesting (Traffic Flow
Dynamics, 2013, chapter 11) give for real drivers; `speed` is the driver's factor on the speed limit."""

_BODIES: dict[str, dict[str, tuple[float, float]]] = {
    "passenger": {"length": (3.8, 5.2), "width": (1.7, 2.0), "height": (1.4, 1.9)},
    "truck": {"length": (7.0, 13.0), "width": (2.3, 2.55), "height": (3.0, 4.0)},
    "bus": {"length": (10.0, 12.5), "width": (2.5, 2.55), "height": (2.9, 3.3)},
    "motorcycle": {"length": (2.0, 2.3), "width": (0.75, 0.9), "height": (1.4, 1.7)},
    "bicycle": {"length": (1.6, 1.9), "width": (0.6, 0.75), "height": (1.6, 1.85)},
}
"""Ranges of length, width and height in metres by SUMO's vehicle class."""


def _drivers(random: Random, traffic: _Traffic) -> list[str]:
    """Return the distributions of motor vehicles ("driver") and bicycles ("cyclist") and the pedestrians' types ("walker")."""
    shares = {"passenger": 14, "truck": 4, "bus": 1, "motorcycle": 2}
    weight = {"truck": traffic.trucks / 4, "bus": 0.03, "motorcycle": 0.02}
    weight["passenger"] = (1 - traffic.trucks - 0.07) / 14
    types = [_vehicle_type(random, f"{name}{n}", name, weight[name]) for name, count in shares.items() for n in range(count)]
    cyclists = [_vehicle_type(random, f"bicycle{n}", "bicycle", 0.25) for n in range(4)]
    walkers = [
        element(
            "vType",
            id=f"walker{n}",
            vClass="pedestrian",
            length=0.5,
            width=random.uniform(0.5, 0.6),
            height=random.uniform(1.5, 1.9),
            maxSpeed=2.5,
            speedFactor=f"normc({random.uniform(0.75, 1.15):.3f},0.1,0.5,1.7)",
            probability=0.25,
        )
        for n in range(4)
    ]
    return [
        element("vTypeDistribution", types, id="driver"),
        element("vTypeDistribution", cyclists, id="cyclist"),
        element("vTypeDistribution", walkers, id="walker"),
    ]


def _vehicle_type(random: Random, name: str, vehicle_class: str, probability: float) -> str:
    """Draw a style and a body; heavy and muscle-driven vehicles accelerate less."""
    _, style = random.choices(_STYLES, weights=[share for share, _ in _STYLES])[0]
    drawn = {key: random.uniform(*limits) for key, limits in zip(_STYLED, style, strict=True)}
    body = {key: random.uniform(*limits) for key, limits in _BODIES[vehicle_class].items()}
    speed = drawn.pop("speed")
    model = random.choice(("Krauss", "IDM", "IDM", "EIDM"))
    extra: dict[str, Any] = {"sigma": random.uniform(0.2, 0.6), "sigmaStep": 1.0} if model == "Krauss" else {}
    if vehicle_class in ("truck", "bus"):
        drawn["accel"] *= 0.55
    if vehicle_class == "bicycle":
        drawn |= {"accel": random.uniform(0.7, 1.2), "decel": random.uniform(2.0, 3.0), "minGap": random.uniform(0.5, 1.2)}
        extra |= {"maxSpeed": random.uniform(3.8, 7.5), "latAlignment": "right", "minGapLat": 0.4}
        speed, model = 1.0, "IDM"
        extra.pop("sigma", None)
        extra.pop("sigmaStep", None)
    elif vehicle_class == "truck":
        extra["maxSpeed"] = 25.0
    return element(
        "vType",
        id=name,
        vClass=vehicle_class,
        carFollowModel=model,
        speedFactor=f"normc({speed:.3f},0.05,0.6,1.5)",
        emergencyDecel=9.0,
        lcCooperative=random.uniform(0.6, 1.0),
        maxSpeedLat=random.uniform(0.8, 1.3) if vehicle_class != "bicycle" else 0.7,
        probability=probability,
        **drawn,
        **body,
        **extra,
    )


def _flows(random: Random, plan: _Plan, traffic: _Traffic) -> list[str]:
    """Return flows for every trip of the plan; each emits at random, on average its share of the whole traffic an hour."""
    total = sum(weight for _, _, weight in plan.trips)
    flows = []
    rates = {"driver": random.uniform(*traffic.vehicles), "cyclist": random.uniform(*traffic.bicycles)}
    for kind, rate in rates.items():
        for number, (start, goal, weight) in enumerate(plan.trips):
            chance = min(rate * weight / total / 3600, 0.9)
            if chance > 0:
                ways = {"from": start, "to": goal, "departLane": "best", "departSpeed": "max", "departPosLat": "center"}
                if kind == "cyclist":
                    ways |= {"departPosLat": "right"}
                flows.append(
                    element("flow", id=f"{kind}{number}", type=kind, begin=0, end=36000, probability=f"{chance:.6f}", **ways)
                )
    rate = random.uniform(*traffic.pedestrians) if any("sidewalkWidth" in edge for edge in plan.edges) else 0.0
    for number, (start, goal) in enumerate(plan.walks):
        chance = rate / len(plan.walks) / 3600
        if chance > 0:
            walk = element("walk", **{"from": start, "to": goal}, arrivalPos="random")
            flows.append(
                element(
                    "personFlow",
                    [walk],
                    id=f"person{number}",
                    type="walker",
                    begin=0,
                    end=36000,
                    probability=f"{chance:.6f}",
                    departPos="random",
                )
            )
    return flows
