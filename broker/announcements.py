"""Read the sessions that a long HELLO lists some at a time, so that nobody waits for all of them.

The broker answers such a HELLO at once and takes over its sessions between other messages.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgpack

from gymwire.broker.decoding import decode
from gymwire.broker.tables import Peer
from gymwire.protocol import values
from gymwire.protocol.codec import HEADER_SIZE, MAX_CONTROL, Header, join, read_header
from gymwire.protocol.errors import DecodingError
from gymwire.protocol.messages import Hello

SPLIT_ABOVE = 4096  # bytes of a HELLO above which its sessions are read later
ROWS_AT_ONCE = 10  # taking them over takes the broker less than 0.25 ms
_FIELDS = 5  # of HELLO in the head; the sessions are the last
_NO_SESSIONS = b"\x90"
_LIST_HEADER = 5  # bytes before the first item of a list, at most
# What a row may contain, so that reading it costs little.
_MAX_ITEMS = 16
_MAX_TEXT = 1024


class SessionList:
    """The sessions that one HELLO lists. `packed`: the list, serialized. `size`: its bytes."""

    def __init__(self, packed: memoryview) -> None:
        reader = _reader(packed[:_LIST_HEADER])
        try:
            self._left: int = reader.read_array_header()
        except (ValueError, msgpack.UnpackException):
            raise _malformed() from None
        self.size = len(packed)
        self._rows = msgpack.Unpacker(
            max_buffer_size=len(packed) + 1,
            max_array_len=_MAX_ITEMS,
            max_map_len=0,
            max_ext_len=0,
            max_str_len=_MAX_TEXT,
            max_bin_len=_MAX_TEXT,
        )
        self._rows.feed(packed[reader.tell() :])

    def __bool__(self) -> bool:
        return self._left > 0

    def take(self) -> list[object]:
        """Return the next rows. Raises DecodingError if one cannot be a session."""
        count = min(self._left, ROWS_AT_ONCE)
        self._left -= count
        try:
            return [self._rows.unpack() for _ in range(count)]
        except (ValueError, msgpack.UnpackException):
            self._left = 0
            raise _malformed() from None


@dataclass(frozen=True, slots=True)
class Announcement:
    """The sessions that a peer has listed in a HELLO with this request number."""

    peer: Peer
    seq: int
    sessions: SessionList


def read_hello(header: Header, data: bytes | memoryview) -> tuple[Hello, SessionList | None]:
    """Return a HELLO and, if it is long, its sessions apart from it.

    Raises DecodingError, or Refusal if it is too large.
    """
    frame, listed = data, None
    if SPLIT_ABOVE < len(data) <= MAX_CONTROL:
        frame, listed = _split(header, data)
    hello = decode(read_header(frame), frame)
    assert isinstance(hello, Hello)
    return hello, listed


def _split(header: Header, data: bytes | memoryview) -> tuple[bytes, SessionList]:
    """Return a HELLO without its sessions, and these."""
    end = HEADER_SIZE + header.head_len
    head = bytes(data[HEADER_SIZE:end])
    reader = _reader(head)
    try:
        fields = reader.read_array_header()
        for _ in range(_FIELDS - 1):
            reader.skip()
        start = reader.tell()
        reader.skip()
        stop = reader.tell()
    except (ValueError, msgpack.UnpackException):
        raise _malformed() from None
    if fields != _FIELDS:
        raise DecodingError(f"HELLO must have {_FIELDS} fields, not {fields}.")
    short = head[:start] + _NO_SESSIONS + head[stop:]
    frame = join(header.kind, header.flags, short, values.Tail(), header.sid, header.seq)
    return b"".join((frame, data[end:])), SessionList(memoryview(head)[start:stop])


def _reader(packed: bytes | memoryview) -> msgpack.Unpacker:
    reader = msgpack.Unpacker(max_buffer_size=len(packed) + 1)
    reader.feed(packed)
    return reader


def _malformed() -> DecodingError:
    return DecodingError("The sessions in HELLO are malformed.", path="sessions")
