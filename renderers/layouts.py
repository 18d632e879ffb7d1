"""Perspective layouts as pictures for people: the colours of the bird's-eye pictures, with the faces of boxes told apart."""

from __future__ import annotations

import torch
from torch import Tensor

from ..worldmodel.perspective import KIND_CHANNELS, LAYOUT_CHANNELS, perspective_layout
from ..worldmodel.raster import RoadPieces, road_pieces
from ..worldmodel.rig import Rig
from ..worldmodel.scene import AgentKind, PolylineKind, Scene, SignalState
from ..worldmodel.sight import Sight
from ..worldmodel.world import State
from . import palette

SKY: palette.Colour = (14, 16, 19)
GROUND_COLOURS = {
    "walkway": palette.SURFACE[PolylineKind.WALKWAY],
    "road": palette.SURFACE[PolylineKind.LANE],
    "crosswalk": palette.LANE_ARROW,
    "edges": palette.KERB,
    "lines": palette.MARKING,
}
"""In painter's order."""

SIGNAL_COLOURS = {
    "signal_off": palette.SIGNAL[SignalState.UNKNOWN],
    "signal_stop": palette.SIGNAL[SignalState.STOP],
    "signal_caution": palette.SIGNAL[SignalState.CAUTION],
    "signal_go": palette.SIGNAL[SignalState.GO],
}

FACE_SHADES = {"front": (palette.WHITE, 0.5), "rear": (palette.BRAKE_LIGHT, 0.5), "side": (SKY, 0.35)}
"""What is mixed into a road user's colour on each face of its box, and how much of it; its top is plain."""


def layout_picture(layout: Tensor) -> Tensor:
    """Return pictures (..., H, W, 3) uint8 of layouts (..., H, W, len(LAYOUT_CHANNELS)) uint8 (`perspective_layout`).

    Fronts of road users are lighter, rears redder, sides darker. Raises ValueError if the last dimension is of another size.
    """
    if layout.shape[-1] != len(LAYOUT_CHANNELS):
        raise ValueError(f"layout: found {layout.shape[-1]} channels, wanted {len(LAYOUT_CHANNELS)}, those of LAYOUT_CHANNELS")
    channel: dict[str, Tensor] = dict(zip(LAYOUT_CHANNELS, (layout.float() / 255).unbind(-1), strict=True))
    picture = torch.where(channel["nearness"][..., None] > 0, _colour(palette.GROUND), _colour(SKY))
    layers = [(name, _colour(colour), 1.0) for name, colour in (GROUND_COLOURS | SIGNAL_COLOURS).items()]
    layers += [(name, _colour(palette.AGENT[kind]), 1.0) for name, kind in zip(KIND_CHANNELS, AgentKind, strict=True)]
    layers += [(name, _colour(colour), share) for name, (colour, share) in FACE_SHADES.items()]
    for name, colour, share in layers:
        picture = torch.lerp(picture, colour.expand_as(picture), share * channel[name][..., None])
    return picture.round().to(torch.uint8)


class LayoutCamera:
    """Shows layouts as a camera of the loop would (a `SceneCamera`): quick, plain, and without Open3D or a learned camera."""

    def __init__(self, rig: Rig | None = None) -> None:
        self.rig = rig or Rig()
        self._known: tuple[Scene, RoadPieces] | None = None

    def begin(self, state: State) -> Sight:
        """Return what is seen of a moment."""
        if self._known is None or self._known[0] is not state.scene:  # a step keeps the scenes that it is given
            self._known = state.scene, road_pieces(state.scene)
        return Sight(layout_picture(perspective_layout(state, self._known[1], self.rig)), {})

    def follow(self, sight: Sight, state: State, action: Tensor) -> Sight:
        """Return what is seen of `state`; what was seen and done before makes no difference to it."""
        return self.begin(state)


def _colour(colour: palette.Colour) -> Tensor:
    return torch.tensor(colour, dtype=torch.float32)
