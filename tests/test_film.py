"""The learned camera in the loop, and the films that it is trained on."""

from __future__ import annotations

import importlib
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cameras import TINY
from scenes import straight_road
from worldloop.agents.film import FilmClips, run_film
from worldloop.envs.vector import DriveVectorEnv
from worldloop.worldmodel.camera import MOTIONS, CameraModel, LearnedCamera, motion_between
from worldloop.worldmodel.data.clips import ClipDataset
from worldloop.worldmodel.data.writing import ShardWriter
from worldloop.worldmodel.dynamics import KinematicBicycle, Motion
from worldloop.worldmodel.perspective import LAYOUT_CHANNELS
from worldloop.worldmodel.rig import APPEARANCES, RIGS
from worldloop.worldmodel.scene import stack
from worldloop.worldmodel.world import ReplayWorld


def drawable() -> bool:
    """Whether Open3D is here with the system's libraries that it needs."""
    try:
        importlib.import_module("open3d")
    except (ImportError, OSError):
        return False
    return True


needs_open3d = pytest.mark.skipif(not drawable(), reason='needs the extra "view"')


def camera(**more: object) -> LearnedCamera:
    torch.manual_seed(0)
    model = CameraModel(16, 32, layout_channels=len(LAYOUT_CHANNELS), appearances=("day",), channels=(16, 16, 32), **TINY)
    return LearnedCamera(model=model.eval(), steps=1, **more)  # pyright: ignore[reportArgumentType]


def test_motion_is_what_the_bicycle_was_told() -> None:
    """2 m/s2 for 0.1 s from 10 m/s is 10.2 m/s; a curvature of 0.02 1/m then turns by about 0.2 rad/s."""
    before = Motion(torch.zeros(1, 3), torch.zeros(1), torch.tensor([[10.0, 0.0]]))
    after = KinematicBicycle().step(before, torch.tensor([[2.0, 0.02]]))
    told = dict(zip(MOTIONS, motion_between(before, after)[0].tolist(), strict=True))
    assert told == pytest.approx({"acceleration": 2.0, "curvature": 0.02, "speed": 10.2, "yaw_rate": 0.2}, rel=0.03)
    standing = Motion(torch.zeros(1, 3), torch.tensor([math.pi - 0.01]), torch.zeros(1, 2))
    assert motion_between(standing, standing)[0].tolist() == [0, 0, 0, 0]


def test_the_learned_camera_remembers_only_what_its_sight_holds() -> None:
    scenes = stack([straight_road("a/0"), straight_road("a/1", leader_gap=9.0)])
    world, eye, action = ReplayWorld(), camera(rig=RIGS["front3"]), torch.tensor([[0.0, 0.01], [1.0, 0.0]])
    state = world.reset(scenes, torch.tensor([3, 4]))
    sight = eye.begin(state)
    assert sight.frame.shape == (2, 3, 16, 32, 3)
    assert sight.memory["known"].sum(-1).tolist() == [[1] * 3] * 2
    later = world.step(state, state.ego())
    following = eye.follow(sight, later, action)
    assert torch.equal(following.frame, eye.follow(sight, later, action).frame)
    alone = camera(rig=RIGS["front3"]).follow(sight.take([1]), later.take([1]), action[1:])
    assert (alone.frame.int() - following.frame[1:].int()).abs().max() <= 1


@pytest.mark.parametrize(("speed", "action"), [(0.0, (-8.0, 0.0)), (20.0, (0.0, 0.1)), (20.0, (4.0, 0.0)), (1.3, (-8.0, 0.1))])
def test_the_camera_is_told_what_the_ego_did_as_in_its_training(speed: float, action: tuple[float, float]) -> None:
    """A car that stands cannot brake, and one that slides does not follow its wheel."""
    world, eye, car = ReplayWorld(), camera(), KinematicBicycle()
    state = world.reset(straight_road("a/0", ego_speed=speed), torch.tensor([3]))
    sight, told = eye.begin(state), torch.tensor([action])
    later = world.step(state, car.step(state.ego(), told))
    done = eye.follow(sight, later, told).memory["done"][0, 0, -1]
    assert torch.equal(done, motion_between(state.ego(), later.ego())[0])
    assert (done[0] == 0) == (speed == 0.0 or action[0] == 0.0)


def test_the_learned_camera_in_the_environment() -> None:
    """Four sub-environments against one alone, over the end of an episode."""
    scenes = stack([straight_road(f"a/{number}", leader_gap=9.0 + number) for number in range(4)])
    make = lambda count: DriveVectorEnv(  # noqa: E731
        count, scenes, "replay", observation="camera", camera=camera(), action="physical", horizon=3, terminate_on=()
    )
    many, one = make(4), make(1)
    frames, _ = many.reset(seed=4)
    alone, _ = one.reset(seed=6)
    assert frames.shape == (4, 16, 32, 3)
    for _ in range(5):
        frames = many.step(torch.zeros(4, 2).numpy())[0]
        alone = one.step(torch.zeros(1, 2).numpy())[0]
        assert abs(frames[2].astype(int) - alone[0]).max() <= 1


def test_a_camera_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="choose one of day"):
        camera(appearance="noon")
    with pytest.raises(ValueError, match=f"wanted {len(LAYOUT_CHANNELS)}"):
        LearnedCamera(model=CameraModel(16, 32, layout_channels=2, appearances=("day",), channels=(16, 16, 32), **TINY))
    with pytest.raises(ValueError, match="paints at 20 Hz, the loop runs at 10 Hz"):
        LearnedCamera(model=CameraModel(16, 32, 20.0, layout_channels=len(LAYOUT_CHANNELS), appearances=("day",)))


@needs_open3d
def test_films_hold_frames_layouts_and_motions(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "scenes") as writer:
        for number in range(2):
            writer.add(straight_road(f"a/{number}", steps=26))
    args = FilmClips(str(tmp_path / "scenes"), tmp_path / "clips", clips=3, height=16, width=32, out=tmp_path / "run")
    assert run_film(args) == 0
    clips = ClipDataset(tmp_path / "clips")
    assert (len(clips), clips.size, clips.action_names, clips.layout_names) == (3, (16, 32), MOTIONS, LAYOUT_CHANNELS)
    clip = clips.window(0)
    assert len(clip) == 16
    assert clip.appearance in APPEARANCES
    assert clip.layout is not None
    assert clip.layout[..., LAYOUT_CHANNELS.index("road")].any()
    again = replace(args, dst=tmp_path / "again", out=tmp_path / "run2")
    assert run_film(again) == 0
    assert torch.equal(ClipDataset(tmp_path / "again").window(2).frames, clips.window(2).frames)


@needs_open3d
def test_films_that_cannot_be_made_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'side' is unknown: rigs are front"):
        run_film(FilmClips("demo", tmp_path / "a", rigs=("side",)))
    with ShardWriter(tmp_path / "scenes") as writer:
        writer.add(straight_road("a/0", steps=14))
    with pytest.raises(ValueError, match="none lasts for 12 frames"):
        run_film(FilmClips(str(tmp_path / "scenes"), tmp_path / "b", out=tmp_path / "run"))
    assert not (tmp_path / "b").exists()
