"""Our on-disk form of scenes: a folder with `index.json` and shards of 128 scenes each in safetensors.

    index.json                    {"format", "version", "scenes": [{"id", "recipe", "file", "number", "agents", "steps",
                                  "crc32", "source"}, ...]}
    shard-00000.safetensors       tensors "<number>/<field>" for every field of `scene.LAYOUT` without the dimension B

Safetensors maps files into memory and reads single tensors lazily, and holds no code as pickle does. A data set is written
under the name `<folder>.partial` and renamed when it is whole, so a folder under its final name is always whole. One that is
overwritten stands aside as `<folder>.former` for the moment of the renaming. Clips (`clips.py`) are kept in the same way.
"""

from __future__ import annotations

import difflib
import fnmatch
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError, safe_open

from ..scene import LAYOUT, InvalidSceneError, Scene, stack

SHARD_NAME = re.compile(r"shard-\d{5,}\.safetensors")


class DataError(ValueError):
    """A file or folder that cannot be read; the message names it, what is wrong and what to do."""


@dataclass(frozen=True)
class Skipped:
    """What a reader yields in place of a scene that is left out on purpose: whose, and why."""

    source: str
    reason: str


def checksum(scene: Scene) -> int:
    """Return the crc32 of id, recipe and all tensors' bytes of one scene (B = 1)."""
    value = zlib.crc32(json.dumps([scene.id[0], scene.recipe[0]]).encode())
    for name in LAYOUT:
        value = zlib.crc32(getattr(scene, name).contiguous().flatten().view(torch.uint8).numpy(), value)
    return value


class ShardFolder:
    """A data set on disk: what those of scenes and of clips share.

    Attributes:
        path, index: the folder, and what its `index.json` says.
        entries: one dictionary an item, as in `index.json`.
        ids: the items' names, in order.
    """

    ITEM: ClassVar[str]  # the word for one; the index lists them under its plural
    ENTRY: ClassVar[dict[str, type]]  # what is read of an entry of the index
    VERSION: ClassVar[int] = 1

    def __init__(self, path: str | Path):
        """Open the folder `path`; a DataError if it is no data set of such items, of a version that this release reads."""
        self.path = Path(path)
        self.index = _read_index(self.path, self.ITEM, self.VERSION, self.ENTRY)
        self._files: dict[str, Any] = {}
        self._set_entries(self.index[f"{self.ITEM}s"])

    @classmethod
    def named(cls, text: str) -> Self:
        """Open `FOLDER`, or the items of `FOLDER:GLOB` (see `subset`), as a command line names them."""
        folder, _, pattern = (text, "", "") if Path(text).exists() else text.partition(":")
        return cls(folder).subset(pattern) if pattern else cls(folder)

    def _set_entries(self, entries: list[dict[str, Any]]) -> None:
        self.entries = entries
        self.ids = tuple(entry["id"] for entry in entries)
        self._number = {name: number for number, name in enumerate(self.ids)}
        if len(self._number) != len(entries):
            double = next(name for number, name in enumerate(self.ids) if self._number[name] != number)
            raise DataError(f"{self.path / 'index.json'}: the {self.ITEM} id {double} stands twice: import the data again")

    def __len__(self) -> int:
        """How many items there are."""
        return len(self.entries)

    def index_of(self, name: str) -> int:
        """Return the number of the item called `name`.

        Raises:
            DataError: there is none; the message names the nearest ones.
        """
        if name not in self._number:
            nearest = difflib.get_close_matches(name, self.ids, n=3, cutoff=0.0)
            raise DataError(f"{self.path}: no {self.ITEM} {name!r} among {len(self)}; nearest: {', '.join(nearest)}")
        return self._number[name]

    def first(self, count: int) -> Self:
        """Return the data set of the first `count` items, or of all if there are fewer.

        Raises:
            ValueError: `count` is below 1.
        """
        if count < 1:
            raise ValueError(f"found a limit of {count} {self.ITEM}s, wanted at least 1")
        return self._part(self.entries[:count])

    def share(self, part: float, seed: int = 0) -> Self:
        """Return the data set of a random `part` (0 to 1) of the items, at least one: smaller parts lie within larger ones.

        Raises:
            ValueError: `part` is not above 0 and at most 1.
        """
        if not 0 < part <= 1:
            raise ValueError(f"found a share of {part} of the {self.ITEM}s, wanted more than 0 and at most 1")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        kept = order[: max(round(part * len(self)), 1)].sort().values
        return self._part([self.entries[number] for number in kept.tolist()])

    def _part(self, entries: list[dict[str, Any]]) -> Self:
        part = copy(self)
        part._set_entries(entries)
        return part

    def subset(self, pattern: str) -> Self:
        """Return the data set of the items whose id starts with `pattern` or matches it as a glob (`*`, `?`, `[...]`).

        Raises:
            DataError: no id matches.
        """
        chosen = [e for e in self.entries if e["id"].startswith(pattern) or fnmatch.fnmatchcase(e["id"], pattern)]
        if not chosen:
            raise DataError(f"{self.path}: no {self.ITEM} matches {pattern!r}; there are {len(self)}, such as {self.ids[0]}")
        return self._part(chosen)

    def _stored(self, entry: dict[str, Any], field: str, get: str = "get_tensor") -> Any:
        """Return a tensor of an item, or its lazy form (`get` = "get_slice")."""
        if entry["file"] not in self._files:
            self._files[entry["file"]] = _open_shard(self.path / entry["file"], self.ITEM, self.VERSION)
        try:
            return getattr(self._files[entry["file"]], get)(f"{entry['number']}/{field}")
        except SafetensorError as error:
            raise self._damage(entry, f"cannot be read ({error})") from error

    def _damage(self, entry: dict[str, Any], what: str) -> DataError:
        return DataError(f"{self.path / entry['file']}: {self.ITEM} {entry['id']} {what}: import the data again")


class SceneDataset(ShardFolder):
    """Scenes on disk: they are read when asked for, and their checksum is verified then."""

    ITEM = "scene"
    ENTRY = {"id": str, "recipe": str, "file": str, "number": int, "crc32": int}
    VERSION = 2

    def __iter__(self) -> Iterator[Scene]:
        """Yield every scene as a batch of one."""
        yield from map(self._read, range(len(self)))

    def sizes(self, *, readable: bool = False) -> dict[str, int]:
        """Return the largest size of every dimension (but B) over all scenes, from the shards' headers alone.

        Raises:
            DataError: a shard is damaged; but not where only `readable` scenes count, as the others fail when they are loaded.
        """
        largest: dict[str, int] = {}
        for entry in self.entries:
            try:
                found = self._sizes_of(entry)
            except DataError:
                if readable:
                    continue
                raise
            largest |= {letter: max(largest.get(letter, 0), size) for letter, size in found.items()}
        return largest

    def _sizes_of(self, entry: dict[str, Any]) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for field in ("position", "polyline", "lane_link", "signal_state", "route"):
            shape, wanted = self._stored(entry, field, "get_slice").get_shape(), LAYOUT[field][0][1:]
            if len(shape) != len(wanted):
                raise self._damage(entry, f"has {field} of shape {tuple(shape)}, wanted ({', '.join(map(str, wanted))})")
            sizes |= {letter: size for letter, size in zip(wanted, shape, strict=True) if isinstance(letter, str)}
        return sizes

    def load(self, which: Sequence[int | str] | int | str, *, validate: bool = True) -> Scene:
        """Return scenes by number or id as one batch in that order, padded to the largest; repeats are allowed.

        Not to `validate` spares a training, which draws scenes all the time, what takes about as long as the reading.

        Raises:
            DataError: an id is unknown, a shard is damaged, or a scene breaks the contract. IndexError: a number is out of range.
        """
        chosen = [which] if isinstance(which, int | str) else which
        numbers = [self.index_of(one) if isinstance(one, str) else int(one) for one in chosen]
        for number in numbers:
            if not -len(self) <= number < len(self):
                raise IndexError(f"{self.path}: no scene number {number}, there are {len(self)}")
        once = {number: self._read(number, validate) for number in dict.fromkeys(numbers)}
        return stack([once[number] for number in numbers])

    def _read(self, number: int, validate: bool = False) -> Scene:
        entry = self.entries[number]
        tensors = {field: self._stored(entry, field)[None] for field in LAYOUT}
        scene = Scene(id=(entry["id"],), recipe=(entry["recipe"],), **tensors)
        if checksum(scene) != entry["crc32"]:
            raise self._damage(entry, "is damaged (its checksum differs from the index)")
        try:
            return scene.validate() if validate else scene
        except InvalidSceneError as error:
            raise DataError(f"{self.path / entry['file']}: {error}: mend what made it, and make the data set again") from error


def _read_index(folder: Path, item: str, version: int, wanted: dict[str, type]) -> dict[str, Any]:
    """Return what `index.json` of `folder` says, its list of items checked."""
    file = folder / "index.json"
    if not file.is_file():
        what = "holds no index.json" if folder.is_dir() else "does not exist" if not folder.exists() else "is no folder"
        raise DataError(
            f"{folder}: {what}, so it is no worldloop data set: make one with `worldloop data import` or `data generate`"
        )
    try:
        index = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: is no JSON ({error}): import the data again") from error
    _check_header(index, file, item, version)
    entries = index.get(f"{item}s")
    if not entries or not isinstance(entries, list):
        raise DataError(f"{file}: lists no {item}s: import the data again")
    for number, entry in enumerate(entries):
        wrong = [name for name, kind in wanted.items() if not isinstance(entry, dict) or type(entry.get(name)) is not kind]
        if wrong or not SHARD_NAME.fullmatch(entry["file"]):
            raise DataError(f"{file}: {item} {number} lacks a proper {(wrong or ['file'])[0]}: import the data again")
    return index


def _check_header(header: Any, file: Path, item: str, version: int) -> None:
    found = str(header.get("format")) if isinstance(header, dict) else ""
    if found != f"worldloop {item}s":
        what = f"holds {found}, wanted {item}s" if found.startswith("worldloop ") else "was not written by worldloop"
        raise DataError(f"{file}: {what}: make a data set with `worldloop data import` or `data generate`")
    if header.get("version") != version:
        has = header.get("version")
        raise DataError(f"{file}: has version {has}, this release reads version {version}: import the data again")


def _open_shard(file: Path, item: str, version: int) -> Any:
    try:
        shard = safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise DataError(f"{file}: cannot be read ({error}): import the data again") from error
    try:
        header = json.loads((shard.metadata() or {}).get("worldloop", "null"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: has an unreadable header ({error}): import the data again") from error
    _check_header(header, file, item, version)
    return shard
