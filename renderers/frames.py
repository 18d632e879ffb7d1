"""What the cameras of a rig show, side by side in one picture that is large enough to look at."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from .video import contact_sheet

WIDTH = 768
"""Pixels that the picture is at least about as wide as."""


def rows_of(count: int) -> int:
    """Return in how many rows `count` cameras are shown: up to three side by side."""
    return math.ceil(count / 3)


def side_by_side(frames: np.ndarray, width: int = WIDTH) -> np.ndarray:
    """Return frames (C, H, W, 3) uint8 as one picture (height, about `width`, 3) uint8, in reading order.

    Every frame is scaled by the same whole number, smoothly, so that nothing is distorted; frames larger than that are kept.
    """
    count, height, across, _ = frames.shape
    columns = math.ceil(count / rows_of(count))
    times = max(round(width / (columns * across)), 1)
    size = (times * across, times * height)
    large = [np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)) for frame in frames]
    return contact_sheet(large, columns=columns) if count > 1 else large[0].copy()
