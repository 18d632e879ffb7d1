"""`worldloop fidelity`: how realistic a world's futures are, beside rules, constant velocity and the log itself.

Everyone valid at the present is simulated, the recording car too, 32 times over 8 s or for as long as the log goes on; what it
shows after the present, road users and signals, is hidden from all worlds: rules and constant velocity keep the signals as they
are, the learned world predicts them. Scored are the agents of `open_loop.scored_agents`, and the recording
car. Figures, each a mean over scenes:

- the realism meta-metric and its likelihoods (`envs/realism.py`), and its ratio to what the log itself gets as a simulation;
- minADE over 3 s and over the whole horizon;
- the share of scored objects and futures in which one overlaps another at some time, leaves the road with a corner, or crosses a
  stop line at red: the events of the meta-metric, so the log has its share of them too;
- by how much the scored world's meta-metric is above a reference's, scene by scene (`rmm_lead`): intervals side by side do not
  know that both were scored on the same scenes.

Intervals are bootstrapped over recordings: scenes that are cuts of the same moments are drawn together.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from ..envs.realism import HISTOGRAMS, INDICATIONS, WEIGHTS, asked_steps, ever, histogram_counts, meta_metric, score_realism
from ..envs.realism_features import FEATURES, ObjectFeatures, object_features
from ..renderers.distributions import draw_distribution
from ..worldmodel.data.recordings import moments, recordings
from ..worldmodel.dynamics import Motion
from ..worldmodel.files import write_csv, write_json
from ..worldmodel.held_out import known
from ..worldmodel.idm import IdmWorld
from ..worldmodel.lineage import read_stages
from ..worldmodel.open_loop import (
    Futures,
    Simulator,
    logged_futures,
    min_average_displacement,
    present_agents,
    scored_agents,
    simulate,
)
from ..worldmodel.run import dated_folder, seeded_generator, whole_run
from ..worldmodel.scene import HISTORY_STEPS, TIME_STEP, Scene
from ..worldmodel.shipped import model_folder
from ..worldmodel.uncertainty import weights_checksum
from ..worldmodel.world import EPSILON, TEMPERATURE, ConstantVelocityWorld, LearnedWorld, ReplayWorld, State
from .bootstrap import by_recording, cell, counted, interval, resampled
from .failures import Failures
from .own_code import load_own
from .rollout import SCENE_ERRORS, open_scenes

LOG = "log"
"""The reference that repeats what was recorded; where an object is not seen it stays at its last pose."""

FIGURES = (
    "rmm",
    "rmm_ratio",
    "rmm_lead",
    "min_ade_3s",
    "min_ade",
    "collision_rate",
    "off_road_rate",
    "red_light_rate",
    *FEATURES,
)
"""Columns of the summary, each with a `_low` and `_high` end of its 95 % interval."""

RULE = (
    "the recording car, and the road users that the data names to be predicted; where it names none, all valid at the present "
    "that move more than 1 m in the log or are within 20 m of it, but for static objects"
)
"""Which objects are scored."""

TABLE = {
    "rmm": "RMM",
    "rmm_ratio": "of the log's",
    "rmm_lead": "behind",
    "min_ade_3s": "minADE 3 s (m)",
    "min_ade": "minADE (m)",
    "collision_rate": "collisions",
    "off_road_rate": "off road",
}
"""Columns of the first table."""

UNITS = {
    "linear_speed": "m/s",
    "linear_acceleration": "m/s²",
    "angular_speed": "rad/s",
    "angular_acceleration": "rad/s²",
    "distance_to_nearest_object": "m",
    "time_to_collision": "s",
    "distance_to_road_edge": "m",
}


@dataclass(frozen=True)
class Fidelity:
    """Measure how realistic the learned world's traffic is.

    Prints tables: the learned world, the intelligent driver model along the lanes, constant velocity, and the log itself. Writes
    a run folder with run.json, summary.csv, scenes.csv (one row for each scene and world), distributions.json, and a picture of
    every feature's distribution.

    Example: worldloop fidelity --scenes scenes/pandaset:pandaset/06* scenes/ngsim:*Peach*
    """

    scenes: tuple[str, ...]
    """Data sets: FOLDER, FOLDER:GLOB for the scenes with such ids, or demo for the shipped ones."""
    world: str = "learned"
    """The world that is scored beside the references: learned, or your own as module:attribute, whose `step` has to take None for
    the ego's motion and then moves the ego too, as `LearnedWorld` does."""
    weights: Path | None = None
    """Folder of a trained behaviour model, instead of the shipped one, or small or large."""
    config: Literal[2024, 2025] = 2025
    """Year of the Waymo sim agents challenge whose weights the realism meta-metric takes."""
    rollouts: int = 32
    """Futures for each scene."""
    limit: int | None = None
    """Take only so many scenes of each data set, the first ones."""
    horizon: int = 80
    """Steps of 0.1 s at the most; shorter where the log ends earlier."""
    temperature: float = TEMPERATURE
    """Of the learned world's sampling."""
    epsilon: float = EPSILON
    """Of the learned world's sampling: motions less likely than this are not drawn."""
    seed: int = 0
    """Seed of the sampling."""
    out: Path | None = None
    """Run folder, runs/fidelity-DATE if not given."""


Row = dict[str, Any]


@torch.no_grad()
def score(futures: Futures, scene: Scene, logged: ObjectFeatures) -> tuple[Row, ObjectFeatures]:
    """Return the figures of one scene (B = 1) without those that need other scenes, and the futures' features."""
    steps, scored = futures.valid.shape[-1], scored_agents(scene, ego_too=True)
    simulated = object_features(scene, futures, scored)
    result = score_realism(simulated, logged)
    row: Row = {"scene": scene.id[0], "steps": steps, "objects": int(scored.sum()), "signals": bool(logged.signals[0])}
    row["named"] = bool(scene.to_predict.any())
    for name, ticks in (("min_ade_3s", 30), ("min_ade", steps)):
        error, counted = min_average_displacement(futures, scene, ticks, ego_too=True)
        row[name] = float(error[counted].mean()) if ticks <= steps and counted.any() else None
    row["collision_rate"] = float(result.collision_rate[0])
    row["off_road_rate"] = float(result.off_road_rate[0]) if logged.edges[0] else None
    row["red_light_rate"] = float(result.red_light_rate[0]) if logged.signals[0] else None
    row |= {
        name: float(likelihood) if counted else None
        for name, likelihood, counted in zip(FEATURES, result.likelihood[0], result.counted[0], strict=True)
    }
    # Without signals nobody runs a red light; whether that counts depends on the other scenes, see `finish_rows`.
    row["traffic_light_violation"] = float(result.likelihood[0, FEATURES.index("traffic_light_violation")])
    return row, simulated


def finish_rows(rows: Sequence[Row], year: int) -> None:
    """Enter the meta-metric into the rows of one data set and world; its red lights count if any of its scenes has signals."""
    if not any(row["signals"] for row in rows):
        for row in rows:
            row["traffic_light_violation"] = None
    for row in rows:
        likelihood = torch.tensor([row[name] or 0.0 for name in FEATURES], dtype=torch.float64)
        counted = torch.tensor([row[name] is not None for name in FEATURES])
        row["rmm"] = float(meta_metric(likelihood, counted, year))


def summarise(
    rows: Sequence[Row], log_rows: Sequence[Row], first_rows: Sequence[Row], recording: Sequence[int], seed: int
) -> Row:
    """Return each figure over all scenes with its 95 % interval (percentile bootstrap over recordings).

    A figure is None where nothing counts.

    Args:
        rows: of the world, one a scene.
        log_rows: of the log, for the same scenes.
        first_rows: of the world that is scored, for the same scenes.
        recording: of each scene the number of its recording.
        seed: of the resamples.
    """
    drawn = resampled(len(set(recording)), seed)
    result: Row = {"scenes": len(rows), "recordings": len(set(recording))}
    number = lambda found: torch.tensor([float(entry) for entry in found], dtype=torch.float64)  # noqa: E731
    rmm = number(row["rmm"] for row in rows)
    for name in FIGURES:
        if name == "rmm_ratio":
            value, weight = rmm, number(row["rmm"] for row in log_rows)
        elif name == "rmm_lead":
            value, weight = number(row["rmm"] for row in first_rows) - rmm, torch.full_like(rmm, float(rows is not first_rows))
        else:
            value, weight = number(row[name] or 0.0 for row in rows), number(row[name] is not None for row in rows)
        value, weight = by_recording(value, recording), by_recording(weight, recording)
        if weight.sum() == 0:
            result |= {name: None, f"{name}_low": None, f"{name}_high": None}
            continue
        low, high = interval(value[drawn].sum(1) / weight[drawn].sum(1))
        result |= {name: float(value.sum() / weight.sum()), f"{name}_low": low, f"{name}_high": high}
    return result


def shares(features: ObjectFeatures, asked: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return by feature how many values fall into each bin: those that are asked (N, T), or all; events count once a future."""
    counts = {}
    for name in FEATURES:
        where = features.defined[name] if asked is None else asked[name][:, None]
        if name in INDICATIONS:
            happens = ever(features, name, where.any(1))
            counts[name] = torch.stack(((~happens).sum(), happens.sum())).double()
        else:
            counts[name] = histogram_counts(name, features.values[name], where.expand_as(features.defined[name])).double().sum(0)
    return counts


def open_simulator(args: Fidelity) -> Simulator:
    """Return the world that is asked for.

    Raises:
        ValueError: there is no such world, it lacks `reset` or `step`, or weights are given that it does not take.
    """
    if args.world == "learned":
        return LearnedWorld.from_pretrained(args.weights, args.temperature, args.epsilon)
    if args.weights is not None:
        raise ValueError(f"--weights {args.weights} is for the learned world, found --world {args.world}: leave one of them out")
    if (args.temperature, args.epsilon) != (TEMPERATURE, EPSILON):
        raise ValueError(f"--temperature and --epsilon are for the learned world, found --world {args.world}: leave them out")
    if ":" not in args.world:
        raise ValueError(f"--world {args.world}: wanted learned or your own as module:attribute")
    return OwnWorld(load_own(args.world, "world", ("reset", "step"), "worldloop.worldmodel.open_loop.Simulator"))


class OwnWorld:
    """A user's own world: what it raises, or returns that is no state, fails the scene at hand, in one message with its place."""

    def __init__(self, world: Simulator):
        self.world = world

    def reset(self, scenes: Scene, key: Tensor) -> State:
        """See `World.reset`."""
        return self._asked("reset", scenes.valid[:, :, HISTORY_STEPS], scenes, key)

    def step(self, state: State, ego: Motion | None) -> State:
        """See `Simulator.step`."""
        return self._asked("step", state.valid, state, ego)

    def _asked(self, method: str, present: Tensor, *arguments: Any) -> State:
        """Ask the world; of those `present` (B, A) nobody may vanish, or who is hard to predict would not count."""
        count = len(present)
        try:
            found = getattr(self.world, method)(*arguments)
        except (Exception, SystemExit) as error:
            *_, (frame, line) = traceback.walk_tb(error.__traceback__)
            place = f"{frame.f_code.co_filename}:{line}"
            raise ValueError(f"the world's {method} raised {type(error).__name__}: {error} ({place})") from error
        if not isinstance(found, State) or len(found) != count:
            what = f"a State of {len(found)} scenes" if isinstance(found, State) else f"a {type(found).__name__}"
            raise ValueError(f"the world's {method} returned {what}, wanted a State of {count} scenes")
        if found.valid.shape != present.shape or (present & ~found.valid).any():
            raise ValueError(f"the world's {method} let road users vanish: wanted {tuple(present.shape)} with all who were there")
        if not (found.position[present].isfinite().all() and found.heading[present].isfinite().all()):
            raise ValueError(f"the world's {method} returned places or headings that are NaN or infinite")
        return found


def run_fidelity(args: Fidelity) -> int:
    """Score all worlds on all scenes with a progress bar; print the tables and write the run folder; 1 if a scene failed.

    Raises:
        ValueError: an argument is out of range, or all scenes failed.
    """
    if args.rollouts < 1 or args.horizon < 1:
        raise ValueError(f"found --rollouts {args.rollouts} and --horizon {args.horizon}, wanted at least 1 of each")
    sources = {text: open_scenes(text) for text in args.scenes}
    if args.limit is not None:
        sources = {text: source.first(args.limit) for text, source in sources.items()}
    worlds: dict[str, Simulator | None] = {
        args.world: open_simulator(args),
        "IDM along the lane": IdmWorld(),
        "constant velocity": ConstantVelocityWorld(),
        LOG: None,
    }
    out = args.out or dated_folder("fidelity")
    with whole_run(out, "fidelity", asdict(args), args.seed) as run:
        rows: list[Row] = []
        failures = Failures()
        counts: dict[str, dict[str, Tensor]] = {}
        places: list[Tensor] = []
        scenes = [(text, number) for text, source in sources.items() for number in range(len(source))]
        for text, number in track(scenes, "scoring", console=Console(stderr=True)):
            try:
                scene = sources[text].load(number)
                rows += _score_scene(args, present_agents(scene), text, worlds, counts)
                places.append(moments(scene))
            except SCENE_ERRORS as error:
                failures.note(sources[text].ids[number], error)
        failures.refuse_all(len(scenes))
        failures.write(run.folder)
        for path in {dataset.path for dataset in sources.values()}:  # a data set's scenes belong together however they are named
            for name in worlds:
                finish_rows([r for r in rows if (sources[r["data_set"]].path, r["world"]) == (path, name)], args.config)
        by_world = {name: [row for row in rows if row["world"] == name] for name in worlds}
        recording, scored = recordings(places), by_world[args.world]
        summary = [
            {"world": name} | summarise(found, by_world[LOG], scored, recording, args.seed) for name, found in by_world.items()
        ]
        write_csv(run.folder / "scenes.csv", rows)
        write_csv(run.folder / "summary.csv", summary)
        _write_distributions(counts, run.folder)
        results = {"config": args.config, "worlds": summary} | _conditions(by_world[LOG], args.config)
        results["failed"] = len(failures)
        if args.world == "learned":
            folder = model_folder(args.weights)
            results["weights_checksum"] = weights_checksum(folder)
            results["known"] = len(known(list(sources.values()), read_stages(folder)))
        run.finish(results)
    _print_tables(results, out)
    return failures.tell()


def _score_scene(
    args: Fidelity, scene: Scene, text: str, worlds: Mapping[str, Simulator | None], counts: dict[str, dict[str, Tensor]]
) -> list[Row]:
    """Return a row for each world, and add what it does to the counts of its features."""
    steps = min(args.horizon, int(ReplayWorld().horizon(scene)[0]))
    if steps < 1:
        raise ValueError("its log ends at the present, so there is no future to compare with: leave it out")
    logged = object_features(scene, logged_futures(scene, steps), scored_agents(scene, ego_too=True))
    found, rows = {"recorded": shares(logged, asked_steps(logged))}, []
    for name, world in worlds.items():
        if world is None:
            held = logged_futures(scene, steps, held=True)
            futures = held.map(lambda tensor: tensor.expand(-1, args.rollouts, *tensor.shape[2:]))
        else:
            generator = seeded_generator(args.seed, f"fidelity {scene.id[0]}")
            futures = simulate(world, scene, args.rollouts, steps, generator, drive_ego=True)
        row, simulated = score(futures, scene, logged)
        rows.append({"data_set": text, "world": name} | row)
        found[name] = shares(simulated)
    for name, features in found.items():
        sums = counts.setdefault(name, {})
        for feature, count in features.items():
            sums[feature] = sums[feature] + count if feature in sums else count
    return rows


def _conditions(rows: Sequence[Row], year: int) -> Row:
    """What a reader of the figures has to know: horizon, objects, and in how many scenes which term is left out."""
    terms = [name for name in FEATURES if WEIGHTS[year][name] > 0]
    missing = {name: sum(row[name] is None for row in rows) for name in terms}
    return {
        "steps": [min(row["steps"] for row in rows), max(row["steps"] for row in rows)],
        "objects": sum(row["objects"] for row in rows),
        "rule": RULE,
        "named": sum(row["named"] for row in rows),
        "left_out": {name: count for name, count in missing.items() if count},
    }


def _write_distributions(counts: Mapping[str, Mapping[str, Tensor]], folder: Path) -> None:
    """Write distributions.json and a PNG for every feature that there is a value of."""
    (folder / "distributions").mkdir()
    record: dict[str, Any] = {}
    for name in FEATURES:
        low, high, bins = HISTOGRAMS.get(name, (-0.5, 1.5, 2))
        edges = torch.linspace(low, high, bins + 1, dtype=torch.float64).tolist()
        found = {
            world: (of[name] / of[name].sum()).tolist() for world, of in counts.items() if of[name].sum() > 0 and world != LOG
        }
        recorded = found.pop("recorded", None)
        if recorded is None:
            continue
        record[name] = {"edges": edges, "recorded": recorded, "worlds": found}
        title = name.replace("_", " ")
        draw_distribution(folder / "distributions" / f"{name}.png", title, edges, recorded, found, UNITS.get(name, ""))
    write_json(folder / "distributions.json", record)


def _print_tables(results: Mapping[str, Any], out: Path) -> None:
    console, worlds = Console(highlight=False), results["worlds"]
    shortest, longest = (f"{TIME_STEP * steps:g}" for steps in results["steps"])
    told = f"{shortest} to {longest} s" if shortest != longest else f"{longest} s"
    what = f"{counted(worlds[0]['scenes'], 'scene')} of {counted(worlds[0]['recordings'], 'recording')}"
    # A terminal of 80 columns has room for four figures with their intervals, not for seven.
    for columns in (TABLE, {}) if console.width >= 130 else (dict([*TABLE.items()][:3]), dict([*TABLE.items()][3:])):
        table = Table("world", *columns.values())
        table.title = f"RMM {results['config']}: {what}, {counted(results['objects'], 'object')}, {told}"
        for row in worlds:
            table.add_row(str(row["world"]), *(_cell(row, name) for name in columns))
        if columns:
            console.print(table)
    table = Table("likelihood", *(str(row["world"]) for row in worlds))
    for name in FEATURES:
        table.add_row(name.replace("_", " "), *(_cell(row, name) for row in worlds))
    console.print(table)
    for name, count in results["left_out"].items():
        console.print(f"{name} left out of the meta-metric in {counted(count, 'scene')} without such a value", markup=False)
    console.print(f"scored: {results['rule']}; it names some in {counted(results['named'], 'scene')}", markup=False)
    if results.get("known"):
        told = f"the weights know {counted(results['known'], 'scene')} among these from their training: no fair comparison"
        console.print(told, markup=False)
    console.print(f"behind: how far this world's RMM lies below that of {worlds[0]['world']}, scene by scene", markup=False)
    console.print(f"in brackets: 95 % interval over recordings. Run record: {out}", markup=False)


def _cell(row: Mapping[str, Any], name: str) -> str:
    scale, unit, places = (100, " %", 1) if name.endswith("rate") else (1, "", 3 if name in FEATURES or "rmm" in name else 2)
    return cell(row, name, scale, unit, places)
