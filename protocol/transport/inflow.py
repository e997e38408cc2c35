"""Which connections deliver bytes without end, but no complete message, and which are dead.

libzmq's high-water marks count complete messages. The parts of an unfinished one wait in memory,
and no mark bounds how many there are. But the kernel counts the bytes of each TCP connection, so
what a connection has delivered since a message was last received from it can be bounded.

The kernel also knows when the other end's system answers no more. It would end such a connection
itself after some time; but then the next heartbeat could abort the process (docs/design.md).
"""

from __future__ import annotations

from gymwire.protocol import logs
from gymwire.protocol.transport import kernel
from gymwire.protocol.transport.interface import LinkEvent

CHECKS = (
    200  # connections that one `close_overfull` checks; the next call checks the following ones
)


class Inflow:
    """The bytes that the connections of one ZeroMQ socket deliver.

    Args:
        limit: how many bytes a connection may deliver without a message that can be received.

    Attributes:
        suspects: the descriptors of connections that have delivered more. Call `heard` for each
            message while there are any.
    """

    def __init__(self, limit: int) -> None:
        self.suspects: set[int] = set()
        self._limit = limit
        # descriptor → bytes delivered before the message received last; None: until the next check
        self._sound: dict[int, int | None] = {}
        self._ids: dict[int, int] = {}  # descriptor → the connection, since descriptors are reused
        self._due: list[int] = []

    @property
    def connections(self) -> list[int]:
        """The descriptors of the connections that are up."""
        return list(self._ids)

    def note(self, event: LinkEvent) -> None:
        """Follow a connection that was made or lost."""
        self.suspects.discard(event.fd)
        if event.up:
            self._sound[event.fd] = 0
            self._ids[event.fd] = kernel.connection_id(event.fd)
        else:
            self._sound.pop(event.fd, None)
            self._ids.pop(event.fd, None)

    def heard(self, fd: int) -> None:
        """Note that a complete message was received from a connection."""
        if fd in self.suspects:
            self.suspects.discard(fd)
            self._sound[fd] = None

    def all_heard(self) -> None:
        """Note that a complete message was received from the only peer."""
        for fd in list(self.suspects):
            self.heard(fd)

    def close_overfull(self) -> None:
        """Close the connections that deliver too much or are dead. Call it ten times a second.

        A connection gets the time until its next check to show that what it has delivered are
        complete messages, which the owner of the socket has not received yet.
        """
        due, self._due = self._due[:CHECKS], self._due[CHECKS:]
        for fd in due:
            received = kernel.bytes_received(fd) if fd in self._sound else None
            if received is None:
                continue
            sound = self._sound[fd]
            if sound is None or received < sound:
                self._sound[fd] = received
            elif received - sound > self._limit:
                if fd in self.suspects and kernel.connection_id(fd) == self._ids[fd]:
                    kernel.shut_down(fd)
                    self._sound[fd] = None
                    logs.logger().warning(
                        "connection closed, endless message", bytes=received - sound
                    )
                self.suspects.add(fd)
            elif kernel.is_gone(fd) and kernel.connection_id(fd) == self._ids[fd]:
                kernel.shut_down(fd)
                del self._sound[fd]
        if not self._due:
            self._due = list(self._sound)
