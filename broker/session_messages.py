"""Frames of sessions that the broker looks at: those without a route, and those about a session.

The others are relayed by their header alone (`Core.relay`).
"""

from __future__ import annotations

from gymwire.broker.events import Notes, Send, say
from gymwire.broker.quotas import Meters
from gymwire.broker.refusals import NOT_YOURS, Refusal
from gymwire.broker.sessions import Sessions
from gymwire.broker.tables import Peer, Session, Tables
from gymwire.protocol.codec import PLAIN, Header
from gymwire.protocol.dialogue import REQUESTS
from gymwire.protocol.errors import DecodingError
from gymwire.protocol.messages import (
    Busy,
    BusyReason,
    Closed,
    Code,
    Error,
    Gone,
    Kind,
    Pong,
    Progress,
    Role,
)


class SessionFrames:
    """What is said in sessions, and about them."""

    def __init__(self, tables: Tables, sessions: Sessions, meters: Meters, notes: Notes) -> None:
        self._tables = tables
        self._sessions = sessions
        self._meters = meters
        self._notes = notes

    def frame(self, peer: Peer, header: Header, data: bytes | memoryview, now: float) -> list[Send]:
        """A frame of the gym dialogue that has no open route, or may end one."""
        session = self._tables.sessions.get(header.sid)
        if session is None:
            if peer.role == Role.ENV:
                return [say(peer.rid, Gone("the broker does not know it"), header.sid)]
            if header.kind is Kind.CLOSE:
                return [say(peer.rid, Closed(), header.sid, header.seq)]
            return self._sessions.unknown(peer.rid, header, now)
        if session.loop is peer:
            return self._reply(session, header, data, now)
        if header.kind not in REQUESTS:
            raise DecodingError(f"{header.kind.name} is not a request.")
        if session.learner is peer and session.is_open:
            return self._metered(peer, session, header, data, now)
        return _not_bound(peer, session, header)

    def _reply(
        self, session: Session, header: Header, data: bytes | memoryview, now: float
    ) -> list[Send]:
        learner = session.learner
        if learner is not None and learner.rights.metered:
            session.frames += 1
            self._meters.of(learner.key, now).answered(session.sid, header.seq)
        if header.kind is Kind.CLOSED or not session.is_open or _says_lost(header, data):
            self._sessions.drop(session)
            if session.is_open:
                self._notes.add("session closed", address=session.address, relayed=session.frames)
        return [] if learner is None else [Send(learner.rid, data)]

    def _metered(
        self, peer: Peer, session: Session, header: Header, data: bytes | memoryview, now: float
    ) -> list[Send]:
        """A request of a learner whose key has limits."""
        most = peer.rights.message_bytes
        if most is not None and len(data) > most:
            text = f"This {header.kind.name} has {len(data)} bytes; this key may send {most}."
            raise Refusal(Code.TOO_LARGE, text)
        if header.kind is not Kind.CLOSE:
            meter = self._meters.of(peer.key, now)
            wait_s = meter.admit(peer.rights, header.sid, header.seq, now)
            if wait_s is not None:
                busy = Busy(BusyReason.RATE, wait_s)
                return [say(peer.rid, busy, header.sid, header.seq)]
        session.frames += 1
        return [Send(session.loop.rid, data)]

    def progress(self, peer: Peer, header: Header, progress: Progress, now: float) -> list[Send]:
        """An env agent says, over any of its connections, since when it is in a step."""
        session = self._tables.sessions.get(header.sid)
        if session is None or session.loop.agent != peer.agent or session.loop.key != peer.key:
            return []
        session.told_at, session.in_step_s = now, max(0.0, min(progress.since_s, 1e9))
        if session.learner is None:
            return []
        return [say(session.learner.rid, progress, header.sid, header.seq)]

    def ping(self, peer: Peer, header: Header, now: float) -> list[Send]:
        """Is the broker there, and how is this session?"""
        answer: Busy | Pong = Pong()
        if header.sid:
            session = self._tables.sessions.get(header.sid)
            if session is None:
                return self._sessions.unknown(peer.rid, header, now)
            if session.learner is not peer:
                return _not_bound(peer, session, header)
            if session.loop.lost_at is not None:
                answer = Busy(BusyReason.UNREACHABLE, 0.05)
            elif session.in_step(now):
                answer = Pong(session.in_step_s + now - session.told_at)
        return [say(peer.rid, answer, header.sid, header.seq)]


def _not_bound(peer: Peer, session: Session, header: Header) -> list[Send]:
    """A frame for a session that is not bound to this learner: now, or not at all."""
    if session.learner in (None, peer):
        return [say(peer.rid, Busy(BusyReason.HELLO, 0.0), header.sid, header.seq)]
    raise Refusal(Code.DENIED, NOT_YOURS)


def _says_lost(header: Header, data: bytes | memoryview) -> bool:
    """Whether an env agent says that it does not have this session any more."""
    if header.kind is not Kind.ERROR:
        return False
    error = PLAIN.decode(data, header)
    return isinstance(error, Error) and error.code == Code.SESSION_LOST
