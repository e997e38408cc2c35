"""Which connections deliver more than the owner of their socket receives.

libzmq's high-water marks do not bound that. They count complete messages, while the parts of an
unfinished one wait in memory without a limit. And a peer can abort a process that has stopped to
read at a mark (docs/design.md), so no socket has one. But the kernel counts the bytes of each TCP
connection, so those that wait can be bounded.
"""

from __future__ import annotations

from collections.abc import Callable

from gymwire.protocol import logs
from gymwire.protocol.transport import kernel
from gymwire.protocol.transport.interface import LinkEvent

CHECKS = (
    200  # connections that one `close_overfull` checks; the next call checks the following ones
)
# Bytes of memory that the complete messages of one connection may take while they wait.
MAX_WAITING = 1024 * 1024 * 1024
MIN_WAITING = 16  # of the largest messages may wait in any case
FRAMING = 9 + 33  # bytes that ZMTP and CURVE add to a message, at most
MIN_FRAMING = 2
MESSAGE_MEMORY = 64  # bytes that libzmq takes for a message beside its own


class Inflow:
    """The bytes that the connections of one ZeroMQ socket deliver.

    Args:
        max_message: bytes of the largest message. A connection may deliver twice as many without a
            message that can be received. Complete messages that wait may take MAX_WAITING bytes of
            memory, but at least MIN_WAITING of the largest may wait.
        close: closes the connection with a descriptor.

    Attributes:
        suspects: the descriptors of connections that have delivered more than one of these. Call
            `heard` for each message while there are any.
        emptied: set it to True when no message waits at the socket.
    """

    def __init__(self, max_message: int, close: Callable[[int], None]) -> None:
        self.suspects: set[int] = set()
        self.emptied = False
        self._shut = close
        self._limit = 2 * max_message
        self._most_waiting = max(MAX_WAITING, MIN_WAITING * max_message)
        # descriptor → bytes delivered before the message received last; None: until the next check
        self._sound: dict[int, int | None] = {}
        self._ids: dict[int, int] = {}  # descriptor → the connection, since descriptors are reused
        self._due: list[int] = []
        self._times_emptied = 0
        # descriptor → `_times_emptied`, and the bytes delivered and not received since then
        self._bases: dict[int, tuple[int, int]] = {}
        # The bytes received from suspects with many waiting, and how many messages they were
        self._taken: dict[int, tuple[int, int]] = {}

    @property
    def connections(self) -> list[int]:
        """The descriptors of the connections that are up."""
        return list(self._ids)

    def note(self, event: LinkEvent) -> None:
        """Follow a connection that was made or lost."""
        for known in (self._sound, self._ids, self._bases, self._taken):
            known.pop(event.fd, None)
        self.suspects.discard(event.fd)
        if event.up:
            self._sound[event.fd] = 0
            self._ids[event.fd] = kernel.connection_id(event.fd)

    def heard(self, fd: int, size: int) -> None:
        """Note that a complete message of so many bytes was received from a connection."""
        if fd in self.suspects:
            self._sound[fd] = None
            if fd in self._taken:
                taken, messages = self._taken[fd]
                self._taken[fd] = taken + size, messages + 1
            else:
                self.suspects.discard(fd)

    def all_heard(self, size: int) -> None:
        """Note that a complete message of so many bytes was received from the only peer."""
        for fd in list(self.suspects):
            self.heard(fd, size)

    def close_overfull(self) -> None:
        """Close the connections that deliver too much. Call it about ten times a second.

        A connection gets the time until its next check to show that what it has delivered are
        complete messages, which the owner of the socket has not received yet.
        """
        if self.emptied:
            self.emptied = False
            self._times_emptied += 1
        due, self._due = self._due[:CHECKS], self._due[CHECKS:]
        for fd in due:
            received = kernel.bytes_received(fd) if fd in self._sound else None
            if received is not None:
                self._check_unfinished(fd, received)
                self._check_waiting(fd, received)
        if not self._due:
            self._due = list(self._sound)

    def _check_unfinished(self, fd: int, received: int) -> None:
        """Close a connection from which no message was received since it became a suspect."""
        sound = self._sound[fd]
        if sound is None or received < sound:
            self._sound[fd] = received
        elif received - sound > self._limit:
            if fd in self.suspects:
                self._close(fd, "connection closed, endless message", received - sound)
                self._sound[fd] = None
            else:
                # Most of it may have been received before: count again.
                self._sound[fd] = received
            self.suspects.add(fd)

    def _check_waiting(self, fd: int, received: int) -> None:
        """Close a connection whose complete messages are not received as fast as they arrive."""
        emptied, base = self._bases.get(fd, (-1, 0))
        if emptied != self._times_emptied or received < base:
            # All that had been delivered when no message waited was received.
            self._bases[fd] = (self._times_emptied, received)
            self._taken.pop(fd, None)
            return
        delivered = received - base
        if fd in self._taken:
            taken, messages = self._taken[fd]
            # FRAMING may exceed the true size; that must not count for later messages.
            waiting = max(0, delivered - taken - messages * FRAMING)
            if not waiting:
                self._bases[fd], self._taken[fd] = (emptied, received), (0, 0)
            elif messages:
                # Those that wait are taken to be as long as those received.
                waiting += waiting * MESSAGE_MEMORY * messages // (taken + messages * MIN_FRAMING)
            if waiting > self._most_waiting:
                self._close(fd, "connection closed, too much waits to be received", waiting)
        elif delivered > self._limit:
            # What was received before is not known, so from now on it is counted.
            self._taken[fd] = 0, 0
            if fd not in self.suspects:
                self.suspects.add(fd)
                self._sound[fd] = received

    def _close(self, fd: int, event: str, size: int) -> None:
        if kernel.connection_id(fd) == self._ids[fd]:
            self._shut(fd)
            logs.logger().warning(event, bytes=size)
