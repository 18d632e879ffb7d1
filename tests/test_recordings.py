"""Copies of recorded moments, and what weights were trained on."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scenes import moved, several_roads, straight_road
from worldloop.worldmodel.data.recordings import moments, recordings
from worldloop.worldmodel.data.shards import SceneDataset
from worldloop.worldmodel.data.writing import ShardWriter
from worldloop.worldmodel.held_out import copies, known, named_before
from worldloop.worldmodel.lineage import patterns, read_stages, without_folders, write_stages


def cut(scene, first, last):
    tracks = {name: getattr(scene, name)[:, :, first:last] for name in ("position", "heading", "velocity", "valid")}
    return replace(scene, **tracks)


def test_copies_and_cuts_are_of_one_recording_and_the_same_road_elsewhere_is_not() -> None:
    one, other = straight_road(), moved(straight_road(), 0.3, (500.0, 0.0))
    scenes = [other, one, replace(one, id=("copy",)), cut(one, 20, 60), moved(other, 0.0, (0.5, 0.0)), cut(other, 0, 50)]
    assert recordings([moments(scene) for scene in scenes]) == [0, 1, 1, 1, 4, 0]
    assert recordings([]) == []


def test_parked_cars_are_no_sign_of_the_same_recording() -> None:
    standing = straight_road()
    standing = replace(standing, velocity=torch.zeros_like(standing.velocity))
    assert recordings([moments(standing)] * 2) == [0, 1]


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
    roads = several_roads(3)
    extra = replace(moved(roads.take([0]), 0.0, (0.0, 0.0)), id=("hand/copy",))
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


def test_a_broken_record_of_trainings_is_named(tmp_path) -> None:
    assert read_stages(tmp_path) == []
    for text in ("{", json.dumps({"stages": [{"arguments": {}}]}), "[]"):
        (tmp_path / "training.json").write_text(text)
        with pytest.raises(ValueError, match=r"training\.json: cannot be read"):
            read_stages(tmp_path)


def test_folders_of_one_machine_are_left_out() -> None:
    assert without_folders(["/home/me/set:a/*=2", "set", 3, None]) == ["set:a/*=2", "set", 3, None]
