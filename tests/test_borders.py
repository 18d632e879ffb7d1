"""Open borders on roads whose answer is known, and what holds whatever happens."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from models import tiny_model
from scenes import CONE, EGO, FOLLOWER, LEADER, NEIGHBOUR, PEDESTRIAN, moved, several_roads, straight_road
from worldloop.envs import DriveVectorEnv, open_world
from worldloop.worldmodel.borders import OpenBorders, entrances, in_known_area
from worldloop.worldmodel.geometry import box_corners, boxes_overlap
from worldloop.worldmodel.idm import IdmWorld
from worldloop.worldmodel.scene import AgentKind, PolylineKind, Scene, SignalState, stack
from worldloop.worldmodel.state_file import load_state, save_state
from worldloop.worldmodel.uncertainty import Calibration
from worldloop.worldmodel.world import (
    ConstantVelocityWorld,
    LearnedWorld,
    ReplayWorld,
    State,
    random_keys,
)

INNER = [LearnedWorld(tiny_model()), IdmWorld(), ConstantVelocityWorld()]


def keys(count: int, seed: int = 0) -> torch.Tensor:
    return random_keys(torch.Generator().manual_seed(seed), count)


def run(world, scenes: Scene, steps: int, state: State | None = None) -> list[State]:
    states = [world.reset(scenes, keys(len(scenes))) if state is None else state]
    for _ in range(steps):
        states.append(world.step(states[-1], None))
    return states


def straight_on(**options) -> list[State]:
    """20 s at constant velocity: the leader passes the end of its lane (x = 200, from x = 25 at 10 m/s) after 17.5 s."""
    return run(OpenBorders(ConstantVelocityWorld()), straight_road(**options), 200)


def test_leaving_and_entering_by_hand():
    states = straight_on()
    valid = torch.stack([state.valid[0, LEADER] for state in states])
    # 2 m past the end, after 17.7 s; the borders open every half second, so at 18.0 s, and again at 18.5 s.
    assert valid[:180].all()
    assert not valid[180:185].any()
    assert valid[185]
    entered = states[185]
    place, speed = entered.position[0, LEADER], entered.velocity[0, LEADER]
    assert place[0].item() == -60  # the start of a lane
    assert place[1].item() in (0.0, 3.5)
    assert place[2].item() == pytest.approx(0.75)  # half its height above the road
    torch.testing.assert_close(speed, torch.tensor([13.9, 0.0]))  # nobody was logged near there: the limit
    assert entered.heading[0, LEADER] == 0
    assert entered.memory["border_entries"][0].tolist() == [0, 1, 0, 0, 0, 0]
    assert states[190].position[0, LEADER, 0].item() == pytest.approx(-60 + 0.5 * 13.9, abs=1e-3)


def test_speed_and_demand_are_those_that_the_log_shows():
    """The follower is logged between x = -40 and 60: within 30 m of the start of its lane, and of the other lane too."""
    memory = straight_on(follower_gap=40.0)[0].memory
    weight, speed = (memory[f"border_{name}"][0, :, AgentKind.VEHICLE] for name in ("weight", "speed"))
    assert weight.tolist()[:4] == [2.0, 2.0, 0.0, 0.0]
    assert speed[:2].tolist() == pytest.approx([10.0, 10.0])


def test_the_ego_and_objects_never_leave():
    for state in straight_on(ego_speed=15.0):
        assert state.valid[0, [EGO, CONE]].all()


def test_who_has_gone_far_from_everything_leaves():
    """The pedestrian was logged until y = 2; nothing is mapped beyond the edge at y = 5.25 + 15."""
    walking = straight_road()
    walking = replace(walking, velocity=walking.velocity.index_fill(1, torch.tensor([NEIGHBOUR]), 0.0))
    states = run(OpenBorders(ConstantVelocityWorld()), walking, 290)
    valid = torch.stack([state.valid[0, PEDESTRIAN] for state in states])
    assert valid[:262].all()  # y = -6 + 26.2
    assert not valid[265:270].any()
    again = states[-1]
    assert again.valid[0, PEDESTRIAN]  # no walkway, no late comer: it enters where the log first saw one that moved
    assert again.memory["border_entries"][0, PEDESTRIAN] == 1
    assert again.position[0, PEDESTRIAN, 1] < 0


def test_who_stands_in_a_collision_is_cleared_away():
    """The leader came to stand in the neighbour's box; the same boxes that overlap since the start are left alone."""
    scene, world = straight_road(), OpenBorders(ConstantVelocityWorld())
    start = world.reset(scene, keys(1))
    position, velocity = start.position.clone(), start.velocity.clone()
    position[0, LEADER] = torch.tensor([40.0, 3.5, 0.75])
    position[0, NEIGHBOUR] = torch.tensor([42.0, 3.5, 0.75])
    velocity[0, [LEADER, NEIGHBOUR]] = 0.0
    states = run(world, scene, 40, replace(start, position=position, velocity=velocity))
    valid = torch.stack([state.valid[0, [LEADER, NEIGHBOUR]] for state in states])
    assert valid[:30].all()
    assert not valid[30:35].any()
    logged = scene.position.clone()
    logged[0, :, 10] = position[0]
    since = run(world, replace(scene, position=logged), 40, replace(states[0], scene=replace(scene, position=logged)))
    assert since[-1].valid[0, [LEADER, NEIGHBOUR]].all()


def test_entrances_are_the_ends_of_the_map_and_where_the_log_saw_somebody_come():
    scene = straight_road()
    lines = scene.polyline_kind.shape[1]
    linked = replace(scene, lane_link_kind=torch.zeros_like(scene.lane_link_kind))  # each lane follows the other
    assert entrances(scene)[1][0, :lines, AgentKind.VEHICLE].nonzero()[:, 0].tolist() == [0, 1]
    assert not entrances(linked)[1][0, :lines].any()
    late = linked.valid.clone()
    late[:, NEIGHBOUR, :30] = False
    entry, allowed, _ = entrances(replace(linked, valid=late))
    assert allowed[0, ..., AgentKind.VEHICLE].nonzero()[:, 0].tolist() == [2 * lines + NEIGHBOUR]
    torch.testing.assert_close(entry[0, 2 * lines + NEIGHBOUR], torch.tensor([10 + 8 * 2.0, 3.5, 0.0, 0.0]))
    walkway = scene.polyline_kind.clone()
    walkway[0, 2] = int(PolylineKind.WALKWAY)
    allowed = entrances(replace(scene, polyline_kind=walkway))[1][0, ..., AgentKind.PEDESTRIAN]
    assert allowed.nonzero()[:, 0].tolist() == [2, lines + 2]


def test_nobody_enters_where_there_is_no_room():
    """The follower stands at the start of one lane, the neighbour at that of the other."""
    scene = straight_road(follower_gap=55.0)
    position, velocity = scene.position.clone(), scene.velocity.clone()
    position[:, FOLLOWER] = torch.tensor([-55.0, 0.0, 0.75])
    position[:, NEIGHBOUR] = torch.tensor([-55.0, 3.5, 0.75])
    velocity[:, [FOLLOWER, NEIGHBOUR]] = 0.0
    states = run(OpenBorders(ConstantVelocityWorld()), replace(scene, position=position, velocity=velocity), 220)
    assert not torch.stack([state.valid[0, LEADER] for state in states[180:]]).any()


def busy_roads() -> Scene:
    """Four roads with a green light, on which much leaves within 20 s."""
    scene = several_roads(4)
    return replace(scene, signal_state=torch.full_like(scene.signal_state, int(SignalState.GO)))


@pytest.mark.parametrize("inner", INNER, ids=lambda world: type(world).__name__)
def test_what_holds_whatever_happens(inner):
    states = run(OpenBorders(inner), busy_roads(), 250)
    entries = states[-1].memory["border_entries"]
    assert entries.sum() > 0
    assert (entries[:, [EGO, CONE]] == 0).all()
    for before, after in zip(states[:-1], states[1:], strict=True):
        stays = before.valid & after.valid
        step = (after.position - before.position)[..., :2].norm(dim=-1)
        assert (step[stays] < 4.0).all()  # nobody jumps: a place is empty between two road users
        enters = after.valid & ~before.valid
        corners = box_corners(after.position, after.heading, after.scene.size)
        overlap = boxes_overlap(corners[:, :, None], corners[:, None]) & after.valid[:, None] & ~torch.eye(6, dtype=torch.bool)
        assert not (overlap.any(-1) & enters).any()
        away = (after.position - after.ego().position[:, None])[..., :2].norm(dim=-1)
        assert (away[enters] > 25).all()
        assert in_known_area(after)[enters].all()
        assert (after.valid.sum(-1) <= before.scene.valid[:, :, 10].sum(-1)).all()
        for tensor in (after.position, after.heading, after.velocity):
            assert tensor.isfinite().all()


@pytest.mark.parametrize("inner", INNER, ids=lambda world: type(world).__name__)
def test_rows_are_alone_and_runs_are_the_same_again(inner):
    scenes, world = busy_roads(), OpenBorders(inner)
    together = run(world, scenes, 200)
    assert together[-1].memory["border_entries"].sum() > 0
    again = run(world, scenes, 200)[-1]
    torch.testing.assert_close(again.position, together[-1].position, rtol=0, atol=0)
    assert torch.equal(again.valid, together[-1].valid)
    for row in (0, 3):
        state = world.reset(scenes.take([row]), keys(4)[row : row + 1])
        for _ in range(200):
            state = world.step(state, None)
        assert torch.equal(state.valid, together[-1].valid[row : row + 1])
        torch.testing.assert_close(state.position, together[-1].position[row : row + 1], rtol=0, atol=1e-3)


def test_a_learned_entrant_remembers_nothing_of_who_had_its_place():
    world, scenes = OpenBorders(LearnedWorld(tiny_model())), busy_roads()
    states = run(world, scenes, 250)
    found = 0
    for before, after in zip(states[:-1], states[1:], strict=True):
        enters = after.valid & ~before.valid
        assert (after.step[enters.any(-1)] % 5 == 0).all()
        assert not after.memory["cache_valid"][enters].any()
        assert not after.memory["recent_valid"][enters].any()
        assert not after.memory["spread"][enters].any()
        assert torch.equal(after.memory["entered"][enters], after.step[:, None].expand_as(enters)[enters])
        found += int(enters.sum())
    assert found > 0


def test_states_are_branched_and_saved(tmp_path):
    world, scenes = OpenBorders(LearnedWorld(tiny_model())), busy_roads()
    middle = run(world, scenes, 200)[-1]
    save_state(middle, tmp_path / "state.safetensors")
    on = run(world, scenes, 60, middle)[-1]
    loaded = run(world, scenes, 60, load_state(tmp_path / "state.safetensors"))[-1]
    assert torch.equal(on.position, loaded.position)
    branches = run(world, scenes, 60, middle.take([1]).repeat(2))[-1]
    assert torch.equal(branches.position[0], branches.position[1])
    swapped = middle.put([0], middle.take([2]))
    assert torch.equal(swapped.memory["border_entries"][0], middle.memory["border_entries"][2])


def test_turned_and_shifted_roads_give_the_same_coming_and_going():
    one = run(OpenBorders(IdmWorld()), straight_road(), 300)[-1]
    other = run(OpenBorders(IdmWorld()), moved(straight_road(), 0.6, (50.0, -20.0)), 300)[-1]
    assert torch.equal(one.memory["border_entries"], other.memory["border_entries"])


def test_a_scene_without_a_map_keeps_going():
    scene = straight_road()
    bare = replace(
        scene,
        polyline=scene.polyline[:, :0],
        polyline_valid=scene.polyline_valid[:, :0],
        polyline_kind=scene.polyline_kind[:, :0],
        lane_width=scene.lane_width[:, :0],
        speed_limit=scene.speed_limit[:, :0],
        speed_limit_valid=scene.speed_limit_valid[:, :0],
        lane_link=scene.lane_link[:, :0],
        lane_link_kind=scene.lane_link_kind[:, :0],
        lane_link_valid=scene.lane_link_valid[:, :0],
        signal_valid=scene.signal_valid & False,
    )
    for inner in INNER:
        assert run(OpenBorders(inner), bare, 200)[-1].memory["border_entries"].sum() > 0


def test_worlds_by_name_and_what_is_refused():
    assert isinstance(open_world("learned_open"), OpenBorders)
    with pytest.raises(ValueError, match="log replay"):
        OpenBorders(ReplayWorld())


def test_what_the_inner_world_knows_of_its_uncertainty_is_told():
    assert OpenBorders(LearnedWorld(tiny_model(), calibration=Calibration(0.0, 0.0, 1.0))).calibrated
    assert not OpenBorders(LearnedWorld(tiny_model())).calibrated
    assert not OpenBorders(IdmWorld()).calibrated


def test_an_entrant_is_as_unsure_as_one_that_has_just_begun():
    """With an error that equals the time, everyone is as many metres unsure as it is seconds on the road."""
    world, scenes = OpenBorders(LearnedWorld(tiny_model(), calibration=Calibration(0.0, 0.0, 1.0))), busy_roads()
    last = run(world, scenes, 250)[-1]
    again = last.simulated & (last.memory["border_entries"] > 0)
    assert again.any()
    seconds = 0.1 * (last.step[:, None] - last.memory["entered"])
    torch.testing.assert_close(last.uncertainty[again], seconds[again], rtol=1e-4, atol=1e-4)
    assert (last.uncertainty[again] < 24.0).all()


def test_padding_of_the_map_changes_nobodys_coming():
    """Neither where lanes are the entrances nor where places of the log are, whose numbers follow those of lanes."""
    roads = busy_roads()
    bare = replace(roads, polyline_valid=roads.polyline_valid & False, lane_link_valid=roads.lane_link_valid & False)
    for inner, scenes in ((ConstantVelocityWorld(), roads), (IdmWorld(), roads), (ConstantVelocityWorld(), bare)):
        padded = scenes.pad({"L": scenes.polyline.shape[1] + 20})
        one, other = (run(OpenBorders(inner), each, 250)[-1] for each in (scenes, padded))
        assert one.memory["border_entries"].sum() > 0
        assert torch.equal(one.memory["border_entries"], other.memory["border_entries"])
        torch.testing.assert_close(one.position, other.position, rtol=0, atol=1e-3)


def test_who_has_left_is_not_unsure():
    world, scenes = OpenBorders(LearnedWorld(tiny_model(), calibration=Calibration(0.0, 0.0, 1.0))), busy_roads()
    states, gone = run(world, scenes, 250), 0
    for state in states:
        assert not state.uncertainty[~state.valid].any()
        gone += int((state.memory["border_place"] & ~state.valid).sum())
    assert gone > 0


def test_rules_begin_anew_in_environments():
    """Rows of a reset must fit those that go on, however long the ways of each are."""
    road = straight_road()
    both = stack([road, replace(road, polyline_valid=road.polyline_valid & False)])  # with lanes, and with none to follow
    memory = [IdmWorld().reset(both.take(rows), keys(len(rows))).memory for rows in ([0, 1], [0], [1])]
    assert len({each["path"].shape[1:] for each in memory}) == 1
    for world in (IdmWorld(), OpenBorders(IdmWorld())):
        env = DriveVectorEnv(2, busy_roads(), world, horizon=7, terminate_on=())
        env.reset(seed=0)
        for _ in range(60):
            env.step(env.action_space.sample())
        env.close()


def test_environments_run_in_open_borders():
    """Also after some sub-environments begin anew, when the borders open at other steps for each row."""
    env = DriveVectorEnv(2, busy_roads(), OpenBorders(LearnedWorld(tiny_model())), horizon=13, terminate_on=())
    env.reset(seed=0)
    env.step(env.action_space.sample())
    env.reset(seed=0, options={"reset_mask": torch.tensor([True, False]).numpy()})
    for _ in range(40):
        env.step(env.action_space.sample())
    env.close()
