"""Text on pictures: a panel of lines, an alert, a legend of agent colours, a scale bar."""

from __future__ import annotations

import os
from collections.abc import Sequence

from . import palette
from .palette import Colour

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
import pygame  # noqa: E402 (the line above keeps it from printing its banner)

MARGIN = 12
PADDING = 9
TEXT_HEIGHT = 20
LINE_HEIGHT = 19
GAP = 18
SWATCH = 12
STEP = 24
"""Pixels of the finished picture."""


class Captions:
    """Writes on a canvas that is `magnified` times as large as the finished picture, in pygame's own font.

    Being scaled down with everything else, small letters keep their shapes; the font is the same on every machine.
    """

    def __init__(self, magnified: int) -> None:
        pygame.font.init()
        self._font = pygame.font.Font(None, TEXT_HEIGHT * magnified)
        self._times = magnified

    def panel(self, canvas: pygame.Surface, lines: Sequence[str]) -> None:
        """Write lines into the upper left corner; the first is the heading; what follows a tab stands at the right."""
        margin, padding, line_height, gap = (self._times * length for length in (MARGIN, PADDING, LINE_HEIGHT, GAP))
        written = []
        for left, _, right in (line.partition("\t") for line in lines):
            dim = palette.TEXT_DIM if right else palette.TEXT
            written.append((self._font.render(left, True, dim), self._font.render(right, True, palette.TEXT)))
        width = max(left.get_width() + (gap + right.get_width() if right.get_width() else 0) for left, right in written)
        width = -(-width // STEP // self._times) * STEP * self._times  # the panel does not tremble with every digit
        width = min(width, canvas.get_width() - 2 * (margin + padding))
        height = line_height * len(written) + 2 * padding - 4 * self._times
        box = self._background(canvas, pygame.Rect(margin, margin, width + 2 * padding, height))
        for index, (left, right) in enumerate(written):
            top = box.top + padding + index * line_height
            canvas.blit(left, (box.left + padding, top), (0, 0, width, left.get_height()))
            canvas.blit(right, (box.right - padding - right.get_width(), top))

    def alert(self, canvas: pygame.Surface, text: str) -> None:
        """Write what has gone wrong, white on red, into the upper right corner."""
        margin, padding = (self._times * length for length in (MARGIN, PADDING))
        name = self._font.render(text, True, palette.WHITE)
        box = pygame.Rect(0, 0, name.get_width() + 2 * padding, name.get_height() + 2 * padding)
        box.topright = (canvas.get_width() - margin, margin)
        pygame.draw.rect(canvas, palette.ALERT, box, border_radius=6 * self._times)
        canvas.blit(name, (box.left + padding, box.top + padding))

    def legend(self, canvas: pygame.Surface, entries: Sequence[tuple[Colour, str]]) -> pygame.Rect:
        """Explain colours in the lower left corner; return the place that this takes."""
        margin, padding, gap, swatch = (self._times * length for length in (MARGIN, PADDING, GAP, SWATCH))
        names = [self._font.render(name, True, palette.TEXT) for _, name in entries]
        width = sum(swatch + padding + name.get_width() for name in names) + gap * (len(names) - 1)
        height = 28 * self._times
        top = canvas.get_height() - margin - height
        box = self._background(canvas, pygame.Rect(margin, top, width + 2 * padding, height))
        left = box.left + padding
        for (colour, _), name in zip(entries, names, strict=True):
            pygame.draw.rect(canvas, colour, (left, box.centery - swatch // 2, swatch, swatch), border_radius=swatch // 4)
            canvas.blit(name, (left + swatch + padding, box.centery - name.get_height() // 2 + self._times))
            left += swatch + padding + name.get_width() + gap
        return box

    def scale_bar(self, canvas: pygame.Surface, pixels_per_metre: float, legend: pygame.Rect | None = None) -> pygame.Rect:
        """Draw a bar of a round number of metres into the lower right corner, above the legend where that reaches so far."""
        times, most = self._times, 0.2 * canvas.get_width() / pixels_per_metre
        metres = max((m for m in (1, 2, 5, 10, 20, 50, 100, 200, 500) if m <= most), default=1)
        length = round(metres * pixels_per_metre)
        name = self._font.render(f"{metres} m", True, palette.TEXT)
        box = pygame.Rect(0, 0, max(length, name.get_width()) + 2 * PADDING * times, 36 * times)
        box.bottomright = (canvas.get_width() - MARGIN * times, canvas.get_height() - MARGIN * times)
        if legend is not None and box.colliderect(legend):
            box.bottom = legend.top - PADDING * times
        self._background(canvas, box)
        canvas.blit(name, (box.centerx - name.get_width() // 2, box.top + 6 * times))
        bar = pygame.Rect(box.centerx - length // 2, box.bottom - 10 * times, length, 2 * times)
        pygame.draw.rect(canvas, palette.TEXT, bar)
        for left in (bar.left, bar.right - bar.height):
            pygame.draw.rect(canvas, palette.TEXT, (left, bar.top - bar.height, bar.height, 3 * bar.height))
        return box

    def _background(self, canvas: pygame.Surface, box: pygame.Rect) -> pygame.Rect:
        backing = pygame.Surface(box.size, pygame.SRCALPHA)
        pygame.draw.rect(backing, palette.PANEL, backing.get_rect(), border_radius=6 * self._times)
        canvas.blit(backing, box)
        return box
