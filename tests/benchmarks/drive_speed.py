"""How many steps a second `worldloop drive` makes, and what they are spent on: `python tests/benchmarks/drive_speed.py`.

The shipped scenes with exactly 32 agents, the intelligent driver model at the wheel in the learned world, window and bird's eye
at their usual size, once for each camera. Wall-clock time beside processor time: where something else takes the cores, only the
latter says what the window needs.
"""

from __future__ import annotations

import os
import platform
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory
from typing import Any

import torch
import tyro
from env_speed import AGENTS, with_agents
from worldloop.agents.policy import load_policy
from worldloop.agents.rollout import open_scenes
from worldloop.agents.session import Session
from worldloop.agents.window import RATE, Desk, Drive
from worldloop.envs.cameras import open_camera
from worldloop.renderers.window import Window
from worldloop.worldmodel.data import SceneDataset
from worldloop.worldmodel.data.writing import ShardWriter
from worldloop.worldmodel.rig import RIGS


@dataclass(frozen=True)
class Args:
    """Measure the speed of the window."""

    cameras: tuple[str, ...] = ("none", "layout", "scene3d")
    """Cameras to measure."""
    pixels: int = 320
    """Columns of the camera's picture."""
    steps: int = 100
    """Steps to measure, after 10 to warm up."""
    threads: int = 1
    """Threads of torch."""
    world: str = "learned"
    """Who moves the others."""


def timed(owner: Any, name: str, spent: dict[str, list[float]], label: str) -> None:
    """Take down how many milliseconds every call of `owner.name` takes."""
    function: Callable[..., Any] = getattr(owner, name)

    def measured(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            spent[label].append(1000 * (time.perf_counter() - began))

    setattr(owner, name, measured)


def measure(args: Args, scenes: SceneDataset, camera: str, folder: Path) -> None:
    """Drive with one camera and print what it took."""
    seen = None if camera == "none" else open_camera(camera, RIGS["front"].resized(args.pixels, args.pixels // 2))
    session = Session(scenes, seen)
    session.begin(0, args.world, 0)
    arguments, spent = Drive(policy="idm", headless=True), defaultdict(list)
    with Window(arguments.size, "benchmark", headless=True) as window:
        desk = Desk(session, window, load_policy("idm"), arguments, folder, None, [])
        for owner, name, label in (
            (session.env.world, "step", "world"),
            (session, "choose", "policy"),
            (desk.cockpit._bird, "draw", "bird's eye"),
            (desk.cockpit, "draw", "picture"),
            (window, "show", "show"),
            *(((seen, "follow", "camera"),) if seen is not None else ()),
        ):
            timed(owner, name, spent, label)
        for number in range(10 + args.steps):
            if number == 10:
                spent.clear()
                wall, processor = time.perf_counter(), time.process_time()
            desk.turn()
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
    parts = ", ".join(f"{label} {median(times):.1f} ({fmean(times):.1f})" for label, times in spent.items())
    print(f"{camera:8} {args.steps / wall:5.1f} steps/s (target >= {RATE:.0f}), {args.steps / processor:5.1f} a processor second")
    print(f"         milliseconds, median (mean): {parts}")


def main() -> None:
    """Print the numbers of every camera."""
    args = tyro.cli(Args)
    torch.set_num_threads(args.threads)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.2f}, ", end="")
    print(f"{args.threads} threads, {AGENTS} agents, n = {args.steps} steps")
    with TemporaryDirectory() as folder:
        with ShardWriter(Path(folder) / "crowd") as writer:
            for scene in open_scenes("demo"):
                writer.add(with_agents(scene, AGENTS))
        for camera in args.cameras:
            measure(args, SceneDataset(Path(folder) / "crowd"), camera, Path(folder))


if __name__ == "__main__":
    main()
