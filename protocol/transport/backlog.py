"""How many bytes wait in libzmq's queue for a peer: its high-water mark counts only messages.

libzmq does not say what it has sent. But it sends in order and frees what it has sent, so the
sender marks a frame now and then, and asks whether libzmq has freed that one.
"""

from __future__ import annotations

from collections import deque

import zmq

# Bytes that may wait for one peer. A larger frame waits alone.
MAX_WAITING = 64 * 1024 * 1024
MARK_BYTES = 1024 * 1024  # the least distance between two marks
MAX_BACKLOGS = 20_000


class Backlog:
    """The bytes of large frames that may still wait for one peer."""

    __slots__ = ("_marked", "_marks", "_unmarked")

    def __init__(self) -> None:
        self._marks: deque[tuple[zmq.MessageTracker, int]] = deque()  # with the bytes up to each
        self._marked = 0  # bytes up to the last mark
        self._unmarked = 0  # bytes since then

    @property
    def waiting(self) -> int:
        """At most how many bytes wait for the peer."""
        while self._marks and self._marks[0][0].done:
            self._marked -= self._marks.popleft()[1]
        return self._marked + self._unmarked

    def has_room(self, size: int) -> bool:
        """Return whether a frame of this size may wait, too."""
        waiting = self.waiting
        return not self._marks or waiting + size <= MAX_WAITING

    def needs_mark(self, size: int) -> bool:
        """Return whether the frame of this size that is sent next must be marked."""
        return self._unmarked + size >= MARK_BYTES

    def sent(self, size: int, mark: zmq.MessageTracker | None) -> None:
        """Count a frame that was sent. `mark`: its tracker, if it is marked."""
        self._unmarked += size
        if mark is not None:
            self._marks.append((mark, self._unmarked))
            self._marked += self._unmarked
            self._unmarked = 0


class Backlogs:
    """The backlog of each peer, by its routing id."""

    def __init__(self) -> None:
        self._backlogs: dict[bytes, Backlog] = {}

    def __len__(self) -> int:
        return len(self._backlogs)

    def of(self, rid: bytes) -> Backlog:
        """Return the backlog of this peer."""
        backlog = self._backlogs.get(rid)
        if backlog is None:
            if len(self._backlogs) >= MAX_BACKLOGS:
                self._backlogs = {
                    one: kept for one, kept in self._backlogs.items() if kept.waiting >= MARK_BYTES
                }
            backlog = self._backlogs[rid] = Backlog()
        return backlog

    def forget(self, rid: bytes) -> None:
        """Forget a peer that has no connection: nothing waits for it."""
        self._backlogs.pop(rid, None)
