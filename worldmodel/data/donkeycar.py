"""DonkeyCar's tubs: what a radio-controlled car saw and was told to do, as a folder or packed in a .tar.

    manifest.json         five lines of JSON: names of the inputs, their types, two of metadata, {"paths", "deleted_indexes", ...}
    catalog_N.catalog     a record a line: {"_index", "_session_id", "_timestamp_ms", "cam/image_array": the picture's name,
                          "user/angle", "user/throttle", "user/mode"}; preallocated files carry NULs
    images/...jpg         the pictures

Actions keep DonkeyCar's meaning: `steering` from -1 (full left) to 1 (full right), `throttle` from -1 (reverse) to 1. Catalogs
that the manifest does not name are read too: tubs are handed on whose manifest names only some. An archive is read in place and
nothing of it is unpacked; one with a link, a device or a path that leads out of it is refused.

A clip ends where records are not neighbours in time: an index is missing or deleted, its picture is gone, a pilot drove, the
session changes, the clock goes back, or more than `LONGEST_STEP` periods pass. Short steps end none: tubs that were converted
from an older form carry the time of the conversion.

https://docs.donkeycar.com/utility/donkey (tub format version 2)
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from .clips import LONGEST, Clip, pieces, runs
from .images import read_frames
from .shards import DataError, Skipped

PATTERNS = ("manifest.json", "*/manifest.json", "*.tar")
"""How files of this format are called: a tub is found by its manifest."""

RATE = 20.0
"""Hz: the rate of DonkeyCar's drive loop (DRIVE_LOOP_HZ) unless the user changed it."""
LONGEST_STEP = 2.0
"""Between two frames of a clip, in periods: more, and at least one was lost."""
SHORTEST = 1.0
"""Seconds: what is shorter between two gaps is left out."""

INPUTS = {"cam/image_array": "image_array", "user/angle": "float", "user/throttle": "float", "user/mode": "str"}
"""What is read of a record, and DonkeyCar's name of its type."""
CATALOG = re.compile(r"catalog_(\d+)\.catalog")
MOST_MEMBER_BYTES = 2**26
"""Of one file of a tub: a catalog of 1,000 records takes 200 kB, a picture a few."""

Read = Callable[[str], bytes]


@dataclass(frozen=True)
class Record:
    """One record: its number, session, time in ms, picture, steering, throttle, and who drove."""

    index: int
    session: str | None
    time: int
    picture: str
    steering: float
    throttle: float
    mode: str


def read_file(
    file: Path, size: tuple[int, int] | None = None, rate: float | None = None, longest: int = LONGEST
) -> Iterator[Clip | Skipped]:
    """Yield the clips of the tub whose `manifest.json`, or whose .tar, `file` is, and what was left out.

    Args:
        file: the manifest or the archive.
        size: height and width that the frames are to have; None keeps theirs.
        rate: frames a second, `RATE` if not given.
        longest: frames of a clip at the most.

    Raises:
        DataError: the tub cannot be read or is not as the module says; the message names file and record.
    """
    rate = RATE if rate is None else rate
    archived = file.name != "manifest.json"
    place, name = (str(file), file.stem) if archived else (str(file.parent), file.parent.resolve().name)
    with _open_archive(file) if archived else _open_folder(file.parent) as (names, read):
        records, left_out = _read_tub(place, names, read)
        yield from left_out
        gaps = [number > 0 and _is_gap(records[number - 1], record, rate) for number, record in enumerate(records)]
        made = 0
        for run in runs(gaps):
            first, last = records[run.start], records[run.stop - 1]
            if len(run) < SHORTEST * rate:
                what = f"{len(run)} frames between two gaps, wanted at least {SHORTEST * rate:.0f}"
                yield Skipped(f"{place}: records {first.index} to {last.index}", what)
                continue
            for piece in pieces(run, longest):
                part = records[piece.start : piece.stop]
                frames = read_frames([f"images/{record.picture}" for record in part], read, place, size)
                action = torch.tensor([(record.steering, record.throttle) for record in part])
                yield Clip(f"{name}/{made:04d}", frames, action, ("steering", "throttle"), rate, part[0].index)
                made += 1


def _is_gap(before: Record, record: Record, rate: float) -> bool:
    """Whether two records that follow each other are not neighbours in time."""
    step = record.time - before.time
    broken = record.index != before.index + 1 or record.session != before.session
    return broken or not 0 <= step <= LONGEST_STEP * 1000 / rate


def _read_tub(place: str, names: set[str], read: Read) -> tuple[list[Record], list[Skipped]]:
    """Return the records that can be used, by index, and those left out, by why."""
    if "manifest.json" not in names:
        old = any(re.fullmatch(r"record_\d+\.json", name) for name in names)
        what = "is a tub of DonkeyCar 3: convert it with DonkeyCar's convert_to_tub_v2.py" if old else "is no tub of DonkeyCar"
        raise DataError(f"{place}: holds no manifest.json, so it {what}")
    catalogs, deleted = _read_manifest(place, read("manifest.json"))
    if missing := catalogs - names:
        raise DataError(f"{place}: manifest.json names {min(missing)}, which is not there: fetch the tub again")
    found = {name for name in names if CATALOG.fullmatch(name)}
    records: dict[int, Record] = {}
    for name in sorted(found, key=lambda name: int(CATALOG.fullmatch(name)[1])):  # pyright: ignore[reportOptionalSubscript]
        for record in _read_catalog(f"{place}: {name}", read(name)):
            if record.index in records:
                raise DataError(f"{place}: {name}: the record {record.index} stands twice: leave one out")
            records[record.index] = record
    kept: list[Record] = []
    left_out: list[tuple[int, int, str]] = []  # the first and the last index, and why
    for index, record in sorted(records.items()):
        why = ""
        if index in deleted:
            why = "deleted by the driver"
        elif f"images/{record.picture}" not in names:
            why = "their pictures are not there"
        elif record.mode != "user":
            why = f"driven in mode {record.mode!r}, whose actions are not the user's"
        if not why:
            kept.append(record)
        elif left_out and left_out[-1][1:] == (index - 1, why):
            left_out[-1] = left_out[-1][0], index, why
        else:
            left_out.append((index, index, why))
    return kept, [Skipped(f"{place}: records {first} to {last}", why) for first, last, why in left_out]


def _read_manifest(place: str, content: bytes) -> tuple[set[str], set[int]]:
    """Return the catalogs that the manifest names and the indexes that it marks as deleted."""
    place = f"{place}: manifest.json"
    try:
        lines: list[Any] = [json.loads(line) for line in content.replace(b"\0", b"").splitlines() if line.strip()]
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: is no JSON ({error}): fetch the tub again") from error
    if len(lines) != 5 or not isinstance(lines[0], list) or not isinstance(lines[1], list) or not isinstance(lines[4], dict):
        raise DataError(f"{place}: has {len(lines)} lines, wanted 5: inputs, types, two of metadata, catalogs")
    types = dict(zip(map(str, lines[0]), lines[1], strict=False))
    for name, kind in INPUTS.items():
        if types.get(name) != kind:
            raise DataError(f"{place}: has no input {name} of type {kind}, but {', '.join(types)}: no car with one camera")
    paths, deleted = lines[4].get("paths"), lines[4].get("deleted_indexes")
    if not isinstance(paths, list) or not all(isinstance(path, str) and CATALOG.fullmatch(path) for path in paths):
        raise DataError(f"{place}: found paths {str(paths)[:80]}, wanted names of catalogs (catalog_0.catalog)")
    if not isinstance(deleted, list) or any(type(index) is not int for index in deleted):
        raise DataError(f"{place}: found deleted_indexes {str(deleted)[:80]}, wanted whole numbers")
    return set(paths), set(deleted)


def _read_catalog(place: str, content: bytes) -> Iterator[Record]:
    """Yield the records of a catalog."""
    for number, line in enumerate(content.replace(b"\0", b"").splitlines(), 1):
        if line.strip():
            try:
                yield _record(json.loads(line))
            except (ValueError, KeyError, RecursionError) as error:
                what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
                raise DataError(f"{place}: record on line {number}: {what}: correct it or leave it out") from error


def _record(entry: Any) -> Record:
    """Return a record from its JSON; a ValueError or KeyError says what is wrong with it."""
    if not isinstance(entry, dict):
        raise ValueError(f"found {str(entry)[:80]}, wanted an object")
    index, time, picture, mode = (entry[name] for name in ("_index", "_timestamp_ms", "cam/image_array", "user/mode"))
    session = entry.get("_session_id")
    if type(index) is not int or type(time) is not int or min(index, time) < 0:
        raise ValueError(f"found _index {index!r} and _timestamp_ms {time!r}, wanted whole numbers")
    if not isinstance(picture, str) or PurePosixPath(picture).name != picture or "\\" in picture:
        raise ValueError(f"found the picture {picture!r}, wanted the name of a file in images/")
    if not isinstance(mode, str) or not isinstance(session, str | None):
        raise ValueError(f"found user/mode {mode!r} and _session_id {session!r}, wanted texts")
    for name in ("user/angle", "user/throttle"):
        if type(entry[name]) not in (int, float) or not -1 <= entry[name] <= 1:
            raise ValueError(f"found {name} {entry[name]!r}, wanted a number from -1 to 1")
    return Record(index, session, time, picture, float(entry["user/angle"]), float(entry["user/throttle"]), mode)


@contextmanager
def _open_folder(folder: Path) -> Iterator[tuple[set[str], Read]]:
    """Yield the names of a tub's files, relative to it, and what reads one."""
    names = {path.name for path in folder.iterdir() if path.is_file()}
    if (folder / "images").is_dir():
        names |= {f"images/{path.name}" for path in (folder / "images").iterdir()}
    yield names, lambda name: (folder / name).read_bytes()


@contextmanager
def _open_archive(file: Path) -> Iterator[tuple[set[str], Read]]:
    """Yield the same for an archive, in which the tub may lie in one folder."""
    try:
        with tarfile.open(file, "r:") as archive:
            members = _members(file, archive)
            tubs = {path.parent for path in members if path.name == "manifest.json"} or {PurePosixPath(".")}
            if len(tubs) > 1:
                raise DataError(f"{file}: holds {len(tubs)} tubs: pack each in an archive of its own")
            (tub,) = tubs
            inside = {str(path.relative_to(tub)): member for path, member in members.items() if path.is_relative_to(tub)}

            def read(name: str) -> bytes:
                opened = archive.extractfile(inside[name])
                assert opened is not None  # only plain files are listed
                return opened.read()

            yield set(inside), read
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{file}: is no whole .tar archive without compression ({error}): fetch it again or unpack it") from error


def _members(file: Path, archive: tarfile.TarFile) -> dict[PurePosixPath, tarfile.TarInfo]:
    """Return the plain files of an archive by path, refusing what no tub holds."""
    members: dict[PurePosixPath, tarfile.TarInfo] = {}
    for member in archive:
        path = PurePosixPath(member.name)
        what = ""
        if path.is_absolute() or ".." in path.parts or "\\" in member.name:
            what = "leads out of the archive"
        elif not (member.isfile() or member.isdir()) or member.issparse():
            what = "is a link, a device or a file with holes"
        elif member.size > MOST_MEMBER_BYTES:
            what = f"has {member.size} bytes, more than {MOST_MEMBER_BYTES}"
        elif path in members:
            what = "stands twice"
        if what:
            raise DataError(f"{file}: {member.name!r} {what}, as nothing of a tub does: do not trust this archive")
        if member.isfile():
            members[path] = member
    opened = archive.fileobj
    assert opened is not None
    opened.seek(archive.offset)
    if opened.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:  # tarfile takes a damaged header for the end
        raise DataError(f"{file}: is damaged or cut short at byte {archive.offset}: fetch it again")
    return members
