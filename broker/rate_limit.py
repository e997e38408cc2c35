"""How much each connection may ask of the broker itself: a bucket of tokens for each.

A token stands for one control message of up to 1 KiB; a larger one takes more. Who asks for more
than its bucket holds is told to wait, and cut off if it does not. To read and drop a flood would
take as much of the processor as the flood's sender has, and with it the time of everybody's steps.
"""

from __future__ import annotations

from enum import Enum

RATE = 1000.0  # tokens that a bucket gains in a second
BURST = 2500.0  # tokens that it holds: a learner may open, or resume, 1,000 sessions at once
DEBT = 500.0  # refusals that are told before the connection is cut off
# What had come over it before is read within so many tokens' time, under its descriptor.
REST = 50.0
TOKEN_BYTES = 1024  # of what is asked
ANSWER_BYTES = 128  # of a listing, which has to be made
MAX_BUCKETS = 20_000


class Ruling(Enum):
    """What becomes of a message."""

    PASS = "pass"
    TELL = "tell"  # not taken, and its sender is told so
    CUT_OFF = "cut off"  # the same, and the connection is not heard any more, then closed
    DROP = "drop"  # it came over a connection that is cut off


class Gate:
    """The buckets, by routing id. One that is full is forgotten: it is as good as a new one."""

    def __init__(self) -> None:
        self._buckets: dict[bytes, tuple[float, float]] = {}  # tokens, and when there were so many

    def rule(self, rid: bytes, size: int, now: float) -> Ruling:
        """Take the tokens for a message of `size` bytes, and say what becomes of it."""
        known = self._buckets.get(rid)
        if known is not None:
            tokens = min(BURST, known[0] + (now - known[1]) * RATE)
        elif len(self._buckets) < MAX_BUCKETS:
            tokens = BURST
        else:
            return Ruling.DROP
        if tokens < -DEBT:
            return Ruling.DROP
        cost = 1 + size // TOKEN_BYTES
        if tokens >= cost:
            self._buckets[rid] = tokens - cost, now
            return Ruling.PASS
        if tokens - 1 >= -DEBT:
            self._buckets[rid] = tokens - 1, now
            return Ruling.TELL
        self._buckets[rid] = -DEBT - REST, now
        return Ruling.CUT_OFF

    def charge(self, rid: bytes, answer: int, now: float) -> None:
        """A message that was let pass is answered by a listing of so many bytes."""
        tokens, at = self._buckets.get(rid, (BURST, now))
        self._buckets[rid] = max(0.0, tokens - answer // ANSWER_BYTES), at

    def sweep(self, now: float) -> None:
        """Forget the buckets that are full."""
        self._buckets = {
            rid: (tokens, at)
            for rid, (tokens, at) in self._buckets.items()
            if tokens + (now - at) * RATE < BURST
        }
