"""A fair queue: the owners of what waits take turns."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")
MAX_WAITING_BYTES = 8 * 1024 * 1024  # of one owner


class Turns(Generic[T]):
    """Items that wait. The owners take turns, so an owner with many delays no other.

    An owner is a key, or without keys a connection.
    """

    def __init__(self) -> None:
        # The owner whose turn is next comes first.
        self._waiting: dict[bytes, deque[tuple[int, T]]] = {}
        self._bytes: dict[bytes, int] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def has(self, owner: bytes) -> bool:
        """Return whether anything of this owner waits."""
        return owner in self._waiting

    def put(self, owner: bytes, size: int, item: T) -> bool:
        """Add an item of `size` bytes; return False if too much of this owner's waits already."""
        total = self._bytes.get(owner, 0) + size
        if total > MAX_WAITING_BYTES:
            return False
        self._bytes[owner] = total
        self._waiting.setdefault(owner, deque()).append((size, item))
        return True

    def take(self) -> T | None:
        """Remove and return the oldest item of the owner whose turn it is; None: nothing waits."""
        owner = next(iter(self._waiting), None)
        if owner is None:
            return None
        queue = self._waiting.pop(owner)
        size, item = queue.popleft()
        if queue:
            self._waiting[owner] = queue
            self._bytes[owner] -= size
        else:
            del self._bytes[owner]
        return item
