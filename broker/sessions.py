"""How sessions begin, change hands, and end."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

from gymwire.broker import directory
from gymwire.broker.connections import Connections
from gymwire.broker.events import Notes, Send, say
from gymwire.broker.quotas import Meters
from gymwire.broker.recovery import REJOIN_S, Awaited
from gymwire.broker.refusals import ASK, NOT_YOURS, Refusal, may_not, whose
from gymwire.broker.tables import Peer, Session, Tables
from gymwire.protocol.address import Address, parse_address
from gymwire.protocol.codec import KIND_AT, Header, read_header
from gymwire.protocol.errors import DecodingError
from gymwire.protocol.messages import (
    Busy,
    BusyReason,
    Code,
    Gone,
    Kind,
    Open,
    Resume,
    Resumed,
    Role,
)

MAX_SESSIONS = 100_000
MAX_IDENTITY = 64  # characters
MAX_OWED = 10_000  # sessions whose loops could not be told yet that they have ended
OWED_AT_ONCE = 100  # frames in each tick to loops whose queues were full


JUST_STARTED = (
    "This broker has just started, and env agents that were here before are on their way back: try "
    "again, or wait for them (wait_s=10; --wait 10)."
)


class Sessions:
    """The sessions in the tables. `lease_s`: how long they wait for a lost learner."""

    def __init__(
        self,
        tables: Tables,
        connections: Connections,
        awaited: Awaited,
        meters: Meters,
        notes: Notes,
        rng: random.Random,
        lease_s: float,
    ) -> None:
        self._tables = tables
        self._connections = connections
        self._awaited = awaited
        self._meters = meters
        self._notes = notes
        self._rng = rng
        self._lease_s = lease_s
        self._owed: dict[int, Send] = {}  # GONE for loops whose queue was full, by sid

    # --- beginnings -------------------------------------------------------------------------------

    def open(self, peer: Peer, header: Header, wish: Open, now: float) -> list[Send]:
        """A learner asks for a session, or again for the one that it has by this nonce."""
        if peer.role != Role.LEARNER:
            raise DecodingError("Only a learner opens sessions.")
        if len(wish.nonce) != 16:
            raise DecodingError(f"A nonce has 16 bytes, not {len(wish.nonce)}.")
        address = parse_address(wish.address)
        if not peer.rights.may_use(address.name):
            raise Refusal(Code.DENIED, may_not(peer, "use", address.name))
        session = self._tables.by_nonce.get(wish.nonce)
        if session is None:
            session = self._new(peer, address, wish.nonce, now)
        elif session.address != address.name or not _may_bind(session, peer):
            raise Refusal(Code.DENIED, NOT_YOURS)
        self._tables.bind_learner(session, peer)
        forwarded = replace(
            wish,
            address=address.name,
            # Past the broker nobody would count.
            direct=wish.direct and not peer.rights.metered,
            learner=peer.identity,
        )
        return [say(session.loop.rid, forwarded, session.sid, header.seq)]

    def _new(self, peer: Peer, address: Address, nonce: bytes, now: float) -> Session:
        most = peer.rights.sessions
        if most is not None and self._tables.sessions_of[peer.identity] >= most:
            raise Refusal(
                Code.LIMIT,
                f"{whose(peer.key, peer.identity)} ({peer.rights.name}) has {most} sessions, "
                f"all that the broker's policy allows it: close one, or {ASK}",
            )
        if len(self._tables.sessions) >= MAX_SESSIONS:
            raise Refusal(Code.LIMIT, "This broker has no room for another session.")
        try:
            loop = directory.choose(self._tables, address, peer.rights, now)
        except Refusal as refusal:
            if refusal.code != Code.ADDRESS_UNKNOWN or not self._awaited.has_just_started(now):
                raise
            raise Refusal(refusal.code, f"{refusal} {JUST_STARTED}", **refusal.details) from None
        while (sid := self._rng.getrandbits(63)) in self._tables.sessions or sid == 0:
            pass
        session = Session(sid, nonce, address.name, peer.identity, loop, is_open=False)
        self._tables.add_session(session)
        return session

    def opened(self, loop: Peer, header: Header, data: bytes | memoryview) -> list[Send]:
        """The environment of a session is there."""
        session = self._tables.sessions.get(header.sid)
        if session is None or session.loop is not loop:
            return [say(loop.rid, Gone("the learner has left"), header.sid)]
        if session.learner is None:  # it asks again when it is back
            return []
        if not session.is_open:
            self._tables.open(session)
            self._notes.add("session opened", address=session.address, host=loop.host)
        return [Send(session.learner.rid, data)]

    def announced(self, loop: Peer, row: object, now: float) -> list[Send]:
        """A serving loop says that it has this session: after our restart, or its reconnect."""
        match row:
            case [int(sid), bytes(nonce), str(address), str(learner)] if (
                0 < sid < 2**64 and len(nonce) == 16 and len(learner) <= MAX_IDENTITY
            ):
                name = parse_address(address).name
            case _:
                raise DecodingError("A session in HELLO is [sid, nonce, address, learner].")
        if not loop.rights.may_offer(name):
            return [say(loop.rid, Gone(f"this agent may not offer {name!r}"), sid)]
        tables = self._tables
        known = tables.sessions.get(sid)
        if known is None:
            if (
                sid not in tables.ended
                and nonce not in tables.by_nonce
                and len(tables.sessions) < MAX_SESSIONS
            ):
                self._awaited.announced(sid)
                session = Session(sid, nonce, name, learner, loop, is_open=True)
                tables.add_session(session)
                tables.orphan(session, until=now + max(REJOIN_S, self._lease_s))
                return []
        elif known.nonce == nonce and (known.loop.agent, known.loop.key) == (loop.agent, loop.key):
            tables.bind_loop(known, loop)
            return []
        # Nobody can reach it there; kept, it would hold a slot for ever.
        return [say(loop.rid, Gone("the broker has no place for it"), sid)]

    # --- changing hands ---------------------------------------------------------------------------

    def resume(self, peer: Peer, header: Header, resume: Resume, now: float) -> list[Send]:
        """A learner goes on with its session over this connection."""
        session = self._tables.sessions.get(header.sid)
        if session is None:
            return self.unknown(peer.rid, header, now)
        holder = session.learner
        if resume.nonce != session.nonce or peer.identity != session.learner_identity:
            raise Refusal(Code.DENIED, NOT_YOURS)
        if not peer.rights.may_use(session.address):
            raise Refusal(Code.DENIED, may_not(peer, "use", session.address))
        if holder is not None and holder is not peer and holder.lost_at is None:
            if not resume.take_over:
                text = "This session is in use by another process: close it there first."
                raise Refusal(Code.DENIED, text)
            self._connections.suspect(holder)
        self._tables.bind_learner(session, peer)
        return [say(peer.rid, Resumed(), header.sid, header.seq)]

    def unknown(self, rid: bytes, header: Header, now: float) -> list[Send]:
        """A learner speaks of a session that is not there: it must wait, or has lost it."""
        if self._awaited.may_come(header.sid, now):
            return [say(rid, Busy(BusyReason.STARTING, 0.1), header.sid, header.seq)]
        text = "The broker does not know this session any more."
        raise Refusal(Code.SESSION_LOST, text)

    # --- ends -------------------------------------------------------------------------------------

    def drop(self, session: Session) -> None:
        """Forget a session."""
        self._tables.drop_session(session)
        if session.learner is not None:
            self._meters.ended(session.learner.key, session.sid)

    def end(self, session: Session, reason: str) -> list[Send]:
        """End a session from here; both sides are told why."""
        self.drop(session)
        sides = [side for side in (session.learner, session.loop) if side is not None]
        return [say(side.rid, Gone(reason), session.sid) for side in sides]

    def end_without_learner(self, session: Session) -> list[Send]:
        """Its learner has left, or stayed away for too long."""
        self.drop(session)
        self._notes.add("session ended without its learner", address=session.address)
        return [say(session.loop.rid, Gone("the learner has left"), session.sid)]

    def end_without_loop(self, session: Session, reason: str) -> list[Send]:
        """Its env agent has left, or stayed away for too long."""
        self.drop(session)
        return [say(session.learner.rid, Gone(reason), session.sid)] if session.learner else []

    def expire(self, now: float) -> list[Send]:
        """End the sessions whose learners stayed away for too long."""
        sends: list[Send] = []
        for session in list(self._tables.orphans.values()):
            assert session.orphan_until is not None
            if now < max(session.orphan_until, self._connections.patient_until):
                continue
            # Who was here and is lost would be heard of; who never came may be thinking.
            if session.learner is not None or not self._connections.strangers():
                sends += self.end_without_learner(session)
        return sends

    def not_told(self, send: Send) -> None:
        """A frame of the broker's own was dropped, since its receiver does not read.

        Most are asked for again. A loop asks for no GONE: untold, it keeps an environment for ever.
        """
        peer = self._tables.peers.get(send.rid)
        if peer is not None and peer.role == Role.ENV and send.frame[KIND_AT] == Kind.GONE:
            self._owed[read_header(send.frame).sid] = send
            if len(self._owed) > MAX_OWED:
                del self._owed[next(iter(self._owed))]

    def tell_again(self) -> list[Send]:
        """What is owed and was not tried for the longest time; as much as fits into a tick."""
        due = list(itertools.islice(self._owed, OWED_AT_ONCE))
        sends = [self._owed.pop(sid) for sid in due]
        return [send for send in sends if send.rid in self._tables.peers]


def _may_bind(session: Session, peer: Peer) -> bool:
    """Whether this peer, which knows the nonce, may be the session's learner from now on."""
    holder = session.learner
    free = holder is None or holder is peer or holder.lost_at is not None
    return free and peer.identity == session.learner_identity
