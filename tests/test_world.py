from dataclasses import replace

import pytest
import torch
from models import tiny_model
from scenes import CONE, EGO, FOLLOWER, LEADER, NEIGHBOUR, PEDESTRIAN, moved, several_roads, straight_road
from worldloop.worldmodel.dynamics import KinematicBicycle, Motion
from worldloop.worldmodel.geometry import rotate
from worldloop.worldmodel.open_loop import (
    logged_ego,
    min_average_displacement,
    present_agents,
    scored_agents,
    simulate,
    without_later_signals,
)
from worldloop.worldmodel.scene import HISTORY_STEPS, LAYOUT, SignalState, stack
from worldloop.worldmodel.shipped import SHIPPED_WEIGHTS, SIZES, model_folder
from worldloop.worldmodel.state_file import load_state, save_state
from worldloop.worldmodel.world import (
    ConstantVelocityWorld,
    LearnedWorld,
    ReplayWorld,
    random_keys,
)

WORLDS = [LearnedWorld(tiny_model()), ReplayWorld(), ConstantVelocityWorld()]


def run(world, scenes, steps, key=None, state=None):
    state = world.reset(scenes, torch.arange(len(scenes)) if key is None else key) if state is None else state
    for _ in range(steps):
        state = world.step(state, logged_ego(state.scene, int(state.step[0]) + 1))
    return state


def same(a, b):
    ours, theirs = vars(a), vars(b)
    return all(torch.equal(ours[n], theirs[n]) for n in ours if isinstance(ours[n], torch.Tensor)) and all(
        torch.equal(a.memory[n], b.memory[n]) for n in a.memory
    )


@pytest.mark.parametrize("world", WORLDS, ids=lambda w: type(w).__name__)
def test_same_key_same_bits_and_saved_states_go_on_the_same_way(world, tmp_path):
    scenes = several_roads(3)
    middle = run(world, scenes, 7)
    save_state(middle, tmp_path / "state")
    restored = load_state(tmp_path / "state")
    assert same(middle, restored)
    assert restored.scene.id == scenes.id
    assert same(run(world, scenes, 9, state=middle), run(world, scenes, 9, state=restored))
    assert same(run(world, scenes, 16), run(world, scenes, 9, state=middle))


@pytest.mark.parametrize("world", WORLDS, ids=lambda w: type(w).__name__)
def test_rows_behave_as_if_alone_and_branches_are_equal(world):
    scenes = several_roads(3)
    together = run(world, scenes, 16)
    alone = run(world, scenes.take([1]), 16, key=torch.tensor([1]))
    assert torch.equal(together.take([1]).position, alone.position)
    branches = run(world, scenes, 8, state=run(world, scenes, 8).repeat(2))
    assert torch.equal(branches.position[::2], together.position)
    assert torch.equal(branches.position[1::2], together.position)


@pytest.mark.parametrize("world", [WORLDS[0], WORLDS[2]], ids=lambda w: type(w).__name__)
def test_signals_hold_their_last_state_however_long_the_batch_is(world):
    short, long = straight_road("hand/short", steps=16), straight_road("hand/long", steps=60)
    together = run(world, stack([short, long]), 12)
    alone = run(world, short, 12)
    assert alone.signal_valid.all()
    assert torch.equal(together.take([0]).signal_state, alone.signal_state)
    assert torch.equal(together.take([0]).signal_valid, alone.signal_valid)


def test_rows_out_of_phase_are_decided_at_their_own_time():
    world, scenes = WORLDS[0], several_roads(2)
    state = run(world, scenes, 3)
    fresh = world.reset(scenes.take([1]), torch.tensor([9]))
    mixed = state.put([1], fresh)
    for _ in range(12):
        steps = mixed.step + 1
        ego = [logged_ego(scenes.take([i]), int(steps[i])) for i in range(2)]
        joined = replace(ego[0], **{n: torch.cat([getattr(e, n) for e in ego]) for n in vars(ego[0])})
        mixed = world.step(mixed, joined)
    assert torch.equal(mixed.take([0]).position, run(world, scenes, 15).take([0]).position)
    assert torch.equal(mixed.take([1]).position, run(world, scenes.take([1]), 12, key=torch.tensor([9])).position)


def test_a_hard_braking_ego_is_answered_before_the_interval_is_over_and_a_gentle_one_after_it():
    world, car = LearnedWorld(tiny_model()), KinematicBicycle()
    state = world.reset(straight_road(ego_speed=10.0).repeat(2), torch.tensor([7, 7]))
    action = torch.tensor([[-8.0, 0.0], [-1.0, 0.0]])
    decided, caches = [], []
    for _ in range(6):
        state = world.step(state, car.step(state.ego(), action))
        decided.append(state.memory["planned"].tolist())
        caches.append(state.memory["cache_keys"])
    assert [row[0] for row in decided] == [0, 0, 2, 2, 4, 5]
    assert [row[1] for row in decided] == [0, 0, 0, 0, 0, 5]
    assert torch.equal(caches[0], caches[4]), "only decisions an interval apart are remembered"
    alone = world.reset(straight_road(ego_speed=10.0), torch.tensor([7]))
    for _ in range(6):
        alone = world.step(alone, car.step(alone.ego(), action[:1]))
    assert torch.equal(alone.position[0], state.position[0]), "what one row decides is no other's business"


def test_several_may_be_driven_and_it_does_not_matter_who_of_them_is_the_ego():
    world, car = LearnedWorld(tiny_model()), KinematicBicycle()
    ends = []
    for ego, other in ((EGO, LEADER), (LEADER, EGO)):
        state = world.reset(replace(straight_road(), ego=torch.tensor([ego])), torch.tensor([7]))
        state = replace(state, driven=state.driven.index_put((torch.tensor([0]), torch.tensor([other])), torch.tensor(True)))
        action = torch.zeros(1, 6, 2).index_put((torch.tensor([0]), torch.tensor([LEADER])), torch.tensor([-8.0, 0.0]))
        decided = []
        for _ in range(20):
            everyone = Motion(state.position, state.heading, state.velocity)
            state = world.step(state, car.step(everyone, action))
            decided.append(int(state.memory["planned"]))
        assert decided[:6] == [0, 0, 2, 2, 4, 5], "whoever of the driven brakes hard is answered early"
        assert not state.simulated[0, [EGO, LEADER]].any()
        assert float(state.position[0, EGO, 0]) == pytest.approx(20.0, abs=1e-3)
        assert float(state.position[0, LEADER, 0]) == pytest.approx(25.0 + 6.25, abs=1e-3)  # 10^2 / (2 * 8) metres of braking
        ends.append(state.position)
    assert torch.equal(*ends)


def test_an_early_decision_sees_the_way_of_the_last_half_second(monkeypatch):
    world, car, seen = LearnedWorld(tiny_model()), KinematicBicycle(), []
    advance = world.model.advance
    monkeypatch.setattr(world.model, "advance", lambda agents, *rest: seen.append(agents) or advance(agents, *rest))
    state = world.reset(straight_road(ego_speed=10.0), torch.tensor([7]))
    for _ in range(3):
        state = world.step(state, car.step(state.ego(), torch.tensor([[-8.0, 0.0]])))
    assert len(seen) == 4, "the past, the present, the early one, and the same with the ego as it was expected"
    early, expected = seen[2:]
    ten = torch.tensor(10.0)
    assert torch.allclose(expected.velocity[0, EGO, 0].norm(), ten)
    assert torch.allclose(expected.pose[0, EGO, 0, 0] - state.scene.position[0, EGO, 10, 0], 0.2 * ten)
    assert torch.allclose(early.before[0, :, 0, :2], state.scene.position[0, :, 7, :2]), "0.5 s before 0.2 s after the present"
    assert early.known[0, EGO, 0]
    assert torch.allclose(early.velocity[0, EGO, 0].norm(), torch.tensor(10.0 - 0.2 * 8.0))


def test_an_early_decision_changes_the_plans_of_those_whom_it_concerns_alone(monkeypatch):
    world, car = LearnedWorld(tiny_model()), KinematicBicycle()
    state = world.reset(straight_road(ego_speed=10.0), torch.tensor([7]))
    for _ in range(2):
        state = world.step(state, car.step(state.ego(), torch.tensor([[-8.0, 0.0]])))
    scores = torch.zeros(1, 6, len(world.model.vocabulary))
    changed = scores.clone()
    changed[0, FOLLOWER, 3] = 9.0
    given = iter(((changed, None), (scores, None)))
    monkeypatch.setattr(world, "_scores", lambda state: next(given))
    after = world._decide(state, early=True)
    same = (after.memory["plan"] == state.memory["plan"]).all(-1)[0]
    assert same[torch.arange(6) != FOLLOWER].all()
    assert same[FOLLOWER].tolist() == [True, True, False, False, False], "what is past is past"
    pose = torch.cat((state.position[0, FOLLOWER, :2], state.heading[0, FOLLOWER, None]))
    wanted = world.model.vocabulary.decode(torch.tensor(3), pose)
    assert torch.allclose(after.memory["plan"][0, FOLLOWER, 2:], wanted[:3])


def test_a_world_that_drives_the_ego_itself_is_not_surprised_by_it():
    world = LearnedWorld(tiny_model())
    state = world.reset(straight_road(ego_speed=10.0), torch.tensor([7]))
    for step in range(20):
        state = world.step(state, None)
        assert int(state.memory["planned"]) == step // 5 * 5


def test_a_moved_scene_has_the_same_futures_up_to_the_motion():
    world, scenes = WORLDS[0], several_roads(3)
    angle, shift = 0.8, (30.0, -12.0)
    plain = run(world, scenes, 40).position[..., :2]
    turned = run(world, moved(scenes, angle, shift), 40).position[..., :2]
    assert torch.allclose(rotate(plain, torch.tensor(angle)) + torch.tensor(shift), turned, atol=0.02)


def test_everyone_but_ego_and_objects_is_simulated():
    state = run(WORLDS[0], straight_road(), 6)
    assert not state.simulated[0, [EGO, CONE]].any()
    assert state.simulated.sum() == 4
    assert torch.equal(state.position[0, CONE], straight_road().position[0, CONE, 10])


def test_heights_are_kept_and_velocity_is_the_movement():
    before = run(WORLDS[0], straight_road(), 7)
    after = run(WORLDS[0], straight_road(), 1, state=before)
    assert torch.equal(after.position[..., 2], before.position[..., 2])
    travelled = (after.position - before.position)[..., :2] / 0.1
    assert torch.allclose(after.velocity[0, FOLLOWER], travelled[0, FOLLOWER], atol=1e-4)


def test_replay_is_the_log_and_ends_with_it():
    scene = straight_road(steps=16)
    world = ReplayWorld()
    assert world.horizon(scene).tolist() == [5]
    state = run(world, scene, 5)
    assert torch.equal(state.position, scene.position[:, :, 15])
    with pytest.raises(ValueError, match="replay cannot go on after 5 steps"):
        run(world, scene, 1, state=state)


def test_bad_ego_motion_is_refused():
    state = ReplayWorld().reset(straight_road(), torch.tensor([0]))
    ego = replace(state.ego(), heading=torch.tensor([float("nan")]))
    with pytest.raises(ValueError, match="found NaN or infinity"):
        ReplayWorld().step(state, ego)


def test_keys_come_from_the_generator_and_are_checked():
    draw = [random_keys(torch.Generator().manual_seed(3), 4) for _ in range(2)]
    assert torch.equal(*draw)
    with pytest.raises(ValueError, match="key: found"):
        ReplayWorld().reset(straight_road(), torch.zeros(2, dtype=torch.int64))


def test_constant_velocity_has_no_error_where_velocity_is_constant():
    scene = straight_road()
    futures = simulate(ConstantVelocityWorld(), scene, 2, 30, torch.Generator().manual_seed(0))
    error, counted = min_average_displacement(futures, scene, 30)
    assert counted[0].tolist() == [False, True, True, True, True, False]
    assert error[counted].max() < 1e-3
    assert torch.equal(counted, scored_agents(scene))


def test_whom_a_data_set_names_is_scored_if_it_is_there():
    scene = straight_road()
    named = torch.zeros_like(scene.valid[..., 0])
    named[0, [LEADER, CONE]] = True
    valid = scene.valid.clone()
    valid[0, CONE, HISTORY_STEPS] = False
    assert scored_agents(replace(scene, to_predict=named, valid=valid))[0].nonzero()[:, 0].tolist() == [LEADER]
    both = stack([replace(scene, to_predict=named), scene])
    assert scored_agents(both)[0].nonzero()[:, 0].tolist() == [LEADER, CONE]
    assert torch.equal(scored_agents(both)[1], scored_agents(scene)[0])


def test_worlds_that_predict_do_not_see_how_signals_go_on():
    """The signal of the road turns green 3 s after the present: with that hidden it stays as it is."""
    scene = straight_road()
    hidden = without_later_signals(scene)
    assert torch.equal(hidden.signal_valid[..., : HISTORY_STEPS + 1], scene.signal_valid[..., : HISTORY_STEPS + 1])
    assert not hidden.signal_valid[..., HISTORY_STEPS + 1 :].any()
    seen = []

    class Watch(ConstantVelocityWorld):
        def step(self, state, ego):
            seen.append(state.signal_state[0].tolist())
            return super().step(state, ego)

    simulate(Watch(), scene, 1, 60, torch.Generator().manual_seed(0))
    assert seen == [[SignalState.STOP]] * 60


@pytest.mark.parametrize("drive_ego", [False, True])
def test_worlds_that_are_scored_do_not_see_the_log_beyond_the_present(drive_ego: bool):
    """A world that looks there finds nobody and zeros, and the ego on its log is moved all the same."""
    scene, seen = straight_road(), []

    class Peeps(ConstantVelocityWorld):
        def step(self, state, ego):
            later = slice(HISTORY_STEPS + 1, None)
            log = state.scene
            seen.append(
                [bool(log.valid[:, :, later].any()), *(float(t[:, :, later].abs().max()) for t in (log.position, log.heading))]
            )
            return super().step(state, ego)

    futures = simulate(Peeps(), scene, 1, 3, torch.Generator().manual_seed(0), drive_ego)
    assert seen == [[False, 0.0, 0.0]] * 3
    if not drive_ego:
        assert torch.equal(futures.position[0, 0, EGO], scene.position[0, EGO, HISTORY_STEPS + 1 : HISTORY_STEPS + 4])


def test_who_is_not_there_at_the_present_is_not_simulated():
    scene = straight_road()
    valid = scene.valid.clone()
    valid[0, FOLLOWER, HISTORY_STEPS] = False
    order = torch.tensor([FOLLOWER, LEADER, EGO, PEDESTRIAN, NEIGHBOUR, CONE])
    names = [name for name, (letters, _) in LAYOUT.items() if letters[:2] == ("B", "A")]
    scene = replace(scene, valid=valid)
    scene = replace(scene, ego=torch.tensor([2]), **{name: getattr(scene, name)[:, order] for name in names})
    left = present_agents(scene).validate()
    assert left.ego.tolist() == [1]
    assert torch.equal(left.position, scene.position[:, 1:])


def test_min_average_displacement_by_hand():
    scene = straight_road()
    futures = simulate(ConstantVelocityWorld(), scene, 2, 10, torch.Generator().manual_seed(0))
    futures.position[0, 0] += torch.tensor([3.0, 4.0, 0.0])
    futures.position[0, 1, :, 5:, 1] += 2.0  # the better one: 2 m off in half of the steps
    error, counted = min_average_displacement(futures, scene, 10)
    assert torch.allclose(error[counted], torch.tensor(1.0), atol=1e-3)


def test_a_state_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "state"
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_state(path)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_none_is_refused(temperature):
    with pytest.raises(ValueError, match="wanted temperature > 0 and 0 <= epsilon < 1"):
        LearnedWorld(tiny_model(), temperature=temperature)


def test_shipped_weights_have_names(tmp_path, monkeypatch):
    """None and the sizes name what the package brings; a folder of such a name in the working directory goes first."""
    monkeypatch.chdir(tmp_path)
    assert model_folder(None) == SHIPPED_WEIGHTS
    counts = [sum(p.numel() for p in LearnedWorld.from_pretrained(size).model.parameters()) for size in ("small", None, "large")]
    assert counts == sorted(set(counts))
    with pytest.raises(ValueError, match="runs/mine: no such folder of weights; by name there are small and large"):
        model_folder("runs/mine")
    (tmp_path / "small").mkdir()
    assert model_folder("small") == SIZES["small"], "a folder without weights hides no name"
    (tmp_path / "small" / "config.json").write_text("{}")
    assert str(model_folder("small")) == "small"
