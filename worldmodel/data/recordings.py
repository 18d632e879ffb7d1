"""Which scenes are cuts of the same recorded moments: copies say nothing twice, and one that was trained on is not held out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..scene import Scene

CENTIMETRES, CENTIRADIANS = 100.0, 100.0
"""Grid on which two places are the same: 1 cm and 0.01 rad."""

MOVING = 0.5
"""Metres a second from which a road user counts; parked cars stand in the same place in all recordings of a street."""

SHARED = 0.1
"""Share of the places of the shorter of two scenes from which both are of one recording. Cuts of NGSIM by different authors share
all or under 0.1 % of them."""


def moments(scene: Scene) -> Tensor:
    """Return where road users that move were seen in a scene (B = 1), each place and heading as one number, (n,) int64 in order.

    Two cuts of a recording have them in common if they count coordinates from the same origin.
    """
    moving = scene.valid[0] & (scene.velocity[0].norm(dim=-1) > MOVING)
    place = (scene.position[0, ..., :2][moving] * CENTIMETRES).round().long()
    heading = (scene.heading[0][moving] * CENTIRADIANS).round().long()
    return (((place[:, 0] << 31) ^ (place[:, 1] << 10)) ^ (heading & 1023)).unique()


def recordings(scenes: Sequence[Tensor]) -> list[int]:
    """Return for each scene, by its `moments`, the number of the first one that is of the same recording."""
    first = list(range(len(scenes)))

    def root(number: int) -> int:
        while first[number] != number:
            number = first[number]
        return number

    sizes = [len(scene) for scene in scenes]
    owner = torch.arange(len(scenes)).repeat_interleave(torch.tensor(sizes, dtype=torch.int64))
    place, order = torch.cat([torch.zeros(0, dtype=torch.int64), *scenes]).sort(stable=True)
    same = place[1:] == place[:-1]
    pairs, counts = torch.stack((owner[order][:-1][same], owner[order][1:][same])).unique(dim=1, return_counts=True)
    for (one, other), count in zip(pairs.T.tolist(), counts.tolist(), strict=True):
        if count > SHARED * min(sizes[one], sizes[other]):
            low, high = sorted((root(one), root(other)))
            first[high] = low
    return [root(number) for number in range(len(scenes))]
