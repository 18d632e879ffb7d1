"""Cameras by name: what shows the ego's view in an environment (`observation="camera"`) and in `worldloop drive`."""

from __future__ import annotations

import importlib

from ..worldmodel.rig import RIGS, Rig
from ..worldmodel.sight import SceneCamera

CAMERAS: dict[str, tuple[str, str]] = {
    "scene3d": ("..renderers.scene3d", "SceneRenderer"),
    "layout": ("..renderers.layouts", "LayoutCamera"),
}
"""Module and class by name; a class takes a `Rig`. Renderers are reached by name, so that nothing of them is loaded before."""


def open_camera(camera: str | SceneCamera | None, rig: str | Rig | None = None) -> SceneCamera:
    """Return a camera given by its name in `CAMERAS`, or the object itself.

    Args:
        camera: a name, or an object with `rig`, `begin` and `follow`.
        rig: where the cameras of a named one are, by a name of `RIGS` or as a `Rig`; None: the camera's own.

    Raises:
        ValueError: no such name, the object is no camera, or it has a rig of its own.
    """
    if camera is None:
        raise ValueError(f"camera=None: wanted one to see through: camera={' or '.join(map(repr, CAMERAS))}, or a SceneCamera")
    if isinstance(rig, str):
        if rig not in RIGS:
            raise ValueError(f"rig={rig!r} is unknown: choose one of {', '.join(RIGS)}, or give a Rig")
        rig = RIGS[rig]
    if isinstance(camera, str):
        if camera not in CAMERAS:
            raise ValueError(f"camera={camera!r} is unknown: choose one of {', '.join(CAMERAS)}, or give a SceneCamera")
        module, name = CAMERAS[camera]
        make = getattr(importlib.import_module(module, __package__), name)
        return make() if rig is None else make(rig)
    if not isinstance(getattr(camera, "rig", None), Rig) or not all(
        callable(getattr(camera, name, None)) for name in ("begin", "follow")
    ):
        raise ValueError(f"camera: found {type(camera).__name__}, wanted a name or an object with rig, begin and follow")
    if rig is not None and rig != camera.rig:
        raise ValueError(f"rig: this {type(camera).__name__} has one of its own: leave rig out")
    return camera
