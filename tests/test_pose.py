"""Poses of the object: from a datagram, or any other source, to a reading with the right age."""

from __future__ import annotations

import json
import math
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
from scripted_clock import ScriptedClock

from widen.deploy.pose import (
    Calibration,
    ObjectPose,
    PoseSource,
    TrackedRobot,
    make_pose_source,
)
from widen.deploy.pose_udp import UdpPoseSource, parse_datagram
from widen.deploy.robot import Measurement, Robot

UPRIGHT = np.array([1.0, 0.0, 0.0, 0.0])


class Hand:
    """A robot that notes what is done to it, and sees the object perfectly."""

    joint_names = ("a", "b")

    def __init__(self) -> None:
        self.clock, self.drops, self.done = ScriptedClock(), 3, []

    def start(self) -> None:
        self.done.append("start")

    def read(self) -> dict[str, Measurement]:
        now, perfect = self.clock.now(), np.full(3, 9.0, np.float32)
        return {
            "joint_pos": Measurement(np.zeros(2, np.float32), now),
            "object_pos": Measurement(perfect, now),
        }

    def command(self, joint_target: np.ndarray) -> None:
        self.done.append(("command", *joint_target))

    def disarm(self) -> None:
        self.done.append("disarm")

    def stop(self) -> None:
        self.done.append("stop")
        raise OSError("no cable")


class Scripted:
    """A source whose next answer is set by a test."""

    def __init__(self) -> None:
        self.answer: Any = None
        self.done: list[str] = []

    def start(self) -> None:
        self.done.append("start")

    def latest(self) -> ObjectPose | None:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def stop(self) -> None:
        self.done.append("stop")


def test_a_tracked_robot_is_the_robot_but_for_the_object() -> None:
    hand, source = Hand(), Scripted()
    robot: Robot = TrackedRobot(hand, source)
    robot.start()
    assert robot.joint_names == ("a", "b")
    assert robot.drops == 3
    hand.drops = 4
    assert (robot.drops, robot.clock) == (4, hand.clock)
    # the hand's own perfect view of the object is not the tracker's
    assert set(robot.read()) == {"joint_pos"}
    source.answer = ObjectPose(np.array([1.0, 2, 3]), 1.04 * UPRIGHT, 98.5)
    seen = robot.read()
    assert [seen[name].time for name in ("joint_pos", "object_pos", "object_quat")] == [
        100.0,
        98.5,
        98.5,
    ]
    np.testing.assert_array_equal(seen["object_pos"].value, [1, 2, 3])
    np.testing.assert_array_equal(seen["object_quat"].value, UPRIGHT)
    assert {m.value.dtype for m in seen.values()} == {np.dtype("f4")}
    robot.command(np.array([0.1, 0.2]))
    robot.disarm()  # pyright: ignore
    with pytest.raises(OSError, match="no cable"):
        robot.stop()
    assert hand.done == ["start", ("command", 0.1, 0.2), "disarm", "stop"]
    assert source.done == ["start", "stop"]  # whatever the hand did
    assert not hasattr(robot, "teleport")


@pytest.mark.parametrize(
    ("pose", "reason"),
    [
        (ObjectPose(np.zeros(3), UPRIGHT, 99.0, "camera"), "frame 'camera', expected 'hand_base'"),
        (ObjectPose(np.zeros(3), 1.06 * UPRIGHT, 99.0), "quaternion: norm 1.06"),
        (ObjectPose(np.zeros(3), 0.94 * UPRIGHT, 99.0), "quaternion: norm 0.94"),
        (ObjectPose(np.zeros(3), np.zeros(4), 99.0), "norm 0"),
        (ObjectPose(np.array([0, math.nan, 0]), UPRIGHT, 99.0), "position: not finite"),
        (ObjectPose(np.zeros(2), UPRIGHT, 99.0), "position: expected 3 numbers"),
        (ObjectPose(np.zeros(3), UPRIGHT, math.nan), "time nan"),
        ("junk", "no attribute 'frame'"),
        (RuntimeError("the camera is gone"), "the camera is gone"),
    ],
)
def test_what_is_no_pose_of_the_hands_base_is_counted_and_ages(pose: Any, reason: str) -> None:
    source = Scripted()
    robot = TrackedRobot(Hand(), source)
    source.answer = ObjectPose(np.ones(3), UPRIGHT, 98.0)
    good = robot.read()["object_pos"]
    source.answer = pose
    for _ in range(2):
        assert robot.read()["object_pos"] is good
    assert robot.rejected == (2 if isinstance(pose, Exception) else 1)
    assert reason in str(robot.rejection)
    source.answer = ObjectPose(np.ones(3), UPRIGHT, 99.5)
    assert robot.read()["object_pos"].time == 99.5


def test_a_pose_in_the_cameras_frame_by_mujocos_own_arithmetic(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        frame, quat, place, pos = (
            *(q / np.linalg.norm(q) for q in rng.normal(size=(2, 4))),
            *(rng.normal(size=(2, 3))),
        )
        path = tmp_path / "camera.json"
        path.write_text(json.dumps({"frame": "cam", "position": [*place], "quaternion": [*frame]}))
        expected_pos, expected_quat = np.zeros(3), np.zeros(4)
        mujoco.mju_mulPose(expected_pos, expected_quat, place, frame, pos, quat)
        found_pos, found_quat = Calibration.load(path).to_hand(pos, quat)
        np.testing.assert_allclose(found_pos, expected_pos, atol=1e-12)
        np.testing.assert_allclose(found_quat, expected_quat, atol=1e-12)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "expected a JSON object, got list"),
        ('{"frame": "c", "position": [0, 0, 0]}', "'quaternion' is missing"),
        (
            '{"frame": "c", "position": [0, 0, 0], "quaternion": [1, 0, 0, 0], "pose": 1}',
            "'pose' is unknown",
        ),
        ('{"frame": "", "position": [0, 0, 0], "quaternion": [1, 0, 0, 0]}', "frame ''"),
        ('{"frame": "c", "position": [0, 0], "quaternion": [1, 0, 0, 0]}', "expected 3 numbers"),
        ('{"frame": "c", "position": [0, 0, 0], "quaternion": [2, 0, 0, 0]}', "norm 2"),
    ],
)
def test_a_calibration_that_is_none(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "camera.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        Calibration.load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        Calibration.load(tmp_path / "none.json")


GOOD = {
    "schema": "widen.pose/1",
    "frame": "hand_base",
    "seq": 7,
    "time": 12.5,
    "position": [0.1, 0, -0.2],
    "quaternion": [0, 1, 0, 0],
}


@pytest.mark.parametrize(
    ("datagram", "reason"),
    [
        (b"\xff\xfe", "not JSON"),
        (b"[" * 2000, "not JSON"),
        (b"x" * 2049, "longer than 2048 bytes"),
        (b"[1]", "expected a JSON object, got list"),
        ({"schema": "widen.pose/2"}, "schema 'widen.pose/2': expected 'widen.pose/1'"),
        ({"schema": None}, "schema None"),
        ({"seq": -1}, "seq -1: expected a count"),
        ({"seq": True}, "seq True"),
        ({"seq": 1.0}, "seq 1.0"),
        ({"time": "now"}, "time 'now': expected seconds"),
        ({"time": math.nan}, "time nan"),
        ({"time": 1_700_000_000_000_000_000}, "time 1700000000000000000: expected seconds"),
        ({"frame": 1}, "frame 1: expected a name"),
        ({"position": [0, 0]}, "position: expected 3 numbers"),
        ({"position": [0, 0, "0"]}, "position: expected 3 numbers"),
        ({"position": {"x": 0}}, "position: expected 3 numbers"),
        ({"position": [0, 0, math.inf]}, "position: not finite"),
        ({"position": [0, 0, 10**400]}, "position: not finite"),
        ({"quaternion": [1, 0, 0]}, "quaternion: expected 4 numbers"),
    ],
)
def test_malformed_datagrams(datagram: Any, reason: str) -> None:
    data = datagram if isinstance(datagram, bytes) else json.dumps({**GOOD, **datagram}).encode()
    with pytest.raises(ValueError, match=re.escape(reason)):
        parse_datagram(data)


def test_every_key_is_needed() -> None:
    pose = parse_datagram(json.dumps(GOOD).encode())
    assert (pose.seq, pose.time, pose.frame) == (7, 12.5, "hand_base")
    np.testing.assert_array_equal(pose.quaternion, [0, 1, 0, 0])
    for key in GOOD.keys() - {"schema"}:
        with pytest.raises(ValueError, match=f"'{key}' is missing"):
            parse_datagram(json.dumps({k: v for k, v in GOOD.items() if k != key}).encode())


def wait_for(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 10.0
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.002)


def test_datagrams_through_a_real_socket() -> None:
    source = UdpPoseSource(port=0)
    robot = TrackedRobot(Hand(), source)
    source.start()
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        to = "127.0.0.1", source.port
        assert source.latest() is None
        for junk in (b"", b"{}", b"\x00" * 5000, b"[" * 60000):
            sender.sendto(junk, to)
        sender.sendto(json.dumps(GOOD).encode(), to)
        before = time.monotonic()
        wait_for(lambda: source.latest() is not None)
        seen = robot.read()
        np.testing.assert_allclose(seen["object_pos"].value, [0.1, 0, -0.2])
        assert before - 1.0 < seen["object_pos"].time <= time.monotonic()
        assert (source.inbox.received, source.inbox.malformed) == (5, 4)
        assert source.inbox.problem == "longer than 2048 bytes"
        # sent now, but by the sender's clock half a second before the one that came at once
        late = {**GOOD, "seq": 8, "time": 12.6}
        time.sleep(0.3)
        sender.sendto(json.dumps(late).encode(), to)
        wait_for(lambda: source.inbox.received == 6)
        latest = source.latest()
        assert latest is not None
        assert time.monotonic() - latest.time >= 0.2
    finally:
        sender.close()
        source.stop()
        source.stop()
    source.start()  # once more
    source.stop()


def test_the_sender_of_the_documentation() -> None:
    text = (Path(__file__).parents[1] / "docs" / "object-pose.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(import itertools\n.*?)```", text, re.DOTALL)
    source = UdpPoseSource(port=0)
    source.start()
    process = subprocess.Popen([sys.executable, "-c", code.replace("9870", str(source.port))])
    try:
        wait_for(lambda: source.inbox.received >= 10)
        pose = source.latest()
        assert pose is not None
        np.testing.assert_array_equal(pose.position, [-0.027, 0.03, 0.066])
        assert time.monotonic() - pose.time < 1.0
        assert (source.inbox.malformed, source.inbox.late) == (0, 0)
    finally:
        process.kill()
        process.wait()
        source.stop()


def test_a_port_in_use_is_one_line() -> None:
    first = UdpPoseSource(port=0)
    first.start()
    second = UdpPoseSource(port=first.port)
    try:
        with pytest.raises(ValueError, match=f"--pose: cannot listen on UDP port {first.port} of "):
            second.start()
    finally:
        second.stop()
        first.stop()
    with pytest.raises(ValueError, match="cannot listen on UDP port 9870 of no-such-host"):
        UdpPoseSource("no-such-host.invalid").start()


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("udp", "127.0.0.1", 9870),
        ("udp:7000", "127.0.0.1", 7000),
        ("udp:0.0.0.0:7000", "0.0.0.0", 7000),
        ("udp:[::1]:7000", "::1", 7000),
    ],
)
def test_sources_of_the_command_line(text: str, host: str, port: int) -> None:
    source: PoseSource = make_pose_source(text, latency=0.01)
    assert isinstance(source, UdpPoseSource)
    assert (source._host, source.port) == (host, port)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tcp:1", r"--pose tcp:1: expected udp\[\[:HOST\]:PORT\], ros:HOST:PORT/TOPIC or ros2:"),
        ("udp:", "--pose udp:: expected udp, udp:PORT or udp:HOST:PORT"),
        ("udp:host", "port 'host': expected 1 to 65535"),
        ("udp:0", "port '0': expected 1 to 65535"),
        ("udp:1.2.3.4:70000", "port '70000'"),
        ("ros", "--pose ros: expected ros:HOST:PORT/TOPIC"),
        ("ros:host:9090", "expected ros:HOST:PORT/TOPIC"),
        ("ros:9090/pose", "expected ros:HOST:PORT/TOPIC"),
        ("ros:host:x/pose", "port 'x'"),
    ],
)
def test_sources_that_there_are_not(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_pose_source(text)
    with pytest.raises(ValueError, match="cannot be read"):
        make_pose_source("udp", calibration="no/such/file.json")
