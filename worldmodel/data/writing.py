"""Writing a data set, of scenes (`shards.py`) or of clips (`clips.py`): whole or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..partial import require_abandoned
from ..scene import HISTORY_STEPS, LAYOUT, Scene
from .shards import SHARD_NAME, DataError, SceneDataset, ShardFolder, checksum

SCENES_PER_SHARD = 128
MARK_NAME = re.compile(r"writer-\d+")


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


class FolderWriter:
    """Writes a data set; use it as a context manager, so that it is renamed when whole and removed when an error comes.

    Attributes:
        notices: what a person should know, such as that the rest of a killed import was removed.
        header: what `index.json` says beside its version and its entries.
    """

    form: ClassVar[type[ShardFolder]]  # what reads what is written

    def __init__(self, path: str | Path, *, overwrite: bool = False):
        """Prepare to write the data set `path`; an existing one is replaced at the end if `overwrite`."""
        self.path = Path(path)
        self.partial = self.path.with_name(self.path.name + ".partial")
        self.former = self.path.with_name(self.path.name + ".former")
        self.mark = f"writer-{os.getpid()}"  # a file that says in the partial folder whose it is
        self.overwrite = overwrite
        self.notices: list[str] = []
        self.header: dict[str, Any] = {}
        self._entries: list[dict[str, Any]] = []
        self._ids: set[str] = set()
        self._tensors: dict[str, Tensor] = {}
        self._waiting = self._shards = 0

    def __enter__(self) -> Self:
        """Make the partial folder.

        Raises:
            DataError: the destination exists and may not be overwritten, or something foreign is in the way.
            FileExistsError: another process, or another writer of this one, is writing there.
        """
        if self.partial.exists():
            _require_ours(self.partial)
            for mark in self.partial.glob("writer-*"):
                require_abandoned(self.partial, int(mark.name.removeprefix("writer-")))
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
            shutil.rmtree(self.partial)
            self.notices.append(f"{self.partial}: removed what an interrupted import had left; starting anew")
        self.partial.mkdir(parents=True)
        (self.partial / self.mark).touch()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Finish and rename, or remove what was written if an error came."""
        try:
            if kind is None:
                self._finish()
        finally:
            if (self.partial / self.mark).exists():
                shutil.rmtree(self.partial)

    def _add(self, id: str, source: str, crc32: int, tensors: dict[str, Tensor], more: dict[str, Any]) -> None:
        """Append one item to the shard at hand; `more` is what its entry says beside what all entries say."""
        if id in self._ids:
            what = f"the {self.form.ITEM} id {id} is there already"
            raise DataError(f"{source or self.path}: {what}: ids must be unique")
        self._ids.add(id)
        number, file = len(self._entries), f"shard-{self._shards:05d}.safetensors"
        self._entries.append({"id": id, "file": file, "number": number, "crc32": crc32, "source": source} | more)
        self._tensors |= {f"{number}/{field}": tensor for field, tensor in tensors.items()}
        self._waiting += 1

    def _write_shard(self) -> None:
        target = self.partial / self._entries[-1]["file"]
        header = {"worldloop": json.dumps({"format": f"worldloop {self.form.ITEM}s", "version": self.form.VERSION})}
        try:
            save_file(self._tensors, target, metadata=header)
        except SafetensorError as error:
            raise OSError(f"{target}: cannot be written ({error}): free some space or choose another disk") from error
        target.chmod(self.partial.stat().st_mode & 0o666)  # safetensors makes files that only their owner reads
        self._tensors, self._waiting, self._shards = {}, 0, self._shards + 1

    def _finish(self) -> None:
        if not self._entries:
            raise DataError(f"{self.path}: no {self.form.ITEM}s to write: the source holds none that can be used")
        if self._waiting:
            self._write_shard()
        items = f"{self.form.ITEM}s"
        index = {"format": f"worldloop {items}", "version": self.form.VERSION} | self.header | {items: self._entries}
        (self.partial / "index.json").write_text(json.dumps(index, indent=1))
        if self.path.exists():
            if not self.overwrite:
                raise DataError(f"{self.path}: was made by someone else meanwhile: choose another destination")
            os.replace(self.path, self.former)
        os.replace(self.partial, self.path)
        (self.path / self.mark).unlink()  # only now, so that at no time the partial folder is nobody's
        shutil.rmtree(self.former, ignore_errors=True)


class ShardWriter(FolderWriter):
    """Writes scenes, 128 a shard."""

    form = SceneDataset

    def add(self, scenes: Scene, source: str = "") -> None:
        """Append every scene of a batch; `source` says where it comes from.

        Raises:
            DataError: an id is there already.
            OSError: the disk is full.
        """
        for row in range(len(scenes)):
            scene = trim(scenes.take([row]).validate())
            more = {"recipe": scene.recipe[0], "agents": int(scene.valid[0].any(dim=-1).sum()), "steps": scene.steps}
            tensors = {field: getattr(scene, field)[0].clone() for field in LAYOUT}
            self._add(scene.id[0], source, checksum(scene), tensors, more)
            if self._waiting == SCENES_PER_SHARD:
                self._write_shard()


def _require_ours(folder: Path) -> None:
    """Raise unless `folder` holds nothing but what a writer writes: a foreign folder is never deleted."""
    foreign = None if folder.is_dir() else folder.name
    for entry in folder.iterdir() if foreign is None else ():
        if entry.name != "index.json" and not SHARD_NAME.fullmatch(entry.name) and not MARK_NAME.fullmatch(entry.name):
            foreign = entry.name
    if foreign is not None:
        raise DataError(f"{folder}: holds {foreign}, which no import wrote, so it is not overwritten: choose another destination")
