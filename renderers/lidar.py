"""A spinning LiDAR on the ego: which rays it sends, and what it measures of what they hit.

The beams of one column are sent at once; the ego does not move during a turn. Noise and dropout follow a generator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..worldmodel.world import State
from .meshes import Semantic
from .scene3d import REACH, SceneRenderer
from .scene3d_rays import cast, labels, moment_of


@dataclass(frozen=True)
class Lidar:
    """A LiDAR; as it stands here about a Velodyne HDL-32E (datasheet 97-0038).

    Attributes:
        beams: rays above each other. lowest, highest: degrees from the level at which they look, evenly spaced.
        steps: columns of a full turn, the first one straight ahead, then counter-clockwise.
        reach: metres; what is farther away gives no return.
        noise: metres, standard deviation of a measured range.
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


def sweep(renderer: SceneRenderer, state: State, lidar: Lidar, generator: torch.Generator | None = None) -> tuple[Sweep, ...]:
    """Return what the LiDAR of each of B egos measures.

    Args:
        renderer: keeps what is made for a scene.
        state: B rows.
        lidar: the sensor.
        generator: where noise and dropout come from; without one there is none of either.
    """
    direction = lidar.directions()
    sweeps = []
    for row, stage in enumerate(renderer.stages(state.scene)):
        ego = int(state.scene.ego[row])
        near = (state.position[row, :, :2] - state.position[row, ego, :2]).square().sum(-1) < REACH**2
        seen = state.valid[row] & near & (torch.arange(state.valid.shape[1]) != ego)
        moment = moment_of(state, row, stage, seen, seen)
        origin = moment.to_scene(torch.tensor(lidar.position)[:, None].expand(3, len(direction)))
        origin[:2] += moment.position[ego][:, None]
        rays = torch.cat((origin, moment.to_scene(direction.T))).T.contiguous()
        hits = cast(moment, rays)
        semantic, instance = labels(moment, rays, hits)
        measured, kept = hits.distance, (hits.distance <= lidar.reach) & (semantic != Semantic.SKY)
        if generator is not None:
            measured = measured + lidar.noise * torch.randn(len(rays), generator=generator)
            kept &= torch.rand(len(rays), generator=generator) >= lidar.dropout
        ray = kept.nonzero()[:, 0]
        point = torch.tensor(lidar.position) + measured[ray, None] * direction[ray]
        sweeps.append(Sweep(point, measured[ray], semantic[ray], instance[ray], ray))
    return tuple(sweeps)
