import torch
from worldloop.envs.reward import RewardWeights, reward_terms

MEASURES = {
    "progress": torch.tensor([1.0, -0.5]),
    "collision": torch.tensor([False, True]),
    "off_road": torch.tensor([False, False]),
    "comfort": torch.tensor([1.0, 0.5]),
    "speed": torch.tensor([10.0, 0.0]),
}


def test_every_term_is_a_weight_times_its_measure():
    terms = reward_terms(MEASURES, RewardWeights(progress=0.1, collision=-5.0, off_road=-5.0, comfort=0.02))
    assert {name: term.tolist() for name, term in terms.items()} == {
        "progress": [0.1, -0.05],
        "collision": [0.0, -5.0],
        "off_road": [0.0, 0.0],
        "comfort": [0.02, 0.01],
    }


def test_a_weight_of_zero_silences_its_measure():
    terms = reward_terms(MEASURES, RewardWeights(collision=0.0))
    assert terms["collision"].tolist() == [0.0, 0.0]
