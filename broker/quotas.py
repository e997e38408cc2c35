"""How much of its limits each key has used."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from gymwire.broker.auth import Rights

MAX_USAGES = 20_000
IN_FLIGHT_RETRY_S = 0.05  # when to retry a request that exceeds `requests_in_flight`
REPEAT_S = 0.5  # a repetition after this long is free: the learner has waited for its reply
# A request counts as in flight for this long after it, or a report about it, was last relayed. A
# waiting learner repeats it sooner; an env agent never answers a late duplicate.
PLACE_S = 30.0


@dataclass(slots=True)
class _SessionUsage:
    """The requests of one session that were relayed."""

    last_seq: int = 0  # the request relayed last,
    relayed_at: float = -math.inf  # and when
    executed: int = 0  # the highest number that the env agent has executed, as its replies show
    places: dict[int, float] = field(default_factory=dict)  # in flight: number → when last relayed


class Usage:
    """What one key has used of its limits, over all of its connections."""

    def __init__(self, now: float) -> None:
        self._tokens: float | None = None
        self._at = now
        self._sessions: dict[int, _SessionUsage] = {}
        self._in_flight = 0  # places in all sessions; counted only if limited
        self._bucket_full_at = now
        self._expire_at = now

    def admit(self, rights: Rights, sid: int, seq: int, now: float) -> float | None:
        """Count a request. Return None if it may pass, else the seconds until a retry.

        A learner that repeats its last request because no reply came does so for free. Any other
        repetition counts like a request, whether or not the env agent ignores it. A number that
        the env agent has executed takes no place in flight, since no reply may come.
        """
        session = self._sessions.get(sid)
        if session is None:
            session = self._sessions[sid] = _SessionUsage()
        waited = now - session.relayed_at >= REPEAT_S
        if seq != session.last_seq or seq <= session.executed or not waited:
            wait_s = self._count(rights, session, seq, now)
            if wait_s is not None:
                return wait_s
        session.last_seq, session.relayed_at = seq, now
        if rights.requests_in_flight is not None and seq > session.executed:
            self._in_flight += seq not in session.places
            session.places[seq] = now
        return None

    def _count(self, rights: Rights, session: _SessionUsage, seq: int, now: float) -> float | None:
        most, rate = rights.requests_in_flight, rights.steps_per_s
        if most is not None and seq > session.executed and seq not in session.places:
            if self._in_flight >= most:
                self._expire(now)
            if self._in_flight >= most:
                return IN_FLIGHT_RETRY_S
        if rate is not None:
            burst = max(1.0, rate / 10)
            tokens = burst if self._tokens is None else self._tokens
            tokens = min(burst, tokens + (now - self._at) * rate)
            self._at, self._tokens = now, tokens
            if tokens < 1:
                return (1 - tokens) / rate
            self._tokens = tokens - 1
            self._bucket_full_at = now + burst / rate
        return None

    def end_request(self, sid: int, seq: int, *, executed: bool) -> None:
        """Free the place of a request that was answered.

        `executed`: the env agent has executed it, and so all requests before it.
        """
        session = self._sessions.get(sid)
        if session is None:
            return
        answered = [seq]
        if executed:
            session.executed = max(session.executed, seq)
            answered = [one for one in session.places if one <= seq]
        for one in answered:
            if session.places.pop(one, None) is not None:
                self._in_flight -= 1

    def progress(self, sid: int, seq: int, now: float) -> None:
        """Note that the env agent is executing this request."""
        session = self._sessions.get(sid)
        if session is not None and seq in session.places:
            session.places[seq] = now

    def end_session(self, sid: int) -> None:
        """Free the places in flight of a session that has ended."""
        session = self._sessions.pop(sid, None)
        if session is not None:
            self._in_flight -= len(session.places)

    def is_idle(self, now: float) -> bool:
        """Return whether this usage holds no state and can be forgotten."""
        return not self._in_flight and now >= self._bucket_full_at

    def _expire(self, now: float) -> None:
        """Free the places of requests that nobody waits for, at most once a second."""
        if now < self._expire_at:
            return
        self._expire_at = now + 1.0
        for session in self._sessions.values():
            session.places = {n: at for n, at in session.places.items() if now - at < PLACE_S}
        self._in_flight = sum(len(session.places) for session in self._sessions.values())


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
