"""Histograms as pictures: what several worlds do, held against what a recording shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..worldmodel.files import replacing

RECORDED = "#BBBBBB"
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000")
STYLES = ("-", "--", "-.", ":", "-", "--")
"""Okabe and Ito's hues ("Color Universal Design", 2008), told apart by their dashes as well."""


def draw_distribution(
    path: Path, name: str, edges: Sequence[float], recorded: Sequence[float], worlds: Mapping[str, Sequence[float]], unit: str
) -> None:
    """Draw shares of values by bin into a PNG: the recording filled, one line for each world.

    Args:
        path: of the PNG, which appears whole or not at all.
        name: of the value, for the title.
        edges: n + 1 borders of the bins.
        recorded: n shares.
        worlds: n shares each, of at most six worlds.
        unit: written below the axis; "" for a value that is either no or yes.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
    axis.stairs(recorded, edges, fill=True, color=RECORDED, label="recorded")
    for (world, shares), colour, style in zip(worlds.items(), LINES, STYLES, strict=False):
        axis.stairs(shares, edges, color=colour, linestyle=style, linewidth=1.8, label=world)
    axis.set(title=name, xlabel=unit, ylabel="share", xlim=(edges[0], edges[-1]))
    if not unit:
        axis.set_xticks([0, 1], ["no", "yes"])
    axis.grid(alpha=0.3)
    axis.legend()
    with replacing(path) as partial:
        figure.savefig(partial, dpi=120, format="png")
    pyplot.close(figure)
