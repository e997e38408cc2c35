"""What has happened at a broker: notes for the operator's log, and counters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple


class Loss:
    """Why an open session was lost."""

    LEARNER_LEFT = "learner left"
    LEASE_EXPIRED = "lease expired"  # the learner did not come back in time
    AGENT_STOPPED = "env agent stopped"
    OPERATOR = "stopped by an operator"
    AGENT_LOST = "env agent lost"
    AGENT_FORGOT = "unknown to env agent"  # it answered ERROR session-lost
    POLICY = "policy changed"
    AGENT_FAULT = "malformed OPENED"
    PATH = "path to env agent"  # it lost every connection that carried a request of the session


class Drop:
    """Why a frame was dropped without a reply."""

    FLOOD = "flood"  # its sender ignores BUSY, and its connection is being closed
    MALFORMED = "malformed"
    MULTIPART = "more than one part"  # beyond the rate limit; otherwise it is answered
    NO_TOKEN = "no attach token"  # the first frame of what is not a local channel
    NO_RIGHT = "no right to offer"  # a liveness connection
    NOT_AWAITED = "not awaited"  # OPENED, or a reply, that no learner waits for
    NOT_OURS = "session of another"  # PROGRESS or REPORT by another process than its env agent's
    NOT_SENT = "not sent"  # a reply: its receiver is not connected, or does not read


class Note(NamedTuple):
    """One event for the operator's log. `detail`: log it at the level "debug" only."""

    event: str
    facts: dict[str, object]
    detail: bool = False


MAX_DETAILS = 10  # notes of refused and dropped frames between two calls of `admit_details`


class Journal:
    """Notes that are not yet in the log, and counters since the broker started.

    `describe`: returns what the log says about the sender of a frame, by its routing id.

    `sessions_recovered`: announced by an env agent that had them before this broker started.
    `sessions_lost`: by reason, see `Loss`. `refusals`: ERROR replies by code. `busy`: BUSY replies
    by reason. `dropped`: frames without a reply by reason, see `Drop`. `frames_relayed`,
    `bytes_relayed`: of all sessions, both ways.
    Always, sessions opened + recovered = closed + lost + open now.
    """

    def __init__(self, describe: Callable[[bytes], dict[str, object]] = lambda _: {}) -> None:
        self.sessions_opened = 0
        self.sessions_recovered = 0
        self.sessions_closed = 0
        self.sessions_lost: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.busy: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.frames_relayed = 0
        self.bytes_relayed = 0
        self._describe = describe
        self._notes: list[Note] = []
        self._details_left = MAX_DETAILS
        self._details_omitted = 0

    def note(self, event: str, **facts: object) -> None:
        """Record an event for the log."""
        self._notes.append(Note(event, facts))

    def take_notes(self) -> list[Note]:
        """Return the recorded events and forget them."""
        taken, self._notes = self._notes, []
        return taken

    def relayed(self, size: int) -> None:
        """Count a relayed frame of `size` bytes; `Core.relay` does the same."""
        self.frames_relayed += 1
        self.bytes_relayed += size

    def drop(self, rid: bytes, reason: str) -> None:
        """Count a frame of this sender that was dropped, and note it. `reason`: see `Drop`."""
        self.dropped[reason] += 1
        self.detail("frame dropped", rid, why=reason)

    def detail(self, event: str, rid: bytes, **facts: object) -> None:
        """Note what became of a frame of this sender, unless there are too many such notes."""
        if not self._details_left:
            self._details_omitted += 1
            return
        self._details_left -= 1
        self._notes.append(Note(event, {**facts, **self._describe(rid)}, detail=True))

    def admit_details(self) -> None:
        """Admit MAX_DETAILS notes about frames again; note how many there was no room for."""
        if self._details_omitted:
            self._notes.append(Note("frames not shown", {"frames": self._details_omitted}, True))
        self._details_left, self._details_omitted = MAX_DETAILS, 0

    def session_ended(self, loss: str | None) -> None:
        """Count the end of a session that was open. `loss`: why; None: it was closed."""
        if loss is None:
            self.sessions_closed += 1
        else:
            self.sessions_lost[loss] += 1
