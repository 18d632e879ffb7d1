"""Tiny cameras and clips for tests."""

from __future__ import annotations

import torch
from worldloop.worldmodel.camera import POSE_FEATURES, CameraModel
from worldloop.worldmodel.data.clips import Clip
from worldloop.worldmodel.perspective import LAYOUT_CHANNELS

TINY = {"autoencoder_channels": 8, "latent_channels": 4}
VEHICLE, NEARNESS = LAYOUT_CHANNELS.index("vehicle"), LAYOUT_CHANNELS.index("nearness")


def tiny(layouts: int = len(LAYOUT_CHANNELS)) -> CameraModel:
    torch.manual_seed(0)
    return CameraModel(
        16,
        32,
        actions=("steering", "throttle"),
        action_mean=(0.0, 0.0),
        action_scale=(1.0, 1.0),
        action_low=(-1.0, 0.0),
        action_high=(1.0, 1.0),
        layout_channels=layouts,
        appearances=("day", "night"),
        channels=(16, 16, 32),
        **TINY,
    ).eval()


def moving_square(name: str, frames: int = 24, layouts: bool = True) -> Clip:
    """A white square that steering moves to the left over a grey ground, as a camera would see it."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    steering = torch.rand(frames, generator=generator) * 2 - 1
    column = (16 - 4 * torch.cat((torch.zeros(1), steering[:-1])).cumsum(0)).remainder(32)
    inside = ((torch.arange(32) - column[:, None] + 16).remainder(32) - 16).abs() < 3
    mask = inside[:, None, :].expand(-1, 16, -1) & (torch.arange(16) > 7)[:, None]
    image = torch.where(mask, 255, 90).to(torch.uint8)
    action = torch.stack((steering, torch.rand(frames, generator=generator)), dim=-1)
    layout = None
    if layouts:
        layout = torch.zeros(*mask.shape, len(LAYOUT_CHANNELS), dtype=torch.uint8)
        layout[..., VEHICLE], layout[..., NEARNESS] = mask * 255, mask * 110
    frame = image[..., None].expand(-1, -1, -1, 3).contiguous()
    names = LAYOUT_CHANNELS if layouts else ()
    return Clip(name, frame, action, ("steering", "throttle"), 10.0, 0, layout, names, (0.5,) * POSE_FEATURES, "day")
