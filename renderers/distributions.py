"""Histograms and curves as pictures: what several worlds do, held against what a recording shows."""

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


def draw_curves(path: Path, panels: Mapping[str, Mapping[str, Sequence[float | None]]], seconds: Sequence[float]) -> None:
    """Draw how figures go over time into a PNG: one panel for each figure, one line for each world.

    Args:
        path: of the PNG, which appears whole or not at all.
        panels: values by figure and world, each as long as `seconds`; None where there is none. At most six worlds.
        seconds: places on the axis of time.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(panels), figsize=(7.2, 2.1 * len(panels)), sharex=True, layout="constrained", squeeze=False
    )
    for axis, (name, worlds) in zip(axes[:, 0], panels.items(), strict=True):
        for (world, values), colour, style in zip(worlds.items(), LINES, STYLES, strict=False):
            shown = [float("nan") if value is None else value for value in values]
            axis.plot(seconds, shown, color=colour, linestyle=style, linewidth=1.6, label=world)
        axis.set_title(name, fontsize="medium", loc="left")
        axis.set_ylim(0, 1.08 * axis.get_ylim()[1] or 1)  # a level curve must not lie on the frame
        axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize="small", ncols=2)
    axes[-1, 0].set_xlabel("seconds")
    with replacing(path) as partial:
        figure.savefig(partial, dpi=120, format="png")
    pyplot.close(figure)
