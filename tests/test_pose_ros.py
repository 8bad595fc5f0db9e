"""The ROS bridge against a rosbridge of our own, on another websocket library."""

from __future__ import annotations

import json
import math
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from websockets.sync.server import ServerConnection, serve

from widen.deploy.pose import make_pose_source
from widen.deploy.pose_ros import RosPoseSource, parse_message

ROS1 = {
    "header": {"seq": 4, "stamp": {"secs": 1700000000, "nsecs": 250000000}, "frame_id": "/cam"},
    "pose": {
        "position": {"x": 1, "y": 2.0, "z": 3.0},
        "orientation": {"x": 0.1, "y": 0.2, "z": 0.3, "w": 0.9},
    },
}
ROS2 = {**ROS1, "header": {"stamp": {"sec": 1700000000, "nanosec": 250000000}, "frame_id": "cam"}}


@pytest.mark.parametrize("message", [ROS1, ROS2], ids=["ros1", "ros2"])
def test_a_message_of_either_ros(message: dict[str, Any]) -> None:
    pose = parse_message(message)
    assert (pose.time, pose.frame) == (1700000000.25, "cam")
    np.testing.assert_array_equal(pose.position, [1, 2, 3])
    np.testing.assert_array_equal(pose.quaternion, [0.9, 0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"pose": None}, "pose is missing; expected a PoseStamped"),
        ({"pose": {"position": {"x": 0}}}, "pose.orientation is missing"),
        ({"pose": {**ROS1["pose"], "position": {"x": 0, "y": 0}}}, "pose.position: expected 3"),
        ({"pose": {**ROS1["pose"], "orientation": {"w": None}}}, "pose.orientation: expected 4"),
        ({"header": {}}, "header.stamp is missing"),
        ({"header": {"stamp": {"secs": 1}, "frame_id": "a"}}, "header.stamp: expected 2 numbers"),
        ({"header": {"stamp": {"sec": 0, "nanosec": 0}, "frame_id": "a"}}, "header.stamp is 0"),
        ({"header": {**ROS1["header"], "frame_id": None}}, "header.frame_id: expected a name"),
    ],
)
def test_messages_that_are_none(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_message({**ROS1, **change})


def test_without_roslibpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "roslibpy", None)
    with pytest.raises(ValueError, match=r"needs roslibpy; pip install 'widen\[ros\]'"):
        make_pose_source("ros:localhost:9090/pose")


class Bridge:
    """As much of the rosbridge protocol as a subscriber meets, in threads of its own."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.clients: list[ServerConnection] = []
        self._server = serve(self._meet, "127.0.0.1", 0)
        self.port = self._server.socket.getsockname()[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _meet(self, client: ServerConnection) -> None:
        self.clients.append(client)
        for request in client:
            self.requests.append(json.loads(request))

    def publish(self, message: Any) -> None:
        publication = {"op": "publish", "topic": "/object_pose", "msg": message}
        self.clients[-1].send(json.dumps(publication))

    def hang_up(self) -> None:
        self.clients[-1].socket.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        self._server.shutdown()


@pytest.fixture
def bridge() -> Iterator[Bridge]:
    made = Bridge()
    yield made
    made.stop()


def wait_for(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 20.0
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.005)


def stamped(seconds: float, x: float) -> dict[str, Any]:
    part, whole = math.modf(seconds)
    header = {"stamp": {"sec": int(whole), "nanosec": round(1e9 * part)}, "frame_id": "hand_base"}
    return {
        "header": header,
        "pose": {
            "position": {"x": x, "y": 0.0, "z": 0.0},
            "orientation": {"x": 0.0, "y": 0.0, "z": 1.0, "w": 0.0},
        },
    }


def test_poses_through_roslibpy_and_a_bridge_that_hangs_up(bridge: Bridge) -> None:
    source = make_pose_source(f"ros2:127.0.0.1:{bridge.port}/object_pose")
    assert isinstance(source, RosPoseSource)
    source.start()
    try:
        wait_for(lambda: len(bridge.requests) == 1)
        asked = bridge.requests[0]
        assert (asked["op"], asked["topic"]) == ("subscribe", "/object_pose")
        assert asked["type"] == "geometry_msgs/msg/PoseStamped"
        assert source.latest() is None
        bridge.publish(stamped(500.0, 0.1))
        wait_for(lambda: source.latest() is not None)
        pose = source.latest()
        assert pose is not None
        np.testing.assert_array_equal(pose.position, [0.1, 0, 0])
        np.testing.assert_array_equal(pose.quaternion, [0, 0, 0, 1])
        assert 0 <= time.monotonic() - pose.time < 2.0
        bridge.publish({"nothing": "here"})
        wait_for(lambda: source.inbox.malformed == 1)
        bridge.hang_up()
        wait_for(lambda: len(bridge.requests) == 2)  # subscribed anew, by itself
        bridge.publish(stamped(501.0, 0.2))
        wait_for(lambda: source.inbox.received == 3)
        pose = source.latest()
        assert pose is not None
        assert pose.position[0] == 0.2
    finally:
        source.stop()
        source.stop()


def test_no_bridge_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("widen.deploy.pose_ros.PATIENCE", 0.3)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        port = taken.getsockname()[1]
        source = make_pose_source(f"ros:127.0.0.1:{port}/pose")
        with pytest.raises(ValueError, match=f"no rosbridge answers at 127.0.0.1:{port} within"):
            source.start()
        source.stop()
