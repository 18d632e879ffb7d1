"""Waymo Open Motion: scenarios and TFRecord files made here, and the real ones where they are at hand."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from worldloop.worldmodel.data import DataError, Skipped, read
from worldloop.worldmodel.data.importing import import_scenes
from worldloop.worldmodel.data.waymo import read_scenario
from worldloop.worldmodel.data.waymo_records import Scenario, masked_checksum, parse_scenario, read_records
from worldloop.worldmodel.geometry import project_on_polyline, signed_distance_to_edges
from worldloop.worldmodel.scene import LAYOUT, AgentKind, LaneLinkKind, PolylineKind, Scene, SignalState

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "waymo_motion"
ORIGIN = (1000.25, -2000.75, 30.0)
FEATURE_KINDS = ("lane", "road_line", "road_edge", "stop_sign", "crosswalk", "speed_bump", "driveway")
LEFT_LANE, BEFORE, THROUGH, TURN, CENTRE_LINE, RIGHT_EDGE, LEFT_EDGE, CROSSWALK = range(1, 9)


def frame_record(data: bytes) -> bytes:
    """Return `data` as one record of a TFRecord file."""
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_checksum(length)) + data + struct.pack("<I", masked_checksum(data))


def points(*ends: tuple[float, float], spacing: float = 0.5) -> list[dict[str, float]]:
    """Points along straight stretches, moved to ORIGIN."""
    found = []
    for (x, y), (u, v) in zip(ends, ends[1:], strict=False):
        count = max(round(math.dist((x, y), (u, v)) / spacing), 1)
        found += [(x + (u - x) * k / count, y + (v - y) * k / count) for k in range(count)]
    return [{"x": x + ORIGIN[0], "y": y + ORIGIN[1], "z": ORIGIN[2]} for x, y in (*found, ends[-1])]


def track(kind: int, x: float, y: float, speed: float, seen: range, steps: int, **size: float) -> dict[str, Any]:
    states = [
        {
            "center_x": x + 0.1 * speed * step + ORIGIN[0],
            "center_y": y + ORIGIN[1],
            "center_z": ORIGIN[2] + 0.8,
            "length": 4.0,
            "width": 1.8,
            "height": 1.6,
            "heading": 0.0,
            "velocity_x": speed,
            "velocity_y": 0.0,
            "valid": True,
        }
        | size
        if step in seen
        else {"center_x": -1.0, "valid": False}
        for step in range(steps)
    ]
    return {"id": 100 + kind, "object_type": kind, "states": states}


def road() -> list[dict[str, Any]]:
    """A lane along the x axis up to x = 0, one to its left, behind them one straight on and one that turns to the left."""
    exits = [THROUGH, TURN]
    beside = {"self_start_index": 0, "self_end_index": 45, "neighbor_start_index": 0, "neighbor_end_index": 45}
    border = {"lane_start_index": 0, "lane_end_index": 90}
    own = {
        "speed_limit_mph": 25.0,
        "type": 2,
        "polyline": points((-45, 0), (0, 0)),
        "exit_lanes": [*exits, 999],  # 999 lies beyond the map
        "left_neighbors": [{"feature_id": LEFT_LANE} | beside],
        "left_boundaries": [{"boundary_feature_id": CENTRE_LINE} | border],
        "right_boundaries": [{"boundary_feature_id": RIGHT_EDGE} | border],
    }
    turn = {"type": 2, "interpolating": True, "polyline": points((0, 0), (5, 2), (8, 6), (8, 40)), "entry_lanes": [BEFORE]}
    left = {
        "type": 3,
        "polyline": points((-45, 3), (0, 3)),
        "right_neighbors": [{"feature_id": BEFORE} | beside],
        "right_boundaries": [{"boundary_feature_id": CENTRE_LINE} | border],
    }
    return [
        {"id": LEFT_LANE, "lane": left},
        {"id": BEFORE, "lane": own},
        {"id": THROUGH, "lane": {"type": 2, "polyline": points((0, 0), (45, 0)), "entry_lanes": [BEFORE]}},
        {"id": TURN, "lane": turn},
        {"id": CENTRE_LINE, "road_line": {"type": 1, "polyline": points((-45, 1.75), (0, 1.75))}},
        {"id": RIGHT_EDGE, "road_edge": {"type": 1, "polyline": points((-45, -1.25), (50, -1.25))}},
        {"id": LEFT_EDGE, "road_edge": {"type": 1, "polyline": points((0, 4), (-45, 4))}},
        {"id": CROSSWALK, "crosswalk": {"polygon": points((1, -1), (3, -1), (3, 4), (1, 4), spacing=99)}},
        {"id": 20, "stop_sign": {"lane": [BEFORE], "position": points((0, 0), (0, 1))[0]}},
        {"id": 21, "speed_bump": {"polygon": points((9, 0), (9, 1), (10, 1), spacing=1)}},
        {"id": 22, "driveway": {"polygon": points((9, 0), (9, 1), (10, 1), spacing=1)}},
        {"id": 23, "lane": {"type": 2, "polyline": points((0, 0), (0, 0.5))[:1]}},  # a single point
    ]


def scenario(steps: int = 21, **changes: Any) -> Any:
    """The ego, track 1, drives along the x axis at 10 m/s; the signal of the turn is not seen at steps 3 to 5."""
    turn = {"lane": TURN, "stop_point": points((-1, 0), (0, 0))[0]}
    states = [[turn | {"state": 1 + step % 8}, {"lane": THROUGH, "state": 6}, {"lane": 999, "state": 4}] for step in range(steps)]
    content: dict[str, Any] = {
        "scenario_id": "abc",
        "timestamps_seconds": [0.10002 * step for step in range(steps)],
        "current_time_index": 10,
        "sdc_track_index": 1,
        "tracks": [
            track(2, 5, 5, 1.0, range(12, steps), steps, height=1.75),
            track(1, -40, 0.25, 10, range(steps), steps),
            track(3, -30, -1, 5, range(3, 9), steps),
            track(4, 10, 6, 0, range(steps), steps),
        ],
        "dynamic_map_states": [{"lane_states": state[1 if step in (3, 4, 5) else 0 :]} for step, state in enumerate(states)],
        "map_features": road(),
        "tracks_to_predict": [{"track_index": 1, "difficulty": 2}],
    }
    return Scenario(**content | changes)


def scene_of(message: Any) -> Scene:
    scene = read_scenario(message, "waymo/abc", "here")
    assert isinstance(scene, Scene)
    return scene


def write(file: Path, *records: bytes) -> Path:
    file.write_bytes(b"".join(map(frame_record, records)))
    return file


def lanes_of(scene: Scene, kind: PolylineKind) -> list[torch.Tensor]:
    rows = (scene.polyline_kind[0] == kind).nonzero()[:, 0].tolist()
    return [scene.polyline[0, row][scene.polyline_valid[0, row]] for row in rows]


def test_a_file_of_scenarios_becomes_scenes(tmp_path: Path):
    other = scenario(scenario_id="def")
    file = write(tmp_path / "a.tfrecord-00000-of-00001", scenario().SerializeToString(), other.SerializeToString())
    first, second = read("waymo", tmp_path)
    assert isinstance(first, Scene)
    assert isinstance(second, Scene)
    assert (first.id, second.id) == (("waymo/abc",), ("waymo/def",))
    assert all(torch.equal(getattr(first, name), getattr(second, name)) for name in LAYOUT)
    done = import_scenes("waymo", file, tmp_path / "set")
    assert (done.counts["scenes"], done.counts["agents"]) == (2, 8)
    assert first.to_predict[0].nonzero()[:, 0].tolist() == [1]
    with pytest.raises(DataError, match="tracks_to_predict names track 4, found 4 tracks"):
        scene_of(scenario(tracks_to_predict=[{"track_index": 4}]))


def test_agents_are_the_tracks_as_recorded():
    scene = scene_of(scenario())
    assert scene.kind[0].tolist() == [AgentKind.PEDESTRIAN, AgentKind.VEHICLE, AgentKind.CYCLIST, AgentKind.OBJECT]
    assert scene.ego.tolist() == [1]
    assert scene.valid[0].sum(-1).tolist() == [9, 21, 6, 21]
    # The origin is the whole metre below the ego's place at the present: floor(1000.25 - 40 + 10), floor(-2000.75 + 0.25).
    torch.testing.assert_close(scene.position[0, 1, 10], torch.tensor([0.25, 0.5, 30.8]))
    torch.testing.assert_close(scene.position[0, 1, :, 0], 0.25 - 10 + 1.0 * torch.arange(21))
    assert (scene.velocity[0, 1] == torch.tensor([10.0, 0.0])).all()
    assert (scene.position[0][~scene.valid[0]] == 0).all()


def test_the_size_is_that_of_the_step_nearest_to_the_present():
    message = scenario()
    for step, state in enumerate(message.tracks[2].states):
        state.length = 1.0 + step  # seen at steps 3 to 8
    for step, state in enumerate(message.tracks[1].states):
        state.width = 1.0 + step
    scene = scene_of(message)
    assert scene.size[0, 2, 0] == 9.0
    assert scene.size[0, 1, 1] == 11.0
    assert scene.size[0, 0].tolist() == pytest.approx([4.0, 1.8, 1.75])


def test_lanes_have_kind_limit_and_links():
    scene = scene_of(scenario())
    # Left lane, before, through, turn: 45 m each (the turn 44.4 m) are 19 points, hence pieces of 10 and 10 that share one.
    lane = PolylineKind.LANE
    assert scene.polyline_kind[0, :8].tolist() == [PolylineKind.BIKE_LANE] * 2 + [lane] * 4 + [PolylineKind.JUNCTION_LANE] * 2
    assert scene.polyline_valid[0, :8].sum(-1).tolist() == [10] * 8
    assert scene.speed_limit_valid[0].nonzero()[:, 0].tolist() == [2, 3]
    assert scene.speed_limit[0, 2] == pytest.approx(11.176)
    links = {(*link, kind) for link, kind in zip(scene.lane_link[0].tolist(), scene.lane_link_kind[0].tolist(), strict=True)}
    successor, left, right = LaneLinkKind.SUCCESSOR, LaneLinkKind.LEFT, LaneLinkKind.RIGHT
    along = {(0, 1, successor), (2, 3, successor), (4, 5, successor), (6, 7, successor)}
    # Neighbours lie side by side on the first half alone, and 22.5 m is where the first piece ends.
    assert links == along | {(3, 4, successor), (3, 6, successor), (2, 0, left), (0, 2, right)}


@pytest.mark.parametrize(("height", "kind"), [(0.0, PolylineKind.JUNCTION_LANE), (6.0, PolylineKind.LANE)])
def test_lanes_that_cross_on_one_level_are_in_a_junction(height: float, kind: PolylineKind):
    message = with_feature({"id": 50, "lane": {"type": 2, "polyline": points((30, -20), (30, 20))}})
    for point in message.map_features[-1].lane.polyline:
        point.z += height
    scene = scene_of(message)
    assert scene.polyline_kind[0, 2:4].tolist() == [PolylineKind.LANE] * 2
    assert scene.polyline_kind[0, 4:6].tolist() == [kind] * 2
    assert scene.polyline_kind[0, 8:10].tolist() == [kind] * 2


def test_widths_follow_from_the_lines_beside():
    scene = scene_of(scenario())
    width = scene.lane_width[0, :8].tolist()
    assert width[2] == pytest.approx(3.0, abs=1e-3)  # 1.75 m to the line on the left, 1.25 m to the edge on the right
    assert width[0] == pytest.approx(2.5, abs=1e-3)  # a bike lane with one side: twice 1.25 m
    assert width[4] == pytest.approx(3.0, abs=1e-3)  # in the junction there are no lines: as the lane before
    message = scenario()
    for feature in message.map_features:
        if feature.id == CENTRE_LINE:
            for point in feature.road_line.polyline:
                point.y += 20  # implausible
    scene = scene_of(message)
    assert scene.lane_width[0, :8].tolist() == [1.5, 1.5] + [3.5] * 6


def test_edges_have_the_road_on_their_left_and_crosswalks_are_closed():
    scene = scene_of(scenario())
    edge = scene.polyline_kind[0] == PolylineKind.ROAD_EDGE
    place = torch.tensor([[-10.0, 0.5], [-10.0, -2.0], [-10.0, 6.0]])
    distance = signed_distance_to_edges(place, scene.polyline[0, edge][..., :2], scene.polyline_valid[0, edge])
    # The x axis of the road lies at y = 0.25 of the scene: edges at -1 and 4.25.
    torch.testing.assert_close(distance, torch.tensor([-1.5, 1.0, 1.75]), atol=1e-4, rtol=0)
    (outline,) = lanes_of(scene, PolylineKind.CROSSWALK)
    assert outline.shape == (5, 3)
    assert torch.equal(outline[0], outline[-1])


def test_a_crosswalk_of_many_points_stays_one_closed_line():
    message = scenario()
    (crosswalk,) = [feature.crosswalk for feature in message.map_features if feature.id == CROSSWALK]
    del crosswalk.polygon[:]
    for k in range(60):
        angle = 2 * math.pi * k / 60
        crosswalk.polygon.add(x=ORIGIN[0] + 5 * math.cos(angle), y=ORIGIN[1] + 3 * math.sin(angle), z=ORIGIN[2])
    (outline,) = lanes_of(scene_of(message), PolylineKind.CROSSWALK)
    assert len(outline) <= 10
    assert torch.equal(outline[0], outline[-1])
    x, y = outline[:, 0], outline[:, 1]
    area = 0.5 * (x[:-1] * y[1:] - x[1:] * y[:-1]).sum()
    assert area == pytest.approx(math.pi * 15, rel=0.15)


def test_signals_bind_the_lane_that_they_control():
    scene = scene_of(scenario())
    assert scene.sizes()["S"] == 2  # the one of a lane beyond the map is left out
    turn, through = 0, 1
    assert scene.signal_lane[0].tolist() == [6, 4]
    unknown, stop, caution, go = SignalState
    cycle = [stop, caution, go, stop, caution, go, unknown, unknown]
    expected = [cycle[step % 8] if step not in (3, 4, 5) else unknown for step in range(21)]
    assert scene.signal_state[0, turn].tolist() == expected
    assert scene.signal_valid[0, turn].logical_not().nonzero()[:, 0].tolist() == [3, 4, 5]
    assert (scene.signal_state[0, through] == go).all()
    assert scene.signal_valid[0, through].all()
    # x: 1000.25 - 970; y: -2000.75 + 2001. The turn's stop point is given 1 m before, the other is the start of its lane.
    torch.testing.assert_close(scene.signal_position[0, turn], torch.tensor([29.25, 0.25, 30.0]))
    torch.testing.assert_close(scene.signal_position[0, through], torch.tensor([30.25, 0.25, 30.0]))
    torch.testing.assert_close(scene.signal_heading[0], torch.tensor([math.atan2(2, 5), 0.0]), atol=1e-3, rtol=0)


def test_the_route_runs_along_lanes_on_the_ground():
    route = scene_of(scenario()).route[0]
    assert route[0, 0] == pytest.approx(-9.75 - 20, abs=0.1)
    assert route[-1, 0] == pytest.approx(10.25 + 60, abs=2.1)
    assert (route[:, 1] - 0.25).abs().max() < 0.05  # the lane's centre; the ego drives 0.25 m beside it
    assert (route[:, 2] - 30.0).abs().max() < 1e-4
    assert (torch.diff(route[:, :2], dim=0).norm(dim=-1) < 2.001).all()


def test_a_scenario_without_a_map_has_the_log_as_its_route():
    scene = scene_of(scenario(map_features=[], dynamic_map_states=[]))
    assert (scene.sizes()["L"], scene.sizes()["E"], scene.sizes()["S"]) == (0, 0, 0)
    torch.testing.assert_close(scene.route[0, :, 1], torch.full((scene.route.shape[1],), 0.5))


@settings(deadline=None, max_examples=10)
@given(st.integers(-20_000, 20_000), st.integers(-20_000, 20_000))
def test_a_scene_does_not_depend_on_where_the_map_begins(x: int, y: int):
    message = scenario()
    for each in message.tracks:
        for state in each.states:
            state.center_x, state.center_y = state.center_x + x, state.center_y + y
    moved = [point for feature in message.map_features for point in feature.lane.polyline]
    moved += [point for feature in message.map_features for point in (*feature.road_line.polyline, *feature.road_edge.polyline)]
    moved += [point for feature in message.map_features for point in feature.crosswalk.polygon]
    moved += [state.stop_point for moment in message.dynamic_map_states for state in moment.lane_states]
    for feature in message.map_features:  # reading an absent part must not make it
        assert sum(feature.HasField(kind) for kind in ("lane", "road_line", "road_edge", "crosswalk")) <= 1
    for point in moved:
        if point.x or point.y:
            point.x, point.y = point.x + x, point.y + y
    ours, theirs = scene_of(scenario()), scene_of(message)
    for name in LAYOUT:
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), atol=1e-3, rtol=0)


def test_checksums_are_those_of_the_literature():
    # CRC-32C("123456789") = 0xE3069283 (RFC 3720's polynomial): rotated right by 15 bits 0x2507C60D, plus 0xA282EAD8.
    assert masked_checksum(b"123456789") == (0x2507C60D + 0xA282EAD8) & 0xFFFFFFFF
    assert frame_record(b"")[:8] == bytes(8)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.binary(max_size=40), min_size=1, max_size=4), st.data())
def test_records_come_back_and_every_damage_is_seen(tmp_path_factory: pytest.TempPathFactory, records: list[bytes], data: Any):
    file = write(tmp_path_factory.getbasetemp() / "any.tfrecord", *records)
    assert list(read_records(file)) == records
    content = bytearray(file.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    with pytest.raises(DataError, match="any.tfrecord"):
        list(read_records(file))
    whole = b"".join(map(frame_record, records[:-1]))
    file.write_bytes(whole + frame_record(records[-1])[: data.draw(st.integers(1, len(records[-1]) + 15))])
    with pytest.raises(DataError, match=f"record {len(records) - 1}: the file ends within it"):
        list(read_records(file))


def test_messages_are_read_from_hand_made_bytes():
    """Field 5 (text "abc"), 10 (varint 10), 1 (doubles, one by one and packed), 2 (a track: object type 3), 99 (unknown)."""
    double = struct.pack("<d", 0.5)
    data = b"\x2a\x03abc\x50\x0a\x09" + double + b"\x0a\x08" + double + b"\x12\x02\x10\x03" + b"\x98\x06\x01"
    message = parse_scenario(data)
    assert (message.scenario_id, message.current_time_index) == ("abc", 10)
    assert list(message.timestamps_seconds) == [0.5, 0.5]
    assert message.tracks[0].object_type == 3


def with_state(number: int) -> Any:
    message = scenario()
    message.dynamic_map_states[7].lane_states[0].state = number
    return message


def with_track(**changes: Any) -> Any:
    message = scenario()
    for name, value in changes.items():
        setattr(message.tracks[2], name, value)
    return message


def with_position(x: float) -> Any:
    message = scenario()
    message.tracks[3].states[4].center_x = x
    return message


def with_feature(feature: dict[str, Any]) -> Any:
    return scenario(map_features=[*road(), feature])


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (with_track(object_type=0), "track 2: found object type 0"),
        (with_track(object_type=9), "track 2: found object type 9"),
        (with_state(9), f"signal of lane {TURN}: found state 9"),
        (with_position(math.nan), "position: agent 3, step 4: found NaN"),
        (with_feature({"id": 50}), "map feature 50 is none of lane, "),
        (with_feature({"id": TURN, "crosswalk": {}}), f"two map features have the id {TURN}"),
        (with_feature({"id": 50, "lane": {"type": 7, "polyline": points((0, 0), (1, 0))}}), "lane 50: found type 7"),
        (scenario(sdc_track_index=4), "ego's index 4 and 4 tracks"),
        (scenario(sdc_track_index=-1), "ego's index -1"),
        (scenario(timestamps_seconds=[0.1 * k for k in range(20)]), "dynamic map states for 20 timestamps"),
        (scenario(timestamps_seconds=[0.2 * k for k in range(21)]), r"steps from 0\.200 to 0\.200 s, wanted 0\.1 s"),
        (scenario(tracks=[track(1, 0, 0, 0, range(5), 5)], sdc_track_index=0), "track 0: found 5 states for 21 timestamps"),
    ],
)
def test_bad_scenarios_are_one_clear_error(tmp_path: Path, message: Any, reason: str):
    file = write(tmp_path / "bad.tfrecord", scenario().SerializeToString(), message.SerializeToString())
    with pytest.raises(DataError, match=f"record 1: waymo/abc cannot be used .*{reason}") as error:
        list(read("waymo", file))
    assert str(file) in str(error.value)


def test_foreign_and_damaged_files_are_one_clear_error(tmp_path: Path):
    # A tf.Example: features {feature {key: "scenario/id"}}, each part as field 1 with its length.
    example = b"\x0a\x0f\x0a\x0d\x0a\x0bscenario/id"
    good = scenario().SerializeToString()
    damaged = bytearray(frame_record(good))
    damaged[400] ^= 1
    for content, reason in (
        (b"", "is empty"),
        (b"hello", "record 0: the file ends within it"),
        (b"<commonRoad version='2018b'/>", "is no TFRecord file"),
        (frame_record(example), "record 0: holds a tf.Example .*'scenario/id'.* folder `scenario` and not of `tf_example`"),
        (frame_record(b""), "record 0: holds no Scenario .*neither an id nor tracks"),
        (frame_record(b"\xff\xff\xff"), "record 0: holds no Scenario"),
        (frame_record(good) + bytes(damaged), "record 1: its checksum differs"),
        (frame_record(good) + b"\x01" + frame_record(good)[1:], "record 1: its length is damaged"),
    ):
        file = tmp_path / "bad.tfrecord"
        file.write_bytes(content)
        with pytest.raises(DataError, match=reason):
            list(read("waymo", file))


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (scenario(steps=10), "10 steps, wanted at least 11"),
        (scenario(current_time_index=5), "its present is step 5, wanted 10"),
        (scenario(sdc_track_index=2), "its ego is not valid at the present"),
    ],
)
def test_what_cannot_be_used_is_skipped_with_a_reason(message: Any, reason: str):
    skipped = read_scenario(message, "waymo/abc", "here")
    assert isinstance(skipped, Skipped)
    assert reason in skipped.reason


def test_eleven_steps_without_a_future_are_a_scene():
    assert scene_of(scenario(steps=11)).steps == 11


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real scenarios are not at {REAL}")
@pytest.mark.parametrize(
    ("name", "id", "agents", "ego", "signals"),
    [
        ("motion_data_one_scenario", "637f20cafde22ff8", 83, 82, 12),
        ("womd_scenario_input", "ee519cf571686d19", 257, 256, 0),
    ],
)
def test_real_scenarios(name: str, id: str, agents: int, ego: int, signals: int):
    file = REAL / f"{name}.tfrecord"
    (scene,) = read("waymo", file)
    assert isinstance(scene, Scene)
    assert scene.id == (f"waymo/{id}",)
    sizes = scene.sizes()
    assert (sizes["A"], sizes["T"], sizes["S"], scene.ego.tolist()) == (agents, 91, signals, [ego])
    assert sizes["P"] == 10
    (record,) = read_records(file)
    message = parse_scenario(record)
    logged = torch.tensor([[[s.center_x, s.center_y] for s in each.states] for each in message.tracks], dtype=torch.float64)
    valid = torch.tensor([[s.valid for s in each.states] for each in message.tracks])
    assert torch.equal(valid, scene.valid[0])
    shift = logged[ego, 10].floor()
    torch.testing.assert_close((logged - shift)[valid].float(), scene.position[0, ..., :2][valid])
    edge = scene.polyline_kind[0] == PolylineKind.ROAD_EDGE
    moving = (scene.kind[0] == AgentKind.VEHICLE)[:, None] & scene.valid[0] & (scene.velocity[0].norm(dim=-1) > 1)
    centre = scene.position[0][moving][::5, :2]
    distance = signed_distance_to_edges(centre, scene.polyline[0, edge][..., :2], scene.polyline_valid[0, edge])
    assert (distance > 0).float().mean() < 0.05
    driven, route = scene.position[0, ego, :, :2], scene.route[0, :, :2]
    _, offset, _ = project_on_polyline(driven, route, torch.ones(len(route), dtype=torch.bool))
    assert offset.abs().max() < 1.5
    exits = sum(len(feature.lane.exit_lanes) for feature in message.map_features if len(feature.lane.polyline) > 1)
    link = scene.lane_link[0][scene.lane_link_kind[0] == LaneLinkKind.SUCCESSOR]
    last = (scene.polyline_valid[0].sum(-1) - 1)[link[:, 0]]
    assert len(link) > exits
    gap = scene.polyline[0, link[:, 0], last] - scene.polyline[0, link[:, 1], 0]
    assert gap.norm(dim=-1).max() < 0.01


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real scenarios are not at {REAL}")
def test_a_real_tf_example_is_refused():
    with pytest.raises(DataError, match=r"motion_data_one_example\.tfrecord: record 0: holds a tf\.Example"):
        list(read("waymo", REAL / "motion_data_one_example.tfrecord"))
