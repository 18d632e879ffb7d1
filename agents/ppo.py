"""`worldloop train ppo`: a driver trained by proximal policy optimisation in a world, in one file.

    DriveVectorEnv -> observations -> DriverNetwork -> actions -> rewards -> gae() -> clipped steps

PPO (Schulman et al., arXiv 1707.06347) with what made it work (Huang et al., "The 37 implementation details of PPO", ICLR blog
2022): orthogonal initialisation, generalised advantage estimation, advantages normalised a minibatch, clipped values, gradients
cut at a norm, a falling learning rate, observations normalised by running moments that are saved with the weights. An episode
that is truncated is bootstrapped with the value of its last observation; one that terminates is not.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor
from torch.distributions import Normal

from ..envs.vector import DriveVectorEnv
from ..renderers.curves import plot_lines
from ..worldmodel.checkpoint import read_checkpoint, write_checkpoint
from ..worldmodel.run import Run, dated_folder, read_metrics, require_new, resume_run, seeded_generator, start_run
from .crew import open_named_world
from .network import TERMINATE_ON, DriverNetwork, as_tensors, open_training, score


@dataclass(frozen=True)
class Ppo:
    """Train a driver in a world by proximal policy optimisation.

    The run folder gets metrics.jsonl (losses, rewards term by term, and, every so many updates, nuPlan's score on the validation
    scenes), learning_curves.png, model/ (the best driver so far, for `worldloop evaluate --policies RUN/model`; having been the
    best flatters its score there, so score it on other scenes), the checkpoint for --resume, and, with the extra tensorboard, the
    numbers of metrics.jsonl as event files: `tensorboard --logdir runs`.

    Example: worldloop train ppo --scenes scenes/made --validation scenes/tuning --out runs/ppo
    """

    scenes: str
    """Scenes to train on: FOLDER or FOLDER:GLOB."""
    validation: str
    """Scenes on which the driver is scored during training; none may be among those to train on."""
    world: str = "learned"
    """Who moves the others: learned, learned_open, replay, constant_velocity, sumo."""
    weights: Path | None = None
    """Folder of a trained behaviour model for the learned world, instead of the shipped one, or small or large."""
    start_from: Path | None = None
    """Folder of a driver to go on with (`model` of another training, `train clone` for one); it is scored first, as update 0."""
    reward: str = "nuplan"
    """What is rewarded: progress, nuplan or epdms (`worldloop.envs.PRESETS`)."""
    steps: int = 1_000_000
    """Steps of the environments, all together."""
    envs: int = 32
    """Environments stepped as one batch."""
    rollout_steps: int = 64
    """Steps of each environment between two updates."""
    horizon: int = 80
    """Steps of 0.1 s of an episode."""
    epochs: int = 4
    """Passes over what was driven, for each update."""
    minibatches: int = 4
    """Parts into which each pass is cut."""
    learning_rate: float = 5e-4
    """Of Adam at the start; it falls to 0."""
    discount: float = 0.98
    """Of a step of 0.1 s: half of what is 3.4 s away counts."""
    trace: float = 0.95
    """Lambda of generalised advantage estimation."""
    clip: float = 0.2
    """How far an action's probability may move in an update, as a share."""
    entropy: float = 0.001
    """Weight of the entropy in the loss."""
    value: float = 0.5
    """Weight of the value's error in the loss."""
    evaluate_every: int = 25
    """Updates between two scorings on the validation scenes."""
    evaluate_scenes: int = 32
    """How many of the validation scenes, the first ones."""
    threads: int = 2
    """Threads of torch."""
    seed: int = 0
    """Of the network's first weights, the scenes and the actions drawn."""
    out: Path | None = None
    """Run folder, runs/train-ppo-DATE if not given."""
    resume: bool = False
    """Go on with a killed training in --out; the environments begin new episodes."""


def gae(
    rewards: Tensor, values: Tensor, next_values: Tensor, terminated: Tensor, over: Tensor, discount: float, trace: float
) -> tuple[Tensor, Tensor]:
    """Return advantages and returns (T, N) by generalised advantage estimation (Schulman et al., arXiv 1506.02438).

    Args:
        rewards: (T, N) of each step.
        values: (T, N) of the moments before the steps.
        next_values: (T, N) of the moments after them; where an episode is over, of its last moment, not of the next one's first.
        terminated: (T, N) bool, the episode ended there for good: nothing comes after it.
        over: (T, N) bool, it ended there, for good or by truncation.
        discount: gamma.
        trace: lambda.
    """
    surprise = rewards + discount * torch.where(terminated, 0.0, next_values) - values
    advantages = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[0])
    for step in reversed(range(len(rewards))):
        following = surprise[step] + discount * trace * torch.where(over[step], 0.0, following)
        advantages[step] = following
    return advantages, advantages + values


class Trainer:
    """What a checkpoint has to hold: the network, the optimiser, the generator, how many updates, the best score."""

    def __init__(self, args: Ppo, network: DriverNetwork):
        self.args, self.network, self.update, self.best = args, network.train(), 0, -math.inf
        self.optimizer = torch.optim.Adam(network.parameters(), lr=args.learning_rate, eps=1e-5)
        self.generator = seeded_generator(args.seed, "ppo")
        self.updates = max(args.steps // (args.envs * args.rollout_steps), 1)

    @torch.no_grad()
    def drive(self, env: DriveVectorEnv, seen: Mapping[str, Tensor]) -> tuple[dict[str, Any], Mapping[str, Tensor]]:
        """Drive `rollout_steps`; return what happened, flat over time and environments, and what is seen then."""
        kept: dict[str, list[Tensor]] = {}
        finals: list[tuple[int, int, Tensor]] = []
        terms: Counter[str] = Counter()
        for step in range(self.args.rollout_steps):
            mean, spread, value = self.network(seen)
            action = mean + spread * torch.randn(mean.shape, generator=self.generator)
            likelihood = Normal(mean, spread).log_prob(action).sum(dim=-1)
            shown, reward, terminated, truncated, infos = env.step(action.clamp(-1.0, 1.0).numpy())
            found = {
                "action": action,
                "likelihood": likelihood,
                "value": value,
                "reward": torch.from_numpy(reward).float(),
                "terminated": torch.from_numpy(terminated),
                "over": torch.from_numpy(terminated | truncated),
                **{f"seen_{name}": tensor for name, tensor in seen.items()},
            }
            for name, tensor in found.items():
                kept.setdefault(name, []).append(tensor)
            for part in (infos, infos.get("final_info", {})):  # of what goes on, of what ended
                shares = part.get("reward_terms", {})
                terms.update({name: float(values.sum()) for name, values in shares.items() if not name.startswith("_")})
            for row in np.flatnonzero(truncated):
                final = {name: torch.from_numpy(array[None]) for name, array in infos["final_obs"][row].items()}
                finals.append((step, int(row), self.network(final)[2][0]))
            assert isinstance(shown, dict)
            seen = as_tensors(shown)
        batch = {name: torch.stack(tensors) for name, tensors in kept.items()}
        following = torch.cat((batch["value"][1:], self.network(seen)[2][None]))
        for step, row, value in finals:  # what follows in time is another episode's beginning
            following[step, row] = value
        ended = (batch["terminated"], batch["over"])
        advantage, target = gae(batch["reward"], batch["value"], following, *ended, self.args.discount, self.args.trace)
        batch |= {"advantage": advantage, "target": target}
        told = {"reward": float(batch["reward"].mean()), "episodes": int(batch["over"].sum())}
        told |= {"terminated": float(batch["terminated"].sum() / batch["over"].sum().clamp(min=1))}
        told |= {f"reward/{name}": value / batch["reward"].numel() for name, value in terms.items()}
        return {"told": told, **{name: tensor.flatten(0, 1) for name, tensor in batch.items()}}, seen

    def learn(self, batch: Mapping[str, Any]) -> dict[str, float]:
        """Take the optimiser's steps of one update; return the means of what was minimised.

        Raises:
            ValueError: the loss is not finite.
        """
        args, count = self.args, len(batch["action"])
        for group in self.optimizer.param_groups:
            group["lr"] = args.learning_rate * (1 - self.update / self.updates)
        told: list[tuple[float, float, float, float]] = []
        for _ in range(args.epochs):
            for rows in torch.randperm(count, generator=self.generator).chunk(args.minibatches):
                part = {name: tensor[rows] for name, tensor in batch.items() if name != "told"}
                mean, spread, value = self.network({n.removeprefix("seen_"): t for n, t in part.items() if n.startswith("seen_")})
                normal = Normal(mean, spread)
                ratio = (normal.log_prob(part["action"]).sum(dim=-1) - part["likelihood"]).exp()
                advantage = (part["advantage"] - part["advantage"].mean()) / (part["advantage"].std() + 1e-8)
                clipped = ratio.clamp(1 - args.clip, 1 + args.clip)
                policy = -torch.minimum(ratio * advantage, clipped * advantage).mean()
                near = part["value"] + (value - part["value"]).clamp(-args.clip, args.clip)
                error = torch.maximum((value - part["target"]).square(), (near - part["target"]).square()).mean()
                entropy = normal.entropy().sum(dim=-1).mean()
                loss = policy + args.value * 0.5 * error - args.entropy * entropy
                if not loss.isfinite():
                    raise ValueError(f"the loss is {loss.item()} in update {self.update}: lower --learning-rate")
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.network.parameters(), 0.5)
                self.optimizer.step()
                told.append((policy.item(), error.item(), entropy.item(), float(((ratio - 1).abs() > args.clip).float().mean())))
        self.update += 1
        # only now: scales that moved between driving and learning would change the actions' likelihoods
        self.network.learn_scales(
            {name.removeprefix("seen_"): tensor for name, tensor in batch.items() if name.startswith("seen_")}
        )
        return dict(zip(("policy_loss", "value_loss", "entropy", "clipped"), np.mean(told, axis=0).tolist(), strict=True))

    def keep_best(self, score: float, folder: Path) -> None:
        """Write the driver into a folder if it scores better than all before."""
        if score > self.best:
            self.best = score
            self.network.save_pretrained(folder)

    def save(self, folder: Path) -> None:
        """Write the checkpoint, whole or not at all."""
        header = {"update": str(self.update), "best": repr(self.best)}
        write_checkpoint(folder, {"network": self.network}, self.optimizer, self.generator, header)

    def load(self, folder: Path) -> None:
        """Go on from the folder's checkpoint.

        Raises:
            ValueError: there is none, or it is broken or of other sizes.
        """
        header = read_checkpoint(folder, {"network": self.network}, self.optimizer, self.generator)
        self.update, self.best = int(header["update"]), float(header["best"])


def run_ppo(args: Ppo) -> int:
    """Run `worldloop train ppo`; return the exit code."""
    if min(args.steps, args.envs, args.rollout_steps, args.horizon, args.epochs, args.minibatches, args.evaluate_every) < 1:
        raise ValueError("wanted --steps, --envs, --rollout-steps, --horizon, --epochs, --minibatches, --evaluate-every >= 1")
    if args.resume and args.out is None:
        raise ValueError("--resume: wanted --out, the folder of the training to go on with")
    out = args.out or dated_folder("train ppo")
    require_new(out, args.resume)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    scenes, held = open_training(args.scenes, args.validation, args.evaluate_scenes)
    network = DriverNetwork() if args.start_from is None else DriverNetwork.from_pretrained(args.start_from)
    trainer = Trainer(args, network)
    arguments = {name: value for name, value in asdict(args).items() if name != "resume"}
    if args.resume:
        trainer.load(out)
        run = resume_run(out, trainer.update, arguments, ("out", "threads", "steps"))
    else:
        run = start_run(out, "train ppo", arguments, args.seed)
    world = open_named_world(args.world, args.weights)
    env = DriveVectorEnv(args.envs, scenes, world, horizon=args.horizon, reward=args.reward, terminate_on=TERMINATE_ON)

    try:
        results = train(trainer, env, run, lambda: score(network, world, held, args.horizon), Console(stderr=True))
    finally:
        env.close()
        close = getattr(world, "close", None)
        if close is not None:
            close()
    run.finish(results)
    print(f"the best driver, nuPlan's score {trainer.best:.3f}: {out / 'model'}")
    return 0


def train(
    trainer: Trainer, env: DriveVectorEnv, run: Run, measure: Callable[[], dict[str, float]], console: Console
) -> dict[str, float]:
    """Run the remaining updates; keep the driver that scores best; return the last numbers."""
    args, results, clock = trainer.args, {}, time.monotonic()
    observation, _ = env.reset(seed=args.seed + trainer.update * args.envs)
    assert isinstance(observation, dict)
    seen: Mapping[str, Tensor] = as_tensors(observation)
    if trainer.update == 0 and args.start_from is None:
        trainer.network.learn_scales(seen)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    told_at = TextColumn("{task.fields[at]}")
    with event_files(run.folder, trainer.update) as note, Progress(*columns, told_at, console=console) as progress:
        bar = progress.add_task("updates", total=trainer.updates, completed=trainer.update, at="")
        if trainer.update == 0 and args.start_from is not None:  # a start that is never surpassed stays the best
            results = measure()
            trainer.keep_best(results["nuplan"], run.folder / "model")
            run.log(0, **results)
            note(0, results)
        while trainer.update < trainer.updates:
            batch, seen = trainer.drive(env, seen)
            told = {**batch["told"], **trainer.learn(batch)}
            told["steps_per_second"] = args.envs * args.rollout_steps / (time.monotonic() - clock)
            if trainer.update % args.evaluate_every == 0 or trainer.update == trainer.updates:
                results = measure()
                told |= results
                trainer.keep_best(results["nuplan"], run.folder / "model")
            run.log(trainer.update, **told)
            note(trainer.update, told)
            if "nuplan" in told:
                trainer.save(run.folder)  # only now: no resumed training lacks a line that its checkpoint stands for
                run.checkpoint()
                plot(read_metrics(run.folder), run.folder / "learning_curves.png")
            clock = time.monotonic()
            shown = f"reward {told['reward']:.4f}, score {results['nuplan']:.3f}" if results else f"reward {told['reward']:.4f}"
            progress.update(bar, completed=trainer.update, at=shown)
    return {**results, "best": trainer.best, "updates": trainer.update}


@contextmanager
def event_files(folder: Path, update: int) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """Yield what writes the numbers of an update into TensorBoard's event files; without the package it says so and does nothing.

    Events after `update`, which a killed training has left, are not shown any more.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        SummaryWriter = None
    if SummaryWriter is None:
        print('no event files for TensorBoard without pip install "worldloop[tensorboard]"; metrics.jsonl has the same numbers')
        yield lambda step, told: None
        return
    with SummaryWriter(str(folder), purge_step=update + 1 if update else None) as writer:

        def note(step: int, told: Mapping[str, float]) -> None:
            for name, value in told.items():
                writer.add_scalar(name, value, step)
            writer.flush()  # else a kill loses two minutes

        yield note


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the reward a step and the scores over the updates."""
    scored = [row for row in rows if "nuplan" in row]
    plot_lines(
        path,
        {
            "reward a step": {"reward": [(row["step"], row["reward"]) for row in rows if "reward" in row]},
            "on the validation scenes": {name: [(row["step"], row[name]) for row in scored] for name in ("nuplan", "epdms")},
        },
        "update",
    )
