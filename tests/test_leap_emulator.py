"""The emulated motors, spoken to by the real dynamixel-sdk."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from widen.deploy.dynamixel_emulator import Motor
from widen.deploy.leap_emulator import LeapEmulator
from widen.deploy.leap_faults import FAULTS, make_fault, parse_fault
from widen.deploy.leap_motor import COUNT, Drive, MotorHand, gains_of
from widen.deploy.leap_registers import MOTOR_JOINTS, REGISTERS

sdk = pytest.importorskip("dynamixel_sdk")

# ROBOTIS e-manual, page XC330-M288-T: address, size, may be written
PRINTED = {
    "model_number": (0, 2, False),
    "firmware_version": (6, 1, False),
    "id": (7, 1, True),
    "baud_rate": (8, 1, True),
    "return_delay_time": (9, 1, True),
    "drive_mode": (10, 1, True),
    "operating_mode": (11, 1, True),
    "homing_offset": (20, 4, True),
    "current_limit": (38, 2, True),
    "max_position_limit": (48, 4, True),
    "min_position_limit": (52, 4, True),
    "torque_enable": (64, 1, True),
    "hardware_error": (70, 1, False),
    "position_d_gain": (80, 2, True),
    "position_i_gain": (82, 2, True),
    "position_p_gain": (84, 2, True),
    "bus_watchdog": (98, 1, True),
    "goal_current": (102, 2, True),
    "goal_position": (116, 4, True),
    "moving": (122, 1, False),
    "present_current": (126, 2, False),
    "present_velocity": (128, 4, False),
    "present_position": (132, 4, False),
    "present_input_voltage": (144, 2, False),
    "present_temperature": (146, 1, False),
}
DATA_RANGE, DATA_LENGTH, DATA_LIMIT, ACCESS = 4, 5, 6, 7


class Side(NamedTuple):
    """The sdk's end of the bus."""

    emulator: LeapEmulator
    port: Any
    packets: Any

    def write(self, id: int, address: int, size: int, value: int) -> int:
        """The error byte."""
        data = list((value & (1 << 8 * size) - 1).to_bytes(size, "little"))
        result, error = self.packets.writeTxRx(self.port, id, address, size, data)
        assert result == 0
        return error

    def read(self, id: int, address: int, size: int) -> tuple[int, int]:
        """Value and error byte."""
        data, result, error = self.packets.readTxRx(self.port, id, address, size)
        assert result == 0
        return int.from_bytes(bytes(data), "little"), error


@contextlib.contextmanager
def talk(emulator: LeapEmulator, baud: int = 4_000_000) -> Iterator[Side]:
    with emulator:
        port = sdk.PortHandler(emulator.port)
        # the sdk waits 34 ms; with another program on the machine a thread may need longer
        port.setPacketTimeout = lambda length: port.setPacketTimeoutMillis(1000.0)
        assert port.setBaudRate(baud)
        try:
            yield Side(emulator, port, sdk.PacketHandler(2.0))
        finally:
            port.closePort()


@pytest.fixture
def side() -> Iterator[Side]:
    with talk(LeapEmulator()) as side:
        yield side


def wait_for(condition: Callable[[], bool], seconds: float = 3.0) -> bool:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.005)
    return condition()


def test_the_control_table_is_the_printed_one() -> None:
    for name, (address, size, writable) in PRINTED.items():
        register = REGISTERS[name]
        assert (register.address, register.size, register.writable) == (address, size, writable)
    ends = sorted((r.address, r.address + r.size) for r in REGISTERS.values())
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ends))


def test_motors_are_in_the_makers_order() -> None:
    # side before forward: the trap of this hand
    assert MOTOR_JOINTS[:4] == ("if_rot", "if_mcp", "if_pip", "if_dip")
    assert MOTOR_JOINTS[8:] == (
        *("rf_rot", "rf_mcp", "rf_pip", "rf_dip"),
        *("th_cmc", "th_axl", "th_mcp", "th_ipl"),
    )


def test_ping_one_and_everybody(side: Side) -> None:
    assert side.packets.ping(side.port, 3)[:2] == (1240, 0)
    found, result = side.packets.broadcastPing(side.port)
    assert result == 0
    assert {id: model for id, (model, _) in found.items()} == dict.fromkeys(range(16), 1240)


def test_what_may_not_be_written(side: Side) -> None:
    assert side.write(2, 132, 4, 0) == ACCESS  # present position is read only
    assert side.write(2, 66, 1, 0) == ACCESS  # no such register
    assert side.write(2, 64, 1, 2) == DATA_RANGE
    assert side.write(2, 116, 2, 0) == DATA_LENGTH  # half of goal position
    assert side.write(2, 38, 2, 500) == 0
    assert side.write(2, 102, 2, 501) == DATA_LIMIT  # above the motor's own current limit
    assert side.write(2, 102, 2, -500) == 0
    assert side.write(2, 11, 1, 5) == 0
    assert side.write(2, 64, 1, 1) == 0
    assert side.write(2, 11, 1, 3) == ACCESS  # EEPROM is locked while the torque is on
    assert side.read(2, 11, 1) == (5, 0)
    assert side.read(2, 147, 2)[1] == ACCESS


def test_group_reads_and_writes_of_the_sdk(side: Side) -> None:
    write = sdk.GroupSyncWrite(side.port, side.packets, 116, 4)
    for id in range(16):
        assert write.addParam(id, (2000 + id).to_bytes(4, "little"))
    assert write.txPacket() == 0
    assert wait_for(lambda: side.emulator.motors[15].get("goal_position") == 2015)
    read = sdk.GroupSyncRead(side.port, side.packets, 116, 4)
    for id in range(16):
        read.addParam(id)
    for ask in (read.txRxPacket, read.fastSyncRead):
        assert ask() == 0
        assert [read.getData(id, 116, 4) for id in range(16)] == list(range(2000, 2016))
    bulk = sdk.GroupBulkRead(side.port, side.packets)
    bulk.addParam(1, 144, 2)
    bulk.addParam(9, 146, 1)
    assert bulk.txRxPacket() == 0
    assert (bulk.getData(1, 144, 2), bulk.getData(9, 146, 1)) == (50, 25)


def test_the_sdk_reads_stuffed_answers(side: Side) -> None:
    side.emulator.motors[7].put("velocity_trajectory", 0x00FDFFFF)  # FF FF FD 00 on the wire
    assert side.read(7, 136, 4) == (0x00FDFFFF, 0)


def test_a_registered_write_waits_for_action(side: Side) -> None:
    side.packets.regWriteTxRx(side.port, 4, 65, 1, [1])
    assert side.read(4, 69, 1) == (1, 0)
    assert side.read(4, 65, 1) == (0, 0)
    side.packets.action(side.port, 4)
    assert wait_for(lambda: side.emulator.motors[4].get("led") == 1)


def test_another_baud_rate_hears_nothing() -> None:
    with talk(LeapEmulator(), 1_000_000) as side:
        side.port.setPacketTimeout = lambda length: side.port.setPacketTimeoutMillis(50.0)
        assert side.packets.ping(side.port, 3)[1] == sdk.COMM_RX_TIMEOUT
        side.port.setBaudRate(4_000_000)
        side.port.setPacketTimeout = lambda length: side.port.setPacketTimeoutMillis(1000.0)
        assert side.packets.ping(side.port, 3)[1] == 0


def test_the_watchdog_stops_a_motor_and_refuses_goals_until_it_is_cleared(side: Side) -> None:
    motor = side.emulator.motors[6]
    for address, size, value in ((11, 1, 5), (84, 2, 600), (102, 2, 550), (116, 4, 2048)):
        assert side.write(6, address, size, value) == 0
    side.write(6, 64, 1, 1)
    assert side.write(6, 98, 1, 128) == DATA_RANGE
    side.write(6, 116, 4, 3500)
    side.write(6, 98, 1, 5)  # 100 ms
    fed = time.monotonic()
    asked = fed
    while asked < fed + 0.3:  # words to another motor feed it too
        asked = time.monotonic()
        side.read(1, 132, 4)
    assert motor.trips == 0
    assert wait_for(lambda: motor.trips == 1)
    assert time.monotonic() - asked >= 0.1
    stopped = motor.get("goal_position")
    assert 2048 < stopped < 3490  # where it was, not where it was sent
    assert side.read(6, 98, 1) == (0xFF, 0)
    assert side.write(6, 116, 4, 2500) == DATA_RANGE
    assert side.write(6, 102, 2, 100) == DATA_RANGE
    assert motor.get("goal_position") == stopped
    assert motor.torque_enabled
    assert side.write(6, 98, 1, 0) == 0
    assert side.write(6, 116, 4, 2500) == 0


def test_a_watchdog_without_torque_waits() -> None:
    motor = Motor(1)
    assert motor.write(98, b"\x01", 0.0) == 0
    assert not motor.watch(10.0)
    motor.write(64, b"\x01", 20.0)
    assert not motor.watch(20.02)
    assert motor.watch(20.021)


def test_an_overload_takes_the_torque_until_reboot(side: Side) -> None:
    side.write(2, 64, 1, 1)
    side.emulator.inject("overload", "if_pip")
    assert side.read(2, 64, 1) == (0, 0x80)  # alert
    assert side.read(2, 70, 1) == (1 << 5, 0x80)
    assert side.write(2, 64, 1, 1) == 0x80 | ACCESS
    assert side.read(1, 70, 1) == (0, 0)
    side.packets.reboot(side.port, 2)
    assert side.read(2, 70, 1) == (0, 0)
    assert side.write(2, 64, 1, 1) == 0


def test_a_motor_goes_where_it_is_sent() -> None:
    hand = MotorHand()
    p, i, d = gains_of(600, 0, 200)
    drive = Drive(np.ones(COUNT, bool), np.full(COUNT, 0.5), np.full(COUNT, 0.55))
    drive.p[:], drive.i[:], drive.d[:] = p, i, d
    hand.start(0.0)
    hand.advance(0.0015, drive)
    # one step from rest: all the current there is, 0.27 N m less friction on 0.0015 kg m^2, and
    # implicit damping: 1e-3 * 0.265 / 0.0015 / (1 + 1e-3 * 0.1 / 0.0015)
    np.testing.assert_allclose(hand.velocity, 0.17666667 / 1.06666667, rtol=1e-6)
    np.testing.assert_allclose(hand.current, 0.55)
    hand.advance(2.0, drive)
    # dry friction holds it where p * error * torque constant is less than 0.005 N m
    np.testing.assert_allclose(hand.angle, 0.5, atol=0.005 / (p * 0.27 / 0.55) + 1e-3)
    drive.torque[:] = False
    hand.advance(2.1, drive)
    np.testing.assert_array_equal(hand.current, 0.0)


def test_without_goal_first_a_motor_would_jump(side: Side) -> None:
    # what a driver must prevent: torque with the goal of the last power-on
    side.write(0, 11, 1, 5)
    side.write(0, 64, 1, 1)
    assert wait_for(lambda: side.read(0, 132, 4)[0] < 2000)


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_begins_and_ends(name: str) -> None:
    with talk(LeapEmulator(link=None)) as side:
        first = side.emulator.port
        side.emulator.inject(name)
        side.port.setPacketTimeout = lambda length: side.port.setPacketTimeoutMillis(40.0)
        time.sleep(0.05)
        if name == "unplug":
            with pytest.raises(Exception, match=r"."):  # whatever pyserial says
                side.packets.ping(side.port, 2)
        elif name in ("hung_bus", "silent_motor", "slow_bus"):
            assert side.packets.ping(side.port, 2)[1] == sdk.COMM_RX_TIMEOUT
        side.emulator.clear()
        side.port.is_using = False
        if name == "unplug":
            assert wait_for(lambda: Path(side.emulator.port).exists())
            port = sdk.PortHandler(side.emulator.port)
            assert port.setBaudRate(4_000_000)
            port.setPacketTimeout = lambda length: port.setPacketTimeoutMillis(1000.0)
            assert side.packets.ping(port, 2)[1] == 0
            port.closePort()
            return
        assert side.emulator.port == first
        time.sleep(0.1)
        side.port.setPacketTimeout = lambda length: side.port.setPacketTimeoutMillis(1000.0)
        assert side.packets.ping(side.port, 2) == (1240, 0, 0)


@pytest.mark.parametrize(
    ("name", "result"), [("lost_bytes", "lost"), ("wrong_crc", "corrupt"), ("noise", "fine")]
)
def test_spoilt_answers(side: Side, name: str, result: str) -> None:
    side.emulator.inject(name, 1.0)
    side.port.setPacketTimeout = lambda length: side.port.setPacketTimeoutMillis(100.0)
    got = [side.packets.ping(side.port, 2)[1] for _ in range(5)]
    if result == "fine":  # the sdk finds a packet behind garbage
        assert got.count(0) >= 4
    else:
        assert 0 not in got


def test_a_stuck_joint_stays(side: Side) -> None:
    side.emulator.inject("stuck_motor", "if_rot")
    for id in (0, 4):
        side.write(id, 11, 1, 5)
        side.write(id, 64, 1, 1)
        side.write(id, 116, 4, 2300)
    assert wait_for(lambda: side.read(4, 132, 4)[0] > 2250)
    assert side.read(0, 132, 4) == (2048, 0)
    assert side.read(0, 126, 2)[0] > 300  # and its motor pushes


def test_a_hot_motor_switches_itself_off(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("widen.deploy.leap_motor.Heat.FAULT_RATE", 200.0)
    side.write(2, 64, 1, 1)
    side.emulator.inject("hot_motor")
    assert wait_for(lambda: side.read(2, 146, 1)[0] > 70)
    assert side.read(2, 70, 1)[0] == 1 << 2
    assert side.read(2, 64, 1)[0] == 0


def test_faults_come_and_go_by_the_clock() -> None:
    with talk(LeapEmulator(faults=[parse_fault("overload:th_cmc@0.2+0.3")])) as side:
        assert side.read(12, 70, 1) == (0, 0)
        assert wait_for(lambda: side.emulator.motor("th_cmc").get("hardware_error") == 32)
        assert wait_for(lambda: side.emulator.motor("th_cmc").get("hardware_error") == 0)


def test_faults_are_read_from_text() -> None:
    fault = parse_fault("silent_motor:rf_dip@2.5+1")
    assert (fault.motor, fault.start, fault.duration) == (11, 2.5, 1.0)
    assert parse_fault("lost_bytes:.5").amount == 0.5
    assert parse_fault("overload").joint == "if_pip"
    for text, part in {
        "lost": "unknown; expected lost_bytes",
        "overload:if_tip": "no joint if_tip",
        "hung_bus:3": "nothing behind its colon",
        "noise:many": "expected a number",
        "wrong_crc:1.5": "out of range",
        "overload@soon": "expected NAME",
    }.items():
        with pytest.raises(ValueError, match=part):
            parse_fault(text)
    assert make_fault("slow_bus").amount == 0.05


def test_the_link_follows_the_port(tmp_path: Path) -> None:
    link = tmp_path / "hand"
    emulator = LeapEmulator(link=link)
    with emulator:
        assert link.is_symlink()
        assert str(link.readlink()) == emulator.port
        emulator.inject("unplug")
        assert wait_for(lambda: not link.is_symlink())
        emulator.clear()
        assert wait_for(link.is_symlink)
        assert str(link.readlink()) == emulator.port
    assert not link.is_symlink()
    link.write_text("mine")
    with pytest.raises(ValueError, match="exists and is no symbolic link"):
        LeapEmulator(link=link)
    assert link.read_text() == "mine"
