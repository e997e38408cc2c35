"""The requests of watchers, and which of them wait for a frame.

A watcher asks for one frame at a time, and the env agent answers each WATCH at most once. So
nothing is queued for a watcher that is slow: it asks less often, and misses frames.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from gymwire.broker.refusals import RetryLater
from gymwire.protocol.messages import BusyReason

MIN_WATCH_S = 0.05  # between two requests of a watcher for frames of one session
MAX_WATCHES = 1024  # watchers and their sessions; beyond that, the oldest are forgotten


@dataclass(slots=True)
class PendingWatch:
    """A WATCH of a watcher, answered or not."""

    rid: bytes
    sid: int
    loop: bytes  # the routing id of the serving loop that has the session
    number: int  # of the WATCH that the loop gets; the same as long as it is not answered
    seq: int  # of the watcher's own request
    asked_at: float = 0.0
    is_waiting: bool = True


class Watches:
    """The latest WATCH of each watcher for each session."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._latest: dict[tuple[bytes, int], PendingWatch] = {}  # the oldest first
        self._waiting: dict[int, PendingWatch] = {}  # by number

    def begin(self, rid: bytes, sid: int, seq: int, loop: bytes, now: float) -> int:
        """Return the number for the WATCH that a loop gets. Raises RetryLater if it comes too soon.

        A watcher that repeats its request, or sends another before the answer, gets one frame.
        """
        known = self._latest.pop((rid, sid), None)
        if known is not None and now < known.asked_at + MIN_WATCH_S:
            self._latest[rid, sid] = known
            raise RetryLater(BusyReason.RATE, known.asked_at + MIN_WATCH_S - now)
        if known is not None and known.is_waiting and known.loop == loop:
            watch, watch.seq = known, seq
        else:
            watch = PendingWatch(rid, sid, loop, next(self._numbers), seq)
            self._forget(known)
        watch.asked_at = now
        self._latest[rid, sid] = self._waiting[watch.number] = watch
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
