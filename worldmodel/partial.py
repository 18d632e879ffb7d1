"""Partial folders: what is to be there whole or not at all is made as `<name>.partial`, by one process at a time."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def require_abandoned(partial: Path, process: int) -> None:
    """Raise FileExistsError if the process that makes `partial` is alive, as it would lose what it has written."""
    with suppress(ProcessLookupError):
        with suppress(PermissionError):  # alive, but another user's
            os.kill(process, 0)
        told = f"{partial}: process {process} is writing it: wait for it or name another place"
        raise FileExistsError(f"{told} (or remove it, if a killed process left it and another one has got its number since)")
