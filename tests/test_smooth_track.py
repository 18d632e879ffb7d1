"""Smoothing of labelled tracks: what is smooth stays, what stands is still, nothing flips."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import torch
from hypothesis import given, settings
from worldloop.worldmodel.data.smoothing import smooth_track, whittaker
from worldloop.worldmodel.geometry import rotate, wrap_angle


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def straight(steps: int, speed: float, acceleration: float = 0.0, heading: float = 0.0) -> torch.Tensor:
    time = 0.1 * torch.arange(steps, dtype=torch.float64)
    way = speed * time + 0.5 * acceleration * time**2
    return way[:, None] * torch.tensor([math.cos(heading), math.sin(heading)])


def acceleration(position: torch.Tensor) -> torch.Tensor:
    return torch.diff(position.double(), n=2, dim=1).norm(dim=-1) / 0.01


def test_whittaker_halves_a_sine_of_the_cutoff_frequency():
    time = 0.1 * torch.arange(400, dtype=torch.float64)
    wave = torch.sin(2 * math.pi * 0.5 * time)[None, :, None]
    smooth = whittaker(wave, torch.ones(1, 400), torch.zeros(1, 399, dtype=torch.bool), 3, 0.5, 0.1)
    torch.testing.assert_close(smooth[0, 100:300], 0.5 * wave[0, 100:300], atol=2e-3, rtol=0)


def test_constant_acceleration_passes_unchanged():
    position = straight(60, 5, 1.5, heading=0.7)[None]
    track = smooth_track(position, torch.full((1, 60), 0.7), torch.ones(1, 60, dtype=torch.bool))
    torch.testing.assert_close(track.position.double(), position, atol=1e-4, rtol=0)
    torch.testing.assert_close(track.velocity[0, 10:20].norm(dim=-1), 5 + 0.15 * torch.arange(10, 20), atol=1e-3, rtol=0)
    torch.testing.assert_close(track.heading, torch.full((1, 60), 0.7), atol=1e-4, rtol=0)


def test_jitter_is_removed_and_the_way_kept():
    position = straight(80, 10)[None]
    track = smooth_track(position + 0.05 * noise(1, 80, 2), torch.zeros(1, 80), torch.ones(1, 80, dtype=torch.bool))
    assert acceleration(position + 0.05 * noise(1, 80, 2)).quantile(0.9) > 10
    assert acceleration(track.position).quantile(0.9) < 1
    assert (track.position - position).norm(dim=-1).max() < 0.2


def test_a_single_jump_does_not_pull_the_track():
    position = straight(60, 8)[None].clone()
    position[0, 30, 1] += 3
    track = smooth_track(position, torch.zeros(1, 60), torch.ones(1, 60, dtype=torch.bool))
    assert track.position[..., 1].abs().max() < 0.3


def test_a_few_labels_between_long_gaps_say_nothing_of_the_motion():
    valid = torch.zeros(2, 60, dtype=torch.bool)
    valid[:, :20] = valid[:, 40:] = True
    valid[0, 29:32] = True  # three labels, nine steps from the others on both sides
    valid[1, 22:25] = True  # three labels, but near enough to those before
    track = smooth_track(straight(60, 10).expand(2, -1, -1), torch.zeros(2, 60), valid)
    assert track.valid[0].tolist() == [True] * 20 + [False] * 20 + [True] * 20
    assert track.valid[1].tolist() == [True] * 25 + [False] * 15 + [True] * 20


def test_a_parked_car_stands_exactly_still():
    position, heading = 0.05 * noise(3, 50, 2), 1.0 + 0.1 * noise(3, 50, seed=1)
    track = smooth_track(position, heading, torch.ones(3, 50, dtype=torch.bool))
    assert (track.position == track.position[:, :1]).all()
    assert (track.heading == track.heading[:, :1]).all()
    assert (track.velocity == 0).all()
    assert track.heading.sub(1).abs().max() < 0.1


def test_a_car_that_stops_at_a_light_stands_exactly_still_there():
    way = torch.cat((straight(30, 8, -8 / 3), torch.tensor([[12.0, 0.0]]).expand(40, 2), 12 + straight(30, 0, 2) * 1.0))
    way[..., 1] = 0
    track = smooth_track(way[None] + 0.03 * noise(1, 100, 2), torch.zeros(1, 100), torch.ones(1, 100, dtype=torch.bool))
    assert (track.velocity[0, 45:60] == 0).all()
    assert (track.position[0, 45:60] == track.position[0, 45]).all()
    assert track.velocity[0, 95, 0] > 3
    assert (track.position[0] - way).norm(dim=-1).max() < 0.3


@given(turn=st.floats(-3.1, 3.1), flips=st.lists(st.booleans(), min_size=60, max_size=60))
@settings(max_examples=20, deadline=None)
def test_headings_never_flip_while_driving(turn: float, flips: list[bool]):
    label = turn + math.pi * torch.tensor(flips, dtype=torch.float64)
    track = smooth_track(straight(60, 7, heading=turn)[None], label[None], torch.ones(1, 60, dtype=torch.bool))
    assert wrap_angle(track.heading - turn).abs().max() < 0.01


def test_a_waiting_car_keeps_the_heading_with_which_it_moves():
    way = torch.cat((straight(30, 6, -2), torch.tensor([[9.0, 0.0]]).expand(40, 2)))
    label = torch.cat((torch.zeros(30), 3 * noise(40).float()))
    track = smooth_track(way[None], label[None], torch.ones(1, 70, dtype=torch.bool))
    assert track.heading.abs().max() < 0.15


def test_short_gaps_are_filled_and_long_ones_stay_invalid():
    valid = torch.ones(1, 60, dtype=torch.bool)
    valid[0, 10:13] = False
    valid[0, 30:36] = False
    valid[0, 55:] = False
    position = torch.where(valid[..., None], straight(60, 6)[None], torch.nan).nan_to_num()
    track = smooth_track(position, torch.zeros(1, 60), valid)
    assert track.valid[0, 10:13].all()
    assert not track.valid[0, 30:36].any()
    assert not track.valid[0, 55:].any()
    torch.testing.assert_close(track.position[0, 10:13].double(), straight(60, 6)[10:13], atol=1e-3, rtol=0)
    assert (track.position[~track.valid] == 0).all()


def test_few_labels_become_invalid():
    valid = torch.zeros(2, 30, dtype=torch.bool)
    valid[0, :4] = True
    valid[1, :5] = True
    track = smooth_track(straight(30, 3)[None].expand(2, -1, -1), torch.zeros(2, 30), valid)
    assert track.valid.sum(-1).tolist() == [0, 5]


@given(angle=st.floats(-3, 3), x=st.floats(-200, 200), y=st.floats(-200, 200))
@settings(max_examples=20, deadline=None)
def test_moving_the_labels_moves_the_track(angle: float, x: float, y: float):
    position, shift = straight(40, 4, 1)[None] + 0.05 * noise(1, 40, 2), torch.tensor([x, y], dtype=torch.float64)
    label, valid = 0.05 * noise(1, 40), torch.ones(1, 40, dtype=torch.bool)
    plain = smooth_track(position, label, valid)
    turn = torch.tensor(angle, dtype=torch.float64)
    other = smooth_track(rotate(position, turn) + shift, label + turn, valid)
    torch.testing.assert_close(other.position.double(), rotate(plain.position.double(), turn) + shift, atol=1e-3, rtol=0)
    assert wrap_angle(other.heading - plain.heading - angle).abs().max() < 1e-3
