"""How fast the 3-D renderer draws: `python tests/benchmarks/view_speed.py`.

Frames a CPU-second (`time.process_time`, all threads) of the front camera, colour alone (`begin`) and with depth, classes and
instances (`draw`), over the ticks of a log; and a LiDAR's sweeps. What is made once for a scene is timed by itself.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import tyro
from worldloop.agents.rollout import open_scenes
from worldloop.renderers.lidar import Lidar, sweep
from worldloop.renderers.scene3d import SceneRenderer
from worldloop.worldmodel.rig import RIGS
from worldloop.worldmodel.world import ReplayWorld, logged_state

SIZES = ((640, 360), (128, 64))


@dataclass(frozen=True)
class Args:
    """Measure how fast the 3-D renderer draws."""

    scenes: str = "demo"
    """Data set to take the first scene from; demo: the shipped ones."""
    appearance: tuple[str, ...] = ("day", "night", "rain")
    """Appearances to measure."""
    frames: int = 20
    """Frames to measure, after 2 to warm up."""
    threads: int = 1
    """Threads of torch; Embree takes what it finds."""


def speed(draw: Callable[[int], object], frames: int) -> str:
    """Return frames a CPU-second and a second of `draw(number)`."""
    for number in range(2):
        draw(number)
    wall, cpu = time.perf_counter(), time.process_time()
    for number in range(frames):
        draw(number)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return f"{frames / cpu:6.1f} a CPU-second, {frames / wall:6.1f} a second"


def main() -> None:
    """Print the numbers."""
    args = tyro.cli(Args)
    torch.set_num_threads(args.threads)
    scene = open_scenes(args.scenes).load([0])
    world, state = ReplayWorld(), logged_state(scene, torch.zeros(1, dtype=torch.int64))
    states = [state]
    for _ in range(min(int(world.horizon(scene)[0]), 40)):
        states.append(world.step(states[-1], None))
    print(f"{scene.id[0]}, {int(state.valid.sum())} agents, {os.cpu_count()} cores, load {os.getloadavg()[0]:.2f}")
    began = time.process_time()
    renderer = SceneRenderer()
    renderer.stages(scene)
    print(f"what stands still, once for a scene: {time.process_time() - began:.2f} CPU-seconds")
    for width, height in SIZES:
        for name in args.appearance:
            drawn = SceneRenderer(RIGS["front"].resized(width, height), name)
            frames = args.frames * (1 if width > 200 else 8)
            print(f"{width}x{height} {name:6} colour {speed(lambda n, d=drawn: d.begin(states[n % len(states)]), frames)}")
            print(f"{width}x{height} {name:6} all    {speed(lambda n, d=drawn: d.draw(states[n % len(states)]), frames)}")
    lidar = Lidar()
    print(f"LiDAR, {lidar.beams} x {lidar.steps} rays: {speed(lambda n: sweep(renderer, states[0], lidar), args.frames)}")


if __name__ == "__main__":
    main()
