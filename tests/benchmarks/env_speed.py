"""How fast the environments are, and how much memory they take: `python tests/benchmarks/env_speed.py`.

Two cases, each with the learned world and with log replay, each in a process of its own:

- single: `DriveEnv` with 32 agents; the wall-clock time of one `step`, resets apart. The learned world decides in one of five,
  which the median hides: the mean and the slowest fifth stand beside it.
- vector: `DriveVectorEnv` with 64 scenes of 32 agents; agent-steps a CPU-second (`time.process_time`, all threads), everything
  included: world, measures, reward, observation, and the resets of episodes that end.

The scenes are the shipped ones, brought to exactly 32 agents valid at the present: the nearest to the ego, and where there are
fewer, copies of them set aside, which cost what others cost.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median

import numpy as np
import torch
import tyro
from worldloop.agents.rollout import open_scenes
from worldloop.envs import DriveEnv, DriveVectorEnv, open_world
from worldloop.worldmodel.scene import HISTORY_STEPS, LAYOUT, Scene, stack
from worldloop.worldmodel.world import LearnedWorld, World

AGENTS, BATCH = 32, 64
TARGET_MILLISECONDS, TARGET_AGENT_STEPS = 25.0, 10_000.0


@dataclass(frozen=True)
class Args:
    """Measure the speed and the memory of the environments."""

    scenes: str = "demo"
    """Data set to take scenes from; demo: the shipped ones."""
    weights: Path | None = None
    """Folder of a behaviour model instead of the shipped one."""
    steps: int = 160
    """Steps to measure, after 20 to warm up."""
    threads: int = 1
    """Threads of torch."""
    case: str = ""
    """Measure one case in this process: single or vector, then a world, as in vector/learned; prints JSON."""


def with_agents(scene: Scene, count: int) -> Scene:
    """Return one scene with exactly `count` agents that are valid at the present, the ego first."""
    valid = scene.valid[0, :, HISTORY_STEPS]
    distance = (scene.position[0, :, HISTORY_STEPS, :2] - scene.position[0, int(scene.ego[0]), HISTORY_STEPS, :2]).norm(dim=-1)
    order = torch.where(valid, distance, torch.inf).argsort()[: int(valid.sum())]
    rows = order[torch.arange(count) % len(order)]
    aside = (torch.arange(count) // len(order))[:, None, None] * torch.tensor([0.0, 7.0, 0.0])
    tensors = {name: getattr(scene, name)[:, rows] for name, (letters, _) in LAYOUT.items() if letters[:2] == ("B", "A")}
    tensors["position"] = tensors["position"] + aside
    return replace(scene, ego=torch.zeros_like(scene.ego), **tensors)


def crowded_scenes(args: Args, count: int) -> Scene:
    """Return a batch of `count` scenes of 32 agents."""
    scenes = [with_agents(scene, AGENTS) for scene in open_scenes(args.scenes)]
    batch = stack([scenes[number % len(scenes)] for number in range(count)])
    return replace(batch, id=tuple(f"{number}/{name}" for number, name in enumerate(batch.id)))


def chosen_world(args: Args, name: str) -> World:
    return LearnedWorld.from_pretrained(args.weights) if name == "learned" and args.weights else open_world(name)


def measure_single(args: Args, world: str) -> dict[str, float]:
    """Milliseconds of a step of the single environment."""
    env = DriveEnv(crowded_scenes(args, 8), chosen_world(args, world), horizon=None if world == "replay" else 80)
    env.reset(seed=0)
    action, seconds = np.zeros(2, np.float32), []
    for _ in range(20 + args.steps):
        began = time.perf_counter()
        _, _, terminated, truncated, _ = env.step(action)
        seconds.append(time.perf_counter() - began)
        if terminated or truncated:
            env.reset()
    slow = sorted(seconds[20:])[-args.steps // 5 :]
    times = {"milliseconds": median(seconds[20:]), "mean": fmean(seconds[20:]), "slow": median(slow), "worst": max(seconds[20:])}
    return {name: 1000 * value for name, value in times.items()}


def measure_vector(args: Args, world: str) -> dict[str, float]:
    """Agent-steps a CPU-second of the vector environment."""
    scenes = crowded_scenes(args, BATCH)
    env = DriveVectorEnv(BATCH, scenes, chosen_world(args, world), horizon=None if world == "replay" else 80)
    env.reset(seed=0)
    action = np.zeros((BATCH, 2), np.float32)
    for _ in range(20):
        env.step(action)
    cpu, wall, ended = time.process_time(), time.perf_counter(), 0
    for _ in range(args.steps):
        _, _, terminated, truncated, _ = env.step(action)
        ended += int((terminated | truncated).sum())
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    done = args.steps * BATCH * AGENTS
    return {"agent_steps_per_cpu_second": done / cpu, "env_steps_per_second": args.steps * BATCH / wall, "episodes": ended}


def run_case(args: Args) -> None:
    torch.set_num_threads(args.threads)
    case, _, world = args.case.partition("/")
    result = {"single": measure_single, "vector": measure_vector}[case](args, world)
    print(json.dumps(result | {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def main() -> None:
    """Run every case in a process of its own and print the numbers beside their targets."""
    args = tyro.cli(Args)
    if args.case:
        run_case(args)
        return
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.2f}, ", end="")
    print(f"torch {torch.__version__} with {args.threads} threads, n = {args.steps} steps")
    for case in ("single/learned", "single/replay", "vector/learned", "vector/replay"):
        command = [sys.executable, __file__, *sys.argv[1:], "--case", case]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        if "milliseconds" in found:
            speed = (
                f"step {found['milliseconds']:.1f} ms median (target <= {TARGET_MILLISECONDS:.0f}), {found['mean']:.1f} mean, "
                f"{found['slow']:.1f} median of the slowest fifth, {found['worst']:.1f} worst"
            )
        else:
            speed = (
                f"{found['agent_steps_per_cpu_second']:,.0f} agent-steps a CPU-second (target >= {TARGET_AGENT_STEPS:,.0f}), "
                f"{found['env_steps_per_second']:,.0f} scene-steps/s, {found['episodes']} episodes ended"
            )
        print(f"{case:15} {speed}; peak memory {found['peak_mib']:.0f} MiB")


if __name__ == "__main__":
    main()
