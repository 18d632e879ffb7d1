"""A motion vocabulary found in data by k-disks (Philion et al., Trajeglish, arXiv 2312.04535).

Draw a motion that no token covers yet, let it cover everything near it, repeat; each token is then the mean of what it covers.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .geometry import to_local, wrap_angle
from .scene import AgentKind, Scene
from .tokens import CORNER_RADIUS, MOVING_KINDS, MotionVocabulary


def collect_motions(scenes: Iterator[Scene], ticks: int, stride: int = 2) -> dict[AgentKind, Tensor]:
    """Return all motions of `ticks` ticks and their mirrors, by kind: (n, ticks, 3) in the frame at their start."""
    found: dict[AgentKind, list[Tensor]] = {kind: [] for kind in MOVING_KINDS}
    for scene in scenes:
        start = torch.arange(0, scene.steps - ticks, stride)
        window = start[:, None] + torch.arange(ticks + 1)
        whole = scene.valid[:, :, window].all(-1)
        for kind in MOVING_KINDS:
            chosen = whole & (scene.kind == kind)[..., None]
            place, heading = scene.position[:, :, window, :2][chosen], scene.heading[:, :, window][chosen]
            local = to_local(place[:, 1:], place[:, :1], heading[:, :1])
            turned = wrap_angle(heading[:, 1:] - heading[:, :1])
            found[kind].append(torch.cat((local, turned[..., None]), dim=-1))
    motions = {kind: torch.cat(parts) for kind, parts in found.items()}
    return {kind: torch.cat((m, m * m.new_tensor([1.0, -1.0, -1.0]))) for kind, m in motions.items()}


def build_vocabulary(
    motions: dict[AgentKind, Tensor], count: dict[AgentKind, int], generator: torch.Generator
) -> MotionVocabulary:
    """Find the tokens of each kind by k-disks.

    The radius of the disks is halved in on from above until at most `count` of them cover all motions but the strangest 0.1 %.
    Standing still, exactly, is always the first token of a kind.

    Args:
        motions: by kind, (n, ticks, 3), from `collect_motions`.
        count: by kind, the largest number of tokens.
        generator: draws the order in which motions are tried.
    """
    tables, kinds = [], []
    for kind in MOVING_KINDS:
        pool = motions[kind]
        if len(pool) == 0:
            raise ValueError(f"no motion of kind {kind.name} in the data: add scenes in which it moves")
        pool = pool[torch.randperm(len(pool), generator=generator)[:40_000]]
        low, high, best = 0.005, 2.0, None
        for _ in range(9):
            radius = (low * high) ** 0.5
            centres = _disks(pool, radius, CORNER_RADIUS[kind], count[kind] - 1)
            if centres is None:
                low = radius
            else:
                high, best = radius, centres
        if best is None:
            raise ValueError(f"{count[kind]} tokens are too few for the motions of {kind.name}: raise the number")
        table = torch.cat((torch.zeros_like(pool[:1]), best))
        tables.append(table)
        kinds.append(torch.full((len(table),), int(kind)))
    return MotionVocabulary(torch.cat(tables), torch.cat(kinds))


def _disks(pool: Tensor, radius: float, corner: float, most: int) -> Tensor | None:
    """Return the means (k, ticks, 3) of disks that cover 99.9 % of `pool` (n, ticks, 3), None if it takes more than `most`."""
    end = pool[:, -1]
    features = torch.cat((end[:, :2], corner * end[:, 2:].cos(), corner * end[:, 2:].sin()), dim=-1)
    free = features.norm(dim=-1).new_ones(len(pool), dtype=torch.bool)
    still = torch.tensor([0.0, 0.0, corner, 0.0])
    free &= (features - still).norm(dim=-1) > radius
    centres = []
    while int(free.sum()) > 0.001 * len(pool):
        if len(centres) == most:
            return None
        first = int(free.long().argmax())
        near = (features - features[first]).norm(dim=-1) <= radius
        centres.append(pool[near & free].mean(0))
        free &= ~near
    return torch.stack(centres) if centres else pool[:0]
