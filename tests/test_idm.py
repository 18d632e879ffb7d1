"""IdmWorld on roads whose answer is known."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from scenes import EGO, FOLLOWER, LEADER, NEIGHBOUR, PEDESTRIAN, moved, several_roads, straight_road
from worldloop.worldmodel.dynamics import IntelligentDriver
from worldloop.worldmodel.idm import IdmWorld
from worldloop.worldmodel.open_loop import simulate
from worldloop.worldmodel.scene import HISTORY_STEPS, LaneLinkKind, Scene, SignalState


def futures(scene: Scene, steps: int = 80, rollouts: int = 2, **options):
    return simulate(IdmWorld(), scene, rollouts, steps, torch.Generator().manual_seed(0), **options)


def green(scene: Scene) -> Scene:
    return replace(scene, signal_state=torch.full_like(scene.signal_state, int(SignalState.GO)))


def test_idm_by_hand():
    driver = IntelligentDriver()
    gap, closing = torch.tensor([30.0, torch.inf]), torch.tensor([2.0, 0.0])
    desired = 2 + 10 * 1.6 + 10 * 2 / (2 * math.sqrt(1.5 * 1.67))
    expected = 1.5 * (1 - (10 / 13.9) ** 4) - 1.5 * (desired / 30) ** 2
    found = driver.response(torch.tensor(10.0), torch.tensor(13.9), gap, closing)
    assert found.item() == pytest.approx(expected, abs=1e-4)
    alone = driver.response(torch.tensor(10.0), torch.tensor(13.9), torch.zeros(0), torch.zeros(0))
    assert alone.item() == pytest.approx(1.5 * (1 - (10 / 13.9) ** 4), abs=1e-5)


def test_everyone_starts_where_the_log_is_and_moves_smoothly():
    scene = green(straight_road())
    found = futures(scene)
    first = found.position[0, :, :, 0] - scene.position[0, :, HISTORY_STEPS]
    torch.testing.assert_close(first[:, [LEADER, NEIGHBOUR], 0], torch.tensor([[1.0, 0.8]] * 2), atol=0.02, rtol=0)
    assert first[..., 1].abs().max() < 0.11  # the pedestrian, 1 m/s
    speed = found.position.diff(dim=3).norm(dim=-1) / 0.1
    assert (speed.diff(dim=-1).abs() < 0.1 * 8.01 + 1e-2).all()


def test_vehicles_keep_to_their_lane_and_pedestrians_to_their_velocity():
    found = futures(green(straight_road()))
    assert found.position[0, :, LEADER, :, 1].abs().max() < 1e-3
    assert (found.position[0, :, NEIGHBOUR, :, 1] - 3.5).abs().max() < 1e-3
    walk = found.position[0, :, PEDESTRIAN, -1, :2]
    torch.testing.assert_close(walk, torch.tensor([[60.0, 2.0]] * 2), atol=1e-2, rtol=0)


def test_red_lights_are_kept_and_green_ones_passed():
    scene = straight_road()
    red = replace(scene, signal_state=torch.full_like(scene.signal_state, int(SignalState.STOP)))
    stopped = futures(red, 150).position[0, :, LEADER, -1, 0]
    assert (stopped + 2.25 < 80).all()
    assert (stopped + 2.25 > 75).all()
    assert (futures(green(scene)).position[0, :, LEADER, -1, 0] > 90).all()


def test_followers_brake_for_an_ego_that_stands():
    scene = green(straight_road(ego_speed=0.0, follower_gap=40.0))
    position = futures(scene, 120).position[0, :, FOLLOWER, :, 0]
    assert (position < -4.5).all()
    assert (position[:, -1] > -10).all()


def test_the_world_can_drive_the_ego():
    scene = green(straight_road(ego_speed=4.0))
    logged, driven = futures(scene), futures(scene, drive_ego=True)
    assert (logged.position[0, :, EGO, -1, 0] - 32).abs().max() < 1e-3
    assert (driven.position[0, :, EGO, -1, 0] > 45).all()  # speeds up to the limit behind the leader


def test_forks_are_drawn():
    scene = green(straight_road())
    # The second lane, cut off at its start, becomes a second successor of the first one's first half.
    lane = scene.polyline[0, 0].clone()
    lines = torch.stack((lane, lane, lane))
    count = 10  # -60 to 30 m, then straight on, or off to the left
    first_valid, rest_valid = torch.zeros(27, dtype=torch.bool), torch.zeros(27, dtype=torch.bool)
    first_valid[:count], rest_valid[: 27 - count + 1] = True, True
    lines[1, : 27 - count + 1] = lane[count - 1 :]
    lines[2, : 27 - count + 1] = lane[count - 1 :]
    lines[2, :, 1] += 0.2 * (lines[2, :, 0] - 30)
    forked = replace(
        scene,
        polyline=torch.cat((lines[None], scene.polyline[:, 3:]), dim=1),
        polyline_valid=torch.cat((torch.stack((first_valid, rest_valid, rest_valid))[None], scene.polyline_valid[:, 3:]), dim=1),
        polyline_kind=torch.cat((torch.zeros(1, 3, dtype=torch.int64), scene.polyline_kind[:, 3:]), dim=1),
        lane_link=torch.tensor([[[0, 1], [0, 2]]]),
        lane_link_kind=torch.full((1, 2), int(LaneLinkKind.SUCCESSOR)),
        signal_valid=scene.signal_valid & False,
    )
    side = futures(forked, 60, rollouts=32).position[0, :, LEADER, -1, 1]
    left = int((side > 2).sum())
    assert 8 <= left <= 24
    assert ((side > 2) | (side.abs() < 0.1)).all()


def test_whoever_stands_beside_the_lane_is_parked():
    scene = green(straight_road())
    position, velocity = scene.position.clone(), scene.velocity.clone()
    position[0, NEIGHBOUR, :, :2], velocity[0, NEIGHBOUR] = torch.tensor([10.0, 5.0]), 0.0
    still = futures(replace(scene, position=position, velocity=velocity)).position[0, :, NEIGHBOUR]
    assert (still[..., :2] - torch.tensor([10.0, 5.0])).norm(dim=-1).max() < 1e-3


def test_it_needs_no_map_and_does_not_depend_on_the_frame():
    bare = straight_road()
    bare = replace(bare, polyline_valid=bare.polyline_valid & False)
    assert torch.isfinite(futures(bare).position).all()
    scene = green(several_roads(2))
    here, there = futures(scene), futures(moved(scene, 1.0, (50.0, -30.0)))
    back = moved(scene, 1.0, (50.0, -30.0))
    assert (there.position - back.position[:, None, :, HISTORY_STEPS, None]).norm(dim=-1).sub(
        (here.position - scene.position[:, None, :, HISTORY_STEPS, None]).norm(dim=-1)
    ).abs().max() < 0.05
