"""Rewards are sums of weighted measures; a whole episode of perfect driving earns what the score gives."""

from dataclasses import replace

import pytest
import torch
from scenes import EGO, straight_road
from worldloop.envs import PRESETS, DriveVectorEnv
from worldloop.envs.reward import EPISODE, reward_terms, reward_weights

MEASURES = {
    "progress": torch.tensor([1.0, -0.5]),
    "collision": torch.tensor([False, True]),
    "off_road": torch.tensor([False, False]),
    "comfort": torch.tensor([1.0, 0.5]),
    "speed": torch.tensor([10.0, 0.0]),
}


def test_every_term_is_a_weight_times_its_measure():
    terms = reward_terms(MEASURES, reward_weights("progress"))
    assert {name: term.tolist() for name, term in terms.items()} == {
        "progress": [0.1, -0.05],
        "collision": [0.0, -5.0],
        "off_road": [0.0, 0.0],
        "comfort": [0.02, 0.01],
    }


def test_a_weight_of_zero_silences_its_measure():
    terms = reward_terms(MEASURES, {"collision": 0.0})
    assert terms["collision"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("preset", ["nuplan", "epdms"])
def test_driving_as_the_log_does_earns_one_in_eight_seconds(preset):
    road = straight_road()
    ego_alone = torch.arange(road.sizes()["A"])[None, :, None] == EGO
    env = DriveVectorEnv(
        1, replace(road, valid=road.valid & ego_alone), "replay", action="physical", horizon=EPISODE, reward=preset
    )
    env.reset(seed=0)
    total = 0.0
    for _ in range(EPISODE):  # the signal ahead turns green before the ego is there
        _, reward, _, _, info = env.step(torch.zeros(1, 2).numpy())
        total += float(reward[0])
    terms = info["final_info"]["reward_terms"]
    assert {name for name in terms if not name.startswith("_")} == set(PRESETS[preset])
    assert total == pytest.approx(1.0, abs=1e-3)
