"""Time stamps on a step, for who asks where its time goes (docs/protocol.md §8).

An ACT with the flag TIMED ends with room for the stamps of the broker; the PERCEPT that answers it
has the flag, too, and ends with the stamps of all. Each is a reading, in nanoseconds, of the
writer's own monotonic clock: only readings of one clock may be subtracted from each other.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

from gymwire.protocol.codec import FLAGS_AT, HEAD_LEN, HEADER_SIZE, KIND_AT, TIMED, Frame
from gymwire.protocol.errors import DecodingError
from gymwire.protocol.messages import Kind

Clock = Callable[[], int]

_BROKER = struct.Struct("<2Q")
_AGENT = struct.Struct("<5Q")
_ALL = struct.Struct("<9Q")
REQUEST_SIZE = _BROKER.size  # 16
REPLY_SIZE = _ALL.size  # 72: the broker's of the request, the agent's, the broker's of the reply
_ROOM: dict[int, int] = {Kind.ACT: REQUEST_SIZE, Kind.PERCEPT: REPLY_SIZE}


class Stamps(NamedTuple):
    """What a reply carries, ns. Those of a broker are 0 where the frame did not pass one.

    `busy_since`: when the serving loop began the work that it did without a rest before it read the
    request; `received` itself if it was waiting for it.
    """

    there_received: int
    there_sent: int
    busy_since: int
    received: int
    started: int  # the environment's step
    ended: int
    sent: int
    back_received: int
    back_sent: int


def request_stamps(frame: Frame) -> Frame:
    """This ACT, asking for stamps."""
    timed = bytearray(frame)
    timed[FLAGS_AT] |= TIMED
    timed += bytes(REQUEST_SIZE)
    return timed


def stamp_relay(data: bytes | memoryview, received: int, clock: Clock) -> Frame | memoryview:
    """This frame as the broker relays it: with its stamps if it has the flag and the room."""
    room = _ROOM.get(data[KIND_AT])
    if room is None or not _fits(data, room):
        return data
    frame = bytearray(data)
    _BROKER.pack_into(frame, len(frame) - _BROKER.size, received, clock())
    return frame


def strip_request(data: bytes | memoryview) -> tuple[Frame, bytes]:
    """An ACT with the flag: as it would be without, and the broker's stamps, as they stand there.

    Raises DecodingError.
    """
    return _plain(data, REQUEST_SIZE)


def append_reply(
    frame: Frame,
    request: bytes,
    busy_since: int,
    received: int,
    started: int,
    ended: int,
    clock: Clock,
) -> Frame:
    """This PERCEPT with its stamps; `request`: the broker's stamps, as `asked` returned them."""
    timed = bytearray().join((frame, request, bytes(_AGENT.size + _BROKER.size)))
    timed[FLAGS_AT] |= TIMED
    at = len(frame) + len(request)
    _AGENT.pack_into(timed, at, busy_since, received, started, ended, clock())
    return timed


def strip_reply(data: bytes | memoryview) -> tuple[Frame, Stamps]:
    """A PERCEPT with the flag: as it would be without, and its stamps. Raises DecodingError."""
    frame, trailer = _plain(data, REPLY_SIZE)
    stamps = Stamps(*_ALL.unpack(trailer))
    for clock in (stamps[:2], stamps[2:7], stamps[7:]):
        if list(clock) != sorted(clock):
            raise DecodingError("The time stamps of a step run backwards.")
    return frame, stamps


def _fits(data: bytes | memoryview, size: int) -> bool:
    return len(data) >= HEADER_SIZE + int.from_bytes(data[HEAD_LEN], "little") + size


def _plain(data: bytes | memoryview, size: int) -> tuple[Frame, bytes]:
    if not _fits(data, size):
        raise DecodingError(f"A frame with time stamps has {size} bytes of them at its end.")
    view = memoryview(data)
    frame = bytearray(view[:-size])
    frame[FLAGS_AT] &= ~TIMED
    return frame, bytes(view[-size:])
