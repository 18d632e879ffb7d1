"""`worldloop card`: put trained weights where the package ships them, with a model card written from what the runs recorded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from ..worldmodel.behavior import BehaviorModel
from ..worldmodel.files import write_text
from ..worldmodel.lineage import TRAINING_FILE, Stage, patterns, read_stages, without_folders
from ..worldmodel.uncertainty import CALIBRATION_FILE, Calibration, weights_checksum
from .card_tables import endurance_table, fidelity_table, reactions_table, uncertainty_table
from .records import finished_record, renew_text, ship, trained_model

MODEL_FILES = ("config.json", "model.safetensors", "vocabulary.safetensors", TRAINING_FILE)

BEGIN, END = "<!-- {name} table: written by `worldloop card` -->", "<!-- end of the {name} table -->"
"""Between these lines of a README a table is put: fidelity, zero_shot, reactions, endurance or uncertainty."""

BESIDE = {
    "fidelity": ("zero_shot", "On data of other makers, never trained or tuned on", fidelity_table),
    "counterfactual": ("reactions", "How others answer the ego", reactions_table),
    "endurance": ("endurance", "Over a minute", endurance_table),
    "calibrate": ("uncertainty", "", uncertainty_table),
}
"""By the command of a run beside the fidelity run: its table's name, the heading in the card, and what writes it."""

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
{asked}
```

{optimiser_steps} optimiser steps in {seconds:.0f} seconds on {cores} CPU cores, validations apart. Last validation: cross entropy
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

Sources, by the names of the folders:

{origins}

The trainer refuses to validate on what any stage was trained on, by name and as copies. Held out, but for the choice of the
recipe: {validation}.

## Recipe
{recipe}

## How good it is
{table}

{beside}## How unsure it says it is
{uncertainty}

## Limits
Beyond the end of a log, signals go on as a network of their own predicts (`assets/signals`). Nobody enters or leaves, unless the
world is `learned_open`, where that follows rules. Where a map has no lanes road users keep to what they see of each other and of
the lane markings. What the training data do not show it does not know.
"""

UNCALIBRATED = """Not calibrated: `State.uncertainty` is the spread of what the model thinks possible. It ranks, but is not the
size of the error."""


@dataclass(frozen=True)
class Card:
    """Ship trained weights: copy them, and write their model card and the README's table from recorded runs.

    Example: worldloop card runs/behavior runs/fidelity --folder assets/behavior --readme README.md
    """

    training: Annotated[Path, Positional, arg(metavar="TRAINING")]
    """Finished run folder of `worldloop train behavior`, or a folder of weights that say what they were trained on
    (training.json), such as those that are shipped."""
    fidelity: Annotated[Path, Positional, arg(metavar="FIDELITY")]
    """Run folder of `worldloop fidelity` with these weights on all scenes that the training held out (its --validation)."""
    beside: Annotated[tuple[Path, ...], arg(name="with")] = ()
    """Run folders of counterfactual, endurance and calibrate (with --scenes) with these weights, and of fidelity on scenes of no
    training, for tables of their own."""
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
    model_folder = trained_model(args.training, "train behavior")
    stages = read_stages(model_folder)
    fidelity = finished_record(args.fidelity, "fidelity")
    records = [(folder, finished_record(folder, *BESIDE)) for folder in args.beside]
    _check_fit(model_folder, stages, args.fidelity, fidelity, stages[-1]["arguments"]["validation"])
    for folder, record in records:
        _check_fit(model_folder, stages, folder, record)
    tables = {"fidelity": fidelity_table(fidelity)}
    tables |= {BESIDE[record["command"]][0]: BESIDE[record["command"]][2](record) for _, record in records}
    model = BehaviorModel.from_pretrained(model_folder)
    calibrated = Calibration.load(model_folder) is not None
    sources = {source.partition("=")[0]: None for stage in stages for source in stage["arguments"]["data"]}
    text = CARD.format(
        parameters=sum(p.numel() for p in model.parameters()),
        checksum=model.config.vocabulary_checksum,
        tokens=model.config.vocabulary_size,
        data="\n".join(f"- `{source}`" for source in sources),
        origins="\n".join(
            f"- `{name}`: {ORIGINS.get(name, 'a set of its own, of which the run says no more.')}"
            for name in dict.fromkeys(source.partition(":")[0] for source in sources)
        ),
        validation=", ".join(f"`{source}`" for source in stages[-1]["arguments"]["validation"]),
        recipe="\n\n".join(_stage(number, stage) for number, stage in enumerate(stages, 1)),
        table=tables["fidelity"],
        beside="".join(f"## {head}\n{tables[name]}\n\n" for name, head, _ in BESIDE.values() if head and name in tables),
        uncertainty="\n\n".join(
            [
                _uncertainty(model_folder) if calibrated else UNCALIBRATED,
                *([tables["uncertainty"]] if "uncertainty" in tables else []),
            ]
        ),
    )
    if args.readme is not None:
        for name, table in tables.items():
            renew_text(args.readme, BEGIN.format(name=name), END.format(name=name), table)
    ship(model_folder, args.folder, (*MODEL_FILES, *([CALIBRATION_FILE] if calibrated else [])))
    if not calibrated:
        (args.folder / CALIBRATION_FILE).unlink(missing_ok=True)  # another model's
    write_text(args.folder / "README.md", text)
    print(f"weights and card: {args.folder}" + (f", tables: {args.readme}" if args.readme else ""))


def _uncertainty(folder: Path) -> str:
    """Return what the coefficients of `uncertainty.json` were fitted to, as Markdown."""
    record = json.loads((folder / CALIBRATION_FILE).read_text())
    if "known" not in record:
        raise ValueError(f"{folder / CALIBRATION_FILE}: is of an older release: run `worldloop calibrate --fit` anew")
    scenes = ", ".join(f"`{source}`" for source in record["scenes"])
    most = f", at most {record['limit']} scenes of each" if record["limit"] else ""
    return (
        f"`State.uncertainty` is the position error to expect, in metres, fitted to {record['rollouts']} futures of each of "
        f"{record['count']} scenes ({scenes}{most}; {record['known']} of them known from the training) at temperature "
        f"{record['temperature']:g}, epsilon {record['epsilon']:g}."
    )


def _stage(number: int, stage: Mapping[str, Any]) -> str:
    """Return what one training was asked and what it measured, as Markdown."""
    told = {name: value for name, value in stage.items() if name != "arguments"}
    return STAGE.format(number=number, asked=json.dumps(stage["arguments"], indent=2), **told)


def _check_fit(
    model_folder: Path, stages: Sequence[Stage], folder: Path, record: Mapping[str, Any], held_out: Sequence[str] | None = None
) -> None:
    """Refuse a run with other weights, with failures, or on scenes that these weights know; or on others than `held_out`."""
    results, command, asked = record["results"], record["command"], record["arguments"]["scenes"]
    if results.get("weights_checksum") != weights_checksum(model_folder):
        raise ValueError(
            f"{folder}: scored other weights than those of {model_folder}: run `worldloop {command} --weights {model_folder}` on "
            "the validation scenes"
        )
    if results.get("failed"):
        raise ValueError(f"{folder}: {results['failed']} scenes failed in it, see its failures.csv: mend them")
    if command == "calibrate" and "check" not in results:
        raise ValueError(f"{folder}: has fitted and checked nothing: run `worldloop calibrate` with --scenes")
    if command == "counterfactual":  # made scenes, of which none can be among the recorded ones that are held out
        if (name := without_folders(asked).partition(":")[0]) in patterns(stages):
            raise ValueError(f"{folder}: intervened in scenes of {name}, which the weights were trained on: take others")
        return
    if results.get("known", results.get("check", {}).get("known")):
        raise ValueError(f"{folder}: the weights know some of its scenes from their training: take others")
    if held_out is None and command == "fidelity":
        return
    wanted: Sequence[str] = held_out or stages[-1]["arguments"]["validation"]
    for source in map(without_folders, asked):
        if source not in wanted:
            raise ValueError(f"{folder}: scored {source}, wanted scenes that the training held out: {', '.join(wanted)}")
