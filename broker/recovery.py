"""Sessions that the broker does not know but may still learn of (docs/protocol.md §7.13)."""

from __future__ import annotations

from gymwire.broker.announcements import Announcement
from gymwire.broker.shares import Shares
from gymwire.broker.tables import Peer, Tables
from gymwire.broker.turns import Turns
from gymwire.protocol.messages import LIVENESS_AGENT_SIZE

STARTING_S = 5.0  # env agents announce their sessions within this time after a broker starts
# After a restart of the broker: at least this long an announced session waits for its learner,
# which may be computing and notices the restart only when it sends its next request. At most this
# long a learner waits for a session of an env agent that is connected but has not sent HELLO.
REJOIN_S = 600.0
MAX_EXPECTED = 10_000


class SessionRecovery:
    """What is known since the broker started about sessions that no serving loop has announced."""

    def __init__(self, tables: Tables, started: float) -> None:
        self._tables = tables
        self._started = started
        # the progress connection that named a session
        self._expected_sessions: Shares[Peer] = Shares(MAX_EXPECTED)
        # first 15 bytes of the agent id → the liveness connection of an agent without HELLO
        self._silent_agents: dict[bytes, Peer] = {}
        # long lists of sessions in HELLO, which are taken over some at a time
        self.announcements: Turns[Announcement] = Turns()

    def has_just_started(self, now: float) -> bool:
        """Return whether env agents of the previous run may still be reconnecting."""
        return now - self._started < STARTING_S

    def may_come(self, sid: int, now: float) -> bool:
        """Return whether a serving loop may still announce this unknown session."""
        in_rejoin_time = now - self._started < REJOIN_S
        if self.has_just_started(now) or (
            (self._silent_agents or self.announcements) and in_rejoin_time
        ):
            return True
        progress = self._expected_sessions.get(sid)
        return progress is not None and self._tables.peers.get(progress.rid) is progress

    def add_liveness(self, liveness: Peer) -> None:
        """Note that an env agent is connected, although it may not be able to send HELLO yet."""
        if not self._tables.has_progress(liveness.agent):
            self._silent_agents[liveness.agent] = liveness

    def expect(self, progress: Peer, rows: list[object]) -> None:
        """Expect the sessions that the HELLO of an agent's progress connection lists.

        Their serving loops announce them when their long steps end.
        """
        self._silent_agents.pop(progress.agent[:LIVENESS_AGENT_SIZE], None)
        for row in rows:
            match row:
                case [int(sid), *_] if 0 < sid < 2**64 and not (
                    sid in self._tables.sessions or sid in self._tables.ended
                ):
                    self._expected_sessions.put(progress.rid, sid, progress)

    def announces(self, loop: Peer) -> bool:
        """Return whether sessions of a long HELLO of this loop, or of its key, still wait."""
        return self.announcements.has(loop.key or loop.rid)

    def announced(self, sid: int) -> None:
        """Stop expecting this session: its serving loop has announced it."""
        self._expected_sessions.pop(sid)

    def remove(self, peer: Peer) -> None:
        """Forget what this peer reported, if it is a liveness or progress connection."""
        self._expected_sessions.forget(peer.rid)
        if self._silent_agents.get(peer.agent) is peer:
            del self._silent_agents[peer.agent]
