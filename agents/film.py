"""`worldloop data film`: drive through scenes and film what the ego's camera sees, for training a learned camera.

A clip holds the frames of one camera (drawn by `renderers/scene3d.py`), the layout of each and the ego's motion between them.
Cameras, drivers and appearances change from clip to clip, so that a camera trained on them has seen them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tyro.conf import Positional, arg

from ..worldmodel.camera import MOTIONS, motion_between, pose_features
from ..worldmodel.data.clips import Clip, ClipWriter
from ..worldmodel.data.shards import SceneDataset
from ..worldmodel.perspective import LAYOUT_CHANNELS, perspective_layout
from ..worldmodel.raster import road_pieces
from ..worldmodel.rig import APPEARANCES, RIGS, Camera, Rig
from ..worldmodel.run import dated_folder, seeded_generator, whole_run
from ..worldmodel.scene import TIME_STEP
from ..worldmodel.world import State, World
from .bootstrap import counted
from .crew import open_named_world
from .failures import Failures
from .policy import Policy, load_policy
from .rollout import Batches, open_scenes

if TYPE_CHECKING:
    from ..renderers.scene3d import SceneRenderer


@dataclass(frozen=True)
class FilmClips:
    """Drive through scenes and film them in 3-D: clips of frames, layouts and the ego's motion, to train a camera on.

    Example: worldloop data film scenes/made clips/made --clips 300
    """

    src: Annotated[str, Positional, arg(metavar="SRC")]
    """Folder of a data set of scenes, FOLDER:GLOB for some of them, or demo."""
    dst: Annotated[Path, Positional, arg(metavar="DST")]
    """Folder of clips to create."""
    clips: int | None = None
    """How many; scenes are drawn in random order, again and again where there are fewer. One for each scene if not given."""
    steps: int | None = None
    """Longest clip in steps of 0.1 s; as long as each scene's log if not given."""
    policies: tuple[str, ...] = ("idm", "noisy", "drunk", "idm_aggressive")
    """Who drives, in turn; the clumsy ones show what strong steering looks like."""
    world: str = "replay"
    """Who moves the others: replay, learned, learned_open (for minutes), sumo."""
    rigs: tuple[str, ...] = ("front", "front", "front", "surround")
    """Whose cameras film, in turn; of several cameras a random one."""
    appearances: tuple[str, ...] = APPEARANCES
    """Times of day and weathers, drawn at random."""
    height: int = 64
    """Rows of a frame, a multiple of 16 for the learned camera."""
    width: int = 128
    """Columns of a frame, a multiple of 16."""
    fewest: int = 12
    """Clips with fewer frames are left out."""
    seed: int = 0
    """Seed of drivers, cameras and appearances."""
    overwrite: bool = False
    """Replace what stands at the destination."""
    out: Path | None = None
    """Run folder, runs/data-film-DATE if not given."""


def film_clip(name: str, states: Sequence[State], camera: Camera, appearance: str, renderer: SceneRenderer) -> Clip:
    """Return what one camera saw of the states (B = 1 each) of a scenario."""
    rig, pieces = Rig((camera,), ("camera",)), road_pieces(states[0].scene)
    frames = torch.cat([renderer.draw(state, rig, [appearance]).colour[:, 0] for state in states])
    layout = torch.cat([perspective_layout(state, pieces, rig)[:, 0] for state in states])
    egos = [state.ego() for state in states]
    motion = [motion_between(before, after) for before, after in zip(egos, egos[1:], strict=False)]
    return Clip(
        id=name,
        frames=frames,
        action=torch.cat([*motion, motion[-1]]),  # nobody knows what follows the last frame
        action_names=MOTIONS,
        rate=1 / TIME_STEP,
        layout=layout,
        layout_names=LAYOUT_CHANNELS,
        pose=tuple(pose_features(camera)),
        appearance=appearance,
    )


def run_film(args: FilmClips) -> int:
    """Run `worldloop data film`; return the exit code, 1 if a scene failed."""
    from ..renderers.scene3d import SceneRenderer  # Open3D, which `--help` can do without

    if unknown := [name for name in args.rigs if name not in RIGS] + [a for a in args.appearances if a not in APPEARANCES]:
        raise ValueError(f"{unknown[0]!r} is unknown: rigs are {', '.join(RIGS)}, appearances {', '.join(APPEARANCES)}")
    if (args.clips or 1) < 1 or not args.policies or not args.rigs or not args.appearances:
        raise ValueError("wanted --clips >= 1 and at least one of --policies, --rigs, --appearances")
    scenes, world = open_scenes(args.src), open_named_world(args.world, None)
    drivers, renderer = [load_policy(name) for name in args.policies], SceneRenderer()
    generator, failures, frames, short = seeded_generator(args.seed, "camera clips"), Failures(), 0, 0
    pick = lambda count: int(torch.randint(count, (), generator=generator))  # noqa: E731
    total, order = args.clips or len(scenes), torch.randperm(len(scenes), generator=generator).tolist()
    columns = (TextColumn("clips"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    out = args.out or dated_folder("data film")
    with (
        whole_run(out, "data film", asdict(args), args.seed) as run,
        ClipWriter(args.dst, overwrite=args.overwrite) as writer,
        Progress(*columns, console=Console(stderr=True)) as progress,
    ):
        bar = progress.add_task("", total=total)
        for number in range(total):
            row = order[number % len(scenes)]
            rig = RIGS[args.rigs[number % len(args.rigs)]].resized(args.width, args.height)
            camera, appearance = rig.cameras[pick(len(rig))], args.appearances[pick(len(args.appearances))]
            driver = number // len(args.rigs) % len(drivers)  # so that every driver sits behind every rig
            states = driven(drivers[driver], world, scenes, row, args, number, failures)
            if len(states) >= max(args.fewest, 2):
                writer.add(
                    film_clip(f"{scenes.ids[row]}/{number:05d}", states, camera, appearance, renderer), source=scenes.ids[row]
                )
                frames += len(states)
            elif states:
                short += 1
            progress.advance(bar)
        if not frames:
            told = failures.first() if failures else f"none lasts for {args.fewest} frames"
            raise ValueError(f"none of the {total} clips could be filmed, the first one: {told}")
        failures.write(run.folder)
        clips = total - short - len(failures)
        run.finish({"clips": clips, "frames": frames, "short": short, "failed": len(failures)})
    console = Console(highlight=False)
    left_out = f", {counted(short, 'clip')} of fewer than {args.fewest} frames left out" if short else ""
    told = f"{counted(clips, 'clip')}, {counted(frames, 'frame')}{left_out}"
    console.print(f"{told}: {args.dst} (run record: {out})", markup=False, soft_wrap=True)
    return failures.tell()


def driven(
    policy: Policy, world: World, scenes: SceneDataset, row: int, args: FilmClips, number: int, failures: Failures
) -> list[State]:
    """Return the states of one scenario, which nothing ends but its time; none and a note where it fails."""
    batches = Batches(policy, world, scenes, scenes.sizes(readable=True), args.steps, (), lambda *_: None)
    ((scenario, film),) = batches.run([row], args.seed + number - row, [row])
    if film is None:
        failures.note(scenario.scene, ValueError(scenario.error))
        return []
    return film.states
