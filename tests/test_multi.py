import subprocess
import sys
import warnings
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import data_equivalence
from models import tiny_model
from pettingzoo.test import parallel_api_test
from scenes import CONE, EGO, FOLLOWER, LEADER, NEIGHBOUR, PEDESTRIAN, moved, several_roads, straight_road
from worldloop.envs import DriveEnv
from worldloop.envs.multi import DriveParallelEnv, as_egos, choose_drivers, own_route, parallel_env
from worldloop.worldmodel.borders import OpenBorders
from worldloop.worldmodel.scene import HISTORY_STEPS
from worldloop.worldmodel.world import LearnedWorld

NOTHING = np.zeros(2, np.float32)
BRAKE = np.array([-8.0, 0.0], np.float32)


def make(**changes) -> DriveParallelEnv:
    return parallel_env(**{"scenes": straight_road(), "world": "replay", "action": "physical", **changes})


def drive(env: DriveParallelEnv, steps: int, seed: int = 0, **actions: np.ndarray) -> list:
    """Everyone does what `actions` says of them, else nothing; return all that the environment told."""
    told = [env.reset(seed=seed)]
    for _ in range(steps):
        told.append(env.step({name: actions.get(name, NOTHING) for name in env.agents}))
    return told


@pytest.mark.parametrize("world", ["replay", "constant_velocity", "learned"])
@pytest.mark.parametrize("action", ["continuous", "discrete"])
def test_pettingzoos_own_test_has_nothing_to_warn_about(world, action):
    world = LearnedWorld(tiny_model()) if world == "learned" else world
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=r"reset options \['options'\] are unknown and ignored: wanted scene")
        parallel_api_test(make(world=world, action=action, horizon=20), num_cycles=60)


@pytest.mark.parametrize("observation", ["state", "image"])
def test_one_driver_alone_is_the_single_environment_bit_for_bit(observation):
    arguments = {"scenes": several_roads(), "world": LearnedWorld(tiny_model()), "observation": observation, "horizon": 20}
    several, single = DriveParallelEnv(controlled=1, **arguments), DriveEnv(**arguments)
    ends = 0
    for seed in (3, None):
        found, wanted = several.reset(seed=seed), single.reset(seed=seed)
        assert data_equivalence(tuple(part["agent_0"] for part in found), wanted, exact=True)
        drawn = np.random.default_rng(seed or 0).uniform([-0.2, -0.02], [1.0, 0.5 if seed is None else 0.02], (20, 2))
        for action in drawn.astype(np.float32):
            found, wanted = several.step({"agent_0": action}), single.step(action)
            assert data_equivalence(tuple(part["agent_0"] for part in found), wanted, exact=True)
            if wanted[2] or wanted[3]:
                ends += wanted[2]
                assert several.agents == []
                break
    assert ends > 0


@pytest.mark.parametrize("observation", ["state", "image"])
def test_every_driver_sees_what_it_would_see_as_the_ego(observation):
    env = make(scenes=moved(straight_road(), 0.4, (30.0, 10.0)), observation=observation)
    seen, infos = env.reset(seed=0)
    assert env.places == {"agent_0": EGO, "agent_1": NEIGHBOUR, "agent_2": FOLLOWER, "agent_3": LEADER}
    for name, place in env.places.items():
        alone = DriveEnv(as_egos(env.scenarios.load([0]), [place]), "replay", observation=observation)
        wanted, info = alone.reset(seed=0)
        assert data_equivalence(seen[name], wanted, exact=True)
        assert infos[name] == info
        assert env.observation_space(name).contains(seen[name])


def test_measures_and_rewards_are_each_ones_own():
    env = make(reward={"progress": 1.0, "collision": -7.0})
    *_, (seen, reward, terminated, truncated, infos) = drive(env, 5, agent_3=BRAKE)
    assert [reward[name] for name in env.possible_agents] == pytest.approx([1.0, 0.8, 1.0, 0.64], abs=1e-4)
    assert infos["agent_3"]["measures"]["speed"] == pytest.approx(6.0)
    assert infos["agent_1"]["reward_terms"] == pytest.approx({"progress": 0.8, "collision": 0.0}, abs=1e-4)
    assert infos["agent_0"]["agents_simulated"] == 1, "of six a pedestrian: the cone stands, the others are driven"
    assert seen["agent_3"]["ego"][0] == pytest.approx(6.0)
    assert not any(terminated.values()) | any(truncated.values())


def test_what_any_driver_does_is_answered_by_the_others():
    """The leader answers the neighbour that brakes beside it, and it does not matter whether that one is the world's ego."""
    world = LearnedWorld(tiny_model(), temperature=1.0)  # bold enough that its random weights answer

    def leader(controlled: list[int], **actions: np.ndarray) -> torch.Tensor:
        env = make(world=world, controlled=controlled, terminate_on=())
        drive(env, 25, seed=7, **actions)
        assert env.world_state.simulated[0].nonzero()[:, 0].tolist() == [LEADER, FOLLOWER, PEDESTRIAN]
        return env.world_state.position[0, LEADER]

    calm = leader([EGO, NEIGHBOUR])
    braked = leader([EGO, NEIGHBOUR], agent_1=BRAKE)
    assert float((calm - braked).norm()) > 1.0
    assert torch.equal(braked, leader([NEIGHBOUR, EGO], agent_0=BRAKE))


def test_a_hard_braking_driver_is_answered_early_whoever_it_is():
    env = make(world=LearnedWorld(tiny_model()), controlled=[EGO, LEADER])
    drive(env, 3, agent_1=BRAKE)
    assert env.world_state.memory["planned"].tolist() == [2, 2]
    drive(env, 3, agent_1=NOTHING)
    assert env.world_state.memory["planned"].tolist() == [0, 0]


def test_drivers_are_never_taken_away_by_open_borders():
    scene, world = straight_road(leader_gap=170.0), OpenBorders(LearnedWorld(tiny_model()))
    env = make(scenes=scene, world=world, controlled=[EGO, LEADER], terminate_on=())
    drive(env, 50)  # to x = 220: who has driven past the end of the lane at 200 leaves
    assert env.world_state.valid[0, [LEADER, EGO]].all()
    assert float(env.world_state.position[0, LEADER, 0]) == pytest.approx(220.0, abs=0.1)


def test_same_seed_same_bits_other_seed_other_scene():
    def told(seed: int) -> list:
        return drive(make(scenes=several_roads(), world=LearnedWorld(tiny_model())), 12, seed, agent_1=BRAKE)

    assert data_equivalence(told(1), told(1), exact=True)
    assert not data_equivalence(told(1), told(100), exact=True)


def test_who_crashes_leaves_brakes_and_stands_in_the_way_and_the_others_go_on():
    env = make(horizon=60)
    env.reset(seed=0)
    left: dict[str, int] = {}
    for step in range(1, 61):
        before = list(env.agents)
        actions = {name: np.array([4.0, 0.0], np.float32) if name == "agent_2" else NOTHING for name in before}
        seen, reward, terminated, truncated, infos = env.step(actions)
        for part in (seen, reward, terminated, truncated, infos):
            assert list(part) == before
        left |= {name: step for name in before if terminated[name]}
        if step == 40:
            hit = env.world_state.position[0, [EGO, FOLLOWER], 0].clone()
    # The follower closes 15.5 m of gap to the ego with 4 m/s2: sqrt(2 * 15.5 / 4) = 2.8 s. Both have crashed.
    assert left == {"agent_0": 28, "agent_2": 28}
    assert list(truncated) == ["agent_1", "agent_3"]
    assert all(truncated.values())
    assert env.agents == []
    assert float(hit[0]) == pytest.approx(28.0 + 6.0, abs=0.3), "10 m/s are gone after 1.25 s of 8 m/s2, or 6.25 m"
    state = env.world_state
    assert (state.velocity[0, [EGO, FOLLOWER]] == 0).all()
    assert state.driven[0].nonzero()[:, 0].tolist() == [EGO, LEADER, FOLLOWER, NEIGHBOUR]
    with pytest.raises(gymnasium.error.ResetNeeded, match="call reset"):
        env.step({})
    assert list(env.reset()[0]) == env.possible_agents


def test_a_scene_with_few_cars_has_few_agents():
    env = make(controlled=9, horizon=3)
    env.reset()
    assert env.max_num_agents == 9
    assert env.agents == ["agent_0", "agent_1", "agent_2", "agent_3"]
    assert len(drive(env, 3)[-1][0]) == 4
    assert env.agents == []
    alone = make(scenes=straight_road(steps=HISTORY_STEPS + 1), world="constant_velocity")
    alone.reset()
    assert alone.agents == ["agent_0"], "the log shows of nobody that they move"


def test_the_nearest_that_move_and_touch_nobody_are_chosen():
    scene = straight_road()
    assert choose_drivers(scene, 2) == [EGO, NEIGHBOUR]
    position = scene.position.clone()
    position[0, NEIGHBOUR] = position[0, NEIGHBOUR, HISTORY_STEPS]
    parked = replace(scene, position=position)
    assert choose_drivers(parked, 4) == [EGO, FOLLOWER, LEADER]
    valid = scene.valid.clone()
    valid[0, FOLLOWER, HISTORY_STEPS + 1 :] = False
    assert choose_drivers(replace(scene, valid=valid), 4) == [EGO, NEIGHBOUR, LEADER]
    assert choose_drivers(straight_road(leader_gap=-17.0), 4) == [EGO, NEIGHBOUR], "labels of two overlap"
    assert choose_drivers(scene, (LEADER, EGO)) == [LEADER, EGO]


def test_a_route_follows_the_log_then_the_lane_then_goes_straight_on():
    scene = straight_road()
    route = own_route(scene, NEIGHBOUR)
    assert torch.allclose(route[:, 1], torch.tensor(3.5), atol=1e-3)
    # At x = 10 at the present; 8 m/s for 8 s; 20 m before and 60 m after it.
    assert route[[0, -1], 0].tolist() == pytest.approx([10 - 20, 10 + 64 + 60], abs=5.0)
    assert (route[1:] - route[:-1]).norm(dim=-1).max() < 2.1
    valid, heading = scene.valid.clone(), scene.heading.clone()
    valid[0, NEIGHBOUR, HISTORY_STEPS + 1 :] = False
    heading[0, NEIGHBOUR] = 0.1
    along = own_route(replace(scene, valid=valid, heading=heading), NEIGHBOUR)
    assert along[-1, 1] == pytest.approx(3.5, abs=1e-3), "along the lane, not where it looks"
    bare = replace(scene, valid=valid, heading=heading, polyline_valid=torch.zeros_like(scene.polyline_valid))
    straight = own_route(bare, NEIGHBOUR)
    assert (straight[-1, 1] - 3.5) / (straight[-1, 0] - 10.0) == pytest.approx(np.tan(0.1), abs=1e-3)
    assert as_egos(scene, [EGO, NEIGHBOUR]).validate().ego.tolist() == [EGO, NEIGHBOUR]


def test_pictures_are_of_the_first_agent():
    env, single = make(render_mode="rgb_array"), DriveEnv(straight_road(), "replay", render_mode="rgb_array")
    env.reset(seed=0)
    single.reset(seed=0)
    assert np.array_equal(env.render(), single.render())
    env.close()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"controlled": 0}, "controlled=0: wanted how many are driven, at least 1, or different places such as"),
        ({"controlled": True}, "controlled=True: wanted how many"),
        ({"controlled": 2.0}, "controlled=2.0: wanted how many"),
        ({"controlled": []}, r"controlled=\[\]: wanted how many"),
        ({"controlled": [1, 1]}, r"controlled=\[1, 1\]: wanted how many"),
        ({"controlled": [-1]}, r"controlled=\[-1\]: wanted how many"),
        ({"world": "metaverse"}, "world='metaverse' is unknown"),
        ({"terminate_on": ("crash",)}, "wanted a list of some of collision"),
        ({"reward": "miles"}, "reward='miles' is unknown"),
    ],
)
def test_bad_arguments_are_refused(change, complaint):
    with pytest.raises(ValueError, match=complaint):
        make(**change)


def test_sumo_hands_over_one_vehicle():
    pytest.importorskip("libsumo", reason='needs pip install "worldloop[sumo]"')
    alone, single = parallel_env(world="sumo", controlled=1), DriveEnv(world="sumo")
    alone.reset(seed=0)
    single.reset(seed=0)
    for _ in range(3):
        found, wanted = alone.step({"agent_0": NOTHING}), single.step(NOTHING)
        assert data_equivalence(tuple(part["agent_0"] for part in found), wanted, exact=True)
    alone.close()
    single.close()
    several = parallel_env(world="sumo", controlled=2)
    several.reset(seed=0)
    with pytest.raises(ValueError, match="found 2 road users that are driven, but SUMO hands over one: drive the ego alone"):
        several.step({name: NOTHING for name in several.agents})
    several.close()


@pytest.mark.parametrize("place", [PEDESTRIAN, CONE, 17])
def test_only_vehicles_are_driven(place):
    env = make(controlled=[EGO, place])
    with pytest.raises(ValueError, match=rf"place {place} holds no vehicle at the present, wanted some of \[0, 1, 2, 4\]"):
        env.reset()


@pytest.mark.parametrize(
    ("actions", "complaint"),
    [
        ({"agent_0": NOTHING}, r"found \['agent_0'\], wanted one for each of env.agents: \['agent_0', 'agent_1'\]"),
        ({"agent_0": NOTHING, "agent_1": NOTHING, "agent_7": NOTHING}, "wanted one for each of env.agents"),
        ([NOTHING, NOTHING], "actions: found list"),
        ({"agent_0": NOTHING, "agent_1": np.zeros(3)}, r"action of agent_1: found shape \(3,\), wanted \(2,\)"),
        ({"agent_0": NOTHING, "agent_1": np.array([np.nan, 0])}, "action of agent_1: acceleration is nan"),
        ({"agent_0": NOTHING, "agent_1": np.array([0, 0.5])}, "action of agent_1: curvature is 0.5, wanted a number from -0.2"),
    ],
)
def test_bad_actions_are_refused(actions, complaint):
    env = make(controlled=2)
    env.reset()
    with pytest.raises(ValueError, match=complaint):
        env.step(actions)
    assert env.step({name: NOTHING for name in env.agents})[4]["agent_1"]["steps"] == 1  # and nothing has happened


def test_bad_resets_are_refused():
    env = make(scenes=several_roads())
    with pytest.raises(gymnasium.error.ResetNeeded, match="no episode has begun"):
        env.step({})
    with pytest.raises(ValueError, match="scene 'hand/9' is unknown among 4"):
        env.reset(options={"scene": "hand/9"})
    with pytest.raises(ValueError, match="found a batch of 4 scenes, wanted one"):
        env.reset(options={"scene": several_roads()})
    with pytest.warns(UserWarning, match=r"reset options \['weather'\] are unknown and ignored"):
        env.reset(options={"weather": "rain"})
    assert env.reset(options={"scene": straight_road("mine")})[1]["agent_2"]["scene"] == "mine"
    assert env.reset(options={"scene": 2})[1]["agent_1"]["scene"] == "hand/2"


def test_pettingzoo_is_needed_here_alone():
    code = "import sys, worldloop.envs, worldloop.agents.rollout; assert 'pettingzoo' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    code = "import sys; sys.modules['pettingzoo'] = None; import worldloop.envs.multi"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert 'pip install "worldloop[multi]"' in done.stderr
