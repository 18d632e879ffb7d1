"""`worldloop validate`: does a score in the learned world tell the score outside of it?

    policies of all skills x the same starts x (learned, replay, SUMO) -> scores -> do the worlds rank them alike?

The reference is SUMO, whose drivers answer the ego by rules that neither world knows. Log replay is the naive alternative: its
road users drive as recorded, whatever the ego does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ..renderers.agreement import plot_agreement
from ..worldmodel.files import write_csv, write_text
from ..worldmodel.run import dated_folder
from .bootstrap import cell, counted
from .drive import WIDTH
from .evaluate import Evaluate, checked_scenes, drive_all, inputs_of, open_run, plan_jobs, tell_failed
from .policy import POLICIES
from .ranking import agreement, by_scene, leader_row
from .records import renew_text
from .rows import write_rows

REFERENCE = "sumo"
CANDIDATES = {"learned": "learned world", "replay": "log replay"}
BEGIN, END = "<!-- validation: written by `worldloop validate` -->", "<!-- end of the validation -->"
"""Between these lines of a README the report is put."""

LADDER = tuple(name for name in POLICIES if name != "replay")
"""Drivers of all skills; the log's own is left out, for in log replay it has learned the answers by heart."""

CORRELATIONS = {"spearman": "Spearman", "kendall": "Kendall", "pearson": "Pearson", "error": "error of the score"}


@dataclass(frozen=True)
class Validate:
    """Measure whether a score in the learned world predicts the score outside of it.

    Drivers of all skills are scored on the same starts in the learned world, in log replay and in SUMO, the reference. For the
    learned world and for log replay it reports Spearman's, Kendall's and Pearson's correlation of their scores with those in
    SUMO, and the mean absolute error, each with its bootstrap interval over starts (95 %). Where policies that were trained are
    named with --trained and the two options after it, it also reports the optimisation lift (what training in the learned world
    alone reaches in SUMO, as a share of what training in SUMO reaches) and the exploitability (by how much more the learned world
    flatters the policy after its training than before). The exit code is 1 if a scenario failed.

    The run folder gets report.md, agreement.png, scores.csv (a line a policy), scenarios.csv (with the extra parquet
    scenarios.parquet too), run.json. The scenes have to be generated (SUMO starts them again), on networks that the weights were
    not trained on.

    Example: worldloop validate --scenes scenes/held --out runs/validation
    """

    scenes: str
    """Folder of a data set of generated scenes, or FOLDER:GLOB."""
    policies: tuple[str, ...] = LADDER
    """Who drives: at least three shipped drivers, trained ones by their folder (RUN/model), or your own as module:attribute."""
    seeds: tuple[int, ...] = (0,)
    """Scenario i is driven with seed + i, once for each."""
    weights: Path | None = None
    """Folder of a trained behaviour model for the learned world, instead of the shipped one, or small or large."""
    trained: str | None = None
    """A policy (RUN/model) that was trained in the learned world alone: for lift and exploitability, not the ranking."""
    untrained: str | None = None
    """The same policy before its training: for exploitability."""
    trained_outside: str | None = None
    """The same policy, trained in SUMO with the same number of steps: for the lift."""
    limit: int | None = None
    """Take only so many of the scenes, the first ones."""
    horizon: int | None = 80
    """Steps of 0.1 s."""
    batch: int = 8
    """Scenes driven at once."""
    workers: int | None = None
    """Processes, as many as cores if not given."""
    time_limit: float = 60.0
    """Seconds that a step of a batch may take before its process is stopped."""
    out: Path | None = None
    """Run folder, runs/validate-DATE if not given."""
    resume: bool = False
    """Go on with a killed validation in --out; with a finished one it writes the report anew."""
    readme: Path | None = None
    """README whose report is to be renewed too."""


def run_validate(args: Validate) -> int:
    """Run `worldloop validate`; return the exit code."""
    if len(args.policies) < 3:
        raise ValueError(f"--policies {' '.join(args.policies)}: wanted at least three, as fewer have no ranking to speak of")
    extra = tuple(name for name in (args.trained, args.untrained, args.trained_outside) if name is not None)
    same = ("scenes", "seeds", "weights", "limit", "horizon", "batch", "workers", "time_limit", "out", "resume")
    plan = Evaluate(
        policies=tuple(dict.fromkeys((*args.policies, *extra))),
        worlds=(REFERENCE, *CANDIDATES),
        **{name: getattr(args, name) for name in same},
    )
    scenes = checked_scenes(plan)
    jobs = plan_jobs(plan, len(scenes))
    out = args.out or dated_folder("validate")
    arguments = {name: value for name, value in asdict(args).items() if name not in ("resume", "readme")}
    run = open_run("validate", out, plan, arguments, inputs_of(plan, scenes), len(jobs))
    rows = drive_all(run, plan, jobs, Console(stderr=True))
    lines = score_lines(rows, plan.policies, args.seeds[0])
    found = {world: agreement(*_paired_scores(rows, args.policies, world), args.seeds[0]) for world in CANDIDATES}
    training = training_figures(lines, args)
    write_rows(run.folder, rows)
    write_csv(run.folder / "scores.csv", lines)
    titles = {world: f"{title}: Spearman {cell(found[world], 'spearman')}" for world, title in CANDIDATES.items()}
    plot_agreement(run.folder / "agreement.png", REFERENCE, titles, lines)
    told = report(lines, found, training)
    write_text(run.folder / "report.md", told)
    if args.readme is not None:
        renew_text(args.readme, BEGIN, END, told.rstrip())
    failed = [row for row in rows if row["error"] is not None]
    run.finish({"agreement": found, "training": training, "scores": lines, "failed": len(failed)})
    _print(lines, found, training, failed, out)
    return 1 if failed else 0


def score_lines(rows: Sequence[Mapping[str, Any]], policies: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """Return one line a policy: nuPlan's score in every world with its interval, the best in the reference world first."""
    lines = []
    for policy in policies:
        line: dict[str, Any] = {"policy": policy}
        for world in (REFERENCE, *CANDIDATES):
            mine = leader_row([row for row in rows if (row["policy"], row["world"]) == (policy, world)], seed)
            line |= {f"{world}{end}": mine[f"nuplan{end}"] for end in ("", "_low", "_high")}
        lines.append(line)
    return sorted(lines, key=lambda line: -(line[REFERENCE] if line[REFERENCE] is not None else -1.0))


def _paired_scores(rows: Sequence[Mapping[str, Any]], policies: Sequence[str], world: str) -> tuple[Tensor, Tensor]:
    """Return the scores (P, N) in a world and in the reference, on the scenes that every policy could start in both."""
    tables = [
        [by_scene([row for row in rows if (row["policy"], row["world"]) == (policy, name)], "nuplan") for policy in policies]
        for name in (world, REFERENCE)
    ]
    common = sorted(set.intersection(*(set(scores) for table in tables for scores in table)))
    if not common:
        raise ValueError(
            f"no scene could be started by every policy in {world} and {REFERENCE}: see metrics.jsonl for the errors"
        )
    first, second = (torch.tensor([[scores[scene] for scene in common] for scores in table]).double() for table in tables)
    return first, second


def training_figures(lines: Sequence[Mapping[str, Any]], args: Validate) -> dict[str, float]:
    """Return `lift`, and `exploitability` after, before and their difference, as far as the trained policies are given."""
    of = {line["policy"]: line for line in lines}
    found: dict[str, float] = {}
    if args.trained is not None and args.trained_outside is not None:
        found["lift"] = of[args.trained][REFERENCE] / max(of[args.trained_outside][REFERENCE], 1e-9)
    for name, policy in (("after", args.trained), ("before", args.untrained)):
        if policy is not None:
            found[f"flattery_{name}"] = of[policy]["learned"] - of[policy][REFERENCE]
    if args.trained is not None and args.untrained is not None:
        found["exploitability"] = found["flattery_after"] - found["flattery_before"]
    return found


def report(lines: Sequence[Mapping[str, Any]], found: Mapping[str, Mapping[str, Any]], training: Mapping[str, float]) -> str:
    """Return the report as Markdown."""
    first = next(iter(found.values()))
    text = [
        f"{first['policies']} drivers on {counted(first['scenes'], 'start')}, nuPlan's closed-loop score, against SUMO.",
        "In brackets: 95 % interval, bootstrap over starts.",
        "",
        "| | " + " | ".join(CORRELATIONS.values()) + " |",
        "|---|" + "---|" * len(CORRELATIONS),
    ]
    for world, title in CANDIDATES.items():
        text.append(f"| {title} | " + " | ".join(cell(found[world], name) for name in CORRELATIONS) + " |")
    text += ["", "| driver | SUMO | " + " | ".join(CANDIDATES.values()) + " |", "|---|---|" + "---|" * len(CANDIDATES)]
    for line in lines:
        text.append(f"| {line['policy']} | " + " | ".join(cell(line, world) for world in (REFERENCE, *CANDIDATES)) + " |")
    if training:
        text += ["", *(f"- {name.replace('_', ' ')}: {value:.3f}" for name, value in training.items())]
    return "\n".join(text) + "\n"


def _print(
    lines: Sequence[Mapping[str, Any]],
    found: Mapping[str, Mapping[str, Any]],
    training: Mapping[str, float],
    failed: Sequence[Mapping[str, Any]],
    out: Path,
) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    table = Table(title="nuPlan's score; in brackets: 95 % interval over starts", title_justify="left")
    for name in ("driver", "SUMO", *CANDIDATES.values()):
        table.add_column(name, justify="left" if name == "driver" else "right")
    for line in lines:
        table.add_row(line["policy"], *(cell(line, world) for world in (REFERENCE, *CANDIDATES)))
    console.print(table)
    for world, title in CANDIDATES.items():
        told = ", ".join(f"{label} {cell(found[world], name)}" for name, label in CORRELATIONS.items())
        console.print(f"{title} against SUMO: {told}", markup=False, soft_wrap=True)
    for name, value in training.items():
        console.print(f"{name.replace('_', ' ')}: {value:.3f}")
    tell_failed(failed, console)
    console.print(f"report and picture: {out / 'report.md'}, {out / 'agreement.png'}", markup=False, soft_wrap=True)
