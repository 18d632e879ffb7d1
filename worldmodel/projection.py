"""What cameras see of the ground: a rig as tensors, and how much of each pixel polygons cover.

Each edge of a polygon is projected, and every line of the image that it crosses gets a signed step there; the sum of the steps
along a line is how much of each pixel is covered. That is the accumulation buffer of font rasterisers, in integers, so that no
order of summing changes a bit. Polygons that touch or overlap melt into one, and edges are smooth: exact across columns, by
`SUBROWS` samples across rows. A whole batch is a few scatters, without a loop over scenes, cameras or polygons.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .rig import Rig

NEAR = 0.3
"""Metres of depth; nothing closer to a camera is drawn."""

SUBROWS, UNIT = 4, 4096
"""Samples of a row of pixels; and what one of them counts where it is covered."""


@dataclass(frozen=True)
class View:
    """A rig as tensors. All of a camera that a point of the ego's frame needs is affine: (depth, left, up) = axes point + shift.

    Attributes:
        origin: (C, 3). axes: (C, 3, 3). shift: (C, 3). intrinsics: (C, 4), see `Rig`.
        slope: (C,) how far to the side the farther rim of the image is seen, in metres a metre of depth.
        yaw: (C,) radians.
        rays: (C H W, 3). ground: (C H W,) inverse depth of the ground, 0 in the sky.
    """

    origin: Tensor
    axes: Tensor
    shift: Tensor
    intrinsics: Tensor
    slope: Tensor
    yaw: Tensor
    rays: Tensor
    ground: Tensor

    def see(self, x: Tensor, y: Tensor) -> Tensor:
        """Return depth, left, up (3, B, C, N) of ground points with coordinates (B, N) in the ego's frame."""
        row = self.axes.permute(1, 0, 2)[:, None, :, None]
        return row[..., 0] * x[:, None] + row[..., 1] * y[:, None] + self.shift.T[:, None, :, None]

    def pixel(self, seen: Tensor) -> Tensor:
        """Return column, row (2, B, C, N) of points (3, B, C, N); of those behind the camera some number."""
        focal, centre = self.intrinsics[:, :2].T, self.intrinsics[:, 2:].T
        inverse = 1.0 / seen[0].clamp(min=0.5 * NEAR)
        return centre[:, None, :, None] - focal[:, None, :, None] * seen[1:] * inverse

    def shows(self, x: Tensor, y: Tensor, margin: float) -> Tensor:
        """Return whether any camera may see what lies within `margin` m of points with coordinates (B, N)."""
        depth, left, _ = self.see(x, y)
        slope = self.slope[:, None]
        return ((depth > -margin) & (left.abs() - slope * depth < margin * (1 + slope.square()).sqrt())).any(dim=1)


@lru_cache(maxsize=16)
def view_of(rig: Rig) -> View:
    """Return the rig as tensors; the last 16 rigs' are kept."""
    origin, axes, intrinsics, rays = rig.origin(), rig.axes(), rig.intrinsics(), rig.rays()
    side = torch.maximum(intrinsics[:, 2], rig.width - intrinsics[:, 2])
    return View(
        origin=origin,
        axes=axes,
        shift=-(axes * origin[:, None]).sum(-1),
        intrinsics=intrinsics,
        slope=side / intrinsics[:, 0],
        yaw=torch.tensor([camera.yaw for camera in rig.cameras]),
        rays=rays.view(-1, 3),
        ground=(-rays[..., 2] / origin[:, 2, None, None]).clamp(min=0.0).flatten(),
    )


def clip(start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Cut segments between points (3, ...) off at the depth `NEAR`; of those that lie before it, both ends become one point.

    A polygon on the ground whose edges are cut one by one lacks what closes it again: that edge is level in the image, as no
    camera rolls, and level edges cover nothing.
    """
    step = end - start
    share = ((NEAR - start[0]) / torch.where(step[0].abs() < 1e-6, 1e-6, step[0])).clamp(0.0, 1.0)
    first = torch.where(start[0] < NEAR, share, 0.0)
    last = torch.where(end[0] < NEAR, share, 1.0)
    hidden = (start[0] < NEAR) & (end[0] < NEAR)
    return start + torch.where(hidden, 0.0, first) * step, start + torch.where(hidden, 0.0, last) * step


def cover(start: Tensor, end: Tensor, sign: Tensor, layer: Tensor, layers: int, rig: Rig) -> Tensor:
    """Return how much of each pixel polygons cover, (B, C, H, W, layers) uint8, 0..255; what overlaps counts once.

    Args:
        start: (2, B, C, E) column, row of the ends of all polygons' edges, in any order; level ones may be left out.
        end: (2, B, C, E), the other ends.
        sign: (B, C, E) int32, 1 where the polygon is clockwise in the image, -1 where it is not, 0 where there is none.
        layer: (B, C, E) int64, which layer to draw into.
        layers: how many there are.
        rig: C cameras of H x W pixels.
    """
    height, width = rig.height, rig.width
    at = [(SUBROWS * point[1] - 0.5).ceil().clamp(0, SUBROWS * height).int() for point in (start, end)]
    kept = ((at[0] != at[1]) & (sign != 0)).flatten().nonzero()[:, 0]
    column, row = start.flatten(1)[:, kept]
    slope = end.flatten(1)[:, kept] - start.flatten(1)[:, kept]
    slope = slope[0] / slope[1]
    first, last = (value.flatten()[kept].long() for value in at)
    step = torch.where(first > last, sign.flatten()[kept], -sign.flatten()[kept])
    low, count = torch.minimum(first, last), (first - last).abs()
    image = kept // start.shape[-1] * layers + layer.flatten()[kept]
    edge = torch.repeat_interleave(torch.arange(len(kept)), count)
    line = low[edge] + torch.arange(len(edge)) - (count.cumsum(0) - count)[edge]
    x = (column[edge] + ((line + 0.5) / SUBROWS - row[edge]) * slope[edge]).clamp(0.0, width)
    whole = x.floor()
    right = ((x - whole) * UNIT).round().int()
    place = (image[edge] * height + line // SUBROWS) * (width + 2) + whole.long()
    steps = torch.zeros(math.prod(start.shape[1:3]) * layers * height * (width + 2), dtype=torch.int32)
    steps.scatter_add_(0, place, step[edge] * (UNIT - right)).scatter_add_(0, place + 1, step[edge] * right)
    covered = steps.view(*start.shape[1:3], layers, height, width + 2)[..., :width].cumsum(-1, dtype=torch.int32)
    full = SUBROWS * UNIT
    return ((covered.clamp(0, full) * 255 + full // 2) // full).to(torch.uint8).permute(0, 1, 3, 4, 2)
