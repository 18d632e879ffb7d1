import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scenes import LANE_WIDTH, moved, several_roads, straight_road
from worldloop.envs.ground import ground
from worldloop.envs.measures import start_past
from worldloop.envs.observation import (
    AGENT_FEATURES,
    EGO_FEATURES,
    POLYLINE_FEATURES,
    SIGNAL_FEATURES,
    ObservationSize,
    observation_space,
    observe,
    visible,
)
from worldloop.worldmodel.raster import road_pieces
from worldloop.worldmodel.scene import PolylineKind, Scene, SignalState
from worldloop.worldmodel.world import logged_state

SIZE = ObservationSize()


def see(scene: Scene, size: ObservationSize = SIZE, kind: str = "state") -> dict[str, torch.Tensor]:
    state = logged_state(scene, torch.zeros(len(scene), dtype=torch.int64))
    on = ground(scene)
    return observe(kind, size, state, start_past(state, on), road_pieces(scene), on, torch.zeros(len(scene), 2))


def named(values: torch.Tensor, ranges: dict) -> dict[str, float]:
    return dict(zip(ranges, values.tolist(), strict=True))


def test_the_ego_knows_itself_and_its_place_on_the_route():
    ego = named(see(straight_road())["ego"][0], EGO_FEATURES)
    assert ego["speed"] == pytest.approx(10.0)
    assert ego["length"] == pytest.approx(4.5)
    assert ego["route_offset"] == pytest.approx(0.0)
    assert ego["route_heading_cosine"] == pytest.approx(1.0)
    assert ego["route_left"] == pytest.approx(180.0)


def test_agents_come_nearest_first_in_the_egos_frame():
    seen = see(straight_road())
    assert seen["agents_mask"][0].tolist() == [1] * 5 + [0] * 27
    neighbour = named(seen["agents"][0, 0], AGENT_FEATURES)
    assert (neighbour["x"], neighbour["y"]) == pytest.approx((10.0, LANE_WIDTH))
    assert (neighbour["velocity_x"], neighbour["velocity_y"]) == pytest.approx((8.0, 0.0))
    assert neighbour["is_vehicle"] == 1.0
    assert seen["agents"][0, :5, 0].tolist() == pytest.approx([10.0, -20.0, 25.0, 40.0, 60.0])
    walker = named(seen["agents"][0, 4], AGENT_FEATURES)
    assert walker["is_pedestrian"] == 1.0
    assert (walker["heading_cosine"], walker["heading_sine"]) == pytest.approx((0.0, 1.0), abs=1e-6)
    assert not seen["agents"][0, 5:].any()


def test_what_is_visible_is_what_the_masks_leave():
    seen = {name: tensor[0].numpy() for name, tensor in see(straight_road()).items()}
    marked = visible(seen, SIZE)
    assert marked["agents"].shape == (5, 6)
    assert marked["agents"][0].tolist() == pytest.approx([10.0, LANE_WIDTH, 1.0, 0.0, *seen["agents"][0, 6:8]])
    assert len(marked["polylines"]) == seen["polylines_mask"].sum() > 0
    assert marked["radius"] == SIZE.radius


def test_fewer_places_hold_the_nearest_agents():
    seen = see(straight_road(), ObservationSize(agents=2, polylines=3, signals=1, route_points=4))
    assert seen["agents"][0, :, 0].tolist() == pytest.approx([10.0, -20.0])
    assert seen["polylines"].shape == (1, 3, len(POLYLINE_FEATURES))


def test_who_is_beyond_the_radius_is_not_seen():
    seen = see(straight_road(leader_gap=120.0))
    assert seen["agents_mask"][0].sum() == 4


def test_polylines_carry_kind_width_and_limit():
    seen = see(straight_road())
    lanes = seen["polylines"][0, :, list(POLYLINE_FEATURES).index("is_lane")] == 1
    assert lanes.any()
    torch.testing.assert_close(seen["polylines"][0, lanes, 0], torch.full((int(lanes.sum()),), LANE_WIDTH))
    torch.testing.assert_close(seen["polylines"][0, lanes, 1], torch.full((int(lanes.sum()),), 13.9))
    kinds = seen["polylines"][0, seen["polylines_mask"][0] == 1, 2:]
    assert (kinds.sum(dim=1) == 1).all()
    assert kinds[:, PolylineKind.ROAD_EDGE].any()
    first = seen["polylines_points"][0, 0]
    assert first[:, 1].abs().max().item() == pytest.approx(0.0, abs=1e-4)  # the ego's own lane is the nearest


def test_the_route_ahead_ends_with_its_mask():
    seen = see(straight_road())
    assert seen["route"][0, :, 0].tolist() == pytest.approx([3.0 * i for i in range(1, 21)])
    near_end = straight_road()
    near_end = replace(near_end, route_valid=torch.arange(101)[None] < 21)  # to x = 20
    assert see(near_end)["route_mask"][0].tolist() == [1] * 6 + [0] * 14


def test_the_signal_ahead_says_stop():
    signal = named(see(straight_road())["signals"][0, 0], SIGNAL_FEATURES)
    assert (signal["x"], signal["y"]) == pytest.approx((80.0, 0.0))
    assert signal["on_route"] == 1.0
    assert signal["route_distance"] == pytest.approx(80.0)
    assert [signal[f"is_{state.name.lower()}"] for state in SignalState] == [0.0, 1.0, 0.0, 0.0]


def test_a_signal_across_the_route_is_not_on_it():
    scene = straight_road()
    across = replace(scene, signal_heading=torch.full_like(scene.signal_heading, 0.5 * math.pi))
    assert named(see(across)["signals"][0, 0], SIGNAL_FEATURES)["on_route"] == 0.0
    turning = scene.polyline.clone()
    turning[0, 0, 10:, 1] += torch.arange(17.0)  # its lane leads away from the route
    assert named(see(replace(scene, polyline=turning))["signals"][0, 0], SIGNAL_FEATURES)["on_route"] == 0.0


def test_every_value_lies_in_its_space():
    scene = straight_road()
    position, velocity = scene.position.clone(), scene.velocity.clone()
    velocity[0, 1] = torch.tensor([500.0, 0.0])
    position[0, 2, :, 0] -= 1000.0
    wild = replace(scene, position=position, velocity=velocity)
    seen = {name: value[0].numpy() for name, value in see(wild).items()}
    assert observation_space("state", SIZE).contains(seen)
    assert seen["agents"][:, list(AGENT_FEATURES).index("velocity_x")].max() == 60.0


def test_a_scene_without_signals_and_map_is_seen_empty():
    full = straight_road()
    none = {name: getattr(full, name)[:, :0] for name in vars(full) if name.startswith(("polyline", "signal", "lane", "speed"))}
    seen = see(replace(full, **none))
    assert observation_space("state", SIZE).contains({name: value[0].numpy() for name, value in seen.items()})
    assert not seen["signals_mask"].any()
    assert not seen["polylines_mask"].any()


@settings(max_examples=20, deadline=None)
@given(angle=st.floats(-3.0, 3.0), x=st.floats(-300.0, 300.0), y=st.floats(-300.0, 300.0))
def test_turning_and_shifting_a_scene_changes_nothing(angle, x, y):
    scene = several_roads()
    generator = torch.Generator().manual_seed(0)  # everyone at another place, so that no two things are equally near
    shift = torch.randn(scene.position[:, :, :1, :2].shape, generator=generator)
    scene = replace(scene, position=scene.position + torch.nn.functional.pad(shift, (0, 1)))
    bend = torch.randn(scene.polyline.shape[:2], generator=generator) * 0.4
    scene = replace(scene, polyline=scene.polyline + torch.nn.functional.pad(bend[..., None, None], (0, 2)))
    here, there = see(scene), see(moved(scene, angle, (x, y)))
    for name in ("ego", "agents", "agents_mask", "route", "route_mask", "signals", "signals_mask", "polylines_mask"):
        torch.testing.assert_close(there[name], here[name], atol=2e-3, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
    same = (there["polylines"] == here["polylines"]).all(dim=-1).float().mean()
    assert same > 0.9  # pieces that are equally near may change places
    assert sorted_points(there).sub(sorted_points(here)).abs().max() < 2e-2


def sorted_points(seen: dict[str, torch.Tensor]) -> torch.Tensor:
    """Distances of all polyline points from the ego, in ascending order: the same whatever the order of pieces."""
    return seen["polylines_points"].norm(dim=-1).flatten(1).sort(dim=1).values[:, : 10 * 40]


def test_a_heading_beyond_pi_is_the_same_heading():
    scene = straight_road()
    turned = replace(scene, heading=scene.heading + 2 * math.pi)
    for name, value in see(scene).items():
        torch.testing.assert_close(see(turned)[name], value, atol=1e-4, rtol=0)


def test_unknown_kinds_and_sizes_are_refused():
    with pytest.raises(ValueError, match="observation='lidar' is unknown: choose one of state, image"):
        observation_space("lidar", SIZE)
    with pytest.raises(ValueError, match="agents is 0"):
        ObservationSize(agents=0)
