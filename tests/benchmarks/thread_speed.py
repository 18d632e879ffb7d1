"""How torch's threads should wait for each other: `python tests/benchmarks/thread_speed.py`.

Milliseconds of a step of `worldloop/Drive-v0` in processes of their own, in turn: with OpenMP's threads that spin (its default),
that sleep (OMP_WAIT_POLICY=PASSIVE, what the command line asks for), and with one thread. `--busy` runs as many other programs
beside it as it says, each with one thread that never rests.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from dataclasses import dataclass
from statistics import median

import tyro

STEPS = """
import time
import gymnasium
import worldloop.envs
env = gymnasium.make("worldloop/Drive-v0", horizon=200, terminate_on=())
env.reset(seed=0)
env.action_space.seed(0)
for step in range(45):
    if step == 5:
        began = time.perf_counter()
    env.step(env.action_space.sample())
print(1000 * (time.perf_counter() - began) / 40)
"""

WAYS = {"spinning": {}, "sleeping": {"OMP_WAIT_POLICY": "PASSIVE"}, "one thread": {"OMP_NUM_THREADS": "1"}}


@dataclass(frozen=True)
class Args:
    """Measure the ways of waiting."""

    runs: int = 3
    """Runs of each, in turn."""
    busy: int = 0
    """Other programs that run beside them."""


def spin() -> None:
    """Never rest."""
    while True:
        pass


def main() -> None:
    """Print the median milliseconds a step of each way, and ratios to the first one."""
    args = tyro.cli(Args)
    others = [multiprocessing.Process(target=spin, daemon=True) for _ in range(args.busy)]
    for other in others:
        other.start()
    plain = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    taken: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(args.runs):
        for name, extra in WAYS.items():
            done = subprocess.run([sys.executable, "-c", STEPS], env=plain | extra, capture_output=True, text=True, check=True)
            taken[name].append(float(done.stdout))
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.2f}, {args.busy} busy programs beside, n = {args.runs}")
    first = median(taken["spinning"])
    for name, values in taken.items():
        print(f"{name:12} {median(values):7.1f} ms a step, {first / median(values):.2f} times as fast as spinning")


if __name__ == "__main__":
    main()
