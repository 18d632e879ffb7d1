"""Reliability as a picture: the error that a world says to expect, held against the error that it has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..worldmodel.files import replacing

Interval = tuple[float, float | None, float | None]
"""A mean and the two ends of its interval."""


def draw_reliability(
    path: Path,
    stated: Sequence[float],
    measured: Sequence[Interval],
    over_time: Sequence[tuple[float, float, float]],
    most: float,
) -> None:
    """Draw two panels into a PNG: stated against measured error by bins, and both over time with the error that is tolerated.

    Args:
        path: of the PNG, which appears whole or not at all.
        stated: metres, the mean of each bin.
        measured: metres, of each bin.
        over_time: (seconds, stated metres, measured metres), in order of time.
        most: metres that are tolerated.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9.6, 4.2), layout="constrained")
    means = [mean for mean, _, _ in measured]
    lows = [max(mean - low, 0.0) if low is not None else 0.0 for mean, low, _ in measured]
    highs = [max(high - mean, 0.0) if high is not None else 0.0 for mean, _, high in measured]
    bars = [lows, highs]
    shown = [value for value in (*stated, *means) if value > 0] or [1.0]
    ends = (0.7 * min(shown), 1.4 * max(shown))
    left.plot(ends, ends, color="#999999", linestyle="--", label="as stated")
    left.errorbar(stated, means, yerr=bars, color="#0072B2", marker="o", capsize=3, label="measured")
    left.set(xscale="log", yscale="log", xlabel="stated error (m)", ylabel="measured error (m)", title="by size, 95 % intervals")
    seconds = [time for time, _, _ in over_time]
    right.plot(seconds, [stated for _, stated, _ in over_time], color="#D55E00", linestyle="--", label="stated")
    right.plot(seconds, [error for _, _, error in over_time], color="#0072B2", label="measured")
    right.axhline(most, color="#999999", linestyle=":", label="tolerated")
    right.set(xlabel="time (s)", ylabel="mean error (m)", title="over time", xlim=(0, max(seconds)), ylim=(0, None))
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend()
    with replacing(path) as partial:
        figure.savefig(partial, dpi=120, format="png")
    pyplot.close(figure)
