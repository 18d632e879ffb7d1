"""What `render()` of the environments returns or shows; only loaded where someone looks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .observation import ObservationSize, visible

if TYPE_CHECKING:
    from .vector import Episode, Observation


class Pictures:
    """Draws the episodes of one environment.

    Args:
        mode: "rgb_array" and "human" look from above, "camera" through the ego's cameras.
        size: what the observations hold.
        fps: pictures a second in a window.
    """

    def __init__(self, mode: str, size: ObservationSize, fps: float) -> None:
        self.mode, self.size, self.fps = mode, size, fps
        self._renderer: Any = None

    def render(self, episode: Episode, seen: Observation, most: int | None = None) -> tuple[np.ndarray, ...] | None:
        """Return pictures (height, width, 3) uint8 of all or the first `most` episodes, or show the first one (`human`).

        Args:
            episode: the moment of B episodes.
            seen: what is observed of it; what a `"state"` observation holds is marked with white frames and dots.
            most: how many.
        """
        from ..renderers.bev import BirdEyeRenderer, Observed
        from ..renderers.frames import side_by_side

        shown = range(1 if self.mode == "human" else min(most or len(episode.state), len(episode.state)))
        if self.mode == "camera":
            assert episode.sight is not None
            return tuple(side_by_side(episode.sight.frame[row].numpy(force=True)) for row in shown)
        self._renderer = self._renderer or BirdEyeRenderer()
        frames = []
        for row in shown:
            marked = visible({name: array[row] for name, array in seen.items()}, self.size) if isinstance(seen, dict) else {}
            frame = self._renderer.draw(
                episode.state,
                row,
                trails=episode.trail[row],
                trails_valid=episode.trail_valid[row],
                observation=Observed(**marked),
                caption=f"reward\t{float(episode.reward[row]):.2f}",
            )
            frames.append(frame)
        if self.mode == "rgb_array":
            return tuple(frames)
        self._renderer.show(frames[0], self.fps)
        return None

    def close(self) -> None:
        """Close the window, if there is one."""
        if self._renderer is not None:
            self._renderer.close()
