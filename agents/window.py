"""`worldloop drive`: a window to drive in, by keyboard or gamepad, or to watch a policy in, in a world that answers.

    hands (window) -> commands -> action (wheel or policy) -> session.step -> picture (cockpit) -> window

One turn of the loop is one step of 0.1 s. Where a step takes longer than that, time goes slower; no step is ever left out.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from ..envs.cameras import open_camera
from ..envs.reward import reward_weights
from ..envs.vector import WORLDS
from ..renderers.cockpit import Cockpit, Instruments
from ..renderers.video import VideoWriter, write_picture
from ..renderers.window import SMALLEST, Hands, Script, Window
from ..worldmodel.rig import RIGS
from ..worldmodel.run import dated_folder, require_free, whole_run
from ..worldmodel.scene import TIME_STEP
from .drive import WIDTH, scenario_table
from .driven import EPISODES, SCENES, Recording, read_drive, write_drive
from .policy import Policy, load_policy
from .rollout import SCENE_ERRORS, PolicyError, Rollout, open_scenes
from .session import Session
from .wheel import CAR, Wheel, full_turn

RATE = 1 / TIME_STEP
NOTICE_STEPS, ALERT_STEPS = 25, 10
"""Turns of the loop for which a notice and an alert stay."""

TRAIL = 20
"""Steps of everyone's way that are shown."""

ALERTS = ("collision", "off_road", "red_light")
STAND_IN = "idm"
"""The policy that takes over where none is named."""


@dataclass(frozen=True)
class Drive:
    """Drive in the world yourself, in a window; or let a policy, and take the wheel when you like.

    Arrows or WASD (or a gamepad) drive, space brakes as hard as the car can, so that one sees who reacts; T hands the wheel to
    the policy and back, P pauses, R, N, Tab: again, next scene, next world; H lists all keys. Escape ends: the run folder gets
    run.json, episodes.json and a CSV an episode (every action, where it led, what it earned), scenes/ (what was driven, as a
    data set: for --world replay, or train clone --expert replay), and with --video drive.mp4.

    Example: worldloop drive --camera scene3d
    """

    policy: str | None = None
    """Drives from the start, as in `worldloop rollout`; not given: you drive, and idm is who takes over."""
    world: str = "learned"
    """Who moves the others: learned, learned_open, replay, constant_velocity, idm, or sumo (generated scenes only)."""
    scenes: str = "demo"
    """Folder of a data set, FOLDER:GLOB for some of its scenes by id, or demo for the shipped ones."""
    scene: str | None = None
    """Id or number of the scene to begin with."""
    camera: str = "none"
    """What shows the ego's view: none, scene3d (Open3D, extra view), or layout (what a camera knows of the world, as colours)."""
    rig: str = "front"
    """Where its cameras are: front, front3, surround."""
    pixels: int = 320
    """Columns of each camera's picture, twice its rows."""
    reward: str = "progress"
    """Whose terms are shown: progress, nuplan, epdms."""
    weights: Path | None = None
    """Folder of a trained behaviour model for the learned worlds, instead of the shipped one, or small or large."""
    seed: int = 0
    """Of the others' futures."""
    steps: int | None = None
    """End after so many steps of 0.1 s."""
    size: tuple[int, int] = (1320, 760)
    """Width and height of the window in pixels; it can be resized."""
    script: str | None = None
    """Keys to press without a window: "up 20, left+up 5, space 10, p 1, n 1" (keys or commands, and for how many steps), or a
    file of such lines."""
    headless: bool = False
    """Without a window and as fast as it goes; needs --script, --steps or --replay."""
    replay: Path | None = None
    """Run folder of an earlier drive: drive its episodes again and check that they end in the same bits."""
    threads: int = 1
    """Of torch: for one scene more of them do not pay. The same number gives the same bits."""
    video: bool = False
    """Film the window."""
    screenshot: Path | None = None
    """Where to put the last picture, as PNG."""
    out: Path | None = None
    """Run folder, runs/drive-DATE if not given."""


def run_drive(args: Drive) -> int:
    """Run `worldloop drive`; return the exit code: 1 where a replay ends otherwise than what it replays."""
    out = args.out or dated_folder("drive")
    require_free(out)
    args, recordings = _recordings(args)
    script = None if args.script is None else Script.open(args.script)
    _check(args)
    torch.set_num_threads(args.threads)
    policy = load_policy(args.policy or STAND_IN)
    camera = None if args.camera == "none" else open_camera(args.camera, RIGS[args.rig].resized(args.pixels, args.pixels // 2))
    session = Session(open_scenes(args.scenes), camera, args.reward, args.weights)
    try:
        if recordings:
            first = recordings[0]
            session.begin(session.scenes.index_of(first.scene), first.world, first.seed)
        else:
            session.begin(_number(session, args.scene), args.world, args.seed)
        with ExitStack() as stack:
            headless = args.headless or script is not None
            window = stack.enter_context(Window(args.size, "worldloop drive", headless=headless))
            run = stack.enter_context(whole_run(out, "drive", asdict(args), args.seed))
            film = stack.enter_context(VideoWriter(run.folder / "drive.mp4")) if args.video else None
            desk = Desk(session, window, policy, args, run.folder, film, recordings)
            with interrupted_by(desk.end):
                desk.drive(script)
            session.finish("left")
            if args.screenshot is not None:
                write_picture(args.screenshot, desk.picture)
            write_drive(run.folder, session.results())
            run.finish(_results(session, desk))
        _tell(session, desk, out, film is not None)
    finally:
        session.close()
    return 1 if desk.differs else 0


def _recordings(args: Drive) -> tuple[Drive, list[Recording]]:
    """Return the episodes to replay, and the arguments with the scenes, weights, reward and threads of that drive."""
    if args.replay is None:
        return args, []
    if args.policy or args.scene:
        raise ValueError("--replay: who drives and where stands in the recording: leave out --policy and --scene")
    told, recordings = read_drive(args.replay)
    weights = Path(told["weights"]) if told["weights"] else None
    return replace(args, **{name: told[name] for name in ("scenes", "reward", "threads")}, weights=weights), recordings


def _check(args: Drive) -> None:
    reward_weights(args.reward)
    if args.world not in WORLDS:
        raise ValueError(f"--world {args.world}: unknown, choose among {', '.join(WORLDS)}")
    if args.rig not in RIGS:
        raise ValueError(f"--rig {args.rig}: unknown, choose among {', '.join(RIGS)}")
    if args.pixels < 16 or args.threads < 1:
        raise ValueError(f"found --pixels {args.pixels}, --threads {args.threads}: wanted pixels >= 16, threads >= 1")
    if args.steps is not None and args.steps < 1:
        raise ValueError(f"--steps {args.steps}: wanted at least 1")
    if args.seed < 0:
        raise ValueError(f"--seed {args.seed}: wanted a number >= 0")
    if args.size[0] < SMALLEST[0] or args.size[1] < SMALLEST[1]:
        raise ValueError(f"--size {args.size[0]} {args.size[1]}: wanted at least {SMALLEST[0]} {SMALLEST[1]}")
    if args.headless and args.script is None and args.steps is None and args.replay is None:
        raise ValueError("--headless: would never end: add --script, --steps or --replay")
    if args.screenshot is not None and args.screenshot.suffix.lower() != ".png":
        raise ValueError(f"--screenshot {args.screenshot}: wanted a name that ends in .png")


def _number(session: Session, scene: str | None) -> int:
    """Return the number of the scene to begin with, given by its id or number."""
    if scene is None:
        return 0
    if scene.isascii() and scene.isdigit():
        if int(scene) >= len(session.scenes):
            raise ValueError(f"--scene {scene}: wanted a number from 0 to {len(session.scenes) - 1}, or an id")
        return int(scene)
    return session.scenes.index_of(scene)


@contextmanager
def interrupted_by(end: Callable[[], None]) -> Iterator[None]:
    """Let Ctrl-C and a polite kill `end` the loop after its step, not within it; a second Ctrl-C interrupts at once."""

    def handle(number: int, frame: object) -> None:
        end()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Desk:
    """The loop, and what every command does.

    Attributes:
        picture: what is shown, (height, width, 3) uint8.
        differs: names of the replayed episodes that have ended otherwise than they did.
    """

    picture: np.ndarray

    def __init__(
        self,
        session: Session,
        window: Window,
        policy: Policy,
        args: Drive,
        folder: Path,
        film: VideoWriter | None,
        recordings: Sequence[Recording],
    ) -> None:
        self.session, self.window, self.policy, self.args = session, window, policy, args
        self.folder, self.film, self.recordings = folder, film, list(recordings)
        self.cockpit = Cockpit(args.size, None if session.camera is None else session.camera.rig)
        self.wheel, self.differs, self.driven, self.pictures = Wheel(), list[str](), 0, 0
        self.policy_drives, self.paused, self.help, self.ends = args.policy is not None, False, False, False
        self.one_step = False
        self.driver = args.policy or "you"
        self._notice, self._alert, self._rate = ("H shows the keys", NOTICE_STEPS), ("", 0), 0.0
        self._sitting = 0  # how many recordings have been driven to their ends

    def end(self) -> None:
        """End the loop after this step."""
        self.ends = True

    def drive(self, script: Script | None) -> None:
        """Turn the loop until a command, the script, the recordings or the number of steps ends it."""
        self._draw()
        while not self.ends and (script is None or script.press()):
            self.turn()
            nobody = script is None and self.window.headless and self.session.over and not self.recordings
            if nobody or (self.args.steps is not None and self.driven >= self.args.steps):
                self.ends = True  # without a window and a script nobody can begin what follows an episode

    def turn(self) -> None:
        """Turn the loop once: what the hands do, 0.1 s of driving, a picture."""
        hands = self.window.hands()
        if hands.resized is not None:
            self.cockpit.resize(hands.resized)
        for command in hands.pressed:
            self.obey(command)
        if not self.ends and not self.session.over and (not self.paused or self.one_step):
            self._step(hands)
        self.one_step = False
        self._draw()
        self._rate = self.window.wait(RATE)

    def obey(self, command: str) -> None:
        """Do what a command of `renderers.window.COMMANDS` that is not held says."""
        at = self.session.recorder
        match command:
            case "take_over":
                self.policy_drives, self.wheel = not self.policy_drives, Wheel()
                self._say(f"{self.args.policy or STAND_IN} drives" if self.policy_drives else "you drive")
            case "pause":
                self.paused = not self.paused
            case "single_step":
                self.one_step = self.paused
            case "again":
                self._begin(at.number, at.world, at.seed)
            case "other_future":
                self._begin(at.number, at.world, at.seed + 1)
            case "next_scene":
                self._begin(at.number + 1, at.world, at.seed)
            case "previous_scene":
                self._begin(at.number - 1, at.world, at.seed)
            case "world":
                names = self.session.possible_worlds()
                self._begin(at.number, names[(names.index(at.world) + 1) % len(names)], at.seed)
            case "turn_view":
                self.cockpit.turn()
            case "closer" | "farther":
                self.cockpit.zoom(1 if command == "closer" else -1)
            case "picture":
                name = f"picture-{self.pictures:03d}.png"
                write_picture(self.folder / name, self.picture)
                self.pictures += 1
                self._say(f"{name} will lie in the run folder")
            case "help":
                self.help = not self.help
            case "quit":
                self.ends = True

    def _begin(self, number: int, world: str, seed: int) -> None:
        """Begin another episode; where that cannot be done, say why and go on with this one."""
        if self.recordings:
            self._say("a replay takes its own course")
            return
        try:
            self.session.begin(number, world, seed)
        except (*SCENE_ERRORS, ImportError) as error:
            self._say(str(error))
            return
        self.wheel, self._alert = Wheel(), ("", 0)
        self._say(f"{self.session.recorder.scene.id[0]} in the {world} world, seed {seed}")

    def _step(self, hands: Hands) -> None:
        """Drive 0.1 s as the hands, the policy or the recording say."""
        action = self._recorded() if self.recordings else self._chosen(hands)
        try:
            self.session.step(action, self.driver)
        except SCENE_ERRORS as error:  # a simulator that died, say: what was driven until here is kept
            self.session.over = True
            self._say(str(error))
            if self.recordings:
                self._next(differs=True)
            return
        self.driven += 1
        for name in ALERTS:
            if self.session.happened(name):
                self._alert = (name.replace("_", " "), ALERT_STEPS)
        if self.recordings:
            self._compare()

    def _chosen(self, hands: Hands) -> Tensor:
        speed = self.session.speed
        self.wheel = self.wheel.turn(hands.held, hands.pad)
        action, self.driver = torch.tensor([self.wheel.action(speed)]), "you"
        if self.policy_drives:
            try:
                action, self.driver = self.session.choose(self.policy), self.args.policy or STAND_IN
            except PolicyError as error:
                self.policy_drives = False
                self._say(f"the wheel is yours: {error}")
        if "brake_test" in hands.held:
            action = torch.stack((torch.full_like(action[:, 0], CAR.min_acceleration), action[:, 1]), dim=-1)
            self.driver = f"{self.driver}, brake test"
        return action

    def _recorded(self) -> Tensor:
        told = self.recordings[self._sitting]
        self.driver = f"recording {told.name}"
        return told.actions[len(self.session.recorder.rows)][None]

    def _compare(self) -> None:
        """At the end of a recording, see whether it ended as it did, and begin the next."""
        told = self.recordings[self._sitting]
        if len(self.session.recorder.rows) < len(told.actions) and not self.session.over:
            return
        self._next(self.session.recorder.checksum != told.checksum)

    def _next(self, differs: bool) -> None:
        """Note whether a recording came out otherwise, and begin the next, or end."""
        if differs:
            self.differs.append(self.recordings[self._sitting].name)
        self._sitting += 1
        if self._sitting == len(self.recordings):
            self.ends = True
            return
        following = self.recordings[self._sitting]
        self.session.begin(self.session.scenes.index_of(following.scene), following.world, following.seed)

    def _say(self, text: str) -> None:
        self._notice = (" ".join(text.split()), NOTICE_STEPS)

    def _draw(self) -> None:
        session = self.session
        recorder, sight = session.recorder, session.env.sight
        self.picture = self.cockpit.draw(
            session.state,
            self._instruments(),
            trails=recorder.lately("position", TRAIL)[0, ..., :2],
            trails_valid=recorder.lately("valid", TRAIL)[0],
            frames=None if sight is None else sight.frame[0].numpy(force=True),
            help=self.help,
        )
        self.window.show(self.picture)
        if self.film is not None:
            self.film.add(self.picture)
        self._notice = (self._notice[0], self._notice[1] - 1)
        self._alert = (self._alert[0], self._alert[1] - 1)

    def _instruments(self) -> Instruments:
        session, recorder = self.session, self.session.recorder
        acceleration, curvature = session.action.tolist()
        behind, curves = session.behind()
        ended = "the world cannot go on here:  R again   N next scene   Tab another world"
        return Instruments(
            world=recorder.world,
            driver=self.driver,
            scene=recorder.scene.id[0],
            place=(recorder.number + 1, len(session.scenes)),
            seed=recorder.seed,
            step=len(recorder.rows),
            speed=session.speed,
            acceleration=acceleration,
            curvature=curvature,
            steering=curvature / full_turn(session.speed),
            reward=sum(session.totals.values()),
            terms={name: float(value[0]) for name, value in session.terms().items()},
            totals=session.totals,
            uncertainty=session.uncertainty(),
            agents=int((session.state.simulated & session.state.valid).sum()),
            follower=behind,
            curves=curves,
            rate=self._rate,
            wanted_rate=RATE,
            status=ended if session.over else "paused" if self.paused else "",
            alert=self._alert[0] if self._alert[1] > 0 else "",
            notice=self._notice[0] if self._notice[1] > 0 else "",
            recorded=self.driven,
        )


def _results(session: Session, desk: Desk) -> dict[str, object]:
    """Return what run.json says of the drive."""
    driven = Rollout(tuple(done.scenario for done in session.finished), {}, 1.0)
    means = driven.summary() if session.finished else {}
    means.pop("steps_per_second", None)  # of someone who pauses it tells nothing
    replayed = {"replayed": len(desk.recordings), "differ": desk.differs} if desk.recordings else {}
    return {"episodes": len(session.finished), "steps": desk.driven, **means, **replayed}


def _tell(session: Session, desk: Desk, out: Path, filmed: bool) -> None:
    """Print the episodes, and where they lie."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    if session.finished:
        rows = tuple(done.scenario for done in session.finished)
        console.print(scenario_table(Rollout(rows, {}, sum(row.steps / row.steps_per_second for row in rows)), "driven"))
    said = [f"{desk.driven} steps, record: {out / EPISODES}"]
    said += [f"as a data set: {out / SCENES}"] if session.finished else []
    said += [f"film: {out / 'drive.mp4'}"] if filmed else []
    if desk.recordings:
        differing = f"otherwise than recorded: {', '.join(desk.differs)} (other weights, versions, machine or number of threads?)"
        said.append(f"replayed {len(desk.recordings)} episodes, {differing if desk.differs else 'each to the same bits'}")
    for line in said:
        console.print(line, markup=False, soft_wrap=True)
