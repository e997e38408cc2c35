"""OBSERVED in pages: what a peer may see of the broker's snapshot (docs/protocol.md §6.5)."""

from __future__ import annotations

import bisect
import itertools
from typing import Any, NamedTuple

from gymwire.broker import snapshot
from gymwire.broker.auth import Rights
from gymwire.broker.directory import pooled_offers_at
from gymwire.broker.snapshot import BrokerState, OfferState, SessionState
from gymwire.broker.tables import Tables
from gymwire.protocol.errors import DecodingError
from gymwire.protocol.messages import Observed

PAGE_ROWS = 100  # offers or sessions in one page
PAGE_EXAMINED = 1000  # addresses or sessions that a page looks at, most of which may be hidden
# To group this many loops, or to pass over this many sessions, takes as long as to look at one.
LOOPS, PASSED = 8, 256

OFFERS, SESSIONS = "offers", "sessions"  # the two parts, in the order of the pages


class Page(NamedTuple):
    """One page, and at how many addresses and sessions the broker looked for it."""

    observed: Observed
    examined: int


def page(tables: Tables, broker: BrokerState, after: list[Any], rights: Rights, now: float) -> Page:
    """Return the page that follows `after`. Raises DecodingError if that is no `rest` of ours."""
    found = Observed(_broker(broker), [], [])
    match after:
        case []:
            return _offers(tables, found, "", 0, rights, now)
        case [str(part), str(address), int(skip)] if part == OFFERS and 0 <= skip < 2**31:
            return _offers(tables, found, address, skip, rights, now)
        case [str(part), int(number), int(place)] if part == SESSIONS:
            return _sessions(tables, found, number, place, rights, now)
    raise DecodingError(
        "OBSERVE.after must be what the broker sent as OBSERVED.rest.", path="after"
    )


def _offers(
    tables: Tables, found: Observed, start: str, skip: int, rights: Rights, now: float
) -> Page:
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
            found.offers.append(_offer(snapshot.offer_state(one)))
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
                found.sessions.append(_session(snapshot.session_state(session, now)))
    return Page(found, examined)


def _broker(state: BrokerState) -> dict[str, Any]:
    count = state.counters
    return {
        "epoch": state.epoch,
        "software": state.software,
        "uptime_s": state.uptime_s,
        "peers": state.peers,
        "sessions": state.sessions,
        "frames": count.frames_relayed,
        "bytes": count.bytes_relayed,
        "sessions_opened": count.sessions_opened,
        "sessions_recovered": count.sessions_recovered,
        "sessions_closed": count.sessions_closed,
        "sessions_lost": dict(count.sessions_lost),
        "refusals": dict(count.refusals),
        "busy": dict(count.busy),
        "dropped": dict(count.dropped),
    }


def _offer(state: OfferState) -> dict[str, Any]:
    return {
        "address": state.address,
        "env_id": state.env_id,
        "agent": state.agent_id,
        "host": state.host,
        "pid": state.pid,
        "agent_pid": state.agent_pid,
        "software": state.software,
        "identity": state.identity,
        "name": state.name,
        "slots": state.slots,
        "used": state.used,
        "stuck": state.stuck,
        "state": state.state,
        "direct": state.direct,
    }


def _session(state: SessionState) -> dict[str, Any]:
    return {
        "sid": state.sid,
        "address": state.address,
        "agent": state.agent_id,
        "host": state.agent_host,
        "pid": state.agent_pid,
        "learner": state.learner_name,
        "identity": state.learner,
        "learner_host": state.learner_host,
        "learner_pid": state.learner_pid,
        "state": state.state,
        "direct": None if state.relayed is None else not state.relayed,
        "age_s": state.age_s,
        "frames": state.frames,
        "steps": state.steps,
        "steps_per_s": state.steps_per_s,
        "p50_s": state.p50_s,
        "p99_s": state.p99_s,
        "in_step_s": state.in_step_s,
    }
