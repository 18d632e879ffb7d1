"""Scene: the one structure that every reader writes and every world, environment and picture reads.

A `Scene` is a batch of B recorded or generated driving scenes: the tracks of all agents over time, the roads with their lane
graph, the signals, and the ego's route. Metres, seconds, radians, float32; x forward, y left, z up; heading counter-clockwise
from +x. What is missing is masked by a `..._valid` tensor and holds zeros; no number means "missing".

Dimensions: B scenes, A agents, T steps of 0.1 s, L polylines, P points, E lane links, S signals, R route points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from enum import IntEnum
from typing import Any, Self

import torch
from torch import Tensor

TIME_STEP = 0.1
"""Seconds between two steps of every track; the loop runs at 10 Hz."""

HISTORY_STEPS = 10
"""Index of "now" in every scene: one second of history stands before it (Waymo Open Motion's convention)."""

DERIVED = "#"
"""In the id of a scene that was made from another one, between the other's id and what was done to it."""


class AgentKind(IntEnum):
    """What an agent is; `OBJECT` is anything that stands (cones, barriers, signs) and is never moved by a world."""

    VEHICLE = 0
    PEDESTRIAN = 1
    CYCLIST = 2
    OBJECT = 3


class PolylineKind(IntEnum):
    """What a polyline of the map is.

    Centrelines run in driving direction. Road edges run so that the road lies on their left. A crosswalk is a closed outline.
    """

    LANE = 0
    JUNCTION_LANE = 1
    BIKE_LANE = 2
    WALKWAY = 3
    CROSSWALK = 4
    LANE_MARKING = 5
    ROAD_EDGE = 6


class SignalState(IntEnum):
    """What a signal shows; `UNKNOWN` binds nobody (off, blinking, not seen)."""

    UNKNOWN = 0
    STOP = 1
    CAUTION = 2
    GO = 3


class LaneLinkKind(IntEnum):
    """How the second lane of a link lies to the first."""

    SUCCESSOR = 0
    LEFT = 1
    RIGHT = 2


class InvalidSceneError(ValueError):
    """A scene that breaks the contract; the message names scene, field, place in it, what was found and what is wanted."""


class TensorBatch:
    """Row operations for a frozen dataclass whose tensors (and tuples, dicts, nested batches) all lead with dimension B."""

    def map(self, function: Callable[[Tensor], Tensor], rows: Callable[[tuple], tuple] = lambda row: row) -> Self:
        """Return a copy with `function` applied to every tensor and `rows` to every tuple."""

        def convert(value: Any) -> Any:
            if isinstance(value, Tensor):
                return function(value)
            if isinstance(value, TensorBatch):
                return value.map(function, rows)
            if isinstance(value, dict):
                return {name: convert(entry) for name, entry in value.items()}
            return rows(value) if isinstance(value, tuple) else value

        assert is_dataclass(self)
        return replace(self, **{field.name: convert(getattr(self, field.name)) for field in fields(self)})

    def take(self, index: Sequence[int] | Tensor) -> Self:
        """Return the rows `index` (n,), in that order; repeats are allowed."""
        index = torch.as_tensor(index, dtype=torch.int64)
        return self.map(lambda tensor: tensor[index], lambda row: tuple(row[i] for i in index.tolist()))

    def repeat(self, times: int) -> Self:
        """Return every row `times` times, copies side by side (B -> B * times): branches of one moment."""
        return self.map(
            lambda tensor: tensor.repeat_interleave(times, dim=0), lambda row: tuple(x for x in row for _ in range(times))
        )

    def put(self, index: Sequence[int] | Tensor, other: Self) -> Self:
        """Return a copy in which rows `index` (n,) are those of `other` (n rows of the same widths)."""
        index = torch.as_tensor(index, dtype=torch.int64)
        places = index.tolist()

        def convert(mine: Any, theirs: Any) -> Any:
            if isinstance(mine, Tensor):
                if mine.shape[1:] != theirs.shape[1:]:
                    raise ValueError(
                        f"rows of shape {tuple(theirs.shape[1:])} do not fit {tuple(mine.shape[1:])}: pad both alike"
                    )
                return mine.index_copy(0, index, theirs)
            if isinstance(mine, TensorBatch):
                return mine.put(index, theirs)
            if isinstance(mine, dict):
                return {name: convert(entry, theirs[name]) for name, entry in mine.items()}
            if isinstance(mine, tuple):
                row = list(mine)
                for place, entry in zip(places, theirs, strict=True):
                    row[place] = entry
                return tuple(row)
            return mine

        assert is_dataclass(self)
        return replace(self, **{f.name: convert(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)})


@dataclass(frozen=True)
class Scene(TensorBatch):
    """A batch of scenes. `validate()` states the contract; readers call it before they hand a scene on.

    Attributes:
        id: B names, unique within a data set, such as `pandaset/002`.
        recipe: B JSON texts that let a simulator start this very scene again ("" where none can; see `sumo.py`).
        position: (B, A, T, 3) box centres in metres.
        heading: (B, A, T) radians.
        velocity: (B, A, T, 2) metres per second, in the scene's frame.
        valid: (B, A, T) bool, where the agent was seen.
        size: (B, A, 3) length, width, height in metres.
        kind: (B, A) int64 `AgentKind`.
        to_predict: (B, A) bool, whose futures the data set asks for; nobody's where it does not say.
        ego: (B,) int64, the ego's place in dimension A.
        polyline: (B, L, P, 3) map points in metres; `polyline_valid` (B, L, P) bool is a prefix of P.
        polyline_kind: (B, L) int64 `PolylineKind`.
        lane_width: (B, L) metres; of lanes and walkways, else 0.
        speed_limit: (B, L) metres per second, `speed_limit_valid` (B, L) bool.
        lane_link: (B, E, 2) int64 polyline indices (from, to); `lane_link_kind` (B, E) `LaneLinkKind`; `lane_link_valid` (B, E).
        signal_position: (B, S, 3) the stop point on the lane.
        signal_lane: (B, S) int64, the polyline that the signal controls.
        signal_heading: (B, S) radians, driving direction at the stop point.
        signal_state: (B, S, T) int64 `SignalState`; `signal_valid` (B, S, T) bool.
        route: (B, R, 3) the ego's way, about 2 m between points, from behind its first pose to its goal; `route_valid` (B, R)
            bool is a prefix.
    """

    id: tuple[str, ...]
    recipe: tuple[str, ...]
    position: Tensor
    heading: Tensor
    velocity: Tensor
    valid: Tensor
    size: Tensor
    kind: Tensor
    to_predict: Tensor
    ego: Tensor
    polyline: Tensor
    polyline_valid: Tensor
    polyline_kind: Tensor
    lane_width: Tensor
    speed_limit: Tensor
    speed_limit_valid: Tensor
    lane_link: Tensor
    lane_link_kind: Tensor
    lane_link_valid: Tensor
    signal_position: Tensor
    signal_lane: Tensor
    signal_heading: Tensor
    signal_state: Tensor
    signal_valid: Tensor
    route: Tensor
    route_valid: Tensor

    def __len__(self) -> int:
        """B, the number of scenes."""
        return len(self.id)

    @property
    def steps(self) -> int:
        """T, the number of logged steps (the longest of the batch; shorter ones end in invalid steps)."""
        return self.position.shape[2]

    def ego_row(self) -> Tensor:
        """(B,) row numbers, to be used with `ego`: `scene.heading[scene.ego_row(), scene.ego]`."""
        return torch.arange(len(self.id))

    def sizes(self) -> dict[str, int]:
        """The size of every dimension by its letter."""
        found: dict[str, int] = {}
        for name, (dimensions, _) in LAYOUT.items():
            found.update({d: n for d, n in zip(dimensions, getattr(self, name).shape, strict=True) if isinstance(d, str)})
        return found

    def pad(self, sizes: dict[str, int]) -> Scene:
        """Return the batch with dimensions grown to `sizes` (letters A, T, L, P, E, S, R); what is added is invalid."""
        changes: dict[str, Tensor] = {}
        for name, (dimensions, _) in LAYOUT.items():
            tensor = getattr(self, name)
            wanted = [max(sizes.get(d, n), n) if isinstance(d, str) else n for d, n in zip(dimensions, tensor.shape, strict=True)]
            if list(tensor.shape) != wanted:
                grown = tensor.new_zeros(wanted)
                grown[tuple(slice(0, n) for n in tensor.shape)] = tensor
                changes[name] = grown
        return replace(self, **changes)

    def validate(self) -> Scene:
        """Return self, or raise InvalidSceneError that names field, agent (or other place), what was found and is wanted."""
        batch = len(self.id)
        if batch == 0:
            raise InvalidSceneError("scene batch is empty: at least one scene is wanted")
        if len(self.recipe) != batch:
            raise InvalidSceneError(f"recipe: found {len(self.recipe)} entries, wanted {batch}, one for each id")
        known: dict[str, int] = {"B": batch}
        for name, (dimensions, dtype) in LAYOUT.items():
            tensor = getattr(self, name)
            if not isinstance(tensor, Tensor) or tensor.dtype != dtype:
                found = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
                raise InvalidSceneError(f"{self.id[0]}: {name}: found type {found}, wanted a tensor of {dtype}")
            shape = tuple(tensor.shape)
            if len(shape) == len(dimensions):
                for dimension, size in zip(dimensions, shape, strict=True):
                    known.setdefault(dimension, size) if isinstance(dimension, str) else None
            wanted = tuple(known.get(d, "?") if isinstance(d, str) else d for d in dimensions)
            if shape != wanted:
                letters = ", ".join(map(str, dimensions))
                raise InvalidSceneError(f"{self.id[0]}: {name}: found shape {shape}, wanted ({letters}) = {wanted}")
            if dtype == torch.float32:
                self._require(tensor.isfinite(), name, "found NaN or infinity, wanted finite numbers (mask what is missing)")
        self._validate_content()
        return self

    def _validate_content(self) -> None:
        """The part of the contract that speaks of values and not of shapes."""
        sizes, check = self.sizes(), self._require
        check(torch.tensor([sizes["A"] > 0]).expand(len(self.id)), "position", "found no agents, wanted at least the ego")
        steps = sizes["T"]
        told = f"found {steps} steps, wanted at least {HISTORY_STEPS + 1} (1 s of history and the present)"
        check(torch.tensor([steps > HISTORY_STEPS]).expand(len(self.id)), "position", told)
        check((self.ego >= 0) & (self.ego < sizes["A"]), "ego", f"index outside of the {sizes['A']} agents: the scene has no ego")
        check(self.valid.any(dim=-1).any(dim=-1), "valid", "found zero valid steps")
        ego_valid = self.valid[self.ego_row(), self.ego]
        told = f"the ego is not valid at the present (step {HISTORY_STEPS}): the scene has no ego"
        check(ego_valid[:, HISTORY_STEPS], "valid", told)
        present = self.valid.any(dim=-1, keepdim=True) & (self.size <= 0)
        check(~present, "size", "found a length, width or height <= 0 of a valid agent")
        for field, kinds, count in (
            ("kind", self.kind, len(AgentKind)),
            ("polyline_kind", self.polyline_kind, len(PolylineKind)),
            ("signal_state", self.signal_state, len(SignalState)),
            ("lane_link_kind", self.lane_link_kind, len(LaneLinkKind)),
        ):
            check((kinds >= 0) & (kinds < count), field, f"found a number outside of 0..{count - 1}")
        lines = max(sizes["L"], 1)
        check((self.lane_link >= 0) & (self.lane_link < lines), "lane_link", f"found a polyline index outside of 0..{lines - 1}")
        check((self.signal_lane >= 0) & (self.signal_lane < lines), "signal_lane", f"found an index outside of 0..{lines - 1}")
        for field, mask in (("polyline_valid", self.polyline_valid), ("route_valid", self.route_valid)):
            check(mask[..., :-1] | ~mask[..., 1:], field, "found a valid point after an invalid one, wanted a prefix")
        check(self.route_valid[:, :2].all(dim=-1), "route_valid", "found fewer than two valid points, wanted a route")

    def _require(self, ok: Tensor, field: str, problem: str) -> None:
        """Raise InvalidSceneError for the first place where `ok`, in some leading dimensions of `field`, does not hold."""
        if ok.all():
            return
        row, *place = (~ok).nonzero()[0].tolist()
        where = [f"{PLACE[d]} {n}" for d, n in zip(LAYOUT[field][0][1:], place, strict=False) if isinstance(d, str)]
        raise InvalidSceneError(": ".join((self.id[row], field, *([", ".join(where)] if where else []), problem)))


LAYOUT: dict[str, tuple[tuple[str | int, ...], torch.dtype]] = {
    "position": (("B", "A", "T", 3), torch.float32),
    "heading": (("B", "A", "T"), torch.float32),
    "velocity": (("B", "A", "T", 2), torch.float32),
    "valid": (("B", "A", "T"), torch.bool),
    "size": (("B", "A", 3), torch.float32),
    "kind": (("B", "A"), torch.int64),
    "to_predict": (("B", "A"), torch.bool),
    "ego": (("B",), torch.int64),
    "polyline": (("B", "L", "P", 3), torch.float32),
    "polyline_valid": (("B", "L", "P"), torch.bool),
    "polyline_kind": (("B", "L"), torch.int64),
    "lane_width": (("B", "L"), torch.float32),
    "speed_limit": (("B", "L"), torch.float32),
    "speed_limit_valid": (("B", "L"), torch.bool),
    "lane_link": (("B", "E", 2), torch.int64),
    "lane_link_kind": (("B", "E"), torch.int64),
    "lane_link_valid": (("B", "E"), torch.bool),
    "signal_position": (("B", "S", 3), torch.float32),
    "signal_lane": (("B", "S"), torch.int64),
    "signal_heading": (("B", "S"), torch.float32),
    "signal_state": (("B", "S", "T"), torch.int64),
    "signal_valid": (("B", "S", "T"), torch.bool),
    "route": (("B", "R", 3), torch.float32),
    "route_valid": (("B", "R"), torch.bool),
}
"""Dimensions and type of every tensor of a `Scene`, in the order in which `validate()` meets them."""

PLACE = {"A": "agent", "T": "step", "L": "polyline", "P": "point", "E": "link", "S": "signal", "R": "point"}
"""What one entry of a dimension is called in errors."""


def stack(scenes: Sequence[Scene]) -> Scene:
    """Join batches of scenes into one, padding each dimension to its longest."""
    if not scenes:
        raise InvalidSceneError("no scenes to stack: at least one is wanted")
    if len(scenes) == 1:
        return scenes[0]
    sizes: dict[str, int] = {}
    for scene in scenes:
        for letter, size in scene.sizes().items():
            sizes[letter] = max(sizes.get(letter, 0), size)
    sizes.pop("B")
    padded = [scene.pad(sizes) for scene in scenes]
    tensors = {name: torch.cat([getattr(scene, name) for scene in padded]) for name in LAYOUT}
    ids, recipes = (tuple(x for scene in scenes for x in getattr(scene, name)) for name in ("id", "recipe"))
    return Scene(id=ids, recipe=recipes, **tensors)


def make_scene(id: str, *, recipe: str = "", **tensors: Tensor) -> Scene:
    """Build and validate one scene (B = 1) from tensors without the leading dimension; maps and signals may be left out.

    Args:
        id: name of the scene, unique in its data set.
        recipe: JSON text with which a simulator can start the scene again, "" for none.
        **tensors: fields of `Scene` without B. Position, heading, velocity, valid, size, kind, ego and route are needed.

    Raises:
        InvalidSceneError: a field is missing, unknown, or breaks the contract.
    """
    unknown = sorted(set(tensors) - set(LAYOUT))
    needed = {"position", "heading", "velocity", "valid", "size", "kind", "ego", "route"}
    missing = sorted(needed - set(tensors))
    if unknown or missing:
        raise InvalidSceneError(f"{id}: unknown fields {unknown}, missing fields {missing}")
    sizes = {"L": 0, "P": 2, "E": 0, "S": 0}
    for name, tensor in tensors.items():
        for letter, size in zip(LAYOUT[name][0][1:], tensor.shape, strict=False):
            if isinstance(letter, str):
                sizes[letter] = size
    full: dict[str, Tensor] = {}
    for name, (dimensions, dtype) in LAYOUT.items():
        if name in tensors:
            full[name] = torch.as_tensor(tensors[name]).to(dtype)[None]
        else:
            shape = [1, *(sizes.get(d, 0) if isinstance(d, str) else d for d in dimensions[1:])]
            filler = name == "route_valid"
            full[name] = torch.full(shape, filler, dtype=dtype) if dtype == torch.bool else torch.zeros(shape, dtype=dtype)
    return Scene(id=(id,), recipe=(recipe,), **full).validate()
