"""Worlds: what happens to everyone else after the ego has moved.

A world is a pure function from a `State` and the ego's motion to the next `State`. All it remembers stands in the `State`, its
randomness included (a key for every scene, see `random_keys`), so a state can be sliced, repeated, saved and restored, and the
rows of a batch behave exactly as they would alone.

`LearnedWorld` predicts the others with the behaviour model, `ReplayWorld` lets them follow the log; `SumoWorld`, in `sumo.py`,
asks SUMO.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .scene import HISTORY_STEPS, LAYOUT, AgentKind, Scene, TensorBatch

STATE_VERSION = 1


@dataclass(frozen=True)
class Motion(TensorBatch):
    """Where a body is and how it moves: position (..., 3) metres, heading (...) radians, velocity (..., 2) metres per second."""

    position: Tensor
    heading: Tensor
    velocity: Tensor


@dataclass(frozen=True)
class State(TensorBatch):
    """One moment of B scenes.

    Attributes:
        scene: what does not change: map, sizes, kinds, route, and the log.
        step: (B,) int64, ticks of 0.1 s since the reset; the log's index of this moment is HISTORY_STEPS + step.
        key: (B,) int64, the source of all randomness of each scene.
        position: (B, A, 3), heading: (B, A), velocity: (B, A, 2), valid: (B, A) bool of every agent, the ego included.
        simulated: (B, A) bool, the agents that the world moved in the last step (never the ego).
        signal_state: (B, S) int64 `SignalState`; signal_valid: (B, S) bool.
        memory: what the world itself remembers, by name; every tensor leads with B.
    """

    scene: Scene
    step: Tensor
    key: Tensor
    position: Tensor
    heading: Tensor
    velocity: Tensor
    valid: Tensor
    simulated: Tensor
    signal_state: Tensor
    signal_valid: Tensor
    memory: dict[str, Tensor]

    def __len__(self) -> int:
        """B, the number of scenes."""
        return len(self.scene)

    def ego(self) -> Motion:
        """The ego's position (B, 3), heading (B,) and velocity (B, 2)."""
        row, ego = self.scene.ego_row(), self.scene.ego
        return Motion(self.position[row, ego], self.heading[row, ego], self.velocity[row, ego])


class World(Protocol):
    """What `DriveVectorEnv`, policies and evaluation ask of a world; they never ask which one it is."""

    def horizon(self, scenes: Scene) -> Tensor | None:
        """How many steps (B,) each scene can run, None where there is no end."""
        ...

    def reset(self, scenes: Scene, key: Tensor) -> State:
        """Return the state at the present (step HISTORY_STEPS of the log) with random keys (B,)."""
        ...

    def step(self, state: State, ego: Motion) -> State:
        """Return the state 0.1 s later, given where the ego (B, ...) has moved to in that time."""
        ...


def random_keys(generator: torch.Generator, count: int) -> Tensor:
    """Draw `count` keys (count,) int64 for `World.reset`; the same generator state gives the same keys."""
    return torch.randint(-(2**63), 2**63 - 1, (count,), generator=generator, dtype=torch.int64)


def logged_state(scenes: Scene, key: Tensor) -> State:
    """Return the state that the log shows at the present; the common start of every world."""
    if key.shape != (len(scenes),) or key.dtype != torch.int64:
        raise ValueError(f"key: found {key.dtype} of shape {tuple(key.shape)}, wanted int64 of shape ({len(scenes)},)")
    now = HISTORY_STEPS
    valid = scenes.valid[:, :, now]
    return State(
        scene=scenes,
        step=torch.zeros(len(scenes), dtype=torch.int64),
        key=key,
        position=scenes.position[:, :, now],
        heading=scenes.heading[:, :, now],
        velocity=scenes.velocity[:, :, now],
        valid=valid,
        simulated=torch.zeros_like(valid),
        signal_state=scenes.signal_state[:, :, now],
        signal_valid=scenes.signal_valid[:, :, now],
        memory={},
    )


def logged_signals(scenes: Scene, step: Tensor) -> tuple[Tensor, Tensor]:
    """Return the signals' states and masks (B, S) of the log `step` (B,) ticks after the present; the last one is held."""
    at = (HISTORY_STEPS + step).clamp(max=scenes.steps - 1)[:, None, None].expand(-1, scenes.signal_state.shape[1], 1)
    return scenes.signal_state.gather(2, at)[..., 0], scenes.signal_valid.gather(2, at)[..., 0]


def place_ego(state: State, ego: Motion) -> State:
    """Return the state with the ego put where `ego` (B, ...) says; it keeps its height above the ground."""
    row, column = state.scene.ego_row(), state.scene.ego
    if not torch.isfinite(ego.position).all() or not torch.isfinite(ego.heading).all() or not torch.isfinite(ego.velocity).all():
        raise ValueError("ego motion: found NaN or infinity, wanted finite position, heading and velocity")
    return replace(
        state,
        position=state.position.index_put((row, column), ego.position),
        heading=state.heading.index_put((row, column), ego.heading),
        velocity=state.velocity.index_put((row, column), ego.velocity),
        valid=state.valid.index_put((row, column), torch.ones(len(state), dtype=torch.bool)),
    )


class ReplayWorld:
    """Others follow the log, whatever the ego does; they come and go as logged."""

    def horizon(self, scenes: Scene) -> Tensor:
        """Steps (B,) that the log holds after the present: up to the last step at which anyone is valid."""
        seen = scenes.valid.any(dim=1)
        last = scenes.steps - 1 - seen.flip(-1).long().argmax(-1)
        return last - HISTORY_STEPS

    def reset(self, scenes: Scene, key: Tensor) -> State:
        """See `World.reset`."""
        return logged_state(scenes, key)

    def step(self, state: State, ego: Motion) -> State:
        """See `World.step`.

        Raises:
            ValueError: the log of a scene has ended.
        """
        scene, step = state.scene, state.step + 1
        over = step > self.horizon(scene)
        if over.any():
            row = int(over.nonzero()[0])
            raise ValueError(
                f"{scene.id[row]}: replay cannot go on after {int(step[row]) - 1} steps, where the log ends: "
                "use a shorter horizon or the learned world"
            )
        at = (HISTORY_STEPS + step)[:, None].expand(-1, scene.valid.shape[1])[..., None]
        valid = scene.valid.gather(2, at)[..., 0]
        vector = lambda tensor: tensor.gather(2, at[..., None].expand(*at.shape, tensor.shape[-1]))[:, :, 0]  # noqa: E731
        signal_state, signal_valid = logged_signals(scene, step)
        following = replace(
            state,
            step=step,
            position=vector(scene.position),
            heading=scene.heading.gather(2, at)[..., 0],
            velocity=vector(scene.velocity),
            valid=valid,
            simulated=valid.index_put((scene.ego_row(), scene.ego), torch.zeros(len(state), dtype=torch.bool))
            & (scene.kind != AgentKind.OBJECT),
            signal_state=signal_state,
            signal_valid=signal_valid,
        )
        return place_ego(following, ego)


def save_state(state: State, path: Path) -> None:
    """Write a state to one safetensors file; `load_state` gives back the same bits."""
    tensors = {f"scene.{name}": getattr(state.scene, name) for name in LAYOUT}
    tensors |= {f"memory.{name}": tensor for name, tensor in state.memory.items()}
    tensors |= {name: value for name, value in vars(state).items() if isinstance(value, Tensor)}
    header = {"version": STATE_VERSION, "id": state.scene.id, "recipe": state.scene.recipe}
    partial = path.with_name(path.name + ".partial")
    safetensors.torch.save_file(
        {name: tensor.contiguous().clone() for name, tensor in tensors.items()},
        partial,
        metadata={"worldloop": json.dumps(header)},
    )
    os.replace(partial, path)


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
