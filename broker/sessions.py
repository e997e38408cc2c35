"""Open, resume and end sessions."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from gymwire.broker import directory
from gymwire.broker.connections import Connections
from gymwire.broker.decoding import CODEC
from gymwire.broker.events import Send
from gymwire.broker.journal import Drop, Journal, Loss
from gymwire.broker.offers import check_opened
from gymwire.broker.quotas import Quotas
from gymwire.broker.recovery import REJOIN_S, SessionRecovery
from gymwire.broker.refusals import (
    ASK_OPERATOR,
    MAX_WHY,
    NOT_YOURS,
    Refusal,
    RetryLater,
    describe_key,
    not_allowed,
    reply_to,
)
from gymwire.broker.shares import Shares
from gymwire.broker.tables import Peer, Session, Tables
from gymwire.protocol.address import Address, parse_address
from gymwire.protocol.codec import (
    HEADER_SIZE,
    KIND_AT,
    MAX_CONTROL,
    UP_TO_NAME,
    Header,
    read_header,
)
from gymwire.protocol.control_limits import has_many_parts
from gymwire.protocol.errors import DecodingError, GymwireError
from gymwire.protocol.messages import (
    NONCE_SIZE,
    BusyReason,
    Code,
    EndedBy,
    Gone,
    Kind,
    Open,
    Opened,
    Resume,
    Resumed,
    Role,
)

ENDED_BY = {Loss.OPERATOR: EndedBy.OPERATOR, Loss.POLICY: EndedBy.POLICY}
MAX_SESSIONS = 100_000
# Announced sessions for which no learner has come yet: anyone who may offer can invent them, so
# they do not count towards MAX_SESSIONS, and have limits of their own.
MAX_UNCLAIMED = 100_000
MAX_UNCLAIMED_OF_KEY = 32_768
MAX_ANNOUNCED = 16_384  # sessions of a serving loop, beyond which it may announce no others
MAX_IDENTITY = 64  # characters
MAX_NAME = 64  # characters of a learner's name, and of its host, in OPEN
MAX_PENDING_GONE = 10_000
MAX_VALID = 256  # contents of OPENED that are known to be valid
ENDED_PER_TICK = 500  # sessions of lost peers that one tick ends, so that frames do not wait long
GONE_PER_TICK = 100  # retries of undelivered GONE frames per tick
STARTING_RETRY_S = 0.1
# During one request, a serving loop may be lost and return this often; then the session ends,
# because nothing suggests that the request would get through the next time.
MAX_LOSSES = 2

NO_ROOM = "the broker has ended this session already, or has no room for it"
DISPLACED = "another key needs its place among the announced sessions"
JUST_STARTED = (
    "This broker has just started, and env agents may still be reconnecting: retry in a few "
    "seconds."  # names no option: a learner that waits already logs this text, too
)


class Sessions:
    """The sessions in the tables. `lease_s`: how long a session waits for a lost learner."""

    def __init__(
        self,
        tables: Tables,
        connections: Connections,
        recovery: SessionRecovery,
        quotas: Quotas,
        journal: Journal,
        lease_s: float,
    ) -> None:
        self._tables = tables
        self._connections = connections
        self._recovery = recovery
        self._quotas = quotas
        self._journal = journal
        self._lease_s = lease_s
        # GONE that the full queue of a serving loop did not take
        self._pending_gone: Shares[Send] = Shares(MAX_PENDING_GONE)
        self._valid_opened: dict[bytes, None] = {}  # digests of contents, the oldest first

    # --- opening ----------------------------------------------------------------------------------

    def open(self, peer: Peer, header: Header, request: Open, now: float) -> list[Send]:
        """Open a session for a learner, or find the one that it opened earlier with this nonce."""
        if peer.role != Role.LEARNER:
            raise DecodingError("Only a learner may open a session.")
        if len(request.nonce) != NONCE_SIZE:
            raise DecodingError(f"A nonce must have {NONCE_SIZE} bytes, not {len(request.nonce)}.")
        address = parse_address(request.address)
        if not peer.rights.may_use(address.name):
            raise Refusal(Code.DENIED, not_allowed(peer, "use", address.name))
        session = self._tables.by_nonce.get(request.nonce)
        if session is None:
            session = self._new(peer, address, request.nonce, now)
        elif session.address != address.name or not _may_bind(session, peer):
            raise Refusal(Code.DENIED, NOT_YOURS)
        elif not session.is_claimed:
            self._check_limits(peer)
        self._tables.bind_learner(session, peer)
        if not session.is_open and session.losses_since(header.seq) >= MAX_LOSSES:
            refusal = Refusal(
                Code.OPEN_FAILED, f"No session at {address.name!r}: {path_fault(session)}."
            )
            gone = self.end_for_path(session)
            return [reply_to(self._journal, peer.rid, refusal, header.sid, header.seq), gone[-1]]
        if header.seq != session.open_seq:
            session.open_seq, session.unanswered_opens = header.seq, 0
        session.unanswered_opens += 1
        # Nothing outside the broker enforces limits.
        session.may_be_direct = request.direct and not peer.rights.metered
        forwarded = replace(
            request,
            address=address.name,
            direct=session.may_be_direct,
            learner=peer.identity,
            learner_name=peer.rights.name[:MAX_NAME],
            learner_host=peer.host[:MAX_NAME],
            learner_pid=peer.pid,
        )
        return [Send.message(session.loop.rid, forwarded, session.sid, header.seq)]

    def _check_limits(self, peer: Peer) -> None:
        """Raise Refusal if a learner, or this broker, may not have another session."""
        most = peer.rights.sessions
        if most is not None and self._tables.sessions_of[peer.identity] >= most:
            raise Refusal(
                Code.LIMIT,
                f"{describe_key(peer.key, peer.identity)}, named {peer.rights.name!r} in this "
                f"broker's policy, has {most} sessions and may not have more. Close one, or "
                f"{ASK_OPERATOR}",
            )
        if self._tables.claimed >= MAX_SESSIONS:
            raise Refusal(
                Code.LIMIT, f"This broker already has {MAX_SESSIONS} sessions. Retry later."
            )

    def _new(self, peer: Peer, address: Address, nonce: bytes, now: float) -> Session:
        self._check_limits(peer)
        try:
            loop = directory.choose_loop(self._tables, address, peer.rights, now)
        except Refusal as refusal:
            if refusal.code != Code.ADDRESS_UNKNOWN or not self._recovery.has_just_started(now):
                raise
            raise Refusal(refusal.code, f"{refusal} {JUST_STARTED}", **refusal.details) from None
        sid = self._tables.new_sid()
        session = Session(sid, nonce, address.name, peer.identity, loop, is_open=False, created=now)
        self._tables.add_session(session)
        return session

    def opened(self, loop: Peer, header: Header, data: bytes | memoryview) -> list[Send]:
        """Relay OPENED to the learner and start to relay the session's frames."""
        session = self._tables.sessions.get(header.sid)
        if session is None or session.loop is not loop:
            return [Send.message(loop.rid, Gone("the learner has left"), header.sid)]
        # It repeats OPEN when it is back. Nobody waits for more answers than it sent OPENs, or for
        # one with another number, which could answer the OPEN of another session.
        is_awaited = session.unanswered_opens and header.seq == session.open_seq
        if session.learner is None or not is_awaited:
            self._journal.drop(loop.rid, Drop.NOT_AWAITED)
            return []
        session.unanswered_opens -= 1
        try:
            self._check_opened(header, data)
        except GymwireError as error:
            return self._refuse_opened(session, header.seq, error)
        if not session.is_open:
            self._tables.open(session)
            self._journal.sessions_opened += 1
            self._journal.note("session opened", **session.facts)
        return [Send(session.learner.rid, data)]

    def _check_opened(self, header: Header, data: bytes | memoryview) -> None:
        """Raise GymwireError if OPENED cannot be decoded, or has a wrong field.

        One that would take long is not checked. Those of most sessions of a loop differ only in
        their numbers, and are checked once.
        """
        if len(data) > MAX_CONTROL or has_many_parts(header, data):
            return
        content = hashlib.sha256(data[UP_TO_NAME])
        content.update(data[HEADER_SIZE:])
        digest, valid = content.digest(), self._valid_opened
        if digest in valid:
            return
        message = CODEC.decode(data, header)
        assert isinstance(message, Opened)
        check_opened(message)
        if len(valid) >= MAX_VALID:
            del valid[next(iter(valid))]
        valid[digest] = None

    def _refuse_opened(self, session: Session, seq: int, error: GymwireError) -> list[Send]:
        """End a session whose OPENED is malformed; give both sides the reason."""
        reason = f"the env agent on {session.loop.host} sent a malformed OPENED: {error}"
        self.drop(session, Loss.AGENT_FAULT)
        self._note_lost(session, reason[:MAX_WHY])
        refusal = Refusal(Code.OPEN_FAILED, f"No session at {session.address!r}: {reason}")
        sends = [Send.message(session.loop.rid, Gone(reason), session.sid)]
        if session.learner is not None:
            sends.append(reply_to(self._journal, session.learner.rid, refusal, session.sid, seq))
        return sends

    def announced(self, loop: Peer, row: object, now: float) -> list[Send]:
        """Take over a session that a serving loop lists in HELLO.

        Loops list their sessions after each restart of the broker and after each reconnect.
        """
        match row:
            case [int(sid), bytes(nonce), str(address), str(learner)] if (
                0 < sid < 2**64 and len(nonce) == NONCE_SIZE and len(learner) <= MAX_IDENTITY
            ):
                name = parse_address(address).name
            case _:
                raise DecodingError("A session in HELLO must be [sid, nonce, address, learner].")
        if not loop.rights.may_offer(name):
            return [Send.message(loop.rid, Gone(f"this env agent may not offer {name!r}"), sid)]
        tables = self._tables
        known = tables.sessions.get(sid)
        if known is None:
            if (
                sid not in tables.ended
                and nonce not in tables.by_nonce
                and (displaced := self._make_room(loop)) is not None
            ):
                self._recovery.announced(sid)
                session = Session(sid, nonce, name, learner, loop, is_open=True, created=now)
                tables.add_session(session)
                tables.orphan(session, until=now + max(REJOIN_S, self._lease_s))
                self._journal.sessions_recovered += 1
                return displaced
        elif known.nonce == nonce and (known.loop.agent, known.loop.key) == (loop.agent, loop.key):
            tables.bind_loop(known, loop)
            return []
        # No learner can reach this session; without GONE it would keep its slot forever.
        return [Send.message(loop.rid, Gone(NO_ROOM), sid)]

    def _make_room(self, loop: Peer) -> list[Send] | None:
        """Make room for another announced session of this loop.

        When all places are taken, a key with fewer sessions than another displaces the oldest
        session of the key with the most. So beside n others, each key has 1 / (n + 1) of the
        places. Returns the frames to send because of that; None if there is no room.
        """
        tables = self._tables
        own = len(tables.unclaimed.get(loop.key, ()))
        if len(loop.sessions) >= MAX_ANNOUNCED or own >= MAX_UNCLAIMED_OF_KEY:
            return None
        if len(tables.sessions) - tables.claimed < MAX_UNCLAIMED:
            return []
        most = tables.most_unclaimed
        if len(most) <= own + 1:
            return None
        session = tables.sessions[next(iter(most))]
        self._journal.note("session lost", **session.facts, why=DISPLACED)
        self.drop(session, Loss.LEASE_EXPIRED)  # its learner has not come back so far
        return [Send.message(session.loop.rid, Gone(DISPLACED), session.sid)]

    # --- resuming ---------------------------------------------------------------------------------

    def resume(self, peer: Peer, header: Header, request: Resume, now: float) -> list[Send]:
        """Bind a session to the connection over which its learner asks for it."""
        session = self._tables.sessions.get(header.sid)
        if session is None:
            raise self.unknown(header.sid, now)
        holder = session.learner
        if request.nonce != session.nonce or peer.identity != session.learner_identity:
            raise Refusal(Code.DENIED, NOT_YOURS)
        if not peer.rights.may_use(session.address):
            raise Refusal(Code.DENIED, not_allowed(peer, "use", session.address))
        if not session.is_claimed:
            self._check_limits(peer)
        if holder is not None and holder is not peer and holder.lost_at is None:
            if not request.take_over:
                text = "This session is in use by another process. Close it there first."
                raise Refusal(Code.DENIED, text)
            self._connections.suspect(holder)
        self._tables.bind_learner(session, peer)
        return [Send.message(peer.rid, Resumed(), header.sid, header.seq)]

    def unknown(self, sid: int, now: float) -> RetryLater | Refusal:
        """Return the error for a learner that uses an unknown session: wait for it, or it is lost.

        For the caller to raise.
        """
        if self._recovery.may_come(sid, now):
            return RetryLater(BusyReason.STARTING, STARTING_RETRY_S)
        return Refusal(Code.SESSION_LOST, "The broker does not know this session anymore.")

    def not_known(self, loop: Peer, sid: int, reason: str) -> Send:
        """Return GONE for a loop that replies in a session that the broker does not know.

        Raises RetryLater while a long HELLO may still announce the session.
        """
        if self._recovery.announces(loop):
            raise RetryLater(BusyReason.STARTING, STARTING_RETRY_S)
        return Send.message(loop.rid, Gone(reason), sid)

    # --- ending -----------------------------------------------------------------------------------

    def drop(self, session: Session, loss: str | None) -> None:
        """Forget a session and count its end. `loss`: see `Loss`; None: it was closed."""
        self._tables.drop_session(session)
        session.loop.may_be_closing = True
        if loss is not None:  # the loop may still execute what it has last reported
            session.loop.note_stuck(session.in_step_s, session.progress_at)
        if session.learner is not None:
            self._quotas.end_session(session.learner.key, session.sid)
        if session.is_open:
            self._journal.session_ended(loss)

    def end_for_policy(self, session: Session, reason: str) -> list[Send]:
        """End a session that the policy does not allow anymore, and notify both sides."""
        return self.end_for_both(session, Loss.POLICY, reason)

    def end_for_path(self, session: Session) -> list[Send]:
        """End a session whose requests or replies do not get through, and notify both sides."""
        return self.end_for_both(session, Loss.PATH, path_fault(session))

    def end_for_both(self, session: Session, loss: str, reason: str) -> list[Send]:
        """End a session and notify both sides. `reason`: in words, for them and for the log."""
        self.drop(session, loss)
        self._journal.note("session lost", **session.facts, why=reason)
        sides = [side for side in (session.learner, session.loop) if side is not None]
        gone = Gone(reason, ENDED_BY.get(loss, ""))
        return [Send.message(side.rid, gone, session.sid) for side in sides]

    def end_without_learner(self, session: Session, loss: str) -> list[Send]:
        """End a session whose learner has left or did not come back in time."""
        self.drop(session, loss)
        self._journal.note("session lost", **session.facts, why=loss)
        return [Send.message(session.loop.rid, Gone("the learner has left"), session.sid)]

    def end_without_loop(self, session: Session, loss: str, reason: str) -> list[Send]:
        """End a session whose env agent has left or did not come back in time."""
        self.drop(session, loss)
        self._note_lost(session, reason)
        if session.learner is None:
            return []
        return [Send.message(session.learner.rid, Gone(reason), session.sid)]

    def _note_lost(self, session: Session, reason: str) -> None:
        event = "session lost" if session.is_open else "session refused"
        self._journal.note(event, **session.facts, why=reason)

    def expire(self, now: float) -> list[Send]:
        """End the sessions whose learners did not come back in time, ENDED_PER_TICK at most."""
        sends: list[Send] = []
        for session in list(self._tables.orphans.values()):
            if len(sends) >= ENDED_PER_TICK:
                break
            assert session.orphan_until is not None
            if now < max(session.orphan_until, self._connections.patient_until):
                continue
            # The broker notices when a learner that was bound vanishes. One that has not returned
            # since a restart may just be computing, behind a connection without HELLO.
            if session.learner is not None or not self._connections.has_strangers():
                sends += self.end_without_learner(session, Loss.LEASE_EXPIRED)
        return sends

    def queue_full(self, send: Send) -> None:
        """Keep a GONE that the full queue of a serving loop did not take, to retry it.

        Receivers ask again for most other messages. Without GONE, a loop would keep its
        environment forever.
        """
        peer = self._tables.peers.get(send.rid)
        if peer is not None and peer.role == Role.ENV and send.frame[KIND_AT] == Kind.GONE:
            self._pending_gone.put(send.rid, read_header(send.frame).sid, send)

    def retry_undelivered(self) -> list[Send]:
        """Return up to GONE_PER_TICK undelivered GONE frames, oldest first."""
        sends = self._pending_gone.take(GONE_PER_TICK)
        return [send for send in sends if send.rid in self._tables.peers]


def path_fault(session: Session) -> str:
    """Return why a session is lost whose requests or replies do not get through."""
    return (
        f"the connection between the broker and the env agent on {session.loop.host} was lost "
        f"{MAX_LOSSES} times during one request, although both are running. The path between them "
        f"may lose large packets, as behind a tunnel with a wrong MTU"
    )


def _may_bind(session: Session, peer: Peer) -> bool:
    """Return whether this peer, which knows the nonce, may become the session's learner."""
    holder = session.learner
    free = holder is None or holder is peer or holder.lost_at is not None
    return free and peer.identity == session.learner_identity
