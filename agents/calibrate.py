"""`worldloop calibrate`: does the error of the learned world grow with what it says it will be, and how far may it be believed?

From recorded starts the world runs several futures with the ego on its log. At every decision the uncertainty that `State` gives
a road user is held against how far that future has it from where the log shows it (metres, mean over the futures), for the road
users of `open_loop.scored_agents`. A row is one road user at one time. Figures:

- Spearman's rank correlation, over all rows and at fixed times: error grows with time for everyone, so only what remains at a
  fixed time tells road users apart. Beside it, two references: the disagreement of the futures, which no single rollout can
  know, and the time alone.
- The reliability curve: rows sorted by what is stated, in bins of equal size, the mean stated against the mean measured.
- The safe horizon: the first time at which the mean error is above what is tolerated, as stated and as measured.

The coefficients of `uncertainty.py` are fitted as a generalised linear model with logarithmic link and Poisson's variance
(McCullagh and Nelder, "Generalized Linear Models", 1989, chapter 9: quasi-likelihood), so that what is stated is a mean error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from ..renderers.reliability import draw_reliability
from ..worldmodel.behavior import BehaviorModel
from ..worldmodel.data import SceneDataset
from ..worldmodel.data.recordings import moments, recordings
from ..worldmodel.files import write_csv, write_json
from ..worldmodel.held_out import copies, known
from ..worldmodel.lineage import Stage, read_stages
from ..worldmodel.open_loop import logged_ego, logged_futures, present_agents, scored_agents, without_later_signals
from ..worldmodel.run import dated_folder, seeded_generator, whole_run
from ..worldmodel.scene import HISTORY_STEPS, TIME_STEP, Scene
from ..worldmodel.shipped import SHIPPED_SIGNALS, model_folder
from ..worldmodel.signals import SignalModel
from ..worldmodel.uncertainty import CALIBRATION_FILE, FLOOR, Calibration, weights_checksum
from ..worldmodel.world import EPSILON, TEMPERATURE, LearnedWorld, ReplayWorld, random_keys
from .bootstrap import cell, counted, interval, resampled
from .failures import Failures
from .rollout import SAFE_ERROR, SCENE_ERRORS, open_scenes

HORIZONS = (1.0, 3.0, 5.0, 8.0)
"""Seconds at which rank correlations are given."""

BINS = 10
"""Points of the reliability curve."""

MOVED = 1.0
"""Metres in the log from which a road user counts as moving."""


@dataclass(frozen=True)
class Calibrate:
    """Learn how unsure the learned world is, or check it.

    With --fit the three coefficients of its uncertainty are fitted to how far its futures end up from these logs; --into puts
    them beside the weights, where the world finds them. With --scenes what it states is held against the error on other logs: a
    table of rank correlations with 95 % intervals, the reliability curve, and the safe horizon, the time for which its mean error
    stays within the tolerance. Give both to fit and check in one go. Fit on logs that the weights were not trained on where you
    have enough: on those that it knows, the world errs less than elsewhere, and so states too little.

    Writes a run folder with run.json, uncertainty.json (after --fit), and after --scenes rows.csv (each road user at each time),
    reliability.csv, over_time.csv, reliability.png.

    Example: worldloop calibrate --fit scenes/ngsim:*US101* --scenes scenes/pandaset:pandaset/06*
    """

    fit: tuple[str, ...] = ()
    """Data sets to fit the coefficients on, FOLDER or FOLDER:GLOB for the scenes with such ids."""
    scenes: tuple[str, ...] = ()
    """Data sets to check them on, none of whose scenes is fitted on."""
    limit: int | None = None
    """At most so many scenes of each data set, spread evenly over it."""
    weights: Path | None = None
    """Folder of a trained behaviour model, instead of the shipped one, or small or large."""
    into: Path | None = None
    """Model folder that gets the fitted uncertainty.json; it must hold the same weights."""
    rollouts: int = 8
    """Futures for each scene."""
    horizon: int = 80
    """Steps of 0.1 s at the most; shorter where the log ends earlier."""
    tolerance: float = SAFE_ERROR
    """Metres of mean error up to which a rollout is believed."""
    temperature: float = TEMPERATURE
    """Of the world's sampling; coefficients hold for the one they were fitted with."""
    epsilon: float = EPSILON
    """Of the world's sampling: motions less likely than this are not drawn."""
    seed: int = 0
    """Seed of the sampling."""
    out: Path | None = None
    """Run folder, runs/calibrate-DATE if not given."""


@dataclass(frozen=True)
class Rows:
    """Road users at times: n rows of K futures each.

    Attributes:
        scene: (n,) int64 number of the scene. recording: (n,) int64, the same for scenes that show the same moments.
        seconds: (n,) after the present.
        moving: (n,) bool, whether it moves more than MOVED in the log.
        error, stated, square: (n, K) metres, metres and m2: the distance to the log, the uncertainty, and the squared spread.
        disagreement: (n,) metres, root mean square distance of the futures from their mean; zero for a single future.
    """

    scene: Tensor
    recording: Tensor
    seconds: Tensor
    moving: Tensor
    error: Tensor
    stated: Tensor
    square: Tensor
    disagreement: Tensor

    def where(self, chosen: Tensor) -> Rows:
        """Return the rows `chosen` (n,) bool, or by number."""
        return Rows(*(tensor[chosen] for tensor in vars(self).values()))

    @classmethod
    def join(cls, parts: Sequence[Rows]) -> Rows:
        """Return all rows in one."""
        return cls(*(torch.cat(tensors) for tensors in zip(*(vars(part).values() for part in parts), strict=True)))


@torch.no_grad()
def observe(world: LearnedWorld, scene: Scene, number: int, rollouts: int, horizon: int, seed: int) -> Rows | None:
    """Run the futures of one scene (B = 1) and return its rows, None if the log is too short for a decision or scores nobody."""
    every = world.model.config.decision_ticks
    steps = min(horizon, int(ReplayWorld().horizon(scene)[0])) // every * every
    scene = present_agents(scene)
    scored = scored_agents(scene)[0]
    if steps < every or not scored.any():
        return None
    many, moments = without_later_signals(scene).repeat(rollouts), []
    state = world.reset(many, random_keys(seeded_generator(seed, f"calibrate {scene.id[0]}"), rollouts))
    for step in range(1, steps + 1):
        state = world.step(state, logged_ego(many, step))
        if step % every == 0:
            moments.append((state.position[..., :2], state.uncertainty, state.memory["spread"][..., 1]))
    position, stated, square = (torch.stack(parts, 2)[:, scored].movedim(0, 2) for parts in zip(*moments, strict=True))
    log = logged_futures(scene, steps)
    at = torch.arange(every - 1, steps, every)
    logged, valid = log.position[0, 0, scored][:, at, None, :2], log.valid[0, 0, scored][:, at]
    present = scene.position[0, scored, HISTORY_STEPS, None, :2]
    shift = (scene.position[0, scored, :, :2] - present).norm(dim=-1)
    moving = torch.where(scene.valid[0, scored], shift, 0.0)[:, HISTORY_STEPS:].amax(-1) > MOVED
    apart = (position - position.mean(2, keepdim=True)).square().sum(-1).sum(-1) / max(rollouts - 1, 1)
    seconds = ((at + 1) * TIME_STEP).expand_as(valid)
    return Rows(
        torch.full((int(valid.sum()),), number),
        torch.full((int(valid.sum()),), number),  # until all scenes are known
        seconds[valid],
        moving[:, None].expand_as(valid)[valid],
        (position - logged).norm(dim=-1)[valid],
        stated[valid],
        square[valid],
        apart.sqrt()[valid],
    )


def fit_calibration(rows: Rows) -> Calibration:
    """Return the coefficients under which the mean error is stated, by Newton's method on the quasi-likelihood.

    Raises:
        ValueError: the rows do not determine them.
    """
    error, square = rows.error.double().flatten(), rows.square.double().flatten()
    seconds = rows.seconds.double()[:, None].expand(-1, rows.error.shape[1]).flatten()
    inputs = torch.stack((torch.ones_like(error), (square.sqrt() + FLOOR).log(), seconds.log()), dim=-1)
    needed = "give more scenes to --fit, with several decisions in which someone moves"
    if not error.sum() > 0 or torch.linalg.matrix_rank(inputs) < inputs.shape[1]:
        raise ValueError(f"found {len(error)} errors that do not determine the three coefficients: {needed}")
    answer = torch.stack((error.mean().log(), error.new_zeros(()), error.new_zeros(())))
    for _ in range(100):
        mean = (inputs @ answer).exp()
        move = torch.linalg.solve(inputs.T @ (inputs * mean[:, None]), inputs.T @ (error - mean))
        answer = answer + move.clamp(-1.0, 1.0)
        if move.abs().max() < 1e-9:
            return Calibration(*answer.tolist())
    raise ValueError(f"the fit to {len(error)} errors did not settle: {needed}")


def rank_correlation(first: Tensor, second: Tensor) -> float | None:
    """Return Spearman's rank correlation of two (n,), ties at their mean rank; None where one of them is the same throughout."""

    def centred_ranks(values: Tensor) -> Tensor:
        _, place, count = values.unique(return_inverse=True, return_counts=True)
        rank = (count.cumsum(0) - 0.5 * (count - 1)).double()[place]
        return rank - rank.mean()

    mine, theirs = centred_ranks(first), centred_ranks(second)
    scale = (mine.square().sum() * theirs.square().sum()).sqrt()
    return float((mine * theirs).sum() / scale) if scale > 0 else None


def resamples(recording: Tensor, seed: int) -> Iterator[Tensor]:
    """Yield RESAMPLES bootstrap samples of rows: all of a recording are drawn together, as they depend on each other; (n,)."""
    numbers, place, count = recording.unique(return_inverse=True, return_counts=True)
    members = place.argsort(stable=True).split(count.tolist())
    for drawn in resampled(len(numbers), seed).tolist():
        yield torch.cat([members[number] for number in drawn])


def correlations(rows: Rows, seed: int) -> list[dict[str, Any]]:
    """Return rank correlations of the error with what is stated and with two references, over all rows and at each horizon."""
    groups = {"all": torch.ones_like(rows.moving), "all that move": rows.moving}
    groups |= {f"at {horizon:g} s": (rows.seconds - horizon).abs() < 0.5 * TIME_STEP for horizon in HORIZONS}
    found = []
    for name, chosen in groups.items():
        some = rows.where(chosen)
        row: dict[str, Any] = {"rows": name, "count": len(some.error), "scenes": len(some.scene.unique())}
        row |= {"stated_metres": None, "measured_metres": None}
        if len(some.error):
            row |= {"stated_metres": float(some.stated.mean()), "measured_metres": float(some.error.mean())}
        error = some.error.mean(1)
        drawn = list(resamples(some.recording, seed)) if len(error) else []
        for measure, value in (("stated", some.stated.mean(1)), ("disagreement", some.disagreement), ("time", some.seconds)):
            again = [rank_correlation(value[sample], error[sample]) for sample in drawn]
            low, high = interval(torch.tensor([each for each in again if each is not None], dtype=torch.float64))
            row |= {measure: rank_correlation(value, error), f"{measure}_low": low, f"{measure}_high": high}
        found.append(row)
    return found


def reliability(rows: Rows, seed: int) -> list[dict[str, Any]]:
    """Return the reliability curve: for each bin of equally many rows mean stated and measured error, with its 95 % interval."""
    stated, error = rows.stated.mean(1), rows.error.mean(1)
    bins = [part for part in stated.argsort(stable=True).tensor_split(BINS) if len(part)]
    curve = []
    for part in bins:
        low, high = interval(
            torch.tensor([float(error[part][sample].mean()) for sample in resamples(rows.recording[part], seed)])
        )
        mean = {"stated_metres": float(stated[part].mean()), "measured_metres": float(error[part].mean())}
        curve.append({"rows": len(part), **mean, "measured_low": low, "measured_high": high})
    return curve


def over_time(rows: Rows) -> list[dict[str, float]]:
    """Return mean stated and measured error at each time."""
    curve = []
    for seconds in rows.seconds.unique().tolist():
        some = rows.where(rows.seconds == seconds)
        mean = {"stated_metres": float(some.stated.mean()), "measured_metres": float(some.error.mean())}
        curve.append({"seconds": round(seconds, 1), "rows": len(some.error), **mean})
    return curve


def safe_horizon(curve: Sequence[Mapping[str, float]], name: str, tolerance: float) -> float | None:
    """Return the first time of `over_time` at which the error `name` is above `tolerance`, None if it never is."""
    return next((row["seconds"] for row in curve if row[name] > tolerance), None)


def run_calibrate(args: Calibrate) -> int:
    """Fit, check, or both, with a progress bar; print the tables, write the run folder, return 1 if a scene failed.

    Raises:
        ValueError: an argument is out of range, a scene is both fitted on and checked, or no scene has a future to compare with.
    """
    if min(args.rollouts, args.horizon, 1 if args.limit is None else args.limit) < 1 or not args.tolerance > 0:
        raise ValueError(
            f"found --rollouts {args.rollouts}, --horizon {args.horizon}, --limit {args.limit}, --tolerance {args.tolerance:g}: "
            "wanted at least 1 of each, and a tolerance above 0"
        )
    if not args.fit and not args.scenes:
        raise ValueError("found neither --fit nor --scenes: wanted data sets to fit on, to check on, or both")
    folder = model_folder(args.weights)
    if args.fit:  # whatever calibration is there already, of other weights perhaps, is about to be renewed
        model, signals = BehaviorModel.from_pretrained(folder), SignalModel.from_pretrained(SHIPPED_SIGNALS)
        world = LearnedWorld(model, args.temperature, args.epsilon, signals=signals)
    else:
        world = LearnedWorld.from_pretrained(folder, args.temperature, args.epsilon)
    checksum = weights_checksum(folder)
    holds = args.into is not None and (args.into / "model.safetensors").is_file()
    if args.into is not None and (not args.fit or not holds or weights_checksum(args.into) != checksum):
        raise ValueError(
            f"--into {args.into}: wanted --fit, and a folder that holds the weights of {folder}: copy them there first"
        )
    fit, check = _scenes(args.fit, args.limit), _scenes(args.scenes, args.limit)
    _require_apart(fit, check)
    stages = read_stages(folder)
    out = args.out or dated_folder("calibrate")
    failures = Failures()
    results: dict[str, Any] = {"weights_checksum": checksum}
    with whole_run(out, "calibrate", asdict(args), args.seed) as run:
        if args.fit:
            record: dict[str, Any] = _fit(args, world, fit, checksum, failures) | {"known": _known(fit, stages)}
            results["fit"] = record
            write_json(run.folder / CALIBRATION_FILE, record)
            calibration = Calibration(**record["coefficients"])
            world = LearnedWorld(world.model, args.temperature, args.epsilon, calibration, world.signals)
        if args.scenes:
            results["check"] = _check(args, world, check, run.folder, failures) | {"known": _known(check, stages)}
        failures.write(run.folder)
        run.finish(results | {"failed": len(failures)})
    if args.into is not None:
        write_json(args.into / CALIBRATION_FILE, results["fit"])
    _print_results(results, args, out)
    return failures.tell()


Scenes = Sequence[tuple[SceneDataset, int]]


def _require_apart(fit: Scenes, check: Scenes) -> None:
    """Raise ValueError if a scene, or a copy of one, is both fitted on and checked."""
    if both := sorted({source.ids[number] for source, number in fit} & {source.ids[number] for source, number in check}):
        raise ValueError(f"{both[0]}: is in both --fit and --scenes: check on scenes that nothing was fitted on")
    if same := copies(*([*dict.fromkeys(source for source, _ in group)] for group in (fit, check))):
        raise ValueError(
            f"{same[0][0]} of --scenes shows the same recorded moments as {same[0][1]} of --fit: leave one of both out"
        )


def _known(scenes: Scenes, stages: Sequence[Stage]) -> int:
    """How many of the scenes the weights know from their training."""
    return len(
        known([*dict.fromkeys(source for source, _ in scenes)], stages) & {source.ids[number] for source, number in scenes}
    )


def _scenes(sources: Sequence[str], limit: int | None) -> list[tuple[SceneDataset, int]]:
    """Return data set and number of every scene, at most `limit` of each data set."""
    found = []
    for text in sources:
        source = open_scenes(text)
        count = min(len(source), limit or len(source))
        found += [(source, number * len(source) // count) for number in range(count)]
    return found


def _observe_all(args: Calibrate, world: LearnedWorld, scenes: Scenes, title: str, failures: Failures) -> Rows:
    """Return the rows of all scenes; what is wrong with those that fail is added to `failures`."""
    parts, places = [], [torch.zeros(0, dtype=torch.int64)] * len(scenes)
    for number, (source, place) in enumerate(track(scenes, title, console=Console(stderr=True))):
        try:
            scene = source.load(place)
            rows = observe(world, scene, number, args.rollouts, args.horizon, args.seed)
        except SCENE_ERRORS as error:
            failures.note(source.ids[place], error)
            continue
        places[number] = moments(scene)
        if rows is not None:
            parts.append(rows)
    if not parts or not sum(len(part.error) for part in parts):
        failed = f" ({len(failures)} failed, the first one: {failures.first()})" if failures else ""
        raise ValueError(
            f"none of the {len(scenes)} scenes shows a scored road user after the first decision{failed}: give longer logs, or a "
            f"longer --horizon than {args.horizon}"
        )
    rows = Rows.join(parts)
    return replace(rows, recording=torch.tensor(recordings(places))[rows.scene])


def _fit(args: Calibrate, world: LearnedWorld, scenes: Scenes, checksum: int, failures: Failures) -> dict[str, Any]:
    """Return what `uncertainty.json` holds: the coefficients, and what they were fitted to."""
    rows = _observe_all(args, world, scenes, "fitting", failures)
    return {
        "coefficients": asdict(fit_calibration(rows)),
        "weights_checksum": checksum,
        "scenes": [Path(text.partition(":")[0]).name + "".join(text.partition(":")[1:]) for text in args.fit],
        "limit": args.limit,
        "count": len(rows.scene.unique()),
        "rollouts": args.rollouts,
        "temperature": args.temperature,
        "epsilon": args.epsilon,
        "rank_correlation": rank_correlation(rows.square.sqrt().mean(1), rows.error.mean(1)),
    }


def _check(args: Calibrate, world: LearnedWorld, scenes: Scenes, folder: Path, failures: Failures) -> dict[str, Any]:
    """Return the figures of what the world states on these scenes, and write the files."""
    before = len(failures)
    rows = _observe_all(args, world, scenes, "checking", failures)
    failed = len(failures) - before
    every = {name: tensor.double().flatten(1).mean(1) if tensor.ndim > 1 else tensor for name, tensor in vars(rows).items()}
    names = [source.ids[number] for source, number in scenes]
    columns = {name: tensor.tolist() for name, tensor in every.items()}
    listed = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    write_csv(folder / "rows.csv", [row | {"scene": names[row["scene"]]} for row in listed])
    curve, times = reliability(rows, args.seed), over_time(rows)
    write_csv(folder / "reliability.csv", curve)
    write_csv(folder / "over_time.csv", times)
    draw_reliability(
        folder / "reliability.png",
        [row["stated_metres"] for row in curve],
        [(row["measured_metres"], row["measured_low"], row["measured_high"]) for row in curve],
        [(row["seconds"], row["stated_metres"], row["measured_metres"]) for row in times],
        args.tolerance,
    )
    return {
        "calibrated": world.calibrated,
        "scenes": len(rows.scene.unique()),
        "left_out": len(scenes) - len(rows.scene.unique()) - failed,
        "rank_correlations": correlations(rows, args.seed),
        "reliability": curve,
        "tolerance": args.tolerance,
        "safe_horizon_stated": safe_horizon(times, "stated_metres", args.tolerance),
        "safe_horizon_measured": safe_horizon(times, "measured_metres", args.tolerance),
        "longest": times[-1]["seconds"],
    }


def _print_results(results: Mapping[str, Any], args: Calibrate, out: Path) -> None:
    console = Console(highlight=False)
    if (fit := results.get("fit")) is not None:
        told = ", ".join(f"{name} {value:.3f}" for name, value in fit["coefficients"].items())
        console.print(f"fitted on {counted(fit['count'], 'scene')}: {told}", markup=False)
        if fit["known"]:
            console.print(
                f"{fit['known']} of them the weights know from their training: on others expect larger errors", markup=False
            )
    if (check := results.get("check")) is not None:
        table = Table("road users", "rows", "error (m)", "stated (m)", "rank correlation", "of disagreement", "of time alone")
        table.title = f"{counted(check['scenes'], 'scene')}, {counted(args.rollouts, 'future')} each; in brackets: 95 % interval"
        for row in check["rank_correlations"]:
            metres = ("none" if row[name] is None else f"{row[name]:.2f}" for name in ("measured_metres", "stated_metres"))
            table.add_row(
                row["rows"], str(row["count"]), *metres, *(cell(row, n, places=3) for n in ("stated", "disagreement", "time"))
            )
        console.print(table)
        stated, measured = (check[f"safe_horizon_{name}"] for name in ("stated", "measured"))
        told = [f"beyond {check['longest']:g} s" if value is None else f"{value:g} s" for value in (stated, measured)]
        console.print(f"mean error above {args.tolerance:g} m from: {told[0]} as stated, {told[1]} as measured", markup=False)
        if not check["calibrated"]:
            console.print("these weights have no uncertainty.json: what is stated ranks, but is not the size of the error")
        if check["known"]:
            console.print(f"{counted(check['known'], 'scene')} among these the weights know from their training: no fair check")
        if check["left_out"]:
            console.print(f"{counted(check['left_out'], 'scene')} left out: no scored road user is seen after the first decision")
    if args.into is not None:
        console.print(f"coefficients: {args.into / CALIBRATION_FILE}", markup=False, soft_wrap=True)
    console.print(f"run record: {out}", markup=False, soft_wrap=True)
