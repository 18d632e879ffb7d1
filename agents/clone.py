"""`worldloop train clone`: a driver that does what another one, or the log, does (behaviour cloning with DAgger).

First the expert drives and is recorded: what was seen, what it did. A clone of that alone has never seen its own errors, so in
later rounds the clone drives itself, and the expert only says what it would have done (Ross, Gordon, Bagnell, "A reduction of
imitation learning and structured prediction to no-regret online learning", AISTATS 2011). The log as the expert can be asked too:
its actions lead back to where it was (`rules.ReplayPolicy`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from ..envs.vector import DriveVectorEnv
from ..renderers.curves import plot_lines
from ..worldmodel.run import Run, dated_folder, read_metrics, seeded_generator, whole_run
from .crew import open_named_world
from .network import TERMINATE_ON, DriverNetwork, NetworkPolicy, as_tensors, open_training, score
from .policy import Policy, load_policy

SHARES = torch.tensor([1.0, 5.0])
"""Weights of the errors of acceleration and curvature, as shares of their limits: curvatures are small and matter."""


SEEDS_APART = 1_000_003
"""Between the seeds of two rounds: environment i of a round has the round's seed + i."""


@dataclass(frozen=True)
class Clone:
    """Train a driver to do what an expert does.

    The run folder gets metrics.jsonl (the error of the actions, and after every round nuPlan's score on the --validation
    scenes), learning_curves.png and model/ (for `--policies RUN/model`, and for `worldloop train ppo --start-from`).

    Example: worldloop train clone --expert pdm --scenes scenes/made --validation scenes/tuning --out runs/clone
    """

    scenes: str
    """Scenes to drive: FOLDER or FOLDER:GLOB."""
    validation: str
    """Other scenes, on which the clone is scored."""
    expert: str = "pdm"
    """Whom to copy: a shipped driver, replay for the log, or module:attribute."""
    world: str = "learned"
    """Who moves the others."""
    weights: Path | None = None
    """Folder of a trained behaviour model for the learned world, instead of the shipped one, or small or large."""
    rounds: int = 3
    """The expert drives in the first one, the clone in the others."""
    steps: int = 20_000
    """Steps of the environments in each round."""
    envs: int = 32
    """Environments stepped as one batch."""
    horizon: int = 80
    """Steps of 0.1 s of an episode; a log's end is the limit in log replay."""
    epochs: int = 8
    """Passes over everything recorded so far, in each round."""
    batch: int = 512
    """Moments in each step of the optimiser."""
    learning_rate: float = 1e-3
    """Of Adam at the start of a round; it falls to 0."""
    evaluate_scenes: int = 32
    """How many of the validation scenes, the first ones."""
    threads: int = 2
    """Threads of torch."""
    seed: int = 0
    """Of everything that is drawn."""
    out: Path | None = None
    """Run folder, runs/train-clone-DATE if not given."""


def run_clone(args: Clone) -> int:
    """Run `worldloop train clone`; return the exit code."""
    if min(args.rounds, args.steps, args.envs, args.horizon, args.epochs, args.batch) < 1:
        raise ValueError("wanted --rounds, --steps, --envs, --horizon, --epochs, --batch >= 1")
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    scenes, held = open_training(args.scenes, args.validation, args.evaluate_scenes)
    expert, world, network = load_policy(args.expert), open_named_world(args.world, args.weights), DriverNetwork()
    out = args.out or dated_folder("train clone")
    generator = seeded_generator(args.seed, "clone")
    env = DriveVectorEnv(args.envs, scenes, world, horizon=args.horizon, terminate_on=TERMINATE_ON)
    known: dict[str, Tensor] = {}
    results: dict[str, float] = {}
    try:
        with whole_run(out, "train clone", asdict(args), args.seed) as run, Progress(console=Console(stderr=True)) as progress:
            for number in range(args.rounds):
                clone = NetworkPolicy(network) if number else None
                steps = math.ceil(args.steps / args.envs)
                bar = progress.add_task(f"round {number + 1}: {'the clone' if clone else args.expert} drives", total=steps)
                fresh = record(env, expert, clone, steps, args.seed + number * SEEDS_APART, lambda bar=bar: progress.advance(bar))
                known = {name: torch.cat((known[name], new)) if known else new for name, new in fresh.items()}
                if number == 0:
                    network.learn_scales({name: known[name] for name in known if name != "action"})
                bar = progress.add_task(f"round {number + 1}: learning", total=args.epochs)
                for epoch, loss in enumerate(fit(network, known, args, generator)):
                    run.log(number * args.epochs + epoch + 1, loss=loss)
                    progress.advance(bar)
                results = score(network, world, held, args.horizon)
                results["moments"] = len(known["action"])
                run.log((number + 1) * args.epochs, **results)
                progress.console.print(f"round {number + 1}: nuPlan's score {results['nuplan']:.3f}")
            network.save_pretrained(run.folder / "model")
            _plot(run)
            run.finish(results)
    finally:
        env.close()
    print(out / "model")
    return 0


@torch.no_grad()
def record(
    env: DriveVectorEnv, expert: Policy, clone: NetworkPolicy | None, steps: int, seed: int, tell: Callable[[], None]
) -> dict[str, Tensor]:
    """Drive `steps` with the expert, or with the clone; return what was seen and the expert's actions as shares of the limits."""
    observation, _ = env.reset(seed=seed)
    kept: dict[str, list[Tensor]] = {}
    for _ in range(steps):
        assert isinstance(observation, dict)
        wanted = torch.from_numpy(env.actions.encode(torch.as_tensor(expert.act(observation, env.state))))
        for name, tensor in {**as_tensors(observation), "action": wanted}.items():
            kept.setdefault(name, []).append(tensor.clone())
        driven = wanted if clone is None else torch.from_numpy(env.actions.encode(clone.act(observation, env.state)))
        observation, *_ = env.step(driven.numpy())
        tell()
    return {name: torch.cat(tensors) for name, tensors in kept.items()}


def fit(network: DriverNetwork, known: dict[str, Tensor], args: Clone, generator: torch.Generator) -> Iterator[float]:
    """Learn the actions; yield the mean error of each epoch (squared, weighted by `SHARES`)."""
    optimizer = torch.optim.Adam(network.train().parameters(), lr=args.learning_rate, eps=1e-5)
    count = len(known["action"])
    total, done = args.epochs * math.ceil(count / args.batch), 0
    for _ in range(args.epochs):
        losses = []
        for rows in torch.randperm(count, generator=generator).split(args.batch):
            part = {name: tensor[rows] for name, tensor in known.items()}
            mean = network(part)[0]
            loss = ((mean - part["action"]) * SHARES).square().sum(dim=-1).mean()
            for group in optimizer.param_groups:
                group["lr"] = args.learning_rate * (1 - done / total)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
            done += 1
        yield sum(losses) / len(losses)


def _plot(run: Run) -> None:
    rows = read_metrics(run.folder)
    lines = {name: [(row["step"], row[name]) for row in rows if name in row] for name in ("loss", "nuplan", "epdms")}
    panels = {"error of the actions": {"loss": lines.pop("loss")}, "on the validation scenes": lines}
    plot_lines(run.folder / "learning_curves.png", panels, "epoch")
