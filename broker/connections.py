"""Which connections are up, lost, or silent; which must be asked for, and which closed.

A ROUTER is not told that a peer is gone: docs/design.md says how the broker notices.
"""

from __future__ import annotations

from gymwire.broker.events import Send, Sender, say
from gymwire.broker.recovery import STARTING_S
from gymwire.broker.tables import Peer, Tables
from gymwire.protocol.messages import Ping, Role

SILENT_S = 3.5  # an env agent of which nothing is heard for so long is hung up on
LISTEN_S = 0.5  # how often that is looked at
QUIET_S = 10.0  # a learner of which not even a heartbeat comes for so long is hung up on
TURNS = 20  # ticks in which all of them are looked at once
PROBES = 5  # ticks over which a connection that went down is asked for


class Connections:
    """The connections of the peers. `lease_s`: how long sessions wait for a lost learner."""

    def __init__(self, tables: Tables, now: float, lease_s: float) -> None:
        self.hang_ups: list[tuple[int, int]] = []  # fd and connection of those that must be closed
        self.patient_until = now  # before that nobody is given up
        self._tables = tables
        self._lease_s = lease_s
        self._suspects: dict[bytes, int] = {}  # probes that are left, by routing id
        self._up: set[int] = set()  # descriptors of all connections
        self._listen_at = now
        self._turn = 0

    # --- what the socket says ---------------------------------------------------------------------

    def link_up(self, fd: int) -> None:
        """There is a new connection, with this descriptor."""
        self._up.add(fd)

    def link_down(self, fd: int) -> None:
        """The connection with this descriptor went down. Descriptors are reused: only a hint."""
        self._up.discard(fd)
        peer = self._tables.by_fd.get(fd)
        if peer is not None and peer.lost_at is None:
            self.suspect(peer)

    def unreachable(self, rid: bytes, now: float) -> None:
        """Sending showed that this peer has no connection now."""
        self._suspects.pop(rid, None)
        peer = self._tables.peers.get(rid)
        if peer is None or peer.lost_at is not None:
            return
        peer.lost_at = now
        self._tables.lost[rid] = peer
        if peer.role == Role.LEARNER:
            for session in self._tables.sessions_at(peer):
                self._tables.orphan(session, until=now + self._lease_s)

    def reachable(self, rid: bytes) -> None:
        """A probe of a lost peer was delivered: its connection is there again."""
        peer = self._tables.lost.pop(rid, None)
        if peer is None:
            return
        peer.lost_at = None
        self._tables.forget_fd(peer)
        for session in self._tables.sessions_at(peer):
            if session.learner is peer:
                self._tables.adopt(session)

    def woke(self, now: float) -> None:
        """This process did not run for a while: peers gave us up, and are on their way back."""
        self.patient_until = now + STARTING_S

    # --- what peers show --------------------------------------------------------------------------

    def arrived(self, peer: Peer, sender: Sender, now: float) -> None:
        """This peer has made its connection, for the first time or anew."""
        if self._tables.peers.get(peer.rid) is peer:
            self.reachable(peer.rid)
            self._tables.forget_fd(peer)
            peer.fd, peer.connection = sender.fd, sender.connection
        peer.heard, peer.hung_up = now, False
        displaced = self._tables.add_peer(peer)
        if displaced is not None:
            self.suspect(displaced)
        self._suspects.pop(peer.rid, None)

    def left(self, peer: Peer) -> None:
        """This peer is not asked for any more."""
        self._suspects.pop(peer.rid, None)

    def strangers(self) -> bool:
        """Whether there are connections that have said nothing yet.

        A learner's is made anew by libzmq alone; it says HELLO when it wants something.
        """
        return not self._up <= self._tables.by_fd.keys()

    # --- asking -----------------------------------------------------------------------------------

    def suspect(self, peer: Peer) -> None:
        """Ask for this connection over the next ticks: sending fails if it is not there."""
        self._suspects[peer.rid] = PROBES

    def probe(self) -> list[Send]:
        """In each tick: the connections that went down, and those that may have come back."""
        asked = list(self._suspects)
        self._suspects = {rid: left - 1 for rid, left in self._suspects.items() if left > 1}
        # A connection that is made anew stays silent until its owner speaks: ask for it.
        return [say(rid, Ping()) for rid in [*asked, *self._tables.lost]]

    def probe_unwatched(self) -> list[Send]:
        """Now and then: peers whose connection cannot be watched by its descriptor."""
        return [say(rid, Ping()) for rid in self._tables.unwatched]

    # --- hanging up -------------------------------------------------------------------------------

    def hang_up(self, peer: Peer) -> None:
        """Close this peer's connection, if its descriptor is known."""
        if self._tables.by_fd.get(peer.fd) is peer:
            peer.hung_up = True
            self.hang_ups.append((peer.fd, peer.connection))

    def listen(self, now: float) -> None:
        """Hang up on env agents of which nothing is heard, once.

        libzmq's own thread makes their connections anew where the process is alive, whatever it is
        doing.
        """
        if now < max(self._listen_at, self.patient_until):
            return
        self._listen_at = now + LISTEN_S
        loops = [p for p in self._tables.peers.values() if p.role in (Role.ENV, Role.PROGRESS)]
        heard: dict[bytes, float] = {}
        for peer in loops:
            heard[peer.agent] = max(peer.heard, heard.get(peer.agent, 0.0))
        for peer in loops:
            if now - heard[peer.agent] > SILENT_S and not peer.hung_up:
                self.hang_up(peer)

    def learners_to_watch(self, now: float) -> list[Peer]:
        """The learners of whose connections it must be asked now for how long nothing came.

        They may think for hours, but libzmq's own thread sends heartbeats as long as they live.
        """
        self._turn = (self._turn + 1) % TURNS
        if now < self.patient_until:
            return []
        found = []
        for fd, peer in self._tables.by_fd.items():
            mine = fd % TURNS == self._turn and peer.role == Role.LEARNER
            if mine and peer.sessions and not peer.hung_up:
                found.append(peer)
        return found

    def quiet(self, learner: Peer, idle_s: float) -> None:
        """Nothing came from this learner for so long, not even a heartbeat."""
        if idle_s > QUIET_S:
            self.hang_up(learner)
