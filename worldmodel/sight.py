"""What a car's cameras show, and the protocol of whatever makes it: the learned camera, or the 3-D renderer.

As a world is a pure function from state to state, a camera is one from sight to sight: all that it remembers (a learned camera
its past frames) stands in the `Sight`, so that it can be sliced, repeated and restored like the `State` that it shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from .rig import Rig
from .scene import TensorBatch
from .world import State


@dataclass(frozen=True)
class Sight(TensorBatch):
    """What the cameras of B egos show.

    Attributes:
        frame: (B, C, H, W, 3) uint8, red, green, blue.
        memory: what the camera itself remembers, by name; every tensor leads with B.
    """

    frame: Tensor
    memory: dict[str, Tensor]


class SceneCamera(Protocol):
    """What environments and windows ask of a camera; they never ask whether it is learned.

    Attributes:
        rig: its C cameras.
    """

    rig: Rig

    def begin(self, state: State) -> Sight:
        """Return what is seen of the moment in which episodes begin."""
        ...

    def follow(self, sight: Sight, state: State, action: Tensor) -> Sight:
        """Return what is seen 0.1 s after `sight`; `state` is that moment's, `action` (B, 2) m/s2 and 1/m led to it."""
        ...
