"""A tiny real behaviour model that tests share: random weights, a vocabulary of smooth arcs."""

from __future__ import annotations

import torch
from worldloop.worldmodel.behavior import BehaviorConfig, BehaviorModel
from worldloop.worldmodel.scene import AgentKind
from worldloop.worldmodel.tokens import MOVING_KINDS, MotionVocabulary


def arc_vocabulary(ticks: int = 5) -> MotionVocabulary:
    """Return standing still, and speeds times turn rates along arcs, for every kind."""
    time = torch.arange(1, ticks + 1) * 0.1
    motions, kinds = [], []
    for kind, top, turns in zip(MOVING_KINDS, (20.0, 2.5, 8.0), (0.4, 1.5, 0.8), strict=True):
        speed, turn = torch.meshgrid(torch.linspace(0, top, 21), torch.linspace(-turns, turns, 5), indexing="ij")
        speed, turn = speed.flatten()[:, None], torch.where(speed == 0, 0, turn).flatten()[:, None]
        heading = turn * time
        motion = torch.stack((speed * time * (heading / 2).cos(), speed * time * (heading / 2).sin(), heading), dim=-1)
        motions.append(motion[4:])  # the first five stand still: one is enough
        kinds.append(torch.full((len(motion) - 4,), int(kind)))
    return MotionVocabulary(torch.cat(motions), torch.cat(kinds))


def tiny_model(seed: int = 0, **sizes: int) -> BehaviorModel:
    """Return a model of two narrow layers with random weights."""
    torch.manual_seed(seed)
    vocabulary = arc_vocabulary()
    shape = {"width": 32, "heads": 2, "layers": 2, "hidden": 48, "pair_width": 8, "window": 3, "map_neighbours": 6} | sizes
    model = BehaviorModel(BehaviorConfig(len(vocabulary), vocabulary.checksum(), **shape), vocabulary).eval()
    with torch.no_grad():
        model.head_linear.weight.mul_(20)  # random weights give flat scores: make the model care about what it sees
    return model


def straight_motions(kind: AgentKind, count: int = 300) -> torch.Tensor:
    """Return (count, 5, 3) motions straight on at evenly spread speeds up to 3 m in 0.5 s."""
    ahead = torch.linspace(0, 3, count)[:, None] * torch.linspace(0.2, 1, 5)
    return torch.stack((ahead, torch.zeros_like(ahead), torch.zeros_like(ahead)), dim=-1)
