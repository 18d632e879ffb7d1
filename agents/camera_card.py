"""`worldloop card camera`: put a trained camera where the package ships it, with a model card written from what runs recorded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from ..worldmodel.camera import WEIGHTS_FILE, camera_checksum, load_camera
from ..worldmodel.files import write_text
from ..worldmodel.lineage import TRAINING_FILE, Stage, read_stages, without_folders
from .records import finished_record, renew_text, ship, trained_model

BEGIN, END = "<!-- {name} table: written by `worldloop card camera` -->", "<!-- end of the {name} table -->"
"""Between these lines of a README the table of a camera is put; the name is that of its folder."""

FILMED = (
    "filmed by `worldloop data film` with `renderers/scene3d.py`, which makes everything in code: nothing of the pictures is "
    "recorded. The scenes: generated with Eclipse SUMO, PandaSet (Scale AI and Hesai, CC BY 4.0; tracks reconstructed from "
    "pandaset_plus, Lei Qin) and Next Generation Simulation (US Department of Transportation, from TU Munich's CommonRoad form)."
)
DONKEY = "frames, steering and throttle of a radio-controlled car at 20 Hz, recorded with DonkeyCar (MIT licence)."
ORIGINS = {"film": FILMED, "donkey": DONKEY}
"""Where the clips of folders called so, or so and `_` and more, come from, in the project's own trainings."""

CARD = """# {title}

Paints frames of {height} x {width} pixels at {rate:g} Hz from {conditions}. {parameters:,} parameters, stored in 16 bit. The
docstring of `worldloop.worldmodel.camera` describes it.

## Intended use
{use}

## Training data
{data}

{frames:,} frames. Sources, by what the folders hold:

{origins}

No weights come from the validation clips: {validation}.

## Recipe
{recipe}

## How good it is
{table}

## Limits
{limits}
"""

STAGE = """`worldloop train camera` with

```json
{asked}
```

{seconds:.0f} seconds on {cores} CPU cores. Last validation: squared error of the flow {validation_loss:.3f}."""

WITH_LAYOUT = (
    "Driving camera",
    "the layout of the explicit state, past frames, the ego's motion, the camera's pose and an appearance",
    'Observations and pictures of `worldloop/Drive-v0` (`observation="camera"`, `camera="learned"`) and `worldloop drive`: '
    "research on policies that look through a camera.",
    "It has learned to paint what our own 3-D renderer draws, not photographs. The ground is flat. What is farther than the "
    "layout shows (a car of a few pixels) may be painted as nothing.",
)
WITHOUT_LAYOUT = (
    "Real camera of a radio-controlled car",
    "past frames and the actions",
    "`worldloop/Camera-v0`: research on world models that are moved by actions alone.",
    "It knows the one room that it has seen. Nothing but the last frames remembers where the track is, so after some seconds it "
    "goes on in a track that never was.",
)


@dataclass(frozen=True)
class CameraCard:
    """Ship a trained camera: copy it, and write its model card and the README's table from recorded runs.

    Example: worldloop card camera runs/camera runs/camera-fidelity --folder assets/camera --readme README.md
    """

    training: Annotated[Path, Positional, arg(metavar="TRAINING")]
    """Finished run folder of `worldloop train camera`, or a folder of cameras that say what they were trained on
    (training.json), such as those that are shipped."""
    fidelity: Annotated[Path, Positional, arg(metavar="FIDELITY")]
    """Run folder of `worldloop fidelity camera` with these weights."""
    folder: Path = Path("assets/camera")
    """Where the weights and their card go."""
    readme: Path | None = None
    """README whose table is to be renewed too."""


def run_camera_card(args: CameraCard) -> None:
    """Copy the model and write the texts.

    Raises:
        ValueError: a run is not finished or of another command, the figures are of other weights or of clips that were not kept
            apart from its data, or the README has no place for the table.
    """
    folder, fidelity = trained_model(args.training, "train camera"), finished_record(args.fidelity, "fidelity camera")
    stages = read_stages(folder)
    _check_fit(args.fidelity, folder, stages, fidelity)
    model, last = load_camera(folder), stages[-1]
    config = model.config
    title, conditions, use, limits = WITH_LAYOUT if config["layout_channels"] else WITHOUT_LAYOUT
    sources = list(dict.fromkeys(source for stage in stages for source in stage["arguments"]["data"]))
    folders = [source.partition(":")[0] for source in sources]
    origins = {folder: ORIGINS.get(folder.partition("_")[0], "") for folder in folders}
    table = camera_table(fidelity)
    text = CARD.format(
        title=title,
        conditions=conditions,
        use=use,
        limits=limits,
        height=config["height"],
        width=config["width"],
        rate=config["rate"],
        parameters=last["parameters"],
        frames=last["training_frames"],
        data="\n".join(f"- `{source}`" for source in sources),
        origins="\n".join(f"- `{name}`: {told or 'the run says no more of it.'}" for name, told in origins.items()),
        validation=", ".join(f"`{source}`" for source in last["arguments"]["validation"]),
        recipe="\n\n".join(STAGE.format(asked=json.dumps(stage["arguments"], indent=2), **stage) for stage in stages),
        table=table,
    )
    if args.readme is not None:
        renew_text(args.readme, BEGIN.format(name=args.folder.name), END.format(name=args.folder.name), table)
    ship(folder, args.folder, ("config.json", WEIGHTS_FILE, TRAINING_FILE))
    write_text(args.folder / "README.md", text)
    print(f"weights and card: {args.folder}" + (f", table: {args.readme}" if args.readme else ""))


def camera_table(record: Mapping[str, Any]) -> str:
    """Return the figures of a `fidelity camera` run as Markdown."""
    arguments, results = record["arguments"], record["results"]
    clips = ", ".join(f"`{without_folders(source)}`" for source in arguments["validation"])
    lines = [
        f"On held-out clips ({clips}): {arguments['films']} films of {arguments['frames']} frames, {arguments['steps']} Euler "
        "steps.",
        "",
        "| action | painted | recorded | told otherwise | shuffled | action hidden | error | error recorded | frames late |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in results["actions"].items():
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join('none' if v is None else f'{v:.3g}' for v in row.values())} |")
    lines += [
        "",
        "The first five are correlations of the action read with the one commanded; `worldloop fidelity camera` says how.",
    ]
    if "vehicles" in results:
        told = ", ".join(f"{name} {100 * row['share']:.1f} %" for name, row in results["vehicles"].items())
        lines += ["", f"Vehicles within 30 m found again ({results['vehicles']['painted']['count']}): {told}."]
    distance = ", ".join(f"{name} {value:.2f}" for name, value in results["distance"].items())
    lines += ["", f"Fréchet distance of the action reader's features: {distance}."]
    drift = results["drift"]
    for name in ("sharpness", "colour", "features"):
        if name in drift:
            row = drift[name]
            told = f"{row['first']:.3f} in the first hundred frames, {row['last']:.3f} in the last ({row['ratio']:.2f} x)"
            lines += ["", f"Drift over {drift['frames']} frames, {drift['films']} films, {name}: {told}."]
    return "\n".join(lines)


def _check_fit(run: Path, folder: Path, stages: Sequence[Stage], fidelity: Mapping[str, Any]) -> None:
    """Refuse figures of other weights, or on clips that were kept apart from other data than the camera was trained on."""
    if fidelity["results"].get("weights_checksum") != camera_checksum(folder):
        raise ValueError(
            f"{run}: scored other weights than those of {folder}: run "
            f"`worldloop fidelity camera --weights {folder}` on the validation clips"
        )
    trained = {source for stage in stages for source in stage["arguments"]["data"]}
    known = set(map(without_folders, fidelity["arguments"]["data"]))
    if trained != known:  # `fidelity camera` has seen to it that its clips share no frame with these
        raise ValueError(
            f"{run}: kept its clips apart from {', '.join(sorted(known))}, the camera was trained on "
            f"{', '.join(sorted(trained))}: run `worldloop fidelity camera` with these as --data"
        )
