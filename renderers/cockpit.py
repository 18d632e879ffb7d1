"""The driver's window as one picture: bird's eye, camera, instruments, help.

+-----------------+----------+
|                 |  camera  |
|   bird's eye    +----------+
|                 | instru-  |
|                 |  ments   |
+-----------------+----------+
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from ..worldmodel.rig import Rig
from ..worldmodel.world import State
from . import palette
from .bev import BirdEyeRenderer
from .frames import rows_of
from .palette import Colour
from .window import COMMANDS

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
import pygame  # noqa: E402 (the line above keeps it from printing its banner)

NARROW, WIDE = 440, 520
"""Pixels of the column on the right without and with a camera."""

PADDING, LINE = 16, 20
CLOSEST, FARTHEST, ZOOM = 40.0, 240.0, 1.25
"""Metres across of the bird's-eye picture, and by what share a key changes it."""

SHOWN_STEPS = 100
"""Steps of 0.1 s that the curves show."""

CARD: Colour = (24, 27, 31)
TRACK: Colour = (46, 51, 58)
BACK: Colour = (15, 17, 20)
"""Behind groups of instruments, of what is empty in a bar, and of all."""

GOOD: Colour = palette.GOAL
WARNING: Colour = palette.YELLOW


@dataclass(frozen=True)
class Follower:
    """Who drives behind the ego: metres between the bumpers, m/s, m/s2."""

    gap: float
    speed: float
    acceleration: float


@dataclass(frozen=True)
class Instruments:
    """What the driver is told.

    Attributes:
        world: who moves the others; driver: who drives; scene: its id.
        place: number of the scene, and of how many.
        seed: of its future; step: since its beginning.
        speed: m/s; acceleration: m/s2 and curvature: 1/m of the last action; steering: -1 (right) to 1 (left) of what there is.
        reward: the sum so far; terms: of the last step by name; totals: their sums.
        uncertainty: metres of error to expect of the others, None where the world does not say.
        agents: road users that the world moves.
        follower: who drives behind, None where nobody does.
        curves: speeds in m/s by name, each (n,) with NaN where there is none, the last one now.
        rate: steps a second; wanted_rate: what they should be.
        status: "", or what the driving waits for ("paused", ...); alert: what has gone wrong; notice: what a command has done.
        recorded: steps that are written down so far.
    """

    world: str
    driver: str
    scene: str
    place: tuple[int, int]
    seed: int
    step: int
    speed: float
    acceleration: float = 0.0
    curvature: float = 0.0
    steering: float = 0.0
    reward: float = 0.0
    terms: Mapping[str, float] = field(default_factory=dict)
    totals: Mapping[str, float] = field(default_factory=dict)
    uncertainty: float | None = None
    agents: int = 0
    follower: Follower | None = None
    curves: Mapping[str, np.ndarray] = field(default_factory=dict)
    rate: float = 0.0
    wanted_rate: float = 10.0
    status: str = ""
    alert: str = ""
    notice: str = ""
    recorded: int = 0


class Cockpit:
    """Draws the window's content; `resize` when the window's size changes.

    Args:
        size: width and height in pixels.
        rig: the cameras that are shown, None without.
    """

    def __init__(self, size: tuple[int, int], rig: Rig | None = None) -> None:
        pygame.font.init()
        self.rig, self.metres, self.up = rig, 90.0, "heading"
        self._fonts = {points: pygame.font.Font(None, points) for points in (18, 20, 22, 26, 34, 84)}
        self.resize(size)

    def resize(self, size: tuple[int, int]) -> None:
        """Take another size in pixels."""
        self.size = size
        self._canvas = pygame.Surface(size, depth=32)
        column = NARROW if self.rig is None else max(WIDE, round(0.4 * size[0]))
        self._split = size[0] - column
        self._bird = BirdEyeRenderer(self._split, size[1], self.metres, panel=False)
        self.turn(0)

    def zoom(self, steps: int) -> None:
        """Bring the bird's eye closer (positive) or farther away."""
        self.metres = min(max(self.metres / ZOOM**steps, CLOSEST), FARTHEST)
        self.turn(0)

    def turn(self, times: int = 1) -> None:
        """Change what is up in the bird's eye: the ego's front or north."""
        if times % 2:
            self.up = "north" if self.up == "heading" else "heading"
        self._bird.up = "north" if self.up == "north" else "heading"
        self._bird.metres_across = self.metres

    def draw(
        self,
        state: State,
        instruments: Instruments,
        *,
        trails: Tensor,
        trails_valid: Tensor,
        frames: np.ndarray | None = None,
        help: bool = False,
    ) -> np.ndarray:
        """Return the picture (height, width, 3) uint8 of a moment.

        Args:
            state: of one scene.
            instruments: what stands beside it.
            trails: (A, n, 2) where everyone was, the present last.
            trails_valid: (A, n) bool, where `trails` holds a position.
            frames: (C, H, W, 3) uint8 of the cameras.
            help: whether the keys are listed.
        """
        self._canvas.fill(BACK)
        bird = self._bird.draw(state, trails=trails, trails_valid=trails_valid, alert=instruments.alert)
        self._canvas.blit(_surface(bird), (0, 0))
        top = PADDING
        if frames is not None:
            top = self._cameras(frames) + PADDING
        self._column(instruments, pygame.Rect(self._split + PADDING, top, self.size[0] - self._split - 2 * PADDING, 0))
        self._banner(instruments, help)
        if help:
            self._help()
        pixels = pygame.image.tobytes(self._canvas, "RGB")
        return np.frombuffer(pixels, dtype=np.uint8).reshape(self.size[1], self.size[0], 3).copy()

    def _cameras(self, frames: np.ndarray) -> int:
        """Draw the cameras over the column; return where they end."""
        count, rows = len(frames), rows_of(len(frames))
        columns = math.ceil(count / rows)
        width = (self.size[0] - self._split) // columns
        height = min(width * frames.shape[1] // frames.shape[2], self.size[1] * 4 // 10 // rows)
        for number, frame in enumerate(frames):
            at = (self._split + number % columns * width, number // columns * height)
            self._canvas.blit(pygame.transform.smoothscale(_surface(frame), (width, height)), at)
            if self.rig is not None and count > 1:
                self._text(self.rig.names[number].replace("_", " "), (at[0] + 8, at[1] + 6), 18, palette.TEXT)
        return rows * height

    def _column(self, now: Instruments, box: pygame.Rect) -> None:
        """Draw the groups of instruments one below the other; the last ones are left out where there is no room."""
        bottom = self.size[1] - PADDING - LINE
        for draw, height in (
            (self._speed, 94),
            (self._where, 4 * LINE + 16),
            (self._reward, (1 + len(now.terms)) * LINE + 16),
            (self._behind, 108),
        ):
            if box.top + height > bottom:
                break
            card = pygame.Rect(box.left, box.top, box.width, height)
            pygame.draw.rect(self._canvas, CARD, card, border_radius=8)
            draw(now, card.inflate(-28, -20))
            box.top += height + 8
        rate = f"{now.rate:.0f} steps/s" if now.rate else ""
        slow = now.rate and now.rate < 0.9 * now.wanted_rate
        at = self.size[1] - PADDING - 8
        pygame.draw.circle(self._canvas, palette.ALERT, (box.left + 6, at + 6), 5)
        self._text(f"recorded {now.recorded} steps", (box.left + 18, at), 20, palette.TEXT_DIM)
        self._text("H  help", (box.centerx, at), 20, palette.TEXT_DIM, "middle")
        self._text(rate, (box.right, at), 20, WARNING if slow else palette.TEXT_DIM, "right")

    def _speed(self, now: Instruments, box: pygame.Rect) -> None:
        width = self._text(f"{3.6 * now.speed:.0f}", (box.left, box.top - 2), 84, palette.TEXT)
        self._text("km/h", (box.left + width + 8, box.top + 30), 26, palette.TEXT_DIM)
        self._text(f"{now.speed:.1f} m/s", (box.left, box.bottom - 13), 20, palette.TEXT_DIM)
        left, across = box.left + 190, box.width - 190
        rows = (
            ("steering", -now.steering, palette.SKY_BLUE, f"{_signed(now.curvature, 3)} 1/m"),
            (
                "pedals",
                now.acceleration / 8.0,
                GOOD if now.acceleration >= 0 else palette.BRAKE_LIGHT,
                f"{_signed(now.acceleration)} m/s2",
            ),
        )
        for number, (name, share, colour, told) in enumerate(rows):
            top = box.top + 2 + number * 40
            self._text(name, (left, top), 20, palette.TEXT_DIM)
            self._text(told, (left + across, top), 20, palette.TEXT, "right")
            self._balance(pygame.Rect(left, top + 18, across, 8), share, colour)

    def _where(self, now: Instruments, box: pygame.Rect) -> None:
        unsure = "not told by this world" if now.uncertainty is None else f"{now.uncertainty:.2f} m of error to expect"
        rows = (
            ("driver", now.driver, palette.ORANGE if now.driver != "you" else palette.TEXT),
            ("world", f"{now.world}, moves {now.agents}", palette.TEXT),
            ("uncertainty", unsure, WARNING if (now.uncertainty or 0.0) > 2.0 else palette.TEXT),
            ("scene", now.scene, palette.TEXT),
        )
        place = f"{now.place[0]} of {now.place[1]}, seed {now.seed}"
        taken = self._text(place, (box.right, box.top + (len(rows) - 1) * LINE), 20, palette.TEXT_DIM, "right")
        for number, (name, told, colour) in enumerate(rows):
            self._text(name, (box.left, box.top + number * LINE), 20, palette.TEXT_DIM)
            room = box.width - 100 - (taken + 12 if name == "scene" else 0)
            self._text(told, (box.left + 100, box.top + number * LINE), 20, colour, room=room)

    def _reward(self, now: Instruments, box: pygame.Rect) -> None:
        """Every term of the reward, in this step and summed; above them all together."""
        step, total = box.right - 80, box.right
        rows = {"reward": (sum(now.terms.values()), now.reward)}
        rows |= {name: (value, now.totals.get(name, 0.0)) for name, value in now.terms.items()}
        most = max([abs(value) for value in now.terms.values()], default=0.0) or 1.0
        for number, (name, (value, summed)) in enumerate(rows.items()):
            top = box.top + number * LINE
            colour = palette.TEXT_DIM if number == 0 else palette.TEXT
            self._text(name.replace("_", " "), (box.left, top), 20, colour, room=120)
            if number == 0:
                self._text("this step, sum", (box.left + 130, top), 20, palette.TEXT_DIM, room=step - 66 - box.left - 130)
            else:
                bar = pygame.Rect(box.left + 130, top + 4, max(step - 66 - box.left - 130, 20), 8)
                self._balance(bar, value / most, GOOD if value >= 0 else palette.BRAKE_LIGHT)
            self._text(_signed(value, 3), (step, top), 20, palette.TEXT if value >= 0 else palette.BRAKE_LIGHT, "right")
            self._text(_signed(summed, 2), (total, top), 20, palette.TEXT if summed >= 0 else palette.BRAKE_LIGHT, "right")

    def _behind(self, now: Instruments, box: pygame.Rect) -> None:
        """Who drives behind, and both speeds over the last seconds: what a brake test is looked at by."""
        told = "nobody" if now.follower is None else f"{now.follower.gap:.0f} m, {now.follower.speed:.1f} m/s"
        self._text("behind you", (box.left, box.top), 20, palette.TEXT_DIM)
        width = self._text(told, (box.left + 100, box.top), 20, palette.TEXT)
        if now.follower is not None:
            brakes = now.follower.acceleration < -1.0
            text = f"{'brakes' if brakes else 'acceleration'} {_signed(now.follower.acceleration)} m/s2"
            self._text(text, (box.left + 116 + width, box.top), 20, palette.BRAKE_LIGHT if brakes else palette.TEXT_DIM)
        chart = pygame.Rect(box.left, box.top + 22, box.width, box.height - 22)
        top = max([10.0, *(float(np.nanmax(curve)) for curve in now.curves.values() if np.isfinite(curve).any())])
        pygame.draw.line(self._canvas, TRACK, chart.bottomleft, chart.bottomright)
        left = chart.left
        for (name, curve), colour in zip(now.curves.items(), (palette.ORANGE, palette.SKY_BLUE), strict=False):
            x = chart.right - (len(curve) - 1 - np.arange(len(curve))) / (SHOWN_STEPS - 1) * chart.width
            y = chart.bottom - np.nan_to_num(curve) / top * (chart.height - 4)
            points = np.stack((x, y), axis=-1)[np.isfinite(curve)]
            if len(points) > 1:
                pygame.draw.aalines(self._canvas, colour, False, points.tolist())
            left += self._text(name, (left, chart.top), 18, colour) + 14

    def _banner(self, now: Instruments, helped: bool) -> None:
        """Time in the corner of the bird's eye, and in its middle what the driving waits for and what a command has done."""
        clock = f"{now.step * 0.1:.1f} s" + ("" if self.up == "heading" else "   north up")
        self._pill(clock, 22, palette.TEXT, (14, 14), "left")
        if now.status:
            self._pill(now.status, 34, palette.TEXT, (self._split // 2, self.size[1] // 2 - 110), "middle")
        if now.notice and not helped:
            self._pill(now.notice, 22, palette.TEXT, (self._split // 2, 56), "middle")

    def _help(self) -> None:
        """List what every key does, over the bird's eye."""
        pad = max(self._fonts[20].size(command.pad)[0] for command in COMMANDS.values())
        box = pygame.Rect(0, 0, min(self.size[0] - 40, 720 + pad), (len(COMMANDS) + 2) * LINE + 44)
        box.center = (self.size[0] // 2, self.size[1] // 2)
        veil = pygame.Surface(box.size, pygame.SRCALPHA)
        pygame.draw.rect(veil, (*BACK, 240), veil.get_rect(), border_radius=12)
        pygame.draw.rect(veil, TRACK, veil.get_rect(), 1, border_radius=12)
        self._canvas.blit(veil, box)
        self._text("Keys", (box.left + 28, box.top + 20), 26, palette.TEXT)
        self._text("gamepad", (box.right - 28, box.top + 24), 20, palette.TEXT_DIM, "right")
        for number, command in enumerate(COMMANDS.values()):
            top = box.top + 56 + number * LINE
            self._text(command.names(), (box.left + 28, top), 20, palette.ORANGE)
            self._text(command.does, (box.left + 180, top), 20, palette.TEXT, room=box.width - 220 - pad)
            self._text(command.pad, (box.right - 28, top), 20, palette.TEXT_DIM, "right")

    def _balance(self, box: pygame.Rect, share: float, colour: Colour) -> None:
        """Draw a bar from its middle to the right (positive) or to the left, as far as `share` of -1 to 1 says."""
        pygame.draw.rect(self._canvas, TRACK, box, border_radius=4)
        reach = round(0.5 * box.width * min(max(share, -1.0), 1.0))
        pygame.draw.rect(
            self._canvas, colour, (box.centerx + min(reach, 0), box.top, max(abs(reach), 2), box.height), border_radius=3
        )

    def _pill(self, text: str, points: int, colour: Colour, at: tuple[int, int], align: str) -> None:
        width, height = self._fonts[points].size(text)
        box = pygame.Rect(at[0] - (width // 2 + 14 if align == "middle" else 0), at[1], width + 28, height + 14)
        backing = pygame.Surface(box.size, pygame.SRCALPHA)
        pygame.draw.rect(backing, palette.PANEL, backing.get_rect(), border_radius=box.height // 2)
        self._canvas.blit(backing, box)
        self._text(text, (box.left + 14, box.top + 8), points, colour)

    def _text(
        self, text: str, at: tuple[float, float], points: int, colour: Colour, align: str = "left", room: int | None = None
    ) -> int:
        """Write a text, shortened to `room` pixels; return its width."""
        font = self._fonts[points]
        while room is not None and len(text) > 3 and font.size(text)[0] > room:
            text = text[:-4] + "..."
        written = font.render(text, True, colour)
        share = {"left": 0.0, "middle": 0.5, "right": 1.0}[align]
        self._canvas.blit(written, (round(at[0] - share * written.get_width()), round(at[1])))
        return written.get_width()


def _surface(frame: np.ndarray) -> pygame.Surface:
    height, width, _ = frame.shape
    return pygame.image.frombuffer(frame.tobytes(), (width, height), "RGB")


def _signed(value: float, digits: int = 1) -> str:
    """Return a number with its sign; what is rounded to nothing has none."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text
