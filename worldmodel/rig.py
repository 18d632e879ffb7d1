"""Camera rigs: pinhole cameras that are fixed to the ego, where they stand and which ray each of their pixels looks along.

All is in the ego's frame: x forward, y left, z up, metres; the origin lies on the ground under the middle of the ego's box. The
ground is taken to be flat, as wide as one sees; the layouts of `perspective.py` and the pictures of `scene3d.py` share that
convention, and so show the same thing in the same pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MOST_CAMERAS = 7

APPEARANCES = ("day", "dusk", "night", "rain", "fog")
"""Times of day and weathers that the 3-D renderer shows, and that a learned camera can be taught to tell apart."""


@dataclass(frozen=True)
class Camera:
    """A pinhole camera without distortion (Hartley and Zisserman, "Multiple View Geometry", 2004, section 6.1).

    Attributes:
        width: columns of pixels, height: rows. Column 0 is on the left, row 0 on top; pixel i covers [i, i + 1).
        focal: (x, y) focal length in pixels.
        centre: (column, row) that the optical axis meets, in pixels; the middle of the image if None.
        position: (x, y, z) metres in the ego's frame.
        yaw: radians, where it looks: 0 ahead, pi / 2 left. pitch: radians, positive looks down.
    """

    width: int = 128
    height: int = 64
    focal: tuple[float, float] = (64.0, 64.0)
    centre: tuple[float, float] | None = None
    position: tuple[float, float, float] = (0.6, 0.0, 1.6)
    yaw: float = 0.0
    pitch: float = 0.0

    def __post_init__(self) -> None:
        if min(self.width, self.height) < 1 or not min(self.focal) > 0:
            raise ValueError(f"{self}: width, height and focal must be positive")
        if not self.position[2] > 0:
            raise ValueError(f"{self}: position[2] must be above the ground, at more than 0 m")

    @classmethod
    def with_view(cls, degrees: float, width: int = 128, height: int = 64, **rest: float | tuple) -> Camera:
        """Return a camera that sees `degrees` from its left to its right edge."""
        if not 0.0 < degrees < 180.0:
            raise ValueError(f"a pinhole camera sees between 0 and 180 degrees, found {degrees}")
        focal = 0.5 * width / math.tan(math.radians(degrees) / 2)
        return cls(width=width, height=height, focal=(focal, focal), **rest)  # pyright: ignore[reportArgumentType]

    def resized(self, width: int, height: int) -> Camera:
        """Return the same camera with other numbers of pixels, which see the same."""
        share = (width / self.width, height / self.height)
        centre = self.centre and (self.centre[0] * share[0], self.centre[1] * share[1])
        focal = (self.focal[0] * share[0], self.focal[1] * share[1])
        return Camera(width, height, focal, centre, self.position, self.yaw, self.pitch)


@dataclass(frozen=True)
class Rig:
    """One to seven cameras of the same size, on one car.

    Attributes:
        cameras: C of them, C in 1..7.
        names: one for each.
    """

    cameras: tuple[Camera, ...] = (Camera(),)
    names: tuple[str, ...] = ("front",)

    def __post_init__(self) -> None:
        if not 1 <= len(self.cameras) <= MOST_CAMERAS or len(self.names) != len(self.cameras):
            raise ValueError(
                f"a rig has 1 to {MOST_CAMERAS} cameras, each with a name: {len(self.cameras)}, {len(self.names)} names"
            )
        if len({(camera.width, camera.height) for camera in self.cameras}) > 1:
            raise ValueError("the cameras of a rig must have equal width and height: use Camera.resized")

    def __len__(self) -> int:
        """C, the number of cameras."""
        return len(self.cameras)

    @property
    def width(self) -> int:
        """Columns of every image."""
        return self.cameras[0].width

    @property
    def height(self) -> int:
        """Rows of every image."""
        return self.cameras[0].height

    def resized(self, width: int, height: int) -> Rig:
        """Return the same rig with other numbers of pixels."""
        return Rig(tuple(camera.resized(width, height) for camera in self.cameras), self.names)

    def origin(self) -> Tensor:
        """Where the cameras stand, (C, 3) metres in the ego's frame."""
        return torch.tensor([camera.position for camera in self.cameras])

    def axes(self) -> Tensor:
        """Unit vectors (C, 3, 3) in the ego's frame; row 0 looks along the optical axis, 1 to the left, 2 up in the image."""
        rows = []
        for camera in self.cameras:
            cos, sin = math.cos(camera.yaw), math.sin(camera.yaw)
            down, level = math.sin(camera.pitch), math.cos(camera.pitch)
            rows.append([[cos * level, sin * level, -down], [-sin, cos, 0.0], [cos * down, sin * down, level]])
        return torch.tensor(rows)

    def intrinsics(self) -> Tensor:
        """(C, 4): focal length x, y and the image's centre column, row, in pixels."""
        middle = (self.width / 2, self.height / 2)
        return torch.tensor([[*camera.focal, *(camera.centre or middle)] for camera in self.cameras])

    def rays(self) -> Tensor:
        """What the middle of every pixel looks along, (C, H, W, 3) in the ego's frame; one unit of it is one metre of depth."""
        row, column = torch.meshgrid(torch.arange(self.height) + 0.5, torch.arange(self.width) + 0.5, indexing="ij")
        focal_x, focal_y, centre_x, centre_y = self.intrinsics()[:, :, None, None].unbind(1)
        left, up = (centre_x - column) / focal_x, (centre_y - row) / focal_y
        ray = torch.stack((torch.ones_like(left), left, up), dim=-1)
        return torch.einsum("chwi,cij->chwj", ray, self.axes())

    def project(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """Return where points (..., N, 3) of the ego's frame are seen.

        Returns:
            pixel: (..., C, N, 2) column and row; of no meaning where the depth is not positive.
            depth: (..., C, N) metres along the optical axis; not positive behind the camera.
        """
        relative = point[..., None, :, :] - self.origin()[:, None]
        depth, left, up = torch.einsum("...cni,cji->...cnj", relative, self.axes()).unbind(-1)
        focal_x, focal_y, centre_x, centre_y = self.intrinsics()[:, :, None].unbind(1)
        safe = depth.clamp(min=1e-6)
        return torch.stack((centre_x - focal_x * left / safe, centre_y - focal_y * up / safe), dim=-1), depth


def _around(names: tuple[str, ...], degrees: tuple[float, ...], view: float) -> Rig:
    """Cameras that look `degrees` to the left of ahead, on a ring of 0.5 m around a point over the windscreen."""
    cameras = []
    for yaw in map(math.radians, degrees):
        place = (0.3 + 0.5 * math.cos(yaw), 0.5 * math.sin(yaw), 1.6)
        cameras.append(Camera.with_view(view, position=place, yaw=yaw))
    return Rig(tuple(cameras), names)


RIGS = {
    "front": Rig(),
    "front3": _around(("front_left", "front", "front_right"), (60.0, 0.0, -60.0), 75.0),
    "surround": _around(
        ("front_left", "front", "front_right", "back_left", "back", "back_right"), (55.0, 0.0, -55.0, 110.0, 180.0, -110.0), 70.0
    ),
}
"""Rigs by the name that environments and the command line take; `surround` is laid out like nuScenes (arXiv 1903.11027)."""
