"""How long `worldloop fidelity` takes for a scene: `python tests/benchmarks/fidelity_speed.py --scenes scenes/ngsim`.

The scene with the most road users at the present, its 64 nearest to the ego, 32 futures of 8 s in the learned world and in the
references, features and likelihoods included; start-up and pictures are measured by a run of one future of one step and
taken off. The target is 20 s on two cores.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro

TARGET_SECONDS = 20.0


@dataclass(frozen=True)
class Args:
    """Measure the seconds of a scene."""

    scenes: str = "demo"
    """Data set to take the scene from; the shipped ones have fewer than 64 road users."""
    agents: int = 64
    """At most so many road users."""
    weights: Path | None = None
    """Folder of a trained behaviour model, or small or large."""


def main() -> None:
    """Score the scene and print the seconds beside their target."""
    args = tyro.cli(Args)
    from worldloop.agents.fidelity import Fidelity, run_fidelity
    from worldloop.agents.rollout import open_scenes
    from worldloop.worldmodel.data.writing import ShardWriter
    from worldloop.worldmodel.open_loop import present_agents
    from worldloop.worldmodel.scene import HISTORY_STEPS, LAYOUT

    scene = max(map(present_agents, open_scenes(args.scenes)), key=lambda scene: (scene.steps > 90, scene.valid.shape[1]))
    place = scene.position[0, :, HISTORY_STEPS, :2]
    rows = (place - place[scene.ego[0]]).norm(dim=-1).argsort()[: args.agents]
    kept = {name: getattr(scene, name)[:, rows] for name, (letters, _) in LAYOUT.items() if letters[1:2] == ("A",)}
    scene = replace(scene, ego=torch.zeros(1, dtype=torch.int64), **kept)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        with ShardWriter(Path(folder) / "one") as writer:
            writer.add(scene, source="benchmark")
        seconds = []
        for name, rollouts, horizon in (("warm", 1, 1), ("empty", 1, 1), ("full", 32, 80)):
            began = time.perf_counter()
            run_fidelity(
                Fidelity(
                    (str(Path(folder) / "one"),),
                    weights=args.weights,
                    rollouts=rollouts,
                    horizon=horizon,
                    out=Path(folder) / name,
                )
            )
            seconds.append(time.perf_counter() - began)
    steps = min(80, scene.steps - 1 - HISTORY_STEPS)
    print(f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, load {load:.2f}")
    print(
        f"{scene.id[0]}, {len(rows)} road users, 32 futures of {steps / 10:g} s, four worlds: {seconds[2] - seconds[1]:.1f} s "
        f"(target <= {TARGET_SECONDS:.0f} on two cores)"
    )


if __name__ == "__main__":
    main()
