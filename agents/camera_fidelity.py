"""`worldloop fidelity camera`: whether a learned camera does what it is told, and for how long it goes on doing so.

Two readers (`worldmodel/frame_readers.py`) are trained on recorded frames, checked on held-out ones, and then read what the
camera has painted from held-out clips:

- action following: the correlation of the actions read with those commanded, and the error, as many frames late as the recording
  shows an action best. Controls: what the same reader reads in the recording; what it reads where the camera is told another
  clip's actions and layouts, held against those ("told otherwise") and against its own, which it was not told ("shuffled");
  and what it reads where the camera is told no action ("action hidden"): with layouts, which move as the ego did, that says how
  much of the following is the layout's.
- layout agreement: the share of vehicles (connected patches of the layout's vehicle channel, within 30 m) that are found again:
  at least half of their pixels are read as vehicle. The control asks for the vehicles of another clip's layout.
- drift: sharpness (mean absolute Laplacian), colour (means and deviations of the three channels) and the Fréchet distance of the
  action reader's features to the recording's, in the first and the last hundred frames of a long film; with layouts against the
  same hundred frames of the recording, without against all of it.
- distance: that Fréchet distance over films, like FVD (Unterthiner et al., arXiv 1812.01717) with the action reader for a
  network: of one half of the painted films to the other half of the recorded ones, and of the same halves of recorded ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from scipy import ndimage
from torch import Tensor

from ..renderers.curves import plot_lines
from ..renderers.video import contact_sheet, write_picture, write_video
from ..worldmodel.camera import CameraModel, camera_checksum, load_camera, to_bytes
from ..worldmodel.camera_windows import Window, require_apart, require_fit, roll, some_clips
from ..worldmodel.data.clips import Clip, ClipDataset
from ..worldmodel.files import write_csv
from ..worldmodel.frame_readers import (
    LAGS,
    READ_FRAMES,
    ActionReader,
    VehicleFinder,
    frechet_distance,
    sharpness,
    train_reader,
)
from ..worldmodel.perspective import LAYOUT_CHANNELS, layout_depth
from ..worldmodel.run import dated_folder, seeded_generator, whole_run
from ..worldmodel.shipped import SHIPPED_CAMERA

NEAR = 30.0
"""Metres: vehicles nearer than that are looked for."""

VEHICLE = LAYOUT_CHANNELS.index("vehicle")

LEAST_VARIATION = 1e-3
"""Standard deviations of an action's training data: where films vary it less, nothing can be said of following it."""

SMALLEST = 6
"""Pixels of the smallest patch that is looked for."""

SPAN = 100
"""Frames at the start and at the end of a long film that are held against each other."""

SHOWN = 6
"""Frames of each film in the picture."""


@dataclass(frozen=True)
class CameraFidelity:
    """Measure whether a learned camera follows actions and layouts, and whether it drifts.

    Prints a table and writes a run folder with run.json, actions.csv (every action, commanded and read), films.png,
    long_films.png and film.mp4 (recorded above, painted below; the last of the first film), drift.png.

    Example: worldloop fidelity camera --data clips/made --validation clips/held --out runs/camera-fidelity
    """

    data: tuple[str, ...]
    """Folders of clips that the readers are trained on: those that the camera was trained on."""
    validation: tuple[str, ...]
    """Folders of clips that neither has seen; of a camera with layouts the longest ones show the drift."""
    weights: Path = SHIPPED_CAMERA
    """Folder of a trained camera; the shipped driving camera if not given."""
    films: int = 16
    """Films of `frames` frames that actions and layouts are read from."""
    frames: int = 60
    """Frames of each."""
    long_films: int = 4
    """Films that show the drift."""
    long_frames: int = 1000
    """Frames of each; of a camera with layouts at most as many as the longest held-out clip has."""
    steps: int = 2
    """Euler steps for each frame."""
    reader_steps: int = 2000
    """Optimiser steps of each reader."""
    seed: int = 0
    """Seed of readers, windows and sampling."""
    out: Path | None = None
    """Run folder, runs/fidelity-camera-DATE if not given."""


@dataclass(frozen=True)
class Films:
    """Recorded clips and what the camera painted from their first frames.

    Attributes:
        recorded, painted: (N, F, H, W, 3) uint8.
        action: (N, F, D) what led to each frame.
        layout: (N, F, H, W, L) uint8.
    """

    recorded: Tensor
    painted: Tensor
    action: Tensor
    layout: Tensor


def choose(datasets: Sequence[ClipDataset], count: int, length: int, generator: torch.Generator) -> list[Clip]:
    """Return `count` windows of `length` frames, each of another clip while there are any.

    Raises:
        ValueError: no clip is that long.
    """
    places = [(dataset, row) for dataset in datasets for row, frames in enumerate(dataset.lengths) if frames >= length]
    if not places:
        longest = max(max(dataset.lengths) for dataset in datasets)
        raise ValueError(f"--validation: no clip has {length} frames, the longest has {longest}: take fewer --frames")
    order = torch.randperm(len(places), generator=generator).tolist()
    clips = []
    for number in range(count):
        dataset, row = places[order[number % len(order)]]
        spare = dataset.lengths[row] - length
        clips.append(dataset.window(row, int(torch.randint(spare + 1, (), generator=generator)), length))
    return clips


def joined(datasets: Sequence[ClipDataset], length: int, generator: torch.Generator) -> Clip:
    """Return whole clips one after the other, from a random one on, as one of `length` frames: a long list of actions.

    Its frames jump where clips meet; they serve as what frames look like on the whole.
    """
    places = [(dataset, row) for dataset in datasets for row in range(len(dataset))]
    at, clips = int(torch.randint(len(places), (), generator=generator)), []
    while sum(len(clip) for clip in clips) < length:
        dataset, row = places[(at + len(clips)) % len(places)]
        clips.append(dataset.window(row))
    frames, action = (torch.cat([getattr(clip, name) for clip in clips])[:length] for name in ("frames", "action"))
    return replace(clips[0], frames=frames, action=action)


def others_of(clips: Sequence[Clip]) -> list[Clip]:
    """Return for each clip the next one that is another.

    Raises:
        ValueError: there is only one.
    """
    if len({clip.id for clip in clips}) < 2:
        raise ValueError(f"--validation: only {clips[0].id} is long enough, wanted two clips to tell apart: take fewer --frames")
    around = [*clips, *clips]
    return [next(other for other in around[place + 1 :] if other.id != clip.id) for place, clip in enumerate(clips)]


@torch.no_grad()
def paint(
    model: CameraModel,
    clips: Sequence[Clip],
    key: Tensor,
    steps: int,
    instead: Sequence[Clip] | None = None,
    told: bool = True,
) -> Films:
    """Return films that go on from the clips' first frames.

    Args:
        model: the camera.
        clips: where films begin.
        key: (N,) int64 random keys.
        steps: Euler steps for each frame.
        instead: clips whose actions and layouts are taken; the clips' own if None.
        told: whether the camera is told the actions.
    """
    past = int(model.config["past"])
    codes = [to_bytes(model.encode(clip.frames[:past]), model) for clip in clips]
    window = Window.of(model, instead or clips, codes)
    recorded = torch.stack([clip.frames[past:] for clip in clips])
    return Films(recorded, roll(model, window, key, steps, told), window.action[:, :, -1], window.layout)


@torch.no_grad()
def read_actions(reader: ActionReader, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Return actions (N, F - READ_FRAMES + 1, LAGS, D) read of films (N, F, H, W, 3), and the features (N, ..., FEATURES)."""
    windows = frames.unfold(1, READ_FRAMES, 1).movedim(-1, 2)
    pieces = windows.flatten(0, 1).split(256)
    features = torch.cat([reader.features(piece) for piece in pieces])
    return reader.read(features).unflatten(0, windows.shape[:2]), features.unflatten(0, windows.shape[:2])


def correlation(one: Tensor, other: Tensor, least: float = 1e-9) -> float | None:
    """Return Pearson's correlation of two tensors of equal shape; None if one's standard deviation is not above `least`."""
    if min(one.std(), other.std()) <= least:
        return None
    return float(torch.corrcoef(torch.stack((one.flatten(), other.flatten())))[0, 1])


def vehicles(layout: Tensor) -> Tensor:
    """Return where vehicles nearer than NEAR are, (..., H, W) bool, of layouts (..., H, W, L) uint8."""
    return (layout[..., VEHICLE] > 127) & (layout_depth(layout) < NEAR)


@torch.no_grad()
def found_share(finder: VehicleFinder, frames: Tensor, wanted: Tensor) -> tuple[float, int]:
    """Return the share of vehicle patches of `wanted` (N, H, W) bool that are found in frames (N, H, W, 3), and their number."""
    found = torch.cat([finder(piece) > 0 for piece in frames.split(256)])
    hits = count = 0
    for seen, mask in zip(found.numpy(), wanted.numpy(), strict=True):
        patches: np.ndarray = ndimage.label(mask)[0]  # pyright: ignore[reportIndexIssue]
        if patches.any():
            inside = np.arange(1, patches.max() + 1)
            sizes, covered = (ndimage.sum_labels(values, patches, inside) for values in (mask, seen & mask))
            large = sizes >= SMALLEST
            hits += int((covered[large] >= 0.5 * sizes[large]).sum())
            count += int(large.sum())
    return hits / max(count, 1), count


def drift_figures(painted: Tensor, recorded: Tensor, features: Tensor, reference: Tensor) -> dict[str, float]:
    """Return how far frames (N, F, H, W, 3) are from the recorded ones of the same moments; features are (M, FEATURES)."""
    sharp = [sharpness(frames.flatten(0, 1)).mean() for frames in (painted, recorded)]
    moments = [
        torch.cat([f.float().mean(dim=(0, 1, 2, 3)), f.float().std(dim=(2, 3)).mean(dim=(0, 1))]) for f in (painted, recorded)
    ]
    return {
        "sharpness": float((sharp[0] / sharp[1]).log().abs()),
        "colour": float((moments[0] - moments[1]).abs().mean()),
        "features": frechet_distance(features, reference),
    }


def run_camera_fidelity(args: CameraFidelity) -> Path:
    """Run `worldloop fidelity camera`; return the run folder."""
    if min(args.long_films, args.long_frames, args.steps, args.reader_steps) < 1 or args.films < 2 or args.frames <= READ_FRAMES:
        raise ValueError(
            f"wanted --films >= 2, --frames > {READ_FRAMES}, and --long-films, --long-frames, --steps, --reader-steps >= 1"
        )
    model = load_camera(args.weights)
    data, held_out = ([ClipDataset.named(text) for text in texts] for texts in (args.data, args.validation))
    require_fit(model, data, READ_FRAMES)
    require_fit(model, held_out, args.frames + int(model.config["past"]))
    require_apart(data, held_out)
    out = args.out or dated_folder("fidelity-camera")
    with whole_run(out, "fidelity camera", asdict(args) | {"weights": str(args.weights), "out": str(out)}, args.seed) as run:
        with Progress(console=Console(stderr=True)) as progress:
            results = {"weights_checksum": camera_checksum(args.weights)}
            results |= measure(model, data, held_out, args, run.folder, progress)
        run.finish(results)
    print_table(results, Console())
    return out


def measure(
    model: CameraModel,
    data: Sequence[ClipDataset],
    held_out: Sequence[ClipDataset],
    args: CameraFidelity,
    folder: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Train the readers, paint the films, read them; write the pictures into `folder` and return all figures."""
    generator = seeded_generator(args.seed, "camera fidelity")
    torch.manual_seed(args.seed)
    reader = learn_actions(data, args.reader_steps, generator, progress)
    clips = choose(held_out, args.films, args.frames + int(model.config["past"]), generator)
    key = torch.randint(2**62, (args.films,), generator=generator)
    films = paint(model, clips, key, args.steps)
    others = paint(model, clips, key, args.steps, instead=others_of(clips))
    hidden = paint(model, clips, key, args.steps, told=False)
    results: dict[str, Any] = {"actions": follow(reader, films, others, hidden, data[0].action_names, folder)}
    if data[0].layout_names and films.layout.shape[-1]:
        finder = learn_vehicles(data, args.reader_steps, generator, progress)
        wanted = vehicles(films.layout)
        shares = {
            "painted": (films.painted, wanted),
            "recorded": (films.recorded, wanted),
            "another layout": (films.painted, vehicles(others.layout)),
        }
        results["vehicles"] = {
            name: dict(zip(("share", "count"), found_share(finder, frames.flatten(0, 1), mask.flatten(0, 1)), strict=True))
            for name, (frames, mask) in shares.items()
        }
    features, reference = (read_actions(reader, f)[1] for f in (films.painted, films.recorded))
    half = args.films // 2
    results["distance"] = {
        "painted to recorded": frechet_distance(features[:half].flatten(0, 1), reference[half:].flatten(0, 1)),
        "recorded to recorded": frechet_distance(reference[:half].flatten(0, 1), reference[half:].flatten(0, 1)),
    }
    show(films, folder / "films.png")
    moments = zip(films.recorded[0], films.painted[0], strict=True)
    write_video(
        folder / "film.mp4", (contact_sheet([enlarged(f) for f in pair], columns=1) for pair in moments), model.config["rate"]
    )
    results["drift"] = measure_drift(model, reader, held_out, args, folder, generator, progress)
    return results


def learn_actions(data: Sequence[ClipDataset], steps: int, generator: torch.Generator, progress: Progress) -> ActionReader:
    """Return a reader of actions, trained on recorded frames."""
    actions = torch.cat([dataset.actions() for dataset in data])
    reader = ActionReader(actions.shape[1], *data[0].size)
    reader.mean.copy_(actions.mean(0))
    reader.scale.copy_(actions.std(0).clamp(min=1e-3))
    bar = progress.add_task("reading actions", total=steps)

    def batch(draw: torch.Generator) -> tuple[Tensor, Tensor]:
        return data[int(torch.randint(len(data), (), generator=draw))].sample(draw, 32, READ_FRAMES)

    train_reader(reader, batch, steps, generator, lambda: progress.advance(bar))
    return reader


def learn_vehicles(data: Sequence[ClipDataset], steps: int, generator: torch.Generator, progress: Progress) -> VehicleFinder:
    """Return a finder of vehicles, trained on recorded frames and their layouts."""
    finder, bar = VehicleFinder(), progress.add_task("finding vehicles", total=steps)

    def batch(draw: torch.Generator) -> tuple[Tensor, Tensor]:
        shown = some_clips(data, 24, draw)
        layout = torch.cat([clip.layout for clip in shown if clip.layout is not None])
        near, any_distance = vehicles(layout), layout[..., VEHICLE] > 127
        return torch.cat([clip.frames for clip in shown]), near.to(torch.int8) - (any_distance & ~near).to(torch.int8)

    train_reader(finder, batch, steps, generator, lambda: progress.advance(bar))
    return finder


def late(action: Tensor) -> Tensor:
    """Return the actions (N, F - READ_FRAMES + 1, LAGS, D) that a reader of films with `action` (N, F, D) has to find."""
    first, count = READ_FRAMES - 1, action.shape[1]
    return torch.stack([action[:, first - lag : count - lag] for lag in range(LAGS)], dim=2)


def follow(
    reader: ActionReader, films: Films, others: Films, hidden: Films, names: Sequence[str], folder: Path
) -> dict[str, Any]:
    """Return, for each action, how well it is read back; write all actions into actions.csv.

    An action is read so many frames late as the recording shows it best; what hardly varies in the films has no correlation.
    """
    commanded, given = late(films.action), late(others.action)
    painted, recorded, swapped, blind = (
        read_actions(reader, f)[0] for f in (films.painted, films.recorded, others.painted, hidden.painted)
    )
    results, columns = {}, {}
    for d, name in enumerate(names):
        least = LEAST_VARIATION * float(reader.scale[d])
        related = [correlation(recorded[:, :, lag, d], commanded[:, :, lag, d], least) for lag in range(LAGS)]
        lag = max(range(LAGS), key=[-1.0 if value is None else value for value in related].__getitem__)
        at = (..., lag, d)
        columns |= {f"{name}_commanded": commanded[at], f"{name}_read": painted[at]}
        results[name] = {
            "painted": correlation(painted[at], commanded[at], least),
            "recorded": related[lag],
            "told otherwise": correlation(swapped[at], given[at], least),
            "shuffled": correlation(swapped[at], commanded[at], least),
            "action hidden": correlation(blind[at], commanded[at], least),
            "error": float((painted[at] - commanded[at]).abs().mean()),
            "error recorded": float((recorded[at] - commanded[at]).abs().mean()),
            "frames late": lag,
        }
    rows = [
        {"film": n, "frame": f + READ_FRAMES - 1} | {name: round(float(values[n, f]), 5) for name, values in columns.items()}
        for n in range(len(commanded))
        for f in range(commanded.shape[1])
    ]
    write_csv(folder / "actions.csv", rows)
    return results


def measure_drift(
    model: CameraModel,
    reader: ActionReader,
    held_out: Sequence[ClipDataset],
    args: CameraFidelity,
    folder: Path,
    generator: torch.Generator,
    progress: Progress,
) -> dict[str, Any]:
    """Paint long films; return the drift figures of their first and last frames, and draw them over time."""
    past = int(model.config["past"])
    frames = args.long_frames
    if held_out[0].layout_names:  # which follow the actions, so that clips cannot be joined
        frames = min(frames, max(max(dataset.lengths) for dataset in held_out) - past)
    if frames < 2 * SPAN:
        return {"frames": frames}
    bar = progress.add_task("long films", total=args.long_films)
    if held_out[0].layout_names:
        clips = choose(held_out, args.long_films, frames + past, generator)
    else:
        clips = [joined(held_out, frames + past, generator) for _ in range(args.long_films)]
    painted, recorded = [], []
    for number, clip in enumerate(clips):
        film = paint(model, [clip], torch.tensor([args.seed + number]), args.steps)
        painted.append(film.painted)
        recorded.append(film.recorded)
        progress.update(bar, completed=number + 1)
    film, real = torch.cat(painted), torch.cat(recorded)
    features, reference = (read_actions(reader, f)[1] for f in (film, real))
    like = lambda span: reference[:, span] if held_out[0].layout_names else reference  # noqa: E731
    spans = [slice(start, start + SPAN) for start in range(0, frames - SPAN + 1, SPAN)]
    figures = [drift_figures(film[:, s], real[:, s], features[:, s].flatten(0, 1), like(s).flatten(0, 1)) for s in spans]
    panels = {
        name: {"painted": [(s.start + SPAN / 2, row[name]) for s, row in zip(spans, figures, strict=True)]} for name in figures[0]
    }
    plot_lines(folder / "drift.png", panels, "frame")
    show(Films(real[:2], film[:2], torch.empty(0), torch.empty(0)), folder / "long_films.png")
    first, last = figures[0], figures[-1]
    return {"frames": frames, "films": len(clips)} | {
        name: {"first": first[name], "last": last[name], "ratio": last[name] / max(first[name], 1e-9)} for name in first
    }


def enlarged(frame: Tensor) -> np.ndarray:
    """Return a frame (H, W, 3) at twice its size, its pixels as they are."""
    return frame.numpy().repeat(2, axis=0).repeat(2, axis=1)


def show(films: Films, path: Path) -> None:
    """Draw some frames of the first films, recorded above and painted below."""
    count = films.painted.shape[1]
    at = [round(share * (count - 1)) for share in np.linspace(0, 1, SHOWN)]
    rows = range(min(4, len(films.painted)))
    cells = [enlarged(side[row, frame]) for row in rows for side in (films.recorded, films.painted) for frame in at]
    write_picture(path, contact_sheet(cells, columns=SHOWN))


def print_table(results: dict[str, Any], console: Console) -> None:
    """Print all figures."""
    actions = results["actions"]
    table = Table("", *(name.replace("_", " ") for name in actions), box=SIMPLE_HEAD)
    for figure in next(iter(actions.values())):
        cells = [row[figure] for row in actions.values()]
        table.add_row(figure, *("none" if cell is None else f"{cell:.3g}" for cell in cells))
    console.print("actions: correlation of those read in frames with those commanded, and the mean error", markup=False)
    console.print(table)
    for name, row in results.get("vehicles", {}).items():
        console.print(f"vehicles within 30 m found again, {name}: {100 * row['share']:.1f} % of {row['count']}")
    console.print(
        "Fréchet distance of the action reader's features: " + ", ".join(f"{k} {v:.2f}" for k, v in results["distance"].items())
    )
    for name, row in results["drift"].items():
        if isinstance(row, dict):
            console.print(f"drift of {name}: first {row['first']:.3f}, last {row['last']:.3f} ({row['ratio']:.2f} x)")
