"""How many environments of ended sessions may still be busy before no other session opens."""

from __future__ import annotations

import threading
from collections import Counter

MIN_UNFINISHED = 8  # of one address: with fewer slots, a few stuck steps must block nobody


class Unfinished:
    """Counts the environments that are busy although their session has ended.

    They execute an abandoned step, are still being made, or close. They occupy no slot, but a
    thread and memory each. All loops of an env agent share this object; any thread may use it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()  # by address

    def add(self, address: str) -> None:
        """Count another environment."""
        with self._lock:
            self._counts[address] += 1

    def remove(self, address: str) -> None:
        """Count an environment no longer: it is closed, or was not made."""
        with self._lock:
            self._counts[address] -= 1
            if not self._counts[address]:
                del self._counts[address]

    def excess(self, address: str, slots: int) -> int:
        """Return how many environments there are if they are too many for these slots, else 0."""
        count = self._counts.get(address, 0)
        return count if count > max(slots, MIN_UNFINISHED) else 0
