"""The 3-D renderer: distances, labels and masks that can be worked out by hand, and what must not change them."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scenes import CONE, EGO, LEADER, PEDESTRIAN, several_roads, straight_road
from worldloop.agents.cli import main
from worldloop.worldmodel.rig import APPEARANCES, RIGS, Camera, Rig
from worldloop.worldmodel.scene import AgentKind, Scene
from worldloop.worldmodel.world import State, logged_state

try:
    from worldloop.renderers.lidar import Lidar, sweep
    from worldloop.renderers.meshes import Semantic
    from worldloop.renderers.scene3d import SceneRenderer
except ImportError as absent:
    pytest.skip(str(absent), allow_module_level=True)

AHEAD = Rig((Camera(64, 32, (32.0, 32.0), position=(0.6, 0.0, 1.6)),))


def state_of(scene: Scene) -> State:
    return logged_state(scene, torch.zeros(len(scene), dtype=torch.int64))


def with_box(gap: float, width: float = 4.0, height: float = 3.0) -> Scene:
    """The straight road, its leader turned into a standing block whose back is `gap` m ahead of the ego's middle."""
    scene = straight_road()
    size, kind, position = scene.size.clone(), scene.kind.clone(), scene.position.clone()
    size[0, LEADER], kind[0, LEADER] = torch.tensor([1.0, width, height]), int(AgentKind.OBJECT)
    position[0, LEADER, :, :2] = torch.tensor([gap + 0.5, 0.0])
    valid = scene.valid.clone()
    valid[0, [i for i in range(6) if i not in (EGO, LEADER)]] = False
    return replace(scene, size=size, kind=kind, position=position, valid=valid)


@pytest.fixture(scope="module")
def renderer() -> SceneRenderer:
    return SceneRenderer(AHEAD)


def test_a_box_ahead_has_the_depth_of_its_back(renderer: SceneRenderer) -> None:
    frames = renderer.draw(state_of(with_box(10.6)))
    assert frames.depth[0, 0, 15:17, 31:33].numpy() == pytest.approx(10.0, abs=1e-4)
    assert (frames.instance[0, 0, 15:17, 31:33] == LEADER + 1).all()
    assert (frames.semantic[0, 0, 15:17, 31:33] == Semantic.OBJECT).all()


def test_the_ground_has_its_depth_and_class(renderer: SceneRenderer) -> None:
    """Row 31's middle looks down by 15.5 / 32: it meets the ground 1.6 * 32 / 15.5 m ahead."""
    frames = renderer.draw(state_of(with_box(60.0)))
    assert frames.depth[0, 0, 31].numpy() == pytest.approx(1.6 * 32 / 15.5, abs=1e-4)
    classes = frames.semantic[0, 0, 31]
    assert classes[32] == Semantic.ROAD
    to_the_right = [Camera(64, 32, (32.0, 32.0), position=(0.6, y, 1.6), yaw=-0.5 * math.pi) for y in (0.0, 2.5)]
    right = renderer.draw(state_of(with_box(60.0)), Rig(tuple(to_the_right), ("middle", "left")))
    point = torch.tensor([[0.0], [2.5]]) - right.depth[0, :, :, 32]  # y of what the middle columns meet
    paved = (point < -1.75 - 0.4) & (point > -1.75 - 2.8)
    assert paved.any()
    assert (right.semantic[0, :, :, 32][paved] == Semantic.PAVEMENT).all()
    assert set(right.semantic[0, :, :, 32][point > -1.5].tolist()) == {Semantic.ROAD}


def test_sky_is_infinitely_far(renderer: SceneRenderer) -> None:
    frames = renderer.draw(state_of(straight_road()))
    assert ((frames.semantic == Semantic.SKY) == frames.depth.isinf()).all()
    assert (frames.semantic == Semantic.SKY).any()


def test_an_instance_fills_its_projected_box() -> None:
    rig = Rig((Camera(320, 160, (160.0, 160.0), position=(0.6, 0.0, 1.6)),))
    state = state_of(with_box(9.5, width=2.0, height=2.0))
    mask = SceneRenderer(rig).draw(state).instance[0, 0] == LEADER + 1
    corner = torch.tensor([[x, y, z] for x in (9.5, 10.5) for y in (-1.0, 1.0) for z in (0.0, 2.0)])
    pixel = rig.project(corner)[0][0]
    rows, columns = mask.nonzero(as_tuple=True)
    found = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
    assert (found - torch.cat((pixel.amin(0), pixel.amax(0)))).abs().max() <= 1.5


@pytest.mark.parametrize("agent", [LEADER, PEDESTRIAN, CONE])
def test_road_users_stay_within_their_boxes(renderer: SceneRenderer, agent: int) -> None:
    scene = straight_road()
    stage = renderer.stages(scene)[0]
    own = (stage.owner == agent) & (torch.arange(len(stage.owner)) >= stage.still) & (stage.part != 10)
    corner = stage.corner[own].reshape(-1, 3)
    limit = torch.cat((0.5 * scene.size[0, agent, :2], scene.size[0, agent, 2:]))
    assert (corner.abs().amax(0) <= limit + 0.02).all()
    assert (corner.abs().amax(0) >= 0.9 * limit).all()


def test_same_state_same_bits_and_a_row_is_the_same_alone() -> None:
    scenes = several_roads(3)
    state = state_of(scenes)
    rig = RIGS["front3"].resized(48, 24)
    frames, again = (SceneRenderer(rig, "rain").draw(state) for _ in range(2))
    alone = SceneRenderer(rig, "rain").draw(state.take([1]))
    for name in ("colour", "depth", "semantic", "instance"):
        assert torch.equal(getattr(frames, name), getattr(again, name))
        assert torch.equal(getattr(frames, name)[1:2], getattr(alone, name))
    sight = SceneRenderer(rig, "rain").begin(state)
    assert torch.equal(sight.frame, frames.colour)
    assert sight.frame.shape == (3, 3, 24, 48, 3)


def test_appearance_changes_colours_alone(renderer: SceneRenderer) -> None:
    state = state_of(straight_road()).repeat(len(APPEARANCES))
    frames = renderer.draw(state, appearances=APPEARANCES)
    for row in range(1, len(APPEARANCES)):
        assert torch.equal(frames.depth[0], frames.depth[row])
        assert torch.equal(frames.semantic[0], frames.semantic[row])
        assert (frames.colour[0] != frames.colour[row]).float().mean() > 0.5
    mean = frames.colour.float().mean(dim=(1, 2, 3, 4))
    assert mean[APPEARANCES.index("night")] < 0.5 * mean[APPEARANCES.index("day")]
    with pytest.raises(ValueError, match="snow"):
        renderer.draw(state, appearances=["snow"] * len(state))


def test_shadows_darken_and_supersampling_keeps_labels_at_home() -> None:
    state = state_of(with_box(10.6))
    plain, shaded, fine = (
        SceneRenderer(AHEAD, supersample=times, shadows=shadows).draw(state)
        for times, shadows in ((1, False), (1, True), (3, False))
    )
    assert shaded.colour.float().mean() < plain.colour.float().mean()
    assert torch.equal(fine.semantic, plain.semantic)
    assert torch.allclose(fine.depth, plain.depth, atol=1e-3)


def test_the_ego_is_seen_from_outside_alone(renderer: SceneRenderer) -> None:
    state = state_of(straight_road())
    chase = Rig((Camera(64, 32, (32.0, 32.0), position=(-8.0, 0.0, 3.0), pitch=0.2),))
    assert (renderer.draw(state, chase).instance == EGO + 1).any()
    assert not (renderer.draw(state).instance == EGO + 1).any()


def test_a_signal_shows_its_state() -> None:
    """The board stands at x = 80, 0.5 * 3.5 + 0.8 m to the right of the lane, its middle 4.5 m up."""
    scene = straight_road()
    position = scene.position.clone()
    position[0, EGO, :, 0] += 70.0
    rig = Rig((Camera(65, 65, (400.0, 400.0), position=(0.0, -2.55, 4.5)),))
    state = state_of(replace(scene, position=position))
    drawn = SceneRenderer(rig)
    for shown, where in ((1, 0.31), (3, -0.31)):
        frames = drawn.draw(replace(state, signal_state=torch.full_like(state.signal_state, shown)))
        assert frames.semantic[0, 0, 32, 32] == Semantic.SIGNAL
        assert frames.depth[0, 0, 32, 32] == pytest.approx(10.0, abs=0.15)
        row = int(32.5 - 400 * where / 10)
        colour = frames.colour[0, 0, row, 32].int()
        assert colour[0 if shown == 1 else 1] > colour[1 if shown == 1 else 0] + 60


def test_lidar_ranges_to_a_wall_and_the_ground(renderer: SceneRenderer) -> None:
    state = state_of(with_box(20.0, width=6.0, height=5.0))
    lidar = Lidar(beams=3, lowest=-10.0, highest=10.0, steps=4, position=(0.0, 0.0, 2.0))
    (found,) = sweep(renderer, state, lidar)
    ahead = {int(ray): float(value) for ray, value in zip(found.ray, found.range, strict=True) if ray < 3}
    assert ahead[0] == pytest.approx(2.0 / math.sin(math.radians(10.0)), abs=1e-3)
    assert ahead[1] == pytest.approx(20.0, abs=1e-3)
    wall = found.ray == 1
    assert found.point[wall][0].tolist() == pytest.approx([20.0, 0.0, 2.0], abs=1e-3)
    assert int(found.instance[wall]) == LEADER + 1
    assert int(found.semantic[found.ray == 0]) in (Semantic.ROAD, Semantic.MARKING)


def test_lidar_noise_and_dropout_have_their_size(renderer: SceneRenderer) -> None:
    state = state_of(with_box(20.0))
    lidar = Lidar(beams=16, steps=720, noise=0.1, dropout=0.25)
    (clean,) = sweep(renderer, state, lidar)
    (noisy,) = sweep(renderer, state, lidar, torch.Generator().manual_seed(1))
    (same,) = sweep(renderer, state, lidar, torch.Generator().manual_seed(1))
    assert torch.equal(noisy.point, same.point)
    assert len(noisy.ray) / len(clean.ray) == pytest.approx(0.75, abs=0.02)
    where = torch.searchsorted(clean.ray, noisy.ray)
    error = noisy.range - clean.range[where]
    assert float(error.std()) == pytest.approx(0.1, abs=0.01)
    assert float(error.mean()) == pytest.approx(0.0, abs=0.01)
    assert clean.range.max() <= lidar.reach


def test_nothing_is_built_on_the_road() -> None:
    """The road's own lanes, 3.5 m wide each, hold no building, tree or lamp below 5 m."""
    stage = SceneRenderer(AHEAD).stages(straight_road())[0]
    corner = stage.corner[: stage.still].reshape(-1, 3)
    on_road = (corner[:, 0].abs() < 55.0) & (corner[:, 1] > -1.7) & (corner[:, 1] < 5.2) & (corner[:, 2] < 5.0)
    assert not on_road.any()
    assert {Semantic.BUILDING, Semantic.VEGETATION, Semantic.POLE} <= {
        Semantic(v) for v in stage.semantic[: stage.still].tolist()
    }


def test_view_writes_its_files(tmp_path: Path) -> None:
    out = tmp_path / "view"
    words = ["view", "--world", "replay", "--limit", "1", "--horizon", "2", "--width", "32", "--height", "24"]
    assert main([*words, "--camera", "chase", "cockpit", "orbit", "rig:front3", "--supersample", "1", "--out", str(out)]) == 0
    films = {"chase.mp4", "cockpit.mp4", "orbit.mp4", "front3.mp4"}
    assert {path.name for path in out.iterdir()} >= {"run.json", "view.png", *films}
    assert main(["view", "--camera", "nowhere", "--out", str(tmp_path / "other")]) == 2
