"""The cameras of `scene3d.py` drawn by OpenGL: Open3D's visualiser in a window that nobody sees, headless through EGL.

Plain surfaces by day, without clouds and shadows, but fast where there is a GPU. Open3D's other renderer wants Vulkan, whose
software form hangs without a display (seen with 0.20), and is not used. Whether OpenGL answers at all is tried in a process of
its own first, which is ended when it takes too long.
"""

from __future__ import annotations

import subprocess
import sys
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..worldmodel.rig import Rig
from ..worldmodel.scene import SignalState
from ..worldmodel.world import State
from .ground import FINEST, Ground
from .light import GLOW, LOOKS, ground_colour
from .meshes import Part
from .scene3d import SceneRenderer, inside
from .scene3d_rays import LIT, REMEDY, Stage, moment_of, open3d

PROBE = """
import open3d
window = open3d.visualization.Visualizer()
made = window.create_window(width=64, height=64, visible=False)
window.add_geometry(open3d.geometry.TriangleMesh.create_box())
raise SystemExit(0 if made and window.capture_screen_float_buffer(True) is not None else 1)
"""
PATIENCE = 60.0
"""Seconds that OpenGL may take to draw a first box."""

SKY = (0.66, 0.8, 0.94)
OFF_MIDDLE = 0.01
"""Pixels by which a camera's centre may lie beside the middle of the image: what rounding does."""

GROUND_LEVEL, BEYOND = 1, 400.0
"""Which level of the ground's textures is drawn; metres of plain grass around it."""


class GlRenderer:
    """Draws one camera of a state by OpenGL.

    Args:
        width: pixels of the window; every camera must have them.
        height: pixels.
        bonnet: show the ego up to its windows where the camera sits inside of it, as in `SceneRenderer`.

    Raises:
        OSError: OpenGL does not answer; the message says what to do.
    """

    def __init__(self, width: int, height: int, bonnet: bool = False) -> None:
        require_opengl()
        self._rays, self._bonnet = SceneRenderer(), bonnet
        self._window = open3d.visualization.Visualizer()
        if not self._window.create_window(width=width, height=height, visible=False):
            raise OSError(f"OpenGL gave no window of {width} x {height} pixels: {REMEDY}")
        options = self._window.get_render_option()
        options.background_color, options.light_on = np.array(SKY), False
        options.mesh_show_back_face = True
        self._stage: Stage | None = None
        self._moving = open3d.geometry.TriangleMesh()

    def draw(self, state: State, rig: Rig, row: int = 0) -> Tensor:
        """Return what the only camera of `rig` sees of one row, (height, width, 3) uint8.

        Raises:
            ValueError: the camera's centre is not the middle of the image.
        """
        require_middle(rig)
        stage = self._rays.stages(state.scene)[row]
        if stage is not self._stage:
            self._window.clear_geometries()
            for mesh in (_still(stage), *_ground(stage.scenery.ground)):
                self._window.add_geometry(mesh)
            self._moving = open3d.geometry.TriangleMesh()
            self._window.add_geometry(self._moving)
            self._stage = stage
        self._move(state, row, stage, inside(rig, state.scene.size[row, state.scene.ego[row]]))
        self._look(state, row, rig)
        self._window.poll_events()
        self._window.update_renderer()
        shown = np.asarray(self._window.capture_screen_float_buffer(True))
        return stretched((shown * 255.0 + 0.5).clip(0, 255).astype(np.uint8), rig)

    def close(self) -> None:
        """Give the window back."""
        self._window.destroy_window()

    def _move(self, state: State, row: int, stage: Stage, within: bool) -> None:
        """Put all agents, and the lamps of the signals, where and as they are now."""
        seen = state.valid[row].clone()
        seen[state.scene.ego[row]] &= self._bonnet or not within
        moment = moment_of(state, row, stage, seen, seen, within)
        kept = moment.kept[stage.part[moment.kept] != Part.CONTACT]
        owner = stage.owner[kept]
        cos, sin = moment.heading.cos()[owner, None], moment.heading.sin()[owner, None]
        place = moment.position[owner, None]
        corner, normal = stage.corner[kept], stage.normal[kept]
        moved = (
            torch.stack((cos * corner[..., 0] - sin * corner[..., 1], sin * corner[..., 0] + cos * corner[..., 1]), -1) + place
        )
        turned = torch.stack((cos * normal[..., 0] - sin * normal[..., 1], sin * normal[..., 0] + cos * normal[..., 1]), -1)
        corner, normal = torch.cat((moved, corner[..., 2:]), -1), torch.cat((turned, normal[..., 2:]), -1)
        colour = stage.albedo[kept]
        lamps = (stage.part[: stage.still] >= Part.RED).nonzero()[:, 0]
        lit = lamps[moment.lit[stage.owner[lamps]] == stage.part[lamps]]
        glow = torch.tensor([GLOW[LIT[SignalState(1 + value)]] for value in range(3)])
        glow = glow / glow.amax(dim=1, keepdim=True)
        front = stage.corner[lit] + 0.02 * stage.normal[lit]
        _fill(
            self._moving,
            torch.cat((corner, front)),
            torch.cat((normal, stage.normal[lit])),
            torch.cat((colour, glow[(stage.part[lit] - Part.RED)])),
        )
        self._window.update_geometry(self._moving)

    def _look(self, state: State, row: int, rig: Rig) -> None:
        """Put the window's camera where the rig's is."""
        ego = int(state.scene.ego[row])
        heading, place = state.heading[row, ego], state.position[row, ego, :2]
        cos, sin = float(heading.cos()), float(heading.sin())
        turn = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
        axes = rig.axes()[0].double().numpy() @ turn.T  # ahead, left, up in the scene
        eye = turn @ rig.origin()[0].double().numpy() + np.array([*place.tolist(), 0.0])
        extrinsic = np.eye(4)
        extrinsic[:3, :3] = np.stack((-axes[1], -axes[2], axes[0]))  # right, down, ahead
        extrinsic[:3, 3] = -extrinsic[:3, :3] @ eye
        focal = min(rig.cameras[0].focal)  # the window knows one alone: `stretched` makes the other
        camera = open3d.camera.PinholeCameraParameters()
        middle = (rig.width / 2 - 0.5, rig.height / 2 - 0.5)
        camera.intrinsic = open3d.camera.PinholeCameraIntrinsic(rig.width, rig.height, focal, focal, *middle)
        camera.extrinsic = extrinsic
        control = self._window.get_view_control()
        control.convert_from_pinhole_camera_parameters(camera, True)
        control.set_constant_z_near(0.3)
        control.set_constant_z_far(600.0)


def stretched(frame: np.ndarray, rig: Rig) -> Tensor:
    """Return a frame (H, W, 3) uint8, drawn with the smaller focal length both ways, as the rig's only camera sees it."""
    high, wide = frame.shape[:2]
    kept = [size * min(rig.cameras[0].focal) / focal for size, focal in zip((wide, high), rig.cameras[0].focal, strict=True)]
    if kept != [wide, high]:
        left, top = 0.5 * (wide - kept[0]), 0.5 * (high - kept[1])
        box = (left, top, left + kept[0], top + kept[1])
        frame = np.asarray(Image.fromarray(frame).resize((wide, high), Image.Resampling.BILINEAR, box=box))
    return torch.from_numpy(frame.copy())


def require_middle(rig: Rig) -> None:
    """Raise ValueError if a camera's centre is not the middle of its image: Open3D's window would draw as if it were."""
    middle = (rig.width / 2, rig.height / 2)
    for name, camera in zip(rig.names, rig.cameras, strict=True):
        if camera.centre and max(abs(camera.centre[0] - middle[0]), abs(camera.centre[1] - middle[1])) > OFF_MIDDLE:
            raise ValueError(
                f"camera {name!r}: found centre {camera.centre}, but OpenGL draws with {middle}, the middle of the image, alone: "
                "leave centre out, or cast rays instead (--backend rays, SceneRenderer)"
            )


@cache
def require_opengl() -> None:
    """Draw a box in a process of its own.

    Raises:
        OSError: it failed, or took longer than PATIENCE seconds; the message says what to do.
    """
    try:
        done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired as error:
        raise OSError(f"OpenGL did not draw a box within {PATIENCE:.0f} s: {REMEDY}") from error
    if done.returncode:
        said = " ".join((done.stdout + done.stderr).split())[-300:]
        raise OSError(f"OpenGL does not work here ({said}): {REMEDY}")


def _fill(mesh, corner: Tensor, normal: Tensor, colour: Tensor) -> None:  # noqa: ANN001
    vector, index = open3d.utility.Vector3dVector, open3d.utility.Vector3iVector
    mesh.vertices = vector(corner.reshape(-1, 3).double().numpy())
    mesh.vertex_normals = vector(normal.reshape(-1, 3).double().numpy())
    sun = torch.tensor(LOOKS["day"].sun_direction())
    lit = colour.repeat_interleave(3, dim=0) * (0.6 + 0.9 * (normal.reshape(-1, 3) @ sun).clamp(min=0.0))[:, None]
    mesh.vertex_colors = vector(lit.clamp(0.0, 1.0).sqrt().double().numpy())
    mesh.triangles = index(np.arange(3 * len(corner), dtype=np.int32).reshape(-1, 3))


def _still(stage: Stage):  # noqa: ANN202
    mesh = open3d.geometry.TriangleMesh()
    _fill(mesh, stage.corner[: stage.still], stage.normal[: stage.still], stage.albedo[: stage.still])
    return mesh


def _ground(ground: Ground):  # noqa: ANN202
    """The textured square of the road, and plain grass around and just below it."""
    width, height = ground.shape[GROUND_LEVEL].tolist()
    texel = FINEST * 2**GROUND_LEVEL
    low = ground.origin[GROUND_LEVEL]
    x, y = (torch.arange(count) * texel + 0.5 * texel + start for count, start in zip((width, height), low, strict=True))
    column, row = x.repeat(height), y.repeat_interleave(width)
    wide = torch.full_like(column, texel)
    albedo = ground_colour(ground.shares(column, row, wide), column, row, wide, LOOKS["day"])[0]
    picture = (albedo.clamp(0.0, 1.0).sqrt() * 255.0).to(torch.uint8).T.reshape(height, width, 3)
    high = low + torch.tensor([width, height]) * texel
    made = []
    for (left, bottom), (right, top), z in ((low, high, 0.0), (low - BEYOND, high + BEYOND, -0.06)):
        corner = torch.tensor([[left, bottom, z], [right, bottom, z], [right, top, z], [left, top, z]])
        mesh = open3d.geometry.TriangleMesh()
        up = torch.tensor([[0.0, 0.0, 1.0]]).expand(2, 3, 3)
        index = torch.tensor([[0, 1, 2], [0, 2, 3]])
        grass = torch.tensor([[0.085, 0.13, 0.035]]).expand(2, 3)
        _fill(mesh, corner[index], up, grass)
        if z == 0.0:
            uv = np.array([[0, 0], [1, 0], [1, 1], [0, 0], [1, 1], [0, 1]], dtype=np.float64)
            mesh.triangle_uvs = open3d.utility.Vector2dVector(uv)
            mesh.textures = [open3d.geometry.Image(np.ascontiguousarray(picture.numpy()))]  # pyright: ignore
            mesh.triangle_material_ids = open3d.utility.IntVector([0, 0])
        made.append(mesh)
    return made
