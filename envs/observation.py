"""Observations: what a policy sees, in the ego's frame (x forward, y left), in metres, seconds and radians.

Everything is read from the true state; nothing is normalised, and every feature has a finite range to which it is clipped. The
table of all features stands in `DriveEnv`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ..worldmodel.geometry import point_on_polyline, rotate, to_local
from ..worldmodel.raster import CHANNELS, PIECE_POINTS, ImageGrid, RoadPieces, bird_eye_image, lowest, nearest_pieces
from ..worldmodel.scene import AgentKind, PolylineKind, SignalState
from ..worldmodel.world import State
from .ground import Ground
from .measures import EgoPast

if TYPE_CHECKING:
    from ..worldmodel.rig import Rig

OBSERVATIONS = ("state", "image", "camera")

Ranges = dict[str, tuple[float, float]]

POSITION = 200.0
SPEED = 60.0
EGO_FEATURES: Ranges = {
    "speed": (-SPEED, SPEED),
    "acceleration": (-20.0, 20.0),
    "lateral_acceleration": (-20.0, 20.0),
    "yaw_rate": (-4.0, 4.0),
    "last_acceleration": (-20.0, 20.0),
    "last_curvature": (-1.0, 1.0),
    "length": (0.0, 30.0),
    "width": (0.0, 10.0),
    "route_offset": (-100.0, 100.0),
    "route_heading_cosine": (-1.0, 1.0),
    "route_heading_sine": (-1.0, 1.0),
    "route_left": (0.0, 1000.0),
}
"""Features of the ego and their ranges, in order."""

AGENT_FEATURES: Ranges = {
    "x": (-POSITION, POSITION),
    "y": (-POSITION, POSITION),
    "heading_cosine": (-1.0, 1.0),
    "heading_sine": (-1.0, 1.0),
    "velocity_x": (-SPEED, SPEED),
    "velocity_y": (-SPEED, SPEED),
    "length": (0.0, 30.0),
    "width": (0.0, 10.0),
    **{f"is_{kind.name.lower()}": (0.0, 1.0) for kind in AgentKind},
}
POLYLINE_FEATURES: Ranges = {
    "lane_width": (0.0, 20.0),
    "speed_limit": (0.0, SPEED),
    **{f"is_{kind.name.lower()}": (0.0, 1.0) for kind in PolylineKind},
}
ROUTE_FEATURES: Ranges = {
    "x": (-POSITION, POSITION),
    "y": (-POSITION, POSITION),
    "heading_cosine": (-1.0, 1.0),
    "heading_sine": (-1.0, 1.0),
}
SIGNAL_FEATURES: Ranges = {
    "x": (-POSITION, POSITION),
    "y": (-POSITION, POSITION),
    "heading_cosine": (-1.0, 1.0),
    "heading_sine": (-1.0, 1.0),
    "on_route": (0.0, 1.0),
    "route_distance": (-POSITION, POSITION),
    **{f"is_{state.name.lower()}": (0.0, 1.0) for state in SignalState},
}


@dataclass(frozen=True)
class ObservationSize:
    """How much a policy sees: at most so many agents, polylines, route points and signals.

    Attributes:
        radius: metres around the ego within which agents, polylines and signals are seen.
        route_spacing: metres between the route points, the first of which lies one spacing ahead.
        image: size and scale of the bird's-eye image.
    """

    agents: int = 32
    polylines: int = 64
    route_points: int = 20
    signals: int = 8
    radius: float = 100.0
    route_spacing: float = 3.0
    image: ImageGrid = ImageGrid()

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name != "image" and not getattr(self, field.name) > 0:
                raise ValueError(f"observation size: {field.name} is {getattr(self, field.name)}, wanted a number above 0")


def observation_space(kind: str, size: ObservationSize, rig: Rig | None = None) -> spaces.Space:
    """Return the space of one environment's observation; `rig` is that of its cameras, where it has some.

    Raises:
        ValueError: unknown kind.
    """
    if kind == "image":
        return spaces.Box(0, 255, (size.image.height, size.image.width, len(CHANNELS)), np.uint8)
    if kind == "camera" and rig is not None:
        shape = (rig.height, rig.width, 3)
        return spaces.Box(0, 255, shape if len(rig) == 1 else (len(rig), *shape), np.uint8)
    if kind != "state":
        raise ValueError(f"observation={kind!r} is unknown: choose one of {', '.join(OBSERVATIONS)}")

    def box(ranges: Ranges, *shape: int) -> spaces.Box:
        low, high = np.array(list(ranges.values()), np.float32).T
        return spaces.Box(np.broadcast_to(low, (*shape, len(low))), np.broadcast_to(high, (*shape, len(high))), dtype=np.float32)

    return spaces.Dict(
        {
            "ego": box(EGO_FEATURES),
            "agents": box(AGENT_FEATURES, size.agents),
            "agents_mask": spaces.MultiBinary(size.agents),
            "polylines": box(POLYLINE_FEATURES, size.polylines),
            "polylines_points": spaces.Box(-POSITION, POSITION, (size.polylines, PIECE_POINTS, 2), np.float32),
            "polylines_mask": spaces.MultiBinary(size.polylines),
            "route": box(ROUTE_FEATURES, size.route_points),
            "route_mask": spaces.MultiBinary(size.route_points),
            "signals": box(SIGNAL_FEATURES, size.signals),
            "signals_mask": spaces.MultiBinary(size.signals),
        }
    )


def observe(
    kind: str, size: ObservationSize, state: State, past: EgoPast, pieces: RoadPieces, on: Ground, action: Tensor
) -> dict[str, Tensor]:
    """Return what B egos see, under the names of `observation_space`; an image stands under the name "image".

    Args:
        kind: "state" or "image".
        size: how much is seen.
        state: the moment.
        past: what is remembered of the egos.
        pieces: `road_pieces(state.scene)`.
        on: `ground(state.scene)`.
        action: (B, 2) acceleration in m/s2 and curvature in 1/m of the last step, zero at a reset.
    """
    if kind == "image":
        agents = (state.position, state.heading, state.valid)
        return {"image": bird_eye_image(state.scene, pieces, *agents, state.signal_state, state.signal_valid, size.image)}
    seen = {"ego": _see_ego(state, past, action)}
    seen |= _see_agents(state, size)
    seen |= _see_polylines(state, pieces, size)
    seen |= _see_route(state, past, size)
    return seen | _see_signals(state, past, on, size)


def to_numpy(seen: Mapping[str, Tensor]) -> dict[str, np.ndarray] | np.ndarray:
    """Return an observation as Gymnasium wants it: an array for an image, else a dictionary of arrays."""
    if "image" in seen:
        return seen["image"].numpy()
    return {name: tensor.numpy() for name, tensor in seen.items()}


def visible(seen: Mapping[str, np.ndarray], size: ObservationSize) -> dict[str, Any]:
    """Return what one `"state"` observation holds, without batch dimension, as the fields of `renderers.bev.Observed`."""
    box = [list(AGENT_FEATURES).index(name) for name in ("x", "y", "heading_cosine", "heading_sine", "length", "width")]
    agents = seen["agents"][seen["agents_mask"].astype(np.bool_)][:, box]
    lines = seen["polylines_points"][seen["polylines_mask"].astype(np.bool_)]
    return {"agents": torch.from_numpy(agents), "polylines": torch.from_numpy(lines), "radius": size.radius}


def _clip(values: list[Tensor], ranges: Ranges, mask: Tensor | None = None) -> Tensor:
    """Stack features (...) into (..., F), clip them to their ranges, and put zero where `mask` (...) is false."""
    low, high = torch.tensor(list(ranges.values())).T
    stacked = torch.minimum(torch.maximum(torch.stack(values, dim=-1), low), high)
    return stacked if mask is None else stacked * mask[..., None]


def _one_hot(value: Tensor, count: int) -> list[Tensor]:
    return [(value == i).to(torch.float32) for i in range(count)]


def _see_ego(state: State, past: EgoPast, action: Tensor) -> Tensor:
    size = state.scene.size[state.scene.ego_row(), state.scene.ego]
    values = [past.speed, past.acceleration[:, -1], past.lateral_acceleration[:, -1], past.yaw_rate[:, -1]]
    values += [action[:, 0], action[:, 1], size[:, 0], size[:, 1]]
    values += [past.offset, past.heading_error.cos(), past.heading_error.sin(), past.length - past.arc]
    return _clip(values, EGO_FEATURES)


def _see_agents(state: State, size: ObservationSize) -> dict[str, Tensor]:
    scene, row, ego = state.scene, state.scene.ego_row(), state.ego()
    local = to_local(state.position[..., :2], ego.position[:, None, :2], ego.heading[:, None])
    others = state.valid.index_put((row, scene.ego), torch.zeros(len(row), dtype=torch.bool))
    distance = local.square().sum(-1)
    index, mask = lowest(torch.where(others & (distance < size.radius**2), distance, torch.inf), size.agents)
    pick = lambda value: value[row[:, None], index]  # noqa: E731
    turn = pick(state.heading) - ego.heading[:, None]
    velocity = rotate(pick(state.velocity), -ego.heading[:, None])
    place, box = pick(local), pick(scene.size)
    values = [place[..., 0], place[..., 1], turn.cos(), turn.sin(), velocity[..., 0], velocity[..., 1], box[..., 0], box[..., 1]]
    values += _one_hot(pick(scene.kind), len(AgentKind))
    return {"agents": _clip(values, AGENT_FEATURES, mask), "agents_mask": mask.to(torch.int8)}


def _see_polylines(state: State, pieces: RoadPieces, size: ObservationSize) -> dict[str, Tensor]:
    ego, row = state.ego(), state.scene.ego_row()[:, None]
    index, mask = nearest_pieces(pieces, ego.position[:, :2], size.polylines, size.radius)
    point = to_local(pieces.point[row, index], ego.position[:, None, None, :2], ego.heading[:, None, None])
    values = [pieces.lane_width[row, index], pieces.speed_limit[row, index]]
    values += _one_hot(pieces.kind[row, index], len(PolylineKind))
    return {
        "polylines": _clip(values, POLYLINE_FEATURES, mask),
        "polylines_points": point.clamp(-POSITION, POSITION) * mask[..., None, None],
        "polylines_mask": mask.to(torch.int8),
    }


def _see_route(state: State, past: EgoPast, size: ObservationSize) -> dict[str, Tensor]:
    ego = state.ego()
    arc = past.arc[:, None] + size.route_spacing * torch.arange(1, size.route_points + 1)
    point, heading = point_on_polyline(arc, state.scene.route[..., :2], state.scene.route_valid)
    mask = arc <= past.length[:, None]
    local = to_local(point, ego.position[:, None, :2], ego.heading[:, None])
    turn = heading - ego.heading[:, None]
    values = [local[..., 0], local[..., 1], turn.cos(), turn.sin()]
    return {"route": _clip(values, ROUTE_FEATURES, mask), "route_mask": mask.to(torch.int8)}


def _see_signals(state: State, past: EgoPast, on: Ground, size: ObservationSize) -> dict[str, Tensor]:
    """The signals that the ego will meet on its route first, then the nearest others."""
    scene, ego, row = state.scene, state.ego(), state.scene.ego_row()[:, None]
    local = to_local(scene.signal_position[..., :2], ego.position[:, None, :2], ego.heading[:, None])
    distance = local.square().sum(-1).sqrt()
    ahead = on.signal_arc - past.arc[:, None]
    to_meet = on.signal_on_route & (ahead > 0)
    rank = torch.where(state.signal_valid & (distance < size.radius), distance - 2 * size.radius * to_meet, torch.inf)
    index, mask = lowest(rank, size.signals)
    if not scene.signal_heading.shape[1]:
        shape = (*index.shape, len(SIGNAL_FEATURES))
        return {"signals": torch.zeros(shape), "signals_mask": mask.to(torch.int8)}
    turn = scene.signal_heading[row, index] - ego.heading[:, None]
    on_route = on.signal_on_route[row, index]
    values = [local[row, index, 0], local[row, index, 1], turn.cos(), turn.sin()]
    values += [on_route.to(torch.float32), torch.where(on_route, ahead[row, index], 0.0)]
    values += _one_hot(state.signal_state[row, index], len(SignalState))
    return {"signals": _clip(values, SIGNAL_FEATURES, mask), "signals_mask": mask.to(torch.int8)}
