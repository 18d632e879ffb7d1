"""The realism meta-metric: features and likelihoods worked out by hand, invariances, and the official scorer's own numbers."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scenes import EGO, FOLLOWER, LEADER, LEFT_EDGE, NEIGHBOUR, PEDESTRIAN, RIGHT_EDGE, moved, several_roads, straight_road
from torch import Tensor
from worldloop.envs.edge_lines import _stretched_distance, edge_lines, signed_distance
from worldloop.envs.realism import FEATURES, HISTOGRAMS, WEIGHTS, histogram_bin, meta_metric, score_realism
from worldloop.envs.realism_features import (
    object_features,
    rounded_box_distance,
    time_to_collision,
)
from worldloop.worldmodel.open_loop import Futures, logged_futures, scored_agents
from worldloop.worldmodel.scene import HISTORY_STEPS, PolylineKind, Scene, SignalState

STEPS = 40
OFFICIAL = Path(__file__).parents[2] / "shared/data/waymo_motion"


def features(scene: Scene, futures: Futures | None = None, scored: Tensor | None = None):
    return object_features(
        scene,
        logged_futures(scene, STEPS) if futures is None else futures,
        scored_agents(scene, ego_too=True) if scored is None else scored,
    )


def repeated(futures: Futures, rollouts: int) -> Futures:
    return futures.map(lambda tensor: tensor.repeat_interleave(rollouts, dim=1))


def spread(scene: Scene, seed: int = 0, rollouts: int = 4) -> Futures:
    """Futures that drift away from the log, each agent and rollout by its own."""
    held = repeated(logged_futures(scene, STEPS, held=True), rollouts)
    generator = torch.Generator().manual_seed(seed)
    drift = torch.randn(*held.valid.shape[:3], 1, generator=generator) * torch.arange(STEPS) * 0.1
    ahead = torch.stack((held.heading.cos(), held.heading.sin()), dim=-1) * drift[..., None]
    return replace(held, position=torch.cat((held.position[..., :2] + ahead, held.position[..., 2:]), dim=-1))


def of(found, agent: int, name: str, row: int = 0) -> Tensor:
    """The feature (K, T) of one agent."""
    return found.values[name][(found.row == row) & (found.agent == agent)][0]


def test_speeds_and_accelerations_by_hand():
    scene = straight_road()
    time = (torch.arange(scene.steps) - HISTORY_STEPS) * 0.1
    position, heading = scene.position.clone(), scene.heading.clone()
    position[0, LEADER, :, 0] = 25 + 10 * time + 0.5 * 2.0 * time**2
    position[0, LEADER, :, 2] = 0.75
    heading[0, LEADER] = 3.1 + 0.3 * time + 0.5 * 0.4 * time**2  # passes pi on its way
    found = features(replace(scene, position=position, heading=heading))
    later = time[HISTORY_STEPS + 1 :][:STEPS]
    torch.testing.assert_close(of(found, LEADER, "linear_speed")[0, :-1], 10 + 2 * later[:-1], atol=2e-3, rtol=0)
    torch.testing.assert_close(of(found, LEADER, "angular_speed")[0, :-1], 0.3 + 0.4 * later[:-1], atol=1e-3, rtol=0)
    acceleration, swing = (of(found, LEADER, f"{name}_acceleration")[0, :-2] for name in ("linear", "angular"))
    torch.testing.assert_close(acceleration, torch.full_like(acceleration, 2.0), atol=2e-2, rtol=0)
    torch.testing.assert_close(swing, torch.full_like(swing, 0.4), atol=2e-2, rtol=0)
    assert not found.defined["linear_speed"][..., -1].any()
    assert not found.defined["linear_acceleration"][..., -2:].any()


def test_speed_counts_the_climb():
    scene = straight_road()
    position = scene.position.clone()
    position[0, LEADER, :, 2] += 0.75 * (torch.arange(scene.steps) * 0.1 * 10)  # 7.5 m/s upwards beside 10 m/s ahead
    torch.testing.assert_close(
        of(features(replace(scene, position=position)), LEADER, "linear_speed")[0, :-1],
        torch.full((STEPS - 1,), 12.5),
        atol=2e-3,
        rtol=0,
    )


def test_rounded_boxes_by_hand():
    def distance(x: float, y: float, turn: float = 0.0, a=(4.0, 2.0), b=(4.0, 2.0)) -> float:
        return rounded_box_distance(torch.tensor([[x, y]]), torch.tensor([turn]), torch.tensor([a]), torch.tensor([b])).item()

    assert distance(10, 0) == pytest.approx(6)  # bumper to bumper
    assert distance(0, 5) == pytest.approx(3)  # side to side
    assert distance(0, 1.5) == pytest.approx(-0.5)
    assert distance(0, 0) == pytest.approx(-2)  # out by the shorter way
    assert distance(0, 5, math.pi / 2) == pytest.approx(2)
    # Corner to corner: cores of 2.6 x 0.6 with discs of 0.7 around.
    assert distance(6, 5) == pytest.approx(math.hypot(6 - 2.6, 5 - 0.6) - 1.4)
    # Sharp corners would touch at (4, 2); rounded ones do not.
    assert distance(3.9, 1.9) > 0
    # A corner of one turned by 45 degrees against a side: its core reaches 1.3 cos + 0.3 sin, and the disc beyond.
    assert distance(0, 5, math.pi / 4) == pytest.approx(5 - 0.3 - 0.7 - (1.6 * math.sqrt(0.5) + 0.7), abs=1e-5)


def test_nearest_object_and_collision_by_hand():
    scene = straight_road()
    found = features(scene)
    nearest = of(found, EGO, "distance_to_nearest_object")[0, 0]
    # The neighbour, at first 10 m ahead: after 0.1 s 9.8 m along and 3.5 m across; cores 3.24 x 0.54, discs of 0.63.
    assert nearest.item() == pytest.approx(math.hypot(9.8 - 3.24, 3.5 - 0.54) - 1.26, abs=1e-4)
    assert not found.values["collision_indication"].any()
    position = scene.position.clone()
    position[0, FOLLOWER, HISTORY_STEPS + 5] = position[0, EGO, HISTORY_STEPS + 5] - torch.tensor([4.0, 0.0, 0.0])
    hit = features(replace(scene, position=position)).values["collision_indication"][:, 0].nonzero().tolist()
    assert hit == [[EGO, 4], [FOLLOWER, 4]]  # rows of scored agents are those of the first agents
    lonely = replace(scene, valid=scene.valid.index_fill(1, torch.arange(1, 6), False))
    assert (of(features(lonely), EGO, "distance_to_nearest_object") == 40).all()


def test_time_to_collision_by_hand():
    def seconds(**changes) -> float:
        place = torch.tensor([[[0.0, 0.0], [changes.get("gap", 12.0) + 4.0, changes.get("side", 0.0)]]])
        heading = torch.tensor([[0.0, changes.get("turn", 0.0)]])
        speed = torch.tensor([[10.0, changes.get("speed", 6.0)]])
        known = torch.tensor([[True, changes.get("known", True)]])
        valid = torch.tensor([[True, changes.get("valid", True)]])
        size = torch.tensor([[4.0, 2.0], [4.0, 2.0]])
        return time_to_collision(place, heading, valid, size, torch.tensor([0]), speed, known).item()

    assert seconds() == pytest.approx(3)
    assert seconds(gap=30.0) == 5
    assert seconds(speed=11.0) == 5
    assert seconds(valid=False) == 5
    assert seconds(known=False) == 5
    assert seconds(side=2.0, turn=0.1) == pytest.approx((16 - 2 - 2 * math.cos(0.1) - math.sin(0.1)) / 4)  # overlap under 0.5 m
    assert seconds(side=2.0, turn=0.2) == 5  # then at most 10 degrees
    assert seconds(turn=1.2) == pytest.approx((16 - 2 - 2 * math.cos(1.2) - math.sin(1.2)) / 4)
    assert seconds(turn=1.4) == 5  # more than 75 degrees
    assert seconds(side=2.1) == 5
    assert seconds(gap=-8.0) == 5  # behind


def test_time_to_collision_looks_past_nobody():
    place = torch.tensor([[[0.0, 0.0], [10.0, 0.0], [30.0, 0.0]]])
    size, everyone = torch.tensor([[4.0, 2.0]] * 3), torch.ones(1, 3, dtype=torch.bool)
    speed = torch.tensor([[10.0, 12.0, 0.0]])  # the nearer one drives off, the standing one behind it is hidden
    assert time_to_collision(place, torch.zeros(1, 3), everyone, size, torch.tensor([0]), speed, everyone).item() == 5


def test_road_edge_by_hand():
    scene = straight_road()
    found = features(scene)
    # Cars of 1.8 m on y = 0; the right edge lies at -1.75.
    torch.testing.assert_close(
        of(found, EGO, "distance_to_road_edge"), torch.full((1, STEPS), RIGHT_EDGE + 0.9), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(
        of(found, NEIGHBOUR, "distance_to_road_edge"), torch.full((1, STEPS), 3.5 + 0.9 - LEFT_EDGE), atol=1e-4, rtol=0
    )
    assert (of(found, PEDESTRIAN, "distance_to_road_edge")[0, 0]).item() == pytest.approx(-1.75 - (-6 + 0.1 - 0.3), abs=1e-4)
    assert of(found, PEDESTRIAN, "offroad_indication")[0, 0]
    assert not of(found, EGO, "offroad_indication").any()
    without = features(straight_road(edges=False))
    assert not without.defined["distance_to_road_edge"].any()
    assert not without.edges.any()


def corner(points: list[list[float]], cut: int | None = None) -> Scene:
    """A road whose only edge is this polyline, whole or cut into two pieces."""
    scene = straight_road()
    pieces = [points] if cut is None else [points[: cut + 1], points[cut:]]
    line = torch.zeros(1, len(pieces), max(map(len, pieces)), 3)
    valid = torch.zeros(line.shape[:-1], dtype=torch.bool)
    for row, piece in enumerate(pieces):
        line[0, row, : len(piece)], valid[0, row, : len(piece)] = torch.tensor(piece), True
    blank = {name: getattr(scene, name)[:, : len(pieces)] * 0 for name in ("lane_width", "speed_limit")}
    return replace(
        scene,
        polyline=line,
        polyline_valid=valid,
        polyline_kind=torch.full((1, len(pieces)), int(PolylineKind.ROAD_EDGE)),
        speed_limit_valid=torch.zeros(1, len(pieces), dtype=torch.bool),
        lane_link_valid=scene.lane_link_valid & False,
        **blank,
    )


@pytest.mark.parametrize("cut", [None, 1])
def test_a_corner_decides_sides_whole_or_in_pieces(cut):
    # Right turn at the origin, so the road is everything but the quadrant x < 0, y < 0.
    lines = edge_lines(corner([[-10.0, 0, 0], [0, 0, 0], [0, -10.0, 0]], cut))
    points = torch.tensor([[1.0, 1, 0], [-3, 1, 0], [1, -3, 0], [-1, -1, 0], [0.5, 1e-3, 0]])
    torch.testing.assert_close(signed_distance(points, lines), torch.tensor([-math.sqrt(2), -1, -1, 1, -0.5]), atol=1e-5, rtol=0)
    # Left turn: the road is the quadrant x < 0, y > 0 alone.
    lines = edge_lines(corner([[-10.0, 0, 0], [0, 0, 0], [0, 10.0, 0]], cut))
    torch.testing.assert_close(
        signed_distance(torch.tensor([[1.0, -1, 0], [3, -1e-3, 0], [-1, 2, 0]]), lines), torch.tensor([math.sqrt(2), 3, -1])
    )


def test_an_edge_that_goes_round_has_no_ends():
    # An island, clockwise, so that the road lies outside on the left; its ends are 0.5 m apart.
    lines = edge_lines(corner([[0.0, 0.5, 0], [0, 4, 0], [4, 4, 0], [4, 0, 0], [0.0, 0, 0]], 2))
    assert sorted(lines.after.tolist()) == sorted(lines.before.tolist()) == list(range(4))
    distances = signed_distance(torch.tensor([[-1.0, -1, 0], [2, 2, 0], [-1, 2, 0]]), lines)
    torch.testing.assert_close(distances, torch.tensor([-math.sqrt(2), 2, -1]))


def test_the_edge_of_the_own_level_counts():
    low, high = [[-50.0, -1, 0], [50, -1, 0]], [[-50.0, -3, 5], [50, -3, 5]]
    scene = corner(low)
    line = torch.cat((scene.polyline, torch.tensor([[high]])), dim=1)
    two = {name: getattr(scene, name).repeat(1, 2) for name in ("polyline_kind", "lane_width", "speed_limit")}
    lines = edge_lines(replace(scene, polyline=line, polyline_valid=scene.polyline_valid.repeat(1, 2, 1), **two))
    # One above the lower edge's far side at 5 m height: -3 + 2 = on the bridge, although the lower edge is nearer from above.
    assert signed_distance(torch.tensor([[0.0, -1.5, 5.0]]), lines).item() == pytest.approx(-1.5)
    assert signed_distance(torch.tensor([[0.0, -1.5, 0.0]]), lines).item() == pytest.approx(0.5)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31 - 1))
@example(seed=883)
def test_choosing_segments_by_cell_misses_none(seed):
    generator = torch.Generator().manual_seed(seed)
    walk = (torch.rand(30, 3, generator=generator) * torch.tensor([2.0, 2.0, 0.3]) + torch.tensor([0.7, 0.7, 0.0])).cumsum(0)
    lines = edge_lines(corner(walk.tolist()))
    points = walk[torch.randint(30, (200,), generator=generator)] + torch.randn(200, 3, generator=generator) * 8
    one_by_one = torch.cat([signed_distance(point[None], lines) for point in points])
    best = _stretched_distance(points[:, None], lines.start, lines.step).topk(2, largest=False).values
    tie = best[:, 1] - best[:, 0] < 1e-4  # rounding decides which of two segments at the same stretched distance is taken
    assert ((signed_distance(points, lines) - one_by_one).abs() < 1e-4)[~tie].all()


def test_red_lights_by_hand():
    scene = straight_road(leader_gap=68.5)  # 10 m/s: passes x = 80 in the twelfth step, at red
    found = features(scene)
    assert of(found, LEADER, "traffic_light_violation").nonzero().tolist() == [[0, 11]]
    assert not of(found, EGO, "traffic_light_violation").any()
    green = replace(scene, signal_state=torch.full_like(scene.signal_state, int(SignalState.GO)))
    assert not features(green).values["traffic_light_violation"].any()
    other_lane = scene.position.clone()
    other_lane[0, LEADER, :, 1] = 3.5  # crosses the line, but in the lane that the signal does not control
    assert not features(replace(scene, position=other_lane)).values["traffic_light_violation"].any()


def test_histogram_likelihood_by_hand():
    scene = straight_road()
    leader = torch.zeros(1, 6, dtype=torch.bool).index_put((torch.tensor(0), torch.tensor(LEADER)), torch.tensor(True))
    logged, rollouts = features(scene, scored=leader), 4
    simulated = repeated(logged_futures(scene, STEPS), rollouts)
    # Two of four rollouts drive at 3 m/s: every second sample leaves the log's bin (10 to 12.5 m/s).
    simulated.position[0, :2, LEADER, :, 0] = 25 + 0.3 * torch.arange(1, STEPS + 1)
    found = features(scene, simulated, leader)
    speed = found.values["linear_speed"][0]
    assert ((speed[:2, 1:-1] - 3).abs() < 1e-2).all()
    total = rollouts * STEPS
    expected = (2 * (STEPS - 1) + 0.1) / (total + 1)  # the last step has no speed and counts in the highest bin
    result = score_realism(found, logged)
    assert result.likelihood[0, FEATURES.index("linear_speed")].item() == pytest.approx(expected, abs=2e-3)


def test_indication_likelihood_by_hand():
    scene = straight_road()
    scored = scored_agents(scene, ego_too=True)
    simulated = repeated(logged_futures(scene, STEPS), 4)
    simulated.position[0, 0, LEADER, 7, 1] -= 3.0  # off the road, in one of four rollouts
    result = score_realism(features(scene, simulated), features(scene))
    expected = math.exp(math.log(3.001 / 4.002) / 5 + 4 / 5 * math.log(4.001 / 4.002))
    assert result.likelihood[0, FEATURES.index("offroad_indication")].item() == pytest.approx(expected, abs=1e-5)
    # The pedestrian walks beside the road in all of them.
    assert result.off_road_rate[0].item() == pytest.approx((0.25 + 1) / int(scored.sum()))


def test_bins_hold_their_lower_border_and_the_range_is_clipped():
    low, high, bins = HISTOGRAMS["linear_speed"]
    values = torch.tensor([low - 1, low, 2.4999, 2.5, high, high + 9])
    assert histogram_bin("linear_speed", values).tolist() == [0, 0, 0, 1, bins - 1, bins - 1]


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_shortest_futures_have_places_and_no_speeds(steps):
    scene = straight_road()
    logged = object_features(scene, logged_futures(scene, steps), scored_agents(scene, ego_too=True))
    result = score_realism(logged, logged)
    assert [bool(result.counted[0, FEATURES.index(name)]) for name in ("distance_to_nearest_object", "linear_speed")] == [
        True,
        steps > 2,
    ]


def test_weights_sum_to_one_and_missing_terms_are_made_up_for():
    for weights in WEIGHTS.values():
        assert sum(weights.values()) == pytest.approx(1)
    likelihood, counted = torch.full((10,), 0.5), torch.ones(10, dtype=torch.bool)
    likelihood[5] = 1.0
    assert meta_metric(likelihood, counted, 2024).item() == pytest.approx(0.5 + 0.25 * 0.5)
    counted[FEATURES.index("offroad_indication")] = False
    assert meta_metric(likelihood, counted, 2025).item() == pytest.approx((0.5 * 0.5 + 0.25) / 0.75)
    with pytest.raises(ValueError, match="wanted one of 2024, 2025"):
        meta_metric(likelihood, counted, 2023)
    with pytest.raises(ValueError, match="no term"):
        meta_metric(likelihood, counted & False, 2025)


def test_the_log_scored_against_itself():
    scene = several_roads()
    log = features(scene)
    result = score_realism(features(scene, repeated(logged_futures(scene, STEPS, held=True), 32)), log)
    # Not 1: gaps change along the way, so no histogram is a single bin, and the last steps have no speed.
    assert (result.meta_metric(2025) > 0.85).all()
    certain = [FEATURES.index(name) for name in ("collision_indication", "offroad_indication", "traffic_light_violation")]
    assert (result.likelihood[:, certain] > 0.999).all()
    worse = score_realism(features(scene, spread(scene)), log)
    assert (worse.meta_metric(2025) < result.meta_metric(2025)).all()
    assert result.left_out(2025) == [()] * 4
    bare = straight_road(edges=False)
    bare = replace(bare, signal_valid=bare.signal_valid & False)
    left = score_realism(features(bare, repeated(logged_futures(bare, STEPS), 2)), features(bare))
    assert left.left_out(2025) == [("distance_to_road_edge", "offroad_indication", "traffic_light_violation")]
    assert left.left_out(2024) == [("distance_to_road_edge", "offroad_indication")]


def test_what_the_log_does_not_show_is_not_asked():
    scene = straight_road()
    valid = scene.valid.clone()
    valid[0, LEADER, HISTORY_STEPS + 11 :] = False
    hidden = replace(scene, valid=valid)
    simulated = repeated(logged_futures(hidden, STEPS, held=True), 2)
    simulated.position[0, :, LEADER, 15:, 1] -= 8.0  # off the road, when nobody looks
    result = score_realism(features(hidden, simulated), features(hidden))
    assert result.likelihood[0, FEATURES.index("offroad_indication")].item() > 0.999
    simulated.position[0, :, LEADER, 9, 1] -= 8.0
    assert score_realism(features(hidden, simulated), features(hidden)).likelihood[0, 8].item() < 0.3


def test_held_log_keeps_the_last_pose():
    scene = straight_road()
    valid = scene.valid.clone()
    valid[0, LEADER, HISTORY_STEPS + 3 :] = False
    valid[0, NEIGHBOUR, HISTORY_STEPS] = False  # comes later: takes no part
    scene = replace(scene, valid=valid)
    held, shown = logged_futures(scene, STEPS, held=True), logged_futures(scene, STEPS)
    assert held.valid[0, 0, LEADER].all()
    assert (held.position[0, 0, LEADER, 1:] == scene.position[0, LEADER, HISTORY_STEPS + 2]).all()
    assert shown.valid[0, 0, LEADER].tolist() == [True, True] + [False] * (STEPS - 2)
    assert not held.valid[0, 0, NEIGHBOUR].any()


@settings(max_examples=10, deadline=None)
@given(angle=st.floats(-3.0, 3.0), x=st.floats(-200.0, 200.0), y=st.floats(-200.0, 200.0))
def test_realism_does_not_depend_on_the_frame(angle, x, y):
    scene = several_roads(2)
    there = moved(scene, angle, (x, y))
    here = features(scene, spread(scene))
    away = features(there, spread(there))
    for name in FEATURES:
        # Events and time to collision jump where a border is met; everything else moves with the rounding of float32.
        if here.values[name].dtype == torch.bool:
            assert (here.values[name] != away.values[name]).float().mean() < 0.01
        else:
            difference = (here.values[name] - away.values[name]).abs()
            assert (difference > 0.1).float().mean() < 0.01, name
    torch.testing.assert_close(
        score_realism(here, features(scene)).meta_metric(2025),
        score_realism(away, features(there)).meta_metric(2025),
        atol=0.02,
        rtol=0,
    )


@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(6)))
def test_realism_does_not_depend_on_the_order_of_agents(order):
    scene, index = straight_road(), torch.tensor(order)
    names = ("position", "heading", "velocity", "valid", "size", "kind")
    shuffled = replace(
        scene,
        ego=(index == EGO).nonzero()[:, 0],
        **{name: getattr(scene, name)[:, index] for name in names},
    )
    futures = spread(scene)
    mixed = futures.map(lambda tensor: tensor[:, :, index])
    one = score_realism(features(scene, futures), features(scene))
    other = score_realism(features(shuffled, mixed), features(shuffled))
    torch.testing.assert_close(one.likelihood, other.likelihood)
    torch.testing.assert_close(one.collision_rate, other.collision_rate)


def test_scenes_in_a_batch_score_as_alone():
    scenes = several_roads(3)
    futures = spread(scenes)
    together = score_realism(features(scenes, futures), features(scenes))
    for row in range(3):
        one = scenes.take([row])
        alone = score_realism(features(one, futures.take([row])), features(one))
        torch.testing.assert_close(alone.likelihood[0], together.likelihood[row])


def test_bad_input_is_refused():
    scene = straight_road()
    with pytest.raises(ValueError, match="no object to score"):
        features(scene, scored=torch.zeros(1, 6, dtype=torch.bool))
    gone = replace(scene, valid=scene.valid.index_fill(1, torch.tensor([LEADER]), False))
    with pytest.raises(ValueError, match=f"agent {LEADER} is to be scored and not valid"):
        features(gone, scored=torch.ones(1, 6, dtype=torch.bool))
    few = features(scene, scored=torch.tensor([[True, False, False, False, False, False]]))
    with pytest.raises(ValueError, match="different objects"):
        score_realism(few, features(scene))
    short = object_features(scene, logged_futures(scene, 5), scored_agents(scene, ego_too=True))
    with pytest.raises(ValueError, match="with the same steps"):
        score_realism(features(scene), short)


def official_rollouts(scene: Scene) -> dict[str, Futures]:
    """The rollouts that the official numbers belong to, see ../shared/data/README.md."""
    held, now = logged_futures(scene, 80, held=True), HISTORY_STEPS
    time, number = torch.arange(1, 81) * 0.1, torch.arange(32) - 15.5
    position = scene.position[:, None, :, now, None].expand_as(held.position).clone()
    position[..., :2] += scene.velocity[:, None, :, now, None] * time[:, None]
    straight = Futures(position, scene.heading[:, None, :, now, None].expand_as(held.heading), held.valid)
    fan = repeated(held, 32)
    direction = torch.stack((fan.heading.cos(), fan.heading.sin()), dim=-1)
    fan.position[..., :2] += direction * (0.2 * number[:, None] * time)[None, :, None, :, None]
    return {"constant_velocity": repeated(straight, 32), "log": repeated(held, 32), "fan": fan}


@pytest.mark.parametrize("year", [2024, 2025])
def test_the_official_scorer_agrees(year):
    waymo = pytest.importorskip("worldloop.worldmodel.data.waymo", reason="there is no reader of Waymo scenarios")
    if not OFFICIAL.is_dir():
        pytest.skip(f"{OFFICIAL} is not there: put the Waymo samples beside the project to compare with the official scorer")
    for identity, official in json.loads((OFFICIAL / "official_rmm.json").read_text()).items():
        ids = [track.id for track in _message(official["file"]).tracks]
        scene = next(iter(waymo.read_file(OFFICIAL / official["file"])))
        assert scene.id[0].endswith(identity)
        scored = torch.tensor([[number in official["objects_scored"] for number in ids]])
        assert torch.equal(scored_agents(scene, ego_too=True), scored)
        logged = object_features(scene, logged_futures(scene, 80), scored)
        for name, futures in official_rollouts(scene).items():
            result = score_realism(object_features(scene, futures, scored), logged)
            wanted = official[f"{name}/{year}"]
            for place, feature in enumerate(FEATURES):
                assert result.likelihood[0, place].item() == pytest.approx(wanted[f"{feature}_likelihood"], abs=0.005), feature
            every = meta_metric(result.likelihood, torch.ones_like(result.counted), year)
            assert every[0].item() == pytest.approx(wanted["metametric"], abs=0.003)
            assert result.collision_rate[0].item() == pytest.approx(wanted["simulated_collision_rate"], abs=1e-3)
            assert result.off_road_rate[0].item() == pytest.approx(wanted["simulated_offroad_rate"], abs=0.005)


def _message(file: str):
    records = pytest.importorskip("worldloop.worldmodel.data.waymo_records")
    return records.parse_scenario(next(iter(records.read_records(OFFICIAL / file))))
