"""Rows of scenarios on disk: as CSV, and as Parquet, which keeps their types, where pyarrow is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..envs.score import TERMS
from ..worldmodel.files import replacing, write_csv
from .rollout import Scenario

TYPES = {
    **{"policy": "str", "world": "str", "human_filter": "bool"},
    **{field.name: field.type.removesuffix(" | None") for field in fields(Scenario) if isinstance(field.type, str)},
    **{f"term_{name}": "float" for name in TERMS},
}
"""Types of the columns by name; a cell may be empty."""


def write_rows(folder: Path, rows: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Write `scenarios.csv`, and `scenarios.parquet` with the extra parquet; return the files.

    Both hold the same rows, one a scenario, in the same order. A column has the same type in every run, empty or not, so that the
    files of several runs can be read as one table.
    """
    files = [folder / "scenarios.csv"]
    write_csv(files[0], rows)
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        return files
    kinds = {"str": pyarrow.string(), "int": pyarrow.int64(), "float": pyarrow.float64()}
    kinds["bool"] = pyarrow.bool_()
    schema = pyarrow.schema([(name, kinds[TYPES[name]]) for name in rows[0]])
    files.append(folder / "scenarios.parquet")
    with replacing(files[1]) as partial:
        parquet.write_table(pyarrow.Table.from_pylist(list(rows), schema=schema), partial)
    return files
