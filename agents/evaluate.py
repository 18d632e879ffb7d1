"""`worldloop evaluate`: score policies on scenes in worlds, rank them, and tell it in one page.

    policies x worlds x seeds x scenes -> jobs -> workers -> rows -> means, paired tests -> table, report

Every job's rows are written down when it is done, so that a killed evaluation goes on where it was; at the end they stand in
`scenarios.csv` (and `scenarios.parquet`), one row a scenario. The log's own ego is driven once through every scene, for what
NAVSIM forgives a driver.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, track
from rich.table import Table

from ..envs.score import TERMS, epdms
from ..envs.vector import WORLDS
from ..renderers.report import write_report
from ..worldmodel.data.shards import SceneDataset
from ..worldmodel.files import write_csv
from ..worldmodel.run import Run, dated_folder, read_metrics, require_same_inputs, resume_run, start_run
from ..worldmodel.scene import TIME_STEP
from .bootstrap import cell, counted
from .crew import Crew, Job, Task
from .drive import WIDTH
from .failures import SHOWN
from .fingerprints import fingerprints
from .policy import load_policy
from .ranking import FAULTS, leader_row, paired, scored
from .records import finished_record
from .rollout import open_scenes
from .rows import write_rows

HUMAN = ("replay", "replay")
"""Policy and world in which the log's ego drives as it did."""

SIGNIFICANT = 0.05
"""p values up to which a difference is called one; of many pairs some are below it by chance."""

FREE = ("out", "workers", "time_limit", "resume")
"""Arguments that change no number, as long as no step takes longer than the limit."""


@dataclass(frozen=True)
class Evaluate:
    """Score policies: every policy on every scene, in every world, with every seed.

    A scenario runs to its horizon and is scored from 0 to 1 by nuPlan's closed-loop score (no at-fault collision, drivable area,
    driving direction, progress, time to collision, speed limit, comfort) and by NAVSIM's EPDMS (red lights and lane keeping too).
    A policy that raises, answers NaN, out of range or in the wrong shape, or never returns fails that scenario alone, which then
    scores 0. A scene that cannot start is told and counts for nobody. In both cases the exit code is 1.

    The run folder gets scenarios.csv (one row a scenario; with the extra parquet scenarios.parquet too), leaders.csv (means and
    their bootstrap intervals over scenes, 95 %), pairs.csv (paired differences between policies, with p values), report.html (all
    of it on one page, with a player), run.json.

    Example: worldloop evaluate --policies idm pdm my_driver:Careful --worlds learned sumo --scenes scenes/held
    """

    policies: tuple[str, ...] = ("idm",)
    """Who drives: shipped drivers by name, trained ones by their folder (RUN/model), or your own as module:attribute."""
    scenes: str = "demo"
    """Folder of a data set, FOLDER:GLOB for some of its scenes by id, or demo for the shipped ones."""
    worlds: tuple[str, ...] = ("learned",)
    """Who moves the others: learned, learned_open, replay (the log), constant_velocity, sumo (generated scenes only)."""
    seeds: tuple[int, ...] = (0,)
    """Scenario i of the scenes is driven with seed + i, once for each."""
    weights: Path | None = None
    """Folder of a trained behaviour model for the learned worlds, instead of the shipped one, or small or large."""
    limit: int | None = None
    """Take only so many of the scenes, the first ones."""
    horizon: int | None = None
    """Steps of 0.1 s. Not given: as long as each scene's log (80 where a scene is a moment without a log after it)."""
    batch: int = 8
    """Scenes driven at once; the results depend on it by rounding alone, where a network drives."""
    workers: int | None = None
    """Processes, as many as cores if not given; the results do not depend on it."""
    time_limit: float = 60.0
    """Seconds that a step of a batch may take before its process is stopped; two minutes more until the first one."""
    show: tuple[str, ...] = ()
    """Scenes by id that the report plays, besides the best and the worst of every policy."""
    out: Path | None = None
    """Run folder, runs/evaluate-DATE if not given."""
    resume: bool = False
    """Go on with a killed evaluation in --out; all other arguments, and what they name, as they were."""
    repeat: Path | None = None
    """Folder of a finished evaluation, whose arguments are taken again; scenes, weights and drivers must not have changed."""


def run_evaluate(args: Evaluate) -> int:
    """Run `worldloop evaluate`; return the exit code."""
    args, repeated = _repeated(args), args.repeat
    scenes = checked_scenes(args)
    inputs = inputs_of(args, scenes)
    if repeated is not None:
        require_same_inputs(repeated / "run.json", finished_record(repeated, "evaluate"), inputs)
    arguments = {name: value for name, value in asdict(args).items() if name != "resume"}
    out = args.out or dated_folder("evaluate")
    jobs = plan_jobs(args, len(scenes))
    errors = Console(stderr=True)
    run = open_run("evaluate", out, args, arguments, inputs, len(jobs))
    rows = drive_all(run, args, jobs, errors)
    summary = summarise(rows, args.policies, args.worlds, args.seeds[0])
    if not any(scored(row) for row in rows):
        raise ValueError(f"of {counted(len(rows), 'scenario')} all failed, the first one: {rows[0]['scene']}: {rows[0]['error']}")
    files = write_rows(run.folder, rows)
    write_csv(run.folder / "leaders.csv", summary["leaders"])
    if summary["pairs"]:
        write_csv(run.folder / "pairs.csv", summary["pairs"])
    films = film_all(args, jobs, rows, errors)
    write_report(run.folder / "report.html", _about(args, rows), summary["leaders"], summary["pairs"], _told(rows), films)
    run.finish({"scenarios": len(rows), "failed": sum(row["error"] is not None for row in rows), **summary})
    _print(summary, rows, out, [out / file.name for file in (*files, Path("run.json"))])
    return 1 if any(row["error"] is not None for row in rows) else 0


def _repeated(args: Evaluate) -> Evaluate:
    """Return the arguments of the evaluation that is to be repeated, with this one's place and workers."""
    if args.repeat is None:
        return args
    changed = [f.name for f in fields(args) if f.name not in (*FREE, "repeat") and getattr(args, f.name) != f.default]
    if changed:
        raise ValueError(f"--repeat takes --{changed[0].replace('_', '-')} from {args.repeat}/run.json: leave it out")
    known = finished_record(args.repeat, "evaluate")["arguments"]
    lists = {name: tuple(known[name]) for name in ("policies", "worlds", "seeds", "show")}
    weights = Path(known["weights"]) if known["weights"] else None
    given = {name: getattr(args, name) for name in FREE}
    return Evaluate(**{**known, **lists, "weights": weights, "repeat": None, **given})


def checked_scenes(args: Evaluate) -> SceneDataset:
    """Return the scenes, after everything that can be wrong with the arguments has been looked for."""
    for name in ("policies", "worlds", "seeds"):
        values = getattr(args, name)
        if not values or len(set(values)) < len(values):
            raise ValueError(f"--{name} {' '.join(map(str, values))}: wanted at least one, and each once")
    unknown = [name for name in args.worlds if name not in WORLDS]
    if unknown:
        raise ValueError(f"--worlds {unknown[0]}: unknown, choose among {', '.join(WORLDS)}")
    if min(args.seeds) < 0 or args.batch < 1 or args.time_limit <= 0 or (args.workers is not None and args.workers < 1):
        raise ValueError("wanted --seeds >= 0, --batch and --workers >= 1, --time-limit > 0")
    if args.horizon is not None and args.horizon < 1:
        raise ValueError(f"--horizon {args.horizon}: wanted at least 1 step of 0.1 s")
    if args.resume and args.out is None:
        raise ValueError("--resume: wanted --out, the folder of the evaluation to go on with")
    for policy in args.policies:
        load_policy(policy)
    scenes = open_scenes(args.scenes)
    if "sumo" in args.worlds and not any(entry["recipe"] for entry in scenes.entries):
        raise ValueError(f"--worlds sumo: none of the {len(scenes)} scenes was made by `worldloop data generate`")
    scenes = scenes if args.limit is None else scenes.first(args.limit)
    for name in args.show:
        scenes.index_of(name)
    return scenes


def inputs_of(args: Evaluate, scenes: SceneDataset) -> dict[str, str]:
    """Return the fingerprints of all that is read."""
    return fingerprints(scenes, args.worlds, args.weights, args.policies)


def open_run(command: str, out: Path, args: Evaluate, arguments: Mapping[str, Any], inputs: Mapping[str, str], jobs: int) -> Run:
    """Start a run of so many jobs, or go on with it."""
    if args.resume:
        return resume_run(out, jobs, arguments, FREE, inputs)
    return start_run(out, command, arguments, args.seeds[0], inputs)


def plan_jobs(args: Evaluate, count: int) -> list[Job]:
    """Return what there is to do, the log's own drive first."""
    batches = [tuple(range(first, min(first + args.batch, count))) for first in range(0, count, args.batch)]
    each = itertools.product(args.worlds, args.policies, args.seeds, batches)
    human = [Job(*HUMAN, args.seeds[0], numbers) for numbers in batches]
    return human + [Job(policy, world, seed, numbers) for world, policy, seed, numbers in each]


def drive_all(run: Run, args: Evaluate, jobs: Sequence[Job], console: Console) -> list[dict[str, Any]]:
    """Drive all jobs that have not been driven yet; return the rows of the policies in the jobs' order."""
    known = {int(line["step"]): line["rows"] for line in read_metrics(run.folder)}
    missing = [number for number in range(len(jobs)) if number not in known]
    total = sum(len(job.numbers) for job in jobs)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    task = Task(args.scenes, args.weights, args.horizon)
    with (
        Progress(*columns, TextColumn("{task.fields[at]}"), console=console) as progress,
        Crew(task, args.workers, args.time_limit) as crew,
    ):
        done = total - sum(len(jobs[number].numbers) for number in missing)
        bar = progress.add_task("scenarios", total=total, completed=done, at="")

        def tell(place: int, step: str) -> None:
            job = jobs[missing[place]]
            progress.update(bar, at=f"{job.policy} in the {job.world} world, seed {job.seed}: {step}")

        for place, driven in crew.drive([jobs[number] for number in missing], tell):
            number, job = missing[place], jobs[missing[place]]
            known[number] = [{"policy": job.policy, "world": job.world, **one.row()} for one, _ in driven]
            run.log(number, rows=known[number])
            run.checkpoint()
            progress.advance(bar, len(driven))
    first = _human_jobs(jobs)
    human = {row["scene"]: row for number in range(first) for row in known[number]}
    unknown = sum(row["error"] is not None for row in human.values())
    if unknown:
        console.print(
            f"in {unknown} of {counted(len(human), 'scene')} the log is too short to forgive what its driver fails: EPDMS as is"
        )
    return [_forgiven(row, human.get(row["scene"])) for number in range(first, len(jobs)) for row in known[number]]


def _human_jobs(jobs: Sequence[Job]) -> int:
    """How many jobs, the first ones, are the log's own drive."""
    return len({job.numbers for job in jobs})


def _forgiven(row: dict[str, Any], human: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a row with EPDMS' human filter, where the log's ego could be driven."""
    if row["error"] is not None or human is None or human["error"] is not None:
        return {**row, "human_filter": False}
    terms, logged = ({name: torch.tensor([one[f"term_{name}"]]) for name in TERMS} for one in (row, human))
    return {**row, "epdms": epdms(terms, logged).item(), "human_filter": True}


def film_all(
    args: Evaluate, jobs: Sequence[Job], rows: Sequence[Mapping[str, Any]], console: Console
) -> dict[str, dict[str, Any]]:
    """Drive again, in the same batches, what the report plays: the best and the worst of every policy, and the scenes asked for.

    Returns:
        What the player shows, by the key of the row.
    """
    wanted = set()
    for world in args.worlds:
        for policy in args.policies:
            mine = [row for row in rows if (row["world"], row["policy"]) == (world, policy) and row["error"] is None]
            mine.sort(key=lambda row: row["nuplan"])
            wanted |= {_key(row) for row in (*mine[:1], *mine[-1:], *(row for row in mine if row["scene"] in args.show))}
    ids = open_scenes(args.scenes).ids
    again, titles = [], {_key(row): row for row in rows}
    for job in jobs[_human_jobs(jobs) :]:
        one = {"world": job.world, "policy": job.policy}
        filmed = tuple(n for n in job.numbers if _key({**one, "seed": job.seed + n, "scene": ids[n]}) in wanted)
        if filmed:
            again.append(replace(job, film=filmed))
    films: dict[str, dict[str, Any]] = {}
    task = Task(args.scenes, args.weights, args.horizon)
    with Crew(task, args.workers, args.time_limit) as crew:
        batches = track(crew.drive(again), "filming", total=len(again), console=console, transient=True)
        for number, driven in batches:
            for scenario, film in driven:
                if film is not None:
                    key = _key({"world": again[number].world, "policy": again[number].policy, **scenario.row()})
                    row = titles[key]
                    title = f"{row['policy']} in {row['world']}: {row['scene']}, seed {row['seed']}: score {row['nuplan']:.2f}"
                    if abs(scenario.nuplan - row["nuplan"]) > 1e-3:
                        title += f"; driven again for this film it scored {scenario.nuplan:.2f}: the policy is not deterministic"
                    films[key] = {"title": title, **film}
    for key in sorted(wanted - set(films)):
        console.print(f"no film of {key}: it failed when it was driven again", markup=False)
    return {key: films[key] for key in sorted(films, key=lambda key: (titles[key]["nuplan"], key))}


def _key(row: Mapping[str, Any]) -> str:
    return "|".join((row["world"], row["policy"], str(row["seed"]), row["scene"]))


def _told(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what the report's table tells of every scenario."""
    same = ("scene", "policy", "world", "seed", "ended", "progress", "error", "trace")
    return [
        {
            "key": _key(row),
            **{name: row[name] for name in same},
            "score": row["nuplan"],
            "epdms": row["epdms"],
            "seconds": row["steps"] * TIME_STEP,
            "fault": int(row["error"] is None and row["term_no_at_fault_collision"] < 1),
        }
        for row in rows
    ]


def _about(args: Evaluate, rows: Sequence[Mapping[str, Any]]) -> str:
    scenes = len({row["scene"] for row in rows})
    return (
        f"{counted(len(rows), 'scenario')}: {counted(len(args.policies), 'policy', 'policies')} on {counted(scenes, 'scene')} "
        f"of {args.scenes}, "
        f"seeds {' '.join(map(str, args.seeds))}, worlds {', '.join(args.worlds)}"
    )


def summarise(
    rows: Sequence[Mapping[str, Any]], policies: Sequence[str], worlds: Sequence[str], seed: int
) -> dict[str, list[dict[str, Any]]]:
    """Return the `leaders` of every world, the best by nuPlan's score first, and the `pairs` of policies."""
    leaders, pairs = [], []
    for world in worlds:
        of = {name: [row for row in rows if row["policy"] == name and row["world"] == world] for name in policies}
        lines = [{"world": world, "policy": name, **leader_row(of[name], seed)} for name in policies]
        lines.sort(key=lambda line: -(line["nuplan"] if line["nuplan"] is not None else -1))
        leaders += lines
        names = [line["policy"] for line in lines]
        for place, first in enumerate(names):
            for second in names[place + 1 :]:
                found = paired(of[first], of[second], "nuplan", seed)
                pairs.append({"world": world, "policy": first, "than": second, **found})
    return {"leaders": leaders, "pairs": pairs}


def tell_failed(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print what failed and why, once for all policies that it happened to; and how many scenes could not start at all."""
    failed: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        if row["error"] is not None:
            failed.setdefault((row["world"], row["scene"], row["error"]), []).append(row["policy"])
    for (world, scene, error), policies in list(failed.items())[:SHOWN]:
        who = ", ".join(dict.fromkeys(policies))
        console.print(f"failed: {who} in {world}: {scene}: {error}", markup=False, soft_wrap=True)
    if len(failed) > SHOWN:
        console.print(f"... and {len(failed) - SHOWN} more: see the column error in scenarios.csv", markup=False)
    unstarted = {(world, scene) for world, scene, error in failed if error.startswith("cannot start")}
    for world in dict.fromkeys(world for world, _ in sorted(unstarted)):
        count = sum(one == world for one, _ in unstarted)
        console.print(f"left out of every score in {world}: {counted(count, 'scene')} that cannot start there", markup=False)


def _print(
    summary: Mapping[str, Sequence[Mapping[str, Any]]], rows: Sequence[Mapping[str, Any]], out: Path, files: Sequence[Path]
) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    table = Table(title=f"{counted(len(rows), 'scenario')}; in brackets: 95 % interval over scenes", title_justify="left")
    for name in ("world", "policy", "nuPlan score", "EPDMS", "at fault", "off road", "red light", "failed"):
        table.add_column(name, justify="left" if name in ("world", "policy") else "right", overflow="fold")
    for line in summary["leaders"]:
        shares = [cell(line, name, 100, " %", 0).split(" [")[0] for name in FAULTS]
        table.add_row(line["world"], line["policy"], cell(line, "nuplan"), cell(line, "epdms"), *shares, str(line["failed"]))
    console.print(table)
    for pair in summary["pairs"]:
        if pair["difference"] is not None:
            told = f"{cell(pair, 'difference', places=3)}, p = {pair['p_value']:.4f}"
            than = f"{pair['policy']} is better than {pair['than']} by {told}"
            if pair["p_value"] > SIGNIFICANT:
                than = f"{pair['policy']} and {pair['than']} are not told apart by these scenes: {told}"
            console.print(f"{pair['world']}: {than}", markup=False, soft_wrap=True)
    tell_failed(rows, console)
    console.print(f"report: {out / 'report.html'}", markup=False, soft_wrap=True)
    console.print(f"rows and record: {', '.join(map(str, files))}", markup=False, soft_wrap=True)
