"""`worldloop rollout` and `worldloop demo`: drive a policy through scenes, print a table, write rows and a film."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, track
from rich.table import Table

from ..envs.observation import ObservationSize, visible
from ..envs.scenarios import SHIPPED_SCENES
from ..envs.vector import TRAIL_STEPS
from ..renderers.bev import BirdEyeRenderer, Observed
from ..renderers.video import contact_sheet, write_picture, write_video
from ..worldmodel.data.shards import DataError, SceneDataset
from ..worldmodel.files import write_csv, write_json
from ..worldmodel.run import dated_folder, require_free, whole_run
from ..worldmodel.scene import HISTORY_STEPS
from ..worldmodel.world import ReplayWorld, World
from .bootstrap import counted
from .crew import open_named_world
from .policy import load_policy
from .rollout import Film, Scenario, open_scenes, rollout
from .rollout import Rollout as Driven
from .rules import ReplayPolicy

WIDTH = 120
"""Columns of the table where it does not go to a terminal."""

FILM_PIXELS = 480
MOST_ROWS, MOST_FAILURES = 40, 10
"""Rows and error messages that the terminal shows; scenarios.csv has them all."""

HELD_FRAMES = 10
"""A film stands still for a second at its end, so that one sees how it ended."""


@dataclass(frozen=True)
class Rollout:
    """Drive a policy through scenes in a world, and tell how it went.

    Every scenario leaves a row: progress, collision, off-road, comfort, nuPlan's score and its terms, road users simulated, how
    unsure the learned world is of them (metres of error to expect, on average), for how many seconds that stays within 2 m,
    steps/s. Scenarios that fail are counted and shown, and the exit code is then 1. The run folder gets run.json (arguments,
    versions, summary), scenarios.json and scenarios.csv (the rows), and with --video rollout.mp4 and rollout.png (its middle).

    Example: worldloop rollout --policy idm --world learned --scenes scenes/pandaset --seed 1 --out runs/idm
    """

    policy: str = "idm"
    """Who drives: idm, pdm, replay, constant, random or another shipped driver (the README lists them), a trained one by its
    folder (RUN/model), or your own as module:attribute, an object or class with act(observation, state) that returns
    accelerations in m/s2 and curvatures in 1/m (the README shows one)."""
    world: str = "learned"
    """Who moves the others: learned, learned_open (the same, road users leave and enter: for minutes), replay (the log),
    constant_velocity, idm (rules), or sumo (generated scenes only)."""
    scenes: str = "demo"
    """Folder of a data set, FOLDER:GLOB for some of its scenes by id, or demo for the shipped ones (unless a data set demo is
    here)."""
    weights: Path | None = None
    """Folder of a trained behaviour model, instead of the shipped one, or small or large."""
    limit: int | None = None
    """Take only so many of the scenes, the first ones."""
    horizon: int | None = None
    """Steps of 0.1 s. Not given: as long as each scene's log (80 where a scene is a moment without a log after it)."""
    seed: int = 0
    """Scenario i is driven with seed + i."""
    batch: int = 8
    """Scenes driven at once; the results do not depend on it."""
    video: bool = True
    """Film the first scenarios, side by side."""
    films: int = 10
    """How many of them."""
    observed: bool = False
    """Mark in the film (white frames and dots) the road users and lines that the policy's observation holds."""
    out: Path | None = None
    """Run folder, runs/rollout-DATE if not given."""


@dataclass(frozen=True)
class Demo:
    """Watch the intelligent driver model drive all shipped scenes in the shipped learned world, in under two minutes.

    Needs nothing but the package. Prints a table (progress, collision, off-road, road users simulated, steps/s) and says where
    the film lies.

    Example: worldloop demo
    """

    seed: int = 0
    """Another seed is another future of the same scenes."""
    out: Path | None = None
    """Run folder, runs/demo-DATE if not given."""


def run_demo(args: Demo) -> int:
    """Run `worldloop demo`; return the exit code."""
    return _run("demo", Rollout(scenes=str(SHIPPED_SCENES), seed=args.seed, out=args.out))


def run_rollout(args: Rollout) -> int:
    """Run `worldloop rollout`; return the exit code."""
    return _run("rollout", args)


def _run(command: str, args: Rollout) -> int:
    if args.films < 0:
        raise ValueError(f"--films {args.films}: wanted 0 or more")
    out = args.out or dated_folder(command)
    require_free(out)
    policy, world, scenes = load_policy(args.policy), _open_world(args), open_scenes(args.scenes)
    if args.limit is not None:
        scenes = scenes.first(args.limit)
    if args.world == "sumo" and not any(entry["recipe"] for entry in scenes.entries):
        raise ValueError(
            f"--world sumo: none of the {len(scenes)} scenes was made by `worldloop data generate`, so SUMO cannot drive them: "
            "take the learned world or log replay"
        )
    errors = Console(stderr=True)
    if args.horizon is not None:
        bound = ("replay policy", ReplayWorld()) if isinstance(policy, ReplayPolicy) else (f"{args.world} world", world)
        _check_horizon(args.horizon, scenes, *bound, errors)
    with whole_run(out, command, asdict(args), args.seed) as run:
        with _progress(errors) as progress:
            bar = progress.add_task(f"{args.policy} in the {args.world} world", total=len(scenes), at="")
            driven = rollout(
                policy,
                world,
                scenes,
                seed=args.seed,
                steps=args.horizon,
                batch=args.batch,
                film=args.films if args.video else 0,
                tell=lambda done, total, at: progress.update(bar, completed=done, total=total, at=at),
            )
        rows = [scenario.row() for scenario in driven.scenarios]
        write_json(run.folder / "scenarios.json", rows)
        write_csv(run.folder / "scenarios.csv", rows)
        run.finish(driven.summary())
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    console.print(scenario_table(driven, f"{args.policy} in the {args.world} world, seed {args.seed}"))
    failed = [row for row in driven.scenarios if row.error is not None]
    for row in failed[:MOST_FAILURES]:
        console.print(f"failed: {row.scene}: {row.error}", markup=False, soft_wrap=True)
    if len(failed) > MOST_FAILURES:
        console.print(f"... and {len(failed) - MOST_FAILURES} more, see the column error in scenarios.csv", markup=False)
    console.print(f"rows and record: {out / 'scenarios.csv'}, {out / 'run.json'}", markup=False, soft_wrap=True)
    if driven.films:  # last, for the rows are whole without it
        with _progress(errors) as progress:
            write_films(out, driven, progress, observed=args.observed)
        console.print(f"film: {out / 'rollout.mp4'}", markup=False, soft_wrap=True)
    return 1 if failed else 0


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TextColumn("{task.fields[at]}"), console=console)


def _open_world(args: Rollout) -> World:
    if args.weights is not None and args.world not in ("learned", "learned_open"):
        raise ValueError(f"--weights {args.weights} is for the learned world, found --world {args.world}: leave one of them out")
    return open_named_world(args.world, args.weights)


def _check_horizon(horizon: int, scenes: SceneDataset, name: str, world: World, console: Console) -> None:
    """Refuse a horizon that `world` (of that name) cannot run, before anything is driven."""
    if horizon < 1:
        raise ValueError(f"--horizon {horizon}: wanted at least 1 step of 0.1 s")
    for number in track(range(len(scenes)), "checking the horizon", console=console, transient=True):
        try:
            possible = world.horizon(scenes.load(number))
        except DataError:
            continue  # the rollout counts it among the failed ones
        if possible is None:
            return
        if 0 < int(possible[0]) < horizon:  # with none at all it cannot start, and is counted among the failed ones too
            raise ValueError(
                f"--horizon {horizon}: the {name} can run {scenes.ids[number]} for {int(possible[0])} steps: choose a shorter "
                "one, leave it out (each scene as long as its log), or take the learned world and a policy that needs no log"
            )


def scenario_table(driven: Driven, title: str) -> Table:
    """Return the table for the terminal: the first scenarios, all that failed, and the means."""
    summary = driven.summary()
    title = f"{title}: {counted(summary['scenarios'], 'scenario')}, {summary['failed']} failed"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_footer=True)
    footer = {
        "steps": "",
        "progress\n(m)": _number(summary["progress"]),
        "route": _share(summary["route_completion"]),
        "colli-\nsion": _share(summary["collision_rate"]),
        "off\nroad": _share(summary["off_road_rate"]),
        "nuPlan\nscore": _share(summary["nuplan"]),
        "agents\nsimulated": _number(summary["agents_simulated"]),
        "unsure\n(m)": _number(summary["uncertainty"]),
        "safe\n(s)": _number(summary["safe_horizon"]),
        "steps/s": _number(summary["steps_per_second"]),
    }
    table.add_column("scenario", "mean", overflow="fold", min_width=12)
    for name, mean in footer.items():
        table.add_column(name, mean, justify="right", no_wrap=True)
    shown = [row for number, row in enumerate(driven.scenarios) if number < MOST_ROWS or row.error is not None]
    for row in shown:
        if row.error is not None:
            table.add_row(row.scene, "[bold red]failed[/]", *[""] * (len(footer) - 1))
            continue
        events = (_share(row.route_completion), _yes(row.collision), _yes(row.off_road), _share(row.nuplan))
        numbers = (row.agents_simulated, row.uncertainty, row.safe_horizon, row.steps_per_second)
        table.add_row(row.scene, str(row.steps), _number(row.progress), *events, *(_number(number) for number in numbers))
    if len(shown) < len(driven.scenarios):
        table.add_row(f"... and {len(driven.scenarios) - len(shown)} more", *[""] * len(footer))
    return table


def _yes(value: bool | None) -> str:
    return "n/a" if value is None else "yes" if value else "no"


def _share(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.0%}"


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.1f}"


def write_films(folder: Path, driven: Driven, progress: Progress, *, observed: bool) -> None:
    """Write all films side by side as rollout.mp4, and the middle of them as rollout.png; `observed` as in `Rollout`."""
    kept = [(row, driven.films[row.scene]) for row in driven.scenarios if row.scene in driven.films]
    length = max(len(film.states) for _, film in kept) + HELD_FRAMES
    bar = progress.add_task("film", total=length, at="")

    def frames() -> Iterator[np.ndarray]:
        tiles = [_frames(row, film, observed) for row, film in kept]
        for number, frame in enumerate(_grid(tiles, length)):
            if number == (length - HELD_FRAMES) // 2:
                write_picture(folder / "rollout.png", frame)
            progress.advance(bar)
            yield frame

    write_video(folder / "rollout.mp4", frames())


def _grid(tiles: Sequence[Iterator[np.ndarray]], length: int) -> Iterator[np.ndarray]:
    """Yield every frame of all films side by side; a film that is over stands still."""
    columns = min(len(tiles), 4 if len(tiles) <= 8 else 5)
    last: list[np.ndarray] = [np.zeros(0)] * len(tiles)
    for _ in range(length):
        last = [next(tile, before) for tile, before in zip(tiles, last, strict=True)]
        yield contact_sheet(last, columns=columns)


def _frames(row: Scenario, film: Film, observed: bool) -> Iterator[np.ndarray]:
    """Yield the pictures of one scenario."""
    renderer = BirdEyeRenderer(width=FILM_PIXELS, height=FILM_PIXELS)
    scene = film.states[0].scene
    past = scene.position[0, :, :HISTORY_STEPS, :2]
    known = scene.valid[0, :, :HISTORY_STEPS]
    for number, (state, reward, seen) in enumerate(zip(film.states, film.rewards, film.observations, strict=True)):
        past = torch.cat((past, state.position[0, :, None, :2]), dim=1)[:, -TRAIL_STEPS:]
        known = torch.cat((known, state.valid[0, :, None]), dim=1)[:, -TRAIL_STEPS:]
        caption = [f"reward\t{reward:.1f}"]
        alert = row.ended.replace("_", " ") if number == len(film.states) - 1 and row.ended != "horizon" else ""
        marked = Observed(**visible(seen, ObservationSize())) if observed else None
        yield renderer.draw(state, trails=past, trails_valid=known, observation=marked, caption=caption, alert=alert)
    renderer.close()
