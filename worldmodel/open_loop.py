"""Rollouts of a world without a policy, and how far its futures end up from the log."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from .dynamics import Motion
from .geometry import box_corners, boxes_overlap, to_local
from .scene import HISTORY_STEPS, LAYOUT, TIME_STEP, AgentKind, Scene, SignalState, TensorBatch
from .world import State, World, random_keys


@dataclass(frozen=True)
class Futures(TensorBatch):
    """K simulated futures of B scenes over T steps after the present.

    Attributes:
        position: (B, K, A, T, 3) box centres. heading: (B, K, A, T). valid: (B, K, A, T) bool.
    """

    position: Tensor
    heading: Tensor
    valid: Tensor


@dataclass(frozen=True)
class Trace(TensorBatch):
    """What everyone does in B rows from the present on, while the ego's motion is forced.

    Attributes:
        position: (B, A, T + 1, 2) box centres, the present first. heading: (B, A, T + 1). speed: (B, A, T + 1) metres per second.
        valid: (B, A, T + 1) bool.
    """

    position: Tensor
    heading: Tensor
    speed: Tensor
    valid: Tensor

    def gap(self, size: Tensor, one: int, other: int) -> Tensor:
        """Return the metres (B, T + 1) between the boxes of two agents, 0 where they overlap, infinite where one is not there.

        `size` (A, 2 or more) holds length and width.
        """
        boxes = ((self.position[:, at], self.heading[:, at], size[at, :2]) for at in (one, other))
        distance = box_distance(*next(boxes), *next(boxes))
        return torch.where(self.valid[:, one] & self.valid[:, other], distance, torch.inf)


def box_distance(
    position_a: Tensor, heading_a: Tensor, size_a: Tensor, position_b: Tensor, heading_b: Tensor, size_b: Tensor
) -> Tensor:
    """Return the metres (...) between two boxes, 0 where they overlap; positions (..., 2), headings (...), sizes (..., 2)."""
    corners_a, corners_b = box_corners(position_a, heading_a, size_a), box_corners(position_b, heading_b, size_b)
    nearest = []
    for points, position, heading, size in (
        (corners_b, position_a, heading_a, size_a),
        (corners_a, position_b, heading_b, size_b),
    ):
        local = to_local(points, position[..., None, :], heading[..., None])
        outside = (local.abs() - 0.5 * size[..., None, :2]).clamp(min=0.0)
        nearest.append(outside.norm(dim=-1).amin(-1))
    # Of two boxes that do not overlap, the nearest pair of points holds a corner.
    return torch.where(boxes_overlap(corners_a, corners_b), 0.0, torch.minimum(*nearest))


class Simulator(Protocol):
    """A world that can drive the ego as well."""

    def reset(self, scenes: Scene, key: Tensor) -> State:
        """See `World.reset`."""
        ...

    def step(self, state: State, ego: Motion | None) -> State:
        """See `World.step`; with None the ego is one of the agents that the world moves."""
        ...


def without_later_signals(scenes: Scene) -> Scene:
    """Return scenes whose log of the signals ends at the present."""
    known = torch.arange(scenes.steps) <= HISTORY_STEPS
    return replace(
        scenes,
        signal_valid=scenes.signal_valid & known,
        signal_state=torch.where(known, scenes.signal_state, SignalState.UNKNOWN),
    )


def without_future(scenes: Scene) -> Scene:
    """Return scenes whose log ends at the present, that of signals and of road users; the map and the ego's route stay."""
    known = torch.arange(scenes.steps) <= HISTORY_STEPS
    scenes = without_later_signals(scenes)
    tracks = {name: torch.where(known[:, None], getattr(scenes, name), 0.0) for name in ("position", "velocity")}
    tracks["heading"] = torch.where(known, scenes.heading, 0.0)
    return replace(scenes, valid=scenes.valid & known, **tracks)


def present_agents(scene: Scene) -> Scene:
    """Return a scene (B = 1) without the agents that are not valid at the present, whom no world simulates."""
    there = scene.valid[0, :, HISTORY_STEPS]
    rows = {name: getattr(scene, name)[:, there] for name, (letters, _) in LAYOUT.items() if letters[1:2] == ("A",)}
    return replace(scene, ego=there[: int(scene.ego[0])].sum()[None], **rows)


def logged_ego(scenes: Scene, step: int) -> Motion:
    """Return the ego's motion `step` ticks after the present (B, ...); in gaps and after its log it goes straight on."""
    row, ego = scenes.ego_row(), scenes.ego
    valid = scenes.valid[row, ego]
    at = torch.arange(scenes.steps)
    index = min(HISTORY_STEPS + step, scenes.steps - 1)
    last = torch.where(valid & (at <= index), at, -1).amax(-1)
    velocity = scenes.velocity[row, ego, last]
    missed = (HISTORY_STEPS + step - last).float()[:, None] * TIME_STEP
    shift = torch.nn.functional.pad(velocity * missed, (0, 1))
    return Motion(scenes.position[row, ego, last] + shift, scenes.heading[row, ego, last], velocity)


def simulate(
    world: Simulator, scenes: Scene, rollouts: int, steps: int, generator: torch.Generator, drive_ego: bool = False
) -> Futures:
    """Let a world run `steps` ticks, `rollouts` times for each scene, with the ego on its log, or driven by the world too.

    The world does not see how anything goes on after the present (`without_future`): nobody who predicts does.
    """
    many = scenes.repeat(rollouts)
    state = world.reset(without_future(many), random_keys(generator, len(many)))
    moments: list[State] = []
    for step in range(1, steps + 1):
        state = world.step(state, None if drive_ego else logged_ego(many, step))
        moments.append(state)
    split = lambda tensor: tensor.unflatten(0, (len(scenes), rollouts))  # noqa: E731
    return Futures(
        split(torch.stack([m.position for m in moments], dim=2)),
        split(torch.stack([m.heading for m in moments], dim=2)),
        split(torch.stack([m.valid for m in moments], dim=2)),
    )


def force_ego(world: World, scene: Scene, ego: Motion, keys: Tensor) -> Trace:
    """Run a scene (B = 1) once for each of the random keys (S,) with the ego moved as `ego` (T, ...) says, one entry a step."""
    state = world.reset(scene.repeat(len(keys)), keys)
    moments = [state]
    for step in range(ego.heading.shape[0]):
        state = world.step(state, ego.map(lambda tensor, step=step: tensor[step].expand(len(keys), *tensor.shape[1:])))
        moments.append(state)
    return Trace(
        torch.stack([moment.position[..., :2] for moment in moments], dim=2),
        torch.stack([moment.heading for moment in moments], dim=2),
        torch.stack([moment.velocity.norm(dim=-1) for moment in moments], dim=2),
        torch.stack([moment.valid for moment in moments], dim=2),
    )


def logged_futures(scenes: Scene, steps: int, held: bool = False) -> Futures:
    """Return what the log shows after the present as one future (K = 1) of everyone valid at the present.

    Args:
        scenes: B scenes.
        steps: T; beyond the log's end everyone is invalid.
        held: keep everyone valid, where the log does not show them at the last pose that it did show.
    """
    index = HISTORY_STEPS + torch.arange(steps + 1)
    valid = scenes.valid[:, :, index.clamp(max=scenes.steps - 1)] & (index < scenes.steps)
    valid = valid & valid[:, :, :1]
    seen = torch.where(valid, index, 0).cummax(-1).values
    shown = valid | (valid[:, :, :1] & held)
    mask = shown[..., None].expand(-1, -1, -1, 3)
    position = torch.where(mask, scenes.position.gather(2, seen[..., None].expand(-1, -1, -1, 3)), 0.0)
    heading = torch.where(shown, scenes.heading.gather(2, seen), 0.0)
    return Futures(position[:, None, :, 1:], heading[:, None, :, 1:], shown[:, None, :, 1:])


def scored_agents(scenes: Scene, ego_too: bool = False) -> Tensor:
    """Return which agents (B, A) count, valid at the present: those that the data set names.

    Where it names none, all but `OBJECT` that move more than 1 m in the log or are within 20 m of the ego. The ego counts if
    `ego_too`.
    """
    now = scenes.valid[:, :, HISTORY_STEPS]
    row, ego = scenes.ego_row(), scenes.ego
    place = scenes.position[:, :, HISTORY_STEPS, :2]
    near = (place - place[row, ego][:, None]).norm(dim=-1) < 20.0
    shift = (scenes.position[..., :2] - place[:, :, None]).norm(dim=-1)
    moving = torch.where(scenes.valid, shift, 0.0)[:, :, HISTORY_STEPS:].amax(-1) > 1.0
    usual = (near | moving) & (scenes.kind != AgentKind.OBJECT)
    chosen = now & torch.where(scenes.to_predict.any(-1, keepdim=True), scenes.to_predict, usual)
    return chosen.index_put((row, ego), torch.tensor(ego_too))


def min_average_displacement(futures: Futures, scenes: Scene, steps: int, ego_too: bool = False) -> tuple[Tensor, Tensor]:
    """Return minADE in metres (B, A) over the first `steps` ticks, and which agents (B, A) of `scored_agents` it holds for.

    The smallest, over the K futures, of the mean distance to the logged position where that is valid (minADE of the Argoverse and
    Waymo motion benchmarks).
    """
    steps = min(steps, futures.position.shape[3], scenes.steps - 1 - HISTORY_STEPS)
    window = slice(HISTORY_STEPS + 1, HISTORY_STEPS + 1 + steps)
    logged, valid = scenes.position[:, None, :, window, :2], scenes.valid[:, None, :, window]
    distance = (futures.position[:, :, :, :steps, :2] - logged).norm(dim=-1)
    mean = torch.where(valid, distance, 0.0).sum(-1) / valid.sum(-1).clamp(min=1)
    return mean.amin(1), scored_agents(scenes, ego_too) & valid[:, 0].any(-1)
