"""List what is offered, and choose the serving loop for a new session.

The broker chooses among the serving loops that offer the address, are connected, are not draining
and have a free slot there. If the address is pinned, only those of its identity count. A loop that
executes a request of an ended session, and nothing else, gets no session: its next one would wait
for a request that may never end. Among the others the broker prefers, in this order,

1. a loop in which no session is in a long step, and that has sent a message to the broker since a
   session of it ended, since a loop runs one request, or closes one environment, at a time;
2. a loop of the process (the same `agent` in HELLO) with the fewest sessions, counted over all of
   its loops and addresses, since the loops of a process share one interpreter;
3. the loop with the fewest sessions, counted over all of its addresses;
4. the loop that has offered the address for longest.

What this costs depends on how many loops offer the address, not on how many sessions there are. A
refusal names and compares a bounded number of the addresses on offer.
"""

from __future__ import annotations

import bisect
import itertools
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgpack

from gymwire.broker.auth import Rights
from gymwire.broker.refusals import Refusal
from gymwire.broker.tables import Peer, Tables
from gymwire.protocol import values
from gymwire.protocol.address import Address, nearest
from gymwire.protocol.errors import DecodingError
from gymwire.protocol.messages import Code, Find, Offer
from gymwire.protocol.process_ids import process_of
from gymwire.protocol.process_slots import process_slots

PAGE_BYTES = 32 * 1024  # memory of the offers in one page of a listing; the last may exceed it
PAGE_NAMES = 250  # addresses examined for a page; its reader may see none of them
ONLY_PAGE = 8  # a peer that gets only one page, of release 0.1.0, gets one that is so much longer
ENTRY_BYTES = 256  # of an entry in FOUND, in addition to the offer
LISTED_KEYS = 11  # keys of an entry that only another OFFER can change
LISTED_HEAD = 3  # bytes of the two lists and of the map around them when they are packed
_PACKER = msgpack.Packer()
MAX_NAMES = 50  # addresses that a refusal lists
MAX_EXAMINED = 200  # addresses among which it searches for them
MAX_NEIGHBOURS = 16  # addresses before, and after, an unknown one in the order of the alphabet


def choose_loop(tables: Tables, address: Address, rights: Rights, now: float) -> Peer:
    """Return the serving loop for a new session; the module docstring has the rule.

    Raises Refusal if no loop can take the session.
    """
    name = address.name
    offering = [
        peer
        for peer in tables.loops(name)
        if address.identity is None or peer.identity == address.identity
    ]
    if not offering:
        raise _not_offered(tables, address, rights)
    connected = [peer for peer in offering if peer.lost_at is None]
    if not connected:
        raise _silent(address, offering)
    staying = [peer for peer in connected if name not in peer.draining]
    if not staying:
        raise _draining(address)
    free = [peer for peer in staying if peer.used[name] < peer.offers[name].capacity]
    if not free:
        raise _full(address, staying)
    able = [peer for peer in free if not peer.is_blocked(now)]
    if not able:
        raise _blocked(address, staying)

    def load(peer: Peer) -> tuple[bool, bool, int, int]:
        may_refuse = peer.stuck[name] > peer.offers[name].capacity
        is_busy = peer.in_step(now) or peer.may_be_closing
        return may_refuse, is_busy, tables.load_of(peer), len(peer.sessions)

    return min(able, key=load)


def _not_offered(tables: Tables, address: Address, rights: Rights) -> Refusal:
    names = tables.names
    examined = names[:MAX_EXAMINED]
    known = list(itertools.islice(filter(rights.may_use, examined), MAX_NAMES + 1))
    if address.identity is not None and tables.loops(address.name):
        text = (
            f"{address.name!r} is offered, but not by {address.identity}. That env "
            f"agent is not connected, or the identity is misspelled: `gymwire ls` shows the "
            f"identities."
        )
    elif not known:
        text = (
            f"No env agent offers {address.name!r}: this broker has no offers. Start an env "
            f"agent: gymwire serve {address.name} ENV."
        )
    else:
        text = f"No env agent offers {address.name!r}."
        at = bisect.bisect_left(names, address.name)
        around = names[max(0, at - MAX_NEIGHBOURS) : at + MAX_NEIGHBOURS]
        near = nearest(address.name, [*filter(rights.may_use, around), *known])
        if near is not None:
            text += f" Did you mean {near!r}?"
        text += f" Offered: {', '.join(known[:MAX_NAMES])}"
        text += ", …" if len(known) > MAX_NAMES else "."
    return Refusal(Code.ADDRESS_UNKNOWN, text, known=known[:MAX_NAMES])


def _silent(address: Address, offering: list[Peer]) -> Refusal:
    hosts = sorted({peer.host for peer in offering})[:MAX_NAMES]
    return Refusal(
        Code.ADDRESS_UNKNOWN,
        f"No env agent that offers {str(address)!r} is responding "
        f"({'host' if len(hosts) == 1 else 'hosts'} {', '.join(hosts)}). It may be stopped, "
        f"frozen or unreachable: retry in a few seconds, or start another.",
        known=[],
    )


def _draining(address: Address) -> Refusal:
    return Refusal(
        Code.NO_FREE_SLOT,
        f"All env agents that offer {str(address)!r} are shutting down and accept no new "
        f"sessions. Start another env agent for this address.",
        slots=0,
    )


def _full(address: Address, staying: list[Peer]) -> Refusal:
    slots = sum(peer.offers[address.name].capacity for peer in staying)
    return Refusal(
        Code.NO_FREE_SLOT,
        f"{'The only slot' if slots == 1 else f'All {slots} slots'} of {str(address)!r} "
        f"{'is' if slots == 1 else 'are'} in use. Wait until a session ends, or start another "
        f"env agent for this address. With `gymwire serve`, --max-sessions sets the number of "
        f"slots.",
        slots=slots,
    )


def _blocked(address: Address, staying: list[Peer]) -> Refusal:
    slots = sum(peer.offers[address.name].capacity for peer in staying)
    used = sum(peer.used[address.name] for peer in staying)
    return Refusal(
        Code.NO_FREE_SLOT,
        f"No free slot of {str(address)!r} can be used: {used} of {slots} are in use, and the "
        f"threads of the others still execute abandoned requests. Wait until these end, or "
        f"start another env agent for this address. With `gymwire serve`, an abandoned request "
        f"blocks no slot unless --threads is given.",
        slots=slots,
    )


class PooledOffer(NamedTuple):
    """What the serving loops of one process offer at one address.

    `slots`: those of the whole process, although some of its loops may still be starting.
    `stuck`: ended sessions whose environment is still busy. `state`: "ready"; "silent": the
    connection of a loop is lost; "draining": no new sessions.
    """

    offer: Offer
    loops: tuple[Peer, ...]
    slots: int
    used: int
    stuck: int
    state: str


def pooled_offers(tables: Tables) -> list[PooledOffer]:
    """Return one entry per address and process, sorted by address and host."""
    return [one for name in tables.names for one in pooled_offers_at(tables, name)]


def pooled_offers_at(tables: Tables, name: str) -> list[PooledOffer]:
    """Return one entry per process that offers this address, sorted by host."""
    loops = tables.loops(name)
    if len(loops) == 1:  # most addresses, and a page of a listing has many
        return [_pool(name, loops)]
    groups: dict[tuple[str, bytes, str], list[Peer]] = {}
    for peer in loops:
        groups.setdefault((peer.host, peer.agent, peer.identity), []).append(peer)
    return [_pool(name, loops) for _, loops in sorted(groups.items(), key=lambda item: item[0])]


def _pool(name: str, loops: list[Peer]) -> PooledOffer:
    capacity = slots = used = stuck = 0
    state = "ready"
    for peer in loops:
        offer = peer.offers[name]
        capacity += offer.capacity
        slots = max(slots, process_slots(offer))
        used += peer.used.get(name, 0)
        stuck += peer.stuck.get(name, 0)
        if peer.lost_at is not None:
            state = "silent"
        elif name in peer.draining and state == "ready":
            state = "draining"
    return PooledOffer(
        offer=loops[0].offers[name],
        loops=tuple(loops),
        slots=max(capacity, slots),
        used=used,
        stuck=stuck,
        state=state,
    )


@dataclass(frozen=True, slots=True)
class Page:
    """One page of offers: the entries of FOUND, and `rest` for the FIND of the next page.

    `entries` are packed. `examined`: how many addresses the broker examined.
    """

    entries: list[bytes]
    rest: list[Any]
    examined: int


def listing(tables: Tables, find: Find, rights: Rights, *, pages: bool = True) -> Page:
    """Return the next page of what the rights allow to use or to offer.

    A page ends after PAGE_BYTES of offers, in the memory of the broker, or after PAGE_NAMES
    addresses. `pages`: whether the peer asks for the next page.
    """
    address, skip = _start(find.after)
    names = tables.names
    at = bisect.bisect_left(names, address)
    entries: list[bytes] = []
    longer = 1 if pages else ONLY_PAGE
    left, examined = longer * PAGE_BYTES, 0
    for name in [find.address] if find.address else itertools.islice(names, at, None):
        if examined == longer * PAGE_NAMES:
            return Page(entries, [name, 0], examined)
        examined += 1
        if not (rights.may_use(name) or rights.may_offer(name)):
            continue
        processes = pooled_offers_at(tables, name)
        start = skip if name == address else 0
        for number, one in enumerate(processes[start:], start):
            if left <= 0:
                return Page(entries, [name, number], examined)
            entries.append(_entry(one))
            left -= one.loops[0].offer_bytes[name] + ENTRY_BYTES
    return Page(entries, [], examined)


def _start(after: list[Any]) -> tuple[str, int]:
    """Return the address at which a page starts, and how many of its processes to skip."""
    match after:
        case []:
            return "", 0
        case [str(address), int(skip)] if type(skip) is int and 0 <= skip < 2**31:
            return address, skip
    raise DecodingError("FIND.after must be what the broker sent as FOUND.rest.", path="after")


def _entry(one: PooledOffer) -> bytes:
    now = {"capacity": one.slots, "used": one.used, "state": one.state, "stuck": one.stuck}
    listed = one.loops[0].listed[one.offer.address]
    header: bytes = _PACKER.pack_map_header(LISTED_KEYS + len(now))
    packed: bytes = _PACKER.pack(now)
    return b"".join((header, listed, packed[1:]))  # without the header of its own


def pack_listed(loop: Peer, offer: Offer) -> memoryview:
    """Return the part of an entry in FOUND that only another OFFER can change.

    It is packed once, so that a listing costs the broker little more than copying it. Raises
    EncodingError if the offer is nested too deeply to be listed.
    """
    pid, agent_pid = process_of(offer)
    entry = {
        "address": offer.address,
        "env_id": offer.env_id,
        "observation_space": offer.observation_space,
        "action_space": offer.action_space,
        "metadata": offer.metadata,
        "host": loop.host,
        "software": loop.software,
        "identity": loop.identity,
        "direct": offer.direct,
        "pid": pid,
        "agent_pid": agent_pid,
    }
    assert len(entry) == LISTED_KEYS
    return memoryview(values.pack([[entry]]))[LISTED_HEAD:]


def pack_page(page: Page) -> bytes:
    """Return the head of the FOUND with these entries."""
    headers: bytes = _PACKER.pack_array_header(1) + _PACKER.pack_array_header(len(page.entries))
    return b"".join((headers, *page.entries))
