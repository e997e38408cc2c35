"""The broker's tables: which peers are connected, and which sessions connect them."""

from __future__ import annotations

import bisect
import math
import random
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from gymwire.broker.auth import EVERYTHING, Rights
from gymwire.protocol.messages import ATTACH_TOKEN_SIZE, LIVENESS_AGENT_SIZE, Offer, Role
from gymwire.protocol.process_ids import agent_id, session_text

K = TypeVar("K")
MAX_RID = 32  # bytes of a routing id in the log
SID_BITS = 53  # that a JavaScript number holds exactly
MAX_ENDED = 10_000  # ended sessions that the broker remembers
# An env agent reports a long step every second; without a report for this long the step has ended.
PROGRESS_TTL_S = 2.5
# A loop that is heard between BLOCKED_S and BLOCKED_S + HEARD_S after a request began serves other
# sessions meanwhile. BLOCKED_S is longer than a message may be late.
BLOCKED_S = 0.5
HEARD_S = 1.1  # longer than the second between two PINGs of a loop
# What may be relayed to one side of a session before that side sends a frame: one frame of LARGE
# bytes or more, and fewer than 2 * MAX_UNANSWERED smaller ones.
LARGE = 16 * 1024
MAX_UNANSWERED = 256


@dataclass(slots=True, eq=False)
class Peer:
    """A connection that has sent HELLO, or the liveness connection of an env agent."""

    rid: bytes
    role: str
    agent: bytes
    host: str
    software: str
    identity: str
    key: bytes | None
    fd: int
    connection: int = 0  # distinguishes connections with the same descriptor; 0: unknown
    rights: Rights = EVERYTHING
    lost_at: float | None = None  # when sending to it failed; None: connected
    heard: float = 0.0  # when it last sent a message to the broker itself
    may_be_closing: bool = False  # a session there has ended, and it has not been heard since then
    hung_up: bool = False  # the broker has closed its connection since then
    connected_at: float = 0.0  # when it introduced itself over its present connection
    losses: int = 0  # lost connections that had lasted long enough to carry a request
    offers: dict[str, Offer] = field(default_factory=dict)
    offer_bytes: dict[str, int] = field(default_factory=dict)  # memory that each offer takes
    # what FOUND says about each offer whatever happens, packed
    listed: dict[str, memoryview] = field(default_factory=dict)
    draining: set[str] = field(default_factory=set)  # addresses without new sessions
    sessions: set[int] = field(default_factory=set)
    used: Counter[str] = field(default_factory=Counter)  # a loop's sessions by address
    # ended sessions whose environment is still busy, by address
    stuck: Counter[str] = field(default_factory=Counter)
    # when the last reported request of an ended session began, and until when the report counts
    stuck_since: float = -math.inf
    stuck_until: float = -math.inf
    # when a session was last reported to be in a long step, by sid: the latest report last
    long_steps: dict[int, float] = field(default_factory=dict)
    attach_token: bytes = b""  # proves that a local channel is this peer's; b"": not allowed one
    capabilities: frozenset[str] = frozenset()  # those that it shares with this broker
    pid: int = 0  # of its process, as it says; 0: unknown
    offer_refused: bool = False  # its last offer, which the log says once
    agent_id: str = ""  # the name of its env agent, for people, if it has offers

    @property
    def process(self) -> tuple[bytes, bytes | None]:
        """The process of a serving loop, with its key, so that no other key can claim it."""
        return self.agent, self.key

    def in_step(self, now: float) -> bool:
        """Return whether a session of this loop was recently reported to be in a long step."""
        latest = next(reversed(self.long_steps.values()), -math.inf)
        return now - latest < PROGRESS_TTL_S

    def note_stuck(self, in_step_s: float, reported_at: float) -> None:
        """Note the report of a request whose session has ended."""
        until = reported_at + PROGRESS_TTL_S
        if until >= self.stuck_until:
            self.stuck_since, self.stuck_until = reported_at - in_step_s, until

    def is_blocked(self, now: float) -> bool:
        """Return whether this loop executes a request of an ended session, and nothing else.

        A loop whose sessions have threads of their own is heard during such a request.
        """
        may_be_heard_until = self.stuck_since + BLOCKED_S
        is_silent = self.heard < may_be_heard_until and now > may_be_heard_until + HEARD_S
        return is_silent and now < self.stuck_until


@dataclass(slots=True, eq=False)
class Flow:
    """The frames that are relayed in one direction of a session.

    They wait in the memory of a receiver that does not read, so they must not become many.
    """

    frames: int = 0  # relayed so far
    checked_at: int = -1  # frames of the other direction when `has_answer` was last true
    refused_since: float | None = None  # since when all frames have been refused

    def has_answer(self, back: Flow) -> bool:
        """Return whether a frame came `back` since this last returned True."""
        if self.checked_at == back.frames:
            return False
        self.checked_at, self.refused_since = back.frames, None
        return True

    def admit(self, size: int, back: Flow) -> bool:
        """Count a frame of `size` bytes if it may be relayed. `Core.relay` does the same."""
        frames = self.frames + 1
        if (size >= LARGE or not frames % MAX_UNANSWERED) and not self.has_answer(back):
            return False
        self.frames = frames
        return True

    def forgive(self) -> None:
        """Let the next large frame pass, because the last one was lost or has been read."""
        self.checked_at, self.refused_since = -1, None


class Steps(NamedTuple):
    """What an env agent has reported about the steps of a session (docs/protocol.md §6.6)."""

    steps: int
    steps_per_s: float
    p50_s: float
    p99_s: float
    in_step_s: float
    direct: bool
    reported_at: float  # monotonic seconds


@dataclass(slots=True, eq=False)
class Session:
    """One learner's use of one environment. `learner` is None until the learner has come back."""

    sid: int
    nonce: bytes
    address: str
    learner_identity: str
    loop: Peer
    is_open: bool
    created: float  # when this broker learned of it (monotonic seconds)
    learner: Peer | None = None
    is_claimed: bool = False  # a learner has opened or resumed it at this broker
    may_be_direct: bool = True  # the learner and the policy allow a direct connection
    orphan_until: float | None = None  # when the session ends unless its learner comes back
    open_seq: int = 0  # the number of the last OPEN,
    unanswered_opens: int = 0  # and how many with this number have no answer yet
    waiting: int = 0  # the number of the request for which its learner waits, as PING names it,
    losses_before: int = 0  # and the losses of its loop when the learner began to wait
    requests: Flow = field(default_factory=Flow)  # to the env agent
    replies: Flow = field(default_factory=Flow)  # to the learner
    progress_at: float = -math.inf  # when the env agent last reported a long step,
    in_step_s: float = 0.0  # and how long the step had taken by then
    number: int = 0  # how many sessions were added before
    steps: Steps | None = None  # the latest report

    @property
    def facts(self) -> dict[str, object]:
        """What the log says about it: the session, its address, its learner and its env agent."""
        learner, loop = self.learner, self.loop
        facts: dict[str, object] = {"session": session_text(self.sid), "address": self.address}
        facts["learner"] = self.learner_identity if learner is None else learner.rights.name
        if learner is not None:
            facts |= {"learner_host": learner.host, "learner_pid": learner.pid}
        return {**facts, "host": loop.host, "pid": loop.pid}

    @property
    def frames(self) -> int:
        """How many frames have been relayed, both ways."""
        return self.requests.frames + self.replies.frames

    def losses_since(self, request: int) -> int:
        """Return how often its loop was lost since its learner first waited for a request.

        `request`: the number of that request.
        """
        losses = self.loop.losses
        if request != self.waiting or losses < self.losses_before:
            self.waiting, self.losses_before = request, losses
        return losses - self.losses_before

    def in_step(self, now: float) -> bool:
        """Return whether the env agent has recently reported a long step of this session."""
        return now - self.progress_at < PROGRESS_TTL_S


@dataclass(slots=True, eq=False)
class Route:
    """Where to relay the frames that one sender sends in one session."""

    flow: Flow  # these frames
    back: Flow  # the frames in the other direction
    rid: bytes  # of the receiver
    key: bytes | None  # of the sender


class Tables:
    """Peers, sessions and routes, kept consistent with each other."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.peers: dict[bytes, Peer] = {}
        self.sessions: dict[int, Session] = {}
        self.by_nonce: dict[bytes, Session] = {}
        self.by_fd: dict[int, Peer] = {}
        self.by_attach_token: dict[bytes, Peer] = {}
        # peers whose connection cannot be watched by its descriptor
        self.unwatched: dict[bytes, Peer] = {}
        # sender's routing id + the eight bytes of the sid as they stand in a frame
        self.routes: dict[bytes, Route] = {}
        self.orphans: dict[int, Session] = {}
        self.lost: dict[bytes, Peer] = {}
        self.peers_of: Counter[bytes] = Counter()  # peers by key, of those that have one
        self._progress: Counter[bytes] = Counter()  # progress connections by agent, 15 bytes of it
        self.claimed = 0  # sessions that a learner has opened or resumed,
        self.sessions_of: Counter[str] = Counter()  # and those by the learner's identity
        # and all others, the oldest first, by the key of their loop
        self.unclaimed: dict[bytes | None, dict[int, None]] = {}
        # keys by their number of unclaimed sessions
        self._by_count: dict[int, dict[bytes | None, None]] = {}
        self._most = 0  # the largest of these numbers
        # ended sessions, the oldest first: the routing id of their loop, and their address
        self.ended: dict[int, tuple[bytes, str]] = {}
        # ended sessions whose environment is reported to be still busy, the latest report last:
        # their loop, their address, and when the report came
        self.stuck: dict[int, tuple[Peer, str, float]] = {}
        self.added = self.removed = 0  # sessions since the start
        self.names: list[str] = []  # the addresses on offer, sorted
        self._loops: dict[str, dict[bytes, Peer]] = {}  # address → the loops that offer it
        self._offers: Counter[bytes] = Counter()  # offers of all loops by agent
        self._load: Counter[tuple[bytes, bytes | None]] = Counter()  # by process

    def add_peer(self, peer: Peer) -> Peer | None:
        """Add a peer, or register the new connection of a known one.

        Returns the peer whose connection had this descriptor before, if any: it has ended.
        """
        if peer.rid not in self.peers:
            if peer.role == Role.PROGRESS:
                self._progress[peer.agent[:LIVENESS_AGENT_SIZE]] += 1
            if peer.key is not None:
                self.peers_of[peer.key] += 1
        self.peers[peer.rid] = peer
        displaced = self.by_fd.get(peer.fd)
        if displaced is peer:
            displaced = None
        if displaced is not None:
            self.unwatched[displaced.rid] = displaced
        self.by_fd[peer.fd] = peer
        self.unwatched.pop(peer.rid, None)
        return displaced

    def describe(self, rid: bytes) -> dict[str, object]:
        """Return what the log says about the sender of a frame."""
        peer = self.peers.get(rid)
        if peer is None:
            return {"rid": rid[:MAX_RID].hex()}
        return {"role": peer.role, "peer": peer.rights.name, "host": peer.host, "pid": peer.pid}

    def has_progress(self, agent: bytes) -> bool:
        """Return whether the agent with these first 15 bytes has a progress connection."""
        return agent in self._progress

    def forget_fd(self, peer: Peer) -> None:
        """Note that the peer has a new connection with an unknown descriptor."""
        if self.by_fd.get(peer.fd) is peer:
            del self.by_fd[peer.fd]
        self.unwatched[peer.rid] = peer

    def give_attach_token(self, peer: Peer) -> None:
        """Let the peer use a local channel, unless it already may."""
        if not peer.attach_token:
            peer.attach_token = self._rng.randbytes(ATTACH_TOKEN_SIZE)
            self.by_attach_token[peer.attach_token] = peer

    # --- offers -----------------------------------------------------------------------------------

    def add_offer(self, loop: Peer, offer: Offer, size: int, listed: memoryview) -> None:
        """Add or replace the offer of a loop at an address.

        `size`: bytes that it takes. `listed`: see `Peer`.
        """
        name = offer.address
        if name not in self._loops:
            self._loops[name] = {}
            bisect.insort(self.names, name)
        if name not in loop.offers:
            self._offers[loop.agent] += 1
        self._loops[name][loop.rid] = loop
        loop.offers[name], loop.offer_bytes[name], loop.listed[name] = offer, size, listed
        loop.agent_id = agent_id(loop.agent, loop.key, loop.host, offer)
        loop.draining.discard(name)

    def withdraw_offer(self, loop: Peer, name: str) -> None:
        """Remove the offer of a loop at an address."""
        del loop.offers[name], loop.offer_bytes[name], loop.listed[name]
        loop.draining.discard(name)
        self._forget_offer(loop, name)

    def _forget_offer(self, loop: Peer, name: str) -> None:
        loops = self._loops[name]
        del loops[loop.rid]
        _decrement(self._offers, loop.agent)
        if not loops:
            del self._loops[name]
            del self.names[bisect.bisect_left(self.names, name)]

    def loops(self, address: str) -> list[Peer]:
        """Return the serving loops that offer this address, including lost ones.

        The loop that has offered it for longest comes first.
        """
        return list(self._loops.get(address, {}).values())

    def offers_anything(self, agent: bytes) -> bool:
        """Return whether a loop of this process has an offer."""
        return agent in self._offers

    def load_of(self, loop: Peer) -> int:
        """Return how many sessions the process of this loop has, with its stuck ones."""
        return self._load[loop.process]

    # --- sessions ---------------------------------------------------------------------------------

    def new_sid(self) -> int:
        """Return a random sid that no session has."""
        while (sid := self._rng.getrandbits(SID_BITS)) in self.sessions or sid == 0:
            pass
        return sid

    def add_session(self, session: Session) -> None:
        """Add a session of its serving loop, without a learner yet."""
        self.sessions[session.sid] = session
        session.number, self.added = self.added, self.added + 1
        self.by_nonce[session.nonce] = session
        of_key = self.unclaimed.setdefault(session.loop.key, {})
        of_key[session.sid] = None
        self._count(session.loop.key, len(of_key) - 1, len(of_key))
        self._place(session, session.loop)

    def _forget_unclaimed(self, session: Session) -> None:
        of_key = self.unclaimed[session.loop.key]
        del of_key[session.sid]
        if not of_key:
            del self.unclaimed[session.loop.key]
        self._count(session.loop.key, len(of_key) + 1, len(of_key))

    def _count(self, key: bytes | None, before: int, after: int) -> None:
        by_count = self._by_count
        if before:
            del by_count[before][key]
            if not by_count[before]:
                del by_count[before]
        if after:
            by_count.setdefault(after, {})[key] = None
        self._most = max(self._most, after)
        if self._most not in by_count:  # the key has one session less than before, or none
            self._most -= 1

    @property
    def most_unclaimed(self) -> Collection[int]:
        """The sessions that no learner has claimed, of the key with the most, the oldest first."""
        return self.unclaimed[next(iter(self._by_count[self._most]))] if self._most else ()

    def open(self, session: Session) -> None:
        """Mark a session as open and relay its frames."""
        session.is_open = True
        self._link(session)

    def bind_learner(self, session: Session, learner: Peer) -> None:
        """Make this connection the session's learner, instead of any other."""
        self._unlink(session)
        if session.learner is not None:
            session.learner.sessions.discard(session.sid)
        session.learner = learner
        learner.sessions.add(session.sid)
        if not session.is_claimed:
            self._forget_unclaimed(session)
            self.sessions_of[session.learner_identity] += 1
            self.claimed += 1
            session.is_claimed = True
        self.adopt(session)
        self._link(session)

    def bind_loop(self, session: Session, loop: Peer) -> None:
        """Make this connection the session's serving loop, instead of any other."""
        self._unlink(session)
        self._displace(session)
        self._place(session, loop)
        self._link(session)

    def _place(self, session: Session, loop: Peer) -> None:
        session.loop = loop
        session.requests.forgive()  # what was in flight may be lost
        loop.sessions.add(session.sid)
        loop.used[session.address] += 1
        self._load[loop.process] += 1

    def _displace(self, session: Session) -> None:
        loop = session.loop
        loop.sessions.discard(session.sid)
        loop.long_steps.pop(session.sid, None)
        _decrement(loop.used, session.address)
        _decrement(self._load, loop.process)

    def progress(self, session: Session, in_step_s: float, now: float) -> None:
        """Note that the env agent reports a long step of this session."""
        session.progress_at, session.in_step_s = now, in_step_s
        session.loop.long_steps.pop(session.sid, None)
        session.loop.long_steps[session.sid] = now

    def note_stuck(self, sid: int, reporter: Peer, in_step_s: float, now: float) -> None:
        """Note that an env agent reports a request of a session that has ended."""
        rid, address = self.ended.get(sid, (b"", ""))
        loop = self.peers.get(rid)
        if loop is None or loop.process != reporter.process:
            return
        loop.note_stuck(in_step_s, now)
        if self.stuck.pop(sid, None) is None:
            loop.stuck[address] += 1
            self._load[loop.process] += 1
        self.stuck[sid] = loop, address, now

    def expire_stuck(self, now: float) -> None:
        """Forget the stuck sessions that are not reported anymore."""
        while self.stuck:
            sid, (loop, address, reported) = next(iter(self.stuck.items()))
            if now - reported < PROGRESS_TTL_S:
                return
            del self.stuck[sid]
            _decrement(loop.stuck, address)
            _decrement(self._load, loop.process)

    def orphan(self, session: Session, *, until: float) -> None:
        """Start the lease of a session whose learner is lost."""
        if session.orphan_until is None:
            session.orphan_until = until
            self.orphans[session.sid] = session

    def adopt(self, session: Session) -> None:
        """End the lease of a session whose learner is back."""
        session.orphan_until = None
        self.orphans.pop(session.sid, None)

    def drop_session(self, session: Session) -> None:
        """Forget a session, but remember that it has ended."""
        self._unlink(session)
        if session.learner is not None:
            session.learner.sessions.discard(session.sid)
        self.orphans.pop(session.sid, None)
        self.by_nonce.pop(session.nonce, None)
        if self.sessions.pop(session.sid, None) is not None:
            self.removed += 1
            self._displace(session)
            if session.is_claimed:
                _decrement(self.sessions_of, session.learner_identity)
                self.claimed -= 1
            else:
                self._forget_unclaimed(session)
        # An env agent that was cut off may still announce it, long after its learner got GONE.
        self.ended[session.sid] = session.loop.rid, session.address
        if len(self.ended) > MAX_ENDED:
            del self.ended[next(iter(self.ended))]

    def drop_peer(self, peer: Peer) -> None:
        """Forget a peer. The caller ends its sessions first."""
        if self.peers.get(peer.rid) is peer:
            del self.peers[peer.rid]
            if peer.role == Role.PROGRESS:
                _decrement(self._progress, peer.agent[:LIVENESS_AGENT_SIZE])
            if peer.key is not None:
                _decrement(self.peers_of, peer.key)
        if self.by_fd.get(peer.fd) is peer:
            del self.by_fd[peer.fd]
        for name in peer.offers:
            self._forget_offer(peer, name)
        self.by_attach_token.pop(peer.attach_token, None)
        self.lost.pop(peer.rid, None)
        self.unwatched.pop(peer.rid, None)

    def sessions_at(self, peer: Peer) -> list[Session]:
        """Return the sessions of a learner or of a serving loop."""
        return [self.sessions[sid] for sid in sorted(peer.sessions)]

    def side_of(self, sid: int, rid: bytes, key: bytes | None) -> Peer | None:
        """Return the side of a session that this connection is; None: neither.

        The session needs both sides, and its learner is one only once the session is open.
        """
        session = self.sessions.get(sid)
        if session is None or session.learner is None:
            return None
        side = session.loop
        if rid != side.rid and session.is_open:
            side = session.learner
        return side if side.rid == rid and side.key == key else None

    def relink(self) -> None:
        """Update the routes after the rights of peers have changed."""
        for session in self.sessions.values():
            self._link(session)

    def _link(self, session: Session) -> None:
        """Relay the frames of an open session unread, unless its learner has limits."""
        sid = session.sid.to_bytes(8, "little")
        loop, learner = session.loop, session.learner
        if learner is None or not session.is_open:
            return
        if learner.rights.metered:
            self._unlink(session)
        else:
            requests, replies = session.requests, session.replies
            self.routes[learner.rid + sid] = Route(requests, replies, loop.rid, learner.key)
            self.routes[loop.rid + sid] = Route(replies, requests, learner.rid, loop.key)

    def _unlink(self, session: Session) -> None:
        sid = session.sid.to_bytes(8, "little")
        self.routes.pop(session.loop.rid + sid, None)
        if session.learner is not None:
            self.routes.pop(session.learner.rid + sid, None)


def _decrement(counter: Counter[K], key: K) -> None:
    """Count one less, and forget a key whose count is zero."""
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
