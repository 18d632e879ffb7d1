"""The driving scores of scenarios drawn by hand."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scenes import straight_road
from worldloop.envs.ground import ground
from worldloop.envs.measures import MEASURES, ego_measures, next_past, start_past
from worldloop.envs.score import DrivingRecord, driving_terms, epdms, nuplan_score
from worldloop.worldmodel.world import logged_state

GOOD = DrivingRecord(
    steps=torch.tensor([80]),
    progress=torch.tensor([80.0]),
    expert=torch.tensor([80.0]),
    collisions=torch.tensor([0]),
    objects=torch.tensor([0]),
    off_road=torch.tensor([False]),
    red_light=torch.tensor([False]),
    against_flow=torch.tensor([0.0]),
    safe=torch.tensor([True]),
    comfortable=torch.tensor([True]),
    lane_keeping=torch.tensor([True]),
    overspeed=torch.tensor([0.0]),
)


def scores(**change: float | bool) -> tuple[float, float]:
    record = replace(GOOD, **{name: torch.tensor([value]) for name, value in change.items()})
    terms = driving_terms(record)
    return nuplan_score(terms).item(), epdms(terms).item()


@pytest.mark.parametrize(
    ("change", "nuplan", "extended"),
    [
        ({}, 1.0, 1.0),
        ({"collisions": 1}, 0.0, 0.0),
        ({"objects": 1}, 0.5, 0.5),
        ({"objects": 2}, 0.0, 0.0),
        ({"off_road": True}, 0.0, 0.0),
        ({"red_light": True}, 1.0, 0.0),
        ({"against_flow": 1.9}, 1.0, 1.0),
        ({"against_flow": 2.0}, 0.5, 0.5),
        ({"against_flow": 6.0}, 0.0, 0.0),
        ({"progress": 40.0}, 13.5 / 16, 11.5 / 14),
        ({"progress": 15.0}, 0.0, (9 + 5 * 15 / 80) / 14),  # less than a fifth of the expert's way
        ({"progress": -3.0}, 0.0, 9 / 14),
        ({"progress": 0.0, "expert": 0.5}, 1.0, 1.0),  # an expert who waits
        ({"safe": False}, 11 / 16, 9 / 14),
        ({"comfortable": False}, 14 / 16, 12 / 14),
        ({"lane_keeping": False}, 1.0, 12 / 14),
        ({"overspeed": 0.5 * 2.23 * 8.0}, 14 / 16, 1.0),
        ({"overspeed": 100.0}, 12 / 16, 1.0),
    ],
)
def test_scores_worked_out_by_hand(change, nuplan, extended):
    assert scores(**change) == pytest.approx((nuplan, extended), abs=1e-6)


def test_what_the_human_fails_is_forgiven():
    human = driving_terms(replace(GOOD, red_light=torch.tensor([True]), comfortable=torch.tensor([False])))
    driver = driving_terms(replace(GOOD, red_light=torch.tensor([True]), safe=torch.tensor([False])))
    assert epdms(driver).item() == 0.0
    assert epdms(driver, human).item() == pytest.approx(9 / 14)


@settings(max_examples=50, deadline=None)
@given(
    progress=st.floats(-50.0, 200.0),
    expert=st.floats(0.0, 200.0),
    collisions=st.integers(0, 3),
    objects=st.integers(0, 3),
    flow=st.floats(0.0, 20.0),
    overspeed=st.floats(0.0, 100.0),
)
def test_scores_lie_between_zero_and_one_and_faults_never_help(progress, expert, collisions, objects, flow, overspeed):
    change = {"progress": progress, "expert": expert, "objects": objects, "against_flow": flow, "overspeed": overspeed}
    worse = scores(**change, collisions=collisions + 1)
    for score, with_fault in zip(scores(**change, collisions=collisions), worse, strict=True):
        assert 0.0 <= with_fault <= score <= 1.0 + 1e-6


def test_a_record_adds_up_the_measures_of_its_steps():
    state = logged_state(straight_road(), torch.zeros(1, dtype=torch.int64))
    on = ground(state.scene)
    past, record = start_past(state, on), DrivingRecord.begin(1)
    for i in range(1, 11):
        state = replace(state, step=torch.tensor([i]))
        ego = replace(state.ego(), position=torch.tensor([[0.5 * i, 0.0, 0.75]]), velocity=torch.tensor([[15.9, 0.0]]))
        moved = replace(
            state,
            position=state.position.index_put((torch.tensor([0]), state.scene.ego), ego.position),
            velocity=state.velocity.index_put((torch.tensor([0]), state.scene.ego), ego.velocity),
        )
        past = next_past(past, moved, on)
        record = record.add(ego_measures(moved, past), torch.tensor([i <= 8]))
    assert record.steps.item() == 8
    assert record.progress.item() == pytest.approx(4.0)
    assert record.expert.item() == pytest.approx(8.0, abs=1e-3)
    assert record.overspeed.item() == pytest.approx(8 * 0.1 * 2.0, abs=1e-4)
    assert record.comfortable.item() is False  # 59 m/s2 in the first step
    assert driving_terms(record)["progress"].item() == pytest.approx(0.5, abs=1e-3)


def test_every_measure_that_a_reward_may_weigh_is_measured():
    state = logged_state(straight_road(), torch.zeros(1, dtype=torch.int64))
    found = ego_measures(state, start_past(state, ground(state.scene)))
    assert set(MEASURES) == set(found) - {"collided_with", "off_road_measurable"}
