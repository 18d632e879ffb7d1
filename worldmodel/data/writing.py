"""Writing the on-disk form of scenes (`shards.py`): whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..scene import HISTORY_STEPS, LAYOUT, Scene
from .shards import FORMAT, SCENES_PER_SHARD, SHARD_NAME, VERSION, DataError, checksum


def trim(scene: Scene) -> Scene:
    """Return one scene (B = 1) without the invalid rows and steps at the end of its dimensions; inverse of `Scene.pad`."""

    def used(mask: Tensor, least: int = 0) -> int:
        """Count up to the last row of `mask` (n, ...) that holds anything."""
        rows = mask.flatten(1).any(dim=1).nonzero() if mask.numel() else mask.new_zeros(0)
        return max(int(rows[-1]) + 1 if len(rows) else 0, least)

    valid, signals = scene.valid[0], scene.signal_valid[0]
    points = scene.polyline_valid[0]
    sizes = {
        "A": used(valid, int(scene.ego[0]) + 1),
        "T": max(used(valid.T, HISTORY_STEPS + 1), used(signals.T)),
        "L": used(points),
        "P": used(points.T, 2),
        "E": used(scene.lane_link_valid[0][:, None]),
        "S": used(signals),
        "R": used(scene.route_valid[0][:, None], 2),
    }
    changes = {}
    for name, (dimensions, _) in LAYOUT.items():
        ends = tuple(slice(0, sizes.get(d)) if isinstance(d, str) else slice(None) for d in dimensions)
        changes[name] = getattr(scene, name)[ends]
    return Scene(id=scene.id, recipe=scene.recipe, **changes)


class ShardWriter:
    """Writes a data set; use it as a context manager, so that it is renamed when whole and removed when an error comes.

    Attributes:
        notices: what a person should know, such as that the rest of a killed import was removed.
    """

    def __init__(self, path: str | Path, *, overwrite: bool = False):
        """Prepare to write the data set `path`; an existing one is replaced at the end if `overwrite`."""
        self.path = Path(path)
        self.partial = self.path.with_name(self.path.name + ".partial")
        self.former = self.path.with_name(self.path.name + ".former")
        self.overwrite = overwrite
        self.notices: list[str] = []
        self._entries: list[dict[str, Any]] = []
        self._ids: set[str] = set()
        self._tensors: dict[str, Tensor] = {}
        self._waiting = 0

    def __enter__(self) -> Self:
        """Make the partial folder.

        Raises:
            DataError: the destination exists and may not be overwritten, or something foreign is in the way.
        """
        if self.former.exists():  # a kill came between the two renames of an overwriting import
            _require_ours(self.former)
            if not self.path.exists():
                os.replace(self.former, self.path)
                self.notices.append(f"{self.path}: put back as it was before an interrupted import")
            else:
                shutil.rmtree(self.former)
        if self.path.exists():
            if not self.overwrite:
                raise DataError(f"{self.path}: exists already: choose another destination or overwrite it (--overwrite)")
            _require_ours(self.path)
        if self.partial.exists():
            _require_ours(self.partial)
            shutil.rmtree(self.partial)
            self.notices.append(f"{self.partial}: removed what an interrupted import had left; starting anew")
        self.partial.mkdir(parents=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Finish and rename, or remove what was written if an error came."""
        try:
            if kind is None:
                self._finish()
        finally:
            if self.partial.exists():
                shutil.rmtree(self.partial)

    def add(self, scenes: Scene, source: str = "") -> None:
        """Append every scene of a batch; `source` says where it comes from.

        Raises:
            DataError: an id is there already.
            OSError: the disk is full.
        """
        for row in range(len(scenes)):
            scene = trim(scenes.take([row]).validate())
            name = scene.id[0]
            if name in self._ids:
                raise DataError(f"{source or self.path}: the scene id {name} is there already: ids must be unique")
            self._ids.add(name)
            self._entries.append(
                {
                    "id": name,
                    "recipe": scene.recipe[0],
                    "file": f"shard-{(len(self._entries)) // SCENES_PER_SHARD:05d}.safetensors",
                    "number": len(self._entries),
                    "agents": int(scene.valid[0].any(dim=-1).sum()),
                    "steps": scene.steps,
                    "crc32": checksum(scene),
                    "source": source,
                }
            )
            number = len(self._entries) - 1
            self._tensors |= {f"{number}/{field}": getattr(scene, field)[0].clone() for field in LAYOUT}
            self._waiting += 1
            if self._waiting == SCENES_PER_SHARD:
                self._write_shard()

    def _write_shard(self) -> None:
        target = self.partial / self._entries[-1]["file"]
        header = {"worldloop": json.dumps({"format": FORMAT, "version": VERSION})}
        try:
            save_file(self._tensors, target, metadata=header)
        except SafetensorError as error:
            raise OSError(f"{target}: cannot be written ({error}): free some space or choose another disk") from error
        target.chmod(self.partial.stat().st_mode & 0o666)  # safetensors makes files that only their owner reads
        self._tensors, self._waiting = {}, 0

    def _finish(self) -> None:
        if not self._entries:
            raise DataError(f"{self.path}: no scenes to write: the source holds none that can be used")
        if self._waiting:
            self._write_shard()
        index = {"format": FORMAT, "version": VERSION, "scenes": self._entries}
        (self.partial / "index.json").write_text(json.dumps(index, indent=1))
        if self.path.exists():
            if not self.overwrite:
                raise DataError(f"{self.path}: was made by someone else meanwhile: choose another destination")
            os.replace(self.path, self.former)
        os.replace(self.partial, self.path)
        shutil.rmtree(self.former, ignore_errors=True)


def _require_ours(folder: Path) -> None:
    """Raise unless `folder` holds nothing but what ShardWriter writes: a foreign folder is never deleted."""
    foreign = None if folder.is_dir() else folder.name
    for entry in folder.iterdir() if foreign is None else ():
        if entry.name != "index.json" and not SHARD_NAME.fullmatch(entry.name):
            foreign = entry.name
    if foreign is not None:
        raise DataError(f"{folder}: holds {foreign}, which no import wrote, so it is not overwritten: choose another destination")
