"""How long the steps of a session take, and the rows of REPORT that tell the broker.

A step only appends to a list; everything else happens once a second, in the thread that reports.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import frexp
from typing import Any, NamedTuple

PARTS = 4  # parts of equal size of each power of two
FIRST = -30  # the exponent of the shortest time that is told apart, about a nanosecond
OFFSET = -PARTS * (FIRST + 2)
HALF_LIFE = 10.0  # seconds: a step counts half as much as one that came so much later
LEAST = 0.01  # of a step: what counts less is forgotten
MAX_SORTED = 1000  # durations of a session in one report: of more, every second, third, … counts
MAX_ROWS = 500  # of sessions in one second: the others come later


def index_of(seconds: float) -> int:
    """Return the place of a duration of 1 ns or more in a histogram."""
    # The duration is fraction * 2 ** exponent, with 1/2 <= fraction < 1.
    fraction, exponent = frexp(seconds)
    return PARTS * exponent + int(2 * PARTS * fraction) + OFFSET


def seconds_at(index: int) -> float:
    """Return the middle of the durations at this place."""
    power, part = divmod(index, PARTS)
    return float((PARTS + part + 0.5) / (2 * PARTS) * 2.0 ** (power + FIRST + 1))


class Running(NamedTuple):
    """A session, as the reporter sees it.

    `steps`: how many were executed. `times`: the durations of those since the last report, in
    seconds, to be taken from the list. `busy_since`: since when a request of it is being executed,
    or None. `opened_at`: when the session was opened. `direct`: whether its learner is connected
    directly.
    """

    sid: int
    steps: int
    times: list[float]
    busy_since: float | None
    opened_at: float
    direct: bool


@dataclass(slots=True)
class _Reported:
    """What was last reported of a session."""

    at: float
    steps: int = 0
    is_idle: bool = False  # whether its row said that nothing happens
    weights: dict[int, float] = field(default_factory=dict)  # of the latest steps, by their place


class StepReports:
    """Makes the rows of REPORT (docs/protocol.md §6.6) of the sessions of one process."""

    def __init__(self) -> None:
        self._reported: dict[int, _Reported] = {}

    def rows(self, sessions: Iterable[Running], now: float) -> list[list[Any]]:
        """Return the rows to send now: of what has changed, the longest unreported first."""
        known, alive = self._reported, set()
        changed: list[tuple[float, int, Running]] = []
        for one in sessions:
            sid = one.sid
            alive.add(sid)
            last = known.get(sid) or known.setdefault(sid, _Reported(one.opened_at))
            if one.steps != last.steps or one.busy_since is not None or not last.is_idle:
                changed.append((last.at, sid, one))
        for sid in known.keys() - alive:
            del known[sid]
        return [_row(one, known[sid], now) for _, sid, one in heapq.nsmallest(MAX_ROWS, changed)]

    def forget(self) -> None:
        """Report all sessions again: to a broker that was restarted."""
        self._reported.clear()


def _row(one: Running, last: _Reported, now: float) -> list[Any]:
    passed_s = max(now - last.at, 1e-3)
    rate = (one.steps - last.steps) / passed_s
    _update(last, one.times, 0.5 ** (passed_s / HALF_LIFE))
    last.at, last.steps = now, one.steps
    last.is_idle = one.busy_since is None and not rate
    busy_s = 0.0 if one.busy_since is None else max(0.0, now - one.busy_since)
    p50, p99 = percentiles(last.weights, (0.5, 0.99))
    return [one.sid, one.steps, rate, p50, p99, busy_s, one.direct]


def _update(last: _Reported, times: list[float], kept: float) -> None:
    """Let earlier steps count less, and add those since the last report."""
    taken = times[: len(times)]
    if not taken:  # the percentiles remain those of the latest steps
        return
    del times[: len(taken)]  # and not what another thread has appended meanwhile
    weights = {index: weight * kept for index, weight in last.weights.items()}
    every = -(-len(taken) // MAX_SORTED)  # one counts for this many
    for index, more in Counter(map(index_of, taken[::every])).items():
        weights[index] = weights.get(index, 0.0) + more * every
    last.weights = {index: weight for index, weight in weights.items() if weight >= LEAST}


def percentiles(weights: Mapping[int, float], shares: Iterable[float]) -> list[float]:
    """Return the durations that these shares of the steps do not exceed; 0 without steps."""
    total, places = sum(weights.values()), sorted(weights)
    found = []
    for share in shares:
        passed, index = 0.0, None
        for index in places:
            passed += weights[index]
            if passed >= share * total:
                break
        found.append(0.0 if index is None else seconds_at(index))
    return found
