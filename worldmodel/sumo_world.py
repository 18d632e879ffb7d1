"""SumoWorld: the reference world, in which SUMO drives everyone but the ego.

A scene that `generate` made carries the recipe of its simulation. `reset` starts this very simulation again up to the present;
every step moves the ego where it has driven to (`moveToXY`), and SUMO's drivers, cyclists, pedestrians and signals answer.

Every row of a batch runs in a worker process of its own. The state remains a value all the same: its `memory` holds the ego's
motions since the reset, and SUMO is deterministic, so a worker that does not hold the moment that is asked for (the state was
restored, repeated, stepped twice) goes back to the scene's present and drives the recorded motions again. The result is the same
to the bit.

Notes on what is simulated:
    - The seed of SUMO's randomness comes from the recipe; the row's key changes nothing: two rows of one scene differ only by
      what their ego does. (SUMO takes a seed only when it starts, not at the present of a scene.)
    - Agents are those of the scene, in its order. Whoever leaves the network becomes invalid; vehicles of SUMO's that are not
      among the scene's agents drive along unseen.
    - Vehicles see the ego on the road, also beside its route; pedestrians see it on the road and on crossings. Collisions have
      no consequence in SUMO: it neither stops nor removes anybody.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from .scene import HISTORY_STEPS, AgentKind, Scene
from .sumo_map import LETTER_STATES
from .sumo_process import RECIPE_VERSION, Inputs, require_sumo, source_inputs
from .world import Motion, State, logged_state, place_ego

_AGREEMENT = 0.05
"""Metres by which SUMO may differ from the log at the present; it is the same simulation, so only rounding is left."""

_RECIPE_FIELDS = {"agents": list, "begin": int, "ego": str, "offset": list, "signals": list, "source": dict}


@dataclass(eq=False)
class _Worker:
    """One worker process and the moment that it holds: a recipe, and a digest of the ego's motions since the present."""

    process: subprocess.Popen[bytes]
    recipe: str = ""
    history: bytes | None = None
    used: int = 0
    present: dict[str, Any] = field(default_factory=dict)

    def send(self, request: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise self.lost() from error

    def receive(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.endswith(b"\n"):
            raise self.lost()
        reply = json.loads(line)
        if "error" in reply:
            raise ValueError(reply["error"])
        return reply

    def lost(self) -> ChildProcessError:
        """The error for a worker that has ended on its own."""
        code = self.process.wait()
        return ChildProcessError(
            f"a SUMO worker process ended with code {code}: what it said stands above; if SUMO itself has crashed, it will do so "
            "again: leave the scene out"
        )


def _end(workers: list[_Worker]) -> None:
    """End the workers: they stop at the end of their input."""
    for worker in workers:
        for pipe in (worker.process.stdin, worker.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
    for worker in workers:
        try:
            worker.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
    workers.clear()


def _stop(workers: list[_Worker], folder: tempfile.TemporaryDirectory[str]) -> None:
    _end(workers)
    folder.cleanup()


class SumoWorld:
    """See the module's text; satisfies `World`. A context manager: `close()` ends its processes.

    Args:
        steps: the longest run after a reset in ticks of 0.1 s, which is the size of the record in `State.memory`.

    Raises:
        MissingDependencyError: SUMO is not installed.
    """

    def __init__(self, steps: int = 600) -> None:
        if steps < 1:
            raise ValueError(f"steps: found {steps}, wanted at least 1")
        require_sumo()
        self.steps = steps
        self._folder = tempfile.TemporaryDirectory(prefix="worldloop-")
        self._workers: list[_Worker] = []
        self._inputs: dict[str, Inputs] = {}
        self._clock = 0
        self._widest = 0
        self._finalizer = weakref.finalize(self, _stop, self._workers, self._folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all worker processes; the world cannot be used any more."""
        self._finalizer()

    def horizon(self, scenes: Scene) -> Tensor:
        """Steps (B,) that a scene can run: the size of the record."""
        return torch.full((len(scenes),), self.steps, dtype=torch.int64)

    def reset(self, scenes: Scene, key: Tensor) -> State:
        """See `World.reset`.

        Raises:
            ValueError: a scene has no recipe or a broken one, or SUMO does not reproduce the scene from it.
            FileNotFoundError: the .sumocfg of its recipe or a file that it names is not there.
            ChildProcessError: a worker process has died.
        """
        recipes = [_recipe(scenes, row) for row in range(len(scenes))]
        start = logged_state(scenes, key)
        state = replace(start, memory={"ego_motion": torch.zeros(len(scenes), self.steps, 3)})
        workers = self._hold(state)
        answer = _answer(state, [worker.present for worker in workers])
        both = start.valid & answer.valid
        apart = torch.where(both, (answer.position - start.position).norm(dim=-1), 0.0)
        wrong = ((start.valid != answer.valid) | (apart > _AGREEMENT)).any(dim=1)
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise ValueError(
                f"{scenes.id[row]}: SUMO does not come to this scene again from its recipe {recipes[row]['source']}: it was "
                "generated with another release of SUMO or the network has changed: generate the scenes again"
            )
        return state

    def step(self, state: State, ego: Motion) -> State:
        """See `World.step`.

        Raises:
            ValueError: the state has run for `steps` ticks, comes from another world, or several road users are driven.
            ChildProcessError: a worker process has died.
        """
        if "ego_motion" not in state.memory:
            raise ValueError("this state comes from another world: start with SumoWorld.reset")
        record = state.memory["ego_motion"]
        over = state.step >= record.shape[1]
        if over.any():
            row = int(over.nonzero()[0])
            raise ValueError(
                f"{state.scene.id[row]}: the record of {record.shape[1]} steps is full: "
                "take SumoWorld(steps=...) or a shorter horizon"
            )
        if (several := int(state.driven.sum(dim=1).max())) > 1:
            raise ValueError(
                f"found {several} road users that are driven, but SUMO hands over one: drive the ego alone, or in another world"
            )
        moved = place_ego(state, ego)
        ego = moved.ego()
        motion = torch.stack((ego.position[:, 0], ego.position[:, 1], ego.heading), dim=-1)
        moves = [{"do": "step", "motions": [pose]} for pose in motion.tolist()]
        workers = self._hold(state)
        record = record.index_put((torch.arange(len(state)), state.step), motion)
        following = replace(moved, step=state.step + 1, memory={"ego_motion": record})
        with self._afresh_after_errors():
            replies = self._exchange(list(zip(workers, moves, strict=True)))
            for row, worker in enumerate(workers):
                worker.history = _digest(following, row)
        return place_ego(_answer(following, replies), ego)

    @contextlib.contextmanager
    def _afresh_after_errors(self) -> Iterator[None]:
        """After an error or Ctrl-C within, end all workers: nobody knows which moments they hold or what their pipes hold."""
        try:
            yield
        except BaseException:
            _end(self._workers)
            raise

    def _hold(self, state: State) -> list[_Worker]:
        """Return for every row a worker that holds its moment; those that do not yet hold it are brought there, all at once.

        Only a worker that is not among the most recently used ones is taken from its moment, as many being spared as the widest
        batch had rows: an environment that resets some rows while the others go on must not take theirs.
        """
        self._clock += 1
        self._widest = max(self._widest, len(state))
        wanted = [(state.scene.recipe[row], _digest(state, row)) for row in range(len(state))]
        by_use = sorted(self._workers, key=lambda worker: worker.used)
        stale, recent = by_use[: -self._widest], by_use[-self._widest :]
        chosen: dict[int, _Worker] = {}

        def choose(pool: list[_Worker], fits: Callable[[_Worker, tuple[str, bytes]], bool]) -> None:
            for row in (row for row in range(len(wanted)) if row not in chosen):
                for worker in pool:
                    if fits(worker, wanted[row]):
                        chosen[row] = worker
                        pool.remove(worker)
                        break

        choose(recent, lambda worker, want: (worker.recipe, worker.history) == want)
        choose(stale, lambda worker, want: (worker.recipe, worker.history) == want)
        choose(stale, lambda worker, want: worker.recipe == want[0])
        choose(stale, lambda worker, want: True)
        workers = [chosen[row] if row in chosen else self._start() for row in range(len(wanted))]
        self._bring(
            state, [(row, worker) for row, worker in enumerate(workers) if (worker.recipe, worker.history) != wanted[row]]
        )
        for worker in workers:
            worker.used = self._clock
        return workers

    def _bring(self, state: State, rows: list[tuple[int, _Worker]]) -> None:
        """Bring workers to the moments of the given rows: back to the scene's present, and the recorded motions again."""
        recipes = state.scene.recipe
        others = [(worker, row) for row, worker in rows if worker.recipe != recipes[row]]
        openings = [(worker, self._opening(state.scene, row)) for worker, row in others]
        with self._afresh_after_errors():
            self._exchange([(worker, {"do": "leave"}) for worker, _ in others if worker.recipe])
            opened = self._exchange(openings)
            for (worker, row), reply in zip(others, opened, strict=True):
                worker.recipe, worker.present = recipes[row], reply
            moved = [worker for row, worker in rows if worker.history and (worker, row) not in others]
            self._exchange([(worker, {"do": "rewind"}) for worker in moved])
            record = state.memory["ego_motion"]
            replays = [(worker, record[row, : int(state.step[row])].tolist()) for row, worker in rows]
            self._exchange([(worker, {"do": "step", "motions": motions}) for worker, motions in replays if motions])
            for row, worker in rows:
                worker.history = _digest(state, row)

    def _opening(self, scene: Scene, row: int) -> dict[str, Any]:
        """Return the request that brings a worker to the present of a scene; its network is built once."""
        recipe = _recipe(scene, row)
        source = json.dumps(recipe["source"])
        if source not in self._inputs:
            self._inputs[source] = source_inputs(recipe["source"], Path(tempfile.mkdtemp(dir=self._folder.name)))
        inputs = self._inputs[source]
        return {
            "do": "open",
            "network": str(inputs.network),
            "options": inputs.options,
            "seed": recipe["source"]["seed"],
            "present": recipe["begin"] + HISTORY_STEPS,
            **{name: recipe[name] for name in ("ego", "offset", "agents", "signals")},
        }

    def _start(self) -> _Worker:
        """Start a worker; numpy's thread pools are kept out of it, because it forks."""
        if not self._finalizer.alive:
            raise RuntimeError("this SumoWorld is closed: make a new one")
        process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.sumo_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        )
        worker = _Worker(process)
        self._workers.append(worker)
        return worker

    def _exchange(self, requests: list[tuple[_Worker, dict[str, Any]]]) -> list[dict[str, Any]]:
        """Send requests to workers, who work side by side, and return their replies."""
        for worker, request in requests:
            worker.send(request)
        return [worker.receive() for worker, _ in requests]


def _recipe(scene: Scene, row: int) -> dict[str, Any]:
    """Return the recipe of a scene.

    Raises:
        ValueError: it has none, a broken one, or one of another version.
    """
    text = scene.recipe[row]
    if not text:
        raise ValueError(f"scene {scene.id[row]} has no SUMO network: use --world learned or replay")
    try:
        recipe = json.loads(text)
    except (ValueError, RecursionError):
        recipe = None
    if not isinstance(recipe, dict):
        raise ValueError(f"scene {scene.id[row]}: its recipe {text[:40]!r} is no JSON object: generate it again")
    if recipe.get("version") != RECIPE_VERSION:
        raise ValueError(
            f"scene {scene.id[row]}: found recipe version {recipe.get('version')}, wanted {RECIPE_VERSION}: generate it again"
        )
    wrong = [name for name, kind in _RECIPE_FIELDS.items() if not isinstance(recipe.get(name), kind)]
    if not wrong:
        source = recipe["source"]
        is_named = isinstance(source.get("config", source.get("template")), str)
        wrong = [] if is_named and isinstance(source.get("seed"), int) else ["source"]
    if wrong:
        raise ValueError(f"scene {scene.id[row]}: its recipe lacks a valid {', '.join(wrong)}: generate it again")
    return recipe


def _digest(state: State, row: int) -> bytes:
    """Return what tells the ego's motions since the reset from any others."""
    record = state.memory["ego_motion"][row, : int(state.step[row])]
    return hashlib.blake2b(record.contiguous().numpy().tobytes(), digest_size=16).digest()


def _answer(state: State, replies: list[dict[str, Any]]) -> State:
    """Return the state with everyone, the ego too, where the workers say that they are."""
    batch, agents = state.valid.shape
    values = np.zeros((batch, agents, 6))
    valid = np.zeros((batch, agents), dtype=bool)
    letters = np.zeros(state.signal_state.shape, dtype=np.int64)
    for row, reply in enumerate(replies):
        there = [place for place, pose in enumerate(reply["agents"]) if pose is not None]
        valid[row, there] = True
        values[row, there] = np.array([reply["agents"][place] for place in there]).reshape(-1, 6)
        letters[row, : len(reply["signals"])] = [ord(letter) for letter in reply["signals"]]
    position, heading, velocity = (torch.from_numpy(part).float() for part in np.split(values, (3, 4), axis=-1))
    is_valid = torch.from_numpy(valid)
    others = torch.ones_like(is_valid).index_put((state.scene.ego_row(), state.scene.ego), torch.tensor(False))
    return replace(
        state,
        position=position,
        heading=heading[..., 0],
        velocity=velocity,
        valid=is_valid,
        simulated=is_valid & others & (state.scene.kind != AgentKind.OBJECT),
        signal_state=torch.from_numpy(LETTER_STATES[letters]),
        signal_valid=torch.from_numpy(letters > 0),
    )
