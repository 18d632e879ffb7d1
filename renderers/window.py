"""A window with keys and gamepad (pygame): what is shown, and what a person's hands do meanwhile.

All input takes one way: keys come as pygame's events, from the keyboard or from a script that puts the same events into the same
queue. So whatever a person can do a test can do too, without a display (SDL's dummy driver).
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
import pygame  # noqa: E402 (the line above keeps it from printing its banner)
from pygame._sdl2 import controller  # noqa: E402 (gamepads by the names of their parts, whoever made them)

SMALLEST = (960, 540)
"""Pixels below which the window's parts have no room."""

DEAD_ZONE = 0.08
"""Share of a stick's way in which it counts as released."""


@dataclass(frozen=True)
class Command:
    """What one can do with keys: their names (pygame's), a gamepad's part, what it does, whether it lasts while held."""

    keys: tuple[str, ...]
    does: str
    pad: str = ""
    held: bool = False

    def names(self) -> str:
        """Return the keys as a person reads them."""
        return " / ".join(key.upper() if len(key) == 1 else key.capitalize() for key in self.keys)


COMMANDS = {
    "accelerate": Command(("up", "w"), "accelerate", "right trigger", held=True),
    "brake": Command(("down", "s"), "brake", "left trigger", held=True),
    "left": Command(("left", "a"), "steer to the left", "left stick", held=True),
    "right": Command(("right", "d"), "steer to the right", "left stick", held=True),
    "brake_test": Command(("space",), "brake as hard as the car can, while held: see who reacts", "b", held=True),
    "take_over": Command(("t",), "let the policy drive, or take the wheel back", "a"),
    "pause": Command(("p",), "pause, go on", "start"),
    "single_step": Command(("o",), "one step, while paused"),
    "again": Command(("r",), "the same scene again, with the same seed", "x"),
    "other_future": Command(("f",), "the same scene again, with the next seed: another future"),
    "next_scene": Command(("n",), "next scene", "y"),
    "previous_scene": Command(("b",), "previous scene"),
    "world": Command(("tab",), "the same scene again, in the next world", "right shoulder"),
    "turn_view": Command(("v",), "bird's-eye view: ego's front up, or north up"),
    "closer": Command(("+", "="), "bird's-eye view: closer"),
    "farther": Command(("-",), "bird's-eye view: farther"),
    "picture": Command(("f12",), "save a picture of the window"),
    "help": Command(("h", "f1"), "show or hide this help"),
    "quit": Command(("escape", "q"), "end, and write down what was driven", "back"),
}
"""Every command, in the order in which the help lists them."""

PAD_BUTTONS = {
    "a": pygame.CONTROLLER_BUTTON_A,
    "b": pygame.CONTROLLER_BUTTON_B,
    "x": pygame.CONTROLLER_BUTTON_X,
    "y": pygame.CONTROLLER_BUTTON_Y,
    "start": pygame.CONTROLLER_BUTTON_START,
    "back": pygame.CONTROLLER_BUTTON_BACK,
    "right shoulder": pygame.CONTROLLER_BUTTON_RIGHTSHOULDER,
}


@dataclass(frozen=True)
class Pad:
    """Where a gamepad's parts stand: steering -1 (right) to 1 (left), accelerator and brake 0 to 1."""

    steering: float
    accelerator: float
    brake: float

    @classmethod
    def from_axes(cls, stick: int, left_trigger: int, right_trigger: int) -> Pad:
        """Return what SDL's axes (-32768 to 32767, triggers from 0) mean; the stick is finer near its middle."""
        share = -stick / 32768
        beyond = max(abs(share) - DEAD_ZONE, 0.0) / (1 - DEAD_ZONE)
        return cls(beyond * beyond * (1 if share > 0 else -1), max(right_trigger, 0) / 32767, max(left_trigger, 0) / 32767)


@dataclass(frozen=True)
class Hands:
    """What a person does at one moment.

    Attributes:
        held: commands whose keys are down.
        pressed: commands whose keys have gone down since the last moment, in order.
        pad: the gamepad, None where there is none or nobody touches it.
        resized: the window's new size in pixels, else None.
    """

    held: frozenset[str] = frozenset()
    pressed: tuple[str, ...] = ()
    pad: Pad | None = None
    resized: tuple[int, int] | None = None


class Window:
    """A window on the screen, or with `headless` one that nobody sees; use it as a context manager.

    Raises:
        OSError: there is no display; the message says how to do without.
    """

    def __init__(self, size: tuple[int, int], title: str, *, headless: bool = False) -> None:
        former = os.environ.get("SDL_VIDEODRIVER")
        if headless:
            os.environ["SDL_VIDEODRIVER"] = "dummy"
        elif sys.platform.startswith("linux") and not os.environ.keys() & {"SDL_VIDEODRIVER", "DISPLAY", "WAYLAND_DISPLAY"}:
            raise OSError(NO_DISPLAY.format(reason="neither DISPLAY nor WAYLAND_DISPLAY is set"))
        try:
            pygame.display.init()
            pygame.display.set_caption(title)
            self._screen = pygame.display.set_mode(size, pygame.RESIZABLE)
        except pygame.error as error:
            pygame.display.quit()
            raise OSError(NO_DISPLAY.format(reason=error)) from error
        finally:
            if headless:  # it was meant for this window alone
                os.environ.pop("SDL_VIDEODRIVER")
                os.environ |= {} if former is None else {"SDL_VIDEODRIVER": former}
        self.headless = headless
        self._clock = pygame.time.Clock()
        self._commands = {pygame.key.key_code(key): name for name, command in COMMANDS.items() for key in command.keys}
        self._buttons = {PAD_BUTTONS[command.pad]: name for name, command in COMMANDS.items() if command.pad in PAD_BUTTONS}
        self._down: set[tuple[str, int]] = set()
        self._pad: controller.Controller | None = None
        if not headless:
            controller.init()

    def __enter__(self) -> Window:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        controller.quit()
        pygame.display.quit()

    def hands(self) -> Hands:
        """Return what has been done since the last call; closing the window is the command `quit`."""
        pressed: list[str] = []
        resized = None
        for event in pygame.event.get():
            if event.type == pygame.QUIT:
                pressed.append("quit")
            elif event.type == pygame.VIDEORESIZE:
                resized = (max(event.w, SMALLEST[0]), max(event.h, SMALLEST[1]))
            elif event.type == pygame.WINDOWFOCUSLOST:
                self._down.clear()  # what is released elsewhere is not told
            elif event.type in (pygame.KEYDOWN, pygame.KEYUP) and event.key in self._commands:
                self._turn(("key", event.key), event.type == pygame.KEYDOWN, self._commands[event.key], pressed)
            elif event.type in (pygame.CONTROLLERBUTTONDOWN, pygame.CONTROLLERBUTTONUP) and event.button in self._buttons:
                down = event.type == pygame.CONTROLLERBUTTONDOWN
                self._turn(("pad", event.button), down, self._buttons[event.button], pressed)
            elif event.type == pygame.CONTROLLERDEVICEADDED and self._pad is None:
                self._pad = controller.Controller(event.device_index)
            elif event.type == pygame.CONTROLLERDEVICEREMOVED and self._pad is not None and not self._pad.attached():
                self._pad = None
        names = {"key": self._commands, "pad": self._buttons}
        held = frozenset(names[kind][code] for kind, code in self._down if COMMANDS[names[kind][code]].held)
        return Hands(held | {name for name in pressed if COMMANDS[name].held}, tuple(pressed), self._read_pad(), resized)

    def _turn(self, key: tuple[str, int], down: bool, command: str, pressed: list[str]) -> None:
        if not down:
            self._down.discard(key)
        elif key not in self._down:
            self._down.add(key)
            pressed.append(command)

    def _read_pad(self) -> Pad | None:
        if self._pad is None:
            return None
        parts = (pygame.CONTROLLER_AXIS_LEFTX, pygame.CONTROLLER_AXIS_TRIGGERLEFT, pygame.CONTROLLER_AXIS_TRIGGERRIGHT)
        pad = Pad.from_axes(*(self._pad.get_axis(part) for part in parts))
        return pad if pad != Pad(0.0, 0.0, 0.0) else None

    def show(self, frame: np.ndarray) -> None:
        """Show a picture (height, width, 3) uint8."""
        height, width, _ = frame.shape
        self._screen = pygame.display.get_surface() or self._screen
        self._screen.blit(pygame.image.frombuffer(frame.tobytes(), (width, height), "RGB"), (0, 0))
        pygame.display.flip()

    def wait(self, fps: float) -> float:
        """Wait until a frame's time is over (headless: not at all); return how many frames a second there are."""
        self._clock.tick(0 if self.headless else fps)
        return self._clock.get_fps()


NO_DISPLAY = (
    "no window can be opened ({reason}): run it where there is a display, or without one by a script of keys: "
    '--script "up 20, left 5, brake_test 10", or --headless --policy idm --steps 100'
)


class Script:
    """Keys that are pressed at given moments: `up 20, left+up 5, space 10, wait 3, p 1`.

    Parts are separated by commas or new lines, `#` begins a comment. Every part holds its keys (names of keys or of commands,
    joined by `+`; `wait` is none) for so many moments, 1 where no number is given.

    Raises:
        ValueError: a part is not such; the message names it.
    """

    def __init__(self, text: str) -> None:
        self._moments: list[tuple[frozenset[str], bool]] = []  # what is down, and whether it goes down anew
        known = {key for command in COMMANDS.values() for key in command.keys}
        for part in re.split(r"[,\n]", re.sub(r"#.*", "", text)):
            words = part.split()
            if not words:
                continue
            keys, count = words[0], words[1] if len(words) > 1 else "1"
            if len(words) > 2 or not count.isascii() or not count.isdigit() or int(count) < 1:
                raise ValueError(
                    f"script: {part.strip()!r}: wanted keys and a number of steps >= 1, such as `up 20` or `left+up 5`"
                )
            down = set()
            for key in [keys] if keys == "+" else keys.split("+"):
                key = COMMANDS[key].keys[0] if key in COMMANDS else key
                if key not in known and key != "wait":
                    choices = ", ".join(["wait", *COMMANDS, *sorted(known - COMMANDS.keys())])
                    raise ValueError(f"script: {part.strip()!r}: there is no key {key!r}: choose among {choices}")
                down |= {key} - {"wait"}
            self._moments += [(frozenset(down), moment == 0) for moment in range(int(count))]
        if not self._moments:
            raise ValueError("script: holds no keys: write such as `up 20, left 5`")
        self._at, self._down = 0, frozenset[str]()

    @classmethod
    def open(cls, text: str) -> Script:
        """Return the script in a file of that name, or the text itself."""
        try:
            return cls(Path(text).read_text() if Path(text).is_file() else text)
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"script {text!r}: cannot be read: {error}") from error

    def __len__(self) -> int:
        """How many moments it takes."""
        return len(self._moments)

    def press(self) -> bool:
        """Put the events of the next moment into pygame's queue; where the script is over, let all go and return False."""
        going_on = self._at < len(self._moments)
        down, anew = self._moments[self._at] if going_on else (frozenset(), False)
        self._at += 1
        for key in sorted(self._down if anew else self._down - down):
            pygame.event.post(pygame.event.Event(pygame.KEYUP, key=pygame.key.key_code(key)))
        for key in sorted(down if anew else down - self._down):
            pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=pygame.key.key_code(key)))
        self._down = down
        return going_on
