"""Pictures of an answer: what one agent does when the ego does something else, in several worlds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..worldmodel.files import replacing
from ..worldmodel.geometry import box_corners
from ..worldmodel.open_loop import Trace
from ..worldmodel.scene import TIME_STEP, PolylineKind, Scene

EGO, ANSWERING, OTHERS, LANE, EDGE = "#E69F00", "#0072B2", "#8A8F96", "#D5D8DC", "#9AA0A6"
"""Okabe and Ito's hues ("Color Universal Design", 2008); kept branches are dashed and hollow as well."""

MARGIN, SMALLEST_VIEW = 12.0, 30.0
"""Metres around what is shown, and half the side of the smallest view."""


@dataclass(frozen=True)
class Answer:
    """What `draw_answer` shows.

    Attributes:
        intervention: its name.
        scene: B = 1.
        traces: by world the branch in which the ego keeps its course, and the one with the intervention, B = S samples each.
        agent: place in A of the one who answers.
        who: what it is called.
    """

    intervention: str
    scene: Scene
    traces: dict[str, tuple[Trace, Trace]]
    agent: int
    who: str


def draw_answer(path: Path, answer: Answer) -> None:
    """Draw a PNG, a row for each world: speeds of the ego and the agent, the distance between them, and the road from above.

    The road shows the end of both branches: filled boxes with the intervention, hollow ones without it (first sample).
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = len(answer.traces)
    figure, axes = pyplot.subplots(
        rows, 3, figsize=(13.5, 3.9 * rows), layout="constrained", squeeze=False, width_ratios=(1, 1, 1.15)
    )
    views = [_view(answer, *traces) for traces in answer.traces.values()]
    low = torch.stack([view[0] for view in views]).amin(0)
    high = torch.stack([view[1] for view in views]).amax(0)
    for axis, (world, (kept, moved)) in zip(axes, answer.traces.items(), strict=True):
        _speeds(axis[0], answer, kept, moved)
        _distance(axis[1], answer, kept, moved)
        _road(axis[2], answer, kept, moved)
        axis[0].set(ylabel=f"{world} world\nspeed (m/s)")
        axis[2].set(xlim=(float(low[0]), float(high[0])), ylim=(float(low[1]), float(high[1])))
    for axis in axes[:, :2].flat:
        axis.set(xlabel="seconds", xlim=(0, None), ylim=(0, None))
        axis.grid(alpha=0.3)
    for column in range(2):
        top = max(axis.get_ylim()[1] for axis in axes[:, column])
        for axis in axes[:, column]:
            axis.set_ylim(0, top)
    axes[0, 0].legend(fontsize=8)
    axes[0, 1].set_title("distance between both boxes", fontsize=10)
    seconds = TIME_STEP * (next(iter(answer.traces.values()))[0].speed.shape[-1] - 1)
    axes[0, 2].set_title(f"after {seconds:g} s (hollow: course kept)", fontsize=10)
    figure.suptitle(f"{answer.intervention}: {answer.scene.id[0]}")
    with replacing(path) as partial:
        figure.savefig(partial, dpi=110, format="png")
    pyplot.close(figure)


def _speeds(axis: Any, answer: Answer, kept: Trace, moved: Trace) -> None:
    for place, colour, name in ((int(answer.scene.ego), EGO, "ego"), (answer.agent, ANSWERING, answer.who)):
        _band(axis, moved.speed[:, place], moved.valid[:, place], colour, "-", name)
        _band(axis, kept.speed[:, place], kept.valid[:, place], colour, "--", f"{name}, course kept")


def _distance(axis: Any, answer: Answer, kept: Trace, moved: Trace) -> None:
    for trace, style in ((moved, "-"), (kept, "--")):
        gap = trace.gap(answer.scene.size[0], answer.agent, int(answer.scene.ego))
        _band(axis, gap, gap.isfinite(), ANSWERING, style, "")


def _band(axis: Any, value: Tensor, valid: Tensor, colour: str, style: str, label: str) -> None:
    """Draw the mean of S series (S, T + 1), and lightly each of them, as far as they are valid."""
    shown = torch.where(valid, value, torch.nan)
    time = (TIME_STEP * torch.arange(value.shape[-1])).tolist()
    if len(shown) > 1:
        axis.plot(time, shown.T.tolist(), color=colour, linestyle=style, linewidth=0.6, alpha=0.35)
    axis.plot(time, shown.nanmean(0).tolist(), color=colour, linestyle=style, linewidth=2.0, label=label or None)


def _view(answer: Answer, kept: Trace, moved: Trace) -> tuple[Tensor, Tensor]:
    """Corners (2,) of the square that shows where the ego and the agent are at the end of both branches."""
    places = [int(answer.scene.ego), answer.agent]
    points = torch.cat([trace.position[0, places, -1][trace.valid[0, places, -1]] for trace in (kept, moved)])
    if not len(points):
        points = moved.position[0, places, 0]
    low, high = points.amin(0), points.amax(0)
    half = max(0.5 * float((high - low).amax()) + MARGIN, SMALLEST_VIEW)
    return 0.5 * (low + high) - half, 0.5 * (low + high) + half


def _road(axis: Any, answer: Answer, kept: Trace, moved: Trace) -> None:
    scene, ego = answer.scene, int(answer.scene.ego)
    shades = {PolylineKind.LANE: LANE, PolylineKind.JUNCTION_LANE: LANE, PolylineKind.ROAD_EDGE: EDGE}
    for kind, colour in shades.items():
        for line in (scene.polyline_kind[0] == kind).nonzero()[:, 0].tolist():
            points = scene.polyline[0, line, scene.polyline_valid[0, line], :2]
            axis.plot(*points.T.tolist(), color=colour, linewidth=0.8, zorder=1)
    for trace, hollow in ((kept, True), (moved, False)):
        for agent in trace.valid[0, :, -1].nonzero()[:, 0].tolist():
            colour = EGO if agent == ego else ANSWERING if agent == answer.agent else OTHERS
            box = box_corners(trace.position[0, agent, -1], trace.heading[0, agent, -1], scene.size[0, agent])
            outline = {"facecolor": "none", "linestyle": "--"} if hollow else {"facecolor": colour, "alpha": 0.85}
            axis.fill(*box.T.tolist(), edgecolor=colour, linewidth=1.2, zorder=3 if hollow else 2, **outline)
        for agent, colour in ((ego, EGO), (answer.agent, ANSWERING)):
            way = trace.position[0, agent, trace.valid[0, agent]]
            axis.plot(*way.T.tolist(), color=colour, linestyle="--" if hollow else "-", linewidth=1.0, alpha=0.7, zorder=2)
    axis.set(aspect="equal", xlabel="x (m)", ylabel="y (m)")
