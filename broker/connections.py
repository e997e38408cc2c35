"""Which connections are up, lost or silent, which to probe, and which to close.

libzmq does not report to a ROUTER that a peer is gone; docs/design.md explains how the broker
notices.
"""

from __future__ import annotations

from gymwire.broker.events import Send, Sender
from gymwire.broker.recovery import STARTING_S
from gymwire.broker.tables import Peer, Tables
from gymwire.protocol.messages import Ping, Role

AGENT_SILENCE_S = 3.5  # the broker hangs up on an env agent that is silent for longer
SILENCE_CHECK_S = 0.5  # interval between these checks
LEARNER_SILENCE_S = 10.0  # the same for a learner; its heartbeats count
CHECK_TICKS = 20  # ticks over which the checks of all learners are spread
# A connection that has lasted this long may have been lost because of what it had to carry: no
# sooner does anyone notice that a path swallows large packets.
SETTLED_S = 3.0
PROBES = 5  # probes of a connection that may have ended, one per tick


class Connections:
    """The connections of the peers. `lease_s`: how long a session waits for a lost learner."""

    def __init__(self, tables: Tables, now: float, lease_s: float) -> None:
        self.hang_ups: list[tuple[int, int]] = []  # (fd, connection) of connections to close
        self.patient_until = now  # until then no lost peer is given up
        self._tables = tables
        self._lease_s = lease_s
        self._suspects: dict[bytes, int] = {}  # routing id → probes left
        self._up: set[int] = set()  # descriptors of all connections
        self._next_silence_check = now
        self._tick = 0

    # --- reports of the socket --------------------------------------------------------------------

    def link_up(self, fd: int) -> None:
        """Note a new connection with this descriptor."""
        self._up.add(fd)

    def link_down(self, fd: int) -> None:
        """Note that the connection with this descriptor ended.

        This is only a hint, since descriptors are reused.
        """
        self._up.discard(fd)
        self.link_doubtful(fd)

    def link_doubtful(self, fd: int) -> None:
        """Probe the connection with this descriptor, which may have ended."""
        peer = self._tables.by_fd.get(fd)
        if peer is not None and peer.lost_at is None:
            self.suspect(peer)

    def unreachable(self, rid: bytes, now: float) -> None:
        """Mark a peer as lost: sending to it failed because it has no connection."""
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
        """Mark a lost peer as connected again: sending to it succeeded."""
        peer = self._tables.lost.pop(rid, None)
        if peer is None:
            return
        peer.lost_at = None
        self._tables.forget_fd(peer)
        for session in self._tables.sessions_at(peer):
            if session.learner is peer:
                self._tables.adopt(session)

    def woke_up(self, now: float) -> None:
        """Give peers time to reconnect, since this process was suspended for a while."""
        self.patient_until = now + STARTING_S

    # --- messages of peers ------------------------------------------------------------------------

    def add(self, peer: Peer, sender: Sender, now: float) -> None:
        """Register the connection over which a new or known peer has introduced itself."""
        is_new = True
        if self._tables.peers.get(peer.rid) is peer:
            is_new = (peer.fd, peer.connection) != (sender.fd, sender.connection)
            peer.losses += is_new and now - peer.connected_at >= SETTLED_S
            self.reachable(peer.rid)
            self._tables.forget_fd(peer)
            peer.fd, peer.connection = sender.fd, sender.connection
        if is_new:
            peer.connected_at = now
        peer.heard, peer.hung_up = now, False
        displaced = self._tables.add_peer(peer)
        if displaced is not None:
            self.suspect(displaced)
        self._suspects.pop(peer.rid, None)

    def remove(self, peer: Peer) -> None:
        """Stop probing this peer."""
        self._suspects.pop(peer.rid, None)

    def has_strangers(self) -> bool:
        """Return whether some connections have not introduced themselves yet.

        libzmq restores the connection of a learner by itself; the learner sends HELLO only with
        its next request.
        """
        return not self._up <= self._tables.by_fd.keys()

    # --- probes -----------------------------------------------------------------------------------

    def suspect(self, peer: Peer) -> None:
        """Probe this connection during the next ticks: sending fails if it has ended."""
        self._suspects[peer.rid] = PROBES

    def probe(self) -> list[Send]:
        """Return this tick's probes of connections that may have ended, or may be restored."""
        suspects = list(self._suspects)
        self._suspects = {rid: left - 1 for rid, left in self._suspects.items() if left > 1}
        # A restored connection stays silent until its owner sends something.
        return [Send.message(rid, Ping()) for rid in [*suspects, *self._tables.lost]]

    def probe_unwatched(self) -> list[Send]:
        """Return probes of the peers whose connection cannot be watched by its descriptor."""
        return [Send.message(rid, Ping()) for rid in self._tables.unwatched]

    # --- hanging up -------------------------------------------------------------------------------

    def hang_up(self, peer: Peer) -> None:
        """Close this peer's connection, if its descriptor is known."""
        if self._tables.by_fd.get(peer.fd) is peer:
            peer.hung_up = True
            self.hang_ups.append((peer.fd, peer.connection))

    def drop_silent_agents(self, now: float) -> None:
        """Close the connections of env agents that have been silent for too long, once.

        If such a process is alive, libzmq's own thread reconnects, whatever the process is doing.
        """
        if now < max(self._next_silence_check, self.patient_until):
            return
        self._next_silence_check = now + SILENCE_CHECK_S
        speakers = [p for p in self._tables.peers.values() if p.role in (Role.ENV, Role.PROGRESS)]
        heard: dict[bytes, float] = {}
        for peer in speakers:
            heard[peer.agent] = max(peer.heard, heard.get(peer.agent, 0.0))
        for peer in speakers:
            if now - heard[peer.agent] > AGENT_SILENCE_S and not peer.hung_up:
                self.hang_up(peer)

    def learners_to_check(self, now: float) -> list[tuple[int, int]]:
        """Return the connections of learners that the socket must check in this tick.

        A learner may compute for hours between two steps, but libzmq's own thread sends
        heartbeats as long as its process lives. And a connection may have ended unnoticed: on a
        busy machine, libzmq's thread may report its end long before sending over it fails, so that
        all probes still succeed.
        """
        self._tick = (self._tick + 1) % CHECK_TICKS
        if now < self.patient_until:
            return []
        return [
            (fd, peer.connection)
            for fd, peer in self._tables.by_fd.items()
            if fd % CHECK_TICKS == self._tick
            and peer.role == Role.LEARNER
            and peer.sessions
            and not peer.hung_up
        ]

    def silent_for(self, fd: int, silent_s: float) -> None:
        """Close this learner's connection if nothing, not even a heartbeat, came for too long."""
        learner = self._tables.by_fd.get(fd)
        if learner is not None and silent_s > LEARNER_SILENCE_S:
            self.hang_up(learner)
