"""Fingerprints of what an evaluation reads, so that it is resumed and repeated with the same scenes, weights and drivers only."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ..worldmodel.data.shards import SceneDataset
from ..worldmodel.lineage import TRAINING_FILE
from ..worldmodel.shipped import SHIPPED_SIGNALS, model_folder
from .policy import POLICIES

MODEL_FILES = (".safetensors", ".json")
"""How the files of a model's folder end that change what it does; its card does not, nor what is told of its training."""


def fingerprints(scenes: SceneDataset, worlds: Sequence[str], weights: Path | None, policies: Sequence[str]) -> dict[str, str]:
    """Return the sha256 of each input by its name.

    Args:
        scenes: those that are driven; of them the checksums that their data set's index holds.
        worlds: by name; the learned ones read `weights` (None: the shipped ones) and the shipped network of signals.
        weights: folder of a behaviour model.
        policies: by name: of a trained one its folder, of a user's own the file of its module, which has to be imported.
    """
    index = [(entry["id"], entry["crc32"]) for entry in scenes.entries]
    found = {f"scenes {scenes.path}": hashlib.sha256(json.dumps(index).encode()).hexdigest()}
    if any(world.startswith("learned") for world in worlds):
        found[f"weights {weights or 'shipped'}"] = _digest(_model(model_folder(weights)) + _model(SHIPPED_SIGNALS))
    for name in policies:
        files = [] if name in POLICIES else _model(Path(name)) if Path(name).is_dir() else _module(name)
        if files:
            found[f"policy {name}"] = _digest(files)
    return found


def _model(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix in MODEL_FILES and file.name != TRAINING_FILE)


def _module(name: str) -> list[Path]:
    file = getattr(sys.modules.get(name.partition(":")[0]), "__file__", None)
    return [Path(file)] if file else []


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\n".encode() + file.read_bytes())
    return digest.hexdigest()
