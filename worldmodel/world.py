"""Worlds: what happens to everyone else after the ego has moved.

A world is a pure function from a `State` and the ego's motion to the next `State`. All it remembers stands in the `State`, its
randomness included (a key for every scene, see `random_keys`), so a state can be sliced, repeated, saved and restored, and the
rows of a batch behave exactly as they would alone.

`LearnedWorld` predicts the others with the behaviour model, `ReplayWorld` lets them follow the log, `ConstantVelocityWorld` lets
them go straight on; `SumoWorld`, in `sumo.py`, asks SUMO.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from .behavior import Agents, BehaviorModel, Cache, MapMemory
from .dynamics import Motion
from .sampling import hashed_uniform, sample_tokens
from .scene import HISTORY_STEPS, TIME_STEP, AgentKind, Scene, TensorBatch

if TYPE_CHECKING:
    from .signals import SignalModel
    from .uncertainty import Calibration

TEMPERATURE, EPSILON = 0.8, 0.015
"""How boldly `LearnedWorld` samples where nothing else is asked for: the temperature is among the best of 1, 0.9, 0.8, 0.7 and
0.6 by the realism meta-metric on scenes held out from the training (README, "How good is the learned world")."""

SURPRISE, SOONEST, NOTICED = 1.0, 2, 0.05
"""m/s by which the ego's velocity has to change for the others to decide anew before their decision interval is over; after how
many ticks at the earliest; and the share of what they hold possible (total variation) that has to change by it. So a hard braking
is answered within 0.2 s by those whom it concerns, and ordinary driving costs no decision more."""


@dataclass(frozen=True)
class State(TensorBatch):
    """One moment of B scenes.

    Attributes:
        scene: what does not change: map, sizes, kinds, route, and the log.
        step: (B,) int64, ticks of 0.1 s since the reset; the log's index of this moment is HISTORY_STEPS + step.
        key: (B,) int64, the source of all randomness of each scene.
        position: (B, A, 3), heading: (B, A), velocity: (B, A, 2), valid: (B, A) bool of every agent, the ego included.
        driven: (B, A) bool, who is driven from outside of the world: the ego, unless somebody takes the wheel of others too.
        simulated: (B, A) bool, the agents that the world moved in the last step (the driven only where nobody drove them).
        signal_state: (B, S) int64 `SignalState`; signal_valid: (B, S) bool.
        uncertainty: (B, A) metres, the position error to expect of each agent that `LearnedWorld` simulates; 0 for all others.
        memory: what the world itself remembers, by name; every tensor leads with B.
    """

    scene: Scene
    step: Tensor
    key: Tensor
    position: Tensor
    heading: Tensor
    velocity: Tensor
    valid: Tensor
    driven: Tensor
    simulated: Tensor
    signal_state: Tensor
    signal_valid: Tensor
    uncertainty: Tensor
    memory: dict[str, Tensor]

    def __len__(self) -> int:
        """B, the number of scenes."""
        return len(self.scene)

    def ego(self) -> Motion:
        """The ego's position (B, 3), heading (B,) and velocity (B, 2)."""
        row, ego = self.scene.ego_row(), self.scene.ego
        return Motion(self.position[row, ego], self.heading[row, ego], self.velocity[row, ego])


class World(Protocol):
    """What `DriveVectorEnv`, policies and evaluation ask of a world; they never ask which one it is.

    The worlds of this file and of `idm.py` can also drive the ego themselves, like any other agent: they take None for its motion
    (see `open_loop.Simulator`).
    """

    def horizon(self, scenes: Scene) -> Tensor | None:
        """How many steps (B,) each scene can run, None where there is no end."""
        ...

    def reset(self, scenes: Scene, key: Tensor) -> State:
        """Return the state at the present (step HISTORY_STEPS of the log) with random keys (B,)."""
        ...

    def step(self, state: State, ego: Motion) -> State:
        """Return the state 0.1 s later; `ego` says where the driven have moved to in that time (see `place_ego`)."""
        ...


def random_keys(generator: torch.Generator, count: int) -> Tensor:
    """Draw `count` keys (count,) int64 for `World.reset`; the same generator state gives the same keys."""
    return torch.randint(-(2**63), 2**63 - 1, (count,), generator=generator, dtype=torch.int64)


def logged_state(scenes: Scene, key: Tensor) -> State:
    """Return the state that the log shows at the present; the common start of every world."""
    if key.shape != (len(scenes),) or key.dtype != torch.int64:
        raise ValueError(f"key: found {key.dtype} of shape {tuple(key.shape)}, wanted int64 of shape ({len(scenes)},)")
    now, step = HISTORY_STEPS, torch.zeros(len(scenes), dtype=torch.int64)
    valid = scenes.valid[:, :, now]
    signal_state, signal_valid = logged_signals(scenes, step)
    return State(
        scene=scenes,
        step=step,
        key=key,
        position=scenes.position[:, :, now],
        heading=scenes.heading[:, :, now],
        velocity=scenes.velocity[:, :, now],
        valid=valid,
        driven=torch.zeros_like(valid).index_put((scenes.ego_row(), scenes.ego), torch.tensor(True)),
        simulated=torch.zeros_like(valid),
        signal_state=signal_state,
        signal_valid=signal_valid,
        uncertainty=torch.zeros(valid.shape),
        memory={},
    )


def logged_signals(scenes: Scene, step: Tensor) -> tuple[Tensor, Tensor]:
    """Return the signals' states and masks (B, S) of the log `step` (B,) ticks after the present; the last known one is held."""
    last = torch.where(scenes.signal_valid, torch.arange(scenes.steps), 0).amax(-1)  # a batch is as long as its longest log
    at = torch.minimum((HISTORY_STEPS + step)[:, None], last)[..., None]
    return scenes.signal_state.gather(2, at)[..., 0], scenes.signal_valid.gather(2, at)[..., 0]


def place_ego(state: State, ego: Motion) -> State:
    """Return the state with the driven put where `ego` says: the only one's motion (B, ...), or everyone's (B, A, ...)."""
    if not torch.isfinite(ego.position).all() or not torch.isfinite(ego.heading).all() or not torch.isfinite(ego.velocity).all():
        raise ValueError("ego motion: found NaN or infinity, wanted finite position, heading and velocity")
    ego = ego if ego.heading.dim() == 2 else ego.map(lambda value: value[:, None])
    return replace(
        state,
        position=torch.where(state.driven[..., None], ego.position, state.position),
        heading=torch.where(state.driven, ego.heading, state.heading),
        velocity=torch.where(state.driven[..., None], ego.velocity, state.velocity),
        valid=state.valid | state.driven,
    )


class ReplayWorld:
    """Others follow the log, whatever the ego does; they come and go as logged."""

    def horizon(self, scenes: Scene) -> Tensor:
        """Steps (B,) that the log holds after the present: up to the last step at which anyone is valid."""
        seen = scenes.valid.any(dim=1)
        last = scenes.steps - 1 - seen.flip(-1).long().argmax(-1)
        return last - HISTORY_STEPS

    def reset(self, scenes: Scene, key: Tensor) -> State:
        """See `World.reset`."""
        return logged_state(scenes, key)

    def step(self, state: State, ego: Motion | None) -> State:
        """See `World.step`.

        Raises:
            ValueError: the log of a scene has ended.
        """
        scene, step = state.scene, state.step + 1
        over = step > self.horizon(scene)
        if over.any():
            row = int(over.nonzero()[0])
            raise ValueError(
                f"{scene.id[row]}: replay cannot go on after {int(step[row]) - 1} steps, where the log ends: "
                "use a shorter horizon or the learned world"
            )
        at = (HISTORY_STEPS + step)[:, None].expand(-1, scene.valid.shape[1])[..., None]
        valid = scene.valid.gather(2, at)[..., 0]
        vector = lambda tensor: tensor.gather(2, at[..., None].expand(*at.shape, tensor.shape[-1]))[:, :, 0]  # noqa: E731
        signal_state, signal_valid = logged_signals(scene, step)
        following = replace(
            state,
            step=step,
            position=vector(scene.position),
            heading=scene.heading.gather(2, at)[..., 0],
            velocity=vector(scene.velocity),
            valid=valid,
            simulated=movable(replace(state, valid=valid), ego is None),
            signal_state=signal_state,
            signal_valid=signal_valid,
        )
        return following if ego is None else place_ego(following, ego)


class ConstantVelocityWorld:
    """Others go on with the velocity and heading of the present: the reference that a learned world has to beat."""

    def horizon(self, scenes: Scene) -> None:
        """No end."""

    def reset(self, scenes: Scene, key: Tensor) -> State:
        """See `World.reset`."""
        return logged_state(scenes, key)

    def step(self, state: State, ego: Motion | None) -> State:
        """See `World.step`."""
        moving = movable(state, ego is None)
        ahead = torch.nn.functional.pad(state.velocity * TIME_STEP, (0, 1))
        return after_step(state, ego, torch.where(moving[..., None], state.position + ahead, state.position), state.heading)

    def enter(self, state: State, who: Tensor) -> State:
        """Return the state in which agents `who` (B, A) bool begin anew where they are: nothing is remembered of anyone."""
        return state


class LearnedWorld:
    """Others are predicted by the behaviour model, which sees what the ego has really done.

    Every `decision_ticks` steps each agent draws its next motion from the model, and follows it tick by tick until the next
    decision; sooner where the network sees velocities (`BehaviorConfig.motion_inputs`) and the ego surprises (`SURPRISE`), in a
    decision that is not remembered as one. Agents valid at the present are simulated for as long as one likes; nobody enters or
    leaves (`OpenBorders` lets them). Signals follow the log; beyond its end the network `signals` lets them go on, without one
    they hold their last state.
    Without a `calibration` (`calibrated` is False; `from_pretrained` takes none that was fitted to another sampling) the
    uncertainty is the spread of what the model thinks possible: it ranks, but is not the size of the error.
    """

    def __init__(
        self,
        model: BehaviorModel,
        temperature: float = TEMPERATURE,
        epsilon: float = EPSILON,
        calibration: Calibration | None = None,
        signals: SignalModel | None = None,
    ):
        from .uncertainty import Calibration  # what it computes is no part of the loop

        if not 0 < temperature < float("inf") or not 0 <= epsilon < 1:
            raise ValueError(
                f"found temperature {temperature} and epsilon {epsilon}, wanted temperature > 0 and 0 <= epsilon < 1"
            )
        self.model, self.temperature, self.epsilon, self.signals = model.eval(), temperature, epsilon, signals
        self.calibration, self.calibrated = calibration or Calibration(), calibration is not None

    @classmethod
    def from_pretrained(
        cls, folder: Path | str | None = None, temperature: float = TEMPERATURE, epsilon: float = EPSILON
    ) -> LearnedWorld:
        """Return the world of a model folder, or of the weights that the package ships (also "small" and "large").

        Raises:
            ValueError: the folder holds no model, or its parts do not belong together.
        """
        from .shipped import SHIPPED_SIGNALS, model_folder
        from .signals import SignalModel
        from .uncertainty import Calibration

        place = model_folder(folder)
        signals = SignalModel.from_pretrained(SHIPPED_SIGNALS)
        model = BehaviorModel.from_pretrained(place)  # first: of broken weights no calibration can be right
        return cls(model, temperature, epsilon, Calibration.load(place, temperature=temperature, epsilon=epsilon), signals)

    def horizon(self, scenes: Scene) -> None:
        """No end."""

    @torch.no_grad()
    def reset(self, scenes: Scene, key: Tensor) -> State:
        """See `World.reset`. The logged second before the present enters the cache as decisions already made."""
        state = logged_state(scenes, key)
        ticks = self.model.config.decision_ticks
        at = torch.arange(HISTORY_STEPS % ticks, HISTORY_STEPS, ticks)
        pose = torch.cat((scenes.position[:, :, at, :2], scenes.heading[:, :, at, None]), dim=-1)
        valid = scenes.valid[:, :, at]
        before = torch.cat((pose[:, :, :1], pose[:, :, :-1]), dim=2)
        known = valid & torch.cat((torch.zeros_like(valid[:, :, :1]), valid[:, :, :-1]), dim=2)
        past = Agents(pose, before, known, scenes.velocity[:, :, at], valid, scenes.size, scenes.kind)
        shown = (scenes.signal_state[..., at], scenes.signal_valid[..., at])
        signals = (scenes.signal_position[..., :2], scenes.signal_heading, *shown)
        map_memory = self.model.encode_map(scenes)
        _, cache = self.model.advance(past, signals, map_memory, self.model.empty_cache(scenes))
        memory = {f"map_{name}": getattr(map_memory, name) for name in ("keys", "values", "centre", "reach")}
        memory |= {f"cache_{name}": tensor for name, tensor in vars(cache).items()}
        before = slice(HISTORY_STEPS - ticks, HISTORY_STEPS)
        recent = (scenes.position[:, :, before, :2], scenes.heading[:, :, before, None])
        memory |= {"recent": torch.cat(recent, dim=-1), "recent_valid": scenes.valid[:, :, before]}
        memory |= {"plan": pose[:, :, -1:].expand(-1, -1, ticks, -1), "planned": state.step, "met": state.velocity}
        memory["spread"] = torch.zeros(*state.valid.shape, 2)  # squared, at the last decision and at the next
        memory["entered"] = torch.zeros(state.valid.shape, dtype=torch.int64)  # the step since which each is simulated
        if self.signals is not None:
            steps = range(-HISTORY_STEPS, 1)
            past = torch.stack([logged_signals(scenes, state.step + at)[0] for at in steps], dim=-1)
            memory |= self.signals.begin(scenes, past)
        return replace(state, memory=memory)

    @torch.no_grad()
    def step(self, state: State, ego: Motion | None) -> State:
        """See `World.step`."""
        ticks = self.model.config.decision_ticks
        state = self._decide_where(state, state.step % ticks == 0)
        if ego is not None and self.model.config.motion_inputs > 5:  # only a network that sees velocities sees it so early
            changed = ((state.velocity - state.memory["met"]).norm(dim=-1) > SURPRISE) & state.driven
            state = self._decide_where(state, changed.any(dim=1) & (state.step - state.memory["planned"] >= SOONEST), early=True)
        tick = (state.step % ticks)[:, None, None, None].expand(-1, state.position.shape[1], 1, 3)
        planned = state.memory["plan"].gather(2, tick)[:, :, 0]
        moving = movable(state, ego is None)
        place = torch.cat((planned[..., :2], state.position[..., 2:]), dim=-1)
        position = torch.where(moving[..., None], place, state.position)
        following = after_step(state, ego, position, torch.where(moving, planned[..., 2], state.heading))
        left = torch.cat((state.position[..., :2], state.heading[..., None]), dim=-1)[:, :, None]
        recent = torch.cat((state.memory["recent"][:, :, 1:], left), dim=2)
        valid = torch.cat((state.memory["recent_valid"][:, :, 1:], state.valid[:, :, None]), dim=2)
        following = replace(following, memory=state.memory | {"recent": recent, "recent_valid": valid})
        before, after = state.memory["spread"].unbind(-1)
        spread = torch.lerp(before, after, (state.step % ticks + 1)[:, None] / ticks)
        error = self.calibration.error(spread, (following.step[:, None] - state.memory["entered"]) * TIME_STEP)
        following = replace(following, uncertainty=torch.where(following.simulated, error, 0.0))
        if self.signals is None:
            return following
        given = hashed_uniform(
            state.key[:, None], following.step[:, None], torch.arange(state.signal_state.shape[1]), torch.tensor(-1)
        )
        shown, remembered = self.signals.go_on(
            following.step, (state.signal_state, following.signal_state), state.signal_valid, state.memory, given
        )
        return replace(following, signal_state=shown, memory=following.memory | remembered)

    def enter(self, state: State, who: Tensor) -> State:
        """Return the state in which agents `who` (B, A) bool begin anew where they are: of their places' past nothing is kept."""
        memory = dict(state.memory)
        memory["cache_valid"] = memory["cache_valid"] & ~who[..., None]
        memory["recent_valid"] = memory["recent_valid"] & ~who[..., None]
        memory["spread"] = memory["spread"].masked_fill(who[..., None], 0.0)
        memory["entered"] = torch.where(who, state.step[:, None], memory["entered"])
        return replace(state, memory=memory)

    def _decide_where(self, state: State, rows: Tensor, early: bool = False) -> State:
        """Return the state with new plans in those scenes (B,) bool."""
        chosen = rows.nonzero()[:, 0]
        if len(chosen) in (0, len(state)):
            return self._decide(state, early) if len(chosen) else state
        few = state.take(chosen)
        new = self._decide(few, early).memory  # a decision changes nothing else
        put = lambda name, all_of: all_of if new[name] is few.memory[name] else all_of.index_copy(0, chosen, new[name])  # noqa: E731
        return replace(state, memory={name: put(name, all_of) for name, all_of in state.memory.items()})

    def _decide(self, state: State, early: bool) -> State:
        """Return the state with a new plan for everyone, drawn from what has happened until now.

        What is remembered are decisions an interval apart, so an early one leaves the cache as it is. It is drawn with the
        numbers of the one before, and only for those to whom the ego's surprise tells something: all others go on as planned.
        """
        memory, ticks = state.memory, self.model.config.decision_ticks
        tick = state.step % ticks
        scores, cache = self._scores(state)
        token = sample_tokens(scores, state.key, state.step - tick, self.temperature, self.epsilon)
        pose = torch.cat((state.position[..., :2], state.heading[..., None]), dim=-1)
        plan = self.model.vocabulary.decode(token, pose)
        decided = {"planned": state.step, "met": state.velocity}
        if early:
            at = torch.arange(ticks) - tick[:, None]
            later = plan.gather(2, at.clamp(min=0)[:, None, :, None].expand_as(plan))
            gap = (scores.softmax(-1) - self._scores(self._as_expected(state))[0].softmax(-1)).abs().sum(-1) / 2
            new = (gap > NOTICED)[..., None, None] & (at >= 0)[:, None, :, None]
            return replace(state, memory=memory | decided | {"plan": torch.where(new, later, memory["plan"])})
        now = memory["spread"][..., 1]
        further = self.calibration.squared_spread(scores, self.temperature, self.model.vocabulary.motion[:, -1, :2])
        decided |= {f"cache_{name}": tensor for name, tensor in vars(cache).items()}
        return replace(state, memory=memory | decided | {"plan": plan, "spread": torch.stack((now, now + further), dim=-1)})

    @staticmethod
    def _as_expected(state: State) -> State:
        """Return the state with the driven where they would be if they had kept their velocity since the others last decided."""
        memory, past = state.memory, state.step - state.memory["planned"]
        pose = memory["recent"][state.scene.ego_row(), :, memory["recent"].shape[2] - past]
        place = torch.cat((pose[..., :2] + memory["met"] * (past * TIME_STEP)[:, None, None], state.position[..., 2:]), dim=-1)
        return place_ego(state, Motion(place, pose[..., 2], memory["met"]))

    def _scores(self, state: State) -> tuple[Tensor, Cache]:
        """Return scores (B, A, V) of everyone's next motion, and the cache with this decision in it."""
        memory, scene = state.memory, state.scene
        agents = Agents(
            torch.cat((state.position[..., :2], state.heading[..., None]), dim=-1)[:, :, None],
            memory["recent"][:, :, :1],
            (state.valid & memory["recent_valid"][:, :, 0])[:, :, None],
            state.velocity[:, :, None],
            state.valid[:, :, None],
            scene.size,
            scene.kind,
        )
        shown = (state.signal_state[..., None], state.signal_valid[..., None])
        signals = (scene.signal_position[..., :2], scene.signal_heading, *shown)
        keys, values, centre, reach = (memory[f"map_{name}"] for name in ("keys", "values", "centre", "reach"))
        map_memory = MapMemory(keys, values, scene.polyline[..., :2], scene.polyline_valid, centre, reach)
        cache = Cache(memory["cache_keys"], memory["cache_values"], memory["cache_pose"], memory["cache_valid"])
        features, cache = self.model.advance(agents, signals, map_memory, cache)
        return self.model.head(features[:, :, -1], scene.kind), cache


def movable(state: State, ego_too: bool = False) -> Tensor:
    """Return which agents (B, A) a world has to move: valid, not an `OBJECT`, and not `driven` unless `ego_too`."""
    return state.valid & (state.scene.kind != AgentKind.OBJECT) & (~state.driven | ego_too)


def after_step(state: State, ego: Motion | None, position: Tensor, heading: Tensor) -> State:
    """Return the next state from where a world has moved everyone to; velocities follow from the movement.

    The driven go where their drivers say (see `place_ego`), with None where the world has moved them too.
    """
    step = state.step + 1
    signal_state, signal_valid = logged_signals(state.scene, step)
    following = replace(
        state,
        step=step,
        position=position,
        heading=heading,
        velocity=(position - state.position)[..., :2] / TIME_STEP,
        simulated=movable(state, ego is None),
        signal_state=signal_state,
        signal_valid=signal_valid,
    )
    return following if ego is None else place_ego(following, ego)
