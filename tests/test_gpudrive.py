"""GPUDrive's JSON: scenes written here in its forms, new and old, and the real ones where they are at hand."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_waymo import FEATURE_KINDS, scenario, scene_of
from worldloop.worldmodel.data import DataError, Skipped, read
from worldloop.worldmodel.geometry import project_on_polyline, signed_distance_to_edges, wrap_angle
from worldloop.worldmodel.scene import LAYOUT, AgentKind, LaneLinkKind, PolylineKind, Scene

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "waymo_gpudrive_json"
TYPES = ("unset", "vehicle", "pedestrian", "cyclist", "other")
WORDS = ("unknown", "arrow_stop", "arrow_caution", "arrow_go", "stop", "caution", "go", "flashing_stop", "flashing_caution")


def xyz(point: Any) -> dict[str, float]:
    return {"x": point.x, "y": point.y, "z": point.z}


def converted(message: Any) -> dict[str, Any]:
    """What GPUDrive's conversion makes of a scenario."""
    objects = []
    for track in message.tracks:
        last = [state for state in track.states if state.valid][-1]
        missing = {"x": -10000.0, "y": -10000.0, "z": -10000.0}
        objects.append(
            {
                "position": [{"x": s.center_x, "y": s.center_y, "z": s.center_z} if s.valid else missing for s in track.states],
                "heading": [s.heading if s.valid else -10000.0 for s in track.states],
                "velocity": [{"x": s.velocity_x, "y": s.velocity_y} if s.valid else missing for s in track.states],
                "valid": [s.valid for s in track.states],
                "goalPosition": {"x": last.center_x, "y": last.center_y, "z": last.center_z},
                "type": TYPES[track.object_type],
                "id": track.id,
                "mark_as_expert": False,
            }
            | {name: getattr(last, name) for name in ("length", "width", "height")}
        )
    roads = []
    for feature in message.map_features:
        kind = next(kind for kind in FEATURE_KINDS if feature.HasField(kind))
        content = getattr(feature, kind)
        line = getattr(content, "polyline", None) or getattr(content, "polygon", None) or [content.position]
        element = {"map_element_id": content.type} if kind == "lane" else {}
        roads.append({"geometry": [xyz(point) for point in line], "type": kind, "id": feature.id} | element)
    lights: dict[str, Any] = {}
    for step, moment in enumerate(message.dynamic_map_states):
        for entry in moment.lane_states:
            light = lights.setdefault(str(entry.lane), {name: [] for name in ("state", "x", "y", "z", "time_index", "lane_id")})
            values = {"state": WORDS[entry.state], "time_index": step, "lane_id": entry.lane} | xyz(entry.stop_point)
            for name, value in values.items():
                light[name].append(value)
    metadata = {"sdc_track_index": message.sdc_track_index, "objects_of_interest": []}
    metadata["tracks_to_predict"] = [{"track_index": named.track_index} for named in message.tracks_to_predict]
    return {
        "name": "abc.json",
        "scenario_id": message.scenario_id,
        "objects": objects,
        "roads": roads,
        "tl_states": lights,
        "metadata": metadata,
    }


def old_form(record: dict[str, Any]) -> dict[str, Any]:
    """What the first conversions left of it: the ego last, degrees, nothing in the third dimension, no ids."""
    ego = record["metadata"]["sdc_track_index"]
    objects = [entry for row, entry in enumerate(record["objects"]) if row != ego] + [record["objects"][ego]]
    for entry in objects:
        entry["heading"] = [math.degrees(h) + 720 for h in entry["heading"]]
        del entry["height"], entry["id"]
        for place in entry["position"]:
            place.pop("z", None)
    for number, road in enumerate(record["roads"]):
        del road["id"]
        road.pop("map_element_id", None)
        road["geometry"] = [{"x": point["x"], "y": point["y"]} for point in record["roads"][number]["geometry"]]
    return {"name": "abc.json", "objects": objects, "roads": record["roads"], "tl_states": {}}


def signalled() -> Any:
    """The scenario of the Waymo tests; every signal says where its stop point is, as in all of Waymo's files."""
    message = scenario()
    for moment in message.dynamic_map_states:
        for entry in moment.lane_states:
            lane = next((feature.lane for feature in message.map_features if feature.id == entry.lane), None)
            if lane is not None:
                entry.stop_point.CopyFrom(lane.polyline[0])
    return message


def write(folder: Path, record: Any, name: str = "abc.json") -> Path:
    content = json.dumps(record).encode()
    (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return folder / name


def only(file: Path) -> Scene:
    (scene,) = read("gpudrive", file)
    assert isinstance(scene, Scene)
    return scene


@pytest.mark.parametrize("name", ["abc.json", "abc.json.gz"])
def test_a_converted_scenario_is_the_scenario(tmp_path: Path, name: str):
    message = signalled()
    ours, waymos = only(write(tmp_path, converted(message), name)), scene_of(message)
    assert ours.id == ("gpudrive/abc",)
    lost = {
        "speed_limit",
        "speed_limit_valid",
        "lane_width",
        "lane_link",
        "lane_link_kind",
        "lane_link_valid",
        "route",
        "route_valid",
    }
    kinds = {"polyline_kind"}  # the message says of one lane that it lies in a junction, the JSON cannot
    for field in set(LAYOUT) - lost - kinds:
        assert torch.equal(getattr(ours, field), getattr(waymos, field)), field
    torch.testing.assert_close(ours.route, waymos.route)
    drawn = (PolylineKind.LANE, PolylineKind.JUNCTION_LANE)
    for kind in set(PolylineKind) - set(drawn):
        assert torch.equal(ours.polyline_kind == kind, waymos.polyline_kind == kind)


def test_lanes_follow_where_others_end(tmp_path: Path):
    message = signalled()
    scenes = only(write(tmp_path, converted(message))), scene_of(message)
    ours, waymos = (
        {tuple(link) for link in s.lane_link[0][s.lane_link_kind[0] == LaneLinkKind.SUCCESSOR].tolist()} for s in scenes
    )
    assert ours == waymos
    assert not (scenes[0].lane_link_kind[0] != LaneLinkKind.SUCCESSOR).any()
    assert not scenes[0].speed_limit_valid.any()


def test_the_old_form_is_told_by_its_degrees_and_has_the_ego_last(tmp_path: Path):
    message = signalled()
    for track in message.tracks:
        for state in track.states:
            state.heading = 2.5
    scene = only(write(tmp_path, old_form(converted(message))))
    assert scene.ego.tolist() == [3]
    assert scene.kind[0].tolist() == [AgentKind.PEDESTRIAN, AgentKind.CYCLIST, AgentKind.OBJECT, AgentKind.VEHICLE]
    assert (scene.heading[scene.valid] - 2.5).abs().max() < 1e-4
    assert scene.size[0, :, 2].tolist() == pytest.approx([1.8, 1.4, 1.0, 1.7])
    assert (scene.position[0, 3, :, 2] - 0.85).abs().max() < 1e-6
    assert (scene.polyline[..., 2] == 0).all()
    assert scene.sizes()["E"] == 6  # four lanes of two pieces, and two lanes that follow one


def test_what_cannot_be_used_is_skipped_with_a_reason(tmp_path: Path):
    (skipped,) = read(
        "gpudrive", write(tmp_path, converted(scenario(steps=10, tracks=list(scenario(steps=10).tracks)[1:2], sdc_track_index=0)))
    )
    assert isinstance(skipped, Skipped)
    assert "10 steps, wanted at least 11" in skipped.reason


def changed(**changes: Any) -> bytes:
    """The scene's JSON with entries replaced, which are named as in `objects__0__type`."""
    record = converted(signalled())
    for path, value in changes.items():
        *way, last = path.split("__")
        inner: Any = record
        for part in way:
            inner = inner[int(part) if isinstance(inner, list) else part]
        last = int(last) if isinstance(inner, list) else last
        if value is None:
            del inner[last]
        else:
            inner[last] = value
    return json.dumps(record).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed()[:500], "no whole JSON file"),
        (gzip.compress(changed())[:300], "no whole gzip file"),
        (b"\xff\xfe\x00", "no whole JSON file"),
        (b"[1, 2]", "no GPUDrive scene"),
        (b"{}", "no GPUDrive scene .field 'objects'"),
        (changed(roads=None), "field 'roads'"),
        (changed(tl_states=None), "field 'tl_states'"),
        (changed(objects__1__velocity=None), "field 'velocity'"),
        (changed(objects__1__position__3__x=None), "field 'x'"),
        (changed(objects__1__position__3__x="north"), "no GPUDrive scene"),
        (changed(objects__1__position__3__x=math.nan), "position: agent 1, step 3: found NaN"),
        (changed(objects__1__heading=[0.0]), "object 1: found 21, 1, 21, 21 positions, headings, velocities and valids"),
        (changed(objects__1__type="ufo"), "object 1: found type 'ufo'"),
        (changed(objects__1__type="unset"), "track 1: found object type 0"),
        (changed(objects=[], tl_states={}), "it has no ego"),
        (changed(metadata__sdc_track_index=7), "ego's index 7 and 4 tracks"),
        (changed(roads__0__type="canal"), "road 0: found type 'canal'"),
        (changed(roads__0__map_element_id=12), "lane 1: found type 12"),
        (changed(roads__0__id=2), "two map features have the id 2"),
        (changed(tl_states__3__state__4="blue"), "signal of lane 3: found state 'blue' at step 4 of 21"),
        (changed(tl_states__3__time_index__4=50), "at step 50 of 21"),
    ],
)
def test_bad_files_are_one_clear_error(tmp_path: Path, content: bytes, message: str):
    file = tmp_path / "bad.json"
    file.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        list(read("gpudrive", file))
    assert str(file) in str(error.value)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real scenes are not at {REAL}")
def test_real_scenes():
    scenes = [scene for scene in read("gpudrive", REAL) if isinstance(scene, Scene)]
    assert len(scenes) == 8
    off_road, slip = [], []
    for scene in scenes:
        ego = int(scene.ego[0])
        assert scene.steps == 91
        assert ego == scene.sizes()["A"] - 1
        assert scene.valid[0, ego].all()
        assert scene.size[0, ego, :2].tolist() == pytest.approx([5.286, 2.332], abs=1e-3)  # Waymo's car
        driven, route = scene.position[0, ego, :, :2], scene.route[0, :, :2]
        _, offset, _ = project_on_polyline(driven, route, torch.ones(len(route), dtype=torch.bool))
        assert (
            offset.abs().max() < 2.25
        )  # half a lane and 0.5 m, as far as a parked car may stand from the lane that it is matched to
        moving = (scene.kind[0] == AgentKind.VEHICLE)[:, None] & scene.valid[0] & (scene.velocity[0].norm(dim=-1) > 2)
        edge = scene.polyline_kind[0] == PolylineKind.ROAD_EDGE
        centre = scene.position[0][moving][::7, :2]
        off_road.append(signed_distance_to_edges(centre, scene.polyline[0, edge][..., :2], scene.polyline_valid[0, edge]) > 0)
        velocity = scene.velocity[0][moving]
        slip.append(wrap_angle(torch.atan2(velocity[:, 1], velocity[:, 0]) - scene.heading[0][moving]).abs())
    assert torch.cat(off_road).float().mean() < 0.05
    assert torch.cat(slip).quantile(0.95) < 0.3
    assert sum(scene.sizes()["S"] for scene in scenes) == 25
