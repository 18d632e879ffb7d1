"""The single environment: a batch-of-one view of the vector environment, and the documentation page of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

from ..worldmodel.dynamics import KinematicBicycle
from ..worldmodel.world import State, World
from .observation import ObservationSize
from .scenarios import Source
from .vector import DriveVectorEnv, Info, Observation

if TYPE_CHECKING:
    from ..worldmodel.rig import Rig
    from ..worldmodel.sight import SceneCamera, Sight


class DriveEnv(gymnasium.Env[Observation, Any]):
    """Drive a car along its route, in a world whose other road users answer what it does.

    ## Description
    An episode starts from a moment of a recorded or generated scene, with one second of history. Every 0.1 s the ego gets an action
    and the world moves everyone else: predicted by a trained network (`world="learned"`; `"learned_open"`
    lets road users leave and enter, for episodes of minutes), as they drove in the log (`"replay"`),
    straight on (`"constant_velocity"`), by the rules of the intelligent driver model (`"idm"`), or by the traffic simulator SUMO (`"sumo"`). The ego is a kinematic bicycle: it cannot
    reverse, and it slides rather than turns where lateral acceleration would exceed 9 m/s2.

    ## Action space
    | `action=` | space | meaning |
    |---|---|---|
    | `"continuous"` | `Box(-1, 1, (2,), float32)` | [0] acceleration: -1 is -8 m/s2, 0 is none, 1 is 4 m/s2, linear on both sides of 0; [1] curvature of the path: -1 is -0.2 1/m (right), 1 is 0.2 1/m (left) |
    | `"physical"` | `Box([-8, -0.2], [4, 0.2], (2,), float32)` | the same in m/s2 and 1/m |
    | `"discrete"` | `Discrete(63)` | 9 i + j: acceleration number i of (-8, -4, -2, 0, 1, 2, 4) m/s2, curvature number j of (-0.2, -0.08, -0.03, -0.01, 0, 0.01, 0.03, 0.08, 0.2) 1/m |

    The numbers are those of the default `dynamics`. NaN, infinite and out-of-range actions raise ValueError. `env.unwrapped.actions`
    converts between these spaces and m/s2, 1/m.

    ## Observation space
    `observation="state"` gives a `Dict` in the ego's frame: origin at the centre of its box, x forward, y left; m, s, rad. Masks are
    1 where a row holds something; all other rows are zero. Rows are sorted, the nearest first. Values are clipped to their ranges.

    | key | shape | features | range |
    |---|---|---|---|
    | `ego` | (12,) | speed; acceleration; lateral acceleration; yaw rate | +-60; +-20; +-20; +-4 |
    | | | acceleration and curvature of the last action; length; width | +-20; +-1; 0..30; 0..10 |
    | | | offset to the left of the route; cosine and sine of the heading against the route; metres of route left | +-100; +-1; 0..1000 |
    | `agents` | (32, 12) | x, y of the centre; cosine, sine of the heading; velocity x, y (over ground, in the ego's frame) | +-200; +-1; +-60 |
    | | | length; width; is vehicle, pedestrian, cyclist, standing object | 0..30; 0..10; 0..1 |
    | `agents_mask` | (32,) | agents within 100 m | 0, 1 |
    | `polylines` | (64, 9) | lane width; speed limit (0: unknown) | 0..20; 0..60 |
    | | | is lane, junction lane, bike lane, walkway, crosswalk, lane marking, road edge | 0..1 |
    | `polylines_points` | (64, 10, 2) | x, y of points evenly spaced along a piece of at most 25 m, in driving direction | +-200 |
    | `polylines_mask` | (64,) | pieces within 100 m | 0, 1 |
    | `route` | (20, 4) | x, y and cosine, sine of the direction of the route 3, 6, ..., 60 m ahead | +-200; +-1 |
    | `route_mask` | (20,) | before the route's end | 0, 1 |
    | `signals` | (8, 10) | x, y of the stop point; cosine, sine of the direction there | +-200; +-1 |
    | | | on the route; metres along the route to it (0 if not on it) | 0..1; +-200 |
    | | | is unknown, stop, caution, go | 0..1 |
    | `signals_mask` | (8,) | signals within 100 m, those ahead on the route first | 0, 1 |

    `observation="image"` gives `Box(0, 255, (96, 96, 7), uint8)`: a bird's-eye image with 0.75 m a pixel, the ego in the middle
    looking up. Channels: 0 road surface; 1 lines (255 road edge, 128 marking, crosswalk, walkway); 2 route; 3 signals (255 stop,
    190 caution, 120 go, 60 unknown); 4 vehicles and standing objects; 5 pedestrians and cyclists; 6 ego. Counts, radius and scale
    are set by `size`.

    `observation="camera"` gives what the ego's cameras show, `Box(0, 255, (H, W, 3), uint8)`, or (C, H, W, 3) of a `rig` of several.

    ## Reward
    The sum of weighted measures of the step, each a term in `info["reward_terms"]`. `reward` is a preset of
    `worldloop.envs.PRESETS` or weights of your own, such as `{"progress": 0.1, "red_light": -2.0}`, for any of `info["measures"]`.
    `"nuplan"` and `"epdms"` earn bit by bit what nuPlan's closed-loop score and NAVSIM's EPDMS weigh. The default, `"progress"`:

    | term | measure | weight |
    |---|---|---|
    | `progress` | metres driven along the route, up to its end | 0.1 |
    | `collision` | 1 if the ego's box overlaps that of another agent | -5 |
    | `off_road` | 1 if a corner of the ego is more than 0.3 m beyond the road's edge; 0 where the map has no road edges, and until it has been on the road | -5 |
    | `comfort` | share of nuPlan's six comfort limits that hold | 0.02 |

    ## Starting state
    A scene is drawn at random from `scenes`, or given by `reset(options={"scene": ...})`: an id, a number, or a `Scene` of one's own.
    The ego, the others and the signals start as the log shows them at its step 10. Same seed, same machine, same number of threads:
    same episode.

    ## Episode end
    `terminated`: at a collision or off the road (`terminate_on`; `"at_fault_collision"` and `"red_light"` can be added). `truncated`: after `horizon` steps.

    ## Info
    | key | meaning |
    |---|---|
    | `scene` | id of the scene |
    | `steps` | steps since the reset |
    | `agents_simulated` | valid agents that the world moved in this step (not the ego, no standing objects) |
    | `uncertainty` | mean over these agents of `state.uncertainty`: metres by which a log would be off by now; only the learned world says so, others 0 |
    | `reward_terms` | each term of the reward; not after a reset |
    | `measures` | each measure of the step (`worldloop.envs.measures.ego_measures`); not after a reset |

    ## Arguments
    | argument | default | meaning |
    |---|---|---|
    | `scenes` | `None` | the shipped scenes (`None` or `"demo"`), the folder of a data set, a `SceneDataset`, or a `Scene` |
    | `world` | `"learned"` | a name above or any object that satisfies `worldloop.worldmodel.world.World` |
    | `observation` | `"state"` | or `"image"`, `"camera"` |
    | `action` | `"continuous"` | or `"physical"`, `"discrete"` |
    | `horizon` | `80` | steps; `None`: as long as each scene's log |
    | `terminate_on` | `("collision", "off_road")` | measures that end the episode |
    | `reward` | `"progress"` | a preset (`"progress"`, `"nuplan"`, `"epdms"`) or weights by measure |
    | `dynamics` | `KinematicBicycle()` | limits of the car |
    | `size` | `ObservationSize()` | counts, radius, spacing, image |
    | `camera` | `None` | a name of `worldloop.envs.cameras.CAMERAS`, or a `SceneCamera`; `env.sight` then holds what it shows |
    | `rig` | `None` | where its cameras are: a name of `worldloop.worldmodel.rig.RIGS` or a `Rig`; `None`: the camera's own |
    | `render_mode` | `None` | `"rgb_array"`: `render()` returns (800, 800, 3) uint8; `"human"`: a window; `"camera"`: what the cameras show |

    Attributes:
        state: the world's `State`, a batch of one.
        actions: the `ActionSpace`, with `decode` and `encode`.
        scenarios: the scenes to choose from, with `ids`.
    """  # noqa: E501 (rows of tables)

    metadata = {"render_modes": ["human", "rgb_array", "camera"], "render_fps": 10}

    def __init__(
        self,
        scenes: Source = None,
        world: str | World = "learned",
        *,
        observation: str = "state",
        action: str = "continuous",
        horizon: int | None = 80,
        terminate_on: Sequence[str] = ("collision", "off_road"),
        reward: str | Mapping[str, float] = "progress",
        dynamics: KinematicBicycle = KinematicBicycle(),  # noqa: B008 (frozen)
        size: ObservationSize = ObservationSize(),  # noqa: B008 (frozen)
        camera: str | SceneCamera | None = None,
        rig: str | Rig | None = None,
        render_mode: str | None = None,
    ) -> None:
        """Open scenes and world.

        Raises:
            ValueError: an argument is unknown or impossible; the message names it and what is wanted.
        """
        self.vector = DriveVectorEnv(
            1,
            scenes,
            world,
            observation=observation,
            action=action,
            horizon=horizon,
            terminate_on=terminate_on,
            reward=reward,
            dynamics=dynamics,
            size=size,
            camera=camera,
            rig=rig,
            render_mode=render_mode,
            autoreset_mode=AutoresetMode.DISABLED,
        )
        self.render_mode, self.metadata = render_mode, {**self.metadata, "render_modes": self.vector.metadata["render_modes"]}
        self.observation_space, self.action_space = self.vector.single_observation_space, self.vector.single_action_space
        self.actions, self.scenarios = self.vector.actions, self.vector.scenarios

    @property
    def state(self) -> State:
        """The world's state, a batch of one; it is replaced at every step and never changed."""
        return self.vector.state

    @property
    def sight(self) -> Sight | None:
        """What the cameras show of `state`; None without one."""
        return self.vector.sight

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Observation, Info]:
        """Begin an episode.

        Args:
            seed: of all randomness from here on.
            options: `{"scene": ...}`, an id, a number or a `Scene`.

        Raises:
            ValueError: an unknown option or scene, or the horizon is longer than the world can go.
        """
        super().reset(seed=seed)
        self.vector.generators[0] = self.np_random
        seen, infos = self.vector.reset(options=options)
        return row_seen(seen, 0), row_info(infos, 0)

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, Info]:
        """Drive 0.1 s.

        Raises:
            ValueError: the action is NaN, infinite or out of range.
            ResetNeeded: the episode is over, or none has begun.
        """
        seen, reward, terminated, truncated, infos = self.vector.step(np.asarray(action)[None])
        return row_seen(seen, 0), float(reward[0]), bool(terminated[0]), bool(truncated[0]), row_info(infos, 0)

    def render(self) -> Any:
        """Return a picture (height, width, 3) uint8 (`rgb_array`, `camera`), or show it in a window (`human`)."""
        frames = self.vector.render()
        return None if frames is None else frames[0]

    def close(self) -> None:
        """Close the window, if there is one."""
        self.vector.close()


def row_seen(seen: Observation, row: int) -> Observation:
    """Return what sub-environment `row` sees."""
    return {name: array[row] for name, array in seen.items()} if isinstance(seen, dict) else seen[row]


def row_info(infos: Info, row: int) -> Info:
    """Return what the infos of a vector environment say of one sub-environment, as plain values."""
    plain: Info = {}
    for name, value in infos.items():
        if not name.startswith("_") and infos[f"_{name}"][row]:
            plain[name] = row_info(value, row) if isinstance(value, dict) else value[row : row + 1].tolist()[0]
    return plain
