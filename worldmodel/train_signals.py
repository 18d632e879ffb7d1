"""Train the network of signals: `worldloop train signals --data SHARDS ... --validation SHARDS --out FOLDER`.

A few minutes on one core, so it is not resumed: the run folder appears when all is done. It holds `metrics.jsonl`, the picture
`timelines.png` (signals as logged, and as they run freely) and `model/`, with a README written from what was measured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from .data.shards import SceneDataset
from .files import replacing, write_json, write_tensors, write_text
from .geometry import wrap_angle
from .run import require_free, seeded_generator, whole_run
from .scene import HISTORY_STEPS, SignalState
from .signals import ADVANCED, SignalConfig, SignalModel, signal_ages, signal_places

SHOWN = (SignalState.STOP, SignalState.CAUTION, SignalState.GO)
SURE = 0.999
"""The baseline that knows no change: nothing advances, with this probability (with 1 its log likelihood would be infinite)."""

LEAST_STEPS = HISTORY_STEPS + SignalConfig.decision_ticks + 1
"""Shorter scenes show no decision after the present."""

CARD = """# Signals of the learned world

Decides every half second which signals advance (GO, CAUTION, STOP, GO) where the log has ended. {parameters:,} parameters.
Written by `worldloop train signals`; `worldloop.worldmodel.signals` describes it.

Recipe: `{arguments}`.

Read from (an id of SUMO's scenes is sumo/TEMPLATE/SEED of the network/second/ego, the seed beginning with that of
`worldloop data generate`):

{sources}

On {scenes:.0f} scenes that were held out ({rows:.0f} of them long enough to run free for {seconds:.0f} s):

| | SUMO | learned |
|---|---|---|
{table}

Durations are those of phases seen whole. Conflicts: pairs of signals whose straight ways cross (headings 60 to 120 degrees
apart). One approach: stop points within 10 m, headings within 20 degrees, the same shown before.

Negative log likelihood of the next half second, nats a signal (lower is better): learned {nll:.4f}, each state's constant
hazard {hazard_nll:.4f}, frozen (probability {sure} of no change) {frozen_nll:.4f}.
"""


@dataclass(frozen=True)
class Args:
    """Train the network that says how signals go on where the log ends.

    Example: worldloop train signals --data scenes/made --validation scenes/held --out runs/signals
    """

    data: tuple[str, ...]
    """Folders of training scenes; long ones (`worldloop data generate --steps 611`) teach how long red takes. `FOLDER=2` draws
    from it twice as often, `FOLDER:GLOB` takes the scenes with such an id."""
    validation: tuple[str, ...]
    """Folders of scenes that are never trained on; those of 30 s and more serve for running freely."""
    out: Path
    """Run folder to create."""
    steps: int = 10_000
    """Optimiser steps."""
    batch: int = 48
    """Moments in a step."""
    learning_rate: float = 2e-3
    """Peak of the cosine schedule."""
    width: int = SignalConfig.width
    """Size of a hidden vector."""
    free_run: int = 600
    """Steps of 0.1 s that signals run freely on the validation scenes."""
    seed: int = 0
    """Seed of weights and of the order of data."""


@dataclass(frozen=True)
class Log:
    """The signals of one scene: place (S, 5), state and valid (S, T); and how often it is drawn."""

    place: Tensor
    state: Tensor
    valid: Tensor
    weight: float = 1.0


def window_of(id: str) -> str:
    """Return what scenes have in common that show the same moments around another ego; of recordings that is the scene itself."""
    return id.rpartition("/")[0] if id.startswith("sumo/") else id


def sources_of(texts: Sequence[str]) -> str:
    """Return what data sets hold, as a list in Markdown, so that they can be made again."""
    lines = []
    for text in texts:
        dataset = SceneDataset.named(text.partition("=")[0])
        steps, windows = dataset.sizes()["T"], len({window_of(id) for id in dataset.ids})
        ends = f"`{dataset.ids[0]}` to `{dataset.ids[-1]}`"
        lines.append(f"- `{text.rsplit('/', 1)[-1]}`: {len(dataset)} scenes of up to {steps} steps in {windows} windows, {ends}")
    return "\n".join(lines)


def read_logs(texts: Sequence[str]) -> list[Log]:
    """Read the signals of data sets, each window of a simulation around one ego; the scenes of a folder share its weight."""
    logs: list[Log] = []
    for text in texts:
        name, _, weight = text.partition("=")
        dataset, found = SceneDataset.named(name), {}
        for row, id in enumerate(dataset.ids):
            if (window := window_of(id)) in found:
                continue  # the same moments around another ego
            scene = dataset.load([row], validate=False)
            moves = (scene.signal_state[0, :, 1:] != scene.signal_state[0, :, :-1]).any()
            if (scene.signal_valid & (scene.signal_state != SignalState.UNKNOWN)).any() and scene.steps >= LEAST_STEPS:
                found[window] = Log(signal_places(scene)[0], scene.signal_state[0], scene.signal_valid[0], 2.0 if moves else 1.0)
        total = sum(log.weight for log in found.values())
        try:
            share = float(weight or 1)
        except ValueError:
            raise ValueError(f"{text}: the weight {weight!r} is not a number") from None
        if not 0 < share < math.inf:
            raise ValueError(f"{text}: found the weight {weight}, wanted a number above 0")
        logs += [Log(log.place, log.state, log.valid, share / total) for log in found.values()]
    if not logs:
        raise ValueError(
            f"{' '.join(texts)}: found no signal that shows stop, caution or go in scenes of at least {LEAST_STEPS} steps"
        )
    return logs


def batch_of(moments: Sequence[tuple[Log, int, int, Tensor]], ticks: int) -> dict[str, Tensor]:
    """Return what the network reads of moments (log, first tick seen, present, order of its signals), padded to the largest.

    `advanced` (B, S) is what it has to say, `counts` (B, S) where the log tells it.
    """
    rows = []
    for log, first, now, order in moments:
        state, valid = log.state[order], log.valid[order]
        age, known = signal_ages(state[:, first : now + 1])
        old, new = state[:, now], state[:, now + ticks]
        told = valid[:, first : now + ticks + 1].all(-1) & (old != SignalState.UNKNOWN) & ((new == old) | (new == ADVANCED[old]))
        row = {"place": log.place[order], "state": old, "age": age, "known": known, "valid": valid[:, now]}
        rows.append(row | {"advanced": new != old, "counts": told})
    pad = torch.nn.utils.rnn.pad_sequence
    return {name: pad([row[name] for row in rows], batch_first=True) for name in rows[0]}


def draw(logs: Sequence[Log], weights: Tensor, args: Args, ticks: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Return a batch of random moments, seen since a random tick, the signals in random order and half of them mirrored."""
    number = lambda most: int(torch.randint(most, (), generator=generator))  # noqa: E731
    moments = []
    for row in torch.multinomial(weights, args.batch, replacement=True, generator=generator).tolist():
        log = logs[row]
        now = number(log.state.shape[1] - ticks)
        first = number(now + 1) if number(2) else max(0, now - log.state.shape[1] // 2)
        moments.append((log, first, now, torch.randperm(len(log.place), generator=generator)))
    batch = batch_of(moments, ticks)
    mirrored = torch.rand(args.batch, 1, 1, generator=generator) < 0.5
    flipped = batch["place"] * torch.tensor([1.0, -1.0, -1.0, 1.0, -1.0])
    return batch | {"place": torch.where(mirrored, flipped, batch["place"])}


def losses(model: SignalModel, batch: dict[str, Tensor]) -> Tensor:
    """Return the negative log likelihood (n,) of each signal that counts."""
    inputs = [batch[name] for name in ("place", "state", "age", "known", "valid", "advanced")]
    counts, wanted = batch["counts"], batch["advanced"].float()
    return functional.binary_cross_entropy_with_logits(model(*inputs)[counts], wanted[counts], reduction="none")


@torch.no_grad()
def likelihoods(model: SignalModel, logs: Sequence[Log], hazard: Tensor) -> dict[str, float]:
    """Return the mean negative log likelihood of the network, of constant hazards (4,) by state, and of no change."""
    ticks, found = model.config.decision_ticks, []
    for log in logs:
        times = range(HISTORY_STEPS, log.state.shape[1] - ticks, 4 * ticks)
        batch = batch_of([(log, 0, now, torch.arange(len(log.place))) for now in times], ticks)
        advanced, state = batch["advanced"][batch["counts"]], batch["state"][batch["counts"]]
        chances = torch.stack((hazard[state], torch.full(state.shape, 1 - SURE)))
        baselines = torch.where(advanced, chances, 1 - chances).log().neg()
        found.append(torch.cat((losses(model, batch)[None], baselines)))
    return dict(zip(("nll", "hazard_nll", "frozen_nll"), torch.cat(found, dim=1).mean(1).tolist(), strict=True))


@torch.no_grad()
def run_free(model: SignalModel, logs: Sequence[Log], steps: int, generator: torch.Generator) -> list[Tensor]:
    """Return the states (S, steps / ticks + 1) of each log from the present on, one each decision, run freely."""
    ticks, pad = model.config.decision_ticks, torch.nn.utils.rnn.pad_sequence
    past = pad([log.state[:, : HISTORY_STEPS + 1] for log in logs], batch_first=True)
    place, valid = (
        pad(each, batch_first=True) for each in ([log.place for log in logs], [log.valid[:, HISTORY_STEPS] for log in logs])
    )
    (age, known), state = signal_ages(past), past[..., -1]
    shown = [state]
    for _ in range(steps // ticks):
        moved = model(place, state, age, known, valid, torch.rand(state.shape, generator=generator))
        state, age, known = torch.where(moved, ADVANCED[state], state), torch.where(moved, 0, age + ticks), known | moved
        shown.append(state)
    return [run[: len(log.place)] for run, log in zip(torch.stack(shown, dim=-1), logs, strict=True)]


def durations(shown: Tensor, seconds: float) -> dict[int, list[float]]:
    """Return how long phases seen whole lasted, by state, from states (S, K) that are `seconds` apart."""
    found: dict[int, list[float]] = {int(state): [] for state in SHOWN}
    for row in shown:
        starts = ((row[1:] != row[:-1]).nonzero()[:, 0] + 1).tolist()
        for begin, end in zip(starts, starts[1:], strict=False):
            found.setdefault(int(row[begin]), []).append((end - begin) * seconds)
    return found


def crossing_pairs(place: Tensor) -> Tensor:
    """Return (S, S) which signals' straight ways of 40 m cross, headings 60 to 120 degrees apart."""
    turn = wrap_angle(place[None, :, 2] - place[:, None, 2])
    ahead = torch.stack((place[:, 2].cos(), place[:, 2].sin()), dim=-1)
    shift = place[None, :, :2] - place[:, None, :2]
    cross = lambda a, b: a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]  # noqa: E731
    mine, theirs = (cross(shift, axis) / turn.sin() for axis in (ahead[None], ahead[:, None]))
    inside = (mine > 0) & (mine < 40) & (theirs > 0) & (theirs < 40)
    return inside & (turn.abs() > math.pi / 3) & (turn.abs() < math.pi * 2 / 3)


def describe(runs: Sequence[tuple[Tensor, Tensor]], seconds: float) -> dict[str, float]:
    """Return durations, shares of time, of conflicts and of common changes of runs (place (S, 5), states (S, K))."""
    result: dict[str, float] = {}
    found = [durations(shown, seconds) for _, shown in runs]
    everything = torch.cat([shown.flatten() for _, shown in runs])
    for state in SHOWN:
        spans = torch.tensor([span for each in found for span in each[state]])
        name = state.name.lower()
        result[f"{name}_time_share"] = (everything == state).float().mean().item()
        result[f"{name}_phases"] = float(len(spans))
        if len(spans):
            quantiles = spans.quantile(torch.tensor([0.1, 0.5, 0.9])).tolist()
            result |= dict(zip((f"{name}_{part}_s" for part in ("p10", "median", "p90")), quantiles, strict=True))
            result[f"{name}_mean_s"] = spans.mean().item()
    both = pairs = together = changes = 0
    for place, shown in runs:
        green = (shown == SignalState.GO).float()
        crossing = crossing_pairs(place)
        both += float(((green @ green.T) * crossing).sum())
        pairs += float(crossing.sum() * shown.shape[1])
        turn = wrap_angle(place[None, :, 2] - place[:, None, 2]).abs()
        near = ((place[None, :, :2] - place[:, None, :2]).norm(dim=-1) < 10) & (turn < math.radians(20))
        near &= ~torch.eye(len(place), dtype=torch.bool)
        moved, old = shown[:, 1:] != shown[:, :-1], shown[:, :-1]
        asked = near[..., None] & (old[:, None] == old[None]) & moved[:, None]
        together += float((asked & moved[None]).sum())
        changes += float(asked.sum())
    return result | {"crossing_both_go": both / max(pairs, 1), "approach_together": together / max(changes, 1)}


def table_of(sumo: dict[str, float], learned: dict[str, float]) -> str:
    """Return the comparison as rows of Markdown."""
    shares = ("time_share", "both_go", "together")
    text = lambda row, name: (  # noqa: E731
        "none" if name not in row else f"{100 * row[name]:.2f} %" if name.endswith(shares) else f"{row[name]:.4g}"
    )
    return "\n".join(f"| {name.replace('_', ' ')} | {text(sumo, name)} | {text(learned, name)} |" for name in sumo)


def plot(examples: Sequence[tuple[Tensor, Tensor]], seconds: float, path: Path) -> None:
    """Draw signals over time (a bar each) into a PNG: as logged above, as they ran freely below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    colours = ("#BBBBBB", "#D55E00", "#F0E442", "#009E73")
    figure, axes = pyplot.subplots(2, len(examples), figsize=(5 * len(examples), 6), layout="constrained", squeeze=False)
    for column, pair in enumerate(examples):
        for axis, shown, name in zip(axes[:, column], pair, ("SUMO", "learned"), strict=True):
            extent = (0.0, shown.shape[1] * seconds, len(shown) - 0.5, -0.5)
            axis.imshow(
                shown.numpy(), cmap=ListedColormap(colours), vmin=0, vmax=3, aspect="auto", interpolation="none", extent=extent
            )
            axis.hlines(torch.arange(len(shown) - 1) + 0.5, *extent[:2], color="white", linewidth=1.5)
            axis.set(title=f"{name}, held-out scene {column + 1}", xlabel="seconds after the present", ylabel="signal")
    figure.legend(handles=[Patch(color=colours[s], label=s.name) for s in SHOWN], loc="outside lower center", ncols=3)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=110, format="png")
    pyplot.close(figure)


def evaluate(model: SignalModel, logs: Sequence[Log], hazard: Tensor, args: Args, folder: Path) -> dict[str, float | str]:
    """Measure the likelihoods and the free runs, and draw some; returns all numbers and the table."""
    ticks = model.config.decision_ticks
    usable = [log for log in logs if log.state.shape[1] > HISTORY_STEPS + min(args.free_run, 300) and log.valid.all()]
    results: dict[str, float | str] = {**likelihoods(model, logs, hazard), "scenes": len(logs), "rows": len(usable), "table": ""}
    if usable:
        steps = min(args.free_run, min(log.state.shape[1] for log in usable) - HISTORY_STEPS - 1) // ticks * ticks
        generator = seeded_generator(args.seed, "signal validation")
        learned = run_free(model, usable, steps, generator)
        logged = [log.state[:, HISTORY_STEPS : HISTORY_STEPS + steps + 1 : ticks] for log in usable]
        sides = [
            describe([(log.place, s) for log, s in zip(usable, shown, strict=True)], 0.1 * ticks) for shown in (logged, learned)
        ]
        for name, side in zip(("sumo", "learned"), sides, strict=True):
            results |= {f"{name}_{key}": value for key, value in side.items()}
        chosen = range(0, len(usable), max(1, len(usable) // 4))[:4]
        plot([(logged[row], learned[row]) for row in chosen], 0.1 * ticks, folder / "timelines.png")
        results |= {"table": table_of(*sides), "seconds": 0.1 * steps}
    return results


def train(model: SignalModel, logs: Sequence[Log], args: Args, show, log) -> None:  # noqa: ANN001
    """Lower the loss for `args.steps` steps; tell `show` every loss and `log` the mean of each hundred."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = lambda step: min((step + 1) / 50, 0.5 * (1 + math.cos(math.pi * step / args.steps)) + 0.01)  # noqa: E731
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    generator, weights = seeded_generator(args.seed, "signal training"), torch.tensor([log.weight for log in logs])
    recent: list[float] = []
    for step in range(args.steps):
        found = losses(model, draw(logs, weights, args, model.config.decision_ticks, generator))
        if not len(found):  # nothing but signals that are off or not seen
            continue
        loss = found.mean()
        if not loss.isfinite():
            raise ValueError(f"the loss is {loss.item()} at step {step}: lower --learning-rate")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        recent.append(loss.item())
        show(recent[-1])
        if (step + 1) % 100 == 0 or step + 1 == args.steps:
            log(step + 1, loss=sum(recent) / len(recent))
            recent = []


def main(args: Args) -> Path:
    """Train and measure; return the folder of the finished model.

    Raises:
        ValueError: data or arguments do not fit. FileExistsError: the run folder exists.
    """
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    if min(args.steps, args.batch, args.width) < 1 or args.free_run < 5 or not 0 < args.learning_rate < math.inf:
        raise ValueError(
            f"found --steps {args.steps}, --batch {args.batch}, --width {args.width}, --free-run {args.free_run}, "
            f"--learning-rate {args.learning_rate:g}: wanted at least 1 of the first three, 5 of --free-run (one decision), and "
            "a rate above 0"
        )
    trained, kept = (
        {window_of(id) for text in texts for id in SceneDataset.named(text.partition("=")[0]).ids}
        for texts in (args.data, args.validation)
    )
    if shared := trained & kept:
        raise ValueError(
            f"the moments of {len(shared)} scenes are in both --data and --validation, such as {min(shared)}: separate them"
        )
    require_free(args.out)
    logs, held_out = read_logs(args.data), read_logs(args.validation)
    torch.manual_seed(args.seed)
    model = SignalModel(SignalConfig(args.width))
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    recorded = json.loads(json.dumps(asdict(args), default=str))
    with (
        whole_run(args.out, "train signals", recorded, args.seed) as run,
        Progress(*columns, TextColumn("loss {task.fields[loss]:.4f}")) as progress,
    ):
        bar = progress.add_task("training", total=args.steps, loss=math.nan)
        train(model.train(), logs, args, lambda loss: progress.update(bar, advance=1, loss=loss), run.log)
        results = evaluate(model.eval(), held_out, hazards(logs, model.config.decision_ticks), args, run.folder)
        results["sources"] = sources_of((*args.data, *args.validation))
        results |= {"parameters": sum(p.numel() for p in model.parameters()), "training_windows": len(logs)}
        save(model, run.folder / "model", recorded, results)
        run.finish(results)
        told = "nats a signal: learned {nll:.4f}, constant hazard {hazard_nll:.4f}, no change {frozen_nll:.4f}"
        progress.console.print(told.format(**results), markup=False)
        if not results["rows"]:
            progress.console.print("no validation scene is long enough for signals to run freely: `data generate --steps 611`")
    return args.out / "model"


def hazards(logs: Sequence[Log], ticks: int) -> Tensor:
    """Return how often each state (4,) advances in the time between two decisions, over all logs."""
    both = [log.valid[:, :-ticks] & log.valid[:, ticks:] for log in logs]
    old = torch.cat([log.state[:, :-ticks][seen] for log, seen in zip(logs, both, strict=True)])
    new = torch.cat([log.state[:, ticks:][seen] for log, seen in zip(logs, both, strict=True)])
    counts = torch.bincount(old, minlength=4).clamp(min=1)
    return (torch.bincount(old[new != old], minlength=4) / counts).clamp(1e-6, 1 - 1e-6)


def save(model: SignalModel, folder: Path, arguments: dict, results: dict[str, float | str]) -> None:
    """Write weights, configuration and the card; names of folders without what only the machine of the run knows."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "model.safetensors", model.state_dict())
    write_json(folder / "config.json", asdict(model.config))
    told = {name: value for name, value in arguments.items() if name != "out"}
    told |= {name: [text.rsplit("/", 1)[-1] for text in told[name]] for name in ("data", "validation")}
    write_text(folder / "README.md", CARD.format(arguments=json.dumps(told), sure=SURE, **{"seconds": 0.0} | results))
