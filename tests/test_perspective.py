"""Perspective layouts: hand-worked pixels of small scenes, what hides what, and what must not change a picture."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scenes import CONE, EGO, FOLLOWER, LANE_WIDTH, LEADER, NEIGHBOUR, PEDESTRIAN, moved, several_roads, straight_road
from torch import Tensor
from worldloop.renderers.layouts import layout_picture
from worldloop.worldmodel.paint import as_bytes, paint_of
from worldloop.worldmodel.perspective import (
    FACE_CHANNELS,
    GROUND_CHANNELS,
    KIND_CHANNELS,
    LAYOUT_CHANNELS,
    PAINT_CHANNELS,
    SIGNAL_CHANNELS,
    layout_depth,
    perspective_layout,
    signal_boards,
)
from worldloop.worldmodel.raster import road_pieces
from worldloop.worldmodel.rig import RIGS, Camera, Rig
from worldloop.worldmodel.scene import HISTORY_STEPS, PolylineKind, Scene, SignalState, stack
from worldloop.worldmodel.world import State, logged_state

FRONT = RIGS["front"]
"""128 x 64 pixels, focal length 64, the middle at column 64 and row 32, 0.6 m before the ego's centre, 1.6 m high."""


def state_of(scene: Scene) -> State:
    return logged_state(scene, torch.zeros(len(scene), dtype=torch.int64))


def layout(scene: Scene, rig: Rig = FRONT) -> Tensor:
    return perspective_layout(state_of(scene), road_pieces(scene), rig)


def channel(image: Tensor, name: str, camera: int = 0) -> Tensor:
    return image[0, camera, ..., LAYOUT_CHANNELS.index(name)]


def rectangle(mask: Tensor) -> list[int]:
    """First and last row, first and last column of what is set, all of which must be."""
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    found = [int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])]
    assert mask[found[0] : found[1] + 1, found[2] : found[3] + 1].all()
    return found


def only(scene: Scene, *agents: int) -> Scene:
    """The scene with no other road users than these and the ego."""
    kept = torch.zeros(scene.valid.shape[1], dtype=torch.bool)
    kept[[EGO, *agents]] = True
    return replace(scene, valid=scene.valid & kept[:, None])


def turned(scene: Scene, agent: int, angle: float) -> Scene:
    heading = scene.heading.clone()
    heading[:, agent] = angle
    return replace(scene, heading=heading)


def without_lines(scene: Scene, *kinds: PolylineKind) -> Scene:
    kept = ~torch.isin(scene.polyline_kind, torch.tensor([int(kind) for kind in kinds]))
    return replace(scene, polyline_valid=scene.polyline_valid & kept[..., None])


def test_a_box_covers_its_rectangle_at_its_depth() -> None:
    """The leader's rear is 10 m before the camera, 1.8 m wide and 1.5 m high: 64 / 10 pixels a metre."""
    image = layout(only(straight_road(leader_gap=10.0 + 0.6 + 2.25), LEADER))
    # Columns 64 -+ 5.76, rows 32 + 6.4 * (1.6 - 1.5) = 32.64 to 32 + 6.4 * 1.6 = 42.24, where the middles of pixels lie within.
    assert rectangle(channel(image, "rear") > 0) == [33, 41, 58, 69]
    assert not channel(image, "front").any()
    assert not channel(image, "side").any()
    roof = (channel(image, "vehicle") > 0) & (channel(image, "rear") == 0)
    assert roof.nonzero()[:, 0].unique().tolist() == [32]  # its far end, 14.5 m away, is seen at 32.44
    assert layout_depth(image)[0, 0, 37, 64].item() == pytest.approx(10.0, rel=0.01)
    assert channel(image, "heading_cos")[37, 64] == 255
    assert channel(image, "heading_sin")[37, 64] == 128
    assert channel(image, "heading_cos")[37, 20] == 0


def test_a_box_has_the_colour_of_its_road_user() -> None:
    scene = straight_road(leader_gap=12.0)
    image = layout(only(scene, LEADER))
    colour = torch.stack([channel(image, name)[40, 64] for name in PAINT_CHANNELS])
    assert colour.tolist() == as_bytes(paint_of(scene))[0, LEADER].tolist()
    assert not torch.stack([channel(image, name)[10] for name in PAINT_CHANNELS]).any()


def test_depth_of_ground_and_sky() -> None:
    """Row 42's middle is 10.5 / 64 below the axis a metre: it meets the ground, 1.6 m below, at 1.6 * 64 / 10.5 = 9.75 m."""
    depth = layout_depth(layout(only(straight_road())))[0, 0]
    assert depth[42, 10].item() == pytest.approx(1.6 * 64 / 10.5, rel=0.01)
    assert depth[:28].isinf().all()
    assert depth[32:].isfinite().all()


def test_front_rear_and_side_are_told_apart() -> None:
    scene = only(straight_road(leader_gap=12.0), LEADER)
    faces = {0.0: "rear", math.pi: "front", 0.5 * math.pi: "side"}
    for angle, seen in faces.items():
        image = layout(turned(scene, LEADER, angle))
        for name in FACE_CHANNELS:
            assert (channel(image, name)[40, 64] > 0) == (name == seen)
    left = layout(turned(scene, LEADER, 0.5 * math.pi))  # it drives to the left
    assert channel(left, "heading_cos")[40, 64] == 128
    assert channel(left, "heading_sin")[40, 64] == 255


def test_what_stands_behind_is_hidden() -> None:
    scene = straight_road(leader_gap=15.0)
    position = scene.position.clone()
    position[0, CONE, :, :2] = torch.tensor([25.0, 0.0])
    position[0, PEDESTRIAN, :, :2] = torch.tensor([11.0, 0.3])
    image = layout(only(replace(scene, position=position), LEADER, CONE, PEDESTRIAN))
    assert not channel(image, "object").any()
    assert channel(image, "pedestrian").any()
    kinds = image[0, 0, ..., [LAYOUT_CHANNELS.index(name) for name in KIND_CHANNELS]] > 0
    assert (kinds.sum(-1) <= 1).all()
    ground = image[0, 0, ..., [LAYOUT_CHANNELS.index(name) for name in GROUND_CHANNELS]]
    assert (ground[kinds.any(-1)] == 0).all()


def test_the_ego_and_what_is_behind_the_camera_are_not_seen() -> None:
    image = layout(only(straight_road(), FOLLOWER))
    assert not any(channel(image, name).any() for name in KIND_CHANNELS)
    back = Rig((Camera(position=(-2.3, 0.0, 1.6), yaw=math.pi),), ("back",))
    assert rectangle(channel(layout(only(straight_road(), FOLLOWER), back), "front") > 0)  # it drives towards the camera


def test_turning_the_camera_moves_what_it_sees() -> None:
    """Turned by 0.3 to the left, a box straight ahead comes to stand 64 tan(0.3) = 19.8 pixels to the right of the middle."""
    scene = only(straight_road(leader_gap=40.0), LEADER)
    for yaw in (0.3, -0.3):
        seen = channel(layout(scene, Rig((Camera(yaw=yaw),))), "vehicle").nonzero()[:, 1].float()
        assert seen.mean().item() + 0.5 == pytest.approx(64 + 64 * math.tan(yaw), abs=1.0)


def test_the_road_ends_where_it_should() -> None:
    """In row 42 (9.75 m away) the road reaches from 5.25 m on the left to 1.75 m on the right, 64 / 9.75 pixels a metre."""
    road = channel(layout(only(straight_road())), "road")[42].float() / 255
    scale = 64 / (1.6 * 64 / 10.5)
    assert road.sum().item() == pytest.approx(2 * LANE_WIDTH * scale, abs=1.0)
    covered = (road > 0.5).nonzero()
    assert covered[-1].item() + 1 == pytest.approx(64 + 0.5 * LANE_WIDTH * scale, abs=1.0)
    assert covered[0].item() == pytest.approx(64 - 1.5 * LANE_WIDTH * scale, abs=1.0)


def test_a_road_ends_ahead_where_its_lane_does() -> None:
    """A lane that ends at x = 10.35, 9.75 m before the camera, is seen from the bottom up to row 42."""
    scene = only(straight_road())
    polyline = scene.polyline.clone()
    polyline[..., 0] = polyline[..., 0].clamp(max=10.35)
    road = channel(layout(replace(scene, polyline=polyline)), "road")[:, 62]
    assert (road[44:] == 255).all()
    assert (road[:42] == 0).all()


def test_lines_have_no_gaps_and_stand_where_they_are() -> None:
    image = layout(only(straight_road()))
    lines, edges = channel(image, "lines"), channel(image, "edges")
    for row in range(34, 64):
        scale = (row + 0.5 - 32) / 1.6  # pixels a metre
        for picture, y in ((lines, 0.5 * LANE_WIDTH), (edges, -0.5 * LANE_WIDTH), (edges, 1.5 * LANE_WIDTH)):
            at = 64 - y * scale
            if 2 < at < 126:
                near = picture[row, int(at) - 2 : int(at) + 3].float() / 255
                assert near.sum().item() > 0.8  # pixels, whose coverages add up
                place = (near * (torch.arange(5) + int(at) - 1.5)).sum() / near.sum()
                assert place.item() == pytest.approx(at, abs=1.0)


def test_lane_boundaries_are_drawn_where_a_map_has_no_markings() -> None:
    scene = only(straight_road())
    recorded, implied = layout(scene), layout(without_lines(scene, PolylineKind.LANE_MARKING, PolylineKind.ROAD_EDGE))
    assert not channel(implied, "edges").any()
    marked = channel(recorded, "lines") > 100
    assert (channel(implied, "lines")[marked] > 60).float().mean().item() > 0.95
    both = stack([scene, without_lines(replace(scene, id=("bare",)), PolylineKind.LANE_MARKING)])
    assert torch.equal(layout(both)[1, 0, ..., 0], layout(scene)[0, 0, ..., 0])


def test_a_map_of_markings_alone_has_a_road_around_them() -> None:
    scene = without_lines(only(straight_road()), PolylineKind.LANE, PolylineKind.ROAD_EDGE)
    road = channel(layout(scene), "road")
    assert road[50, 64] == 255
    assert road[31].max() == 0


def test_a_crosswalk_is_filled_between_its_sides() -> None:
    """Brought to x = 10 to 14, 9.4 to 13.4 m before the camera: rows 32 + 102.4 / 13.4 = 39.6 to 42.9, whichever way it turns."""
    scene = only(straight_road())
    is_crosswalk = scene.polyline_kind == PolylineKind.CROSSWALK
    polyline = scene.polyline.clone()
    polyline[is_crosswalk, :, 0] -= 48.0
    crosswalk = channel(layout(replace(scene, polyline=polyline)), "crosswalk")
    assert (crosswalk[40:42, 56:70] == 255).all()
    assert rectangle(crosswalk[:, 64:65] > 0)[:2] == [39, 42]
    assert crosswalk[40:42, :25].max() == 0
    polyline[is_crosswalk, :5] = polyline[is_crosswalk, :5].flip(1)
    assert torch.equal(channel(layout(replace(scene, polyline=polyline)), "crosswalk"), crosswalk)


@pytest.mark.parametrize("state", SignalState)
def test_signals_show_their_state_to_their_drivers(state: SignalState) -> None:
    """The stop point is brought to x = 20.6: the board's front hangs 19.95 m away, 1.75 + 0.8 m to the right, 4 to 5 m high."""
    scene = only(straight_road())
    position = scene.signal_position.clone()
    position[..., 0] = 20.6
    scene = replace(scene, signal_position=position, signal_state=torch.full_like(scene.signal_state, int(state)))
    image, shown = layout(scene), SIGNAL_CHANNELS[state]
    scale = 64 / 19.95
    row, column = 32 + scale * (1.6 - 4.5), 64 + scale * (0.5 * LANE_WIDTH + 0.8)
    assert channel(image, shown)[int(row), int(column)] == 255
    for name in SIGNAL_CHANNELS[1:]:
        assert channel(image, name).any() == (name == shown and state != SignalState.UNKNOWN)
    assert channel(image, "signal_off")[32, int(column)] == 255  # the pole
    away = replace(scene, signal_heading=scene.signal_heading + math.pi)
    assert not any(channel(layout(away), name).any() for name in SIGNAL_CHANNELS[1:])


def test_signals_of_one_stop_point_hang_side_by_side() -> None:
    scene = straight_road()
    twice = replace(
        scene,
        **{
            name: getattr(scene, name).repeat_interleave(2, dim=1)
            for name in ("signal_position", "signal_lane", "signal_heading", "signal_state", "signal_valid")
        },
    )
    place, heading, pole = signal_boards(twice)
    assert torch.allclose(place[0], torch.tensor([[80.0, -2.55], [80.0, -3.05]]))
    assert pole.tolist() == [[True, False]]
    assert heading.tolist() == [[0.0, 0.0]]


def test_a_scene_has_the_same_layout_alone_and_in_a_batch() -> None:
    scene = several_roads(4)
    bare = replace(without_lines(scene.take([1]), PolylineKind.LANE_MARKING), id=("bare",))
    batch = stack([scene, bare, scene.pad({"L": 40, "A": 9, "S": 3}).take([0, 0, 0])])
    for rig in (FRONT, RIGS["surround"]):
        together = layout(batch, rig)
        for row in range(5):
            alone = scene.take([row]) if row < 4 else bare
            assert torch.equal(layout(alone, rig)[0], together[row])


@given(angle=st.floats(-math.pi, math.pi), x=st.floats(-500.0, 500.0), y=st.floats(-500.0, 500.0))
@settings(deadline=None, max_examples=25)
def test_moving_the_world_changes_nothing(angle: float, x: float, y: float) -> None:
    scene = straight_road(leader_gap=15.0)
    here, there = layout(scene).int(), layout(moved(scene, angle, (x, y))).int()
    differs = (here - there).abs() > 12
    assert differs.float().mean().item() < 0.002  # pixels on the rim of a box may flip


def test_an_empty_scene_is_ground_and_sky() -> None:
    scene = only(straight_road())
    bare = replace(
        scene,
        polyline_valid=torch.zeros_like(scene.polyline_valid),
        signal_valid=torch.zeros_like(scene.signal_valid),
    )
    image = layout(bare, RIGS["surround"])
    assert image.shape == (1, 6, 64, 128, len(LAYOUT_CHANNELS))
    assert not image[..., :-1].any()
    assert image[..., 32:, :, -1].all()


def test_a_box_beside_the_camera_is_seen_by_the_one_that_looks_there() -> None:
    """The neighbour is brought to x = 0.75 to 5.25: 2.6 m from the left camera, its rear beside the front one."""
    scene = only(straight_road(), NEIGHBOUR)
    position = scene.position.clone()
    position[0, NEIGHBOUR, HISTORY_STEPS, :2] = torch.tensor([3.0, LANE_WIDTH])
    rig = Rig((Camera(), Camera(yaw=0.5 * math.pi), Camera(yaw=-0.5 * math.pi)), ("front", "left", "right"))
    image = layout(replace(scene, position=position), rig)
    assert layout_depth(image)[0, 1, 34, 80].item() == pytest.approx(2.6, rel=0.01)
    assert channel(image, "side", 1)[34, 80] == 255
    assert not channel(image, "vehicle", 2).any()
    assert channel(image, "vehicle", 0)[:, :30].any()  # it reaches into the view, up to 4.65 m ahead
    assert not channel(image, "vehicle", 0)[:, 64:].any()


def test_pictures_for_people() -> None:
    scene = straight_road(leader_gap=15.0)
    picture = layout_picture(layout(scene))
    assert picture.shape == (1, 1, 64, 128, 3)
    assert picture.dtype == torch.uint8
    sky, rear = picture[0, 0, 2, 64].int(), picture[0, 0, 36, 64].int()
    assert rear[0] > rear[1] + 40  # the leader's rear is reddish
    assert sky.max() < 30
    with pytest.raises(ValueError, match=f"wanted {len(LAYOUT_CHANNELS)}"):
        layout_picture(layout(scene)[..., :4])
