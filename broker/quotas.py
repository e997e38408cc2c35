"""What keys with limits have used of them."""

from __future__ import annotations

from gymwire.broker.auth import Rights


class Meter:
    """What one key has used of its limits, over all of its connections."""

    def __init__(self, now: float) -> None:
        self._tokens: float | None = None
        self._at = now
        self._in_flight: set[tuple[int, int]] = set()  # sid and seq; kept only where limited
        self.busy_until = now  # nothing is remembered that matters after this

    def admit(self, rights: Rights, sid: int, seq: int, now: float) -> float | None:
        """Count a request. None: it may go on; else in how many seconds it may be tried again.

        A request that is sent again, and was admitted before, is not counted twice.
        """
        if (sid, seq) in self._in_flight:
            return None
        most = rights.requests_in_flight
        if most is not None and len(self._in_flight) >= most:
            return 0.05
        rate = rights.steps_per_s
        if rate is not None:
            burst = max(1.0, rate / 10)
            tokens = burst if self._tokens is None else self._tokens
            tokens = min(burst, tokens + (now - self._at) * rate)
            self._at, self._tokens = now, tokens
            if tokens < 1:
                return (1 - tokens) / rate
            self._tokens = tokens - 1
            self.busy_until = now + burst / rate
        if most is not None:
            self._in_flight.add((sid, seq))
        return None

    def answered(self, sid: int, seq: int) -> None:
        """The reply to a request went by."""
        self._in_flight.discard((sid, seq))

    def ended(self, sid: int) -> None:
        """This session is over."""
        self._in_flight = {one for one in self._in_flight if one[0] != sid}

    def idle(self, now: float) -> bool:
        """Whether a new meter would do as well as this one."""
        return not self._in_flight and now >= self.busy_until


MAX_METERS = 20_000


class Meters:
    """A meter for each key with limits. One that is idle is forgotten when there are many."""

    def __init__(self) -> None:
        self._meters: dict[bytes | None, Meter] = {}

    def of(self, key: bytes | None, now: float) -> Meter:
        """The meter of this key."""
        meter = self._meters.get(key)
        if meter is None:
            if len(self._meters) >= MAX_METERS:
                self._meters = {k: m for k, m in self._meters.items() if not m.idle(now)}
            meter = self._meters[key] = Meter(now)
        return meter

    def ended(self, key: bytes | None, sid: int) -> None:
        """A session of this key is over."""
        if key in self._meters:
            self._meters[key].ended(sid)
