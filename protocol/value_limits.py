"""Bound what a serialized value costs before it is built (docs/security.md, "Decoding").

A few bytes of msgpack can stand for much more memory (an empty map is one byte and becomes 64), and
map keys other than text and bytes have hashes that a peer can choose, so that inserting them into a
dict can take quadratic time. `check_cost` bounds the former, `has_other_keys` the latter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from gymwire.protocol.crowding import is_crowded
from gymwire.protocol.errors import DecodingError
from gymwire.protocol.value_costs import NESTED, cost_exceeds

__all__ = [
    "COUNT_ABOVE",
    "CROWDED",
    "FREE_BYTES",
    "MAX_INT_BYTES",
    "MAX_OTHER_KEYS",
    "MAX_OTHER_KEY_BYTES",
    "PER_BYTE",
    "check_cost",
    "has_other_keys",
]

MAX_INT_BYTES: Final = 256
"""The maximum size of an integer: 2,048 bits. Seeds have 128 bits and hashes at most 512; NumPy's
seeding is quadratic in the size, and Python refuses to print integers of more than 4,300 digits."""
MAX_OTHER_KEYS: Final = 256
"""How many keys of one map may be neither text nor bytes, whatever their hashes are."""
MAX_OTHER_KEY_BYTES: Final = 512
"""The maximum serialized size of such a key: equal hashes make Python compare the keys."""
CROWDED: Final = "keys whose hashes are too similar. Use text as keys"
"""What is wrong with a map whose keys take too long to insert, as the rest of a sentence."""
COUNT_ABOVE: Final = 96 << 10
"""The size in bytes up to which a value needs no counting: it costs at most 120 times its size, and
so its memory is within the free amount."""
FREE_BYTES: Final = 14 << 20
"""The memory that a value may take whatever its size; beyond it, PER_BYTE for each of its bytes."""
PER_BYTE: Final = 7

# First byte → size of the number, bool or None that it starts, or of an empty map or list.
_FIXED = dict.fromkeys(range(0x81), 1) | dict.fromkeys(range(0xE0, 0x100), 1)
_FIXED |= {0x90: 1, 0xC0: 1, 0xC2: 1, 0xC3: 1, 0xCA: 5, 0xCB: 9}
_FIXED |= {0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9, 0xD0: 2, 0xD1: 3, 0xD2: 5, 0xD3: 9}
# First byte → bytes of the length that follows it.
_TEXTS = {0xD9: 1, 0xDA: 2, 0xDB: 4, 0xC4: 1, 0xC5: 2, 0xC6: 4}
_ARRAYS = {0xDC: 2, 0xDD: 4}
_MAPS = {0xDE: 2, 0xDF: 4}
_EXTENSIONS = {0xC7: 1, 0xC8: 2, 0xC9: 4}
_TOO_SHORT = "A value ends before the length that it declares."


def check_cost(data: bytes) -> None:
    """Raise DecodingError if the value in `data` would take too much memory."""
    most = FREE_BYTES + PER_BYTE * len(data)
    try:
        too_many = cost_exceeds(data, most)
    except IndexError:
        raise DecodingError(_TOO_SHORT) from None
    if too_many:
        raise DecodingError(
            f"A value of {len(data)} bytes has too many parts: it would take more than "
            f"{most >> 20} MiB of memory. Send an array instead."
        )


def has_other_keys(data: bytes, max_depth: int, read: Callable[[bytes], Any]) -> bool:
    """Return whether the value in `data` has map keys that are neither text nor bytes.

    Raises DecodingError if one of them is too large, or if those of one map would take too long to
    insert. `read`: returns a serialized value, in which such keys have been bounded.
    """
    scan = _Scan(data, max_depth, read)
    try:
        scan.items(0, 1, 0)
    except IndexError:
        raise DecodingError(_TOO_SHORT) from None
    return scan.has_other_keys


class _Scan:
    """Walks over one serialized value and counts the keys of its maps."""

    __slots__ = ("has_other_keys", "max_depth", "packed", "read")

    def __init__(self, packed: bytes, max_depth: int, read: Callable[[bytes], Any]) -> None:
        self.packed = packed
        self.read = read
        self.max_depth = max_depth
        self.has_other_keys = False

    def items(self, at: int, count: int, depth: int) -> int:
        """Walk over `count` values from `at` on; return where they end."""
        packed, fixed = self.packed, _FIXED
        if depth > 2 * self.max_depth + 2:  # an extension type and the list in it are two levels
            raise DecodingError(f"A value is nested deeper than {self.max_depth} levels.")
        if count > len(packed) - at:
            raise IndexError
        for _ in range(count):
            first = packed[at]
            size = fixed.get(first)
            at = self._other(first, at, depth) if size is None else at + size
        return at

    def _other(self, first: int, at: int, depth: int) -> int:
        """Walk over one value that is not a number, bool or None."""
        if 0xD4 <= first <= 0xD8:
            return self._extension(at + 1, 1 << (first - 0xD4), depth)
        if 0xA0 <= first < 0xC0:
            return at + 1 + first - 0xA0
        if first in _TEXTS:
            size, at = self._length(at, _TEXTS[first])
            return self._skip(at, size)
        if 0x90 <= first < 0xA0 or first in _ARRAYS:
            count, at = self._length(at, _ARRAYS.get(first, 0))
            return self.items(at, count, depth + 1)
        if 0x80 <= first < 0x90 or first in _MAPS:
            count, at = self._length(at, _MAPS.get(first, 0))
            return self._map(at, count, depth + 1)
        if first in _EXTENSIONS:
            size, at = self._length(at, _EXTENSIONS[first])
            return self._extension(at, size, depth)
        raise DecodingError(f"A value starts with the unused byte 0x{first:02X}.")

    def _length(self, at: int, width: int) -> tuple[int, int]:
        """Return the length at the start of a value, and where its contents begin."""
        if not width:
            return self.packed[at] & 0x0F, at + 1
        end = at + 1 + width
        return int.from_bytes(self.packed[at + 1 : end], "big"), end

    def _skip(self, at: int, size: int) -> int:
        if size > len(self.packed) - at:
            raise IndexError
        return at + size

    def _map(self, at: int, count: int, depth: int) -> int:
        packed, others, keys = self.packed, 0, bytearray()
        for _ in range(count):
            first, key_at = packed[at], at
            if 0xA0 <= first < 0xC0:
                at += 1 + first - 0xA0
            elif first in _TEXTS:
                at = self._other(first, at, depth)
            else:
                others += 1
                at = self.items(at, 1, depth)
                if at - key_at > MAX_OTHER_KEY_BYTES:
                    raise DecodingError(
                        f"A key that is neither text nor bytes may have at most "
                        f"{MAX_OTHER_KEY_BYTES} bytes."
                    )
            keys += packed[key_at:at]
            if packed[at] < 0x80:
                at += 1
            else:
                at = self.items(at, 1, depth)
        self.has_other_keys |= others > 0
        if others > MAX_OTHER_KEYS:
            values = self.read(b"\xdd" + count.to_bytes(4, "big") + keys)
            if is_crowded([hash(key) for key in values]):
                raise DecodingError(f"A map has {CROWDED}.")
        return at

    def _extension(self, at: int, size: int, depth: int) -> int:
        """Walk over an extension type, whose code is at `at`."""
        code = self.packed[at]
        end = self._skip(at + 1, size)
        is_empty = size == 1 and self.packed[at + 1] in (0x80, 0x90)
        if code in NESTED and not is_empty and self.items(at + 1, 1, depth + 1) != end:
            raise DecodingError(f"Extension type {code} has malformed contents.")
        return end
