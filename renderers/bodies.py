"""The bodies of road users in their boxes: cars, vans, trucks, buses, people, cyclists, cones and barriers.

Every body fills its box (length, width, height) and looks along +x; wheels and lights keep their own size. Each comes in two
forms: `fine`, and a coarse one of a sixth of the triangles for where it is small in the picture.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..worldmodel.paint import PAINTS
from ..worldmodel.scene import AgentKind
from .meshes import Mesh, Part, ball, box, cabin, contact, frustum, join, loft, painted, soup, tube

CARGO = np.array((0.58, 0.58, 0.56))
"""A truck's load is halfway between this and the paint of its cab."""

TROUSERS = np.array([(0.03, 0.04, 0.07), (0.08, 0.08, 0.08), (0.05, 0.09, 0.16), (0.2, 0.16, 0.1)])
VAN_LENGTH, TRUCK_LENGTH, BUS_LENGTH, TRAILER_LENGTH = 5.7, 7.0, 9.5, 13.0
VAN_HEIGHT = 1.95
"""From which length and height on in metres a vehicle's box holds a van, a truck, a bus, a truck again."""


def body(
    kind: AgentKind, size: tuple[float, float, float], colour: Sequence[float], seed: tuple[int, int], fine: bool = True
) -> Mesh:
    """Return a road user's mesh.

    Args:
        kind: what it is.
        size: length, width, height of its box in metres.
        colour: linear, of its paint or what it wears (`paint.paint_of`).
        seed: what the colours of all else follow from.
        fine: whether to spend about 400 triangles on it, or about 60.
    """
    length, width, height = size
    random = np.random.default_rng(seed)
    if kind == AgentKind.VEHICLE:
        made = painted(_vehicle(size, tuple(0.5 * (CARGO + colour)), fine), {Part.PAINT: colour})
    elif kind == AgentKind.PEDESTRIAN:
        made = _pedestrian(size, colour, random, fine)
    elif kind == AgentKind.CYCLIST:
        made = _cyclist(size, colour, random, fine)
    else:
        made = _object(size, fine)
    return join([made, contact(length, width)])


def _vehicle(size: tuple[float, float, float], cargo: tuple[float, float, float], fine: bool) -> Mesh:
    length, _, height = size
    if length < VAN_LENGTH and height < VAN_HEIGHT:
        return _car(size, fine)
    if length < TRUCK_LENGTH:
        return _van(size, fine)
    return _bus(size, fine) if BUS_LENGTH <= length < TRAILER_LENGTH else _truck(size, cargo, fine)


def _wheels(axles: list[float], width: float, radius: float, fine: bool) -> Mesh:
    """Wheels at every axle, flush with the body's sides."""
    made, broad = [], 0.13 * width
    for x in axles:
        for side in (-1.0, 1.0):
            outer = side * (0.5 * width - 0.01)
            inner = outer - side * broad
            if not fine:
                low, high = sorted((outer, inner))
                made.append(box((x - 0.85 * radius, low, 0.0), (x + 0.85 * radius, high, 1.8 * radius), Part.TYRE))
                continue
            made.append(tube((x, inner, radius), (x, outer, radius), (radius, radius), Part.TYRE, sides=12))
            rim = 0.62 * radius
            made.append(
                tube((x, outer - side * 0.05, radius), (x, outer + side * 0.008, radius), (rim, rim), Part.METAL, sides=8)
            )
    return join(made)


def _lights(size: tuple[float, float, float], front: float, rear: float, level: tuple[float, float], share: float = 0.2) -> Mesh:
    """Head and tail lights as shallow blocks at the corners: `front` and `rear` x, `level` z from and to."""
    made, width = [], size[1]
    for side in (-1.0, 1.0):
        low, high = sorted((side * 0.46 * width, side * (0.46 - share) * width))
        made.append(box((front - 0.3, low, level[0]), (front, high, level[1]), Part.HEADLIGHT))
        made.append(box((rear, low, level[0] + 0.05), (rear + 0.2, high, level[1] + 0.12), Part.TAILLIGHT))
    return join(made)


def _car(size: tuple[float, float, float], fine: bool) -> Mesh:
    """A saloon or, where the box is tall, an estate with a steep back."""
    length, width, height = size
    tall = height > 1.62
    rear, front, half = -0.5 * length, 0.5 * length, 0.5 * width
    profile = [  # x as a share of the length, half width, bottom, top as shares of the height
        (-0.5, 0.86, 0.24, 0.5),
        (-0.475, 0.95, 0.17, 0.6 if tall else 0.615),
        (-0.34, 1.0, 0.14, 0.63),
        (0.05, 1.0, 0.13, 0.62),
        (0.23, 1.0, 0.14, 0.6),
        (0.4, 0.97, 0.14, 0.54),
        (0.475, 0.9, 0.16, 0.47),
        (0.5, 0.78, 0.2, 0.38),
    ]
    kept = profile if fine else [profile[i] for i in (0, 1, 4, 6, 7)]
    made = [loft([(x * length, w * half, b * height, t * height) for x, w, b, t in kept], Part.PAINT, Part.TRIM)]
    back = (-0.47, -0.4) if tall else (-0.4, -0.27)
    glass = (back[0] * length, 0.25 * length, -0.88 * half, 0.88 * half)
    roof = (back[1] * length, (0.07 if tall else 0.04) * length, -0.7 * half, 0.7 * half)
    made += [cabin(0.6 * height, height, glass, roof, 3 if tall else 2)]
    radius = min(0.23 * height, 0.075 * length)
    made += [_wheels([-0.3 * length, 0.31 * length], width, radius, fine)]
    made += [_lights(size, front - 0.025 * length, rear + 0.004 * length, (0.33 * height, 0.42 * height))]
    if fine:
        for side in (-1.0, 1.0):
            low, high = sorted((side * 0.86 * half, side * half))
            made.append(box((0.16 * length, low, 0.6 * height), (0.19 * length, high, 0.68 * height), Part.PAINT))
        made.append(box((front - 0.12, -0.5 * half, 0.2 * height), (front + 0.003, 0.5 * half, 0.31 * height), Part.TRIM))
        made.append(box((rear - 0.004, -0.26, 0.33 * height), (rear + 0.1, 0.26, 0.41 * height), Part.PLATE))
        made.append(box((rear - 0.002, -0.9 * half, 0.22 * height), (rear + 0.12, 0.9 * half, 0.28 * height), Part.TRIM))
    return join(made)


def _van(size: tuple[float, float, float], fine: bool) -> Mesh:
    length, width, height = size
    half = 0.5 * width
    stations = [(-0.5, 0.95, 0.13, 0.97), (-0.48, 1.0, 0.12, 1.0), (0.2, 1.0, 0.12, 1.0), (0.26, 0.98, 0.12, 0.97)]
    stations += [(0.385, 0.96, 0.12, 0.56), (0.48, 0.9, 0.14, 0.46), (0.5, 0.8, 0.18, 0.36)]
    made = [loft([(x * length, w * half, b * height, t * height) for x, w, b, t in stations], Part.PAINT, Part.TRIM)]
    for side in (-1.0, 1.0):  # door windows, then the windscreen along the slope between two stations
        y = side * 1.003 * half
        corners = [(0.1 * length, y, 0.58 * height), (0.3 * length, y * 0.98, 0.58 * height)]
        corners += [(0.24 * length, y * 0.985, 0.84 * height), (0.1 * length, y, 0.84 * height)]
        made.append(soup(corners, [(0, 1, 2), (0, 2, 3)] if side < 0 else [(2, 1, 0), (3, 2, 0)], Part.GLASS))
    foot, head, w = 0.377, 0.272, 0.8 * half
    made.append(
        soup(
            [(foot * length + 0.03, -w, 0.6 * height), (foot * length + 0.03, w, 0.6 * height)]
            + [(head * length + 0.03, 0.93 * w, 0.94 * height), (head * length + 0.03, -0.93 * w, 0.94 * height)],
            [(0, 1, 2), (0, 2, 3)],
            Part.GLASS,
        )
    )
    rear = -0.5 * length
    made.append(box((rear - 0.004, -0.75 * half, 0.6 * height), (rear + 0.1, 0.75 * half, 0.85 * height), Part.GLASS))
    made.append(_wheels([-0.3 * length, 0.33 * length], width, min(0.19 * height, 0.36), fine))
    made.append(_lights(size, 0.49 * length, rear - 0.002, (0.32 * height, 0.4 * height), 0.16))
    if fine:
        made.append(box((0.4 * length, -0.5 * half, 0.2 * height), (0.502 * length, 0.5 * half, 0.3 * height), Part.TRIM))
        made.append(box((rear - 0.006, -0.26, 0.26 * height), (rear + 0.1, 0.26, 0.31 * height), Part.PLATE))
    return join(made)


def _bus(size: tuple[float, float, float], fine: bool) -> Mesh:
    length, width, height = size
    half, rear, front = 0.5 * width, -0.5 * length, 0.5 * length
    stations = [(rear, 0.93 * half, 0.12 * height, 0.97 * height), (rear + 0.15, half, 0.1 * height, height)]
    stations += [(front - 0.25, half, 0.1 * height, height), (front, 0.92 * half, 0.12 * height, 0.96 * height)]
    made = [loft(stations, Part.PAINT, Part.TRIM)]
    panes = max(int(length / 1.7), 3)
    for pane in range(panes if fine else 1):
        low, high = np.array([pane, pane + 1]) / (panes if fine else 1) * (length - 1.0) + rear + 0.5
        made.append(box((low + 0.05, -half - 0.004, 0.42 * height), (high - 0.05, half + 0.004, 0.8 * height), Part.GLASS))
    made.append(box((front - 0.2, -0.86 * half, 0.36 * height), (front + 0.006, 0.86 * half, 0.82 * height), Part.GLASS))
    made.append(box((front - 0.2, -0.6 * half, 0.85 * height), (front + 0.006, 0.6 * half, 0.93 * height), Part.LAMP))
    made.append(box((rear - 0.006, -0.8 * half, 0.5 * height), (rear + 0.2, 0.8 * half, 0.8 * height), Part.GLASS))
    made.append(_wheels([rear + 0.24 * length, front - 0.21 * length], width, min(0.5, 0.17 * height), fine))
    made.append(_lights(size, front + 0.005, rear - 0.005, (0.2 * height, 0.27 * height), 0.14))
    return join(made)


def _truck(size: tuple[float, float, float], cargo: tuple[float, float, float], fine: bool) -> Mesh:
    length, width, height = size
    half, rear, front = 0.5 * width, -0.5 * length, 0.5 * length
    cab = min(2.3, 0.3 * length)
    load = box((rear, -half, 0.27 * height), (front - cab - 0.35, half, height), Part.CLOTH, cargo)
    made = [load, box((rear + 0.1, -0.4 * half, 0.14 * height), (front - 0.4, 0.4 * half, 0.27 * height), Part.TRIM)]
    wide, nose = (front - cab, front, -0.97 * half, 0.97 * half), (front - cab + 0.1, front - 0.25, -0.85 * half, 0.85 * half)
    made.append(frustum(0.12 * height, 0.5 * height, wide, wide, Part.PAINT))
    made.append(cabin(0.5 * height, 0.93 * height, wide, nose, 1))
    axles = [rear + 0.12 * length, front - 0.45 * cab] + ([rear + 0.12 * length + 1.2] if length > 8.5 else [])
    made.append(_wheels(axles, width, min(0.5, 0.16 * height), fine))
    made.append(_lights(size, front + 0.005, rear - 0.02, (0.18 * height, 0.25 * height), 0.14))
    if fine:
        made.append(box((front - 0.1, -0.5 * half, 0.2 * height), (front + 0.006, 0.5 * half, 0.42 * height), Part.TRIM))
        made.append(box((rear - 0.01, -0.97 * half, 0.17 * height), (rear + 0.1, 0.97 * half, 0.21 * height), Part.METAL))
        made.append(box((rear - 0.006, -0.02, 0.3 * height), (rear + 0.02, 0.02, 0.97 * height), Part.TRIM))
    return join(made)


def _pedestrian(size: tuple[float, float, float], shirt: Sequence[float], random: np.random.Generator, fine: bool) -> Mesh:
    """Someone in mid-stride, 1.8 m tall before it is stretched to its box."""
    trousers = random.choice(TROUSERS) * random.uniform(0.7, 1.5)
    sides = 6 if fine else 4
    made = []
    for side in (-1.0, 1.0):
        stride = 0.17 * side
        made.append(tube((stride, 0.09 * side, 0.06), (0.0, 0.09 * side, 0.86), (0.055, 0.09), Part.CLOTH, trousers, sides))
        made.append(box((stride - 0.08, 0.09 * side - 0.05, 0.0), (stride + 0.16, 0.09 * side + 0.05, 0.08), Part.TRIM))
        made.append(tube((-1.1 * stride, 0.25 * side, 0.85), (0.0, 0.2 * side, 1.42), (0.04, 0.055), Part.CLOTH, shirt, sides))
        if fine:
            made.append(ball((-1.15 * stride, 0.25 * side, 0.8), (0.05, 0.04, 0.06), Part.SKIN, None, 3, 5))
    made.append(frustum(0.84, 1.48, (-0.1, 0.1, -0.16, 0.16), (-0.1, 0.1, -0.21, 0.21), Part.CLOTH, shirt))
    made.append(ball((0.01, 0.0, 1.66), (0.105, 0.09, 0.14), Part.SKIN, None, 4 if fine else 3, sides))
    hair = np.array((0.02, 0.014, 0.01)) * random.uniform(0.5, 6.0)
    made.append(ball((-0.02, 0.0, 1.7), (0.11, 0.1, 0.115), Part.CLOTH, hair, 4 if fine else 3, sides))
    return _fitted(join(made), size)


def _cyclist(size: tuple[float, float, float], shirt: Sequence[float], random: np.random.Generator, fine: bool) -> Mesh:
    """A bicycle, with somebody on it where the box is tall enough."""
    sides = 6 if fine else 4
    trousers = random.choice(TROUSERS) * random.uniform(0.8, 1.6)
    frame = random.choice(PAINTS.numpy())
    made = []
    for x in (-0.54, 0.54):
        made.append(_tyre(x, 0.34, 14 if fine else 7))
    for start, end in (
        ((-0.54, 0, 0.34), (-0.15, 0, 0.8)),
        ((-0.1, 0, 0.3), (-0.18, 0, 0.92)),
        ((-0.16, 0, 0.78), (0.42, 0, 0.82)),
        ((-0.1, 0, 0.3), (0.42, 0, 0.78)),
        ((0.54, 0, 0.34), (0.38, 0, 1.0)),
        ((0.38, -0.26, 1.0), (0.38, 0.26, 1.0)),
        ((-0.54, 0, 0.34), (-0.1, 0, 0.3)),
    )[: 7 if fine else 6]:
        made.append(tube(start, end, (0.025, 0.025), Part.CLOTH, frame, 4))
    made.append(box((-0.3, -0.07, 0.92), (-0.06, 0.07, 0.98), Part.TRIM))
    if size[2] > 1.25:
        for side in (-1.0, 1.0):
            knee, foot = (0.2, 0.13 * side, 0.72 + 0.08 * side), (-0.06, 0.12 * side, 0.28 + 0.14 * side)
            made.append(tube(foot, knee, (0.05, 0.065), Part.CLOTH, trousers, sides))
            made.append(tube(knee, (-0.2, 0.1 * side, 1.0), (0.065, 0.1), Part.CLOTH, trousers, sides))
            made.append(tube((0.36, 0.22 * side, 1.02), (0.1, 0.2 * side, 1.42), (0.035, 0.055), Part.CLOTH, shirt, sides))
        made.append(tube((-0.2, 0, 0.96), (0.12, 0, 1.48), (0.15, 0.18), Part.CLOTH, shirt, sides + 2))
        made.append(ball((0.2, 0, 1.66), (0.11, 0.09, 0.14), Part.SKIN, None, 4 if fine else 3, sides))
        made.append(ball((0.18, 0, 1.7), (0.14, 0.11, 0.11), Part.CLOTH, random.choice(PAINTS.numpy()), 4 if fine else 3, sides))
    return _fitted(join(made), size)


def _tyre(x: float, radius: float, sides: int) -> Mesh:
    """A bicycle's wheel: a thin ring around y, seen from both sides."""
    angle = np.arange(sides) / sides * 2 * np.pi
    rings = [(radius, -0.02), (radius, 0.02), (0.87 * radius, 0.02), (0.87 * radius, -0.02)]
    points = [np.stack((x + r * np.cos(angle), np.full(sides, y), radius + r * np.sin(angle)), -1) for r, y in rings]
    index = np.arange(4 * sides).reshape(4, sides)
    below, turned = np.roll(index, -1, axis=0), np.roll(index, -1, axis=1)
    quads = np.stack((index, below, np.roll(below, -1, axis=1), turned), -1).reshape(-1, 4)
    return soup(np.concatenate(points), quads[:, [0, 1, 2, 0, 2, 3]].reshape(-1, 3), Part.TYRE)


def _object(size: tuple[float, float, float], fine: bool) -> Mesh:
    """A cone, a striped barrier, or a plain block, by the box."""
    length, width, height = size
    x, y = 0.5 * length, 0.5 * width
    orange, white = (0.75, 0.16, 0.01), (0.75, 0.75, 0.72)
    if max(length, width) < 0.75 and height < 1.3:
        made, radius = [box((-x, -y, 0.0), (x, y, 0.06 * height), Part.CLOTH, (0.05, 0.05, 0.05))], 0.8 * min(x, y)
        for low, high, colour in ((0.06, 0.4, orange), (0.4, 0.65, white), (0.65, 1.0, orange)):
            radii = (radius * (1.06 - low), radius * (1.06 - high))
            made.append(tube((0, 0, low * height), (0, 0, high * height), radii, Part.CLOTH, colour, 10 if fine else 5))
        return join(made)
    if max(length, width) > 1.2 and height < 1.4:
        along = (np.linspace(-x, x, 7), None) if length >= width else (None, np.linspace(-y, y, 7))
        made = []
        for piece in range(6):
            low = (along[0][piece], -y, 0.0) if along[0] is not None else (-x, along[1][piece], 0.0)  # type: ignore[index]
            high = (along[0][piece + 1], y, height) if along[0] is not None else (x, along[1][piece + 1], height)  # type: ignore[index]
            made.append(box(low, high, Part.CLOTH, orange if piece % 2 else white))
        return join(made)
    return join(
        [
            box((-x, -y, 0.0), (x, y, 0.85 * height), Part.CLOTH, (0.2, 0.22, 0.2)),
            frustum(
                0.85 * height, height, (-x, x, -y, y), (-0.8 * x, 0.8 * x, -0.8 * y, 0.8 * y), Part.CLOTH, (0.12, 0.14, 0.13)
            ),
        ]
    )


def _fitted(mesh: Mesh, size: tuple[float, float, float]) -> Mesh:
    """Stretch a mesh to fill its box; normals follow as if it kept its shape, which small bodies allow."""
    low, high = mesh.corner.reshape(-1, 3).min(0), mesh.corner.reshape(-1, 3).max(0)
    middle = np.array([*(0.5 * (low + high))[:2], low[2]], dtype=np.float32)
    scale = np.asarray(size, dtype=np.float32) / (high - low)
    return Mesh((mesh.corner - middle) * scale, mesh.normal, mesh.part, mesh.colour, mesh.owner)
