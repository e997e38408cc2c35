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
# no frame has arrived, and before the next one that is not urgent.
PAUSE, LONG_PAUSE = 1, 10
# What a step may wait for without harm. Keys whose long messages take more share one step in two
# hundred: each such message postpones the next one of all of them by a multiple of the excess.
SHORT_WAIT_S = 0.0005
HOLD = 200
MAX_HOLD_S = 0.5
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
        self._patient_due = 0.0  # the next one that is not urgent
        self._costly_due = 0.0  # the next message of a key whose last long message took long
        # The pauses that each of those has taken; what has taken least is next.
        self._taken = dict.fromkeys((Piece.LONG, Piece.SESSIONS, Piece.DEMANDING), 0.0)

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
        elif piece is Piece.DEMANDING and self._short.has(owner):
            self._short.move(owner, self._demanding)
        return self._messages[piece].put(owner, size + ITEM_BYTES, message)

    def take(self, piece: Piece) -> T | None:
        """Remove and return the message whose turn it is; None: none waits."""
        return self._messages[piece].take()

    @property
    def due(self) -> float:
        """When the next piece may begin although frames have arrived; infinity: nothing waits."""
        if self._short:
            return self._due
        is_ready = self._demanding or self._has_sessions()
        return max(self._due, self._patient_due, -math.inf if is_ready else self._long.due)

    def next(self, now: float, *, is_idle: bool, is_relaying: bool) -> Piece | None:
        """Return what to do next; None: nothing yet.

        `is_idle`: whether no frame has arrived. `is_relaying`: whether steps are relayed nowadays;
        if not, only long messages wait for a pause of their own.
        """
        if not is_idle and now < self._due:
            return None
        self._long.release(now)
        is_due, is_calm = now >= self._patient_due, is_idle and not is_relaying
        waiting = [piece for piece in self._taken if self._waits(piece)]
        if not is_due:
            waiting = [piece for piece in waiting if is_calm and piece is not Piece.LONG]
        if waiting:
            return min(waiting, key=self._taken.__getitem__)
        return Piece.SHORT if self._short else None

    def ended(self, piece: Piece, now: float, took_s: float, *, is_relaying: bool) -> None:
        """Note that a piece, which has taken this CPU time, has just ended."""
        self._due = now + PAUSE * took_s
        if piece is Piece.SHORT:
            return
        pause_s = LONG_PAUSE * took_s
        if is_relaying or piece is Piece.LONG:
            self._patient_due = now + pause_s
        if is_relaying and piece is Piece.LONG and took_s > SHORT_WAIT_S:
            hold_s = min(MAX_HOLD_S, HOLD * (took_s - SHORT_WAIT_S))
            self._costly_due = max(self._costly_due, now) + hold_s
            self._long.hold(self._costly_due)
        # A kind of work that does not wait keeps up with this one, so it cannot save up a turn.
        begun = self._taken[piece]
        self._taken[piece] += pause_s
        for other in self._taken:
            if not self._waits(other):
                self._taken[other] = max(self._taken[other], begun)

    def _waits(self, piece: Piece) -> bool:
        """Return whether there is such a piece whose turn may be next."""
        if piece is Piece.SESSIONS:
            return self._has_sessions()
        return bool(self._demanding) if piece is Piece.DEMANDING else self._long.due == -math.inf
