"""How many slots the whole process of a serving loop has (docs/protocol.md §6.1).

The serving loops of an env agent offer one after another. Each OFFER therefore also says how many
slots they have together, so that the broker lists all of them from the first OFFER on. The number
is an entry of `Offer.spec`, which a broker without this feature ignores.
"""

from __future__ import annotations

from dataclasses import replace

from gymwire.protocol.messages import Offer

KEY = "gymwire.process_slots"  # in `Offer.spec`
MAX_SLOTS = 2**31 - 1


def with_process_slots(offer: Offer, slots: int) -> Offer:
    """Return the offer with the number of slots that its process has at the address."""
    return replace(offer, spec={**offer.spec, KEY: slots})


def process_slots(offer: Offer) -> int:
    """Return the slots that the process has at the address.

    An env agent of an earlier release does not say; then these are the slots of the loop alone.
    """
    slots = offer.spec.get(KEY)
    if type(slots) is int and offer.capacity < slots <= MAX_SLOTS:
        return slots
    return offer.capacity
