"""The rows of OBSERVED: what operators see of a broker (docs/protocol.md §6.5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from gymwire.protocol.process_ids import session_text


@dataclass(frozen=True, slots=True)
class BrokerTotals:
    """A broker as a whole: how many peers and sessions it has, and counters since its start.

    Attributes:
        epoch: a random number that identifies this run of the broker.
        software: its name and version.
        uptime_s: seconds since its start.
        peers: how many connections have introduced themselves.
        sessions: how many sessions it has, also those that the observer may not see.
        frames, bytes: relayed, both ways.
        sessions_opened, sessions_recovered, sessions_closed: since its start. Recovered sessions
            were opened before it.
        sessions_lost: by reason.
        refusals: ERROR replies by code.
        busy: BUSY replies by reason.
        dropped: frames without a reply by reason.
    """

    epoch: int
    software: str
    uptime_s: float
    peers: int
    sessions: int
    frames: int
    bytes: int
    sessions_opened: int
    sessions_recovered: int
    sessions_closed: int
    sessions_lost: Mapping[str, int]
    refusals: Mapping[str, int]
    busy: Mapping[str, int]
    dropped: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class ObservedOffer:
    """What one process of an env agent (a worker) offers at one address.

    Attributes:
        address: the address.
        env_id: the id of the environment.
        agent: the name of the env agent, which all of its workers share, for `stop_agent`.
        host, pid: where the process runs; a pid of None is unknown.
        agent_pid: the process that people started: this one, or the supervisor of this worker.
        software: its name and version.
        identity: that of its key, "" without keys.
        name: the policy's name for its key.
        slots, used: how many sessions it takes, and has.
        stuck: ended sessions whose environment is still busy.
        state: "ready", "draining" (it takes no new sessions) or "silent" (not connected).
        direct: the URL for direct connections from other hosts, or None.
    """

    address: str
    env_id: str
    agent: str
    host: str
    pid: int | None
    agent_pid: int | None
    software: str
    identity: str
    name: str
    slots: int
    used: int
    stuck: int
    state: str
    direct: str | None


@dataclass(frozen=True, slots=True)
class ObservedSession:
    """One session.

    Attributes:
        sid: its number, for `stop_session`; `id` is the text that people see.
        address: the address under which it was opened.
        agent, host, pid: the env agent and the process that has its environment.
        learner: the policy's name for the learner's key; None while the learner is away.
        identity: that of the learner's key, "" without keys.
        learner_host, learner_pid: the learner's process; None: away, or unknown.
        state: "opening", "open", or "waiting" for its learner to come back.
        direct: whether its frames bypass the broker; None: unknown.
        age_s: seconds since the broker learned of it.
        frames: relayed, both ways.
        steps: how many steps were executed; None: the env agent has not reported.
        steps_per_s: the rate between the last two reports.
        p50_s, p99_s: percentiles of how long the env agent takes for a step, of the latest ones.
        in_step_s: how long the current step has taken, when that was last reported; None: no step.
    """

    sid: int
    address: str
    agent: str
    host: str
    pid: int | None
    learner: str | None
    identity: str
    learner_host: str | None
    learner_pid: int | None
    state: str
    direct: bool | None
    age_s: float
    frames: int
    steps: int | None
    steps_per_s: float | None
    p50_s: float | None
    p99_s: float | None
    in_step_s: float | None

    @property
    def id(self) -> str:
        """The session's id as people see it."""
        return session_text(self.sid)


def row_of(value: BrokerTotals | ObservedOffer | ObservedSession) -> dict[str, Any]:
    """Return a row as it stands in the message."""
    return {one.name: getattr(value, one.name) for one in fields(value)}
