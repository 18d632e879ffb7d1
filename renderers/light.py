"""Light, weather and surfaces: from what a ray hit to the colour of its pixel.

Linear colours, one sun, a sky that lights from above, and lamps after dark; what is bright is rolled off by x / (1 + x) (Reinhard
et al., "Photographic Tone Reproduction for Digital Images", 2002). All functions take N pixels at once and are pure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from .meshes import Part
from .scenery import BAY, LAMP_HEIGHT, STOREY

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Appearance:
    """A time of day and a weather.

    Attributes:
        azimuth, elevation: radians, where the sun (or the moon) stands; azimuth counter-clockwise from the scene's +x.
        sun: its colour times its strength. ambient: the same of the sky's light.
        top, horizon: the sky's colours straight up and at the horizon.
        clouds: how much of the sky they cover, 0..1.
        haze: share of what is seen that the air hides, for each metre (small).
        lamps: 0..1, how far street lamps, head lights and windows are lit.
        wet: 0..1, how much water lies on the road.
        streaks: 0..1, how much falling rain is seen.
        exposure: what colours are multiplied with before the roll-off.
    """

    azimuth: float = 2.2
    elevation: float = 0.72
    sun: Colour = (2.5, 2.3, 1.95)
    ambient: Colour = (0.62, 0.74, 0.95)
    top: Colour = (0.12, 0.27, 0.62)
    horizon: Colour = (0.66, 0.8, 0.96)
    clouds: float = 0.45
    haze: float = 0.0008
    lamps: float = 0.0
    wet: float = 0.0
    streaks: float = 0.0
    exposure: float = 1.25

    def sun_direction(self) -> Colour:
        """A unit vector towards the sun."""
        level = math.cos(self.elevation)
        return (level * math.cos(self.azimuth), level * math.sin(self.azimuth), math.sin(self.elevation))


_DAY = Appearance()
LOOKS = {
    "day": _DAY,
    "dusk": replace(
        _DAY,
        azimuth=0.5,
        elevation=0.12,
        sun=(2.0, 0.85, 0.3),
        ambient=(0.3, 0.28, 0.4),
        top=(0.1, 0.13, 0.32),
        horizon=(0.95, 0.5, 0.26),
        clouds=0.55,
        haze=0.0016,
        lamps=0.75,
    ),
    "night": replace(
        _DAY,
        elevation=0.9,
        sun=(0.03, 0.035, 0.055),
        ambient=(0.022, 0.027, 0.045),
        top=(0.003, 0.005, 0.014),
        horizon=(0.03, 0.03, 0.045),
        clouds=0.25,
        haze=0.0012,
        lamps=1.0,
        exposure=2.2,
    ),
    "rain": replace(
        _DAY,
        elevation=0.8,
        sun=(0.12, 0.12, 0.12),
        ambient=(0.5, 0.54, 0.6),
        top=(0.27, 0.3, 0.34),
        horizon=(0.5, 0.53, 0.57),
        clouds=0.8,
        haze=0.0042,
        lamps=0.4,
        wet=1.0,
        streaks=1.0,
    ),
    "fog": replace(
        _DAY,
        sun=(0.2, 0.2, 0.2),
        ambient=(0.62, 0.65, 0.68),
        top=(0.6, 0.63, 0.66),
        horizon=(0.6, 0.63, 0.66),
        clouds=0.0,
        haze=0.03,
        lamps=0.4,
        wet=0.25,
    ),
}
"""By the names of `worldmodel.rig.APPEARANCES`."""

LAMPLIGHT, HEADLIGHT, WINDOW = (1.0, 0.7, 0.38), (1.0, 0.93, 0.8), (1.0, 0.72, 0.38)
GLOW = {
    Part.HEADLIGHT: (6.0, 5.6, 5.0),
    Part.TAILLIGHT: (1.7, 0.05, 0.03),
    Part.LAMP: (7.0, 5.2, 3.0),
    Part.RED: (5.0, 0.25, 0.12),
    Part.AMBER: (4.5, 2.3, 0.15),
    Part.GREEN: (0.2, 4.2, 2.0),
}
"""What lit parts give off."""

GLOSS = {Part.GLASS: 1.0, Part.PAINT: 0.55, Part.METAL: 0.5, Part.BOARD: 0.1, Part.LAMP: 0.2, Part.HEADLIGHT: 0.6}
"""How much of what stands behind the viewer they mirror at a flat angle, 0..1."""

ASPHALT, PAINT, PAVEMENT, KERB, GRASS = (
    (0.052, 0.053, 0.056),
    (0.66, 0.66, 0.63),
    (0.25, 0.24, 0.225),
    (0.36, 0.35, 0.33),
    (0.085, 0.13, 0.035),
)
GRAIN = (0.38, 0.12, 0.25, 0.2, 0.75)
"""How uneven each of these is."""

NOISE, NOISE_TEXEL, NOISE_LEVELS = 512, 0.08, 6
"""Texels along a side of the noise that breaks up plain surfaces; metres of one; how often it is halved."""


def _noise() -> tuple[Tensor, Tensor]:
    """Tiling noise of mean 0 in about -1..1, every level after the other, and where each begins."""
    random = np.random.default_rng(7)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(NOISE), np.fft.fftfreq(NOISE))) * NOISE
    spectrum = np.fft.fft2(random.standard_normal((NOISE, NOISE))) / np.maximum(frequency, 3.0) ** 0.85
    field = np.real(np.fft.ifft2(spectrum * (frequency > 0)))
    field /= 2.2 * field.std()
    levels = [field]
    while len(levels) < NOISE_LEVELS:
        levels.append(levels[-1].reshape(len(levels[-1]) // 2, 2, -1, 2).mean(axis=(1, 3)))
    first = np.cumsum([0, *(level.size for level in levels[:-1])])
    return torch.from_numpy(np.concatenate([level.ravel() for level in levels])).float(), torch.from_numpy(first)


_FIELD, _FIRST = _noise()


def noise(x: Tensor, y: Tensor, footprint: Tensor) -> Tensor:
    """Return noise (N,) at points of the plane, smoothed over `footprint` (N,) texels."""
    level = footprint.clamp(min=1.0).log2_().add_(0.5).to(torch.int64).clamp_(max=NOISE_LEVELS - 1)
    size = NOISE >> level
    column, row = x.floor().to(torch.int64) & (NOISE - 1), y.floor().to(torch.int64) & (NOISE - 1)
    return _FIELD[_FIRST[level] + (row >> level) * size + (column >> level)]


def sky(direction: Tensor, look: Appearance, sharp: bool = True) -> Tensor:
    """Return the sky's colour (3, N) along directions (3, N) of any length; `sharp` adds clouds and the sun's disc."""
    x, y, z = direction
    length = (x * x + y * y + z * z).rsqrt_()
    up = (z * length).clamp_(min=0.0)
    sun = look.sun_direction()
    towards = ((x * sun[0] + y * sun[1] + z * sun[2]) * length).clamp_(min=0.0)
    share = (1.0 - up).pow_(4)
    glow = towards.pow(8).mul_(0.18)
    clear = [
        top + (horizon - top) * share + glow * light for top, horizon, light in zip(look.top, look.horizon, look.sun, strict=True)
    ]
    if not sharp:
        return torch.stack(clear)
    if look.clouds > 0:
        over = 55.0 / (up + 0.09)
        wisps = noise(x * length * over + 90.0, y * length * over, over * 0.02) + 0.6 * noise(
            x * length * over * 0.35, y * length * over * 0.35, over * 0.008
        )
        cover = ((wisps - 0.9 + 1.3 * look.clouds) * 0.9).clamp_(0.0, 1.0) * (up * 9.0).clamp_(max=1.0) * 0.85
        bright = [0.55 * a + 0.27 * light for a, light in zip(look.ambient, look.sun, strict=True)]
        clear = [
            below + cover * (white + glow * light - below) for below, white, light in zip(clear, bright, look.sun, strict=True)
        ]
    disc = ((towards - 0.9994) * 4000.0).clamp_(0.0, 1.0) * (3.0 * (look.haze < 0.002))
    return torch.stack([below + disc * light for below, light in zip(clear, look.sun, strict=True)])


def ground_colour(shares: Tensor, x: Tensor, y: Tensor, footprint: Tensor, look: Appearance) -> tuple[Tensor, Tensor]:
    """Return the albedo (3, N) of the ground from its shares (4, N), and how much of it is water that mirrors (N,)."""
    texels = footprint * (1.0 / NOISE_TEXEL)
    fine, coarse = noise(x * (1.0 / NOISE_TEXEL), y * (1.0 / NOISE_TEXEL), texels), noise(x * 1.1, y * 1.1, texels * 0.09)
    grain = 0.5 * (fine + coarse)
    asphalt, paint, pavement, kerb = shares
    grass = (1.0 - asphalt - pavement - kerb).clamp_(min=0.0)
    bare = (asphalt - paint).clamp_(min=0.0)
    parts = (bare, paint, pavement, kerb, grass)
    uneven = [share * (1.0 + amount * grain) for share, amount in zip(parts, GRAIN, strict=True)]
    dark = 1.0 - 0.45 * look.wet * (1.0 - grass)
    colours = (ASPHALT, PAINT, PAVEMENT, KERB, GRASS)
    albedo = torch.stack([sum(u * c[i] for u, c in zip(uneven, colours, strict=True)) * dark for i in range(3)])  # type: ignore[arg-type]
    return albedo, look.wet * (asphalt + 0.6 * pavement) * (0.55 + 0.6 * coarse).clamp_(0.1, 1.0)


def lamplight(point: Tensor, ego: tuple[Tensor, Tensor], pools: Tensor, corner: Tensor, look: Appearance) -> Tensor:
    """Return the light (3, N) of street lamps and of the ego's head lights.

    Args:
        point: (3, N) metres in the scene.
        ego: x and y (N,) in the ego's frame, from its front.
        pools: (1, 1, rows, columns) strength of the street lamps' light, 1 m apart.
        corner: (4,) low x, low y, and 2 / width, 2 / height of that.
        look: appearance.
    """
    x, y, z = point
    grid = torch.stack(((x - corner[0]) * corner[2] - 1.0, (y - corner[1]) * corner[3] - 1.0), dim=-1)
    street = torch.nn.functional.grid_sample(pools, grid[None, None], align_corners=True)[0, 0, 0]
    street = street * (1.15 - z / LAMP_HEIGHT).clamp_(0.0, 1.0)
    ahead, aside = ego
    broad = 1.1 + 0.2 * ahead.clamp(min=0.0)
    beam = torch.exp(-((aside / broad) ** 2)) * (ahead * 0.5).clamp(0.0, 1.0) / (1.0 + (ahead * (1 / 16.0)) ** 2)
    beam = beam * (1.5 - z * 0.5).clamp_(0.15, 1.0)
    return torch.stack([look.lamps * (1.25 * a * street + 1.5 * b * beam) for a, b in zip(LAMPLIGHT, HEADLIGHT, strict=True)])


def light_pools(lamps: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return `pools` and `corner` of `lamplight` for street lamps at (M, 2) within an area."""
    columns, rows = (np.ceil(high - low).astype(int) + 1).tolist()
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float32)
    total = np.zeros((rows, columns), dtype=np.float32)
    for place in lamps - low:
        left, top = np.maximum((place - 24.0).astype(int), 0)
        part = (slice(top, top + 48), slice(left, left + 48))
        square = (x[part] - place[0]) ** 2 + (y[part] - place[1]) ** 2
        total[part] += (1.0 + square / 28.0) ** -1.6 - 0.012
    total = np.clip(total, 0.0, None)
    total[[0, -1]] = total[:, [0, -1]] = 0.0
    corner = torch.tensor([low[0], low[1], 2.0 / max(columns - 1, 1), 2.0 / max(rows - 1, 1)], dtype=torch.float32)
    return torch.from_numpy(total)[None, None], corner


def part_table(values: dict[Part, Colour] | dict[Part, float]) -> Tensor:
    """Return a row for every part, (parts, 3) or (parts,), zero where none is given."""
    sample = next(iter(values.values()))
    zero = (0.0, 0.0, 0.0) if isinstance(sample, tuple) else 0.0
    return torch.tensor([values.get(part, zero) for part in Part])  # type: ignore[arg-type]


_GLOW, _GLOSS = part_table(GLOW), part_table(GLOSS)
_GLOWING = _GLOW.amax(dim=1) > 0
_GLOW_NIGHT = torch.tensor([part in (Part.HEADLIGHT, Part.TAILLIGHT, Part.LAMP) for part in Part])


def facade(
    point: Tensor, normal: Tensor, centre: Tensor, owner: Tensor, footprint: Tensor, look: Appearance
) -> tuple[Tensor, Tensor]:
    """Return which share of each point of a wall (N,) is window, and how brightly (N,) that is lit from inside.

    Windows lie BAY and STOREY metres apart around the middle of each wall.
    """
    x, y, z = point
    along = (x - centre[:, 0]) * -normal[1] + (y - centre[:, 1]) * normal[0]
    u, v = along * (1.0 / BAY) + 0.5, z * (1.0 / STOREY)
    column, storey = u.floor(), v.floor()
    u, v = u - column, v - storey
    soft = (footprint * (1.0 / BAY)).clamp_(0.01, 0.5)
    inside = torch.minimum(0.27 - (u - 0.5).abs(), 0.29 - (v - 0.52).abs())
    window = (inside / soft + 0.5).clamp_(0.0, 1.0)
    window = torch.where(soft > 0.3, 0.3, window)
    code = (
        column.to(torch.int64) * 7368787
        ^ storey.to(torch.int64) * 19349663
        ^ (owner + 11) * 83492791
        ^ (normal[0] > 0.5).long() * 977
    ) & 0xFFFF
    lit = ((code * 40503 >> 5) & 1023).float() * (1.0 / 1023.0)
    return window, ((lit - 0.6) * 2.2).clamp_(0.0, 1.0) * look.lamps


def shade_bodies(
    part: Tensor,
    albedo: Tensor,
    normal: Tensor,
    view: Tensor,
    light: Tensor,
    sun: Tensor,
    lit: Tensor,
    window: tuple[Tensor, Tensor],
    look: Appearance,
) -> Tensor:
    """Return the colour (3, N) of what stands on the ground.

    Args:
        part: (N,) int64 `Part`.
        albedo: (3, N).
        normal: (3, N) unit vectors.
        view: (3, N) directions towards it, of any length.
        light: (3, N) of lamps.
        sun: (N,) share of the sun's light that reaches it.
        lit: (N,) 1 where a signal's lamp is lit.
        window: of `facade`; zeros for what is no wall.
        look: appearance.
    """
    facing = (view * normal).sum(0)
    normal = torch.where(facing > 0, -normal, normal)
    at = look.sun_direction()
    direct = (normal[0] * at[0] + normal[1] * at[1] + normal[2] * at[2]).clamp_(min=0.0) * sun
    above = 0.62 + 0.38 * normal[2]
    glass, glow = window
    darker, inside = 1.0 - glass * 0.9, glass * glow * 0.9
    colour = torch.stack(
        [albedo[i] * darker * (look.ambient[i] * above + look.sun[i] * direct + light[i]) + inside * WINDOW[i] for i in range(3)]
    )
    smooth = torch.maximum(_GLOSS[part], glass * 0.8)
    shiny = (smooth > 0.02).nonzero()[:, 0]
    colour[:, shiny] += _mirrored(smooth[shiny], part[shiny], view[:, shiny], normal[:, shiny], sun[shiny], look)
    glowing = _GLOWING[part].nonzero()[:, 0]
    given = _GLOW[part[glowing]] * torch.where(_GLOW_NIGHT[part[glowing]], look.lamps, lit[glowing])[:, None]
    colour[:, glowing] += given.T
    return colour


def _mirrored(gloss: Tensor, part: Tensor, view: Tensor, normal: Tensor, sun: Tensor, look: Appearance) -> Tensor:
    """What smooth surfaces (n,) add of the sky (by Schlick's approximation) and of the sun, (3, n)."""
    facing = (view * normal).sum(0)
    cosine = facing.abs() * (view * view).sum(0).rsqrt_()
    mirrored = view - 2.0 * facing * normal
    share = gloss * (0.04 + 0.96 * (1.0 - cosine).clamp_(0.0, 1.0).pow_(5)).clamp_(max=0.7) * (0.25 + 0.75 * (mirrored[2] > 0))
    at = look.sun_direction()
    mirror = (mirrored[0] * at[0] + mirrored[1] * at[1] + mirrored[2] * at[2]) * (mirrored * mirrored).sum(0).rsqrt_()
    spark = mirror.clamp_(min=0.0).pow_(90) * sun * _GLOSS[part] * 0.8
    return share * sky(mirrored, look, sharp=False) + spark * torch.tensor(look.sun)[:, None]


def bloom(colour: Tensor) -> Tensor:
    """Return linear colours (C, 3, H, W) with a halo around what is too bright to be shown."""
    height, width = colour.shape[-2:]
    factor = max(round(width / 80), 1)
    if min(height, width) < 8 * factor:
        return colour
    bright = torch.nn.functional.avg_pool2d((colour - 1.0).clamp_(0.0, 4.0), factor)
    halo = torch.zeros_like(bright)
    for reach, strength in ((3, 0.2), (9, 0.16)):
        blurred = bright
        for _ in range(2):
            blurred = torch.nn.functional.avg_pool2d(blurred, reach, 1, reach // 2)
        halo += strength * blurred
    return colour + torch.nn.functional.interpolate(halo, size=(height, width), mode="bilinear", align_corners=False)


def developed(colour: Tensor, look: Appearance) -> Tensor:
    """Return linear colours as what a screen shows of them, 0..1, of the same shape."""
    bright = colour * look.exposure
    return (bright / (1.0 + bright)).mul_(1.25).clamp_(0.0, 1.0).sqrt_()


def streaks(height: int, width: int, seed: tuple[int, int]) -> Tensor:
    """Return how much of each pixel (height, width) falling rain hides, 0..0.3; another `seed` is another moment."""
    random = np.random.default_rng(seed)
    count, length = max(height * width // 700, 8), max(height // 14, 3)
    along = np.arange(length) / length
    start = random.uniform((-length, 0), (height, width), (count, 2))
    stretch = random.uniform(0.5, 1.3, (count, 1)) * length
    row = (start[:, :1] + stretch * along).astype(int)
    column = (start[:, 1:] - 0.12 * stretch * along).astype(int)
    strength = np.broadcast_to(random.uniform(0.08, 0.3, (count, 1)), row.shape)
    seen = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    hidden = np.zeros((height, width), dtype=np.float32)
    np.maximum.at(hidden, (row[seen], column[seen]), strength[seen])
    return torch.from_numpy(hidden)
