"""`worldloop endurance`: whether a world still drives like at the start when it has run for a minute.

Everyone is driven by the world, the ego too, with open borders (`worldmodel/borders.py`) and, beside it, closed ones. Signals
follow the log as far as it goes. Figures of the first ten seconds are held against those of the last ten:

- density: road users within 15 m of what the map or the log knows, for each scene;
- speed: the mean, quartiles, and the distance between both distributions, Wasserstein's of order 1 (the area between the
  cumulative distributions, in m/s), as a share of the mean at the start;
- collisions: how often a road user begins to overlap anything after a second without, for each minute of a road user;
- off-road: the share of vehicles with their middle beyond the road's edge, where the map has edges.

Counted are road users that can move, without the ego: it stays in the scene wherever it goes, so it may drive off the map, and
nobody takes its place. Open borders clear away whoever stands in a collision for some seconds; that collision has been counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from ..renderers.distributions import draw_curves
from ..worldmodel.borders import OpenBorders, in_known_area, touching
from ..worldmodel.data.recordings import moments, recordings
from ..worldmodel.files import write_csv
from ..worldmodel.geometry import signed_distance_to_edges
from ..worldmodel.idm import IdmWorld
from ..worldmodel.open_loop import Simulator
from ..worldmodel.run import dated_folder, seeded_generator, whole_run
from ..worldmodel.scene import TIME_STEP, AgentKind, PolylineKind, Scene
from ..worldmodel.shipped import model_folder
from ..worldmodel.uncertainty import weights_checksum
from ..worldmodel.world import EPSILON, TEMPERATURE, LearnedWorld, State, movable, random_keys
from .bootstrap import by_recording, cell, counted, interval, resampled
from .failures import Failures
from .rollout import SCENE_ERRORS, open_scenes

FIGURES = {
    "density": ("road users a scene", "agents", "samples"),
    "speed": ("mean speed (m/s)", "speed", "agents"),
    "collisions": ("collisions a road user and minute", "contacts", "minutes"),
    "off_road": ("vehicles off the road (share)", "off_road", "off_road_asked"),
}
"""Figures: what they are called, and the sums whose quotient they are."""

SUMS = ("agents", "samples", "speed", "contacts", "minutes", "off_road", "off_road_asked")

TOLERANCE = 0.25
"""By what share the end may differ from the start."""

TICKS, SECOND = 5, 10
"""Steps between two looks at density, speed and edges; steps a second."""

SPEED_BINS, SPEED_BIN = 500, 0.1
"""Speeds are counted in so many bins of so many m/s."""

QUANTILES = (0.25, 0.5, 0.75, 0.9)


@dataclass(frozen=True)
class Endurance:
    """Measure whether a minute of simulated traffic ends as it began.

    Prints a table and writes a run folder with run.json, summary.csv, scenes.csv (sums by scene, world and second) and
    endurance.png (the curves over time): the learned world and the intelligent driver model, with open borders and closed.

    Example: worldloop endurance --scenes scenes/pandaset --rollouts 2 --out runs/endurance
    """

    scenes: tuple[str, ...]
    """Folders of data sets, FOLDER:GLOB for some of their scenes, or demo for the shipped ones."""
    weights: Path | None = None
    """Folder of a trained behaviour model, instead of the shipped one, or small or large."""
    rollouts: int = 4
    """Futures for each scene."""
    limit: int | None = None
    """Take only so many scenes of each data set, the first ones."""
    seconds: int = 60
    """Length of each."""
    window: int = 10
    """Seconds at the start and at the end that are held against each other."""
    temperature: float = TEMPERATURE
    """Of the learned world's sampling."""
    epsilon: float = EPSILON
    """Of the learned world's sampling: motions less likely than this are not drawn."""
    seed: int = 0
    """Seed of the sampling."""
    out: Path | None = None
    """Run folder, runs/endurance-DATE if not given."""


@dataclass(frozen=True)
class Tally:
    """What is counted in one scene: sums (7, seconds) in the order of `SUMS`; speeds (2, SPEED_BINS) at the start and the end."""

    sums: Tensor
    speeds: Tensor


@torch.no_grad()
def endure(world: Simulator, scene: Scene, args: Endurance, generator: torch.Generator) -> Tally:
    """Run one scene (B = 1) `args.rollouts` times and count."""
    many = scene.repeat(args.rollouts)
    state = world.reset(many, random_keys(generator, len(many)))
    sums = torch.zeros(len(SUMS), args.seconds, dtype=torch.float64)
    speeds = torch.zeros(2, SPEED_BINS, dtype=torch.float64)
    alone = torch.where(touching(state), 0, SECOND)  # steps since somebody last overlapped anything
    counted = _counted(state)
    for step in range(args.seconds * SECOND):
        second = step // SECOND
        state = world.step(state, None)
        if (step + 1) % TICKS == 0:
            counted = _counted(state)
            pace = state.velocity.norm(dim=-1)[counted]
            off_road, asked = _off_road(state, counted)
            sums[:, second] += torch.tensor([len(pace), len(many), float(pace.sum()), 0, 0, off_road, asked], dtype=torch.float64)
            for place, inside in enumerate((second < args.window, second >= args.seconds - args.window)):
                if inside:
                    speeds[place] += torch.bincount((pace / SPEED_BIN).long().clamp(max=SPEED_BINS - 1), minlength=SPEED_BINS)
        hit, here = touching(state), counted & state.valid
        sums[SUMS.index("contacts"), second] += int((hit & here & (alone >= SECOND)).sum())
        sums[SUMS.index("minutes"), second] += int(here.sum()) * TIME_STEP / 60
        alone = torch.where(hit, 0, alone + 1)
        alone = torch.where(state.valid, alone, SECOND)
    return Tally(sums, speeds)


def _counted(state: State) -> Tensor:
    """Who (B, A) counts at this moment."""
    return movable(state) & in_known_area(state)


def _off_road(state: State, counted: Tensor) -> tuple[int, int]:
    """How many of the counted vehicles have their middle beyond the road's edge, and of how many; 0 of 0 without edges."""
    edges = state.scene.polyline_kind[0] == PolylineKind.ROAD_EDGE  # all rows are one scene
    edges = edges & state.scene.polyline_valid[0].any(-1)
    place = state.position[..., :2][counted & (state.scene.kind == AgentKind.VEHICLE)]
    if not edges.any():
        return 0, 0
    distance = signed_distance_to_edges(place, state.scene.polyline[0, edges, :, :2], state.scene.polyline_valid[0, edges])
    return int((distance > 0).sum()), len(place)


def wasserstein(speeds: Tensor) -> Tensor:
    """Return the distance (...) in m/s between the two distributions (..., 2, SPEED_BINS) of counts."""
    cumulative = (speeds / speeds.sum(-1, keepdim=True).clamp(min=1)).cumsum(-1)
    return SPEED_BIN * (cumulative[..., 0, :] - cumulative[..., 1, :]).abs().sum(-1)


def quantile(speeds: Tensor, share: float) -> float | None:
    """Return the speed in m/s below which `share` of the counts (SPEED_BINS,) lie, None where there are none."""
    total = float(speeds.sum())
    return float(SPEED_BIN * (int((speeds.cumsum(0) < share * total).sum()) + 0.5)) if total else None


def summarise(tallies: Sequence[Tally], recording: Sequence[int], window: int, seed: int) -> dict[str, Any]:
    """Return start, end, ratio and its 95 % interval (over recordings) of every figure; None where nothing was counted.

    `recording` holds for each scene the number of its recording.
    """
    drawn = resampled(len(set(recording)), seed)
    sums = torch.stack([tally.sums for tally in tallies])
    ends = torch.stack((sums[..., :window].sum(-1), sums[..., -window:].sum(-1)), dim=1)  # (scenes, 2, sums)
    ends = by_recording(ends, recording)
    result: dict[str, Any] = {"scenes": len(tallies), "recordings": len(ends)}
    within = []
    for name, (_, above, below) in FIGURES.items():
        pair = ends[..., [SUMS.index(above), SUMS.index(below)]]
        quotient = lambda part: part[..., 0] / part[..., 1]  # noqa: E731 (sums (..., 2); NaN where nothing was counted)
        start, end = quotient(pair.sum(0)).tolist()
        again = quotient(pair[drawn].sum(1))
        result |= {f"{name}_start": _number(start), f"{name}_end": _number(end)}
        result |= _ratio(name, end / start if start else float("nan"), again[:, 1] / again[:, 0])
        if name != "off_road":
            within.append(start == end or result[f"{name}_ratio"] is not None and abs(result[f"{name}_ratio"] - 1) <= TOLERANCE)
    speeds = by_recording(torch.stack([tally.speeds for tally in tallies]), recording)
    total = speeds.sum(0)
    middle = SPEED_BIN * (torch.arange(SPEED_BINS) + 0.5)
    mean = lambda counts: (counts * middle).sum(-1) / counts.sum(-1)  # noqa: E731
    again = speeds[drawn].sum(1)
    result["speed_distance"] = float(wasserstein(total))
    result |= _ratio("speed_distance", float(wasserstein(total) / mean(total[0])), wasserstein(again) / mean(again[:, 0]))
    for share in QUANTILES:
        for place, when in enumerate(("start", "end")):
            result[f"speed_{share:g}_{when}"] = quantile(total[place], share)
    within.append(result["speed_distance_ratio"] is not None and result["speed_distance_ratio"] <= TOLERANCE)
    return result | {"within": all(within)}


def _ratio(name: str, value: float, again: Tensor) -> dict[str, float | None]:
    """A ratio with its 95 % interval over the resamples (R,) in which there is one."""
    low, high = interval(again)
    return {f"{name}_ratio": _number(value), f"{name}_ratio_low": low, f"{name}_ratio_high": high}


def _number(value: float) -> float | None:
    return value if abs(value) < float("inf") else None  # NaN is not below either


def run_endurance(args: Endurance) -> int:
    """Run all worlds on all scenes with a progress bar; print the table, write the run folder, return 1 if a scene failed.

    Raises:
        ValueError: an argument is out of range, or all scenes failed.
    """
    if args.rollouts < 1 or args.window < 1 or args.seconds < 2 * args.window:
        raise ValueError(
            f"found --rollouts {args.rollouts}, --window {args.window} and --seconds {args.seconds}, wanted at least 1, 1, and "
            "two windows that do not overlap"
        )
    learned = LearnedWorld.from_pretrained(args.weights, args.temperature, args.epsilon)
    worlds: dict[str, Simulator] = {
        "learned, open": OpenBorders(learned),
        "learned, closed": learned,
        "IDM, open": OpenBorders(IdmWorld()),
        "IDM, closed": IdmWorld(),
    }
    sources = [open_scenes(text) for text in args.scenes]
    sources = sources if args.limit is None else [source.first(args.limit) for source in sources]
    scenes = [(source, number) for source in sources for number in range(len(source))]
    if not scenes:
        raise ValueError("found no scenes: name at least one data set after --scenes")
    out = args.out or dated_folder("endurance")
    with whole_run(out, "endurance", asdict(args), args.seed) as run:
        tallies: dict[str, list[Tally]] = {name: [] for name in worlds}
        rows: list[dict[str, Any]] = []
        places: list[Tensor] = []
        failures = Failures()
        for source, number in track(scenes, "running", console=Console(stderr=True)):
            try:
                scene = source.load(number)
                purpose = f"endurance {scene.id[0]}"
                found = {name: endure(world, scene, args, seeded_generator(args.seed, purpose)) for name, world in worlds.items()}
            except SCENE_ERRORS as error:
                failures.note(source.ids[number], error)
                continue
            places.append(moments(scene))
            for name, tally in found.items():
                tallies[name].append(tally)
                for second, sums in enumerate(tally.sums.T.tolist()):
                    rows.append({"scene": scene.id[0], "world": name, "second": second} | dict(zip(SUMS, sums, strict=True)))
        failures.refuse_all(len(scenes))
        failures.write(run.folder)
        recording = recordings(places)
        summary = [{"world": name} | summarise(found, recording, args.window, args.seed) for name, found in tallies.items()]
        write_csv(run.folder / "scenes.csv", rows)
        write_csv(run.folder / "summary.csv", summary)
        curves = {title: {name: _curve(found, *of) for name, found in tallies.items()} for title, *of in FIGURES.values()}
        draw_curves(run.folder / "endurance.png", curves, [second + 0.5 for second in range(args.seconds)])
        checksum = weights_checksum(model_folder(args.weights))
        run.finish({"worlds": summary, "tolerance": TOLERANCE, "weights_checksum": checksum, "failed": len(failures)})
    _print_table(summary, args, out)
    return failures.tell()


def _curve(tallies: Sequence[Tally], above: str, below: str) -> list[float | None]:
    """A figure by second over all scenes, None where nothing was counted."""
    total = torch.stack([tally.sums for tally in tallies]).sum(0)
    return [_number(value) for value in (total[SUMS.index(above)] / total[SUMS.index(below)]).tolist()]


def _print_table(summary: Sequence[Mapping[str, Any]], args: Endurance, out: Path) -> None:
    console = Console(highlight=False)
    table = Table("figure", *(str(row["world"]) for row in summary))
    what = f"{counted(summary[0]['scenes'], 'scene')} of {counted(summary[0]['recordings'], 'recording')}"
    what += f", {counted(args.rollouts, 'future')} of {args.seconds} s"
    table.title = f"{what}: first {args.window} s, last, ratio"
    for name, (title, _, _) in FIGURES.items():
        table.add_row(title, *(_cell(row, name) for row in summary))
    table.add_row("distance of speeds / mean speed", *(cell(row, "speed_distance_ratio") for row in summary))
    table.add_row(f"all within {TOLERANCE:.0%}, off-road apart", *("yes" if row["within"] else "no" for row in summary))
    console.print(table)
    console.print("counted: who can move, the ego apart. In brackets: 95 % interval of the ratio over recordings", markup=False)
    console.print(f"Run record: {out}", markup=False)


def _cell(row: Mapping[str, Any], name: str) -> str:
    ends = " to ".join("none" if row[f"{name}_{when}"] is None else f"{row[f'{name}_{when}']:.3g}" for when in ("start", "end"))
    return ends if row[f"{name}_ratio"] is None else f"{ends}\n{cell(row, f'{name}_ratio')}"
