"""The 3-D renderer: distances, labels and masks that can be worked out by hand, and what must not change them."""

import math
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import shapely
import torch
import worldloop.envs  # noqa: F401
from scenes import CONE, EGO, LEADER, PEDESTRIAN, several_roads, straight_road
from worldloop.agents.cli import main
from worldloop.worldmodel.perspective import LAYOUT_CHANNELS, perspective_layout, signal_boards
from worldloop.worldmodel.raster import road_pieces
from worldloop.worldmodel.rig import APPEARANCES, RIGS, Camera, Rig
from worldloop.worldmodel.scene import AgentKind, Scene, SignalState
from worldloop.worldmodel.world import State, logged_state

try:
    from worldloop.envs.sensors import FARTHEST, SHOWN, SensorObservation
    from worldloop.renderers import scene3d_gl
    from worldloop.renderers.lidar import Lidar, sweep
    from worldloop.renderers.meshes import Part, Semantic
    from worldloop.renderers.scene3d import SceneRenderer
    from worldloop.renderers.scenery import _views, build_scenery
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


def test_nothing_stands_between_drivers_and_their_signal() -> None:
    """The lane is 3.5 m wide, its signal hangs 0.8 m beside it: lamps and trees along the road leave the way to it open."""
    scene = straight_road()
    view = _views(scene, 0, signal_boards(scene))
    board, driver = shapely.Point(80.0, -1.75 - 0.8), shapely.Point(80.0 - 45.0, 0.0)
    assert view.covers(shapely.LineString([board, driver]))
    assert not view.intersects(shapely.Point(80.0 - 45.0, -2.0))
    scenery = build_scenery(scene, 0)
    standing = scenery.mesh.corner[np.isin(scenery.mesh.part, [int(Part.POLE), int(Part.LEAF)])]
    feet = standing[(standing[..., 2] < 0.1).any(-1)][..., :2].reshape(-1, 2)
    others = feet[np.hypot(*(feet - [80.0, -2.55]).T) > 1.0]  # all but the signal's own pole
    assert len(others)
    assert not shapely.contains_xy(view, *others.T).any()


def test_signals_of_one_stop_point_hang_as_in_the_layout() -> None:
    """The second signal is for the way more to the left: its board is the left one, in the layout as in the picture."""
    scene = straight_road()
    position, twice = scene.position.clone(), lambda values: values.repeat_interleave(2, dim=1)
    position[0, EGO, :, 0] += 76.0  # a street lamp's pole is farther back
    names = ("signal_position", "signal_heading", "signal_state", "signal_valid")
    both = {name: twice(getattr(scene, name)) for name in names}
    state = state_of(replace(scene, position=position, signal_lane=torch.tensor([[0, 1]]), **both))
    state = replace(state, signal_state=torch.tensor([[int(SignalState.STOP), int(SignalState.GO)]]))
    rig = Rig((Camera(65, 65, (160.0, 160.0), position=(0.0, -2.8, 4.5)),))
    layout = perspective_layout(state, road_pieces(state.scene), rig)[0, 0].float()
    off, stop, go = (layout[..., LAYOUT_CHANNELS.index(f"signal_{name}")] > 0 for name in ("off", "stop", "go"))
    frames = SceneRenderer(rig).draw(state)
    red, green = frames.colour[0, 0, ..., :2].int().unbind(-1)
    signals = frames.semantic[0, 0] == Semantic.SIGNAL
    for board, lit in ((stop, signals & (red - green > 90)), (go, signals & (green - red > 90))):
        assert board.any()
        assert lit.any()
        assert board[lit].all()
    assert stop.nonzero()[:, 1].min() > go.nonzero()[:, 1].max()
    boards = slice(0, int(stop.nonzero()[:, 0].max()) + 1)  # below hangs no board, there stand poles
    assert (signals[boards] != (off | stop | go)[boards]).sum() <= 8  # the ends of edges, at the very middle of pixels


def test_lidar_ranges_to_a_wall_and_the_ground(renderer: SceneRenderer) -> None:
    state = state_of(with_box(20.0, width=6.0, height=5.0))
    lidar = Lidar(beams=3, lowest=-10.0, highest=10.0, steps=4, noise=0.0, position=(0.0, 0.0, 2.0))
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
    (clean,) = sweep(renderer, state, replace(lidar, noise=0.0, dropout=0.0))
    (noisy,) = sweep(renderer, state, lidar)
    (later,) = sweep(renderer, replace(state, step=state.step + 1), lidar)
    assert not torch.equal(noisy.ray, later.ray)
    assert len(noisy.ray) / len(clean.ray) == pytest.approx(0.75, abs=0.02)
    where = torch.searchsorted(clean.ray, noisy.ray)
    error = noisy.range - clean.range[where]
    assert float(error.std()) == pytest.approx(0.1, abs=0.01)
    assert float(error.mean()) == pytest.approx(0.0, abs=0.01)
    assert clean.range.max() <= lidar.reach


def test_a_lidar_in_a_batch_measures_as_if_it_were_alone(renderer: SceneRenderer) -> None:
    """Noise and dropout follow from a row's key and step, not from the rows before it."""
    state = logged_state(several_roads(3), torch.tensor([5, 6, 7]))
    lidar = Lidar(beams=8, steps=90, noise=0.1, dropout=0.25)
    (alone,) = sweep(renderer, state.take([2]), lidar)
    together = sweep(renderer, state, lidar)
    for name in ("point", "range", "semantic", "instance", "ray"):
        assert torch.equal(getattr(together[2], name), getattr(alone, name))
    assert not torch.equal(together[0].ray, together[1].ray)


def test_lidar_noise_reaches_no_farther_than_the_lidar(renderer: SceneRenderer) -> None:
    lidar = Lidar(beams=16, steps=360, reach=20.0, noise=5.0)
    (found,) = sweep(renderer, state_of(with_box(60.0)), lidar)
    assert found.range.max() <= lidar.reach
    assert found.range.min() >= 0.0


def test_a_far_reaching_lidar_meets_far_road_users(renderer: SceneRenderer) -> None:
    lidar = Lidar(beams=1, lowest=0.0, highest=0.0, steps=4, reach=250.0, noise=0.0, position=(0.0, 0.0, 1.5))
    (found,) = sweep(renderer, state_of(with_box(195.0)), lidar)
    assert found.instance[found.ray == 0].tolist() == [LEADER + 1]
    assert found.range[found.ray == 0].tolist() == pytest.approx([195.0], abs=1e-2)


def test_nothing_is_built_on_the_road() -> None:
    """The road's own lanes, 3.5 m wide each, hold no building, tree or lamp below 5 m."""
    stage = SceneRenderer(AHEAD).stages(straight_road())[0]
    corner = stage.corner[: stage.still].reshape(-1, 3)
    on_road = (corner[:, 0].abs() < 55.0) & (corner[:, 1] > -1.7) & (corner[:, 1] < 5.2) & (corner[:, 2] < 5.0)
    assert not on_road.any()
    assert {Semantic.BUILDING, Semantic.VEGETATION, Semantic.POLE} <= {
        Semantic(v) for v in stage.semantic[: stage.still].tolist()
    }


def test_exchanged_road_users_get_bodies_of_their_own(renderer: SceneRenderer) -> None:
    """Sums over all agents are the same when two change places; what is kept for a scene must not be."""
    scene = straight_road()
    order = torch.tensor([EGO, CONE, 2, 3, 4, LEADER])
    changed = replace(scene, size=scene.size[:, order], kind=scene.kind[:, order])
    first, other = renderer.stages(scene)[0], renderer.stages(changed)[0]
    for stage, height in ((first, 1.5), (other, 0.8)):
        own = (stage.owner == LEADER) & (torch.arange(len(stage.owner)) >= stage.still)
        assert float(stage.corner[own][..., 2].max()) == pytest.approx(height, abs=0.05)


def test_houses_keep_off_every_log(renderer: SceneRenderer) -> None:
    """The same id and map with another log: who drove through what stood there finds the way free."""
    scene = straight_road()
    centre = renderer.stages(scene)[0].scenery.centre
    position = scene.position.clone()
    position[0, LEADER, :, :2] = centre[0]
    stage = renderer.stages(replace(scene, position=position))[0]
    assert ((stage.scenery.centre - centre[0]).norm(dim=-1) > 2.0).all()


def test_a_stage_is_kept_however_far_the_batch_is_padded(renderer: SceneRenderer) -> None:
    scene = straight_road()
    wider = scene.pad({letter: size + 3 for letter, size in scene.sizes().items() if letter != "B"})
    assert renderer.stages(wider)[0] is renderer.stages(scene)[0]


def test_view_writes_its_files(tmp_path: Path) -> None:
    out = tmp_path / "view"
    words = ["view", "--world", "replay", "--limit", "1", "--horizon", "2", "--width", "32", "--height", "24"]
    assert main([*words, "--camera", "chase", "cockpit", "orbit", "rig:front3", "--supersample", "1", "--out", str(out)]) == 0
    films = {"chase.mp4", "cockpit.mp4", "orbit.mp4", "front3.mp4"}
    assert {path.name for path in out.iterdir()} >= {"run.json", "view.png", *films}
    assert main(["view", "--camera", "nowhere", "--out", str(tmp_path / "other")]) == 2


def test_gl_windows_are_closed_after_their_films(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever OpenGL can do here: the window is one that only counts."""
    opened: list[str] = []

    class Window:
        def __init__(self, width: int, height: int, bonnet: bool = False) -> None:
            self.shape = (height, width, 3)
            opened.append("open")

        def draw(self, state: State, rig: Rig) -> torch.Tensor:
            assert opened[-1] == "open"
            return torch.zeros(self.shape, dtype=torch.uint8)

        def close(self) -> None:
            opened.append("closed")

    monkeypatch.setattr(scene3d_gl, "GlRenderer", Window)
    monkeypatch.setattr(scene3d_gl, "require_opengl", lambda: None)
    words = ["view", "--world", "replay", "--limit", "1", "--horizon", "2", "--width", "32", "--height", "24", "--backend", "gl"]
    assert main([*words, "--camera", "chase", "rig:front3", "--out", str(tmp_path / "view")]) == 0
    assert opened == ["open", "closed"] * 2


def test_gl_refuses_a_centre_beside_the_middle() -> None:
    """Open3D's window draws as if the optical axis met the middle of the image, whatever it is told."""
    camera = Camera(64, 32, (32.0, 32.0))
    scene3d_gl.require_middle(Rig((replace(camera, centre=(32.0, 16.0)),)))
    with pytest.raises(ValueError, match=r"camera 'front': found centre \(40.0, 16.0\)"):
        scene3d_gl.require_middle(Rig((replace(camera, centre=(40.0, 16.0)),)))


def test_a_gl_window_draws_no_such_picture() -> None:
    """As above with a window, where OpenGL answers."""
    try:
        window = scene3d_gl.GlRenderer(64, 32)
    except OSError as absent:
        pytest.skip(str(absent))
    try:
        with pytest.raises(ValueError, match="centre"):
            window.draw(state_of(with_box(10.6)), Rig((replace(AHEAD.cameras[0], centre=(40.0, 16.0)),)))
    finally:
        window.close()


def test_unequal_focal_lengths_stretch_the_frame() -> None:
    """Drawn with 32 both ways, a camera of (32, 64) sees the middle half of the rows, one of (64, 32) of the columns."""
    frame = np.zeros((32, 64, 3), np.uint8)
    frame[12:20, 24:40] = 255  # a block of 16 columns and 8 rows around the middle
    assert (scene3d_gl.stretched(frame, AHEAD).numpy() == frame).all()
    for focal, (wide, high) in {(32.0, 64.0): (16, 16), (64.0, 32.0): (32, 8)}.items():
        seen = scene3d_gl.stretched(frame, Rig((Camera(64, 32, focal),))).numpy()[..., 0] > 127
        assert (seen.any(0).sum(), seen.any(1).sum()) == (wide, high)


def test_sensors_are_observations() -> None:
    """They lie in their space, repeat with the seed, and are what the renderer draws of the environment's state."""
    rig, lidar = AHEAD, Lidar(beams=4, steps=36, noise=0.0)
    env = SensorObservation(gymnasium.make("worldloop/Drive-v0", world="replay", horizon=4), SHOWN, rig, lidar)
    seen, _ = env.reset(seed=3)
    assert env.observation_space.contains(seen)
    state = env.unwrapped.state  # pyright: ignore[reportAttributeAccessIssue]
    drawn, turn = env.renderer.draw(state), sweep(env.renderer, state, lidar)[0]
    assert (seen["depth"] == drawn.depth[0].clamp(max=FARTHEST).numpy()).all()
    assert (seen["instance"] == drawn.instance[0].numpy()).all()
    assert np.count_nonzero(seen["lidar"]) == len(turn.ray)
    step, beam = divmod(int(turn.ray[0]), lidar.beams)
    assert seen["lidar"][step, beam] == turn.range[0].item()
    after = env.step(env.action_space.sample() * 0)[0]
    assert env.observation_space.contains(after)
    assert not (after["depth"] == seen["depth"]).all()
    again, _ = env.reset(seed=3)
    assert all((again[name] == seen[name]).all() for name in (*SHOWN, "lidar"))
    env.close()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [({"show": ("odour",)}, "'odour' is unknown"), ({"rig": "roof"}, "rig='roof'"), ({"show": ()}, "nothing is asked for")],
)
def test_sensors_that_there_are_not(wrong: dict[str, object], told: str) -> None:
    env = gymnasium.make("worldloop/Drive-v0", world="replay")
    with pytest.raises(ValueError, match=told):
        SensorObservation(env, **wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="wanted a DriveEnv"):
        SensorObservation(gymnasium.make("CartPole-v1"))
