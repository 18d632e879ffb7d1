"""Workers: processes that drive batches of scenes, so that all cores are used and nothing that a policy does stops the rest.

Every job is a batch of scenes of one policy in one world. A worker tells each step that it has done; one that tells nothing for
`limit` seconds is killed, as a policy that never returns cannot be stopped otherwise, and one that dies (a crash in a policy's
library) is seen at once. Its batch is then driven scene by scene, until the scene that is to blame stands alone. What died or
hung is put on the policy where that is a user's own; an error of worldloop's never is. Torch runs on one thread in every worker,
so rows do not depend on how many workers there are.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Self

import torch

from ..envs.vector import open_world
from ..renderers.report import film_data
from ..worldmodel.world import LearnedWorld, World
from .policy import Policy, load_policy
from .rollout import Batches, Scenario, open_scenes

OPENING = 120.0
"""Seconds more that a batch gets until its first step: imports, weights, and SUMO's start."""

Driven = list[tuple[Scenario, dict[str, Any] | None]]
"""Scenarios, each with what the report's player shows of it where it was filmed (`renderers.report.film_data`)."""


@dataclass(frozen=True)
class Job:
    """A batch of scenes to drive: who, in which world, which scenes by number, from which seed, whom to film."""

    policy: str
    world: str
    seed: int
    numbers: tuple[int, ...]
    film: tuple[int, ...] = ()


@dataclass(frozen=True)
class Task:
    """What all jobs share: the scenes' place, the folder of other weights for the learned world, the horizon in steps."""

    scenes: str
    weights: Path | None = None
    horizon: int | None = None


def open_named_world(name: str, weights: Path | None) -> World:
    """Return a world by its name; the learned ones with other weights where a folder of them is given."""
    if weights is None or name not in ("learned", "learned_open"):
        return open_world(name)
    world = LearnedWorld.from_pretrained(weights)
    if name == "learned":
        return world
    from ..worldmodel.borders import OpenBorders

    return OpenBorders(world)


@dataclass(frozen=True)
class _Broken:
    """Why a job has not been driven: an error of ours, which a worker tells with its trace, or a process that died or hung."""

    trace: str
    ours: bool


@dataclass
class _Worker:
    """A process, its pipe, what it does (a job and its number), since when it has been silent, whether it has made a step."""

    process: Any
    pipe: Connection
    doing: tuple[int, Job] | None = None
    heard: float = 0.0
    steps: bool = False

    def begin(self, number: int, job: Job) -> bool:
        """Hand over a job; return False if the process has died meanwhile."""
        try:
            self.pipe.send(job)
        except OSError:
            return False
        self.doing, self.heard, self.steps = (number, job), time.monotonic(), False
        return True

    def listen(self, tell: Callable[[int, str], None]) -> Driven | _Broken | None:
        """Read what it says: what it has driven, or why it has not; None after a mere step."""
        assert self.doing is not None
        try:
            while self.pipe.poll():
                said = self.pipe.recv()
                self.heard, self.steps = time.monotonic(), True
                if isinstance(said, BaseException):
                    raise said
                if not isinstance(said, str):
                    return said
                tell(self.doing[0], said)
        except (EOFError, ConnectionError):
            self.process.join()
            return _Broken(f"the process that drove it died with exit code {self.process.exitcode}", ours=False)
        return None


class Crew:
    """Drives jobs with several processes; use it as a context manager, so that none is left behind."""

    def __init__(self, task: Task, workers: int | None, limit: float) -> None:
        """Prepare to drive.

        Args:
            task: what all jobs share.
            workers: processes; as many as cores if None.
            limit: seconds for a step, after which a worker is killed.
        """
        self.task, self.count, self.limit = task, workers or os.cpu_count() or 1, limit
        self.workers: list[_Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            _dismiss(worker)
        self.workers = []

    def drive(
        self, jobs: Sequence[Job], tell: Callable[[int, str], None] = lambda number, step: None
    ) -> Iterator[tuple[int, Driven]]:
        """Drive jobs; yield each one's number and what came of it, as they are done, and `tell` number and step meanwhile.

        Raises:
            ValueError, OSError, ImportError: a policy, world or data set cannot be opened.
        """
        waiting = deque(enumerate(jobs))
        parts: dict[int, Driven] = {}  # of jobs that are driven scene by scene
        self.workers += [_hire(self.task) for _ in range(min(self.count, len(jobs)) - len(self.workers))]
        while waiting or any(worker.doing for worker in self.workers):
            for place, worker in enumerate(self.workers):
                if worker.doing is None and waiting:
                    if worker.begin(*waiting[0]):
                        waiting.popleft()
                    else:
                        _dismiss(worker)
                        self.workers[place] = _hire(self.task)
            wait([worker.pipe for worker in self.workers if worker.doing], timeout=1.0)
            for worker in [worker for worker in self.workers if worker.doing]:
                found = worker.listen(tell)
                patience = self.limit + (0 if worker.steps else OPENING)
                if found is None and time.monotonic() - worker.heard > patience:
                    told = f"no step within {self.limit:g} s: the policy or the world never returned, and was stopped"
                    found = _Broken(told, ours=False)
                if found is None:
                    continue
                assert worker.doing is not None
                (number, job), worker.doing = worker.doing, None
                driven: Driven = [(self._failed(job, found), None)] if isinstance(found, _Broken) else found
                if isinstance(found, _Broken):
                    _dismiss(worker)
                    self.workers[self.workers.index(worker)] = _hire(self.task)
                    if len(job.numbers) > 1:
                        waiting.extendleft((number, replace(job, numbers=(one,))) for one in reversed(job.numbers))
                        parts[number] = []
                        continue
                if number in parts:
                    parts[number] += driven
                    if len(parts[number]) < len(jobs[number].numbers):
                        continue
                    order = {scene: place for place, scene in enumerate(self._ids(jobs[number]))}
                    driven = sorted(parts.pop(number), key=lambda one: order[one[0].scene])
                yield number, driven

    def _ids(self, job: Job) -> list[str]:
        ids = open_scenes(self.task.scenes).ids
        return [ids[number] for number in job.numbers]

    def _failed(self, job: Job, why: _Broken) -> Scenario:
        """Return the row of a scenario that was not driven; for a process that died or hung a user's own driver is blamed."""
        ended = "policy_failed" if not why.ours and ":" in job.policy else "failed"
        error, scene = why.trace.strip().splitlines()[-1], self._ids(job)[0]
        return Scenario(scene, job.seed + job.numbers[0], ended, error=error, trace=why.trace)


def _hire(task: Task) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, task, sys.path[:]), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _dismiss(worker: _Worker) -> None:
    worker.pipe.close()
    worker.process.kill()
    worker.process.join()


def _work(pipe: Connection, task: Task, path: list[str]) -> None:
    """What a worker does: jobs from its pipe, answers into it, until the pipe closes."""
    sys.path[:] = path
    torch.set_num_threads(1)
    scenes = open_scenes(task.scenes)
    sizes = scenes.sizes(readable=True)
    policies: dict[str, Policy] = {}
    worlds: dict[str, World] = {}
    while True:
        try:
            job: Job = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            if job.policy not in policies:
                policies[job.policy] = load_policy(job.policy)
            if job.world not in worlds:
                worlds[job.world] = open_named_world(job.world, task.weights)
            batches = Batches(
                policies[job.policy],
                worlds[job.world],
                scenes,
                sizes,
                task.horizon,
                (),
                lambda done, total, step: pipe.send(step),
            )
            driven = batches.run(job.numbers, job.seed, job.film)
            pipe.send([(one, film and film_data(film.states, one.ended)) for one, film in driven])
        except KeyboardInterrupt:
            return
        except (ValueError, OSError, ImportError) as error:
            pipe.send(error)
        except Exception:  # an error of ours, in measures, worlds or torch: told as that, and never put on the policy
            pipe.send(_Broken(traceback.format_exc(), ours=True))
            raise
