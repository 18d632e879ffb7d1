"""How long an evaluation takes: `python tests/benchmarks/evaluate_speed.py --scenes scenes/held`.

`worldloop evaluate` of the rule policy `idm` on 100 scenes of 8 s in the learned world, with as many processes as cores and then
with one; the rows of both have to be the same, bit for bit. The target is 60 s on two cores.
"""

from __future__ import annotations

import csv
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

TARGET_SECONDS = 60.0


@dataclass(frozen=True)
class Args:
    """Measure the speed of an evaluation."""

    scenes: str = "demo"
    """Data set to take scenes from; with fewer than 100 scenes each is driven with several seeds."""
    policy: str = "idm"
    """Who drives."""
    count: int = 100
    """Scenarios."""


def rows(folder: Path) -> list[dict[str, str]]:
    """The rows of an evaluation without what is measured in seconds."""
    with (folder / "scenarios.csv").open() as file:
        return [{name: value for name, value in row.items() if name != "steps_per_second"} for row in csv.DictReader(file)]


def main() -> None:
    """Evaluate twice and print the numbers beside their target."""
    args = tyro.cli(Args)
    from worldloop.agents.rollout import open_scenes

    scenes = open_scenes(args.scenes)
    seeds = [str(seed) for seed in range(-(-args.count // len(scenes)))]
    found = {}
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.2f}")
    with tempfile.TemporaryDirectory() as place:
        for workers in (os.cpu_count() or 1, 1):
            out = Path(place) / str(workers)
            words = ["evaluate", "--policies", args.policy, "--scenes", args.scenes, "--limit", str(args.count)]
            command = [sys.executable, "-m", "worldloop.agents.cli", *words, "--horizon", "80", "--seeds", *seeds]
            began = time.perf_counter()
            subprocess.run([*command, "--workers", str(workers), "--out", str(out)], check=True, capture_output=True)
            found[workers] = rows(out)
            seconds = time.perf_counter() - began
            target = f"(target <= {TARGET_SECONDS:.0f} on two cores)"
            print(f"{len(found[workers])} scenarios, {workers} workers: {seconds:.1f} s {target}")
    print("rows are the same" if len({str(table) for table in found.values()}) == 1 else "ROWS DIFFER")


if __name__ == "__main__":
    main()
