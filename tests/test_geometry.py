"""Frames, boxes and polylines: invariants that hold for whatever numbers come, and cases that are worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from worldloop.worldmodel.geometry import (
    box_corners,
    boxes_overlap,
    overlap_times,
    point_on_polyline,
    polyline_direction,
    project_on_polyline,
    rotate,
    signed_distance_to_edges,
    to_global,
    to_local,
    wrap_angle,
)

ANGLES = st.floats(-20.0, 20.0, width=32)
METRES = st.floats(-100.0, 100.0, width=32)
PLACES = st.tuples(METRES, METRES).map(torch.tensor)
SIZES = st.tuples(st.floats(0.5, 20.0, width=32), st.floats(0.5, 5.0, width=32)).map(torch.tensor)

CORNER = torch.tensor([[0.0, 0.0], [10.0, 0.0], [10.0, 10.0], [0.0, 0.0]])
"""10 m along +x, then 10 m along +y; the last row is padding."""
CORNER_VALID = torch.tensor([True, True, True, False])


@st.composite
def courses(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """A polyline (P, 2) that bends by less than 0.3 rad at every point, steps of 1 to 10 m, padded; and its mask (P,)."""
    steps = draw(st.lists(st.tuples(st.floats(1.0, 10.0, width=32), st.floats(-0.25, 0.25, width=32)), min_size=1, max_size=8))
    length, bend = torch.tensor(steps).unbind(-1)
    heading = draw(ANGLES) + bend.cumsum(0)
    walk = torch.stack((length * heading.cos(), length * heading.sin()), dim=-1).cumsum(0)
    padding = draw(st.integers(0, 3))
    points = draw(PLACES) + torch.cat((torch.zeros(1, 2), walk, torch.zeros(padding, 2)))
    return points, torch.arange(len(points)) <= len(steps)


@given(ANGLES)
@settings(deadline=None)
def test_a_wrapped_angle_points_the_same_way(angle: float):
    wrapped = wrap_angle(torch.tensor(angle))
    assert -math.pi <= wrapped.item() <= math.pi
    assert math.cos(wrapped.item() - angle) == pytest.approx(1.0, abs=1e-5)


def test_half_a_turn_is_wrapped_to_the_right():
    assert wrap_angle(torch.tensor([math.pi, -math.pi, 3 * math.pi])).tolist() == pytest.approx([-math.pi] * 3, abs=1e-5)


@given(PLACES, PLACES, ANGLES)
@settings(deadline=None)
def test_local_and_global_are_inverse_and_keep_lengths(point: Tensor, origin: Tensor, heading: float):
    turn = torch.tensor(heading)
    local = to_local(point, origin, turn)
    torch.testing.assert_close(to_global(local, origin, turn), point, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(local.norm(), (point - origin).norm(), atol=1e-4, rtol=1e-4)


def test_local_is_ahead_and_left_by_hand():
    north = torch.tensor(math.pi / 2)
    torch.testing.assert_close(rotate(torch.tensor([1.0, 0.0]), north), torch.tensor([0.0, 1.0]), atol=1e-6, rtol=0)
    seen = to_local(torch.tensor([2.0, 7.0]), torch.tensor([3.0, 4.0]), north)
    torch.testing.assert_close(seen, torch.tensor([3.0, 1.0]), atol=1e-6, rtol=0)


@given(PLACES, ANGLES, SIZES)
@settings(deadline=None)
def test_corners_lie_at_half_the_diagonal_counter_clockwise(place: Tensor, heading: float, size: Tensor):
    corner = box_corners(place, torch.tensor(heading), size)
    torch.testing.assert_close((corner - place).norm(dim=-1), (size.norm() / 2).expand(4), atol=1e-3, rtol=1e-3)
    side = corner.roll(-1, dims=0) - corner
    torch.testing.assert_close(side.norm(dim=-1), size.repeat(2), atol=1e-3, rtol=1e-3)
    turned = corner[:, 0] * corner.roll(-1, dims=0)[:, 1] - corner[:, 1] * corner.roll(-1, dims=0)[:, 0]
    assert turned.sum() / 2 == pytest.approx(size.prod().item(), rel=2e-2, abs=2e-2)  # the shoelace formula


@given(PLACES, ANGLES, SIZES, ANGLES, SIZES, st.floats(0.0, 1.0), st.floats(-math.pi, math.pi))
@settings(deadline=None)
def test_boxes_overlap_where_they_must_and_not_where_they_cannot(place, turn, size, other_turn, other_size, share, way):
    """Within the smaller half widths they must; beyond half of both diagonals they cannot; either way round."""
    direction = torch.tensor([math.cos(way), math.sin(way)])
    box = box_corners(place, torch.tensor(turn), size)
    must = 0.49 * (size.min() + other_size.min()) * share
    cannot = 0.51 * (size.norm() + other_size.norm()) + share
    for distance, wanted in ((must, True), (cannot, False)):
        other = box_corners(place + distance * direction, torch.tensor(other_turn), other_size)
        assert boxes_overlap(box, other).item() is wanted
        assert boxes_overlap(other, box).item() is wanted


def test_boxes_that_touch_do_not_overlap():
    here, size, ahead = torch.zeros(2), torch.tensor([4.0, 2.0]), torch.tensor(0.0)
    boxes = [box_corners(torch.tensor([x, 0.0]), ahead, size) for x in (3.75, 4.0, 4.25)]
    assert [boxes_overlap(box_corners(here, ahead, size), box).item() for box in boxes] == [True, False, False]


@given(PLACES, ANGLES, SIZES, PLACES, ANGLES, SIZES, PLACES, st.floats(-2.0, 2.0))
@settings(deadline=None)
def test_boxes_overlap_between_the_times_that_are_told(place, turn, size, other, other_turn, other_size, velocity, late):
    box, moving = (box_corners(p, torch.tensor(t), s) for p, t, s in ((place, turn, size), (other, other_turn, other_size)))
    first, last = overlap_times(box, moving, velocity)
    if abs(late - first.item()) > 1e-2 and abs(late - last.item()) > 1e-2:
        assert boxes_overlap(box, moving + late * velocity).item() == bool(first < late < last)


def test_when_a_box_passes_by_hand():
    size, ahead = torch.tensor([4.0, 2.0]), torch.tensor(0.0)
    here, there = box_corners(torch.zeros(2), ahead, size), box_corners(torch.tensor([24.0, 1.0]), ahead, size)
    first, last = overlap_times(here, there, torch.tensor([-10.0, 0.0]))
    assert (first.item(), last.item()) == pytest.approx((2.0, 2.8))  # 20 m and 28 m at 10 m/s
    first, last = overlap_times(here, there, torch.tensor([0.0, 0.0]))
    assert first >= last


@given(courses(), st.floats(0.0, 1.0), st.floats(-1.0, 1.0))
@settings(deadline=None)
def test_a_point_beside_a_polyline_is_found_again(course: tuple[Tensor, Tensor], share: float, beside: float):
    """What lies beside the middle of a segment, nearer than any bend reaches, is found there: at that arc, offset and heading."""
    points, valid = course
    step = (points[1:] - points[:-1])[valid[1:]]
    length = step.norm(dim=-1)
    segment = min(int(share * len(length)), len(length) - 1)
    arc = length[:segment].sum() + 0.5 * length[segment]
    offset = torch.tensor(beside) * 0.3 * length[segment]
    point, heading = point_on_polyline(arc[None], points, valid)
    torch.testing.assert_close(point[0], points[segment] + 0.5 * step[segment], atol=1e-3, rtol=1e-4)
    left = torch.stack((-heading.sin(), heading.cos()), dim=-1)
    found = project_on_polyline(point + offset * left, points, valid)
    for value, wanted in zip(found, (arc, offset, heading[0]), strict=True):
        torch.testing.assert_close(value[0], wanted, atol=2e-3, rtol=1e-3)


@given(courses(), st.floats(0.1, 50.0))
@settings(deadline=None)
def test_a_polyline_goes_on_straight_beyond_its_ends(course: tuple[Tensor, Tensor], beyond: float):
    points, valid = course
    end = int(valid.sum()) - 1
    length = (points[1 : end + 1] - points[:end]).norm(dim=-1).sum()
    place, heading = point_on_polyline(torch.stack((torch.tensor(-beyond), length + beyond)), points, valid)
    for row, (vertex, sign) in enumerate(((points[0], -1.0), (points[end], 1.0))):
        direction = torch.stack((heading[row].cos(), heading[row].sin()))
        torch.testing.assert_close(place[row], vertex + sign * beyond * direction, atol=1e-2, rtol=1e-3)


def test_points_of_a_corner_by_hand():
    place, heading = point_on_polyline(torch.tensor([-2.0, 4.0, 10.0, 15.0, 25.0]), CORNER, CORNER_VALID)
    torch.testing.assert_close(place, torch.tensor([[-2.0, 0.0], [4.0, 0.0], [10.0, 0.0], [10.0, 5.0], [10.0, 15.0]]))
    north = math.pi / 2
    assert heading.tolist() == pytest.approx([0.0, 0.0, north, north, north])
    arc, offset, heading = project_on_polyline(torch.tensor([[4.0, 1.0], [12.0, 6.0], [-3.0, -2.0]]), CORNER, CORNER_VALID)
    assert arc.tolist() == pytest.approx([4.0, 16.0, -3.0])
    assert offset.tolist() == pytest.approx([1.0, -2.0, -2.0])
    assert heading.tolist() == pytest.approx([0.0, north, 0.0])


@given(courses(), ANGLES)
@settings(deadline=None)
def test_directions_lead_from_point_to_point_and_turn_with_the_line(course: tuple[Tensor, Tensor], turn: float):
    points, valid = course
    last = int(valid.sum()) - 1
    direction = polyline_direction(points, valid)
    step = points[1 : last + 1] - points[:last]
    unit = torch.stack((direction.cos(), direction.sin()), dim=-1)
    torch.testing.assert_close(unit[:last], step / step.norm(dim=-1, keepdim=True), atol=1e-4, rtol=1e-4)
    assert (direction[last:] == direction[last - 1]).all()  # the last point, and what is padded, look like the one before
    turned = polyline_direction(rotate(points, torch.tensor(turn)), valid)
    assert wrap_angle(turned - direction - turn).abs().max() < 1e-2


@given(courses(), st.floats(0.0, 1.0), st.floats(0.1, 1.0), st.booleans())
@settings(deadline=None)
def test_the_road_lies_on_the_left_of_its_edge(course: tuple[Tensor, Tensor], share: float, away: float, on_road: bool):
    points, valid = course
    step = (points[1:] - points[:-1])[valid[1:]]
    segment = min(int(share * len(step)), len(step) - 1)
    distance = 0.3 * away * step[segment].norm()
    left = rotate(step[segment] / step[segment].norm(), torch.tensor(math.pi / 2))
    point = points[segment] + 0.5 * step[segment] + (distance if on_road else -distance) * left
    found = signed_distance_to_edges(point[None], points[None], valid[None])
    torch.testing.assert_close(found[0], -distance if on_road else distance, atol=2e-3, rtol=1e-3)


def test_a_corner_of_the_road_by_hand():
    point = torch.tensor([[4.0, 1.0], [4.0, -1.0], [13.0, -4.0], [11.0, 6.0]])
    found = signed_distance_to_edges(point, CORNER[None], CORNER_VALID[None])
    assert found.tolist() == pytest.approx([-1.0, 1.0, 5.0, 1.0])
    assert signed_distance_to_edges(point, CORNER[None], CORNER_VALID[None] & False).tolist() == [-math.inf] * 4
