"""Scores in one world against scores in another one: a point a policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..worldmodel.files import replacing
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
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(worlds), figsize=(5.4 * len(worlds) + 1.8, 5.6), squeeze=False, sharey=True)
    for axis, (world, title), colour in zip(axes[0], worlds.items(), COLOURS, strict=False):
        shade = [value / 255 for value in colour]
        axis.plot([0, 1], [0, 1], color="0.75", linewidth=1, zorder=0)
        for number, line in enumerate(lines, 1):
            x, y = line[reference], line[world]
            if x is None or y is None:
                continue
            spread = {}
            if line[f"{reference}_low"] is not None and line[f"{world}_low"] is not None:
                spread["xerr"] = [[x - line[f"{reference}_low"]], [line[f"{reference}_high"] - x]]
                spread["yerr"] = [[y - line[f"{world}_low"]], [line[f"{world}_high"] - y]]
            axis.errorbar(x, y, **spread, fmt="o", ms=11, color=shade, ecolor="0.8", markeredgecolor="white", zorder=number)
            axis.annotate(str(number), (x, y), ha="center", va="center", fontsize=7, zorder=100 + number)
        axis.set(title=title, xlabel=f"score in the {reference} world", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        axis.set_ylabel(f"score in the {world} world")
    named = "\n".join(f"{number}  {line['policy']}" for number, line in enumerate(lines, 1))
    figure.tight_layout(rect=(0, 0, 1 - 1.8 / figure.get_figwidth(), 1))
    figure.text(1 - 1.7 / figure.get_figwidth(), 0.5, named, va="center", fontsize=9, linespacing=1.5)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=110, format="png")
    pyplot.close(figure)
