"""Who is here and may do what: how peers come and go, and what a policy changes for them."""

from __future__ import annotations

import random
from dataclasses import replace

from gymwire.broker.auth import Policy, Rights
from gymwire.broker.connections import Connections
from gymwire.broker.events import Notes, Send, Sender, say
from gymwire.broker.recovery import Awaited
from gymwire.broker.refusals import ASK, Refusal, may_not, refuse, whose
from gymwire.broker.sessions import Sessions
from gymwire.broker.tables import Peer, Tables
from gymwire.protocol.capabilities import common
from gymwire.protocol.codec import PLAIN, Header
from gymwire.protocol.errors import DecodingError
from gymwire.protocol.messages import Bye, Code, Hello, Role, Welcome

MAX_PEERS = 20_000
GRACE_S = 2.0  # a lost env agent may come back for so long before its sessions are given up


class Peers:
    """The peers in the tables.

    `welcome`: what those are told who may do everything; its `lane`, if it has one, goes to peers
    on `host` only.
    """

    def __init__(
        self,
        tables: Tables,
        connections: Connections,
        sessions: Sessions,
        awaited: Awaited,
        notes: Notes,
        policy: Policy,
        welcome: Welcome,
        host: str,
        rng: random.Random,
    ) -> None:
        self._tables = tables
        self._connections = connections
        self._sessions = sessions
        self._awaited = awaited
        self._notes = notes
        self._policy = policy
        self._welcome = welcome
        self._host = host
        self._rng = rng

    # --- coming -----------------------------------------------------------------------------------

    def hello(self, sender: Sender, header: Header, hello: Hello, now: float) -> list[Send]:
        """A peer introduces itself: it is new, or its connection is, or it was not answered."""
        if hello.role not in (Role.LEARNER, Role.ENV, Role.PROGRESS):
            raise DecodingError(f"{hello.role[:50]!r} is not a role.")
        if sender.rid[:1] == b"\0":
            raise DecodingError("A peer must set a routing id of its own.")
        rights = self._policy.rights(sender.key)
        if rights is None:
            self._connections.hang_ups.append((sender.fd, sender.connection))
            who = whose(sender.key, sender.identity)
            raise Refusal(Code.DENIED, f"{who} is not in this broker's policy: {ASK}")
        peer = self._enter(sender, rights, hello, now)
        if peer is None:
            raise Refusal(
                Code.LIMIT, f"This broker has {MAX_PEERS} peers already; try again later."
            )
        most = self._welcome.max_message
        if self._welcome.local_channel and peer.host == self._host and peer.role != Role.PROGRESS:
            self._give_ticket(peer)
        welcome = replace(
            self._welcome,
            identity=peer.identity,
            max_message=min(most, rights.message_bytes or most),
            local_channel=self._welcome.local_channel if peer.ticket else "",
            attach_token=peer.ticket,
        )
        sends = [say(peer.rid, welcome, 0, header.seq)]
        if peer.role == Role.ENV:
            for row in hello.sessions:
                sends += self._sessions.announced(peer, row, now)
        elif peer.role == Role.PROGRESS and peer.rights.offer:
            self._awaited.named(peer, hello.sessions)
        return sends

    def _give_ticket(self, peer: Peer) -> None:
        if not peer.ticket:
            peer.ticket = self._rng.randbytes(16)
            self._tables.by_ticket[peer.ticket] = peer

    def present(self, sender: Sender, now: float) -> None:
        """An env agent is there, and says so without its interpreter (docs/protocol.md §7.13)."""
        agent = sender.rid[1:16]
        rights = self._policy.rights(sender.key)
        if rights is None or not rights.offer or len(agent) < 15:
            return
        known = self._tables.peers.get(sender.rid)
        if known is not None and (known.role != Role.LIVENESS or known.key != sender.key):
            return
        peer = self._enter(sender, rights, Hello(Role.LIVENESS, agent, "", "", []), now)
        if peer is not None:
            self._awaited.present(peer)

    def _enter(self, sender: Sender, rights: Rights, hello: Hello, now: float) -> Peer | None:
        """Whose connection this is; it has just been made. None: there are too many peers."""
        peer = self._tables.peers.get(sender.rid)
        if peer is None:
            if len(self._tables.peers) >= MAX_PEERS:
                return None
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
                capabilities=common(hello.capabilities),
            )
        self._connections.arrived(peer, sender, now)
        return peer

    # --- going ------------------------------------------------------------------------------------

    def bye(self, peer: Peer) -> list[Send]:
        """A peer leaves on purpose."""
        if peer.role == Role.ENV:
            return self._end_loop(peer, f"its env agent on {peer.host} has stopped")
        sends: list[Send] = []
        for session in self._tables.sessions_at(peer):
            sends += self._sessions.end_without_learner(session)
        self._forget(peer)
        return sends

    def expire(self, now: float) -> list[Send]:
        """Give up lost peers: loops after the grace, others when they have no sessions."""
        sends: list[Send] = []
        for peer in list(self._tables.lost.values()):
            assert peer.lost_at is not None
            if peer.role == Role.ENV:
                if now >= max(peer.lost_at + GRACE_S, self._connections.patient_until):
                    sends += self._end_loop(peer, f"the env agent on {peer.host} is gone")
            elif not peer.sessions:
                self._forget(peer)
        return sends

    def goodbye(self) -> list[Send]:
        """The broker stops: tell everyone."""
        frame = PLAIN.encode(Bye("the broker stops"))
        return [Send(rid, frame) for rid in self._tables.peers]

    def _end_loop(self, loop: Peer, reason: str) -> list[Send]:
        sends: list[Send] = []
        for session in self._tables.sessions_at(loop):
            sends += self._sessions.end_without_loop(session, reason)
        self._forget(loop)
        others = (peer for peer in self._tables.peers.values() if peer.offers)
        if loop.offers and not any(peer.agent == loop.agent for peer in others):
            self._notes.add("agent left", host=loop.host, offers=sorted(loop.offers), why=reason)
        return sends

    def _forget(self, peer: Peer) -> None:
        self._connections.left(peer)
        self._awaited.left(peer)
        self._tables.drop_peer(peer)

    # --- the policy -------------------------------------------------------------------------------

    def apply(self, policy: Policy) -> list[Send]:
        """This policy holds from now on. Who lost a right is told; what it had by it ends."""
        self._policy = policy
        sends: list[Send] = []
        for peer in list(self._tables.peers.values()):
            rights = policy.rights(peer.key)
            if rights is None:
                sends += self._put_out(peer)
                continue
            peer.rights = rights
            for address in [name for name in peer.offers if not rights.may_offer(name)]:
                peer.take_back(address)
                lost = Refusal(Code.DENIED, may_not(peer, "offer", address))
                sends.append(refuse(peer.rid, lost))
        for session in list(self._tables.sessions.values()):
            learner, loop = session.learner, session.loop
            if not loop.rights.may_offer(session.address):
                sends += self._sessions.end(session, may_not(loop, "offer", session.address))
            elif learner is not None and not learner.rights.may_use(session.address):
                sends += self._sessions.end(session, may_not(learner, "use", session.address))
        self._tables.relink()
        return sends

    def _put_out(self, peer: Peer) -> list[Send]:
        text = f"{whose(peer.key, peer.identity)} was taken out of this broker's policy: {ASK}"
        sends: list[Send] = []
        for session in self._tables.sessions_at(peer):
            sends += self._sessions.end(session, text)
        sends.append(refuse(peer.rid, Refusal(Code.DENIED, text)))
        self._connections.hang_up(peer)
        self._forget(peer)
        self._notes.add("put out", host=peer.host, role=peer.role, identity=peer.identity)
        return sends
