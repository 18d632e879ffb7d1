"""PDM: a planner that drives several simple plans in its head, scores them as the driving score does, and follows the best.

The idea of PDM-Closed (Dauner, Hallgarten, Geiger, Chitta, "Parting with misconceptions about learning-based vehicle motion
planning", CoRL 2023), written afresh: every half second, proposals made of a lateral offset from the route and a share of the
wanted speed are rolled out for four seconds, each by the intelligent driver model in a world in which everyone else keeps their
velocity and signals stay as they are, and scored by the measures of `envs/measures.py`. The best one is then driven.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..envs.ground import Ground, ground
from ..envs.measures import PAST_STEPS, ego_measures, next_past, start_past
from ..envs.observation import EGO_FEATURES
from ..envs.score import DrivingRecord, driving_terms, nuplan_score
from ..worldmodel.world import ConstantVelocityWorld, State
from .rules import CAR, IdmPolicy

NEAR, MAP_RADIUS = 24, 80.0
"""Road users that proposals are rolled out among, the nearest ones, and metres of map around the ego."""


@dataclass
class PdmPolicy:
    """Follows the best of several plans; remembers which, until it plans again.

    Attributes:
        offsets: metres to the left of the route.
        speed_factors: shares of the wanted speed, rising; of plans that score alike the slowest is driven.
        horizon: steps that a proposal is rolled out for (PDM-Closed: 40).
        every: steps between two plans.
        hold: steps for which a proposal keeps an action: deciding costs more than moving and measuring.
        driver: drives the proposals.
    """

    offsets: tuple[float, ...] = (0.0, -1.0, 1.0)
    speed_factors: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    horizon: int = 40
    every: int = 5
    hold: int = 4
    driver: IdmPolicy = IdmPolicy()
    _plan: Tensor = field(default_factory=lambda: torch.zeros(0, 2))

    def act(self, observation: Any, state: State) -> Tensor:
        """See `Policy.act`."""
        due = ((state.step % self.every) == 0).nonzero()[:, 0]
        if len(self._plan) != len(state):  # other scenes than before
            self._plan, due = torch.zeros(len(state), 2), torch.arange(len(state))
        if len(due):
            seen = torch.as_tensor(observation["ego"])[due] if "ego" in observation else None
            self._plan = self._plan.index_copy(0, due, self._best(state.take(due), seen))
        return self.driver.drive(state, self._plan[:, 0], self._plan[:, 1])

    def _best(self, state: State, seen: Tensor | None = None) -> Tensor:
        """Return share of speed and offset (B, 2) of the best proposal of each scene, `seen` (B, ...) the observation's ego."""
        plans = torch.tensor([(share, offset) for share in self.speed_factors for offset in self.offsets])
        count = len(plans)
        state, on = surrounded(state)
        state, on, plan = state.repeat(count), on.repeat(count), plans.repeat(len(state), 1)
        world, past, record = ConstantVelocityWorld(), start_past(state, on), DrivingRecord.begin(len(state))
        if seen is not None:  # the past of the log's ego is not that of ours
            names = ("acceleration", "lateral_acceleration", "yaw_rate")
            motion = seen[:, [list(EGO_FEATURES).index(name) for name in names]].repeat_interleave(count, dim=0)
            past = replace(past, **{name: motion[:, i, None].repeat(1, PAST_STEPS) for i, name in enumerate(names)})
        action = torch.zeros(len(state), 2)
        for step in range(self.horizon):
            if step % self.hold == 0:
                action = self.driver.drive(state, plan[:, 0], plan[:, 1])
            state = world.step(state, CAR.step(state.ego(), action))
            past = next_past(past, state, on)
            record = record.add(ego_measures(state, past))
        farthest = record.progress.view(-1, count).amax(dim=1).repeat_interleave(count)
        score = nuplan_score(driving_terms(replace(record, expert=farthest)))
        return plans[score.view(-1, count).argmax(dim=1)]


def surrounded(state: State) -> tuple[State, Ground]:
    """Return the state with only the nearest road users, and the map near the ego: what a short look ahead needs.

    The world's memory is left out, for a look ahead belongs to no world.
    """
    scene, row = state.scene, state.scene.ego_row()
    distance = (state.position[..., :2] - state.ego().position[:, None, :2]).norm(dim=-1)
    distance = torch.where(state.valid, distance, torch.inf).index_put((row, scene.ego), torch.tensor(-1.0))
    index = distance.argsort(dim=1, stable=True)[:, :NEAR]
    pick = lambda tensor: tensor[row[:, None], index]  # noqa: E731
    agents = {name: pick(getattr(scene, name)) for name in ("position", "heading", "velocity", "valid", "size", "kind")}
    signals = {  # as they stand now: what the log knows of their future is not for a driver to know
        name: getattr(state, name)[..., None].expand_as(getattr(scene, name)) for name in ("signal_state", "signal_valid")
    }
    near = replace(scene, **agents, **signals, ego=torch.zeros_like(scene.ego))
    moving = {
        name: pick(getattr(state, name)) for name in ("position", "heading", "velocity", "valid", "simulated", "uncertainty")
    }
    moving["driven"] = (torch.arange(index.shape[1]) == 0).expand_as(index)  # a look ahead moves the ego alone
    around = ground(scene).near(state.ego().position[:, :2], MAP_RADIUS)
    return replace(state, scene=near, **moving, memory={}), around
