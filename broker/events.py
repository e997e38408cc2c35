"""What comes to the core and what leaves it: frames, and notes for the operator."""

from __future__ import annotations

from typing import NamedTuple

from gymwire.protocol.codec import PLAIN
from gymwire.protocol.messages import Message


class Send(NamedTuple):
    """A frame for a peer."""

    rid: bytes
    frame: bytes | bytearray | memoryview


class Sender(NamedTuple):
    """What the socket knows of a frame's sender."""

    rid: bytes
    fd: int
    key: bytes | None
    identity: str
    connection: int = 0


class Note(NamedTuple):
    """Something that an operator wants to know."""

    event: str
    facts: dict[str, object]


class Notes(list[Note]):
    """What has not been written to the log yet."""

    def add(self, event: str, **facts: object) -> None:
        """Something has happened."""
        self.append(Note(event, facts))


def say(rid: bytes, message: Message, sid: int = 0, seq: int = 0) -> Send:
    """A message of the broker's own."""
    return Send(rid, PLAIN.encode(message, sid, seq))
