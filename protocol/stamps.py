"""Time stamps on a step, to find out where its time goes (docs/protocol.md §8).

An ACT with the flag TIMED ends with room for the stamps of the broker. The PERCEPT that answers it
also has the flag and ends with the stamps of everyone. Each stamp is a reading of the writer's own
monotonic clock in nanoseconds, so subtract only readings of the same clock.
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
    """The stamps of a reply, in ns. Those of the broker are 0 in a direct session.

    The names with `request_` and `reply_` are the broker's. `busy_since`: when the serving loop
    began the uninterrupted work that it finished before it read the request; equal to `received` if
    the loop was waiting.
    """

    request_received: int
    request_sent: int
    busy_since: int
    received: int
    started: int  # the environment's step
    ended: int
    sent: int
    reply_received: int
    reply_sent: int


def request_stamps(frame: Frame) -> Frame:
    """Return this ACT with a request for stamps."""
    timed = bytearray(frame)
    timed[FLAGS_AT] |= TIMED
    timed += bytes(REQUEST_SIZE)
    return timed


def stamp_relay(data: bytes | memoryview, received: int, clock: Clock) -> Frame | memoryview:
    """Return a TIMED frame with the broker's stamps; return a frame without room unchanged."""
    room = _ROOM.get(data[KIND_AT])
    if room is None or not _fits(data, room):
        return data
    frame = bytearray(data)
    _BROKER.pack_into(frame, len(frame) - _BROKER.size, received, clock())
    return frame


def strip_request(data: bytes | memoryview) -> tuple[Frame, bytes]:
    """Return a TIMED ACT without flag and stamps, and the bytes of the broker's stamps.

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
    """Return this PERCEPT with stamps. `request`: the bytes that `strip_request` returned."""
    timed = bytearray().join((frame, request, bytes(_AGENT.size + _BROKER.size)))
    timed[FLAGS_AT] |= TIMED
    at = len(frame) + len(request)
    _AGENT.pack_into(timed, at, busy_since, received, started, ended, clock())
    return timed


def strip_reply(data: bytes | memoryview) -> tuple[Frame, Stamps]:
    """Return a TIMED PERCEPT without flag and stamps, and the stamps. Raises DecodingError."""
    frame, trailer = _plain(data, REPLY_SIZE)
    stamps = Stamps(*_ALL.unpack(trailer))
    for clock in (stamps[:2], stamps[2:7], stamps[7:]):
        if list(clock) != sorted(clock):
            raise DecodingError("The time stamps of a step go backwards.")
    return frame, stamps


def _fits(data: bytes | memoryview, size: int) -> bool:
    return len(data) >= HEADER_SIZE + int.from_bytes(data[HEAD_LEN], "little") + size


def _plain(data: bytes | memoryview, size: int) -> tuple[Frame, bytes]:
    if not _fits(data, size):
        raise DecodingError(f"Truncated frame: {size} bytes of time stamps must end it.")
    view = memoryview(data)
    frame = bytearray(view[:-size])
    frame[FLAGS_AT] &= ~TIMED
    return frame, bytes(view[-size:])
