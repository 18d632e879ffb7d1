"""States in files: a moment of a world saved and taken up again, to the same bits."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from .files import write_tensors
from .scene import LAYOUT, Scene
from .world import State

STATE_VERSION = 4


def save_state(state: State, path: Path) -> None:
    """Write a state to one safetensors file; `load_state` gives back the same bits."""
    tensors = {f"scene.{name}": getattr(state.scene, name) for name in LAYOUT}
    tensors |= {f"memory.{name}": tensor for name, tensor in state.memory.items()}
    tensors |= {name: value for name, value in vars(state).items() if isinstance(value, Tensor)}
    header = {"version": STATE_VERSION, "id": state.scene.id, "recipe": state.scene.recipe}
    write_tensors(path, {name: tensor.clone() for name, tensor in tensors.items()}, {"worldloop": json.dumps(header)})


def load_state(path: Path) -> State:
    """Read a state that `save_state` wrote.

    Raises:
        ValueError: the file is not such a state or of another version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("worldloop", "{}"))
            if header.get("version") != STATE_VERSION:
                raise ValueError(f"{path}: not a worldloop state of version {STATE_VERSION}: save it again with this release")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error}): save the state again") from error
    scene = Scene(
        id=tuple(header["id"]), recipe=tuple(header["recipe"]), **{name: tensors.pop(f"scene.{name}") for name in LAYOUT}
    )
    memory = {name.removeprefix("memory."): tensors.pop(name) for name in list(tensors) if name.startswith("memory.")}
    return State(scene=scene, memory=memory, **tensors)
