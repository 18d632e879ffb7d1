"""Networks that read frames back: which action moved the camera, and where vehicles are.

They are trained on recorded frames and then asked about painted ones: what they find there was really painted. The features of
the action reader also measure how far painted clips are from recorded ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

READ_FRAMES = 6
"""Frames that the action reader sees; it says what led to each of the LAGS last of them."""

LAGS = READ_FRAMES - 1
"""A real car answers late: which of so many frames shows an action best is for the recording to say."""

FEATURES = 64

Batch = Callable[[torch.Generator], tuple[Tensor, Tensor]]
"""Draws what is shown and what is to be found in it."""


def as_image(frame: Tensor) -> Tensor:
    """Return frames (..., H, W, 3) uint8 as (..., 3, H, W) float in -1..1."""
    return frame.movedim(-1, -3).float() / 127.5 - 1.0


class ActionReader(nn.Module):
    """Inverse dynamics: the actions (LAGS, D) that led to the last of READ_FRAMES frames, the one before it, ...

    In the units of the data.

    Args:
        actions: D.
        height, width: of the frames.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, actions: int, height: int, width: int):
        super().__init__()
        sizes = (3 * READ_FRAMES, 32, 48, 64, 64)
        self.convolutions = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1), nn.SiLU()) for a, b in zip(sizes, sizes[1:], strict=False))
        )
        cells = math.ceil(height / 16) * math.ceil(width / 16)
        self.hidden = nn.Sequential(nn.Flatten(), nn.Linear(cells * sizes[-1], FEATURES), nn.SiLU())
        self.out = nn.Linear(FEATURES, LAGS * actions)
        self.register_buffer("mean", torch.zeros(actions))
        self.register_buffer("scale", torch.ones(actions))

    def features(self, frames: Tensor) -> Tensor:
        """Return (N, FEATURES) of windows (N, READ_FRAMES, H, W, 3) uint8."""
        return self.hidden(self.convolutions(as_image(frames).flatten(1, 2)))

    def forward(self, frames: Tensor) -> Tensor:
        """Return actions (N, LAGS, D) of windows (N, READ_FRAMES, H, W, 3) uint8."""
        return self.read(self.features(frames))

    def read(self, features: Tensor) -> Tensor:
        """Return actions (N, LAGS, D) of features (N, FEATURES)."""
        return self.out(features).unflatten(-1, (LAGS, -1)) * self.scale + self.mean

    def loss(self, frames: Tensor, action: Tensor) -> Tensor:
        """Return the mean squared error in units of the actions' standard deviation.

        Args:
            frames: (N, READ_FRAMES, H, W, 3) uint8.
            action: (N, READ_FRAMES, D) what was done at each of them; the last one leads to a frame that is not shown.
        """
        return (((self(frames) - action[:, :-1].flip(1)) / self.scale).square()).mean()


VEHICLE_WEIGHT = 3.0
"""How much more a pixel of a vehicle counts to the finder than one of none, as they are few."""


def _block(inputs: int, outputs: int, *more: nn.Module, stride: int = 1) -> nn.Sequential:
    """Return a convolution; without the normalisation training often ends at the share of vehicles, everywhere."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 2 + stride, stride, padding=1), nn.GroupNorm(8, outputs), nn.SiLU(), *more)


class VehicleFinder(nn.Module):
    """Where vehicles are in a frame: a logit for each pixel, by a small U-Net (Ronneberger et al., arXiv 1505.04597)."""

    def __init__(self) -> None:
        super().__init__()
        fine, middle, coarse = 32, 64, 96
        self.fine = _block(3, fine, _block(fine, fine), stride=2)
        self.middle = _block(fine, middle, _block(middle, middle), stride=2)
        self.coarse = _block(middle, coarse, _block(coarse, coarse), _block(coarse, coarse), stride=2)
        self.back = _block(coarse + middle, middle)
        self.out = _block(middle + fine, fine, nn.Conv2d(fine, 4, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, frame: Tensor) -> Tensor:
        """Return logits (N, H, W) of frames (N, H, W, 3) uint8; H and W are multiples of 8."""
        larger = lambda image: functional.interpolate(image, scale_factor=2.0, mode="bilinear", align_corners=False)  # noqa: E731
        fine = self.fine(as_image(frame))
        middle = self.middle(fine)
        back = self.back(torch.cat((larger(self.coarse(middle)), middle), dim=1))
        return self.out(torch.cat((larger(back), fine), dim=1))[:, 0]

    def loss(self, frame: Tensor, vehicle: Tensor) -> Tensor:
        """Return the weighted cross entropy against where vehicles are, (N, H, W) int8: 1, 0, or -1 where nobody asks."""
        weight = torch.where(vehicle > 0, VEHICLE_WEIGHT, 1.0) * (vehicle >= 0)
        error = functional.binary_cross_entropy_with_logits(self(frame), (vehicle > 0).float(), reduction="none")
        return (weight * error).sum() / weight.sum().clamp(min=1.0)


def train_reader(
    reader: ActionReader | VehicleFinder, batch: Batch, steps: int, generator: torch.Generator, tell: Callable[[], None]
) -> None:
    """Lower the reader's loss for `steps` steps with AdamW and a cosine; `tell` is called after each."""
    optimizer = torch.optim.AdamW(reader.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        loss = reader.train().loss(*batch(generator))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        tell()
    reader.eval()


def frechet_distance(one: Tensor, other: Tensor) -> float:
    """Return the Fréchet distance of Gaussians fitted to features (N, F) and (M, F) (Heusel et al., arXiv 1706.08500).

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)); the trace of the root is the sum of the roots of the eigenvalues of C1 C2.

    Raises:
        ValueError: a side has fewer than two rows.
    """
    if min(len(one), len(other)) < 2:
        raise ValueError(f"found {len(one)} and {len(other)} features, wanted at least 2 of each")
    one, other = one.double(), other.double()
    covariance, reference = (torch.atleast_2d(side.T.cov()) for side in (one, other))
    roots = torch.linalg.eigvals(covariance @ reference).real.clamp(min=0).sqrt().sum()
    return float((one.mean(0) - other.mean(0)).square().sum() + covariance.trace() + reference.trace() - 2 * roots)


def sharpness(frame: Tensor) -> Tensor:
    """Return the mean absolute Laplacian (N,) of frames (N, H, W, 3) uint8 in grey levels: blurred frames have less."""
    grey = frame.float().mean(-1)[:, None]
    kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])[None, None]
    return functional.conv2d(grey, kernel).abs().mean(dim=(1, 2, 3))
