"""The on-disk form: the same bits come back, damage is named, nothing half-written looks whole."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from scenes import several_roads, straight_road, unchecked
from worldloop.worldmodel.data import DataError, SceneDataset
from worldloop.worldmodel.data.writing import SCENES_PER_SHARD, ShardWriter, trim
from worldloop.worldmodel.scene import LAYOUT, Scene


def same(first: Scene, second: Scene) -> bool:
    return (first.id, first.recipe) == (second.id, second.recipe) and all(
        torch.equal(getattr(first, name), getattr(second, name)) for name in LAYOUT
    )


@pytest.fixture
def written(tmp_path: Path) -> Path:
    with ShardWriter(tmp_path / "set") as writer:
        writer.add(several_roads(4), source="by hand")
    return tmp_path / "set"


def test_the_same_bits_come_back(written: Path):
    roads, dataset = several_roads(4), SceneDataset(written)
    assert dataset.ids == roads.id
    assert len(dataset) == 4
    assert same(dataset.load(range(4)), roads)
    assert same(dataset.load(["hand/2", "hand/0", "hand/2"]), roads.take([2, 0, 2]))
    assert [scene.id[0] for scene in dataset] == list(roads.id)
    assert dataset.entries[0]["source"] == "by hand"


def test_padding_is_not_stored():
    road = straight_road()
    sizes = {letter: size + 3 for letter, size in road.sizes().items() if letter != "B"}
    assert same(trim(road.pad(sizes)), road)


def test_scenes_of_different_sizes_are_padded_together(tmp_path: Path):
    with ShardWriter(tmp_path / "set") as writer:
        writer.add(straight_road("a", steps=20))
        writer.add(straight_road("b", steps=40, edges=False))
    batch = SceneDataset(tmp_path / "set").load(["a", "b"]).validate()
    assert batch.steps == 40
    assert not batch.valid[0, :, 20:].any()


def test_many_scenes_fill_several_shards(tmp_path: Path):
    count = SCENES_PER_SHARD + 2
    road = straight_road(steps=12)
    with ShardWriter(tmp_path / "set") as writer:
        for number in range(count):
            writer.add(Scene(id=(f"many/{number:03d}",), recipe=("",), **{name: getattr(road, name) for name in LAYOUT}))
    assert len(list((tmp_path / "set").glob("*.safetensors"))) == 2
    dataset = SceneDataset(tmp_path / "set")
    assert dataset.load(f"many/{count - 1}").id == (f"many/{count - 1}",)
    assert dataset.load(-1).id == (f"many/{count - 1}",)


def test_subsets_by_prefix_and_glob(written: Path):
    dataset = SceneDataset(written)
    assert dataset.subset("hand/").ids == dataset.ids
    part = dataset.subset("*/[12]")
    assert part.ids == ("hand/1", "hand/2")
    assert part.load(0).id == ("hand/1",)
    with pytest.raises(DataError, match="no scene matches 'foot'"):
        dataset.subset("foot")


def test_the_first_scenes(written: Path):
    dataset = SceneDataset(written)
    assert dataset.first(2).ids == ("hand/0", "hand/1")
    assert dataset.first(9).ids == dataset.ids
    with pytest.raises(ValueError, match="limit of 0 scenes"):
        dataset.first(0)


def test_an_unknown_id_names_the_nearest(written: Path):
    with pytest.raises(DataError, match=r"no scene 'hand/22' among 4; nearest: hand/2"):
        SceneDataset(written).load("hand/22")
    with pytest.raises(IndexError, match="no scene number 4, there are 4"):
        SceneDataset(written).load(4)


def test_a_kill_while_overwriting_loses_neither_the_old_set_nor_the_new(written: Path, monkeypatch: pytest.MonkeyPatch):
    class Killed(BaseException):
        pass

    replace, names = os.replace, []

    def killed(source: Path, target: Path) -> None:
        names.append(Path(target).name)
        if len(names) == 2:
            raise Killed
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    writer = ShardWriter(written, overwrite=True).__enter__()
    writer.add(straight_road("hand/new"))
    with pytest.raises(Killed):
        writer._finish()
    monkeypatch.setattr(os, "replace", replace)
    assert not written.exists()
    assert SceneDataset(writer.partial).ids == ("hand/new",)
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True)
    (writer.partial / writer.mark).rename(writer.partial / f"writer-{gone.stdout.strip()}")
    again = ShardWriter(written)
    with pytest.raises(DataError, match="exists already"):
        again.__enter__()
    assert again.notices == [f"{written}: put back as it was before an interrupted import"]
    assert len(SceneDataset(written)) == 4


def test_a_damaged_scene_is_named_and_the_others_are_read(written: Path):
    shard = written / "shard-00000.safetensors"
    content = bytearray(shard.read_bytes())
    position = SceneDataset(written).load(2).position.numpy().tobytes()
    content[content.index(position) + 7] ^= 1
    shard.write_bytes(content)
    dataset = SceneDataset(written)
    assert dataset.load([0, 1, 3]).id == ("hand/0", "hand/1", "hand/3")
    with pytest.raises(DataError, match=r"shard-00000\.safetensors: scene hand/2 is damaged"):
        dataset.load([0, 2])


def test_a_scene_that_breaks_the_contract_is_named_with_its_file(tmp_path: Path):
    road = straight_road("hand/good")
    dataset = SceneDataset(unchecked(tmp_path / "set", road, replace(road, id=("hand/bad",), ego=torch.tensor([-1]))))
    assert same(dataset.load("hand/good"), road)
    with pytest.raises(DataError, match=r"set/shard-00000\.safetensors: hand/bad: ego: index outside of the 6 agents"):
        dataset.load([0, 1])
    assert dataset.load("hand/bad", validate=False).ego.tolist() == [-1]


def test_a_tensor_with_too_few_dimensions_is_named(tmp_path: Path):
    road = straight_road()
    dataset = SceneDataset(unchecked(tmp_path / "set", replace(road, route=road.route[..., 0])))
    with pytest.raises(DataError, match=r"scene hand/straight has route of shape \(101,\), wanted \(R, 3\)"):
        dataset.sizes()
    with pytest.raises(DataError, match=r"hand/straight: route: found shape \(1, 101\), wanted \(B, R, 3\)"):
        dataset.load(0)


def test_a_truncated_shard_is_named(written: Path):
    shard = written / "shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"shard-00000\.safetensors: cannot be read"):
        SceneDataset(written).load(0)
    shard.unlink()
    with pytest.raises(DataError, match=r"shard-00000\.safetensors: cannot be read"):
        SceneDataset(written).load(0)


def test_a_shard_of_another_program_is_refused(written: Path):
    save_file({"0/position": torch.zeros(2)}, written / "shard-00000.safetensors")
    with pytest.raises(DataError, match="was not written by worldloop"):
        SceneDataset(written).load(0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no worldloop data set"),
        ("{", "is no JSON"),
        ("[]", "was not written by worldloop"),
        ('{"format": "worldloop scenes", "version": 99}', "has version 99, this release reads version 2"),
        ('{"format": "worldloop scenes", "version": 2, "scenes": []}', "lists no scenes"),
        ('{"format": "worldloop scenes", "version": 2, "scenes": 5}', "lists no scenes"),
        ('{"format": "worldloop scenes", "version": 2, "scenes": [{"id": "a", "recipe": ""}]}', "scene 0 lacks a proper file"),
        (
            '{"format": "worldloop scenes", "version": 2, "scenes": '
            '[{"id": "a", "recipe": "", "file": "../other.safetensors", "number": 0, "crc32": 1}]}',
            "scene 0 lacks a proper file",
        ),
    ],
)
def test_a_foreign_folder_is_one_clear_error(tmp_path: Path, content: str | None, message: str):
    if content is not None:
        (tmp_path / "index.json").write_text(content)
    with pytest.raises(DataError, match=message):
        SceneDataset(tmp_path)


def test_a_missing_folder_is_one_clear_error(tmp_path: Path):
    with pytest.raises(DataError, match="does not exist"):
        SceneDataset(tmp_path / "nowhere")


def test_an_index_with_a_double_id_is_refused(written: Path):
    index = json.loads((written / "index.json").read_text())
    index["scenes"].append(index["scenes"][0])
    (written / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match="hand/0 stands twice"):
        SceneDataset(written)


def test_double_ids_leave_nothing_behind(tmp_path: Path):
    with pytest.raises(DataError, match="hand/0 is there already"), ShardWriter(tmp_path / "set") as writer:
        writer.add(several_roads(2).take([0, 1, 0]))
    assert list(tmp_path.iterdir()) == []


def test_no_scenes_leave_nothing_behind(tmp_path: Path):
    with pytest.raises(DataError, match="no scenes to write"), ShardWriter(tmp_path / "set"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_existing_data_set_is_kept_unless_overwritten(written: Path):
    with pytest.raises(DataError, match="exists already"), ShardWriter(written):
        pass
    assert len(SceneDataset(written)) == 4
    with ShardWriter(written, overwrite=True) as writer:
        writer.add(several_roads(2))
    assert len(SceneDataset(written)) == 2


def test_an_error_while_overwriting_keeps_the_old_one(written: Path):
    with pytest.raises(DataError, match="is there already"), ShardWriter(written, overwrite=True) as writer:
        writer.add(several_roads(2).take([0, 1, 0]))
    assert len(SceneDataset(written)) == 4


def test_a_foreign_folder_is_never_overwritten(tmp_path: Path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match=r"holds thesis\.tex"), ShardWriter(tmp_path / "set", overwrite=True):
        pass
    assert (tmp_path / "set" / "thesis.tex").read_text() == "years of work"


WRITE_FOREVER = """
import sys
sys.path.insert(0, sys.argv[2])
from scenes import straight_road
from worldloop.worldmodel.data.writing import ShardWriter
with ShardWriter(sys.argv[1]) as writer:
    for number in range(10**6):
        writer.add(straight_road(str(number), steps=12))
        if number == 200:
            print("writing", flush=True)
"""


def test_a_killed_import_starts_anew(tmp_path: Path):
    command = [sys.executable, "-c", WRITE_FOREVER, str(tmp_path / "set"), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        os.kill(process.pid, signal.SIGKILL)
    assert [path.name for path in tmp_path.iterdir()] == ["set.partial"]
    assert any((tmp_path / "set.partial").iterdir())
    with pytest.raises(DataError, match="no worldloop data set"):
        SceneDataset(tmp_path / "set.partial")
    with ShardWriter(tmp_path / "set") as writer:
        writer.add(several_roads(2))
    assert "interrupted" in writer.notices[0]
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert len(SceneDataset(tmp_path / "set")) == 2


def test_two_imports_to_one_place_do_not_mix(tmp_path: Path):
    command = [sys.executable, "-c", WRITE_FOREVER, str(tmp_path / "set"), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        told = f"set.partial: process {process.pid} is writing it: wait for it or name another place"
        with pytest.raises(FileExistsError, match=told), ShardWriter(tmp_path / "set"):
            pass
        assert (tmp_path / "set.partial" / "shard-00000.safetensors").exists()
        process.kill()
    with ShardWriter(tmp_path / "set") as writer:
        writer.add(several_roads(2))
        with pytest.raises(FileExistsError, match="is writing it"), ShardWriter(tmp_path / "set", overwrite=True):
            pass
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["index.json", "shard-00000.safetensors"]
    assert len(SceneDataset(tmp_path / "set")) == 2


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path):
    """A limit on the size of files stands for the disk: writing fails in the same place with the same kind of error."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match="cannot be written"), ShardWriter(tmp_path / "set") as writer:
            writer.add(several_roads(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


def test_shards_are_as_readable_as_the_index(written: Path):
    assert (written / "shard-00000.safetensors").stat().st_mode == (written / "index.json").stat().st_mode
