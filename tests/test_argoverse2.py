"""Argoverse 2: hand-made scenarios in its forms, and the real ones where they are at hand."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from worldloop.worldmodel.data import DataError, Skipped, read
from worldloop.worldmodel.geometry import project_on_polyline, signed_distance_to_edges, wrap_angle
from worldloop.worldmodel.scene import HISTORY_STEPS, AgentKind, LaneLinkKind, PolylineKind, Scene

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "argoverse2"
STEPS = 40
EAST, NORTH = 6000.0, 900.0  # multiples of 30 m, along which maps are cut


def track(
    id: str, kind: str, x: float, y: float, speed: float, steps: range = range(STEPS), category: int = 1
) -> list[dict[str, Any]]:
    """Along x from (x, y)."""
    place = [
        {"position_x": EAST + x + 0.1 * speed * step, "position_y": NORTH + y, "velocity_x": speed, "velocity_y": 0.0}
        for step in steps
    ]
    return [
        {"track_id": id, "object_type": kind, "timestep": step, "heading": 0.0, "object_category": category, **at}
        for step, at in zip(steps, place, strict=True)
    ]


def rows(*tracks: list[dict[str, Any]], **changes: Any) -> list[dict[str, Any]]:
    """All tracks with what every row of a scenario repeats."""
    same = {
        "scenario_id": "abc",
        "start_timestamp": 3.0e17,
        "end_timestamp": 3.0e17 + 10.9e9,
        "num_timestamps": 110,
        "observed": True,
        "city": "austin",
    }
    return [row | same | changes for one in tracks for row in one]


TRACKS = (
    track("12", "pedestrian", 5, 8, 1, range(15, 30)),
    track("AV", "vehicle", -41.425, 0, 10),  # its rear axle
    track("13", "motorcyclist", -20, 4, 8, category=3),
    track("14", "bus", -50, 4, 0),
    track("15", "riderless_bicycle", 3, -6, 0),
    track("16", "vehicle", 30, 0, 0, range(3)),  # too short to say how it moves
)


def points(*places: tuple[float, float], z: float = 20.0) -> list[dict[str, float]]:
    return [{"x": EAST + x, "y": NORTH + y, "z": z} for x, y in places]


def segment(id: int, left: list, right: list, **more: Any) -> dict[str, Any]:
    return {
        "id": id,
        "is_intersection": False,
        "lane_type": "VEHICLE",
        "left_lane_boundary": left,
        "right_lane_boundary": right,
        "left_lane_mark_type": "NONE",
        "right_lane_mark_type": "NONE",
        "left_neighbor_id": None,
        "right_neighbor_id": None,
        "predecessors": [],
        "successors": [],
        **more,
    }


def road_map() -> dict[str, Any]:
    """Lane 1 runs east to the origin, 2 through a junction, 3 lies left of 1, 4 left of 3 runs west; cut at x = -60."""
    painted = {"left_lane_mark_type": "DASHED_WHITE", "right_lane_mark_type": "SOLID_WHITE"}
    lanes = [
        segment(
            1, points((-60, 2), (-30, 2), (0, 2)), points((-60, -2), (0, -2)), successors=[2, 99], left_neighbor_id=3, **painted
        ),
        segment(2, points((0, 2), (60, 3)), points((0, -2), (60, -3)), predecessors=[1], is_intersection=True),
        segment(3, points((-60, 6), (0, 6)), points((0, 2), (-30, 2), (-60, 2))[::-1], left_neighbor_id=4, right_neighbor_id=1)
        | {"right_lane_mark_type": "DASHED_WHITE", "left_lane_mark_type": "SOLID_YELLOW"},
        segment(4, points((0, 6), (-60, 6)), points((0, 10), (-60, 10)), left_neighbor_id=3, left_lane_mark_type="SOLID_YELLOW"),
        segment(5, points((-60, -2), (0, -2)), points((-60, -4), (0, -4)), lane_type="BIKE"),
    ]
    outline = points((-60, -4), (0, -4), (60, -4), (60.5, 10), (0, 10), (-60, 10))
    return {
        "lane_segments": {str(lane["id"]): lane for lane in lanes},
        "drivable_areas": {"7": {"id": 7, "area_boundary": outline}},
        "pedestrian_crossings": {"8": {"id": 8, "edge1": points((30, -4), (30, 10)), "edge2": points((33, -4), (33, 10))}},
    }


def write(folder: Path, table: list[dict[str, Any]], content: Any = None, id: str = "abc") -> Path:
    folder = folder / id
    folder.mkdir(exist_ok=True)
    file = folder / f"scenario_{id}.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(table), file)
    (folder / f"log_map_archive_{id}.json").write_text(json.dumps(content or road_map()))
    return file


def only(file: Path) -> Scene:
    (scene,) = read("argoverse2", file)
    assert isinstance(scene, Scene)
    return scene


def of_kind(scene: Scene, kind: PolylineKind) -> list[torch.Tensor]:
    found = (scene.polyline_kind[0] == kind).nonzero()[:, 0]
    return [scene.polyline[0, row][scene.polyline_valid[0, row]] for row in found]


def edge_distance(scene: Scene, *place: tuple[float, float]) -> list[float]:
    """Signed distance of places, x and y from where the lanes meet, to the road's edge."""
    edge = scene.polyline_kind[0] == PolylineKind.ROAD_EDGE
    point = torch.tensor(place) + torch.tensor([30.0, 0.0])  # the ego's present is the origin
    return signed_distance_to_edges(point, scene.polyline[0, edge][..., :2], scene.polyline_valid[0, edge]).tolist()


def test_a_scenario_becomes_a_scene(tmp_path: Path):
    write(tmp_path, rows(*TRACKS))
    (scene,) = read("argoverse2", tmp_path)  # finds it in its folder
    assert isinstance(scene, Scene)
    assert scene.id == ("argoverse2/abc",)
    kind = AgentKind
    assert scene.kind[0].tolist() == [kind.PEDESTRIAN, kind.CYCLIST, kind.VEHICLE, kind.OBJECT, kind.VEHICLE]
    assert scene.valid[0].sum(-1).tolist() == [15, 40, 40, 40, 40]
    assert scene.ego.tolist() == [4]
    assert scene.to_predict[0].nonzero()[:, 0].tolist() == [1]  # the motorcyclist is the focal track
    torch.testing.assert_close(scene.size[0, 2], torch.tensor([13.2, 3.14, 3.76]))
    torch.testing.assert_close(scene.velocity[0, 1, :, 0], torch.full((STEPS,), 8.0), atol=1e-3, rtol=0)
    assert (scene.velocity[0, 2] == 0).all()


def test_the_ego_is_a_box_around_the_cars_middle(tmp_path: Path):
    scene = only(write(tmp_path, rows(*TRACKS)))
    # 1.425 m before its rear axle, which lies at -41.425 + 10; on the lane at z = 20
    torch.testing.assert_close(scene.position[0, 4, HISTORY_STEPS], torch.tensor([0.0, 0.0, 20.738]), atol=1e-3, rtol=0)
    torch.testing.assert_close(scene.size[0, 4], torch.tensor([4.872, 1.852, 1.476]))


def test_positions_take_their_course_from_the_velocities(tmp_path: Path):
    """A parked car whose label drifts by a metre stands; one whose label lags at both ends drives evenly."""
    parked, driving = track("21", "vehicle", -20, 9, 0), track("22", "vehicle", -50, 4, 10)
    for step, row in enumerate(parked):
        row["position_y"] += 0.5 * math.sin(step / 6)
    for step, row in enumerate(driving):
        row["position_x"] += 0.8 * (0.5 ** (step / 2) - 0.5 ** ((STEPS - 1 - step) / 2))
    scene = only(write(tmp_path, rows(*TRACKS, parked, driving)))
    still, even = scene.position[0, 4], scene.velocity[0, 5]
    assert (scene.velocity[0, 4] == 0).all()
    assert (still[:, :2] - torch.tensor([10.0, 9.0])).norm(dim=-1).max() < 0.4
    torch.testing.assert_close(even, torch.tensor([10.0, 0.0]).expand(STEPS, 2), atol=0.3, rtol=0)
    driven = torch.tensor([[-20 + k, 4.0] for k in range(STEPS)])
    assert (scene.position[0, 5, :, :2] - driven).norm(dim=-1).max() < 0.3


def test_lanes_become_pieces_with_links_and_widths(tmp_path: Path):
    scene = only(write(tmp_path, rows(*TRACKS)))
    assert [len(of_kind(scene, kind)) for kind in (PolylineKind.LANE, PolylineKind.JUNCTION_LANE, PolylineKind.BIKE_LANE)] == [
        9,
        3,
        3,
    ]
    width = scene.lane_width[0][scene.lane_width[0] > 0].tolist()
    assert width[:3] == pytest.approx([4.0] * 3, abs=1e-3)
    assert width[3:6] == pytest.approx([5.0] * 3, abs=0.01)  # from 4 to 6 m
    centre = of_kind(scene, PolylineKind.LANE)[0]
    torch.testing.assert_close(centre[0], torch.tensor([-30.0, 0.0, 20.0]), atol=1e-3, rtol=0)
    start, end = scene.polyline[0, :, 0, :2], scene.polyline[0, :, 9 - 1, :2]
    assert start.shape == end.shape
    links = list(zip(scene.lane_link[0].tolist(), scene.lane_link_kind[0].tolist(), strict=True))
    onward = [(a, b) for (a, b), kind in links if kind == LaneLinkKind.SUCCESSOR]
    assert [2, 3] in [list(link) for link in onward]  # the last piece of lane 1 leads to the first of lane 2
    assert len(onward) == 5 * 2 + 1
    beside = {(a, b, kind) for (a, b), kind in links if kind != LaneLinkKind.SUCCESSOR}
    left, right = LaneLinkKind.LEFT, LaneLinkKind.RIGHT
    assert beside == {(k, k + 6, left) for k in range(3)} | {(k + 6, k, right) for k in range(3)}  # not to the oncoming lane


def test_paint_is_drawn_once_and_crossings_are_closed(tmp_path: Path):
    scene = only(write(tmp_path, rows(*TRACKS)))
    at = sorted({round(float(y), 3) for line in of_kind(scene, PolylineKind.LANE_MARKING) for y in line[:, 1]})
    assert at == [-2.0, 2.0, 6.0]
    length = sum(float(torch.diff(line, dim=0).norm(dim=-1).sum()) for line in of_kind(scene, PolylineKind.LANE_MARKING))
    assert length == pytest.approx(180, abs=0.1)
    (outline,) = of_kind(scene, PolylineKind.CROSSWALK)
    expected = torch.tensor([[60.0, -4], [60, 10], [63, 10], [63, -4], [60, -4]])
    torch.testing.assert_close(outline[:, :2], expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("flip", [False, True])
def test_edges_keep_the_road_on_their_left_and_stay_open_where_the_map_is_cut(tmp_path: Path, flip: bool):
    content = road_map()
    if flip:
        content["drivable_areas"]["7"]["area_boundary"].reverse()
    scene = only(write(tmp_path, rows(*TRACKS), content))
    inside, beyond, cut, end = edge_distance(scene, (-20, 0), (-20, -7), (-59.9, 3), (59.9, 3))
    assert (inside, beyond) == pytest.approx((-4.0, 3.0), abs=0.06)
    assert cut < -6.5  # -60 is a multiple of 30 m
    assert -0.5 < end < 0  # the far end is slanted, so nobody cut it


def test_areas_that_meet_at_a_cut_are_one_road(tmp_path: Path):
    content = road_map()
    left = points((-60, -4), (0, -4), (0, 10), (-60, 10))
    right = points((0, -4), (60.5, -4), (60.5, 10), (0, 10))
    content["drivable_areas"] = {"7": {"area_boundary": left}, "9": {"area_boundary": right}}
    scene = only(write(tmp_path, rows(*TRACKS), content))
    assert edge_distance(scene, (0, 0), (0, 9.8)) == pytest.approx((-4.0, -0.2), abs=0.06)


def test_the_route_follows_the_lanes_that_the_ego_drove(tmp_path: Path):
    route = only(write(tmp_path, rows(*TRACKS))).route[0]
    assert route[0, 0] == pytest.approx(-10 - 20, abs=0.1)
    assert route[-1, 0] == pytest.approx(29 + 60, abs=2.5)
    assert route[:, 1].abs().max() < 0.1
    torch.testing.assert_close(route[:, 2], torch.full((len(route),), 20.0), atol=1e-3, rtol=0)


def test_what_cannot_be_used_is_skipped_with_a_reason(tmp_path: Path):
    for table, reason in (
        (rows(track("AV", "vehicle", 0, 0, 5, range(9))), "9 steps, wanted at least 11"),
        (rows(*TRACKS[2:4]), "no track AV"),
        (rows(track("AV", "vehicle", 0, 0, 5, range(20, 40))), "the ego (track AV) is not seen at the present (step 10)"),
    ):
        (skipped,) = read("argoverse2", write(tmp_path, table))
        assert isinstance(skipped, Skipped)
        assert reason in skipped.reason


TWICE = rows(track("AV", "vehicle", 0, 0, 5), track("AV", "vehicle", 1, 0, 5))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([{"x": 1.0}], "is no Argoverse 2 scenario .1 rows, columns .'end_timestamp'"),
        (rows(*TRACKS, end_timestamp=3.0e17 + 54.5e9), "scenario abc: has steps of 0.500 s, wanted 0.1 s"),
        (rows(*TRACKS, track("17", "ufo", 0, 0, 0)), "scenario abc: unknown object types ufo: known are vehicle"),
        (rows(*TRACKS, track("17", "vehicle", math.nan, 0, 0)), "scenario abc: track 17: found NaN or infinity"),
        (rows(*TRACKS, track("17", "vehicle", 0, 0, 0, range(-3, 5))), "scenario abc: has steps from -3 to 39"),
        (rows(*TRACKS, track("17", "vehicle", 0, 0, 0, range(100, 120))), "scenario abc: has steps from 0 to 119"),
        (TWICE, "or twice the same"),
        (rows(*TRACKS, heading=None), "has empty entries in the columns heading"),
        (rows(*TRACKS, heading="north"), "cannot be used"),
    ],
)
def test_bad_tables_are_one_clear_error(tmp_path: Path, table: list, message: str):
    file = write(tmp_path, table)
    with pytest.raises(DataError, match=message) as error:
        list(read("argoverse2", file))
    assert str(file) in str(error.value)


def changed(path: str, value: Any) -> dict[str, Any]:
    """The map with the entry at `path` (names with / between) replaced, or removed if the value is None."""
    content = road_map()
    *folders, last = path.split("/")
    entry: Any = content
    for name in folders:
        entry = entry[name]
    if value is None:
        del entry[last]
    else:
        entry[last] = value
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "is no map of Argoverse 2"),
        (changed("lane_segments", {}), "holds 0 lane segments and 1 drivable areas"),
        (changed("drivable_areas", {}), "holds 5 lane segments and 0 drivable areas"),
        (changed("pedestrian_crossings", None), "field 'pedestrian_crossings'"),
        (changed("lane_segments/2/lane_type", "TRAM"), "lane segment 2: unknown type 'TRAM': known are VEHICLE"),
        (changed("lane_segments/2/left_lane_boundary", []), "lane segment 2: found 0 points"),
        (changed("lane_segments/2/successors", None), "field 'successors'"),
        (changed("drivable_areas/7/area_boundary", points((0, 0), (1, math.nan), (2, 0))), "drivable area 7: found 3 points"),
        (
            changed("drivable_areas/7/area_boundary", points((0, 0), (1, 1))),
            "drivable area 7: found 2 points, .* wanted 3 or more",
        ),
    ],
)
def test_bad_maps_are_one_clear_error(tmp_path: Path, content: Any, message: str):
    file = write(tmp_path, rows(*TRACKS), content)
    with pytest.raises(DataError, match=message) as error:
        list(read("argoverse2", file))
    assert "log_map_archive_abc.json" in str(error.value)


def test_damaged_and_missing_files_are_one_clear_error(tmp_path: Path):
    file = write(tmp_path, rows(*TRACKS))
    good, chart = file.read_bytes(), file.with_name("log_map_archive_abc.json")
    for content in (good[: len(good) // 2], b"hello", b"", good[: len(good) // 2] + b"x" * 8 + good[len(good) // 2 + 8 :]):
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"scenario_abc.parquet: (is no whole parquet|cannot be used|has|scenario|is no)"):
            list(read("argoverse2", file))
    file.write_bytes(good)
    chart.write_text(chart.read_text()[:500])
    with pytest.raises(DataError, match="log_map_archive_abc.json: is no whole JSON"):
        list(read("argoverse2", file))
    chart.unlink()
    with pytest.raises(DataError, match="its map log_map_archive_abc.json does not lie beside it"):
        list(read("argoverse2", file))


def test_without_pyarrow_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = write(tmp_path, rows(*TRACKS))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r'pip install "worldloop\[argoverse\]"'):
        list(read("argoverse2", file))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(1, 40), min_size=1, max_size=5), st.lists(st.floats(1, 40), min_size=1, max_size=5))
def test_centrelines_lie_midway_however_their_bounds_are_cut(tmp_path_factory, left: list[float], right: list[float]):
    """Bounds at y = 2 and y = -2 with vertices anywhere: the lane between them is the x axis, 4 m wide."""
    content = road_map()
    for side, y, cuts in (("left", 2.0, left), ("right", -2.0, right)):
        share = np.cumsum([0.0, *cuts]) / sum(cuts)
        content["lane_segments"]["1"][f"{side}_lane_boundary"] = points(*((-60 + 60 * x, y) for x in share))
    scene = only(write(tmp_path_factory.mktemp("cut"), rows(*TRACKS), content))
    for line in of_kind(scene, PolylineKind.LANE)[:3]:
        assert line[:, 1].abs().max() < 1e-3
    torch.testing.assert_close(scene.lane_width[0, :3], torch.full((3,), 4.0), atol=1e-3, rtol=0)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real scenarios are not at {REAL}")
def test_real_scenarios_are_read_whole():
    scenes = list(read("argoverse2", REAL))
    assert len(scenes) == 3
    for scene, agents in zip(scenes, (43, 58, 100), strict=True):
        assert isinstance(scene, Scene)
        assert (scene.steps, scene.valid.shape[1]) == (110, agents)
        edge, valid, ego = scene.polyline_kind[0] == PolylineKind.ROAD_EDGE, scene.valid[0], scene.ego[0]
        vehicle = scene.kind[0] == AgentKind.VEHICLE
        velocity = scene.velocity[0]
        moving = valid & (velocity.norm(dim=-1) > 2) & vehicle[:, None]
        centre = scene.position[0][moving][::7, :2]
        distance = signed_distance_to_edges(centre, scene.polyline[0, edge][..., :2], scene.polyline_valid[0, edge])
        assert (distance > 0).float().mean() < 0.06
        path = scene.position[0, ego][valid[ego]][:, :2]
        offset = project_on_polyline(path, scene.route[0, :, :2], scene.route_valid[0])[1]
        assert offset.abs().max() < 1.5
        slip = wrap_angle(torch.atan2(velocity[..., 1], velocity[..., 0]) - scene.heading[0])[moving].abs()
        assert slip.quantile(0.95) < 0.2
        rate = torch.diff(velocity[vehicle], dim=1).norm(dim=-1)[(valid[:, 1:] & valid[:, :-1])[vehicle]] / 0.1
        assert rate.quantile(0.9) < 3
