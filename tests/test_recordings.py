"""Copies of recorded moments, and what weights were trained on."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scenes import damaged, moved, several_roads, straight_road, uneven
from worldloop.worldmodel.data.recordings import LATER, moments, recordings
from worldloop.worldmodel.data.shards import SceneDataset
from worldloop.worldmodel.data.writing import ShardWriter
from worldloop.worldmodel.held_out import copies, known, named_before, require_held_out
from worldloop.worldmodel.lineage import patterns, read_stages, without_folders, write_stages
from worldloop.worldmodel.scene import stack


def cut(scene, first, last):
    tracks = {name: getattr(scene, name)[:, :, first:last] for name in ("position", "heading", "velocity", "valid")}
    return replace(scene, **tracks)


def test_copies_cuts_and_other_origins_are_of_one_recording_and_other_traffic_on_the_same_road_is_not() -> None:
    one, other = uneven(straight_road()), uneven(straight_road(), 0.5)
    copies = [one, replace(one, id=("copy",)), cut(one, 20, 60), moved(one, 0.9, (0.5, -3000.0)), cut(other, 0, 50)]
    assert recordings([moments(scene) for scene in [other, *copies]]) == [0, 1, 1, 1, 1, 0]
    assert recordings([]) == []


def test_who_stands_or_drives_evenly_is_no_sign_of_the_same_recording() -> None:
    assert straight_road().velocity.norm(dim=-1).max() > 5.0
    for factor in (0.0, 1.0):
        scene = replace(straight_road(), velocity=factor * straight_road().velocity)
        assert recordings([moments(scene)] * 2) == [0, 1]


def test_a_scene_too_short_for_a_moment_is_of_no_recording_but_its_own() -> None:
    assert [len(moments(cut(uneven(straight_road()), 0, steps))) for steps in (1, 2 * LATER)] == [0, 0]
    assert len(moments(cut(uneven(straight_road()), 0, 2 * LATER + 1))) > 0


@given(st.lists(st.sets(st.integers(0, 30), max_size=8), max_size=8))
def test_recordings_are_what_shared_places_join(sets: list[set[int]]) -> None:
    found = recordings([torch.tensor(sorted(places), dtype=torch.int64) for places in sets])
    group = list(range(len(sets)))
    for _ in sets:  # the transitive closure, slowly
        for one, first in enumerate(sets):
            for other, second in enumerate(sets):
                if first & second:  # of at most eight places one is more than a tenth
                    group[one] = group[other] = min(group[one], group[other])
    assert found == group


def test_what_was_trained_on_is_known_by_name_and_as_a_copy(tmp_path) -> None:
    roads = stack([uneven(several_roads(3).take([row]), row) for row in range(3)])
    extra = replace(moved(roads.take([0]), 0.3, (70.0, 0.0)), id=("hand/copy",))
    with ShardWriter(tmp_path / "roads") as writer:
        for scene in (roads, extra):
            writer.add(scene, source="hand")
    write_stages(
        tmp_path, [], {"data": ["/home/me/roads:*/0=2", "made"], "validation": ["roads:hand/2"], "out": "x"}, seconds=3.0
    )
    stages, dataset = read_stages(tmp_path), SceneDataset(tmp_path / "roads")
    assert stages == [{"arguments": {"data": ["roads:*/0=2", "made"], "validation": ["roads:hand/2"]}, "seconds": 3.0}]
    assert patterns(stages) == {"roads": ["*/0"], "made": [""]}
    assert named_before([dataset], stages) == {"hand/0"}
    assert named_before([dataset], stages, "validation") == {"hand/2"}
    assert known([dataset], stages) == {"hand/0", "hand/copy"}
    assert known([dataset.subset("hand/1")], stages) == set()
    assert copies([dataset.subset("hand/0")], [dataset.subset("hand/c"), dataset.subset("hand/1")]) == [("hand/copy", "hand/0")]
    assert known([dataset], []) == set()
    for data, held_out, told in (
        ("hand/1", "hand/c", "1 scenes, or copies .* of --validation are what the weights of --start-from were trained on"),
        ("hand/2", "hand/1", "1 scenes, or copies .* of --data were held out when the weights of --start-from"),
    ):
        with pytest.raises(ValueError, match=told):
            require_held_out([dataset.subset(data)], [dataset.subset(held_out)], stages)
    require_held_out([dataset.subset("hand/0")], [dataset.subset("hand/1")], stages)


def test_damaged_scenes_are_known_by_name_alone(tmp_path) -> None:
    damaged(tmp_path / "roads", several_roads(2))
    dataset = SceneDataset(tmp_path / "roads")
    stages = [{"arguments": {"data": ["roads:hand/0"], "validation": []}}]
    assert known([dataset], stages) == {"hand/0"}


def test_a_broken_record_of_trainings_is_named(tmp_path) -> None:
    assert read_stages(tmp_path) == []
    for text in ("{", json.dumps({"stages": [{"arguments": {}}]}), "[]"):
        (tmp_path / "training.json").write_text(text)
        with pytest.raises(ValueError, match=r"training\.json: cannot be read"):
            read_stages(tmp_path)


def test_folders_of_one_machine_are_left_out() -> None:
    assert without_folders(["/home/me/set:a/*=2", "set", 3, None]) == ["set:a/*=2", "set", 3, None]
