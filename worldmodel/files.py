"""Files that are there whole or not at all, whatever kills the process or fills the disk while they are written."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the temporary name of a file that is to be there whole or not at all; it takes the name `path` at the end.

    Raises:
        OSError: the disk is full or the place cannot be written; the message names it.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"{path}: cannot be written ({reason}): free some space or choose another place") from error
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text)


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], header: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file so that it is there whole or not at all, readable like other files of its folder."""
    import safetensors.torch  # imports torch

    with replacing(path) as partial:
        try:
            content = {name: tensor.contiguous() for name, tensor in tensors.items()}
            safetensors.torch.save_file(content, partial, metadata=dict(header or {}))
        except safetensors.SafetensorError as error:
            raise OSError(str(error)) from error
        partial.chmod(path.parent.stat().st_mode & 0o666)  # safetensors makes files that only their owner reads


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that it is there whole or not at all; paths become text, NaN is an error."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False, default=str) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows that share their keys as CSV; None becomes an empty cell."""
    with replacing(path) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)
