"""Dynamixel protocol 2.0 on the wire: headers, byte stuffing, CRC.

Source: ROBOTIS e-manual, "Protocol 2.0" and "CRC Calculation". A packet is

    FF FF FD 00  ID  LEN_L LEN_H  INSTRUCTION  PARAMETERS...  CRC_L CRC_H

where LEN counts instruction, parameters and CRC, with byte stuffing applied.
"""

from __future__ import annotations

from typing import NamedTuple

HEADER = b"\xff\xff\xfd\x00"
BROADCAST = 0xFE
STATUS = 0x55
MAX_LENGTH = 1024  # of the rest of a packet; a longer one is noise that looks like a header
BYTE_GAP = 0.05  # an unfinished packet is given up after so much silence [s]


class Packet(NamedTuple):
    """One packet as it came."""

    id: int
    instruction: int
    params: bytes
    """with the stuffing removed"""
    intact: bool
    """whether the CRC is right"""


def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        crc = byte << 8
        for _ in range(8):
            crc = (crc << 1) ^ (0x8005 if crc & 0x8000 else 0)
        table.append(crc & 0xFFFF)
    return tuple(table)


_TABLE = _crc_table()


def crc16(data: bytes, crc: int = 0) -> int:
    """CRC-16 of the protocol (polynomial 0x8005, initial value 0, nothing reflected)."""
    for byte in data:
        crc = ((crc << 8) & 0xFFFF) ^ _TABLE[(crc >> 8) ^ byte]
    return crc


def encode(id: int, instruction: int, params: bytes = b"") -> bytes:
    """A whole packet. Of a status packet the first parameter is the error byte."""
    # what looks like a header inside a packet gets one FD more
    body = (bytes((instruction,)) + params).replace(b"\xff\xff\xfd", b"\xff\xff\xfd\xfd")
    packet = HEADER + bytes((id,)) + (len(body) + 2).to_bytes(2, "little") + body
    return packet + crc16(packet).to_bytes(2, "little")


class PacketReader:
    """Finds packets in a stream of bytes, whatever else is in it."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._fed = float("-inf")

    def feed(self, data: bytes, now: float) -> list[Packet]:
        """The packets that these bytes complete.

        Args:
            data: what has come.
            now: when it came [s]; what was unfinished long before is thrown away.
        """
        if now - self._fed > BYTE_GAP:
            self._buffer.clear()
        self._fed = now
        self._buffer += data
        packets: list[Packet] = []
        while (packet := self._next()) is not None:
            packets.append(packet)
        return packets

    def _next(self) -> Packet | None:
        buffer = self._buffer
        while True:
            start = buffer.find(HEADER)
            if start < 0:  # the last bytes may be the beginning of a header
                del buffer[: max(0, len(buffer) - len(HEADER) + 1)]
                return None
            del buffer[:start]
            if len(buffer) < 7:
                return None
            length = int.from_bytes(buffer[5:7], "little")
            if 3 <= length <= MAX_LENGTH:
                break
            del buffer[: len(HEADER)]
        if len(buffer) < 7 + length:
            return None
        whole = bytes(buffer[: 7 + length])
        body = whole[7:-2].replace(b"\xff\xff\xfd\xfd", b"\xff\xff\xfd")
        intact = crc16(whole[:-2]) == int.from_bytes(whole[-2:], "little")
        # behind a damaged length may hide the header of the next packet
        del buffer[: 7 + length if intact else len(HEADER)]
        return Packet(whole[4], body[0], body[1:], intact)
