"""Which connections deliver bytes without end, but no complete message, and which are dead.

libzmq's high-water marks count complete messages. The parts of an unfinished one wait in memory,
and no mark bounds how many there are. But the kernel counts the bytes of each TCP connection, so
what a connection has delivered since a message was last received from it can be bounded.

The kernel also knows whether the other end's system has reset a connection or answers no more. But
libzmq must not learn of that while it does not read the connection: the next heartbeat could abort
the process (docs/design.md). So a listening socket drops resets, and dead connections are closed
here.
"""

from __future__ import annotations

from gymwire.protocol import logs
from gymwire.protocol.transport import kernel
from gymwire.protocol.transport.interface import LinkEvent

CHECKS = 200  # connections that one `close_overfull` checks; the next call goes on from there
RESETS = 3  # checks that find a reset after which the connection is dead; one alone may be forged


class Inflow:
    """The bytes that the connections of one ZeroMQ socket deliver.

    Args:
        limit: how many bytes a connection may deliver without a message that can be received.

    Attributes:
        suspects: the descriptors of connections that have delivered more. Call `heard` for each
            message while there are any.
        doubtful: the descriptors of connections that may have been reset. Send something there,
            which shows whether they were, and remove them.
    """

    def __init__(self, limit: int) -> None:
        self.suspects: set[int] = set()
        self.doubtful: set[int] = set()
        self._limit = limit
        # descriptor → bytes delivered before the message received last; None: until the next check
        self._sound: dict[int, int | None] = {}
        self._ids: dict[int, int] = {}  # descriptor → the connection, since descriptors are reused
        # descriptor → packets dropped; those taken then; how many checks found a reset in a row
        self._resets: dict[int, tuple[int, int | None, int]] = {}
        self._ignored: set[int] = set()
        self._due: list[int] = []

    @property
    def connections(self) -> list[int]:
        """The descriptors of the connections that are up."""
        return list(self._ids)

    def note(self, event: LinkEvent) -> None:
        """Follow a connection that was made or lost."""
        self.suspects.discard(event.fd)
        self.doubtful.discard(event.fd)
        self._resets.pop(event.fd, None)
        if event.up:
            self._sound[event.fd] = 0
            self._ids[event.fd] = kernel.connection_id(event.fd)
        else:
            self._sound.pop(event.fd, None)
            self._ids.pop(event.fd, None)
            self._ignored.discard(event.fd)

    def heard(self, fd: int) -> None:
        """Note that a complete message was received from a connection."""
        if fd in self.suspects:
            self.suspects.discard(fd)
            self._sound[fd] = None

    def ignore(self, fd: int) -> None:
        """Check a connection no longer, since its input is dropped."""
        self._ignored.add(fd)

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
            if received is None or fd in self._ignored:
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
            enough = RESETS if received else 1  # a forged one only ends what has not begun
            is_dead = self._count_resets(fd) >= enough or kernel.is_gone(fd)
            if is_dead and kernel.connection_id(fd) == self._ids[fd]:
                kernel.shut_down(fd)
                del self._sound[fd]
        if not self._due:
            self._due = list(self._sound)

    def finish(self) -> None:
        """Let the kernel send what it holds when these connections are closed, as now."""
        for fd, connection in self._ids.items():
            if kernel.connection_id(fd) == connection:
                kernel.finish_at_close(fd)

    def has_failed(self) -> bool:
        """Return whether a connection has failed that libzmq does not read, and so keeps open."""
        return any(
            kernel.has_failed(fd) and kernel.connection_id(fd) == connection
            for fd, connection in self._ids.items()
        )

    def _count_resets(self, fd: int) -> int:
        """Return how many checks have found a reset in a row."""
        dropped = kernel.packets_dropped(fd)
        known, taken_before, resets = self._resets.get(fd, (0, None, 0))
        if dropped == known:
            return resets
        # What is dropped for other reasons than by a filter counts as taken, too.
        taken = kernel.segments_received(fd)
        resets = resets + 1 if taken == taken_before else 1
        self._resets[fd] = dropped, taken, resets
        self.doubtful.add(fd)
        return resets
