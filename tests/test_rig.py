"""Camera rigs: a pixel's ray and the pixel of a point are inverse to each other, and look where they should."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from worldloop.worldmodel.rig import RIGS, Camera, Rig


def test_the_front_camera_by_hand() -> None:
    """A point 10 m before the camera and 1.6 m below it: 64 / 10 pixels a metre, so 10.24 rows below the middle (32)."""
    rig = RIGS["front"]
    pixel, depth = rig.project(torch.tensor([[10.6, 0.0, 0.0], [10.6, 2.5, 1.6], [-5.0, 0.0, 1.0]]))
    assert torch.allclose(depth[0], torch.tensor([10.0, 10.0, -5.6]))
    assert torch.allclose(pixel[0, :2], torch.tensor([[64.0, 42.24], [48.0, 32.0]]))


def test_yaw_looks_left_and_pitch_looks_down() -> None:
    left = Rig((Camera(yaw=math.pi / 2, position=(0.0, 0.0, 1.0)),))
    assert torch.allclose(left.project(torch.tensor([[0.0, 5.0, 1.0]]))[0][0, 0], torch.tensor([64.0, 32.0]), atol=1e-4)
    down = Rig((Camera(pitch=math.pi / 4, position=(0.0, 0.0, 1.0)),))
    assert torch.allclose(down.project(torch.tensor([[1.0, 0.0, 0.0]]))[0][0, 0], torch.tensor([64.0, 32.0]), atol=1e-4)


@given(
    yaw=st.floats(-math.pi, math.pi),
    pitch=st.floats(-1.0, 1.0),
    view=st.floats(20.0, 150.0),
    depth=st.floats(0.5, 200.0),
)
@settings(deadline=None, max_examples=40)
def test_projection_inverts_the_rays(yaw: float, pitch: float, view: float, depth: float) -> None:
    rig = Rig((Camera.with_view(view, 12, 8, yaw=yaw, pitch=pitch, position=(0.4, -0.2, 1.3)),))
    point = (rig.origin()[:, None, None] + depth * rig.rays()).reshape(-1, 3)
    pixel, found = rig.project(point)
    row, column = torch.meshgrid(torch.arange(8) + 0.5, torch.arange(12) + 0.5, indexing="ij")
    assert torch.allclose(found[0], torch.tensor(depth), rtol=1e-3)
    assert torch.allclose(pixel[0], torch.stack((column, row), dim=-1).reshape(-1, 2), atol=2e-2)


def test_resizing_keeps_what_is_seen() -> None:
    small, point = RIGS["surround"].resized(32, 16), torch.tensor([[12.0, 3.0, 0.5], [-9.0, 2.0, 1.0]])
    assert torch.allclose(small.project(point)[0] * 4, RIGS["surround"].project(point)[0], atol=1e-3)


def test_what_is_no_rig_is_refused() -> None:
    with pytest.raises(ValueError, match="1 to 7 cameras"):
        Rig((), ())
    with pytest.raises(ValueError, match=r"Camera\.resized"):
        Rig((Camera(), Camera(width=64)), ("a", "b"))
    with pytest.raises(ValueError, match="above the ground"):
        Camera(position=(0.0, 0.0, 0.0))
    with pytest.raises(ValueError, match="between 0 and 180"):
        Camera.with_view(180.0)
