"""`worldloop card`: put trained weights where the package ships them, with a model card written from what the runs recorded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from ..worldmodel.behavior import BehaviorModel
from ..worldmodel.files import write_text
from ..worldmodel.run import read_metrics
from ..worldmodel.uncertainty import CALIBRATION_FILE, Calibration, weights_checksum
from .bootstrap import cell
from .records import finished_record, renew_text, ship, training_stages, without_folders

MODEL_FILES = ("config.json", "model.safetensors", "vocabulary.safetensors")

BEGIN, END = "<!-- fidelity table: written by `worldloop card` -->", "<!-- end of the fidelity table -->"
"""Between these lines of a README the table of the fidelity run is put."""

BOLOGNA = "a Bologna network and its demand from the SUMO scenarios (DLR, EPL-2.0), driven with SUMO."
ORIGINS = {
    "pandaset": "PandaSet (Scale AI and Hesai, CC BY 4.0); tracks reconstructed from the camera labels of pandaset_plus "
    "(Lei Qin, CC BY 4.0).",
    "ngsim": "Next Generation Simulation trajectories (US Department of Transportation, open data), read from the CommonRoad "
    "scenarios of TU Munich.",
    "generated": "made by `worldloop data generate` with Eclipse SUMO on networks of this package; nothing recorded.",
    "interventions": "made by `worldloop data intervene` from some of the generated scenes; nothing recorded.",
    "acosta": BOLOGNA,
    "pasubio": BOLOGNA,
}
"""Where the data of a folder of that name come from, in the project's own trainings."""

STAGE = """{number}. `worldloop train behavior` with

```json
{arguments}
```

{steps} optimiser steps in {seconds:.0f} seconds on {cores} CPU cores, validations apart. Last validation: cross entropy
{validation_loss:.3f} nats a token."""

CARD = """# Behaviour model of the learned world

Predicts what every road user does in the next half second, from everything that has happened until then, what the ego did
included. {parameters:,} parameters, {tokens} motion tokens, vocabulary checksum {checksum}. The docstring of
`worldloop.worldmodel.behavior` describes it.

## Intended use
Moving the other road users in `worldloop/Drive-v0`: research on driving policies, their evaluation and training. Not for the
prediction of real traffic in a vehicle.

## Training data
{data}

Sources, by what the folders hold:

{origins}

No weights or numbers come from the validation scenes, but for the choice of the recipe: {validation}.

## Recipe
{recipe}

## How good it is
{table}

## How unsure it says it is
{uncertainty}

## Limits
Beyond the end of a log, signals go on as a network of their own predicts (`assets/signals`). Nobody enters or leaves, unless the
world is `learned_open`, where that follows rules. Where a map has no lanes (PandaSet) road users keep to what they see of each
other and of the lane markings. Real data are few and all from the United States.
"""

UNCALIBRATED = """Not calibrated: `State.uncertainty` is the spread of what the model thinks possible. It ranks, but is not the
size of the error."""


@dataclass(frozen=True)
class Card:
    """Ship trained weights: copy them, and write their model card and the README's table from recorded runs.

    Example: worldloop card runs/behavior runs/fidelity --folder assets/behavior --readme README.md
    """

    training: Annotated[Path, Positional, arg(metavar="TRAINING")]
    """Finished run folder of `worldloop train behavior`."""
    fidelity: Annotated[Path, Positional, arg(metavar="FIDELITY")]
    """Run folder of `worldloop fidelity` with these weights."""
    folder: Path = Path("assets/behavior")
    """Where the weights and their card go."""
    readme: Path | None = None
    """README whose table is to be renewed too."""


def run_card(args: Card) -> None:
    """Copy the model and write the texts.

    Raises:
        ValueError: a run is not finished or of another command, the figures are of other weights or of scenes that were not held
            out, or the README has no place for the table.
    """
    stages, fidelity = training_stages(args.training), finished_record(args.fidelity, "fidelity")
    _check_fit(args, stages[-1][1], fidelity)
    model = BehaviorModel.from_pretrained(args.training / "model")
    calibrated = Calibration.load(args.training / "model") is not None
    table = fidelity_table(fidelity)
    sources = {without_folders(source).partition("=")[0]: None for _, run in stages for source in run["arguments"]["data"]}
    text = CARD.format(
        parameters=sum(p.numel() for p in model.parameters()),
        checksum=model.config.vocabulary_checksum,
        tokens=model.config.vocabulary_size,
        data="\n".join(f"- `{source}`" for source in sources),
        origins="\n".join(
            f"- `{name}`: {ORIGINS.get(name, 'a set of its own, of which the run says no more.')}"
            for name in dict.fromkeys(source.partition(":")[0] for source in sources)
        ),
        validation=", ".join(f"`{without_folders(source)}`" for source in stages[-1][1]["arguments"]["validation"]),
        recipe="\n\n".join(_stage(number, *stage) for number, stage in enumerate(stages, 1)),
        table=table,
        uncertainty=_uncertainty(args.training / "model") if calibrated else UNCALIBRATED,
    )
    if args.readme is not None:
        renew_text(args.readme, BEGIN, END, table)
    ship(args.training / "model", args.folder, (*MODEL_FILES, *([CALIBRATION_FILE] if calibrated else [])))
    if not calibrated:
        (args.folder / CALIBRATION_FILE).unlink(missing_ok=True)  # another model's
    write_text(args.folder / "README.md", text)
    print(f"weights and card: {args.folder}" + (f", table: {args.readme}" if args.readme else ""))


def fidelity_table(record: Mapping[str, Any]) -> str:
    """Return the summary of a fidelity run as Markdown: what was scored, how, and a row for each world."""
    arguments = record["arguments"]
    scenes = ", ".join(f"`{without_folders(source)}`" for source in arguments["scenes"])
    results = record["results"]
    first, last = (f"{steps / 10:g}" for steps in results["steps"])
    lines = [
        f"{results['worlds'][0]['scenes']} validation scenes ({scenes}), {results['objects']} scored road users, "
        f"{arguments['rollouts']} futures each over {first} to {last} s (as far as the log goes), the recording car too; "
        f"temperature {arguments['temperature']:g}, epsilon {arguments['epsilon']:g}. RMM: realism meta-metric of the Waymo sim "
        f"agents challenge {results['config']}. In brackets: 95 % interval, bootstrap over scenes.",
        "",
        "| world | RMM | of the log's | minADE 3 s (m) | minADE (m) | collide (%) | leave the road (%) |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results["worlds"]:
        cells = [row["world"]]
        for name in ("rmm", "rmm_ratio", "min_ade_3s", "min_ade", "collision_rate", "off_road_rate"):
            if row[name] is None:
                cells.append("no road edges" if name == "off_road_rate" else "no such value")
                continue
            scale, places = (100, 1) if name.endswith("rate") else (1, 2 if name.startswith("min_ade") else 3)
            cells.append(cell(row, name, scale, places=places))
        lines.append(f"| {' | '.join(cells)} |")
    left_out = ", ".join(f"{name.replace('_', ' ')} ({count} scenes)" for name, count in results["left_out"].items())
    if left_out:
        lines += ["", f"Left out of the RMM where the data has no such value: {left_out}."]
    return "\n".join(lines)


def _uncertainty(folder: Path) -> str:
    """Return what the coefficients of `uncertainty.json` were fitted to, as Markdown."""
    record = json.loads((folder / CALIBRATION_FILE).read_text())
    scenes = ", ".join(f"`{source}`" for source in record["scenes"])
    most = f", at most {record['limit']} scenes of each" if record["limit"] else ""
    return (
        f"`State.uncertainty` is the position error to expect, in metres, fitted to {record['rollouts']} futures of each of "
        f"{record['count']} scenes ({scenes}{most}) at temperature {record['temperature']:g}, epsilon {record['epsilon']:g}."
    )


def _stage(number: int, folder: Path, record: dict[str, Any]) -> str:
    """Return what one training run was asked and what it measured, as Markdown."""
    arguments = {name: without_folders(value) for name, value in record["arguments"].items() if name not in ("out", "resume")}
    metrics = read_metrics(folder)
    speeds = [row for row in metrics if "steps_per_second" in row]
    before = [0, *(row["step"] for row in speeds)]
    return STAGE.format(
        number=number,
        arguments=json.dumps(arguments, indent=2),
        seconds=sum((row["step"] - first) / row["steps_per_second"] for first, row in zip(before, speeds, strict=False)),
        cores=record["machine"]["cores"],
        steps=record["results"]["optimiser_steps"],
        validation_loss=[row for row in metrics if "validation_loss" in row][-1]["validation_loss"],
    )


def _check_fit(args: Card, training: Mapping[str, Any], fidelity: Mapping[str, Any]) -> None:
    """Refuse a fidelity run of other weights, or on scenes that the training has not held out."""
    if fidelity["results"].get("weights_checksum") != weights_checksum(args.training / "model"):
        raise ValueError(
            f"{args.fidelity}: scored other weights than those of {args.training}: run "
            f"`worldloop fidelity --weights {args.training / 'model'}` on the validation scenes"
        )
    if fidelity["results"].get("failed"):
        raise ValueError(f"{args.fidelity}: {fidelity['results']['failed']} scenes failed in it, see its failures.csv: mend them")
    held_out = [without_folders(source) for source in training["arguments"]["validation"]]
    for source in fidelity["arguments"]["scenes"]:
        if without_folders(source) not in held_out:
            raise ValueError(f"{args.fidelity}: scored {source}, wanted scenes that the training held out: {', '.join(held_out)}")
