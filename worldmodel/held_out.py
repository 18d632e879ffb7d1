"""That nothing is validated on what it was trained on, be it under another name, changed, as a copy, or in a stage before."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from contextlib import suppress

from torch import Tensor

from .data.recordings import moments, recordings
from .data.shards import DataError, SceneDataset
from .lineage import Stage, patterns
from .scene import DERIVED


def names(datasets: Sequence[SceneDataset]) -> set[str]:
    """Return the ids of all scenes; of those that were made from others, the others' (see `DERIVED`)."""
    return {id.partition(DERIVED)[0] for dataset in datasets for id in dataset.ids}


def named_before(datasets: Sequence[SceneDataset], stages: Sequence[Stage], argument: str = "data") -> set[str]:
    """Return those of the scenes' `names` that trainings took for `data` or `validation`, by the names of folders and ids."""
    chosen = patterns(stages, argument)
    return {
        id.partition(DERIVED)[0]
        for dataset in datasets
        for pattern in chosen.get(dataset.path.name, ())
        for id in dataset.ids
        if id.startswith(pattern) or fnmatch.fnmatchcase(id, pattern)
    }


def _readable(dataset: SceneDataset) -> Iterator[tuple[str, Tensor]]:
    """Yield id and `moments` of every scene but the damaged ones: who needs those says so."""
    for number, id in enumerate(dataset.ids):
        with suppress(DataError):
            yield id, moments(dataset.load(number, validate=False))


def copies(trained: Sequence[SceneDataset], held_out: Sequence[SceneDataset]) -> list[tuple[str, str]]:
    """Return scenes held out that show the same moments as one trained on, and which; see `data/recordings.py`."""
    kept = names(held_out)
    datasets = {(dataset.path, dataset.ids): dataset for dataset in (*trained, *held_out)}
    scenes = [found for dataset in datasets.values() for found in _readable(dataset)]
    groups: dict[int, tuple[list[str], list[str]]] = {}
    for (id, _), number in zip(scenes, recordings([places for _, places in scenes]), strict=True):
        groups.setdefault(number, ([], []))[id.partition(DERIVED)[0] in kept].append(id)
    return [(id, known[0]) for known, found in groups.values() if known for id in found]


def known(datasets: Sequence[SceneDataset], stages: Sequence[Stage], argument: str = "data") -> set[str]:
    """Return those of the scenes' ids that trainings took for `data` or `validation`, or that copy one that they took.

    Copies are looked for in the same folder, as the names of what was taken are all that trainings leave behind.
    """
    found: set[str] = set()
    for dataset in datasets:
        whole = SceneDataset(dataset.path)
        trained = named_before([whole], stages, argument)
        if not trained:
            continue
        readable = dict(_readable(whole))
        first = dict(zip(readable, recordings(list(readable.values())), strict=True))
        theirs = {number for id, number in first.items() if id.partition(DERIVED)[0] in trained}
        found |= {id for id in dataset.ids if id.partition(DERIVED)[0] in trained or first.get(id) in theirs}
    return found


def require_held_out(trained: Sequence[SceneDataset], held_out: Sequence[SceneDataset], before: Sequence[Stage]) -> None:
    """Refuse scenes to validate on that weights are trained on, here or in the stages `before`.

    Raises:
        ValueError: there are some; the message says how many and names one.
    """
    for shared, told in (
        (names(trained) & names(held_out), "are in both --data and --validation"),
        (known(held_out, before), "of --validation are what the weights of --start-from were trained on"),
        (known(trained, before, "validation"), "of --data were held out when the weights of --start-from were trained"),
    ):
        if shared:
            raise ValueError(f"{len(shared)} scenes, or copies or what was made of them, {told}, such as {min(shared)}")
    if found := copies(trained, held_out):
        one, other = found[0]
        raise ValueError(
            f"{len(found)} scenes of --validation show the same recorded moments as some of --data, such as {one} and {other}: "
            "leave one of both out"
        )
