"""How unsure the learned world is: from the spread of what its model thinks possible to the error to expect, in metres.

At a decision the model holds several next motions of an agent possible. Their ends lie s metres about their mean (root mean
square, weighted with the whole distribution, also what epsilon leaves out). Decisions add up as independent steps do, to the
*spread* S = sqrt(s1^2 + s2^2 + ...); but a wrong speed stays wrong, so the error grows faster, and the time t belongs into the
formula:

    expected error = e^offset (S + FLOOR)^spread t^time

The three coefficients are fitted against logs (`worldloop calibrate`) and stand in `uncertainty.json` beside the weights.

Tried on training scenes: the spread of what epsilon leaves, the sum of the s, and a walk whose speed wanders fit as well together
with the time, the sum of the entropies worse (mean deviance 1.37 m against 1.31 m on logs); without the time all fit worse.
"""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

FLOOR = 0.01
"""Metres; an agent that the model is sure will stand has no logarithm without it."""

STEP = 0.01
"""Metres, the unit in which the spread of one decision is measured."""

CALIBRATION_FILE = "uncertainty.json"


def weights_checksum(folder: Path) -> int:
    """Return the CRC-32 of a model folder's weights, by which figures and coefficients say whose they are."""
    return zlib.crc32((folder / "model.safetensors").read_bytes())


@dataclass(frozen=True)
class Calibration:
    """Coefficients of the formula above; as they stand here the error is the spread itself, which ranks but is not its size."""

    offset: float = 0.0
    spread: float = 1.0
    time: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if type(value) not in (int, float) or not math.isfinite(value):
                raise ValueError(f"{name}: found {value!r}, wanted a finite number")

    def error(self, square: Tensor, seconds: Tensor) -> Tensor:
        """Return the metres to expect (...) for squared spreads (...) in m2, `seconds` (...) > 0 after the present."""
        square, seconds = square.double(), seconds.double()  # a power's last bits depend on where in a tensor it stands
        return (math.exp(self.offset) * (square.sqrt() + FLOOR) ** self.spread * seconds**self.time).float()

    @classmethod
    def load(cls, folder: Path, **sampling: float) -> Calibration | None:
        """Return what a model folder holds, None if it holds none or was fitted to futures that were sampled in another way.

        Args:
            folder: of the weights.
            sampling: `temperature`, `epsilon` of the world to be calibrated; what is not named may be anything.

        Raises:
            ValueError: the file is broken, or was fitted to other weights than those beside it.
        """
        path = folder / CALIBRATION_FILE
        try:
            record = json.loads(path.read_text())
            if record["weights_checksum"] != weights_checksum(folder):
                raise ValueError("it was fitted to other weights")
            is_alike = all(record[name] == value for name, value in sampling.items())
            return cls(**record["coefficients"]) if is_alike else None
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, LookupError) as error:
            raise ValueError(
                f"{path}: no calibration of these weights ({error}): run `worldloop calibrate` or remove it"
            ) from error

    @staticmethod
    def squared_spread(scores: Tensor, temperature: float, end: Tensor) -> Tensor:
        """Return the weighted squared distance (..., m2) of tokens' ends (V, 2) from their mean, for scores (..., V).

        An agent without a finite score, of a kind that has no tokens, gets zero. The distance is rounded to STEP: the last bits
        of scores depend on how many scenes are in the batch, and what a scene says of itself must not.
        """
        share, end = torch.nan_to_num((scores.double() / temperature).softmax(-1)), end.double()
        square = (share @ end.square().sum(-1) - (share @ end).square().sum(-1)).clamp(min=0.0)
        return ((square.sqrt() / STEP).round() * STEP).square().to(scores.dtype)
