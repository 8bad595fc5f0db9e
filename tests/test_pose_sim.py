"""A simulated camera, by arithmetic on a scripted clock."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scripted_clock import ScriptedClock

from widen.deploy.pose import ObjectPose, TrackedRobot
from widen.deploy.pose_sim import CameraModel, SimPoseSource, object_of
from widen.deploy.sim_robot import SimRobot
from widen.envs.hand import load_hand
from widen.envs.scene import build_scene

EXACT = CameraModel(20.0, 0.03, 0.0, 0.0, 1.0, 0.0, 0.0)
BEGIN = 100.0


def turning(clock: ScriptedClock) -> Callable[[], ObjectPose]:
    """Moves 0.1 m/s along x, and turns 1 rad/s about z."""

    def truth() -> ObjectPose:
        t = clock.time - BEGIN
        turn = np.array([math.cos(t / 2), 0, 0, math.sin(t / 2)])
        return ObjectPose(np.array([0.1 * t, 0, 0]), turn, clock.time)

    return truth


def test_rate_and_latency() -> None:
    clock = ScriptedClock()
    source = SimPoseSource(turning(clock), clock, EXACT)
    source.start()
    for ms in range(2000):
        clock.time = BEGIN + 1e-3 * ms + 1e-7
        pose = source.latest()
        if ms < 30:
            assert pose is None
            continue
        assert pose is not None
        taken = (ms - 30) // 50 * 0.05
        assert pose.time == pytest.approx(BEGIN + taken, abs=1e-9)
        np.testing.assert_allclose(pose.position, [0.1 * taken, 0, 0], atol=1e-6)
        expected = [math.cos(taken / 2), 0, 0, math.sin(taken / 2)]
        np.testing.assert_allclose(pose.quaternion, expected, atol=1e-6)
        assert pose.frame == "hand_base"


def test_pictures_between_two_looks_show_what_was_between() -> None:
    clock = ScriptedClock()
    source = SimPoseSource(turning(clock), clock, EXACT)
    source.start()
    for k in range(60):
        clock.time = BEGIN + 0.07 * k
        if (pose := source.latest()) is not None:
            taken = pose.time - BEGIN
            assert taken == pytest.approx(math.floor((0.07 * k - 0.03) * 20 + 1e-6) / 20)
            np.testing.assert_allclose(pose.position, [0.1 * taken, 0, 0], atol=1e-12)
            angle = 2 * math.atan2(pose.quaternion[3], pose.quaternion[0])
            assert angle == pytest.approx(taken, abs=1e-5)


def test_an_object_that_was_put_elsewhere_is_never_shown_on_its_way() -> None:
    clock = ScriptedClock()
    upright = np.array([1.0, 0, 0, 0])
    source = SimPoseSource(
        lambda: ObjectPose(np.array([float(clock.time > BEGIN + 1), 0, 0]), upright, clock.time),
        clock,
        EXACT,
    )
    source.start()
    seen = set()
    for k in range(40):
        clock.time = BEGIN + 0.07 * k
        if (pose := source.latest()) is not None:
            seen.add(float(pose.position[0]))
    assert seen == {0.0, 1.0}


def test_jitter_delays_and_never_takes_back() -> None:
    clock = ScriptedClock()
    camera = CameraModel(100.0, 0.02, 0.03, 0.0, 1.0, 0.0, 0.0)  # one may overtake two others
    source = SimPoseSource(turning(clock), clock, camera)
    source.start()
    delays, last = [], -math.inf
    for tenth in range(30000):
        clock.time = BEGIN + 1e-4 * tenth
        pose = source.latest()
        if pose is not None and pose.time != last:
            assert pose.time > last
            delays.append(clock.time - pose.time)
            last = pose.time
    assert min(delays) >= 0.02 - 1e-9
    assert max(delays) <= 0.05 + 1.1e-4
    assert min(delays) < 0.021
    assert 125 < len(delays) < 300  # of 300; the others were overtaken


def lost(camera: CameraModel, pictures: int) -> np.ndarray:
    """(pictures,) bool."""
    clock = ScriptedClock()
    source = SimPoseSource(turning(clock), clock, camera, seed=3)
    source.start()
    missing = np.zeros(pictures, bool)
    for k in range(pictures):
        clock.time = BEGIN + k / camera.rate_hz
        pose = source.latest()
        missing[k] = pose is None or abs(pose.time - clock.time) > 1e-6
    return missing


def test_pictures_are_lost_in_bursts_of_the_stated_share_and_length() -> None:
    missing = lost(CameraModel(50.0, 0.0, 0.0, 0.2, 4.0, 0.0, 0.0), 12000)
    bursts = np.count_nonzero(np.diff(missing.astype(int), prepend=0) == 1)
    # 1000 bursts of geometric length, standard deviation about 3.5 each
    assert missing.sum() / bursts == pytest.approx(4.0, abs=0.45)
    assert missing.mean() == pytest.approx(0.2, abs=0.03)
    assert not lost(CameraModel(50.0, 0.0, 0.0, 0.0, 4.0, 0.0, 0.0), 500).any()


def test_noise() -> None:
    clock = ScriptedClock()
    camera = CameraModel(50.0, 0.0, 0.0, 0.0, 1.0, 0.002, 0.02)
    source = SimPoseSource(turning(clock), clock, camera)
    source.start()
    shifts, turns = [], []
    for k in range(4000):
        clock.time = BEGIN + k / 50
        pose, t = source.latest(), clock.time - BEGIN
        assert pose is not None
        shifts.append(pose.position - [0.1 * t, 0, 0])
        # rotation from the truth to what is seen, as a small rotation vector
        w, x, y, z = pose.quaternion
        c, s = math.cos(t / 2), -math.sin(t / 2)
        turn = np.array([w * c - z * s, x * c + y * s, y * c - x * s, z * c + w * s])
        turns.append(2 * turn[1:] * np.sign(turn[0]))
        assert np.linalg.norm(pose.quaternion) == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(np.std(shifts, axis=0), 0.002, rtol=0.05)
    np.testing.assert_allclose(np.std(turns, axis=0), 0.02, rtol=0.05)
    np.testing.assert_allclose(np.mean(shifts, axis=0), 0, atol=4 * 0.002 / math.sqrt(4000))


def test_the_same_seed_gives_the_same_poses_and_starting_begins_anew() -> None:
    clock = ScriptedClock()
    source = SimPoseSource(turning(clock), clock, CameraModel(dropout=0.3), seed=5)

    def record(source: SimPoseSource) -> list[Any]:
        clock.time = BEGIN
        source.start()
        assert source.latest() is None
        found = []
        for k in range(200):
            clock.time = BEGIN + 0.013 * k
            if (pose := source.latest()) is not None:
                found.append((pose.time, *pose.position, *pose.quaternion))
        return found

    first = record(source)
    assert record(source) == first
    assert record(SimPoseSource(turning(clock), clock, CameraModel(dropout=0.3), seed=6)) != first


def test_a_simulated_hand_seen_by_a_camera() -> None:
    clock = ScriptedClock()
    robot = SimRobot.from_scene(build_scene(load_hand("leap"), "cube", timestep=0.002), clock)
    tracked = TrackedRobot(robot, SimPoseSource(object_of(robot), clock, EXACT))
    tracked.start()
    true, seen = {}, []
    for step in range(150):
        clock.time = BEGIN + 0.01 * step + 1e-6
        true[step] = robot.read()["object_pos"].value
        measured = tracked.read()
        assert clock.time - measured["joint_pos"].time < 0.002 + 1e-5
        if step < 3:
            assert set(measured) == {"joint_pos", "fingertip_pos"}
            continue
        reading = measured["object_pos"]
        taken = round((reading.time - BEGIN) / 0.01)
        assert taken == (step - 3) // 5 * 5
        np.testing.assert_allclose(reading.value, true[taken], atol=2e-5)
        seen.append(reading.value)
    assert np.ptp(seen, axis=0)[2] > 0.005  # the cube fell onto the palm meanwhile


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"rate_hz": 0.0}, "rate_hz 0.0: expected more than 0"),
        ({"latency_s": -0.1}, "latency_s -0.1: expected at least 0"),
        ({"jitter_s": math.nan}, "jitter_s nan"),
        ({"burst": 0.5}, "burst 0.5: expected at least 1"),
        ({"dropout": 1.0}, "dropout 1.0: too much for bursts of 3"),
        ({"dropout": 0.8}, "dropout 0.8: too much for bursts of 3"),
    ],
)
def test_cameras_that_cannot_be(setting: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CameraModel(**setting)
