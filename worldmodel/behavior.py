"""The behaviour model: what every agent does next, given what everyone, the ego included, has done until now.

A transformer over agents and time that predicts the next motion token of each agent (SMART, arXiv 2405.15677). Every decision
attends, in turn, to the agent's own past, to the map and the signals, and to the other agents. Attention sees geometry only
through the pose of what it looks at, relative to the one who looks, so the futures do not depend on the choice of origin.

Choices that keep a decision cheap on a CPU:

- A relative pose enters as a small vector f_ij that is added, linearly, to keys and values: k_ij = k_j + W f_ij. Then
  q_i . k_ij = q_i . k_j + (W^T q_i) . f_ij and sum_j a_ij v_ij = sum_j a_ij v_j + W' (sum_j a_ij f_ij): no tensor of one key for
  each pair is ever made, and f_ij serves all layers.
- Only the nearest few are looked at. Scores against all are one matrix product; the few are picked from the scores, and the
  weights are scattered back for the product with the values.
- A map polyline is encoded once. Its relative pose is that of its *nearest point*, so an agent knows its offset in the lane
  exactly. A signal is one of four keys, one for each state; where it stands is the business of f_ij.
- The cache holds keys and values of the last few decisions. A chunk of N decisions and N single ones run through the same code.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import cast

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional

from .files import write_json, write_tensors
from .geometry import polyline_direction, rotate, to_local, wrap_angle
from .scene import TIME_STEP, AgentKind, PolylineKind, Scene, SignalState, TensorBatch
from .tokens import MotionVocabulary

SCALES = (1.0, 4.0, 16.0, 64.0)
"""Metres at which a relative position is squashed: from the offset in a lane to the far end of the scene."""

PAIR_INPUTS = 4 * len(SCALES) + 6


@dataclass(frozen=True)
class BehaviorConfig:
    """What shapes the weights; saved with them as `config.json`.

    Attributes:
        vocabulary_size: tokens of all kinds together; vocabulary_checksum: `MotionVocabulary.checksum()` of the table used.
        decision_ticks: ticks of 0.1 s between two decisions.
        width: size of a hidden vector; heads: attention heads; layers: blocks; hidden: width of the feed-forward part.
        pair_width: size of the relative-pose vector f_ij.
        window: decisions that an agent remembers, the present one included.
        map_neighbours, signal_neighbours, agent_neighbours: how many of each an agent looks at.
        motion_inputs: numbers that tell an agent's last motion; 5 are its way, turn and whether they are known, the 6th its
            velocity at the end against that way.
        dropout: share of what attention and feed-forward part add that is dropped in training.
    """

    vocabulary_size: int
    vocabulary_checksum: int
    decision_ticks: int = 5
    width: int = 128
    heads: int = 4
    layers: int = 3
    hidden: int = 256
    pair_width: int = 32
    window: int = 8
    map_neighbours: int = 32
    signal_neighbours: int = 4
    agent_neighbours: int = 16
    motion_inputs: int = 6
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name != "dropout" and (type(value) is not int or value < 1):
                raise ValueError(f"{name}: found {value!r}, wanted a whole number of at least 1")
        if self.motion_inputs not in (5, 6):
            raise ValueError(f"motion_inputs: found {self.motion_inputs}, wanted 5 or 6")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} and heads {self.heads}: wanted heads that divide the width")


@dataclass(frozen=True)
class Agents(TensorBatch):
    """N decisions of A agents as the model reads them.

    Attributes:
        pose: (B, A, N, 3) x, y, heading; before: (B, A, N, 3) pose one interval earlier; known: (B, A, N) bool, if there is one.
        velocity: (B, A, N, 2) in the scene's frame; valid: (B, A, N) bool; size: (B, A, 3); kind: (B, A).
    """

    pose: Tensor
    before: Tensor
    known: Tensor
    velocity: Tensor
    valid: Tensor
    size: Tensor
    kind: Tensor


@dataclass(frozen=True)
class MapMemory(TensorBatch):
    """What the model knows of the map.

    Attributes:
        keys, values: (B, layers, L + 4, width) of the polylines, then of the four signal states.
        points: (B, L, P, 2) with mask points_valid (B, L, P).
        centre: (B, L, 2) a point in the middle of each polyline; reach: (B, L) metres from there to its farthest point.
    """

    keys: Tensor
    values: Tensor
    points: Tensor
    points_valid: Tensor
    centre: Tensor
    reach: Tensor


@dataclass(frozen=True)
class Cache(TensorBatch):
    """Keys and values (B, layers, A, window - 1, width) of past decisions, with their poses (B, A, window - 1, 3) and masks."""

    keys: Tensor
    values: Tensor
    pose: Tensor
    valid: Tensor


def unit(heading: Tensor) -> Tensor:
    """Return (..., 2) the unit vector along `heading` (...)."""
    return torch.stack((heading.cos(), heading.sin()), dim=-1)


def pair_inputs(shift: Tensor, own: Tensor, other: Tensor, extra: Tensor) -> Tensor:
    """Return the raw features (..., PAIR_INPUTS) of relative poses, which no motion of the whole scene changes.

    Args:
        shift: (..., 2) metres from the one who looks to the other, in the scene's frame.
        own: (..., 2) unit vector along which the one who looks is heading.
        other: (..., 2) unit vector along which the other is heading.
        extra: (...) what else tells pairs apart (time between them, place along a polyline).
    """
    into = lambda vector, axis: torch.stack(  # noqa: E731
        ((vector * axis).sum(-1), vector[..., 1] * axis[..., 0] - vector[..., 0] * axis[..., 1]), dim=-1
    )
    offset, turned, reverse = into(shift, own), into(other, own), into(-shift, other)
    distance = (offset.square().sum(-1, keepdim=True) + 1e-6).sqrt()
    squashed = torch.tanh(torch.cat([vector / scale for scale in SCALES for vector in (offset, reverse)], dim=-1))
    return torch.cat((squashed, turned, torch.log1p(distance), offset / (1 + distance), extra[..., None]), dim=-1)


class RelativeAttention(nn.Module):
    """Attention of queries to a chosen few of the keys, with the relative pose in keys and values (see the module's text)."""

    def __init__(self, config: BehaviorConfig):
        super().__init__()
        self.heads, self.pair_width = config.heads, config.pair_width
        self.norm = nn.LayerNorm(config.width)
        self.query = nn.Linear(config.width, config.width)
        self.pair_key = nn.Linear(config.pair_width, config.width, bias=False)
        self.pair_value = nn.Linear(config.pair_width, config.width, bias=False)
        self.out = nn.Linear(config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, pair: Tensor, index: Tensor, valid: Tensor) -> Tensor:
        """Attend.

        Args:
            x: (R, Q, width) those who look.
            keys: (R, K, width) what can be looked at.
            values: (R, K, width).
            pair: (R, Q, k, pair_width) relative poses of the chosen few.
            index: (R, Q, k) int64, which keys are the few; repeats are allowed.
            valid: (R, Q, k) bool. Who has nobody to look at gets zeros.

        Returns:
            (R, Q, width).
        """
        rows, queries, width = x.shape
        heads, size = self.heads, width // self.heads
        query = self.query(self.norm(x)).view(rows, queries, heads, size).transpose(1, 2)
        split = lambda tensor: tensor.view(rows, -1, heads, size).transpose(1, 2)  # noqa: E731
        few = index[:, None].expand(-1, heads, -1, -1)
        scores = (query @ split(keys).transpose(-1, -2)).gather(-1, few)
        weight_key = self.pair_key.weight.view(heads, size, self.pair_width)
        weight_value = self.pair_value.weight.view(heads, size, self.pair_width)
        towards = torch.einsum("rhqd,hdp->rqhp", query, weight_key)
        scores = (scores + (towards @ pair.transpose(-1, -2)).transpose(1, 2)) / size**0.5
        scores = scores.masked_fill(~valid[:, None], -torch.inf)
        # A key that is always there, with score and value zero, keeps the softmax defined where nobody is near.
        nobody = scores.new_zeros((rows, heads, queries, 1))
        weights = torch.cat((scores, nobody), dim=-1).softmax(-1)[..., :-1]
        spread = torch.zeros(rows, heads, queries, keys.shape[1], dtype=weights.dtype).scatter_add(-1, few, weights)
        seen = (weights.transpose(1, 2) @ pair).transpose(1, 2)
        result = spread @ split(values) + torch.einsum("rhqp,hdp->rhqd", seen, weight_value)
        return self.dropout(self.out(result.transpose(1, 2).reshape(rows, queries, width)))


class Block(nn.Module):
    """One layer: own past, map and signals, other agents, then a feed-forward part; each added to the residual stream."""

    def __init__(self, config: BehaviorConfig):
        super().__init__()
        self.time_keys = nn.Sequential(nn.LayerNorm(config.width), nn.Linear(config.width, 2 * config.width))
        self.map_keys = nn.Linear(config.width, 2 * config.width)
        self.agent_keys = nn.Sequential(nn.LayerNorm(config.width), nn.Linear(config.width, 2 * config.width))
        self.time, self.map, self.agents = RelativeAttention(config), RelativeAttention(config), RelativeAttention(config)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(config.width),
            nn.Linear(config.width, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, config.width),
            nn.Dropout(config.dropout),
        )


@dataclass(frozen=True)
class Neighbourhood:
    """Whom each decision looks at: indices, masks and relative-pose vectors, shared by all layers."""

    time: tuple[Tensor, Tensor, Tensor]
    map: tuple[Tensor, Tensor, Tensor]
    agents: tuple[Tensor, Tensor, Tensor]


class BehaviorModel(nn.Module):
    """Next-motion-token transformer. `advance` takes decisions in, `head` gives scores over the vocabulary."""

    def __init__(self, config: BehaviorConfig, vocabulary: MotionVocabulary):
        super().__init__()
        if (len(vocabulary), vocabulary.checksum()) != (config.vocabulary_size, config.vocabulary_checksum):
            raise ValueError(
                f"the vocabulary ({len(vocabulary)} tokens, checksum {vocabulary.checksum()}) does not fit the weights "
                f"({config.vocabulary_size} tokens, checksum {config.vocabulary_checksum}): use the vocabulary.safetensors that "
                "was saved with them"
            )
        if vocabulary.ticks != config.decision_ticks:
            raise ValueError(f"vocabulary of {vocabulary.ticks} ticks, decisions every {config.decision_ticks}: they must agree")
        self.config, self.vocabulary = config, vocabulary
        width, pair = config.width, config.pair_width
        self.agent_encoder = nn.Sequential(
            nn.Linear(config.motion_inputs + 3 + len(AgentKind), width), nn.GELU(), nn.Linear(width, width)
        )
        self.point_encoder = nn.Sequential(nn.Linear(4 + len(PolylineKind) + 3, 64), nn.GELU(), nn.Linear(64, width))
        self.polyline_encoder = nn.Sequential(nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width))
        self.signal_embedding = nn.Parameter(0.5 * torch.randn(len(SignalState), width))
        self.pair_encoders = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Linear(PAIR_INPUTS, pair), nn.GELU(), nn.Linear(pair, pair))
                for name in ("time", "map", "signal", "agents")
            }
        )
        self.blocks = cast(list[Block], nn.ModuleList(Block(config) for _ in range(config.layers)))
        self.head_norm = nn.LayerNorm(width)
        self.head_linear = nn.Linear(width, config.vocabulary_size)

    def encode_map(self, scene: Scene) -> MapMemory:
        """Encode the polylines of B scenes once; a polyline is described in its own frame, so by its shape alone."""
        points, valid = scene.polyline[..., :2], scene.polyline_valid
        direction = polyline_direction(points, valid)
        middle = (valid.sum(-1, keepdim=True) // 2).clamp(max=valid.shape[-1] - 1)
        centre = points.gather(2, middle[..., None].expand(-1, -1, -1, 2))[:, :, 0]
        heading = direction.gather(2, middle)[..., 0]
        local = to_local(points, centre[:, :, None], heading[:, :, None])
        turned = direction - heading[..., None]
        limit = torch.stack((scene.speed_limit / 10, scene.speed_limit_valid.float()), dim=-1)
        flat = torch.cat(
            (functional.one_hot(scene.polyline_kind, len(PolylineKind)), scene.lane_width[..., None] / 4, limit), dim=-1
        )
        shape = torch.cat((local / 10, turned.cos()[..., None], turned.sin()[..., None]), dim=-1)
        features = self.point_encoder(torch.cat((shape, flat[:, :, None].expand(-1, -1, points.shape[2], -1)), dim=-1))
        pooled = features.masked_fill(~valid[..., None], -1e4).amax(2) if points.shape[1] else features.sum(2)
        tokens = self.polyline_encoder(torch.where(valid[:, :, :1], pooled, 0.0))
        tokens = torch.cat((tokens, self.signal_embedding.expand(len(scene), -1, -1)), dim=1)
        keys, values = zip(*(block.map_keys(tokens).chunk(2, dim=-1) for block in self.blocks), strict=True)
        exists = valid[..., 0]
        reach = (
            (points - centre[:, :, None]).norm(dim=-1).masked_fill(~valid, 0.0).amax(-1) if points.shape[1] else exists.float()
        )
        # Markings repeat what centrelines and widths say: look at them only where little else is near.
        reach = reach - 10.0 * (scene.polyline_kind == PolylineKind.LANE_MARKING)
        return MapMemory(
            torch.stack(keys, 1), torch.stack(values, 1), points, valid, centre, torch.where(exists, reach, -torch.inf)
        )

    def empty_cache(self, scene: Scene) -> Cache:
        """Return the cache of B scenes in which nothing has been decided yet."""
        batch, agents, past = *scene.kind.shape, self.config.window - 1
        hidden = torch.zeros(batch, self.config.layers, agents, past, self.config.width)
        pose, valid = torch.zeros(batch, agents, past, 3), torch.zeros(batch, agents, past, dtype=torch.bool)
        return Cache(hidden, hidden.clone(), pose, valid)

    def advance(self, agents: Agents, signals: tuple[Tensor, ...], memory: MapMemory, cache: Cache) -> tuple[Tensor, Cache]:
        """Take N further decisions in.

        Args:
            agents: the N decisions.
            signals: position (B, S, 2), heading (B, S), state (B, S, N) and mask (B, S, N).
            memory: from `encode_map`.
            cache: of the decisions before.

        Returns:
            Features (B, A, N, width) for `head`, and the cache with these decisions in it. What is decided for n depends on the
            decisions up to n alone, so N at once equal N calls of one.
        """
        batch, count, new = agents.valid.shape
        near = self._neighbourhood(agents, signals, memory, cache)
        x = self._encode_agents(agents)
        past_keys, past_values = [], []
        for layer, block in enumerate(self.blocks):
            keys, values = block.time_keys(x).chunk(2, dim=-1)
            keys = torch.cat((cache.keys[:, layer], keys), dim=2)
            values = torch.cat((cache.values[:, layer], values), dim=2)
            past_keys.append(keys[:, :, new:])
            past_values.append(values[:, :, new:])
            x = x + block.time(x.flatten(0, 1), keys.flatten(0, 1), values.flatten(0, 1), *near.time).view_as(x)
            flat = x.transpose(1, 2).reshape(batch, new * count, -1)
            flat = flat + block.map(flat, memory.keys[:, layer], memory.values[:, layer], *near.map)
            by_time = flat.view(batch * new, count, -1)
            keys, values = block.agent_keys(by_time).chunk(2, dim=-1)
            by_time = by_time + block.agents(by_time, keys, values, *near.agents)
            by_time = by_time + block.feed_forward(by_time)
            x = by_time.view(batch, new, count, -1).transpose(1, 2)
        poses = torch.cat((cache.pose, agents.pose), dim=2)[:, :, new:]
        valid = torch.cat((cache.valid, agents.valid), dim=2)[:, :, new:]
        return x, Cache(torch.stack(past_keys, 1), torch.stack(past_values, 1), poses, valid)

    def head(self, features: Tensor, kind: Tensor) -> Tensor:
        """Return scores (..., V) for features (..., width) of agents of `kind` (...); minus infinity for other kinds' tokens."""
        scores = self.head_linear(self.head_norm(features))
        return scores.masked_fill(~self.vocabulary.allowed(kind), -torch.inf)

    def _encode_agents(self, agents: Agents) -> Tensor:
        """Return the first hidden vectors (B, A, N, width): last motion, velocity against it, size and kind; no place."""
        heading, before = agents.pose[..., 2], agents.before
        going = rotate(agents.velocity, -heading) * (self.config.decision_ticks * TIME_STEP)
        moved = torch.where(agents.known[..., None], to_local(agents.pose[..., :2], before[..., :2], before[..., 2]), going)
        turned = torch.where(agents.known, wrap_angle(heading - before[..., 2]), 0.0)
        # The way of half a second hides a braking that has just begun; the velocity at its end shows it.
        faster = torch.tanh(2 * (going - moved)[..., 0])
        moved, sideways = moved.unbind(-1)
        motion = torch.stack((moved / 5, sideways, turned * 5, torch.tanh(moved * 2), agents.known.float(), faster), dim=-1)
        kind = functional.one_hot(agents.kind, len(AgentKind)).float()
        body = torch.cat((agents.size / 5, kind), dim=-1)[:, :, None].expand(-1, -1, motion.shape[2], -1)
        return self.agent_encoder(torch.cat((motion[..., : self.config.motion_inputs], body), dim=-1))

    def _neighbourhood(self, agents: Agents, signals: tuple[Tensor, ...], memory: MapMemory, cache: Cache) -> Neighbourhood:
        pose, velocity, valid = (part.transpose(1, 2) for part in (agents.pose, agents.velocity, agents.valid))
        return Neighbourhood(
            self._time_pairs(agents, cache), self._map_pairs(pose, velocity, signals, memory), self._agent_pairs(pose, valid)
        )

    def _time_pairs(self, agents: Agents, cache: Cache) -> tuple[Tensor, Tensor, Tensor]:
        """Return pair vectors (B A, N, window, F), indices into cache + chunk, and masks, of each agent's own past."""
        batch, count, new = agents.valid.shape
        window = self.config.window
        index = torch.arange(new)[:, None] + torch.arange(window)
        pose = torch.cat((cache.pose, agents.pose), dim=2)[:, :, index]
        valid = torch.cat((cache.valid, agents.valid), dim=2)[:, :, index]
        here = agents.pose[:, :, :, None]
        age = torch.arange(window - 1, -1, -1).expand(batch, count, new, window) / window
        raw = pair_inputs(pose[..., :2] - here[..., :2], unit(here[..., 2]), unit(pose[..., 2]), age)
        index = index.expand(batch * count, new, window)
        return self.pair_encoders["time"](raw).flatten(0, 1), index, valid.flatten(0, 1)

    def _agent_pairs(self, pose: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return pair vectors (B N, A, k, F), indices and masks of the nearest other agents at each decision."""
        pose, valid = pose.flatten(0, 1), valid.flatten(0, 1)
        rows, count = valid.shape
        few = min(self.config.agent_neighbours, count)
        distance = (pose[:, :, None, :2] - pose[:, None, :, :2]).norm(dim=-1)
        hidden = ~valid[:, None] | torch.eye(count, dtype=torch.bool)
        distance, index = distance.masked_fill(hidden, torch.inf).topk(few, dim=-1, largest=False)
        row = torch.arange(rows)[:, None, None]
        direction = unit(pose[..., 2])
        shift = pose[..., :2][row, index] - pose[:, :, None, :2]
        raw = pair_inputs(shift, direction[:, :, None], direction[row, index], torch.zeros_like(distance))
        return self.pair_encoders["agents"](raw), index, distance.isfinite()

    def _map_pairs(
        self, pose: Tensor, velocity: Tensor, signals: tuple[Tensor, ...], memory: MapMemory
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return pair vectors (B, N A, k, F), indices into polylines + signal states, and masks; the nearest point counts."""
        batch = pose.shape[0]
        pose = pose.flatten(1, 2)
        here, own = pose[..., :2], unit(pose[..., 2])
        few = min(self.config.map_neighbours, memory.centre.shape[1])
        ahead = here + velocity.flatten(1, 2)  # look where one second will lead
        gap = (ahead[:, :, None] - memory.centre[:, None]).norm(dim=-1) - memory.reach[:, None]
        gap, index = gap.topk(few, dim=-1, largest=False)
        row = torch.arange(batch)[:, None, None]
        raw = self._nearest_point(here, own, memory.points[row, index], memory.points_valid[row, index])
        position, direction, state, seen = signals
        pair, valid = self.pair_encoders["map"](raw), gap.isfinite()
        if position.shape[1]:
            count = pose.shape[1] // state.shape[2]
            shift, other = position[:, None] - here[:, :, None], unit(direction)[:, None]
            seen = seen.transpose(1, 2).repeat_interleave(count, dim=1)
            state = state.transpose(1, 2).repeat_interleave(count, dim=1)
            # Whoever drives towards a stop point in its direction comes first; who faces another way sees it from farther off.
            facing, ahead = (own[:, :, None] * other).sum(-1), (shift * own[:, :, None]).sum(-1)
            rank = shift.norm(dim=-1) + 40 * (1 - facing) + 20 * (ahead < -5)
            few = min(self.config.signal_neighbours, position.shape[1])
            rank, chosen = rank.masked_fill(~seen, torch.inf).topk(few, dim=-1, largest=False)
            pick = chosen[..., None].expand(-1, -1, -1, 2)
            shift, other = shift.gather(2, pick), other.expand_as(shift).gather(2, pick)
            raw = pair_inputs(shift, own[:, :, None], other, torch.zeros_like(rank))
            pair = torch.cat((pair, self.pair_encoders["signal"](raw)), dim=2)
            index = torch.cat((index, memory.centre.shape[1] + state.gather(2, chosen)), dim=2)
            valid = torch.cat((valid, rank.isfinite()), dim=2)
        return pair, index, valid

    @staticmethod
    def _nearest_point(here: Tensor, own: Tensor, points: Tensor, points_valid: Tensor) -> Tensor:
        """Return raw pair features of the nearest point of each polyline (B, Q, k, P, 2) seen from `here` (B, Q, 2)."""
        start, step = points[..., :-1, :], points[..., 1:, :] - points[..., :-1, :]
        relative = here[:, :, None, None] - start
        square = step.square().sum(-1).clamp(min=1e-6)
        share = ((relative * step).sum(-1) / square).clamp(0, 1)
        distance = (relative - share[..., None] * step).square().sum(-1).masked_fill(~points_valid[..., 1:], torch.inf)
        # At a bend the nearest point is the end of two segments: the first one is to be taken, whatever rounding says.
        order = torch.arange(distance.shape[-1])
        nearest = (distance * (1 + 1e-5 * order) + 1e-4 * order).argmin(-1, keepdim=True)
        pick = lambda vector: vector.gather(-2, nearest[..., None].expand(*nearest.shape, 2))[..., 0, :]  # noqa: E731
        share, step = share.gather(-1, nearest), pick(step)
        along = (nearest + share)[..., 0] / (points_valid.sum(-1).clamp(min=2) - 1)
        direction = step / step.norm(dim=-1, keepdim=True).clamp(min=1e-3)
        return pair_inputs(share * step - pick(relative), own[:, :, None].expand_as(direction), direction, along)

    def save_pretrained(self, folder: Path) -> None:
        """Write `config.json`, `model.safetensors` and `vocabulary.safetensors` into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        self.vocabulary.save(folder / "vocabulary.safetensors")
        write_tensors(folder / "model.safetensors", self.state_dict())
        write_json(folder / "config.json", asdict(self.config))

    @classmethod
    def from_pretrained(cls, folder: Path) -> BehaviorModel:
        """Read a model that `save_pretrained` wrote, ready to predict.

        Raises:
            ValueError: a file is missing or broken, or weights, configuration and vocabulary do not belong together.
        """
        try:
            given = json.loads((folder / "config.json").read_text())
            config = BehaviorConfig(**given)
        except FileNotFoundError as error:
            inside = f": did you mean {folder / 'model'}?" if (folder / "model" / "config.json").is_file() else ""
            raise ValueError(f"{folder}: no config.json, so it is no behaviour model{inside}") from error
        except (ValueError, TypeError) as error:
            known = ", ".join(field.name for field in fields(BehaviorConfig))
            raise ValueError(f"{folder}/config.json: not a behaviour model's configuration ({error}); it has: {known}") from error
        model = cls(config, MotionVocabulary.load(folder / "vocabulary.safetensors"))
        try:
            model.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
        except (OSError, SafetensorError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"{folder}/model.safetensors: not the weights of this configuration ({reason}): copy the folder again"
            ) from error
        if broken := [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]:
            raise ValueError(f"{folder}/model.safetensors: {broken[0]} holds NaN or infinity: copy the folder again")
        return model.eval()
