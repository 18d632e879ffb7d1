"""Road users and street furniture as triangles, made in code: x forward, y left, z up, metres, the ground at z = 0.

A mesh is a soup: every triangle has three corners of its own, so that meshes join by concatenation and move by one product. What
a triangle is made of is a `Part`; parts that differ from one owner to the next (paint, clothes, walls) carry their colour
themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float32]

CREASE = 0.72
"""Cosine of the angle between two faces up to which the edge between them looks round."""


class Part(IntEnum):
    """What a triangle is made of."""

    PAINT = 0
    GLASS = 1
    TRIM = 2
    TYRE = 3
    METAL = 4
    HEADLIGHT = 5
    TAILLIGHT = 6
    PLATE = 7
    SKIN = 8
    CLOTH = 9
    CONTACT = 10
    WALL = 11
    ROOF = 12
    WOOD = 13
    LEAF = 14
    POLE = 15
    LAMP = 16
    BOARD = 17
    RED = 18
    AMBER = 19
    GREEN = 20


class Semantic(IntEnum):
    """What a pixel or a LiDAR point shows."""

    SKY = 0
    GRASS = 1
    ROAD = 2
    MARKING = 3
    PAVEMENT = 4
    KERB = 5
    BUILDING = 6
    VEGETATION = 7
    POLE = 8
    SIGNAL = 9
    VEHICLE = 10
    PEDESTRIAN = 11
    CYCLIST = 12
    OBJECT = 13


PART_SEMANTIC = {
    **dict.fromkeys((Part.WALL, Part.ROOF), Semantic.BUILDING),
    **dict.fromkeys((Part.WOOD, Part.LEAF), Semantic.VEGETATION),
    **dict.fromkeys((Part.POLE, Part.LAMP), Semantic.POLE),
    **dict.fromkeys((Part.BOARD, Part.RED, Part.AMBER, Part.GREEN), Semantic.SIGNAL),
}
"""What the parts of standing things belong to; parts of road users belong to their kind."""

PART_COLOUR: dict[Part, tuple[float, float, float]] = {
    Part.GLASS: (0.03, 0.04, 0.05),
    Part.TRIM: (0.025, 0.025, 0.028),
    Part.TYRE: (0.016, 0.016, 0.018),
    Part.METAL: (0.42, 0.43, 0.45),
    Part.HEADLIGHT: (0.75, 0.77, 0.8),
    Part.TAILLIGHT: (0.38, 0.015, 0.012),
    Part.PLATE: (0.62, 0.62, 0.58),
    Part.SKIN: (0.5, 0.3, 0.2),
    Part.WOOD: (0.09, 0.06, 0.04),
    Part.POLE: (0.11, 0.12, 0.125),
    Part.LAMP: (0.7, 0.68, 0.6),
    Part.BOARD: (0.012, 0.012, 0.014),
    Part.RED: (0.1, 0.008, 0.006),
    Part.AMBER: (0.1, 0.06, 0.005),
    Part.GREEN: (0.005, 0.06, 0.035),
}
"""Linear red, green, blue in 0..1 of the parts that look alike wherever they are."""

WHITE = (0.8, 0.8, 0.78)

CONTACT_REACH = 0.45
"""Metres around a body in which it darkens the ground."""


@dataclass(frozen=True)
class Mesh:
    """F triangles.

    Attributes:
        corner: (F, 3, 3) metres.
        normal: (F, 3, 3) unit vectors at the corners; equal ones make a flat face.
        part: (F,) int64 `Part`.
        colour: (F, 3) linear red, green, blue in 0..1.
        owner: (F,) int64, the agent, building or signal that the triangle belongs to.
    """

    corner: Floats
    normal: Floats
    part: NDArray[np.int64]
    colour: Floats
    owner: NDArray[np.int64]

    def __len__(self) -> int:
        """F, the number of triangles."""
        return len(self.part)

    def placed(self, place: Sequence[float] | NDArray, heading: float = 0.0, owner: int = 0) -> Self:
        """Return the mesh turned by `heading`, then moved to `place` (2,), as part of `owner`."""
        cos, sin = np.cos(heading), np.sin(heading)
        turn = np.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]], dtype=np.float32)
        corner = self.corner @ turn + np.array([*place, 0.0], dtype=np.float32)
        return type(self)(corner, self.normal @ turn, self.part, self.colour, np.full(len(self), owner))


def join(meshes: Sequence[Mesh]) -> Mesh:
    """Return all triangles as one mesh; none is a mesh of no triangles."""
    if not meshes:
        none = np.zeros((0, 3, 3), dtype=np.float32)
        return Mesh(none, none, np.zeros(0, np.int64), none[:, 0], np.zeros(0, np.int64))
    return Mesh(*(np.concatenate([getattr(mesh, name) for mesh in meshes]) for name in Mesh.__dataclass_fields__))


def soup(
    points: ArrayLike, triangles: ArrayLike, part: Part, colour: Sequence[float] | None = None, smooth: bool = False
) -> Mesh:
    """Return triangles (m, 3) of indices into `points` (n, 3) as a mesh; corners counter-clockwise seen from outside.

    Args:
        points: metres.
        triangles: indices; those that have no area are left out.
        part: what they are made of.
        colour: linear, for parts that have none of their own.
        smooth: whether edges between faces that meet at a flat angle look round.
    """
    place: NDArray[np.float64] = np.array(points, dtype=np.float64)
    index: NDArray[np.int64] = np.array(triangles, dtype=np.int64)
    corner = place[index]
    cross = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    area = np.linalg.norm(cross, axis=1)
    whole = area > 1e-9
    index, corner, cross, area = index[whole], corner[whole], cross[whole], area[whole]
    face = cross / area[:, None]
    normal = np.repeat(face[:, None], 3, axis=1)
    if smooth:
        total = np.zeros_like(place)
        for column in range(3):
            np.add.at(total, index[:, column], cross)
        total /= np.maximum(np.linalg.norm(total, axis=1), 1e-12)[:, None]
        shared = total[index]
        normal = np.where((shared * normal).sum(axis=-1, keepdims=True) > CREASE, shared, normal)
    shade = np.broadcast_to(np.asarray(PART_COLOUR.get(part, WHITE) if colour is None else colour, np.float32), (len(face), 3))
    return Mesh(
        corner.astype(np.float32),
        normal.astype(np.float32),
        np.full(len(face), int(part)),
        shade.copy(),
        np.zeros(len(face), int),
    )


def box(low: Sequence[float], high: Sequence[float], part: Part, colour: Sequence[float] | None = None) -> Mesh:
    """Return a box between two corners, 12 triangles."""
    return frustum(low[2], high[2], (low[0], high[0], low[1], high[1]), (low[0], high[0], low[1], high[1]), part, colour)


def frustum(
    bottom: float,
    top: float,
    base: Sequence[float],
    roof: Sequence[float],
    part: Part,
    colour: Sequence[float] | None = None,
    closed: bool = True,
) -> Mesh:
    """Return a block between two level rectangles, each (low x, high x, low y, high y); without its ends if not `closed`."""
    points = [
        (x, y, z) for z, (a, b, c, d) in ((bottom, base), (top, roof)) for x, y in ((a, c), (b, c), (b, d), (a, d))
    ]  # counter-clockwise seen from above
    sides = [(i, (i + 1) % 4, 4 + (i + 1) % 4, 4 + i) for i in range(4)]
    quads = sides + [(3, 2, 1, 0), (4, 5, 6, 7)] if closed else sides
    return soup(points, _halves(quads), part, colour)


def _halves(quads: ArrayLike) -> NDArray[np.int64]:
    """Quadrangles (n, 4) of indices as triangles (2 n, 3)."""
    index = np.array(quads, dtype=np.int64).reshape(-1, 4)
    return index[:, [0, 1, 2, 0, 2, 3]].reshape(-1, 3)


def quad(a: Sequence[float], b: Sequence[float], c: Sequence[float], d: Sequence[float], part: Part) -> Mesh:
    """Return a flat quadrangle, its corners counter-clockwise seen from the front."""
    return soup([a, b, c, d], [(0, 1, 2), (0, 2, 3)], part)


def tube(start: Sequence[float], end: Sequence[float], radii: Sequence[float], part: Part, colour=None, sides: int = 6) -> Mesh:
    """Return a round or tapering bar from `start` to `end` with the radius at both, its ends closed."""
    first, last = np.array(start, dtype=np.float64), np.array(end, dtype=np.float64)
    along = (last - first) / np.linalg.norm(last - first)
    across = np.cross(along, (0.0, 1.0, 0.0) if abs(along[1]) < 0.9 else (1.0, 0.0, 0.0))
    across /= np.linalg.norm(across)
    angle = np.arange(sides) / sides * 2 * np.pi
    circle = np.cos(angle)[:, None] * across + np.sin(angle)[:, None] * np.cross(along, across)
    points = np.concatenate((first + radii[0] * circle, last + radii[1] * circle, [first, last]))
    here, there = np.arange(sides), (np.arange(sides) + 1) % sides
    caps = [np.stack((there, here, np.full(sides, 2 * sides)), 1)]
    caps += [np.stack((sides + here, sides + there, np.full(sides, 2 * sides + 1)), 1)]
    return soup(
        points, np.concatenate((_halves(np.stack((here, there, sides + there, sides + here), 1)), *caps)), part, colour, True
    )


def ball(middle: Sequence[float], radius: Sequence[float], part: Part, colour=None, rings: int = 4, sides: int = 7) -> Mesh:
    """Return an ellipsoid with radii along x, y, z."""
    polar = np.linspace(-0.5, 0.5, rings + 1)[:, None] * np.pi
    angle = np.arange(sides) / sides * 2 * np.pi
    unit = np.stack(np.broadcast_arrays(np.cos(polar) * np.cos(angle), np.cos(polar) * np.sin(angle), np.sin(polar)), -1)
    index = np.arange((rings + 1) * sides).reshape(rings + 1, sides)
    turned = np.roll(index, -1, axis=1)
    quads = np.stack((index[:-1], turned[:-1], turned[1:], index[1:]), -1)
    made = soup(unit.reshape(-1, 3) * radius + middle, _halves(quads), part, colour)
    round_ = (made.corner - np.asarray(middle, np.float32)) / np.asarray(radius, np.float32) ** 2
    normal = round_ / np.linalg.norm(round_, axis=-1, keepdims=True)
    return Mesh(made.corner, normal, made.part, made.colour, made.owner)


def loft(stations: ArrayLike, part: Part, skirt: Part | None = None) -> Mesh:
    """Return a body through cross-sections along x with bevelled edges, its ends closed.

    Args:
        stations: (n, 4) x, half of the width, bottom, top, with x growing.
        part: what it is made of.
        skirt: what its lowest band is made of, if that differs.
    """
    x, half, bottom, top = np.asarray(stations, dtype=np.float64).T[:, :, None]
    height = top - bottom
    side = np.concatenate((0.9 * half, half, half, 0.86 * half), axis=1)
    level = np.concatenate((bottom, bottom + 0.22 * height, bottom + 0.78 * height, top), axis=1)
    y, z = np.concatenate((side, -side[:, ::-1]), axis=1), np.concatenate((level, level[:, ::-1]), axis=1)
    points = np.stack((np.broadcast_to(x, y.shape), y, z), axis=-1)  # rings of 8, counter-clockwise seen from the front
    count = len(points)
    index = np.arange(count * 8).reshape(count, 8)
    turned = np.roll(index, -1, axis=1)
    quads = np.stack((index[:-1], turned[:-1], turned[1:], index[1:]), axis=-1)
    ends = np.concatenate([_fan(index[0][::-1]), _fan(index[-1])])
    flat = points.reshape(-1, 3)
    low = [0, 6] if skirt is not None else []
    rest = [column for column in range(8) if column not in low]
    body = soup(flat, np.concatenate((_halves(quads[:, rest]), ends)), part, smooth=True)
    return join([body, soup(flat, _halves(quads[:, low]), skirt)]) if skirt is not None else body


def _fan(ring: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.stack((np.full(len(ring) - 2, ring[0]), ring[1:-1], ring[2:]), axis=1)


def cabin(bottom: float, top: float, base: Sequence[float], roof: Sequence[float], doors: int = 2) -> Mesh:
    """Return windows all around between two levels, with pillars between them and a painted roof; rectangles as for `frustum`."""
    rim = top - 0.08 * (top - bottom)
    low, high = (
        np.array([(a, c, z), (b, c, z), (b, d, z), (a, d, z)], float) for z, (a, b, c, d) in ((bottom, base), (rim, roof))
    )
    between = [at for i in range(1, doors) for at in (i / doors - 0.025, i / doors + 0.025)]
    pieces = []
    for side in range(4):
        cuts = np.array([0.0, 0.05, *(between if side % 2 == 0 else []), 0.95, 1.0])[:, None]
        foot, head = (corner[side] + cuts * (corner[(side + 1) % 4] - corner[side]) for corner in (low, high))
        index = np.arange(len(cuts) - 1)
        quads = np.stack((index, index + 1, len(cuts) + index + 1, len(cuts) + index), axis=-1)
        points = np.concatenate((foot, head))
        pieces += [soup(points, _halves(quads[0::2]), Part.PAINT), soup(points, _halves(quads[1::2]), Part.GLASS)]
    a, b, c, d = roof
    inset = 0.12 * (d - c)
    return join([*pieces, frustum(rim, top, roof, (a + inset, b - inset, c + inset, d - inset), Part.PAINT)])


def contact(length: float, width: float) -> Mesh:
    """Return the patch of ground that a body darkens by standing on it."""
    x, y = 0.5 * length + CONTACT_REACH, 0.5 * width + CONTACT_REACH
    return quad((-x, -y, 0.02), (x, -y, 0.02), (x, y, 0.02), (-x, y, 0.02), Part.CONTACT)


def painted(mesh: Mesh, colours: dict[Part, Sequence[float]]) -> Mesh:
    """Return the mesh with other colours for some parts."""
    colour = mesh.colour.copy()
    for part, value in colours.items():
        colour[mesh.part == part] = value
    return Mesh(mesh.corner, mesh.normal, mesh.part, colour, mesh.owner)
