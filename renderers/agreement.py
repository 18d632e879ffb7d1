"""Scores in one world against scores in another one: a point a policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from .palette import BLUISH_GREEN, ORANGE, SKY_BLUE

COLOURS = (SKY_BLUE, ORANGE, BLUISH_GREEN)


def plot_agreement(path: Path, reference: str, worlds: Mapping[str, str], lines: Sequence[Mapping[str, Any]]) -> None:
    """Write a picture with one panel a world: the policies' scores there against those in the reference world.

    Args:
        path: of the PNG.
        reference: the reference world.
        worlds: what stands above each panel, by the world's name.
        lines: one a policy, with `policy` and, for each world, its score and `_low` and `_high`.
    """
    figure, axes = pyplot.subplots(1, len(worlds), figsize=(6.2 * len(worlds), 6.0), squeeze=False, sharey=True)
    for axis, (world, title), colour in zip(axes[0], worlds.items(), COLOURS, strict=False):
        axis.plot([0, 1], [0, 1], color="0.75", linewidth=1, zorder=0)
        for line in lines:
            x, y = line[reference], line[world]
            low = [[x - line[f"{reference}_low"]], [y - line[f"{world}_low"]]]
            high = [[line[f"{reference}_high"] - x], [line[f"{world}_high"] - y]]
            axis.errorbar(
                x, y, xerr=[low[0], high[0]], yerr=[low[1], high[1]], fmt="o", ms=6, color=[c / 255 for c in colour], ecolor="0.7"
            )
            axis.annotate(line["policy"], (x, y), xytext=(6, 5), textcoords="offset points", fontsize=8)
        axis.set(title=title, xlabel=f"score in the {reference} world", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        axis.set_ylabel(f"score in the {world} world")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
