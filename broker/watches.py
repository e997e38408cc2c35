"""The requests of watchers, and which of them wait for a frame.

A watcher asks for one frame at a time, and the env agent answers each WATCH at most once. So
nothing is queued for a watcher that is slow: it asks less often, and misses frames. One that asks
but does not read gets no further frame.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from gymwire.broker.refusals import RetryLater
from gymwire.protocol.messages import BusyReason

MIN_WATCH_S = 0.05  # between two requests of a watcher
MAX_WATCHES = 1024  # watchers; beyond that, the oldest are forgotten
MAX_UNREAD = 64 * 1024  # bytes: a watcher that has more to read gets no further frame
UNREAD_RETRY_S = 0.5  # when a watcher that has not read its last frame may ask again


@dataclass(slots=True)
class PendingWatch:
    """The latest WATCH of a watcher, answered or not."""

    rid: bytes
    sid: int
    env: int
    loop: bytes  # the routing id of the serving loop that has the session
    seq: int  # of the watcher's own request
    number: int = 0  # of the WATCH that the loop gets; the same as long as it is not answered
    asked_at: float = 0.0
    is_waiting: bool = True

    @property
    def shows(self) -> tuple[int, int, bytes]:
        """The environment to show."""
        return self.sid, self.env, self.loop


class Watches:
    """The latest WATCH of each watcher, the only one that is answered."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._latest: dict[bytes, PendingWatch] = {}  # by watcher, the oldest first
        self._waiting: dict[int, PendingWatch] = {}  # by number

    def begin(self, watch: PendingWatch, now: float, unread: int) -> int:
        """Return the number for the WATCH that a loop gets. Raises RetryLater if it comes too soon.

        A watcher that repeats its request, or sends another before the answer, gets one frame.

        Args:
            watch: what a watcher asks for.
            now: the time, in monotonic seconds.
            unread: how many bytes the watcher's connection has not taken yet.
        """
        rid = watch.rid
        known = self._latest.get(rid)
        if known is not None and now < known.asked_at + MIN_WATCH_S:
            raise RetryLater(BusyReason.RATE, known.asked_at + MIN_WATCH_S - now)
        if unread > MAX_UNREAD:
            raise RetryLater(BusyReason.RATE, UNREAD_RETRY_S)
        self._latest.pop(rid, None)
        if known is not None and known.is_waiting and known.shows == watch.shows:
            known.seq, watch = watch.seq, known
        else:
            watch.number = next(self._numbers)
            self._forget(known)
        watch.asked_at = now
        self._latest[rid] = self._waiting[watch.number] = watch
        if len(self._latest) > MAX_WATCHES:
            self._forget(self._latest.pop(next(iter(self._latest))))
        return watch.number

    def _forget(self, watch: PendingWatch | None) -> None:
        if watch is not None:
            self._waiting.pop(watch.number, None)

    def awaits(self, number: int, sid: int, loop: bytes) -> bool:
        """Return whether a watcher waits for the frame with this number from this loop."""
        watch = self._waiting.get(number)
        return watch is not None and (watch.sid, watch.loop) == (sid, loop)

    def end(self, number: int, sid: int, loop: bytes) -> PendingWatch | None:
        """Remove and return the watch that waits for this frame of a loop; None: there is none."""
        if not self.awaits(number, sid, loop):
            return None
        watch = self._waiting.pop(number)
        watch.is_waiting = False
        return watch
