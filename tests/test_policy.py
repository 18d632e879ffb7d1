"""Drivers: what they do on a road whose numbers are known, alone and in a batch, and how they are named."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scenes import EGO, LEADER, LEFT_EDGE, RIGHT_EDGE, moved, several_roads, straight_road
from torch import Tensor
from worldloop.agents.policy import POLICIES, Policy, load_policy
from worldloop.agents.rules import ConstantPolicy, IdmPolicy, RandomPolicy, ReplayPolicy
from worldloop.worldmodel.dynamics import KinematicBicycle
from worldloop.worldmodel.geometry import rotate
from worldloop.worldmodel.scene import HISTORY_STEPS, TIME_STEP, Scene, SignalState
from worldloop.worldmodel.world import ReplayWorld, State, random_keys

CAR = KinematicBicycle()


def start(scenes: Scene, seed: int = 0) -> State:
    return ReplayWorld().reset(scenes, random_keys(torch.Generator().manual_seed(seed), len(scenes)))


def drive(policy: Policy, scenes: Scene, steps: int = 80) -> tuple[list[State], Tensor]:
    """States 0..steps and actions (steps, B, 2) of a drive among logged road users."""
    world, states, actions = ReplayWorld(), [start(scenes)], []
    for _ in range(steps):
        action = torch.as_tensor(policy.act({}, states[-1]))
        actions.append(action)
        states.append(world.step(states[-1], CAR.step(states[-1].ego(), action)))
    return states, torch.stack(actions)


def ego_speed(state: State) -> Tensor:
    return state.ego().velocity.norm(dim=-1)


def without(scene: Scene, *agents: int) -> Scene:
    return replace(scene, valid=scene.valid.index_fill(1, torch.tensor(agents), False))


def alone(scene: Scene) -> Scene:
    return without(scene, *range(1, scene.valid.shape[1]))


def showing(scene: Scene, signal: SignalState) -> Scene:
    return replace(scene, signal_state=torch.full_like(scene.signal_state, int(signal)))


@pytest.mark.parametrize("name", [name for name in POLICIES if name != "pdm"])  # it plans ahead: see test_pdm.py
def test_actions_are_within_limits_and_single_equals_batch(name: str) -> None:
    policy, scenes = load_policy(name), several_roads(3)
    states, actions = drive(policy, scenes, steps=30)
    assert actions.shape == (30, 3, 2)
    assert actions.dtype == torch.float32
    assert torch.equal(CAR.clip(actions), actions)
    assert isinstance(policy, Policy)
    for state, action in zip(states, actions, strict=False):
        for row in range(3):
            assert torch.allclose(torch.as_tensor(policy.act({}, state.take([row])))[0], action[row], atol=1e-5)


@pytest.mark.parametrize("name", POLICIES)
def test_turning_the_scene_turns_the_drive(name: str) -> None:
    scene = straight_road()
    plain, turned = (drive(load_policy(name), s, steps=40)[0][-1] for s in (scene, moved(scene, 2.0, (50.0, -70.0))))
    expected = rotate(plain.ego().position[:, :2], torch.tensor(2.0)) + torch.tensor([50.0, -70.0])
    # the pedestrian enters the corridor exactly at a tick, so rounding decides about one tick of braking
    assert torch.allclose(turned.ego().position[:, :2], expected, atol=1e-2 if name in ("random", "constant", "replay") else 0.25)


def test_random_is_the_same_bits_for_the_same_key_and_differs_between_keys() -> None:
    state = start(straight_road().repeat(2))
    actions = RandomPolicy().act({}, state)
    assert torch.equal(actions, RandomPolicy().act({}, state))
    assert not torch.equal(actions[0], actions[1])


def test_random_is_smooth_and_varied() -> None:
    _, actions = drive(RandomPolicy(), straight_road().repeat(64), steps=60)
    assert float(actions[..., 0].diff(dim=0).abs().max()) <= 0.6 + 1e-4  # 6 m/s2 within ten steps at the most
    assert -0.5 < float(actions[..., 0].mean()) < 0.5
    assert float(actions[..., 0].std()) > 0.8


def test_constant_keeps_speed_and_route() -> None:
    states, _ = drive(ConstantPolicy(), straight_road(ego_speed=7.0))
    assert torch.allclose(ego_speed(states[-1]), torch.tensor([7.0]), atol=0.05)
    assert torch.allclose(states[-1].ego().position[0, :2], torch.tensor([56.0, 0.0]), atol=0.5)


def test_constant_returns_to_its_route() -> None:
    scene = alone(straight_road())
    scene = replace(scene, route=scene.route + torch.tensor([0.0, 2.0, 0.0]))
    states, _ = drive(ConstantPolicy(), scene)
    assert abs(float(states[-1].ego().position[0, 1]) - 2.0) < 0.05


def test_replay_follows_the_log() -> None:
    scene = straight_road()
    time = (torch.arange(scene.steps) - HISTORY_STEPS) * TIME_STEP
    angle = 0.05 * time.clamp(min=0)  # a bend of 200 m radius at 10 m/s
    centre = torch.stack((200 * angle.sin() + 10 * time.clamp(max=0), 200 * (1 - angle.cos())), dim=-1)
    position, heading, velocity = scene.position.clone(), scene.heading.clone(), scene.velocity.clone()
    position[0, EGO, :, :2], heading[0, EGO] = centre, angle
    velocity[0, EGO] = 10 * torch.stack((angle.cos(), angle.sin()), dim=-1)
    bent = replace(scene, position=position, heading=heading, velocity=velocity)
    states, _ = drive(ReplayPolicy(), bent)
    driven = torch.stack([s.ego().position[0, :2] for s in states])
    assert float((driven - centre[HISTORY_STEPS:]).norm(dim=-1).max()) < 0.1


def test_replay_says_when_the_log_is_over() -> None:
    state = start(straight_road(steps=HISTORY_STEPS + 3))
    state = replace(state, step=state.step + 2)
    with pytest.raises(ValueError, match="hand/straight.*after 2 steps.*shorter horizon"):
        ReplayPolicy().act({}, state)


def test_idm_reaches_the_speed_limit_on_a_free_road() -> None:
    scene = showing(alone(straight_road(ego_speed=5.0, steps=HISTORY_STEPS + 151)), SignalState.GO)
    states, actions = drive(IdmPolicy(), scene, steps=150)
    assert 12.5 < float(ego_speed(states[-1])) <= 13.9
    assert 1.3 < float(actions[0, 0, 0]) <= 1.5  # a (1 - (5 / 13.9)^4)


def test_idm_formula_on_a_hand_worked_case() -> None:
    """Gap 25 - 4.5 = 20.5 m, both at 10 m/s: a (1 - (10/13.9)^4 - ((2 + 16) / 20.5)^2) = 1.5 (1 - 0.2679 - 0.7710)."""
    scene = showing(straight_road(), SignalState.GO)
    assert float(IdmPolicy().act({}, start(scene))[0, 0]) == pytest.approx(1.5 * (1 - 0.26787 - 0.77097), abs=2e-3)


def test_idm_never_runs_into_a_leader_that_stops() -> None:
    scene = showing(without(straight_road(leader_gap=40.0), 2, 3, 4, 5), SignalState.GO)
    time = (torch.arange(scene.steps) - HISTORY_STEPS) * TIME_STEP
    moving = time.clamp(max=2.0)  # stands dead after 2 s
    position, velocity = scene.position.clone(), scene.velocity.clone()
    position[0, LEADER, :, 0] = 40.0 + 10.0 * moving
    velocity[0, LEADER] = torch.where(time < 2.0, 10.0, 0.0)[:, None] * torch.tensor([1.0, 0.0])
    states, _ = drive(IdmPolicy(), replace(scene, position=position, velocity=velocity))
    gaps = [float(s.position[0, LEADER, 0] - s.position[0, EGO, 0]) - 4.5 for s in states]
    assert min(gaps) > 1.0
    assert float(ego_speed(states[-1])) < 1.5  # creeps up to the gap


def test_idm_brakes_for_a_box_that_stands_across_its_lane() -> None:
    """A vehicle stands beside the lane, turned so that only its front reaches into it."""
    scene = showing(without(straight_road(), 2, 3, 4, 5), SignalState.GO)
    position, heading = scene.position.clone(), scene.heading.clone()
    position[0, LEADER, :, :2] = torch.tensor([50.0, -3.0])
    aligned = replace(scene, position=position, velocity=scene.velocity.clone().index_fill(1, torch.tensor(LEADER), 0.0))
    heading[0, LEADER] = torch.pi / 2
    across = replace(aligned, heading=heading)
    free, blocked = (float(ego_speed(drive(IdmPolicy(), s)[0][-1])) for s in (aligned, across))
    assert free > 9.0
    assert blocked < 1.5


def test_idm_lets_a_pedestrian_cross() -> None:
    """The pedestrian is beside the lane, walking into it: foresight brakes, without it the driver goes on."""
    scene = showing(without(straight_road(), 1, 2, 4, 5), SignalState.GO)
    position = scene.position.clone()
    position[0, 3, :, 0] = 30.0
    position[0, 3, :, 1] = -2.4 + (torch.arange(scene.steps) - HISTORY_STEPS) * TIME_STEP
    state = start(replace(scene, position=position))
    assert float(IdmPolicy().act({}, state)[0, 0]) < -0.5
    assert float(IdmPolicy(foresight=(0.0,)).act({}, state)[0, 0]) > 0.5


def test_idm_obeys_signals() -> None:
    scene = alone(straight_road(steps=HISTORY_STEPS + 151))
    stopped = drive(IdmPolicy(), showing(scene, SignalState.STOP), steps=150)[0][-1]
    front = float(stopped.ego().position[0, 0]) + 2.25
    assert 77.5 < front < 80.0
    assert float(ego_speed(stopped)) < 0.2
    for free in (SignalState.GO, SignalState.UNKNOWN):
        assert float(drive(IdmPolicy(), showing(scene, free), steps=100)[0][-1].ego().position[0, 0]) > 80.0


def test_idm_runs_through_caution_only_when_it_is_too_close_to_stop() -> None:
    scene = showing(alone(straight_road()), SignalState.CAUTION)
    far = IdmPolicy().act({}, start(replace(scene, signal_position=scene.signal_position - torch.tensor([45.0, 0.0, 0.0]))))
    near = IdmPolicy().act({}, start(replace(scene, signal_position=scene.signal_position - torch.tensor([65.0, 0.0, 0.0]))))
    assert float(far[0, 0]) < -1.0  # 32.75 m to stop from 10 m/s: 1.53 m/s2
    assert float(near[0, 0]) > 0.5  # 12.75 m: 3.9 m/s2


def test_idm_ignores_signals_of_other_lanes_and_directions() -> None:
    scene = showing(alone(straight_road()), SignalState.STOP)
    free = float(IdmPolicy().act({}, start(showing(scene, SignalState.GO)))[0, 0])
    beside = replace(scene, signal_position=scene.signal_position + torch.tensor([0.0, 3.5, 0.0]))
    oncoming = replace(scene, signal_heading=scene.signal_heading + torch.pi)
    for other in (beside, oncoming):
        assert float(IdmPolicy().act({}, start(other))[0, 0]) == free


def test_idm_slows_down_for_a_bend_and_stays_on_the_road() -> None:
    angle = torch.linspace(0, torch.pi / 2, 11)[1:]
    straight = torch.stack((torch.arange(-20.0, 61.0, 2.0), torch.zeros(41)), dim=-1)
    bend = torch.stack((60 + 12 * angle.sin(), 12 * (1 - angle.cos())), dim=-1)
    after = torch.stack((torch.full((30,), 72.0), 12 + 2 * torch.arange(1.0, 31.0)), dim=-1)
    points = torch.nn.functional.pad(torch.cat((straight, bend, after)), (0, 1))[None]
    scene = showing(alone(straight_road(steps=HISTORY_STEPS + 121)), SignalState.GO)
    scene = replace(scene, route=points, route_valid=torch.ones(1, points.shape[1], dtype=torch.bool))
    states, actions = drive(IdmPolicy(), scene, steps=120)
    driven = torch.stack([s.ego().position[0, :2] for s in states])
    distance = (driven[:, None] - points[0, None, :, :2]).norm(dim=-1).amin(1)
    lateral = torch.stack([ego_speed(s)[0] for s in states[:-1]]).square() * actions[:, 0, 1].abs()
    assert float(driven[-1, 1]) > 15.0
    assert float(distance.max()) < 1.5  # half the spacing of the points, and some cutting of the corner
    assert float(lateral.max()) < 3.5
    assert RIGHT_EDGE < float(driven[:20, 1].mean()) < LEFT_EDGE


def test_rules_work_without_map_and_signals() -> None:
    scene = straight_road()
    empty = {name: getattr(scene, name)[:, :0] for name in ("polyline", "polyline_valid", "polyline_kind", "lane_width")}
    empty |= {name: getattr(scene, name)[:, :0] for name in ("speed_limit", "speed_limit_valid", "lane_link", "lane_link_kind")}
    signals = ("signal_position", "signal_lane", "signal_heading", "signal_state", "signal_valid")
    empty |= {name: getattr(scene, name)[:, :0] for name in ("lane_link_valid", *signals)}
    state = start(replace(scene, **empty).validate())
    for name in POLICIES:
        assert torch.isfinite(torch.as_tensor(load_policy(name).act({}, state))).all()


OWN = """
import torch

class Careful:
    def act(self, observation, state):
        return torch.zeros(len(state), 2)

class Demanding(Careful):
    def __init__(self, weights):
        pass

careful = Careful()
def make():
    return Careful()
number = 3
"""


def test_own_drivers_by_module_and_attribute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_driver_for_test.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    for attribute in ("Careful", "careful", "make"):
        assert isinstance(load_policy(f"my_driver_for_test:{attribute}"), Policy)
    with pytest.raises(ValueError, match="no 'Carefull'; it has: Careful, Demanding, careful"):
        load_policy("my_driver_for_test:Carefull")
    with pytest.raises(ValueError, match=r"needs arguments \(weights\)"):
        load_policy("my_driver_for_test:Demanding")
    with pytest.raises(ValueError, match=r"is a int without act"):
        load_policy("my_driver_for_test:number")
    with pytest.raises(ValueError, match="no module 'there_is_none'"):
        load_policy("there_is_none:Careful")
    with pytest.raises(ValueError, match="wanted module:attribute"):
        load_policy(":Careful")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys\nsys.exit()", "quitting_driver cannot be imported: SystemExit"),
        ("import sys\nclass Own:\n    def __init__(self):\n        sys.exit(3)", "raised SystemExit when it was made: 3"),
    ],
)
def test_a_driver_that_exits_is_an_error_like_any_other(code: str, message: str, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "quitting_driver.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.delitem(sys.modules, "quitting_driver", raising=False)
    with pytest.raises(ValueError, match=message):
        load_policy("quitting_driver:Own")


def test_unknown_names_get_a_hint() -> None:
    with pytest.raises(ValueError, match=r"'idmm' is unknown \(did you mean idm\?\): choose one of random, constant, replay"):
        load_policy("idmm")


@pytest.mark.parametrize(
    ("code", "message"),
    [("def act(", "cannot be imported"), ("import nomodule_x", "imports nomodule_x, which is not installed")],
)
def test_a_driver_that_cannot_be_imported_is_named(code, message, tmp_path, monkeypatch):
    (tmp_path / "broken_driver.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "broken_driver", raising=False)
    with pytest.raises(ValueError, match=f"policy 'broken_driver:X': broken_driver {message}"):
        load_policy("broken_driver:X")
