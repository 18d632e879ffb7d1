"""The command line `worldloop`: one table of commands, one typed `Args` each, one way to report errors.

Nothing heavy is imported before a command runs, so that `worldloop --help` answers at once. Errors that a user can mend
(`USER_ERRORS`) are printed as one message and end with exit code 2; a run in which scenarios failed ends with 1.
"""

from __future__ import annotations

import difflib
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from . import TRACEBACK

USER_ERRORS = (ValueError, OSError, ImportError)
"""What is reported without a traceback: bad values and scenes (`InvalidSceneError`, `DataError`), files, missing extras."""


@dataclass(frozen=True)
class Command:
    """One command: the module and the names of its arguments and its function, and what it does in one line."""

    module: str
    arguments: str
    function: str
    summary: str

    def load(self) -> tuple[type, Callable[..., int | Path | None]]:
        """Import the module; return its dataclass of arguments and its function, which returns an exit code, a path, or None."""
        module = importlib.import_module(self.module, __package__)
        return getattr(module, self.arguments), getattr(module, self.function)


COMMANDS = {
    "demo": Command(".drive", "Demo", "run_demo", "watch the shipped driver in the shipped learned world (2 minutes)"),
    "rollout": Command(".drive", "Rollout", "run_rollout", "drive a policy through scenes in a world; table, CSV, video"),
    "drive": Command(".window", "Drive", "run_drive", "drive in a window, by keys, gamepad or policy, in a world that answers"),
    "view": Command(".view", "View", "run_view", "the same in 3-D: chase, cockpit and orbit films by day, at night, in rain"),
    "evaluate": Command(".evaluate", "Evaluate", "run_evaluate", "score and rank policies by nuPlan's score and EPDMS; a report"),
    "validate": Command(".validate", "Validate", "run_validate", "does a score here predict the score in SUMO; a report"),
    "train behavior": Command("..worldmodel.train_behavior", "Args", "main", "train the network that moves the other road users"),
    "train ppo": Command(".ppo", "Ppo", "run_ppo", "train a driver in a world by proximal policy optimisation"),
    "train clone": Command(".clone", "Clone", "run_clone", "train a driver to do what another one, or a log, does"),
    "train camera": Command("..worldmodel.train_camera", "Args", "main", "train the network that paints what a camera sees"),
    "compare": Command(".compare", "Compare", "run_compare", "what each change did: several weights' measurements in one table"),
    "scaling": Command(".scaling", "Scaling", "run_scaling", "what a larger network or more data gives; fits, a picture"),
    "train signals": Command(
        "..worldmodel.train_signals", "Args", "main", "train the network that lets signals go on after the log"
    ),
    "fidelity": Command(".fidelity", "Fidelity", "run_fidelity", "how realistic the learned world is; tables, distributions"),
    "fidelity camera": Command(
        ".camera_fidelity", "CameraFidelity", "run_camera_fidelity", "does the learned camera do what it is told; tables, films"
    ),
    "counterfactual": Command(
        ".counterfactual", "Counterfactual", "run_counterfactual", "do others answer the ego as in SUMO; tables, pictures"
    ),
    "calibrate": Command(".calibrate", "Calibrate", "run_calibrate", "how unsure the learned world is: fit it to logs, check it"),
    "endurance": Command(".endurance", "Endurance", "run_endurance", "whether a minute of traffic ends as it began; curves"),
    "card": Command(".card", "Card", "run_card", "ship trained weights, with a model card written from recorded runs"),
    "card camera": Command(
        ".camera_card", "CameraCard", "run_camera_card", "ship a trained camera, with a card from recorded runs"
    ),
    "data import": Command(".data", "Import", "run_import", "turn recordings (PandaSet, Waymo, video, ...) into a data set"),
    "data generate": Command(".data", "Generate", "run_generate", "make scenes with SUMO, from templates or your own network"),
    "data intervene": Command(".data", "Intervene", "run_intervene", "make scenes in which the ego brakes, cuts in, ... in SUMO"),
    "data film": Command(".film", "FilmClips", "run_film", "film drives through scenes in 3-D, to train a camera on"),
    "data info": Command(".data", "Info", "run_info", "what a data set of scenes or clips holds; a table"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; return the exit code: 0 well, 1 some scenarios failed, 2 a user's error, 130 or 143 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    console = Console(stderr=True, highlight=False)
    try:
        name = find_command(words)
        if name is None:
            overview(Console(highlight=False))
            return 0
        # Before torch is loaded: threads that spin while they wait make a step up to 12 times as long where others want the cores
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        command = COMMANDS[name]
        args_type, function = command.load()
        args = tyro.cli(args_type, prog=f"worldloop {name}", args=words[len(name.split()) :])
        with _terminable():
            result = _ended(function, args)
        if isinstance(result, Path):
            print(result)
        return result if isinstance(result, int) else 0
    except USER_ERRORS as error:
        if os.environ.get(TRACEBACK):
            raise
        console.print("[bold red]error:[/] ", end="")
        console.print(describe_error(error), markup=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt as interrupt:
        console.print("interrupted", markup=False)
        return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)


@contextmanager
def _terminable() -> Iterator[None]:
    """Let a SIGTERM, which by itself leaves everything lying about, end a command as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():  # no other one may handle signals
        yield
        return

    def interrupt(number: int, _: object) -> None:
        raise KeyboardInterrupt(number)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _ended(function: Callable[..., int | Path | None], args: object) -> int | Path | None:
    """Return what a command returns; a SystemExit is none of ours but a user's own code's, and would look as if all went well."""
    try:
        return function(args)
    except SystemExit as error:
        raise ValueError(
            f"a driver's or world's own code called sys.exit({error.code!r}): let it raise an error instead"
        ) from error


def find_command(words: Sequence[str]) -> str | None:
    """Return the command that the words begin with, None if they ask for the overview.

    Raises:
        ValueError: there is no such command.
    """
    if not words or words[0] in ("-h", "--help"):
        return None
    if words[0] == "--version":
        print(f"worldloop {version('worldloop')}")
        raise SystemExit(0)
    for count in (2, 1):
        name = " ".join(words[:count])
        if name in COMMANDS:
            return name
    if any(name.startswith(f"{words[0]} ") for name in COMMANDS) and (len(words) == 1 or words[1] in ("-h", "--help")):
        return None
    typed = " ".join(word for word in words[:2] if not word.startswith("-"))
    near = difflib.get_close_matches(typed, COMMANDS, n=1)
    hint = f" (did you mean `worldloop {near[0]}`?)" if near else ""
    raise ValueError(f"there is no command {typed!r}{hint}: choose one of {', '.join(COMMANDS)}")


def overview(console: Console) -> None:
    """Print what worldloop is and its commands."""
    table = Table(box=None, show_header=False, padding=(0, 2))
    for name, command in COMMANDS.items():
        table.add_row(f"[bold]worldloop {name}[/]", command.summary)
    console.print("worldloop: a learned driving world that answers what the ego does\n")
    console.print(table)
    console.print("\n`worldloop COMMAND --help` tells a command's arguments, with an example.", markup=False)
    console.print(f"{TRACEBACK}=1 in the environment shows where an error came from.", markup=False)


def describe_error(error: BaseException) -> str:
    """Return an error's message on one line, with what the class alone says."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return text or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
