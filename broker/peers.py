"""How peers arrive and leave, and what a policy changes for them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from gymwire.broker.announcements import Announcement, SessionList
from gymwire.broker.auth import Policy, Rights
from gymwire.broker.connections import Connections
from gymwire.broker.events import Send, Sender
from gymwire.broker.journal import Drop, Journal, Loss
from gymwire.broker.recovery import SessionRecovery
from gymwire.broker.refusals import (
    ASK_OPERATOR,
    MAX_WHY,
    Refusal,
    RetryLater,
    describe_key,
    not_allowed,
    reply_to,
)
from gymwire.broker.sessions import ENDED_PER_TICK, Sessions
from gymwire.broker.tables import Peer, Tables
from gymwire.protocol.capabilities import common
from gymwire.protocol.codec import PLAIN, Header
from gymwire.protocol.errors import DecodingError, GymwireError
from gymwire.protocol.messages import (
    AGENT_SIZE,
    LIVENESS_AGENT_SIZE,
    LIVENESS_PREFIX,
    BusyReason,
    Bye,
    Code,
    Hello,
    Role,
    Welcome,
)
from gymwire.protocol.process_ids import MAX_PID

MAX_PEERS = 20_000
# Of the places that the peers of one key leave free: it may take so many times as many, so that it
# never takes all.
MOST_OF_KEY = 3
ANNOUNCE_RETRY_S = 1.0  # when a peer may repeat a HELLO, because too many of its sessions wait
GRACE_S = 2.0  # how long the broker waits for a lost env agent before its sessions are lost


class Peers:
    """The peers in the tables.

    `welcome`: the reply to HELLO of a peer without limits. Its URL for local channels, if any, is
    for peers on `host` only.
    """

    def __init__(
        self,
        tables: Tables,
        connections: Connections,
        sessions: Sessions,
        recovery: SessionRecovery,
        journal: Journal,
        policy: Policy,
        welcome: Welcome,
        host: str,
    ) -> None:
        self._tables = tables
        self._connections = connections
        self._sessions = sessions
        self._recovery = recovery
        self._journal = journal
        self._policy = policy
        self._welcome = welcome
        self._host = host

    # --- arriving ---------------------------------------------------------------------------------

    def hello(
        self,
        sender: Sender,
        header: Header,
        hello: Hello,
        now: float,
        listed: SessionList | None = None,
    ) -> list[Send]:
        """Reply to HELLO, from a new peer, over a new connection, or repeated.

        `listed`: the sessions of a long HELLO; `take_over` takes over all but the first.
        """
        if hello.role not in (Role.LEARNER, Role.ENV, Role.PROGRESS):
            raise DecodingError(f"Unknown role {hello.role[:50]!r} in HELLO.")
        if sender.rid[:1] == b"\0":
            raise DecodingError("A peer must set a routing id of its own.")
        rights = self._policy.rights(sender.key)
        if rights is None:
            self._connections.hang_ups.append((sender.fd, sender.connection))
            subject = describe_key(sender.key, sender.identity)
            text = f"{subject} is not in this broker's policy: {ASK_OPERATOR}"
            raise Refusal(Code.DENIED, text)
        peer = self._register(sender, rights, hello, now)
        if peer is None:
            raise Refusal(Code.LIMIT, self._too_many(sender.key))
        most = self._welcome.max_message
        if self._welcome.local_channel and peer.host == self._host and peer.role != Role.PROGRESS:
            self._tables.give_attach_token(peer)
        welcome = replace(
            self._welcome,
            identity=peer.identity,
            max_message=min(most, rights.message_bytes or most),
            local_channel=self._welcome.local_channel if peer.attach_token else "",
            attach_token=peer.attach_token,
        )
        first = hello.sessions if listed is None else listed.take()
        sends = [
            Send.message(peer.rid, welcome, 0, header.seq),
            *self._announced(peer, first, now),
        ]
        if listed and not self._recovery.announcements.put(
            peer.key or peer.rid, listed.size, Announcement(peer, header.seq, listed)
        ):
            raise RetryLater(BusyReason.RATE, ANNOUNCE_RETRY_S)
        return sends

    def _announced(self, peer: Peer, rows: list[object], now: float) -> list[Send]:
        sends: list[Send] = []
        if peer.role == Role.ENV:
            for row in rows:
                sends += self._sessions.announced(peer, row, now)
        elif peer.role == Role.PROGRESS and peer.rights.offer:
            self._recovery.expect(peer, rows)
        return sends

    def take_over(self, now: float) -> list[Send]:
        """Take over some of the sessions that long HELLOs list."""
        waiting = self._recovery.announcements
        one = waiting.take()
        if one is None or self._tables.peers.get(one.peer.rid) is not one.peer:
            return []
        try:
            sends = self._announced(one.peer, one.sessions.take(), now)
        except GymwireError as error:
            return [reply_to(self._journal, one.peer.rid, error, 0, one.seq)]
        if one.sessions:
            waiting.put(one.peer.key or one.peer.rid, one.sessions.size, one)
        return sends

    def liveness(self, sender: Sender, now: float) -> None:
        """Register the liveness connection of an env agent (docs/protocol.md §7.13).

        libzmq's own thread makes it, even while the agent's interpreter is busy.
        """
        agent = sender.rid.removeprefix(LIVENESS_PREFIX)[:LIVENESS_AGENT_SIZE]
        rights = self._policy.rights(sender.key)
        if rights is None or not rights.offer or len(agent) < LIVENESS_AGENT_SIZE:
            self._journal.drop(sender.rid, Drop.NO_RIGHT)
            return
        known = self._tables.peers.get(sender.rid)
        if known is not None and (known.role != Role.LIVENESS or known.key != sender.key):
            return
        peer = self._register(sender, rights, Hello(Role.LIVENESS, agent, "", "", []), now)
        if peer is not None:
            self._recovery.add_liveness(peer)

    def _register(self, sender: Sender, rights: Rights, hello: Hello, now: float) -> Peer | None:
        """Return the peer of a new connection; None if there are too many peers."""
        peer = self._tables.peers.get(sender.rid)
        if peer is None:
            if self._is_full(sender.key):
                return None
            peer = Peer(
                rid=sender.rid,
                role=hello.role,
                agent=hello.agent[:AGENT_SIZE],
                host=hello.host[:200],
                software=hello.software[:100],
                identity=sender.identity,
                key=sender.key,
                fd=sender.fd,
                connection=sender.connection,
                rights=rights,
                capabilities=common(hello.capabilities),
                pid=hello.pid if 0 < hello.pid < MAX_PID else 0,
            )
        self._connections.add(peer, sender, now)
        return peer

    def _is_full(self, key: bytes | None) -> bool:
        """Return whether there are too many peers, of all keys or of this one."""
        free = MAX_PEERS - len(self._tables.peers)
        return free <= 0 or (key is not None and self._tables.peers_of[key] >= MOST_OF_KEY * free)

    def _too_many(self, key: bytes | None) -> str:
        count = len(self._tables.peers)
        own = "" if key is None else f", {self._tables.peers_of[key]} of them with your key"
        return (
            f"This broker has {count} peers{own}, and takes at most {MAX_PEERS}, of which no key "
            f"may take all. Use fewer connections, or retry later."
        )

    # --- leaving ----------------------------------------------------------------------------------

    def bye(self, peer: Peer, why: str = "") -> list[Send]:
        """Remove a peer that has sent BYE; with a progress connection all loops of its process.

        `why`: what the peer has said, for the learners of an env agent and for the log.
        """
        reason = f"its env agent on {peer.host} has stopped"
        reason += f": {why[:MAX_WHY]}" if why else ""
        sends: list[Send] = []
        if peer.role == Role.ENV:
            return self._end_loop(peer, Loss.AGENT_STOPPED, reason)
        if peer.role == Role.PROGRESS:
            process = (Role.ENV, peer.agent, peer.key)
            for one in list(self._tables.peers.values()):
                if (one.role, one.agent, one.key) == process:
                    sends += self._end_loop(one, Loss.AGENT_STOPPED, reason)
        for session in self._tables.sessions_at(peer):
            sends += self._sessions.end_without_learner(session, Loss.LEARNER_LEFT)
        self._remove(peer)
        return sends

    def withdraw(self, peer: Peer, address: str) -> None:
        """Open no new sessions at this address of a serving loop.

        The progress connection of a process withdraws the address for all of its loops, since a
        loop in a long step cannot do so itself.
        """
        if peer.role != Role.PROGRESS:
            if address in peer.offers:
                peer.draining.add(address)
            return
        for loop in self._tables.loops(address):
            if (loop.agent, loop.key) == (peer.agent, peer.key):
                loop.draining.add(address)

    def expire(self, now: float) -> list[Send]:
        """Remove lost peers: serving loops after the grace period, others without sessions.

        Ends at most ENDED_PER_TICK sessions; the others follow in the next ticks.
        """
        sends: list[Send] = []
        left = ENDED_PER_TICK
        for peer in list(self._tables.lost.values()):
            assert peer.lost_at is not None
            if peer.role == Role.ENV:
                if left and now >= max(peer.lost_at + GRACE_S, self._connections.patient_until):
                    reason = f"the env agent on {peer.host} is gone"
                    before = len(peer.sessions)
                    sends += self._end_loop(peer, Loss.AGENT_LOST, reason, left)
                    left -= min(left, before)
            elif not peer.sessions:
                self._remove(peer)
        return sends

    def goodbye(self) -> list[Send]:
        """Return BYE for every peer, for a broker that stops."""
        frame = PLAIN.encode(Bye("the broker stops"))
        return [Send(rid, frame) for rid in self._tables.peers]

    def _end_loop(self, loop: Peer, loss: str, reason: str, most: int | None = None) -> list[Send]:
        """End the sessions of a loop, or `most` of them, and remove it if none is left."""
        sends: list[Send] = []
        for session in self._tables.sessions_at(loop)[:most]:
            sends += self._sessions.end_without_loop(session, loss, reason)
        if loop.sessions:
            return sends
        self._remove(loop)
        if loop.offers and not self._tables.offers_anything(loop.agent):
            facts = {"host": loop.host, "pid": loop.pid, "offers": sorted(loop.offers)}
            self._journal.note("agent left", **facts, why=reason)
        return sends

    def _remove(self, peer: Peer) -> None:
        self._connections.remove(peer)
        self._recovery.remove(peer)
        self._tables.drop_peer(peer)

    # --- policy -----------------------------------------------------------------------------------

    def apply(self, policy: Policy) -> list[Send]:
        """Replace the policy, and end every offer and session that the new one does not allow."""
        self._policy = policy
        sends: list[Send] = []
        evicted: dict[object, list[Peer]] = {}  # the connections by process
        for peer in list(self._tables.peers.values()):
            rights = policy.rights(peer.key)
            if rights is None:
                sends += self._evict(peer)
                evicted.setdefault(_process_of(peer), []).append(peer)
                continue
            peer.rights = rights
            sends += self._withdraw(peer, [n for n in peer.offers if not rights.may_offer(n)])
        for session in list(self._tables.sessions.values()):
            learner, loop, address = session.learner, session.loop, session.address
            if not loop.rights.may_offer(address):
                reason = not_allowed(loop, "offer", address)
            elif learner is not None and not learner.rights.may_use(address):
                reason = not_allowed(learner, "use", address)
            else:
                continue
            sends += self._sessions.end_for_policy(session, reason)
        self._tables.relink()
        for connections in evicted.values():
            self._note_evicted(connections)
        return sends

    def _withdraw(self, peer: Peer, addresses: Iterable[str]) -> list[Send]:
        sends: list[Send] = []
        for address in addresses:
            self._tables.withdraw_offer(peer, address)
            refusal = Refusal(Code.DENIED, not_allowed(peer, "offer", address))
            sends.append(reply_to(self._journal, peer.rid, refusal))
        return sends

    def _evict(self, peer: Peer) -> list[Send]:
        subject = describe_key(peer.key, peer.identity)
        text = f"{subject} was removed from this broker's policy: {ASK_OPERATOR}"
        sends: list[Send] = []
        for session in self._tables.sessions_at(peer):
            sends += self._sessions.end_for_policy(session, text)
        sends.append(reply_to(self._journal, peer.rid, Refusal(Code.DENIED, text)))
        self._connections.hang_up(peer)
        self._remove(peer)
        return sends

    def _note_evicted(self, connections: list[Peer]) -> None:
        """Record that a process was evicted, which had these connections."""
        known = [one for one in connections if one.role in (Role.LEARNER, Role.ENV)]
        # A liveness connection does not say of which process it is.
        peer = max(known or connections, key=lambda one: one.pid)
        facts = {"host": peer.host, "pid": peer.pid, "role": peer.role, "identity": peer.identity}
        if not peer.pid:
            del facts["pid"]
        if len(connections) > 1:
            facts["connections"] = len(connections)
        self._journal.note("peer evicted", peer=peer.rights.name, **facts)


def _process_of(peer: Peer) -> object:
    """Return what the connections of one process have in common, as far as they say it."""
    if peer.role == Role.LEARNER and peer.pid:
        return peer.key, peer.host, peer.pid  # `agent` distinguishes its connections
    return peer.key, peer.agent[:LIVENESS_AGENT_SIZE]
