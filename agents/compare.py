"""`worldloop compare`: what each change to the weights or to the sampling did, as one table written from stored runs.

A row is one set of weights with one way of sampling, measured by `worldloop fidelity`. The figures of `worldloop counterfactual`,
`endurance` and `calibrate` with the same weights (by checksum) and sampling stand beside it. What changed from row to row
is read from the recorded arguments of the trainings, so that nothing in the table is typed by hand.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, arg

from ..worldmodel.files import write_csv, write_text
from ..worldmodel.lineage import read_stages, without_folders
from ..worldmodel.run import dated_folder, whole_run
from ..worldmodel.shipped import model_folder
from ..worldmodel.uncertainty import weights_checksum
from .bootstrap import cell
from .records import finished_record, renew_text

SAMPLING = ("temperature", "epsilon", "top_p")
"""Arguments of a measurement that say how the world draws; top_p is of runs from before epsilon."""

MEASURED = (*SAMPLING, "weights", "world", "out", "fit", "into")
"""Arguments in which runs of one command may differ; in all others they have to agree, or a column would not compare."""

UNRELATED = ("out", "resume", "start_from", "evaluate_every", "validation")
"""Arguments of a training that shape no weights, or that the order of the stages shows."""

COLUMNS = {
    "rmm_ratio": ("RMM, of the log's", 1, 3),
    "min_ade": ("minADE (m)", 1, 2),
    "collision_rate": ("collide (%)", 100, 1),
    "off_road_rate": ("off the road (%)", 100, 1),
    "sign_agreement": ("same sign as SUMO (%)", 100, 1),
    "hard_brake_collisions": ("hit a braking ego (%)", 100, 1),
    "speed_ratio": ("speed, end of its start", 1, 2),
    "rank_correlation": ("uncertainty's rank", 1, 2),
}
"""Figures of a row: heading, factor, places."""

TEXTS = {"row": "row", "change": "changed"}
"""What else stands in a row: heading."""

BEGIN, END = "<!-- sizes table: written by `worldloop compare` -->", "<!-- end of the sizes table -->"
"""Between these lines of a README the table is put."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Compare:
    """Put measurements of several weights side by side: what was changed, and what it did.

    Prints a table and writes a run folder with run.json, steps.csv and steps.md (the table with the recipe of every row).

    Example: worldloop compare runs/before runs/after --with runs/counterfactual runs/endurance
    """

    fidelity: Annotated[tuple[Path, ...], Positional, arg(metavar="FIDELITY")]
    """Run folders of `worldloop fidelity` on the same scenes, in the order of the changes; each is a row."""
    beside: Annotated[tuple[Path, ...], arg(name="with")] = ()
    """Run folders of counterfactual, endurance and calibrate, which find their row by weights and sampling."""
    out: Path | None = None
    """Run folder, runs/compare-DATE if not given."""
    readme: Path | None = None
    """README whose table of sizes is to be renewed: the same figures, without what was changed."""


def run_compare(args: Compare) -> Path:
    """Read the runs, print and write the table; return the run folder.

    Raises:
        ValueError: a run is missing, unfinished or of another command; runs of one command measured different things, or two
            the same; a run beside the fidelity runs is of weights and sampling that no row has.
    """
    if not args.fidelity:
        raise ValueError("found no runs: name one or more finished run folders of `worldloop fidelity`")
    records = [(folder, finished_record(folder, "fidelity")) for folder in args.fidelity]
    beside = [(folder, finished_record(folder, "counterfactual", "endurance", "calibrate")) for folder in args.beside]
    _check_alike([*records, *beside])
    rows = {_key(record): _fidelity_row(folder, record) for folder, record in records}
    recipes = [_recipe(folder, record) for folder, record in records]
    for folder, record in beside:
        if _key(record) not in rows:
            raise ValueError(f"{folder}: is of weights or a sampling that no fidelity run has: score those too, or leave it out")
        rows[_key(record)].update(_figures(record))
    table = list(rows.values())
    table[0]["change"] = "the start"
    for row, (before, after) in zip(table[1:], pairwise(recipes), strict=True):
        row["change"] = "; ".join(_changes(before, after)) or "nothing that is recorded"
    out = args.out or dated_folder("compare")
    if args.readme is not None:
        renew_text(args.readme, BEGIN, END, "\n".join(_lines(table, ("row", *_shown(table)))))
    with whole_run(out, "compare", asdict(args), 0) as run:
        write_csv(run.folder / "steps.csv", table)
        write_text(run.folder / "steps.md", _markdown(table, recipes))
        run.finish({"rows": table})
    _print(table)
    return out


def _log_row(record: Mapping[str, Any]) -> Row:
    """Return what the log itself scored in a fidelity run, but for how far it lies behind the run's world."""
    return {name: value for name, value in record["results"]["worlds"][-1].items() if not name.startswith("rmm_lead")}


def _check_alike(records: Sequence[tuple[Path, dict[str, Any]]]) -> None:
    """Refuse runs of one command that differ in more than the world, and two that measured the same."""
    first: dict[str, tuple[Path, dict[str, Any]]] = {}
    seen: dict[tuple[Any, ...], Path] = {}
    for folder, record in records:
        command = record["command"]
        other, reference = first.setdefault(command, (folder, record))
        asked, wanted = ({name: _plain(value) for name, value in r["arguments"].items()} for r in (record, reference))
        names = (asked.keys() | wanted.keys()) - set(MEASURED)
        if wrong := sorted(name for name in names if asked.get(name) != wanted.get(name)):
            raise ValueError(f"{folder}: differs from {other} in {', '.join(wrong)}: measure all of them alike")
        if command == "fidelity" and _log_row(record) != _log_row(reference):
            raise ValueError(f"{folder}: the log itself scores otherwise than in {other}: other scenes, or some have failed")
        if record["results"].get("failed"):
            raise ValueError(f"{folder}: scenes have failed in it, so it measured fewer than the others: mend or leave them out")
        key = (command, *_key(record))
        if key in seen:
            raise ValueError(f"{folder}: has the same weights and sampling as {seen[key]}: name one of them")
        seen[key] = folder


def _plain(value: Any) -> Any:
    return sorted(without_folders(value)) if isinstance(value, list) else without_folders(value)


def _key(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """World, weights and sampling."""
    world = record["arguments"].get("world") if record["command"] == "fidelity" else None
    weights = record["results"].get("weights_checksum")
    if world in (None, "learned") and weights is None:
        raise ValueError(f"a run of `worldloop {record['command']}` from {record['started']} names no weights: run it again")
    return (world or "learned", weights, *(record["arguments"].get(name) for name in SAMPLING))


def _fidelity_row(folder: Path, record: Mapping[str, Any]) -> Row:
    scored = record["results"]["worlds"][0]  # the references come after it
    return {"row": folder.resolve().name, "change": None} | _with_interval(scored, tuple(COLUMNS))


def _figures(record: Mapping[str, Any]) -> Row:
    """What a run of another command adds to its row."""
    results = record["results"]
    if record["command"] == "counterfactual":
        found = {row["intervention"]: row for row in results["figures"] if row["world"] == "learned"}
        braking = found.get("hard_brake", {})
        named = {"hard_brake_collisions" + end: braking.get("follower_collision_rate" + end) for end in ("", "_low", "_high")}
        return _with_interval(found["all"], ("sign_agreement",)) | named
    if record["command"] == "endurance":
        return _with_interval(results["worlds"][0], ("speed_ratio",))
    if "check" not in results:
        return {}
    found = results["check"]["rank_correlations"][0]  # over all rows, the first group
    return {f"rank_correlation{end}": found[f"stated{end}"] for end in ("", "_low", "_high")}


def _with_interval(found: Mapping[str, Any], names: Sequence[str]) -> Row:
    return {name + end: found.get(name + end) for name in names for end in ("", "_low", "_high")}


def _recipe(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes of the network, the arguments of all trainings that led to a row, by stage, and of its sampling.

    Raises:
        ValueError: the weights beside the trainings are not those that were scored any more.
    """
    weights, world = record["arguments"]["weights"], record["arguments"].get("world", "learned")
    if world != "learned":
        return {"world": world}
    sampling = {name: record["arguments"].get(name, "off") for name in SAMPLING}
    place = model_folder(weights)
    if weights_checksum(place) != record["results"]["weights_checksum"]:
        raise ValueError(f"{folder}: scored weights that {place} does not hold any more: score them again")
    stages = read_stages(place)
    if not stages:  # trained by a release that did not write it down
        told = f"{without_folders(weights or 'shipped')}, checksum {record['results']['weights_checksum']}"
        return {"weights": told, "sampling": sampling}
    trained = {
        f"stage {number}": {name: value for name, value in stage["arguments"].items() if name not in UNRELATED}
        for number, stage in enumerate(stages, 1)
    }
    config = json.loads((place / "config.json").read_text())
    network = {name: value for name, value in config.items() if not name.startswith("vocabulary") and name != "dropout"}
    return {"network": network} | trained | {"sampling": sampling}


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """Say, part by part, what differs between two recipes."""
    for part in dict.fromkeys((*before, *after)):
        old, new = before.get(part), after.get(part)
        if new is None:
            yield f"{part}: left out"
        elif not isinstance(new, dict):
            if new != old:
                yield f"{part}: {new}"
        elif told := list(_differences(old or {}, new)):
            yield f"{part}{'' if old else ' added'}: {', '.join(told)}"


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """Say which arguments differ; where there was nothing before, which there are, those that are off apart."""
    for name in dict.fromkeys((*old, *new)):
        was, now = old.get(name), new.get(name)
        if isinstance(was, list) and isinstance(now, list):
            yield from (f"+ {entry}" for entry in now if entry not in was)
            yield from (f"- {entry}" for entry in was if entry not in now)
        elif was != now and old and name in old and name in new:  # else one of both releases has no such argument
            yield f"{name} {was} -> {now}"
        elif was != now and name in ("data", "steps", "closed_loop", "learning_rate", *SAMPLING):
            yield f"{name} {', '.join(now) if isinstance(now, list) else now}"


def _cell(row: Mapping[str, Any], name: str) -> str:
    _, factor, places = COLUMNS[name]
    return "" if row.get(name) is None else cell(row, name, factor, places=places)


def _shown(rows: Sequence[Row]) -> list[str]:
    return [name for name in COLUMNS if any(row.get(name) is not None for row in rows)]


def _lines(rows: Sequence[Row], names: Sequence[str]) -> list[str]:
    """Return a Markdown table of the rows' `names`, figures with their intervals."""
    headings = [COLUMNS[name][0] if name in COLUMNS else TEXTS[name] for name in names]
    cells = [[_cell(row, name) if name in COLUMNS else row[name] for name in names] for row in rows]
    return [f"| {' | '.join(line)} |" for line in (headings, ["---"] * len(names), *cells)]


def _markdown(rows: Sequence[Row], recipes: Sequence[Mapping[str, Any]]) -> str:
    lines = _lines(rows, ("row", "change", *_shown(rows)))
    for row, recipe in zip(rows, recipes, strict=True):
        lines += ["", f"Recipe of {row['row']}:", "", "```json", json.dumps(recipe, indent=2), "```"]
    return "\n".join(lines) + "\n"


def _print(rows: Sequence[Row]) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 180
    names = _shown(rows)
    table = Table("row", *(COLUMNS[name][0] for name in names))
    for row in rows:
        table.add_row(row["row"], *(_cell(row, name) for name in names))
    console.print(table)
    for row in rows:
        console.print(f"{row['row']}: {row['change']}", markup=False, soft_wrap=True)
