"""How fast the learned camera is in the loop: `python tests/benchmarks/camera_speed.py`.

A frame is a step of the learned world, the layout and the painted picture. The weights make no difference to the speed: without
`--weights` and shipped ones, random ones of the default sizes are taken. Wall-clock time and CPU-seconds (all threads) of the
same calls stand side by side, as the machine may have other work; the median over rounds.
"""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
import tyro
from env_speed import AGENTS, with_agents
from worldloop.agents.rollout import open_scenes
from worldloop.worldmodel.camera import CameraModel, LearnedCamera, load_camera
from worldloop.worldmodel.perspective import LAYOUT_CHANNELS
from worldloop.worldmodel.scene import stack
from worldloop.worldmodel.shipped import SHIPPED_CAMERA
from worldloop.worldmodel.world import LearnedWorld

TARGETS = {1: 20.0, 16: 60.0}
"""Frames a second by B."""


@dataclass(frozen=True)
class Args:
    """Measure the speed of the learned camera."""

    weights: Path | None = None
    """Folder of a trained camera."""
    steps: int = 2
    """Euler steps for each frame."""
    rounds: int = 40
    """Frames to measure, after 5 to warm up."""
    threads: int = 2
    """Threads of torch."""


def camera(args: Args) -> LearnedCamera:
    """Return the camera to measure."""
    folder = args.weights or SHIPPED_CAMERA
    if (folder / "config.json").is_file():
        return LearnedCamera(model=load_camera(folder), steps=args.steps)
    model = CameraModel(layout_channels=len(LAYOUT_CHANNELS), appearances=("day",))
    return LearnedCamera(model=model.eval(), steps=args.steps)


def measure(args: Args, batch: int) -> dict[str, tuple[float, float]]:
    """Seconds of wall clock and CPU that a frame's parts take, B = `batch`."""
    scenes = [with_agents(scene, AGENTS) for scene in open_scenes("demo")]
    chosen = stack([scenes[number % len(scenes)] for number in range(max(batch, 16))]).take(range(batch))
    chosen = replace(chosen, id=tuple(f"{number}/{name}" for number, name in enumerate(chosen.id)))
    world, eye, action = LearnedWorld.from_pretrained(), camera(args), torch.zeros(batch, 2)
    state = world.reset(chosen, torch.arange(batch))
    sight = eye.begin(state)
    taken: dict[str, list[tuple[float, float]]] = {"world": [], "camera": []}
    for _ in range(5 + args.rounds):
        marks = [(time.perf_counter(), time.process_time())]
        state = world.step(state, state.ego())
        marks.append((time.perf_counter(), time.process_time()))
        sight = eye.follow(sight, state, action)
        marks.append((time.perf_counter(), time.process_time()))
        for name, before, after in zip(taken, marks[:-1], marks[1:], strict=True):
            taken[name].append((after[0] - before[0], after[1] - before[1]))
    middle = lambda rows: tuple(median(column) for column in zip(*rows[5:], strict=True))  # noqa: E731
    return {name: middle(rows) for name, rows in taken.items()}  # pyright: ignore[reportReturnType]


def main() -> None:
    """Print the numbers beside their targets."""
    args = tyro.cli(Args)
    torch.set_num_threads(args.threads)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.2f}, ", end="")
    print(f"torch {torch.__version__} with {args.threads} threads, n = {args.rounds} rounds, {AGENTS} agents, {args.steps} steps")
    for batch, target in TARGETS.items():
        taken = measure(args, batch)
        wall, processor = (sum(row[place] for row in taken.values()) for place in (0, 1))
        parts = ", ".join(f"{name} {1000 * row[0]:.1f} ms ({1000 * row[1]:.1f} CPU-ms)" for name, row in taken.items())
        print(f"B = {batch}: {parts}; {batch / wall:.0f} frames/s (target >= {target:.0f}), ", end="")
        print(f"{2 * batch / processor:.0f} a second of two whole cores")


if __name__ == "__main__":
    main()
