"""Train a camera: `worldloop train camera --data CLIPS ... --validation CLIPS ... --out FOLDER`.

Two stages in one run. First the autoencoder learns to give frames back; then all frames are turned into latents once, and the
flow network learns to paint the next one. Conditions are dropped at random, so that the same weights run with a layout or
without, from a first frame or from nothing. In the second half part of the windows goes on from frames that the network itself
has made. The run folder holds `metrics.jsonl`, `learning_curves.png`, `frames.png` (validation clips, logged and painted), the
checkpoint to resume from, and `model/` for `load_camera`.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from .camera import PAST_LEVEL, SHRINK, CameraModel, Conditions, from_bytes, load_camera
from .camera_windows import Clips, conditions, require_apart, require_fit, roll, some_clips
from .checkpoint import CHECKPOINT, read_checkpoint, read_header, use_bfloat16, write_checkpoint
from .data.clips import ClipDataset
from .files import replacing
from .lineage import stages_before, write_stages
from .perspective import KIND_CHANNELS, SIGNAL_CHANNELS
from .run import Run, read_metrics, require_new, seeded_generator, training_run

SAVE_EVERY = 250
"""Steps between two checkpoints: what a kill may cost."""

DROPPED = {"start": 0.15, "past": 0.12, "layout": 0.1, "action": 0.05, "appearance": 0.1}
"""How often a condition is hidden from the network; at a start all of the past and the action are."""

LARGEST_LEVEL = 1.0
"""Past frames get noise of a standard deviation up to this, small ones more often."""

FULL_NOISE = 0.3
"""Share of the windows in which the network begins at pure noise, where sampling in few steps begins."""

OWN_SHARE, OWN_FRAMES = 0.5, 4
"""Share of the second half's steps that go on from the network's own frames, and how many of them it makes at most."""

STALE_SHARE, STALE_FRAMES = 0.2, 12
"""Share of the steps of a camera with layouts whose past ended some frames before the one to paint, at most so many, with the
action hidden: where a past frame all but shows the next one, a network copies it and never learns to read layouts."""

FOREGROUND = 8.0
"""How much more the error counts where the layout shows a road user or a signal: they are few pixels, and what matters."""

THINGS = (*SIGNAL_CHANNELS, *KIND_CHANNELS)
"""Layers of a layout that say where a thing is."""

HUE = 10.0
"""How much the autoencoder's error in hue counts, that part of a colour's error which is not the same in red, green and blue."""

LATENT_NOISE = 0.02
"""Standard deviation of the noise on latents that the autoencoder learns to bear; rounding to 8 bit moves them by 0.007."""


SIZES = ("past", "latent_channels", "autoencoder_channels", "layers")
"""Sizes of `CameraModel` that `--model` may set."""


@dataclass(frozen=True)
class Args:
    """Train a learned camera on clips: frames with the actions that moved the camera, and layouts where there are some.

    Example: worldloop train camera --data clips/made --validation clips/held --out runs/camera
    """

    data: tuple[str, ...]
    """Folders of clips (`worldloop data film`, `worldloop data import donkeycar`); `FOLDER:GLOB` takes those with such an id."""
    validation: tuple[str, ...]
    """Folders of clips that are never trained on."""
    out: Path
    """Run folder to create, or to go on with (`--resume`)."""
    autoencoder_steps: int = 3000
    """Optimiser steps of the first stage."""
    steps: int = 12_000
    """Optimiser steps of the second stage."""
    batch: int = 16
    """Frames in a step."""
    learning_rate: float = 1e-3
    """Peak of the cosine schedule, of either stage."""
    average: float = 0.998
    """Decay of the exponential moving average of the flow network, which is what is shipped."""
    bfloat16: bool | None = None
    """Matrix products in bfloat16 (True) or float32 (False); None: what this processor is fast in."""
    model: dict[str, int] = field(default_factory=dict)
    """Sizes of `CameraModel`, such as `past 4 autoencoder_channels 24`."""
    evaluate_every: int = 2000
    """Steps between two validations."""
    start_from: Path | None = None
    """Folder of a trained camera to go on from; its autoencoder stays as it is."""
    resume: bool = False
    """Go on with a run that was stopped."""
    seed: int = 0
    """Seed of weights and of the order of data."""


def drop(given: Conditions, unknown: int, generator: torch.Generator) -> Conditions:
    """Hide conditions at random, each of its kind (`DROPPED`); of the past the older frames."""
    count, past = given.past_valid.shape
    chance = lambda name: torch.rand(count, generator=generator) < DROPPED[name]  # noqa: E731
    start = chance("start")
    kept = torch.where(chance("past"), torch.randint(past, (count,), generator=generator), past).masked_fill(start, 0)
    return replace(
        given,
        past_valid=torch.arange(past - 1, -1, -1) < kept[:, None],
        layout_valid=given.layout_valid & ~chance("layout"),
        action_valid=given.action_valid & ~chance("action") & ~start,
        appearance=torch.where(chance("appearance"), unknown, given.appearance),
    )


def things(layout: Tensor, names: Sequence[str]) -> Tensor:
    """Return how much of each latent pixel (N, h, w) road users and signals cover, 0..1, in layouts (N, H, W, L) uint8."""
    shown = [place for place, name in enumerate(names) if name in THINGS]
    if not shown:
        return torch.zeros(len(layout), layout.shape[1] // SHRINK, layout.shape[2] // SHRINK)
    return functional.avg_pool2d(layout[..., shown].amax(-1).float()[:, None] / 255.0, SHRINK)[:, 0]


def reconstruction_loss(image: Tensor, painted: Tensor, weight: Tensor) -> Tensor:
    """Return the mean absolute error of images (N, 3, H, W), with the errors of their edges and of their hues.

    Edges are steps between neighbouring pixels. Hues, over latent pixels, come last else: grass was brown after 2,500 steps.
    `weight` (N, H, W) says how much each pixel counts.
    """
    loss = (weight[:, None] * (painted - image).abs()).mean() / weight.mean()
    mean = functional.avg_pool2d(painted - image, SHRINK)
    loss = loss + HUE * (mean - mean.mean(dim=1, keepdim=True)).abs().mean()
    for dimension in (-1, -2):
        loss = loss + (painted.diff(dim=dimension) - image.diff(dim=dimension)).abs().mean()
    return loss


class Trainer:
    """Everything that a checkpoint has to hold."""

    def __init__(self, args: Args, model: CameraModel):
        self.args, self.model, self.step = args, model, 0
        self.average = model.twin().eval()
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
        self.generator = seeded_generator(args.seed, "camera training")
        torch.manual_seed(args.seed)

    @property
    def first(self) -> int:
        """Steps of the autoencoder's stage."""
        return 0 if self.args.start_from else self.args.autoencoder_steps

    def learn(self, loss: Callable[[], Tensor]) -> float:
        """Take one optimiser step; each stage has its own warm-up and cosine."""
        stage, length = (self.step, self.first) if self.step < self.first else (self.step - self.first, self.args.steps)
        share = stage / length
        rate = self.args.learning_rate * min((stage + 1) / 100, 0.5 * (1 + math.cos(math.pi * share)) + 0.01)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bool(self.args.bfloat16)):
            value = loss()
        if not value.isfinite():
            raise ValueError(f"the loss is {value.item()} at step {self.step}: lower --learning-rate")
        self.optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        decay = min(self.args.average, (stage + 1) / (stage + 10))
        with torch.no_grad():
            for mean, now in zip(self.average.parameters(), self.model.parameters(), strict=True):
                mean.lerp_(now, 1 - decay)
        self.step += 1
        return value.item()

    def piece(self, size: tuple[int, int]) -> tuple[slice, slice, slice]:
        """Return where a random piece of half the height and width lies in frames (N, H, W, ...), in whole latent pixels."""
        rows, columns = (int(torch.randint(length // 2 // SHRINK + 1, (), generator=self.generator)) * SHRINK for length in size)
        return slice(None), slice(rows, rows + size[0] // 2), slice(columns, columns + size[1] // 2)

    def autoencoder_loss(self, datasets: Sequence[ClipDataset]) -> Tensor:
        """Return how badly random pieces of frames come back, one of half the height and width of each.

        Convolutions look no farther than that, and four times as many frames are seen in the same time.
        """
        clips = some_clips(datasets, self.args.batch, self.generator)
        piece = self.piece(datasets[0].size)
        image = torch.cat([clip.frames for clip in clips])[piece].permute(0, 3, 1, 2).float() / 127.5 - 1.0
        weight = torch.ones(len(image), *image.shape[2:])
        if datasets[0].layout_names:
            layout = torch.cat([clip.layout for clip in clips if clip.layout is not None])[piece]
            weight += (
                FOREGROUND * functional.interpolate(things(layout, datasets[0].layout_names)[:, None], scale_factor=SHRINK)[:, 0]
            )
        latent = self.model.autoencoder.encode(image, return_dict=False)[0].float()
        noisy = latent + LATENT_NOISE * torch.randn(latent.shape, generator=self.generator)
        painted = self.model.autoencoder.decode(noisy, return_dict=False)[0].float()
        return reconstruction_loss(image, painted, weight) + 1e-3 * latent.square().mean()

    def flow_loss(self, clips: Clips) -> Tensor:
        """Return the error of the flow for random windows, some of them begun by the network itself."""
        config, draw = cast(Any, self.model.config), self.generator
        own, gap = 0, 0
        chance = float(torch.rand((), generator=draw))
        if config.layout_channels and chance < STALE_SHARE:
            gap = int(torch.randint(1, STALE_FRAMES + 1, (), generator=draw))
        elif self.step - self.first > self.args.steps // 2 and chance > 1.0 - OWN_SHARE:
            own = int(torch.randint(1, OWN_FRAMES + 1, (), generator=draw))
        window = clips.draw(self.args.batch, own + gap + 1, draw)
        latent = from_bytes(window.code, self.model)
        past, count = latent[:, : config.past], len(latent)
        normal = lambda *shape: torch.randn(shape, generator=draw)  # noqa: E731
        for place in range(own):
            with torch.no_grad():
                level = torch.full((count,), PAST_LEVEL)
                given = conditions(self.average, window, place, past, level, normal(*past.shape))
                painted = self.average.paint(given, normal(*past[:, 0].shape))
            past = torch.cat((past[:, 1:], painted[:, None]), dim=1)
        place = own + gap
        level = LARGEST_LEVEL * torch.rand(count, generator=draw).square()
        given = drop(conditions(self.model, window, place, past, level, normal(*past.shape)), len(config.appearances), draw)
        if gap:
            given = replace(given, action_valid=torch.zeros_like(given.action_valid))
        sigma = torch.where(torch.rand(count, generator=draw) < FULL_NOISE, 1.0, normal(count).sigmoid())
        target, noise = latent[:, config.past + place], normal(*past[:, 0].shape)
        share = sigma[:, None, None, None]
        flow = self.model.train()((1 - share) * target + share * noise, sigma, given)
        error = (flow.float() - (noise - target)).square().mean(dim=1)
        weight = 1.0 + FOREGROUND * things(window.layout[:, place], clips.layout_names)
        return (weight * error).sum() / weight.sum()

    def save(self, folder: Path) -> None:
        """Write the checkpoint, whole or not at all, then the averaged model, whose 16 bit are enough for what it is used for."""
        modules = {"model": self.model, "average": self.average}
        config = {name: value for name, value in dict(self.model.config).items() if not name.startswith("_")}
        header = {"step": str(self.step), "config": json.dumps(config)}
        write_checkpoint(folder, modules, self.optimizer, self.generator, header)
        partial, place = folder / "model.partial", folder / "model"
        self.average.twin().half().save_pretrained(partial)
        place.mkdir(exist_ok=True)
        for file in partial.iterdir():
            os.replace(file, place / file.name)
        partial.rmdir()

    def load(self, folder: Path) -> None:
        """Go on from the folder's checkpoint."""
        modules = {"model": self.model, "average": self.average}
        self.step = int(read_checkpoint(folder, modules, self.optimizer, self.generator)["step"])


SHOWN, SHOWN_FRAMES = 4, (1, 5, 10, 20, 40)
"""Clips and frames of `frames.png`."""


@torch.no_grad()
def validate(trainer: Trainer, clips: Clips, folder: Path) -> dict[str, float]:
    """Measure the flow's error, and the error in grey levels of frames painted one after the other; draw some of them."""
    model, config = trainer.average, cast(Any, trainer.model.config)
    draw = seeded_generator(trainer.args.seed, "camera validation")
    following = min(max(SHOWN_FRAMES), int(clips.lengths.max()) - config.past)
    losses = []
    for _ in range(8):
        window = clips.draw(trainer.args.batch, 1, draw)
        latent = from_bytes(window.code, model)
        target, noise = latent[:, -1], torch.randn(latent[:, -1].shape, generator=draw)
        sigma = torch.randn(len(latent), generator=draw).sigmoid()
        level = torch.full((len(latent),), PAST_LEVEL)
        past = latent[:, : config.past]
        given = conditions(model, window, 0, past, level, torch.randn(past.shape, generator=draw))
        share = sigma[:, None, None, None]
        flow = model((1 - share) * target + share * noise, sigma, given)
        losses.append((flow - (noise - target)).square().mean().item())
    window = clips.draw(SHOWN, following, draw)
    logged = torch.stack([model.decode(from_bytes(code[config.past :], model)) for code in window.code])
    painted = roll(model, window, torch.arange(SHOWN))
    error = (painted.float() - logged.float()).abs().mean(dim=(0, 2, 3, 4)).tolist()
    frames = [frame for frame in SHOWN_FRAMES if frame <= following]
    plot_frames(logged[:, [f - 1 for f in frames]], painted[:, [f - 1 for f in frames]], frames, folder / "frames.png")
    return {"validation_loss": sum(losses) / len(losses)} | {f"error_after_{frame}": error[frame - 1] for frame in frames}


def plot_frames(logged: Tensor, painted: Tensor, numbers: Sequence[int], path: Path) -> None:
    """Draw clips (N, F, H, W, 3), each as logged (through the autoencoder) and as painted below, into a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = torch.stack((logged, painted), dim=1).flatten(0, 1)
    size = (2.2 * rows.shape[1], 2.3 * len(rows) * rows.shape[2] / rows.shape[3] + 0.4)
    figure, axes = pyplot.subplots(len(rows), rows.shape[1], figsize=size, layout="constrained", squeeze=False)
    for row, (line, strip) in enumerate(zip(axes, rows, strict=True)):
        for axis, frame, number in zip(line, strip, numbers, strict=True):
            axis.imshow(frame.numpy())
            axis.set(xticks=[], yticks=[], title=f"frame {number}" if row == 0 else "")
        line[0].set_ylabel("painted" if row % 2 else "logged")
    with replacing(path) as partial:
        figure.savefig(partial, dpi=110, format="png")
    pyplot.close(figure)


def plot_curves(rows: Sequence[dict[str, float]], path: Path) -> None:
    """Draw the losses of both stages over the steps into a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    told = (
        ("autoencoder_loss", "autoencoder", "#999999"),
        ("flow_loss", "training", "#999999"),
        ("validation_loss", "validation", "#0072B2"),
    )
    for axis, (name, label, colour) in zip((axes[0], axes[1], axes[1]), told, strict=True):
        points = [(row["step"], row[name]) for row in rows if name in row]
        if points:
            axis.plot(*zip(*points, strict=True), label=label, color=colour)
            axis.legend()
    axes[0].set(xlabel="optimiser step", ylabel="mean absolute error of pixels and edges", title="Autoencoder", yscale="log")
    axes[1].set(xlabel="optimiser step", ylabel="squared error of the flow", title="Flow network", yscale="log")
    for axis in axes:
        axis.grid(alpha=0.3)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=120, format="png")
    pyplot.close(figure)


def new_model(args: Args, datasets: Sequence[ClipDataset]) -> CameraModel:
    """Return a camera with random weights, of the sizes that the clips have."""
    if unknown := sorted(set(args.model) - set(SIZES)):
        raise ValueError(f"--model {' '.join(unknown)}: no such size; there are {', '.join(SIZES)}")
    first = datasets[0]
    actions = torch.cat([dataset.actions() for dataset in datasets])
    appearances = sorted({name for dataset in datasets for name in dataset.appearances} - {""})
    torch.manual_seed(args.seed)
    return CameraModel(
        height=first.size[0],
        width=first.size[1],
        rate=first.rate,
        actions=first.action_names,
        action_mean=tuple(actions.mean(dim=0).tolist()),
        action_scale=tuple(actions.std(dim=0).clamp(min=1e-3).tolist()),
        action_low=tuple(actions.amin(dim=0).tolist()),
        action_high=tuple(actions.amax(dim=0).tolist()),
        layout_channels=len(first.layout_names),
        appearances=tuple(appearances),
        latent_scale=1.0,  # said here, as diffusers gives back what was not said its default at every copy
        **cast(Any, args.model),
    )


def main(args: Args) -> Path:
    """Train; return the folder of the finished model.

    Raises:
        ValueError: data or arguments do not fit.
        FileExistsError: the run folder exists and `resume` is not set.
        FileNotFoundError: `resume` is set and there is no run.
    """
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    args = replace(args, bfloat16=use_bfloat16(args.bfloat16))
    data, held_out = open_data(args)
    before = stages_before(args.start_from)
    if args.resume and (args.out / CHECKPOINT).is_file():
        config = json.loads(read_header(args.out)["config"])
        trainer = Trainer(args, cast(CameraModel, CameraModel.from_config(config)))
        trainer.load(args.out)
        if trainer.step > trainer.first + args.steps:
            raise ValueError(f"{args.out}: is at step {trainer.step} already, found --steps {args.steps}: take more")
    else:
        trainer = Trainer(args, load_camera(args.start_from) if args.start_from else new_model(args, data))
    past = cast(Any, trainer.model.config).past
    require_fit(trainer.model, data, past + (STALE_FRAMES if data[0].layout_names else OWN_FRAMES) + 1)
    require_fit(trainer.model, held_out, past + 1)
    columns = (
        *Progress.get_default_columns()[:2],
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[told]}"),
    )
    with (
        Progress(*columns) as progress,
        training_run(args.out, "train camera", asdict(args), args.seed, trainer.step, progress.console.print) as run,
    ):
        results = _stages(trainer, data, held_out, run, progress)
    run.finish(results)
    done = {name: results[name] for name in ("parameters", "training_frames", "validation_loss")}
    cores = run.record["machine"]["cores"]
    write_stages(args.out / "model", before, asdict(args), seconds=run.record["seconds"], cores=cores, **done)
    return args.out / "model"


def open_data(args: Args) -> tuple[list[ClipDataset], list[ClipDataset]]:
    """Return the clips to train on and those held out.

    Raises:
        ValueError: arguments or data do not fit. FileExistsError: the run folder exists.
    """
    if min(args.steps, args.evaluate_every, args.batch) < 1 or args.autoencoder_steps < 0:
        raise ValueError("wanted --steps, --evaluate-every and --batch of at least 1, --autoencoder-steps of at least 0")
    if args.start_from and args.model:
        raise ValueError("found both --start-from and --model, wanted one of them: the weights to begin with have their sizes")
    data, held_out = ([ClipDataset.named(text) for text in texts] for texts in (args.data, args.validation))
    require_apart(data, held_out)
    kinds = {(d.size, d.rate, d.action_names, d.layout_names) for d in (*data, *held_out)}
    if len(kinds) > 1:
        raise ValueError(f"the clips differ in height, width, rate, actions or layouts ({kinds}): train one camera on one kind")
    require_new(args.out, args.resume)
    return data, held_out


def _stages(
    trainer: Trainer, data: Sequence[ClipDataset], held_out: Sequence[ClipDataset], run: Run, progress: Any
) -> dict[str, float]:
    """Run what is left of both stages; return the last validation's numbers."""
    args = trainer.args
    if trainer.step < trainer.first:
        bar = progress.add_task("autoencoder", total=trainer.first, completed=trainer.step, told="")
        _loop(trainer, lambda: trainer.autoencoder_loss(data), trainer.first, "autoencoder_loss", run, progress, bar)
    if trainer.step == trainer.first and not args.start_from:
        latents = trainer.average.encode(torch.cat([c.frames for c in some_clips(data, 256, trainer.generator)]))
        for model in (trainer.model, trainer.average):
            model.register_to_config(latent_scale=float(latents.std()))
    for parameter in trainer.model.autoencoder.parameters():
        parameter.requires_grad_(False)
    trainer.model.autoencoder.load_state_dict(trainer.average.autoencoder.state_dict())
    encode = progress.add_task("frames to latents", total=2.0, told="")
    clips, kept = (
        Clips(sets, trainer.average, lambda share, done=done: progress.update(encode, completed=done + share))
        for done, sets in enumerate((data, held_out))
    )
    last = trainer.first + args.steps
    bar = progress.add_task("flow network", total=args.steps, completed=trainer.step - trainer.first, told="")
    check = lambda: validate(trainer, kept, run.folder)  # noqa: E731
    _loop(trainer, lambda: trainer.flow_loss(clips), last, "flow_loss", run, progress, bar, check)
    results = next((row for row in reversed(read_metrics(run.folder)) if "validation_loss" in row), {})
    parameters = sum(p.numel() for p in trainer.model.parameters())
    return {**results, "parameters": parameters, "training_frames": int(clips.lengths.sum())}


def _loop(
    trainer: Trainer,
    loss: Callable[[], Tensor],
    last: int,
    name: str,
    run: Run,
    progress: Any,
    bar: Any,
    check: Callable[[], dict[str, float]] | None = None,
) -> None:
    """Take optimiser steps until `last`; log, check and save as often as asked for."""
    recent: list[float] = []
    clock = time.monotonic()
    while trainer.step < last:
        recent.append(trainer.learn(loss))
        progress.update(bar, advance=1, told=f"loss {recent[-1]:.4f}")
        over = trainer.step == last
        if trainer.step % 50 == 0 or over:
            rate = len(recent) / (time.monotonic() - clock)
            run.log(trainer.step, **{name: sum(recent) / len(recent), "steps_per_second": rate})
            recent, clock = [], time.monotonic()
        if check and (over or (trainer.step - trainer.first) % trainer.args.evaluate_every == 0):
            results = check()
            run.log(trainer.step, **results)
            told = ", ".join(f"{key.replace('_', ' ')} {value:.3g}" for key, value in results.items())
            progress.console.print(f"step {trainer.step}: {told}", markup=False)
        if over or trainer.step % SAVE_EVERY == 0:
            trainer.save(run.folder)
            run.checkpoint()
            plot_curves(read_metrics(run.folder), run.folder / "learning_curves.png")
            clock = time.monotonic()
