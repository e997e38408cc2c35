"""Handle the frames of sessions that `Core.relay` does not relay by their header alone."""

from __future__ import annotations

from gymwire.broker.decoding import begins_with, error_text
from gymwire.broker.events import Send
from gymwire.broker.journal import Drop, Journal, Loss
from gymwire.broker.quotas import Quotas
from gymwire.broker.refusals import MAX_WHY, NOT_YOURS, Refusal, RetryLater
from gymwire.broker.sessions import MAX_LOSSES, Sessions
from gymwire.broker.tables import Peer, Session, Tables
from gymwire.protocol.codec import Header
from gymwire.protocol.dialogue import REQUESTS
from gymwire.protocol.errors import DecodingError
from gymwire.protocol.messages import (
    BusyReason,
    Closed,
    Code,
    Kind,
    Pong,
    Progress,
    Role,
)

UNREACHABLE_RETRY_S = 0.05  # while the connection of the env agent is lost
UNANSWERED_RETRY_S = 1.0  # when a learner may repeat a large request that may still be unread
# A large request passes after it was refused for this long while the serving loop was in no step.
# An env agent never answers a late duplicate.
UNANSWERED_S = 30.0


class SessionMessages:
    """Messages in sessions, and about sessions."""

    def __init__(
        self, tables: Tables, sessions: Sessions, quotas: Quotas, journal: Journal
    ) -> None:
        self._tables = tables
        self._sessions = sessions
        self._quotas = quotas
        self._journal = journal

    def relay(self, peer: Peer, header: Header, data: bytes | memoryview, now: float) -> list[Send]:
        """Relay a frame of the gym dialogue that has no route, or may end its session."""
        session = self._tables.sessions.get(header.sid)
        if session is None:
            if peer.role == Role.ENV:
                why = "the broker does not know this session"
                return [self._sessions.not_known(peer, header.sid, why)]
            if header.kind is Kind.CLOSE:
                return [Send.message(peer.rid, Closed(), header.sid, header.seq)]
            raise self._sessions.unknown(header.sid, now)
        if session.loop is peer:
            return self._reply(session, header, data, now)
        if header.kind not in REQUESTS:
            raise DecodingError(f"{header.kind.name} is not a request.")
        if session.learner is peer and session.is_open:
            return self._request(peer, session, header, data, now)
        raise _not_bound(peer, session)

    def _reply(
        self, session: Session, header: Header, data: bytes | memoryview, now: float
    ) -> list[Send]:
        learner = session.learner
        if header.kind is Kind.ERROR and not session.is_open and header.seq != session.open_seq:
            self._journal.drop(session.loop.rid, Drop.NOT_AWAITED)  # it does not answer this OPEN
            return []
        if learner is not None and learner.rights.metered:
            # An ERROR may say that the env agent has not executed the request.
            executed = header.kind is not Kind.ERROR
            usage = self._quotas.of(learner.key, now)
            usage.end_request(session.sid, header.seq, executed=executed)
        lost = session.is_open and _reports_loss(header, data)
        if header.kind is Kind.CLOSED or not session.is_open or lost:
            self._sessions.drop(session, Loss.AGENT_FORGOT if lost else None)
            if header.kind is Kind.ERROR and not session.is_open:
                # As if the broker had refused it: learners that wait ask again and again.
                if not begins_with(data, Code.NO_FREE_SLOT):
                    why = error_text(data)[:MAX_WHY]
                    self._journal.note("session refused", **session.facts, why=why)
            elif session.is_open:
                facts = {**session.facts, "relayed": session.frames}
                if lost:
                    why = error_text(data)[:MAX_WHY] or Loss.AGENT_FORGOT
                    self._journal.note("session lost", **facts, why=why)
                else:
                    self._journal.note("session closed", **facts)
        if learner is None or not session.replies.admit(len(data), session.requests):
            self._journal.drop(session.loop.rid, Drop.NOT_AWAITED)
            return []  # if the learner waits for the reply, it asks again
        self._journal.relayed(len(data))
        return [Send(learner.rid, data)]

    def _request(
        self, peer: Peer, session: Session, header: Header, data: bytes | memoryview, now: float
    ) -> list[Send]:
        """Relay a request of a learner if the limits of its key and of each session allow it."""
        most = peer.rights.message_bytes
        if most is not None and len(data) > most:
            raise Refusal(
                Code.TOO_LARGE,
                f"This {header.kind.name} has {len(data)} bytes; the broker's policy allows this "
                f"key {most}.",
            )
        if header.kind is not Kind.CLOSE:
            usage = self._quotas.of(peer.key, now)
            wait_s = usage.admit(peer.rights, header.sid, header.seq, now)
            if wait_s is not None:
                raise RetryLater(BusyReason.RATE, wait_s)
        flow = session.requests
        if not flow.admit(len(data), session.replies):
            if self._may_be_unread(session, now):
                raise RetryLater(BusyReason.QUEUE_FULL, UNANSWERED_RETRY_S)
            flow.forgive()
            flow.admit(len(data), session.replies)
        self._journal.relayed(len(data))
        return [Send(session.loop.rid, data)]

    def _may_be_unread(self, session: Session, now: float) -> bool:
        """Return whether the serving loop may not have read the requests of a session yet."""
        flow = session.requests
        if flow.refused_since is None or session.loop.in_step(now):
            flow.refused_since = now
        return now - flow.refused_since < UNANSWERED_S

    def progress(self, peer: Peer, header: Header, progress: Progress, now: float) -> list[Send]:
        """Note a long step that an env agent reports, and relay the report to the learner.

        Every connection of the env agent's process may report it.
        """
        session = self._tables.sessions.get(header.sid)
        in_step_s = max(0.0, min(progress.since_s, 1e9))
        if session is None:
            self._tables.note_stuck(header.sid, peer, in_step_s, now)
            return []
        if session.loop.process != peer.process:
            self._journal.drop(peer.rid, Drop.NOT_OURS)
            return []
        self._tables.progress(session, in_step_s, now)
        if session.learner is None:
            return []
        if session.learner.rights.metered:
            self._quotas.of(session.learner.key, now).progress(header.sid, header.seq, now)
        return [Send.message(session.learner.rid, progress, header.sid, header.seq)]

    def ping(self, peer: Peer, header: Header, now: float) -> list[Send]:
        """Reply to PING with the state of its session, or of the broker if it names none."""
        pong = Pong()
        if header.sid:
            session = self._tables.sessions.get(header.sid)
            if session is None:
                raise self._sessions.unknown(header.sid, now)
            if session.learner is not peer:
                raise _not_bound(peer, session)
            if session.loop.lost_at is not None:
                raise RetryLater(BusyReason.UNREACHABLE, UNREACHABLE_RETRY_S)
            if session.in_step(now):
                session.waiting = 0
                pong = Pong(session.in_step_s + now - session.progress_at)
            elif session.losses_since(header.seq) >= MAX_LOSSES:
                return self._sessions.end_for_path(session)
        return [Send.message(peer.rid, pong, header.sid, header.seq)]


def _not_bound(peer: Peer, session: Session) -> RetryLater | Refusal:
    """Return the error for a frame in a session that is not bound to this learner."""
    if session.learner in (None, peer):
        return RetryLater(BusyReason.HELLO, 0.0)
    return Refusal(Code.DENIED, NOT_YOURS)


def _reports_loss(header: Header, data: bytes | memoryview) -> bool:
    """Return whether an env agent reports that it does not have this session anymore.

    The learner reads the rest of the ERROR.
    """
    return header.kind is Kind.ERROR and begins_with(data, Code.SESSION_LOST)
