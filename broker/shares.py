"""A bounded table that its owners share fairly."""

from __future__ import annotations

import itertools
from typing import Generic, TypeVar

V = TypeVar("V")


class Shares(Generic[V]):
    """Values by session, each of which belongs to a connection, its owner.

    At most `most` values. When the table is full, an owner with its fair share or more displaces
    its own oldest value, and any other owner that of the largest one: so no owner can displace the
    values of one that has fewer.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._owners: dict[int, bytes] = {}
        self._values: dict[bytes, dict[int, V]] = {}

    def __len__(self) -> int:
        return len(self._owners)

    def put(self, owner: bytes, sid: int, value: V) -> None:
        """Add a value. A session has at most one: the latest."""
        self.pop(sid)
        if len(self._owners) >= self._most:
            own = self._values.get(owner, {})
            if own and len(own) >= self._most // len(self._values):
                largest = own
            else:
                largest = max(self._values.values(), key=len)
            self.pop(next(iter(largest)))
        self._owners[sid] = owner
        self._values.setdefault(owner, {})[sid] = value

    def get(self, sid: int) -> V | None:
        """Return the value of a session, if there is one."""
        owner = self._owners.get(sid)
        return None if owner is None else self._values[owner][sid]

    def pop(self, sid: int) -> V | None:
        """Remove the value of a session, and return it, if there is one."""
        owner = self._owners.pop(sid, None)
        if owner is None:
            return None
        values = self._values[owner]
        value = values.pop(sid)
        if not values:
            del self._values[owner]
        return value

    def take(self, count: int) -> list[V]:
        """Remove at most this many values, the same number for each owner, and return them.

        The values, and the owners, that have waited longest come first.
        """
        owners = list(itertools.islice(self._values, count))
        each = count // max(1, len(owners))
        sids = [sid for owner in owners for sid in itertools.islice(self._values[owner], each)]
        taken = [self.pop(sid) for sid in sids]
        return [value for value in taken if value is not None]

    def forget(self, owner: bytes) -> None:
        """Remove all values of this owner."""
        for sid in self._values.pop(owner, {}):
            del self._owners[sid]
