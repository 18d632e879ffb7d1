"""Turning recordings into a data set, and telling what a data set holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..scene import TIME_STEP, AgentKind, PolylineKind, Scene
from . import find_files, reader
from .clips import LONGEST, Clip, ClipDataset, ClipWriter, recording_of
from .shards import DataError, SceneDataset, Skipped
from .writing import ShardWriter

VALIDATION_PREFIXES = ("commonroad/USA_Peach",)


TRAIN_PREFIXES = ("commonroad/USA_US101", "commonroad/USA_Lanker", "sumo/")


FIRST_VALIDATION_PANDASET = 42

VIDEO_FORMATS = ("donkeycar", "frames")
"""Those of `READERS` that give clips; all others give scenes."""

Tell = Callable[[int, int, str], None]
"""What is called with (done, in all, the name of what is at hand)."""


@dataclass(frozen=True)
class Imported:
    """What an import did: counts, what was left out and why, which files broke, what to know, and how long it took."""

    destination: Path
    files: int
    counts: dict[str, int]
    skipped: tuple[Skipped, ...]
    broken: tuple[Skipped, ...]
    notices: tuple[str, ...]
    seconds: float


def import_scenes(
    format: str,
    source: str | Path,
    destination: str | Path,
    *,
    overwrite: bool = False,
    skip_broken: bool = False,
    progress: Tell | None = None,
) -> Imported:
    """Convert `source`, a folder or one file of `format`, into the data set `destination`; all or nothing.

    Counts scenes, agents and agent_steps.

    Args:
        format: one of `READERS`.
        source: where the files lie.
        destination: folder to make; an interrupted import leaves at most `<destination>.partial`, which the next one removes.
        overwrite: replace a data set that is there already.
        skip_broken: go on where a file breaks or does not go with those before it, with what was read of it before, and tell
            which in `broken`.
        progress: is called with (files done, files in all, name of the file at hand) before every file and at the end.

    Raises:
        DataError: a file cannot be read (all of them with `skip_broken`), or the destination exists.
    """
    start, read = time.perf_counter(), reader(format).read_file
    files, skipped = find_files(format, source), []
    broken: list[Skipped] | None = [] if skip_broken else None
    counts = {"scenes": 0, "agents": 0, "agent_steps": 0}
    with ShardWriter(destination, overwrite=overwrite) as writer:

        def keep(file: Path, scene: Scene) -> None:
            writer.add(scene, source=file.name)
            counts["scenes"] += len(scene)
            counts["agents"] += int(scene.valid.any(dim=-1).sum())
            counts["agent_steps"] += int(scene.valid.sum())

        _take(files, read, keep, skipped, broken, progress)
    seconds = time.perf_counter() - start
    return Imported(Path(destination), len(files), counts, tuple(skipped), tuple(broken or ()), tuple(writer.notices), seconds)


def import_clips(
    format: str,
    source: str | Path,
    destination: str | Path,
    *,
    size: tuple[int, int] | None = None,
    rate: float | None = None,
    longest: int = LONGEST,
    overwrite: bool = False,
    skip_broken: bool = False,
    progress: Tell | None = None,
) -> Imported:
    """Convert recordings of video with actions into a data set of clips, as `import_scenes` does; counts clips and frames.

    Args:
        format: one of `VIDEO_FORMATS`.
        source: where the recordings lie.
        destination: folder to make.
        size: height and width that the frames are to have; None keeps theirs.
        rate: frames a second (Hz), where the recording does not say it.
        longest: frames of a clip at the most; longer runs are cut evenly.
        overwrite: replace a data set that is there already.
        skip_broken: as in `import_scenes`.
        progress: as in `import_scenes`, but called for every clip too.

    Raises:
        DataError: a recording cannot be read (all of them with `skip_broken`), or the destination exists.
        ValueError: an argument is out of its range.
    """
    if size is not None and min(size) < 1 or longest < 2 or rate is not None and not 0 < rate < float("inf"):
        wanted = "wanted sides of 1 pixel, 2 frames and more than 0 Hz at least"
        raise ValueError(f"found a size of {size}, clips of {longest} frames and a rate of {rate}: {wanted}")
    start, module, tell = time.perf_counter(), reader(format), progress or (lambda done, total, name: None)
    files, skipped = find_files(format, source), []
    broken: list[Skipped] | None = [] if skip_broken else None
    counts = {"clips": 0, "frames": 0}
    with ClipWriter(destination, overwrite=overwrite) as writer:

        def keep(file: Path, clip: Clip) -> None:
            writer.add(clip, source=file.name if file.suffix == ".tar" else file.parent.resolve().name)
            counts["clips"] += 1
            counts["frames"] += len(clip)
            tell(files.index(file), len(files), f"{clip.id}, {counts['frames']} frames")

        _take(files, lambda file: module.read_file(file, size, rate, longest), keep, skipped, broken, progress)
    seconds = time.perf_counter() - start
    return Imported(Path(destination), len(files), counts, tuple(skipped), tuple(broken or ()), tuple(writer.notices), seconds)


def _take(
    files: Sequence[Path],
    read: Callable[[Path], Iterator[Any]],
    keep: Callable[[Path, Any], None],
    skipped: list[Skipped],
    broken: list[Skipped] | None,
    progress: Tell | None,
) -> None:
    """Hand what the files hold to `keep`, each with its file; what is left out goes into `skipped`.

    Files that break, or of which `keep` refuses something, go into `broken`; where that is None, an error is raised, and so it is
    where nothing could be kept of any file.
    """
    total = 0
    for done, file in enumerate(files):
        if progress:
            progress(done, len(files), file.name)
        count = 0
        try:
            for found in _parts(read, file):
                if isinstance(found, Skipped):
                    skipped.append(found)
                else:
                    keep(file, found)
                    count += 1
        except ValueError as error:
            if broken is None:
                raise
            kept = f" (what was read of it before, {count}, is kept)" if count else ""
            broken.append(Skipped(file.name, " ".join(str(error).split()) + kept))
        total += count
    if not total:
        told = [f"{len(skipped)} left out, the first one {skipped[0].source}: {skipped[0].reason}"] if skipped else []
        told += [f"{len(broken)} broken, the first one {broken[0].reason}"] if broken else []
        raise DataError(f"of {len(files)} files nothing can be used: {'; '.join(told) or 'they are empty'}")
    if progress:
        progress(len(files), len(files), "")


def _parts(read: Callable[[Path], Iterator[Any]], file: Path) -> Iterator[Any]:
    """Yield what a file holds; that the system cannot read it is a DataError, unlike a disk to which nothing can be written."""
    try:
        yield from read(file)
    except OSError as error:
        raise DataError(str(error)) from error


def split(id: str) -> str:
    """Return "train", "validation" or, for a scene that no fixed split names, "none".

    PandaSet below 042, NGSIM US-101 and Lankershim and all generated scenes train; PandaSet from 042 on and NGSIM Peachtree
    validate: whole places are held out, since scenarios of one place share their starts. Waymo's scenes, GPUDrive's form of them
    included, are in no split: they serve reading and zero-shot scoring alone.
    """
    if id.startswith("pandaset/"):
        number = id.removeprefix("pandaset/")
        return "none" if not number.isdigit() else "train" if int(number) < FIRST_VALIDATION_PANDASET else "validation"
    if id.startswith(VALIDATION_PREFIXES):
        return "validation"
    return "train" if id.startswith(TRAIN_PREFIXES) else "none"


def describe(dataset: SceneDataset, progress: Tell | None = None) -> list[dict[str, int | float | str]]:
    """Return the rows of a table: one for each split that occurs and one for all, with the same columns in the same order.

    Columns: split, scenes, hours (of scenes), agents by kind, agent_steps, median and 95th percentile of the speed of moving
    vehicles (> 0.5 m/s), polylines by kind, lane links, signals. `progress` is called with (scenes done, scenes in all, the
    scene's id).
    """
    rows: dict[str, dict[str, int | float | str]] = {}
    speeds: dict[str, list[torch.Tensor]] = {}
    for done, scene in enumerate(dataset, 1):
        for name in (split(scene.id[0]), "all"):
            row = rows.setdefault(name, _empty_row(name))
            for column, value in _counts(scene).items():
                row[column] = row[column] + value  # pyright: ignore[reportOperatorIssue] (only "split" is a text)
            vehicle = (scene.kind == AgentKind.VEHICLE)[..., None] & scene.valid
            speed = scene.velocity[vehicle].norm(dim=-1)
            speeds.setdefault(name, []).append(speed[speed > 0.5])
        if progress is not None:
            progress(done, len(dataset), scene.id[0])
    for name, row in rows.items():
        every = torch.cat(speeds[name]).sort().values
        for column, share in (("median_speed", 0.5), ("p95_speed", 0.95)):
            row[column] = float(every[int(share * (len(every) - 1))]) if len(every) else 0.0
    return [rows[name] for name in ("train", "validation", "none", "all") if name in rows]


def describe_clips(dataset: ClipDataset, progress: Tell | None = None) -> list[dict[str, int | float | str]]:
    """Return the rows of a table: one for each side that occurs (see `ClipDataset.sides`) and one for all, with the same columns.

    Columns: split, recordings, clips, frames, hours, frames of the shortest and of the longest clip, height, width, rate, and of
    each action its mean, standard deviation, least and most, and the share of frames in which it is exactly zero. `progress` is
    called with (clips done, clips in all, the clip's id).
    """
    actions: list[torch.Tensor] = []
    for number, name in enumerate(dataset.ids):
        actions.append(dataset.window(number).action)
        if progress is not None:
            progress(number + 1, len(dataset), name)
    sides, rows = dataset.sides(), []
    for split in ("train", "validation", "all"):
        chosen = [number for number, side in enumerate(sides) if split in (side, "all")]
        if not chosen:
            continue
        lengths, action = [dataset.lengths[number] for number in chosen], torch.cat([actions[number] for number in chosen])
        row: dict[str, int | float | str] = {
            "split": split,
            "recordings": len({recording_of(dataset.ids[number]) for number in chosen}),
            "clips": len(chosen),
            "frames": sum(lengths),
            "hours": sum(lengths) / dataset.rate / 3600,
            "shortest_clip": min(lengths),
            "longest_clip": max(lengths),
            "height": dataset.size[0],
            "width": dataset.size[1],
            "rate": dataset.rate,
        }
        for name, column in zip(dataset.action_names, action.double().unbind(dim=1), strict=True):
            figures = {"mean": column.mean(), "deviation": column.std(correction=0), "least": column.min(), "most": column.max()}
            figures["zero"] = (column == 0).double().mean()
            row |= {f"{name}_{figure}": float(value) for figure, value in figures.items()}
        rows.append(row)
    return rows


def _empty_row(name: str) -> dict[str, int | float | str]:
    columns: dict[str, int | float | str] = {"split": name, "scenes": 0, "hours": 0.0}
    columns |= {f"{kind.name.lower()}s": 0 for kind in AgentKind} | {"agent_steps": 0, "median_speed": 0.0, "p95_speed": 0.0}
    return columns | {kind.name.lower(): 0 for kind in PolylineKind} | {"lane_links": 0, "signals": 0}


def _counts(scene: Scene) -> dict[str, int | float]:
    present, lines = scene.valid.any(dim=-1), scene.polyline_valid.any(dim=-1)
    counts: dict[str, int | float] = {"scenes": len(scene), "hours": scene.steps * TIME_STEP / 3600}
    counts |= {f"{kind.name.lower()}s": int((present & (scene.kind == kind)).sum()) for kind in AgentKind}
    counts |= {kind.name.lower(): int((lines & (scene.polyline_kind == kind)).sum()) for kind in PolylineKind}
    counts["agent_steps"] = int(scene.valid.sum())
    counts["lane_links"] = int(scene.lane_link_valid.sum())
    counts["signals"] = int(scene.signal_valid.any(dim=-1).sum())
    return counts
