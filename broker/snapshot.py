"""The state of a broker as plain, frozen values."""

from __future__ import annotations

from dataclasses import dataclass

from gymwire.broker.directory import PooledOffer, pooled_offers
from gymwire.broker.journal import Journal
from gymwire.broker.tables import PROGRESS_TTL_S, Peer, Session, Tables
from gymwire.protocol.observations import BrokerTotals, ObservedOffer, ObservedSession
from gymwire.protocol.process_ids import process_of


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
class Snapshot:
    """The state of a broker at one moment."""

    broker: BrokerTotals
    offers: tuple[ObservedOffer, ...]
    peers: tuple[PeerState, ...]
    sessions: tuple[ObservedSession, ...]


def take(tables: Tables, broker: BrokerTotals, now: float) -> Snapshot:
    """Return the present state of a broker."""
    return Snapshot(
        broker=broker,
        offers=tuple(offer_state(one) for one in pooled_offers(tables)),
        peers=tuple(_peer(peer, now) for peer in tables.peers.values()),
        sessions=tuple(session_state(one, now) for one in tables.sessions.values()),
    )


def broker_state(
    tables: Tables, journal: Journal, *, epoch: int, software: str, uptime_s: float
) -> BrokerTotals:
    """Return the state of a broker as a whole, at a cost that does not depend on its sessions."""
    return BrokerTotals(
        epoch=epoch,
        software=software,
        uptime_s=uptime_s,
        peers=len(tables.peers),
        sessions=len(tables.sessions),
        frames=journal.frames_relayed,
        bytes=journal.bytes_relayed,
        sessions_opened=journal.sessions_opened,
        sessions_recovered=journal.sessions_recovered,
        sessions_closed=journal.sessions_closed,
        sessions_lost=dict(journal.sessions_lost),
        refusals=dict(journal.refusals),
        busy=dict(journal.busy),
        dropped=dict(journal.dropped),
    )


def offer_state(pooled: PooledOffer) -> ObservedOffer:
    """Return the state of what one process offers at one address."""
    loop = pooled.loops[0]
    pid, agent_pid = process_of(pooled.offer)
    return ObservedOffer(
        address=pooled.offer.address,
        env_id=pooled.offer.env_id,
        agent=loop.agent_id,
        host=loop.host,
        pid=pid,
        agent_pid=agent_pid,
        software=loop.software,
        identity=loop.identity,
        name=loop.rights.name,
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


def session_state(session: Session, now: float) -> ObservedSession:
    """Return the state of one session."""
    state = "open" if session.is_open else "opening"
    if session.orphan_until is not None:
        state = "waiting"
    loop, learner, steps = session.loop, session.learner, session.steps
    in_step_s = session.in_step_s + now - session.progress_at if session.in_step(now) else None
    if in_step_s is None and steps and steps.in_step_s and now - steps.reported_at < PROGRESS_TTL_S:
        in_step_s = steps.in_step_s
    direct = False if session.frames or not session.may_be_direct else None
    return ObservedSession(
        sid=session.sid,
        address=session.address,
        agent=loop.agent_id,
        host=loop.host,
        pid=loop.pid or None,
        learner=None if learner is None else learner.rights.name,
        identity=session.learner_identity,
        learner_host=None if learner is None else learner.host,
        learner_pid=None if learner is None else learner.pid or None,
        state=state,
        direct=steps.direct if steps else direct,
        age_s=now - session.created,
        frames=session.frames,
        steps=steps.steps if steps else None,
        steps_per_s=steps.steps_per_s if steps else None,
        p50_s=steps.p50_s if steps else None,
        p99_s=steps.p99_s if steps else None,
        in_step_s=in_step_s,
    )
