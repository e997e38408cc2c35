"""Who is connected and which session joins whom: the broker's soft tables."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

from gymwire.broker.auth import EVERYTHING, Rights
from gymwire.protocol.messages import Offer, Role

MAX_ENDED = 10_000  # sessions that have ended and are still known as such
TOLD_S = 2.5  # an agent says each second that it is in a long step; later, it is not any more


@dataclass(slots=True, eq=False)
class Peer:
    """A connection that has introduced itself."""

    rid: bytes
    role: str
    agent: bytes
    host: str
    software: str
    identity: str
    key: bytes | None
    fd: int
    connection: int = 0  # the one that had this descriptor; 0: not known
    rights: Rights = EVERYTHING
    capabilities: frozenset[str] = frozenset()  # those that it shares with this broker
    lost_at: float | None = None
    heard: float = 0.0  # when it last said something to the broker itself
    hung_up: bool = False  # its connection was closed for its silence since then
    offers: dict[str, Offer] = field(default_factory=dict)
    room: dict[str, int] = field(default_factory=dict)  # bytes that each of them takes
    draining: set[str] = field(default_factory=set)
    sessions: set[int] = field(default_factory=set)
    ticket: bytes = b""  # shows that a lane is this peer's; b"": it gets none

    def take_back(self, address: str) -> None:
        """Nothing is offered there any more."""
        del self.offers[address], self.room[address]
        self.draining.discard(address)


@dataclass(slots=True, eq=False)
class Session:
    """One learner's use of one environment. `learner` is None until it has come (back)."""

    sid: int
    nonce: bytes
    address: str
    learner_identity: str
    loop: Peer
    is_open: bool
    learner: Peer | None = None
    orphan_until: float | None = None  # when the session ends if its learner stays away
    frames: int = 0
    told_at: float = -math.inf  # when the agent last said that it is in a long step here,
    in_step_s: float = 0.0  # and for how long it had been then

    def in_step(self, now: float) -> bool:
        """Whether the agent is in a long step of this session, by what it has said lately."""
        return now - self.told_at < TOLD_S


@dataclass(slots=True, eq=False)
class Route:
    """Where a frame of one sender in one session goes, unread."""

    session: Session
    rid: bytes  # the receiver's
    key: bytes | None  # the sender's


class Tables:
    """Peers, sessions and routes, kept consistent with each other."""

    def __init__(self) -> None:
        self.peers: dict[bytes, Peer] = {}
        self.sessions: dict[int, Session] = {}
        self.by_nonce: dict[bytes, Session] = {}
        self.by_fd: dict[int, Peer] = {}
        self.by_ticket: dict[bytes, Peer] = {}
        # peers whose connection cannot be watched by its descriptor
        self.unwatched: dict[bytes, Peer] = {}
        # sender's routing id + the eight bytes of the sid, as they stand in the frame
        self.routes: dict[bytes, Route] = {}
        self.orphans: dict[int, Session] = {}
        self.lost: dict[bytes, Peer] = {}
        self.sessions_of: Counter[str] = Counter()  # by the learner's identity
        self.ended: dict[int, None] = {}  # the oldest first

    def add_peer(self, peer: Peer) -> Peer | None:
        """Enter a peer, or the new connection of one that is known.

        Returns whose connection had this descriptor before: that connection is gone.
        """
        self.peers[peer.rid] = peer
        displaced = self.by_fd.get(peer.fd)
        if displaced is peer:
            displaced = None
        if displaced is not None:
            self.unwatched[displaced.rid] = displaced
        self.by_fd[peer.fd] = peer
        self.unwatched.pop(peer.rid, None)
        return displaced

    def forget_fd(self, peer: Peer) -> None:
        """The peer's connection is another one now, whose descriptor is not known."""
        if self.by_fd.get(peer.fd) is peer:
            del self.by_fd[peer.fd]
        self.unwatched[peer.rid] = peer

    def add_session(self, session: Session) -> None:
        """Enter a session at its loop; its learner is bound later."""
        self.sessions[session.sid] = session
        self.by_nonce[session.nonce] = session
        self.sessions_of[session.learner_identity] += 1
        session.loop.sessions.add(session.sid)

    def open(self, session: Session) -> None:
        """Its environment is there."""
        session.is_open = True
        self._link(session)

    def bind_learner(self, session: Session, learner: Peer) -> None:
        """This connection is the session's learner now; any other is not any more."""
        self._unlink(session)
        if session.learner is not None:
            session.learner.sessions.discard(session.sid)
        session.learner = learner
        learner.sessions.add(session.sid)
        self.adopt(session)
        self._link(session)

    def bind_loop(self, session: Session, loop: Peer) -> None:
        """The session lives at this connection of its agent now."""
        self._unlink(session)
        session.loop.sessions.discard(session.sid)
        session.loop = loop
        loop.sessions.add(session.sid)
        self._link(session)

    def orphan(self, session: Session, *, until: float) -> None:
        """Its learner is away; the lease runs."""
        if session.orphan_until is None:
            session.orphan_until = until
            self.orphans[session.sid] = session

    def adopt(self, session: Session) -> None:
        """Its learner is there (again)."""
        session.orphan_until = None
        self.orphans.pop(session.sid, None)

    def drop_session(self, session: Session) -> None:
        """Forget a session."""
        self._unlink(session)
        session.loop.sessions.discard(session.sid)
        if session.learner is not None:
            session.learner.sessions.discard(session.sid)
        self.orphans.pop(session.sid, None)
        self.by_nonce.pop(session.nonce, None)
        if self.sessions.pop(session.sid, None) is not None:
            self.sessions_of[session.learner_identity] -= 1
            if not self.sessions_of[session.learner_identity]:
                del self.sessions_of[session.learner_identity]
        # An agent that was cut off may announce it again, long after its learner was told.
        self.ended[session.sid] = None
        if len(self.ended) > MAX_ENDED:
            del self.ended[next(iter(self.ended))]

    def drop_peer(self, peer: Peer) -> None:
        """Forget a peer; its sessions are the caller's to end first."""
        if self.peers.get(peer.rid) is peer:
            del self.peers[peer.rid]
        if self.by_fd.get(peer.fd) is peer:
            del self.by_fd[peer.fd]
        self.by_ticket.pop(peer.ticket, None)
        self.lost.pop(peer.rid, None)
        self.unwatched.pop(peer.rid, None)

    def loops(self, address: str) -> list[Peer]:
        """The serving loops that offer this address, lost ones included."""
        return [p for p in self.peers.values() if p.role == Role.ENV and address in p.offers]

    def sessions_at(self, peer: Peer) -> list[Session]:
        """The sessions of this peer, a learner's or a loop's."""
        return [self.sessions[sid] for sid in sorted(peer.sessions)]

    def relink(self) -> None:
        """What routes know of their peers has changed."""
        for session in self.sessions.values():
            self._link(session)

    def _link(self, session: Session) -> None:
        """Frames of an open session need no look, but for those of a learner with limits."""
        sid = session.sid.to_bytes(8, "little")
        loop, learner = session.loop, session.learner
        if learner is None or not session.is_open:
            return
        if learner.rights.metered:
            self._unlink(session)
        else:
            self.routes[learner.rid + sid] = Route(session, loop.rid, learner.key)
            self.routes[loop.rid + sid] = Route(session, learner.rid, loop.key)

    def _unlink(self, session: Session) -> None:
        sid = session.sid.to_bytes(8, "little")
        self.routes.pop(session.loop.rid + sid, None)
        if session.learner is not None:
            self.routes.pop(session.learner.rid + sid, None)
