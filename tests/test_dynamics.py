import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from worldloop.worldmodel.dynamics import KinematicBicycle, Motion, forward_speed

CAR = KinematicBicycle()


def motion(speed=10.0, heading=0.0, x=0.0, y=0.0) -> Motion:
    heading = torch.tensor([heading])
    return Motion(
        position=torch.tensor([[x, y, 0.75]]),
        heading=heading,
        velocity=torch.stack((speed * heading.cos(), speed * heading.sin()), dim=-1),
    )


def step(start: Motion, acceleration: float, curvature: float, car: KinematicBicycle = CAR) -> Motion:
    return car.step(start, torch.tensor([[acceleration, curvature]]))


def test_straight_on_and_faster():
    after = step(motion(10.0), 2.0, 0.0)
    torch.testing.assert_close(after.position, torch.tensor([[1.01, 0.0, 0.75]]))  # 10 * 0.1 + 2 * 0.1^2 / 2
    torch.testing.assert_close(after.velocity, torch.tensor([[10.2, 0.0]]))
    assert after.heading.item() == 0.0


def test_a_quarter_of_a_circle():
    body = motion(5.0)
    curvature = 0.2  # radius 5 m: a quarter is 7.854 m, or 15.708 steps of 0.5 m
    for _ in range(15):
        body = step(body, 0.0, curvature)
    angle = 15 * 0.5 * curvature
    torch.testing.assert_close(body.position[0, :2], 5 * torch.tensor([math.sin(angle), 1 - math.cos(angle)]))
    torch.testing.assert_close(body.heading, torch.tensor([angle]))


def test_braking_ends_at_standstill():
    after = step(motion(0.4), -8.0, 0.0)  # stops after 0.05 s and 0.01 m
    torch.testing.assert_close(after.position[0, :2], torch.tensor([0.01, 0.0]))
    assert forward_speed(after).item() == 0.0
    assert step(after, -8.0, 0.2).position.equal(after.position)


def test_a_car_that_rolls_back_stands_still_and_can_start():
    assert forward_speed(step(motion(-1.0), 0.0, 0.0)).item() == 0.0
    assert forward_speed(step(motion(-1.0), 4.0, 0.0)).item() == pytest.approx(0.4)


def test_speed_and_grip_are_limited():
    assert forward_speed(step(motion(45.0), 4.0, 0.0)).item() == 45.0
    turned = step(motion(30.0), 0.0, 0.2).heading.item()
    assert turned == pytest.approx(30.0 * 0.1 * 9.0 / 900.0, rel=1e-4)


def test_impossible_limits_are_refused():
    with pytest.raises(ValueError, match="one below and one above 0"):
        KinematicBicycle(min_acceleration=1.0)
    with pytest.raises(ValueError, match="max_curvature: found 0"):
        KinematicBicycle(max_curvature=0.0)


@settings(max_examples=200, deadline=None)
@given(
    speed=st.floats(0.0, 40.0),
    heading=st.floats(-3.2, 3.2),
    acceleration=st.floats(-8.0, 4.0),
    share=st.floats(-1.0, 1.0),
    x=st.floats(-100.0, 100.0),
)
@example(speed=0.03125, heading=0.0, acceleration=-1.0, share=0.0, x=0.0)  # stops within half a millimetre
def test_action_is_the_inverse_of_step(speed, heading, acceleration, share, x):
    start = motion(speed, heading, x, -x)
    fastest = max(speed, speed + 0.1 * acceleration, 0.1)
    curvature = share * min(0.2, 9.0 / fastest**2)
    after = step(start, acceleration, curvature)
    found = CAR.action(start, after)[0]
    again = step(start, found[0].item(), found[1].item())
    torch.testing.assert_close(again.position, after.position, atol=1e-4, rtol=0)
    torch.testing.assert_close(again.heading.cos(), after.heading.cos(), atol=1e-4, rtol=0)
    torch.testing.assert_close(again.velocity, after.velocity, atol=2e-3, rtol=0)
    if speed > 1.0 and speed + 0.1 * acceleration > 0.1:
        assert found[0].item() == pytest.approx(acceleration, abs=5e-3)
        assert found[1].item() == pytest.approx(curvature, abs=1e-3)


def test_following_a_jittering_log_does_not_drift():
    generator = torch.Generator().manual_seed(1)
    time = torch.arange(120) * 0.1
    heading = 0.05 * time
    velocity = 10.0 * torch.stack((heading.cos(), heading.sin()), dim=-1)
    track = torch.cumsum(torch.cat((torch.zeros(1, 2), velocity[:-1] * 0.1)), dim=0)
    track = track + 0.05 * torch.randn(track.shape, generator=generator)
    body, errors = motion(9.0, x=-0.5, y=0.5), []
    for i in range(1, 120):
        target = Motion(torch.cat((track[i], torch.zeros(1)))[None], heading[i : i + 1], velocity[i : i + 1])
        body = CAR.step(body, CAR.action(body, target))
        errors.append((body.position[0, :2] - track[i]).norm().item())
    assert max(errors[30:]) < 0.35
