import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import arc_vocabulary, straight_motions
from scenes import EGO, LEADER, straight_road
from worldloop.worldmodel.geometry import box_corners
from worldloop.worldmodel.scene import AgentKind
from worldloop.worldmodel.tokens import (
    CORNER_RADIUS,
    MOVING_KINDS,
    MotionVocabulary,
    disturbed,
)
from worldloop.worldmodel.vocabulary import build_vocabulary, collect_motions

VOCABULARY = arc_vocabulary()


@given(st.integers(0, len(VOCABULARY) - 1), st.floats(-50, 50), st.floats(-50, 50), st.floats(-3, 3))
def test_encoding_a_decoded_token_finds_it_again(token, x, y, heading):
    pose = torch.tensor([x, y, heading])
    end = VOCABULARY.decode(torch.tensor(token), pose)[-1]
    scene = straight_road(steps=16)
    scene.position[0, 1, 10, :2], scene.heading[0, 1, 10] = pose[:2], pose[2]
    scene.position[0, 1, 15, :2], scene.heading[0, 1, 15] = end[:2], end[2]
    scene.kind[0, 1] = VOCABULARY.kind[token]
    found = VOCABULARY.encode(scene, phase=10).token[0, 1, 0]
    reached = VOCABULARY.decode(found, pose)[-1]
    assert (reached - end)[:2].norm() < 1e-3


def test_distance_is_the_mean_square_corner_distance_up_to_a_constant():
    length, width = 4.5, 1.89
    size = torch.tensor([length, width])
    wanted = torch.tensor([2.0, 0.3, 0.1])
    got = VOCABULARY.distance(wanted, torch.tensor(int(AgentKind.VEHICLE)))
    ends = VOCABULARY.motion[:, -1]
    corners = box_corners(ends[:, :2], ends[:, 2], size)
    truth = (corners - box_corners(wanted[:2], wanted[2], size)).square().sum(-1).mean(-1)
    vehicles = VOCABULARY.kind == AgentKind.VEHICLE
    constant = wanted[:2].square().sum() + 2 * CORNER_RADIUS[AgentKind.VEHICLE] ** 2
    assert torch.allclose(got[vehicles] + constant, truth[vehicles], atol=2e-2)
    assert (got[~vehicles] > 1e8).all()


def test_rolling_encoding_stays_near_the_log_and_keeps_the_ego_exact():
    scene = straight_road(ego_speed=7.3)
    tracks = VOCABULARY.encode(scene)
    logged = scene.position[:, :, ::5, :2]
    error = (tracks.pose[..., :2] - logged).norm(dim=-1)
    assert error[0, EGO].max() == 0
    assert error.max() < 0.6  # never adds up: half the 0.5 m between two speeds of the arcs, and a bit
    led_away = VOCABULARY.encode(scene, choose=disturbed(4, torch.Generator().manual_seed(0)))
    error = (led_away.pose[..., :2] - logged).norm(dim=-1)
    assert 0.1 < error.max() < 3.0


def test_tokens_are_found_in_full_precision_where_the_model_computes_in_half():
    scene = straight_road(ego_speed=18.7)
    plain = VOCABULARY.encode(scene)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = VOCABULARY.encode(scene)
    assert torch.equal(plain.token, half.token)
    assert torch.equal(plain.pose, half.pose)


def test_objects_and_gaps_are_not_coded():
    scene = straight_road()
    scene.valid[0, 1, 20:40] = False
    tracks = VOCABULARY.encode(scene)
    assert not tracks.coded[0, 5].any()
    assert not tracks.coded[0, 1, 3:8].any()
    assert tracks.coded[0, 1, 8:].all()


def test_k_disks_cover_their_data_within_the_given_number():
    motions = {kind: straight_motions(kind) for kind in MOVING_KINDS}
    vocabulary = build_vocabulary(motions, dict.fromkeys(MOVING_KINDS, 24), torch.Generator().manual_seed(0))
    for kind in MOVING_KINDS:
        table = vocabulary.motion[vocabulary.kind == kind]
        assert 12 <= len(table) <= 24
        assert table[0].abs().max() == 0
        gap = (motions[kind][:, None, -1, 0] - table[None, :, -1, 0]).abs().amin(1)
        assert gap.max() < 0.3


def test_collected_motions_come_with_their_mirrors():
    motions = collect_motions(iter([straight_road()]), 5)
    vehicles = motions[AgentKind.VEHICLE]
    half = len(vehicles) // 2
    assert torch.equal(vehicles[:half, :, 0], vehicles[half:, :, 0])
    assert torch.equal(vehicles[:half, :, 1], -vehicles[half:, :, 1])
    assert vehicles[:, -1, 0].max() == pytest.approx(5.0, abs=1e-3)


def test_a_vocabulary_survives_the_disk_and_a_broken_file_is_named(tmp_path):
    path = tmp_path / "vocabulary.safetensors"
    VOCABULARY.save(path)
    again = MotionVocabulary.load(path)
    assert again.checksum() == VOCABULARY.checksum()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"vocabulary\.safetensors: not a readable motion vocabulary"):
        MotionVocabulary.load(path)


def test_a_vocabulary_without_a_kind_is_refused():
    only = VOCABULARY.kind == AgentKind.VEHICLE
    with pytest.raises(ValueError, match="no token for PEDESTRIAN, CYCLIST"):
        MotionVocabulary(VOCABULARY.motion[only], VOCABULARY.kind[only])


def test_velocity_is_that_of_the_motion_followed_and_the_logged_one_of_the_ego():
    scene = straight_road(ego_speed=7.3)
    scene.velocity[:] += torch.tensor([0.01, 0.0])  # tells the log's from what poses say
    tracks = VOCABULARY.encode(scene)
    at = torch.arange(0, scene.steps, VOCABULARY.ticks)
    assert torch.equal(tracks.velocity[0, EGO], scene.velocity[0, EGO, at])
    assert torch.equal(tracks.velocity[:, :, 0], scene.velocity[:, :, 0])
    poses = VOCABULARY.decode(tracks.token[0, LEADER], tracks.pose[0, LEADER, :-1])
    followed = (poses[:, -1] - poses[:, -2])[:, :2] / 0.1
    assert torch.allclose(tracks.velocity[0, LEADER, 1:], followed, atol=1e-4)
