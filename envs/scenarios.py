"""Scenarios: where an environment's scenes come from, and which one an episode starts with."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np

from ..worldmodel.data.shards import SceneDataset
from ..worldmodel.scene import Scene

SHIPPED_SCENES = Path(str(files("worldloop.assets"))) / "scenes"
"""The data set that the package brings along."""

Source = Scene | SceneDataset | str | Path | None
"""What an environment takes as scenes: a batch, a data set or its folder; None or "demo" for the scenes that worldloop ships."""


class Scenarios:
    """The scenes of an environment, all padded to the same sizes, so that one may take another one's place in a batch.

    Attributes:
        ids: the scenes' names, in order.
        sizes: the largest size of every dimension.
    """

    def __init__(self, source: Source):
        """Open a source of scenes.

        Raises:
            ValueError: there is no such source, it holds no scenes, or a scene breaks the contract (`Scene.validate()`).
        """
        if source is None or source == "demo":
            source = SHIPPED_SCENES
        if isinstance(source, str | Path):
            source = SceneDataset.named(str(source))
        if not isinstance(source, Scene | SceneDataset):
            raise ValueError(
                f"scenes: found {type(source).__name__}, wanted a Scene, a SceneDataset, FOLDER, FOLDER:GLOB, or 'demo'"
            )
        if not len(source):
            raise ValueError("scenes: found none, wanted at least one")
        self._source = source.validate() if isinstance(source, Scene) else source  # a data set's when they are loaded
        self.ids = source.id if isinstance(source, Scene) else source.ids
        self.sizes = {letter: size for letter, size in source.sizes().items() if letter != "B"}

    def __len__(self) -> int:
        """How many scenes there are."""
        return len(self.ids)

    def pick(self, generator: np.random.Generator) -> int:
        """Return the number of a scene, each equally likely."""
        return int(generator.integers(len(self)))

    def number(self, scene: str | int) -> int:
        """Return the number of a scene given by its id or number.

        Raises:
            ValueError: there is none; the message names the nearest ids or the highest number.
        """
        if isinstance(scene, str):
            if scene not in self.ids:
                nearest = ", ".join(difflib.get_close_matches(scene, self.ids, n=3, cutoff=0.0))
                raise ValueError(f"scene {scene!r} is unknown among {len(self)}; nearest: {nearest}")
            return self.ids.index(scene)
        if isinstance(scene, bool) or not isinstance(scene, int | np.integer) or not 0 <= scene < len(self):
            raise ValueError(f"scene {scene!r}: wanted a number from 0 to {len(self) - 1}, or an id such as {self.ids[0]!r}")
        return int(scene)

    def load(self, numbers: Sequence[int]) -> Scene:
        """Return scenes by their numbers as one batch, padded to `sizes`; a DataError if one breaks the contract."""
        scenes = self._source.take(numbers) if isinstance(self._source, Scene) else self._source.load(numbers)
        return scenes.pad(self.sizes)
