"""How fast the behaviour model trains: `python tests/benchmarks/train_speed.py`.

Seconds of one optimiser step (batch of 16 windows, 32 agents, 128 polylines, from the shipped scenes), in turn with and without
bfloat16 and with the model driving (`--closed-loop`), so that a busy machine slows all alike. Only the ratios travel.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from statistics import median

import torch
import tyro
from worldloop.worldmodel.behavior import BehaviorModel
from worldloop.worldmodel.train_behavior import Args as Training
from worldloop.worldmodel.train_behavior import Source, Trainer, draw_batch


@dataclass(frozen=True)
class Args:
    """Measure the speed of training."""

    steps: int = 8
    """Steps of each kind to measure, after one to warm up."""
    threads: int = 2
    """Threads of torch."""


def main() -> None:
    """Print seconds a step, and ratios to plain float32."""
    args = tyro.cli(Args)
    torch.set_num_threads(args.threads)
    assets = Path(str(files("worldloop.assets")))
    plain = Training(data=(str(assets / "scenes"),), validation=(), out=Path(), polylines=128, bfloat16=False)
    cases = {
        "float32": plain,
        "bfloat16": replace(plain, bfloat16=True),
        "bfloat16, closed loop": replace(plain, bfloat16=True, closed_loop=16),
    }
    trainers = {name: Trainer(case, BehaviorModel.from_pretrained(assets / "behavior"), []) for name, case in cases.items()}
    sources = [Source.parse(text) for text in plain.data]
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(1 + args.steps):
        for name, trainer in trainers.items():
            scene = draw_batch(sources, plain, 5, trainer.generator)
            began = time.perf_counter()
            trainer.learn(scene)
            seconds[name].append(time.perf_counter() - began)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.2f}, torch {torch.__version__}, {args.threads} threads, ", end="")
    print(f"n = {args.steps}")
    reference = median(seconds["float32"][1:])
    for name, taken in seconds.items():
        step = median(taken[1:])
        print(f"{name:22} {step:.2f} s a step, {reference / step:.2f} times as fast as float32")


if __name__ == "__main__":
    main()
