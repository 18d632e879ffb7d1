"""Power laws as pictures: measured points and the fitted line, on logarithmic axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..worldmodel.files import replacing

POINT, LINE = "#0072B2", "#D55E00"
"""Okabe and Ito's blue and vermilion ("Color Universal Design", 2008)."""


def draw_power_laws(
    path: Path, points: Mapping[str, Sequence[tuple[float, float]]], laws: Mapping[str, tuple[float, float]]
) -> None:
    """Draw one panel for each name into a PNG, which appears whole or not at all.

    Args:
        path: of the PNG.
        points: by name of the horizontal axis, (size, loss in nats).
        laws: by the same names, scale and exponent of loss = scale * size ** -exponent.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullLocator, ScalarFormatter

    figure, axes = pyplot.subplots(
        1, len(points), figsize=(5.2 * len(points), 4), layout="constrained", squeeze=False, sharey=True
    )
    losses = [loss for found in points.values() for _, loss in found]
    for axis, (name, found) in zip(axes[0], points.items(), strict=True):
        scale, exponent = laws[name]
        sizes = sorted({size for size, _ in found})
        line = [(size, scale * size**-exponent) for size in (sizes[0] / 1.5, sizes[-1] * 1.5)]
        axis.plot(*zip(*line, strict=True), color=LINE, label=f"{scale:.3g} × size$^{{{-exponent:.3f}}}$")
        axis.plot(*zip(*found, strict=True), color=POINT, marker="o", linestyle="", markersize=8, label="trained")
        axis.set(xscale="log", yscale="log", xlabel=name)
        axis.set_ylim(min(losses) * 0.95, max(losses) * 1.05)
        axis.set_xticks(sizes, [f"{size:,.0f}" for size in sizes], rotation=20)
        axis.xaxis.set_minor_locator(NullLocator())
        for which in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            which(ScalarFormatter())
        axis.grid(alpha=0.3, which="both")
        axis.legend()
    axes[0][0].set_ylabel("validation loss (nats a token)")
    with replacing(path) as partial:
        figure.savefig(partial, dpi=120, format="png")
    pyplot.close(figure)


def plot_lines(path: Path, panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], horizontal: str) -> None:
    """Draw one panel for each name into a PNG: lines by their label, each of (x, y).

    Args:
        path: of the PNG, which appears whole or not at all.
        panels: by what stands above each, its lines.
        horizontal: what x is.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels), figsize=(5.2 * len(panels), 4), layout="constrained", squeeze=False)
    for axis, (name, lines) in zip(axes[0], panels.items(), strict=True):
        for (label, points), colour in zip(lines.items(), (POINT, LINE, "#009E73"), strict=False):
            if points:
                axis.plot(*zip(*points, strict=True), color=colour, label=label)
        axis.set(title=name, xlabel=horizontal)
        axis.grid(alpha=0.3)
        axis.legend()
    with replacing(path) as partial:
        figure.savefig(partial, dpi=120, format="png")
    pyplot.close(figure)
