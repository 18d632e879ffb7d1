import subprocess
import sys
import warnings
from collections import deque
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
import worldloop.envs  # noqa: F401 (registers the environment)
from gymnasium.utils import seeding
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from scenes import EGO, LEADER, moved, several_roads, straight_road, unchecked
from worldloop.envs import DriveEnv, DriveVectorEnv, ObservationSize
from worldloop.envs.action import ACCELERATION_GRID, CURVATURE_GRID, ActionSpace
from worldloop.worldmodel.data.writing import ShardWriter
from worldloop.worldmodel.dynamics import KinematicBicycle
from worldloop.worldmodel.world import LearnedWorld, ReplayWorld, State


class SwayingWorld(ReplayWorld):
    """Replay in which everyone sways to the side by what the scene's key and the step say: a world with randomness."""

    def step(self, state: State, ego) -> State:
        after = super().step(state, ego)
        sway = torch.sin(state.key.double() * 1e-9 + after.step).float() * 0.3
        others = after.simulated[..., None] * torch.tensor([0.0, 1.0, 0.0]) * sway[:, None, None]
        return replace(after, position=after.position + others)


def make(**changes) -> DriveEnv:
    return DriveEnv(**{"scenes": straight_road(), "world": "replay", **changes})


def make_vector(num_envs: int = 3, **changes) -> DriveVectorEnv:
    return DriveVectorEnv(num_envs, **{"scenes": several_roads(), "world": "replay", **changes})


def actions(count: int, steps: int, seed: int = 0, bend: float = 0.3) -> np.ndarray:
    """Some sub-environments stay on the road, others leave it: each bends its way by an amount of its own, up to `bend`."""
    drawn = np.random.default_rng(seed).uniform([-1.0, -0.05], [1.0, 0.05], (steps, count, 2))
    drawn[..., 1] += np.linspace(0.0, bend, count)
    return drawn.astype(np.float32)


@pytest.mark.parametrize("observation", ["state", "image"])
@pytest.mark.parametrize("action", ["continuous", "discrete"])
def test_gymnasiums_checker_finds_nothing_to_warn_about(observation, action):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make("worldloop/Drive-v0", scenes=straight_road(), world="replay", observation=observation, action=action)
        check_env(env.unwrapped)


@pytest.mark.parametrize("arguments", [{}, {"world": "learned_open", "observation": "image"}])
def test_gymnasiums_checker_finds_nothing_to_warn_about_in_what_is_shipped(arguments):
    """The learned world draws the futures of the shipped scenes at random, which the same seed has to repeat."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make("worldloop/Drive-v0", **arguments)
        check_env(env.unwrapped)
        env.close()


def test_gymnasium_makes_the_vector_environment():
    envs = gymnasium.make_vec(
        "worldloop/Drive-v0", num_envs=2, vectorization_mode="vector_entry_point", scenes=several_roads(), world="replay"
    )
    assert isinstance(envs, DriveVectorEnv)
    assert envs.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    seen, _ = envs.reset(seed=0)
    assert envs.observation_space.contains(seen)
    seen, reward, terminated, truncated, _ = envs.step(envs.action_space.sample())
    assert envs.observation_space.contains(seen)
    assert (reward.dtype, terminated.dtype, truncated.dtype) == (np.float64, np.bool_, np.bool_)
    envs.close()


def require_same_bits(count: int, steps: int, bend: float = 0.3, **arguments) -> tuple[int, int]:
    """Drive the vector environment beside Gymnasium's vector of single ones; return how many episodes ended and terminated."""
    together = DriveVectorEnv(count, **arguments)
    alone = SyncVectorEnv([lambda: DriveEnv(**arguments)] * count, autoreset_mode=AutoresetMode.SAME_STEP)
    assert data_equivalence(together.reset(seed=5), alone.reset(seed=5), exact=True)
    ends = terminated = 0
    for action in actions(count, steps, bend=bend):
        found, wanted = together.step(action), alone.step(action)
        for one, other, name in zip(found, wanted, ("observation", "reward", "terminated", "truncated", "info"), strict=True):
            assert data_equivalence(one, other, exact=True), name
        ends, terminated = ends + (found[2] | found[3]).sum(), terminated + found[2].sum()
    return ends, terminated


@pytest.mark.parametrize(("observation", "steps"), [("state", 50), ("image", 30)])
def test_the_vector_environment_is_gymnasiums_vector_of_single_ones_bit_for_bit(observation, steps):
    ends, terminated = require_same_bits(
        5, steps, scenes=several_roads(), world=SwayingWorld(), observation=observation, horizon=25
    )
    assert ends > terminated > 0  # both kinds of end, and autoresets after them


@pytest.mark.parametrize("observation", ["state", "image"])
def test_maps_of_other_sizes_beside_it_change_nothing_that_an_environment_sees(observation):
    require_same_bits(16, 6, bend=0.0, world="replay", observation=observation)


def test_the_learned_world_does_alone_what_it_does_in_a_batch():
    require_same_bits(16, 6, bend=0.0, world=LearnedWorld.from_pretrained())


def test_same_seed_same_bits_other_seed_other_scene():
    def drive(seed: int) -> list:
        env = make_vector(world=SwayingWorld(), horizon=15)
        return [env.reset(seed=seed), *[env.step(action) for action in actions(3, 20)]]

    assert data_equivalence(drive(1), drive(1), exact=True)
    assert not data_equivalence(drive(1), drive(100), exact=True)


def test_unseeded_resets_go_on_with_the_same_generator():
    one, other = make(scenes=several_roads()), make(scenes=several_roads())
    first = [one.reset(seed=3)[1]["scene"], *[one.reset()[1]["scene"] for _ in range(8)]]
    again = [other.reset(seed=3)[1]["scene"], *[other.reset()[1]["scene"] for _ in range(8)]]
    assert first == again
    assert len(set(first)) > 1


def test_final_observation_and_info_are_those_of_the_end():
    env, plain = make_vector(horizon=5), make(scenes=several_roads(), horizon=5)
    env.reset(seed=0)
    plain.reset(seed=1)
    still = np.zeros((3, 2), np.float32)
    for _ in range(4):
        assert "final_obs" not in env.step(still)[4]
        plain.step(still[0])
    seen, _, _, truncated, infos = env.step(still)
    last, reward, _, _, info = plain.step(still[0])
    assert truncated.all()
    assert data_equivalence(infos["final_obs"][1], last, exact=True)
    assert infos["final_info"]["steps"].tolist() == [5, 5, 5]
    assert infos["final_info"]["reward_terms"]["progress"][1] == info["reward_terms"]["progress"]
    assert infos["steps"].tolist() == [0, 0, 0]
    assert "reward_terms" not in infos  # nothing was driven yet in the new episodes
    assert sum(info["reward_terms"].values()) == pytest.approx(reward)
    assert not np.array_equal(seen["ego"], np.stack([one["ego"] for one in infos["final_obs"]]))


def test_some_sub_environments_can_be_reset():
    env = make_vector(autoreset_mode=AutoresetMode.DISABLED, horizon=3)
    env.reset(seed=0)
    for _ in range(3):
        _, _, _, truncated, _ = env.step(np.zeros((3, 2), np.float32))
    assert truncated.all()
    env.reset(options={"reset_mask": np.array([True, False, True])})
    with pytest.raises(gymnasium.error.ResetNeeded, match="sub-environment 1 is over"):
        env.step(np.zeros((3, 2), np.float32))
    _, infos = env.reset(options={"reset_mask": np.array([False, True, False])})
    assert infos["_steps"].tolist() == [False, True, False]
    env.step(np.zeros((3, 2), np.float32))
    with pytest.raises(ValueError, match="wanted \\(3,\\) bool with at least one True"):
        env.reset(options={"reset_mask": np.zeros(3, bool)})


def test_an_episode_by_hand():
    env = make(action="physical", reward={"progress": 1.0, "collision": -7.0})
    _, info = env.reset(options={"scene": "hand/straight"})
    assert info == {"scene": "hand/straight", "steps": 0, "agents_simulated": 0, "uncertainty": 0}
    _, reward, terminated, truncated, info = env.step(np.zeros(2, np.float32))
    assert (terminated, truncated) == (False, False)
    assert reward == pytest.approx(1.0)  # 1 m along the route
    assert info["agents_simulated"] == 4  # five others, one of them a cone
    assert info["measures"]["speed"] == pytest.approx(10.0)
    for _ in range(200):
        _, reward, terminated, truncated, info = env.step(np.array([4.0, 0.0], np.float32))
        if terminated:
            break
    # From 10 m/s with 4 m/s2 behind a leader at constant 10 m/s: 20.5 m of gap are closed after sqrt(2 * 20.5 / 4) = 3.2 s.
    assert info["steps"] == 1 + 33
    assert info["measures"]["collided_with"] == LEADER
    assert info["reward_terms"]["collision"] == -7.0
    with pytest.raises(gymnasium.error.ResetNeeded, match="is over: call reset"):
        env.step(np.zeros(2, np.float32))


def test_episodes_may_go_on_after_a_collision():
    env = make(terminate_on=(), horizon=40, action="physical")
    env.reset()
    ends = [env.step(np.array([4.0, 0.0], np.float32))[2:4] for _ in range(40)]
    assert not any(terminated for terminated, _ in ends)
    assert [truncated for _, truncated in ends] == [False] * 39 + [True]


def test_the_horizon_may_be_that_of_the_log():
    env = make(scenes=straight_road(steps=31), horizon=None)
    env.reset()
    ends = [env.step(np.zeros(2, np.float32))[3] for _ in range(20)]
    assert ends == [False] * 19 + [True]


def test_turning_and_shifting_the_scene_changes_no_episode():
    def drive(scene) -> tuple[list[float], np.ndarray]:
        env = make(scenes=scene, terminate_on=(), observation="state")
        env.reset(seed=0)
        steps = [env.step(action[0]) for action in actions(1, 30)]
        return [step[1] for step in steps], steps[-1][0]["agents"]

    rewards, agents = drive(straight_road())
    turned_rewards, turned_agents = drive(moved(straight_road(), 2.0, (50.0, -80.0)))
    np.testing.assert_allclose(turned_rewards, rewards, atol=5e-3)
    np.testing.assert_allclose(turned_agents, agents, atol=1e-2)


def test_scenes_can_be_given_in_every_way(tmp_path):
    scenes = several_roads()
    with ShardWriter(tmp_path / "set") as writer:
        writer.add(scenes)
    for source in (scenes, tmp_path / "set", str(tmp_path / "set")):
        env = make(scenes=source)
        assert env.reset(options={"scene": "hand/2"})[1]["scene"] == "hand/2"
        assert env.reset(options={"scene": 1})[1]["scene"] == "hand/1"
    larger = straight_road("hand/larger").pad({"A": 40})
    assert env.reset(options={"scene": larger})[1]["scene"] == "hand/larger"
    envs = make_vector(2)
    assert envs.reset(options={"scene": ["hand/3", straight_road("mine")]})[1]["scene"].tolist() == ["hand/3", "mine"]
    assert envs.reset(options={"scene": scenes.take([2, 0])})[1]["scene"].tolist() == ["hand/2", "hand/0"]
    with pytest.raises(ValueError, match="larger than the environment's scenes in {'A': 40}"):
        envs.reset(options={"scene": larger, "reset_mask": np.array([True, False])})


def test_scenes_may_stand_in_any_sequence():
    envs = make_vector(2)
    for several in (("hand/1", "hand/3"), np.array(["hand/1", "hand/3"]), np.array([1, 3]), deque([1, "hand/3"])):
        assert envs.reset(options={"scene": several})[1]["scene"].tolist() == ["hand/1", "hand/3"]
    assert envs.reset(options={"scene": np.int32(2)})[1]["scene"].tolist() == ["hand/2"] * 2
    with pytest.raises(ValueError, match="found 3, wanted one for each of the 2"):
        envs.reset(options={"scene": np.arange(3)})


@pytest.mark.parametrize("wrong", [1.7, True, np.float32(1.0), b"hand/1"])
def test_a_scene_is_named_by_an_id_or_a_whole_number(wrong):
    env = make(scenes=several_roads())
    with pytest.raises(ValueError, match="wanted a number from 0 to 3, or an id such as 'hand/0'"):
        env.reset(options={"scene": wrong})
    with pytest.raises(ValueError, match="wanted a number from 0 to 3, or an id such as 'hand/0'"):
        make_vector(2).reset(options={"scene": [0, wrong]})


def test_a_refused_reset_leaves_the_running_episodes_alone():
    class Choosy(ReplayWorld):
        def reset(self, scenes, key):
            if "hand/larger" in scenes.id:
                raise ValueError("not that one")
            return super().reset(scenes, key)

    envs, larger = make_vector(2, world=Choosy(), horizon=4), straight_road("hand/larger").pad({"A": 40})
    envs.reset(seed=0)
    with pytest.raises(ValueError, match="not that one"):
        envs.reset(options={"scene": larger})
    for _ in range(5):  # an autoreset takes scenes of the old sizes in
        _, _, _, _, infos = envs.step(np.zeros((2, 2), np.float32))
    assert infos["steps"].tolist() == [1, 1]


def test_seeds_are_told_as_gymnasium_documents():
    envs = make_vector(3)
    envs.reset(seed=5)
    assert envs.np_random_seed == (5, 6, 7)
    streams = [generator.bit_generator.state["state"]["inc"] for generator in envs.np_random]
    assert streams == [seeding.np_random(seed)[0].bit_generator.state["state"]["inc"] for seed in (5, 6, 7)]
    envs.reset(seed=[1, None, 2])
    assert envs.np_random_seed == (1, 6, 2)
    single = make()
    single.reset(seed=9)
    assert single.np_random_seed == 9


def test_a_state_is_never_changed_afterwards():
    env = make_vector(horizon=3)
    env.reset(seed=0)
    before, position = env.state, env.state.position.clone()
    for _ in range(4):
        env.step(np.zeros((3, 2), np.float32))
    assert torch.equal(before.position, position)
    assert before.step.tolist() == [0, 0, 0]


def test_pictures():
    env = make(render_mode="rgb_array", horizon=4)
    env.reset()
    first = env.render()
    env.step(np.zeros(2, np.float32))
    assert first.shape == (800, 800, 3)
    assert first.dtype == np.uint8
    assert not np.array_equal(first, env.render())
    envs = make_vector(2, render_mode="rgb_array")
    envs.reset()
    assert [frame.shape for frame in envs.render()] == [(800, 800, 3)] * 2
    blinkered = make(render_mode="rgb_array", horizon=4, size=ObservationSize(radius=15.0))
    blinkered.reset()
    assert not np.array_equal(first, blinkered.render())  # what the policy sees is marked


@pytest.mark.parametrize(
    ("action", "complaint"),
    [
        ([np.nan, 0.0], "sub-environment 0: acceleration is nan, wanted a number from -1 to 1"),
        ([0.0, np.inf], "sub-environment 0: curvature is inf"),
        ([1.1, 0.0], "acceleration is 1.1"),
        ([0.0], "wanted numbers of shape"),
        (["a", "b"], "wanted numbers of shape"),
    ],
)
def test_bad_actions_are_refused(action, complaint):
    env = make()
    env.reset()
    with pytest.raises(ValueError, match=complaint):
        env.step(np.array(action))
    assert env.step(np.zeros(2))[4]["steps"] == 1  # and nothing has happened


def test_the_offending_sub_environment_is_named():
    env = make_vector(action="physical")
    env.reset()
    bad = np.zeros((3, 2), np.float32)
    bad[2, 1] = 0.21
    with pytest.raises(ValueError, match=r"sub-environment 2: curvature is 0.21, wanted a number from -0.2 to 0.2 1/m"):
        env.step(bad)
    with pytest.raises(ValueError, match="sub-environment 1 is 63, wanted an integer from 0 to 62"):
        ActionSpace("discrete", KinematicBicycle()).decode(np.array([0, 63, 1]))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"world": "metaverse"}, "world='metaverse' is unknown: choose one of learned, learned_open, replay"),
        ({"world": object()}, "found object, wanted a name or an object with horizon, reset and step"),
        ({"observation": "lidar"}, "observation='lidar' is unknown"),
        ({"action": "steering"}, "action='steering' is unknown: choose one of continuous, physical, discrete"),
        ({"horizon": 0}, "horizon=0: wanted at least 1"),
        ({"horizon": 2.5}, "horizon=2.5: wanted at least 1 step"),
        ({"horizon": True}, "horizon=True: wanted at least 1 step"),
        ({"terminate_on": ("crash",)}, "wanted a list of some of collision, at_fault_collision, off_road"),
        ({"render_mode": "ascii"}, "render_mode='ascii' is unknown"),
        ({"reward": "miles"}, "reward='miles' is unknown: choose one of progress, nuplan, epdms"),
        ({"reward": {"progres": 1.0}}, r"reward term 'progres' is no measure \(did you mean progress\?\)"),
        ({"reward": {"progress": float("nan")}}, "found weight nan, wanted a finite number"),
        ({"reward": 3}, "reward=3: wanted one of progress, nuplan, epdms, or weights by measure"),
        ({"size": 3}, "wanted ObservationSize"),
        ({"scenes": "no/such/folder"}, "no/such/folder: does not exist"),
        ({"scenes": 7}, "found int, wanted a Scene"),
    ],
)
def test_bad_arguments_are_refused(change, complaint):
    with pytest.raises(ValueError, match=complaint):
        make(**change)


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("route", torch.nan, "hand/straight: route: point 0: found NaN"),
        ("lane_width", torch.nan, "hand/straight: lane_width: polyline 0: found NaN"),
        ("polyline", torch.inf, "hand/straight: polyline: polyline 0, point 0: found NaN or infinity"),
        ("ego", -1, "hand/straight: ego: index outside of the 6 agents"),
        ("ego", 99, "hand/straight: ego: index outside of the 6 agents"),
    ],
)
def test_scenes_that_break_the_contract_are_refused(field, value, complaint):
    bad = replace(straight_road(), **{field: torch.full_like(getattr(straight_road(), field), value)})
    with pytest.raises(ValueError, match=complaint):
        make(scenes=bad)
    with pytest.raises(ValueError, match=complaint):
        make_vector(scenes=bad)
    env = make()
    with pytest.raises(ValueError, match=complaint):
        env.reset(options={"scene": bad})


def test_a_scene_of_a_data_set_that_breaks_the_contract_is_refused(tmp_path):
    road = straight_road()
    folder = unchecked(tmp_path / "set", replace(road, ego=torch.tensor([9])))
    env = make(scenes=folder)
    with pytest.raises(ValueError, match=r"shard-00000\.safetensors: hand/straight: ego: index outside of the 6 agents"):
        env.reset(seed=0)


def test_bad_resets_are_refused():
    env = make(scenes=several_roads(), horizon=81)
    with pytest.raises(ValueError, match="scene 'hand/9' is unknown among 4; nearest: hand/"):
        env.reset(options={"scene": "hand/9"})
    with pytest.raises(ValueError, match="scene 4: wanted a number from 0 to 3"):
        env.reset(options={"scene": 4})
    with pytest.raises(ValueError, match="reset options \\['weather'\\] are unknown"):
        env.reset(options={"weather": "rain"})
    with pytest.raises(ValueError, match="hand/0: ReplayWorld can run this scene for 80 steps, found horizon=81: use horizon=80"):
        env.reset(options={"scene": 0})
    with pytest.raises(gymnasium.error.ResetNeeded, match="no episode has begun"):
        env.step(np.zeros(2))


def test_actions_of_the_three_kinds_mean_the_same():
    car = KinematicBicycle()
    wanted = torch.tensor([[-8.0, 0.2], [-2.0, -0.03], [0.0, 0.0], [4.0, -0.2]])
    for kind in ("continuous", "physical", "discrete"):
        space = ActionSpace(kind, car)
        encoded = space.encode(wanted)
        assert all(space.space.contains(one) for one in encoded)
        torch.testing.assert_close(space.decode(encoded), wanted, atol=1e-6, rtol=0)
    assert ActionSpace("discrete", car).space.n == len(ACCELERATION_GRID) * len(CURVATURE_GRID)
    torch.testing.assert_close(
        ActionSpace("continuous", car).decode(np.array([[-0.5, 0.5], [0.5, -1.0]])), torch.tensor([[-4.0, 0.1], [2.0, -0.2]])
    )


def test_sizes_set_the_observation():
    env = make(size=ObservationSize(agents=3, polylines=5, route_points=7, signals=2))
    seen, _ = env.reset()
    assert {name: value.shape for name, value in seen.items()} == {
        "ego": (12,),
        "agents": (3, 12),
        "agents_mask": (3,),
        "polylines": (5, 9),
        "polylines_points": (5, 10, 2),
        "polylines_mask": (5,),
        "route": (7, 4),
        "route_mask": (7,),
        "signals": (2, 10),
        "signals_mask": (2,),
    }
    assert env.state.scene.ego.tolist() == [EGO]


def test_importing_the_environments_loads_no_renderer():
    code = (
        "import sys, worldloop.envs;"
        "found = [m for m in sys.modules if m.split('.')[0] in ('pygame', 'matplotlib', 'libsumo', 'sympy') or 'renderers' in m];"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
