"""What a command could not do: counted, shown, written down; never skipped in silence."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from ..worldmodel.files import write_csv
from .bootstrap import counted

SHOWN = 10
"""Failures that are printed; all of them stand in failures.csv."""


class Failures(list[dict[str, str]]):
    """Scenes that failed, each with its error."""

    def note(self, scene: str, error: BaseException, **more: str) -> None:
        """Add one; `more` goes into columns of its own."""
        self.append({"scene": scene, **more, "error": " ".join(str(error).split())})

    def first(self) -> str:
        """Return the first one as text; there has to be one."""
        return ", ".join(value for name, value in self[0].items() if name != "error") + f": {self[0]['error']}"

    def refuse_all(self, count: int) -> None:
        """Raise ValueError if all of `count` scenes failed, as then there is nothing to report."""
        if len(self) == count:
            raise ValueError(f"of {counted(count, 'scene')} all failed, the first one: {self.first()}")

    def write(self, folder: Path) -> None:
        """Write `failures.csv` into a run folder, if there are any."""
        if self:
            write_csv(folder / "failures.csv", self)

    def tell(self) -> int:
        """Print them on the error output; return the exit code, 1 if there are any."""
        console = Console(stderr=True, highlight=False)
        for failure in self[:SHOWN]:
            console.print(f"failed: {Failures([failure]).first()}", markup=False, soft_wrap=True)
        if len(self) > SHOWN:
            console.print(f"and {len(self) - SHOWN} more: see failures.csv in the run folder", markup=False)
        return 1 if self else 0
