"""The frames that enter and leave the core."""

from __future__ import annotations

from typing import NamedTuple

from gymwire.protocol.codec import PLAIN
from gymwire.protocol.messages import Message


class Send(NamedTuple):
    """A frame for the peer with this routing id."""

    rid: bytes
    frame: bytes | bytearray | memoryview

    @classmethod
    def message(cls, rid: bytes, message: Message, sid: int = 0, seq: int = 0) -> Send:
        """Return a message from the broker itself as a frame."""
        return cls(rid, PLAIN.encode(message, sid, seq))


class Sender(NamedTuple):
    """What the socket knows about the sender of a frame.

    `on_host`: whether it is known to be a process of the broker's host. `unread`: how many bytes it
    has not read yet, if it sends WATCH and the system knows.
    """

    rid: bytes
    fd: int
    key: bytes | None
    identity: str
    connection: int = 0
    on_host: bool = False
    unread: int = 0
