"""Bound the work of inserting keys that a peer has chosen into a dict (docs/security.md).

Python looks for the place of a key at a series of places that its hash determines, until one is
free. The hashes of text and bytes are secret, but those of numbers and tuples are not: keys whose
series lead to the same places take quadratic time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

__all__ = ["MAX_TRIES", "is_crowded"]

MAX_TRIES: Final = 48
"""How many taken places a key may meet on average, in the dicts of all sizes together. Multiples of
a power of two, the worst of the usual keys, meet up to 36 if they are 5,000."""
_BITS: Final = 2**64 - 1


def is_crowded(hashes: Sequence[int]) -> bool:
    """Return whether keys with these hashes, in this order, meet too many taken places in a dict.

    A dict grows with its keys, and may be twice as large as it must be. So this inserts into dicts
    of each size up to that one as many of the keys as they hold.
    """
    size, left = 8, MAX_TRIES * len(hashes)
    while size // 4 * 2 // 3 < len(hashes):
        keys = hashes[: size * 2 // 3]
        last, taken = size - 1, bytearray(size)
        for number in keys:
            place = number & last
            if taken[place]:
                rest = number & _BITS
                while taken[place]:
                    rest >>= 5
                    place = 5 * place + rest + 1 & last
                    left -= 1
                if left < 0:
                    return True
            taken[place] = 1
        size *= 2
    return False
