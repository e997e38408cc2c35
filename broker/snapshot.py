"""The state of a broker as plain, frozen values, for whoever displays it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gymwire.broker.directory import PooledOffer, pooled_offers
from gymwire.broker.journal import Journal
from gymwire.broker.tables import PROGRESS_TTL_S, Peer, Session, Tables
from gymwire.protocol.process_ids import process_of


@dataclass(frozen=True, slots=True)
class OfferState:
    """What one process of an env agent (a worker) offers at one address.

    `agent`: 16 bytes that identify the process, a secret. `agent_id`: the public name of its env
    agent, which its workers share. `pid`, `agent_pid`: the process, and the supervisor of a worker;
    None: unknown. `name`: the policy's name for its key. `loops`: how many of its serving loops are
    known.
    `slots`, `used`: of the process, at this address. `stuck`: ended sessions whose environment is
    still busy. `state`: "ready", "draining" or "silent".
    `direct`: the URL for direct connections from other hosts, if any.
    """

    address: str
    env_id: str
    agent: bytes
    agent_id: str
    host: str
    pid: int | None
    agent_pid: int | None
    software: str
    identity: str
    name: str
    loops: int
    slots: int
    used: int
    stuck: int
    state: str
    direct: str | None


@dataclass(frozen=True, slots=True)
class PeerState:
    """One connection. `role`: see `Role`. `name`: the policy's name for its key.

    `connected`: False while its connection is lost and it may come back. `silent_s`: seconds since
    it last sent a message to the broker itself; relayed frames do not count. `sessions`: how many
    it has. `local`: it may use a local channel.
    """

    role: str
    agent: bytes
    host: str
    pid: int | None
    software: str
    identity: str
    name: str
    connected: bool
    silent_s: float
    sessions: int
    local: bool


@dataclass(frozen=True, slots=True)
class SessionState:
    """One session. `agent`, `agent_host`: the process that has its environment, and where it runs.

    `agent_id`, `agent_pid`: as `agent_id` and `pid` of its offer. `learner`: the identity of its
    learner. `learner_host`, `learner_pid`, `learner_name` (the policy's name for its key): None
    while no connection is bound. `state`: "opening"; "open"; "waiting": its learner is lost and may
    come back. `relayed`: whether its frames pass through the broker; None: unknown. `age_s`:
    seconds since this broker learned of it. `frames`: relayed so far, both ways. `steps`,
    `steps_per_s`, `p50_s`, `p99_s`: as its env agent has reported them last, None before.
    `in_step_s`: seconds that its current step had taken when its env agent reported that; None:
    between two steps, or unknown.
    """

    sid: int
    address: str
    agent: bytes
    agent_id: str
    agent_host: str
    agent_pid: int | None
    learner: str
    learner_name: str | None
    learner_host: str | None
    learner_pid: int | None
    state: str
    relayed: bool | None
    age_s: float
    frames: int
    steps: int | None
    steps_per_s: float | None
    p50_s: float | None
    p99_s: float | None
    in_step_s: float | None


@dataclass(frozen=True, slots=True)
class CounterState:
    """Counters since the broker started; see `Journal`."""

    frames_relayed: int
    bytes_relayed: int
    sessions_opened: int
    sessions_recovered: int
    sessions_closed: int
    sessions_lost: Mapping[str, int]
    refusals: Mapping[str, int]
    busy: Mapping[str, int]
    dropped: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class BrokerState:
    """A broker as a whole. `epoch`: the random number of this run. `uptime_s`: since the start.

    `peers`, `sessions`: how many of both there are.
    """

    epoch: int
    software: str
    uptime_s: float
    peers: int
    sessions: int
    counters: CounterState


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a broker at one moment."""

    broker: BrokerState
    offers: tuple[OfferState, ...]
    peers: tuple[PeerState, ...]
    sessions: tuple[SessionState, ...]


def take(tables: Tables, broker: BrokerState, now: float) -> Snapshot:
    """Return the present state of a broker."""
    return Snapshot(
        broker=broker,
        offers=tuple(offer_state(one) for one in pooled_offers(tables)),
        peers=tuple(_peer(peer, now) for peer in tables.peers.values()),
        sessions=tuple(session_state(one, now) for one in tables.sessions.values()),
    )


def broker_state(
    tables: Tables, journal: Journal, *, epoch: int, software: str, uptime_s: float
) -> BrokerState:
    """Return the state of a broker as a whole. What it costs does not depend on the sessions."""
    return BrokerState(
        epoch=epoch,
        software=software,
        uptime_s=uptime_s,
        peers=len(tables.peers),
        sessions=len(tables.sessions),
        counters=CounterState(
            frames_relayed=journal.frames_relayed,
            bytes_relayed=journal.bytes_relayed,
            sessions_opened=journal.sessions_opened,
            sessions_recovered=journal.sessions_recovered,
            sessions_closed=journal.sessions_closed,
            sessions_lost=dict(journal.sessions_lost),
            refusals=dict(journal.refusals),
            busy=dict(journal.busy),
            dropped=dict(journal.dropped),
        ),
    )


def offer_state(pooled: PooledOffer) -> OfferState:
    """Return the state of what one process offers at one address."""
    loop = pooled.loops[0]
    pid, agent_pid = process_of(pooled.offer)
    return OfferState(
        address=pooled.offer.address,
        env_id=pooled.offer.env_id,
        agent=loop.agent,
        agent_id=loop.agent_id,
        host=loop.host,
        pid=pid,
        agent_pid=agent_pid,
        software=loop.software,
        identity=loop.identity,
        name=loop.rights.name,
        loops=len(pooled.loops),
        slots=pooled.slots,
        used=pooled.used,
        stuck=pooled.stuck,
        state=pooled.state,
        direct=pooled.offer.direct,
    )


def _peer(peer: Peer, now: float) -> PeerState:
    return PeerState(
        role=peer.role,
        agent=peer.agent,
        host=peer.host,
        pid=peer.pid or None,
        software=peer.software,
        identity=peer.identity,
        name=peer.rights.name,
        connected=peer.lost_at is None,
        silent_s=now - peer.heard,
        sessions=len(peer.sessions),
        local=bool(peer.attach_token),
    )


def session_state(session: Session, now: float) -> SessionState:
    """Return the state of one session."""
    state = "open" if session.is_open else "opening"
    if session.orphan_until is not None:
        state = "waiting"
    loop, learner, steps = session.loop, session.learner, session.steps
    in_step_s = session.in_step_s + now - session.progress_at if session.in_step(now) else None
    if in_step_s is None and steps and steps.in_step_s and now - steps.reported_at < PROGRESS_TTL_S:
        in_step_s = steps.in_step_s
    relayed = True if session.frames or not session.may_be_direct else None
    return SessionState(
        sid=session.sid,
        address=session.address,
        agent=loop.agent,
        agent_id=loop.agent_id,
        agent_host=loop.host,
        agent_pid=loop.pid or None,
        learner=session.learner_identity,
        learner_name=None if learner is None else learner.rights.name,
        learner_host=None if learner is None else learner.host,
        learner_pid=None if learner is None else learner.pid or None,
        state=state,
        relayed=not steps.direct if steps else relayed,
        age_s=now - session.created,
        frames=session.frames,
        steps=steps.steps if steps else None,
        steps_per_s=steps.steps_per_s if steps else None,
        p50_s=steps.p50_s if steps else None,
        p99_s=steps.p99_s if steps else None,
        in_step_s=in_step_s,
    )
