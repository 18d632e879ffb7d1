"""The table of readers, import and description."""

from __future__ import annotations

from pathlib import Path

import pytest
from scenes import several_roads, straight_road
from test_pandaset import sequence, write
from worldloop.agents.cli import main
from worldloop.worldmodel.data import READERS, DataError, SceneDataset, find_files, read
from worldloop.worldmodel.data import reader as reader_of
from worldloop.worldmodel.data.importing import describe, import_scenes, split
from worldloop.worldmodel.data.writing import ShardWriter


def test_every_reader_finds_its_files_and_names_what_is_missing(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("nothing of interest")
    for name in READERS:
        assert callable(reader_of(name).read_file)
        with pytest.raises(DataError, match=f"no {name} file .* here: name their folder or one of them"):
            find_files(name, tmp_path)
        made = [tmp_path / pattern.replace("*", letter) for pattern in reader_of(name).PATTERNS for letter in "ba"]
        for file in made:
            file.parent.mkdir(exist_ok=True)
            file.touch()
        assert find_files(name, tmp_path) == sorted(set(made))
        assert find_files(name, made[0]) == [made[0]]
        for file in set(made):
            file.unlink()


def test_an_unknown_format_names_the_known_ones(tmp_path: Path):
    known = "argoverse2, commonroad, donkeycar, frames, gpudrive, pandaset, scenarionet, waymo"
    with pytest.raises(DataError, match=f"unknown format 'dxf': known are {known}"):
        list(read("dxf", tmp_path))


def test_import_counts_and_tells_its_progress(tmp_path: Path):
    source = tmp_path / "source"
    source.mkdir()
    write(source, sequence(), "007.json.gz")
    write(source, sequence(sequence="008"), "008.json.gz")
    write(source, sequence(steps=5, sequence="009"), "009.json.gz")
    told = []
    done = import_scenes("pandaset", source, tmp_path / "set", progress=lambda *state: told.append(state))
    assert told == [(0, 3, "007.json.gz"), (1, 3, "008.json.gz"), (2, 3, "009.json.gz"), (3, 3, "")]
    assert (done.files, done.counts) == (3, {"scenes": 2, "agents": 10, "agent_steps": 270})
    assert [skipped.reason for skipped in done.skipped] == ["5 steps, wanted at least 11"]
    dataset = SceneDataset(tmp_path / "set")
    assert dataset.ids == ("pandaset/007", "pandaset/008")
    assert dataset.entries[1]["source"] == "008.json.gz"


def test_one_bad_file_leaves_nothing_behind(tmp_path: Path):
    source = tmp_path / "source"
    source.mkdir()
    write(source, sequence(), "007.json.gz")
    (source / "008.json.gz").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"008\.json\.gz"):
        import_scenes("pandaset", source, tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_broken_files_are_left_out_where_that_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "source"
    source.mkdir()
    (source / "006.json.gz").write_bytes(b"broken")
    write(source, sequence(), "007.json.gz")
    (source / "008.json.gz").write_bytes(b"broken")
    done = import_scenes("pandaset", source, tmp_path / "set", skip_broken=True)
    assert [broken.source for broken in done.broken] == ["006.json.gz", "008.json.gz"]
    assert all(broken.source in broken.reason for broken in done.broken)
    assert SceneDataset(tmp_path / "set").ids == ("pandaset/007",)
    words = ["data", "import", "pandaset", "source", "again", "--out", "told"]
    assert main(words) == 2
    assert main([*words, "--skip-broken"]) == 1
    shown = capsys.readouterr().out
    assert "broken: 006.json.gz: " in shown
    assert "1 scene from 3 files" in shown
    assert "0 left out, 2 files broken" in shown
    assert (tmp_path / "told/broken.csv").read_text().count("\n") == 3
    (source / "007.json.gz").write_bytes(b"broken")
    with pytest.raises(DataError, match="of 3 files nothing can be used: 3 broken, the first one .*006"):
        import_scenes("pandaset", source, tmp_path / "none", skip_broken=True)
    assert not (tmp_path / "none").exists()


def test_an_import_that_leaves_everything_out_says_why(tmp_path: Path):
    source = tmp_path / "source"
    source.mkdir()
    write(source, sequence(steps=5, sequence="007"), "007.json.gz")
    write(source, sequence(steps=3, sequence="008"), "008.json.gz")
    reason = "2 left out, the first one .*007.json.gz: 5 steps, wanted at least 11"
    with pytest.raises(DataError, match=f"of 2 files nothing can be used: {reason}$"):
        import_scenes("pandaset", source, tmp_path / "set")
    (source / "009.json.gz").write_bytes(b"broken")
    with pytest.raises(DataError, match=f"of 3 files nothing can be used: {reason}; 1 broken, the first one .*009"):
        import_scenes("pandaset", source, tmp_path / "set", skip_broken=True)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_what_stands_before_a_break_is_kept(tmp_path: Path, monkeypatch):
    def scenes_then_an_error(file):
        yield straight_road("hand/1")
        raise DataError(f"{file}: record 2 is damaged")

    write(tmp_path, sequence(), "007.json.gz")
    write(tmp_path, sequence(sequence="008"), "008.json.gz")
    read_file = reader_of("pandaset").read_file
    both = lambda file: scenes_then_an_error(file) if file.name.startswith("007") else read_file(file)  # noqa: E731
    monkeypatch.setattr(reader_of("pandaset"), "read_file", both)
    done = import_scenes("pandaset", tmp_path, tmp_path / "set", skip_broken=True)
    assert done.broken[0].reason.endswith("record 2 is damaged (what was read of it before, 1, is kept)")
    assert SceneDataset(tmp_path / "set").ids == ("hand/1", "pandaset/008")
    alone = import_scenes("pandaset", tmp_path / "007.json.gz", tmp_path / "one", skip_broken=True)
    assert len(alone.broken) == 1
    assert SceneDataset(tmp_path / "one").ids == ("hand/1",)


def test_the_destination_is_checked_before_anything_is_read(tmp_path: Path):
    write(tmp_path, sequence())
    (tmp_path / "set").mkdir()
    told = []
    with pytest.raises(DataError, match="exists already"):
        import_scenes("pandaset", tmp_path, tmp_path / "set", progress=lambda *state: told.append(state))
    assert told == []


@pytest.mark.parametrize(
    ("id", "expected"),
    [
        ("pandaset/041", "train"),
        ("pandaset/042", "validation"),
        ("pandaset/065", "validation"),
        ("pandaset/x", "none"),
        ("commonroad/USA_US101-1_1_T-1", "train"),
        ("commonroad/USA_Lanker-1_1_T-1", "train"),
        ("commonroad/USA_Peach-2_1_T-1", "validation"),
        ("commonroad/DEU_Flensburg-1_1_T-1", "none"),
        ("sumo/acosta/3", "train"),
        ("waymo/637f20cafde22ff8", "none"),
        ("gpudrive/tfrecord-00000-of-00150_1", "none"),
        ("argoverse2/0a1e6f0a-1817-4a98-b02e-db8c9327d151", "none"),
        ("scenarionet/1446dc44bd6fd420", "none"),
    ],
)
def test_the_fixed_splits(id: str, expected: str):
    assert split(id) == expected


def test_describe_counts_what_is_there(tmp_path: Path):
    with ShardWriter(tmp_path / "set") as writer:
        writer.add(several_roads(2))
        writer.add(straight_road("sumo/1"))
    rows = describe(SceneDataset(tmp_path / "set"))
    assert [row["split"] for row in rows] == ["train", "none", "all"]
    assert [row["scenes"] for row in rows] == [1, 2, 3]
    assert len({tuple(row) for row in rows}) == 1
    every = rows[-1]
    assert (every["vehicles"], every["pedestrians"], every["cyclists"], every["objects"]) == (12, 3, 0, 3)
    assert every["agent_steps"] == 3 * 6 * 91
    assert every["hours"] == pytest.approx(3 * 9.1 / 3600)
    assert every["median_speed"] == pytest.approx(10)
    assert every["road_edge"] == 6
    assert every["signals"] == 3
