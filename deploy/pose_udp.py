"""Object poses as UDP datagrams of JSON; docs/object-pose.md describes them."""

from __future__ import annotations

import json
import socket
import threading
from typing import Any

from .pose import Calibration, ObjectPose, vector
from .pose_inbox import PoseInbox, SentPose
from .robot import Clock, MonotonicClock

SCHEMA = "widen.pose/1"
HOST, PORT = "127.0.0.1", 9870
LONGEST = 2048  # of a datagram [bytes]
_KEYS = {"schema", "frame", "seq", "time", "position", "quaternion"}


class UdpPoseSource:
    """Listens on a port; a thread of its own takes in what comes.

    Attributes:
        inbox: counts of what was received and not used.
        port: the one in use; another than asked for only if that was 0, any free one.
    """

    def __init__(
        self,
        host: str = HOST,
        port: int = PORT,
        *,
        transform: Calibration | None = None,
        latency: float = 0.0,
        clock: Clock | None = None,
    ) -> None:
        """Does not listen yet.

        Args:
            host: address to listen on; "0.0.0.0" hears other computers too.
            port: 0 to 65535.
            transform: of a frame that poses may be in beside the hand's.
            latency: [s] from the moment that a pose was so to the sender's time of it.
            clock: the robot's; None for the computer's.
        """
        self.port = port
        self.inbox = PoseInbox(transform, latency)
        self._host, self._clock = host.strip("[]"), clock or MonotonicClock()
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._ending = threading.Event()

    def start(self) -> None:
        if self._thread is not None:
            return
        self._socket = _listen(self._host, self.port)
        self.port = self._socket.getsockname()[1]
        self._ending.clear()
        self._thread = threading.Thread(target=self._receive, name="pose", daemon=True)
        self._thread.start()

    def latest(self) -> ObjectPose | None:
        return self.inbox.latest

    def stop(self) -> None:
        self._ending.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _receive(self) -> None:
        assert self._socket is not None
        while not self._ending.is_set():
            try:
                datagram = self._socket.recv(LONGEST + 1)
            except TimeoutError:
                continue
            except OSError as error:  # an earlier packet's ICMP answer, a network that went down
                self.inbox.refuse(f"network: {error.strerror or error}")
                self._ending.wait(0.05)
                continue
            arrival = self._clock.now()
            try:
                sent = parse_datagram(datagram)
            except ValueError as error:
                self.inbox.refuse(str(error))
            else:
                self.inbox.put(sent, arrival)


def parse_datagram(datagram: bytes) -> SentPose:
    """Raises ValueError, in one line, for what is no datagram of this schema."""
    if len(datagram) > LONGEST:
        raise ValueError(f"longer than {LONGEST} bytes")
    try:
        data = json.loads(datagram)
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None
    if not isinstance(data, dict):
        raise ValueError(f"expected a JSON object, got {type(data).__name__}")
    if data.get("schema") != SCHEMA:
        raise ValueError(f"schema {_short(data.get('schema'))}: expected {SCHEMA!r}")
    if missing := sorted(_KEYS - set(data)):
        raise ValueError(f"{missing[0]!r} is missing")
    seq, time, frame = data["seq"], data["time"], data["frame"]
    if not isinstance(seq, int) or isinstance(seq, bool) or seq < 0:
        raise ValueError(f"seq {_short(seq)}: expected a count")
    if not isinstance(frame, str):
        raise ValueError(f"frame {_short(frame)}: expected a name")
    if not isinstance(time, (int, float)) or isinstance(time, bool):
        raise ValueError(f"time {_short(time)}: expected seconds")
    # beyond this a float64 no longer tells microseconds apart
    if not abs(time) <= 1e10:
        raise ValueError(f"time {_short(time)}: expected seconds")
    position = vector(data["position"], 3, "position")
    quaternion = vector(data["quaternion"], 4, "quaternion")
    return SentPose(position, quaternion, float(time), frame, seq)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket; raises ValueError for an address that cannot be had."""
    made = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, protocol)
        made.bind(address)
    except OSError as error:
        if made is not None:
            made.close()
        reason = error.strerror or str(error)
        raise ValueError(f"--pose: cannot listen on UDP port {port} of {host}: {reason}") from None
    made.settimeout(0.1)  # how long stopping may take
    return made
