"""Bird's-eye pictures: what is seen where, whatever the orientation, and what must not be seen."""

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pygame
import pytest
import torch
from worldloop.renderers import palette
from worldloop.renderers.bev import BirdEyeRenderer, Observed
from worldloop.renderers.captions import Captions
from worldloop.renderers.roads import crosswalk_stripes, map_shapes, stop_lines
from worldloop.worldmodel.geometry import rotate
from worldloop.worldmodel.scene import AgentKind, LaneLinkKind, PolylineKind, Scene, SignalState, make_scene
from worldloop.worldmodel.world import State, logged_state

STEPS = 21
NOW = 10


def crossing() -> Scene:
    """A signalised four-way crossing of two-lane roads with all kinds of roads and agents; the ego comes from the south."""
    lines, kinds, widths, links, stops = [], [], [], [], []

    def add(kind: PolylineKind, points: torch.Tensor, width: float = 0.0) -> int:
        lines.append(points.float())
        kinds.append(kind)
        widths.append(width)
        return len(lines) - 1

    for arm in range(4):
        turn = torch.tensor(arm * math.pi / 2)
        along = torch.linspace(0, 1, 12)[:, None]
        for outward in (False, True):
            near, far = (12.0, 90.0) if outward else (-90.0, -12.0)
            lanes = []
            for x in (1.75, 5.25):
                line = torch.cat((torch.full((12, 1), x), near + along * (far - near)), dim=1)
                lanes.append(add(PolylineKind.LANE, rotate(line, turn), 3.5))
                if not outward:
                    straight = torch.cat((torch.full((12, 1), x), -12 + along * 24), dim=1)
                    add(PolylineKind.JUNCTION_LANE, rotate(straight, turn), 3.5)
                    stops.append((lanes[-1], rotate(torch.tensor([x, -13.0]), turn), math.pi / 2 + float(turn), arm))
            links += [(lanes[1], lanes[0], LaneLinkKind.LEFT), (lanes[0], lanes[1], LaneLinkKind.RIGHT)]
            bike = torch.cat((torch.full((12, 1), 7.75), near + along * (far - near)), dim=1)
            add(PolylineKind.BIKE_LANE, rotate(bike, turn), 1.5)
            walk = torch.cat((torch.full((12, 1), 10.0), near + along * (far - near)), dim=1)
            add(PolylineKind.WALKWAY, rotate(walk, turn), 2.4)
        quarter = torch.linspace(0, math.pi / 2, 12)
        for radius, centre in ((6.75, (12.0, -12.0)), (13.75, (-12.0, -12.0))):  # right turn, left turn
            side = math.copysign(1.0, centre[0])
            arc = torch.stack((centre[0] - side * radius * quarter.cos(), centre[1] + radius * quarter.sin()), dim=1)
            add(PolylineKind.JUNCTION_LANE, rotate(arc, turn), 3.5)
        zebra = torch.tensor([[-7.0, -11.5], [7.0, -11.5], [7.0, -8.0], [-7.0, -8.0], [-7.0, -11.5]])
        add(PolylineKind.CROSSWALK, rotate(zebra, turn))
    agents = [  # x, y, heading in quarter turns, speed, kind, length, width
        (1.75, -20.0, 1.0, 8.0, AgentKind.VEHICLE, 4.6, 1.9),
        (5.25, -32.0, 1.0, 9.0, AgentKind.VEHICLE, 4.4, 1.8),
        (-1.75, 24.0, -1.0, 6.0, AgentKind.VEHICLE, 4.9, 2.0),
        (-5.25, 34.0, -1.0, 7.0, AgentKind.VEHICLE, 11.5, 2.55),
        (-17.0, -1.75, 0.0, 0.0, AgentKind.VEHICLE, 4.5, 1.8),
        (-24.0, -1.75, 0.0, 0.0, AgentKind.VEHICLE, 5.6, 2.1),
        (19.0, 5.25, 2.0, 0.0, AgentKind.VEHICLE, 4.2, 1.75),
        (7.75, -40.0, 1.0, 5.0, AgentKind.CYCLIST, 1.8, 0.6),
        (-25.0, -7.75, 0.0, 4.0, AgentKind.CYCLIST, 1.8, 0.6),
        (-9.8, 3.0, 0.9, 1.4, AgentKind.PEDESTRIAN, 0.6, 0.6),
        (10.0, -22.0, 1.0, 1.2, AgentKind.PEDESTRIAN, 0.6, 0.6),
        (2.0, 9.8, 2.0, 1.3, AgentKind.PEDESTRIAN, 0.6, 0.6),
        (9.5, 15.0, 0.2, 0.0, AgentKind.OBJECT, 0.8, 0.8),
        (9.5, 18.0, 0.4, 0.0, AgentKind.OBJECT, 1.6, 0.6),
    ]
    table = torch.tensor(agents)
    heading = table[:, 2] * math.pi / 2
    velocity = table[:, 3:4] * torch.stack((heading.cos(), heading.sin()), dim=-1)
    time = (torch.arange(STEPS) - NOW)[:, None] * 0.1
    position = torch.zeros(len(agents), STEPS, 3)
    position[..., :2] = table[:, None, :2] + velocity[:, None] * time
    points = max(map(len, lines))
    polyline, polyline_valid = torch.zeros(len(lines), points, 3), torch.zeros(len(lines), points, dtype=torch.bool)
    for index, line in enumerate(lines):
        polyline[index, : len(line), :2] = line
        polyline_valid[index, : len(line)] = True
    signals = torch.tensor([[SignalState.GO, SignalState.STOP, SignalState.CAUTION, SignalState.STOP][arm] for *_, arm in stops])
    route = torch.zeros(40, 3)
    route[:, 0], route[:, 1] = 1.75, torch.linspace(-32, 46, 40)
    return make_scene(
        "handmade/crossing",
        position=position,
        heading=heading[:, None].repeat(1, STEPS),
        velocity=velocity[:, None].repeat(1, STEPS, 1),
        valid=torch.ones(len(agents), STEPS, dtype=torch.bool),
        size=torch.cat((table[:, 5:7], torch.full((len(agents), 1), 1.6)), dim=1),
        kind=table[:, 4].long(),
        ego=torch.tensor(0),
        polyline=polyline,
        polyline_valid=polyline_valid,
        polyline_kind=torch.tensor(kinds),
        lane_width=torch.tensor(widths),
        lane_link=torch.tensor([link[:2] for link in links]),
        lane_link_kind=torch.tensor([link[2] for link in links]),
        lane_link_valid=torch.ones(len(links), dtype=torch.bool),
        signal_position=torch.stack([torch.cat((at, torch.zeros(1))) for _, at, _, _ in stops]),
        signal_lane=torch.tensor([lane for lane, *_ in stops]),
        signal_heading=torch.tensor([heading for _, _, heading, _ in stops]),
        signal_state=signals[:, None].repeat(1, STEPS),
        signal_valid=torch.ones(len(stops), STEPS, dtype=torch.bool),
        route=route,
    )


def start(scene: Scene) -> State:
    return logged_state(scene, torch.zeros(len(scene), dtype=torch.int64))


@pytest.fixture(scope="module")
def state() -> State:
    return start(crossing())


def moved(scene: Scene, angle: float, shift: tuple[float, float]) -> Scene:
    """The same scene turned about the origin and then shifted."""
    turn = torch.tensor(angle)

    def place(points: torch.Tensor) -> torch.Tensor:
        return torch.cat((rotate(points[..., :2], turn) + torch.tensor(shift), points[..., 2:]), dim=-1)

    changes = {name: place(getattr(scene, name)) for name in ("position", "polyline", "signal_position", "route")}
    changes |= {name: getattr(scene, name) + turn for name in ("heading", "signal_heading")}
    return replace(scene, velocity=rotate(scene.velocity, turn), **changes)


def near(picture: np.ndarray, colour: palette.Colour, tolerance: int = 12) -> np.ndarray:
    """Where (height, width) a picture has nearly a colour."""
    return (np.abs(picture.astype(np.int64) - colour) <= tolerance).all(axis=-1)


def test_picture_has_the_size_asked_for_and_is_deterministic(state: State):
    pictures = [BirdEyeRenderer(320, 200, up="heading").draw(state, caption=["world\tlearned", "plain"]) for _ in range(2)]
    assert pictures[0].shape == (200, 320, 3)
    assert pictures[0].dtype == np.uint8
    assert (pictures[0] == pictures[1]).all()


@pytest.mark.parametrize("up", ["north", "heading"])
def test_ego_stands_in_the_middle_in_its_own_colour(state: State, up):
    ego = near(BirdEyeRenderer(400, 400, up=up, legend=False).draw(state), palette.EGO)
    rows, columns = ego.nonzero()
    assert abs(rows.mean() - 200) < 2
    assert abs(columns.mean() - 200) < 2
    assert 0.5 * 4.6 * 1.9 * 16 < ego.sum() < 4.6 * 1.9 * 16  # the box at 4 x 4 pixels a square metre, less windows and rim


def test_agents_appear_where_they_are(state: State):
    renderer = BirdEyeRenderer(800, 800, legend=False)
    picture = renderer.draw(state)
    away = state.position[0, :, :2] - state.position[0, 0, :2]
    for agent in range(1, away.shape[0]):
        column, row = 400 + 8 * float(away[agent, 0]), 400 - 8 * float(away[agent, 1])
        if 200 < row < 720 and 20 < column < 780:
            patch = picture[round(row) - 6 : round(row) + 7, round(column) - 6 : round(column) + 7]
            assert near(patch, palette.AGENT[AgentKind(int(state.scene.kind[0, agent]))]).any(), agent


def test_heading_up_does_not_see_where_the_scene_lies():
    renderer = BirdEyeRenderer(400, 400, up="heading")
    scene = crossing()
    first = renderer.draw(start(scene)).astype(np.int64)
    second = renderer.draw(start(moved(scene, 2.1, (340.0, -120.0)))).astype(np.int64)
    difference = np.abs(first - second).max(axis=-1)
    assert (difference > 60).mean() < 0.01


def test_north_up_keeps_the_map_still_while_the_scene_is_shifted():
    renderer = BirdEyeRenderer(400, 400)
    scene = crossing()
    assert (renderer.draw(start(scene)) == renderer.draw(start(moved(scene, 0.0, (25.0, -50.0))))).all()


def test_invalid_agents_are_not_drawn(state: State):
    renderer = BirdEyeRenderer(legend=False)
    alone = torch.zeros_like(state.valid)
    alone[0, 0] = True
    picture = renderer.draw(replace(state, valid=alone))
    assert not near(picture, palette.AGENT[AgentKind.VEHICLE]).any()
    assert near(picture, palette.EGO).any()
    assert near(renderer.draw(state), palette.AGENT[AgentKind.VEHICLE]).any()


@pytest.mark.parametrize("shows", list(SignalState))
def test_signals_wear_their_colour_and_vanish_when_invalid(state: State, shows):
    renderer = BirdEyeRenderer(legend=False)
    alone = torch.zeros_like(state.valid)
    alone[0, 0] = True
    lit = replace(state, valid=alone, signal_state=torch.full_like(state.signal_state, shows))
    dark = replace(lit, signal_valid=torch.zeros_like(state.signal_valid))
    assert near(renderer.draw(lit), palette.SIGNAL[shows]).sum() > near(renderer.draw(dark), palette.SIGNAL[shows]).sum() + 200


def test_scene_with_markings_alone_or_without_map_is_drawn(state: State):
    scene = state.scene
    unlinked = replace(scene, lane_link_valid=torch.zeros_like(scene.lane_link_valid))
    markings = replace(unlinked, polyline_kind=torch.full_like(scene.polyline_kind, PolylineKind.LANE_MARKING))
    empty = replace(scene, polyline_valid=torch.zeros_like(scene.polyline_valid))
    renderer = BirdEyeRenderer(legend=False)
    assert near(renderer.draw(start(markings)), palette.SURFACE[PolylineKind.LANE], 2).mean() > 0.1
    bare = renderer.draw(start(empty))
    assert near(bare, palette.SURFACE[PolylineKind.LANE], 2).mean() < 1e-3  # but for blends on rims
    assert near(bare, palette.EGO).any()


def test_rows_of_a_batch_are_drawn_as_they_would_be_alone(state: State):
    other = start(moved(crossing(), 1.0, (5.0, 5.0)))
    both = State.put(state.repeat(2), [1], other)
    renderer = BirdEyeRenderer(200, 200)
    assert (renderer.draw(both, 1) == BirdEyeRenderer(200, 200).draw(other)).all()
    assert (renderer.draw(both, 0) == BirdEyeRenderer(200, 200).draw(state)).all()
    with pytest.raises(IndexError, match=r"row 2 of a state of 2 scenes"):
        renderer.draw(both, 2)


def test_trails_lie_behind_and_stop_at_gaps(state: State):
    renderer = BirdEyeRenderer(legend=False)
    trails = state.scene.position[0, :, : NOW + 1, :2]
    known = torch.ones(trails.shape[:2], dtype=torch.bool)
    plain, trailed = renderer.draw(state), renderer.draw(state, trails=trails, trails_valid=known)
    changed = (plain != trailed).any(axis=-1)
    assert changed[424:470, 395:406].any()  # the ego drives up at 8 m/s
    assert not changed[350:380, 395:406].any()
    known[:, -1] = False
    assert (renderer.draw(state, trails=trails, trails_valid=known) == plain).all()
    with pytest.raises(ValueError, match=r"trails: found shape \(3, 11, 2\)"):
        renderer.draw(state, trails=trails[:3])


def test_brake_lights_shine_while_slowing_down(state: State):
    renderer = BirdEyeRenderer(legend=False)
    trails = state.scene.position[0, :, : NOW + 1, :2].clone()
    assert not near(renderer.draw(state, trails=trails)[410:425, 385:415], palette.BRAKE_LIGHT, 40).any()
    time = torch.linspace(-1, 0, NOW + 1)
    trails[0, :, 1] -= 0.5 * 4.0 * time.square()  # slows down by 4 m/s^2
    assert near(renderer.draw(state, trails=trails)[410:425, 385:415], palette.BRAKE_LIGHT, 40).any()


def test_what_the_policy_sees_is_marked_where_it_is(state: State):
    turned = start(moved(crossing(), -0.8, (60.0, 20.0)))
    ahead = Observed(
        agents=torch.tensor([[20.0, 10.0, 1.0, 0.0, 4.0, 2.0]]),
        polylines=torch.tensor([[[5.0, -10.0], [10.0, -10.0], [10.0, -10.0]]]),
        radius=30.0,
    )
    for now in (state, turned):
        renderer = BirdEyeRenderer(up="heading", legend=False)
        changed = (renderer.draw(now) != renderer.draw(now, observation=ahead)).any(axis=-1)
        assert changed[219:263, 308:333].any()  # 20 m ahead and 10 m to the left, at 8 pixels a metre
        assert changed[320:360, 476:485].any()  # 5 to 10 m ahead, 10 m to the right
        assert changed[155:165, 380:420].any()  # the ring of 30 m
        assert not changed[365:435, 365:435].any()
        assert (renderer.draw(now, observation=Observed()) == renderer.draw(now)).all()


def test_what_is_seen_of_the_road_looks_like_no_marking(state: State):
    """Dots at the points of the observation, with the road between them as it was."""
    line = torch.stack((torch.arange(13.0, 26.0, 2.0), torch.full((7,), -0.9)), dim=-1)
    renderer = BirdEyeRenderer(up="heading", legend=False)
    changed = (renderer.draw(state) != renderer.draw(state, observation=Observed(polylines=line[None]))).any(axis=-1)
    along = changed[400 - 8 * 26 : 400 - 8 * 12, 402:412].any(axis=1)  # 8 pixels a metre
    assert along[8::16].all()
    assert not along[::16].any()


@pytest.mark.parametrize("width", [480, 800])
def test_the_scale_bar_gives_way_to_the_legend(width):
    captions, canvas = Captions(2), pygame.Surface((2 * width, 2 * width))
    names = ["ego", *(kind.name.lower() for kind in AgentKind)]
    legend = captions.legend(canvas, [(palette.EGO, name) for name in names])
    bar = captions.scale_bar(canvas, 2 * width / 100, legend)
    assert not bar.colliderect(legend)
    assert canvas.get_rect().contains(bar)
    assert canvas.get_rect().contains(legend)
    assert (bar.bottom == legend.bottom) == (width == 800)


def test_an_alert_stands_in_red_in_the_upper_right_corner(state: State):
    renderer = BirdEyeRenderer(legend=False)
    calm, alarmed = renderer.draw(state), renderer.draw(state, alert="collision")
    changed = (calm != alarmed).any(axis=-1)
    assert near(alarmed, palette.ALERT, 4)[:50, 650:].any()
    assert changed[:60, 600:].any()
    assert not changed[60:].any()
    assert not changed[:, :600].any()


def test_signals_for_several_ways_out_of_a_lane_stand_side_by_side(state: State):
    scene = state.scene
    ways = torch.tensor([0, 1, 2])
    right, straight, left = ([12.0, -5.25], [1.75, 12.0], [-12.0, 1.75])
    polyline = scene.polyline.clone()
    for line, end in enumerate((right, straight, left)):
        polyline[0, line, -1, :2] = torch.tensor(end)
    stop = torch.tensor([1.75, -13.0, 0.0])
    shared = replace(
        scene,
        polyline=polyline,
        lane_width=torch.full_like(scene.lane_width, 3.6),
        signal_position=stop.expand_as(scene.signal_position).clone(),
        signal_heading=torch.full_like(scene.signal_heading, math.pi / 2),
        signal_lane=ways[torch.arange(8) % 3][None],
    )
    lines = stop_lines(shared, 0, ways)
    assert np.allclose(lines.middle, [[2.95, -13], [1.75, -13], [0.55, -13]], atol=1e-5)
    assert np.allclose(lines.across, [[-1.2, 0]] * 3, atol=1e-5)
    alone = stop_lines(shared, 0, ways[:1])
    assert np.allclose(alone.middle, [[1.75, -13]], atol=1e-5)
    assert np.allclose(alone.across, [[-3.6, 0]], atol=1e-5)


def test_lines_between_opposite_lanes_are_solid_and_others_dashed():
    road = torch.zeros(4, 11, 3)
    road[..., 0] = torch.linspace(-50, 50, 11)
    road[:, :, 1] = torch.tensor([5.25, 1.75, -1.75, -5.25])[:, None]
    road[:2] = road[:2].flip(1)  # right-hand traffic: what is north runs west
    lines = torch.zeros(3, 11, 3)
    lines[..., 0] = torch.linspace(-50, 50, 11)
    lines[:, :, 1] = torch.tensor([3.5, 0.0, -3.5])[:, None]
    kinds = torch.tensor([PolylineKind.LANE] * 4 + [PolylineKind.LANE_MARKING] * 3)[None]
    polyline = torch.cat((road, lines))[None]
    scene = replace(
        crossing(),
        polyline=polyline,
        polyline_valid=torch.ones(polyline.shape[:-1], dtype=torch.bool),
        polyline_kind=kinds,
        lane_width=torch.full(kinds.shape, 3.5),
        lane_link_valid=torch.zeros_like(crossing().lane_link_valid),
    )
    shapes = map_shapes(scene, 0)
    marks = [index for index, colour in enumerate(shapes.colours) if colour == palette.MARKING]
    length = np.array([shapes.high[index, 0] - shapes.low[index, 0] for index in marks])
    middle = np.array([0.5 * (shapes.high[index, 1] + shapes.low[index, 1]) for index in marks])
    assert length[np.abs(middle) < 0.1].tolist() == [100.0]
    for broken in (3.5, -3.5):
        dashed = length[np.abs(middle - broken) < 0.1]
        assert len(dashed) == 11
        assert np.allclose(dashed, 100 / 11 / 3, atol=1e-6)


def test_crosswalk_stripes_lie_within_the_outline_across_the_way():
    outline = rotate(torch.tensor([[-7.0, -2.0], [7.0, -2.0], [7.0, 2.0], [-7.0, 2.0], [-7.0, -2.0]]), torch.tensor(0.4)).numpy()
    stripes = crosswalk_stripes(outline)
    assert len(stripes) == 14
    area = [0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) for x, y in (stripe.T for stripe in stripes)]
    assert np.allclose(area, 4.0 * 0.5, atol=1e-4)
    assert crosswalk_stripes(np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [0.0, 0.0]])) == []


def test_a_turned_map_gives_turned_shapes():
    scene = crossing()
    first, second = map_shapes(scene, 0), map_shapes(moved(scene, 1.3, (40.0, 10.0)), 0)
    turned = rotate(torch.from_numpy(first.points), torch.tensor(1.3).double()).numpy() + [40.0, 10.0]
    surfaces = [index for index, colour in enumerate(first.colours) if colour in palette.SURFACE.values()]
    assert first.colours == second.colours
    for index in surfaces:
        part = slice(first.first[index], first.first[index + 1])
        assert np.allclose(turned[part], second.points[part], atol=1e-3)


def test_wrong_options_are_named():
    with pytest.raises(ValueError, match="up: found 'south'"):
        BirdEyeRenderer(up="south")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="width 0"):
        BirdEyeRenderer(width=0)


def test_import_opens_no_window_and_prints_nothing():
    check = "import worldloop.renderers.bev as bev; assert not bev.pygame.display.get_init()"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""


def test_window_without_a_display_goes_to_the_dummy_driver(state: State, monkeypatch, capsys):
    for name in ("SDL_VIDEODRIVER", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    renderer = BirdEyeRenderer(160, 120)
    frame = renderer.draw(state)
    renderer.show(frame, fps=1000)
    assert capsys.readouterr().err.splitlines() == [
        "worldloop: no display found, nothing will be seen: render_mode='rgb_array' gives pictures"
    ]
    renderer.show(frame, fps=1000)
    BirdEyeRenderer(160, 120).show(frame, fps=1000)
    assert capsys.readouterr().err == ""  # it is said once
    renderer.close()
    renderer.close()
    assert (renderer.draw(state) == frame).all()


# Machado, Oliveira, Fernandes: A Physiologically-based Model for Simulation of Color Vision Deficiency, 2009; severity 1.
DEFICIENCIES = {
    "none": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def perceived(colours: list[palette.Colour], deficiency: str) -> np.ndarray:
    """CIE 1976 L*a*b* (n, 3), white D65, of colours as people with a deficiency see them."""
    share = np.array(colours) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4) @ np.array(DEFICIENCIES[deficiency]).T
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    ratio = linear.clip(0, 1) @ (matrix / matrix.sum(axis=1, keepdims=True)).T
    f = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    return np.stack((116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])), axis=1)


@pytest.mark.parametrize("deficiency", list(DEFICIENCIES))
def test_stop_caution_and_go_differ_for_every_colour_vision(deficiency):
    colours = [palette.SIGNAL[shows] for shows in (SignalState.STOP, SignalState.CAUTION, SignalState.GO)]
    seen = perceived([*colours, palette.EGO, palette.SURFACE[PolylineKind.LANE]], deficiency)
    distance = np.linalg.norm(seen[:3, None] - seen, axis=-1) + 100 * np.eye(3, 5)
    assert distance.min() > 16


@pytest.mark.parametrize("deficiency", list(DEFICIENCIES))
def test_agents_and_road_differ_for_every_colour_vision(deficiency):
    names = [*palette.AGENT, "ego", "road", "ground"]
    seen = perceived([*palette.AGENT.values(), palette.EGO, palette.SURFACE[PolylineKind.LANE], palette.GROUND], deficiency)
    distance = np.linalg.norm(seen[:, None] - seen, axis=-1)
    for first in range(len(names) - 2):
        for second in range(first + 1, len(names)):
            assert distance[first, second] > 16, (names[first], names[second], distance[first, second])
