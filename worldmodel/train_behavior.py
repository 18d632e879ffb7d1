"""Train the behaviour model: `worldloop train behavior --data SHARDS ... --out FOLDER`.

One file, one loop: windows of scenes become motion tokens (disturbed, so that the model learns to find back), the model predicts
each next token, AdamW lowers the cross entropy. Fine-tuning (`--start-from`, `--closed-loop`) lets the model itself drive through
the windows and teaches it the way back from where it ends up (CAT-K, Zhang et al., arXiv 2412.05334). Matrix products are in
bfloat16 where the processor has AVX-512 (there about 1.3 times the steps per second: `tests/benchmarks/train_speed.py`); the
weights that are validated and shipped are an exponential moving average in float32.
The run folder holds `metrics.jsonl`, `learning_curves.png`, the checkpoint to resume from, and `model/` for `from_pretrained`.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from .behavior import Agents, BehaviorConfig, BehaviorModel
from .checkpoint import CHECKPOINT, read_checkpoint, use_bfloat16, write_checkpoint
from .data.shards import SceneDataset
from .files import replacing
from .held_out import require_held_out
from .lineage import Stage, read_stages, stages_before, write_stages
from .open_loop import min_average_displacement, simulate
from .run import Run, read_metrics, require_new, seeded_generator, training_run
from .scene import AgentKind, PolylineKind, Scene, stack
from .tokens import MOVING_KINDS, Choose, MotionVocabulary, Tracks, disturbed
from .vocabulary import build_vocabulary, collect_motions
from .world import LearnedWorld

SAVE_EVERY = 100
"""Steps between two checkpoints: what a kill may cost."""


@dataclass(frozen=True)
class Args:
    """Train the behaviour model, which predicts what the other road users do next.

    Example: worldloop train behavior --data generated=2 pandaset ngsim --validation held_out --out runs/behavior
    """

    data: tuple[str, ...]
    """Folders of training scenes (`worldloop data import`, `worldloop data generate`); `FOLDER=2` draws from it twice as often.
    Add `:GLOB` to take only the scenes with such an id: `ngsim:*US101*=0.5`."""
    validation: tuple[str, ...]
    """Folders of scenes that are never trained on, `:GLOB` as above."""
    out: Path
    """Run folder to create (or to resume)."""
    share: float = 1.0
    """Train on this share of each folder's scenes alone, drawn by the seed; the vocabulary is built from all of them, so that the
    losses of several shares can be compared (`worldloop scaling`)."""
    steps: int = 4000
    """Optimiser steps."""
    batch: int = 16
    """Scenes in a step."""
    agents: int = 32
    """Agents taken from a scene, the nearest to the ego."""
    polylines: int = 160
    """Map polylines taken from a scene, the nearest to the ego."""
    decisions: int = 18
    """Decisions (0.5 s each) in a training window."""
    learning_rate: float = 1e-3
    """Peak of the cosine schedule, reached after a twentieth of the steps."""
    weight_decay: float = 0.05
    """Decoupled weight decay of AdamW."""
    dropout: float = 0.1
    """Share of what each part of a layer adds that is dropped: a few hundred real scenes are soon known by heart."""
    noise: int = 4
    """How far the past is disturbed: each motion is written as one, at random, of so many tokens that are nearest to it; 1 writes
    it as it was."""
    start_from: Path | None = None
    """Fine-tune: begin with the weights, sizes and vocabulary of this model folder."""
    closed_loop: int = 0
    """Let the model itself drive through the windows, and learn the way back from where it ends up: at each decision it follows,
    of so many of its likeliest motions (16, say), the one nearest to the log. 0: off. For fine-tuning, with --start-from."""
    average: float = 0.998
    """Decay of the moving average of the weights."""
    vehicle_tokens: int = 512
    """The vocabulary holds at most so many motions of vehicles."""
    other_tokens: int = 256
    """And so many of pedestrians, and of cyclists."""
    bfloat16: bool | None = None
    """Matrix products in bfloat16 (True) or float32 (False); None: what this processor is fast in."""
    model: dict[str, int] = field(default_factory=dict)
    """Sizes of the model, as pairs: `--model width 96 layers 2`. There are decision_ticks 5, width 128, heads 4, layers 3, hidden
    256, pair_width 32, window 8, map_neighbours 32, signal_neighbours 4, agent_neighbours 16, motion_inputs 6 (see
    BehaviorConfig)."""
    evaluate_every: int = 500
    """Steps between two validations."""
    seed: int = 0
    """Seed of weights, order of data, and noise."""
    resume: bool = False
    """Go on with a run that was killed; all other arguments must be those it was started with, but for --steps: another number
    ends it earlier or later, and the learning rate falls accordingly."""


@dataclass(frozen=True)
class Source:
    """Scenes of one folder and how often they are drawn."""

    name: str
    dataset: SceneDataset
    weight: float

    @classmethod
    def parse(cls, text: str) -> Source:
        """Read `FOLDER[:GLOB][=WEIGHT]`."""
        place, _, weight = text.partition("=")
        try:
            share = float(weight or 1)
        except ValueError:
            raise ValueError(f"--data {text}: the weight {weight!r} is not a number") from None
        if not (math.isfinite(share) and share > 0):
            raise ValueError(f"--data {text}: found weight {share:g}, wanted a number above 0")
        dataset = SceneDataset.named(place)
        return cls(dataset.path.name, dataset, share)


def crop(scene: Scene, start: int, steps: int, agents: int, polylines: int, middle: int | None = None) -> Scene:
    """Return `steps` steps of one scene from `start` on with what is nearest to agent `middle` (None: the ego), and the ego.

    Lane links are dropped: the model does not read them.
    """
    end = min(start + steps, scene.steps)
    place = scene.position[0, :, start:end, :2]
    valid = scene.valid[0, :, start:end]
    ego = int(scene.ego[0])
    middle = ego if middle is None else middle
    anchor = place[middle][valid[middle]].mean(0) if valid[middle].any() else place[valid].mean(0)
    distance = torch.where(valid, (place - anchor).norm(dim=-1), torch.inf).amin(-1)
    distance[ego] = -1.0
    rows = distance.argsort()[:agents]
    rows = rows[distance[rows].isfinite()]
    points, there = scene.polyline[0, ..., :2], scene.polyline_valid[0]
    far = torch.where(there, (points - anchor).norm(dim=-1), torch.inf).amin(-1) if len(points) else torch.zeros(0)
    far = far + 100.0 * (scene.polyline_kind[0] == PolylineKind.LANE_MARKING)
    lines = far.argsort()[:polylines]
    track = {name: getattr(scene, name)[:, rows, start:end] for name in ("position", "heading", "velocity", "valid")}
    roads = ("polyline", "polyline_valid", "polyline_kind", "lane_width", "speed_limit", "speed_limit_valid")
    changes = (
        track
        | {name: getattr(scene, name)[:, lines] for name in roads}
        | {name: getattr(scene, name)[:, rows] for name in ("size", "kind", "to_predict")}
    )
    changes |= {name: getattr(scene, name)[..., start:end] for name in ("signal_state", "signal_valid")}
    links = ("lane_link", "lane_link_kind", "lane_link_valid")
    changes |= {name: getattr(scene, name)[:, :0] for name in links} | {"signal_lane": torch.zeros_like(scene.signal_lane)}
    return replace(scene, ego=torch.zeros_like(scene.ego), **changes)


def agents_of(scene: Scene, tracks: Tracks) -> Agents:
    """Return coded tracks as the model reads them."""
    before = torch.cat((tracks.pose[:, :, :1], tracks.pose[:, :, :-1]), dim=2)
    known = tracks.valid & functional.pad(tracks.valid[:, :, :-1], (1, 0))
    return Agents(tracks.pose, before, known, tracks.velocity, tracks.valid, scene.size, scene.kind)


def signals_of(scene: Scene, at: Tensor) -> tuple[Tensor, ...]:
    """Return the signals at the steps `at` as the model reads them."""
    return scene.signal_position[..., :2], scene.signal_heading, scene.signal_state[..., at], scene.signal_valid[..., at]


def self_driven(model: BehaviorModel, scene: Scene, phase: int, candidates: int) -> Choose:
    """Follow, of the model's `candidates` likeliest tokens, the one that ends nearest to the log; learn the nearest of all.

    So the tracks leave the log where the model would, but stay near enough for the log to say how to go on (CAT-K, Zhang et al.,
    arXiv 2412.05334). Good for one pass over `scene` from its first decision on.
    """
    at = torch.arange(phase, scene.steps, model.config.decision_ticks)
    valid = scene.valid[:, :, at]
    with torch.no_grad():
        memory, cache, last = model.encode_map(scene), model.empty_cache(scene), None

    @torch.no_grad()
    def choose(place: int, pose: Tensor, velocity: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal cache, last
        now = slice(place, place + 1)
        known = valid[:, :, now] & valid[:, :, max(place - 1, 0) : max(place, 1)] & (place > 0)
        before = (pose if last is None else last)[:, :, None]
        agents = Agents(pose[:, :, None], before, known, velocity[:, :, None], valid[:, :, now], scene.size, scene.kind)
        features, cache = model.advance(agents, signals_of(scene, at[now]), memory, cache)
        likeliest = model.head(features[:, :, 0], scene.kind).topk(candidates, dim=-1).indices
        followed = likeliest.gather(-1, distance.gather(-1, likeliest).argmin(-1, keepdim=True))[..., 0]
        last = pose
        return followed, distance.argmin(-1)

    return choose


def token_losses(model: BehaviorModel, scene: Scene, tracks: Tracks, phase: int) -> tuple[Tensor, Tensor]:
    """Return the cross entropy (n,) of every coded token and the kind (n,) of its agent."""
    at = torch.arange(phase, scene.steps, model.config.decision_ticks)
    features, _ = model.advance(
        agents_of(scene, tracks), signals_of(scene, at), model.encode_map(scene), model.empty_cache(scene)
    )
    kind = scene.kind[..., None].expand(tracks.coded.shape)[tracks.coded]
    scores = model.head(features[:, :, :-1][tracks.coded], kind)
    return functional.cross_entropy(scores, tracks.token[tracks.coded], reduction="none"), kind


def new_model(args: Args, vocabulary: MotionVocabulary) -> BehaviorModel:
    """Return a model with random weights."""
    torch.manual_seed(args.seed)
    known = {name for name in BehaviorConfig.__dataclass_fields__ if not name.startswith("vocabulary") and name != "dropout"}
    if unknown := sorted(set(args.model) - known):
        raise ValueError(f"--model {' '.join(unknown)}: no such size; there are {', '.join(sorted(known))}")
    return BehaviorModel(BehaviorConfig(len(vocabulary), vocabulary.checksum(), **args.model), vocabulary)


class Trainer:
    """Everything that a checkpoint has to hold: the weights, their average, the optimiser, the random generator, the step."""

    def __init__(self, args: Args, start: BehaviorModel, before: Sequence[Stage]):
        self.args, self.step, self.before = args, 0, before
        config = replace(start.config, dropout=args.dropout)
        self.model, self.average = (BehaviorModel(config, start.vocabulary) for _ in range(2))
        self.model.load_state_dict(start.state_dict())
        self.average.eval().load_state_dict(start.state_dict())
        torch.manual_seed(args.seed)
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        rest = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": args.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=args.learning_rate, betas=(0.9, 0.98))
        self.generator = seeded_generator(args.seed, "behavior training")

    def learn(self, scene: Scene) -> float:
        """Take one optimiser step on a batch of scenes; return the mean cross entropy."""
        warmup = max(self.args.steps // 20, 1)
        progress = max(self.step - warmup, 0) / max(self.args.steps - warmup, 1)
        rate = self.args.learning_rate * min((self.step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * progress)) + 0.01)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        phase = int(torch.randint(self.model.config.decision_ticks, (), generator=self.generator))
        choose = disturbed(self.args.noise, self.generator)
        if self.args.closed_loop:
            choose = self_driven(self.average, scene, phase, self.args.closed_loop)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bool(self.args.bfloat16)):
            tracks = self.model.vocabulary.encode(scene, phase, choose)
            loss = token_losses(self.model.train(), scene, tracks, phase)[0].mean()
        if not loss.isfinite():
            raise ValueError(f"the loss is {loss.item()} at step {self.step}: lower --learning-rate")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        decay = min(self.args.average, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            for mean, now in zip(self.average.parameters(), self.model.parameters(), strict=True):
                mean.lerp_(now, 1 - decay)
        self.step += 1
        return loss.item()

    def save(self, folder: Path) -> None:
        """Write `checkpoint.safetensors`, whole or not at all, and the averaged model."""
        self.average.save_pretrained(folder / "model")
        write_stages(folder / "model", self.before, asdict(self.args), **what_was_done(folder, self.step))
        write_checkpoint(folder, self._modules(), self.optimizer, self.generator, {"step": str(self.step)})

    def load(self, folder: Path) -> None:
        """Go on from the folder's checkpoint.

        Raises:
            ValueError: there is none, or it is broken or of other sizes.
        """
        self.step = int(read_checkpoint(folder, self._modules(), self.optimizer, self.generator)["step"])

    def _modules(self) -> dict[str, BehaviorModel]:
        return {"model": self.model, "average": self.average}


def what_was_done(folder: Path, step: int) -> dict[str, float | None]:
    """Return what `training.json` says of a training until now: steps, seconds without validations, cores, validation loss."""
    metrics = read_metrics(folder)
    speeds = [row for row in metrics if "steps_per_second" in row]
    before = [0, *(row["step"] for row in speeds)]
    return {
        "optimiser_steps": step,
        "seconds": round(
            sum((row["step"] - first) / row["steps_per_second"] for first, row in zip(before, speeds, strict=False)), 1
        ),
        "cores": os.cpu_count(),
        "validation_loss": next((row["validation_loss"] for row in reversed(metrics) if "validation_loss" in row), None),
    }


def mirror(scene: Scene) -> Scene:
    """Return scenes as seen in a mirror along the x axis; road edges are turned round, to keep the road on their left.

    Lane links must be gone (`crop` drops them): left and right are not exchanged in them. Nor does the recipe fit any more.
    """
    if scene.lane_link_valid.any():
        raise ValueError("mirror: found lane links, wanted a scene from which `crop` has dropped them")
    points = lambda tensor: tensor * tensor.new_tensor([1.0, -1.0, 1.0])  # noqa: E731
    vectors = {name: points(getattr(scene, name)) for name in ("position", "signal_position", "route", "polyline")}
    edge = (scene.polyline_kind == PolylineKind.ROAD_EDGE)[..., None]
    last = scene.polyline_valid.sum(-1, keepdim=True) - 1
    order = torch.arange(scene.polyline.shape[2]).expand(scene.polyline_valid.shape)
    order = torch.where(edge & scene.polyline_valid, last - order, order)
    vectors["polyline"] = vectors["polyline"].gather(2, order[..., None].expand(scene.polyline.shape))
    turned = {name: -getattr(scene, name) for name in ("heading", "signal_heading")}
    velocity = scene.velocity * scene.velocity.new_tensor([1.0, -1.0])
    return replace(scene, recipe=("",) * len(scene), velocity=velocity, **vectors, **turned)


def draw_batch(sources: Sequence[Source], args: Args, ticks: int, generator: torch.Generator) -> Scene:
    """Return a batch of random windows: the folder by its weight, a scene of it, where the window starts, who is in its middle.

    Half of them are mirrored. Both, like dropout, are against learning the few real scenes by heart.
    """
    steps = args.decisions * ticks + ticks
    weights = torch.tensor([source.weight for source in sources])
    windows = []
    for place in torch.multinomial(weights, args.batch, replacement=True, generator=generator).tolist():
        source = sources[place]
        row = int(torch.randint(len(source.dataset), (), generator=generator))
        scene = source.dataset.load([row], validate=False)
        start = int(torch.randint(max(scene.steps - steps, 0) + 1, (), generator=generator))
        seen = scene.valid[0, :, start : start + steps].any(-1).nonzero()[:, 0]
        middle = int(seen[torch.randint(len(seen), (), generator=generator)]) if len(seen) else None
        window = crop(scene, start, steps, args.agents, args.polylines, middle)
        windows.append(mirror(window) if torch.rand((), generator=generator) < 0.5 else window)
    return stack(windows)


def chunks(source: Source, args: Args, size: int = 8) -> Iterator[Scene]:
    """Yield the scenes of a folder whole, cropped in space, a few at a time."""
    for rows in torch.arange(len(source.dataset)).split(size):
        scenes = [source.dataset.load([row], validate=False) for row in rows.tolist()]
        yield stack([crop(scene, 0, scene.steps, args.agents, args.polylines) for scene in scenes])


@torch.no_grad()
def validate(model: BehaviorModel, sources: Sequence[Source], args: Args) -> dict[str, float]:
    """Return cross entropy by kind, and minADE of 6 futures over 3 s with the ego on its log, on the held-out scenes."""
    losses: dict[AgentKind, list[Tensor]] = {kind: [] for kind in MOVING_KINDS}
    errors = []
    generator = seeded_generator(args.seed, "behavior validation")
    for source in sources:
        for scenes in chunks(source, args):
            loss, kind = token_losses(model, scenes, model.vocabulary.encode(scenes), 0)
            for each in MOVING_KINDS:
                losses[each].append(loss[kind == each])
            futures = simulate(LearnedWorld(model), scenes, 6, 30, generator)
            error, counted = min_average_displacement(futures, scenes, 30)
            errors.append(error[counted])
    found = {f"validation_loss_{kind.name.lower()}": torch.cat(parts) for kind, parts in losses.items()}
    result = {name: values.mean().item() for name, values in found.items() if len(values)}
    return result | {
        "validation_loss": torch.cat(list(found.values())).mean().item(),
        "min_ade_3s": torch.cat(errors).mean().item(),
    }


def plot_curves(rows: Sequence[dict[str, float]], path: Path) -> None:
    """Draw training and validation loss and minADE over the steps into a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for axis, name, label, colour in (
        (left, "loss", "training (disturbed past)", "#999999"),
        (left, "validation_loss", "validation", "#0072B2"),
        (right, "min_ade_3s", "validation", "#D55E00"),
    ):
        points = [(row["step"], row[name]) for row in rows if name in row]
        axis.plot(
            *zip(*points, strict=True) if points else ([], []), label=label, color=colour, marker="o" if len(points) < 40 else ""
        )
    left.set(xlabel="optimiser step", ylabel="cross entropy of the next token (nats)", title="Loss")
    right.set(xlabel="optimiser step", ylabel="minADE, 6 futures, 3 s (m)", title="Open-loop error")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend()
    with replacing(path) as partial:
        figure.savefig(partial, dpi=120, format="png")
    pyplot.close(figure)


def find_vocabulary(sources: Sequence[Source], args: Args) -> MotionVocabulary:
    """Build the motion vocabulary from at most 300 scenes of each training folder."""
    generator = seeded_generator(args.seed, "vocabulary")

    def scenes() -> Iterator[Scene]:
        for source in sources:
            order = torch.randperm(len(source.dataset), generator=generator)[:300]
            yield from (source.dataset.load([row], validate=False) for row in order.tolist())

    ticks = args.model.get("decision_ticks", BehaviorConfig.decision_ticks)
    sizes = {kind: args.vehicle_tokens if kind == AgentKind.VEHICLE else args.other_tokens for kind in MOVING_KINDS}
    return build_vocabulary(collect_motions(scenes(), ticks), sizes, generator)


def require_ranges(args: Args) -> None:
    """Refuse numbers that no training can have. Raises ValueError: the message names the argument."""
    for name in ("steps", "evaluate_every", "batch", "agents", "polylines", "decisions", "vehicle_tokens", "other_tokens"):
        if (found := getattr(args, name)) < 1:
            raise ValueError(f"--{name.replace('_', '-')}: found {found}, wanted at least 1")
    if not args.learning_rate > 0:
        raise ValueError(f"--learning-rate: found {args.learning_rate}, wanted more than 0")
    for name in ("dropout", "average"):
        if not 0 <= (found := getattr(args, name)) < 1:
            raise ValueError(f"--{name}: found {found}, wanted 0 or more and less than 1")
    if args.noise < 1 or args.closed_loop < 0:
        raise ValueError(f"found --noise {args.noise}, --closed-loop {args.closed_loop}: wanted at least 1 and at least 0")
    if args.closed_loop and not args.start_from and not args.resume:
        raise ValueError("--closed-loop: wanted --start-from with it: a network that knows nothing cannot drive itself")


def main(args: Args) -> Path:
    """Train; return the folder of the finished model.

    Raises:
        ValueError: data or arguments do not fit.
        FileExistsError: the run folder exists and `resume` is not set.
        FileNotFoundError: `resume` is set and there is no run.
    """
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    args = replace(args, bfloat16=use_bfloat16(args.bfloat16))
    sources, held_out = ([Source.parse(text) for text in texts] for texts in (args.data, args.validation))
    require_ranges(args)
    if args.start_from and args.model:
        raise ValueError("found both --start-from and --model, wanted one of them: the weights to begin with have their sizes")
    require_new(args.out, args.resume)
    if args.resume and (args.out / CHECKPOINT).is_file():
        trainer = Trainer(args, BehaviorModel.from_pretrained(args.out / "model"), read_stages(args.out / "model")[:-1])
        trainer.load(args.out)
        if trainer.step > args.steps:
            raise ValueError(f"{args.out}: is at step {trainer.step} already, found --steps {args.steps}: take more")
    else:
        before = stages_before(args.start_from)
        require_held_out([source.dataset for source in sources], [source.dataset for source in held_out], before)
        start = (
            BehaviorModel.from_pretrained(args.start_from) if args.start_from else new_model(args, find_vocabulary(sources, args))
        )
        trainer = Trainer(args, start, before)
    sources = [replace(source, dataset=source.dataset.share(args.share, args.seed)) for source in sources]
    columns = (
        *Progress.get_default_columns()[:2],
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
    )
    with (
        Progress(*columns) as progress,
        training_run(args.out, "train behavior", asdict(args), args.seed, trainer.step, progress.console.print) as run,
    ):
        bar = progress.add_task("training", total=args.steps, completed=trainer.step, loss=math.nan)
        show = lambda loss: progress.update(bar, advance=1, loss=loss)  # noqa: E731
        results = _loop(trainer, sources, held_out, run, show, progress.console.print)
    run.finish(results)
    return args.out / "model"


def _loop(
    trainer: Trainer,
    sources: Sequence[Source],
    held_out: Sequence[Source],
    run: Run,
    show: Callable[[float], None],
    say: Callable[[str], None],
) -> dict[str, float]:
    """Run the remaining steps, tell `show` every loss and `say` every validation; return the last one's numbers."""
    args, recent, clock = trainer.args, [], time.monotonic()
    results: dict[str, float] = next((row for row in reversed(read_metrics(run.folder)) if "validation_loss" in row), {})
    while trainer.step < args.steps:
        scene = draw_batch(sources, args, trainer.model.config.decision_ticks, trainer.generator)
        recent.append(trainer.learn(scene))
        show(recent[-1])
        if trainer.step % 20 == 0 or trainer.step == args.steps:
            rate = len(recent) / (time.monotonic() - clock)
            run.log(trainer.step, loss=sum(recent) / len(recent), steps_per_second=rate)
            recent, clock = [], time.monotonic()
        is_due = trainer.step % args.evaluate_every == 0 or trainer.step == args.steps
        if is_due:
            results = validate(trainer.average, held_out, args)
            run.log(trainer.step, **results)
            say(
                f"step {trainer.step} of {args.steps}: validation loss {results['validation_loss']:.3f} nats a token, "
                f"minADE over 3 s {results['min_ade_3s']:.2f} m"
            )
        if is_due or trainer.step % SAVE_EVERY == 0:
            trainer.save(run.folder)
            run.checkpoint()
            plot_curves(read_metrics(run.folder), run.folder / "learning_curves.png")
            clock = time.monotonic()
    parameters = sum(p.numel() for p in trainer.model.parameters())
    scenes = sum(len(source.dataset) for source in sources)
    return results | {"parameters": parameters, "optimiser_steps": trainer.step, "training_scenes": scenes}
