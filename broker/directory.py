"""What is on offer: search, and the choice of the least loaded agent."""

from __future__ import annotations

from collections import Counter
from typing import Any

from gymwire.broker.auth import Rights
from gymwire.broker.refusals import Refusal
from gymwire.broker.tables import Peer, Tables
from gymwire.protocol.address import Address, nearest
from gymwire.protocol.messages import Code, Role

MAX_NAMES = 50


def choose(tables: Tables, address: Address, rights: Rights, now: float) -> Peer:
    """The least loaded serving loop with a free slot. Raises Refusal."""
    name = address.name
    offering = [
        peer
        for peer in tables.loops(name)
        if address.identity is None or peer.identity == address.identity
    ]
    if not offering:
        raise _unknown(tables, address, rights)
    there = [peer for peer in offering if peer.lost_at is None]
    if not there:
        hosts = ", ".join(sorted({peer.host for peer in offering})[:MAX_NAMES])
        raise Refusal(
            Code.ADDRESS_UNKNOWN,
            f"Who offers {str(address)!r} does not answer at present: an env agent on {hosts} is "
            f"cut off, frozen or gone. Try again in a few seconds, or start another.",
            known=[],
        )
    staying = [peer for peer in there if name not in peer.draining]
    if not staying:
        raise Refusal(
            Code.NO_FREE_SLOT,
            f"Who offers {str(address)!r} is leaving and takes no new sessions: start another env "
            f"agent for this address.",
            slots=0,
        )
    free = [peer for peer in staying if used(tables, peer, name) < peer.offers[name].capacity]
    if not free:
        slots = sum(peer.offers[name].capacity for peer in staying)
        raise Refusal(
            Code.NO_FREE_SLOT,
            f"{'The only slot' if slots == 1 else f'All {slots} slots'} of {str(address)!r} "
            f"{'is' if slots == 1 else 'are'} in use: wait until a session ends, or "
            f"start another env agent for this address (or give this one more --max-sessions).",
            slots=slots,
        )

    process_load: Counter[bytes] = Counter()
    for peer in tables.peers.values():
        process_load[peer.agent] += len(peer.sessions) if peer.role == Role.ENV else 0

    def load(peer: Peer) -> tuple[bool, int, int]:
        # A loop in the middle of a long step would let the new session wait; take it last. The
        # loops of one process share its interpreter, so the least loaded process comes first.
        sessions = tables.sessions_at(peer)
        in_step = any(session.in_step(now) for session in sessions)
        return in_step, process_load[peer.agent], len(sessions)

    return min(free, key=load)


def used(tables: Tables, peer: Peer, name: str) -> int:
    """How many sessions this loop has under this address."""
    return sum(1 for sid in peer.sessions if tables.sessions[sid].address == name)


def _unknown(tables: Tables, address: Address, rights: Rights) -> Refusal:
    offered = {name for peer in tables.peers.values() for name in peer.offers}
    known = sorted(filter(rights.may_use, offered))
    if address.identity is not None and address.name in known:
        text = (
            f"{address.name!r} is on offer, but not by {address.identity}: that agent is not "
            f"connected, or the identity is misspelt (`gymwire ls` shows whose "
            f"are)."
        )
    elif not known:
        text = (
            f"Nobody offers {address.name!r}; no environment is on offer at this broker. Start an "
            f"env agent: gymwire serve --address {address.name} --env ENV."
        )
    else:
        text = f"Nobody offers {address.name!r}."
        near = nearest(address.name, known)
        if near is not None:
            text += f" Did you mean {near!r}?"
        text += f" On offer: {', '.join(known[:MAX_NAMES])}"
        text += ", …" if len(known) > MAX_NAMES else "."
    return Refusal(Code.ADDRESS_UNKNOWN, text, known=known[:MAX_NAMES])


def listing(tables: Tables, address: str, rights: Rights) -> list[dict[str, Any]]:
    """What FOUND carries: one entry per address and agent, loops of one process added up.

    Nobody sees what the rights let it neither use nor offer.
    """
    entries: dict[tuple[str, bytes, str], dict[str, Any]] = {}
    for peer in tables.peers.values():
        if peer.role != Role.ENV:
            continue
        for name, offer in peer.offers.items():
            if address not in ("", name):
                continue
            if not rights.may_use(name) and not rights.may_offer(name):
                continue
            entry = entries.setdefault(
                (name, peer.agent, peer.identity),
                {
                    "address": name,
                    "env_id": offer.env_id,
                    "observation_space": offer.observation_space,
                    "action_space": offer.action_space,
                    "metadata": offer.metadata,
                    "capacity": 0,
                    "used": 0,
                    "host": peer.host,
                    "software": peer.software,
                    "identity": peer.identity,
                    "direct": offer.direct,
                    "state": "ready",
                },
            )
            entry["capacity"] += offer.capacity
            entry["used"] += used(tables, peer, name)
            if peer.lost_at is not None:
                entry["state"] = "silent"
            elif name in peer.draining:
                entry["state"] = "draining"
    return sorted(entries.values(), key=lambda entry: (entry["address"], entry["host"]))
