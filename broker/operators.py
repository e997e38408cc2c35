"""What operators ask the broker, and what env agents send for them: REPORT and WATCHED."""

from __future__ import annotations

from collections.abc import Callable

from gymwire.broker import observation
from gymwire.broker.auth import EVERYTHING
from gymwire.broker.events import Send, Sender
from gymwire.broker.journal import Drop, Journal, Loss
from gymwire.broker.rate_limit import RateLimiter
from gymwire.broker.refusals import ASK_OPERATOR, Refusal, RetryLater, describe_key, not_allowed
from gymwire.broker.sessions import Sessions
from gymwire.broker.tables import Peer, Session, Steps, Tables
from gymwire.broker.watches import PendingWatch, Watches
from gymwire.protocol.capabilities import OBSERVE, WATCH
from gymwire.protocol.codec import MAX_INT, Frame, Header, renumber
from gymwire.protocol.errors import DecodingError
from gymwire.protocol.messages import (
    BusyReason,
    Code,
    Observe,
    Report,
    Role,
    Stop,
    Stopped,
    Watch,
)
from gymwire.protocol.observations import BrokerTotals
from gymwire.protocol.process_ids import session_text

STOP_RETRY_S = 0.5  # when to repeat a STOP for an env agent that is not quite connected
MAX_ROWS = 1000  # of a REPORT


class Operators:
    """The requests of operators. `state`: returns the state of the broker as a whole."""

    def __init__(
        self,
        tables: Tables,
        sessions: Sessions,
        limiter: RateLimiter,
        journal: Journal,
        state: Callable[[float], BrokerTotals],
    ) -> None:
        self._tables = tables
        self._sessions = sessions
        self._limiter = limiter
        self._journal = journal
        self._state = state
        self._watches = Watches()

    def observe(
        self, peer: Peer, sender: Sender, header: Header, request: Observe, now: float
    ) -> list[Send]:
        """Reply to OBSERVE with a page of what the peer may see."""
        _check_right(peer, sender, "observe")
        wait_s = self._limiter.listing_wait_s(peer.rid, now)
        if wait_s:
            raise RetryLater(BusyReason.RATE, wait_s)
        page = observation.page(self._tables, self._state(now), request.after, peer.rights, now)
        answer = Send.message(peer.rid, page.observed, 0, header.seq)
        self._limiter.charge_listing(peer.rid, len(answer.frame), page.examined, now)
        return [answer]

    def stop(
        self, peer: Peer, sender: Sender, header: Header, request: Stop, now: float
    ) -> list[Send]:
        """Reply to STOP, and end the session in the header, or let the env agent drain."""
        _check_right(peer, sender, "stop")
        process = f"process {peer.pid}" if peer.pid else "a process"
        who = f"{peer.rights.name!r}, {process} on {peer.host}"
        if header.sid:
            stopped, sends = self._stop_session(peer, header.sid, who)
        else:  # this examines each peer
            self._limiter.charge_listing(peer.rid, 0, len(self._tables.peers), now)
            stopped, sends = self._stop_agent(peer, request.agent, who)
        return [Send.message(peer.rid, stopped, header.sid, header.seq), *sends]

    def _stop_session(self, peer: Peer, sid: int, who: str) -> tuple[Stopped, list[Send]]:
        session = self._tables.sessions.get(sid)
        if session is None:
            if sid in self._tables.ended:  # also by this request, when it came the first time
                return Stopped(0, 0), []
            text = f"There is no session {session_text(sid)} at this broker."
            raise Refusal(Code.NOT_STOPPED, text)
        if not peer.rights.may_stop(session.address):
            raise Refusal(Code.DENIED, not_allowed(peer, "stop", session.address))
        reason = f"an operator ({who}) has stopped it"
        return Stopped(0, 1), self._sessions.end_for_both(session, Loss.OPERATOR, reason)

    def _stop_agent(self, peer: Peer, agent: str, who: str) -> tuple[Stopped, list[Send]]:
        peers = self._tables.peers.values()
        loops = [one for one in peers if one.offers and one.agent_id == agent]
        if not loops:
            text = f"No env agent {agent!r:.50} at this broker: `gymwire ps` lists them."
            raise Refusal(Code.NOT_STOPPED, text)
        for name in sorted({name for loop in loops for name in loop.offers}):
            if not peer.rights.may_stop(name):
                raise Refusal(Code.DENIED, not_allowed(peer, "stop", name))
        processes = {loop.process for loop in loops}
        reached = [one for one in peers if one.role == Role.PROGRESS and one.process in processes]
        first = loops[0]
        if any(OBSERVE not in one.capabilities for one in reached):
            raise Refusal(
                Code.NOT_STOPPED,
                f"The env agent on {first.host} ({first.software}) is of an earlier release, which "
                f"cannot be stopped through the broker. Send SIGTERM to its process on that host.",
            )
        if len({one.process for one in reached}) < len(processes):  # some are just starting
            raise RetryLater(BusyReason.UNREACHABLE, STOP_RETRY_S)
        for loop in loops:
            loop.draining.update(loop.offers)
        facts = {"host": first.host, "pid": first.pid, "offers": sorted(first.offers)}
        self._journal.note("agent stopped", agent=agent, **facts, why=f"by an operator ({who})")
        order = Stop(agent, f"an operator ({who}) has stopped this env agent")
        sends = [Send.message(one.rid, order) for one in reached]
        return Stopped(len(reached), sum(len(loop.sessions) for loop in loops)), sends

    def watch(
        self, peer: Peer, sender: Sender, header: Header, request: Watch, now: float
    ) -> list[Send]:
        """Pass WATCH on to the env agent of the session; `watched` gets the answer."""
        _check_right(peer, sender, "watch")
        session = self._watchable(peer, header.sid)
        wait_s = self._limiter.listing_wait_s(peer.rid, now)
        if wait_s:
            raise RetryLater(BusyReason.RATE, wait_s)
        loop = session.loop.rid
        watch = PendingWatch(peer.rid, header.sid, request.env, loop, header.seq)
        number = self._watches.begin(watch, now, sender.unread)
        return [Send.message(loop, request, header.sid, number)]

    def _watchable(self, peer: Peer, sid: int) -> Session:
        session = self._tables.sessions.get(sid)
        if session is None:
            text = f"There is no session {session_text(sid)} at this broker."
            raise Refusal(Code.NOT_WATCHABLE, text)
        if not peer.rights.may_watch(session.address):
            raise Refusal(Code.DENIED, not_allowed(peer, "watch", session.address))
        if WATCH not in session.loop.capabilities:
            text = f"The env agent on {session.loop.host} ({session.loop.software})"
            raise Refusal(
                Code.NOT_WATCHABLE,
                f"{text} cannot be watched: it is of an earlier release. Upgrade gymwire there.",
            )
        return session

    def watched(
        self, peer: Peer, header: Header, data: Frame | memoryview, now: float
    ) -> list[Send]:
        """Pass a frame on to the watcher that asked for it."""
        watcher = self._watches.end(header.seq, header.sid, peer.rid)
        if watcher is None or watcher.rid not in self._tables.peers:
            self._journal.drop(peer.rid, Drop.NOT_AWAITED)
            return []
        self._limiter.charge_listing(watcher.rid, len(data), 0, now)
        return [Send(watcher.rid, renumber(bytes(data), header.sid, watcher.seq))]

    def awaits(self, rid: bytes, sid: int, number: int) -> bool:
        """Return whether a watcher waits for this WATCHED of an env agent."""
        return self._watches.awaits(number, sid, rid)

    def report(self, peer: Peer, report: Report, now: float) -> None:
        """Note what an env agent reports about the steps of its sessions.

        Every connection of the env agent's process may report it. Raises DecodingError.
        """
        if len(report.rows) > MAX_ROWS:
            raise DecodingError(f"REPORT has {len(report.rows)} rows; a broker takes {MAX_ROWS}.")
        for row in report.rows:
            sid, steps = _checked(row, now)
            session = self._tables.sessions.get(sid)
            if session is None:
                continue  # it has ended meanwhile
            if session.loop.process != peer.process:
                self._journal.drop(peer.rid, Drop.NOT_OURS)
                return
            session.steps = steps


def _checked(row: object, now: float) -> tuple[int, Steps]:
    """Return the session of a row of REPORT, and what the row says. Raises DecodingError."""
    match row:
        case [int(sid), int(steps), *times, bool(direct)] if len(times) == 4:
            numbers = [one for one in times if isinstance(one, int | float)]
            if len(numbers) == 4 and all(0 <= one < MAX_INT for one in (steps, *numbers)):
                rate, p50, p99, in_step = map(float, numbers)
                return sid, Steps(steps, rate, p50, p99, in_step, direct, now)
    raise DecodingError("A row of REPORT must be [sid, steps, steps/s, p50, p99, busy, direct].")


def _check_right(peer: Peer, sender: Sender, verb: str) -> None:
    """Raise Refusal without this right or, if there is no policy, from another host."""
    if peer.rights is EVERYTHING and not sender.on_host:
        raise Refusal(
            Code.DENIED,
            f"Without a policy, only processes on the broker's host may {verb}. To {verb} from "
            f"elsewhere, give your key the right `{verb}` in a policy (gymwire broker --policy).",
        )
    if not getattr(peer.rights, verb):
        raise Refusal(
            Code.DENIED,
            f"{describe_key(peer.key, peer.identity)}, named {peer.rights.name!r} in this "
            f"broker's policy, may not {verb}: its entry has no `{verb}`. To change that, "
            f"{ASK_OPERATOR}",
        )
