"""The measures behind nuPlan's and NAVSIM's scores, on scenes drawn by hand."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scenes import CONE, EGO, FOLLOWER, LANE_WIDTH, LEADER, LEFT_EDGE, NEIGHBOUR, several_roads, straight_road
from worldloop.envs.ground import ground, lane_place
from worldloop.envs.measures import EgoPast, at_fault, ego_measures, next_past, start_past
from worldloop.worldmodel.geometry import box_corners, boxes_overlap, overlap_times
from worldloop.worldmodel.scene import PolylineKind, Scene
from worldloop.worldmodel.world import Motion, State, logged_state, place_ego


def start(scene: Scene | None = None) -> State:
    scene = scene or straight_road()
    return logged_state(scene, torch.zeros(len(scene), dtype=torch.int64))


def put(state: State, agent: int, x: float, y: float, speed: float, heading: float = 0.0) -> State:
    """Return the state with one agent somewhere else."""
    position, angle, velocity = state.position.clone(), state.heading.clone(), state.velocity.clone()
    position[0, agent, :2] = torch.tensor([x, y])
    angle[0, agent] = heading
    velocity[0, agent] = speed * torch.tensor([math.cos(heading), math.sin(heading)])
    return replace(state, position=position, heading=angle, velocity=velocity)


def alone(state: State, *agents: int) -> State:
    """Return the state with nobody but the ego and `agents`."""
    valid = torch.zeros_like(state.valid)
    valid[0, [EGO, *agents]] = True
    return replace(state, valid=valid)


def step(past: EgoPast, state: State) -> EgoPast:
    return next_past(past, state, ground(state.scene))


def measured(*states: State) -> dict[str, float]:
    """Return the measures at the last of several moments."""
    past = start_past(states[0], ground(states[0].scene))
    for state in states[1:]:
        past = step(past, state)
    return {name: value[0].item() for name, value in ego_measures(states[-1], past).items()}


@pytest.mark.parametrize(
    ("gap", "seconds", "safe"),
    [(25.0, 2.1, True), (4.5 + 9.4, 1.0, True), (4.5 + 8.9, 0.9, False), (4.5 + 30.1, 3.0, True)],
)
def test_time_to_collision_with_who_stands_ahead(gap, seconds, safe):
    state = alone(put(start(), LEADER, gap, 0.0, 0.0), LEADER)  # the gap less 4.5 m of car, at 10 m/s, in steps of 0.1 s
    found = measured(state, state)
    assert found["time_to_collision"] == pytest.approx(seconds)
    assert found["safe_time_to_collision"] is safe


def test_nobody_is_met_at_the_same_speed_or_when_standing():
    state = alone(start(), LEADER, FOLLOWER)
    assert measured(state, state)["time_to_collision"] == 3.0
    standing = put(alone(put(start(), FOLLOWER, -8.0, 0.0, 10.0), FOLLOWER), EGO, 0.0, 0.0, 0.0)
    assert measured(standing, standing)["time_to_collision"] == 3.0


def test_who_crosses_from_the_side_counts_only_where_the_ego_is_not_within_one_lane():
    state = alone(put(start(), NEIGHBOUR, 1.0, 4.5, 8.0, heading=-0.5 * math.pi), NEIGHBOUR)  # 77 degrees to the left
    assert measured(state, state)["time_to_collision"] == 3.0
    strayed = put(state, EGO, 0.0, 1.0, 10.0)
    assert measured(strayed, strayed)["time_to_collision"] < 0.2
    behind = alone(put(put(start(), FOLLOWER, -6.0, 1.0, 20.0), EGO, 0.0, 1.0, 10.0), FOLLOWER)
    assert measured(behind, behind)["time_to_collision"] == 3.0


def test_a_front_bumper_in_a_moving_box_is_the_egos_fault_once():
    state = alone(start(), LEADER)
    hit = put(state, LEADER, 4.0, 0.0, 5.0)
    found = measured(state, hit)
    assert found["at_fault_collision"] == 1
    assert found["at_fault_object"] == 0
    assert found["safe_time_to_collision"] is False
    later = measured(state, hit, hit)
    assert later["collision"] is True
    assert later["at_fault_collision"] == 0


def test_it_is_never_at_fault_when_run_into_or_when_standing():
    state = alone(start(), FOLLOWER)
    assert measured(state, put(state, FOLLOWER, -4.0, 0.0, 15.0))["at_fault_collision"] == 0
    state = alone(put(start(), EGO, 0.0, 0.0, 0.0), LEADER)
    assert measured(state, put(state, LEADER, 4.0, 0.0, 5.0))["at_fault_collision"] == 0


def test_who_stands_is_always_hit_by_fault():
    state = alone(start(), FOLLOWER)
    assert measured(state, put(state, FOLLOWER, -4.0, 0.0, 0.0))["at_fault_collision"] == 1


@pytest.mark.parametrize(("y", "fault"), [(0.0, False), (0.84, False), (0.86, True), (-1.2, True)])
def test_beside_each_other_the_fault_is_of_who_is_not_within_one_lane(y, fault):
    state = alone(put(start(), EGO, 0.0, y, 10.0), NEIGHBOUR)  # 1.75 m of half a lane less 0.9 m of half a car: 0.85 m
    assert measured(state, put(state, NEIGHBOUR, -0.5, y + 1.7, 10.0))["at_fault_collision"] == int(fault)


def test_objects_are_told_from_road_users():
    state = alone(start(), CONE)
    found = measured(state, put(state, EGO, 39.0, -2.0, 10.0))
    assert found["at_fault_object"] == 1
    assert found["at_fault_collision"] == 0


def test_boxes_that_overlap_at_the_reset_are_nobodys_fault():
    state = alone(put(start(), LEADER, 4.0, 0.0, 5.0), LEADER)
    found = measured(state, state)
    assert found["collision"] is True
    assert found["at_fault_collision"] == 0


def test_metres_against_the_flow_are_those_of_the_last_second():
    states = [alone(put(start(), EGO, 100.0 - i, 3.0, 10.0, heading=math.pi)) for i in range(16)]
    assert measured(*states[:4])["against_flow"] == pytest.approx(3.0)
    assert measured(*states)["against_flow"] == pytest.approx(10.0)
    assert measured(*states, *[alone(put(start(), EGO, 90.0 + i, 3.0, 10.0)) for i in range(4)])["against_flow"] == pytest.approx(
        6.0
    )


def test_off_the_lanes_nothing_is_against_the_flow():
    state = alone(put(start(), EGO, 50.0, LEFT_EDGE + 8.0, 10.0, heading=math.pi))
    assert measured(state, state)["against_flow"] == 0.0


def test_overspeed_is_measured_against_the_lane():
    state = alone(put(start(), EGO, 0.0, 0.0, 15.9))
    found = measured(state, state)
    assert found["overspeed"] == pytest.approx(2.0, abs=1e-5)
    assert found["within_speed_limit"] == pytest.approx(1 - 2.0 / 2.23, abs=1e-5)
    assert measured(alone(start()), alone(start()))["within_speed_limit"] == 1.0
    scene = replace(straight_road(), speed_limit_valid=torch.zeros(1, 6, dtype=torch.bool))
    state = alone(put(start(scene), EGO, 0.0, 0.0, 40.0))
    assert measured(state, state)["overspeed"] == 0.0


def test_a_lane_is_not_kept_after_two_seconds_beside_its_middle():
    off = alone(put(start(), EGO, 0.0, 0.6, 10.0))
    assert measured(*[off] * 20)["lane_keeping"] is True  # 19 steps
    assert measured(*[off] * 21)["lane_keeping"] is False
    back = alone(start())
    assert measured(*[off] * 15, back, *[off] * 15)["lane_keeping"] is True
    assert measured(off, off)["lane_offset"] == pytest.approx(0.6)


def test_in_a_junction_no_lane_has_to_be_kept():
    scene = straight_road()
    kind = scene.polyline_kind.clone()
    kind[0, 0] = int(PolylineKind.JUNCTION_LANE)
    off = alone(put(start(replace(scene, polyline_kind=kind)), EGO, 0.0, 0.6, 10.0))
    assert measured(*[off] * 30)["lane_keeping"] is True


def test_a_red_light_is_run_by_the_front_bumper():
    before, after = (alone(put(start(), EGO, x - 2.25, 0.0, 10.0)) for x in (79.5, 80.5))
    assert measured(before, after)["red_light"] is True
    assert measured(before, after, after)["red_light"] is False
    green = replace(after, signal_state=torch.full_like(after.signal_state, 3))
    assert measured(before, green)["red_light"] is False
    beside = [alone(put(start(), EGO, x - 2.25, 0.0, 10.0)) for x in (78.5, 79.5)]
    assert measured(*beside)["red_light"] is False


def test_the_experts_progress_is_what_the_log_drove():
    state = start()
    states = [replace(state, step=torch.tensor([i])) for i in range(90)]
    assert measured(*states[:11])["expert_progress"] == pytest.approx(10.0, abs=1e-3)
    assert measured(*states)["expert_progress"] == pytest.approx(80.0, abs=1e-3)  # the log ends after 80 steps
    moved_on = alone(put(start(), EGO, 1.0, 0.0, 10.0))
    assert measured(state, moved_on)["progress_share"] == pytest.approx(1 / 80, abs=1e-5)


def test_the_experts_way_is_route_and_not_path():
    scene = straight_road()
    ahead = torch.arange(scene.steps) - 10  # steps from the present
    still = scene.position.clone()
    still[0, EGO, :, :2] = torch.stack((0.0 * ahead, 0.1 * (-1.0) ** ahead), dim=-1)  # stands, its label swings by 0.2 m a step
    assert start_past(start(replace(scene, position=still)), ground(scene)).expert.abs().max().item() < 1e-4
    swerve = scene.position.clone()
    swerve[0, EGO, :, 1] = 0.5 * torch.sin(ahead * 0.3)  # 1 m a step ahead, whatever it does beside
    swerving = replace(scene, position=swerve)
    assert start_past(start(swerving), ground(swerving)).expert[0, -1].item() == pytest.approx(80.0, abs=1e-3)
    hidden = scene.valid.clone()
    hidden[0, EGO, 15:18] = False
    hidden[0, EGO, 31:] = False
    way = start_past(start(replace(scene, valid=hidden)), ground(scene)).expert[0]
    assert way[[4, 5, 7, 8, 20, 21, -1]].tolist() == pytest.approx([4.0, 4.0, 4.0, 8.0, 20.0, 20.0, 20.0], abs=1e-3)
    short = replace(scene, route_valid=torch.arange(101)[None] < 12)  # to x = 2
    assert start_past(start(short), ground(short)).expert[0, -1].item() == pytest.approx(2.0, abs=1e-3)


def test_where_a_map_has_no_lanes_the_route_stands_for_one():
    scene = straight_road()
    kind = torch.full_like(scene.polyline_kind, int(PolylineKind.LANE_MARKING))
    both = replace(several_roads(1), id=("hand/lanes",)), replace(scene, polyline_kind=kind)
    for scene, width in zip(both, (2, 1), strict=True):
        lanes = ground(scene).lanes
        size = scene.size[:, EGO]
        at = lambda y: Motion(torch.tensor([[0.0, y, 0.0]]), torch.zeros(1), torch.tensor([[10.0, 0.0]]))  # noqa: E731
        assert lane_place(lanes, at(0.5), size).offset.item() == pytest.approx(0.5)
        assert lane_place(lanes, at(0.5), size).within_one.item() is True
        second = lane_place(lanes, at(LANE_WIDTH), size).within_one.item()
        assert second is (width == 2)


@settings(max_examples=100, deadline=None)
@given(
    x=st.floats(-30.0, 30.0),
    y=st.floats(-10.0, 10.0),
    turn=st.floats(-3.0, 3.0),
    velocity=st.tuples(st.floats(-20.0, 20.0), st.floats(-20.0, 20.0)),
)
def test_overlap_times_agree_with_moving_the_boxes(x, y, turn, velocity):
    size, towards = torch.tensor([4.5, 1.8]), torch.tensor(velocity)
    ours = box_corners(torch.zeros(2), torch.tensor(0.0), size)
    theirs = box_corners(torch.tensor([x, y]), torch.tensor(turn), size)
    first, last = overlap_times(ours, theirs, towards)
    times = torch.linspace(-4.0, 4.0, 161)
    overlap = boxes_overlap(ours, theirs + times[:, None, None] * towards)
    inside, outside = (times > first + 1e-3) & (times < last - 1e-3), (times < first - 1e-3) | (times > last + 1e-3)
    assert overlap[inside].all()
    assert not overlap[outside].any()


def test_a_batch_gives_each_scene_what_it_gets_alone():
    scenes = several_roads()
    together = start(scenes)
    moved_on = place_ego(together, replace(together.ego(), position=together.ego().position + 0.5))
    past = start_past(together, ground(scenes))
    batch = ego_measures(moved_on, step(past, moved_on))
    for row in range(len(scenes)):
        one, after = together.take([row]), moved_on.take([row])
        single = ego_measures(after, step(start_past(one, ground(one.scene)), after))
        for name, value in single.items():
            torch.testing.assert_close(batch[name][row : row + 1], value, msg=lambda text, name=name: f"{name}: {text}")
    assert at_fault(moved_on, step(past, moved_on)).shape == together.valid.shape
