"""The parallel environment: several road users of one scene driven at once, each as if it were the ego.

Several drivers are one vector environment in which row i is the same scene with another ego, and a world (`SharedWorld`) that
moves all rows as one. Spaces, measures, rewards, pictures and random numbers are therefore those of `DriveEnv`, line by line.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from torch import Tensor

from ..worldmodel.data.lane_graph import Lane, LaneGraph
from ..worldmodel.dynamics import KinematicBicycle, Motion
from ..worldmodel.scene import HISTORY_STEPS, AgentKind, LaneLinkKind, PolylineKind, Scene, stack
from ..worldmodel.world import State, World, logged_state
from .ground import USUAL_LANE_WIDTH
from .measures import ego_overlaps
from .observation import ObservationSize
from .scenarios import Source
from .single import row_info, row_seen
from .vector import DriveVectorEnv, Info, Observation, open_world

try:
    from pettingzoo import ParallelEnv
except ImportError as error:
    raise ImportError(f'pettingzoo cannot be used ({error}): pip install "worldloop[multi]"') from error

LEAST_WAY = 2.0
"""Metres that a vehicle gets away from its place in the log after the present, at the least, to count as moving."""

MAP_RADIUS = 150.0
"""Metres around a road user's logged way within which lanes are looked at for its route."""


class SharedWorld:
    """A world of which every row is the same scene with another ego, all driven at once: what one of them does, all see.

    The wrapped world moves one scene, that of row 0, in which all the egos are `driven`. Satisfies `World`.
    """

    def __init__(self, world: World) -> None:
        self.world = world

    def horizon(self, scenes: Scene) -> Tensor | None:
        """See `World.horizon`."""
        return self.world.horizon(scenes)

    def reset(self, scenes: Scene, key: Tensor) -> State:
        """See `World.reset`; the key of row 0 counts."""
        state = self.world.reset(_first(scenes), key[:1])
        driven = state.driven.index_put((torch.zeros_like(scenes.ego), scenes.ego), torch.tensor(True))
        return _seen_by(scenes, replace(state, driven=driven))

    def step(self, state: State, ego: Motion) -> State:
        """See `World.step`."""
        one, at = _first(state), (torch.zeros_like(state.scene.ego), state.scene.ego)
        motion = Motion(
            one.position.index_put(at, ego.position),
            one.heading.index_put(at, ego.heading),
            one.velocity.index_put(at, ego.velocity),
        )
        return _seen_by(state.scene, self.world.step(one, motion))


def _first(batch: Any) -> Any:
    """Row 0 of a `TensorBatch`, not copied."""
    return batch.map(lambda tensor: tensor[:1], lambda row: row[:1])


def _seen_by(scenes: Scene, state: State) -> State:
    """Return the one row of a state as the state of B scenes, not copied."""
    return replace(state.map(lambda tensor: tensor.expand(len(scenes), *tensor.shape[1:])), scene=scenes)


class DriveParallelEnv(ParallelEnv[str, Any, Any]):
    """Drive several road users of one scene at once, in a world whose other road users answer what all of them do.

    A PettingZoo `ParallelEnv`. Every agent has the action space, the observation, the reward and the infos of `DriveEnv`, as if
    it were the ego: `help(worldloop.envs.DriveEnv)` describes them all. With `controlled=1` it does, bit for bit, what `DriveEnv`
    does.

    ## Agents
    `agent_0` is the scene's ego; `agent_1`, `agent_2`, ... are those vehicles nearest to it that move later in the log and touch
    nobody at the present. A scene with fewer such vehicles has fewer agents: `agents` tells who drives, `places` which road user of
    the scene each one is. `controlled=[4, 0, 7]` takes these places in the scene's dimension A, in this order.

    An agent whose episode terminates leaves `agents`. Its car stays in the world: it brakes as hard as it can and then stands
    where it comes to rest, in everybody's way, as after a crash. The others go on until `horizon`, at which all are truncated.

    ## Routes
    The ego has the scene's route. Any other agent's is made as readers make the ego's: the way that the log shows from the present
    on, shifted to the lanes' centres, and 60 m further along the lanes, straight on where there are none. An agent of which the
    log shows no more than the present is to drive on along its lane.

    ## Worlds
    The world moves everyone else and sees what each agent has really done. SUMO hands over one vehicle, so `"sumo"` takes
    `controlled=1` only. A world of your own moves nobody who is `driven` in the state (`movable`), and puts them where `step` is
    told with `place_ego`, both of `worldloop.worldmodel.world`.

    ## Arguments
    | argument | default | meaning |
    |---|---|---|
    | `controlled` | `4` | how many are driven at most, the ego among them, or their places in the scene |
    | `scenes`, `world`, `observation`, `action`, `horizon`, `terminate_on`, `reward`, `dynamics`, `size`, `render_mode` | | as in `DriveEnv`; pictures follow `agent_0` |

    `reset(options={"scene": ...})` takes an id, a number or a `Scene`. `state()` of PettingZoo, one array of everything, is not
    offered; what the world knows stands in `world_state`.

    Attributes:
        agents: names of those who drive now.
        possible_agents: all names, `agent_0` to `agent_{n-1}`.
        places: by name, the places in dimension A of those who have driven since the reset.
        world_state: the `State`, a batch in which row i is what agent i is the ego of.
        actions: the `ActionSpace`, with `decode` and `encode`.
        scenarios: the scenes to choose from, with `ids`.
    """  # noqa: E501 (rows of tables)

    metadata = {
        "name": "worldloop_drive_v0",
        "render_modes": ["human", "rgb_array"],
        "render_fps": 10,
        "is_parallelizable": True,
    }

    def __init__(
        self,
        scenes: Source = None,
        world: str | World = "learned",
        controlled: int | Sequence[int] = 4,
        *,
        observation: str = "state",
        action: str = "continuous",
        horizon: int | None = 80,
        terminate_on: Sequence[str] = ("collision", "off_road"),
        reward: str | Mapping[str, float] = "progress",
        dynamics: KinematicBicycle = KinematicBicycle(),  # noqa: B008 (frozen)
        size: ObservationSize = ObservationSize(),  # noqa: B008 (frozen)
        render_mode: str | None = None,
    ) -> None:
        """Open scenes and world.

        Raises:
            ValueError: an argument is unknown or impossible; the message names it and what is wanted.
        """
        self.controlled = _checked(controlled)
        count = self.controlled if isinstance(self.controlled, int) else len(self.controlled)
        self._world, self._owns_world = open_world(world), isinstance(world, str)
        self.vector = DriveVectorEnv(
            count,
            scenes,
            SharedWorld(self._world),
            observation=observation,
            action=action,
            horizon=horizon,
            terminate_on=terminate_on,
            reward=reward,
            dynamics=dynamics,
            size=size,
            render_mode=render_mode,
            autoreset_mode=AutoresetMode.DISABLED,
        )
        self.vector.terminate_on = ()  # rows end together: who has crashed goes on as an obstacle
        self.terminate_on, self.render_mode = tuple(terminate_on), render_mode
        self.actions, self.scenarios = self.vector.actions, self.vector.scenarios
        self.possible_agents = [f"agent_{row}" for row in range(count)]
        self.agents: list[str] = []
        self.places: dict[str, int] = {}
        self.observation_spaces = {name: deepcopy(self.vector.single_observation_space) for name in self.possible_agents}
        self.action_spaces = {name: deepcopy(self.vector.single_action_space) for name in self.possible_agents}
        self._braking = self.actions.encode(torch.tensor([[dynamics.min_acceleration, 0.0]]))[0]

    def observation_space(self, agent: str) -> gymnasium.Space[Any]:
        """Return what an agent sees: the same space for all of them, each with its own random numbers."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> gymnasium.Space[Any]:
        """Return what an agent may do: the same space for all of them, each with its own random numbers."""
        return self.action_spaces[agent]

    @property
    def world_state(self) -> State:
        """The world's state, a row for each of `possible_agents`; it is replaced at every step and never changed."""
        return self.vector.state

    def reset(self, seed: int | None = None, options: Info | None = None) -> tuple[dict[str, Observation], dict[str, Info]]:
        """Begin an episode; see the class for `options`. Unknown ones are ignored with a warning, as PettingZoo wants.

        Raises:
            ValueError: an unknown scene, one without the road users wanted, or the horizon is longer than the world can go.
        """
        if seed is not None:
            self.vector.generators[0] = seeding.np_random(seed)[0]
        scene = self._choose(dict(options or {}))
        places = choose_drivers(scene, self.controlled)
        row = [*places, *[places[0]] * (len(self.possible_agents) - len(places))]  # rows without an agent do as agent_0 does
        views = as_egos(scene, places).take([places.index(place) for place in row])
        seen, infos = self.vector.reset(options={"scene": views})
        self.agents = self.possible_agents[: len(places)]
        self.places = dict(zip(self.agents, places, strict=True))
        every = dict(enumerate(self.agents))
        return (
            {name: row_seen(seen, row) for row, name in every.items()},
            {name: row_info(infos, row) for row, name in every.items()},
        )

    def step(
        self, actions: Mapping[str, Any]
    ) -> tuple[dict[str, Observation], dict[str, float], dict[str, bool], dict[str, bool], dict[str, Info]]:
        """Drive 0.1 s.

        Args:
            actions: one for each of `agents`.

        Returns:
            Observations, rewards, whether terminated, whether truncated, and infos of those who were in `agents` before.

        Raises:
            ValueError: an action is missing, NaN, infinite or out of range, or of someone who is not in `agents`.
            ResetNeeded: the episode is over, or none has begun.
        """
        try:
            seen, reward, _, truncated, infos = self.vector.step(self._batch(actions))
        except ValueError as error:
            raise ValueError(str(error).replace("sub-environment ", "agent_")) from error
        crashed = [infos["measures"][name].astype(np.bool_) for name in self.terminate_on]
        terminated = np.logical_or.reduce([np.zeros(len(reward), np.bool_), *crashed])
        live = {row: name for row, name in enumerate(self.possible_agents) if name in self.agents}
        self.agents = [name for row, name in live.items() if not (terminated[row] or truncated[row])]
        return (
            {name: row_seen(seen, row) for row, name in live.items()},
            {name: float(reward[row]) for row, name in live.items()},
            {name: bool(terminated[row]) for row, name in live.items()},
            {name: bool(truncated[row]) for row, name in live.items()},
            {name: row_info(infos, row) for row, name in live.items()},
        )

    def render(self) -> Any:
        """Return a picture (800, 800, 3) uint8 of what is around `agent_0` (`rgb_array`), or show it in a window (`human`)."""
        frames = self.vector.render(1)
        return None if frames is None else frames[0]

    def close(self) -> None:
        """Close the window, and the world if it was opened here and runs processes."""
        self.vector.close()
        if self._owns_world:
            getattr(self._world, "close", lambda: None)()

    def _choose(self, options: Info) -> Scene:
        """Return the scene asked for, else what the generator picks."""
        wanted = options.pop("scene", None)
        if options:
            warnings.warn(f"reset options {sorted(options)} are unknown and ignored: wanted scene", stacklevel=3)
        if isinstance(wanted, Scene):
            if len(wanted) != 1:
                raise ValueError(f"options['scene']: found a batch of {len(wanted)} scenes, wanted one")
            return wanted.validate()
        number = self.scenarios.pick(self.vector.generators[0]) if wanted is None else self.scenarios.number(wanted)
        return self.scenarios.load([number])

    def _batch(self, actions: Mapping[str, Any]) -> np.ndarray:
        """Return an action for every row: of those who drive; full braking for those who have terminated."""
        if not self.agents:
            raise gymnasium.error.ResetNeeded("no agent is left, or no episode has begun: call reset() first")
        if not isinstance(actions, Mapping) or set(actions) != set(self.agents):
            found = sorted(map(str, actions)) if isinstance(actions, Mapping) else type(actions).__name__
            raise ValueError(f"actions: found {found}, wanted one for each of env.agents: {self.agents}")
        space = self.vector.single_action_space
        given = {name: np.asarray(action) for name, action in actions.items()}
        for name, action in given.items():
            if action.shape != space.shape:
                raise ValueError(f"action of {name}: found shape {action.shape}, wanted {space.shape}")
        rows = [name if name in self.places else self.possible_agents[0] for name in self.possible_agents]
        return np.stack([given[name] if name in given else self._braking for name in rows])


def parallel_env(**arguments: Any) -> DriveParallelEnv:
    """Return a `DriveParallelEnv`: the name under which PettingZoo's users look for it."""
    return DriveParallelEnv(**arguments)


def _checked(controlled: int | Sequence[int]) -> int | tuple[int, ...]:
    """Return how many are driven, or their places.

    Raises:
        ValueError: neither a number from 1 on, nor different places.
    """
    whole = lambda value, least: not isinstance(value, bool) and isinstance(value, int | np.integer) and value >= least  # noqa: E731
    if whole(controlled, 1):
        return int(controlled)  # type: ignore[arg-type]
    if isinstance(controlled, Sequence) and not isinstance(controlled, str) and len(controlled):
        if all(whole(place, 0) for place in controlled) and len(set(controlled)) == len(controlled):
            return tuple(int(place) for place in controlled)
    raise ValueError(f"controlled={controlled!r}: wanted how many are driven, at least 1, or different places such as [0, 3]")


def choose_drivers(scene: Scene, controlled: int | Sequence[int]) -> list[int]:
    """Return the places in dimension A of those who are driven in one scene: see `DriveParallelEnv`.

    Raises:
        ValueError: one of the places asked for holds no vehicle at the present.
    """
    can = (scene.kind[0] == AgentKind.VEHICLE) & scene.valid[0, :, HISTORY_STEPS]
    if not isinstance(controlled, int):
        wrong = [place for place in controlled if place >= len(can) or not (can[place] or place == scene.ego[0])]
        if wrong:
            raise ValueError(
                f"{scene.id[0]}: controlled={list(controlled)}: place {wrong[0]} holds no vehicle at the present, wanted some of "
                f"{can.nonzero()[:, 0].tolist()}"
            )
        return list(controlled)
    now = scene.position[0, :, HISTORY_STEPS, :2]
    way = (scene.position[0, :, HISTORY_STEPS:, :2] - now[:, None]).norm(dim=-1)
    moves = (scene.valid[0, :, HISTORY_STEPS:] & (way > LEAST_WAY)).any(dim=1)
    ego = int(scene.ego[0])
    others = [place for place in (can & moves).nonzero()[:, 0].tolist() if place != ego]
    if others:
        views = replace(scene.repeat(len(others)), ego=torch.tensor(others))
        touches = ego_overlaps(logged_state(views, torch.zeros(len(others), dtype=torch.int64))).any(dim=1)
        others = [place for place, hit in zip(others, touches.tolist(), strict=True) if not hit]
    apart = (now - now[ego]).norm(dim=-1)
    return [ego, *sorted(others, key=lambda place: float(apart[place]))][:controlled]


def as_egos(scene: Scene, places: Sequence[int]) -> Scene:
    """Return one scene as often as there are `places`, each time with another road user as its ego, on a route of its own."""
    own = int(scene.ego[0])
    others = [place for place in places if place != own]
    lines = {own: scene.route[0][scene.route_valid[0]]} | {place: own_route(scene, place) for place in others}
    return stack(
        [
            replace(
                scene,
                ego=torch.tensor([place]),
                route=lines[place][None],
                route_valid=torch.ones(1, len(lines[place]), dtype=torch.bool),
            )
            for place in places
        ]
    )


def own_route(scene: Scene, place: int) -> Tensor:
    """Return the route (R, 3) of the road user at `place` of one scene: its logged way, then along lanes, then straight on."""
    now = slice(HISTORY_STEPS, None)
    seen = scene.valid[0, place, now]
    ground = scene.position[0, place, now][seen] - torch.tensor([0.0, 0.0, 0.5]) * scene.size[0, place, 2]
    return _lanes_near(scene, ground).route(ground, scene.heading[0, place, now][seen])


def _lanes_near(scene: Scene, way: Tensor) -> LaneGraph:
    """Return the lanes of cars within `MAP_RADIUS` of a way (N, 3), with their links."""
    kind, valid = scene.polyline_kind[0], scene.polyline_valid[0]
    low, high = way[:, :2].amin(0) - MAP_RADIUS, way[:, :2].amax(0) + MAP_RADIUS
    near = ((scene.polyline[0, ..., :2] > low) & (scene.polyline[0, ..., :2] < high)).all(-1) & valid
    driven = (kind == PolylineKind.LANE) | (kind == PolylineKind.JUNCTION_LANE)
    lanes = {
        str(number): Lane(
            id=str(number),
            centre=scene.polyline[0, number][valid[number]],
            width=float(scene.lane_width[0, number]) or USUAL_LANE_WIDTH,
            kind=PolylineKind(int(kind[number])),
        )
        for number in (driven & near.any(-1) & (valid.sum(-1) > 1)).nonzero()[:, 0].tolist()
    }
    follows = scene.lane_link_valid[0] & (scene.lane_link_kind[0] == LaneLinkKind.SUCCESSOR)
    for first, second in scene.lane_link[0][follows].tolist():
        if str(first) in lanes and str(second) in lanes:
            lanes[str(first)].successors.append(str(second))
            lanes[str(second)].predecessors.append(str(first))
    return LaneGraph(lanes)
