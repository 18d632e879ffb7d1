"""`worldloop compare`: what each change to the weights or to the sampling did, as one table written from stored runs.

A row is one set of weights with one way of sampling, measured by `worldloop fidelity`. The figures of `worldloop counterfactual`,
`endurance` and `calibrate` with the same weights (by checksum) and sampling stand beside it. What changed from row to row
is read from the recorded arguments of the trainings, so that nothing in the table is typed by hand.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, arg

from ..worldmodel.files import write_csv, write_text
from ..worldmodel.run import dated_folder, whole_run
from .bootstrap import cell
from .card import training_stages, without_folders

SAMPLING = ("temperature", "epsilon", "top_p")
"""Arguments of a measurement that say how the world draws; top_p is of runs from before epsilon."""

FIXED = ("config", "horizon", "rollouts", "scenes", "seed")
"""Arguments in which the fidelity runs have to agree."""

UNRELATED = ("out", "resume", "start_from", "evaluate_every", "validation")

COLUMNS = {
    "rmm_ratio": ("RMM, of the log's", 1, 3),
    "min_ade": ("minADE (m)", 1, 2),
    "collision_rate": ("collide (%)", 100, 1),
    "off_road_rate": ("off the road (%)", 100, 1),
    "sign_agreement": ("same sign as SUMO (%)", 100, 1),
    "hard_brake_collisions": ("hit a braking ego (%)", 100, 1),
    "speed_ratio": ("speed after a minute", 1, 2),
    "rank_correlation": ("uncertainty's rank", 1, 2),
}
"""Figures of a row: heading, factor, places."""

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


def run_compare(args: Compare) -> Path:
    """Read the runs, print and write the table; return the run folder.

    Raises:
        ValueError: a run is missing, unfinished or of another command; the fidelity runs differ in what they scored; a run beside
            them is of weights and sampling that no row has; two rows are the same.
    """
    if not args.fidelity:
        raise ValueError("found no runs: name one or more finished run folders of `worldloop fidelity`")
    records = [_read(folder, ("fidelity",)) for folder in args.fidelity]
    for folder, record in zip(args.fidelity, records, strict=True):
        wrong = [name for name in FIXED if _plain(record["arguments"][name]) != _plain(records[0]["arguments"][name])]
        if wrong:
            raise ValueError(f"{folder}: differs from {args.fidelity[0]} in {', '.join(wrong)}: score all of them alike")
    rows = [_fidelity_row(folder, record) for folder, record in zip(args.fidelity, records, strict=True)]
    keys = [_key(record) for record in records]
    if twice := next((folder for folder, key in zip(args.fidelity, keys, strict=True) if keys.count(key) > 1), None):
        raise ValueError(f"{twice}: another run has the same weights and sampling: name each once")
    for folder in args.beside:
        record = _read(folder, ("counterfactual", "endurance", "calibrate"))
        found = [row for row, key in zip(rows, keys, strict=True) if _key(record) == key]
        if not found:
            raise ValueError(f"{folder}: is of weights or a sampling that no fidelity run has: score those too, or leave it out")
        found[0].update(_figures(record))
    recipes = [_recipe(folder, record) for folder, record in zip(args.fidelity, records, strict=True)]
    for row, recipe, before in zip(rows, recipes, [None, *recipes], strict=False):
        row["change"] = "the start" if before is None else "; ".join(_changes(before, recipe)) or "nothing that is recorded"
    out = args.out or dated_folder("compare")
    with whole_run(out, "compare", asdict(args), 0) as run:
        write_csv(run.folder / "steps.csv", rows)
        write_text(run.folder / "steps.md", _markdown(rows, recipes))
        run.finish({"rows": rows})
    _print(rows)
    return out


def _read(folder: Path, commands: Sequence[str]) -> dict[str, Any]:
    path = folder / "run.json"
    if not path.is_file():
        raise ValueError(f"{path}: not found: name the folder of a finished run")
    record = json.loads(path.read_text())
    if record.get("command") not in commands or record.get("status") != "finished":
        found = f"{record.get('command')}, {record.get('status')}"
        raise ValueError(f"{path}: found {found}, wanted a finished run of {', '.join(f'`worldloop {c}`' for c in commands)}")
    return record


def _plain(value: Any) -> Any:
    return sorted(without_folders(value)) if isinstance(value, list) else value


def _key(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """World, weights and sampling."""
    world = record["arguments"].get("world", "learned") if record["command"] == "fidelity" else "learned"
    return (world, record["results"].get("weights_checksum"), *(record["arguments"].get(name) for name in SAMPLING))


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
    """The arguments of all trainings that led to a row, by stage, and of its sampling."""
    weights, world = record["arguments"]["weights"], record["arguments"].get("world", "learned")
    if world != "learned":
        return {"world": world}
    stages = [] if weights is None else training_stages(Path(weights).parent)
    shipped = {} if stages else {"weights": "those that the package shipped"}
    trained = {
        f"stage {number}": {name: without_folders(value) for name, value in stage["arguments"].items() if name not in UNRELATED}
        for number, (_, stage) in enumerate(stages, 1)
    }
    sampling = {name: value for name in SAMPLING if (value := record["arguments"].get(name)) is not None}
    return shipped | trained | {"sampling": sampling}


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """Say, part by part, what differs between two recipes."""
    for part in dict.fromkeys((*before, *after)):
        old, new = before.get(part), after.get(part)
        if old == new:
            continue
        if not isinstance(old, dict) or not isinstance(new, dict):
            yield f"{part}: {'left out' if new is None else 'added' if isinstance(new, dict) else new}"
            continue
        told = []
        for name in dict.fromkeys((*old, *new)):
            was, now = old.get(name), new.get(name)
            if isinstance(was, list) and isinstance(now, list):
                told += [f"+ {entry}" for entry in now if entry not in was] + [f"- {entry}" for entry in was if entry not in now]
            elif was != now:
                told.append(f"{name} {was} -> {now}")
        yield f"{part}: {', '.join(told)}"


def _cell(row: Mapping[str, Any], name: str) -> str:
    _, factor, places = COLUMNS[name]
    return "" if row.get(name) is None else cell(row, name, factor, places=places)


def _shown(rows: Sequence[Row]) -> list[str]:
    return [name for name in COLUMNS if any(row.get(name) is not None for row in rows)]


def _markdown(rows: Sequence[Row], recipes: Sequence[Mapping[str, Any]]) -> str:
    names = _shown(rows)
    lines = [f"| row | changed | {' | '.join(COLUMNS[name][0] for name in names)} |", "|---" * (len(names) + 2) + "|"]
    lines += [f"| {row['row']} | {row['change']} | {' | '.join(_cell(row, name) for name in names)} |" for row in rows]
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
