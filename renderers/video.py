"""Pictures to files: MP4 and GIF as streams of frames, PNG, and many frames on one sheet.

Files appear whole or not at all: everything is written under a temporary name first.
"""

from __future__ import annotations

import math
import os
import queue
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Self

import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Frame = NDArray[np.uint8]

QUALITY = "20"
"""x264's constant rate factor: flat colours and thin lines stay clean, ten seconds at 800x800 take about 0.5 MB."""

PALETTE = "split[a][b];[a]palettegen=stats_mode=single[p];[b][p]paletteuse=new=1:dither=none"
FORMATS = {
    ".mp4": [
        "-c:v",
        "libx264",
        "-pix_fmt",
        "yuv420p",
        "-crf",
        QUALITY,
        "-preset",
        "fast",
        "-movflags",
        "+faststart",
        "-f",
        "mp4",
    ],
    ".gif": ["-filter_complex", PALETTE, "-loop", "0", "-f", "gif"],
}
"""ffmpeg's options. Every frame of a GIF gets its own 256 colours, so that none has to wait for the last."""


def write_video(path: str | Path, frames: Iterable[Frame], fps: float = 10.0) -> Path:
    """Write frames (height, width, 3) uint8 as a video while they come; only the first and the one in work are held.

    MP4 is H.264 in yuv420p with its index in front, which every browser plays; an odd side grows by one pixel for it. GIF
    repeats for ever.

    Args:
        path: ends in .mp4 or .gif; missing folders are made, an existing file is replaced.
        frames: all of one size.
        fps: frames a second.

    Returns:
        The path.

    Raises:
        ValueError: no frames, a frame of another type or size, an unknown ending, or fps that is not positive.
        OSError: ffmpeg failed; its own words are in the message.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path}: unknown ending {path.suffix!r}: use one of {', '.join(FORMATS)}")
    if not 0 < fps < math.inf:
        raise ValueError(f"fps: found {fps}, wanted a positive number")
    checked = _checked(frames, path)
    first = next(checked, None)
    if first is None:
        raise ValueError(f"{path}: there are no frames to write")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        _encode(partial, FORMATS[path.suffix.lower()], chain((first,), checked), fps)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


class VideoWriter:
    """Writes a video whose frames come one by one, in a thread of its own; a context manager, at whose end the video is whole.

    Args:
        path: as in `write_video`.
        fps: frames a second.
    """

    def __init__(self, path: str | Path, fps: float = 10.0) -> None:
        self._frames: queue.Queue[Frame | None] = queue.Queue(maxsize=30)
        self._size: tuple[int, int] | None = None
        self._error: OSError | ValueError | None = None
        self._thread = threading.Thread(target=self._write, args=(path, fps), daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Wait until all is written."""
        self._put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def add(self, frame: Frame) -> None:
        """Append a frame (height, width, 3) uint8; one of another size than the first is scaled to it.

        Raises:
            OSError: the video cannot be written.
        """
        height, width, _ = frame.shape
        self._size = self._size or (width, height)
        self._put(frame if self._size == (width, height) else np.asarray(Image.fromarray(frame).resize(self._size)))

    def _put(self, frame: Frame | None) -> None:
        while self._thread.is_alive():
            with suppress(queue.Full):
                self._frames.put(frame, timeout=0.5)
                return
        if self._error is not None:
            raise self._error

    def _come(self) -> Iterator[Frame]:
        while (frame := self._frames.get()) is not None:
            yield frame

    def _write(self, path: str | Path, fps: float) -> None:
        try:
            write_video(path, self._come(), fps)
        except (OSError, ValueError) as error:  # is raised where the frames come from
            self._error = error


def write_picture(path: str | Path, frame: Frame) -> Path:
    """Write one frame (height, width, 3) uint8 as PNG; return the path.

    Raises:
        ValueError: the frame has another type or shape, or the path does not end in .png.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path}: unknown ending {path.suffix!r}: use .png")
    _check(frame, str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        Image.fromarray(frame).save(partial, format="PNG")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def contact_sheet(frames: Sequence[Frame], columns: int = 4, gap: int = 4) -> Frame:
    """Return one picture with all frames in reading order, to see a video at a glance.

    Args:
        frames: n frames (height, width, 3) uint8 of one size.
        columns: frames in a row.
        gap: pixels between frames.

    Returns:
        (rows * height + gaps, columns * width + gaps, 3) uint8; what is left empty is white.

    Raises:
        ValueError: no frames, a frame of another type or size, or columns < 1.
    """
    if columns < 1:
        raise ValueError(f"columns: found {columns}, wanted at least 1")
    kept = list(_checked(frames, "contact sheet"))
    if not kept:
        raise ValueError("contact sheet: there are no frames")
    columns = min(columns, len(kept))
    rows = math.ceil(len(kept) / columns)
    height, width, _ = kept[0].shape
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, dtype=np.uint8)
    for index, frame in enumerate(kept):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = frame
    return sheet


def _check(frame: Frame, place: str) -> None:
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
        found = f"{frame.dtype} of shape {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise ValueError(f"{place}: found {found}, wanted a frame of uint8 of shape (height, width, 3)")


def _checked(frames: Iterable[Frame], place: str | Path) -> Iterator[Frame]:
    size = None
    for index, frame in enumerate(frames):
        _check(frame, f"{place}: frame {index}")
        size = size or frame.shape
        if frame.shape != size:
            raise ValueError(f"{place}: frame {index} has shape {frame.shape}, the ones before {size}: all must be alike")
        yield frame


def _encode(path: Path, options: list[str], frames: Iterator[Frame], fps: float) -> None:
    """Pipe frames through the ffmpeg program that imageio-ffmpeg carries; its exit code tells whether the file is whole."""
    first = next(frames)
    height, width, _ = first.shape
    odd = ((0, height % 2), (0, width % 2), (0, 0))  # yuv420p halves the colour's resolution, so sides are even
    size = f"{width + width % 2}x{height + height % 2}"
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-framerate", str(fps), "-i", "-"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", *source, *options, str(path)]
    with tempfile.TemporaryFile() as complaints, subprocess.Popen(command, stdin=subprocess.PIPE, stderr=complaints) as process:
        assert process.stdin is not None
        try:
            for frame in chain((first,), frames):
                process.stdin.write(np.pad(frame, odd, mode="edge").tobytes())
            process.stdin.close()
        except BrokenPipeError:  # ffmpeg has ended early: its exit code and words, read below, say why
            with suppress(BrokenPipeError):
                process.stdin.close()
        except BaseException:
            process.kill()
            raise
        if process.wait() != 0:
            complaints.seek(0)
            raise OSError(f"{path}: ffmpeg failed: {complaints.read().decode(errors='replace').strip()}")
