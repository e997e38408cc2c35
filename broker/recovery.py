"""Sessions that the broker does not know and that may yet be announced (docs/protocol.md §7.13)."""

from __future__ import annotations

from gymwire.broker.tables import Peer, Tables
from gymwire.protocol.messages import Role

STARTING_S = 5.0  # after a start, agents are still announcing their sessions
# After a restart: for so long at least sessions that agents announce wait for their learners, who
# may be thinking and will not know of it until they speak again; and for so long at most learners
# wait for sessions that an agent may yet announce, which is there but cannot speak.
REJOIN_S = 600.0
MAX_PROMISED = 10_000


class Awaited:
    """What is known, since this broker started, of agents that have not announced all yet."""

    def __init__(self, tables: Tables, started: float) -> None:
        self._tables = tables
        self._started = started
        # sessions that a pulse has named before their loop could; the oldest first
        self._promised: dict[int, Peer] = {}
        # presences of agents whose pulse has not spoken: by the first 15 bytes of their `agent`
        self._mute: dict[bytes, Peer] = {}

    def has_just_started(self, now: float) -> bool:
        """Whether agents that were here before are still on their way back."""
        return now - self._started < STARTING_S

    def may_come(self, sid: int, now: float) -> bool:
        """Whether this session, which the broker does not know, may yet be announced."""
        since_start_s = now - self._started
        if self.has_just_started(now) or (self._mute and since_start_s < REJOIN_S):
            return True
        pulse = self._promised.get(sid)
        return pulse is not None and self._tables.peers.get(pulse.rid) is pulse

    def present(self, presence: Peer) -> None:
        """An agent is there; it may not be able to speak."""
        pulses = (peer for peer in self._tables.peers.values() if peer.role == Role.PROGRESS)
        if not any(pulse.agent[:15] == presence.agent for pulse in pulses):
            self._mute[presence.agent] = presence

    def named(self, pulse: Peer, sessions: list[object]) -> None:
        """The pulse of an agent has spoken: these are all its sessions (rows of HELLO).

        The loops that have them will announce them when their long steps are over.
        """
        self._mute.pop(pulse.agent[:15], None)
        for row in sessions:
            match row:
                case [int(sid), *_] if not (
                    sid in self._tables.sessions or sid in self._tables.ended
                ):
                    self._promised[sid] = pulse
                    if len(self._promised) > MAX_PROMISED:
                        del self._promised[next(iter(self._promised))]

    def announced(self, sid: int) -> None:
        """The broker knows this session now."""
        self._promised.pop(sid, None)

    def left(self, peer: Peer) -> None:
        """This peer is not there any more."""
        if self._mute.get(peer.agent) is peer:
            del self._mute[peer.agent]
