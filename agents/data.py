"""`worldloop data import`, `data generate`, `data intervene`, `data info`: scenes and clips in, and what they hold."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from tyro.conf import Positional, arg

from ..worldmodel.data import SceneDataset
from ..worldmodel.data.clips import LONGEST, ClipDataset, holds_clips
from ..worldmodel.data.importing import VIDEO_FORMATS, describe, describe_clips, import_clips, import_scenes
from ..worldmodel.data.writing import ShardWriter
from ..worldmodel.files import write_csv, write_json
from ..worldmodel.networks import TEMPLATES
from ..worldmodel.run import dated_folder, whole_run
from ..worldmodel.scene import HISTORY_STEPS, LAYOUT, Scene
from ..worldmodel.sumo import SumoWorld, generate, require_sumo
from .bootstrap import counted
from .failures import Failures
from .interventions import INTERVENTIONS, Intervention, answered_scene, plan_interventions
from .rollout import SCENE_ERRORS, open_scenes

JOB_SCENES = 16
"""Scenes that a worker makes at once at the most: those of one simulation."""

INTERVENED_SCENES = 2
"""The same of scenes that are driven again, each up to six times: few, so that the bar moves and Ctrl-C need not wait long."""

IGNORE_INTERRUPT = (signal.SIGINT, signal.SIG_IGN)
"""In workers: Ctrl-C is the parent's business, which stops them."""

UNITS = {"median_speed": " (m/s)", "p95_speed": " (m/s)", "rate": " (Hz)"}
LISTED = {"scenes": ("id", "agents", "steps", "source"), "clips": ("id", "split", "frames", "first", "source")}
"""Columns of the list of scenes, or clips, that `data info` writes."""

JOBS_APART = 100_000
"""Keeps the seeds of the jobs of two runs apart."""


@dataclass(frozen=True)
class Import:
    """Turn recordings into a data set that worldloop reads: of scenes, or (donkeycar, frames) of video clips with actions.

    Writes the folder DST (index.json and shards in safetensors), under its final name only once it is whole; a killed import
    leaves at most DST.partial, which the next one removes. The run folder gets run.json, and skipped.csv with what was left out
    on purpose (scenes that are too short, say); broken.csv where --skip-broken has left files out.

    FORMAT frames is any video with actions: SRC holds a folder for each recording, with numbered pictures (000001.png or .jpg),
    actions.csv (a header with the actions' names, then a row of numbers for each picture, in order: what was done while it was
    seen), and clip.json, {"rate": 20}, unless --rate says it. A recording is cut where a number is missing and, evenly, to at
    most --longest frames; its clips are called RECORDING/0000, RECORDING/0001, ...

    Example: worldloop data import pandaset recordings/pandaset scenes/pandaset
    Example: worldloop data import frames recordings/drives clips/drives --height 64 --width 80
    """

    format: Annotated[str, Positional, arg(metavar="FORMAT")]
    """What the recordings are: pandaset (reconstructed NNN.json.gz), commonroad (2018b/2020a XML, also gzipped), waymo (Open
    Motion: TFRecords of Scenario), gpudrive (its JSON, also gzipped), argoverse2 (motion forecasting: parquet with its map beside
    it), scenarionet (pickled, or as JSON), donkeycar (tubs, as folders or .tar) or frames (pictures and actions.csv)."""
    src: Annotated[Path, Positional, arg(metavar="SRC")]
    """Folder of recordings, or one file."""
    dst: Annotated[Path, Positional, arg(metavar="DST")]
    """Folder to make."""
    overwrite: bool = False
    """Replace a data set that is there already."""
    height: int | None = None
    """Of video: height of the stored frames in pixels, as recorded if not given. Each pixel becomes the mean of its area."""
    width: int | None = None
    """Of video: width of the stored frames."""
    rate: float | None = None
    """Of video: frames a second, where the recording does not say it; 20 for donkeycar if not given."""
    longest: int = LONGEST
    """Of video: frames of a clip at the most; longer ones are cut evenly."""
    skip_broken: bool = False
    """Go on where a file breaks, with what was read of it, instead of stopping; such files are told at the end, exit code 1."""
    out: Path | None = None
    """Run folder, runs/data-import-DATE if not given."""


@dataclass(frozen=True)
class Generate:
    """Make scenes by driving SUMO, on networks drawn from templates or on your own.

    Needs the extra: pip install "worldloop[sumo]". Every simulation draws another network, other drivers and other signals; the
    same arguments give the same scenes, however many workers there are. Writes the folder DST under its final name only once it
    is whole; the run folder gets run.json and scenes.csv.

    Example: worldloop data generate scenes/generated --scenes 200
    """

    dst: Annotated[Path, Positional, arg(metavar="DST")]
    """Folder to make."""
    templates: tuple[str, ...] = ()
    """Kinds of places: crossing, roundabout, t_priority, merge, arterial; all of them in turn if not given."""
    config: Path | None = None
    """Drive your own network instead: a .sumocfg that names network and demand."""
    scenes: int = 100
    """How many scenes to make."""
    steps: int = 111
    """Length of a scene in steps of 0.1 s, the second of history included."""
    seed: int = 0
    """Seed of networks and traffic."""
    workers: int = 0
    """Processes; SUMO holds one simulation in each. 0: one for each core."""
    overwrite: bool = False
    """Replace a data set that is there already."""
    out: Path | None = None
    """Run folder, runs/data-generate-DATE if not given."""


@dataclass(frozen=True)
class Intervene:
    """Make scenes in which the ego does what its log does not: it brakes hard, cuts in, swerves, and SUMO's drivers answer.

    In generated traffic nobody brakes without a reason, so nobody learns from it to answer. Every scene of SRC that
    `worldloop data generate` made gives one for each intervention that its ego can make, begun at the present. They are for
    training: they carry no recipe, so SUMO cannot start them again, and whoever learns from them must not be tested on scenes of
    SRC. Needs pip install "worldloop[sumo]". Writes the folder DST
    under its final name only once it is whole; the run folder gets run.json, scenes.csv, and failures.csv if any.

    Example: worldloop data intervene scenes/generated scenes/interventions --limit 200
    """

    src: Annotated[str, Positional, arg(metavar="SRC")]
    """Folder of generated scenes, FOLDER:GLOB for some of them by id, or demo for the shipped ones."""
    dst: Annotated[Path, Positional, arg(metavar="DST")]
    """Folder to make."""
    interventions: tuple[Intervention, ...] = INTERVENTIONS
    """What the ego is made to do."""
    limit: int | None = None
    """Take only so many of the scenes, the first ones."""
    workers: int = 0
    """Processes that drive SUMO. 0: one for each core."""
    overwrite: bool = False
    """Replace a data set that is there already."""
    out: Path | None = None
    """Run folder, runs/data-intervene-DATE if not given."""


@dataclass(frozen=True)
class Info:
    """Show what a data set holds: scenes, hours, road users by kind, speeds, roads by kind; or clips, frames, hours, actions.

    Prints a table with a column for each of the project's fixed splits (whole places are held out for validation) that occurs;
    of clips, the last 10 % of each recording are held out. The run folder gets it as info.json and info.csv, and scenes.csv (or
    clips.csv) with all ids.

    Example: worldloop data info scenes/pandaset
    """

    dst: Annotated[Path, Positional, arg(metavar="DST")]
    """Folder of a data set, or FOLDER:GLOB for the scenes or clips with such ids."""
    out: Path | None = None
    """Run folder, runs/data-info-DATE if not given."""


def run_import(args: Import) -> int:
    """Import with a progress bar, then say what came in, and what was left out and why; 1 if files were broken."""
    console, size = Console(highlight=False), _size(args)
    out = args.out or dated_folder("data import")
    how: dict[str, Any] = {"overwrite": args.overwrite, "skip_broken": args.skip_broken}
    with whole_run(out, "data import", asdict(args), seed=0) as run:
        with _bar(args.format) as tell:
            if args.format in VIDEO_FORMATS:
                how |= {"size": size, "rate": args.rate, "longest": args.longest}
                done = import_clips(args.format, args.src, args.dst, **how, progress=tell)
            else:
                done = import_scenes(args.format, args.src, args.dst, **how, progress=tell)
        write_csv(run.folder / "skipped.csv", [asdict(skipped) for skipped in done.skipped])
        if done.broken:
            write_csv(run.folder / "broken.csv", [asdict(broken) for broken in done.broken])
        item, count = next(iter(done.counts.items()))
        left = {"skipped": len(done.skipped), "broken": len(done.broken), f"{item}_per_second": count / done.seconds}
        run.finish({"files": done.files} | done.counts | left)
    for line in (*done.notices, *(f"left out {skipped.source}: {skipped.reason}" for skipped in done.skipped)):
        console.print(line, markup=False, soft_wrap=True)
    for broken in done.broken:
        console.print(f"broken: {broken.source}: {broken.reason}", markup=False, soft_wrap=True)
    found, *more = [counted(value, name.replace("_", "-").removesuffix("s")) for name, value in done.counts.items()]
    more += [f"{len(done.skipped)} left out", *([f"{counted(len(done.broken), 'file')} broken"] if args.skip_broken else [])]
    console.print(
        f"{found} from {counted(done.files, 'file')} ({', '.join(more)}) in {done.seconds:.1f} s: "
        f"{done.destination} (run record: {out})",
        markup=False,
        soft_wrap=True,
    )
    return 1 if done.broken else 0


def _size(args: Import) -> tuple[int, int] | None:
    """Return height and width that frames are to have."""
    given = args.height, args.width, args.rate
    if args.format not in VIDEO_FORMATS and (given != (None, None, None) or args.longest != LONGEST):
        raise ValueError(f"{args.format} is no video: --height, --width, --rate and --longest are for {', '.join(VIDEO_FORMATS)}")
    if args.height is None and args.width is None:
        return None
    if args.height is None or args.width is None:
        raise ValueError(f"found --height {args.height} and --width {args.width}, wanted both or none")
    return args.height, args.width


def run_generate(args: Generate) -> None:
    """Generate in parallel with a progress bar."""
    if args.scenes < 1 or args.workers < 0:
        raise ValueError(f"found --scenes {args.scenes} and --workers {args.workers}, wanted at least 1 scene and 0 workers")
    if args.seed < 0:
        raise ValueError(f"--seed {args.seed}: wanted 0 or more")
    if args.config and args.templates:
        raise ValueError("found both --config and --templates, wanted one of them")
    sources = (str(args.config),) if args.config else args.templates or TEMPLATES
    size = min(JOB_SCENES, -(-args.scenes // len(sources)))
    jobs = [
        (sources[number % len(sources)], args.seed * JOBS_APART + number, min(size, args.scenes - first), args.steps)
        for number, first in enumerate(range(0, args.scenes, size))
    ]
    generate(*jobs[0][:3], steps=args.steps)  # complains about its arguments here, and not in a worker
    out, done, rows = args.out or dated_folder("data generate"), 0, []
    with (
        whole_run(out, "data generate", asdict(args), args.seed) as run,
        ShardWriter(args.dst, overwrite=args.overwrite) as writer,
        _bar("scenes") as tell,
        _in_processes(_simulate, jobs, args.workers) as results,
    ):
        tell(0, args.scenes, "")
        for (source, seed, count, _), parts in zip(jobs, results, strict=True):
            for id, recipe, arrays in parts:
                tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
                writer.add(Scene(id=(id,), recipe=(recipe,), **tensors), source=source)
                rows.append({"scene": id, "source": source, "seed": seed})
            done += count
            tell(done, args.scenes, source)
        write_csv(run.folder / "scenes.csv", rows)
        run.finish({"scenes": len(rows)})
    Console(highlight=False).print(f"{counted(len(rows), 'scene')}: {args.dst} (run record: {out})", markup=False, soft_wrap=True)


def _simulate(source: str, seed: int, scenes: int, steps: int) -> list[tuple[str, str, dict[str, np.ndarray]]]:
    """Work of one process: id, recipe and arrays of each scene, which travel between processes more plainly than tensors."""
    torch.set_num_threads(1)
    made = list(generate(source, seed, scenes, steps=steps))
    return [(scene.id[0], scene.recipe[0], {name: getattr(scene, name).numpy() for name in LAYOUT}) for scene in made]


def run_intervene(args: Intervene) -> int:
    """Drive the interventions in parallel with a progress bar; return the exit code, 1 if any failed."""
    if args.workers < 0:
        raise ValueError(f"found --workers {args.workers}, wanted 0 or more")
    if not args.interventions:
        raise ValueError(f"found no interventions, wanted some of {', '.join(INTERVENTIONS)}")
    require_sumo()
    scenes = open_scenes(args.src)
    if scenes.path.resolve() == args.dst.resolve():
        raise ValueError(f"{args.dst}: is where the scenes come from: name another place")
    scenes = scenes if args.limit is None else scenes.first(args.limit)
    if without := sum(not entry["recipe"] for entry in scenes.entries):
        raise ValueError(
            f"{args.src}: {without} of the {len(scenes)} scenes were not made by `worldloop data generate`: SUMO cannot drive "
            "them; choose others with FOLDER:GLOB"
        )
    out, rows, failures = args.out or dated_folder("data intervene"), [], Failures()
    refused: Counter[tuple[str, str]] = Counter()
    jobs = [
        (str(scenes.path), scenes.ids[first : first + INTERVENED_SCENES], args.interventions)
        for first in range(0, len(scenes), INTERVENED_SCENES)
    ]
    with (
        whole_run(out, "data intervene", asdict(args), seed=0) as run,
        ShardWriter(args.dst, overwrite=args.overwrite) as writer,
        _bar("scenes") as tell,
        _in_processes(_intervene, jobs, args.workers) as results,
    ):
        tell(0, len(scenes), "")
        for number, (made, failed, left_out) in enumerate(results, 1):
            for name, source, id, arrays in made:
                tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
                writer.add(Scene(id=(id,), recipe=("",), **tensors), source=source)
                rows.append({"scene": id, "source": source, "intervention": name})
            failures += failed
            refused.update(left_out)
            tell(min(number * INTERVENED_SCENES, len(scenes)), len(scenes), "")
        if not rows:
            why = failures.first() if failures else next(why for _, why in refused)
            raise ValueError(f"none of the {len(scenes)} scenes lets the ego do what was asked for, the first one: {why}")
        write_csv(run.folder / "scenes.csv", rows)
        failures.write(run.folder)
        counts = Counter(row["intervention"] for row in rows)
        listed = [{"intervention": name, "why": why, "scenes": count} for (name, why), count in refused.items()]
        run.finish({"scenes": len(rows), "failed": len(failures), "interventions": counts, "left_out": listed})
    console = Console(highlight=False)
    told = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())
    console.print(f"{counted(len(rows), 'scene')} ({told}): {args.dst} (run record: {out})", markup=False, soft_wrap=True)
    if refused:
        console.print(f"{sum(refused.values())} cannot be made: run.json says why", markup=False)
    return failures.tell()


def _intervene(
    folder: str, ids: Sequence[str], wanted: tuple[Intervention, ...]
) -> tuple[list[tuple[str, str, str, dict[str, np.ndarray]]], Failures, list[tuple[str, str]]]:
    """Work of one process: intervention, source, id and arrays of each new scene; what failed; what cannot be made and why."""
    torch.set_num_threads(1)
    made, failed, refused, scenes = [], Failures(), [], SceneDataset(Path(folder))
    with SumoWorld(max(scenes.sizes()["T"], 1)) as world:
        for id in ids:
            try:
                scene = scenes.load(id)
                plan = plan_interventions(scene, wanted, scene.steps - 1 - HISTORY_STEPS)
                refused += plan.refused.items()
            except SCENE_ERRORS as error:
                failed.note(id, error, intervention="all")
                continue
            for name in plan.branches[1:]:
                try:
                    found = answered_scene(scene, world, plan, name)
                    made.append((name, id, found.id[0], {key: getattr(found, key).numpy() for key in LAYOUT}))
                except SCENE_ERRORS as error:
                    failed.note(id, error, intervention=name)
    return made, failed, refused


@contextmanager
def _in_processes(work: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], workers: int) -> Iterator[Iterator[Any]]:
    """Yield the results of `work` for each of the jobs, in order, from so many processes (0: one a core); an error stops all."""
    count = workers or os.cpu_count()
    with ProcessPoolExecutor(count, get_context("spawn"), signal.signal, IGNORE_INTERRUPT) as pool:
        try:
            yield pool.map(work, *zip(*jobs, strict=True))
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                Console(stderr=True).print("stopping: what is at hand is finished first")
            former = signal.signal(*IGNORE_INTERRUPT)  # a second Ctrl-C would leave the workers behind
            pool.shutdown(wait=True, cancel_futures=True)
            signal.signal(signal.SIGINT, former)
            raise


def run_info(args: Info) -> None:
    """Print the table, a column a split."""
    out, item = args.out or dated_folder("data info"), "clips" if holds_clips(args.dst) else "scenes"
    with whole_run(out, "data info", asdict(args), seed=0) as run, _bar(item) as tell:
        if item == "clips":
            dataset = ClipDataset.named(str(args.dst))
            rows, sides = describe_clips(dataset, tell), dataset.sides()
            entries = [entry | {"split": side} for entry, side in zip(dataset.entries, sides, strict=True)]
        else:
            dataset = open_scenes(args.dst)
            rows, entries = describe(dataset, tell), dataset.entries
        write_csv(run.folder / f"{item}.csv", [{name: entry.get(name) for name in LISTED[item]} for entry in entries])
        write_json(run.folder / "info.json", rows)
        write_csv(run.folder / "info.csv", rows)
        run.finish({"splits": rows})
    table = Table(title=str(args.dst), title_justify="left")
    table.add_column("")
    for row in rows:
        table.add_column(str(row["split"]), justify="right")
    for name in rows[0]:
        if name != "split" and any(row[name] for row in rows):
            table.add_row(name.replace("_", " ") + UNITS.get(name, ""), *(_number(row[name]) for row in rows))
    console = Console(highlight=False)
    console.print(table)
    console.print(f"{item} such as {', '.join(dataset.ids[:3])}; all of them: {out / item}.csv", markup=False, soft_wrap=True)


def _number(value: float | str) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


@contextmanager
def _bar(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """Show a progress bar; yields the function to call with (done, total, name of what is at hand)."""
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=None)
        yield lambda done, total, name: progress.update(task, completed=done, total=total, description=name)
