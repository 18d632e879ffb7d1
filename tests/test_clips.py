"""Clips on disk: the same bits come back, windows never cross a gap, damage is named, the end of a recording is held out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from scenes import several_roads
from worldloop.worldmodel.data import DataError, SceneDataset, clips
from worldloop.worldmodel.data.clips import Clip, ClipDataset, ClipWriter, holds_clips, pieces, runs
from worldloop.worldmodel.data.importing import describe_clips
from worldloop.worldmodel.data.writing import ShardWriter


def make(id: str = "hand/0000", length: int = 12, first: int = 0, rate: float = 20.0) -> Clip:
    """A clip that tells in every frame and action which one it is: frame number in red, recording in green."""
    frames = torch.zeros(length, 4, 6, 3, dtype=torch.uint8)
    number = torch.arange(first, first + length)
    frames[..., 0] = (number % 256).to(torch.uint8)[:, None, None]
    frames[..., 1] = sum(map(ord, id.rpartition("/")[0])) % 256
    action = torch.stack([number.float(), torch.full((length,), 0.5)], dim=-1)
    return Clip(id, frames, action, ("steering", "throttle"), rate, first)


def same(one: Clip, other: Clip) -> bool:
    plain = ("id", "action_names", "rate", "first")
    equal = torch.equal(one.frames, other.frames) and torch.equal(one.action, other.action)
    return equal and all(getattr(one, name) == getattr(other, name) for name in plain)


def write(folder: Path, *made: Clip) -> Path:
    with ClipWriter(folder) as writer:
        for clip in made:
            writer.add(clip, source="by hand")
    return folder


@pytest.fixture
def written(tmp_path: Path) -> Path:
    lengths, starts = (12, 5, 9), (0, 20, 40)
    hand = [make(f"hand/{n:04d}", *shape) for n, shape in enumerate(zip(lengths, starts, strict=True))]
    return write(tmp_path / "set", *hand, make("other/0000", 10))


def test_the_same_bits_come_back(written: Path):
    dataset = ClipDataset(written)
    assert dataset.ids == ("hand/0000", "hand/0001", "hand/0002", "other/0000")
    assert (dataset.lengths, dataset.action_names, dataset.rate, dataset.size) == (
        (12, 5, 9, 10),
        ("steering", "throttle"),
        20,
        (4, 6),
    )
    assert same(dataset.window("hand/0001"), make("hand/0001", 5, 20))
    assert same(dataset.window(-1), make("other/0000", 10))
    assert same(dataset.window("hand/0002", 3, 4), make("hand/0002", 4, 43))


@pytest.mark.parametrize(("start", "length"), [(-1, 2), (0, 13), (12, 1), (12, None), (3, 0), (3, -1)])
def test_a_window_outside_of_its_clip_is_refused(written: Path, start: int, length: int | None):
    with pytest.raises(IndexError, match=r"clip hand/0000: no window from frame -?\d+ to -?\d+, there are 12 frames"):
        ClipDataset(written).window("hand/0000", start, length)


def test_an_unknown_clip_is_refused(written: Path):
    with pytest.raises(DataError, match="no clip 'hand/9' among 4; nearest: "):
        ClipDataset(written).window("hand/9")
    with pytest.raises(IndexError, match="no clip number 4, there are 4"):
        ClipDataset(written).window(4)


def test_clips_are_chosen_by_glob(written: Path):
    dataset = ClipDataset.named(f"{written}:hand/000[12]")
    assert dataset.ids == ("hand/0001", "hand/0002")
    assert same(dataset.window(0), make("hand/0001", 5, 20))
    assert ClipDataset.named(str(written)).ids[-1] == "other/0000"
    with pytest.raises(DataError, match="no clip matches 'foot'; there are 4, such as hand/0000"):
        dataset.named(f"{written}:foot")


def test_samples_are_windows_and_repeat_with_the_seed(written: Path):
    dataset = ClipDataset(written)
    frames, action = dataset.sample(torch.Generator().manual_seed(1), 7, 5)
    assert (frames.shape, frames.dtype, action.shape, action.dtype) == ((7, 5, 4, 6, 3), torch.uint8, (7, 5, 2), torch.float32)
    again = dataset.sample(torch.Generator().manual_seed(1), 7, 5)
    assert torch.equal(frames, again[0])
    assert torch.equal(action, again[1])


def test_every_window_is_as_likely_as_any_other(written: Path):
    """Of length 9 there are 4 + 0 + 1 + 2 windows; 1,400 draws give each 200 +- 13."""
    frames, action = ClipDataset(written).sample(torch.Generator().manual_seed(0), 1400, 9)
    starts = [(green.item(), start.item()) for green, start in zip(frames[:, 0, 0, 0, 1], action[:, 0, 0], strict=True)]
    hand, other = make().frames[0, 0, 0, 1].item(), make("other/0000").frames[0, 0, 0, 1].item()
    wanted = {(hand, 0), (hand, 1), (hand, 2), (hand, 3), (hand, 40), (other, 0), (other, 1)}
    assert set(starts) == wanted
    assert all(140 < starts.count(one) < 260 for one in wanted)


def test_a_window_longer_than_every_clip_is_refused(written: Path):
    with pytest.raises(DataError, match="no clip has 13 frames, the longest has 12"):
        ClipDataset(written).sample(torch.Generator(), 1, 13)
    with pytest.raises(ValueError, match="found a batch of 0"):
        ClipDataset(written).sample(torch.Generator(), 0, 2)


@settings(deadline=None)
@given(gaps=st.lists(st.booleans(), min_size=1, max_size=60), longest=st.integers(1, 20))
def test_pieces_cover_all_and_cross_no_gap(gaps: list[bool], longest: int):
    cut = [piece for run in runs(gaps) for piece in pieces(run, longest)]
    assert [t for piece in cut for t in piece] == list(range(len(gaps)))
    assert all(0 < len(piece) <= longest and not any(gaps[t] for t in piece[1:]) for piece in cut)
    for run in runs(gaps):
        lengths = [len(piece) for piece in pieces(run, longest)]
        assert max(lengths) - min(lengths) <= 1
        assert len(lengths) == -(-len(run) // longest)


def test_the_end_of_every_recording_is_held_out(tmp_path: Path):
    """Middles of a at 5, ..., 85, 95 of 100; of b at 5 and 15 of 20; c is a single clip, and has its middle at half."""
    made = [make(f"a/{n:04d}", 10, 10 * n) for n in range(10)]
    made += [make("b/0000", 10), make("b/0001", 10, 10), make("c/0000", 3)]
    dataset = ClipDataset(write(tmp_path / "set", *made))
    train, validation = dataset.held_out()
    assert validation.ids == ("a/0009",)
    assert train.ids == tuple(id for id in dataset.ids if id != "a/0009")
    assert dataset.held_out(0.3)[1].ids == ("a/0007", "a/0008", "a/0009", "b/0001")
    assert dataset.subset("a/").sides().count("validation") == 1
    with pytest.raises(DataError, match="holding out the last 10% leaves 1 clips to train on and 0 to validate on"):
        dataset.subset("c/").held_out()


def test_shards_are_closed_when_they_are_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(clips, "SHARD_BYTES", 1000)
    folder = write(tmp_path / "set", *(make(f"hand/{n:04d}", 8, 10 * n) for n in range(5)))
    assert sorted(file.name for file in folder.glob("*.safetensors")) == [f"shard-{n:05d}.safetensors" for n in range(3)]
    dataset = ClipDataset(folder)
    assert all(same(dataset.window(n), make(f"hand/{n:04d}", 8, 10 * n)) for n in range(5))


def test_clips_that_share_memory_are_written(tmp_path: Path):
    whole = make(length=20)
    parts = [replace(whole, id=f"h/{n}", frames=whole.frames[n:], action=whole.action[n:]) for n in (0, 5)]
    dataset = ClipDataset(write(tmp_path / "set", *parts))
    assert torch.equal(dataset.window(1).frames, whole.frames[5:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": torch.zeros(12, 4, 6, 3)}, r"frames of shape \(12, 4, 6, 3\) and type torch.float32"),
        ({"frames": torch.zeros(12, 4, 6, dtype=torch.uint8)}, r"frames of shape \(12, 4, 6\)"),
        ({"frames": torch.zeros(0, 4, 6, 3, dtype=torch.uint8)}, r"frames of shape \(0, 4, 6, 3\)"),
        ({"action": torch.zeros(11, 2)}, r"action of shape \(11, 2\)"),
        ({"action": torch.zeros(12, 2).double()}, "type torch.float64"),
        ({"action": torch.full((12, 2), torch.nan)}, "steering nan at frame 0"),
        ({"action_names": ("a", "a")}, "each another"),
        ({"rate": 0.0}, "rate 0.0 Hz"),
        ({"rate": torch.nan}, "rate nan Hz"),
        ({"first": -1}, "first frame -1"),
    ],
)
def test_what_is_no_clip_is_refused(tmp_path: Path, change: dict, message: str):
    with pytest.raises(DataError, match=message), ClipWriter(tmp_path / "set") as writer:
        writer.add(replace(make(), **change))
    assert list(tmp_path.iterdir()) == []


def test_clips_of_one_data_set_are_alike(tmp_path: Path):
    larger = replace(make("b/0"), frames=torch.zeros(12, 8, 6, 3, dtype=torch.uint8))
    for other, message in (
        (larger, "has the height 8, those before it 4"),
        (make("b/0", rate=10.0), "has the rate 10.0, those before it 20.0"),
        (replace(make("b/0"), action_names=("left", "right")), "has the action_names"),
        (make(), "the clip id hand/0000 is there already"),
    ):
        with pytest.raises(DataError, match=message):
            write(tmp_path / "set", make(), other)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_clip_is_named_and_the_others_are_read(written: Path):
    shard = written / "shard-00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[content.index(make("hand/0002", 9, 40).frames.numpy().tobytes()) + 5] ^= 1
    shard.write_bytes(content)
    dataset = ClipDataset(written)
    assert same(dataset.window("hand/0001"), make("hand/0001", 5, 20))
    with pytest.raises(DataError, match=r"shard-00000\.safetensors: clip hand/0002 is damaged \(its checksum differs"):
        dataset.window("hand/0002", 0, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "has version 2, this release reads version 1"),
        ({"rate": 10.0}, "its checksum differs"),
        ({"rate": "fast"}, "lacks proper action_names, layout_names, rate, height or width"),
        ({"action_names": []}, "lacks proper action_names"),
        ({"action_names": ["steering"]}, "action of shape"),
        ({"height": 5}, "its frames have the shape"),
        (
            {"clips": [{"id": "hand/0000", "file": "shard-00000.safetensors", "number": 0, "crc32": 1}]},
            "clip 0 lacks a proper first",
        ),
    ],
)
def test_an_index_that_does_not_fit_is_refused(written: Path, change: dict, message: str):
    index = json.loads((written / "index.json").read_text())
    (written / "index.json").write_text(json.dumps(index | change))
    with pytest.raises(DataError, match=message):
        ClipDataset(written).window(0)


def test_clips_of_one_number_in_different_shards_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(clips, "SHARD_BYTES", 1)
    made = make("hand/0000", 8), make("hand/0001", 8, 10)
    folder = write(tmp_path / "set", *made)
    index, second = json.loads((folder / "index.json").read_text()), folder / "shard-00001.safetensors"
    with safe_open(second, framework="pt") as shard:
        stored, header = {key.replace("1/", "0/"): shard.get_tensor(key) for key in shard.keys()}, shard.metadata()  # noqa: SIM118
    save_file(stored, second, metadata=header)
    index["clips"][1]["number"] = 0
    (folder / "index.json").write_text(json.dumps(index))
    dataset = ClipDataset(folder)
    assert all(same(dataset.window(number), clip) for number, clip in enumerate(made))
    index["clips"][1]["crc32"] += 1
    (folder / "index.json").write_text(json.dumps(index))
    dataset = ClipDataset(folder)
    dataset.window(0)
    with pytest.raises(DataError, match="hand/0001 is damaged"):
        dataset.window(1)


@pytest.mark.parametrize("data", [ClipDataset, SceneDataset])
def test_an_index_nested_without_end_is_refused(tmp_path: Path, data: type):
    (tmp_path / "index.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"index\.json: is no JSON"):
        data(tmp_path)
    assert not holds_clips(tmp_path)


def test_a_truncated_shard_is_named(written: Path):
    shard = written / "shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"shard-00000\.safetensors: cannot be read"):
        ClipDataset(written).window(0)


def test_scenes_and_clips_are_told_apart(written: Path, tmp_path: Path):
    with ShardWriter(tmp_path / "roads") as writer:
        writer.add(several_roads(2))
    with pytest.raises(DataError, match="holds worldloop clips, wanted scenes"):
        SceneDataset(written)
    with pytest.raises(DataError, match="holds worldloop scenes, wanted clips"):
        ClipDataset(tmp_path / "roads")
    assert holds_clips(written)
    assert holds_clips(f"{written}:hand/*")
    assert not holds_clips(tmp_path / "roads")
    assert not holds_clips(tmp_path / "nowhere")


def test_describe_counts_what_is_there(tmp_path: Path):
    made = [make(f"a/{n:04d}", 10, 10 * n) for n in range(10)]
    told = []
    rows = describe_clips(ClipDataset(write(tmp_path / "set", *made)), lambda *state: told.append(state))
    assert [row["split"] for row in rows] == ["train", "validation", "all"]
    assert [row["frames"] for row in rows] == [90, 10, 100]
    assert len({tuple(row) for row in rows}) == 1
    every = rows[-1]
    assert (every["recordings"], every["clips"], every["height"], every["width"], every["rate"]) == (1, 10, 4, 6, 20)
    assert every["hours"] == pytest.approx(5 / 3600)
    assert (every["steering_mean"], every["steering_least"], every["steering_most"]) == (49.5, 0, 99)
    assert every["steering_deviation"] == pytest.approx(28.866, abs=1e-3)  # sqrt((100 ** 2 - 1) / 12)
    assert (every["steering_zero"], every["throttle_deviation"]) == (0.01, 0)
    assert told[-1] == (10, 10, "a/0009")
