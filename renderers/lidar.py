"""A spinning LiDAR on the ego: which rays it sends, and what it measures of what they hit.

The beams of one column are sent at once; the ego does not move during a turn. Noise and dropout follow
from the state's key and step alone, so an ego measures the same in a batch as by itself.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from ..worldmodel.sampling import hashed_normal, hashed_uniform
from ..worldmodel.world import State
from .meshes import Semantic
from .scene3d import SceneRenderer
from .scene3d_rays import cast, labels, moment_of

STREAM = zlib.crc32(b"lidar")
"""Sets the LiDAR's random numbers apart from those that others draw of the same key and step."""


@dataclass(frozen=True)
class Lidar:
    """A LiDAR; as it stands here about a Velodyne HDL-32E (datasheet 97-0038).

    Attributes:
        beams: rays above each other. lowest, highest: degrees from the level at which they look, evenly spaced.
        steps: columns of a full turn, the first one straight ahead, then counter-clockwise.
        reach: metres; what is farther away gives no return, and no measured range is longer.
        noise: metres, standard deviation of a measured range; 0 measures exactly.
        dropout: share of returns that get lost.
        position: (x, y, z) metres in the ego's frame.
    """

    beams: int = 32
    lowest: float = -30.67
    highest: float = 10.67
    steps: int = 1080
    reach: float = 100.0
    noise: float = 0.02
    dropout: float = 0.0
    position: tuple[float, float, float] = (0.0, 0.0, 1.9)

    def __post_init__(self) -> None:
        if min(self.beams, self.steps) < 1 or self.reach <= 0 or self.noise < 0 or not 0 <= self.dropout <= 1:
            raise ValueError(f"{self}: wanted beams, steps >= 1, reach > 0, noise >= 0, dropout in 0..1")
        if not -90.0 < self.lowest <= self.highest < 90.0:
            raise ValueError(f"{self}: wanted -90 < lowest <= highest < 90 degrees")

    def directions(self) -> Tensor:
        """Unit vectors (steps * beams, 3) in the ego's frame, column by column, each from the lowest beam up."""
        level = torch.linspace(math.radians(self.lowest), math.radians(self.highest), self.beams).repeat(self.steps)
        turn = (torch.arange(self.steps) * (2 * math.pi / self.steps)).repeat_interleave(self.beams)
        return torch.stack((level.cos() * turn.cos(), level.cos() * turn.sin(), level.sin()), dim=-1)


@dataclass(frozen=True)
class Sweep:
    """One turn of one ego's LiDAR: N returns.

    Attributes:
        point: (N, 3) metres in the ego's frame, noise included.
        range: (N,) metres from the sensor, noise included.
        semantic: (N,) uint8 `Semantic`.
        instance: (N,) int16, the agent's place in dimension A plus one, 0 where there is no agent.
        ray: (N,) int64, which of `Lidar.directions` returned.
    """

    point: Tensor
    range: Tensor
    semantic: Tensor
    instance: Tensor
    ray: Tensor


def sweep(renderer: SceneRenderer, state: State, lidar: Lidar) -> tuple[Sweep, ...]:
    """Return what the LiDAR of each of B egos measures.

    Args:
        renderer: keeps what is made for a scene.
        state: B rows; the same key and step give the same noise and dropout.
        lidar: the sensor.
    """
    direction = lidar.directions()
    sweeps = []
    for row, stage in enumerate(renderer.stages(state.scene)):
        ego = int(state.scene.ego[row])
        away = (state.position[row, :, :2] - state.position[row, ego, :2]).norm(dim=-1)
        reach = lidar.reach + math.hypot(*lidar.position[:2]) + 0.5 * state.scene.size[row, :, :2].norm(dim=-1)
        seen = state.valid[row] & (away < reach) & (torch.arange(len(away)) != ego)
        moment = moment_of(state, row, stage, seen, seen)
        origin = moment.to_scene(torch.tensor(lidar.position)[:, None].expand(3, len(direction)))
        origin[:2] += moment.position[ego][:, None]
        rays = torch.cat((origin, moment.to_scene(direction.T))).T.contiguous()
        hits = cast(moment, rays)
        semantic, instance = labels(moment, rays, hits)
        key, step = state.key[row, None] ^ STREAM, state.step[row, None]
        noise = lidar.noise * hashed_normal(key, step, (len(rays),))[0]
        measured = (hits.distance + noise).clamp(0.0, lidar.reach)
        lost = hashed_uniform(key, step, torch.arange(len(rays)), torch.tensor(1)) < lidar.dropout
        ray = ((hits.distance <= lidar.reach) & (semantic != Semantic.SKY) & ~lost).nonzero()[:, 0]
        point = torch.tensor(lidar.position) + measured[ray, None] * direction[ray]
        sweeps.append(Sweep(point, measured[ray], semantic[ray], instance[ray], ray))
    return tuple(sweeps)
