"""What peers ask of the broker itself: in which order, and when, the broker does it.

Steps come first. Everything else is done in pieces, one at a time: when no frame has arrived, or
after a pause in which the broker relays what has arrived.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum
from typing import Generic, TypeVar

from gymwire.broker.turns import Turns

T = TypeVar("T")
# The pause after a piece, as a multiple of the CPU time that it took: before the next one, unless
# no frame has arrived, and before the next one of the same kind, if that kind takes long.
PAUSE, LONG_PAUSE = 1, 10
ITEM_BYTES = 1024  # memory of a message that waits, besides its bytes


class Piece(Enum):
    """Some short messages, of peers that ask for little or for much; or another piece of work."""

    SHORT = "short"
    DEMANDING = "short, of peers that ask for much"
    LONG = "one long message"
    SESSIONS = "some sessions of a long HELLO"


class Agenda(Generic[T]):
    """The messages that wait, by owner, and when the next piece of work may begin.

    `has_sessions`: returns whether sessions of long HELLOs wait. Times are monotonic seconds.
    """

    def __init__(self, has_sessions: Callable[[], bool]) -> None:
        self._has_sessions = has_sessions
        self._short: Turns[T] = Turns()
        self._demanding: Turns[T] = Turns()
        self._long: Turns[T] = Turns()
        self._messages = {
            Piece.SHORT: self._short,
            Piece.DEMANDING: self._demanding,
            Piece.LONG: self._long,
        }
        self._due = 0.0  # the next piece, if frames have arrived
        self._piece_due = dict.fromkeys(Piece, 0.0)

    def __bool__(self) -> bool:
        return bool(self._short or self._demanding or self._long) or self._has_sessions()

    def is_free(self, now: float) -> bool:
        """Return whether a short message of a peer that asks for little can be handled at once."""
        return not self._short and not self._demanding and now >= self._due

    def put(self, owner: bytes, size: int, message: T, piece: Piece) -> bool:
        """Add a message of `size` bytes; return False if too much of this owner's waits already.

        The short messages of an owner stay in order.
        """
        if piece is Piece.SHORT and self._demanding.has(owner):
            piece = Piece.DEMANDING
        return self._messages[piece].put(owner, size + ITEM_BYTES, message)

    def take(self, piece: Piece) -> T | None:
        """Remove and return the message whose turn it is; None: none waits."""
        return self._messages[piece].take()

    @property
    def due(self) -> float:
        """When the next piece may begin although frames have arrived; infinity: nothing waits."""
        due = 0.0 if self._short else math.inf
        for piece in (Piece.DEMANDING, Piece.LONG):
            if self._messages[piece]:
                due = min(due, self._piece_due[piece])
        if self._has_sessions():
            due = min(due, self._piece_due[Piece.SESSIONS])
        return max(due, self._due)

    def next(self, now: float, *, is_idle: bool, is_relaying: bool) -> Piece | None:
        """Return what to do next; None: nothing yet.

        `is_idle`: whether no frame has arrived. `is_relaying`: whether steps are relayed nowadays;
        if not, only long messages wait for a pause of their own.
        """
        if not is_idle and now < self._due:
            return None
        if self._long and now >= self._piece_due[Piece.LONG]:
            return Piece.LONG
        has_sessions, is_calm = self._has_sessions(), is_idle and not is_relaying
        if has_sessions and now >= self._piece_due[Piece.SESSIONS]:
            return Piece.SESSIONS
        if self._demanding and (is_calm or now >= self._piece_due[Piece.DEMANDING]):
            return Piece.DEMANDING
        if self._short:
            return Piece.SHORT
        return Piece.SESSIONS if has_sessions and is_calm else None

    def ended(self, piece: Piece, now: float, took_s: float) -> None:
        """Note that a piece, which has taken this CPU time, has just ended."""
        self._due = now + PAUSE * took_s
        if piece is not Piece.SHORT:
            self._piece_due[piece] = now + LONG_PAUSE * took_s
