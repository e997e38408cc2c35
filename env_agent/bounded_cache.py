"""What an env agent has computed once for all sessions that are alike, bounded in memory.

Some of it comes from environments in processes of their own, which may send anything.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

V = TypeVar("V")

MAX_SIZE = 64 * 1024 * 1024  # bytes that one cache may take


class BoundedCache(Generic[V]):
    """Keeps values by their keys. If there are too many, or they are too large, it is emptied.

    Any thread may use it.

    Args:
        limit: how many values it may hold.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: dict[Hashable, tuple[V, int]] = {}  # with their sizes

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable | None) -> V | None:
        """Return the value of this key; None if there is none."""
        found = self._kept.get(key)
        return None if found is None else found[0]

    def keep(self, key: Hashable, value: V, size: int) -> None:
        """Keep a value that takes `size` bytes of memory with its key, at most MAX_SIZE."""
        if size > MAX_SIZE:
            return
        # Another thread may keep a value meanwhile: then there is one too many until the next time.
        sizes = [one for _, one in list(self._kept.values())]
        if len(sizes) >= self._limit or sum(sizes) + size > MAX_SIZE:
            self._kept.clear()
        self._kept[key] = value, size
