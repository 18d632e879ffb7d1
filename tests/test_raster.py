import math
from dataclasses import replace

import pytest
import torch
from scenes import LANE_WIDTH, LEADER, moved, several_roads, straight_road
from worldloop.worldmodel.geometry import to_local
from worldloop.worldmodel.raster import CHANNELS, ImageGrid, bird_eye_image, lowest, nearest_pieces, road_pieces
from worldloop.worldmodel.scene import PolylineKind, Scene, stack
from worldloop.worldmodel.world import logged_state

GRID = ImageGrid(height=80, width=80, metres_per_pixel=0.5)


def image(scene: Scene, grid: ImageGrid = GRID) -> torch.Tensor:
    state = logged_state(scene, torch.zeros(len(scene), dtype=torch.int64))
    return bird_eye_image(
        scene, road_pieces(scene), state.position, state.heading, state.valid, state.signal_state, state.signal_valid, grid
    )


def channel(picture: torch.Tensor, name: str) -> torch.Tensor:
    return picture[0, ..., CHANNELS.index(name)]


def test_pieces_are_evenly_sampled_and_cover_the_map():
    pieces = road_pieces(straight_road())
    kinds = pieces.kind[pieces.valid]
    assert (kinds == PolylineKind.LANE).sum() == 2 * 11  # 260 m in pieces of at most 25 m
    step = (pieces.point[:, :, 1:] - pieces.point[:, :, :-1]).norm(dim=-1)[pieces.valid]
    torch.testing.assert_close(step[kinds == PolylineKind.LANE], torch.full((22, 9), 260 / 11 / 9), atol=1e-3, rtol=0)
    lane = pieces.point[0, pieces.valid[0] & (pieces.polyline[0] == 0)]
    assert lane[..., 0].min().item() == pytest.approx(-60.0)
    assert lane[..., 0].max().item() == pytest.approx(200.0)


def test_a_scene_without_a_map_has_no_pieces():
    scene = straight_road()
    bare = Scene(
        **{
            **vars(scene),
            "polyline_valid": torch.zeros_like(scene.polyline_valid),
        }
    )
    pieces = road_pieces(bare)
    assert pieces.valid.shape == (1, 1)
    assert not pieces.valid.any()
    assert not nearest_pieces(pieces, torch.zeros(1, 2), 5, 100.0)[1].any()


def test_the_nearest_pieces_come_first_and_only_within_the_radius():
    pieces = road_pieces(straight_road())
    index, found = nearest_pieces(pieces, torch.tensor([[0.0, 0.0]]), 40, 30.0)
    middle = pieces.point[0, index[0, found[0]]]
    distance = middle.norm(dim=-1).amin(dim=-1)
    assert (distance < 30.0 + 3.0).all()
    assert (distance.diff() > -3.0).all()  # sampled points lie up to 2.6 m apart
    assert 10 < found.sum() < 40
    edges, found = nearest_pieces(pieces, torch.tensor([[0.0, 0.0]]), 4, 30.0, [PolylineKind.ROAD_EDGE])
    assert (pieces.kind[0, edges[0, found[0]]] == PolylineKind.ROAD_EDGE).all()


def test_of_equals_the_first_comes_first_however_many_there_are():
    rank = torch.tensor([[2.0, 1.0, torch.inf, 1.0, 2.0]])
    for width in (5, 9, 5000):
        index, found = lowest(torch.nn.functional.pad(rank, (0, width - 5), value=torch.inf), 6)
        assert index.tolist() == [[1, 3, 0, 4, 0, 0]]
        assert found.tolist() == [[True] * 4 + [False] * 2]
    assert lowest(rank, 3)[0].tolist() == [[1, 3, 0]]
    assert not lowest(rank[:, :0], 3)[1].any()


def test_the_ego_stands_in_the_middle_and_looks_up():
    ego = channel(image(straight_road()), "ego").nonzero()
    assert ego.min(dim=0).values.tolist() == pytest.approx([40 - 4.5, 40 - 1.8], abs=1.0)  # half of 4.5 m and of 1.8 m
    assert ego.max(dim=0).values.tolist() == pytest.approx([39 + 4.5, 39 + 1.8], abs=1.0)


def test_what_is_ahead_is_up_and_what_is_left_is_left():
    picture = image(straight_road(leader_gap=15.0))
    vehicles = channel(picture, "vehicles")
    assert vehicles[40 - 30, 40] == 255  # the leader, 15 m ahead
    assert vehicles[40 - 20, 40 - 7] == 255  # the neighbour, 10 m ahead, one lane to the left
    assert vehicles[40, 40] == 0  # the ego is not among them
    assert channel(picture, "route")[10:30, 39:41].any(dim=1).all()


def test_roads_are_filled_and_edged():
    picture = image(straight_road())
    road, lines = channel(picture, "road"), channel(picture, "lines")
    inside = road[:, 40 - 9 : 40 + 3]  # from 0.5 m inside the left edge to 0.5 m inside the right one
    assert (inside == 255).all()
    assert (road[:, : 40 - 12] == 0).all()
    assert (lines[:, 40 - math.ceil(1.5 * LANE_WIDTH / 0.5)] == 255).any()
    assert ((lines == 128).sum(dim=1) >= 1).all()  # the marking between the lanes has no gaps


def test_a_signal_that_says_stop_is_bright():
    wide = ImageGrid(height=120, width=40, metres_per_pixel=1.0, ahead=40.0)
    signals = channel(image(straight_road(), wide), "signals")
    assert signals[60 - 40, 20] == 255  # 80 m ahead of the ego, 40 m ahead of the middle


def boxed(size: tuple[float, float], turn: float, at: tuple[float, float] = (6.0, -4.0)) -> Scene:
    """A road on which there is nobody but the ego and the leader, with a box of this size, turned, at this place."""
    scene = straight_road()
    boxes, heading, position, valid = (getattr(scene, name).clone() for name in ("size", "heading", "position", "valid"))
    boxes[0, LEADER, :2], heading[0, LEADER], position[0, LEADER, :, :2] = torch.tensor(size), turn, torch.tensor(at)
    valid[0, LEADER + 1 :] = False
    return replace(scene, size=boxes, heading=heading, position=position, valid=valid)


@pytest.mark.parametrize("turn", [0.0, 0.3, math.pi / 4, 2.0])
@pytest.mark.parametrize("size", [(23.6, 5.73), (4.8, 2.0), (0.5, 0.5), (19.0, 12.0), (120.0, 30.0), (1e6, 3.0)])
def test_boxes_have_no_holes_and_no_rim(size: tuple[float, float], turn: float):
    picture = channel(image(boxed(size, turn)), "vehicles") == 255
    corner = (torch.arange(81.0) - 40) * 0.5
    point = torch.stack(torch.meshgrid(-corner, -corner, indexing="ij"), dim=-1)  # x and y at the corners of pixels
    local = to_local(point, torch.tensor([6.0, -4.0]), torch.tensor(turn)).abs()
    beyond = (local - 0.5 * torch.tensor(size)).amax(dim=-1)  # metres out of the box, at most
    every = torch.stack((beyond[:-1, :-1], beyond[1:, :-1], beyond[:-1, 1:], beyond[1:, 1:]))
    within, without = (every < -1e-3).all(dim=0), (every > 0.5 * math.sqrt(2)).all(dim=0)
    assert picture[within].all()
    assert not picture[without].any()
    assert picture.any()


def test_boxes_that_lie_elsewhere_or_nowhere_are_not_drawn():
    assert not channel(image(boxed((23.6, 5.73), 0.3, at=(500.0, 0.0))), "vehicles").any()
    scene = boxed((23.6, 5.73), 0.3)
    assert not channel(image(replace(scene, valid=scene.valid & (torch.arange(6) != LEADER)[:, None])), "vehicles").any()


def test_a_scene_has_the_same_image_beside_one_with_huge_boxes():
    roads = several_roads(2)
    huge = replace(boxed((1e4, 40.0), 0.4), id=("hand/huge",))
    together = image(stack([roads, huge]))
    for row, scene in enumerate((roads.take([0]), roads.take([1]), huge)):
        assert torch.equal(image(scene)[0], together[row])


def test_a_turned_scene_gives_nearly_the_same_image():
    scene = several_roads(2)
    here, there = image(scene), image(moved(scene, 1.0, (300.0, -100.0)))
    assert (here != there).float().mean().item() < 0.02  # pixels on the rim of something may flip


def test_a_scene_has_the_same_image_alone_and_in_a_batch():
    scene = several_roads(4)
    together = image(scene)
    for row in range(4):
        assert torch.equal(image(scene.take([row]))[0], together[row])
