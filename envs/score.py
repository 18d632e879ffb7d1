"""Driving scores of whole scenarios: nuPlan's closed-loop score and NAVSIM's EPDMS, from the measures of every step.

    record = DrivingRecord.begin(B); record = record.add(measures) at every step; nuplan_score(driving_terms(record))

Sources: nuplan-devkit, config/simulation_metric and planning/script/config/simulation/metric_aggregator
(closed_loop_reactive_agents_weighted_average); navsim, docs/metrics.md. Deviations: progress is measured along the route of the
scene, for driver and log's ego alike; a red light is run by the front passing the stop point; what a map cannot tell (no road
edges, no limits) counts as kept; nuPlan's lanes are polygons and its jerk is smoother (see `measures.py`); EPDMS'
extended comfort compares consecutive plans, which drivers need not have: it is left out, the weights divided by the other 14.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..worldmodel.scene import TIME_STEP, TensorBatch
from .measures import COMFORT_LIMITS, LEAST_PROGRESS, MOST_OVERSPEED

SOME_FLOW, MUCH_FLOW = 2.0, 6.0
"""Metres against the flow within 1 s from which driving direction compliance is 0.5 and 0."""

LEAST_SHARE = 0.2
"""Share of the expert's progress below which nuPlan sees no progress at all."""

NUPLAN_WEIGHTS = {"progress": 5.0, "time_to_collision": 5.0, "speed_limit": 4.0, "comfort": 2.0}
NUPLAN_FACTORS = ("no_at_fault_collision", "drivable_area", "making_progress", "driving_direction")
EPDMS_WEIGHTS = {"progress": 5.0, "time_to_collision": 5.0, "lane_keeping": 2.0, "comfort": 2.0}
EPDMS_FACTORS = ("no_at_fault_collision", "drivable_area", "driving_direction", "traffic_light")
"""What each score averages, and what it multiplies the average by; the names are those of `driving_terms`."""

TERMS = tuple(dict.fromkeys((*NUPLAN_FACTORS, *EPDMS_FACTORS, *NUPLAN_WEIGHTS, *EPDMS_WEIGHTS)))
"""All of them."""


@dataclass(frozen=True)
class DrivingRecord(TensorBatch):
    """What is kept of B scenarios while they run; each (B,).

    Attributes:
        steps: int64 so far.
        progress: metres along the route; `expert` metres that the log's ego had made by then.
        collisions: int64, road users met by the ego's fault; `objects` standing objects.
        off_road, red_light: bool, whether it ever was, or ran one.
        against_flow: the most metres in a second.
        safe, comfortable, lane_keeping: bool, whether it has held at every step.
        overspeed: metres driven too much: m/s above the limit, summed over the time.
    """

    steps: Tensor
    progress: Tensor
    expert: Tensor
    collisions: Tensor
    objects: Tensor
    off_road: Tensor
    red_light: Tensor
    against_flow: Tensor
    safe: Tensor
    comfortable: Tensor
    lane_keeping: Tensor
    overspeed: Tensor

    @classmethod
    def begin(cls, count: int) -> DrivingRecord:
        """Return the record of `count` scenarios in which nothing has happened yet."""
        number, none, no = torch.zeros(count, dtype=torch.int64), torch.zeros(count), torch.zeros(count, dtype=torch.bool)
        return cls(number, none, none, number, number, no, no, none, ~no, ~no, ~no, none)

    def add(self, measures: Mapping[str, Tensor], live: Tensor | None = None) -> DrivingRecord:
        """Return the record after a step with `measures` (B,) of `ego_measures`; only the scenarios `live` (B,) go on."""
        live = torch.ones_like(self.off_road) if live is None else live
        keep = lambda new, old: torch.where(live, new.to(old.dtype), old)  # noqa: E731
        plus = lambda old, more: old + torch.where(live, more.to(old.dtype), 0)  # noqa: E731
        return DrivingRecord(
            steps=plus(self.steps, live),
            progress=plus(self.progress, measures["progress"]),
            expert=keep(measures["expert_progress"], self.expert),
            collisions=plus(self.collisions, measures["at_fault_collision"]),
            objects=plus(self.objects, measures["at_fault_object"]),
            off_road=self.off_road | (live & measures["off_road"]),
            red_light=self.red_light | (live & measures["red_light"]),
            against_flow=keep(self.against_flow.maximum(measures["against_flow"].to(self.against_flow.dtype)), self.against_flow),
            safe=self.safe & (measures["safe_time_to_collision"] | ~live),
            comfortable=self.comfortable & ((measures["comfort"] > 1 - 0.5 / len(COMFORT_LIMITS)) | ~live),
            lane_keeping=self.lane_keeping & (measures["lane_keeping"] | ~live),
            overspeed=plus(self.overspeed, measures["overspeed"] * TIME_STEP),
        )


def driving_terms(record: DrivingRecord) -> dict[str, Tensor]:
    """Return the terms (B,) from 0 to 1 of which both scores are made.

    `no_at_fault_collision` 0 with a road user, 0.5 after one and 0 after two standing objects; `drivable_area`;
    `driving_direction`; `traffic_light`; `making_progress` at least a fifth of the expert's; `progress` share of the expert's;
    `time_to_collision`; `speed_limit`; `lane_keeping`; `comfort`.
    """
    number = lambda value: value.to(record.progress.dtype)  # noqa: E731
    share = record.progress.clamp(min=LEAST_PROGRESS) / record.expert.clamp(min=LEAST_PROGRESS)
    progress = torch.where(record.progress < -LEAST_PROGRESS, 0.0, share.clamp(max=1.0))
    flow = 0.5 * number(record.against_flow < SOME_FLOW) + 0.5 * number(record.against_flow < MUCH_FLOW)
    seconds = (record.steps * TIME_STEP).clamp(min=TIME_STEP)
    return {
        "no_at_fault_collision": number(record.collisions == 0) * (1 - 0.5 * record.objects).clamp(min=0.0),
        "drivable_area": number(~record.off_road),
        "driving_direction": flow,
        "traffic_light": number(~record.red_light),
        "making_progress": number(progress >= LEAST_SHARE),
        "progress": progress,
        "time_to_collision": number(record.safe),
        "speed_limit": (1 - record.overspeed / (MOST_OVERSPEED * seconds)).clamp(min=0.0),
        "lane_keeping": number(record.lane_keeping),
        "comfort": number(record.comfortable),
    }


def nuplan_score(terms: Mapping[str, Tensor]) -> Tensor:
    """Return nuPlan's closed-loop score (B,), 0 to 1."""
    return _score(terms, NUPLAN_FACTORS, NUPLAN_WEIGHTS)


def epdms(terms: Mapping[str, Tensor], human: Mapping[str, Tensor] | None = None) -> Tensor:
    """Return the extended predictive driver model score (B,), 0 to 1, without extended comfort.

    Args:
        terms: of the driver.
        human: of the log's ego in the same scenes: where a term is 0 there, the driver's is taken for 1.
    """
    if human is not None:
        terms = {name: torch.where(human[name] == 0, 1.0, value) for name, value in terms.items()}
    return _score(terms, EPDMS_FACTORS, EPDMS_WEIGHTS)


def _score(terms: Mapping[str, Tensor], factors: tuple[str, ...], weights: Mapping[str, float]) -> Tensor:
    mean = torch.stack([weight * terms[name] for name, weight in weights.items()]).sum(dim=0) / sum(weights.values())
    return mean * torch.stack([terms[name] for name in factors]).prod(dim=0)
