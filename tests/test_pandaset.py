"""PandaSet: hand-made sequences in its form, and the real ones where they are at hand."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from worldloop.worldmodel.data import DataError, Skipped, compressed, read
from worldloop.worldmodel.geometry import wrap_angle
from worldloop.worldmodel.scene import AgentKind, PolylineKind, Scene

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "pandaset"


def agent(category: str, frames: range, x: float, y: float, speed: float = 0.0, lwh: tuple[float, ...] = (4.5, 1.9, 1.6)) -> dict:
    return {
        "category": category,
        "lwh": list(lwh),
        "frame": list(frames),
        "xyz": [[x + 0.1 * speed * frame, y, 0.4] for frame in frames],
        "yaw": [0.0 for _ in frames],
    }


def sequence(steps: int = 30, first: int = 0, speed: float = 10.0, **changes: Any) -> dict[str, Any]:
    """The ego's rear axle drives along the x axis."""
    record = {
        "sequence": "007",
        "dt": 0.1,
        "ego": {
            "t": [0.1 * (first + k) for k in range(steps)],
            "xyz": [[0.1 * speed * k, 0.0, 0.0] for k in range(steps)],
            "yaw": [0.0] * steps,
        },
        "agents": [
            agent("Car", range(first, first + steps), 30, 3.5, 8),
            agent("Motorcycle", range(first, first + 20), 10, -3, 5, (2.2, 0.8, 1.3)),
            agent("Pedestrian with Object", range(first + 5, first + steps), 20, 8, 1, (0.8, 0.8)),
            agent("Cones", range(first, first + steps), 25, -5, 0, (0.4, 0.4, 1.0)),
        ],
        "lane_lines": [[[0.4 * k, 1.75, -0.3] for k in range(150)]],
    }
    return record | changes


def write(folder: Path, record: Any, name: str = "007.json.gz") -> Path:
    (folder / name).write_bytes(gzip.compress(json.dumps(record).encode()))
    return folder / name


def only(file: Path) -> Scene:
    (scene,) = read("pandaset", file)
    assert isinstance(scene, Scene)
    return scene


def test_a_sequence_becomes_a_scene(tmp_path: Path):
    scene = only(write(tmp_path, sequence()))
    assert scene.id == ("pandaset/007",)
    assert scene.sizes() == {"B": 1, "A": 5, "T": 30, "L": 3, "P": 10, "E": 0, "S": 0, "R": scene.route.shape[1]}
    assert scene.kind[0].tolist() == [0, 0, AgentKind.CYCLIST, AgentKind.PEDESTRIAN, AgentKind.OBJECT]
    assert scene.valid[0].sum(-1).tolist() == [30, 30, 20, 25, 30]
    torch.testing.assert_close(scene.velocity[0, 1, :, 0], torch.full((30,), 8.0), atol=1e-3, rtol=0)
    assert (scene.velocity[0, 4] == 0).all()
    assert (scene.polyline_kind == PolylineKind.LANE_MARKING).all()


def test_the_ego_is_a_box_around_the_cars_middle(tmp_path: Path):
    scene = only(write(tmp_path, sequence()))
    assert scene.ego.tolist() == [0]
    torch.testing.assert_close(scene.position[0, 0, 0], torch.tensor([1.461, 0.0, 0.518]), atol=1e-3, rtol=0)
    torch.testing.assert_close(scene.size[0, 0], torch.tensor([5.176, 2.022, 1.777]))


def test_the_route_goes_20_m_behind_and_60_m_ahead(tmp_path: Path):
    route = only(write(tmp_path, sequence())).route[0]
    assert route[0, 0] == pytest.approx(1.461 - 20, abs=0.01)
    assert route[-1, 0] == pytest.approx(1.461 + 29 + 60, abs=0.6)
    step = torch.diff(route[:, :2], dim=0).norm(dim=-1)
    assert (step > 1.8).all()
    assert (step <= 2.001).all()


def test_a_parked_ego_has_a_route_along_its_heading(tmp_path: Path):
    record = sequence(speed=0)
    record["ego"]["yaw"] = [math.pi / 2] * 30
    scene = only(write(tmp_path, record))
    assert scene.route[0, 0, 1] == pytest.approx(1.461 - 20, abs=0.01)
    assert scene.route[0, -1, 1] == pytest.approx(1.461 + 60, abs=0.01)
    assert scene.route[0, :, 0].abs().max() < 1e-3
    assert (scene.velocity[0, 0] == 0).all()


def test_agents_are_cut_to_the_egos_time(tmp_path: Path):
    scene = only(write(tmp_path, sequence(steps=20, first=13, agents=[agent("Bus", range(0, 80), 0, 5, 10)])))
    assert scene.steps == 20
    assert scene.valid[0, 1].all()
    assert scene.position[0, 1, 0, 0] == pytest.approx(13, abs=0.01)


def test_a_missing_height_is_the_kinds_default(tmp_path: Path):
    assert only(write(tmp_path, sequence())).size[0, 3].tolist() == pytest.approx([0.8, 0.8, 1.8])


def test_long_lane_lines_are_cut_into_pieces_that_share_their_ends(tmp_path: Path):
    scene = only(write(tmp_path, sequence()))
    last = scene.polyline[0, 0][scene.polyline_valid[0, 0]][-1]
    torch.testing.assert_close(last, scene.polyline[0, 1, 0])
    step = torch.diff(scene.polyline[0], dim=1).norm(dim=-1)
    length = float(step[scene.polyline_valid[0, :, 1:]].sum())
    assert length == pytest.approx(0.4 * 149, abs=1e-3)


def test_a_short_sequence_is_skipped_with_a_reason(tmp_path: Path):
    (skipped,) = read("pandaset", write(tmp_path, sequence(steps=10)))
    assert isinstance(skipped, Skipped)
    assert skipped.reason == "10 steps, wanted at least 11"


def test_bad_files_are_one_clear_error(tmp_path: Path):
    good = write(tmp_path, sequence()).read_bytes()
    for name, content, message in (
        ("cut", good[: len(good) // 2], "no whole gzip file"),
        ("text", b"hello", "no whole JSON"),
        ("deep", gzip.compress(b"[" * 200_000), "no whole JSON"),
        ("list", gzip.compress(b"[1, 2]"), "no PandaSet sequence"),
        ("empty", gzip.compress(b"{}"), "field 'ego'"),
        ("slow", gzip.compress(json.dumps(sequence(dt=0.5)).encode()), "steps of 0.5 s"),
        ("ufo", gzip.compress(json.dumps(sequence(agents=[agent("Ufo", range(30), 0, 0)])).encode()), "unknown category 'Ufo'"),
        ("nan", gzip.compress(json.dumps(sequence(agents=[agent("Car", range(30), math.nan, 0)])).encode()), "found NaN"),
    ):
        file = tmp_path / f"{name}.json.gz"
        file.write_bytes(content)
        with pytest.raises(DataError, match=message):
            list(read("pandaset", file))


def changed(*keys: str | int, value: Any) -> dict[str, Any]:
    """The good sequence with one entry replaced."""
    record = sequence()
    place: Any = record
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    return record


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (changed("ego", "yaw", value=[0.0] * 29), r"ego\.yaw: found shape \(29,\), wanted \(30,\)"),
        (changed("ego", "xyz", value=[[0.0, 0.0, 0.0]] * 29), r"ego\.xyz: found shape \(29, 3\), wanted \(30, 3\)"),
        (changed("ego", "xyz", 3, value=[0.0, 0.0]), r"ego\.xyz: .*wanted numbers of shape \(30, 3\)"),
        (changed("ego", "t", 0, value=math.nan), r"ego\.t: found NaN or infinity"),
        (changed("ego", "yaw", 4, value=math.inf), r"ego\.yaw: found NaN or infinity"),
        (changed("ego", "xyz", 29, value=[1e9, 0.0, 0.0]), r"ego\.xyz: .*above 1e6"),
        (changed("agents", 1, "xyz", value=[[0.0, 0.0]] * 20), r"agents\[1\]\.xyz: found shape \(20, 2\), wanted \(20, 3\)"),
        (changed("agents", 1, "yaw", value=[0.0] * 3), r"agents\[1\]\.yaw: found shape \(3,\), wanted \(20,\)"),
        (changed("agents", 1, "yaw", value={}), r"agents\[1\]\.yaw: "),
        (changed("agents", 1, "frame", value=[10**400] * 20), r"agents\[1\]\.frame: "),
        (changed("agents", 1, "lwh", value=[4.5]), r"agents\[1\]\.lwh: found shape \(1,\), wanted \(3,\)"),
        (changed("lane_lines", 0, value=[[0.0, 0.0], [1.0, 0.0]]), r"lane_lines\[0\]: found shape \(2, 2\), wanted \(2, 3\)"),
        (changed("lane_lines", 0, 1, value=[math.nan, 0.0, 0.0]), r"lane_lines\[0\]: found NaN or infinity"),
    ],
)
def test_a_wrong_table_of_numbers_is_named(tmp_path: Path, record: dict[str, Any], message: str):
    file = write(tmp_path, record)
    with pytest.raises(DataError, match=f"{file}: .*{message}"):
        list(read("pandaset", file))


def test_a_gzip_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = write(tmp_path, sequence())
    monkeypatch.setattr(compressed, "MOST_BYTES", 1000)
    with pytest.raises(DataError, match=f"{file}: unpacks to more than .* MiB"):
        list(read("pandaset", file))


def test_a_folder_without_sequences_is_an_error(tmp_path: Path):
    with pytest.raises(DataError, match="no pandaset file"):
        list(read("pandaset", tmp_path))


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real sequences are not at {REAL}")
def test_real_sequences_move_smoothly():
    for name in ("002", "041"):
        scene = only(REAL / f"{name}.json.gz")
        valid, vehicle = scene.valid[0], scene.kind[0] == AgentKind.VEHICLE
        both = (valid[:, 1:] & valid[:, :-1])[vehicle]
        rate = torch.diff(scene.velocity[0][vehicle], dim=1).norm(dim=-1)[both] / 0.1
        assert rate.quantile(0.9) < 2
        velocity = scene.velocity[0][vehicle]
        moving = valid[vehicle] & (velocity.norm(dim=-1) > 1)
        slip = wrap_angle(torch.atan2(velocity[..., 1], velocity[..., 0]) - scene.heading[0][vehicle]).abs()[moving]
        assert slip.quantile(0.99) < 0.3
        assert (velocity[valid[vehicle]].norm(dim=-1) == 0).float().mean() > 0.3
