"""Rays cast into one scene by Embree through Open3D: what is hit, by which triangle, and whether the sun is seen from there.

Embree (Wald et al., "Embree: A Kernel Framework for Efficient CPU Ray Tracing", 2014) needs no GPU and no display. The ground is
the plane z = 0 and costs nothing; what stands still is put into one search tree for each scene, which is kept; road users are put
into a small one for each frame, and only the rays that can meet them look into it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..worldmodel.paint import paint_of, seed_of
from ..worldmodel.scene import AgentKind, Scene, SignalState
from ..worldmodel.world import State
from .bodies import body
from .ground import FINEST
from .light import light_pools
from .meshes import PART_SEMANTIC, Mesh, Part, Semantic, join
from .scenery import Scenery

LIBRARIES = "on Debian or Ubuntu `apt-get install -y libgl1 libegl1 libx11-6 libusb-1.0-0`"
REMEDY = f"cast rays instead, which works anywhere (--backend rays), or {LIBRARIES} and Mesa's drivers, `libgl1-mesa-dri`"

try:
    import open3d
except ImportError as error:  # also where the system's libraries are missing
    raise ImportError(f'the 3-D renderer needs Open3D ({error}): pip install "worldloop[view]", and {LIBRARIES}') from error

LIT = {SignalState.STOP: Part.RED, SignalState.CAUTION: Part.AMBER, SignalState.GO: Part.GREEN}


class Stage:
    """All triangles of one scene: what stands still, and every agent as it was made, fine and coarse.

    Attributes:
        still: how many triangles stand still; they come first.
    """

    def __init__(self, scene: Scene, row: int, scenery: Scenery) -> None:
        self.scenery = scenery
        self.still = len(scenery.mesh)
        self.seed = seed_of(scene.id[row])
        paints = paint_of(scene.take([row]))[0].tolist()
        fine, coarse = (_crowd(scene, row, paints, self.seed, fine) for fine in (True, False))
        mesh = join([scenery.mesh, fine, coarse])
        self.corner, self.normal = torch.from_numpy(mesh.corner), torch.from_numpy(mesh.normal)
        self.part, self.owner = torch.from_numpy(mesh.part), torch.from_numpy(mesh.owner)
        self.curved = (self.normal[:, :1] != self.normal[:, 1:]).any(-1).any(-1)
        self.albedo = torch.from_numpy(mesh.colour)
        self.coarse = torch.arange(len(mesh)) >= self.still + len(fine)
        below = 0.66 * scene.size[row, :, 2]
        self.low = torch.cat(
            (torch.ones(self.still, dtype=torch.bool), self.corner[self.still :, :, 2].amax(1) < below[self.owner[self.still :]])
        )
        of_part = torch.tensor([int(PART_SEMANTIC.get(part, Semantic.OBJECT)) for part in Part])
        of_kind = torch.tensor([int(Semantic[AgentKind(kind).name]) for kind in AgentKind])
        self.semantic = of_part[self.part]
        self.semantic[self.still :] = of_kind[scene.kind[row][self.owner[self.still :]]]
        self.tree = _tree(self.corner[: self.still])
        ground = scenery.ground
        low, size = ground.origin[-1].numpy(), ground.shape[-1].numpy() * (FINEST * 2 ** (len(ground.shape) - 1))
        self.pools, self.pools_corner = light_pools(scenery.lamps, low, low + size)


def _crowd(scene: Scene, row: int, paints: list[list[float]], seed: int, fine: bool) -> Mesh:
    """The bodies of all agents of scene `row`, each at the origin, looking along +x."""
    present = scene.valid[row].any(dim=-1).nonzero()[:, 0].tolist()
    sizes, kinds = scene.size[row].tolist(), scene.kind[row].tolist()
    return join(
        [
            body(AgentKind(kinds[a]), tuple(sizes[a]), paints[a], (seed, a), fine).placed((0.0, 0.0), owner=a)  # type: ignore[arg-type]
            for a in present
        ]
    )


def _tree(corner: Tensor, threads: int = 0):  # noqa: ANN202
    """Return a search tree of triangles (n, 3, 3), None if there is none."""
    if not len(corner):
        return None
    tree = open3d.t.geometry.RaycastingScene(nthreads=threads)
    flat = corner.reshape(-1, 3).contiguous()
    tree.add_triangles(
        open3d.core.Tensor.from_numpy(flat.numpy()),
        open3d.core.Tensor.from_numpy(np.arange(len(flat), dtype=np.uint32).reshape(-1, 3)),
    )
    return tree


def _cast(tree, rays: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return distance (N,), triangle (N,) and barycentric coordinates (N, 2) of the first hits of rays (N, 6)."""
    if tree is None or not len(rays):
        return torch.full((len(rays),), torch.inf), torch.zeros(len(rays), dtype=torch.int64), torch.zeros(len(rays), 2)
    found = tree.cast_rays(open3d.core.Tensor.from_numpy(rays.contiguous().numpy()))
    triangle = torch.from_numpy(found["primitive_ids"].numpy().view(np.int32)).to(torch.int64)
    return torch.from_numpy(found["t_hit"].numpy()), triangle, torch.from_numpy(found["primitive_uvs"].numpy())


@dataclass(frozen=True)
class Moment:
    """One row of a state, ready to be looked at.

    Attributes:
        stage: its triangles.
        position: (A, 2) metres. heading: (A,) radians. size: (A, 3) metres. ego: its place in A.
        lit: (S,) int64, the `Part` that is lit on each signal, -1 where none.
        kept: (n,) int64, the stage's triangles that are agents in sight. moving: the search tree of them.
    """

    stage: Stage
    position: Tensor
    heading: Tensor
    size: Tensor
    ego: int
    lit: Tensor
    kept: Tensor
    moving: Any

    def to_scene(self, vector: Tensor) -> Tensor:
        """Turn vectors (3, N) of the ego's frame into the scene's."""
        cos, sin = self.heading[self.ego].cos(), self.heading[self.ego].sin()
        return torch.stack((cos * vector[0] - sin * vector[1], sin * vector[0] + cos * vector[1], vector[2]))


def moment_of(state: State, row: int, stage: Stage, seen: Tensor, fine: Tensor, bonnet: bool = False) -> Moment:
    """Put the agents of one row that are `seen` (A,) into a search tree, those that are `fine` (A,) with all their triangles.

    `bonnet` leaves of the ego only what lies below its windows.
    """
    position, heading, ego = state.position[row, :, :2], state.heading[row], int(state.scene.ego[row])
    owner = stage.owner[stage.still :]
    keep = seen[owner] & (fine[owner] != stage.coarse[stage.still :])
    if bonnet:
        keep &= (owner != ego) | stage.low[stage.still :]
    kept = keep.nonzero()[:, 0] + stage.still
    corner, owner = stage.corner[kept], stage.owner[kept]
    cos, sin, place = heading.cos()[owner, None], heading.sin()[owner, None], position[owner, None]
    x, y, z = corner.unbind(-1)
    moved = torch.stack((cos * x - sin * y + place[..., 0], sin * x + cos * y + place[..., 1], z), dim=-1)
    table = torch.tensor([int(LIT.get(SignalState(value), -1)) for value in SignalState])
    lit = torch.where(state.signal_valid[row], table[state.signal_state[row]], -1)
    return Moment(stage, position, heading, state.scene.size[row], ego, lit, kept, _tree(moved))


@dataclass(frozen=True)
class Hits:
    """Where N rays end.

    Attributes:
        distance: (N,) in units of the ray, infinite in the sky.
        ground: (n,) int64, the rays that end on the ground. contact: (n,) int64, the agent that stands close by plus one, else 0.
        body: (m,) int64, the rays that end at something that stands there.
        triangle: (m,) int64 of the stage. at: (m, 2) barycentric coordinates in it.
    """

    distance: Tensor
    ground: Tensor
    contact: Tensor
    body: Tensor
    triangle: Tensor
    at: Tensor


def cast(moment: Moment, rays: Tensor, looking: Tensor | None = None) -> Hits:
    """Return where rays (N, 6), origin and direction, end; only those of `looking` (n,) int64 can meet agents (None: all)."""
    stage = moment.stage
    down = rays[:, 5]
    flat = torch.where(down < -1e-6, rays[:, 2] / -down, torch.inf)
    distance, triangle, at = _cast(stage.tree, rays)
    contact = torch.zeros(len(rays), dtype=torch.int64)
    if len(moment.kept):
        index = torch.arange(len(rays)) if looking is None else looking
        near, which, place = _cast(moment.moving, rays[index])
        closer = near < distance[index]
        index, near, which, place = index[closer], near[closer], moment.kept[which[closer]], place[closer]
        touched = stage.part[which] == Part.CONTACT
        contact[index[touched]] = stage.owner[which[touched]] + 1
        near = torch.where(touched, torch.inf, near)
        distance[index], triangle[index], at[index] = near, which, place
    on_ground = flat < distance
    ground = on_ground.nonzero()[:, 0]
    body = (~on_ground & (distance < torch.inf)).nonzero()[:, 0]
    return Hits(torch.minimum(flat, distance), ground, contact[ground], body, triangle[body], at[body])


def labels(moment: Moment, rays: Tensor, hits: Hits) -> tuple[Tensor, Tensor]:
    """Return the `Semantic` (N,) uint8 and the agent plus one (N,) int16 that rays (N, 6) end at."""
    stage = moment.stage
    semantic, instance = torch.zeros(len(rays), dtype=torch.uint8), torch.zeros(len(rays), dtype=torch.int16)
    if len(hits.ground):
        point = rays[hits.ground, :2] + hits.distance[hits.ground, None] * rays[hits.ground, 3:5]
        semantic[hits.ground] = stage.scenery.ground.classes(point[:, 0], point[:, 1])
    semantic[hits.body] = stage.semantic[hits.triangle].to(torch.uint8)
    agent = hits.triangle >= stage.still
    instance[hits.body[agent]] = (stage.owner[hits.triangle[agent]] + 1).to(torch.int16)
    return semantic, instance


def sunlit(moment: Moment, point: Tensor, sun: tuple[float, float, float]) -> Tensor:
    """Return 0 where something stands between points (3, N) and the sun, which stands in direction `sun`, else 1, as (N,)."""
    rays = torch.cat((point, torch.tensor(sun)[:, None].expand(3, point.shape[1]))).T.contiguous()
    shadow = torch.zeros(len(rays), dtype=torch.bool)
    for tree in (moment.stage.tree, moment.moving):
        if tree is not None and len(rays):
            found = tree.test_occlusions(open3d.core.Tensor.from_numpy(rays.numpy()), 0.03, math.inf)
            shadow |= torch.from_numpy(found.numpy())
    return 1.0 - shadow.float()
