import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scenes import several_roads
from worldloop.agents.scaling import Scaling, along, fit_power_law, run_scaling
from worldloop.worldmodel.data import SceneDataset
from worldloop.worldmodel.data.writing import ShardWriter


@given(scale=st.floats(0.1, 50.0), exponent=st.floats(-0.5, 0.5), sizes=st.lists(st.integers(1, 10**7), min_size=3, unique=True))
def test_a_power_law_is_found_again(scale, exponent, sizes):
    law = fit_power_law(sizes, [scale * size**-exponent for size in sizes])
    assert law.exponent == pytest.approx(exponent, abs=1e-3)
    if abs(exponent) > 1e-2:
        assert law.fit == pytest.approx(1.0, abs=1e-4)


def test_ten_times_the_size_for_half_the_loss_by_hand():
    law = fit_power_law([10, 100], [4.0, 2.0])
    assert (law.scale, law.exponent, law.fit) == (pytest.approx(8.0), pytest.approx(0.30103, abs=1e-5), None)


@pytest.mark.parametrize(("sizes", "losses", "words"), [([5, 5], [1.0, 2.0], "1 different"), ([1, 2], [0.0, 1.0], "logarithm")])
def test_what_has_no_power_law_is_refused(sizes, losses, words):
    with pytest.raises(ValueError, match=words):
        fit_power_law(sizes, losses)


def test_curves_vary_one_thing_alone():
    rows = [{"parameters": p, "training_scenes": s} for p, s in ((1, 10), (3, 10), (2, 10), (2, 5), (9, 7))]
    assert [row["parameters"] for row in along(rows, "parameters")] == [1, 2, 3]
    assert [row["training_scenes"] for row in along(rows, "training_scenes")] == [5, 10]
    assert along(rows[-1:], "parameters") == []


def training(folder, parameters, scenes, loss, **changes):
    folder.mkdir()
    arguments = {"steps": 3, "batch": 16, "out": str(folder), "model": {}, "share": 1.0} | changes
    results = {"parameters": parameters, "training_scenes": scenes, "validation_loss": loss}
    record = {"command": "train behavior", "status": "finished", "arguments": arguments, "seconds": 1.5}
    (folder / "run.json").write_text(json.dumps(record | {"results": results | {"min_ade_3s": 1.0, "optimiser_steps": 3}}))
    return folder


def test_runs_become_a_table_a_picture_and_two_laws(tmp_path, capsys):
    runs = (
        training(tmp_path / "a", 100, 40, 4.0),
        training(tmp_path / "b", 1000, 40, 2.0, model={"width": 8}),
        training(tmp_path / "c", 1000, 10, 3.0, share=0.25),
    )
    out = run_scaling(Scaling(runs, tmp_path / "out"))
    laws = json.loads((out / "run.json").read_text())["results"]["laws"]
    assert laws["parameters"]["exponent"] == pytest.approx(0.30103, abs=1e-5)
    assert laws["training_scenes"]["exponent"] == pytest.approx(0.29248, abs=1e-5)  # log(3 / 2) / log(4)
    assert (out / "scaling.png").stat().st_size > 5000
    assert len((out / "runs.csv").read_text().splitlines()) == 4
    assert "0.50 times the loss" in " ".join(capsys.readouterr().out.split())


def test_runs_that_cannot_be_compared_are_refused(tmp_path):
    first = training(tmp_path / "a", 100, 40, 4.0)
    with pytest.raises(ValueError, match="differs from .*a in steps"):
        run_scaling(Scaling((first, training(tmp_path / "b", 1000, 40, 2.0, steps=4)), tmp_path / "out"))
    with pytest.raises(ValueError, match="neither in parameters nor"):
        run_scaling(Scaling((first,), tmp_path / "out"))
    with pytest.raises(ValueError, match="found no runs"):
        run_scaling(Scaling((), tmp_path / "out"))
    with pytest.raises(ValueError, match=r"run\.json: not found"):
        run_scaling(Scaling((tmp_path,), tmp_path / "out"))
    with pytest.raises(ValueError, match="a run folder twice"):
        run_scaling(Scaling((first, first), tmp_path / "out"))
    with pytest.raises(ValueError, match="no number of validation_loss"):
        run_scaling(Scaling((first, training(tmp_path / "nan", 10, 40, float("nan"))), tmp_path / "out"))
    (first / "run.json").write_text(json.dumps({"command": "train behavior", "status": "interrupted"}))
    with pytest.raises(ValueError, match="interrupted"):
        run_scaling(Scaling((first,), tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_share_of_the_scenes_lies_within_a_larger_one(tmp_path):
    with ShardWriter(tmp_path / "set") as writer:
        writer.add(several_roads(8))
    dataset = SceneDataset(tmp_path / "set")
    quarter, half = (set(dataset.share(part).ids) for part in (0.25, 0.5))
    assert (len(quarter), len(half)) == (2, 4)
    assert quarter < half
    assert len(dataset.share(0.001)) == 1
    assert dataset.share(1.0).ids == dataset.ids
    with pytest.raises(ValueError, match="share of 0"):
        dataset.share(0.0)


def test_runs_that_have_not_seen_their_data_are_told(tmp_path, capsys):
    for name, scenes in (("a", 40), ("b", 60)):
        training(tmp_path / name, 1000, scenes, 2.0)
    run_scaling(Scaling((tmp_path / "a", tmp_path / "b"), tmp_path / "out"))
    assert "the 48 windows that a run draws are fewer than the scenes of 1 run" in capsys.readouterr().out
    run_scaling(Scaling((training(tmp_path / "c", 1000, 20, 2.0), tmp_path / "a"), tmp_path / "other"))
    assert "windows" not in capsys.readouterr().out
