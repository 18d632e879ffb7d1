"""Small hand-made scenes that tests share: every number in them can be worked out in the head."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from worldloop.worldmodel.data.shards import checksum
from worldloop.worldmodel.data.writing import ShardWriter
from worldloop.worldmodel.geometry import rotate
from worldloop.worldmodel.scene import (
    HISTORY_STEPS,
    LAYOUT,
    TIME_STEP,
    AgentKind,
    LaneLinkKind,
    PolylineKind,
    Scene,
    SignalState,
    make_scene,
    stack,
)

EGO, LEADER, FOLLOWER, PEDESTRIAN, NEIGHBOUR, CONE = range(6)
"""Places of the agents of `straight_road` in dimension A."""

LANE_WIDTH = 3.5
RIGHT_EDGE, LEFT_EDGE = -0.5 * LANE_WIDTH, 1.5 * LANE_WIDTH
"""y of the road's edges: the ego's lane runs along y = 0, its left neighbour along y = 3.5."""


def straight_road(
    id: str = "hand/straight",
    *,
    steps: int = HISTORY_STEPS + 1 + 80,
    ego_speed: float = 10.0,
    leader_gap: float = 25.0,
    follower_gap: float = 20.0,
    edges: bool = True,
) -> Scene:
    """Return one scene: a straight road of two lanes in the same direction (+x), everyone at constant velocity.

    At the present (step 10) the ego stands at the origin and looks along +x. The leader drives `leader_gap` m ahead in its lane
    at 10 m/s, the follower `follower_gap` m behind at 10 m/s, a neighbour at (10, 3.5) at 8 m/s; a pedestrian at (60, -6) walks
    along +y at 1 m/s, a cone stands at (40, -3). Cars are 4.5 x 1.8 m. A signal at x = 80 controls the ego's lane: STOP during
    the first 3 s after the present, then GO. The route runs along y = 0 from x = -20 to x = 180.
    """
    time = (torch.arange(steps) - HISTORY_STEPS) * TIME_STEP
    start = torch.tensor([[0.0, 0.0], [leader_gap, 0.0], [-follower_gap, 0.0], [60.0, -6.0], [10.0, LANE_WIDTH], [40.0, -3.0]])
    velocity = torch.tensor([[ego_speed, 0.0], [10.0, 0.0], [10.0, 0.0], [0.0, 1.0], [8.0, 0.0], [0.0, 0.0]])
    size = torch.tensor([[4.5, 1.8, 1.5], [4.5, 1.8, 1.5], [4.5, 1.8, 1.5], [0.6, 0.6, 1.8], [4.5, 1.8, 1.5], [0.4, 0.4, 0.8]])
    vehicle, pedestrian, cone = AgentKind.VEHICLE, AgentKind.PEDESTRIAN, AgentKind.OBJECT
    position = torch.zeros(6, steps, 3)
    position[..., :2] = start[:, None] + velocity[:, None] * time[None, :, None]
    position[..., 2] = 0.5 * size[:, None, 2]
    heading = torch.zeros(6, steps)
    heading[PEDESTRIAN] = 0.5 * math.pi
    lines = _lines(edges)
    signal = torch.full((1, steps), int(SignalState.GO))
    signal[:, : HISTORY_STEPS + 30] = int(SignalState.STOP)
    lane = [kind in (PolylineKind.LANE, PolylineKind.JUNCTION_LANE) for kind, _ in lines]
    route = torch.zeros(101, 3)
    route[:, 0] = torch.linspace(-20.0, 180.0, 101)
    return make_scene(
        id,
        position=position,
        heading=heading,
        velocity=velocity[:, None].expand(-1, steps, -1).clone(),
        valid=torch.ones(6, steps, dtype=torch.bool),
        size=size,
        kind=torch.tensor([vehicle, vehicle, vehicle, pedestrian, vehicle, cone]),
        ego=torch.tensor(EGO),
        polyline=torch.nn.utils.rnn.pad_sequence([points for _, points in lines], batch_first=True),
        polyline_valid=torch.nn.utils.rnn.pad_sequence(
            [torch.ones(len(line), dtype=torch.bool) for _, line in lines], batch_first=True
        ),
        polyline_kind=torch.tensor([int(kind) for kind, _ in lines]),
        lane_width=torch.tensor(lane) * LANE_WIDTH,
        speed_limit=torch.tensor(lane) * 13.9,
        speed_limit_valid=torch.tensor(lane),
        lane_link=torch.tensor([[0, 1], [1, 0]]),
        lane_link_kind=torch.tensor([int(LaneLinkKind.LEFT), int(LaneLinkKind.RIGHT)]),
        lane_link_valid=torch.ones(2, dtype=torch.bool),
        signal_position=torch.tensor([[80.0, 0.0, 0.0]]),
        signal_lane=torch.tensor([0]),
        signal_heading=torch.tensor([0.0]),
        signal_state=signal,
        signal_valid=torch.ones(1, steps, dtype=torch.bool),
        route=route,
        route_valid=torch.ones(101, dtype=torch.bool),
    )


def _lines(edges: bool) -> list[tuple[PolylineKind, Tensor]]:
    """The map of `straight_road`: two lanes, their marking, a crosswalk at x = 60, and the road's edges if wanted."""
    along = torch.linspace(-60.0, 200.0, 27)

    def line(y: float, x: Tensor) -> Tensor:
        return torch.stack((x, torch.full_like(x, y), torch.zeros_like(x)), dim=-1)

    crosswalk = torch.tensor([[58.0, RIGHT_EDGE, 0], [62.0, RIGHT_EDGE, 0], [62.0, LEFT_EDGE, 0], [58.0, LEFT_EDGE, 0]])
    lines = [
        (PolylineKind.LANE, line(0.0, along)),
        (PolylineKind.LANE, line(LANE_WIDTH, along)),
        (PolylineKind.LANE_MARKING, line(0.5 * LANE_WIDTH, along)),
        (PolylineKind.CROSSWALK, torch.cat((crosswalk, crosswalk[:1]))),
    ]
    if edges:  # the road lies on the left of each edge
        lines += [(PolylineKind.ROAD_EDGE, line(RIGHT_EDGE, along)), (PolylineKind.ROAD_EDGE, line(LEFT_EDGE, along.flip(0)))]
    return lines


def several_roads(count: int = 4) -> Scene:
    """Return `count` variants of `straight_road` as one batch: other speeds, gaps and frames, so that no two are the same."""
    roads = [straight_road(f"hand/{i}", ego_speed=6.0 + i, leader_gap=20.0 + 3 * i) for i in range(count)]
    return stack([moved(road, 0.7 * i, (30.0 * i, -20.0 * i)) for i, road in enumerate(roads)])


def uneven(scene: Scene, seed: float = 0.0) -> Scene:
    """Return the same scenes with speeds that rise and fall, another way for each agent and `seed`; the tracks stay."""
    time, agent = torch.arange(scene.steps), torch.arange(scene.velocity.shape[1])[:, None]
    factor = 1.0 + (0.2 + 0.05 * seed) * (0.4 * time * (1.0 + 0.13 * agent) + agent).sin()
    return replace(scene, velocity=scene.velocity * factor[..., None])


def moved(scene: Scene, angle: float, shift: tuple[float, float]) -> Scene:
    """Return the same scenes turned by `angle` about the origin, then shifted: nothing that drives in them may notice."""
    turn, offset = torch.tensor(angle), torch.tensor(shift)

    def points(tensor: Tensor) -> Tensor:
        return torch.cat((rotate(tensor[..., :2], turn) + offset, tensor[..., 2:]), dim=-1)

    return replace(
        scene,
        position=points(scene.position),
        heading=scene.heading + turn,
        velocity=rotate(scene.velocity, turn),
        polyline=points(scene.polyline),
        signal_position=points(scene.signal_position),
        signal_heading=scene.signal_heading + turn,
        route=points(scene.route),
    )


def unchecked(folder: Path, *scenes: Scene) -> str:
    """Write a data set of single scenes as another program might, whether they keep the contract or not; return its folder."""
    with ShardWriter(folder) as writer:
        for scene in scenes:
            tensors = {field: getattr(scene, field)[0].clone() for field in LAYOUT}
            writer._add(scene.id[0], "", checksum(scene), tensors, {"recipe": scene.recipe[0]})
    return str(folder)


def damaged(folder: Path, scenes: Scene) -> str:
    """Write a data set whose first scene does not have the checksum that its index says, and return its folder."""
    with ShardWriter(folder) as writer:
        writer.add(scenes)
    index = json.loads((folder / "index.json").read_text())
    index["scenes"][0]["crc32"] += 1
    (folder / "index.json").write_text(json.dumps(index))
    return str(folder)
