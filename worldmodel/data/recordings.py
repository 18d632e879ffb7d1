"""Which scenes are cuts of the same recorded moments: copies say nothing twice, and one that was trained on is not held out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..scene import Scene

MOVING = 0.5
"""Metres a second from which a road user counts; parked cars stand in the same place in all recordings of a street."""

LATER = 3
"""Steps of 0.1 s between the three speeds of a moment."""

SHARED = 0.1
"""Share of the moments of the shorter of two scenes from which both are of one recording. SUMO's scenes of different simulations
share under 6 %, those of two egos of one simulation mostly over 20 %."""


def moments(scene: Scene) -> Tensor:
    """Return how road users move in a scene (B = 1), each seen moment as one number, (n,) int64 in order.

    A moment is a road user's length and width and three speeds, LATER steps apart, in centimetres and cm/s: what no choice of
    origin or direction changes, as scenes are centred on their egos, of which a recording has many. Who drives evenly looks like
    any other who does, and does not count.
    """
    speed, valid = (scene.velocity[0].norm(dim=-1) * 100.0).round().long(), scene.valid[0]
    spans = [slice(start, max(scene.steps - 2 * LATER + start, 0)) for start in (0, LATER, 2 * LATER)]
    now, later, last = (speed[:, span] for span in spans)
    there = valid[:, spans[0]] & valid[:, spans[1]] & valid[:, spans[2]]
    there &= (now > MOVING * 100.0) & (now != later) & (later != last)
    length, width = (scene.size[0, :, :2] * 100.0).round().long().T[..., None].expand(-1, *there.shape)
    number = torch.zeros(int(there.sum()), dtype=torch.int64)
    for told in (length, width, now, later, last):
        number = number * 1_000_003 + told[there]  # a hash: it wraps around
    return number.unique()


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
