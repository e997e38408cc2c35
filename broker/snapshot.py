"""The state of a broker as plain, frozen values, for whoever displays it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gymwire.broker.directory import PooledOffer, pooled_offers
from gymwire.broker.journal import Journal
from gymwire.broker.tables import Peer, Session, Tables


@dataclass(frozen=True, slots=True)
class OfferState:
    """What one process of an env agent (a worker) offers at one address.

    `agent`: 16 bytes that identify the process. `loops`: how many of its serving loops are known.
    `slots`, `used`: of the process, at this address. `stuck`: ended sessions whose environment is
    still busy. `state`: "ready", "draining" or "silent".
    `direct`: the URL for direct connections from other hosts, if any.
    """

    address: str
    env_id: str
    agent: bytes
    host: str
    software: str
    identity: str
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

    `learner`: the identity of its learner. `learner_host`: None while no connection is bound.
    `state`: "opening"; "open"; "waiting": its learner is lost and may come back. `relayed`: True if
    its frames pass through the broker; None: unknown, since a direct connection is allowed and
    nothing was relayed so far. `age_s`: seconds since this broker learned of it. `frames`: relayed
    so far, both ways. `in_step_s`: seconds that its current step has taken, if it is a long one.
    """

    sid: int
    address: str
    agent: bytes
    agent_host: str
    learner: str
    learner_host: str | None
    state: str
    relayed: bool | None
    age_s: float
    frames: int
    in_step_s: float | None


@dataclass(frozen=True, slots=True)
class CounterState:
    """Counters since the broker started; see `Journal`. `frames_relayed` includes live sessions."""

    frames_relayed: int
    sessions_opened: int
    sessions_recovered: int
    sessions_closed: int
    sessions_lost: Mapping[str, int]
    refusals: Mapping[str, int]
    busy: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a broker at one moment.

    `epoch`: the random number of this run. `uptime_s`: seconds since the start.
    """

    epoch: int
    software: str
    uptime_s: float
    offers: tuple[OfferState, ...]
    peers: tuple[PeerState, ...]
    sessions: tuple[SessionState, ...]
    counters: CounterState


def take(
    tables: Tables, journal: Journal, *, epoch: int, software: str, started: float, now: float
) -> Snapshot:
    """Return the present state of a broker."""
    live = sum(session.frames for session in tables.sessions.values())
    return Snapshot(
        epoch=epoch,
        software=software,
        uptime_s=now - started,
        offers=tuple(_offer(one) for one in pooled_offers(tables)),
        peers=tuple(_peer(peer, now) for peer in tables.peers.values()),
        sessions=tuple(_session(one, now) for one in tables.sessions.values()),
        counters=CounterState(
            frames_relayed=journal.frames_relayed + live,
            sessions_opened=journal.sessions_opened,
            sessions_recovered=journal.sessions_recovered,
            sessions_closed=journal.sessions_closed,
            sessions_lost=dict(journal.sessions_lost),
            refusals=dict(journal.refusals),
            busy=dict(journal.busy),
        ),
    )


def _offer(pooled: PooledOffer) -> OfferState:
    loop = pooled.loops[0]
    return OfferState(
        address=pooled.offer.address,
        env_id=pooled.offer.env_id,
        agent=loop.agent,
        host=loop.host,
        software=loop.software,
        identity=loop.identity,
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
        software=peer.software,
        identity=peer.identity,
        name=peer.rights.name,
        connected=peer.lost_at is None,
        silent_s=now - peer.heard,
        sessions=len(peer.sessions),
        local=bool(peer.attach_token),
    )


def _session(session: Session, now: float) -> SessionState:
    state = "open" if session.is_open else "opening"
    if session.orphan_until is not None:
        state = "waiting"
    in_step_s = session.in_step_s + now - session.progress_at if session.in_step(now) else None
    return SessionState(
        sid=session.sid,
        address=session.address,
        agent=session.loop.agent,
        agent_host=session.loop.host,
        learner=session.learner_identity,
        learner_host=None if session.learner is None else session.learner.host,
        state=state,
        relayed=True if session.frames or not session.may_be_direct else None,
        age_s=now - session.created,
        frames=session.frames,
        in_step_s=in_step_s,
    )
