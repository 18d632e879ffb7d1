"""The environments behind the libraries that people train with; each test runs where its library is installed."""

from __future__ import annotations

import subprocess
import sys
import warnings
from copy import deepcopy
from typing import Any

import gymnasium
import imageio_ffmpeg
import numpy as np
import pytest
import torch
import worldloop.envs  # noqa: F401 (registers the environment)
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import FlattenObservation, RecordEpisodeStatistics, RecordVideo
from gymnasium.wrappers.vector import FlattenObservation as FlattenObservations
from gymnasium.wrappers.vector import RecordEpisodeStatistics as RecordStatistics
from models import tiny_model
from scenes import several_roads
from worldloop.envs import DriveEnv, DriveVectorEnv, ObservationSize
from worldloop.worldmodel.raster import ImageGrid
from worldloop.worldmodel.world import LearnedWorld

SMALL = ObservationSize(agents=6, polylines=12, route_points=5, signals=2, image=ImageGrid(48, 48))
SOME_ROADS = 4


def arguments(**changes: Any) -> dict[str, Any]:
    return {"scenes": several_roads(SOME_ROADS), "world": LearnedWorld(tiny_model()), "horizon": 12, "size": SMALL, **changes}


def make(**changes: Any) -> gymnasium.Env:
    return gymnasium.make("worldloop/Drive-v0", **arguments(**changes))


def make_vector(num_envs: int = 3, **changes: Any) -> DriveVectorEnv:
    envs = gymnasium.make_vec("worldloop/Drive-v0", num_envs=num_envs, **arguments(**changes))
    assert isinstance(envs, DriveVectorEnv)
    return envs


def make_adapted(num_envs: int = 3, **changes: Any):
    pytest.importorskip("stable_baselines3")
    from worldloop.envs.stable_baselines import DriveVecEnv

    return DriveVecEnv(make_vector(num_envs, **changes))


def actions(count: int, steps: int) -> np.ndarray:
    """Each sub-environment bends its way by an amount of its own: the first stays on the road, the last leaves it."""
    drawn = np.random.default_rng(0).uniform([-1.0, -0.05], [1.0, 0.05], (steps, count, 2))
    drawn[..., 1] += np.linspace(0.0, 0.5, count)
    return drawn.astype(np.float32)


# Stable-Baselines3


@pytest.mark.parametrize("observation", ["state", "image"])
@pytest.mark.parametrize("action", ["continuous", "discrete"])
def test_stable_baselines_checker_only_says_that_rows_are_no_vectors(observation, action):
    """It suggests to flatten the rows of "agents", "polylines", ...: `MultiInputPolicy` does so."""
    check_env = pytest.importorskip("stable_baselines3.common.env_checker").check_env
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(make(observation=observation, action=action), warn=True)
    said = {str(one.message) for one in caught}
    about_shapes = ("unconventional shape", "polylines_points is an image", "minimal resolution for an image")
    found = {text for text in said if not any(shape in text for shape in about_shapes)}
    assert not found
    assert not said or observation == "state"


@pytest.mark.parametrize(("observation", "action"), [("state", "continuous"), ("image", "discrete")])
def test_the_adapter_is_dummy_vec_env_of_single_ones_bit_for_bit(observation, action):
    together = make_adapted(5, observation=observation, action=action)
    dummy = pytest.importorskip("stable_baselines3.common.vec_env").DummyVecEnv
    alone = dummy([lambda: DriveEnv(**arguments(observation=observation, action=action))] * 5)
    assert together.seed(7) == alone.seed(7) == [7, 8, 9, 10, 11]
    assert data_equivalence(together.reset(), dict_or_array(alone.reset()), exact=True)
    assert data_equivalence(together.reset_infos, alone.reset_infos, exact=True)
    ends = {"over": 0, "out of time": 0}
    continuous = make_vector(1).actions
    for drawn in actions(5, 40):
        if action == "discrete":
            drawn = together.envs.actions.encode(continuous.decode(drawn))
        found, wanted = together.step(drawn), alone.step(drawn)
        assert data_equivalence(found[0], dict_or_array(wanted[0]), exact=True)
        for one, other in zip(found[1:3], wanted[1:3], strict=True):
            assert one.dtype == other.dtype
            assert np.array_equal(one, other)
        assert data_equivalence(found[3], wanted[3], exact=True)
        assert data_equivalence(together.reset_infos, alone.reset_infos, exact=True)
        for info in np.array(found[3], dtype=object)[found[2]]:
            assert together.observation_space.contains(info["terminal_observation"])
            ends["out of time" if info["TimeLimit.truncated"] else "over"] += 1
    assert min(ends.values()) > 0, ends


def dict_or_array(seen: Any) -> Any:
    return dict(seen) if isinstance(seen, dict) else seen  # DummyVecEnv returns an OrderedDict


def test_what_a_step_hands_over_is_never_changed_afterwards():
    """Replay buffers keep it, and `DummyVecEnv` copies it for them."""
    envs = make_adapted(horizon=3)
    envs.reset()
    handed = [envs.step(action) for action in actions(3, 4)]
    copies = deepcopy(handed)
    for action in actions(3, 6):
        envs.step(action)
    assert data_equivalence(handed, copies, exact=True)


def test_seeds_and_options_count_for_one_reset():
    envs = make_adapted()
    envs.seed(3)
    first = envs.reset()
    envs.seed(3)
    assert data_equivalence(envs.reset(), first, exact=True)
    assert not data_equivalence(envs.reset(), first, exact=True)
    envs.set_options([{"scene": "hand/2"}, {}, {"scene": 0}])
    envs.reset()
    assert [envs.reset_infos[row]["scene"] for row in (0, 2)] == ["hand/2", "hand/0"]
    envs.set_options({"scene": "hand/1"})
    envs.reset()
    assert [info["scene"] for info in envs.reset_infos] == ["hand/1"] * 3
    envs.set_options({"weather": "rain"})
    with pytest.raises(ValueError, match="reset options \\['weather'\\] are unknown"):
        envs.reset()


def test_attributes_and_methods_of_sub_environments():
    envs = make_adapted(render_mode="rgb_array")
    monitor = pytest.importorskip("stable_baselines3.common.monitor").Monitor
    envs.seed(5)
    envs.reset()
    assert envs.render_mode == "rgb_array"
    assert envs.get_attr("np_random_seed") == [5, 6, 7]
    assert envs.get_attr("action_space", 1) == [envs.action_space]
    assert [state.scene.id for state in envs.get_attr("state", [2, 0])] == [
        envs.envs.state.scene.id[row : row + 1] for row in (2, 0)
    ]
    assert not envs.has_attr("action_masks")
    assert envs.env_is_wrapped(monitor) == [False] * 3
    (frame,) = envs.env_method("render", indices=[1])
    assert np.array_equal(frame, envs.get_images()[1])
    assert envs.render().shape == (1600, 1600, 3)  # four tiles, one of them empty
    envs.set_attr("horizon", 2)
    assert envs.get_attr("horizon") == [2, 2, 2]
    envs.reset()
    envs.step(np.zeros((3, 2), np.float32))
    assert envs.step(np.zeros((3, 2), np.float32))[2].all()
    with pytest.raises(ValueError, match="wanted None: one batch has one horizon"):
        envs.set_attr("horizon", 3, indices=[0])
    with pytest.raises(ValueError, match="call reset\\(\\) of the VecEnv itself"):
        envs.env_method("reset", indices=0)
    with pytest.raises(AttributeError):
        envs.get_attr("weather")
    envs.close()


def test_the_adapter_refuses_what_it_cannot_adapt():
    pytest.importorskip("stable_baselines3")
    from worldloop.envs.stable_baselines import DriveVecEnv

    with pytest.raises(ValueError, match="found DriveEnv, wanted a DriveVectorEnv"):
        DriveVecEnv(make().unwrapped)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="wanted AutoresetMode.SAME_STEP"):
        DriveVecEnv(make_vector(autoreset_mode=AutoresetMode.DISABLED))


def test_vec_monitor_tells_returns_and_lengths_of_episodes():
    envs = make_adapted(horizon=5)
    envs = pytest.importorskip("stable_baselines3.common.vec_env").VecMonitor(envs)
    envs.reset()
    total = np.zeros(3)
    for step in range(10):
        _, reward, over, infos = envs.step(np.zeros((3, 2), np.float32))
        total += reward
        assert over.all() == ((step + 1) % 5 == 0)
        for row in np.flatnonzero(over):
            assert infos[row]["episode"]["l"] == 5
            assert infos[row]["episode"]["r"] == pytest.approx(total[row], abs=1e-4)
            total[row] = 0


def require_learning(model: Any, steps: int) -> None:
    before = [weight.clone() for weight in model.policy.parameters()]
    model.learn(steps)
    after = list(model.policy.parameters())
    assert model.num_timesteps >= steps
    assert all(weight.isfinite().all() for weight in after)
    assert any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert {info["l"] for info in model.ep_info_buffer} <= set(range(1, 13))
    assert len(model.ep_info_buffer) > 0


SHORT = {"n_steps": 64, "batch_size": 64, "n_epochs": 2, "device": "cpu", "seed": 0}


@pytest.mark.parametrize(("observation", "policy"), [("state", "MultiInputPolicy"), ("image", "CnnPolicy")])
def test_ppo_learns_on_the_single_environment(observation, policy):
    stable_baselines3 = pytest.importorskip("stable_baselines3")
    require_learning(stable_baselines3.PPO(policy, make(observation=observation), **SHORT), 128)


def test_ppo_learns_on_the_batch_with_normalised_observations():
    stable_baselines3 = pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

    envs = VecMonitor(make_adapted(4))
    normalised = VecNormalize(envs, norm_obs_keys=["ego", "agents", "polylines", "polylines_points", "route", "signals"])
    model = stable_baselines3.PPO("MultiInputPolicy", normalised, **SHORT)
    require_learning(model, 512)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        returns, lengths = evaluate_policy(model, normalised, n_eval_episodes=4, return_episode_rewards=True)
    assert len(returns) == len(lengths) == 4


def test_the_error_without_the_library_names_the_extra():
    code = "import sys; sys.modules['stable_baselines3'] = None; import worldloop.envs.stable_baselines"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0
    assert 'pip install "worldloop[sb3]"' in done.stderr.splitlines()[-1]


# TorchRL


@pytest.mark.parametrize(("observation", "action"), [("state", "continuous"), ("image", "discrete")])
def test_torchrl_drives_the_environment(observation, action):
    pytest.importorskip("torchrl")
    from torchrl.envs import GymEnv, GymWrapper
    from torchrl.envs.utils import check_env_specs

    for env in (
        GymWrapper(make(observation=observation, action=action)),
        GymEnv("worldloop/Drive-v0", **arguments(observation=observation, action=action)),
    ):
        env.set_seed(0)
        check_env_specs(env)
        driven = env.rollout(10, break_when_any_done=False)
        assert driven.batch_size == (10,)
        assert driven["next", "reward"].isfinite().all()
        name = "ego" if observation == "state" else "observation"
        assert driven[name].shape[1:] == ((12,) if observation == "state" else (48, 48, 7))


# Gymnasium's wrappers


def test_flat_observations_are_the_rows_of_the_dictionary():
    env = FlattenObservation(make())
    seen, _ = env.reset(seed=0)
    assert env.observation_space.contains(seen)
    original, _ = make().reset(seed=0)
    assert np.array_equal(seen, np.concatenate([original[name].ravel() for name in env.unwrapped.observation_space]))


def test_flat_observations_of_a_batch():
    """Gymnasium's wrappers of a batch's observations know no SAME_STEP: they need a loop that resets by itself."""
    with pytest.raises(ValueError, match="NEXT_STEP or DISABLED"):
        FlattenObservations(make_vector())
    envs = FlattenObservations(make_vector(autoreset_mode=AutoresetMode.DISABLED, horizon=2))
    seen, _ = envs.reset(seed=0)
    single, _ = FlattenObservation(make()).reset(seed=1)
    assert np.array_equal(seen[1], single)
    for _ in range(2):
        _, _, terminated, truncated, _ = envs.step(np.zeros((3, 2), np.float32))
    seen, _ = envs.reset(options={"reset_mask": terminated | truncated})
    assert envs.observation_space.contains(seen)
    rows = gymnasium.make_vec(
        "worldloop/Drive-v0", num_envs=2, vectorization_mode="sync", wrappers=[FlattenObservation], **arguments()
    )
    assert rows.reset(seed=0)[0].shape == (2, seen.shape[1])


def test_episode_statistics():
    env = RecordEpisodeStatistics(make(horizon=5))
    env.reset(seed=1)
    steps = [env.step(np.zeros(2, np.float32)) for _ in range(5)]
    assert steps[-1][4]["episode"]["l"] == 5
    assert steps[-1][4]["episode"]["r"] == pytest.approx(sum(step[1] for step in steps))
    envs = RecordStatistics(make_vector(horizon=5))
    envs.reset(seed=0)
    for _ in range(2):  # the second episode counts from its own first step
        rewards = []
        for step in range(5):
            _, reward, _, _, infos = envs.step(np.zeros((3, 2), np.float32))
            rewards.append(reward)
            assert ("episode" in infos) == (step == 4)
        assert infos["episode"]["l"].tolist() == [5, 5, 5]
        np.testing.assert_allclose(infos["episode"]["r"], np.sum(rewards, axis=0))


def test_record_video_writes_a_film(tmp_path):
    pytest.importorskip("moviepy")
    env = RecordVideo(make(render_mode="rgb_array", horizon=5), str(tmp_path / "films"), disable_logger=True)
    env.reset(seed=0)
    for _ in range(5):
        env.step(np.zeros(2, np.float32))
    env.close()
    (film,) = (tmp_path / "films").glob("*.mp4")
    about = next(imageio_ffmpeg.read_frames(str(film)))
    assert about["size"] == (800, 800)
    assert about["fps"] == 10
    assert imageio_ffmpeg.count_frames_and_secs(str(film))[0] == 6
