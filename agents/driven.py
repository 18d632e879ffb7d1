"""What was driven by hand: written down so that it can be driven again, replayed, or learned from.

    episodes.json       one entry an episode: scene, world, seed, what came of it, and a checksum of how it ended
    episode-000.csv     its steps: who drove, the action, where the ego was, the reward by its terms
    scenes/             a data set: each episode as a scene whose log is what was driven, for `--world replay`, `train clone`, ...

The actions, seed and world of an episode lead to the same bits again (`worldloop drive --replay FOLDER`).
"""

from __future__ import annotations

import csv
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..worldmodel.data.writing import ShardWriter
from ..worldmodel.files import write_csv, write_json
from ..worldmodel.scene import DERIVED, HISTORY_STEPS, Scene
from ..worldmodel.world import State
from .interventions import RECORDED
from .records import finished_record

EPISODES, SCENES = "episodes.json", "scenes"


@dataclass
class Recorder:
    """Takes down one episode while it is driven.

    Attributes:
        scene: what it started from (B = 1).
        world: its name; number: of the scene in its data set; seed: of its future.
        rows: one a step, as they stand in the CSV.
        moments: what a state shows of what a scene logs, by name, one entry a step.
    """

    scene: Scene
    world: str
    number: int
    seed: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    moments: dict[str, list[Tensor]] = field(default_factory=lambda: {name: [] for name in RECORDED})
    checksum: int = 0

    def add(self, state: State, row: Mapping[str, Any]) -> None:
        """Take down a step: the state it has led to, and its row."""
        for name, kept in self.moments.items():
            kept.append(getattr(state, name))
        self.rows.append(dict(row))
        self.checksum = checksum(state)

    def lately(self, name: str, steps: int) -> Tensor:
        """Return what `position`, `velocity` or `valid` was in the last `steps`, the present last: (1, A, steps, ...)."""
        past = getattr(self.scene, name)[:, :, : HISTORY_STEPS + 1]
        return torch.cat((past, *(moment[:, :, None] for moment in self.moments[name][-steps:])), dim=2)[:, :, -steps:]

    def as_scene(self, name: str) -> Scene:
        """Return it as a scene (B = 1): the second before the present as logged, from there on what was driven."""
        shown = {key: torch.stack(kept, dim=2) for key, kept in self.moments.items()}
        whole = {
            key: torch.cat((getattr(self.scene, key)[:, :, : HISTORY_STEPS + 1], part), dim=2) for key, part in shown.items()
        }
        return replace(self.scene, id=(f"{self.scene.id[0]}{DERIVED}{name}",), recipe=("",), **whole)


def checksum(state: State) -> int:
    """Return a number that tells one state from another by every bit of where everyone is."""
    value = 0
    for name in ("position", "heading", "velocity", "valid"):
        value = zlib.crc32(getattr(state, name).contiguous().flatten().view(torch.uint8).numpy(), value)
    return value


def write_drive(folder: Path, episodes: Sequence[tuple[Recorder, Mapping[str, Any]]]) -> None:
    """Write episodes that have steps, each with what came of it, into a run folder; see the module's text."""
    entries = []
    for number, (recorder, came) in enumerate(episodes):
        name = f"episode-{number:03d}"
        write_csv(folder / f"{name}.csv", recorder.rows)
        where = {"episode": name, "scene": recorder.scene.id[0], "number": recorder.number, "world": recorder.world}
        entries.append({**where, "seed": recorder.seed, "checksum": recorder.checksum, **came})
    write_json(folder / EPISODES, entries)
    if episodes:
        with ShardWriter(folder / SCENES) as writer:
            for entry, (recorder, _) in zip(entries, episodes, strict=True):
                writer.add(recorder.as_scene(entry["episode"]), source=f"driven in the {recorder.world} world")


@dataclass(frozen=True)
class Recording:
    """An episode that was written down: its scene's id, world and seed, actions (n, 2) float32, checksum of its end."""

    name: str
    scene: str
    world: str
    seed: int
    actions: Tensor
    checksum: int


def read_drive(folder: Path) -> tuple[dict[str, Any], list[Recording]]:
    """Return the arguments of a `worldloop drive` and its episodes.

    Raises:
        ValueError: the folder holds none, or a file of it is damaged.
    """
    record = finished_record(folder, "drive")
    recordings = []
    try:
        for entry in json.loads((folder / EPISODES).read_text()):
            with (folder / f"{entry['episode']}.csv").open(newline="") as file:
                actions = [(float(row["acceleration"]), float(row["curvature"])) for row in csv.DictReader(file)]
            if len(actions) != entry["steps"]:
                raise ValueError(f"{entry['episode']}.csv holds {len(actions)} steps, {EPISODES} says {entry['steps']}")
            told = (entry["episode"], entry["scene"], entry["world"], int(entry["seed"]))
            recordings.append(Recording(*told, torch.tensor(actions), int(entry["checksum"])))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder}: its episodes cannot be read ({type(error).__name__}: {error}): drive again") from error
    if not recordings:
        raise ValueError(f"{folder}: nothing was driven in that run, so there is nothing to replay")
    return record["arguments"], recordings
