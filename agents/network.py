"""A driver that is a network: it sees the environment's `"state"` observation and nothing else.

Every set in the observation (road users, polylines, signals) goes row by row through a small network of its own and is pooled by
its maximum, so that the order of rows means nothing and masked rows say nothing (Qi et al., "PointNet", CVPR 2017); the ego and
the route ahead go in whole. Actions are shares of what the car can do, as in `action="continuous"`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ..envs.action import ActionSpace
from ..envs.observation import AGENT_FEATURES, EGO_FEATURES, POLYLINE_FEATURES, ROUTE_FEATURES, SIGNAL_FEATURES, ObservationSize
from ..envs.vector import Observation
from ..worldmodel.data.shards import SceneDataset
from ..worldmodel.dynamics import KinematicBicycle
from ..worldmodel.files import write_json, write_tensors
from ..worldmodel.raster import PIECE_POINTS
from ..worldmodel.world import World
from .rollout import open_scenes, rollout

Observed = Mapping[str, Tensor]

SETS = {"agents": len(AGENT_FEATURES), "polylines": len(POLYLINE_FEATURES) + 2 * PIECE_POINTS, "signals": len(SIGNAL_FEATURES)}
"""Features of a row of each set; a polyline's points stand behind its features."""

TERMINATE_ON = ("at_fault_collision", "off_road")
"""What ends an episode in training: what makes both driving scores 0."""

CLIP = 5.0
"""Standard deviations beyond which a normalised feature is cut off."""


@dataclass(frozen=True)
class NetworkConfig:
    """Shape of the network; it is saved with the weights.

    Attributes:
        width: of the rows' networks and what they are pooled to.
        hidden: of the two layers behind.
        route_points: of the observation, see `ObservationSize`.
    """

    width: int = 64
    hidden: int = 256
    route_points: int = ObservationSize.route_points


class Normaliser(nn.Module):
    """Running mean and variance of features, saved with the weights (Chan, Golub, LeVeque, "Updating formulae", 1979)."""

    def __init__(self, features: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("square", torch.ones(features))
        self.register_buffer("count", torch.zeros(()))
        self.mean: Tensor
        self.square: Tensor
        self.count: Tensor

    @torch.no_grad()
    def update(self, rows: Tensor) -> None:
        """Take rows (n, features) into account."""
        if not len(rows):
            return
        count, mean = len(rows), rows.mean(dim=0)
        total = self.count + count
        away = mean - self.mean
        known = self.square * self.count if self.count > 0 else torch.zeros_like(self.square)
        self.square.copy_((known + (rows - mean).square().sum(dim=0) + away.square() * self.count * count / total) / total)
        self.mean.add_(away * count / total)
        self.count.copy_(total)

    def forward(self, rows: Tensor) -> Tensor:
        """Return rows (..., features) in standard deviations from the mean, cut off at `CLIP`."""
        return ((rows - self.mean) / (self.square + 1e-4).sqrt()).clamp(-CLIP, CLIP)


class DriverNetwork(nn.Module):
    """Actor and critic: from an observation to the mean and spread of the action and the value of the moment."""

    def __init__(self, config: NetworkConfig = NetworkConfig()):  # noqa: B008 (frozen)
        super().__init__()
        self.config = config
        whole = len(EGO_FEATURES) + config.route_points * (len(ROUTE_FEATURES) + 1)
        self.rows = nn.ModuleDict({name: _layers(size, config.width, config.width) for name, size in SETS.items()})
        self.normalise = nn.ModuleDict({name: Normaliser(size) for name, size in {**SETS, "whole": whole}.items()})
        features = whole + config.width * len(SETS)
        self.actor = nn.Sequential(_layers(features, config.hidden, config.hidden), _linear(config.hidden, 2, 0.01))
        self.critic = nn.Sequential(_layers(features, config.hidden, config.hidden), _linear(config.hidden, 1, 1.0))
        self.log_spread = nn.Parameter(torch.tensor([-1.0, -2.5]))

    def features(self, seen: Observed) -> Tensor:
        """Return what is seen (B, ...) as one row (B, F)."""
        parts = [self.normalise["whole"](_whole(seen))]
        for name, layers in self.rows.items():
            encoded = layers(self.normalise[name](_rows(seen, name)))
            mask = seen[f"{name}_mask"].bool()[..., None]
            pooled = torch.where(mask, encoded, -torch.inf).amax(dim=1)
            parts.append(torch.where(mask.any(dim=1), pooled, 0.0))
        return torch.cat(parts, dim=-1)

    def forward(self, seen: Observed) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean (B, 2) and spread (2,) of the action's normal distribution, and the value (B,)."""
        features = self.features(seen)
        return self.actor(features), self.log_spread.exp(), self.critic(features)[:, 0]

    def learn_scales(self, seen: Observed) -> None:
        """Take an observation into the running normalisation."""
        self.normalise["whole"].update(_whole(seen))  # pyright: ignore[reportCallIssue]
        for name in SETS:
            self.normalise[name].update(_rows(seen, name)[seen[f"{name}_mask"].bool()])  # pyright: ignore[reportCallIssue]

    def save_pretrained(self, folder: Path) -> None:
        """Write `config.json` and `model.safetensors`."""
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / "model.safetensors", self.state_dict())
        write_json(folder / "config.json", {"driver": 1, **asdict(self.config)})

    @classmethod
    def from_pretrained(cls, folder: Path) -> DriverNetwork:
        """Read a network that `save_pretrained` wrote.

        Raises:
            ValueError: a file is missing or broken, or weights and configuration do not belong together.
        """
        try:
            given = json.loads((folder / "config.json").read_text())
            if not isinstance(given, dict) or given.pop("driver", None) != 1:
                raise ValueError("it is of something else")
            network = cls(NetworkConfig(**given))
            network.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
        except FileNotFoundError as error:
            missing = error.filename or "a file is"
            raise ValueError(f"{missing}: not found, so {folder} is no driver: name the folder `model` of its run") from error
        except (ValueError, TypeError, OSError, SafetensorError, RuntimeError) as error:
            known = ", ".join(field.name for field in fields(NetworkConfig))
            reason = str(error).splitlines()[0]
            raise ValueError(f"{folder}: not a driver's network ({reason}); its config.json has driver, {known}") from error
        return network.eval()


class NetworkPolicy:
    """Drives with the mean of a `DriverNetwork`'s actions."""

    def __init__(self, network: DriverNetwork):
        """Drive with a network."""
        self.network, self.actions = network.eval(), ActionSpace("continuous", KinematicBicycle())

    @classmethod
    def from_pretrained(cls, folder: Path) -> NetworkPolicy:
        """Return the driver of a folder, see `DriverNetwork.from_pretrained`."""
        return cls(DriverNetwork.from_pretrained(folder))

    @torch.no_grad()
    def act(self, observation: Observation, state: Any) -> Tensor:
        """See `Policy.act`.

        Raises:
            ValueError: the observation is an image.
        """
        if not isinstance(observation, dict):
            raise ValueError('a driver\'s network sees the "state" observation, found an image')
        mean = self.network(as_tensors(observation))[0]
        return self.actions.decode(mean.clamp(-1.0, 1.0).numpy())


def open_training(scenes: str, validation: str, count: int) -> tuple[SceneDataset, SceneDataset]:
    """Return the scenes to train on, and the first `count` of those to score on.

    Raises:
        ValueError: a scene is among both.
    """
    training, held = open_scenes(scenes), open_scenes(validation)
    if both := set(training.ids) & set(held.ids):
        raise ValueError(f"--validation {validation}: {min(both)} is a training scene too: hold it out of one of them")
    return training, held.first(min(count, len(held)))


def score(network: DriverNetwork, world: World, held: SceneDataset, horizon: int) -> dict[str, float]:
    """Return the scores of a network in training, the mean over the scenarios that did not fail."""
    driven = rollout(NetworkPolicy(network), world, held, steps=horizon, terminate_on=TERMINATE_ON).summary()
    network.train()
    if driven["nuplan"] is None:
        raise ValueError("every validation scenario failed: try one with `worldloop rollout --policy idm`")
    return {name: driven[name] for name in ("nuplan", "epdms", "collision_rate", "off_road_rate") if driven[name] is not None}


def as_tensors(observation: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Return an environment's observation as tensors that share its memory."""
    return {name: torch.from_numpy(array) for name, array in observation.items()}


def _whole(seen: Observed) -> Tensor:
    route = torch.cat((seen["route"], seen["route_mask"].to(seen["route"].dtype)[..., None]), dim=-1)
    return torch.cat((seen["ego"], route.flatten(1)), dim=-1)


def _rows(seen: Observed, name: str) -> Tensor:
    return torch.cat((seen[name], seen["polylines_points"].flatten(2)), dim=-1) if name == "polylines" else seen[name]


def _linear(inputs: int, outputs: int, gain: float) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def _layers(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(_linear(inputs, hidden, 2**0.5), nn.Tanh(), _linear(hidden, outputs, 2**0.5), nn.Tanh())
