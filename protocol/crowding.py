"""Bound the work of inserting keys that a peer has chosen into a dict (docs/security.md).

Python looks for the place of a key at a series of places that its hash determines, until one is
free. The hashes of text and bytes are secret, but those of numbers and tuples are not: keys whose
series lead to the same places take quadratic time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

__all__ = ["MAX_TRIES", "is_crowded"]

MAX_TRIES: Final = (6, 13, 26)
"""How many taken places a key may meet on average, in the dicts of all sizes together, if its hash
has up to two bytes, up to four, or more. A key with a longer hash takes more bytes in a message, so
it may cost more. Usual keys, such as numbers at equal distances, meet fewer than 10."""
_BITS: Final = 2**64 - 1


def is_crowded(hashes: Sequence[int]) -> bool:
    """Return whether keys with these hashes, in this order, meet too many taken places in a dict.

    A dict grows with its keys, and may be twice as large as it must be. So this inserts into dicts
    of each size up to that one as many of the keys as they hold.
    """
    size, left = 8, sum(map(_max_tries, hashes))
    while size // 4 * 2 // 3 < len(hashes):
        keys = hashes[: size * 2 // 3]
        last, taken = size - 1, bytearray(size)
        for number in keys:
            place = number & last
            if taken[place]:
                rest = number & _BITS
                for left in range(left, -1, -1):  # noqa: B007, B020 - counts down what is left
                    if not taken[place]:
                        break
                    rest >>= 5
                    place = 5 * place + rest + 1 & last
                else:
                    return True
            taken[place] = 1
        size *= 2
    return False


def _max_tries(number: int) -> int:
    bits = number.bit_length()
    return MAX_TRIES[(bits > 2 * 8) + (bits > 4 * 8)]
