"""ScenarioNet: hand-made scenarios in its forms, and the real ones where they are at hand."""

from __future__ import annotations

import gzip
import json
import math
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from worldloop.worldmodel.data import DataError, Skipped, read
from worldloop.worldmodel.geometry import project_on_polyline, signed_distance_to_edges
from worldloop.worldmodel.scene import HISTORY_STEPS, AgentKind, LaneLinkKind, PolylineKind, Scene, SignalState

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "scenarionet_json"
STEPS = 40
ORIGIN = np.array([3000.0, -2000.0, 0.0])


def line(*ends: tuple[float, float], spacing: float = 0.5, z: float = 20.0) -> np.ndarray:
    """Points half a metre apart, as Waymo's maps have them."""
    parts = [
        np.linspace(a, b, round(math.dist(a, b) / spacing) + 1)[: None if last else -1]
        for a, b, last in zip(ends[:-1], ends[1:], [False] * (len(ends) - 2) + [True], strict=True)
    ]
    return np.pad(np.concatenate(parts), ((0, 0), (0, 1)), constant_values=z).astype(np.float32) + ORIGIN.astype(np.float32)


def corners(*points: tuple[float, float]) -> np.ndarray:
    return (np.pad(np.array(points, dtype=np.float64), ((0, 0), (0, 1)), constant_values=20) + ORIGIN).astype(np.float32)


def track(kind: str, x: float, y: float, speed: float, size=(4.5, 2.0, 1.6), seen: range = range(STEPS)) -> dict[str, Any]:
    """Along x; zeros where it is not seen."""
    valid = np.isin(np.arange(STEPS), seen)
    position = (
        np.stack((x + 0.1 * speed * np.arange(STEPS), np.full(STEPS, y), np.full(STEPS, 20 + size[2] / 2)), axis=1) + ORIGIN
    )
    state = {
        "position": np.where(valid[:, None], position, 0).astype(np.float32),
        "heading": np.zeros(STEPS, dtype=np.float32),
        "velocity": (valid[:, None] * [speed, 0.0]).astype(np.float32),
        "valid": valid,
        **{name: (valid * value).astype(np.float32) for name, value in zip(("length", "width", "height"), size, strict=True)},
    }
    return {"type": kind, "state": state, "metadata": {"type": kind, "track_length": STEPS}}


def lane(points: np.ndarray, entries=(), exits=(), kind: str = "LANE_SURFACE_STREET", **more: Any) -> dict[str, Any]:
    return {
        "type": kind,
        "polyline": points,
        "entry_lanes": list(entries),
        "exit_lanes": list(exits),
        "width": np.full((len(points), 2), 1.75, dtype=np.float32),
        "left_neighbor": [],
        "right_neighbor": [],
        "interpolating": False,
        "speed_limit_mph": 25.0,
        **more,
    }


def beside(id: str, own: tuple[int, int], other: tuple[int, int]) -> dict[str, Any]:
    """A neighbour as ScenarioNet writes it: all numbers are texts."""
    names = ("self_start_index", "self_end_index", "neighbor_start_index", "neighbor_end_index")
    return {"feature_id": id, **dict(zip(names, map(str, (*own, *other)), strict=True)), "boundaries": []}


def scenario(**changes: Any) -> dict[str, Any]:
    """Lane 1 runs east to the origin, 2 goes on straight (a signal), 3 turns north; 4 lies left of 1 on its second half."""
    record = {
        "id": "abc",
        "version": "MetaDrive v0.4",
        "length": STEPS,
        "tracks": {
            "9": track("PEDESTRIAN", 5, 8, 1, (0.8, 0.8, 1.8), range(15, 30)),
            "7": track("VEHICLE", -40, 0, 10),
            "8": track("CYCLIST", -20, -1.5, 4, (1.8, 0.6, 1.7)),
            "6": track("TRAFFIC_CONE", 3, -3, 0, (0.4, 0.4, 0.9)),
            "5": track("VEHICLE", 0, 0, 0, seen=range(0)),
        },
        "dynamic_map_states": {
            "2": {
                "type": "TRAFFIC_LIGHT",
                "lane": 2,
                "stop_point": np.array([1.0, 0.0, 20.0], dtype=np.float32) + ORIGIN.astype(np.float32),
                "state": {
                    "object_state": [None] * 10
                    + ["LANE_STATE_STOP"] * 10
                    + ["LANE_STATE_GO"] * 10
                    + ["LANE_STATE_FLASHING_STOP"] * 5
                    + ["LANE_STATE_ARROW_CAUTION"] * 5
                },
                "metadata": {"type": "TRAFFIC_LIGHT"},
            }
        },
        "map_features": {
            "1": lane(line((-60, 0), (0, 0)), [], [2, 3], left_neighbor=[beside("4", (60, 120), (0, 60))]),
            "2": lane(line((0, 0), (60, 0)), [1], [], interpolating=True),
            "3": lane(line((0, 0), (20, 10), (20, 60)), [1], []),
            "4": lane(line((-30, 3.5), (0, 3.5)), [], [], width=np.full((61, 2), [1.75, 30.0])),
            "11": {"type": "ROAD_EDGE_BOUNDARY", "polyline": line((-60, -2), (60, -2))},
            "12": {"type": "ROAD_LINE_SOLID_SINGLE_WHITE", "polyline": line((-30, 1.75), (0, 1.75))},
            "13": {"type": "CROSSWALK", "polygon": corners((30, -2), (33, -2), (33, 5), (30, 5))},
            "14": {"type": "STOP_SIGN", "lane": [3], "position": np.zeros(3)},
            "15": lane(line((0, 0), (0.5, 0))[:1]),
        },
        "metadata": {
            "ts": np.arange(STEPS, dtype=np.float32) / 10,
            "sdc_id": "7",
            "coordinate": "waymo",
            "metadrive_processed": False,
            "current_time_index": 10,
            "dataset": "waymo",
            "tracks_to_predict": {"7": {"track_index": 1, "track_id": "7", "difficulty": 0}},
        },
    }
    return record | changes


def write(folder: Path, record: Any, name: str = "sd_waymo_abc.pkl", protocol: int = 4) -> Path:
    if name.endswith(".pkl"):
        (folder / name).write_bytes(pickle.dumps(record, protocol))
    else:
        content = json.dumps(record, default=lambda value: value.tolist()).encode()
        (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return folder / name


def only(file: Path) -> Scene:
    (scene,) = read("scenarionet", file)
    assert isinstance(scene, Scene)
    return scene


def of_kind(scene: Scene, kind: PolylineKind) -> list[torch.Tensor]:
    rows = (scene.polyline_kind[0] == kind).nonzero()[:, 0]
    return [scene.polyline[0, row][scene.polyline_valid[0, row]] for row in rows]


def test_tracks_stand_as_they_were_recorded(tmp_path: Path):
    scene = only(write(tmp_path, scenario()))
    assert scene.id == ("scenarionet/abc",)
    kind = AgentKind
    assert scene.kind[0].tolist() == [kind.PEDESTRIAN, kind.VEHICLE, kind.CYCLIST, kind.OBJECT]  # 5 is never seen
    assert scene.ego.tolist() == [1]
    assert scene.valid[0].sum(-1).tolist() == [15, 40, 40, 40]
    assert scene.valid[0, 0].nonzero()[[0, -1], 0].tolist() == [15, 29]
    assert scene.to_predict[0].nonzero()[:, 0].tolist() == [1]
    torch.testing.assert_close(scene.size[0, 0], torch.tensor([0.8, 0.8, 1.8]))
    # the origin lies at the ego's present, rounded down: 10 m/s for 1 s from -40 is -30
    torch.testing.assert_close(scene.position[0, 1, HISTORY_STEPS], torch.tensor([0.0, 0.0, 20.8]), atol=1e-3, rtol=0)
    torch.testing.assert_close(scene.position[0, 0, 15], torch.tensor([5 + 1.5 + 30, 8, 20.9]), atol=1e-3, rtol=0)
    torch.testing.assert_close(scene.velocity[0, 1], torch.tensor([10.0, 0.0]).expand(STEPS, 2))
    assert (scene.position[0, 0, :15] == 0).all()


def test_lanes_become_pieces_and_links(tmp_path: Path):
    scene = only(write(tmp_path, scenario()))
    assert scene.polyline.shape[2] == 10
    straight, turn, after = 3, 3, 2  # pieces of 22.5 m of lanes 1, 2 (60 m), 3 (72.4 m: 4), 4 (30 m)
    assert len(of_kind(scene, PolylineKind.LANE)) + len(of_kind(scene, PolylineKind.JUNCTION_LANE)) == straight + turn + 4 + after
    start = scene.polyline[0, :, 0, :2] + torch.tensor([-30.0, 0.0])  # from the map's origin again
    links = {
        (tuple(start[a].round().int().tolist()), tuple(start[b].round().int().tolist()), LaneLinkKind(k))
        for (a, b), k in zip(scene.lane_link[0].tolist(), scene.lane_link_kind[0].tolist(), strict=True)
    }
    successors = {(a[0], b[0]) for a, b, kind in links if kind == LaneLinkKind.SUCCESSOR and a[1] == b[1] == 0 and a[0] < 0}
    assert successors == {(-60, -38), (-38, -15), (-15, 0)} or successors == {(-60, -37), (-37, -15), (-15, 0)}
    into_turn = [link for link in links if link[0] == (-15, 0) and link[1] == (0, 0)]
    assert len(into_turn) == 1  # both ways out begin at the same point
    left = {(a[0], b[0]) for a, b, kind in links if kind == LaneLinkKind.LEFT}
    assert {b for _, b in left} <= {-30, -8, -7}
    assert all(a > -40 for a, _ in left)  # the neighbour covers the second half alone
    assert not [link for link in links if link[2] == LaneLinkKind.RIGHT]


def test_widths_limits_and_other_lines(tmp_path: Path):
    scene = only(write(tmp_path, scenario()))
    lanes = scene.lane_width[0] > 0
    torch.testing.assert_close(scene.lane_width[0][lanes], torch.full((int(lanes.sum()),), 3.5))  # 30 m to a bound is no width
    torch.testing.assert_close(scene.speed_limit[0][lanes], torch.full((int(lanes.sum()),), 11.176))  # 25 mph
    assert (scene.speed_limit_valid[0] == lanes).all()
    (outline,) = of_kind(scene, PolylineKind.CROSSWALK)
    torch.testing.assert_close(outline[0], outline[-1])
    assert len(outline) == 5
    assert of_kind(scene, PolylineKind.LANE_MARKING)
    edge = scene.polyline_kind[0] == PolylineKind.ROAD_EDGE
    point = torch.tensor([[10.0, 0.0], [10.0, -5.0]])
    distance = signed_distance_to_edges(point, scene.polyline[0, edge][..., :2], scene.polyline_valid[0, edge])
    torch.testing.assert_close(distance, torch.tensor([-2.0, 3.0]), atol=0.06, rtol=0)


def test_unbelievable_widths_follow_the_lanes_around(tmp_path: Path):
    record = scenario()
    record["map_features"]["1"]["width"][:] = 1.5
    record["map_features"]["2"]["width"][:] = 0.0
    record["map_features"]["4"]["width"] = np.zeros((61, 2))
    scene = only(write(tmp_path, record))
    lanes = scene.lane_width[0][scene.lane_width[0] > 0]
    assert lanes[:3].tolist() == [3.0] * 3
    assert lanes[3:6].tolist() == [3.0] * 3  # as lane 1, from which it comes
    assert lanes[-2:].tolist() == [3.5] * 2  # joins nothing: the usual width


def test_a_lane_without_width_has_that_of_its_area(tmp_path: Path):
    record = scenario()
    feature = record["map_features"]["4"]
    del feature["width"]
    feature["polygon"] = corners((-30, 2), (0, 2), (0, 5), (-30, 5))
    scene = only(write(tmp_path, record))
    assert scene.lane_width[0][scene.lane_width[0] > 0][-1] == pytest.approx(3.0, abs=1e-3)


def test_signals_are_carried_over(tmp_path: Path):
    scene = only(write(tmp_path, scenario()))
    assert scene.sizes()["S"] == 1
    torch.testing.assert_close(scene.signal_position[0, 0], torch.tensor([31.0, 0.0, 20.0]), atol=1e-3, rtol=0)
    assert scene.signal_heading[0, 0] == pytest.approx(0)
    assert scene.polyline[0, scene.signal_lane[0, 0], 0, 0] == pytest.approx(30, abs=1e-3)
    state = SignalState
    assert (
        scene.signal_state[0, 0].tolist()
        == [state.UNKNOWN] * 10 + [state.STOP] * 10 + [state.GO] * 10 + [state.UNKNOWN] * 5 + [state.CAUTION] * 5
    )
    assert scene.signal_valid[0, 0].tolist() == [False] * 10 + [True] * 30


def test_a_signal_said_at_every_step_is_the_same(tmp_path: Path):
    record = scenario()
    signal = record["dynamic_map_states"]["2"]
    early = {"object_state": signal["state"]["object_state"]}
    early |= {name: [None] * 10 + [signal[name]] * 30 for name in ("lane", "stop_point")}
    expected = only(write(tmp_path, record))
    record["dynamic_map_states"] = {"2": {"type": "TRAFFIC_LIGHT", "state": early, "metadata": {}}}
    found = only(write(tmp_path, record, "early.pkl"))
    torch.testing.assert_close(found.signal_position, expected.signal_position)
    assert torch.equal(found.signal_state, expected.signal_state)


def test_a_signal_of_no_lane_of_the_map_is_left_out(tmp_path: Path):
    record = scenario()
    record["dynamic_map_states"]["2"]["lane"] = 99
    assert only(write(tmp_path, record)).sizes()["S"] == 0


def test_the_route_follows_the_lanes_that_the_ego_drove(tmp_path: Path):
    scene = only(write(tmp_path, scenario()))
    route = scene.route[0]
    assert route[0, 0] == pytest.approx(-10 - 20, abs=0.1)
    assert route[-1, 0] == pytest.approx(-10 + 39 + 60, abs=2.5)  # up to a point of the lane
    assert route[:, 1].abs().max() < 0.1
    torch.testing.assert_close(route[:, 2], torch.full((len(route),), 20.0), atol=1e-3, rtol=0)


def test_every_form_gives_the_same_scene(tmp_path: Path):
    expected = only(write(tmp_path, scenario()))
    for name in ("a.json", "b.json.gz", "c.pkl"):
        found = only(write(tmp_path, scenario(), name, protocol=2))
        for field in ("position", "velocity", "valid", "size", "polyline", "lane_link", "signal_state", "route"):
            torch.testing.assert_close(getattr(found, field), getattr(expected, field), atol=1e-3, rtol=0)


def old_form() -> dict[str, Any]:
    """The scenario as the format before MetaDrive 0.3 has it."""
    record = scenario()
    head = record.pop("metadata")
    record.pop("length")
    for entry in record["tracks"].values():
        state = entry["state"]
        state["size"] = np.stack([state.pop(name) for name in ("length", "width", "height")], axis=1)
        state["heading"], state["valid"] = state["heading"][:, None], state["valid"][:, None].astype(float)
    record["map_features"]["1"]["left_neighbor"] = [{"id": 4}, {"id": 11}]
    record["map_features"]["13"]["type"] = {"type": {"type": None, "polygon": None}, "polygon": []}
    return record | {"ts": head["ts"], "sdc_track_index": 7, "dynamic_map_states": [[{}]], "version": "old format"}


def test_the_old_form_is_read(tmp_path: Path):
    expected, found = only(write(tmp_path, scenario())), only(write(tmp_path, old_form(), "old.json.gz"))
    for field in ("position", "heading", "valid", "size", "kind", "ego"):
        torch.testing.assert_close(getattr(found, field).float(), getattr(expected, field).float(), atol=1e-3, rtol=0)
    assert not of_kind(found, PolylineKind.CROSSWALK)  # its type is lost
    assert LaneLinkKind.LEFT in found.lane_link_kind[0]


def test_without_edges_the_border_of_the_lanes_is_the_edge(tmp_path: Path):
    record = scenario()
    del record["map_features"]["11"]
    scene = only(write(tmp_path, record))
    edge = scene.polyline_kind[0] == PolylineKind.ROAD_EDGE
    point = torch.tensor([[-10.0, 0.0], [-10.0, -4.0], [-29.9, 0.0]])
    distance = signed_distance_to_edges(point, scene.polyline[0, edge][..., :2], scene.polyline_valid[0, edge])
    torch.testing.assert_close(distance[:2], torch.tensor([-1.75, 2.25]), atol=0.06, rtol=0)
    assert distance[2] < -1.7  # open at the map's end


def test_what_cannot_be_used_is_skipped_with_a_reason(tmp_path: Path):
    late = scenario()
    late["tracks"]["7"]["state"]["valid"][:11] = False
    for name, content, reason in (
        ("dataset_summary.pkl", {}, "lists the scenarios of a folder"),
        ("late.pkl", late, "the ego (track 7) is not seen at the present (step 10)"),
    ):
        (skipped,) = read("scenarionet", write(tmp_path, content, name))
        assert isinstance(skipped, Skipped)
        assert reason in skipped.reason
    short = scenario(tracks={"7": {"type": "VEHICLE", "state": {}}})
    short["metadata"]["ts"] = np.arange(10) / 10
    (skipped,) = read("scenarionet", write(tmp_path, short))
    assert isinstance(skipped, Skipped)
    assert skipped.reason == "10 steps, wanted at least 11"


def changed(path: str, value: Any) -> dict[str, Any]:
    """The scenario with the entry at `path` (names with / between) replaced, or removed if the value is None."""
    record = scenario()
    *folders, last = path.split("/")
    entry: Any = record
    for name in folders:
        entry = entry[name]
    if value is None:
        del entry[last]
    else:
        entry[last] = value
    return record


NAN = np.full(STEPS, np.nan)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([1, 2], "is no ScenarioNet scenario"),
        ({"objects": []}, "is no ScenarioNet scenario: wanted id, tracks"),
        (changed("metadata/sdc_id", None), "field 'sdc_track_index'"),
        (changed("metadata/tracks_to_predict", {"77": {}}), "scenario abc: has no track 77, which it names to be predicted"),
        (changed("metadata/sdc_id", "77"), "scenario abc: has no track 77"),
        (changed("metadata/coordinate", "moon"), "unknown coordinate system 'moon'"),
        (changed("metadata/ts", np.arange(STEPS) / 2), "has steps of 0.500 s, wanted 0.1 s"),
        (changed("metadata/ts", NAN), "has steps of nan s"),
        (changed("tracks/8/type", "UFO"), "track 8: unknown type 'UFO': known are VEHICLE"),
        (changed("tracks/8/state/heading", np.zeros(3)), r"track 8: found heading \(3,\), wanted 40 steps"),
        (changed("tracks/8/state/heading", NAN), "heading: agent 2, step 0: found NaN"),
        (changed("tracks/8/state/velocity", None), "field 'velocity'"),
        (changed("tracks/8/state/position", "north"), "cannot be used"),
        (changed("map_features", {}), "holds no lane"),
        (changed("map_features/2/type", "RAIL"), "map feature 2: unknown type 'RAIL'"),
        (changed("map_features/2/polyline", None), "field 'polyline'"),
        (changed("map_features/2/polyline", [[0, 0], [0, math.nan]]), "map feature 2: found NaN or infinity"),
        (changed("dynamic_map_states/2/state/object_state", ["PURPLE"] * STEPS), "signal 2: found 40 states, unknown .'PURPLE'."),
        (changed("dynamic_map_states/2/state/object_state", [None] * 3), "signal 2: found 3 states"),
        (changed("dynamic_map_states", [[{"lane": 1}]]), "signals in the old form"),
    ],
)
@pytest.mark.parametrize("name", ["a.pkl", "a.json"])
def test_bad_scenarios_are_one_clear_error(tmp_path: Path, record: Any, message: str, name: str):
    file = write(tmp_path, record, name)
    with pytest.raises(DataError, match=message) as error:
        list(read("scenarionet", file))
    assert str(file) in str(error.value)


def test_damaged_files_are_one_clear_error(tmp_path: Path):
    plain, zipped, pickled = (write(tmp_path, scenario(), name).read_bytes() for name in ("a.json", "a.json.gz", "a.pkl"))
    for name, content, message in (
        ("a.json", plain[: len(plain) // 2], "is no whole JSON"),
        ("b.json", b"[" * 200_000, "is no whole JSON"),
        ("c.json.gz", zipped[: len(zipped) // 2], "is no whole gzip file"),
        ("e.pkl", pickled[: len(pickled) // 2], "refused, it holds no whole pickle"),
        ("f.pkl", b"hello", "refused"),
        ("g.pkl", b"", "refused"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=message) as error:
            list(read("scenarionet", tmp_path / name))
        assert name in str(error.value)


def test_a_pickle_that_would_run_something_is_refused(tmp_path: Path):
    class Harm:
        def __reduce__(self):
            return os.system, (f"touch '{tmp_path / 'harm'}'",)

    file = write(tmp_path, scenario(version=Harm()))
    with pytest.raises(DataError, match=r"sd_waymo_abc.pkl: refused, it holds the name (posix|nt)\.system"):
        list(read("scenarionet", file))
    assert not (tmp_path / "harm").exists()


def test_absurd_sizes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    reader = "worldloop.worldmodel.data.scenarionet"
    for name, limit, message in (
        ("MOST_STATES", 100, "5 tracks of 40 steps are no scenario"),
        ("MOST_POINTS_OF_MAP", 200, "its map holds more than 200 points"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"{reader}.{name}", limit)
            with pytest.raises(DataError, match=message):
                list(read("scenarionet", write(tmp_path, scenario())))


@settings(max_examples=15, deadline=None)
@given(st.floats(-math.pi, math.pi), st.floats(-3000, 3000), st.floats(-3000, 3000))
def test_a_moved_and_turned_recording_gives_the_scene_moved_and_turned(tmp_path_factory, angle: float, x: float, y: float):
    turn = np.array([[math.cos(angle), math.sin(angle), 0], [-math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    record = scenario()
    for entry in record["tracks"].values():
        state = entry["state"]
        state["position"] = (state["position"].astype(np.float64) - ORIGIN) @ turn + [x, y, 0]
        state["velocity"] = state["velocity"] @ turn[:2, :2]
        state["heading"] = state["heading"] + angle
    for feature in record["map_features"].values():
        for name in {"polyline", "polygon"} & feature.keys():
            feature[name] = (feature[name].astype(np.float64) - ORIGIN) @ turn + [x, y, 0]
    signal = record["dynamic_map_states"]["2"]
    signal["stop_point"] = (signal["stop_point"].astype(np.float64) - ORIGIN) @ turn + [x, y, 0]
    folder = tmp_path_factory.mktemp("turned")
    before, after = only(write(folder, scenario(), "a.pkl")), only(write(folder, record, "b.pkl"))
    rotation = torch.from_numpy(turn).float()

    def seen_by_ego(scene: Scene, point: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
        return (point - scene.position[0, 1, HISTORY_STEPS]) @ back

    for field in ("position", "route", "signal_position"):
        mine, theirs = getattr(before, field)[0], getattr(after, field)[0]
        mask = before.valid[0] if field == "position" else torch.ones(mine.shape[:-1], dtype=torch.bool)
        expected = seen_by_ego(before, mine, torch.eye(3))
        torch.testing.assert_close(seen_by_ego(after, theirs, rotation.T)[mask], expected[mask], atol=0.02, rtol=0)
    assert torch.equal(before.lane_link, after.lane_link)
    assert torch.equal(before.signal_lane, after.signal_lane)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real scenarios are not at {REAL}")
def test_real_scenarios_are_read_whole():
    steps = {"1446dc44bd6fd420": (200, 163), "250011f460de6135": (198, 33), "2831b6fde0420b0d": (199, 19)}
    scenes = list(read("scenarionet", REAL))
    assert len(scenes) == len(steps)
    for scene in scenes:
        assert isinstance(scene, Scene)
        name = scene.id[0].removeprefix("scenarionet/")
        assert (scene.steps, scene.valid.shape[1]) == steps[name]
        edge, valid, ego = scene.polyline_kind[0] == PolylineKind.ROAD_EDGE, scene.valid[0], scene.ego[0]
        moving = valid & (scene.velocity[0].norm(dim=-1) > 2) & (scene.kind[0] == AgentKind.VEHICLE)[:, None]
        centre = scene.position[0][moving][::7, :2]
        distance = signed_distance_to_edges(centre, scene.polyline[0, edge][..., :2], scene.polyline_valid[0, edge])
        assert (distance > 0).float().mean() < 0.02
        path = scene.position[0, ego][valid[ego]][:, :2]
        offset = project_on_polyline(path, scene.route[0, :, :2], scene.route_valid[0])[1]
        assert offset.abs().max() < 1.0
