"""Motion vocabulary: what an agent can do in one decision interval, as a finite set of short motions for each kind.

A token is the motion of one interval (five poses at 10 Hz) in the agent's frame at its start; `vocabulary.py` finds them in data.
Distances are root-mean-square distances of box corners, so heading counts by the size of the body.

Encoding follows the reconstructed track, not the logged one (Trajeglish; SMART, arXiv 2405.15677): each token starts where the
last one ended, so errors do not add up. Which token is taken is up to a `Choose`: the nearest, one of the nearest at random
(`disturbed`), or what the model in training would do; the next one has to correct it.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional

from .files import write_tensors
from .geometry import to_global, to_local, wrap_angle
from .scene import TIME_STEP, AgentKind, Scene

MOVING_KINDS = (AgentKind.VEHICLE, AgentKind.PEDESTRIAN, AgentKind.CYCLIST)
"""Kinds that have tokens; an `OBJECT` never moves."""

CORNER_RADIUS = {AgentKind.VEHICLE: 2.44, AgentKind.PEDESTRIAN: 0.5, AgentKind.CYCLIST: 1.0}
"""Metres from the centre to a corner of a typical body (car 4.5 x 1.9 m): weighs heading against position. For pedestrians more
than the real 0.4 m, as a heading that is free to spin reads badly."""

FAR = 1e9
"""Squared metres by which the tokens of other kinds are out of reach."""

VOCABULARY_VERSION = 1

Choose = Callable[[int, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Picks tokens while tracks are coded: (place of the decision, poses (B, A, 3) and velocities (B, A, 2) reached, squared
distances (B, A, V) from where each token would end to where the log goes on) -> the token to follow and the token to learn,
(B, A) each."""


def nearest(place: int, pose: Tensor, velocity: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
    """Follow and learn the token that ends nearest to the log: a `Choose`."""
    token = distance.argmin(-1)
    return token, token


def disturbed(noise: int, generator: torch.Generator) -> Choose:
    """Follow and learn one of the `noise` nearest tokens at random."""

    def choose(place: int, pose: Tensor, velocity: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
        near_distance, near = distance.topk(noise, dim=-1, largest=False)
        # A kind with fewer tokens than that has only other kinds' tokens left: the nearest one stands in.
        near = torch.where(near_distance < FAR / 2, near, near[..., :1])
        token = near.gather(-1, torch.randint(noise, (*near.shape[:-1], 1), generator=generator))[..., 0]
        return token, token

    return choose


@dataclass(frozen=True)
class Tracks:
    """Tracks at the decision times: N poses an interval apart and what happened between them.

    Attributes:
        pose: (B, A, N, 3) x, y, heading at each decision.
        valid: (B, A, N) bool.
        token: (B, A, N - 1) int64, the token to learn at pose n; only meaningful where `coded`.
        coded: (B, A, N - 1) bool.
        velocity: (B, A, N, 2) at each decision, in the scene's frame: that of the motion which led there, as in a rollout, or the
            logged one of whoever is on its log.
    """

    pose: Tensor
    valid: Tensor
    token: Tensor
    coded: Tensor
    velocity: Tensor


class MotionVocabulary:
    """The tokens of all kinds in one table.

    Attributes:
        motion: (V, ticks, 3) x, y (metres), heading (radians) after each tick, in the frame at the start.
        kind: (V,) int64, the `AgentKind` that a token belongs to.
    """

    def __init__(self, motion: Tensor, kind: Tensor):
        if motion.ndim != 3 or motion.shape[-1] != 3 or kind.shape != motion.shape[:1]:
            raise ValueError(
                f"vocabulary: found shapes {tuple(motion.shape)} and {tuple(kind.shape)}, wanted (V, ticks, 3) and (V,)"
            )
        missing = [k.name for k in MOVING_KINDS if not (kind == k).any()]
        if missing:
            raise ValueError(f"vocabulary: no token for {', '.join(missing)}: build it from data in which every kind moves")
        self.motion, self.kind = motion.contiguous(), kind.contiguous()
        end = motion[:, -1]
        radius = torch.tensor([CORNER_RADIUS[AgentKind(k)] for k in kind.tolist()])
        turned = 2 * radius.square()
        columns = (
            -2 * end[:, 0],
            -2 * end[:, 1],
            -turned * end[:, 2].cos(),
            -turned * end[:, 2].sin(),
            end[:, :2].square().sum(-1),
        )
        # The tokens of other kinds are put out of reach by the same matrix product.
        other_kind = FAR * (torch.arange(len(AgentKind)) != kind[:, None]).float()
        self._end_features = torch.cat((torch.stack(columns, dim=-1), other_kind), dim=-1)

    def __len__(self) -> int:
        """V, the number of tokens of all kinds together."""
        return len(self.kind)

    @property
    def ticks(self) -> int:
        """Ticks of 0.1 s that a token lasts."""
        return self.motion.shape[1]

    def checksum(self) -> int:
        """CRC-32 of the table; weights name the vocabulary that they were trained with by it."""
        return zlib.crc32(self.kind.numpy().tobytes(), zlib.crc32(self.motion.numpy().tobytes()))

    def allowed(self, kind: Tensor) -> Tensor:
        """Return which tokens (..., V) agents of `kind` (...) may use; none for an `OBJECT`."""
        return kind[..., None] == self.kind

    def distance(self, motion: Tensor, kind: Tensor) -> Tensor:
        """Return squared corner distances (..., V) between end poses `motion` (..., 3) and all tokens; > FAR / 2 for other kinds.

        The mean square distance of the corners of two equal boxes is |p - q|^2 + 2 r^2 (1 - cos(heading difference)), r being the
        distance from centre to corner; what does not depend on the token is left out.
        """
        x, y, heading = motion.unbind(-1)
        features = torch.stack((x, y, heading.cos(), heading.sin(), torch.ones_like(x)), dim=-1)
        with torch.autocast("cpu", enabled=False):  # differences of large squares: bfloat16 would choose another token
            return torch.cat((features, functional.one_hot(kind, len(AgentKind))), dim=-1) @ self._end_features.T

    def decode(self, token: Tensor, pose: Tensor) -> Tensor:
        """Return the poses (..., ticks, 3) after each tick of `token` (...) begun at `pose` (..., 3)."""
        motion = self.motion[token]
        place = to_global(motion[..., :2], pose[..., None, :2], pose[..., None, 2])
        return torch.cat((place, wrap_angle(pose[..., None, 2:] + motion[..., 2:])), dim=-1)

    def encode(self, scene: Scene, phase: int = 0, choose: Choose = nearest) -> Tracks:
        """Return the scene's tracks at the decision times phase, phase + ticks, ... as tokens.

        Args:
            scene: B scenes.
            phase: index of the first decision in the log.
            choose: picks the tokens. The ego is never led away by it and keeps its logged poses: in a rollout it enters with what
                it really did.
        """
        at = torch.arange(phase, scene.steps, self.ticks)
        logged = torch.cat((scene.position[:, :, at, :2], scene.heading[:, :, at, None]), dim=-1)
        valid = scene.valid[:, :, at]
        moving = scene.kind != AgentKind.OBJECT
        is_ego = torch.zeros_like(moving).index_put((scene.ego_row(), scene.ego), torch.tensor(True))
        shown = scene.velocity[:, :, at]
        poses, velocities, tokens = [logged[:, :, 0]], [shown[:, :, 0]], []
        coded = valid[:, :, 1:] & valid[:, :, :-1] & moving[..., None]
        for n in range(1, len(at)):
            before, after = poses[-1], logged[:, :, n]
            wanted = torch.cat((to_local(after[..., :2], before[..., :2], before[..., 2]), (after - before)[..., 2:]), dim=-1)
            distance = self.distance(wanted, torch.where(moving, scene.kind, AgentKind.VEHICLE))
            followed, learned = choose(n - 1, before, velocities[-1], distance)
            previous, reached = torch.cat((before[..., None, :], self.decode(followed, before)), dim=-2)[..., -2:, :].unbind(-2)
            exact = (is_ego | ~coded[:, :, n - 1])[..., None]
            poses.append(torch.where(exact, after, reached))
            velocities.append(torch.where(exact, shown[:, :, n], (reached - previous)[..., :2] / TIME_STEP))
            tokens.append(learned)
        return Tracks(torch.stack(poses, 2), valid, torch.stack(tokens, 2), coded, torch.stack(velocities, 2))

    def save(self, path: Path) -> None:
        """Write the table to a safetensors file."""
        header = {"worldloop": json.dumps({"vocabulary": VOCABULARY_VERSION})}
        write_tensors(path, {"motion": self.motion, "kind": self.kind}, header)

    @classmethod
    def load(cls, path: Path) -> MotionVocabulary:
        """Read a table that `save` wrote.

        Raises:
            ValueError: the file is missing, broken, or no vocabulary of this version.
        """
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {}).get("worldloop", "{}"))
                if header.get("vocabulary") != VOCABULARY_VERSION:
                    raise ValueError(
                        f"{path}: not a motion vocabulary of version {VOCABULARY_VERSION}: build it with this release"
                    )
                return cls(file.get_tensor("motion"), file.get_tensor("kind"))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path}: not a readable motion vocabulary ({error}): copy the model folder again") from error
