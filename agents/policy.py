"""Policy: who drives the ego, whether a rule, a network or a user's own object.

A policy sees a whole batch at once: B scenes, one action each. It gets the observation that the environment hands out (all that a
learned driver may use) and the `State` (all there is: map, route, every road user; what a rule needs). A policy that remembers
something between calls forgets it for the rows whose `state.step` is 0: there an episode begins.

A class `Careful` with such a method `act`, in `my_driver.py`, drives with `--policy my_driver:Careful` (the README shows one).
"""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from ..envs.vector import Observation
from ..worldmodel.world import State


@runtime_checkable
class Policy(Protocol):
    """What `rollout` asks of a driver."""

    def act(self, observation: Observation, state: State) -> Tensor | np.ndarray:
        """Return the action (B, 2) float32 of each scene: acceleration in m/s2 and path curvature in 1/m (left is positive).

        Args:
            observation: what the environment shows: a dictionary of arrays (B, ...); see `worldloop.envs.DriveEnv`.
            state: the true state of the B scenes; `state.step` (B,) is 0 where an episode begins.
        """
        ...


POLICIES: dict[str, tuple[str, str]] = {
    "random": (".rules", "RandomPolicy"),
    "constant": (".rules", "ConstantPolicy"),
    "replay": (".rules", "ReplayPolicy"),
    "idm": (".rules", "IdmPolicy"),
    "idm_cautious": (".rules", "cautious"),
    "idm_aggressive": (".rules", "aggressive"),
    "pdm": (".pdm", "PdmPolicy"),
    **{name: (".rules", "IMPAIRED") for name in "slow speeding red_runner short_sighted blind noisy drunk reckless".split()},
}
"""The drivers that worldloop ships: by name, the module and what makes one there, or a table of what makes them."""


def load_policy(name: str) -> Policy:
    """Return a shipped driver, a trained one by its folder, or a user's own given as `module:attribute` (of this folder too).

    The attribute is a driver or a class or function that returns one when called without arguments.

    Raises:
        ValueError: the name is unknown, the module or the attribute is missing or cannot be imported, or it is no driver.
    """
    if name in POLICIES:
        module, attribute = POLICIES[name]
        make = getattr(importlib.import_module(module, __package__), attribute)
        return (make[name] if isinstance(make, dict) else make)()
    if Path(name, "config.json").is_file():
        return importlib.import_module(".network", __package__).NetworkPolicy.from_pretrained(Path(name))
    if ":" not in name:
        near = difflib.get_close_matches(name, POLICIES, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        known = ", ".join(POLICIES)
        raise ValueError(f"policy {name!r} is unknown{hint}: choose one of {known}, a trained one's folder, or module:attribute")
    from .own_code import load_own  # only where a user names some

    return load_own(name, "policy", ("act",), "worldloop.agents.policy.Policy")
