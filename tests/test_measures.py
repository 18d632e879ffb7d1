import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scenes import CONE, EGO, LEADER, LEFT_EDGE, RIGHT_EDGE, moved, several_roads, straight_road
from scipy.signal import savgol_filter
from worldloop.envs.ground import edge_distance, ground
from worldloop.envs.measures import EgoPast, ego_comfort, ego_measures, ego_overlaps, next_past, route_place, start_past
from worldloop.worldmodel.geometry import signed_distance_to_edges
from worldloop.worldmodel.scene import Scene
from worldloop.worldmodel.world import Motion, State, logged_state, place_ego


def start(scene: Scene) -> State:
    return logged_state(scene, torch.zeros(len(scene), dtype=torch.int64))


def begun(state: State) -> EgoPast:
    return start_past(state, ground(state.scene))


def gone_on(past: EgoPast, state: State) -> EgoPast:
    return next_past(past, state, ground(state.scene))


def measured(state: State, moved_on: State) -> dict[str, torch.Tensor]:
    return ego_measures(moved_on, gone_on(begun(state), moved_on))


def beyond(state: State) -> torch.Tensor:
    return edge_distance(ground(state.scene).edges, state.ego(), state.scene.size[:, EGO])


def ego_at(state: State, x: float, y: float, heading: float = 0.0, speed: float = 10.0) -> State:
    angle = torch.tensor([heading])
    velocity = speed * torch.stack((angle.cos(), angle.sin()), dim=-1)
    return place_ego(state, Motion(torch.tensor([[x, y, 0.75]]), angle, velocity))


def measures_after(x: float, y: float, heading: float = 0.0, speed: float = 10.0, **scene) -> dict[str, float]:
    state = start(straight_road(**scene))
    moved_on = ego_at(state, x, y, heading, speed)
    found = measured(state, moved_on)
    return {name: value.item() for name, value in found.items()}


def test_progress_is_measured_along_the_route():
    found = measures_after(1.0, 0.3)
    assert found["progress"] == pytest.approx(1.0)
    assert found["route_completion"] == pytest.approx(1 / 180, rel=1e-4)  # the route goes on for 180 m
    assert found["speed"] == pytest.approx(10.0)
    assert measures_after(-0.5, 0.0)["progress"] == pytest.approx(-0.5)


def test_progress_ends_where_the_route_ends():
    short = straight_road()
    short = replace(short, route_valid=torch.arange(101)[None] < 12)  # to x = 2
    state, past = start(short), begun(start(short))
    found = []
    for x in (1.0, 2.5, 3.5, 1.5):
        state = ego_at(state, x, 0.0)
        past = gone_on(past, state)
        found.append(ego_measures(state, past)["progress"].item())
    assert found == pytest.approx([1.0, 1.0, 0.0, -0.5])
    assert past.arc.item() == pytest.approx(21.5)


def test_progress_round_a_bend_counts_metres_of_route():
    angle = torch.linspace(0, math.pi, 33)
    bend = 20 * torch.stack((angle.sin(), 1 - angle.cos(), torch.zeros(33)), dim=-1)
    scene = replace(straight_road(), route=bend[None], route_valid=torch.ones(1, 33, dtype=torch.bool))
    length = route_place(scene, torch.tensor([[0.0, 40.0]]))[0].item()
    arc, offset, heading = route_place(scene, torch.tensor([[21.0, 20.0]]))  # outside of the bend's middle
    assert arc.item() == pytest.approx(length / 2, abs=1e-3)
    assert offset.item() == pytest.approx(-1.0, abs=0.03)
    assert heading.item() == pytest.approx(math.pi / 2, abs=0.1)


def test_a_route_that_meets_itself_again_is_followed_in_order():
    leg = torch.arange(0.0, 201.0, 2.0)
    there = torch.stack((leg, torch.zeros_like(leg), torch.zeros_like(leg)), dim=-1)
    route = torch.cat((there, there.flip(0) + torch.tensor([0.0, 0.5, 0.0])))  # and back, half a metre beside
    scene = replace(straight_road(), route=route[None], route_valid=torch.ones(1, len(route), dtype=torch.bool))
    place = torch.tensor([[50.0, 0.4]])
    assert route_place(scene, place)[0].item() == pytest.approx(350.5)  # nearer to the way back
    assert route_place(scene, place, near=torch.tensor([49.0]))[0].item() == pytest.approx(50.0)
    assert route_place(scene, place, near=torch.tensor([349.0]))[0].item() == pytest.approx(350.5)


def test_collision_names_the_agent():
    assert measures_after(20.4, 0.0)["collision"] is False  # 25 - 4.5 = 20.5 m is where bumpers touch
    hit = measures_after(20.6, 0.0)
    assert hit["collision"] is True
    assert hit["collided_with"] == LEADER
    assert measures_after(40.0, -2.0)["collided_with"] == CONE


def test_who_is_not_valid_is_not_hit():
    state = start(straight_road())
    valid = state.valid.clone()
    valid[0, LEADER] = False
    assert not ego_overlaps(ego_at(replace(state, valid=valid), 25.0, 0.0)).any()


def test_off_road_begins_three_decimetres_beyond_the_edge():
    side = 0.9  # half the ego's width
    assert measures_after(1.0, RIGHT_EDGE + side - 0.29)["off_road"] is False
    assert measures_after(1.0, RIGHT_EDGE + side - 0.31)["off_road"] is True
    assert measures_after(1.0, LEFT_EDGE - side + 0.31)["off_road"] is True
    assert measures_after(1.0, -1.0, heading=-0.6)["off_road"] is True  # its front right corner is at y = -3.01


def test_the_distance_is_that_of_the_farthest_corner():
    state = ego_at(start(straight_road()), 1.0, 0.0)
    assert beyond(state).item() == pytest.approx(RIGHT_EDGE + 0.9 + 0.0, abs=1e-5)


def test_without_edges_off_road_is_not_measurable():
    found = measures_after(1.0, 50.0, edges=False)
    assert found["off_road"] is False
    assert found["off_road_measurable"] is False
    assert measures_after(1.0, 0.0)["off_road_measurable"] is True


@settings(max_examples=50, deadline=None)
@given(x=st.floats(-40.0, 150.0), y=st.floats(-6.0, 9.0), heading=st.floats(-3.0, 3.0))
def test_looking_at_near_edges_only_changes_nothing(x, y, heading):
    state = ego_at(start(straight_road()), x, y, heading)
    edges = ground(state.scene).edges
    corners = torch.stack(
        [
            torch.tensor([x + a * math.cos(heading) - b * math.sin(heading), y + a * math.sin(heading) + b * math.cos(heading)])
            for a, b in ((2.25, 0.9), (2.25, -0.9), (-2.25, 0.9), (-2.25, -0.9))
        ]
    )
    every = signed_distance_to_edges(corners[None], edges.segment, edges.valid[..., None].expand(-1, -1, 2)).amax()
    assert beyond(state).item() == pytest.approx(every.item(), abs=1e-4)


def test_who_begins_beyond_the_road_is_off_it_only_after_having_been_on_it():
    state = ego_at(start(straight_road()), 0.0, RIGHT_EDGE - 5.0)
    past, found = begun(state), []
    for y in (RIGHT_EDGE - 4.0, 0.0, RIGHT_EDGE - 4.0):
        state = ego_at(state, state.ego().position[0, 0].item() + 1.0, y)
        past = gone_on(past, state)
        found.append(ego_measures(state, past)["off_road"].item())
    assert found == [False, False, True]


def test_comfort_of_a_full_braking():
    state = start(straight_road())
    past = begun(state)
    assert past.acceleration.abs().max().item() == 0.0  # the log keeps its speed
    braked = ego_at(state, 0.96, 0.0, speed=9.2)  # -8 m/s2
    found = ego_comfort(gone_on(past, braked))
    assert found["acceleration"].item() == pytest.approx(-8.0, abs=1e-4)
    assert found["longitudinal_jerk"].item() == pytest.approx(-16.0, abs=1e-3)  # by 8 m/s2 within 0.5 s
    assert found["jerk"].item() == pytest.approx(16.0, abs=1e-3)
    assert found["comfort"].item() == pytest.approx(3 / 6)  # acceleration, longitudinal jerk and jerk are beyond their limits


def test_jerk_beside_that_of_nuplans_filter():
    """A quadratic Savitzky-Golay filter over 15 values, which nuPlan takes: half of our jerk of a jump, and as blind at 2 Hz."""
    time = torch.arange(40) * 0.1

    def jerks(acceleration: torch.Tensor) -> tuple[float, float]:
        past, ours = begun(start(straight_road())), []
        for values in acceleration.unfold(0, 6, 1):
            ours.append(ego_comfort(replace(past, acceleration=values[None]))["longitudinal_jerk"].abs().item())
        return max(ours), abs(savgol_filter(acceleration.numpy(), 15, 2, deriv=1, delta=0.1)[7:-7]).max()

    assert jerks(torch.where(time < 2.0, 0.0, 2.0)) == pytest.approx((4.0, 2.0), abs=1e-4)
    assert jerks(1.5 * time) == pytest.approx((1.5, 1.5), abs=1e-4)
    ours, theirs = jerks(-0.8 + 3.2 * torch.sin(4 * math.pi * time))  # from limit to limit of the acceleration, twice a second
    assert (ours, theirs) == pytest.approx((0.0, 3.2 * 0.456), abs=0.1)


def test_comfort_of_a_sharp_turn():
    state = start(straight_road())
    turned = ego_at(state, 1.0, 0.0, heading=0.1)  # 1 rad/s at 10 m/s
    found = ego_comfort(gone_on(begun(state), turned))
    assert found["yaw_rate"].item() == pytest.approx(1.0, abs=1e-4)
    assert found["lateral_acceleration"].item() == pytest.approx(10.0, abs=1e-3)
    assert found["yaw_acceleration"].item() == pytest.approx(2.0, abs=1e-3)
    assert found["jerk"].item() == pytest.approx(20.0, abs=1e-2)
    assert found["comfort"].item() == pytest.approx(2 / 6)  # only the two along the road hold


def test_the_past_begins_with_what_the_log_shows():
    scene = straight_road()
    velocity = scene.velocity.clone()
    velocity[0, EGO, :, 0] = 10.0 + 2.0 * (torch.arange(scene.steps) - 10) * 0.1
    past = begun(start(replace(scene, velocity=velocity)))
    torch.testing.assert_close(past.acceleration, torch.full((1, 6), 2.0))
    assert ego_comfort(past)["comfort"].item() == 1.0


@settings(max_examples=20, deadline=None)
@given(angle=st.floats(-3.0, 3.0), x=st.floats(-200.0, 200.0), y=st.floats(-200.0, 200.0))
def test_measures_do_not_depend_on_the_frame(angle, x, y):
    def values(scene: Scene) -> dict[str, torch.Tensor]:
        state = start(scene)
        after = replace(
            state, position=scene.position[:, :, 11], heading=scene.heading[:, :, 11], velocity=scene.velocity[:, :, 11]
        )
        return measured(state, after)

    scene = several_roads()
    here, there = values(scene), values(moved(scene, angle, (x, y)))
    for name in here:
        torch.testing.assert_close(there[name], here[name], atol=5e-3, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
