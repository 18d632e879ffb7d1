"""`worldloop view`: drive a policy through scenes and film it in 3-D: from behind, from the seat, from around, or by a rig."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..renderers.video import Frame, contact_sheet, write_picture, write_video
from ..worldmodel.rig import RIGS, Camera, Rig
from ..worldmodel.run import dated_folder, require_free, whole_run
from ..worldmodel.world import State
from .crew import open_named_world
from .policy import load_policy
from .rollout import open_scenes, rollout

Draw = Callable[[State, Rig], np.ndarray]

CAMERAS = ("chase", "cockpit", "orbit")
ORBIT_RADIUS, ORBIT_HEIGHT, ORBIT_TURN = 11.0, 5.0, math.radians(1.5)
"""Metres, and radians by which the camera goes on around the ego in a step."""


@dataclass(frozen=True)
class View:
    """Drive a policy through scenes in a world and film it in 3-D.

    Needs the extra `view` (Open3D). Pictures are made by casting rays, on any CPU, without a display. The run folder gets one
    film for each camera (chase.mp4, cockpit.mp4, orbit.mp4; of several scenes one after the other), view.png (the middle frame of
    each) and run.json (arguments, versions, summary).

    Example: worldloop view --scenes scenes/pandaset --limit 1 --camera chase cockpit --appearance dusk --out runs/dusk
    """

    policy: str = "idm"
    """Who drives, as in `worldloop rollout`."""
    world: str = "learned"
    """Who moves the others: learned, learned_open, replay (the log), constant_velocity, or sumo (generated scenes only)."""
    scenes: str = "demo"
    """Folder of a data set, FOLDER:GLOB for some of its scenes by id, or demo for the shipped ones."""
    weights: Path | None = None
    """Folder of a trained behaviour model, instead of the shipped one, or small or large."""
    limit: int = 1
    """Film so many of the scenes, the first ones."""
    horizon: int | None = None
    """Steps of 0.1 s. Not given: as long as each scene's log (80 where a scene is a moment without a log after it)."""
    seed: int = 0
    """Scenario i is driven with seed + i."""
    camera: tuple[str, ...] = CAMERAS
    """Films to make: chase (from behind), cockpit (the driver's seat), orbit (around the ego), or a rig of cameras, side by side:
    rig:front, rig:front3, rig:surround."""
    appearance: Literal["day", "dusk", "night", "rain", "fog"] = "day"
    """Time of day or weather."""
    width: int = 640
    """Pixels of a picture; of each camera of a rig a third."""
    height: int = 360
    """Pixels of a picture; of each camera of a rig a third."""
    supersample: int = 2
    """Rays along each side of a pixel: 1 is four times as fast, and edges are jagged."""
    shadows: bool = True
    """Throw shadows and mirror what stands beside wet roads: takes twice as long."""
    backend: Literal["rays", "gl"] = "rays"
    """rays: cast by the CPU, anywhere. gl: OpenGL through EGL, plain and by day alone, fast where there is a GPU."""
    out: Path | None = None
    """Run folder, runs/view-DATE if not given."""


def run_view(args: View) -> int:
    """Run `worldloop view`; return the exit code: 1 if a scenario failed."""
    if min(args.width, args.height, args.limit, args.supersample) < 1:
        raise ValueError("--width, --height, --limit and --supersample must be at least 1")
    if args.backend == "gl" and args.appearance != "day":
        raise ValueError(f"--backend gl draws by day alone, found --appearance {args.appearance}: take --backend rays")
    for camera in args.camera:
        rig_of(camera, args.width, args.height, 0)
    out = args.out or dated_folder("view")
    require_free(out)
    drawers = _drawers(args)
    policy, world = load_policy(args.policy), open_named_world(args.world, args.weights)
    scenes = open_scenes(args.scenes).first(args.limit)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with whole_run(out, "view", asdict(args), args.seed) as run, Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task(f"{args.policy} in the {args.world} world", total=len(scenes))
        driven = rollout(
            policy,
            world,
            scenes,
            seed=args.seed,
            steps=args.horizon,
            film=args.limit,
            tell=lambda done, total, at: progress.update(bar, completed=done, total=total),
        )
        states = [state for film in driven.films.values() for state in film.states]
        if states:
            bar = progress.add_task("films", total=len(states) * len(args.camera))
            middles = []
            for camera, drawer in drawers.items():
                with drawer as draw:
                    middles.append(_film(run.folder, camera, states, args, draw, lambda: progress.advance(bar)))
            write_picture(run.folder / "view.png", contact_sheet(_alike(middles), columns=2 if len(middles) > 1 else 1))
        run.finish(driven.summary())
    console = Console(highlight=False)
    failed = [row for row in driven.scenarios if row.error is not None]
    for row in failed:
        console.print(f"failed: {row.scene}: {row.error}", markup=False, soft_wrap=True)
    for row in driven.scenarios:
        if row.error is None:
            console.print(f"{row.scene}: {row.steps} steps, {row.progress:.0f} m, ended by {row.ended}", markup=False)
    if states:
        names = ", ".join(f"{camera.removeprefix('rig:')}.mp4" for camera in args.camera)
        console.print(f"{out}: {names}, view.png", markup=False, soft_wrap=True)
    return 1 if failed else 0


def rig_of(camera: str, width: int, height: int, step: int) -> Rig:
    """Return the cameras of a film, in the ego's frame, at one of its steps.

    Raises:
        ValueError: there is no such camera.
    """
    if camera == "chase":
        one = Camera.with_view(62.0, width, height, position=(-8.5, 0.0, 3.3), pitch=0.16)
    elif camera == "cockpit":
        one = Camera.with_view(75.0, width, height, position=(0.25, 0.34, 1.4), pitch=0.05)
    elif camera == "orbit":
        around = math.radians(40.0) + step * ORBIT_TURN
        place = (ORBIT_RADIUS * math.cos(around), ORBIT_RADIUS * math.sin(around), ORBIT_HEIGHT)
        one = Camera.with_view(58.0, width, height, position=place, yaw=around + math.pi, pitch=0.33)
    elif camera.removeprefix("rig:") in RIGS and camera.startswith("rig:"):
        return RIGS[camera.removeprefix("rig:")].resized(max(width // 3, 1), max(height // 3, 1))
    else:
        known = ", ".join((*CAMERAS, *(f"rig:{name}" for name in RIGS)))
        raise ValueError(f"--camera {camera}: there is no such camera: choose one of {known}")
    return Rig((one,), (camera,))


def _film(folder: Path, camera: str, states: Sequence[State], args: View, draw: Draw, tell: Callable[[], None]) -> Frame:
    """Write one camera's film; return its frame in the middle."""
    middle: list[Frame] = []

    def frames() -> Iterator[Frame]:
        for step, state in enumerate(states):
            colour = draw(state, rig_of(camera, args.width, args.height, step))
            frame = contact_sheet(list(colour), columns=3) if len(colour) > 1 else np.ascontiguousarray(colour[0])
            if step == len(states) // 2:
                middle.append(frame)
            tell()
            yield frame

    write_video(folder / f"{camera.removeprefix('rig:')}.mp4", frames())
    return middle[0]


def _alike(frames: Sequence[Frame]) -> list[Frame]:
    """Bring frames to one size with white below and to the right: a rig's is another one than a single camera's."""
    height, width = (max(frame.shape[side] for frame in frames) for side in (0, 1))
    return [
        np.pad(frame, ((0, height - len(frame)), (0, width - frame.shape[1]), (0, 0)), constant_values=255) for frame in frames
    ]


def _drawers(args: View) -> dict[str, AbstractContextManager[Draw]]:
    """Return by camera what, once entered, draws one state by all cameras of a rig, (C, height, width, 3) uint8.

    What needs Open3D is imported here, so that `--help` needs it not, and before anything is driven.
    """
    if args.backend == "gl":
        from ..renderers.scene3d_gl import require_opengl

        require_opengl()
        return {camera: _gl_drawer(camera, args) for camera in args.camera}
    from ..renderers.scene3d import SceneRenderer

    seated, outside = (
        SceneRenderer(appearance=args.appearance, supersample=args.supersample, shadows=args.shadows, bonnet=bonnet)
        for bonnet in (True, False)
    )

    def drawer(renderer: SceneRenderer) -> Draw:
        return lambda state, rig: renderer.draw(state, rig).colour[0].numpy()

    return {camera: nullcontext(drawer(outside if camera.startswith("rig:") else seated)) for camera in args.camera}


@contextmanager
def _gl_drawer(camera: str, args: View) -> Iterator[Draw]:
    """Open one unseen window for a camera's film, and close it after the film."""
    from ..renderers.scene3d_gl import GlRenderer

    first = rig_of(camera, args.width, args.height, 0)
    window = GlRenderer(first.width, first.height, bonnet=camera == "cockpit")
    try:
        yield lambda state, rig: np.stack([window.draw(state, Rig((one,), ("one",))).numpy() for one in rig.cameras])
    finally:
        window.close()
