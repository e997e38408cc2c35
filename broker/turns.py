"""A fair queue: the owners of what waits take turns."""

from __future__ import annotations

import heapq
import math
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")
MAX_WAITING_BYTES = 8 * 1024 * 1024  # of one owner


class Turns(Generic[T]):
    """Items that wait. The owners take turns, so an owner with many delays no other.

    An owner can be held up for a while. An owner is a key, or without keys a connection. Times are
    monotonic seconds.
    """

    def __init__(self) -> None:
        self._waiting: dict[bytes, deque[tuple[int, T]]] = {}
        self._bytes: dict[bytes, int] = {}
        # The owners of items, without those that are held up; the one whose turn is next is first.
        self._turns: dict[bytes, None] = {}
        self._held: set[bytes] = set()
        self._ends: list[tuple[float, bytes]] = []  # when each is no longer held up, as a heap
        self._last = b""  # the owner of the item that was taken last

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def has(self, owner: bytes) -> bool:
        """Return whether anything of this owner waits."""
        return owner in self._waiting

    @property
    def due(self) -> float:
        """When it is an owner's turn; infinity: nothing waits."""
        if self._turns:
            return -math.inf
        return self._ends[0][0] if self._waiting else math.inf

    def put(self, owner: bytes, size: int, item: T) -> bool:
        """Add an item of `size` bytes; return False if too much of this owner's waits already."""
        total = self._bytes.get(owner, 0) + size
        if total > MAX_WAITING_BYTES:
            return False
        self._bytes[owner] = total
        self._waiting.setdefault(owner, deque()).append((size, item))
        if owner not in self._held:
            self._turns[owner] = None
        return True

    def take(self) -> T | None:
        """Remove and return the oldest item of the owner whose turn it is; None: nobody's."""
        owner = next(iter(self._turns), None)
        if owner is None:
            return None
        del self._turns[owner]
        self._last, queue = owner, self._waiting[owner]
        size, item = queue.popleft()
        if queue:
            self._turns[owner] = None
            self._bytes[owner] -= size
        else:
            del self._waiting[owner], self._bytes[owner]
        return item

    def move(self, owner: bytes, other: Turns[T]) -> None:
        """Move an owner's items to another queue, which has none of this owner."""
        self._turns.pop(owner, None)
        other._waiting[owner] = self._waiting.pop(owner)
        other._bytes[owner] = self._bytes.pop(owner)
        other._turns[owner] = None

    def hold(self, until: float) -> None:
        """Hold up the owner of the item that was taken last, until `release` is called then."""
        self._turns.pop(self._last, None)
        self._held.add(self._last)
        heapq.heappush(self._ends, (until, self._last))

    def release(self, now: float) -> None:
        """Let the owners that are no longer held up take turns again."""
        while self._ends and self._ends[0][0] <= now:
            _, owner = heapq.heappop(self._ends)
            self._held.discard(owner)
            if owner in self._waiting:
                self._turns[owner] = None
