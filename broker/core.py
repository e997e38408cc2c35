"""The broker without its socket and clock: a frame and a time go in, frames to send come out.

Its tables are soft. They are filled again by what agents announce after a restart; nothing that a
peer sends makes them grow without bound.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import NamedTuple

from broker import directory
from broker.auth import NO_POLICY, Meter, Policy
from broker.directory import Unavailable
from broker.flood import Gate, Ruling
from broker.routing import Peer, Session, Tables
from protocol import codec
from protocol.address import parse_address
from protocol.codec import PLAIN
from protocol.dialogue import REQUESTS
from protocol.errors import AddressError, DecodingError, GymwireError, VersionMismatch
from protocol.messages import (
    PRESENCE,
    VERSION,
    Busy,
    BusyReason,
    Bye,
    Closed,
    Code,
    Error,
    Find,
    Found,
    Gone,
    Hello,
    Kind,
    Message,
    Offer,
    Offered,
    Open,
    Ping,
    Pong,
    Progress,
    Resume,
    Resumed,
    Role,
    Welcome,
    Withdraw,
)

# After a restart: for so long at least sessions that agents announce wait for their learners, who
# may be thinking and will not know of it until they speak again; and for so long at most learners
# wait for sessions that an agent may yet announce, which is there but cannot speak.
REJOIN_S = 600.0
GRACE_S = 2.0  # a lost env agent may come back for so long before its sessions are given up
STARTING_S = 5.0  # after a start, agents are still announcing their sessions
MAX_PEERS = 20_000
MAX_SESSIONS = 100_000
MAX_OFFERS = 256  # per peer
MAX_IDENTITY = 64  # characters
MAX_CONTROL = 1024 * 1024  # bytes of a message that the broker itself reads
SILENT_S = 3.5  # an env agent of which nothing is heard for so long is hung up on
QUIET_S = 10.0  # a learner of which not even a heartbeat comes for so long is hung up on
TURNS = 20  # ticks in which all of them are looked at once
SWEEP_S = 10.0  # how often peers are asked for whose connection cannot be watched
OWED_AT_ONCE = 100  # frames in each tick to loops whose queues were full
RETRY_S = 1.0  # when who asked too much may try again
PROBES = 5  # ticks over which a connection that went down is asked for

# Relayed unread. CLOSED ends a session and ERROR may refuse an OPEN: those are looked at.
_RELAYED = frozenset(
    bytes((codec.MAGIC, VERSION, kind))
    for kind in Kind
    if kind < 16 and kind not in (Kind.CLOSED, Kind.ERROR)
)


class Send(NamedTuple):
    """A frame for a peer."""

    rid: bytes
    frame: bytes | bytearray | memoryview


class Sender(NamedTuple):
    """What the socket knows of a frame's sender."""

    rid: bytes
    fd: int
    key: bytes | None
    identity: str
    connection: int = 0


class Note(NamedTuple):
    """Something that an operator wants to know."""

    event: str
    facts: dict[str, object]


class Core:
    """One run of a broker. `epoch`: a random number of this run; `lease_s`: for silent learners."""

    def __init__(
        self,
        *,
        epoch: int,
        now: float,
        rng: random.Random,
        software: str,
        lease_s: float = 30.0,
        max_message: int = 64 * 1024 * 1024,
        policy: Policy = NO_POLICY,
    ) -> None:
        self.tables = Tables()
        self._routes = self.tables.routes
        self.notes: list[Note] = []
        self.hang_ups: list[tuple[int, int]] = []  # fd and connection of those that must be closed
        self._policy = policy
        self._meters: dict[bytes | None, Meter] = {}
        self._gate = Gate()
        self._epoch = epoch
        self._started = now
        self._patient_until = now
        self._listen_at = now
        self._turn = 0
        self._flood_note_at = now
        self._rng = rng
        self._software = software
        self._lease_s = lease_s
        self._max_message = max_message
        self._suspects: dict[bytes, int] = {}
        self._connected: set[int] = set()  # descriptors of all connections
        self._sweep_at = now + SWEEP_S
        self._handlers: dict[Kind, Callable[[Peer, codec.Header, Message, float], list[Send]]] = {
            Kind.OFFER: self._offer,
            Kind.WITHDRAW: self._withdraw,
            Kind.FIND: self._find,
            Kind.OPEN: self._open,
            Kind.RESUME: self._resume,
            Kind.PROGRESS: self._progress,
            Kind.PING: self._ping,
            Kind.BYE: self._bye,
        }

    # --- the hot path -----------------------------------------------------------------------------

    def relay(self, rid: bytes, data: bytes | memoryview, key: bytes | None) -> bytes | None:
        """Where a frame of the gym dialogue goes, or None if `receive` must look at it.

        Reads the header and the sender only.
        """
        if len(data) < codec.HEADER_SIZE:
            return None
        route = self._routes.get(rid + data[8:16])
        if route is None or route.key != key or bytes(data[:3]) not in _RELAYED:
            return None
        route.session.frames += 1
        return route.rid

    # --- everything else --------------------------------------------------------------------------

    def rule(self, rid: bytes, data: bytes | memoryview, key: bytes | None, now: float) -> Ruling:
        """Whether the broker looks at a frame that `relay` did not place.

        The frames of its own sessions do not count: the other side pays for them, too.
        """
        if len(data) >= codec.HEADER_SIZE and (data[2] < 16 or data[2] == Kind.OPENED):
            route = self._routes.get(rid + bytes(data[8:16]))
            if route is not None and route.key == key:
                return Ruling.PASS
        return self._gate.rule(rid, len(data), now)

    def refuse(self, rid: bytes, data: bytes | memoryview) -> list[Send]:
        """What is told to the sender of a frame that is not looked at, since it asks too much."""
        try:
            header = codec.read_header(data)
        except GymwireError:
            return []
        return [self._send(rid, Busy(BusyReason.RATE, RETRY_S), header.sid, header.seq)]

    def cut_off(self, rid: bytes, fd: int, now: float) -> bool:
        """Whether to close the connection of this descriptor, over which `rid` floods the broker.

        Not if it is another peer's by now: the frame may have waited longer than its connection.
        """
        holder = self.tables.by_fd.get(fd)
        if holder is not None and holder.rid != rid:
            return False
        peer = self.tables.peers.get(rid)
        if peer is not None and now >= self._flood_note_at:
            self._flood_note_at = now + SWEEP_S
            self._note("hung up on a flood", host=peer.host, identity=peer.identity)
        return True

    def receive(self, sender: Sender, data: bytes | memoryview, now: float) -> list[Send]:
        """Take a frame that `relay` did not place; returns what to send."""
        if not data and sender.rid[:1] == PRESENCE:
            self._present(sender, now)
            return []
        try:
            header = codec.read_header(data)
        except VersionMismatch as error:
            return [self._error(sender.rid, 0, 0, Code.VERSION, str(error))]
        except DecodingError as error:
            return [self._error(sender.rid, 0, 0, Code.PROTOCOL, str(error))]
        peer = self.tables.peers.get(sender.rid)
        if peer is not None and peer.key == sender.key:
            peer.heard, peer.hung_up = now, False
        elif peer is not None:
            # The routing id belongs to a connection with another key: somebody guesses ids.
            return [self._error(sender.rid, header.sid, header.seq, Code.DENIED, _FORGED)]
        if header.kind is Kind.OPENED and peer is not None:
            return self._opened(peer, header, data)
        if header.kind >= 16 and len(data) > MAX_CONTROL:
            text = f"A {header.kind.name} may have {MAX_CONTROL} bytes, this one has {len(data)}."
            return [self._error(sender.rid, header.sid, header.seq, Code.TOO_LARGE, text)]
        try:
            if header.kind < 16:
                return self._session_frame(sender.rid, peer, header, data, now)
            message = PLAIN.decode(data, header)
            if header.kind is Kind.HELLO:
                assert isinstance(message, Hello)
                return self._hello(sender, header, message, now)
            if peer is None:
                busy = Busy(BusyReason.HELLO, 0.0)
                return [self._send(sender.rid, busy, header.sid, header.seq)]
            handler = self._handlers.get(header.kind)
            if handler is None:
                raise DecodingError(f"{header.kind.name} is not for a broker.")
            return handler(peer, header, message, now)
        except Unavailable as error:
            return [
                self._error(
                    sender.rid, header.sid, header.seq, error.code, str(error), **error.details
                )
            ]
        except AddressError as error:
            code = Code.ADDRESS_INVALID
            return [self._error(sender.rid, header.sid, header.seq, code, str(error))]
        except GymwireError as error:
            return [self._error(sender.rid, header.sid, header.seq, Code.PROTOCOL, str(error))]

    def undelivered(
        self, to: bytes, data: bytes | memoryview, sender: bytes, full: bool, now: float
    ) -> list[Send]:
        """A relayed frame could not be delivered: tell a learner to send it again later.

        A reply is not worth a message: the env agent keeps it, and the learner asks again.
        """
        if not full:
            self.unreachable(to, now)
        header = codec.read_header(data)
        session = self.tables.sessions.get(header.sid)
        if session is None or session.learner is None or session.learner.rid != sender:
            return []
        reason = BusyReason.QUEUE_FULL if full else BusyReason.UNREACHABLE
        return [self._send(sender, Busy(reason, 0.05), header.sid, header.seq)]

    def queue_full(self, send: Send) -> None:
        """A frame of the broker's own was dropped, since its receiver does not read.

        Most are asked for again. A loop asks for no GONE: untold, it keeps an environment for ever.
        """
        peer = self.tables.peers.get(send.rid)
        if peer is not None and peer.role == Role.ENV and send.frame[2] == Kind.GONE:
            self.tables.owe(codec.read_header(send.frame).sid, send.rid, send.frame)

    def _pay(self) -> list[Send]:
        """What is owed and was not tried for the longest time; as much as fits into a tick."""
        due = list(itertools.islice(self.tables.owed, OWED_AT_ONCE))
        sends = [Send(*self.tables.owed.pop(sid)) for sid in due]
        return [send for send in sends if send.rid in self.tables.peers]

    # --- time and connections ---------------------------------------------------------------------

    def link_up(self, fd: int) -> None:
        """There is a new connection, with this descriptor."""
        self._connected.add(fd)

    def link_down(self, fd: int) -> None:
        """The connection with this descriptor went down. Descriptors are reused: only a hint."""
        self._connected.discard(fd)
        peer = self.tables.by_fd.get(fd)
        if peer is not None and peer.lost_at is None:
            self._suspects[peer.rid] = PROBES

    def unreachable(self, rid: bytes, now: float) -> None:
        """Sending showed that this peer has no connection now."""
        self._suspects.pop(rid, None)
        peer = self.tables.peers.get(rid)
        if peer is None or peer.lost_at is not None:
            return
        peer.lost_at = now
        self.tables.lost[rid] = peer
        if peer.role == Role.LEARNER:
            for session in directory.open_sessions(self.tables, [peer]):
                self.tables.orphan(session, until=now + self._lease_s)

    def reachable(self, rid: bytes) -> None:
        """A probe of a lost peer was delivered: its connection is there again."""
        peer = self.tables.lost.pop(rid, None)
        if peer is None:
            return
        peer.lost_at = None
        self.tables.forget_fd(peer)
        for session in directory.open_sessions(self.tables, [peer]):
            if session.learner is peer:
                self.tables.adopt(session)

    def woke(self, now: float) -> None:
        """This process did not run for a while: peers gave us up, and are on their way back."""
        self._patient_until = now + STARTING_S

    def _hang_up_on_the_silent(self, now: float) -> None:
        """Close the connections of env agents of which nothing is heard, once.

        libzmq's own thread makes them anew where the process is alive, whatever it is doing.
        """
        if now < self._patient_until:
            return
        loops = [p for p in self.tables.peers.values() if p.role in (Role.ENV, Role.PULSE)]
        heard: dict[bytes, float] = {}
        for peer in loops:
            heard[peer.agent] = max(peer.heard, heard.get(peer.agent, 0.0))
        for peer in loops:
            silent = now - heard[peer.agent] > SILENT_S
            if silent and not peer.hung_up and self.tables.by_fd.get(peer.fd) is peer:
                self._hang_up(peer)

    def learners_to_watch(self, now: float) -> list[Peer]:
        """The learners of whose connections it must be asked now for how long nothing came.

        They may think for hours, but libzmq's own thread sends heartbeats as long as they live.
        """
        self._turn = (self._turn + 1) % TURNS
        if now < self._patient_until:
            return []
        found = []
        for fd, peer in self.tables.by_fd.items():
            mine = fd % TURNS == self._turn and peer.role == Role.LEARNER
            if mine and peer.sessions and not peer.hung_up:
                found.append(peer)
        return found

    def quiet(self, learner: Peer, quiet_s: float) -> None:
        """Nothing came from this learner for so long, not even a heartbeat."""
        if quiet_s > QUIET_S:
            self._hang_up(learner)

    def _hang_up(self, peer: Peer) -> None:
        peer.hung_up = True
        self.hang_ups.append((peer.fd, peer.connection))

    def expire(self, now: float) -> list[Send]:
        """What time alone brings about: probes, sessions of lost agents, leases."""
        sends: list[Send] = []
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_S
            self._gate.sweep(now)
            sends += [self._send(peer.rid, Ping()) for peer in self.tables.unwatched.values()]
        if now >= self._listen_at:
            self._listen_at = now + 0.5
            self._hang_up_on_the_silent(now)
        sends += self._pay()
        for rid, left in list(self._suspects.items()):
            sends.append(self._send(rid, Ping()))
            if left <= 1:
                del self._suspects[rid]
            else:
                self._suspects[rid] = left - 1
        for peer in list(self.tables.lost.values()):
            assert peer.lost_at is not None
            # A connection that is made anew stays silent until its owner speaks: ask for it.
            sends.append(self._send(peer.rid, Ping()))
            if peer.role == Role.ENV:
                if now - peer.lost_at >= GRACE_S and now >= self._patient_until:
                    sends += self._end_loop(peer, f"the env agent on {peer.host} is gone")
            elif not peer.sessions:
                self._forget(peer)
        for session in list(self.tables.orphans.values()):
            assert session.orphan_until is not None
            if now < max(session.orphan_until, self._patient_until):
                continue
            if session.learner is not None or not self._somebody_is_thinking():
                sends += self._end_orphan(session)
        return sends

    def _somebody_is_thinking(self) -> bool:
        """Whether there are connections that have said nothing yet: a learner's is made anew by
        libzmq alone, and it says HELLO when it wants something."""
        return not self._connected <= self.tables.by_fd.keys()

    def goodbye(self) -> list[Send]:
        """The broker stops: tell everyone."""
        frame = PLAIN.encode(Bye("the broker stops"))
        return [Send(rid, frame) for rid in self.tables.peers]

    # --- peers ------------------------------------------------------------------------------------

    def _present(self, sender: Sender, now: float) -> None:
        """An env agent is there, and says so without its interpreter (docs/protocol.md §7.13)."""
        tables, agent = self.tables, sender.rid[1:16]
        rights = self._policy.rights(sender.key)
        peer = tables.peers.get(sender.rid)
        if rights is None or not rights.offer or len(agent) < 15:
            return
        if peer is None:
            if len(tables.peers) >= MAX_PEERS:
                return
            peer = Peer(
                rid=sender.rid,
                role=Role.PRESENCE,
                agent=agent,
                host="",
                software="",
                identity=sender.identity,
                key=sender.key,
                fd=sender.fd,
                connection=sender.connection,
                rights=rights,
            )
        elif peer.role != Role.PRESENCE or peer.key != sender.key:
            return
        self._arrived(peer, sender, now)
        if not tables.has_spoken(agent):
            tables.mute[agent] = peer

    def _arrived(self, peer: Peer, sender: Sender, now: float) -> None:
        """This peer has made its connection, for the first time or anew."""
        tables = self.tables
        if tables.peers.get(peer.rid) is peer:
            self.reachable(peer.rid)
            tables.forget_fd(peer)
            peer.fd, peer.connection = sender.fd, sender.connection
        peer.heard, peer.hung_up = now, False
        displaced = tables.add_peer(peer)
        if displaced is not None:
            self._suspects[displaced.rid] = PROBES
        self._suspects.pop(peer.rid, None)

    def _hello(self, sender: Sender, header: codec.Header, hello: Hello, now: float) -> list[Send]:
        if hello.role not in (Role.LEARNER, Role.ENV, Role.PULSE):
            raise DecodingError(f"{hello.role[:50]!r} is not a role.")
        if sender.rid[:1] == b"\0":
            raise DecodingError("A peer must set a routing id of its own.")
        rights = self._policy.rights(sender.key)
        if rights is None:
            self.hang_ups.append((sender.fd, sender.connection))
            text = f"{_whose(sender.key, sender.identity)} is not in this broker's policy: {_ASK}"
            return [self._error(sender.rid, 0, header.seq, Code.DENIED, text)]
        tables = self.tables
        peer = tables.peers.get(sender.rid)
        if peer is None:
            if len(tables.peers) >= MAX_PEERS:
                text = f"This broker has {MAX_PEERS} peers already; try again later."
                return [self._error(sender.rid, 0, header.seq, Code.LIMIT, text)]
            peer = Peer(
                rid=sender.rid,
                role=hello.role,
                agent=hello.agent[:16],
                host=hello.host[:200],
                software=hello.software[:100],
                identity=sender.identity,
                key=sender.key,
                fd=sender.fd,
                connection=sender.connection,
                rights=rights,
            )
        self._arrived(peer, sender, now)
        most = min(self._max_message, rights.message_bytes or self._max_message)
        welcome = Welcome(self._epoch, self._software, peer.identity, most, self._lease_s)
        sends = [self._send(peer.rid, welcome, 0, header.seq)]
        if peer.role == Role.ENV:
            for row in hello.sessions:
                sends += self._announced(peer, row, now)
        elif peer.role == Role.PULSE:
            tables.mute.pop(peer.agent[:15], None)
            for row in hello.sessions:
                match row:
                    case [int(sid), *_]:
                        tables.promise(sid, peer)
        return sends

    def _announced(self, loop: Peer, row: object, now: float) -> list[Send]:
        """A serving loop says that it has this session: after our restart, or its reconnect."""
        match row:
            case [int(sid), bytes(nonce), str(address), str(learner)] if (
                0 < sid < 2**64 and len(nonce) == 16 and len(learner) <= MAX_IDENTITY
            ):
                name = parse_address(address).name
            case _:
                raise DecodingError("A session in HELLO is [sid, nonce, address, learner].")
        if not loop.rights.may_offer(name):
            return [self._send(loop.rid, Gone(f"this agent may not offer {name!r}"), sid)]
        known = self.tables.sessions.get(sid)
        if known is None:
            if (
                sid not in self.tables.ended
                and nonce not in self.tables.by_nonce
                and len(self.tables.sessions) < MAX_SESSIONS
            ):
                session = Session(sid, nonce, name, learner, loop, None, is_open=True)
                self.tables.add_session(session)
                self.tables.orphan(session, until=now + max(REJOIN_S, self._lease_s))
                return []
        elif known.nonce == nonce and (known.loop.agent, known.loop.key) == (loop.agent, loop.key):
            self.tables.bind_loop(known, loop)
            return []
        # Nobody can reach it there; kept, it would hold a slot for ever.
        return [self._send(loop.rid, Gone("the broker has no place for it"), sid)]

    def _bye(self, peer: Peer, header: codec.Header, bye: Message, now: float) -> list[Send]:
        assert isinstance(bye, Bye)
        if peer.role == Role.ENV:
            return self._end_loop(peer, f"its env agent on {peer.host} has stopped")
        sends: list[Send] = []
        for session in directory.open_sessions(self.tables, [peer]):
            sends += self._end_orphan(session)
        self._forget(peer)
        return sends

    def _forget(self, peer: Peer) -> None:
        self._suspects.pop(peer.rid, None)
        self.tables.drop_peer(peer)

    def _end_loop(self, loop: Peer, reason: str) -> list[Send]:
        sends = []
        for session in directory.open_sessions(self.tables, [loop]):
            if session.learner is not None:
                sends.append(self._send(session.learner.rid, Gone(reason), session.sid))
            self._drop_session(session)
        self._forget(loop)
        if not any(peer.agent == loop.agent for peer in self.tables.peers.values() if peer.offers):
            self._note("agent left", host=loop.host, offers=sorted(loop.offers), why=reason)
        return sends

    def _end_orphan(self, session: Session) -> list[Send]:
        self._drop_session(session)
        self._note("session ended without its learner", address=session.address)
        gone = Gone("the learner has left")
        return [self._send(session.loop.rid, gone, session.sid)]

    # --- the policy -------------------------------------------------------------------------------

    def apply(self, policy: Policy) -> list[Send]:
        """This policy holds from now on. Who lost a right is told; what it had by it ends."""
        self._policy = policy
        sends: list[Send] = []
        for peer in list(self.tables.peers.values()):
            rights = policy.rights(peer.key)
            if rights is None:
                sends += self._put_out(peer)
                continue
            peer.rights = rights
            for address in [name for name in peer.offers if not rights.may_offer(name)]:
                del peer.offers[address]
                text = _may_not(peer, "offer", address)
                sends.append(self._error(peer.rid, 0, 0, Code.DENIED, text))
        for session in list(self.tables.sessions.values()):
            learner, loop = session.learner, session.loop
            if not loop.rights.may_offer(session.address):
                sends += self._end_session(session, _may_not(loop, "offer", session.address))
            elif learner is not None and not learner.rights.may_use(session.address):
                sends += self._end_session(session, _may_not(learner, "use", session.address))
        self.tables.relink()
        return sends

    def _put_out(self, peer: Peer) -> list[Send]:
        text = f"{_whose(peer.key, peer.identity)} was taken out of this broker's policy: {_ASK}"
        sends: list[Send] = []
        for session in directory.open_sessions(self.tables, [peer]):
            sends += self._end_session(session, text)
        sends.append(self._error(peer.rid, 0, 0, Code.DENIED, text))
        if self.tables.by_fd.get(peer.fd) is peer:
            self.hang_ups.append((peer.fd, peer.connection))
        self._forget(peer)
        self._note("put out", host=peer.host, role=peer.role, identity=peer.identity)
        return sends

    def _end_session(self, session: Session, reason: str) -> list[Send]:
        """End a session from here; both sides are told why."""
        self._drop_session(session)
        sides = [side for side in (session.learner, session.loop) if side is not None]
        return [self._send(side.rid, Gone(reason), session.sid) for side in sides]

    # --- offers -----------------------------------------------------------------------------------

    def _offer(self, peer: Peer, header: codec.Header, offer: Message, now: float) -> list[Send]:
        assert isinstance(offer, Offer)
        if peer.role != Role.ENV:
            raise DecodingError("Only an env agent offers environments.")
        if parse_address(offer.address).identity is not None:
            raise AddressError(f"{offer.address!r}: an offer's address has no @identity.")
        if not peer.rights.may_offer(offer.address):
            raise Unavailable(Code.DENIED, _may_not(peer, "offer", offer.address))
        if len(peer.offers) >= MAX_OFFERS and offer.address not in peer.offers:
            raise Unavailable(Code.LIMIT, f"An agent may offer {MAX_OFFERS} addresses at most.")
        directory.check_offer(self.tables, peer, offer)
        first = not any(other.agent == peer.agent for other in self.tables.loops(offer.address))
        directory.enter_offer(self.tables, peer, offer, header.head_len)
        if first:
            self._note("offer", address=offer.address, env=offer.env_id, host=peer.host)
        return [self._send(peer.rid, Offered(offer.address), 0, header.seq)]

    def _withdraw(
        self, peer: Peer, header: codec.Header, message: Message, now: float
    ) -> list[Send]:
        assert isinstance(message, Withdraw)
        if message.address in peer.offers:
            peer.draining.add(message.address)
        return []

    def _find(self, peer: Peer, header: codec.Header, find: Message, now: float) -> list[Send]:
        assert isinstance(find, Find)
        found = Found(directory.listing(self.tables, find.address, peer.rights))
        answer = self._send(peer.rid, found, 0, header.seq)
        self._gate.charge(peer.rid, len(answer.frame), now)
        return [answer]

    # --- sessions ---------------------------------------------------------------------------------

    def _open(self, peer: Peer, header: codec.Header, wish: Message, now: float) -> list[Send]:
        assert isinstance(wish, Open)
        if peer.role != Role.LEARNER:
            raise DecodingError("Only a learner opens sessions.")
        if len(wish.nonce) != 16:
            raise DecodingError(f"A nonce has 16 bytes, not {len(wish.nonce)}.")
        address = parse_address(wish.address)
        if not peer.rights.may_use(address.name):
            raise Unavailable(Code.DENIED, _may_not(peer, "use", address.name))
        session = self.tables.by_nonce.get(wish.nonce)
        if session is None:
            most = peer.rights.sessions
            if most is not None and self.tables.sessions_of[peer.identity] >= most:
                text = (
                    f"{_whose(peer.key, peer.identity)} ({peer.rights.name}) has {most} sessions, "
                    f"all that the broker's policy allows it: close one, or {_ASK}"
                )
                raise Unavailable(Code.LIMIT, text)
            if len(self.tables.sessions) >= MAX_SESSIONS:
                raise Unavailable(Code.LIMIT, "This broker has no room for another session.")
            session = Session(
                sid=self._new_sid(),
                nonce=wish.nonce,
                address=address.name,
                learner_identity=peer.identity,
                loop=directory.choose(self.tables, address, peer.rights, now),
                learner=None,
                is_open=False,
            )
            self.tables.add_session(session)
        elif session.address != address.name or not self._may_bind(session, peer):
            raise Unavailable(Code.DENIED, _NOT_YOURS)
        self.tables.bind_learner(session, peer)
        forwarded = Open(
            address.name,
            wish.nonce,
            wish.render_mode,
            wish.env_kwargs,
            wish.num_envs,
            wish.autoreset_mode,
            # Past the broker nobody would count.
            wish.direct and not peer.rights.metered,
            peer.identity,
            wish.challenge,
        )
        return [self._send(session.loop.rid, forwarded, session.sid, header.seq)]

    def _may_bind(self, session: Session, peer: Peer) -> bool:
        """Whether this peer, which knows the nonce, may be the session's learner from now on."""
        holder = session.learner
        free = holder is None or holder is peer or holder.lost_at is not None
        return free and peer.identity == session.learner_identity

    def _new_sid(self) -> int:
        while (sid := self._rng.getrandbits(63)) in self.tables.sessions or sid == 0:
            pass
        return sid

    def _opened(self, peer: Peer, header: codec.Header, data: bytes | memoryview) -> list[Send]:
        session = self.tables.sessions.get(header.sid)
        if session is None or session.loop is not peer or session.learner is None:
            return [self._send(peer.rid, Gone("the learner has left"), header.sid)]
        if not session.is_open:
            self.tables.open(session)
            self._note("session opened", address=session.address, host=peer.host)
        return [Send(session.learner.rid, data)]

    def _resume(self, peer: Peer, header: codec.Header, resume: Message, now: float) -> list[Send]:
        assert isinstance(resume, Resume)
        session = self.tables.sessions.get(header.sid)
        if session is None:
            return self._unknown_session(peer.rid, header, now)
        holder = session.learner
        if resume.nonce != session.nonce or peer.identity != session.learner_identity:
            raise Unavailable(Code.DENIED, _NOT_YOURS)
        if not peer.rights.may_use(session.address):
            raise Unavailable(Code.DENIED, _may_not(peer, "use", session.address))
        if holder is not None and holder is not peer:
            if holder.lost_at is None and not resume.take_over:
                raise Unavailable(
                    Code.DENIED,
                    "This session is in use by another process: close it there first.",
                )
            if holder.lost_at is None:
                self._suspects[holder.rid] = PROBES
        self.tables.bind_learner(session, peer)
        return [self._send(peer.rid, Resumed(), header.sid, header.seq)]

    def _progress(
        self, peer: Peer, header: codec.Header, progress: Message, now: float
    ) -> list[Send]:
        assert isinstance(progress, Progress)
        session = self.tables.sessions.get(header.sid)
        if session is None or session.loop.agent != peer.agent or session.loop.key != peer.key:
            return []
        session.told_at, session.in_step_s = now, max(0.0, min(progress.since_s, 1e9))
        if session.learner is None:
            return []
        return [self._send(session.learner.rid, progress, header.sid, header.seq)]

    def _ping(self, peer: Peer, header: codec.Header, message: Message, now: float) -> list[Send]:
        if header.sid:
            session = self.tables.sessions.get(header.sid)
            if session is None:
                return self._unknown_session(peer.rid, header, now)
            if session.learner is not peer:
                return self._not_bound(peer, session, header)
            if session.loop.lost_at is not None:
                busy = Busy(BusyReason.UNREACHABLE, 0.05)
                return [self._send(peer.rid, busy, header.sid, header.seq)]
            if session.in_step(now):
                pong = Pong(session.in_step_s + now - session.told_at)
                return [self._send(peer.rid, pong, header.sid, header.seq)]
        return [self._send(peer.rid, Pong(), header.sid, header.seq)]

    def _not_bound(self, peer: Peer, session: Session, header: codec.Header) -> list[Send]:
        """A frame for a session that is not bound to this learner: now, or not at all."""
        if session.learner in (None, peer):
            return [self._send(peer.rid, Busy(BusyReason.HELLO, 0.0), header.sid, header.seq)]
        return [self._error(peer.rid, header.sid, header.seq, Code.DENIED, _NOT_YOURS)]

    def _session_frame(
        self,
        rid: bytes,
        peer: Peer | None,
        header: codec.Header,
        data: bytes | memoryview,
        now: float,
    ) -> list[Send]:
        """A frame of the gym dialogue that has no open route, or ends one."""
        if peer is None:
            return [self._send(rid, Busy(BusyReason.HELLO, 0.0), header.sid, header.seq)]
        session = self.tables.sessions.get(header.sid)
        if session is None:
            if peer.role == Role.ENV:
                return [self._send(rid, Gone("the broker does not know it"), header.sid)]
            if header.kind is Kind.CLOSE:
                return [self._send(rid, Closed(), header.sid, header.seq)]
            return self._unknown_session(rid, header, now)
        if session.loop is peer:
            if session.learner is not None and session.learner.rights.metered:
                session.frames += 1
                self._meter(session.learner, now).answered(session.sid, header.seq)
            sends = [Send(session.learner.rid, data)] if session.learner is not None else []
            if header.kind is Kind.CLOSED or not session.is_open or _says_lost(header, data):
                self._drop_session(session)
                if session.is_open:
                    self._note("session closed", address=session.address, frames=session.frames)
            return sends
        if header.kind not in REQUESTS:
            raise DecodingError(f"{header.kind.name} is not a request.")
        if session.learner is peer and session.is_open:
            return self._metered(peer, session, header, data, now)
        return self._not_bound(peer, session, header)

    def _metered(
        self,
        peer: Peer,
        session: Session,
        header: codec.Header,
        data: bytes | memoryview,
        now: float,
    ) -> list[Send]:
        """A request of a learner whose key has limits."""
        most = peer.rights.message_bytes
        if most is not None and len(data) > most:
            text = f"This {header.kind.name} has {len(data)} bytes; this key may send {most}."
            return [self._error(peer.rid, header.sid, header.seq, Code.TOO_LARGE, text)]
        if header.kind is not Kind.CLOSE:
            meter = self._meter(peer, now)
            wait_s = meter.admit(peer.rights, header.sid, header.seq, now)
            if wait_s is not None:
                busy = Busy(BusyReason.RATE, wait_s)
                return [self._send(peer.rid, busy, header.sid, header.seq)]
        session.frames += 1
        return [Send(session.loop.rid, data)]

    def _meter(self, peer: Peer, now: float) -> Meter:
        meter = self._meters.get(peer.key)
        if meter is None:
            if len(self._meters) >= MAX_PEERS:
                self._meters = {k: m for k, m in self._meters.items() if not m.idle(now)}
            meter = self._meters[peer.key] = Meter(now)
        return meter

    def _drop_session(self, session: Session) -> None:
        self.tables.drop_session(session)
        if session.learner is not None and session.learner.key in self._meters:
            self._meters[session.learner.key].ended(session.sid)

    def _unknown_session(self, rid: bytes, header: codec.Header, now: float) -> list[Send]:
        since_start_s = now - self._started
        if (
            since_start_s < STARTING_S
            or (self.tables.mute and since_start_s < REJOIN_S)
            or self.tables.is_promised(header.sid)
        ):
            busy = Busy(BusyReason.STARTING, 0.1)
            return [self._send(rid, busy, header.sid, header.seq)]
        text = "The broker does not know this session any more."
        return [self._error(rid, header.sid, header.seq, Code.SESSION_LOST, text)]

    # --- making frames ----------------------------------------------------------------------------

    def _send(self, rid: bytes, message: Message, sid: int = 0, seq: int = 0) -> Send:
        return Send(rid, PLAIN.encode(message, sid, seq))

    def _error(
        self, rid: bytes, sid: int, seq: int, code: str, text: str, **details: object
    ) -> Send:
        return self._send(rid, Error(code, text, dict(details)), sid, seq)

    def _note(self, event: str, **facts: object) -> None:
        self.notes.append(Note(event, facts))


def _says_lost(header: codec.Header, data: bytes | memoryview) -> bool:
    """Whether an env agent says that it does not have this session any more."""
    if header.kind is not Kind.ERROR:
        return False
    error = PLAIN.decode(data, header)
    return isinstance(error, Error) and error.code == Code.SESSION_LOST


def _whose(key: bytes | None, identity: str) -> str:
    return f"The key {'-' if key is None else key.decode('ascii')} (identity {identity})"


def _may_not(peer: Peer, verb: str, address: str) -> str:
    patterns = peer.rights.offer if verb == "offer" else peer.rights.use
    allowed = f"{', '.join(patterns)} only" if patterns else "nothing"
    return (
        f"{_whose(peer.key, peer.identity)}, which this broker calls {peer.rights.name!r}, may not "
        f"{verb} {address!r}: its policy lets it {verb} {allowed}. To change that, {_ASK}"
    )


_ASK = "ask the broker's operator."
_FORGED = "This routing id belongs to another connection."
_NOT_YOURS = "This session belongs to another learner."
