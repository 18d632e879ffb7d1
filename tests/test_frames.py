"""Numbered pictures with a table of actions: what comes in, what is refused, and the two commands on them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from worldloop.agents.cli import main
from worldloop.worldmodel.data import DataError, Skipped, images
from worldloop.worldmodel.data.clips import Clip, ClipDataset, ClipWriter
from worldloop.worldmodel.data.frames import read_file
from worldloop.worldmodel.data.images import decode, resize
from worldloop.worldmodel.data.importing import import_clips


def recording(folder: Path, numbers: list[int], ending: str = "png", rate: float | None = 10) -> Path:
    """Write pictures whose red is their number, actions (number, -number), and the rate; return the actions' file."""
    folder.mkdir(parents=True)
    for number in numbers:
        Image.new("RGB", (6, 4), (number, 100, 200)).save(folder / f"frame_{number:06d}.{ending}")
    rows = [["turn", "speed"], *([number, -number] for number in numbers)]
    with (folder / "actions.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    if rate is not None:
        (folder / "clip.json").write_text(json.dumps({"rate": rate}))
    return folder / "actions.csv"


def test_large_pictures_are_resized_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Pictures of 24 pixels where 50 may be at hand: two together, and the frames are those of all at once."""
    recording(tmp_path / "drive", list(range(5)))
    names = [f"frame_{number:06d}.png" for number in range(5)]
    read = lambda name: (tmp_path / "drive" / name).read_bytes()  # noqa: E731
    together = images.read_frames(names, read, "drive", (2, 3))
    at_hand = []
    resize = images.resize
    monkeypatch.setattr(images, "MOST_PIXELS", 50)
    monkeypatch.setattr(images, "resize", lambda frames, *size: at_hand.append(len(frames)) or resize(frames, *size))
    assert torch.equal(images.read_frames(names, read, "drive", (2, 3)), together)
    assert at_hand == [2, 2, 1]


def test_a_recording_becomes_clips_between_its_gaps(tmp_path: Path):
    found = list(read_file(recording(tmp_path / "drive", [8, 9, 10, 12, 14, 15])))
    first, alone, last = found
    assert isinstance(first, Clip)
    assert isinstance(last, Clip)
    assert (first.id, last.id, first.rate, first.action_names) == ("drive/0000", "drive/0001", 10, ("turn", "speed"))
    assert first.frames[:, 0, 0].tolist() == [[number, 100, 200] for number in (8, 9, 10)]
    assert last.action.tolist() == [[14, -14], [15, -15]]
    assert (first.first, last.first) == (8, 14)  # as its pictures are numbered
    place = f"{tmp_path / 'drive'}: frame_000012.png"
    assert alone == Skipped(place, "stands alone between gaps, wanted at least 2 frames in a row")


@pytest.mark.parametrize("ending", ["jpg", "JPEG", "PNG"])
def test_pictures_are_known_by_their_endings(tmp_path: Path, ending: str):
    (clip,) = read_file(recording(tmp_path / "drive", [1, 2, 3], ending))
    assert isinstance(clip, Clip)
    assert clip.validate().frames.shape == (3, 4, 6, 3)


def test_the_rate_is_said_once(tmp_path: Path):
    bare = recording(tmp_path / "bare", [1, 2], rate=None)
    with pytest.raises(DataError, match=r"clip\.json: is missing, so the rate is not known: .* or give --rate"):
        list(read_file(bare))
    assert [clip.rate for clip in read_file(bare, rate=7.5) if isinstance(clip, Clip)] == [7.5]
    said = recording(tmp_path / "said", [1, 2], rate=10)
    assert [clip.rate for clip in read_file(said, rate=10) if isinstance(clip, Clip)] == [10]
    with pytest.raises(DataError, match="says 10 Hz, --rate says 20"):
        list(read_file(said, rate=20))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("actions.csv", "", "actions.csv: has the header ''"),
        ("actions.csv", "a,\n1,2\n2,3\n3,4\n", "has the header 'a,'"),
        ("actions.csv", "a,a\n1,2\n2,3\n3,4\n", "each another"),
        ("actions.csv", "a,b\n1,2\n2,3\n", "has 2 rows below its header, wanted 3: one for each picture"),
        ("actions.csv", "a,b\n1,2\n2,nan\n3,4\n", "line 3: found '2,nan', wanted 2 finite numbers (a, b)"),
        ("actions.csv", "a,b\n1,2\n2\n3,4\n", "line 3: found '2', wanted 2 finite numbers"),
        ("actions.csv", "a,b\n1,2\n2,left\n3,4\n", "line 3: found '2,left'"),
        ("actions.csv", "a,b\n1,2\n2,inf\n3,4\n", "line 3: found '2,inf'"),
        ("actions.csv", b"\xff\xfe\x00", "is no CSV file"),
        ("clip.json", "{", "clip.json: is no JSON"),
        ("clip.json", "[" * 100_000, "clip.json: is no JSON"),
        ("clip.json", "[20]", "found [20], wanted"),
        ("clip.json", '{"rate": 0}', "wanted"),
        ("clip.json", '{"rate": true}', "wanted"),
        ("clip.json", '{"rate": NaN}', "wanted"),
        ("clip.json", '{"rate": 20, "size": 3}', "and nothing else"),
        ("frame_000002.png", b"broken", "frame_000002.png: is no whole PNG or JPEG picture"),
        ("frame_02.jpg", b"again", "have the same number: leave one out"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, name: str, content: str | bytes, message: str):
    file = recording(tmp_path / "drive", [1, 2, 3])
    (file.parent / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError) as refused:
        list(read_file(file))
    assert message in str(refused.value)
    assert str(file.parent) in str(refused.value)


def test_a_truncated_picture_is_refused(tmp_path: Path):
    file = recording(tmp_path / "drive", [1, 2, 3])
    broken = file.parent / "frame_000002.png"
    broken.write_bytes(broken.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"frame_000002\.png: is no whole PNG or JPEG picture"):
        list(read_file(file))


def test_a_clip_that_memory_cannot_hold_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"a clip of 3 frames of 30000 x 20000 takes 5\.0 GiB: make it smaller"):
        list(read_file(recording(tmp_path / "drive", [1, 2, 3]), size=(20000, 30000)))


@pytest.mark.parametrize(("mode", "colour", "wanted"), [("L", 7, [7] * 3), ("RGBA", (1, 2, 3, 0), [1, 2, 3]), ("P", 0, [0] * 3)])
def test_grey_and_palette_and_alpha_are_read_as_colour(tmp_path: Path, mode: str, colour: int, wanted: list[int]):
    Image.new(mode, (3, 2), colour).save(tmp_path / "a.png")
    assert decode((tmp_path / "a.png").read_bytes(), "a.png")[0, 0].tolist() == wanted


def test_deep_colour_is_refused(tmp_path: Path):
    Image.new("I;16", (3, 2), 7).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="a.png: has pixels of mode I;16"):
        decode((tmp_path / "a.png").read_bytes(), "a.png")


def test_resizing_by_hand():
    """Three columns onto two: each new one covers one and a half old ones."""
    frames = torch.tensor([0, 90, 240], dtype=torch.uint8).view(1, 1, 3, 1).expand(1, 2, 3, 3)
    assert resize(frames, 1, 2)[0, 0, :, 0].tolist() == [30, 190]
    assert resize(frames, 2, 6)[0, 1, :, 0].tolist() == [0, 0, 90, 90, 240, 240]
    assert torch.equal(resize(frames, 2, 3), frames)


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_resizing_keeps_the_mean_and_commutes_with_mirroring(height: int, width: int, rows: int, columns: int, seed: int):
    frames = torch.randint(0, 256, (2, height, width, 3), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    resized = resize(frames, rows, columns)
    assert resized.shape == (2, rows, columns, 3)
    assert (resized.float().mean(dim=(1, 2)) - frames.float().mean(dim=(1, 2))).abs().max() <= 0.51
    mirrored = resize(frames.flip(2), rows, columns).flip(2)
    assert (mirrored.int() - resized.int()).abs().max() <= 1  # a half may be rounded up or down


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_windows_of_what_was_imported_never_cross_a_gap(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    numbers = sorted(data.draw(st.sets(st.integers(0, 30), min_size=2, max_size=20)))
    if all(after - before > 1 for before, after in zip(numbers, numbers[1:], strict=False)):
        numbers.append(numbers[-1] + 1)
    place = tmp_path_factory.mktemp("gaps")
    recording(place / "in" / "drive", numbers)
    longest = data.draw(st.integers(2, 8))
    assert (
        main(
            [
                "data",
                "import",
                "frames",
                f"{place / 'in'}",
                f"{place / 'set'}",
                *("--longest", str(longest)),
                "--out",
                f"{place / 'run'}",
            ]
        )
        == 0
    )
    dataset = ClipDataset(place / "set")
    assert max(dataset.lengths) <= longest
    length = data.draw(st.integers(1, max(dataset.lengths)))
    frames, action = dataset.sample(torch.Generator().manual_seed(0), 50, length)
    assert (frames[:, :, 0, 0, 0] == action[..., 0]).all()
    assert (action[:, 1:, 0] - action[:, :-1, 0] == 1).all()


def test_the_commands_import_and_describe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        recording(tmp_path / "in" / name, [n for n in range(41) if n != 20])
    words = ["data", "import", "frames", "in", "set", "--height", "2", "--width", "2", "--longest", "5", "--out", "done"]
    assert main(words) == 0
    assert "16 clips from 2 files (80 frames, 0 left out)" in " ".join(capsys.readouterr().out.split())
    assert json.loads(Path("done/run.json").read_text())["results"]["frames"] == 80
    assert main(["data", "info", "set", "--out", "told"]) == 0
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("clips", "frames", "turn mean", "speed deviation", "clips such as a/0000, a/0001"))
    train, validation, every = json.loads(Path("told/info.json").read_text())
    assert (train["clips"], validation["clips"], every["clips"], every["recordings"]) == (14, 2, 16, 2)
    with Path("told/clips.csv").open(newline="") as file:
        listed = list(csv.DictReader(file))
    assert [row["split"] for row in listed] == [*["train"] * 7, "validation"] * 2
    assert listed[1] == {"id": "a/0001", "split": "train", "frames": "5", "first": "5", "source": "a"}
    assert main(["data", "info", "set:b/*", "--out", "part"]) == 0
    assert json.loads(Path("part/info.json").read_text())[-1]["frames"] == 40


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["frames", "in", "set", "--height", "8"], "found --height 8 and --width None, wanted both or none"),
        (["frames", "in", "set", "--height", "8", "--width", "0"], "wanted sides of 1 pixel"),
        (["frames", "nowhere", "set"], "nowhere: there is no such file or folder"),
        (["pandaset", "in", "set", "--rate", "20"], "pandaset is no video"),
        (["pandaset", "in", "set", "--longest", "5"], "pandaset is no video"),
    ],
)
def test_the_command_refuses(words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    recording(tmp_path / "in" / "a", [1, 2])
    assert main(["data", "import", *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not Path("set").exists()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and "in" not in path.parts]


def test_a_recording_that_breaks_later_keeps_what_stands_before(tmp_path: Path):
    file = recording(tmp_path / "in" / "a", list(range(6)))
    (file.parent / "frame_000004.png").write_bytes(b"broken")
    done = import_clips("frames", tmp_path / "in", tmp_path / "set", longest=2, skip_broken=True)
    assert ClipDataset(tmp_path / "set").ids == ("a/0000", "a/0001")
    assert done.counts == {"clips": 2, "frames": 4}
    assert done.broken[0].reason.endswith("(what was read of it before, 2, is kept)")


def test_a_recording_unlike_those_before_it_counts_as_broken(tmp_path: Path):
    recording(tmp_path / "in" / "a", [1, 2])
    other = recording(tmp_path / "in" / "b", [1, 2])
    for number in (1, 2):
        Image.new("RGB", (5, 5)).save(other.parent / f"frame_{number:06d}.png")
    recording(tmp_path / "in" / "c", [1, 2])
    with pytest.raises(DataError, match="b: clip b/0000 has the height 5, those before it 4"):
        import_clips("frames", tmp_path / "in", tmp_path / "set")
    done = import_clips("frames", tmp_path / "in", tmp_path / "set", skip_broken=True)
    assert ["clip b/0000 has the height 5" in broken.reason for broken in done.broken] == [True]
    assert ClipDataset(tmp_path / "set").ids == ("a/0000", "c/0000")
    assert done.counts == {"clips": 2, "frames": 4}


def test_a_full_disk_is_no_fault_of_a_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_, **__):
        raise OSError("no space left")

    recording(tmp_path / "in" / "a", [1, 2])
    monkeypatch.setattr(ClipWriter, "add", full)
    with pytest.raises(OSError, match="no space left"):
        import_clips("frames", tmp_path / "in", tmp_path / "set", skip_broken=True)
    assert not (tmp_path / "set").exists()
