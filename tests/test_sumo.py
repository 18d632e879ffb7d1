"""Scenes that SUMO makes, and the world that it drives."""

from __future__ import annotations

import gzip
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from worldloop.worldmodel import sumo_world
from worldloop.worldmodel.data import compressed
from worldloop.worldmodel.geometry import box_corners, boxes_overlap, project_on_polyline, signed_distance_to_edges, wrap_angle
from worldloop.worldmodel.networks import Network, make_network
from worldloop.worldmodel.scene import HISTORY_STEPS, AgentKind, LaneLinkKind, PolylineKind, Scene, SignalState, stack
from worldloop.worldmodel.state_file import load_state, save_state
from worldloop.worldmodel.sumo import TEMPLATES, SumoWorld, generate
from worldloop.worldmodel.sumo_map import LETTER_STATES, read_road_map
from worldloop.worldmodel.sumo_process import Inputs, Simulation, build_network, config_inputs, template_inputs
from worldloop.worldmodel.world import Motion

BOLOGNA = Path(__file__).parents[2] / "shared/data/sumo_bologna/bologna/acosta/run.sumocfg"
DRIVEABLE = (PolylineKind.LANE, PolylineKind.JUNCTION_LANE)


@pytest.fixture(scope="module")
def scenes() -> dict[str, list[Scene]]:
    return {template: list(generate(template, 0, 4, egos=2, windows=2)) for template in TEMPLATES}


def is_kind(scene: Scene, *kinds: PolylineKind) -> torch.Tensor:
    return torch.isin(scene.polyline_kind[0], torch.tensor(kinds))


def test_scenes_show_every_window_before_another_ego_of_one(scenes):
    for found in scenes.values():
        windows = [scene.id[0].split("/")[3] for scene in found]
        assert len(set(windows[:2])) == 2
        assert set(windows[2:]) <= set(windows[:2])


@pytest.mark.parametrize("template", TEMPLATES)
def test_scenes_keep_the_contract(scenes: dict[str, list[Scene]], template: str) -> None:
    assert len({scene.id for scene in scenes[template]}) == 4
    for scene in scenes[template]:
        scene.validate()
        recipe = json.loads(scene.recipe[0])
        assert recipe["source"] == {"template": template, "seed": 0}
        assert len(recipe["agents"]) == scene.valid.shape[1] <= 64
        assert len(recipe["signals"]) == scene.signal_lane.shape[1]
        assert recipe["agents"][int(scene.ego)] == recipe["ego"]
        assert scene.valid[0, int(scene.ego)].all()
        assert scene.steps == 111
        assert scene.polyline.shape[1] <= 256
        assert scene.position.abs().max() < 700


@pytest.mark.parametrize("template", TEMPLATES)
def test_motion_is_physical(scenes: dict[str, list[Scene]], template: str) -> None:
    for scene in scenes[template]:
        both = scene.valid[:, :, 1:] & scene.valid[:, :, :-1]
        moved = (scene.position[:, :, 1:, :2] - scene.position[:, :, :-1, :2]) / 0.1
        assert torch.allclose(moved[both], scene.velocity[:, :, 1:][both], atol=2e-3)
        vehicle = (scene.kind == AgentKind.VEHICLE)[..., None]
        speed = scene.velocity.norm(dim=-1)
        assert speed[vehicle & scene.valid].max() < 50
        slip = wrap_angle(torch.atan2(scene.velocity[..., 1], scene.velocity[..., 0]) - scene.heading).abs()
        driving = vehicle & scene.valid & (speed > 3)
        assert slip[driving].quantile(0.99) < 0.3
        turning = wrap_angle(scene.heading[:, :, 1:] - scene.heading[:, :, :-1]).abs() / 0.1
        assert turning[both & vehicle].max() < 3
        corners = box_corners(scene.position, scene.heading[..., :], scene.size[:, :, None])[0, :, HISTORY_STEPS]
        there = (scene.valid & vehicle)[0, :, HISTORY_STEPS]
        assert not boxes_overlap(corners[there][:, None], corners[there][None]).triu(1).any()


@pytest.mark.parametrize("template", TEMPLATES)
def test_road_lies_on_the_left_of_its_edges(scenes: dict[str, list[Scene]], template: str) -> None:
    for scene in scenes[template]:
        edge, lane = is_kind(scene, PolylineKind.ROAD_EDGE), is_kind(scene, *DRIVEABLE)
        edges, edge_valid = scene.polyline[0, edge, :, :2], scene.polyline_valid[0, edge]
        centre = scene.polyline[0, lane, 4, :2][scene.polyline_valid[0, lane, 4]]
        ego = scene.position[0, int(scene.ego), :, :2]
        near = centre[torch.cdist(centre, ego).amin(1) < 40]  # further out, the nearest edge may have been left out
        assert (signed_distance_to_edges(near, edges, edge_valid) < 0).all()
        assert (signed_distance_to_edges(ego, edges, edge_valid) < 0).all()


@pytest.mark.parametrize("template", TEMPLATES)
def test_lane_links_join(scenes: dict[str, list[Scene]], template: str) -> None:
    for scene in scenes[template]:
        lines, count = scene.polyline[0, ..., :2], scene.polyline_valid[0].sum(1)
        start, end = lines[:, 0], lines[torch.arange(len(lines)), (count - 1).clamp(min=0)]
        link, kind = scene.lane_link[0], scene.lane_link_kind[0]
        follows = link[kind == LaneLinkKind.SUCCESSOR]
        follows = follows[torch.isin(scene.polyline_kind[0][follows], torch.tensor(DRIVEABLE)).all(1)]
        assert len(follows)
        assert (end[follows[:, 0]] - start[follows[:, 1]]).norm(dim=-1).max() < 0.5
        for side, sign in ((LaneLinkKind.LEFT, 1), (LaneLinkKind.RIGHT, -1)):
            pair = link[kind == side]
            along = lines[pair[:, 0], 1] - start[pair[:, 0]]
            across = start[pair[:, 1]] - start[pair[:, 0]]
            assert (sign * (along[:, 0] * across[:, 1] - along[:, 1] * across[:, 0]) > 0).all()


@pytest.mark.parametrize("template", TEMPLATES)
def test_route_leads_the_ego_along_lanes(scenes: dict[str, list[Scene]], template: str) -> None:
    for scene in scenes[template]:
        ego = scene.position[:, int(scene.ego), :, :2]
        arc, offset, heading = project_on_polyline(ego, scene.route[..., :2], scene.route_valid)
        length = (scene.route[0, 1:, :2] - scene.route[0, :-1, :2]).norm(dim=-1).sum()
        assert 0 <= arc.min() < 25
        assert arc.max() <= length + 3
        assert offset.abs().max() < 8
        assert offset.abs().median() < 2
        assert (arc[:, -1] - arc[:, 0] >= 0.8 * (ego[:, 1:] - ego[:, :-1]).norm(dim=-1).sum()).all()
        turned = wrap_angle(heading - scene.heading[:, int(scene.ego)]).abs()
        assert turned.median() < 0.1


def test_points_of_a_route_lie_2_m_apart_however_long_it_is(scenes: dict[str, list[Scene]]) -> None:
    routes = [scene.route[0, scene.route_valid[0], :2] for scene in scenes["merge"]]
    assert max(len(route) for route in routes) > 128
    for route in routes:
        assert (route[1:] - route[:-1]).norm(dim=-1).max() < 2.001


def test_signals_stand_at_the_end_of_their_lane(scenes: dict[str, list[Scene]]) -> None:
    found = set()
    for scene in scenes["crossing"] + scenes["arterial"]:
        lane = scene.signal_lane[0]
        lines, count = scene.polyline[0][lane], scene.polyline_valid[0][lane].sum(1)
        ends = torch.stack((lines[:, 0], lines[torch.arange(len(lines)), count - 1]))
        assert (ends - scene.signal_position[0]).norm(dim=-1).amin(0).max() < 0.1
        found |= set(scene.signal_state.unique().tolist())
    assert found == {SignalState.STOP, SignalState.CAUTION, SignalState.GO}
    assert [int(LETTER_STATES[ord(letter)]) for letter in "rugGyYoO"] == [1, 1, 3, 3, 2, 2, 0, 0]


def test_pedestrians_and_crosswalks(scenes: dict[str, list[Scene]]) -> None:
    batch = stack(scenes["arterial"])
    assert (batch.kind[batch.valid.any(-1)] == AgentKind.PEDESTRIAN).any()
    crosswalk = batch.polyline_kind == PolylineKind.CROSSWALK
    last = batch.polyline_valid.sum(-1).sub(1).clamp(min=0)[..., None, None].expand(-1, -1, 1, 3)
    closed = (batch.polyline[:, :, 0] - batch.polyline.gather(2, last)[:, :, 0]).norm(dim=-1)
    assert crosswalk.any()
    assert closed[crosswalk & batch.polyline_valid[..., 0]].max() == 0


def test_same_seed_same_scenes(scenes: dict[str, list[Scene]]) -> None:
    first, again = scenes["t_priority"][0], next(generate("t_priority", 0, 1, egos=2, windows=2))
    assert again.recipe == first.recipe
    assert torch.equal(again.position, first.position)
    assert torch.equal(again.polyline, first.polyline)


def test_map_is_open_where_the_network_ends(tmp_path: Path) -> None:
    road = read_road_map(template_inputs("t_priority", 0, tmp_path).network)
    edge = torch.from_numpy(road.point[road.kind == PolylineKind.ROAD_EDGE][..., :2])
    ends = [lane.shape[0 if name.endswith("_in_0") else -1] for name, lane in road.lanes.items() if name[0] != ":"]
    for end in ends:
        middle = torch.from_numpy(end[:2])
        assert (edge - middle).norm(dim=-1).min() > 1.0


def test_a_gzipped_network_is_read_but_no_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = template_inputs("t_priority", 0, tmp_path).network
    packed = tmp_path / "packed.net.xml.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert (read_road_map(packed).point == read_road_map(plain).point).all()
    packed.write_bytes(gzip.compress(plain.read_bytes())[:1000])
    with pytest.raises(ValueError, match="no whole gzip file"):
        read_road_map(packed)
    monkeypatch.setattr(compressed, "MOST_BYTES", 1000)
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    with pytest.raises(ValueError, match=f"{packed}: unpacks to more than"):
        read_road_map(packed)


def write_config(folder: Path) -> Path:
    network = build_network(make_network("t_priority", 3), folder)
    lane = next(name for name in read_road_map(network.network).lanes if name.startswith("west_in"))
    (folder / "extra.add.xml").write_text(
        f'<additional><inductionLoop id="d" lane="{lane}" pos="5" period="10" file="d.xml"/></additional>', encoding="utf-8"
    )
    config = folder / "run.sumocfg"
    config.write_text(
        '<configuration><input><net-file value="network.net.xml"/><route-files value="demand.xml"/>'
        '<additional-files value="extra.add.xml"/></input><output><tripinfo-output value="trips.xml"/></output>'
        '<time><begin value="0"/><step-length value="1"/></time></configuration>',
        encoding="utf-8",
    )
    return config


def test_users_network_and_demand(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    before = sorted(tmp_path.iterdir())
    made = list(generate(config, 1, 2, windows=1))
    assert [json.loads(scene.recipe[0])["source"]["config"] for scene in made] == [str(config)] * 2
    assert sorted(tmp_path.iterdir()) == before  # its outputs are not written


def test_a_users_configuration_makes_nothing_random_and_writes_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_config(tmp_path)
    flat = (
        '<random value="true"/><seed value="7"/><save-state.times value="10"/><log value="said.log"/><message-log value="m.log"/>'
        '<error-log value="e.log"/><save-configuration value="mine.sumocfg"/><netstate-dump value="dump.xml"/>'
        '<tripinfo value="trips.xml"/><device.ssm.probability value="1"/></configuration>'
    )
    config.write_text(config.read_text().replace("</configuration>", flat))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before = sorted(tmp_path.rglob("*"))
    first, again = (next(generate(config, 1, 1, windows=1)) for _ in range(2))
    assert first.recipe == again.recipe
    assert torch.equal(first.position, again.position)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(not BOLOGNA.is_file(), reason="needs ../shared/data/sumo_bologna")
def test_a_real_city(tmp_path: Path) -> None:
    scene = next(generate(BOLOGNA, 0, 1, windows=1, egos=1))
    assert scene.valid.shape[1] > 5
    assert scene.signal_lane.shape[1] + scene.lane_link.shape[1] > 20


def test_errors_name_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown network template 'canal'"):
        generate("canal", 0, 1)
    with pytest.raises(FileNotFoundError, match=r"none\.sumocfg.*crossing"):
        generate(tmp_path / "none.sumocfg", 0, 1)
    with pytest.raises(ValueError, match="steps: found 5, wanted at least 11"):
        generate("crossing", 0, 1, steps=5)
    with pytest.raises(ValueError, match="seed: found -1, wanted at least 0"):
        generate("crossing", -1, 1)
    broken = Network("<nodes/>", '<edges><edge id="e" from="a" to="b"/></edges>', "<connections/>", "<routes/>")
    with pytest.raises(ValueError, match="netconvert could not build"):
        build_network(broken, tmp_path)
    config = tmp_path / "run.sumocfg"
    config.write_text("<configuration><input/></configuration>", encoding="utf-8")
    with pytest.raises(ValueError, match="no net-file"):
        config_inputs(config, tmp_path)
    config.write_text('<configuration><input><net-file value="no.net.xml"/></input></configuration>', encoding="utf-8")
    with pytest.raises(FileNotFoundError, match=r"no\.net\.xml"):
        config_inputs(config, tmp_path)
    config.write_text("<configuration>", encoding="utf-8")
    with pytest.raises(ValueError, match="not readable as XML"):
        config_inputs(config, tmp_path)
    with pytest.raises(ValueError, match="SUMO cannot run"):
        Simulation(Inputs(config, ("--net-file", str(config))), 0)


def test_one_simulation_a_process(tmp_path: Path) -> None:
    inputs = template_inputs("t_priority", 0, tmp_path)
    with Simulation(inputs, 0), pytest.raises(RuntimeError, match="runs a SUMO simulation already"):
        Simulation(inputs, 0)


def logged(scene: Scene, step: int) -> Motion:
    row, at = scene.ego_row(), HISTORY_STEPS + step
    return Motion(scene.position[row, scene.ego, at], scene.heading[row, scene.ego, at], scene.velocity[row, scene.ego, at])


def keys(scene: Scene) -> torch.Tensor:
    return torch.zeros(len(scene), dtype=torch.int64)


def equal(first: object, second: object) -> bool:
    names = ("position", "heading", "velocity", "valid", "signal_state", "signal_valid", "simulated", "step")
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in names)


def test_ego_as_logged_gives_the_log_and_states_come_back(scenes: dict[str, list[Scene]], tmp_path: Path) -> None:
    batch = stack([scenes["crossing"][0], scenes["arterial"][-1]])
    with SumoWorld() as world:
        state = world.reset(batch, keys(batch))
        trace = [state]
        for step in range(1, 31):
            state = world.step(state, logged(batch, step))
            trace.append(state)
            valid = batch.valid[:, :, HISTORY_STEPS + step]
            assert torch.equal(state.valid, valid)
            assert (state.position - batch.position[:, :, HISTORY_STEPS + step])[valid].abs().max() < 0.01
            assert torch.equal(state.signal_state, batch.signal_state[:, :, HISTORY_STEPS + step])
            assert not state.simulated[batch.ego_row(), batch.ego].any()
        save_state(trace[20], tmp_path / "state.safetensors")
        again = world.step(load_state(tmp_path / "state.safetensors"), logged(batch, 21))
        assert equal(again, trace[21])
        branches = trace[5].take([0]).repeat(2)
        motion = logged(batch, 6).take([0]).repeat(2)
        assert equal(world.step(branches, motion), trace[6].take([0, 0]))
        processes = [worker.process for worker in world._workers]
    assert all(process.poll() is not None for process in processes)
    with pytest.raises(RuntimeError, match="closed"):
        world.step(trace[0], logged(batch, 1))


def follower(scene: Scene) -> int | None:
    """A vehicle 8 to 40 m behind the ego in its lane for the next 3 s, or None."""
    ego = int(scene.ego)
    span = slice(HISTORY_STEPS, HISTORY_STEPS + 30)
    heading, here = scene.heading[0, ego, span], scene.position[0, ego, span, :2]
    apart = scene.position[0, :, span, :2] - here
    ahead = apart[..., 0] * heading.cos() + apart[..., 1] * heading.sin()
    left = apart[..., 1] * heading.cos() - apart[..., 0] * heading.sin()
    behind = ((ahead < -8) & (ahead > -40) & (left.abs() < 1.2) & scene.valid[0, :, span]).all(1)
    fast = scene.velocity[0, :, HISTORY_STEPS].norm(dim=-1) > 6
    found = (behind & fast & fast[ego] & (scene.kind[0] == AgentKind.VEHICLE)).nonzero()[:, 0]
    return int(found[0]) if len(found) else None


def test_who_follows_a_braking_ego_brakes() -> None:
    scene, behind = next((scene, found) for scene in generate("merge", 0, 32, egos=8) if (found := follower(scene)) is not None)
    with SumoWorld() as world:
        speeds = {}
        for name, deceleration in (("brakes", 6.0), ("keeps its speed", 0.0)):
            state = world.reset(scene, keys(scene))
            for _ in range(30):
                ego = state.ego()
                direction = torch.stack((ego.heading.cos(), ego.heading.sin()), dim=-1)
                velocity = direction * (ego.velocity.norm(dim=-1) - 0.1 * deceleration).clamp(min=0)
                position = torch.cat((ego.position[:, :2] + 0.1 * velocity, ego.position[:, 2:]), dim=-1)
                state = world.step(state, Motion(position, ego.heading, velocity))
            speeds[name] = float(state.velocity[0, behind].norm())
    assert speeds["brakes"] < speeds["keeps its speed"] - 3


def test_an_interrupted_step_is_as_if_it_had_not_been_asked_for(
    scenes: dict[str, list[Scene]], monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = scenes["t_priority"][0]

    def interrupt(worker: object) -> None:
        raise KeyboardInterrupt

    with SumoWorld() as world:
        start = world.reset(scene, keys(scene))
        following = world.step(start, logged(scene, 1))
        with monkeypatch.context() as patch:
            patch.setattr(sumo_world._Worker, "receive", interrupt)
            with pytest.raises(KeyboardInterrupt):
                world.step(following, logged(scene, 2))
        for _ in range(2):  # the second reset goes to the worker that had been interrupted, if it still lives
            assert equal(world.reset(scene, keys(scene)), start)
            assert equal(world.step(start, logged(scene, 1)), following)


def test_a_worker_that_dies_is_an_error_of_the_system_and_is_replaced(scenes: dict[str, list[Scene]]) -> None:
    first, second, third = (scenes[template][0] for template in ("t_priority", "roundabout", "merge"))
    with SumoWorld() as world:
        state = world.reset(first, keys(first))
        world.reset(second, keys(second))
        world._workers[0].process.kill()
        with pytest.raises(ChildProcessError, match="a SUMO worker process ended with code -9"):
            world.reset(third, keys(third))
        assert equal(world.reset(first, keys(first)), state)


def test_a_crash_of_sumo_itself_is_named(scenes: dict[str, list[Scene]], capfd: pytest.CaptureFixture[str]) -> None:
    scene = scenes["merge"][0]
    with SumoWorld() as world:
        state = world.reset(scene, keys(scene))
        worker = world._workers[0].process.pid
        child = Path(f"/proc/{worker}/task/{worker}/children").read_text().split()[0]
        os.kill(int(child), signal.SIGSEGV)
        with pytest.raises(ChildProcessError, match="ended with code 1: .* leave the scene out"):
            world.step(state, logged(scene, 1))
        assert equal(world.reset(scene, keys(scene)), state)
    assert "SUMO itself crashed (SIGSEGV)" in capfd.readouterr().err


def test_a_scene_that_cannot_be_opened_says_why_each_time_and_harms_no_other(scenes: dict[str, list[Scene]]) -> None:
    first, second, third = (scenes[template][0] for template in ("t_priority", "roundabout", "merge"))
    source = {"config": "/nowhere/gone.sumocfg", "seed": 0}
    bad = replace(first, recipe=(json.dumps({**json.loads(first.recipe[0]), "source": source}),))
    with SumoWorld() as world:
        state = world.reset(first, keys(first))
        world.reset(second, keys(second))
        processes = [worker.process.pid for worker in world._workers]
        for _ in range(2):
            with pytest.raises(FileNotFoundError, match=r"gone\.sumocfg"):
                world.reset(bad, keys(bad))
        assert equal(world.reset(first, keys(first)), state)
        world.reset(third, keys(third))
        assert [worker.process.pid for worker in world._workers] == processes


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("[]", "no JSON object"),
        ("{", "no JSON object"),
        ("[" * 100_000, "no JSON object"),
        ("{}", "version None, wanted 1"),
        ('{"version": 1}', "agents, begin, ego, offset, signals, source"),
        ('{"version": 1, "source": [], "begin": 1, "ego": "", "offset": [], "agents": [], "signals": []}', "source"),
        ('{"version": 1, "source": {}, "begin": 1, "ego": "", "offset": [], "agents": [], "signals": []}', "source"),
    ],
)
def test_a_broken_recipe_is_one_clear_error(scenes: dict[str, list[Scene]], recipe: str, message: str) -> None:
    scene = replace(scenes["t_priority"][0], recipe=(recipe,))
    with SumoWorld() as world, pytest.raises(ValueError, match=f"{scene.id[0]}: .*{message}.*generate it again"):
        world.reset(scene, keys(scene))


def test_world_says_what_it_cannot_do(scenes: dict[str, list[Scene]]) -> None:
    scene = scenes["t_priority"][0]
    with SumoWorld(steps=1) as world:
        with pytest.raises(ValueError, match="pandaset/002 has no SUMO network: use --world learned or replay"):
            world.reset(replace(scene, id=("pandaset/002",), recipe=("",)), keys(scene))
        with pytest.raises(ValueError, match="does not come to this scene again"):
            world.reset(replace(scene, position=scene.position + 1), keys(scene))
        assert world.horizon(scene).tolist() == [1]
        state = world.step(world.reset(scene, keys(scene)), logged(scene, 1))
        with pytest.raises(ValueError, match="record of 1 steps is full"):
            world.step(state, logged(scene, 2))
    with pytest.raises(ValueError, match="steps: found 0"):
        SumoWorld(steps=0)
