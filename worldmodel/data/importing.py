"""Turning recordings into a data set, and telling what a data set holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ..scene import TIME_STEP, AgentKind, PolylineKind, Scene
from . import find_files, reader
from .shards import DataError, SceneDataset, Skipped
from .writing import ShardWriter

VALIDATION_PREFIXES = ("commonroad/USA_Peach",)


TRAIN_PREFIXES = ("commonroad/USA_US101", "commonroad/USA_Lanker", "sumo/")


FIRST_VALIDATION_PANDASET = 42


@dataclass(frozen=True)
class Imported:
    """What `import_scenes` did: counts, what was left out and why, which files are broken, what to know, and how long it took."""

    destination: Path
    files: int
    scenes: int
    agents: int
    agent_steps: int
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
    progress: Callable[[int, int, str], None] | None = None,
) -> Imported:
    """Convert `source`, a folder or one file of `format`, into the data set `destination`; all or nothing.

    Args:
        format: one of `READERS`.
        source: where the files lie.
        destination: folder to make; an interrupted import leaves at most `<destination>.partial`, which the next one removes.
        overwrite: replace a data set that is there already.
        skip_broken: go on where a file breaks, with what was read of it before, and tell which in `broken`.
        progress: is called with (files done, files in all, name of the file at hand) before every file and at the end.

    Raises:
        DataError: a file cannot be read (all of them with `skip_broken`), or the destination exists.
    """
    start = time.perf_counter()
    module = reader(format)
    files = find_files(format, source)
    tell = progress or (lambda done, total, name: None)
    skipped: list[Skipped] = []
    broken: list[Skipped] = []
    scenes = agents = agent_steps = 0
    with ShardWriter(destination, overwrite=overwrite) as writer:
        for done, file in enumerate(files):
            tell(done, len(files), file.name)
            parts = module.read_file(file)
            for found in _until_broken(parts, file, broken) if skip_broken else parts:
                if isinstance(found, Skipped):
                    skipped.append(found)
                    continue
                writer.add(found, source=file.name)
                scenes += len(found)
                agents += int(found.valid.any(dim=-1).sum())
                agent_steps += int(found.valid.sum())
        if len(broken) == len(files):
            raise DataError(f"of {len(files)} files all are broken, the first one: {broken[0].reason}")
    tell(len(files), len(files), "")
    return Imported(
        destination=Path(destination),
        files=len(files),
        scenes=scenes,
        agents=agents,
        agent_steps=agent_steps,
        skipped=tuple(skipped),
        broken=tuple(broken),
        notices=tuple(writer.notices),
        seconds=time.perf_counter() - start,
    )


def _until_broken(parts: Iterator[Scene | Skipped], file: Path, broken: list[Skipped]) -> Iterator[Scene | Skipped]:
    """Yield what can be read of a file; where that ends in an error, note it in `broken`."""
    count = 0
    try:
        for found in parts:
            yield found if isinstance(found, Skipped) else found.validate()
            count += 1
    except (ValueError, OSError) as error:  # no such file, no scene, or no disk any more
        kept = f" (what was read of it before, {count}, is kept)" if count else ""
        broken.append(Skipped(file.name, " ".join(str(error).split()) + kept))


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


def describe(
    dataset: SceneDataset, progress: Callable[[int, int, str], None] | None = None
) -> list[dict[str, int | float | str]]:
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
