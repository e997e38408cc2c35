"""OBSERVED in pages: what a peer may see of the broker's snapshot (docs/protocol.md §6.5)."""

from __future__ import annotations

import bisect
import itertools
from typing import Any, NamedTuple

from gymwire.broker import snapshot
from gymwire.broker.auth import Rights
from gymwire.broker.directory import pooled_offers_at
from gymwire.broker.tables import Tables
from gymwire.protocol.errors import DecodingError
from gymwire.protocol.messages import Observed
from gymwire.protocol.observations import BrokerTotals, row_of

PAGE_ROWS = 100  # offers or sessions in one page
PAGE_EXAMINED = 1000  # addresses or sessions examined for a page; the peer may see none of them
# Grouping this many loops, or skipping this many sessions, takes as long as examining one.
LOOPS, PASSED = 8, 256

OFFERS, SESSIONS = "offers", "sessions"  # the two parts, in the order of the pages


class Page(NamedTuple):
    """One page, and how many addresses and sessions the broker examined for it."""

    observed: Observed
    examined: int


def page(
    tables: Tables, broker: BrokerTotals, after: list[Any], rights: Rights, now: float
) -> Page:
    """Return the page that follows `after`. Raises DecodingError unless that is a page's `rest`."""
    found = Observed(row_of(broker), [], [])
    match after:
        case []:
            return _offers(tables, found, "", 0, rights)
        case [str(part), str(address), int(skip)] if part == OFFERS and 0 <= skip < 2**31:
            return _offers(tables, found, address, skip, rights)
        case [str(part), int(number), int(place)] if part == SESSIONS:
            return _sessions(tables, found, number, place, rights, now)
    raise DecodingError(
        "OBSERVE.after must be what the broker sent as OBSERVED.rest.", path="after"
    )


def _offers(tables: Tables, found: Observed, start: str, skip: int, rights: Rights) -> Page:
    at = bisect.bisect_left(tables.names, start)
    loops = 0
    for examined, name in enumerate(itertools.islice(tables.names, at, None)):
        if examined == PAGE_EXAMINED:
            found.rest.extend((OFFERS, name, 0))
            return Page(found, examined)
        if not rights.may_observe(name):
            continue
        first = skip if name == start else 0
        pooled = pooled_offers_at(tables, name)
        loops += sum(len(one.loops) for one in pooled)
        for number, one in enumerate(pooled[first:], first):
            if len(found.offers) == PAGE_ROWS:
                found.rest.extend((OFFERS, name, number))
                return Page(found, examined + loops // LOOPS)
            found.offers.append(row_of(snapshot.offer_state(one)))
    if tables.sessions:
        found.rest.extend((SESSIONS, -1, 0))
    return Page(found, len(tables.names) - at + loops // LOOPS)


def _sessions(
    tables: Tables, found: Observed, after: int, place: int, rights: Rights, now: float
) -> Page:
    """Add the sessions with a number above `after`.

    `place`: how many sessions came before the next one, including those that had ended by then.
    Fewer come before it now, by at most the number of those that have ended since then.
    """
    start = min(max(0, place - tables.removed), len(tables.sessions))
    rows = itertools.islice(tables.sessions.values(), start, None)
    examined = start // PASSED
    for count, session in enumerate(rows):
        if count == PAGE_EXAMINED or len(found.sessions) == PAGE_ROWS:
            found.rest.extend((SESSIONS, after, start + count + tables.removed))
            break
        examined += 1
        if session.number > after:
            after = session.number
            if rights.may_observe(session.address):
                found.sessions.append(row_of(snapshot.session_state(session, now)))
    return Page(found, examined)
