"""Accept or refuse offers: by owner and environment of the address, and by memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gymwire.broker import directory
from gymwire.broker.refusals import Refusal, not_allowed
from gymwire.broker.tables import Peer, Tables
from gymwire.protocol import space_descriptions, values
from gymwire.protocol.address import parse_address
from gymwire.protocol.errors import AddressError, DecodingError, EncodingError
from gymwire.protocol.messages import Code, Offer, Opened, Role
from gymwire.protocol.process_slots import MAX_SLOTS
from gymwire.protocol.value_costs import cost_exceeds
from gymwire.protocol.value_limits import COUNT_ABOVE, FREE_BYTES

MAX_OFFERS = 256  # per peer
MAX_OFFER_BYTES = 8 * 1024 * 1024  # memory for all offers of a peer
MAX_TEXT = 1000  # characters of the environment's id, and of the URL of the direct endpoint
# Memory of an offer at the learner that lists it, which refuses what takes more in one message.
MAX_LISTED_BYTES = FREE_BYTES * 9 // 10
OBJECT_BYTES = 64  # memory per decoded object, in addition to its bytes in the frame


def accept(tables: Tables, peer: Peer, offer: Offer, head_len: int) -> bool:
    """Add an offer to a serving loop.

    An empty digest is computed from the spaces. If lost loops offer another environment at the
    address, their offers are withdrawn. `head_len`: bytes of the head of the frame. Returns whether
    it is the first offer of its agent at the address.

    Raises DecodingError, AddressError or Refusal.
    """
    name = offer.address
    if peer.role != Role.ENV:
        raise DecodingError("Only an env agent may offer environments.")
    if parse_address(name).identity is not None:
        raise AddressError(
            f"Cannot offer {name!r}: the address of an offer must not contain @identity."
        )
    if not peer.rights.may_offer(name):
        raise Refusal(Code.DENIED, not_allowed(peer, "offer", name))
    offer = _checked(offer)
    if len(peer.offers) >= MAX_OFFERS and name not in peer.offers:
        raise Refusal(Code.LIMIT, f"A serving loop may offer at most {MAX_OFFERS} addresses.")
    _check_owner(tables, peer, offer)
    first = not any(other.agent == peer.agent for other in tables.loops(name))
    others = sum(peer.offer_bytes.values()) - peer.offer_bytes.get(name, 0)
    size = _memory_of(offer, head_len, MAX_OFFER_BYTES - others)
    if others + size > MAX_OFFER_BYTES:
        raise Refusal(
            Code.LIMIT,
            f"The offers of this serving loop, including {name!r}, would take more than "
            f"{MAX_OFFER_BYTES // 2**20} MiB of the broker's memory. Offer fewer addresses from "
            f"one env agent, or make metadata and spaces smaller: bounds that differ per element "
            f"take the most.",
        )
    listed = _pack_listed(peer, offer)
    for other in tables.loops(name):
        if other.offers[name].digest != offer.digest:
            tables.withdraw_offer(other, name)
    # Only a listing needs the metadata, which may be large.
    tables.add_offer(peer, replace(offer, metadata={}), size, listed)
    return first


def _pack_listed(peer: Peer, offer: Offer) -> memoryview:
    """Return what FOUND says about an offer; refuse an offer that no learner could decode there."""
    try:
        listed = directory.pack_listed(peer, offer)
    except EncodingError as error:
        raise Refusal(
            Code.LIMIT, f"The offer of {offer.address!r} cannot be listed: {error}"
        ) from None
    if len(listed) > COUNT_ABOVE and cost_exceeds(listed, MAX_LISTED_BYTES):
        raise Refusal(
            Code.LIMIT,
            f"The offer of {offer.address!r} cannot be listed: its spaces and metadata have too "
            f"many parts. Use arrays instead of lists.",
        )
    return listed


def check_opened(opened: Opened) -> None:
    """Raise DecodingError if OPENED has a field that no learner could use."""
    if opened.num_envs < 0:
        raise DecodingError("OPENED.num_envs must be 0 or more.", path="num_envs")
    _check_spec("OPENED", opened.spec)
    for name in ("observation_space", "action_space"):
        space_descriptions.check(getattr(opened, name), f"OPENED.{name}")
        single = getattr(opened, f"single_{name}")
        if opened.num_envs or single is not None:
            space_descriptions.check(single, f"OPENED.single_{name}")


def _check_spec(kind: str, spec: dict[str, object]) -> None:
    if not all(type(name) is str for name in spec):
        raise DecodingError(f"The names in {kind}.spec must be text.", path="spec")
    if type(spec.get("id", "")) is not str:
        raise DecodingError(f"{kind}.spec['id'] must be text.", path="spec")


def _checked(offer: Offer) -> Offer:
    """Return an offer with its digest. Raises DecodingError if a field is wrong."""
    if not 0 <= offer.capacity <= MAX_SLOTS:
        raise DecodingError(
            f"OFFER.capacity of {offer.address!r} must be from 0 to {MAX_SLOTS}.", path="capacity"
        )
    for name, text in (("env_id", offer.env_id), ("direct", offer.direct or "")):
        if len(text) > MAX_TEXT:
            raise DecodingError(
                f"OFFER.{name} of {offer.address!r} has {len(text)} characters; a broker accepts "
                f"{MAX_TEXT}.",
                path=name,
            )
    if not offer.env_id:
        raise DecodingError(f"OFFER.env_id of {offer.address!r} is empty.", path="env_id")
    _check_spec("OFFER", offer.spec)
    spaces = (offer.observation_space, offer.action_space)
    for name, space in zip(("observation_space", "action_space"), spaces, strict=True):
        space_descriptions.check(space, f"OFFER.{name}")
    if not offer.digest:
        return replace(offer, digest=space_descriptions.digest(offer.env_id, *spaces))
    if len(offer.digest) != space_descriptions.DIGEST_SIZE:
        raise DecodingError(
            f"OFFER.digest of {offer.address!r} has {len(offer.digest)} bytes. It must have "
            f"{space_descriptions.DIGEST_SIZE}, or none: the broker then computes it.",
            path="digest",
        )
    return offer


def _check_owner(tables: Tables, peer: Peer, offer: Offer) -> None:
    """Raise Refusal if the address has another owner or another environment.

    The environment of a lost loop does not count, since its env agent may have been restarted with
    another one. Its ownership does count, since the env agent may come back.
    """
    for other in tables.loops(offer.address):
        standing = other.offers[offer.address]
        if other is not peer and other.lost_at is None and standing.digest != offer.digest:
            raise Refusal(
                Code.ADDRESS_TAKEN,
                f"The address {offer.address!r} is taken: another env agent or Simulation, on "
                f"{other.host}, offers {standing.env_id} there; this offer, {offer.env_id}, has "
                f"another {_difference(standing, offer)}. Choose another address, or stop the "
                f"other one first.",
            )
        if other.identity != peer.identity and not (other.rights.vouched and peer.rights.vouched):
            raise Refusal(
                Code.ADDRESS_TAKEN,
                f"The address {offer.address!r} is taken: the identity {other.identity} offers it. "
                f"Choose another address, or list both keys in the broker's policy.",
            )


def _difference(one: Offer, other: Offer) -> str:
    """Return in what two environments differ that cannot have the same address."""
    parts = {
        "id": (one.env_id, other.env_id),
        "observation space": (one.observation_space, other.observation_space),
        "action space": (one.action_space, other.action_space),
    }
    found = [name for name, (a, b) in parts.items() if values.encode(a) != values.encode(b)]
    return " and ".join(found) or "digest: the versions of gymwire may differ"


def _memory_of(offer: Offer, head_len: int, most: int) -> int:
    """Return roughly how many bytes an offer takes in memory. Stops counting beyond `most`."""
    found = head_len
    waiting: list[object] = [
        offer.observation_space, offer.action_space, offer.spec, offer.metadata,
    ]  # fmt: skip
    while waiting and found <= most:
        one = waiting.pop()
        found += OBJECT_BYTES
        match one:
            case dict():
                waiting += [*one.keys(), *one.values()]
            case list() | tuple():
                waiting += one
            case np.ndarray():  # its bytes may be in the tail, not in the head
                found += one.nbytes
    return found
