"""Dynamixel packets against the e-manual's printed bytes and against dynamixel-sdk's own."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from widen.deploy.dynamixel_packet import BYTE_GAP, PacketReader, crc16, encode

sdk = pytest.importorskip("dynamixel_sdk")

# ROBOTIS e-manual, "Protocol 2.0", the examples of each instruction: id, instruction, parameters
PRINTED = {
    "ping": (1, 0x01, "", "FF FF FD 00 01 03 00 01 19 4E"),
    "ping everyone": (254, 0x01, "", "FF FF FD 00 FE 03 00 01 31 42"),
    "read": (1, 0x02, "84 00 04 00", "FF FF FD 00 01 07 00 02 84 00 04 00 1D 15"),
    "write": (1, 0x03, "74 00 00 02 00 00", "FF FF FD 00 01 09 00 03 74 00 00 02 00 00 CA 89"),
    "reboot": (1, 0x08, "", "FF FF FD 00 01 03 00 08 2F 4E"),
    "sync read": (
        254,
        0x82,
        "84 00 04 00 01 02",
        "FF FF FD 00 FE 09 00 82 84 00 04 00 01 02 CE FA",
    ),
    "status of a ping": (1, 0x55, "00 06 04 26", "FF FF FD 00 01 07 00 55 00 06 04 26 65 5D"),
    "status of a read": (2, 0x55, "00 1F 08 00 00", "FF FF FD 00 02 08 00 55 00 1F 08 00 00 BA BE"),
    "status of a write": (1, 0x55, "00", "FF FF FD 00 01 04 00 55 00 A1 0C"),
}


class Wire:
    """A port of the sdk that keeps what is written."""

    is_using = False

    def __init__(self) -> None:
        self.written = b""

    def clearPort(self) -> None:
        pass

    def writePort(self, packet: list[int]) -> int:
        self.written += bytes(packet)
        return len(packet)

    def setPacketTimeout(self, length: int) -> None:
        pass


@pytest.mark.parametrize("case", PRINTED.values(), ids=PRINTED.keys())
def test_the_printed_packets(case: tuple[int, int, str, str]) -> None:
    id, instruction, params, printed = case
    wire = bytes.fromhex(printed)
    assert encode(id, instruction, bytes.fromhex(params)) == wire
    assert crc16(wire[:-2]) == wire[-2] + 256 * wire[-1]
    (packet,) = PacketReader().feed(wire, 0.0)
    assert packet == (id, instruction, bytes.fromhex(params), True)


def test_a_header_inside_a_packet_gets_one_more_fd() -> None:
    # goal position 0x00FDFFFF is FF FF FD 00 on the wire, which would be a header
    wire = encode(1, 3, bytes.fromhex("74 00 FF FF FD 00"))
    assert wire[5:-2] == bytes.fromhex("0A 00 03 74 00 FF FF FD FD 00")
    assert PacketReader().feed(wire, 0.0)[0].params == bytes.fromhex("74 00 FF FF FD 00")


TRICKY = st.lists(st.sampled_from([0xFF, 0xFD, 0x00, 0x55]) | st.integers(0, 255), max_size=40)


@given(params=TRICKY, id=st.integers(0, 252))
def test_the_sdk_writes_the_same_bytes(params: list[int], id: int) -> None:
    # dynamixel-sdk 4.1.0 (Python) forgets the stuffing when it writes; no goal of ours needs any
    assume(b"\xff\xff\xfd" not in bytes(params))
    wire, packets = Wire(), sdk.PacketHandler(2.0)
    packets.writeTxOnly(wire, id, 116, len(params), params)
    own = encode(id, 3, bytes((116, 0, *params)))
    assert own == wire.written
    assert PacketReader().feed(wire.written, 0.0) == [(id, 3, bytes((116, 0, *params)), True)]


@given(params=TRICKY, cuts=st.lists(st.integers(1, 30), max_size=5), noise=st.binary(max_size=9))
def test_packets_are_found_in_pieces_and_behind_noise(
    params: list[int], cuts: list[int], noise: bytes
) -> None:
    # noise that is itself the beginning of a packet may swallow the next one
    noise = noise.replace(b"\xff", b"\x00")
    stream = noise + encode(7, 3, bytes(params)) + encode(8, 1)
    reader, found, place = PacketReader(), [], 0
    for cut in [*cuts, len(stream)]:
        found += reader.feed(stream[place : place + cut], 0.0)
        place += cut
    assert found == [(7, 3, bytes(params), True), (8, 1, b"", True)]


def test_a_wrong_crc_is_told_and_the_next_packet_found() -> None:
    wire = bytearray(encode(1, 2, bytes((132, 0, 4, 0))))
    wire[9] ^= 1
    first, second = PacketReader().feed(bytes(wire) + encode(2, 1), 0.0)
    assert not first.intact
    assert second == (2, 1, b"", True)


def test_half_a_packet_is_forgotten_after_a_silence() -> None:
    reader = PacketReader()
    assert reader.feed(encode(1, 2, bytes(20))[:15], 0.0) == []
    assert reader.feed(encode(2, 1), 0.01) == []  # swallowed: it could still be the other's rest
    reader = PacketReader()
    reader.feed(encode(1, 2, bytes(20))[:15], 0.0)
    assert reader.feed(encode(2, 1), 2 * BYTE_GAP) == [(2, 1, b"", True)]


def test_any_single_damaged_byte_is_noticed() -> None:
    wire = encode(3, 3, bytes((64, 0, 1)))
    for place in range(len(wire)):
        broken: Any = bytearray(wire)
        broken[place] ^= 0x10
        found = PacketReader().feed(bytes(broken), 0.0)
        assert not any(packet.intact for packet in found), place
