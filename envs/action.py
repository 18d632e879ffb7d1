"""Actions: what a policy hands to the environment, and what the car understands.

The car takes acceleration in m/s2 and path curvature in 1/m (`worldmodel/dynamics.py`). Three spaces lead there: `continuous`,
the same two numbers as shares of the car's limits, which is what learning libraries expect; `physical`, the two numbers
themselves, for drivers that calculate; `discrete`, a grid.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ..worldmodel.dynamics import KinematicBicycle

ACTIONS = ("continuous", "physical", "discrete")

ACCELERATION_GRID = (-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0)
"""Shares of the hardest braking (below 0) or of the strongest acceleration; -8, -4, -2, 0, 1, 2, 4 m/s2 with the default car."""

CURVATURE_GRID = (-1.0, -0.4, -0.15, -0.05, 0.0, 0.05, 0.15, 0.4, 1.0)
"""Shares of the largest curvature; 0, +-0.01, +-0.03, +-0.08, +-0.2 1/m with the default car."""

ROUNDING = 1e-5
"""How far, as a share of its limit, an action may lie outside and still be taken for the limit: rounding of float32."""


@dataclass(frozen=True)
class ActionSpace:
    """One of the three action spaces over a car's limits.

    Attributes:
        kind: one of `ACTIONS`.
        dynamics: the car.
        space: what Gymnasium sees of one environment.
    """

    kind: str
    dynamics: KinematicBicycle
    space: spaces.Space[Any] = field(init=False)

    def __post_init__(self) -> None:
        car = self.dynamics
        if self.kind == "continuous":
            space: spaces.Space[Any] = spaces.Box(-1.0, 1.0, (2,), np.float32)
        elif self.kind == "physical":
            low = np.array([car.min_acceleration, -car.max_curvature], np.float32)
            space = spaces.Box(low, np.array([car.max_acceleration, car.max_curvature], np.float32), dtype=np.float32)
        elif self.kind == "discrete":
            space = spaces.Discrete(len(ACCELERATION_GRID) * len(CURVATURE_GRID))
        else:
            raise ValueError(f"action={self.kind!r} is unknown: choose one of {', '.join(ACTIONS)}")
        object.__setattr__(self, "space", space)

    def decode(self, actions: Any) -> Tensor:
        """Return acceleration in m/s2 and curvature in 1/m (B, 2) float32 of a batch of actions in this space.

        Args:
            actions: (B, 2) numbers, or (B,) integers of the grid; arrays, tensors and lists alike.

        Raises:
            ValueError: wrong shape, NaN, infinity or out of range; names the sub-environment, the value and the limits.
        """
        array = actions.detach().cpu().numpy() if isinstance(actions, Tensor) else np.asarray(actions)
        return self._decode_grid(array) if self.kind == "discrete" else self._decode_box(array)

    def encode(self, motion: Tensor) -> np.ndarray:
        """Return the actions of this space nearest to acceleration and curvature (B, 2): the inverse of `decode`."""
        motion = self.dynamics.clip(motion)
        if self.kind == "physical":
            return motion.numpy().astype(np.float32)
        shares = motion / self._scale(motion)
        if self.kind == "continuous":
            return shares.numpy().astype(np.float32)
        nearest = [
            (shares[:, i, None] - torch.tensor(grid)).abs().argmin(dim=1)
            for i, grid in enumerate((ACCELERATION_GRID, CURVATURE_GRID))
        ]
        return (nearest[0] * len(CURVATURE_GRID) + nearest[1]).numpy()

    def _scale(self, signed: Tensor) -> Tensor:
        """The limits (B, 2) that shares (B, 2) of them, or values with the same signs, refer to."""
        car = self.dynamics
        braking = torch.where(signed[:, 0] < 0, -car.min_acceleration, car.max_acceleration)
        return torch.stack((braking, torch.full_like(braking, car.max_curvature)), dim=-1)

    def _decode_box(self, array: np.ndarray) -> Tensor:
        assert isinstance(self.space, spaces.Box)
        low, high = self.space.low, self.space.high
        if array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind not in "fiu":
            raise ValueError(f"actions: found {array.dtype} of shape {array.shape}, wanted numbers of shape (num_envs, 2)")
        array = array.astype(np.float32)
        slack = ROUNDING * np.maximum(np.abs(low), np.abs(high))
        bad = ~((array >= low - slack) & (array <= high + slack))  # NaN compares false
        if bad.any():
            row, column = np.argwhere(bad)[0]
            name = ("acceleration", "curvature")[column]
            unit = "" if self.kind == "continuous" else (" m/s2", " 1/m")[column]
            raise ValueError(
                f"action of sub-environment {row}: {name} is {array[row, column]:.6g}, wanted a number from {low[column]:g} to "
                f"{high[column]:g}{unit}: clip it, or mend the policy if it is NaN or infinite"
            )
        values = torch.from_numpy(np.clip(array, low, high))
        return values if self.kind == "physical" else values * self._scale(values)

    def _decode_grid(self, array: np.ndarray) -> Tensor:
        assert isinstance(self.space, spaces.Discrete)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise ValueError(f"actions: found {array.dtype} of shape {array.shape}, wanted integers of shape (num_envs,)")
        bad = (array < 0) | (array >= self.space.n)
        if bad.any():
            row = int(np.argwhere(bad)[0, 0])
            raise ValueError(f"action of sub-environment {row} is {array[row]}, wanted an integer from 0 to {self.space.n - 1}")
        index = torch.from_numpy(array.astype(np.int64))
        acceleration = torch.tensor(ACCELERATION_GRID)[index // len(CURVATURE_GRID)]
        shares = torch.stack((acceleration, torch.tensor(CURVATURE_GRID)[index % len(CURVATURE_GRID)]), dim=-1)
        return shares * self._scale(shares)
