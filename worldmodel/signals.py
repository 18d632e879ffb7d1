"""How signals go on where the log ends: a small network decides every half second which advance, GO -> CAUTION -> STOP -> GO.

What a signal does depends on what it shows, for how long (and whether its beginning was seen), on the others, relative to itself,
and on what those before it have just decided: one decides after another, so that no two that conflict turn green at once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional

from .geometry import rotate, to_local
from .scene import HISTORY_STEPS, Scene, SignalState

ADVANCED = torch.tensor([SignalState.UNKNOWN, SignalState.GO, SignalState.STOP, SignalState.CAUTION])
AGES, SCALES = torch.tensor([1.0, 2, 3, 4, 5, 6, 8, 12, 20, 35, 60, 90]), torch.tensor([2.0, 8.0, 32.0])
"""What follows each `SignalState`; seconds and metres at which ages and relative positions are squashed."""


@dataclass(frozen=True)
class SignalConfig:
    """What shapes the weights, in `config.json`: size of a hidden vector; ticks of 0.1 s between two decisions."""

    width: int = 48
    decision_ticks: int = 5


def signal_places(scene: Scene) -> Tensor:
    """Return x, y, heading of each stop point and x, y (in its frame) where the lane that it controls ends, (B, S, 5)."""
    row, place, heading = scene.ego_row()[:, None], scene.signal_position[..., :2], scene.signal_heading
    if not heading.shape[1] or not scene.polyline.shape[1]:
        return functional.pad(torch.cat((place, heading[..., None]), dim=-1), (0, 2))
    last = (scene.polyline_valid.sum(-1)[row, scene.signal_lane] - 1).clamp(min=0)
    end = to_local(scene.polyline[row, scene.signal_lane, last, :2], place, heading)
    return torch.cat((place, heading[..., None], end), dim=-1)


def signal_ages(state: Tensor) -> tuple[Tensor, Tensor]:
    """Return for how many ticks states (..., T) have shown the last one, and whether that was seen from its beginning: (...)."""
    same = (state == state[..., -1:]).flip(-1).long().cumprod(-1).sum(-1)
    before = state.gather(-1, (state.shape[-1] - 1 - same).clamp(min=0)[..., None])[..., 0]
    return same - 1, (same < state.shape[-1]) & (before != SignalState.UNKNOWN)  # coming into view is no beginning


class Exchange(nn.Module):
    """What signals learn from the others: a message for each pair, pooled by attention and by its largest value."""

    def __init__(self, width: int):
        super().__init__()
        self.receiver, self.sender, self.pair = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(8, width)
        self.message, self.update = nn.Linear(width, width + 1), nn.Sequential(nn.Linear(3 * width, width), nn.GELU())

    def pairs(self, own: Tensor, geometry: Tensor) -> Tensor:
        """Return the inputs (B, S, S, W) of pairs from all signals' own (B, S, W) and their geometry (B, S, S, 8)."""
        return self.receiver(own)[:, :, None] + self.sender(own)[:, None] + self.pair(geometry)

    def forward(self, own: Tensor, pair: Tensor, seen: Tensor) -> Tensor:
        """Return (B, R, W) from the receivers' own (B, R, W), the inputs of pairs (B, R, S, W) and which are seen (B, R, S)."""
        message = self.message(functional.gelu(pair)).masked_fill(~seen[..., None], 0.0)
        score = functional.pad(message[..., -1].masked_fill(~seen, -torch.inf), (0, 1))  # that of nobody is 0
        mean = (score.softmax(-1)[..., :-1, None] * message[..., :-1]).sum(2)
        return own + self.update(torch.cat((own, mean, message[..., :-1].amax(2)), dim=-1))


class SignalModel(nn.Module):
    """See the module's text."""

    def __init__(self, config: SignalConfig):
        super().__init__()
        self.config, self.own = config, nn.Linear(len(SignalState) + 2 * len(AGES) + 1 + 2 * len(SCALES), config.width)
        self.first, self.second, self.told = Exchange(config.width), Exchange(config.width), nn.Linear(2, config.width)
        self.head = nn.Sequential(nn.LayerNorm(config.width), nn.Linear(config.width, 1))

    def forward(self, place: Tensor, state: Tensor, age: Tensor, known: Tensor, valid: Tensor, given: Tensor) -> Tensor:
        """Return which signals (B, S) advance, by uniform random numbers `given`; all are (B, S), `place` is (B, S, 5).

        If `given` is bool, decisions already made (for training), the logit of each is returned, given those before it.
        """
        squash = lambda point: (point[..., None] / SCALES).tanh().flatten(-2)  # noqa: E731
        seconds = (0.1 * age[..., None] / AGES).clamp(max=1)
        parts = (seconds * known[..., None], seconds * ~known[..., None], known[..., None], squash(place[..., 3:]))
        own, count = self.own(torch.cat((functional.one_hot(state, len(SignalState)), *parts), dim=-1)), state.shape[1]
        shift, turn = place[:, None, :, :2] - place[:, :, None, :2], place[:, None, :, 2] - place[:, :, None, 2]
        local = squash(rotate(shift, -place[:, :, None, 2].expand_as(turn)))
        geometry = torch.cat((local, turn.cos()[..., None], turn.sin()[..., None]), dim=-1)
        seen = valid[:, None] & ~torch.eye(count, dtype=torch.bool)
        own = self.first(own, self.first.pairs(own, geometry), seen)
        pair, before = self.second.pairs(own, geometry), torch.ones(count, count, dtype=torch.bool).tril(-1)
        able = valid & (state != SignalState.UNKNOWN)

        def logits(rows: slice, decided: Tensor) -> Tensor:
            told = self.told((torch.stack((decided, ~decided), -1)[:, None] & before[rows, :, None]).float())
            return self.head(self.second(own[:, rows], pair[:, rows] + told, seen[:, rows]))[..., 0]

        if not given.is_floating_point():
            return logits(slice(None), given)
        decided = torch.zeros_like(able)
        for one in range(count):
            decided[:, one] = able[:, one] & (given[:, one] < logits(slice(one, one + 1), decided)[:, 0].sigmoid())
        return decided

    def begin(self, scene: Scene, past: Tensor) -> dict[str, Tensor]:
        """Return what is remembered of signals that have shown the states `past` (B, S, T), and what does not change of them."""
        age, known = signal_ages(past)
        last = torch.where(scene.signal_valid, torch.arange(scene.steps), 0).amax(-1)
        return {"signal_age": age, "signal_known": known, "signal_last": last, "signal_place": signal_places(scene)}

    def go_on(
        self, step: Tensor, shown: tuple[Tensor, Tensor], valid: Tensor, memory: dict[str, Tensor], given: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what the signals show (B, S), those whose log is over as the network decides, and what is remembered then.

        Args:
            step: (B,) ticks since the present, after this one.
            shown: states (B, S) before this tick, and those that the log shows (or holds) after it.
            valid: (B, S) bool.
            memory: from `begin` or the tick before.
            given: (B, S) uniform random numbers of this tick.
        """
        (before, logged), age, known, ticks = shown, memory["signal_age"], memory["signal_known"], self.config.decision_ticks
        over = (HISTORY_STEPS + step)[:, None] > memory["signal_last"]
        shows = torch.where(over, before, logged)
        due = (over.any(-1) & (step % ticks == 0)).nonzero()[:, 0]
        if len(due):
            known_since = (age[due] - ticks + 1).clamp(min=0)  # it decides at once what the next `ticks` bring
            moved = self(memory["signal_place"][due], before[due], known_since, known[due], valid[due], given[due])
            shows[due] = torch.where(over[due] & moved, ADVANCED[shows[due]], shows[due])
        changed = shows != before
        return shows, {
            "signal_age": torch.where(changed, 0, age + 1),
            "signal_known": torch.where(changed, before != SignalState.UNKNOWN, known),
        }

    @classmethod
    def from_pretrained(cls, folder: Path) -> SignalModel:
        """Read `config.json` and `model.safetensors`; ValueError: one is missing or broken, or they do not belong together."""
        try:
            model = cls(SignalConfig(**json.loads((folder / "config.json").read_text())))
            model.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
        except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{folder}: no model of signals ({reason}): copy the folder again, or train one") from error
        if not all(tensor.isfinite().all() for tensor in model.state_dict().values()):
            raise ValueError(f"{folder}/model.safetensors: holds NaN or infinity: copy the folder again")
        return model.eval()
