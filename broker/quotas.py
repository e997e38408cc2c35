"""How much of its limits each key has used."""

from __future__ import annotations

from gymwire.broker.auth import Rights

MAX_USAGES = 20_000
IN_FLIGHT_RETRY_S = 0.05  # when to retry a request that exceeds `requests_in_flight`


class Usage:
    """What one key has used of its limits, over all of its connections."""

    def __init__(self, now: float) -> None:
        self._tokens: float | None = None
        self._at = now
        self._in_flight: set[tuple[int, int]] = set()  # (sid, seq); kept only if limited
        self._bucket_full_at = now

    def admit(self, rights: Rights, sid: int, seq: int, now: float) -> float | None:
        """Count a request. Return None if it may pass, else the seconds until a retry.

        A repeated request that was admitted before is not counted again.
        """
        if (sid, seq) in self._in_flight:
            return None
        most = rights.requests_in_flight
        if most is not None and len(self._in_flight) >= most:
            return IN_FLIGHT_RETRY_S
        rate = rights.steps_per_s
        if rate is not None:
            burst = max(1.0, rate / 10)
            tokens = burst if self._tokens is None else self._tokens
            tokens = min(burst, tokens + (now - self._at) * rate)
            self._at, self._tokens = now, tokens
            if tokens < 1:
                return (1 - tokens) / rate
            self._tokens = tokens - 1
            self._bucket_full_at = now + burst / rate
        if most is not None:
            self._in_flight.add((sid, seq))
        return None

    def end_request(self, sid: int, seq: int) -> None:
        """Free the place in flight of a request that was answered."""
        self._in_flight.discard((sid, seq))

    def end_session(self, sid: int) -> None:
        """Free the places in flight of a session that has ended."""
        self._in_flight = {one for one in self._in_flight if one[0] != sid}

    def is_idle(self, now: float) -> bool:
        """Return whether this usage holds no state and can be forgotten."""
        return not self._in_flight and now >= self._bucket_full_at


class Quotas:
    """The usage of each key that has limits. When there are many, idle ones are forgotten."""

    def __init__(self) -> None:
        self._usages: dict[bytes | None, Usage] = {}

    def of(self, key: bytes | None, now: float) -> Usage:
        """Return the usage of this key."""
        usage = self._usages.get(key)
        if usage is None:
            if len(self._usages) >= MAX_USAGES:
                self._usages = {k: u for k, u in self._usages.items() if not u.is_idle(now)}
            usage = self._usages[key] = Usage(now)
        return usage

    def end_session(self, key: bytes | None, sid: int) -> None:
        """Free what an ended session of this key has used."""
        if key in self._usages:
            self._usages[key].end_session(sid)
