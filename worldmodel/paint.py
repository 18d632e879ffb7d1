"""What colour every road user has: part of the world, so that all cameras, drawn or learned, show the same car alike.

Logs do not record it; it follows from the scene's id and the road user's place in it, and stays for as long as the scene does.
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from .sampling import hashed_uniform
from .scene import AgentKind, Scene

PAINTS = torch.tensor(
    [
        (0.62, 0.63, 0.64),
        (0.75, 0.75, 0.74),
        (0.02, 0.021, 0.024),
        (0.1, 0.105, 0.11),
        (0.27, 0.28, 0.29),
        (0.34, 0.02, 0.02),
        (0.02, 0.06, 0.22),
        (0.05, 0.16, 0.32),
        (0.03, 0.1, 0.06),
        (0.42, 0.34, 0.22),
        (0.5, 0.2, 0.03),
        (0.16, 0.03, 0.05),
    ]
)
"""Linear colours of vehicles, the common ones first: what share of them is painted so follows in `PAINT_SHARES`."""

PAINT_SHARES = torch.tensor([0.14, 0.2, 0.16, 0.12, 0.1, 0.07, 0.06, 0.05, 0.03, 0.03, 0.02, 0.02])
EGO_PAINT = torch.tensor([0.72, 0.26, 0.0])
"""The ego is orange, as it is from above."""

CLOTHES = torch.tensor(
    [
        (0.03, 0.04, 0.07),
        (0.3, 0.05, 0.04),
        (0.5, 0.48, 0.42),
        (0.05, 0.13, 0.2),
        (0.35, 0.24, 0.06),
        (0.08, 0.08, 0.08),
        (0.1, 0.2, 0.1),
    ]
)
"""Linear colours of what people wear, each as often as any other."""

OBJECT_PAINT = torch.tensor([0.2, 0.22, 0.2])
DISPLAY_GAMMA = 2.2
"""Exponent between linear colours and the bytes of a picture, near that of sRGB (IEC 61966-2-1)."""


def seed_of(scene_id: str) -> int:
    """Return the number that everything made up for a scene follows from."""
    return zlib.crc32(scene_id.encode())


def paint_of(scene: Scene) -> Tensor:
    """Return the main colour (B, A, 3), linear red, green and blue in 0..1, of every agent: its paint, or what it wears."""
    key = torch.tensor([seed_of(name) for name in scene.id], dtype=torch.int64)[:, None]
    agent = torch.arange(scene.kind.shape[1])
    share, shade = (hashed_uniform(key, agent, torch.tensor(draw))[..., None] for draw in (0, 1))
    paint = PAINTS[torch.bucketize(share[..., 0], PAINT_SHARES.cumsum(0)[:-1])] * (0.85 + 0.25 * shade)
    cloth = CLOTHES[(share[..., 0] * len(CLOTHES)).long()] * (0.8 + 0.7 * shade)
    kind = scene.kind[..., None]
    colour = torch.where(kind == AgentKind.VEHICLE, paint, cloth)
    colour = torch.where(kind == AgentKind.OBJECT, OBJECT_PAINT, colour)
    return torch.where((agent == scene.ego[:, None])[..., None], EGO_PAINT, colour)


def as_bytes(colour: Tensor) -> Tensor:
    """Return linear colours in 0..1 as a picture has them, uint8."""
    return (255.0 * colour.clamp(0.0, 1.0) ** (1.0 / DISPLAY_GAMMA)).round().to(torch.uint8)
