import json
from dataclasses import asdict, replace

import pytest
import torch
from models import arc_vocabulary, tiny_model
from scenes import EGO, FOLLOWER, moved, several_roads, straight_road
from worldloop.worldmodel.behavior import Agents, BehaviorModel, unit
from worldloop.worldmodel.sampling import hashed_uniform, sample_tokens
from worldloop.worldmodel.train_behavior import agents_of


def decisions(scene):
    vocabulary = arc_vocabulary()
    tracks = vocabulary.encode(scene)
    at = torch.arange(0, scene.steps, 5)
    signals = (scene.signal_position[..., :2], scene.signal_heading, scene.signal_state[..., at], scene.signal_valid[..., at])
    return agents_of(scene, tracks), signals


def one(agents, signals, n):
    part = slice(n, n + 1)
    single = {name: getattr(agents, name)[:, :, part] for name in ("pose", "before", "known", "velocity", "valid")}
    return Agents(**single, size=agents.size, kind=agents.kind), (*signals[:2], signals[2][..., part], signals[3][..., part])


@torch.no_grad()
def test_cached_decisions_equal_the_full_forward_pass():
    model, scene = tiny_model(), several_roads(3)
    scene.valid[0, 1, 20:40] = False
    agents, signals = decisions(scene)
    memory, cache = model.encode_map(scene), model.empty_cache(scene)
    full, _ = model.advance(agents, signals, memory, cache)
    steps = []
    for n in range(agents.valid.shape[2]):
        features, cache = model.advance(*one(agents, signals, n), memory, cache)
        steps.append(features)
    assert torch.allclose(torch.cat(steps, dim=2), full, atol=1e-5)


@torch.no_grad()
def test_the_future_is_not_seen():
    model, scene = tiny_model(), several_roads(2)
    agents, signals = decisions(scene)
    memory, cache = model.encode_map(scene), model.empty_cache(scene)
    full, _ = model.advance(agents, signals, memory, cache)
    agents.pose[:, :, 9:] += 5.0
    signals[2][..., 9:] = 1
    changed, _ = model.advance(agents, signals, memory, cache)
    assert torch.equal(changed[:, :, :9], full[:, :, :9])
    assert not torch.allclose(changed[:, :, 9:], full[:, :, 9:])


@torch.no_grad()
def test_scores_do_not_depend_on_the_frame():
    model, scene = tiny_model(), several_roads(2)
    scores = []
    for one_scene in (scene, moved(scene, 1.1, (40.0, -25.0))):
        agents, signals = decisions(one_scene)
        features, _ = model.advance(agents, signals, model.encode_map(one_scene), model.empty_cache(one_scene))
        scores.append(model.head_linear(features))
    assert torch.allclose(*scores, atol=2e-3)


@torch.no_grad()
def test_order_of_agents_and_what_is_invalid_do_not_matter():
    model, scene = tiny_model(), several_roads(1)
    agents, signals = decisions(scene)
    memory = model.encode_map(scene)
    full, _ = model.advance(agents, signals, memory, model.empty_cache(scene))
    order = torch.tensor([3, 1, 0, 5, 2, 4])
    shuffled = Agents(**{name: value[:, order] for name, value in vars(agents).items()})
    again, _ = model.advance(shuffled, signals, memory, model.empty_cache(scene))
    assert torch.allclose(again, full[:, order], atol=1e-5)
    padded = scene.pad({"A": 9, "L": 12, "P": 40, "S": 3})
    grown, _ = model.advance(*decisions(padded), model.encode_map(padded), model.empty_cache(padded))
    assert torch.allclose(grown[:, :6], full, atol=1e-5)


@torch.no_grad()
def test_what_the_ego_does_reaches_the_follower():
    model, scene = tiny_model(), straight_road()
    agents, signals = decisions(scene)
    memory = model.encode_map(scene)
    full, _ = model.advance(agents, signals, memory, model.empty_cache(scene))
    agents.pose[0, EGO, 6:, 0] -= 3.0
    changed, _ = model.advance(agents, signals, memory, model.empty_cache(scene))
    assert not torch.allclose(changed[0, FOLLOWER, 6:], full[0, FOLLOWER, 6:], atol=1e-4)


@torch.no_grad()
def test_a_braking_that_has_just_begun_is_seen_in_the_velocity_alone():
    model, scene = tiny_model(), straight_road()
    agents, signals = decisions(scene)
    memory, cache = model.encode_map(scene), model.empty_cache(scene)
    full, _ = model.advance(agents, signals, memory, cache)
    agents.velocity[0, EGO, 6] -= 3.0 * unit(agents.pose[0, EGO, 6, 2])
    changed, _ = model.advance(agents, signals, memory, cache)
    assert torch.allclose(changed[0, FOLLOWER, :6], full[0, FOLLOWER, :6], atol=1e-5)
    assert not torch.allclose(changed[0, FOLLOWER, 6], full[0, FOLLOWER, 6], atol=1e-4)


@torch.no_grad()
def test_scenes_without_map_or_signals_are_understood():
    model, scene = tiny_model(), straight_road()
    bare = scene.map(lambda tensor: tensor)
    bare.signal_valid[:] = False
    bare.polyline_valid[:] = False
    agents, signals = decisions(bare)
    features, _ = model.advance(agents, signals, model.encode_map(bare), model.empty_cache(bare))
    assert features.isfinite().all()


def test_samples_follow_the_probabilities_and_leave_out_what_is_too_unlikely():
    scores = torch.log(torch.tensor([0.15, 0.5, 0.3, 0.05])).expand(1, 20_000, 4)
    drawn = sample_tokens(scores, torch.tensor([7]), torch.tensor([3]), temperature=1.0, epsilon=0.1)
    share = drawn[0].bincount(minlength=4) / drawn.numel()
    assert torch.allclose(share, torch.tensor([0.15, 0.5, 0.3, 0.0]) / 0.95, atol=0.015)
    drawn = sample_tokens(scores, torch.tensor([7]), torch.tensor([3]), temperature=1.0, epsilon=0.9)
    assert (drawn == 1).all(), "where nothing is likely enough, the likeliest is taken"


def test_epsilon_counts_among_all_tokens_also_those_that_are_never_considered():
    scores = torch.zeros(1, 20_000, 400)  # a four hundredth each: of the 128 that are considered a hundred and twenty-eighth
    scores[..., 0] = 0.1
    assert (sample_tokens(scores, torch.tensor([7]), torch.tensor([3]), 1.0, epsilon=0.005) == 0).all()


def test_who_stands_starts_now_and_then():
    scores = torch.log(torch.tensor([0.97, 0.01, 0.01, 0.01])).expand(1, 20_000, 4)
    drawn = sample_tokens(scores, torch.tensor([7]), torch.tensor([3]), temperature=1.0, epsilon=0.005)
    assert abs((drawn > 0).float().mean().item() - 0.03) < 0.005


def test_a_row_is_drawn_as_if_alone():
    scores = torch.randn(5, 8, 40, generator=torch.Generator().manual_seed(0))
    key, step = torch.arange(5) * 1000, torch.arange(5)
    together = sample_tokens(scores, key, step, 1.0, 0.95)
    alone = torch.cat([sample_tokens(scores[i : i + 1], key[i : i + 1], step[i : i + 1], 1.0, 0.95) for i in range(5)])
    assert torch.equal(together, alone)


def test_hashed_numbers_are_uniform_and_uncorrelated():
    key = torch.arange(200)[:, None]
    numbers = hashed_uniform(key, torch.arange(500))
    assert 0 < numbers.min()
    assert numbers.max() < 1
    counts = torch.histc(numbers, 20, 0, 1) / numbers.numel()
    assert torch.allclose(counts, torch.full((20,), 0.05), atol=0.003)
    assert torch.corrcoef(torch.stack((numbers[:, :-1].flatten(), numbers[:, 1:].flatten())))[0, 1].abs() < 0.01
    assert torch.corrcoef(torch.stack((numbers[:-1].flatten(), numbers[1:].flatten())))[0, 1].abs() < 0.01


def test_weights_survive_the_disk_and_what_does_not_fit_is_named(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    again = BehaviorModel.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    with pytest.raises(ValueError, match=r"no config\.json"):
        BehaviorModel.from_pretrained(tmp_path / "elsewhere")
    other = arc_vocabulary()
    type(other)(other.motion * 1.01, other.kind).save(tmp_path / "vocabulary.safetensors")
    with pytest.raises(ValueError, match="does not fit the weights"):
        BehaviorModel.from_pretrained(tmp_path)
    model.vocabulary.save(tmp_path / "vocabulary.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"width": 64}))
    with pytest.raises(ValueError, match="not the weights of this configuration"):
        BehaviorModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"colour": "red"}))
    with pytest.raises(ValueError, match="not a behaviour model's configuration"):
        BehaviorModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": "128"}, "width: found '128', wanted a whole number"),
        ({"map_neighbours": 0}, "map_neighbours: found 0, wanted a whole number of at least 1"),
        ({"heads": 3}, "width 32 and heads 3: wanted heads that divide the width"),
    ],
)
def test_impossible_sizes_are_refused(change, message, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(asdict(model.config) | change))
    with pytest.raises(ValueError, match=message):
        BehaviorModel.from_pretrained(tmp_path)


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    model = tiny_model()
    with torch.no_grad():
        model.head_linear.weight[3, 1] = torch.nan
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model\.safetensors: head_linear\.weight holds NaN or infinity"):
        BehaviorModel.from_pretrained(tmp_path)


@torch.no_grad()
def test_a_network_of_five_motion_inputs_knows_nothing_of_the_velocity_of_whom_it_has_seen_before():
    config = replace(tiny_model().config, motion_inputs=5)
    model, scene = BehaviorModel(config, arc_vocabulary()), straight_road()
    agents, _ = decisions(scene)
    seen = model._encode_agents(agents)
    agents.velocity[0, EGO, 6] -= 3.0
    assert torch.equal(model._encode_agents(agents)[0, EGO, 6], seen[0, EGO, 6])
    with pytest.raises(ValueError, match="motion_inputs: found 7, wanted 5 or 6"):
        replace(config, motion_inputs=7)
