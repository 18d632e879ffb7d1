"""Files that may be gzipped: their content, but never more of it than memory can hold."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from .shards import DataError

MOST_BYTES = 256 * 2**20
"""What a gzipped file may unpack to: some kilobytes of it can stand for gigabytes, and a scene takes a few megabytes."""


def read_content(file: Path) -> bytes:
    """Return the bytes of a file, unpacked if it is gzipped.

    Raises:
        DataError: it cannot be read, is cut short, or unpacks to more than `MOST_BYTES`.
    """
    try:
        with file.open("rb") as plain:
            is_gzipped = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            if not is_gzipped:
                return plain.read()
            with gzip.GzipFile(fileobj=plain) as packed:
                content = packed.read(MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file}: cannot be read, or is no whole gzip file ({error}): fetch the file again") from error
    if len(content) > MOST_BYTES:
        raise DataError(f"{file}: unpacks to more than {MOST_BYTES / 2**20:.0f} MiB: unpack it yourself if you trust it")
    return content
