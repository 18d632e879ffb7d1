"""How fast perspective layouts are: `python tests/benchmarks/layout_speed.py`.

Counted in CPU-seconds (`time.process_time`, all threads), as the machine may have other work: layouts a CPU-second, and twice
that, which is what two cores give. The median over rounds, each of new moments, so that nothing can be kept from one to the next.
Scenes are brought to exactly 32 agents valid at the present, as in `env_speed.py`.
"""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass, replace
from statistics import median

import torch
import tyro
from env_speed import AGENTS, with_agents
from worldloop.agents.rollout import open_scenes
from worldloop.worldmodel.perspective import perspective_layout
from worldloop.worldmodel.raster import road_pieces
from worldloop.worldmodel.rig import RIGS
from worldloop.worldmodel.scene import stack
from worldloop.worldmodel.world import logged_state

TARGET_LAYOUTS, TARGET_MILLISECONDS = 200.0, 10.0


@dataclass(frozen=True)
class Args:
    """Measure the speed of perspective layouts."""

    scenes: str = "demo"
    """Data set to take scenes from; demo: the shipped ones."""
    rounds: int = 40
    """Batches to measure, after 3 to warm up."""
    threads: int = 1
    """Threads of torch."""


def milliseconds(args: Args, batch: int, rig: str, width: int, height: int) -> float:
    """CPU milliseconds of one call: `batch` scenes, all cameras of the rig."""
    scenes = [with_agents(scene, AGENTS) for scene in open_scenes(args.scenes)]
    chosen = stack([scenes[number % len(scenes)] for number in range(max(batch, 16))]).take(range(batch))
    chosen = replace(chosen, id=tuple(f"{number}/{name}" for number, name in enumerate(chosen.id)))
    cameras, pieces = RIGS[rig].resized(width, height), road_pieces(chosen)
    state, taken = logged_state(chosen, torch.zeros(batch, dtype=torch.int64)), []
    for _ in range(3 + args.rounds):
        began = time.process_time()
        perspective_layout(state, pieces, cameras)
        taken.append(1000 * (time.process_time() - began))
        ahead = torch.nn.functional.pad(state.velocity * 0.1, (0, 1))
        state = replace(state, position=state.position + ahead)
    return median(taken[3:])


def main() -> None:
    """Print the numbers beside their targets."""
    args = tyro.cli(Args)
    torch.set_num_threads(args.threads)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.2f}, ", end="")
    print(f"torch {torch.__version__} with {args.threads} threads, n = {args.rounds} rounds, {AGENTS} agents")
    for batch, rig, width, height in (
        (1, "front", 128, 64),
        (16, "front", 128, 64),
        (1, "surround", 128, 64),
        (1, "front", 640, 320),
    ):
        taken = milliseconds(args, batch, rig, width, height)
        rate = 1000 * batch * len(RIGS[rig]) / taken
        goal = f" (target <= {TARGET_MILLISECONDS:.0f})" if (batch, rig, width) == (1, "front", 128) else ""
        wanted = f" (target >= {TARGET_LAYOUTS:.0f})" if batch == 16 else ""
        print(f"{rig} {width}x{height}, B = {batch}: {taken:.1f} ms a call{goal}, {rate:.0f} layouts a CPU-second", end="")
        print(f", {2 * rate:.0f} a second on two cores{wanted}")


if __name__ == "__main__":
    main()
