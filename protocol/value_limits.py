"""Count the parts of a serialized value before it is built (docs/security.md, "Decoding").

A few bytes of msgpack can stand for much more memory (an empty map is one byte and becomes 64), and
map keys other than text and bytes have hashes that a peer can choose, so that inserting them into a
dict takes quadratic time. `check_cost` walks over the bytes and adds up what the value will cost.
"""

from __future__ import annotations

from typing import Final

from gymwire.protocol.errors import DecodingError

__all__ = [
    "COUNT_ABOVE",
    "MAX_INT_BYTES",
    "MAX_OTHER_KEYS",
    "MAX_OTHER_KEY_BYTES",
    "check_cost",
]

MAX_INT_BYTES: Final = 256
"""The maximum size of an integer: 2,048 bits. Seeds have 128 bits and hashes at most 512; NumPy's
seeding is quadratic in the size, and Python refuses to print integers of more than 4,300 digits."""
MAX_OTHER_KEYS: Final = 256
"""The maximum number of keys of one map that are neither text nor bytes."""
MAX_OTHER_KEY_BYTES: Final = 512
"""The maximum serialized size of such a key: equal hashes make Python compare the keys."""
COUNT_ABOVE: Final = 96 << 10
"""The size in bytes up to which a value needs no counting: it costs at most 120 times its size, and
so its memory is within the free amount."""
FREE_BYTES: Final = 14 << 20
"""The memory that a value may take whatever its size; beyond it, 7 bytes for each of its bytes."""

_ENTRY = 104  # bytes of a dict for each entry while it grows
_CONTAINER = 120  # an empty list, dict, tuple or Opaque
_NUMBER = 32
_TEXT = 80
_ARRAY = 400  # an array, its dtype, and its shape
_NESTED = frozenset({1, 4, 5, 6, 7, 8, 9, 10})  # the extension types that contain msgpack
# First byte → size of the number, bool or None that it starts.
_FIXED = dict.fromkeys(range(0x80), 1) | dict.fromkeys(range(0xE0, 0x100), 1)
_FIXED |= {0xC0: 1, 0xC2: 1, 0xC3: 1, 0xCA: 5, 0xCB: 9}
_FIXED |= {0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9, 0xD0: 2, 0xD1: 3, 0xD2: 5, 0xD3: 9}
_EMPTY = frozenset({0x80, 0x90})  # an empty map and an empty list
# First byte → bytes of the length that follows it.
_TEXTS = {0xD9: 1, 0xDA: 2, 0xDB: 4, 0xC4: 1, 0xC5: 2, 0xC6: 4}
_ARRAYS = {0xDC: 2, 0xDD: 4}
_MAPS = {0xDE: 2, 0xDF: 4}
_EXTENSIONS = {0xC7: 1, 0xC8: 2, 0xC9: 4}


def check_cost(data: bytes, max_depth: int) -> bool:
    """Return whether the value in `data` has map keys that are neither text nor bytes.

    Raises DecodingError if it would take too much memory or time to build.
    """
    scan = _Scan(data, max_depth)
    try:
        scan.items(0, 1, 0)
    except IndexError:
        raise DecodingError("A value ends before the length that it declares.") from None
    return scan.has_other_keys


class _Scan:
    """Walks over one serialized value and adds up its cost."""

    __slots__ = ("has_other_keys", "left", "max_depth", "packed")

    def __init__(self, packed: bytes, max_depth: int) -> None:
        self.packed = packed
        self.left = FREE_BYTES + 7 * len(packed)
        self.max_depth = max_depth
        self.has_other_keys = False

    def charge(self, cost: int) -> None:
        self.left -= cost
        if self.left < 0:
            raise DecodingError(
                f"A value of {len(self.packed)} bytes has too many parts: it would take more than "
                f"{(FREE_BYTES + 7 * len(self.packed)) >> 20} MiB of memory. Send an array instead."
            )

    def items(self, at: int, count: int, depth: int) -> int:
        """Walk over `count` values from `at` on; return where they end."""
        packed, fixed = self.packed, _FIXED
        if depth > 2 * self.max_depth + 2:  # an extension type and the list in it are two levels
            raise DecodingError(f"A value is nested deeper than {self.max_depth} levels.")
        if count > len(packed) - at:
            raise IndexError
        self.charge(8 * count)
        numbers = 0
        for _ in range(count):
            first = packed[at]
            size = fixed.get(first)
            if first in _EMPTY:
                self.left -= _CONTAINER  # the next charge raises
                at += 1
            elif size is None:
                at = self._other(first, at, depth)
            else:
                at += size
                numbers += size > 1 or first >= 0xE0
                if numbers >= 4096:
                    self.charge(_NUMBER * numbers)
                    numbers = 0
        self.charge(_NUMBER * numbers)
        return at

    def _other(self, first: int, at: int, depth: int) -> int:
        """Walk over one value that is not a number, bool or None."""
        if 0xD4 <= first <= 0xD8:
            return self._extension(at + 1, 1 << (first - 0xD4), depth)
        if 0xA0 <= first < 0xC0:
            self.charge(_TEXT)
            return at + 1 + first - 0xA0
        if first in _TEXTS:
            size, at = self._length(at, _TEXTS[first])
            self.charge(_TEXT + 4 * size)
            return self._skip(at, size)
        if 0x90 <= first < 0xA0 or first in _ARRAYS:
            count, at = self._length(at, _ARRAYS.get(first, 0))
            self.charge(_CONTAINER)
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
        self.charge(_CONTAINER + _ENTRY * min(count, len(self.packed)))
        packed, others = self.packed, 0
        for _ in range(count):
            first = packed[at]
            if 0xA0 <= first < 0xC0:
                self.left -= _TEXT  # the next charge raises
                at += 1 + first - 0xA0
            elif first in _TEXTS:
                at = self._other(first, at, depth)
            else:
                self.has_other_keys = True
                others += 1
                key_at, at = at, self.items(at, 1, depth)
                if others > MAX_OTHER_KEYS or at - key_at > MAX_OTHER_KEY_BYTES:
                    raise DecodingError(
                        f"A map may have at most {MAX_OTHER_KEYS} keys that are neither text nor "
                        f"bytes, each of at most {MAX_OTHER_KEY_BYTES} bytes."
                    )
            if packed[at] < 0x80:
                at += 1
            else:
                at = self.items(at, 1, depth)
        return at

    def _extension(self, at: int, size: int, depth: int) -> int:
        """Walk over an extension type, whose code is at `at`."""
        code = self.packed[at]
        end = self._skip(at + 1, size)
        self.charge((_ARRAY if code == 1 else _CONTAINER) + (9 * size if code in (8, 9) else size))
        is_empty = size == 1 and self.packed[at + 1] in _EMPTY
        if code in _NESTED and not is_empty and self.items(at + 1, 1, depth + 1) != end:
            raise DecodingError(f"Extension type {code} has malformed contents.")
        return end
