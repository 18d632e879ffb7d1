"""Bird's-eye pictures of a `State` with pygame: roads, signals, route, agents, trails, and what the policy sees.

Everything is drawn larger than wanted and scaled down, which is the anti-aliasing. Coordinates of all agents are computed at once
(`silhouettes.py`); the map's polygons (`roads.py`) are kept for every row of the batch as long as its map stays the same.
Drawing needs no window and no display; only `show` opens one.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..worldmodel.geometry import box_corners, to_global
from ..worldmodel.scene import TIME_STEP, AgentKind, Scene, SignalState
from ..worldmodel.world import State
from . import palette
from .captions import Captions
from .palette import Colour
from .roads import Shapes, clean_line, map_shapes, ribbon, stop_lines
from .silhouettes import Camera, Silhouettes

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
import pygame  # noqa: E402 (the line above keeps it from printing its banner)
import pygame.gfxdraw  # noqa: E402

ROUTE_WIDTH = 1.4
TRAIL_PIECES = 10
TRAIL_WIDTH = 1.1
FRAME = 0.9
SEEN_POINT_RADIUS = 0.3
STOP_BAR = 0.45
SIGNAL_RADIUS = 0.85
"""Widths in metres of what has no width in the scene; FRAME is how much larger than an agent its frame is."""

SIGNAL_BAR = {
    SignalState.UNKNOWN: ((-0.3, 0.3),),
    SignalState.STOP: ((-0.46, 0.46),),
    SignalState.CAUTION: ((-0.46, -0.28), (0.28, 0.46)),
    SignalState.GO: ((-0.46, -0.36), (0.36, 0.46)),
}
"""Pieces of the bar at the stop point, in shares of the lane's width."""

SIGNAL_CORNERS = {SignalState.UNKNOWN: 3, SignalState.STOP: 4, SignalState.CAUTION: 4, SignalState.GO: 20}
SIGNAL_TURN = {SignalState.STOP: 0.25 * math.pi}


@dataclass(frozen=True)
class Observed:
    """What the policy's observation contains, in the ego's frame (x forward, y left), to be marked in white.

    Agents get frames; polylines get dots at their points, which look like no marking of a road.

    Drawn from the observation's own numbers, not looked up in the state, so that a picture shows what is wrong with them.

    Attributes:
        agents: (n, 6) x, y, cosine and sine of the heading, length, width; or None.
        polylines: (m, P, 2) points; or None.
        radius: sensing range around the ego in metres, or None.
    """

    agents: Tensor | None = None
    polylines: Tensor | None = None
    radius: float | None = None


class BirdEyeRenderer:
    """Draws states from above, the ego in the middle. One renderer serves all rows of a batch.

    Args:
        width: pixels.
        height: pixels.
        metres_across: how much of the world the picture's width shows.
        up: "north" keeps +y up, which is calm to look at; "heading" keeps the ego's front up.
        supersample: how many times larger everything is drawn before it is scaled down.
        legend: whether the colours that occur are explained in the lower left corner.
        panel: whether the scene's name, time, speed and the caption stand in the upper left corner.

    Raises:
        ValueError: a size is not positive, or `up` is unknown.
    """

    def __init__(
        self,
        width: int = 800,
        height: int = 800,
        metres_across: float = 100.0,
        *,
        up: Literal["north", "heading"] = "north",
        supersample: int = 2,
        legend: bool = True,
        panel: bool = True,
    ) -> None:
        if min(width, height, supersample) < 1 or not metres_across > 0:
            raise ValueError(
                f"width {width}, height {height}, metres_across {metres_across}, supersample {supersample}: all must be positive"
            )
        if up not in ("north", "heading"):
            raise ValueError(f"up: found {up!r}, wanted 'north' or 'heading'")
        self.width, self.height, self.metres_across = width, height, metres_across
        self.up, self.supersample, self.legend, self.panel = up, supersample, legend, panel
        self._captions = Captions(supersample)
        self._canvas = pygame.Surface((width * supersample, height * supersample), depth=32)
        self._picture = pygame.Surface((width, height), depth=32)
        self._maps: dict[int, tuple[tuple[Tensor, ...], Shapes]] = {}
        self._window: pygame.Surface | None = None
        self._clock = pygame.time.Clock()

    def draw(
        self,
        state: State,
        row: int = 0,
        *,
        trails: Tensor | None = None,
        trails_valid: Tensor | None = None,
        observation: Observed | None = None,
        caption: str | Sequence[str] = (),
        alert: str = "",
    ) -> np.ndarray:
        """Return a picture (height, width, 3) uint8 of one scene of a batch.

        Args:
            state: the moment to draw.
            row: which scene of the batch.
            trails: (A, n, 2) where the agents were in the last n steps of 0.1 s, oldest first, the present last.
            trails_valid: (A, n) bool, where `trails` holds a position; everywhere if None.
            observation: what the policy sees, marked with frames and dots.
            caption: lines below the scene's name, time and speed; what follows a tab stands at the right of its line.
            alert: what has gone wrong, in red in the upper right corner.

        Raises:
            IndexError: `row` is not in the batch.
            ValueError: trails of a wrong shape.
        """
        if not 0 <= row < len(state):
            raise IndexError(f"row {row} of a state of {len(state)} scenes: wanted 0..{len(state) - 1}")
        agents_count = state.valid.shape[1]
        if trails is not None and (trails.ndim != 3 or trails.shape[::2] != (agents_count, 2)):
            raise ValueError(f"trails: found shape {tuple(trails.shape)}, wanted ({agents_count}, n, 2)")
        camera = self._camera(state, row)
        agents = Silhouettes(state, row, camera)
        self._canvas.fill(palette.GROUND)
        self._draw_map(state.scene, row, camera)
        self._draw_route(state.scene, row, camera)
        if observation is not None:
            self._draw_observed(observation, state, row, camera)
        self._draw_signals(state, row, camera)
        if trails is not None and trails.shape[1] > 1:
            past = trails.double().numpy()
            known = np.ones(past.shape[:2], dtype=bool) if trails_valid is None else trails_valid.numpy()
            agents.see_braking(past, known)
            self._draw_trails(agents, past, known, camera)
        self._draw_agents(agents, camera)
        self._draw_text(state, row, [caption] if isinstance(caption, str) else list(caption))
        if alert:
            self._captions.alert(self._canvas, alert)
        pygame.transform.smoothscale(self._canvas, (self.width, self.height), self._picture)
        pixels = pygame.image.tobytes(self._picture, "RGB")
        return np.frombuffer(pixels, dtype=np.uint8).reshape(self.height, self.width, 3).copy()

    def show(self, frame: np.ndarray, fps: float = 10.0) -> None:
        """Show a picture in a window, at most `fps` of them a second.

        Without a display SDL's dummy driver takes the window, and a line on stderr says so once.
        """
        if self._window is None:
            if sys.platform.startswith("linux") and not os.environ.keys() & {"SDL_VIDEODRIVER", "DISPLAY", "WAYLAND_DISPLAY"}:
                os.environ["SDL_VIDEODRIVER"] = "dummy"
                print(
                    "worldloop: no display found, nothing will be seen: render_mode='rgb_array' gives pictures", file=sys.stderr
                )
            pygame.display.init()
            pygame.display.set_caption("worldloop")
            self._window = pygame.display.set_mode((frame.shape[1], frame.shape[0]))
        pygame.event.pump()
        self._window.blit(pygame.image.frombuffer(frame.tobytes(), (frame.shape[1], frame.shape[0]), "RGB"), (0, 0))
        pygame.display.flip()
        self._clock.tick(fps)

    def close(self) -> None:
        """Close the window, if there is one; `draw` goes on working."""
        if self._window is not None:
            pygame.display.quit()
            self._window = None

    def _camera(self, state: State, row: int) -> Camera:
        ego, scale = state.ego(), self.supersample * self.width / self.metres_across
        centre, up = ego.position[row, :2].double().numpy(), 0.5 * math.pi
        if self.up == "heading":
            up = float(ego.heading[row])
        else:
            centre = np.rint(centre * scale) / scale  # whole pixels: the map moves without shimmering
        return Camera(centre, up, scale, self._canvas.get_size())

    def _draw_map(self, scene: Scene, row: int, camera: Camera) -> None:
        shapes, reach = self._map_shapes(scene, row), camera.reach()
        seen = np.all((shapes.low < camera.centre + reach) & (shapes.high > camera.centre - reach), axis=1)
        pixels = np.rint(camera.pixels(shapes.points)).astype(np.int64)
        for index in np.flatnonzero(seen).tolist():
            polygon = pixels[shapes.first[index] : shapes.first[index + 1]]
            pygame.draw.polygon(self._canvas, shapes.colours[index], polygon.tolist())

    def _map_shapes(self, scene: Scene, row: int) -> Shapes:
        names = ("polyline", "polyline_valid", "polyline_kind", "lane_width", "lane_link", "lane_link_kind", "lane_link_valid")
        source = tuple(getattr(scene, name)[row] for name in names)
        kept = self._maps.get(row)
        if kept is None or any(not torch.equal(a, b) for a, b in zip(kept[0], source, strict=True)):
            kept = self._maps[row] = tuple(tensor.clone() for tensor in source), map_shapes(scene, row)
        return kept[1]

    def _draw_route(self, scene: Scene, row: int, camera: Camera) -> None:
        line = clean_line(scene.route[row][scene.route_valid[row]][:, :2].double().numpy())
        near = np.flatnonzero(np.all(np.abs(line - camera.centre) < 1.5 * camera.reach(), axis=1))
        if len(near):
            shown = line[max(near[0] - 1, 0) : near[-1] + 2]
            if len(shown) > 1:
                self._blend(palette.ROUTE, camera.pixels(ribbon(shown, ROUTE_WIDTH)))
            for radius, colour in ((1.5, palette.GOAL), (1.0, palette.AGENT_OUTLINE), (0.5, palette.GOAL)):
                self._disc(colour, camera.pixels(line[-1]), radius * camera.scale)

    def _draw_signals(self, state: State, row: int, camera: Camera) -> None:
        """A bar across the lane: whole and a square for stop, broken and a diamond for caution, open and a disc for go."""
        shown = state.signal_valid[row].nonzero()[:, 0]
        stops = stop_lines(state.scene, row, shown)
        middle = camera.pixels(stops.middle)
        for index, shows in enumerate(map(SignalState, state.signal_state[row, shown].tolist())):
            colour = palette.SIGNAL[shows]
            for first, last in SIGNAL_BAR[shows]:
                piece = stops.middle[index] + np.array([[first], [last]]) * stops.across[index]
                self._fill(colour, camera.pixels(ribbon(piece, STOP_BAR)), palette.AGENT_OUTLINE)
            angles = np.arange(SIGNAL_CORNERS[shows]) / SIGNAL_CORNERS[shows] * 2 * math.pi
            angles += SIGNAL_TURN.get(shows, 0.0) + camera.up - stops.heading[index] - 0.5 * math.pi
            radius = camera.scale * min(SIGNAL_RADIUS, 0.4 * float(np.hypot(*stops.across[index])))
            sign = middle[index] + radius * np.stack((np.cos(angles), np.sin(angles)), axis=-1)
            self._fill(colour, sign, palette.AGENT_OUTLINE)

    def _draw_trails(self, agents: Silhouettes, past: np.ndarray, known: np.ndarray, camera: Camera) -> None:
        """Where agents came from: a band that gets thinner and fainter with age."""
        steps = past.shape[1]
        picked = np.unique(np.linspace(0, steps - 1, min(TRAIL_PIECES + 1, steps)).round().astype(np.int64))
        since_gap = np.logical_and.accumulate(known[:, ::-1], axis=1)[:, ::-1]  # what lies before a gap hangs in the air
        line, known = past[:, picked], since_gap[:, picked]
        step = np.diff(line, axis=1)
        length = np.hypot(step[..., 0], step[..., 1])
        whole = known[:, :-1] & agents.drawn[:, None] & (length > 0.05)
        normal = np.stack((-step[..., 1], step[..., 0]), axis=-1) / np.maximum(length, 1e-9)[..., None]
        age = np.linspace(0, 1, len(picked))
        side = 0.5 * np.minimum(0.8 * agents.width, TRAIL_WIDTH)[:, None, None] * normal
        start, end = side * age[:-1, None], side * age[1:, None]
        corners = np.stack((line[:, :-1] + start, line[:, 1:] + end, line[:, 1:] - end, line[:, :-1] - start), axis=2)
        pixels = camera.pixels(corners)
        for agent, piece in np.argwhere(whole).tolist():
            self._blend((*agents.colour(agent), int(20 + 110 * age[piece])), pixels[agent, piece])

    def _draw_agents(self, agents: Silhouettes, camera: Camera) -> None:
        """Standing things first, the ego last, so that it is never hidden."""
        others = agents.drawn & (np.arange(len(agents.kind)) != agents.ego)
        drawing = {
            AgentKind.OBJECT: self._draw_object,
            AgentKind.VEHICLE: self._draw_vehicle,
            AgentKind.CYCLIST: self._draw_cyclist,
            AgentKind.PEDESTRIAN: self._draw_pedestrian,
        }
        for kind, draw in drawing.items():
            for agent in np.flatnonzero(others & (agents.kind == kind)).tolist():
                draw(agents, agent, camera)
        self._fill(palette.EGO_OUTLINE, agents.outline["halo"][agents.ego])
        drawing[AgentKind(int(agents.kind[agents.ego]))](agents, agents.ego, camera)

    def _draw_vehicle(self, agents: Silhouettes, agent: int, camera: Camera) -> None:
        part = agents.outline
        self._fill(agents.colour(agent), part["body"][agent], None if agent == agents.ego else palette.AGENT_OUTLINE)
        self._fill(palette.GLASS, part["windscreen"][agent])
        self._fill(palette.GLASS, part["rear window"][agent])
        if agents.braking[agent]:
            self._fill(palette.BRAKE_LIGHT, part["left light"][agent])
            self._fill(palette.BRAKE_LIGHT, part["right light"][agent])

    def _draw_cyclist(self, agents: Silhouettes, agent: int, camera: Camera) -> None:
        self._fill(palette.AGENT_OUTLINE, agents.outline["cycle edge"][agent])
        self._fill(agents.colour(agent), agents.outline["cycle"][agent])
        self._disc(palette.AGENT_OUTLINE, agents.centre[agent], 0.52 * camera.scale)
        self._disc(agents.colour(agent), agents.centre[agent], 0.4 * camera.scale)

    def _draw_pedestrian(self, agents: Silhouettes, agent: int, camera: Camera) -> None:
        centre, nose, colour = agents.centre[agent], agents.nose[agent], agents.colour(agent)
        radius = agents.radius[agent] * camera.scale
        pygame.draw.line(self._canvas, colour, centre.round().tolist(), nose.round().tolist(), round(0.2 * camera.scale) or 1)
        self._disc(palette.AGENT_OUTLINE, centre, radius + 0.12 * camera.scale)
        self._disc(colour, centre, radius)

    def _draw_object(self, agents: Silhouettes, agent: int, camera: Camera) -> None:
        corners = agents.outline["box"][agent].round()
        self._fill(agents.colour(agent), corners)
        for first in (0, 1):
            pygame.draw.line(self._canvas, palette.AGENT_OUTLINE, corners[first].tolist(), corners[first + 2].tolist(), 1)

    def _draw_observed(self, observed: Observed, state: State, row: int, camera: Camera) -> None:
        ego = state.ego()
        origin, heading = ego.position[row, :2].double(), ego.heading[row].double()
        if observed.polylines is not None:
            points = to_global(observed.polylines.double(), origin, heading).flatten(0, 1).numpy()
            for point in camera.pixels(points):
                self._disc(palette.SEEN_ROAD, point, SEEN_POINT_RADIUS * camera.scale)
        if observed.agents is not None:
            x, y, cosine, sine, length, width = observed.agents.double().unbind(dim=-1)
            size = torch.stack((length, width), dim=-1) + FRAME
            corners = to_global(box_corners(torch.stack((x, y), dim=-1), torch.atan2(sine, cosine), size), origin, heading)
            for frame in camera.pixels(corners.numpy()).round().tolist():
                pygame.draw.polygon(self._canvas, palette.SEEN, frame, self.supersample)
        if observed.radius is not None:
            angles = np.linspace(0, 2 * math.pi, 144, endpoint=False)
            ring = origin.numpy() + observed.radius * np.stack((np.cos(angles), np.sin(angles)), axis=-1)
            for start, end in camera.pixels(ring).reshape(72, 2, 2).round().tolist():
                pygame.draw.line(self._canvas, palette.TEXT_DIM, start, end, self.supersample)

    def _draw_text(self, state: State, row: int, caption: list[str]) -> None:
        time = float(state.step[row]) * TIME_STEP
        speed = float(state.ego().velocity[row].norm())
        lines = [state.scene.id[row], f"{time:.1f} s\t{speed:.1f} m/s ({3.6 * speed:.0f} km/h)", *caption]
        if self.panel:
            self._captions.panel(self._canvas, lines)
        legend = None
        if self.legend:
            others = state.scene.valid[row].any(dim=-1).index_fill(0, state.scene.ego[row], False)
            occurring = set(state.scene.kind[row, others].tolist())  # in the whole log: the legend stays the same in a video
            entries = [(palette.AGENT[kind], kind.name.lower()) for kind in AgentKind if kind in occurring]
            legend = self._captions.legend(self._canvas, [(palette.EGO, "ego"), *entries])
        self._captions.scale_bar(self._canvas, self._canvas.get_width() / self.metres_across, legend)

    def _fill(self, colour: Colour, polygon: np.ndarray, edge: Colour | None = None) -> None:
        corners = polygon.round().tolist()
        pygame.draw.polygon(self._canvas, colour, corners)
        if edge is not None:
            pygame.draw.polygon(self._canvas, edge, corners, self.supersample)

    def _disc(self, colour: Colour, centre: np.ndarray, radius: float) -> None:
        pygame.draw.circle(self._canvas, colour, centre.round().tolist(), radius)

    def _blend(self, colour: tuple[int, int, int, int], polygon: np.ndarray) -> None:
        """Fill a polygon with a colour that lets through what is below; coordinates are 16-bit numbers there."""
        pygame.gfxdraw.filled_polygon(self._canvas, polygon.round().clip(-30000, 30000).astype(np.int64).tolist(), colour)
