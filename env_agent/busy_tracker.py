"""Since when a serving loop has been busy; tracked only while learners request time stamps."""

from __future__ import annotations

from collections.abc import Callable

TRACKED_READS = 1000  # reads for which tracking goes on after a request for time stamps


class BusyTracker:
    """Tracks when one loop read its frames. `clock` returns monotonic nanoseconds."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._reads_left = 0
        self._busy_since = 0
        self._received = 0  # when the current frame was read; 0: not tracked

    @property
    def is_active(self) -> bool:
        """Whether the loop must call `frame_read` for each frame."""
        return self._reads_left > 0

    def frame_read(self, waited: bool) -> None:
        """Note that the loop has read a frame, and whether it had to wait for that frame."""
        self._reads_left -= 1
        self._received = self._clock() if self._reads_left > 0 else 0
        if waited:
            self._busy_since = self._received

    def stamps_requested(self) -> tuple[int, int]:
        """Return since when the loop is busy and when it read the current frame; start tracking.

        The first request for time stamps counts as one that the loop had to wait for.
        """
        if not self._received:
            self._received = self._busy_since = self._clock()
        received, self._received = self._received, 0
        self._reads_left = TRACKED_READS
        return self._busy_since, received
