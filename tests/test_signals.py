import json
from dataclasses import replace

import pytest
import torch
from models import tiny_model
from scenes import several_roads, straight_road
from test_world import run, same
from worldloop.worldmodel.data.writing import ShardWriter
from worldloop.worldmodel.scene import HISTORY_STEPS, SignalState, stack
from worldloop.worldmodel.shipped import SHIPPED_SIGNALS
from worldloop.worldmodel.signals import ADVANCED, SignalConfig, SignalModel, signal_ages, signal_places
from worldloop.worldmodel.train_signals import (
    LEAST_STEPS,
    Args,
    Log,
    crossing_pairs,
    durations,
    hazards,
    main,
    read_logs,
    window_of,
)
from worldloop.worldmodel.world import LearnedWorld


def lively():
    torch.manual_seed(0)
    model = SignalModel(SignalConfig(width=8)).eval()
    torch.nn.init.constant_(model.head[1].bias, -1.5)
    return model


WORLD = LearnedWorld(tiny_model(), signals=lively())


def shown(scenes, steps, key=None):
    states = [WORLD.reset(scenes, torch.arange(len(scenes)) if key is None else key)]
    for _ in range(steps):
        states.append(run(WORLD, scenes, 1, state=states[-1]))
    return torch.stack([state.signal_state for state in states], dim=-1), states[-1]


def test_within_the_log_they_follow_it_and_beyond_they_change_in_order():
    scenes = several_roads(3)
    scenes = replace(scenes, signal_valid=scenes.signal_valid & (torch.arange(scenes.steps) < 31))
    states, _ = shown(scenes, 70)
    assert torch.equal(states[..., :21], scenes.signal_state[..., HISTORY_STEPS:31])
    old, new = states[..., :-1], states[..., 1:]
    assert (new != old)[..., 20:].any()
    assert ((new == old) | (new == ADVANCED[old])).all()
    at = (new != old).nonzero()[:, -1] + 1
    assert (at % 5 == 0).all()


def test_the_same_key_gives_the_same_signals_and_rows_behave_as_if_alone():
    short, long = straight_road("hand/short", steps=16), straight_road("hand/long", steps=60)
    together, last = shown(stack([short, long]), 40)
    again, other = shown(stack([short, long]), 40)
    assert torch.equal(together, again)
    assert same(last, other)
    alone, _ = shown(short, 40)
    assert torch.equal(together[0], alone[0])
    assert any(not torch.equal(alone, shown(short, 40, torch.tensor([key]))[0]) for key in range(1, 4))


def test_padding_unknown_and_invalid_signals_change_nothing():
    scene = straight_road(steps=16)
    padded = scene.pad({"S": 3})
    assert torch.equal(shown(padded, 30)[0][:, :1], shown(scene, 30)[0])
    states, last = shown(padded, 30)
    assert not states[:, 1:].any()
    assert last.signal_valid.tolist() == [[True, False, False]]
    off = replace(scene, signal_state=torch.zeros_like(scene.signal_state))
    assert (shown(off, 30)[0] == SignalState.UNKNOWN).all()


def test_training_predicts_one_signal_as_running_does():
    """The logit of a decision, given those before it, is what it is sampled by."""
    model, count = lively(), 4
    place = torch.randn(2, count, 5) * 10
    state, age = torch.randint(1, 4, (2, count)), torch.randint(0, 99, (2, count))
    everyone = torch.ones(2, count, dtype=torch.bool)
    given = torch.rand(2, count, generator=torch.Generator().manual_seed(1))
    decided = model(place, state, age, everyone, everyone, given)
    logits = model(place, state, age, everyone, everyone, decided)
    assert torch.equal(decided, given < logits.sigmoid())


def test_ages_and_durations_by_hand():
    age, known = signal_ages(torch.tensor([[1, 3, 3], [2, 2, 2], [3, 2, 1]]))
    assert age.tolist() == [1, 2, 0]
    assert known.tolist() == [True, False, True]
    assert durations(torch.tensor([[3, 2, 2, 1, 1, 1, 3]]), 0.5) == {1: [1.5], 2: [1.0], 3: []}


def test_crossing_ways_by_hand():
    from math import pi

    east, north, opposite = [-10.0, 0, 0, 0, 0], [0.0, -10, pi / 2, 0, 0], [10.0, 1, pi, 0, 0]
    crossing = crossing_pairs(torch.tensor([east, north, opposite]))
    assert crossing.tolist() == [[False, True, False], [True, False, True], [False, True, False]]


def test_places_are_the_stop_point_and_the_end_of_the_lane():
    assert signal_places(straight_road()).tolist() == [[[80.0, 0.0, 0.0, 120.0, 0.0]]]


def test_training_writes_a_model_that_loads(tmp_path):
    with ShardWriter(tmp_path / "train") as writer:
        writer.add(straight_road("hand/0/a"), source="hand")
    with ShardWriter(tmp_path / "held") as writer:
        writer.add(straight_road("hand/1/b"), source="hand")
    args = Args((str(tmp_path / "train"),), (str(tmp_path / "held"),), tmp_path / "run", steps=3, batch=2, width=8, free_run=50)
    folder = main(args)
    model = SignalModel.from_pretrained(folder)
    assert model.config.width == 8
    assert (tmp_path / "run" / "timelines.png").is_file()
    results = json.loads((tmp_path / "run" / "run.json").read_text())["results"]
    assert f"{results['parameters']:,} parameters" in (folder / "README.md").read_text()
    with pytest.raises(ValueError, match="in both --data and --validation"):
        main(replace(args, validation=args.data, out=tmp_path / "other"))
    (folder / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="no model of signals"):
        SignalModel.from_pretrained(folder)


def test_the_shipped_signals_load():
    assert SignalModel.from_pretrained(SHIPPED_SIGNALS).config.decision_ticks == 5


@pytest.mark.parametrize("change", [{"width": 0}, {"free_run": 0}, {"learning_rate": -1.0}, {"steps": 0}, {"batch": 0}])
def test_training_refuses_numbers_out_of_range(tmp_path, change):
    with pytest.raises(ValueError, match="wanted at least 1 of the first three"):
        main(Args(("a",), ("b",), tmp_path / "run", **change))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf"])
def test_training_refuses_weights_that_draw_nothing(tmp_path, weight):
    with ShardWriter(tmp_path / "roads") as writer:
        writer.add(straight_road())
    with pytest.raises(ValueError, match="wanted a number above 0"):
        read_logs([f"{tmp_path / 'roads'}={weight}"])


def test_coming_into_view_is_no_beginning():
    unknown, stop = int(SignalState.UNKNOWN), int(SignalState.STOP)
    age, known = signal_ages(torch.tensor([[unknown] * 6 + [stop] * 5, [int(SignalState.CAUTION)] * 6 + [stop] * 5]))
    assert age.tolist() == [4, 4]
    assert known.tolist() == [False, True]


def test_the_same_moments_around_another_ego_are_no_validation(tmp_path):
    for name, ego in (("train", "driver1"), ("held", "driver2")):
        with ShardWriter(tmp_path / name) as writer:
            writer.add(straight_road(f"sumo/crossing/7/100/{ego}"))
    with pytest.raises(ValueError, match="are in both --data and --validation"):
        main(Args((str(tmp_path / "train"),), (str(tmp_path / "held"),), tmp_path / "run"))
    assert [window_of(id) for id in ("waymo/a", "sumo/t/1/2/driver3.4")] == ["waymo/a", "sumo/t/1/2"]


def test_scenes_too_short_to_decide_in_are_refused_before_training(tmp_path):
    with ShardWriter(tmp_path / "short") as writer:
        writer.add(straight_road(steps=LEAST_STEPS - 1))
    with pytest.raises(ValueError, match=f"at least {LEAST_STEPS} steps"):
        read_logs([str(tmp_path / "short")])


def test_signals_that_are_never_seen_to_show_anything_are_refused(tmp_path):
    scene = several_roads(2)
    with ShardWriter(tmp_path / "off") as writer:
        writer.add(replace(scene, signal_state=torch.zeros_like(scene.signal_state)))
    with ShardWriter(tmp_path / "held") as writer:
        writer.add(replace(scene, id=("held/0", "held/1")))
    with pytest.raises(ValueError, match="found no signal that shows stop, caution or go"):
        main(Args((str(tmp_path / "off"),), (str(tmp_path / "held"),), tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_signal_that_goes_out_of_view_does_not_advance():
    state = torch.full((1, 30), int(SignalState.STOP))
    valid = torch.arange(30)[None] < 20
    log = Log(torch.zeros(1, 5), torch.where(valid, state, int(SignalState.UNKNOWN)), valid)
    assert hazards([log], 5)[SignalState.STOP] < 1e-5


def test_one_tick_by_hand():
    """Two signals at a decision: the log of the first is over, that of the second goes on and brings it into view."""
    unknown, stop, go, caution = (
        int(state) for state in (SignalState.UNKNOWN, SignalState.STOP, SignalState.GO, SignalState.CAUTION)
    )
    model = lively()
    memory = {"signal_age": torch.tensor([[20, 20]]), "signal_known": torch.tensor([[True, True]])}
    memory |= {"signal_last": torch.tensor([[HISTORY_STEPS, 90]]), "signal_place": torch.zeros(1, 2, 5)}
    before, logged, both = torch.tensor([[go, unknown]]), torch.tensor([[go, stop]]), torch.ones(1, 2, dtype=torch.bool)
    surely = torch.zeros(1, 2)  # a random number below every chance: whoever may advance does
    shown, after = model.go_on(torch.tensor([5]), (before, logged), both, memory, surely)
    assert shown.tolist() == [[caution, stop]]
    assert after["signal_age"].tolist() == [[0, 0]]
    assert after["signal_known"].tolist() == [[True, False]]  # the second one's red may have begun long ago
    held, later = model.go_on(torch.tensor([6]), (shown, logged), both, memory | after, surely)
    assert held.tolist() == shown.tolist()  # no decision is due
    assert later["signal_age"].tolist() == [[1, 1]]
    following, _ = model.go_on(torch.tensor([10]), (shown, torch.tensor([[go, go]])), both, memory | after, surely)
    assert following.tolist() == [[stop, go]]  # the second follows its log and does not advance beyond it
