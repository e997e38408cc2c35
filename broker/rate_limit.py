"""Limit how many control messages each connection may send to the broker: one token bucket each.

A token pays for one control message of up to 4 KiB; a larger message costs more, but never more
than a full bucket: a connection that waits long enough may send any message. What takes the broker
more than 1 ms costs more, too: so a connection uses a tenth of its time at most. A message of a
session costs no token, but the CPU time beyond 0.1 ms that decoding it takes. A connection that
sends more than its bucket holds gets BUSY, and is cut off if it does not slow down. Reading and
dropping a flood would cost as much processor time as its sender has, and would delay every step.
"""

from __future__ import annotations

import math
from enum import Enum

RATE = 1000.0  # tokens per second that flow into a bucket
BURST = 2500.0  # capacity of a bucket: a learner may open or resume 1,000 sessions at once
DEBT = 500.0  # BUSY replies before the connection is cut off
# Extra debt after a cut-off: meanwhile the broker drops what had already arrived.
CUT_OFF_DEBT = 50.0
TOKEN_BYTES = 4096  # bytes of a request per token
FREE_CPU_MS = 1.0  # CPU time of a message that its first token pays for,
TOKENS_PER_CPU_MS = 10.0  # and what each further millisecond costs
UNPAID_CPU_MS = 0.1  # CPU time of a message that costs no token
LISTING_BYTES = 2048  # bytes of a FOUND reply per token, since the broker has to build it
LISTING_NAMES = 32  # addresses that the broker examines for a FOUND reply, per token
# The share of a full bucket that a peer needs for a FIND: more than what the largest page costs.
LISTING_SHARE = 0.4
# The share of a full bucket below which a peer has asked for much.
DEMANDING_SHARE = 0.5
RETRY_TOKENS = 10  # for the repetitions of a FIND that has to wait
MAX_BUCKETS = 20_000
SWEEP_S = 1.0  # between two searches for full buckets while there are too many


class Admission(Enum):
    """What the broker does with a message."""

    PASS = "pass"
    WAIT = "wait"  # handle it when it is the sender's turn
    DEMANDING = "demanding"  # the same, but the sender has asked for much lately
    THROTTLE = "throttle"  # reply BUSY instead of handling it
    CUT_OFF = "cut off"  # reply BUSY, stop reading from the connection, close it later
    DROP = "drop"  # ignore it: the connection is already cut off


class RateLimiter:
    """The token buckets by routing id. A full bucket is forgotten: it equals a new one."""

    def __init__(self) -> None:
        self._buckets: dict[bytes, tuple[float, float]] = {}  # tokens, and when they were counted
        self._sweep_at = -math.inf

    def admit(self, rid: bytes, size: int, now: float) -> Admission:
        """Pay for a message of `size` bytes and return what to do with it."""
        return self._admit(rid, min(1 + size // TOKEN_BYTES, BURST), now)

    def admit_free(self, rid: bytes, now: float) -> Admission:
        """Return what to do with a message that costs nothing unless it is refused later."""
        return self._admit(rid, 0, now) if rid in self._buckets else Admission.PASS

    def _admit(self, rid: bytes, cost: float, now: float) -> Admission:
        is_known = rid in self._buckets
        if not (is_known or len(self._buckets) < MAX_BUCKETS or self._has_room(now)):
            return Admission.DROP
        tokens = self._tokens(rid, now)
        if tokens < -DEBT:
            return Admission.DROP
        if tokens >= cost:
            self._buckets[rid] = tokens - cost, now
            return Admission.PASS
        if tokens - 1 >= -DEBT:
            self._buckets[rid] = tokens - 1, now
            return Admission.THROTTLE
        self._buckets[rid] = -DEBT - CUT_OFF_DEBT, now
        return Admission.CUT_OFF

    def _has_room(self, now: float) -> bool:
        """Return whether full buckets made room; look for them at most once a second."""
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_S
            self.sweep(now)
        return len(self._buckets) < MAX_BUCKETS

    def is_demanding(self, rid: bytes, now: float) -> bool:
        """Return whether a peer has asked for much lately."""
        return self._tokens(rid, now) < DEMANDING_SHARE * BURST

    def _tokens(self, rid: bytes, now: float) -> float:
        """Return what the bucket of a peer holds."""
        tokens, at = self._buckets.get(rid, (BURST, now))
        return min(BURST, tokens + (now - at) * RATE)

    def charge_refusal(self, rid: bytes, now: float) -> None:
        """Charge for the refusal of a message that `admit_free` has let pass."""
        tokens, at = self._buckets.get(rid, (BURST, now))
        self._buckets[rid] = tokens - 1, at

    def charge_time(self, rid: bytes, cpu_s: float, now: float, *, paid: bool = True) -> None:
        """Charge for the CPU time of a message, beyond what `admit` has charged for.

        `paid`: whether it has charged for the message at all.
        """
        cost = (cpu_s * 1000 - (FREE_CPU_MS if paid else UNPAID_CPU_MS)) * TOKENS_PER_CPU_MS
        if cost > 0:
            tokens = self._tokens(rid, now)  # a free message has not counted what has flowed in
            self._buckets[rid] = max(min(0.0, tokens), tokens - cost), now

    def listing_wait_s(self, rid: bytes, now: float) -> float:
        """Return for how many seconds a peer must wait before it may get a FOUND reply."""
        missing = LISTING_SHARE * BURST - self._tokens(rid, now)
        return 0.0 if missing <= 0 else (missing + RETRY_TOKENS) / RATE

    def charge_listing(self, rid: bytes, size: int, names: int, now: float) -> None:
        """Charge for a FOUND reply of `size` bytes, for which the broker examined `names`."""
        tokens, at = self._buckets.get(rid, (BURST, now))
        cost = size // LISTING_BYTES + names // LISTING_NAMES
        self._buckets[rid] = max(0.0, tokens - cost), at

    def sweep(self, now: float) -> None:
        """Forget the full buckets."""
        self._buckets = {
            rid: (tokens, at)
            for rid, (tokens, at) in self._buckets.items()
            if tokens + (now - at) * RATE < BURST
        }
