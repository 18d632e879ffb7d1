"""A report on one page: a leader table, paired differences, distributions, every scenario, and a player; no network needed.

The page is `assets/report.html`, into which the data is written as JSON; everything else happens in the reader's browser.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..worldmodel.files import write_text
from ..worldmodel.scene import Scene
from ..worldmodel.world import State

TEMPLATE = Path(str(files("worldloop.assets"))) / "report.html"

MAP_RADIUS = 120.0
"""Metres around the ego's way within which the map is shown."""


def film_data(states: Sequence[State], ended: str) -> dict[str, Any]:
    """Return what the player shows of one scenario: map, route, sizes, and for each state everyone's pose; centimetres suffice.

    Args:
        states: B = 1 each, in order.
        ended: why it was over.
    """
    scene = states[0].scene
    ego = int(scene.ego[0])
    way = [state.position[0, ego, :2] for state in states]
    frames = []
    for state in states:
        present = state.valid[0].nonzero()[:, 0].tolist()
        poses = [
            [who, *(round(value, 2) for value in state.position[0, who, :2].tolist()), round(float(state.heading[0, who]), 3)]
            for who in present
        ]
        signals = state.signal_state[0].where(state.signal_valid[0], -1).tolist()
        speed = round(float(state.velocity[0, ego].norm()), 2)
        frames.append({"agents": poses, "signals": signals, "speed": speed})
    return {
        "ended": ended,
        "ego": ego,
        "lines": _lines(scene, way),
        "route": _rounded(scene.route[0, scene.route_valid[0], :2].tolist()),
        "signals": _rounded(scene.signal_position[0, :, :2].tolist()),
        "sizes": [
            [*(round(value, 2) for value in size[:2]), kind]
            for size, kind in zip(scene.size[0].tolist(), scene.kind[0].tolist(), strict=True)
        ],
        "frames": frames,
    }


def _lines(scene: Scene, way: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the polylines near the ego's way."""
    lines = []
    for number in range(scene.polyline.shape[1]):
        points = scene.polyline[0, number, scene.polyline_valid[0, number], :2]
        if len(points) and min(float((points - place).norm(dim=-1).min()) for place in way[::20]) < MAP_RADIUS:
            width, kind = round(float(scene.lane_width[0, number]), 2), int(scene.polyline_kind[0, number])
            lines.append({"kind": kind, "width": width, "points": _rounded(points.tolist())})
    return lines


def _rounded(points: Sequence[Sequence[float]]) -> list[list[float]]:
    return [[round(value, 2) for value in point] for point in points]


def write_report(
    path: Path,
    about: str,
    leaders: Sequence[Mapping[str, Any]],
    pairs: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    films: Mapping[str, Mapping[str, Any]],
) -> None:
    """Write the page.

    Args:
        path: of the HTML file.
        about: one line on what was evaluated.
        leaders: lines with world, policy, and the figures of the leader table.
        pairs: lines with world, policy, than, difference (with _low, _high), p_value, scenes.
        rows: lines with key, scene, policy, world, seed, score, epdms, ended, seconds, progress, fault, error, trace.
        films: by the key of their row, from `film_data`, each with a `title` to show above it.
    """
    data = {"about": about, "leaders": leaders, "pairs": pairs, "rows": rows, "films": films}
    text = json.dumps(data, allow_nan=False).replace("<", "\\u003c")  # so that no text of a user ends the script
    write_text(path, TEMPLATE.read_text().replace("/*DATA*/", text))
