"""Pictures of recordings: PNG and JPEG into tensors, at the size that is asked for."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor

from .shards import DataError

FORMATS = ("JPEG", "PNG")
MODES = ("L", "P", "RGB", "RGBA")
"""Grey, palette and colour of 8 bit; an alpha channel is left away."""
MOST_PIXELS = 2**24
"""Of one picture: some kilobytes can stand for gigabytes."""
MOST_BYTES = 2**30
"""Of one clip, which is held in memory."""
AT_ONCE = 32
"""Frames that are resized together, at the most: fewer where they have more than MOST_PIXELS in all."""


def decode(content: bytes, name: str) -> Tensor:
    """Return a picture (H, W, 3), uint8 RGB.

    Raises:
        DataError: it is no whole PNG or JPEG file of 8 bit a colour, or is too large; the message begins with `name`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(content), formats=FORMATS)
        if picture.width * picture.height > MOST_PIXELS:
            raise DataError(f"{name}: has {picture.width} x {picture.height} pixels, wanted at most {MOST_PIXELS}: shrink it")
        if picture.mode not in MODES:
            raise DataError(f"{name}: has pixels of mode {picture.mode}, wanted 8-bit grey or colour: convert it")
        return torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8).view(
            picture.height, picture.width, 3
        )
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{name}: is no whole PNG or JPEG picture ({error}): fetch the file again or leave it out") from error


def resize(frames: Tensor, height: int, width: int) -> Tensor:
    """Return frames (T, H, W, 3) uint8 at another size, every pixel the mean of the area that it covers, edges by their share.

    Unlike interpolation at points it loses no detail to aliasing, and the mean of a picture stays what it was.
    """
    if frames.shape[1:3] == (height, width):
        return frames
    rows, columns = (_cover(old, new) for old, new in zip(frames.shape[1:3], (height, width), strict=True))
    resized = torch.einsum("hy,tyxc,wx->thwc", rows, frames.float(), columns)
    return resized.round().clamp(0, 255).to(torch.uint8)


def _cover(old: int, new: int) -> Tensor:
    """Return (new, old): which share of each new pixel every old one covers, along one side."""
    edges = torch.arange(new + 1, dtype=torch.float64) * old / new
    pixels = torch.arange(old, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], pixels + 1) - torch.maximum(edges[:-1, None], pixels)
    return (overlap.clamp(min=0) * new / old).float()


def read_frames(names: Sequence[str], read: Callable[[str], bytes], place: str, size: tuple[int, int] | None) -> Tensor:
    """Return pictures as the frames (T, H, W, 3) of one clip.

    Args:
        names: of the pictures, in order.
        read: returns the content of one.
        place: where they lie, for messages.
        size: height and width to shrink or stretch them to; None if they are to stay as they are.

    Raises:
        DataError: one of them cannot be read, or their sizes differ, or they take more than `MOST_BYTES`.
    """
    parts, waiting, first = [], [], None
    for number, name in enumerate(names, 1):
        frame = decode(read(name), f"{place}: {name}")
        first = frame.shape if first is None else first
        if frame.shape != first:
            found, wanted = (f"{shape[1]} x {shape[0]}" for shape in (frame.shape, first))
            raise DataError(f"{place}: {name} has {found} pixels, those before it {wanted}: all of a clip must have the same")
        height, width = size or (int(first[0]), int(first[1]))
        if (bytes_wanted := len(names) * height * width * 3) > MOST_BYTES:
            what = f"a clip of {len(names)} frames of {width} x {height} takes {bytes_wanted / 2**30:.1f} GiB"
            raise DataError(f"{place}: {what}: make it smaller (--height, --width) or shorter (--longest)")
        waiting.append(frame)
        if number == len(names) or len(waiting) >= min(AT_ONCE, MOST_PIXELS // (first[0] * first[1])):
            parts.append(resize(torch.stack(waiting), height, width))
            waiting = []
    return torch.cat(parts)
