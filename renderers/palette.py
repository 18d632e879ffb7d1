"""The colours of every picture: told apart by people with any kind of colour vision.

Agents, route and signals wear hues of Okabe and Ito ("Color Universal Design", 2008,
https://jfly.uni-koeln.de/color/), which stay distinct under protanopia, deuteranopia and tritanopia. The ground is dark, so
that all of them stand out, and roads are greys that differ in lightness alone. Where a colour carries a meaning, shape or place
says the same once more: the ego has a white outline, pedestrians are discs, objects are crossed squares, signals have one shape
for each state.

Colours are (red, green, blue) in 0..255; a fourth number is opacity.
"""

from __future__ import annotations

from ..worldmodel.scene import AgentKind, PolylineKind, SignalState

Colour = tuple[int, int, int]

ORANGE: Colour = (230, 159, 0)
SKY_BLUE: Colour = (86, 180, 233)
BLUISH_GREEN: Colour = (0, 158, 115)
YELLOW: Colour = (240, 228, 66)
REDDISH_PURPLE: Colour = (204, 121, 167)
WHITE: Colour = (255, 255, 255)

GROUND: Colour = (31, 35, 40)
"""What lies beside the road."""

SURFACE: dict[PolylineKind, Colour] = {
    PolylineKind.LANE: (66, 71, 78),
    PolylineKind.JUNCTION_LANE: (66, 71, 78),
    PolylineKind.BIKE_LANE: (53, 74, 84),
    PolylineKind.WALKWAY: (54, 55, 55),
}
"""Filled surfaces, by the kind of the polyline in their middle."""

KERB: Colour = (112, 118, 126)
"""The rim of a road surface and recorded road edges."""

CROSSWALK: Colour = (176, 180, 184)
MARKING: Colour = (190, 194, 198)
LANE_ARROW: Colour = (96, 102, 110)

AGENT: dict[AgentKind, Colour] = {
    AgentKind.VEHICLE: SKY_BLUE,
    AgentKind.PEDESTRIAN: YELLOW,
    AgentKind.CYCLIST: REDDISH_PURPLE,
    AgentKind.OBJECT: (200, 200, 200),
}
EGO: Colour = ORANGE
EGO_OUTLINE: Colour = WHITE
AGENT_OUTLINE: Colour = (18, 20, 23)
GLASS: Colour = (24, 30, 38)
"""Windscreens and rear windows, which show where a vehicle's front is."""

BRAKE_LIGHT: Colour = (255, 64, 48)

SIGNAL: dict[SignalState, Colour] = {
    SignalState.UNKNOWN: (140, 140, 140),
    SignalState.STOP: (230, 72, 40),
    SignalState.CAUTION: YELLOW,
    SignalState.GO: (0, 200, 146),
}
"""Stop is vermilion made redder, away from the ego's orange; go is bluish green made lighter, to be seen on grey."""

ROUTE: tuple[int, int, int, int] = (*BLUISH_GREEN, 96)
GOAL: Colour = (0, 200, 146)
SEEN: Colour = WHITE
"""Outline of what the policy's observation contains."""

SEEN_ROAD: Colour = (168, 172, 176)
"""Its points of the road."""

ALERT: Colour = (196, 43, 28)
TEXT: Colour = (236, 238, 240)
TEXT_DIM: Colour = (160, 166, 172)
PANEL: tuple[int, int, int, int] = (14, 16, 19, 190)
"""Behind text."""
