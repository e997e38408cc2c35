"""What an env agent has computed once for all sessions that are alike, bounded in memory.

Some of it comes from environments in processes of their own, which may send anything.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable
from typing import Generic, TypeVar

V = TypeVar("V")

MAX_SIZE = 64 * 1024 * 1024  # bytes that one cache may take


class BoundedCache(Generic[V]):
    """Keeps values by their keys. If there are too many, or they are too large, it begins anew.

    Any thread may use it.

    Args:
        limit: how many values it may hold.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: dict[Hashable, V] = {}
        self._size = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable | None) -> V | None:
        """Return the value of this key; None if there is none, or if the key is None."""
        return None if key is None else self._kept.get(key)

    def keep(self, key: Hashable, value: V, size: int) -> None:
        """Keep a value that takes `size` bytes of memory with its key, at most MAX_SIZE."""
        if size > MAX_SIZE:
            return
        with self._lock:
            if key in self._kept:
                return
            if len(self._kept) >= self._limit or self._size + size > MAX_SIZE:
                self._kept.clear()
                self._size = 0
            self._kept[key] = value
            self._size += size
