"""Windows of clips as a camera's network takes them, and films that it paints from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from .camera import POSE_FEATURES, CameraModel, Conditions, Footage, as_planes, to_bytes
from .data.clips import Clip, ClipDataset, recording_of
from .perspective import LAYOUT_CHANNELS


def require_fit(model: CameraModel, datasets: Sequence[ClipDataset], frames: int) -> None:
    """Refuse clips that a camera cannot read: of other sizes, actions or layouts, or all shorter than `frames`.

    Raises:
        ValueError: they do not fit; the message names the folder.
    """
    config = cast(Any, model.config)
    wanted = ((config.height, config.width), tuple(config.actions), config.rate)
    for dataset in datasets:
        found = (dataset.size, dataset.action_names, dataset.rate)
        if found != wanted:
            raise ValueError(
                f"{dataset.path}: has frames of {found[0]}, actions {found[1]} and {found[2]:g} Hz, the camera takes "
                f"{wanted[0]}, {wanted[1]} and {wanted[2]:g} Hz: import or film it so"
            )
        if dataset.layout_names and dataset.layout_names != (LAYOUT_CHANNELS if config.layout_channels else ()):
            raise ValueError(f"{dataset.path}: its layouts are not those that the camera takes: film the scenes again")
    if frames > (longest := max(max(dataset.lengths) for dataset in datasets)):
        raise ValueError(
            f"{datasets[0].path}: no clip has {frames} frames, the longest has {longest}: import or film longer ones"
        )


def require_apart(data: Sequence[ClipDataset], held_out: Sequence[ClipDataset]) -> None:
    """Refuse held-out clips that share frames of a recording with those that are trained on.

    Raises:
        ValueError: some do.
    """
    spans: dict[str, list[tuple[int, int]]] = {}
    for entry in (entry for dataset in data for entry in dataset.entries):
        spans.setdefault(recording_of(entry["id"]), []).append((entry["first"], entry["first"] + entry["frames"]))
    shared = [
        entry["id"]
        for dataset in held_out
        for entry in dataset.entries
        if any(a < entry["first"] + entry["frames"] and entry["first"] < b for a, b in spans.get(recording_of(entry["id"]), []))
    ]
    if shared:
        raise ValueError(f"{len(shared)} clips of --validation show frames of --data, such as {min(shared)}: separate them")


@dataclass(frozen=True)
class Window:
    """N windows of K past frames and F following ones, for the network.

    Attributes:
        code: (N, K + F, c, h, w) uint8 latents.
        layout: (N, F, H, W, L) uint8 of the following frames; L is 0 where there are none.
        action: (N, F, K, D) what was done at each of the K frames before each following one.
        pose: (N, POSE_FEATURES) of the cameras.
        appearance: (N,) int64 into the model's.
    """

    code: Tensor
    layout: Tensor
    action: Tensor
    pose: Tensor
    appearance: Tensor

    @classmethod
    def of(cls, model: CameraModel, clips: Sequence[Clip], codes: Sequence[Tensor]) -> Window:
        """Return windows of equally long clips, whose frames are `codes` (K + F, c, h, w) each."""
        config = cast(Any, model.config)
        past, names = config.past, list(config.appearances)
        blank = lambda clip: clip.frames.new_zeros(*clip.frames.shape[:3], 0)  # noqa: E731
        return cls(
            code=torch.stack(list(codes)),
            layout=torch.stack([(blank(clip) if clip.layout is None else clip.layout)[past:] for clip in clips]),
            action=torch.stack([clip.action[:-1].unfold(0, past, 1).transpose(1, 2) for clip in clips]),
            pose=torch.tensor([clip.pose or [0.0] * POSE_FEATURES for clip in clips]),
            appearance=torch.tensor([names.index(c.appearance) if c.appearance in names else len(names) for c in clips]),
        )


class Clips:
    """Clips as latents in memory; windows are drawn evenly from all of their frames."""

    def __init__(self, datasets: Sequence[ClipDataset], model: CameraModel, show: Callable[[float], None]):
        """Encode every frame; `show` is told the share done."""
        self.model, self.layout_names = model, datasets[0].layout_names
        self.place = [(dataset, row) for dataset in datasets for row in range(len(dataset))]
        self.lengths = torch.tensor([dataset.lengths[row] for dataset, row in self.place])
        self.code: list[Tensor] = []
        with torch.no_grad():
            for number, (dataset, row) in enumerate(self.place):
                frames = dataset.window(row).frames
                self.code.append(torch.cat([to_bytes(model.encode(piece), model) for piece in frames.split(64)]))
                show((number + 1) / len(self.place))

    def draw(self, count: int, following: int, generator: torch.Generator) -> Window:
        """Return `count` random windows with `following` frames after the past ones.

        Raises:
            ValueError: no clip is that long.
        """
        length = cast(Any, self.model.config).past + following
        usable = (self.lengths - length + 1).clamp(min=0)
        if not usable.any():
            raise ValueError(f"no clip has {length} frames, the longest has {int(self.lengths.max())}: import longer ones")
        clips, codes = [], []
        for number in torch.multinomial(usable.double(), count, replacement=True, generator=generator).tolist():
            start = int(torch.randint(int(usable[number]), (), generator=generator))
            dataset, row = self.place[number]
            clips.append(dataset.window(row, start, length))
            codes.append(self.code[number][start : start + length])
        return Window.of(self.model, clips, codes)


def layout_of(model: CameraModel, window: Window, place: int) -> Tensor:
    """Return the layout (N, L, H, W) of following frame `place`, nothing but zeros where the clips have none."""
    config = cast(Any, model.config)
    if window.layout.shape[-1]:
        return as_planes(window.layout[:, place])
    return torch.zeros(len(window.code), config.layout_channels, config.height, config.width)


def conditions(model: CameraModel, window: Window, place: int, past: Tensor, level: Tensor, noise: Tensor) -> Conditions:
    """Return what following frame `place` is painted from, after `past` (N, K, c, h, w) with noise of `level` (N,) on it."""
    everything = torch.ones(len(past), dtype=torch.bool)
    return Conditions(
        past=past + level[:, None, None, None, None] * noise,
        past_valid=torch.ones(past.shape[:2], dtype=torch.bool),
        level=level,
        layout=layout_of(model, window, place),
        layout_valid=everything if window.layout.shape[-1] else ~everything,
        action=window.action[:, place],
        action_valid=everything,
        pose=window.pose,
        appearance=window.appearance,
    )


def some_clips(datasets: Sequence[ClipDataset], count: int, generator: torch.Generator) -> list[Clip]:
    """Return `count` clips of one frame, each frame of all data sets as likely as any other."""
    share = torch.tensor([sum(dataset.lengths) for dataset in datasets]).double()
    chosen = torch.multinomial(share, count, replacement=True, generator=generator).bincount(minlength=len(datasets)).tolist()
    return [clip for dataset, n in zip(datasets, chosen, strict=True) if n for clip in dataset.sample_clips(generator, n, 1)]


def roll(model: CameraModel, window: Window, key: Tensor, steps: int = 2, told: bool = True) -> Tensor:
    """Return frames (N, F, H, W, 3) uint8 painted one after the other, from the window's past, layouts and actions.

    Args:
        model: the camera.
        window: N windows.
        key: (N,) int64, the source of their random numbers.
        steps: Euler steps for each frame.
        told: whether the camera is told the actions.
    """
    past = window.code[:, : cast(Any, model.config).past]
    done = window.action[:, 0].roll(1, dims=1)  # what led to the first past frame is not looked at
    footage, frames = Footage(past, torch.ones(past.shape[:2], dtype=torch.bool), done), []
    for place in range(window.action.shape[1]):
        frame, footage = footage.paint(
            model,
            key,
            torch.full_like(key, place),
            window.action[:, place, -1] if told else None,
            as_planes(window.layout[:, place]) if window.layout.shape[-1] else None,
            window.pose,
            window.appearance,
            steps,
        )
        frames.append(frame)
    return torch.stack(frames, dim=1)
