"""The contract of a `Scene`: every way to break it is refused with a message that names scene, field and place."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from scenes import EGO, LEADER, several_roads, straight_road
from torch import Tensor
from worldloop.worldmodel.scene import HISTORY_STEPS, LAYOUT, InvalidSceneError, Scene, make_scene, stack


def changed(field: str, change: Callable[[Tensor], Any]) -> Callable[[Scene], Scene]:
    """A scene in which one field is what `change` makes of a copy of it."""
    return lambda scene: replace(scene, **{field: change(getattr(scene, field).clone())})


def put(field: str, place: tuple[Any, ...], value: float) -> Callable[[Scene], Scene]:
    """A scene in which some numbers of one field are another one."""

    def change(tensor: Tensor) -> Tensor:
        tensor[place] = value
        return tensor

    return changed(field, change)


def shortened(steps: int) -> Callable[[Scene], Scene]:
    """A scene of which only the first steps are left."""
    over_time = [name for name, (dimensions, _) in LAYOUT.items() if "T" in dimensions]
    cut = lambda name, tensor: tensor.narrow(LAYOUT[name][0].index("T"), 0, steps)  # noqa: E731
    return lambda scene: replace(scene, **{name: cut(name, getattr(scene, name)) for name in over_time})


def without_agents(scene: Scene) -> Scene:
    of_agents = [name for name, (dimensions, _) in LAYOUT.items() if "A" in dimensions]
    return replace(scene, **{name: getattr(scene, name)[:, :0] for name in of_agents})


BROKEN: dict[str, tuple[Callable[[Scene], Scene], str]] = {
    "no scenes": (lambda scene: scene.take([]), "scene batch is empty: at least one scene is wanted"),
    "recipes": (lambda scene: replace(scene, recipe=("", "")), "recipe: found 2 entries, wanted 1, one for each id"),
    "no tensor": (
        changed("heading", lambda tensor: tensor.tolist()),
        "hand/straight: heading: found type list, wanted a tensor of torch.float32",
    ),
    "doubles": (
        changed("position", Tensor.double),
        "hand/straight: position: found type torch.float64, wanted a tensor of torch.float32",
    ),
    "short integers": (changed("kind", Tensor.int), "kind: found type torch.int32, wanted a tensor of torch.int64"),
    "numbers as mask": (changed("valid", Tensor.float), "valid: found type torch.float32, wanted a tensor of torch.bool"),
    "a dimension too few": (
        changed("ego", lambda tensor: tensor[0]),
        "hand/straight: ego: found shape (), wanted (B) = (1,)",
    ),
    "flat positions": (
        changed("position", lambda tensor: tensor[..., :2]),
        "position: found shape (1, 6, 91, 2), wanted (B, A, T, 3) = (1, 6, 91, 3)",
    ),
    "agents missing": (
        changed("size", lambda tensor: tensor[:, 1:]),
        "size: found shape (1, 5, 3), wanted (B, A, 3) = (1, 6, 3)",
    ),
    "steps missing": (
        changed("signal_state", lambda tensor: tensor[..., :-1]),
        "signal_state: found shape (1, 1, 90), wanted (B, S, T) = (1, 1, 91)",
    ),
    "scenes too many": (
        changed("route", lambda tensor: tensor.repeat(2, 1, 1)),
        "route: found shape (2, 101, 3), wanted (B, R, 3) = (1, 101, 3)",
    ),
    "position NaN": (
        put("position", (0, LEADER, 7, 1), torch.nan),
        "hand/straight: position: agent 1, step 7: found NaN or infinity, wanted finite numbers (mask what is missing)",
    ),
    "speed infinite": (put("speed_limit", (0, 1), torch.inf), "speed_limit: polyline 1: found NaN or infinity"),
    "route NaN": (put("route", (0, 9, 0), torch.nan), "route: point 9: found NaN or infinity"),
    "signal NaN": (put("signal_heading", (0, 0), torch.nan), "signal_heading: signal 0: found NaN or infinity"),
    "no agents": (without_agents, "hand/straight: position: found no agents, wanted at least the ego"),
    "too short": (shortened(HISTORY_STEPS), "position: found 10 steps, wanted at least 11 (1 s of history and the present)"),
    "ego below": (put("ego", (0,), -1), "hand/straight: ego: index outside of the 6 agents: the scene has no ego"),
    "ego beyond": (put("ego", (0,), 6), "ego: index outside of the 6 agents: the scene has no ego"),
    "nobody seen": (put("valid", (...,), False), "hand/straight: valid: found zero valid steps"),
    "ego unseen": (
        put("valid", (0, EGO, HISTORY_STEPS), False),
        "valid: the ego is not valid at the present (step 10): the scene has no ego",
    ),
    "no width": (
        put("size", (0, LEADER, 1), 0.0),
        "hand/straight: size: agent 1: found a length, width or height <= 0 of a valid agent",
    ),
    "kind unknown": (put("kind", (0, 4), 4), "kind: agent 4: found a number outside of 0..3"),
    "kind negative": (put("kind", (0, 4), -1), "kind: agent 4: found a number outside of 0..3"),
    "polyline unknown": (put("polyline_kind", (0, 3), 7), "polyline_kind: polyline 3: found a number outside of 0..6"),
    "signal unknown": (put("signal_state", (0, 0, 20), 4), "signal_state: signal 0, step 20: found a number outside of 0..3"),
    "link unknown": (put("lane_link_kind", (0, 1), 3), "lane_link_kind: link 1: found a number outside of 0..2"),
    "link to nowhere": (put("lane_link", (0, 1, 0), 6), "lane_link: link 1: found a polyline index outside of 0..5"),
    "signal of no lane": (put("signal_lane", (0, 0), -1), "signal_lane: signal 0: found an index outside of 0..5"),
    "a gap in a line": (
        put("polyline_valid", (0, 2, 4), False),
        "polyline_valid: polyline 2, point 4: found a valid point after an invalid one, wanted a prefix",
    ),
    "a gap in the route": (
        put("route_valid", (0, 50), False),
        "route_valid: point 50: found a valid point after an invalid one, wanted a prefix",
    ),
    "no route": (
        put("route_valid", (0, slice(1, None)), False),
        "hand/straight: route_valid: found fewer than two valid points, wanted a route",
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_every_broken_contract_has_its_message(how: str):
    broken, told = BROKEN[how]
    with pytest.raises(InvalidSceneError, match=re.escape(told)):
        broken(straight_road()).validate()


@pytest.mark.parametrize("field", LAYOUT)
def test_every_field_must_be_there_in_its_type(field: str):
    with pytest.raises(InvalidSceneError, match=f"hand/straight: {field}: found type NoneType, wanted a tensor of "):
        replace(straight_road(), **{field: None}).validate()


@pytest.mark.parametrize("field", [name for name, (_, dtype) in LAYOUT.items() if dtype == torch.float32])
def test_no_field_may_hold_nan(field: str):
    scene = straight_road()
    with pytest.raises(InvalidSceneError, match=f"hand/straight: {field}: .*found NaN or infinity"):
        replace(scene, **{field: torch.full_like(getattr(scene, field), torch.nan)}).validate()


def test_the_scene_of_a_batch_that_is_at_fault_is_named():
    roads = several_roads(3)
    size = roads.size.clone()
    size[1, 2] = -1.0
    with pytest.raises(InvalidSceneError, match="^hand/1: size: agent 2: "):
        replace(roads, size=size).validate()


def test_a_sound_scene_is_handed_back_whatever_is_padded():
    roads = several_roads(3)
    assert roads.validate() is roads
    wider = roads.pad({letter: size + 2 for letter, size in roads.sizes().items() if letter != "B"})
    assert wider.validate() is wider
    bare = straight_road(edges=False)
    assert stack([bare, straight_road("hand/other", steps=20)]).validate().steps == bare.steps


def test_a_scene_is_made_of_known_and_of_all_needed_fields():
    with pytest.raises(InvalidSceneError, match=r"^mine: unknown fields \['colour'\], missing fields \['ego', 'heading', "):
        make_scene("mine", position=torch.zeros(1, 11, 3), colour=torch.zeros(1))
