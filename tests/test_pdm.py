"""The planner that tries several plans in its head, on roads drawn by hand."""

from dataclasses import replace

import torch
from gymnasium.vector import AutoresetMode
from scenes import EGO, PEDESTRIAN, several_roads, straight_road
from worldloop.agents.pdm import NEAR, PdmPolicy, surrounded
from worldloop.agents.rollout import drive
from worldloop.agents.rules import CAR, IMPAIRED, IdmPolicy
from worldloop.envs import DriveVectorEnv
from worldloop.envs.ground import ground
from worldloop.worldmodel.scene import HISTORY_STEPS, Scene, SignalState
from worldloop.worldmodel.world import ConstantVelocityWorld, State, logged_state


def start(scene: Scene) -> State:
    return logged_state(scene, torch.zeros(len(scene), dtype=torch.int64))


def only(scene: Scene, *agents: int) -> Scene:
    keep = torch.zeros_like(scene.valid)
    keep[:, [EGO, *agents]] = True
    return replace(scene, valid=scene.valid & keep)


def test_on_a_free_road_it_drives_the_fastest_plan_in_the_middle() -> None:
    plan = PdmPolicy()._best(start(only(straight_road())))
    assert plan.tolist() == [[1.0, 0.0]]


def test_it_slows_down_for_who_will_be_in_its_way() -> None:
    scene = only(straight_road(), PEDESTRIAN)  # at (60, -6), 1 m/s to the left: in the ego's corridor from 4.8 s on
    nearer = torch.tensor([20.0, -2.5, 0.0]) * (torch.arange(6) == PEDESTRIAN)[:, None, None]
    near = replace(scene, position=scene.position - nearer)
    drives = {}
    for name, policy in (("pdm", PdmPolicy()), ("blind", IMPAIRED["blind"]())):
        world, mode = ConstantVelocityWorld(), AutoresetMode.DISABLED
        env = DriveVectorEnv(1, near, world, action="physical", horizon=60, autoreset_mode=mode)
        drives[name] = drive(policy, env, [0], torch.tensor([60]).numpy(), [False], lambda step: None)[0][0]
    assert drives["blind"].collision
    assert not drives["pdm"].collision


def test_plans_know_nothing_of_what_signals_will_show() -> None:
    """The log's signal turns green after the present; in the look ahead it stays red."""
    scene = only(straight_road())
    signal = torch.full_like(scene.signal_state, int(SignalState.GO))
    signal[..., : HISTORY_STEPS + 1] = int(SignalState.STOP)
    state = start(replace(scene, signal_state=signal))
    ego = CAR.step(state.ego(), torch.zeros(1, 2))
    assert ConstantVelocityWorld().step(state, ego).signal_state.tolist() == [[int(SignalState.GO)]]
    assert ConstantVelocityWorld().step(surrounded(state)[0], ego).signal_state.tolist() == [[int(SignalState.STOP)]]


def test_rows_of_a_batch_plan_as_they_would_alone() -> None:
    state = start(several_roads())
    together = PdmPolicy()._best(state)
    for row in range(len(state)):
        assert torch.equal(PdmPolicy()._best(state.take([row])), together[row : row + 1])


def test_plans_are_kept_for_half_a_second_and_made_anew_at_a_reset() -> None:
    policy, state = PdmPolicy(), start(several_roads())
    policy.act({}, state)
    policy._plan = torch.tensor([[0.5, 1.0]]).expand(len(state), -1).clone()
    kept = policy.act({}, replace(state, step=torch.full_like(state.step, 3)))
    expected = IdmPolicy().drive(state, torch.full((len(state),), 0.5), torch.ones(len(state)))
    torch.testing.assert_close(kept, expected)
    policy.act({}, state)
    assert not torch.equal(policy._plan, torch.tensor([[0.5, 1.0]]).expand(len(state), -1))


def test_the_surroundings_hold_the_nearest_and_the_map_around() -> None:
    state, on = surrounded(start(straight_road()))
    whole = start(straight_road())
    assert state.position.shape[1] == min(NEAR, whole.position.shape[1])
    torch.testing.assert_close(state.ego().position, whole.ego().position)
    assert state.scene.ego.tolist() == [0]
    second = state.position[0, 1, :2].tolist()
    assert second == whole.position[0, 4, :2].tolist()  # the neighbour at (10, 3.5) is the nearest
    assert on.lanes.valid.sum() < ground(whole.scene).lanes.valid.sum()
