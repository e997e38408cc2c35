"""Since when a serving loop works without a rest; kept only while somebody asks for stamps."""

from __future__ import annotations

from collections.abc import Callable

KEEP = 1000  # reads for which the loop is watched after a request for time stamps


class BusyTracker:
    """The reads of one loop. `clock`: nanoseconds, monotonic."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._left = 0
        self._busy_since = 0
        self._received = 0  # when the frame at hand was read; 0: nobody looked

    def is_on(self) -> bool:
        """Whether reads are to be told to `read`."""
        return self._left > 0

    def read(self, waited: bool) -> None:
        """A frame was read; `waited`: it was not there yet when the loop came to read it."""
        self._left -= 1
        self._received = self._clock() if self._left > 0 else 0
        if waited:
            self._busy_since = self._received

    def asked(self) -> tuple[int, int]:
        """The frame at hand asks for stamps: (busy since, received). `read` is wanted from now on.

        The first one, which nobody watched, passes for one that was waited for.
        """
        if not self._received:
            self._received = self._busy_since = self._clock()
        received, self._received = self._received, 0
        self._left = KEEP
        return self._busy_since, received
