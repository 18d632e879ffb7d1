"""What an ego's cameras show in the environment: whoever makes it, single and batched, at an episode's end, rendered."""

import warnings
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
import worldloop.envs  # noqa: F401 (registers the environment)
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from scenes import several_roads, straight_road
from worldloop.envs import DriveEnv, DriveVectorEnv
from worldloop.envs.cameras import CAMERAS, open_camera
from worldloop.worldmodel.geometry import to_local
from worldloop.worldmodel.rig import RIGS, Rig
from worldloop.worldmodel.sight import Sight


class GlowCamera:
    """A real, tiny camera: every road user is a dot where the rig sees its middle, and dots glow on in later frames."""

    def __init__(self, rig: Rig = RIGS["front"]) -> None:
        self.rig = rig.resized(32, 16)

    def begin(self, state):
        glow = torch.zeros(len(state), len(self.rig), 16, 32)
        return self._seen(state, glow)

    def follow(self, sight, state, action):
        assert action.shape == (len(state), 2)
        return self._seen(state, 0.5 * sight.memory["glow"])

    def _seen(self, state, glow):
        ego = state.ego()
        place = to_local(state.position[..., :2], ego.position[:, None, :2], ego.heading[:, None])
        pixel, depth = self.rig.project(torch.cat((place, state.position[..., 2:]), dim=-1))
        column, row = pixel.floor().long().unbind(-1)
        seen = state.valid[:, None] & (depth > 1) & (column >= 0) & (column < 32) & (row >= 0) & (row < 16)
        glow = glow.clone()
        at = seen.nonzero()
        glow[at[:, 0], at[:, 1], row[seen], column[seen]] = 1.0
        frame = (255 * glow).byte()[..., None].repeat(1, 1, 1, 1, 3)
        return Sight(frame, {"glow": glow})


def drive(count: int, steps: int) -> np.ndarray:
    drawn = np.random.default_rng(0).uniform([-1.0, -0.05], [1.0, 0.05], (steps, count, 2))
    drawn[..., 1] += np.linspace(0.0, 0.3, count)
    return drawn.astype(np.float32)


@pytest.mark.parametrize(("rig", "shape"), [("front", (16, 32, 3)), ("front3", (3, 16, 32, 3))])
def test_gymnasiums_checker_finds_nothing_to_warn_about(rig, shape):
    camera = GlowCamera(RIGS[rig])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make(
            "worldloop/Drive-v0",
            scenes=straight_road(),
            world="replay",
            observation="camera",
            camera=camera,
            render_mode="camera",
        )
        check_env(env.unwrapped)
    assert (env.observation_space.shape, env.observation_space.dtype) == (shape, np.uint8)


@pytest.mark.parametrize("camera", [GlowCamera, lambda: open_camera("layout", RIGS["front3"].resized(32, 16))])
def test_a_batch_is_gymnasiums_vector_of_single_ones_bit_for_bit(camera):
    arguments = {"scenes": several_roads(), "world": "replay", "observation": "camera", "camera": camera(), "horizon": 12}
    together = DriveVectorEnv(4, **arguments)
    alone = SyncVectorEnv([lambda: DriveEnv(**arguments)] * 4, autoreset_mode=AutoresetMode.SAME_STEP)
    assert together.single_observation_space == alone.single_observation_space
    assert data_equivalence(together.reset(seed=5), alone.reset(seed=5), exact=True)
    ends = 0
    for action in drive(4, 30):
        found, wanted = together.step(action), alone.step(action)
        assert all(data_equivalence(one, other, exact=True) for one, other in zip(found, wanted, strict=True))
        ends += (found[2] | found[3]).sum()
    assert ends > 4  # autoresets, and what memories hold after them


def test_the_last_frame_is_that_of_the_end_and_the_next_is_a_beginning():
    env = DriveVectorEnv(2, several_roads(), "replay", observation="camera", camera=GlowCamera(), horizon=4)
    plain = DriveVectorEnv(
        2, several_roads(), "replay", observation="camera", camera=GlowCamera(), horizon=5, autoreset_mode=AutoresetMode.DISABLED
    )
    seen, _ = env.reset(seed=3)
    plain.reset(seed=3)
    for _ in range(4):
        seen, *_, infos = env.step(np.zeros((2, 2), np.float32))
        last = plain.step(np.zeros((2, 2), np.float32))[0]
    assert np.array_equal(np.stack(infos["final_obs"]), last)
    assert np.array_equal(seen, GlowCamera().begin(env.state).frame[:, 0].numpy())


def test_an_observation_is_the_users_own_to_write_on():
    env = DriveEnv(straight_road(), "replay", observation="camera", camera=GlowCamera())
    seen, _ = env.reset(seed=0)
    kept = env.sight.frame.clone()
    seen[:] = 7
    assert torch.equal(env.sight.frame, kept)


def test_a_camera_beside_other_observations_changes_nothing_of_them():
    for observation in ("state", "image"):
        with_camera = DriveEnv(straight_road(), "replay", observation=observation, camera=GlowCamera())
        without = DriveEnv(straight_road(), "replay", observation=observation)
        assert data_equivalence(with_camera.reset(seed=1), without.reset(seed=1), exact=True)
        action = np.array([0.2, 0.01], np.float32)
        assert data_equivalence(with_camera.step(action), without.step(action), exact=True)
        assert with_camera.sight is not None
        assert without.sight is None


@pytest.mark.parametrize(("rig", "shape"), [("front", (384, 768, 3)), ("front3", (128, 776, 3)), ("surround", (260, 776, 3))])
def test_render_shows_every_camera_large_enough(rig, shape):
    env = DriveEnv(straight_road(), "replay", camera=GlowCamera(RIGS[rig]), render_mode="camera")
    env.reset(seed=0)
    picture = env.render()
    assert (picture.shape, picture.dtype) == (shape, np.uint8)
    assert picture.max() > 200
    env.close()
    batch = DriveVectorEnv(2, several_roads(), "replay", camera=GlowCamera(RIGS[rig]), render_mode="camera")
    batch.reset(seed=0)
    assert [frame.shape for frame in batch.render()] == [shape] * 2


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"observation": "camera"}, "camera=None: wanted one to see through"),
        ({"render_mode": "camera"}, "camera=None: wanted one to see through"),
        ({"rig": "front"}, "camera=None: wanted one"),
        ({"camera": "obscura"}, "camera='obscura' is unknown: choose one of"),
        ({"camera": GlowCamera(), "rig": "back"}, "rig='back' is unknown: choose one of front, front3, surround"),
        ({"camera": GlowCamera(), "rig": "front3"}, "rig: this GlowCamera has one of its own"),
        ({"camera": 3}, "camera: found int, wanted a name or an object with rig, begin and follow"),
    ],
)
def test_bad_cameras_are_refused(change, complaint):
    with pytest.raises(ValueError, match=complaint):
        DriveEnv(straight_road(), "replay", **change)


@pytest.mark.parametrize("name", CAMERAS)
def test_every_camera_of_the_table_shows_something(name):
    if name == "scene3d":
        pytest.importorskip("open3d")
    env = gymnasium.make(
        "worldloop/Drive-v0", scenes=straight_road(), world="replay", observation="camera", camera=name, rig="front", horizon=4
    )
    first, _ = env.reset(seed=0)
    assert first.shape == (64, 128, 3)
    assert first.std() > 5
    after, *_ = env.step(np.array([1.0, 0.3], np.float32))
    assert not np.array_equal(first, after)
    env.close()


def test_a_moment_is_branched_with_what_its_cameras_remember():
    env = DriveVectorEnv(1, straight_road(), "replay", action="physical", camera=GlowCamera())
    env.reset(seed=0)
    env.step(np.zeros((1, 2), np.float32))
    both = env.sight.repeat(2)
    state = env.state.repeat(2)
    moved = replace(state, heading=state.heading + torch.tensor([0.0, 1.0])[:, None])
    after = env.camera.follow(both, moved, torch.zeros(2, 2))
    alone = env.camera.follow(env.sight, env.state, torch.zeros(1, 2))
    assert torch.equal(after.frame[:1], alone.frame)
