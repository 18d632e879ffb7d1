"""Clips: video with the action at every frame, and their on-disk form, of the manner of `shards.py`.

    index.json                {"format", "version", "action_names", "layout_names", "rate", "height", "width", "clips": [{"id",
                              "file", "number", "crc32", "source", "first", "frames", "pose", "appearance"}, ...]}
    shard-00000.safetensors   "<number>/frames" (T, H, W, 3) uint8, "<number>/action" (T, D) float32 and, where the data set
                              has layouts, "<number>/layout" (T, H, W, L) uint8

A clip has no gap: whoever reads a recording ends a clip wherever a frame is missing, so a window that lies within a clip never
crosses one. Frames are stored raw, at the size that training wants: a window is then a slice of mapped memory and costs no
decoding. All clips of a data set share size, rate and actions, so windows of any of them stack into one batch.

Ids are `<recording>/<number>`, numbered in the order of time. What is held out is the end of every recording (`held_out`), since
frames that are neighbours in time are nearly the same: a random choice would test on what was trained on.
"""

from __future__ import annotations

import json
import math
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from .shards import DataError, ShardFolder
from .writing import FolderWriter

LONGEST = 1000
"""Frames of a clip at the most, if nothing else is asked for."""
HELD_OUT = 0.1
"""Part of every recording that is held out for validation: its last."""
SHARD_BYTES = 64 * 2**20
"""A shard is closed once it holds so much."""


@dataclass(frozen=True)
class Clip:
    """Frames of one camera in even steps of time without a gap, and what was done at each.

    Attributes:
        id: `<recording>/<number>`.
        frames: (T, H, W, 3) uint8, RGB.
        action: (T, D) float32; row t is what was done while frame t was seen, and leads to frame t + 1.
        action_names: the D names.
        rate: frames a second (Hz).
        first: number of the first frame within its recording, as the recording counts them.
        layout: (T, H, W, L) uint8, what is where in the frames, with L `layout_names`; None where nobody knows.
        pose: numbers that say where the camera is and how it looks, in the order that its maker uses; () where unknown.
        appearance: name of the light and the weather, "" where unknown.
    """

    id: str
    frames: Tensor
    action: Tensor
    action_names: tuple[str, ...]
    rate: float
    first: int = 0
    layout: Tensor | None = None
    layout_names: tuple[str, ...] = ()
    pose: tuple[float, ...] = ()
    appearance: str = ""

    def __len__(self) -> int:
        """How many frames there are."""
        return len(self.frames)

    def validate(self) -> Self:
        """Return itself.

        Raises:
            DataError: a shape, a type or a number is not as the class says; the message names the field.
        """
        count = len(self.frames) if self.frames.ndim else 0
        if self.frames.dtype != torch.uint8 or self.frames.ndim != 4 or self.frames.shape[3] != 3 or not self.frames.numel():
            what = f"frames of shape {tuple(self.frames.shape)} and type {self.frames.dtype}, wanted (T, H, W, 3) and uint8"
        elif self.action.dtype != torch.float32 or self.action.shape != (count, len(self.action_names)):
            shape, wanted = tuple(self.action.shape), (count, len(self.action_names))
            what = f"action of shape {shape} and type {self.action.dtype}, wanted {wanted} and float32"
        elif (shape := None if self.layout is None else tuple(self.layout.shape)) != self._layout_shape():
            what = f"layout of shape {shape}, wanted {self._layout_shape()} for its names {self.layout_names}"
        elif not self.action_names or len(set(self.action_names)) != len(self.action_names):
            what = f"action_names {self.action_names}, wanted one name a column, each another"
        elif not self.action.isfinite().all():
            row, column = (~self.action.isfinite()).nonzero()[0].tolist()
            what = f"{self.action_names[column]} {self.action[row, column].item()} at frame {row}, wanted a finite number"
        elif not (math.isfinite(self.rate) and self.rate > 0):
            what = f"rate {self.rate} Hz, wanted more than 0"
        elif not self.id or self.first < 0:
            what = f"id {self.id!r} and first frame {self.first}, wanted a name and 0 or more"
        else:
            return self
        raise DataError(f"clip {self.id}: found {what}")

    def _layout_shape(self) -> tuple[int, ...] | None:
        return (*self.frames.shape[:3], len(self.layout_names)) if self.layout_names else None


def checksum(clip: Clip) -> int:
    """Return the crc32 of everything that a clip says."""
    told = [clip.id, clip.action_names, clip.rate, clip.first, clip.layout_names, clip.pose, clip.appearance]
    value = zlib.crc32(json.dumps(told).encode())
    for tensor in (clip.frames, clip.action, *([] if clip.layout is None else [clip.layout])):
        value = zlib.crc32(tensor.contiguous().flatten().view(torch.uint8).numpy().data, value)
    return value


def recording_of(id: str) -> str:
    """Return the recording that a clip was cut from: its id without the number."""
    return id.rpartition("/")[0]


def runs(gaps: Sequence[bool]) -> Iterator[range]:
    """Yield the runs without a gap; `gaps[t]` says whether there is one between frame t - 1 and frame t."""
    starts = [t for t, gap in enumerate(gaps) if gap or t == 0]
    for start, end in zip(starts, [*starts[1:], len(gaps)], strict=True):
        yield range(start, end)


def pieces(run: range, longest: int) -> Iterator[range]:
    """Yield a run cut into as few pieces of at most `longest` frames as it takes, all about as long."""
    count = -(-len(run) // longest)
    for number in range(count):
        yield run[number * len(run) // count : (number + 1) * len(run) // count]


class ClipDataset(ShardFolder):
    """Clips on disk, mapped into memory; a clip's checksum is verified when it is first touched.

    Attributes:
        action_names: what the columns of `action` are called.
        rate: frames a second (Hz).
        size: height and width of the frames in pixels.
        layout_names: what the channels of `layout` are called; () where there are no layouts.
        lengths: frames of each clip; appearances: its appearance.
    """

    ITEM = "clip"
    ENTRY = {"id": str, "file": str, "number": int, "crc32": int, "first": int, "frames": int, "pose": list, "appearance": str}

    def __init__(self, path: str | Path):
        """Open the folder `path`; a DataError if it is no data set of clips, of a version that this release reads."""
        super().__init__(path)
        names, layout_names = (self.index.get(key) for key in ("action_names", "layout_names"))
        rate, height, width = (self.index.get(key, 0) for key in ("rate", "height", "width"))
        are_names = lambda given: isinstance(given, list) and all(isinstance(name, str) for name in given)  # noqa: E731
        proper = names and are_names(names) and are_names(layout_names)
        if not proper or type(rate) not in (int, float) or type(height) is not int or type(width) is not int:
            file = self.path / "index.json"
            raise DataError(f"{file}: lacks proper action_names, layout_names, rate, height or width: import the data again")
        self.action_names: tuple[str, ...] = tuple(names or ())
        self.layout_names: tuple[str, ...] = tuple(layout_names or ())
        self.rate, self.size = float(rate), (height, width)
        self._touched: dict[tuple[str, int], tuple[Any, Tensor, Any]] = {}

    def _set_entries(self, entries: list[dict[str, Any]]) -> None:
        super()._set_entries(entries)
        self.lengths = tuple(entry["frames"] for entry in entries)
        self.appearances = tuple(entry["appearance"] for entry in entries)

    def _open(self, number: int) -> tuple[Any, Tensor, Any]:
        """Return a clip's frames, not read yet, its action, and its layout or None; verified when it is opened first."""
        entry = self.entries[number]
        place = entry["file"], entry["number"]
        if place not in self._touched:
            names = ("frames", "layout") if self.layout_names else ("frames",)
            whole = self._clip(entry, *(self._stored(entry, name) for name in ("frames", "action", *names[1:])))
            try:
                whole.validate()
            except DataError as error:
                raise self._damage(entry, f"is damaged ({error})") from error
            if tuple(whole.frames.shape[:3]) != (entry["frames"], *self.size):
                raise self._damage(entry, f"is damaged (its frames have the shape {tuple(whole.frames.shape)})")
            if checksum(whole) != entry["crc32"]:
                raise self._damage(entry, "is damaged (its checksum differs from the index)")
            frames, *layout = (self._stored(entry, name, "get_slice") for name in names)
            self._touched[place] = frames, whole.action, layout[0] if layout else None
        return self._touched[place]

    def _clip(self, entry: dict[str, Any], frames: Tensor, action: Tensor, layout: Tensor | None = None, start: int = 0) -> Clip:
        return Clip(
            entry["id"],
            frames,
            action,
            self.action_names,
            self.rate,
            entry["first"] + start,
            layout,
            self.layout_names,
            tuple(entry["pose"]),
            entry["appearance"],
        )

    def window(self, clip: int | str, start: int = 0, length: int | None = None) -> Clip:
        """Return `length` frames of a clip, named by number or id, from `start` on; to its end if no length is given.

        Raises:
            DataError: there is no such clip, or its shard is damaged. IndexError: the window does not lie within the clip.
        """
        number = self.index_of(clip) if isinstance(clip, str) else clip
        if not -len(self) <= number < len(self):
            raise IndexError(f"{self.path}: no clip number {number}, there are {len(self)}")
        entry = self.entries[number]
        end = entry["frames"] if length is None else start + length
        if not 0 <= start < end <= entry["frames"]:
            what = f"no window from frame {start} to {end}, there are {entry['frames']} frames"
            raise IndexError(f"clip {entry['id']}: {what}")
        frames, action, layout = self._open(number)
        return self._clip(entry, frames[start:end], action[start:end], None if layout is None else layout[start:end], start=start)

    def actions(self) -> Tensor:
        """Return the actions (sum of all T, D) of all clips, one after the other."""
        return torch.cat([self._open(number)[1] for number in range(len(self))])

    def sample(self, generator: torch.Generator, batch: int, length: int) -> tuple[Tensor, Tensor]:
        """Return frames (B, T, H, W, 3) uint8 and action (B, T, D) float32 of windows drawn at random, see `sample_clips`."""
        chosen = self.sample_clips(generator, batch, length)
        return torch.stack([clip.frames for clip in chosen]), torch.stack([clip.action for clip in chosen])

    def sample_clips(self, generator: torch.Generator, batch: int, length: int) -> list[Clip]:
        """Return windows drawn at random, each as likely as any other, clips shorter than `length` left out.

        Raises:
            DataError: no clip is that long, or a shard is damaged.
        """
        if batch < 1 or length < 1:
            raise ValueError(f"found a batch of {batch} and a length of {length}, wanted at least 1 of each")
        ends = torch.tensor([max(frames - length + 1, 0) for frames in self.lengths]).cumsum(0)
        if not ends[-1]:
            raise DataError(f"{self.path}: no clip has {length} frames, the longest has {max(self.lengths)}: ask for fewer")
        drawn = torch.randint(int(ends[-1]), (batch,), generator=generator)
        clips = torch.searchsorted(ends, drawn, right=True)
        left = (ends[clips] - drawn).tolist()  # 1 is the last window of a clip
        return [self.window(c, self.lengths[c] - length + 1 - n, length) for c, n in zip(clips.tolist(), left, strict=True)]

    def sides(self, part: float = HELD_OUT) -> tuple[str, ...]:
        """Return "train" or "validation" for each clip: of every recording, the last `part` (0 to 1) is held out.

        A clip is held out if its middle lies in the last `part` of its recording's frames. On a data set chosen by a glob, a
        recording is what was chosen of it.
        """
        totals, before, sides = Counter[str](), Counter[str](), []
        for entry in self.entries:
            totals[recording_of(entry["id"])] += entry["frames"]
        for entry in self.entries:
            name = recording_of(entry["id"])
            middle = before[name] + entry["frames"] / 2
            before[name] += entry["frames"]
            sides.append("validation" if middle > (1 - part) * totals[name] else "train")
        return tuple(sides)

    def held_out(self, part: float = HELD_OUT) -> tuple[ClipDataset, ClipDataset]:
        """Return the data sets to train on and to validate on, see `sides`.

        Raises:
            DataError: one of them would be empty.
        """
        sides = self.sides(part)
        train, validation = (
            [e for e, s in zip(self.entries, sides, strict=True) if s == side] for side in ("train", "validation")
        )
        if not train or not validation:
            what = f"holding out the last {part:.0%} leaves {len(train)} clips to train on and {len(validation)} to validate on"
            raise DataError(f"{self.path}: {what}: choose both by FOLDER:GLOB, or import it in shorter clips (--longest)")
        return self._part(train), self._part(validation)


class ClipWriter(FolderWriter):
    """Writes clips."""

    form = ClipDataset

    def add(self, clip: Clip, source: str = "") -> None:
        """Append a clip; `source` says where it comes from.

        Raises:
            DataError: its id is there already, or its size, rate or actions differ from those of the clips before it.
            OSError: the disk is full.
        """
        clip.validate()
        _, height, width, _ = clip.frames.shape
        header = {"action_names": list(clip.action_names), "rate": clip.rate, "height": height, "width": width}
        header["layout_names"] = list(clip.layout_names)
        for name, value in header.items():
            if self.header and self.header[name] != value:
                what = f"clip {clip.id} has the {name} {value}, those before it {self.header[name]}"
                raise DataError(f"{source or self.path}: {what}: all of a data set must have the same; import them apart")
        self.header = header
        tensors = {"frames": clip.frames.clone(), "action": clip.action.clone()}  # they may share memory with others
        if clip.layout is not None:
            tensors["layout"] = clip.layout.clone()
        entry = {"first": clip.first, "frames": len(clip), "pose": list(clip.pose), "appearance": clip.appearance}
        self._add(clip.id, source, checksum(clip), tensors, entry)
        if sum(tensor.nbytes for tensor in self._tensors.values()) >= SHARD_BYTES:
            self._write_shard()


def holds_clips(place: str | Path) -> bool:
    """Tell whether `FOLDER` or `FOLDER:GLOB` names a data set of clips; whether it is a whole one is not asked."""
    folder = Path(place) if Path(place).exists() else Path(str(place).partition(":")[0])
    try:
        index = json.loads((folder / "index.json").read_text())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(index, dict) and index.get("format") == "worldloop clips"
