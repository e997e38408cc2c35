"""What has happened at a broker: notes for the operator's log, and counters."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple


class Loss:
    """Why an open session was lost."""

    LEARNER_LEFT = "learner left"
    LEASE_EXPIRED = "lease expired"  # the learner did not come back in time
    AGENT_STOPPED = "env agent stopped"
    AGENT_LOST = "env agent lost"
    AGENT_FORGOT = "unknown to env agent"  # it answered ERROR session-lost
    POLICY = "policy changed"
    PATH = "path to env agent"  # it lost every connection that carried a request of the session


class Note(NamedTuple):
    """One event for the operator's log."""

    event: str
    facts: dict[str, object]


class Journal:
    """Notes that are not yet in the log, and counters since the broker started.

    `sessions_recovered`: announced by an env agent that had them before this broker started.
    `sessions_lost`: by reason, see `Loss`. `refusals`: ERROR replies by code. `busy`: BUSY replies
    by reason. `frames_relayed`: in sessions that have ended; a live session counts its own frames.
    Always, sessions opened + recovered = closed + lost + open now.
    """

    def __init__(self) -> None:
        self.sessions_opened = 0
        self.sessions_recovered = 0
        self.sessions_closed = 0
        self.sessions_lost: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.busy: Counter[str] = Counter()
        self.frames_relayed = 0
        self._notes: list[Note] = []

    def note(self, event: str, **facts: object) -> None:
        """Record an event for the log."""
        self._notes.append(Note(event, facts))

    def take_notes(self) -> list[Note]:
        """Return the recorded events and forget them."""
        taken, self._notes = self._notes, []
        return taken

    def session_ended(self, frames: int, loss: str | None) -> None:
        """Count the end of a session that was open. `loss`: why; None: it was closed."""
        self.frames_relayed += frames
        if loss is None:
            self.sessions_closed += 1
        else:
            self.sessions_lost[loss] += 1
