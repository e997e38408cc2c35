"""The timers of the sessions of a connection: what they send again, and who notices silence.

Those of many sessions take at most a fortieth of the time, unless a run takes more than 25 ms, and
send so few frames that the broker's rate limit admits them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING

from gymwire.learner_agent.client.waiting import timers_pause
from gymwire.protocol.errors import BrokerUnreachable
from gymwire.protocol.transport.interface import Transport

if TYPE_CHECKING:
    from gymwire.learner_agent.client.session import RemoteSession

MANY_TIMERS = 64  # sessions whose timers take so long that they must not run at every occasion
MAX_REPEATED = 64  # frames that the sessions send again in one run; the last may send a few more
REPEATS_PER_SECOND = 640  # frames that the sessions send again, and their PINGs
CHECK_ALL_S = 1.0  # every session is checked at least this often


class Repeats:
    """The frames that the sessions send again in one run of their timers.

    Attributes:
        left: how many more may be sent; not above 0: none.
        full: the transports that accept no frame at the moment, and get no other one.
    """

    def __init__(self) -> None:
        self.left = MAX_REPEATED
        self.full: set[Transport] = set()

    @property
    def pause_s(self) -> float:
        """How long to wait before the next run, in seconds."""
        return (MAX_REPEATED - self.left) / REPEATS_PER_SECOND


class SessionTimers:
    """The timers of the sessions of one connection.

    Args:
        timeout_s: how long the broker may be silent, in seconds.
        clock: returns the time in seconds.
    """

    def __init__(self, timeout_s: float, clock: Callable[[], float]) -> None:
        self._check_every_s = min(CHECK_ALL_S, timeout_s / 4)
        self._clock = clock
        self._next_at = 0.0
        self._check_all_at = 0.0
        self._first = 0  # the place of the session that comes first

    def run(
        self, sessions: Collection[RemoteSession], now: float, awaited: Iterable[object]
    ) -> None:
        """Run the timers that are due.

        `awaited`: the sessions whose replies the caller waits for. If it is a tuple, they are few,
        and their timers are always due: such a call waits no longer because there are many others.

        Once a run has sent as many frames as it may, the other sessions come first in the next run.
        Until then they only notice whether the broker is silent, once in `CHECK_ALL_S`.

        Raises BrokerUnreachable if it has been silent for too long towards one of `awaited`. The
        next call waits as long again, whichever sessions it waits for.
        """
        repeats = Repeats()
        if now < self._next_at:
            for session in awaited if isinstance(awaited, tuple) else ():
                self._tick(session, now, repeats, sessions, awaited)
            return
        ordered, first = list(sessions), None
        checks_all = now >= self._check_all_at
        for place in (*range(self._first, len(ordered)), *range(min(self._first, len(ordered)))):
            self._tick(ordered[place], now, repeats, ordered, awaited)
            if repeats.left <= 0:
                first = place if first is None else first
                if not checks_all:
                    break
        pause_s = repeats.pause_s
        if first is None:
            pause_s = max(pause_s, timers_pause(self._clock() - now))
        if first is None or checks_all:
            self._check_all_at = now + self._check_every_s
        self._first = first or 0
        if len(ordered) > MANY_TIMERS:
            self._next_at = now + min(pause_s, self._check_every_s)

    def _tick(
        self,
        session: RemoteSession,
        now: float,
        repeats: Repeats,
        sessions: Collection[RemoteSession],
        awaited: Iterable[object],
    ) -> None:
        """Run the timers of one session. Raises BrokerUnreachable if it is one of `awaited`."""
        try:
            session.tick(now, repeats)
        except BrokerUnreachable:
            if session not in awaited:
                session.exchange.keep_waiting(now)
                return
            for one in sessions:  # the silence of the broker counts from now for all in use
                if not one.closed:
                    one.exchange.keep_waiting(now)
            raise
