"""How unsure the learned world says it is: cases worked out by hand, and `worldloop calibrate` with a tiny real model."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import tiny_model
from scenes import CONE, EGO, damaged, moved, several_roads, straight_road
from worldloop.agents.calibrate import (
    Calibrate,
    Rows,
    correlations,
    fit_calibration,
    observe,
    over_time,
    rank_correlation,
    reliability,
    run_calibrate,
    safe_horizon,
)
from worldloop.envs import DriveVectorEnv
from worldloop.worldmodel.behavior import BehaviorModel
from worldloop.worldmodel.data.writing import ShardWriter
from worldloop.worldmodel.open_loop import logged_ego
from worldloop.worldmodel.scene import HISTORY_STEPS, Scene
from worldloop.worldmodel.shipped import SHIPPED_SIGNALS
from worldloop.worldmodel.signals import SignalModel
from worldloop.worldmodel.uncertainty import CALIBRATION_FILE, FLOOR, STEP, Calibration, weights_checksum
from worldloop.worldmodel.world import EPSILON, TEMPERATURE, LearnedWorld, ReplayWorld, State

GIVEN = Calibration(0.3, 0.8, 1.2)


def drive(world: LearnedWorld | ReplayWorld, scenes: Scene, steps: int) -> list[State]:
    states = [world.reset(scenes, torch.arange(len(scenes)))]
    for step in range(1, steps + 1):
        states.append(world.step(states[-1], logged_ego(scenes, step)))
    return states


def data_set(folder: Path, scenes: Scene) -> str:
    with ShardWriter(folder) as writer:
        writer.add(scenes)
    return str(folder)


def rows(error: torch.Tensor, stated: torch.Tensor, seconds: torch.Tensor | None = None) -> Rows:
    """Rows of one future each, in scenes of two rows."""
    count = len(error)
    seconds = torch.full((count,), 3.0) if seconds is None else seconds
    moving = torch.ones(count, dtype=torch.bool)
    return Rows(
        torch.arange(count) // 2,
        torch.arange(count) // 2,
        seconds,
        moving,
        error[:, None],
        stated[:, None],
        stated[:, None],
        stated,
    )


def test_the_spread_of_two_ends_by_hand() -> None:
    """Ends 2 m apart: equally likely, each is 1 m from their mean; at odds of 3 to 1, 3/4 x 1/4 + 1/4 x 9/4 = 3/4 m2,
    or 0.87 m in whole centimetres."""
    ends = torch.tensor([[4.0, 0.0], [6.0, 0.0], [90.0, 0.0]])
    odds = torch.tensor(
        [[0.0, 0.0, -torch.inf], [math.log(3.0), 0.0, -torch.inf], [-torch.inf] * 3, [0.0, -torch.inf, -torch.inf]]
    )
    assert Calibration.squared_spread(odds, 1.0, ends).tolist() == pytest.approx([1.0, 0.87**2, 0.0, 0.0], abs=1e-5)
    assert Calibration.squared_spread(odds[1], 1e6, ends).item() == pytest.approx(1.0, abs=1e-4)  # hot: all the same


@given(st.lists(st.tuples(st.floats(-4, 4), st.floats(-9, 9), st.floats(-9, 9)), min_size=1, max_size=12))
def test_the_spread_is_that_of_the_definition_wherever_the_ends_lie(tokens: list[tuple[float, float, float]]) -> None:
    table = torch.tensor(tokens, dtype=torch.float64)
    share, ends = table[:, 0].softmax(0), table[:, 1:]
    wanted = (share * (ends - share @ ends).square().sum(-1)).sum().sqrt()
    for shift in (0.0, 20.0):
        found = Calibration.squared_spread(table[:, 0], 1.0, ends + shift).sqrt()
        assert abs(found - wanted) <= 0.5 * STEP + 1e-6


def test_the_expected_error_by_hand() -> None:
    error = Calibration(math.log(2.0), 0.5, 2.0).error(torch.tensor([(4.0 - FLOOR) ** 2]), torch.tensor([3.0]))
    assert error.tolist() == pytest.approx([2.0 * 2.0 * 9.0])
    assert Calibration().error(torch.tensor(0.25), torch.tensor(7.0)).item() == pytest.approx(0.5 + FLOOR)


def test_states_say_it_for_whom_they_simulate_and_it_grows_with_every_tick() -> None:
    scene = straight_road()
    states = drive(LearnedWorld(tiny_model(), calibration=GIVEN), scene, 12)
    assert not states[0].uncertainty.any()
    for before, after in zip(states[:-1], states[1:], strict=True):
        assert after.uncertainty.isfinite().all()
        assert (after.uncertainty > before.uncertainty)[after.simulated].all()
        assert not after.uncertainty[0, [EGO, CONE]].any()
    at = states[10]
    wanted = GIVEN.error(at.memory["spread"][..., 1], torch.tensor(1.0))
    assert torch.allclose(at.uncertainty[at.simulated], wanted[at.simulated])
    assert not drive(ReplayWorld(), scene, 3)[-1].uncertainty.any()


def test_infos_hold_the_mean_over_the_simulated_alone_and_together() -> None:
    scenes = several_roads(3)
    world = LearnedWorld(tiny_model(), calibration=GIVEN)
    together = DriveVectorEnv(3, scenes, world, terminate_on=())
    together.reset(seed=0, options={"scene": list(scenes.id)})
    alone = DriveVectorEnv(1, scenes.take([1]), world, terminate_on=())
    alone.reset(seed=1, options={"scene": scenes.id[1]})
    for _ in range(7):
        info, own = together.step(together.action_space.sample() * 0)[4], alone.step(alone.action_space.sample() * 0)[4]
        assert own["uncertainty"][0] == pytest.approx(info["uncertainty"][1], rel=1e-5)
    state = together.state
    mean = state.uncertainty[0][state.simulated[0]].mean()
    assert info["uncertainty"][0] == pytest.approx(float(mean), rel=1e-5)


def test_a_fit_finds_the_coefficients_that_made_the_errors() -> None:
    draw = torch.Generator().manual_seed(0)
    square = torch.rand(200, 3, generator=draw) + 0.01
    seconds = 0.5 * torch.randint(1, 17, (200,), generator=draw)
    error = GIVEN.error(square, seconds[:, None])
    made = Rows(torch.arange(200), torch.arange(200), seconds, seconds > 0, error, error, square, error[:, 0])
    assert vars(fit_calibration(made)) == pytest.approx(vars(GIVEN), abs=1e-5)
    with pytest.raises(ValueError, match="do not determine the three coefficients"):
        fit_calibration(made.where(seconds == 1.0))
    noisy = Rows(*(vars(made) | {"error": error * 2 * torch.rand(200, 3, generator=draw)}).values())
    fitted = fit_calibration(noisy)
    assert float(fitted.error(square, seconds[:, None]).mean()) == pytest.approx(float(noisy.error.mean()), rel=1e-6)


def test_rank_correlation_by_hand() -> None:
    first = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert rank_correlation(first, torch.tensor([1.0, 8.0, 9.0, 70.0])) == pytest.approx(1.0)
    assert rank_correlation(first, torch.tensor([2.0, 1.0, 4.0, 3.0])) == pytest.approx(1 - 6 * 4 / (4 * 15))
    assert rank_correlation(first, torch.tensor([1.0, 1.0, 2.0, 2.0])) == pytest.approx(4 / math.sqrt(5 * 4))
    assert rank_correlation(first, torch.ones(4)) is None


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=30))
def test_rank_correlation_sees_ranks_alone(pairs: list[tuple[int, int]]) -> None:
    first, second = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    found = rank_correlation(first, second)
    if found is None:
        assert len(first.unique()) == 1 or len(second.unique()) == 1
    else:
        assert -1 - 1e-9 <= found <= 1 + 1e-9
        assert rank_correlation(second.exp(), first * 3 + 1) == pytest.approx(found)
        assert rank_correlation(first, -second) == pytest.approx(-found)


def test_curves_and_the_safe_horizon_by_hand() -> None:
    """Twice the stated error everywhere; the stated mean passes 2 m at 3 s, the measured one at 2 s."""
    seconds = torch.tensor([1.0, 1.0, 2.0, 2.0, 3.0, 3.0])
    stated = torch.tensor([0.5, 1.0, 1.0, 2.0, 2.0, 3.0])
    given = rows(2 * stated, stated, seconds)
    curve = over_time(given)
    assert [(row["seconds"], row["stated_metres"], row["measured_metres"]) for row in curve] == [
        (1.0, 0.75, 1.5),
        (2.0, 1.5, 3.0),
        (3.0, 2.5, 5.0),
    ]
    assert safe_horizon(curve, "stated_metres", 2.0) == 3.0
    assert safe_horizon(curve, "measured_metres", 2.0) == 2.0
    assert safe_horizon(curve, "stated_metres", 9.0) is None
    for row in reliability(given, 0):
        assert row["measured_metres"] == pytest.approx(2 * row["stated_metres"])
        assert row["measured_low"] is None, "a bin of one scene has no interval"
    found = {row["rows"]: row for row in correlations(given, 0)}
    assert found["all"]["stated"] == pytest.approx(1.0)
    assert (found["at 3 s"]["count"], found["at 3 s"]["time"]) == (2, None)
    assert (found["at 8 s"]["count"], found["at 8 s"]["stated"]) == (0, None)


def test_a_scene_is_observed_until_its_log_ends() -> None:
    world = LearnedWorld(tiny_model(), calibration=GIVEN)
    found = observe(world, straight_road(steps=28), 4, 3, 80, seed=0)  # 17 steps: decisions end at 0.5, 1 and 1.5 s
    assert found is not None
    assert found.error.shape == (4 * 3, 3)
    assert found.seconds.unique().tolist() == pytest.approx([0.5, 1.0, 1.5])
    assert found.scene.unique().tolist() == [4]
    assert torch.allclose(found.stated, GIVEN.error(found.square, found.seconds[:, None]))
    assert observe(world, straight_road(steps=14), 0, 3, 80, seed=0) is None


def test_a_run_fits_checks_and_puts_the_coefficients_beside_the_weights(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "model")
    assert not LearnedWorld.from_pretrained(tmp_path / "model").calibrated
    one, two = several_roads(4).take([0, 1]), several_roads(4).take([2, 3])
    asked = Calibrate(
        fit=(data_set(tmp_path / "one", one),),
        scenes=(data_set(tmp_path / "two", two),),
        weights=tmp_path / "model",
        into=tmp_path / "model",
        rollouts=2,
        horizon=30,
        out=tmp_path / "run",
    )
    run_calibrate(asked)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    results = record["results"]
    assert record["status"] == "finished"
    assert results["fit"] == json.loads((tmp_path / "model" / CALIBRATION_FILE).read_text())
    assert results["fit"]["scenes"] == ["one"]
    check = results["check"]
    assert (check["calibrated"], check["scenes"], check["left_out"], check["longest"]) == (True, 2, 0, 3.0)
    listed = list(csv.DictReader((tmp_path / "run" / "rows.csv").open()))
    assert len(listed) == check["rank_correlations"][0]["count"] == 2 * 4 * 6
    assert {row["scene"] for row in listed} == set(two.id)
    assert (tmp_path / "run" / "reliability.png").read_bytes()[:4] == b"\x89PNG"
    assert len(list(csv.DictReader((tmp_path / "run" / "reliability.csv").open()))) == 10
    again = LearnedWorld.from_pretrained(tmp_path / "model")
    assert again.calibrated
    assert not LearnedWorld.from_pretrained(tmp_path / "model", temperature=0.7).calibrated, "fitted to other futures"
    assert not LearnedWorld.from_pretrained(tmp_path / "model", epsilon=0.1).calibrated
    assert vars(again.calibration) == results["fit"]["coefficients"]


def test_it_fits_and_checks_the_world_that_is_shipped(tmp_path: Path) -> None:
    """Signals whose log ends at the present go on, in the fit, in the check after it, and in a check alone."""
    tiny_model().save_pretrained(tmp_path / "model")
    roads = several_roads(4)
    short = replace(roads, signal_valid=roads.signal_valid & (torch.arange(roads.steps) <= HISTORY_STEPS))
    again = replace(moved(short, 0.0, (90.0, 90.0)), id=tuple(f"again/{number}" for number in range(4)))
    fit, check = data_set(tmp_path / "fit", short.take([0, 1])), data_set(tmp_path / "check", again)
    common = {"weights": tmp_path / "model", "rollouts": 4, "horizon": 80}
    assert run_calibrate(Calibrate((fit,), (check,), into=tmp_path / "model", out=tmp_path / "both", **common)) == 0
    assert run_calibrate(Calibrate((), (check,), out=tmp_path / "alone", **common)) == 0
    assert (tmp_path / "both" / "rows.csv").read_text() == (tmp_path / "alone" / "rows.csv").read_text()
    silent, moving = (
        LearnedWorld(BehaviorModel.from_pretrained(tmp_path / "model"), signals=signals)
        for signals in (None, SignalModel.from_pretrained(SHIPPED_SIGNALS))
    )
    fitted = json.loads((tmp_path / "both" / CALIBRATION_FILE).read_text())["coefficients"]
    scenes = [short.take([number]) for number in (0, 1)]
    one, other = (
        fit_calibration(Rows.join([observe(world, scene, n, 4, 80, 0) for n, scene in enumerate(scenes)]))  # pyright: ignore
        for world in (silent, moving)
    )
    assert fitted == vars(other)
    assert fitted != vars(one)


def test_a_stale_calibration_is_renewed(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "model")
    record = {"coefficients": vars(GIVEN), "weights_checksum": 3}
    (tmp_path / "model" / CALIBRATION_FILE).write_text(json.dumps(record))
    fit = (data_set(tmp_path / "roads", several_roads(2)),)
    asked = Calibrate(fit, weights=tmp_path / "model", into=tmp_path / "model", rollouts=2, horizon=30, out=tmp_path / "run")
    assert run_calibrate(asked) == 0
    assert LearnedWorld.from_pretrained(tmp_path / "model").calibrated


def test_a_damaged_scene_is_counted_and_the_others_are_used(tmp_path: Path, capsys) -> None:
    tiny_model().save_pretrained(tmp_path / "model")
    roads = damaged(tmp_path / "roads", several_roads(3))
    asked = Calibrate(scenes=(roads,), weights=tmp_path / "model", rollouts=2, horizon=30, out=tmp_path / "run")
    assert run_calibrate(asked) == 1
    results = json.loads((tmp_path / "run" / "run.json").read_text())["results"]
    assert (results["check"]["scenes"], results["check"]["left_out"], results["failed"]) == (2, 0, 1)
    assert "failed: hand/0: " in capsys.readouterr().err


def test_bad_input_is_refused_before_anything_runs(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "model")
    roads = (data_set(tmp_path / "roads", several_roads(2)),)
    for asked, message in (
        (Calibrate(), "found neither --fit nor --scenes"),
        (Calibrate(fit=roads, rollouts=0), "wanted at least 1 of each"),
        (Calibrate(fit=roads, limit=0), "wanted at least 1 of each"),
        (Calibrate(fit=roads, scenes=roads, weights=tmp_path / "model"), "is in both --fit and --scenes"),
        (Calibrate(scenes=roads, weights=tmp_path / "model", into=tmp_path / "model"), "wanted --fit, and a folder"),
        (
            Calibrate(fit=roads, weights=tmp_path / "model", into=tmp_path / "nowhere"),
            "nowhere: wanted --fit, .*: copy them there first",
        ),
        (Calibrate(fit=roads, weights=tmp_path / "model", horizon=3, out=tmp_path / "run"), "none of the 2 scenes shows"),
    ):
        with pytest.raises(ValueError, match=message):
            run_calibrate(asked)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coefficients": {"offset": float("nan"), "spread": 1.0, "time": 1.0}}, "offset: found nan"),
        ({"coefficients": {"offset": "1"}}, "offset: found '1'"),
        ({"coefficients": {"slope": 1.0}}, "slope"),
        ({"weights_checksum": 3}, "fitted to other weights"),
    ],
)
def test_a_calibration_that_does_not_fit_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    tiny_model().save_pretrained(tmp_path)
    record = {
        "coefficients": vars(GIVEN),
        "weights_checksum": weights_checksum(tmp_path),
        "temperature": TEMPERATURE,
        "epsilon": EPSILON,
    }
    (tmp_path / CALIBRATION_FILE).write_text(json.dumps(record))
    assert Calibration.load(tmp_path) == GIVEN
    (tmp_path / CALIBRATION_FILE).write_text(json.dumps(record | change))
    with pytest.raises(ValueError, match=message):
        LearnedWorld.from_pretrained(tmp_path)
