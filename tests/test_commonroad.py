"""CommonRoad: a hand-made crossroads in both versions of the format, and the real scenarios where they are at hand."""

from __future__ import annotations

import gzip
import math
import re
from pathlib import Path

import pytest
import torch
from worldloop.worldmodel.data import DataError, Skipped, compressed, find_files, read
from worldloop.worldmodel.geometry import signed_distance_to_edges, wrap_angle
from worldloop.worldmodel.scene import AgentKind, LaneLinkKind, PolylineKind, Scene, SignalState

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "ngsim_commonroad"


def bound(tag: str, points: list[tuple[float, float]]) -> str:
    return f"<{tag}>" + "".join(f"<point><x>{x}</x><y>{y}</y></point>" for x, y in points) + f"</{tag}>"


def lanelet(name: int, start: tuple[float, float], end: tuple[float, float], width: float = 3.5, rest: str = "") -> str:
    heading = math.atan2(end[1] - start[1], end[0] - start[0])
    dx, dy = -math.sin(heading) * width / 2, math.cos(heading) * width / 2
    left, right = ([(x + side * dx, y + side * dy) for x, y in (start, end)] for side in (1, -1))
    return f'<lanelet id="{name}">{bound("leftBound", left)}{bound("rightBound", right)}{rest}</lanelet>'


def state(tag: str, step: int, x: float, y: float, heading: float = 0.0, *, interval: bool = False) -> str:
    def value(name: str, number: float) -> str:
        if interval:
            return f"<{name}><intervalStart>{number - 0.1}</intervalStart><intervalEnd>{number + 0.1}</intervalEnd></{name}>"
        return f"<{name}><exact>{number}</exact></{name}>"

    place = f"<position><point><x>{x}</x><y>{y}</y></point></position>"
    if interval:
        place = (
            f"<position><rectangle><length>1</length><width>1</width><center><x>{x}</x><y>{y}</y></center></rectangle></position>"
        )
    return f"<{tag}>{place}{value('orientation', heading)}<time><exact>{step}</exact></time>{value('velocity', 0)}</{tag}>"


def obstacle(
    name: int,
    x: float,
    y: float,
    speed: float,
    *,
    heading: float = 0.0,
    steps: int = 40,
    kind: str = "car",
    shape: str = "<rectangle><length>4.5</length><width>1.8</width></rectangle>",
    version: str = "2018b",
    interval: bool = False,
) -> str:
    dx, dy = 0.1 * speed * math.cos(heading), 0.1 * speed * math.sin(heading)
    states = [
        state("initialState" if k == 0 else "state", k, x + k * dx, y + k * dy, heading, interval=interval and k > 0)
        for k in range(steps)
    ]
    role = "static" if steps == 1 else "dynamic"
    tag = "obstacle" if version == "2018b" else f"{role}Obstacle"
    trajectory = f"<trajectory>{''.join(states[1:])}</trajectory>" if steps > 1 else ""
    written = f"<role>{role}</role>" if version == "2018b" else ""
    return f'<{tag} id="{name}">{written}<type>{kind}</type><shape>{shape}</shape>{states[0]}{trajectory}</{tag}>'


def reference(tag: str, name: int, rest: str = "") -> str:
    return f'<{tag} ref="{name}"{rest}/>'


SAME = ' drivingDir="same"'
SHARED_ROADS = (
    lanelet(1, (-60, 0), (0, 0), rest=reference("successor", 2) + reference("adjacentLeft", 5, SAME) + "{limit}")
    + lanelet(2, (0, 0), (20, 0), rest=reference("predecessor", 1) + reference("successor", 3))
    + lanelet(3, (20, 0), (60, 0), rest=reference("predecessor", 2))
    + lanelet(4, (10, -40), (10, 40))
    + lanelet(5, (-60, 3.5), (0, 3.5), rest=reference("adjacentRight", 1, SAME))
)


def scenario(
    *parts: str, version: str = "2018b", source: str = "a recording", roads: str = SHARED_ROADS, dt: str = "0.1"
) -> bytes:
    limit = (
        "<speedLimit>13.5</speedLimit>"
        if version == "2018b"
        else reference("trafficSignRef", 90) + reference("trafficLightRef", 91)
    )
    content = roads.replace("{limit}", limit) + "".join(parts)
    return (
        f'<?xml version="1.0"?><commonRoad benchmarkID="ZAM_Cross-1_1_T-1" commonRoadVersion="{version}" source="{source}" '
        f'timeStepSize="{dt}">{content}</commonRoad>'
    ).encode()


CARS = (obstacle(100, -50, 0, 10), obstacle(101, 10, -30, 5, heading=math.pi / 2), obstacle(102, -20, 3.5, 0))


def only(folder: Path, content: bytes) -> Scene:
    file = folder / "scenario.xml"
    file.write_bytes(content)
    (scene,) = read("commonroad", file)
    assert isinstance(scene, Scene)
    return scene


def lines_of(scene: Scene, kind: PolylineKind) -> list[torch.Tensor]:
    return [
        line[valid]
        for line, valid, found in zip(scene.polyline[0], scene.polyline_valid[0], scene.polyline_kind[0], strict=True)
        if found == kind
    ]


def test_cars_drive_as_recorded(tmp_path: Path):
    scene = only(tmp_path, scenario(*CARS))
    assert scene.id == ("commonroad/ZAM_Cross-1_1_T-1",)
    assert scene.sizes()["T"] == 40
    torch.testing.assert_close(scene.position[0, 0, 20], torch.tensor([-30, 0, 0.75]), atol=1e-3, rtol=0)
    torch.testing.assert_close(scene.velocity[0, 1, 20], torch.tensor([0.0, 5.0]), atol=1e-3, rtol=0)
    torch.testing.assert_close(scene.size[0, 0], torch.tensor([4.5, 1.8, 1.5]))


def test_plain_and_gzipped_files_are_the_same(tmp_path: Path):
    content = scenario(*CARS)
    plain = only(tmp_path, content)
    (tmp_path / "zipped.xml.gz").write_bytes(gzip.compress(content))
    (zipped,) = read("commonroad", tmp_path / "zipped.xml.gz")
    assert isinstance(zipped, Scene)
    assert torch.equal(plain.position, zipped.position)
    assert len(find_files("commonroad", tmp_path)) == 2


def test_the_ego_is_the_car_that_travels_furthest_in_the_longest_logs(tmp_path: Path):
    scene = only(tmp_path, scenario(*CARS))
    assert scene.ego.tolist() == [0]
    brief = obstacle(103, -60, 3.5, 30, steps=20)
    assert only(tmp_path, scenario(brief, *CARS)).ego.tolist() == [1]


def test_lanes_have_width_limit_and_links(tmp_path: Path):
    scene = only(tmp_path, scenario(*CARS))
    lane = scene.polyline_kind[0] <= PolylineKind.JUNCTION_LANE
    torch.testing.assert_close(scene.lane_width[0, lane], torch.full((int(lane.sum()),), 3.5))
    assert (scene.polyline_valid[0].sum(-1) <= 10).all()
    start = scene.polyline[0, :, 0, :2]
    first = int(((start - torch.tensor([-60.0, 0.0])).norm(dim=-1) + 100 * ~lane).argmin())
    assert scene.speed_limit_valid[0, first]
    assert scene.speed_limit[0, first] == pytest.approx(13.5)
    links = {(int(a), int(b)): int(k) for (a, b), k in zip(scene.lane_link[0], scene.lane_link_kind[0], strict=True)}
    chain = [first]
    while True:
        following = [b for (a, b), k in links.items() if a == chain[-1] and k == LaneLinkKind.SUCCESSOR]
        if not following:
            break
        (after,) = following
        end = scene.polyline[0, chain[-1]][scene.polyline_valid[0, chain[-1]]][-1]
        torch.testing.assert_close(end, scene.polyline[0, after, 0], atol=1e-4, rtol=0)
        chain.append(after)
    end = scene.polyline[0, chain[-1]][scene.polyline_valid[0, chain[-1]]][-1]
    torch.testing.assert_close(end[:2], torch.tensor([60.0, 0.0]))
    left = [b for (a, b), k in links.items() if a == first and k == LaneLinkKind.LEFT]
    assert scene.polyline[0, left[0], 0, 1] == pytest.approx(3.5)


def test_lanes_that_cross_are_junction_lanes(tmp_path: Path):
    scene = only(tmp_path, scenario(*CARS))
    crossing = lines_of(scene, PolylineKind.JUNCTION_LANE)
    assert {(round(float(line[0, 0])), round(float(line[-1, 0]))) for line in crossing} == {(0, 20), (10, 10)}
    assert len(lines_of(scene, PolylineKind.LANE_MARKING)) == 3  # 60 m between lanelets 1 and 5, in pieces of 22.5 m


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (-30, 0, -1.75),
        (-30, 3.5, -1.75),
        (-30, -3, 1.25),
        (-30, 7, 1.75),
        (10, 30, -1.75),
        (6, 30, 2.25),
        (20, -3, 1.25),
        (59, 0, -1.75),
        (70, 0, -1.75),
    ],
)
def test_the_road_lies_left_of_its_edges_and_goes_on_where_the_map_ends(tmp_path: Path, x: float, y: float, expected: float):
    scene = only(tmp_path, scenario(*CARS))
    edge = scene.polyline_kind[0] == PolylineKind.ROAD_EDGE
    distance = signed_distance_to_edges(
        torch.tensor([[x, y]], dtype=torch.float32), scene.polyline[0, edge][..., :2], scene.polyline_valid[0, edge]
    )
    assert math.copysign(1, distance) == math.copysign(1, expected)
    if x < 60:
        assert float(distance) == pytest.approx(expected, abs=0.1)


def test_the_route_follows_the_lanes_beyond_the_log(tmp_path: Path):
    route = only(tmp_path, scenario(obstacle(100, -50, 0.4, 10))).route[0]
    assert route[0, 0] == pytest.approx(-70, abs=2.6)
    assert route[-1, 0] == pytest.approx(-50 + 39 + 60, abs=2.6)
    assert route[:, 1].abs().max() < 0.05
    assert (torch.diff(route[:, :2], dim=0).norm(dim=-1) < 2.001).all()


def test_a_route_glides_where_the_car_changes_lanes(tmp_path: Path):
    way = [(-58 + 0.8 * k, 3.5 / (1 + math.exp(-(k - 30) / 4)) + 0.0) for k in range(60)]
    states = "".join(state("initialState" if k == 0 else "state", k, x, y) for k, (x, y) in enumerate(way))
    first, rest = states.split("</initialState>")
    car = (
        '<obstacle id="7"><role>dynamic</role><type>car</type><shape><rectangle><length>4.5</length><width>1.8</width>'
        f"</rectangle></shape>{first}</initialState><trajectory>{rest}</trajectory></obstacle>"
    )
    route = only(tmp_path, scenario(car)).route[0, :, :2]
    step = torch.diff(route, dim=0)
    heading = torch.atan2(step[:, 1], step[:, 0])
    assert wrap_angle(torch.diff(heading)).abs().max() < 0.3
    early, late = route[route[:, 0] < -48, 1], route[(route[:, 0] > -22) & (route[:, 0] < -12), 1]
    assert early.abs().max() < 0.1
    assert (late - 3.5).abs().max() < 0.1


def test_a_track_off_every_lane_is_its_own_route(tmp_path: Path):
    route = only(tmp_path, scenario(obstacle(100, -50, 30, 10))).route[0]
    torch.testing.assert_close(route[:, 1], torch.full((len(route),), 30.0), atol=1e-3, rtol=0)
    assert route[0, 0] == pytest.approx(-70, abs=0.01)
    assert route[-1, 0] == pytest.approx(-11 + 60, abs=0.6)


def test_a_car_that_never_moves_looks_along_its_lane(tmp_path: Path):
    scene = only(tmp_path, scenario(CARS[0], obstacle(102, -20, 3.4, 0, heading=2.5)))
    assert scene.heading[0, 1].abs().max() < 1e-3


def test_shapes_kinds_and_static_obstacles(tmp_path: Path):
    polygon = bound("polygon", [(-1, -1), (5, -1), (5, 1), (-1, 1)])
    scene = only(
        tmp_path,
        scenario(
            CARS[0],
            obstacle(1, -30, -6, 1, kind="pedestrian", shape="<circle><radius>0.4</radius></circle>"),
            obstacle(2, -30, 8, 3, kind="bicycle"),
            obstacle(3, 0, 9, 0, steps=1, kind="parkedVehicle", heading=math.pi / 2),
            obstacle(4, 30, 9, 0, steps=1, kind="constructionZone", shape=polygon),
        ),
    )
    kind = AgentKind
    assert scene.kind[0].tolist() == [kind.VEHICLE, kind.PEDESTRIAN, kind.CYCLIST, kind.VEHICLE, kind.OBJECT]
    torch.testing.assert_close(scene.size[0, 1, :2], torch.tensor([0.8, 0.8]))
    torch.testing.assert_close(scene.size[0, 4, :2], torch.tensor([6.0, 2.0]))
    torch.testing.assert_close(scene.position[0, 4, 5, :2], torch.tensor([32.0, 9.0]))  # the middle of the polygon
    assert scene.valid[0, 3:].all()
    assert scene.heading[0, 3, 0] == pytest.approx(math.pi / 2)
    assert scene.ego.tolist() == [0]


def test_intervals_count_as_their_middle(tmp_path: Path):
    exact = only(tmp_path, scenario(obstacle(100, -50, 0, 10)))
    interval = only(tmp_path, scenario(obstacle(100, -50, 0, 10, interval=True)))
    torch.testing.assert_close(exact.position, interval.position)
    torch.testing.assert_close(exact.heading, interval.heading)


@pytest.mark.parametrize(("dt", "recorded", "steps"), [("0.2", 20, 39), ("0.04", 100, 40)])
def test_other_rates_are_brought_to_10_hz(tmp_path: Path, dt: str, recorded: int, steps: int):
    scene = only(tmp_path, scenario(obstacle(100, -50, 0, 10, steps=recorded), dt=dt))  # 1 m a recorded step
    assert scene.steps == steps
    assert scene.valid[0, 0].all()
    torch.testing.assert_close(scene.velocity[0, 0, :, 0], torch.full((steps,), 1 / float(dt)), atol=0.05, rtol=0)


TRAFFIC_LIGHT = """<trafficSign id="90"><trafficSignElement><trafficSignID>274</trafficSignID>
<additionalValue>8.5</additionalValue></trafficSignElement></trafficSign>
<trafficLight id="91"><cycle><cycleElement><duration>10</duration><color>red</color></cycleElement>
<cycleElement><duration>2</duration><color>redYellow</color></cycleElement><cycleElement><duration>12</duration><color>green</color>
</cycleElement><cycleElement><duration>6</duration><color>yellow</color></cycleElement><timeOffset>5</timeOffset></cycle></trafficLight>
<intersection id="92"><incoming id="93"><incomingLanelet ref="1"/><successorsStraight ref="2"/></incoming></intersection>"""


def test_2020a_signals_signs_and_intersections(tmp_path: Path):
    content = scenario(obstacle(100, -50, 0, 10, version="2020a"), TRAFFIC_LIGHT, version="2020a")
    scene = only(tmp_path, content)
    assert scene.sizes()["S"] == 1
    torch.testing.assert_close(scene.signal_position[0, 0], torch.zeros(3), atol=1e-4, rtol=0)
    assert scene.signal_heading[0, 0] == pytest.approx(0)
    end = scene.polyline[0, scene.signal_lane[0, 0]]
    assert end[scene.polyline_valid[0, scene.signal_lane[0, 0]]][-1, 0] == pytest.approx(0)
    states = scene.signal_state[0, 0].tolist()
    stop, go, caution = SignalState.STOP, SignalState.GO, SignalState.CAUTION
    assert states == [caution] * 5 + [stop] * 12 + [go] * 12 + [caution] * 6 + [stop] * 5  # the cycle begins at step 5
    assert scene.speed_limit[0][scene.speed_limit_valid[0]].unique().tolist() == [8.5]
    assert lines_of(scene, PolylineKind.JUNCTION_LANE)


def test_large_coordinates_lose_nothing(tmp_path: Path):
    """The same place near the origin and where UTM has it is the same scene in another frame."""
    parts = (obstacle(100, -50, 0, 10, version="2020a"), obstacle(101, 3, 9, 0, steps=1, version="2020a"), TRAFFIC_LIGHT)
    near = scenario(*parts, version="2020a")

    def move(text: str, tag: str, by: float) -> str:
        return re.sub(f"<{tag}>(.*?)</{tag}>", lambda found: f"<{tag}>{float(found[1]) + by}</{tag}>", text)

    far = move(move(near.decode(), "x", 691000.0), "y", 5335000.0).encode()
    here, there = only(tmp_path, near), only(tmp_path, far)
    offset = here.polyline[0, 0, 0] - there.polyline[0, 0, 0]
    assert torch.equal(offset, offset.round())
    for name in ("position", "signal_position", "route"):
        torch.testing.assert_close(getattr(here, name), getattr(there, name) + offset, atol=1e-4, rtol=0)
    for kind in PolylineKind:  # the border of a union may begin elsewhere, so the nearest points are compared
        first, second = (torch.cat([*lines_of(scene, kind), torch.zeros(1, 3)])[:-1] for scene in (here, there))
        assert len(first) == len(second)
        assert not len(first) or torch.cdist(first, second + offset).amin(1).max() < (
            0.5 if kind == PolylineKind.ROAD_EDGE else 1e-4
        )
    for name in ("velocity", "heading", "valid", "lane_link", "polyline_kind", "signal_lane", "signal_state", "lane_width"):
        torch.testing.assert_close(getattr(here, name), getattr(there, name), atol=1e-3, rtol=0)
    assert there.polyline.abs().max() < 200


def test_small_coordinates_stay_as_they_are(tmp_path: Path):
    scene = only(tmp_path, scenario(*CARS))
    assert scene.polyline[0, :, 0, 0].min() == -60


def test_2020a_crosswalks_and_walkways_are_no_road(tmp_path: Path):
    roads = (
        SHARED_ROADS
        + lanelet(8, (30, -3), (30, 3), 3, rest="<laneletType>crosswalk</laneletType>")
        + lanelet(9, (-60, -4), (0, -4), 2, rest="<laneletType>sidewalk</laneletType>")
    )
    scene = only(tmp_path, scenario(obstacle(100, -50, 0, 10, version="2020a"), version="2020a", roads=roads))
    (outline,) = lines_of(scene, PolylineKind.CROSSWALK)
    torch.testing.assert_close(outline[0], outline[-1])
    assert lines_of(scene, PolylineKind.WALKWAY)
    edge = scene.polyline_kind[0] == PolylineKind.ROAD_EDGE
    point = torch.tensor([[-30.0, -4.0]])
    assert signed_distance_to_edges(point, scene.polyline[0, edge][..., :2], scene.polyline_valid[0, edge]) > 0


def test_lights_for_pedestrians_are_no_signals_of_lanes(tmp_path: Path):
    crossing = lanelet(8, (30, -3), (30, 3), 3, rest="<laneletType>crosswalk</laneletType>" + reference("trafficLightRef", 91))
    parts = (obstacle(100, -50, 0, 10, version="2020a"), TRAFFIC_LIGHT)
    scene = only(tmp_path, scenario(*parts, version="2020a", roads=SHARED_ROADS + crossing))
    assert scene.sizes()["S"] == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (scenario(*CARS, source="NGSIM, optimized towards criticality"), "not as recorded"),
        (scenario(obstacle(100, -50, 0, 10, steps=8)), "8 steps, wanted at least 11"),
        (scenario(), "no recorded vehicle"),
        (scenario(obstacle(100, -50, 0, 1, kind="pedestrian")), "no recorded vehicle at the present"),
    ],
)
def test_what_cannot_be_used_is_skipped_with_a_reason(tmp_path: Path, content: bytes, reason: str):
    (tmp_path / "scenario.xml").write_bytes(content)
    (skipped,) = read("commonroad", tmp_path)
    assert isinstance(skipped, Skipped)
    assert reason in skipped.reason


GOOD = scenario(*CARS)
LIT = scenario(obstacle(100, -50, 0, 10, version="2020a"), TRAFFIC_LIGHT, version="2020a")
CROSSWALK = lanelet(8, (30, -3), (30, 3), 3, rest="<laneletType>crosswalk</laneletType>")
CYCLE = re.compile(rb"<cycleElement>.*</cycleElement>", re.DOTALL)
BOMB = b'<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;&b;">]><commonRoad>&c;</commonRoad>'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD[:500], "no whole XML file"),
        (gzip.compress(GOOD)[:300], "no whole gzip file"),
        (b'<?xml version="1.0" encoding="martian"?><a/>', "no whole XML file"),
        (b"hello", "no whole XML file"),
        (BOMB, "no whole XML file"),
        (b"<osm version='0.6'/>", "root element <osm>"),
        (GOOD.replace(b"2018b", b"2017a"), "version 2017a, wanted <commonRoad> of 2018b or 2020a"),
        (scenario(*CARS, roads=""), "holds no lanelet"),
        (GOOD.replace(b"initialState", b"firstState"), "<initialState> in <obstacle>"),
        (GOOD.replace(b"leftBound", b"leftSide"), "<leftBound> or <rightBound> of lanelet 1"),
        (GOOD.replace(b"<x>-60.0</x>", b"<x>north</x>", 1), "cannot be used .*north"),
        (GOOD.replace(b"<x>-50.0</x>", b"<x>nan</x>"), "cannot be used .*obstacle 100: position: found NaN"),
        (GOOD.replace(b"<x>-50.0</x>", b"<x>inf</x>"), "cannot be used .*obstacle 100: position: found NaN or infinity"),
        (GOOD.replace(b"<x>-60.0</x>", b"<x>nan</x>", 1), "lanelet 1: .*found NaN or infinity"),
        (GOOD.replace(b"<x>-60.0</x>", b"<x>inf</x>", 1), "lanelet 1: .*found NaN or infinity"),
        (GOOD.replace(b"<x>-50.0</x>", b"<x>1e9</x>"), "obstacle 100: position: .*above 1e6"),
        (GOOD.replace(b"<x>-60.0</x>", b"<x>1e20</x>", 1).replace(b"<x>60.0</x>", b"<x>1e19</x>"), "lanelet 1: .*above 1e6"),
        (GOOD.replace(b"<time><exact>7<", b"<time><exact>3<", 1), "obstacle 100: .*times .* do not rise"),
        (GOOD.replace(b"<time><exact>7<", b"<time><exact>nan<", 1), "obstacle 100: .*times .* do not rise"),
        (GOOD.replace(b"<time><exact>39<", b"<time><exact>1e12<", 1), "spans 1000000000001 steps"),
        (scenario(*CARS, dt="0"), "timeStepSize 0, wanted"),
        (scenario(*CARS, dt="-0.1"), "timeStepSize -0.1, wanted"),
        (scenario(*CARS, dt="nan"), "timeStepSize nan, wanted"),
        (CYCLE.sub(b"", LIT), "traffic light 91: .*cycle"),
        (re.sub(rb"<duration>[0-9]+<", b"<duration>0<", LIT), "traffic light 91: .*cycle"),
        (LIT.replace(b"<duration>2<", b"<duration>-2<"), "traffic light 91: .*cycle"),
        (LIT.replace(b"<duration>2<", b"<duration>100000000000000000000<"), "traffic light 91: .*cycle"),
        (scenario(obstacle(100, -50, 0, 10, version="2020a"), version="2020a", roads=CROSSWALK), "no lanelet for vehicles"),
        (scenario(*CARS, roads=lanelet(1, (0, 0), (0, 0))), "no lanelet for vehicles that has a length"),
        (scenario(obstacle(100, -50, 0, 10, shape="<polygon/>")), "<polygon> without points"),
    ],
)
def test_bad_files_are_one_clear_error(tmp_path: Path, content: bytes, message: str):
    file = tmp_path / "scenario.xml"
    file.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        list(read("commonroad", file))
    assert str(file) in str(error.value)


def test_a_gzip_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compressed, "MOST_BYTES", len(GOOD))
    file = tmp_path / "scenario.xml.gz"
    file.write_bytes(gzip.compress(GOOD))
    assert len(list(read("commonroad", file))) == 1
    file.write_bytes(gzip.compress(GOOD + b" "))
    with pytest.raises(DataError, match=f"{file}: unpacks to more than .* MiB"):
        list(read("commonroad", file))


def test_a_folder_without_scenarios_is_an_error(tmp_path: Path):
    with pytest.raises(DataError, match="no commonroad file"):
        list(read("commonroad", tmp_path))


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real scenarios are not at {REAL}")
@pytest.mark.parametrize("name", ["USA_Lanker-1_1_T-1", "USA_Peach-2_1_T-1", "USA_US101-20_1_T-1"])
def test_real_cars_drive_on_the_road(name: str):
    (scene,) = read("commonroad", REAL / f"{name}.xml.gz")
    assert isinstance(scene, Scene)
    edge, valid = scene.polyline_kind[0] == PolylineKind.ROAD_EDGE, scene.valid[0]
    centre = scene.position[0][valid][::7, :2]
    distance = signed_distance_to_edges(centre, scene.polyline[0, edge][..., :2], scene.polyline_valid[0, edge])
    assert (distance > 0).float().mean() < 0.02
    rate = torch.diff(scene.velocity[0], dim=1).norm(dim=-1)[valid[:, 1:] & valid[:, :-1]] / 0.1
    assert rate.quantile(0.9) < 4
