"""Where the weights lie that the package brings along, by name."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

ASSETS = Path(str(files("worldloop.assets")))

SHIPPED_WEIGHTS, SHIPPED_SIGNALS = ASSETS / "behavior", ASSETS / "signals"
"""The behaviour model of the learned world, and the network that lets signals go on after the log."""

SHIPPED_CAMERA, SHIPPED_VIDEO = ASSETS / "camera", ASSETS / "camera_video"
"""The driving camera, which paints layouts, and the real one, which is moved by actions alone."""

SIZES = {"small": ASSETS / "behavior_small", "large": ASSETS / "behavior_large"}
"""Behaviour models of other sizes, by the name that every `weights` argument takes."""


def model_folder(weights: Path | str | None) -> Path:
    """Return the folder of a behaviour model: the shipped one if None, one of `SIZES` by its name, else the folder itself.

    A folder of weights of that name in the working directory goes before a name.

    Raises:
        ValueError: there is no such folder.
    """
    if weights is None:
        return SHIPPED_WEIGHTS
    folder = Path(weights) if (Path(weights) / "config.json").is_file() else SIZES.get(str(weights), Path(weights))
    if not folder.is_dir():
        raise ValueError(f"{weights}: no such folder of weights; by name there are {' and '.join(SIZES)}")
    return folder
