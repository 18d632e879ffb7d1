"""Where the weights lie that the package brings along, by name."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

ASSETS = Path(str(files("worldloop.assets")))

SHIPPED_WEIGHTS, SHIPPED_SIGNALS = ASSETS / "behavior", ASSETS / "signals"
"""The behaviour model of the learned world, and the network that lets signals go on after the log."""

SHIPPED_CAMERA, SHIPPED_VIDEO = ASSETS / "camera", ASSETS / "camera_video"
"""The driving camera, which paints layouts, and the real one, which is moved by actions alone."""


def model_folder(weights: Path | str | None) -> Path:
    """Return the folder of a behaviour model: the shipped one if None."""
    return SHIPPED_WEIGHTS if weights is None else Path(weights)
