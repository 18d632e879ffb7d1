"""`worldloop scaling`: how the validation loss falls with the size of the network and with the amount of training data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, arg

from ..renderers.curves import draw_power_laws
from ..worldmodel.files import write_csv
from ..worldmodel.run import dated_folder, whole_run
from .bootstrap import counted
from .records import finished_record

AXES = {"parameters": "parameters", "training_scenes": "training scenes"}
VARIED = ("out", "model", "share", "resume")
"""Arguments in which the runs may differ; in all others they must agree, or the curve would show something else."""
COLUMNS = ("run", *AXES, "optimiser_steps", "validation_loss", "min_ade_3s", "seconds")


@dataclass(frozen=True)
class Scaling:
    """Fit power laws to finished trainings that differ in the size of the network (--model) or in the share of data (--share).

    Prints a table and the fits; writes a run folder with run.json, runs.csv, and scaling.png. Runs must agree in all else.

    Example: for part in 1 0.25 0.0625; do worldloop train behavior --data made --validation held_out --share $part --out
    runs/part$part; done; worldloop scaling runs/part*
    """

    runs: Annotated[tuple[Path, ...], Positional, arg(metavar="RUN")]
    """Finished run folders of `worldloop train behavior`."""
    out: Path | None = None
    """Run folder, runs/scaling-DATE if not given."""


@dataclass(frozen=True)
class PowerLaw:
    """loss = scale * size ** -exponent, the form of Kaplan et al., "Scaling laws for neural language models" (arXiv 2001.08361).

    Attributes:
        scale: nats at size 1.
        exponent: positive where the loss falls.
        fit: R squared of the straight line through the logarithms; None with two points, which any line meets.
    """

    scale: float
    exponent: float
    fit: float | None


def fit_power_law(size: Sequence[float], loss: Sequence[float]) -> PowerLaw:
    """Return the least-squares line through the logarithms of at least two different sizes and their losses (nats, above 0)."""
    if len(set(size)) < 2:
        raise ValueError(f"found {len(set(size))} different sizes, wanted at least 2 to fit a power law")
    if min(*size, *loss) <= 0:
        raise ValueError("found a size or a loss of 0 or below, of which there is no logarithm")
    x, y = numpy.log(numpy.asarray(size)), numpy.log(numpy.asarray(loss))
    slope, offset = numpy.polyfit(x, y, 1)
    spread = ((y - y.mean()) ** 2).sum()
    missed = ((y - slope * x - offset) ** 2).sum()
    fit = None if len(set(size)) < 3 else float(1 - missed / spread) if spread > 0 else 1.0
    return PowerLaw(math.exp(offset), float(-slope), fit)


def along(rows: Sequence[dict[str, Any]], axis: str) -> list[dict[str, Any]]:
    """Return the largest group of rows that differ along `axis` alone, in its order; empty if no two rows do.

    Of groups that are equally large it is the one with most of the rest.
    """
    other = next(name for name in AXES if name != axis)
    groups = [[row for row in rows if row[other] == value] for value in sorted({row[other] for row in rows})]
    best = max(groups, key=lambda group: (len({row[axis] for row in group}), group[0][other]))
    return sorted(best, key=lambda row: row[axis]) if len({row[axis] for row in best}) > 1 else []


def run_scaling(args: Scaling) -> Path:
    """Read the runs, fit, draw; return the run folder.

    Raises:
        ValueError: a run is not a finished training, runs differ in more than size and data, or in neither.
    """
    if not args.runs:
        raise ValueError("found no runs: name two or more finished run folders of `worldloop train behavior`")
    if len({folder.resolve() for folder in args.runs}) < len(args.runs):
        raise ValueError("found a run folder twice: name each once, or it counts twice in the fit")
    records = [_read(folder) for folder in args.runs]
    fixed = [{name: value for name, value in record["arguments"].items() if name not in VARIED} for record in records]
    for folder, found in zip(args.runs, fixed, strict=True):
        if other := sorted(name for name in found.keys() | fixed[0].keys() if found.get(name) != fixed[0].get(name)):
            raise ValueError(f"{folder}: differs from {args.runs[0]} in {', '.join(other)}: wanted --model or --share alone")
    rows = [
        {"run": folder.resolve().name, "seconds": record["seconds"]} | {n: record["results"][n] for n in COLUMNS[1:-1]}
        for folder, record in zip(args.runs, records, strict=True)
    ]
    curves = {axis: found for axis in AXES if (found := along(rows, axis))}
    if not curves:
        raise ValueError("the runs differ neither in parameters nor in training scenes: train some with --model or --share")
    laws = {
        axis: fit_power_law([row[axis] for row in found], [row["validation_loss"] for row in found])
        for axis, found in curves.items()
    }
    out = args.out or dated_folder("scaling")
    with whole_run(out, "scaling", asdict(args), 0) as run:
        write_csv(run.folder / "runs.csv", rows)
        points = {AXES[axis]: [(row[axis], row["validation_loss"]) for row in found] for axis, found in curves.items()}
        draw_power_laws(run.folder / "scaling.png", points, {AXES[axis]: (law.scale, law.exponent) for axis, law in laws.items()})
        run.finish({"runs": rows, "laws": {axis: asdict(law) for axis, law in laws.items()}})
    _print(rows, curves, laws)
    seen = records[0]["arguments"]["steps"] * records[0]["arguments"]["batch"]
    if "training_scenes" in curves and (few := [row for row in curves["training_scenes"] if row["training_scenes"] > seen]):
        told = f"the {seen:,} windows that a run draws are fewer than the scenes of {counted(len(few), 'run')}"
        print(f"{told}: they have not seen all of their data, so the law over scenes says little. Train with more --steps")
    return out


def _read(folder: Path) -> dict[str, Any]:
    record = finished_record(folder, "train behavior")
    number = lambda value: isinstance(value, int | float) and math.isfinite(value)  # noqa: E731
    if missing := [name for name in COLUMNS[1:-1] if not number(record["results"].get(name))]:
        raise ValueError(f"{folder}: its results have no number of {', '.join(missing)}: train again with this release")
    return record


def _print(rows: Sequence[dict[str, Any]], curves: dict[str, list[dict[str, Any]]], laws: dict[str, PowerLaw]) -> None:
    console = Console(highlight=False)
    table = Table("run", "parameters", "scenes", "steps", "loss (nats)", "minADE 3 s (m)", "seconds")
    for row in sorted(rows, key=lambda row: (row["parameters"], row["training_scenes"])):
        whole = (f"{row[name]:,}" for name in COLUMNS[1:4])
        table.add_row(row["run"], *whole, f"{row['validation_loss']:.3f}", f"{row['min_ade_3s']:.2f}", f"{row['seconds']:,.0f}")
    console.print(table)
    for axis, law in laws.items():
        sure = "two points fix it" if law.fit is None else f"R² {law.fit:.3f}"
        text = f"loss = {law.scale:.3g} x {AXES[axis]} ^ {-law.exponent:.3f} ({len(curves[axis])} runs, {sure}): ten times the "
        console.print(f"{text}{AXES[axis]} give {10**-law.exponent:.2f} times the loss", markup=False)
