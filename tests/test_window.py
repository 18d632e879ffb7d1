"""`worldloop drive`: hands and scripts press the same keys, every key does what the help says, and what was driven comes back."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pygame
import pytest
import torch
from PIL import Image
from scenes import several_roads
from worldloop.agents.cli import main
from worldloop.agents.driven import read_drive
from worldloop.agents.session import Session
from worldloop.agents.wheel import CAR, LATERAL, Wheel, full_turn
from worldloop.agents.window import Desk, Drive, run_drive
from worldloop.renderers.layouts import LayoutCamera
from worldloop.renderers.video import VideoWriter
from worldloop.renderers.window import COMMANDS, Hands, Pad, Script, Window
from worldloop.worldmodel.data import SceneDataset
from worldloop.worldmodel.data.writing import ShardWriter
from worldloop.worldmodel.rig import RIGS
from worldloop.worldmodel.scene import HISTORY_STEPS


@pytest.fixture
def roads(tmp_path: Path) -> str:
    """A data set of four straight roads."""
    with ShardWriter(tmp_path / "roads") as writer:
        writer.add(several_roads())
    return str(tmp_path / "roads")


@pytest.fixture
def desk(roads: str, tmp_path: Path):
    """The loop over a window that nobody sees, in log replay."""
    with Window((960, 540), "test", headless=True) as window:
        session = Session(SceneDataset.named(roads))
        session.begin(0, "replay", 0)
        yield Desk(session, window, CruisePolicy(), Drive(size=(960, 540)), tmp_path, None, [])
        session.finish("left")


class CruisePolicy:
    def act(self, observation, state):
        return torch.tensor([[1.0, 0.0]])


def press(desk: Desk, script: str) -> None:
    desk.drive(Script(script))


def rows(folder: Path, number: int = 0) -> list[dict[str, str]]:
    with (folder / f"episode-{number:03d}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_script_drives_the_shipped_scene_and_the_record_replays_to_the_same_bits(tmp_path: Path):
    out, script = tmp_path / "out", "up 4, left+up 3, space 2, p 1, wait 2, p 1, t 4, n 1, down 2"
    assert run_drive(Drive(script=script, out=out, screenshot=tmp_path / "last.png")) == 0
    driven = rows(out)
    assert [row["driver"] for row in driven] == ["you"] * 7 + ["you, brake test"] * 2 + ["you"] + ["idm"] * 4
    assert float(driven[7]["acceleration"]) == float(driven[8]["acceleration"]) == CAR.min_acceleration
    assert all(float(row["curvature"]) > 0 for row in driven[4:7])  # to the left
    assert len(rows(out, 1)) == 3  # n and the two steps after it
    assert Image.open(tmp_path / "last.png").size == (1320, 760)
    record = json.loads((out / "run.json").read_text())
    assert (record["command"], record["status"], record["results"]["steps"]) == ("drive", "finished", 17)

    again = tmp_path / "again"
    assert run_drive(Drive(replay=out, headless=True, out=again)) == 0
    assert [entry["checksum"] for entry in json.loads((again / "episodes.json").read_text())] == [
        entry["checksum"] for entry in json.loads((out / "episodes.json").read_text())
    ]
    assert [row["x"] for row in rows(again)] == [row["x"] for row in driven]
    lines = (out / "episode-000.csv").read_text().splitlines()
    (out / "episode-000.csv").write_text("\n".join([*lines[:2], lines[1], *lines[3:]]) + "\n")  # another second action
    assert run_drive(Drive(replay=out, headless=True, out=tmp_path / "bent")) == 1


def test_what_was_driven_is_a_data_set_whose_log_can_be_replayed(roads: str, tmp_path: Path):
    out = tmp_path / "out"
    assert main(["drive", "--scenes", roads, "--world", "constant_velocity", "--script", "left+up 12", "--out", str(out)]) == 0
    (scene,) = list(SceneDataset(out / "scenes"))
    assert scene.id[0].endswith("#episode-000")
    assert scene.steps == HISTORY_STEPS + 1 + 12
    ego = scene.position[0, int(scene.ego[0])]
    found = [(float(row["x"]), float(row["y"])) for row in rows(out)]
    assert torch.equal(ego[HISTORY_STEPS + 1 :, :2], torch.tensor(found))
    original = SceneDataset.named(roads).load(0)
    assert torch.equal(
        scene.position[:, :, : HISTORY_STEPS + 1], original.position[:, : scene.position.shape[1], : HISTORY_STEPS + 1]
    )
    words = ["rollout", "--policy", "replay", "--world", "replay", "--scenes", str(out / "scenes"), "--no-video"]
    assert main([*words, "--out", str(tmp_path / "replayed")]) == 0
    (row,) = json.loads((tmp_path / "replayed" / "scenarios.json").read_text())
    assert row["steps"] == 12
    driven = json.loads((out / "episodes.json").read_text())[0]
    assert row["progress"] == pytest.approx(driven["progress"], abs=0.3)


def test_every_key_of_every_command_reaches_it():
    with Window((960, 540), "test", headless=True) as window:
        for name, command in COMMANDS.items():
            for key in command.keys:
                script = Script(f"{key} 2")
                script.press()
                hands = window.hands()
                assert hands.pressed == (name,)
                assert hands.held == ({name} if command.held else set())
                script.press()
                assert window.hands() == Hands(held=hands.held)  # a key that stays down is pressed once
                pygame.event.post(pygame.event.Event(pygame.KEYUP, key=pygame.key.key_code(key)))
                assert window.hands() == Hands()
        pygame.event.post(pygame.event.Event(pygame.QUIT))
        assert window.hands().pressed == ("quit",)
        pygame.event.post(pygame.event.Event(pygame.VIDEORESIZE, w=1500, h=100))
        assert window.hands().resized == (1500, 540)


def test_every_command_does_what_the_help_says(desk: Desk):
    session = desk.session
    speed = session.speed
    press(desk, "accelerate 5")
    assert session.speed > speed + 0.5
    speed = session.speed
    press(desk, "brake 5")
    assert session.speed < speed - 1.0
    press(desk, "left 3")
    assert session.action[1] > 0
    press(desk, "right 8")
    assert session.action[1] < 0
    press(desk, "brake_test 1")
    assert session.action[0] == CAR.min_acceleration
    press(desk, "take_over 1, wait 1")
    assert session.action.tolist() == [1.0, 0.0]
    press(desk, "brake_test 1")
    assert session.action.tolist() == [CAR.min_acceleration, 0.0]  # the policy goes on steering
    press(desk, "take_over 1")
    assert desk.driver == "you"
    before = len(session.recorder.rows)
    press(desk, "pause 1, up 5")
    assert len(session.recorder.rows) == before
    press(desk, "single_step 1, wait 3")
    assert len(session.recorder.rows) == before + 1
    press(desk, "pause 1")
    assert len(session.recorder.rows) == before + 2
    start = session.scenes.load(0).position[0, 0, HISTORY_STEPS, 0]
    for command, number, world, seed in (
        ("again", 0, "replay", 0),
        ("other_future", 0, "replay", 1),
        ("next_scene", 1, "replay", 1),
        ("previous_scene", 0, "replay", 1),
        ("previous_scene", 3, "replay", 1),
        ("next_scene", 0, "replay", 1),
        ("world", 0, "constant_velocity", 1),
        ("world", 0, "idm", 1),
    ):
        press(desk, f"{command} 1")
        recorder = session.recorder
        assert (recorder.number, recorder.world, recorder.seed, len(recorder.rows)) == (number, world, seed, 1), command
    assert abs(float(session.state.ego().position[0, 0]) - float(start)) < 3
    metres, picture = desk.cockpit.metres, desk.picture
    press(desk, "pause 1, closer 1")
    assert desk.cockpit.metres < metres
    press(desk, "farther 1")
    assert math.isclose(desk.cockpit.metres, metres)
    press(desk, "turn_view 1")
    assert desk.cockpit.up == "north"
    assert not np.array_equal(desk.picture, picture)
    plain = desk.picture
    press(desk, "help 1")
    assert (desk.picture != plain).any(axis=2).mean() > 0.2
    press(desk, "help 1")
    assert (desk.picture != plain).any(axis=2).mean() < 0.05
    press(desk, "picture 1")
    assert (desk.folder / "picture-000.png").is_file()
    press(desk, "quit 1, up 50")
    assert desk.ends
    assert len(session.recorder.rows) == 1


def test_where_a_log_ends_the_driving_waits(desk: Desk):
    press(desk, "wait 85")
    assert desk.session.over
    assert len(desk.session.recorder.rows) == 80
    press(desk, "again 1")
    assert not desk.session.over
    assert desk.session.finished[0].scenario.ended == "horizon"


def test_with_nobody_to_begin_another_the_end_of_a_log_ends_the_drive(roads: str, tmp_path: Path, monkeypatch):
    asked = Drive(scenes=roads, policy="idm", world="replay", headless=True, steps=1000, out=tmp_path / "out")
    monkeypatch.delenv("SDL_VIDEODRIVER", raising=False)
    assert run_drive(asked) == 0
    assert json.loads((tmp_path / "out" / "run.json").read_text())["results"]["steps"] == 80
    assert "SDL_VIDEODRIVER" not in os.environ


def test_a_recording_that_cannot_be_driven_again_differs(roads: str, tmp_path: Path, monkeypatch):
    def dies(*_):
        raise ValueError("the simulator died")

    run_drive(Drive(scenes=roads, script="up 3", world="replay", out=tmp_path / "out"))
    monkeypatch.setattr(Session, "step", dies)
    assert run_drive(Drive(replay=tmp_path / "out", headless=True, out=tmp_path / "again")) == 1


def test_a_policy_that_fails_gives_the_wheel_back(desk: Desk):
    class Broken:
        def act(self, observation, state):
            raise KeyError("no map")

    desk.policy, desk.policy_drives = Broken(), True
    press(desk, "wait 2")
    assert [row["driver"] for row in desk.session.recorder.rows] == ["you", "you"]
    assert "the policy raised KeyError" in desk._notice[0]


def test_a_scene_that_cannot_be_opened_leaves_the_present_one_as_it_is(desk: Desk):
    press(desk, "wait 2")
    desk._begin(0, "sumo", 0)  # a hand-made road, which SUMO knows nothing of
    assert desk.session.recorder.world == "replay"
    assert desk._notice[0]
    press(desk, "wait 1")
    assert len(desk.session.recorder.rows) == 3
    assert "sumo" not in desk.session.possible_worlds()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("jump 5", "'jump 5': there is no key 'jump': choose among wait, accelerate"),
        ("up 5, left+hop 2", "'left\\+hop 2': there is no key 'hop'"),
        ("up five", "'up five': wanted keys and a number of steps"),
        ("up 0", "'up 0': wanted keys and a number"),
        ("up 3 4", "'up 3 4': wanted keys and a number"),
        (" # nothing", "holds no keys"),
    ],
)
def test_bad_scripts_are_refused_by_name(text: str, complaint: str):
    with pytest.raises(ValueError, match=complaint):
        Script(text)


def test_a_script_may_be_a_file(tmp_path: Path):
    (tmp_path / "keys.txt").write_text("up 3  # away\nleft+up 2\n\nspace")
    assert len(Script.open(str(tmp_path / "keys.txt"))) == 6


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"headless": True}, "--headless: would never end"),
        ({"steps": 0}, "--steps 0"),
        ({"seed": -1}, "--seed -1"),
        ({"size": (100, 100)}, "--size 100 100: wanted at least 960 540"),
        ({"screenshot": Path("a.jpg")}, "--screenshot a.jpg"),
        ({"world": "moon"}, "--world moon: unknown"),
        ({"camera": "obscura"}, "camera='obscura' is unknown"),
        ({"rig": "back"}, "--rig back: unknown"),
        ({"scene": "99"}, "--scene 99: wanted a number from 0 to"),
        ({"scene": "nowhere"}, "no scene 'nowhere'"),
        ({"reward": "miles"}, "reward='miles' is unknown"),
        ({"policy": "mole"}, "policy 'mole' is unknown"),
        ({"replay": Path("nothing")}, "not found"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(change, complaint, tmp_path: Path):
    with pytest.raises(ValueError, match=complaint):
        run_drive(Drive(**{"script": None if "headless" in change else "up 1", "out": tmp_path / "out", **change}))
    assert not list(tmp_path.iterdir())


def test_without_a_display_the_message_says_how_to_do_without(monkeypatch: pytest.MonkeyPatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(OSError, match="no window can be opened .* --script"):
        Window((960, 540), "test")


def test_interrupted_it_writes_down_what_was_driven(roads: str, tmp_path: Path):
    words = ["drive", "--scenes", roads, "--world", "constant_velocity", "--headless", "--steps", "30000"]
    code = f"from worldloop.agents.cli import main; raise SystemExit(main({[*words, '--out', str(tmp_path / 'out')]!r}))"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.DEVNULL)
    began = time.monotonic()
    while not (tmp_path / "out.partial" / "run.json").exists() and time.monotonic() - began < 60:
        time.sleep(0.1)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "roads"]
    _, (recording,) = read_drive(tmp_path / "out")
    assert len(recording.actions) > 0


def test_a_drive_of_nothing_leaves_a_record_that_says_so(roads: str, tmp_path: Path):
    assert run_drive(Drive(scenes=roads, world="replay", script="p 1, wait 3", out=tmp_path / "out")) == 0
    assert json.loads((tmp_path / "out" / "episodes.json").read_text()) == []
    with pytest.raises(ValueError, match="nothing was driven"):
        read_drive(tmp_path / "out")


def test_the_camera_is_shown_and_filmed(roads: str, tmp_path: Path):
    with_camera = Drive(scenes=roads, world="replay", camera="layout", rig="front3", pixels=32, script="up 3", video=True)
    assert run_drive(Drive(**{**vars(with_camera), "out": tmp_path / "a", "screenshot": tmp_path / "a.png"})) == 0
    assert run_drive(Drive(scenes=roads, world="replay", script="up 3", out=tmp_path / "b", screenshot=tmp_path / "b.png")) == 0
    assert (tmp_path / "a" / "drive.mp4").stat().st_size > 1000
    shown, plain = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in "ab")
    assert (shown[20:80, 800:] != plain[20:80, 800:]).mean() > 0.3
    assert rows(tmp_path / "a") == rows(tmp_path / "b")  # who looks on changes nothing


def test_a_window_of_another_size_is_filled(roads: str):
    session = Session(SceneDataset.named(roads), LayoutCamera(RIGS["front"].resized(32, 16)))
    session.begin(0, "replay", 0)
    with Window((960, 540), "test", headless=True) as window:
        desk = Desk(session, window, CruisePolicy(), Drive(size=(960, 540)), Path(), None, [])
        for size in ((960, 540), (1600, 1000)):
            pygame.event.post(pygame.event.Event(pygame.VIDEORESIZE, w=size[0], h=size[1]))
            press(desk, "wait 1")
            assert desk.picture.shape == (size[1], size[0], 3)


def test_the_wheel_turns_gradually_and_less_the_faster_one_goes():
    wheel, shares = Wheel(), []
    for _ in range(10):
        wheel = wheel.turn({"left"})
        shares.append(wheel.steering)
    assert shares[0] == pytest.approx(0.22)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert wheel.turn(()).steering == pytest.approx(0.6)  # comes back faster
    assert Wheel(steering=0.1).turn(()).steering == 0.0
    assert Wheel(steering=0.5).turn({"right"}).steering == pytest.approx(0.1)
    for speed in (0.0, 5.0, 15.0, 30.0):
        assert full_turn(speed) == min(CAR.max_curvature, LATERAL / max(speed, 1.0) ** 2)
    assert Wheel(-1.0, 2.0).action(15.0) == (2.0, -0.02)


def test_a_gamepad_is_finer_near_its_middle_and_reaches_the_limits():
    assert Pad.from_axes(500, 0, 0) == Pad(0.0, 0.0, 0.0)
    left, half = Pad.from_axes(-32768, 0, 32767), Pad.from_axes(16384, 32767, 0)
    assert (left.steering, left.accelerator, left.brake) == (1.0, 1.0, 0.0)
    assert -0.25 < half.steering < -0.15
    assert Wheel().turn((), left).action(1.0) == (CAR.max_acceleration, CAR.max_curvature)
    assert Wheel().turn((), half).acceleration == CAR.min_acceleration
    assert Wheel().turn({"brake"}, left).steering == 0.0  # keys come first


def test_a_video_that_cannot_be_written_is_an_error(tmp_path: Path):
    def film(name: str, sizes: list[int]) -> None:
        with VideoWriter(tmp_path / name) as video:
            for size in sizes:
                video.add(np.zeros((size, size, 3), np.uint8))

    with pytest.raises(ValueError, match="unknown ending"):
        film("a.avi", [16] * 40)
    film("a.mp4", [16, 16, 32])
    assert (tmp_path / "a.mp4").stat().st_size > 0
