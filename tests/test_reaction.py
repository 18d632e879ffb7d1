"""What the shipped weights do when the ego brakes: the reason for a learned world."""

from __future__ import annotations

from dataclasses import replace

import torch
from scenes import EGO, FOLLOWER, LEADER, straight_road
from worldloop.worldmodel.dynamics import KinematicBicycle
from worldloop.worldmodel.world import LearnedWorld, State

FUTURES = 32
STEPS = 40


def futures(acceleration: float, key: torch.Tensor) -> State:
    """Return the moment 4 s after the ego has begun to brake (or not), once for each random key."""
    world, car = LearnedWorld.from_pretrained(), KinematicBicycle()
    scene = straight_road(leader_gap=70.0, follower_gap=18.0)
    # Nobody but a car behind and one far ahead: what changes can only come from the ego.
    scene = replace(scene, valid=scene.valid & torch.tensor([True, True, True, False, False, False])[:, None])
    scene = replace(scene, signal_valid=torch.zeros_like(scene.signal_valid))
    state = world.reset(scene.repeat(FUTURES), key)
    action = torch.tensor([[acceleration, 0.0]]).expand(FUTURES, 2)
    for _ in range(STEPS):
        state = world.step(state, car.step(state.ego(), action))
    return state


def test_the_car_behind_answers_a_braking_ego_and_the_one_far_ahead_does_not():
    key = torch.arange(FUTURES)
    kept, braked, other = futures(0.0, key), futures(-6.0, key), futures(0.0, key + FUTURES)
    assert kept.position[0, EGO, 0] - braked.position[0, EGO, 0] > 20
    behind = (kept.position - braked.position)[:, FOLLOWER, 0].mean()
    slower = (kept.velocity - braked.velocity)[:, FOLLOWER, 0].mean()
    assert behind > 3.0, f"the car behind went only {behind:.1f} m less far when the ego braked"
    assert slower > 1.0
    # Sampling noise: how much the mean of so many futures differs when nothing but the keys does.
    ahead = (kept.position - braked.position)[:, LEADER, 0].mean().abs()
    spread = kept.position[:, LEADER, 0].std() / FUTURES**0.5
    noise = (kept.position - other.position)[:, LEADER, 0].mean().abs()
    assert ahead <= 3 * max(spread, noise)


def test_shipped_weights_are_those_that_the_card_speaks_of():
    world = LearnedWorld.from_pretrained()
    parameters = sum(p.numel() for p in world.model.parameters())
    from importlib.resources import files

    card = (files("worldloop.assets") / "behavior" / "README.md").read_text()
    assert f"{parameters:,} parameters" in card
    assert f"vocabulary checksum {world.model.config.vocabulary_checksum}" in card
