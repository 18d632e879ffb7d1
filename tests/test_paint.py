"""Tests of the colours of road users."""

from __future__ import annotations

from dataclasses import replace

import torch
from scenes import EGO, straight_road
from worldloop.worldmodel.paint import EGO_PAINT, PAINT_SHARES, PAINTS, as_bytes, paint_of, seed_of
from worldloop.worldmodel.scene import AgentKind, stack


def test_a_road_user_keeps_its_colour_whoever_else_is_in_the_batch() -> None:
    scene, other = straight_road(), replace(straight_road(), id=["elsewhere"])
    both = paint_of(stack([other, scene]))
    assert torch.equal(both[1], paint_of(scene)[0])
    assert not torch.equal(both[0], both[1])
    assert torch.equal(both[0, EGO], EGO_PAINT)


def test_paints_are_as_common_as_they_should_be() -> None:
    count = 20_000
    scene = straight_road()
    many = replace(scene, kind=torch.full((1, count), int(AgentKind.VEHICLE)), ego=torch.tensor([count - 1]))
    shade = paint_of(many)[0, :-1, None] / PAINTS
    matches = (shade.amax(-1) - shade.amin(-1) < 1e-4) & (shade.amin(-1) > 0.84) & (shade.amax(-1) < 1.11)
    assert (matches.sum(-1) == 1).all()
    assert (matches.float().mean(0) - PAINT_SHARES).abs().max() < 0.01


def test_bytes_of_colours() -> None:
    assert as_bytes(torch.tensor([0.0, 1.0, 2.0, 0.5**2.2])).tolist() == [0, 255, 255, 128]
    assert seed_of("a") == 0xE8B7BE43  # the CRC-32 of one letter, from tables
