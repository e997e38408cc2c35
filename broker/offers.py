"""Which offers are taken: whose an address is, what it stands for, and how much room there is."""

from __future__ import annotations

import numpy as np

from gymwire.broker.refusals import Refusal, may_not
from gymwire.broker.tables import Peer, Tables
from gymwire.protocol.address import parse_address
from gymwire.protocol.errors import AddressError, DecodingError
from gymwire.protocol.messages import Code, Offer, Role

MAX_OFFERS = 256  # per peer
MAX_OFFERED = 8 * 1024 * 1024  # bytes that a peer's offers may take
OBJECT = 64  # bytes that an object takes besides those of its frame


def admit(tables: Tables, peer: Peer, offer: Offer, head_len: int) -> bool:
    """The offer stands, instead of another environment that lost loops offered at its address.

    `head_len`: bytes of the head that it came in. Returns whether it is the first of its agent
    there. Raises DecodingError, AddressError or Refusal.
    """
    name = offer.address
    if peer.role != Role.ENV:
        raise DecodingError("Only an env agent offers environments.")
    if parse_address(name).identity is not None:
        raise AddressError(f"{name!r}: an offer's address has no @identity.")
    if not peer.rights.may_offer(name):
        raise Refusal(Code.DENIED, may_not(peer, "offer", name))
    if len(peer.offers) >= MAX_OFFERS and name not in peer.offers:
        raise Refusal(Code.LIMIT, f"An agent may offer {MAX_OFFERS} addresses at most.")
    _check_owner(tables, peer, offer)
    first = not any(other.agent == peer.agent for other in tables.loops(name))
    others = sum(room for one, room in peer.room.items() if one != name)
    room = _room(offer, head_len, MAX_OFFERED - others)
    if others + room > MAX_OFFERED:
        raise Refusal(
            Code.LIMIT,
            f"With {name!r} the offers of this serving loop would take more than the "
            f"{MAX_OFFERED // 2**20} MiB that they may have at the broker. Offer less over one "
            f"connection; bounds that differ for each element of a space, and metadata, take most.",
        )
    for other in tables.loops(name):
        if other.offers[name].digest != offer.digest:
            other.take_back(name)
    peer.offers[name] = offer
    peer.room[name] = room
    peer.draining.discard(name)
    return first


def _check_owner(tables: Tables, peer: Peer, offer: Offer) -> None:
    """Raise Refusal if the address is another's, or stands for another environment already.

    What a lost loop offers stands for nothing: its agent may have been restarted with another
    environment. But the address is still its owner's, who may come back.
    """
    for other in tables.loops(offer.address):
        standing = other.offers[offer.address]
        if other is not peer and other.lost_at is None and standing.digest != offer.digest:
            raise Refusal(
                Code.ADDRESS_TAKEN,
                f"The address {offer.address!r} is taken: an agent on {other.host} offers "
                f"{standing.env_id} under it, whose spaces or id differ from those of "
                f"{offer.env_id}. Choose another address.",
            )
        if other.identity != peer.identity and not (other.rights.vouched and peer.rights.vouched):
            raise Refusal(
                Code.ADDRESS_TAKEN,
                f"The address {offer.address!r} is taken: it belongs to the agents of identity "
                f"{other.identity} while they offer it. Choose another address, or let the "
                f"broker's policy name both keys.",
            )


def _room(offer: Offer, head_len: int, most: int) -> int:
    """About how many bytes an offer takes in memory; counted no further than just past `most`."""
    found = head_len
    waiting: list[object] = [
        offer.observation_space, offer.action_space, offer.spec, offer.metadata,
    ]  # fmt: skip
    while waiting and found <= most:
        one = waiting.pop()
        found += OBJECT
        match one:
            case dict():
                waiting += [*one.keys(), *one.values()]
            case list() | tuple():
                waiting += one
            case np.ndarray():  # it may have come in the tail
                found += one.nbytes
    return found
