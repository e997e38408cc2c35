"""Add up what the parts of a serialized value will cost, as fast as NumPy can.

Every part of msgpack starts with a byte that tells where the next part starts: behind a text, but
at the contents of a list, a map, or an extension type that contains msgpack. So the parts follow
one another without regard to nesting. For each byte of a piece, NumPy computes where the next part
would start if one started here, and from that where the second next would, the fourth, up to the
32nd. Python then hops only from every 32nd part to the next, and NumPy finds those in between.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

__all__ = ["NESTED", "cost_exceeds", "parts_exceed"]

NESTED: Final = frozenset({1, 4, 5, 6, 7, 8, 9, 10})
"""The extension types that contain msgpack."""

FIRST_PIECE, PIECE = 1 << 10, 1 << 15  # bytes; each piece is up to twice as long as the last
_ENTRY = 104  # bytes of a dict for each entry while it grows
_ITEM = 8  # bytes of a list for each item
_CONTAINER = 120  # an empty list, dict, tuple or Opaque
_NUMBER = 32
_TEXT = 80
_CHARACTER = 4
_ARRAY = 400  # an array, its dtype, and its shape
_DOUBLINGS = 5
EXTENSION_PARTS = 4
_LONGEST_HEAD = 6  # an extension type with a length of four bytes

Ints = np.ndarray[Any, np.dtype[np.intp]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def _table(values: dict[int, int], default: int = 0) -> Ints:
    table: Ints = np.full(256, default, np.intp)
    for first, value in values.items():
        table[first] = value
    return table


# By first byte: how many bytes of length follow; 0 if none.
_WIDTHS = {0xD9: 1, 0xDA: 2, 0xDB: 4, 0xC4: 1, 0xC5: 2, 0xC6: 4}  # text and bytes
_WIDTHS |= {0xC7: 1, 0xC8: 2, 0xC9: 4, 0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}
_NUMBERS = {
    0xCA: 5,
    0xCB: 9,
    0xCC: 2,
    0xCD: 3,
    0xCE: 5,
    0xCF: 9,
    0xD0: 2,
    0xD1: 3,
    0xD2: 5,
    0xD3: 9,
}
_FIXED_EXTENSIONS = {0xD4 + power: 1 << power for power in range(5)}
_TEXT_FIRST = range(0xA0, 0xC0)

# By first byte: bytes up to the next part, without those that a length declares.
_STEP = _table(
    _NUMBERS
    | {first: 1 + width for first, width in _WIDTHS.items()}
    | {first: 1 + first - 0xA0 for first in _TEXT_FIRST}
    | {first: 2 + size for first, size in _FIXED_EXTENSIONS.items()}
    | {0xC7: 3, 0xC8: 4, 0xC9: 6},
    1,
)
# By first byte: the cost, without what a length or an extension type adds.
_COST = _table(
    dict.fromkeys(_NUMBERS, _NUMBER)
    | dict.fromkeys(range(0xE0, 0x100), _NUMBER)
    | dict.fromkeys((*_TEXT_FIRST, *range(0xD9, 0xDC), *range(0xC4, 0xC7)), _TEXT)
    | {first: _CONTAINER + _ITEM * (first - 0x90) for first in range(0x90, 0xA0)}
    | {first: _CONTAINER + _ENTRY * (first - 0x80) for first in range(0x80, 0x90)}
    | dict.fromkeys(range(0xDC, 0xE0), _CONTAINER)
)
# By first byte: what each unit of the declared length costs, and whether it is skipped.
_UNIT_COST = _table(
    dict.fromkeys((0xD9, 0xDA, 0xDB, 0xC4, 0xC5, 0xC6), _CHARACTER)
    | {0xDC: _ITEM, 0xDD: _ITEM, 0xDE: _ENTRY, 0xDF: _ENTRY}
)
_UNIT_STEP = _table(dict.fromkeys((0xD9, 0xDA, 0xDB, 0xC4, 0xC5, 0xC6), 1))
# By first byte: how far the four bytes behind it must be shifted to become the declared length.
_SHIFT = _table({first: 32 - 8 * width for first, width in _WIDTHS.items()}, 32)
_SIZE = _table(_FIXED_EXTENSIONS)  # of an extension type without a length
_CODE_AT = _table(dict.fromkeys(_FIXED_EXTENSIONS, 1) | {0xC7: 2, 0xC8: 3, 0xC9: 5})
_IS_EXTENSION = _CODE_AT > 0
_IS_LONG = (_SHIFT < 32) | _IS_EXTENSION
# By code of an extension type.
_IS_NESTED = _table(dict.fromkeys(NESTED, 1)) > 0
_EXTENSION_COST = _table({1: _ARRAY}, _CONTAINER)
_BYTE_COST = _table({8: 9, 9: 9}, 1)


def cost_exceeds(data: bytes | memoryview, most: int) -> bool:
    """Return whether the value in `data` would take more than `most` bytes of memory.

    Stops as soon as that is certain. Raises IndexError if the data are shorter than they declare.
    """
    return _exceeds(data, most, lambda _, cost, parts: int(cost.take(parts).sum()))


def parts_exceed(data: bytes | memoryview, most: int) -> bool:
    """Return whether the value in `data` has more parts than allowed. Like `cost_exceeds`.

    An extension type counts as EXTENSION_PARTS, since Python code decodes and encodes it.
    """

    def count(piece: Bytes, _: Ints, parts: Ints) -> int:
        extensions = np.count_nonzero(_IS_EXTENSION.take(piece.take(parts)))
        return len(parts) + (EXTENSION_PARTS - 1) * int(extensions)

    return _exceeds(data, most, count)


def _exceeds(
    data: bytes | memoryview, most: int, count: Callable[[Bytes, Ints, Ints], int]
) -> bool:
    whole = np.frombuffer(data, np.uint8)
    at, end, longest = 0, len(data), FIRST_PIECE
    while at < end:
        longest = min(longest, PIECE)
        size = min(longest, end - at)
        longest *= 2
        piece = whole[at : at + size + _LONGEST_HEAD]
        if len(piece) < size + _LONGEST_HEAD:
            piece = np.concatenate((piece, np.zeros(_LONGEST_HEAD, np.uint8)))
        step, cost = _parts(piece, size)
        parts = _reached(step, size)
        most -= count(piece, cost, parts)
        if most < 0:
            return True
        last = parts.max()
        at += int(last + step[last])
    if at > end:
        raise IndexError
    return False


def _parts(piece: Bytes, size: int) -> tuple[Ints, Ints]:
    """Return for each byte, as if a part started there, the bytes up to the next and the cost."""
    firsts = piece[:size]
    step, cost = _STEP.take(firsts), _COST.take(firsts)
    long = np.flatnonzero(_IS_LONG.take(firsts))
    if not len(long):
        return step, cost
    first = firsts[long]
    length = np.zeros(len(long), np.intp)
    for offset in range(1, 5):
        length = length << 8 | piece[long + offset]
    length >>= _SHIFT[first]
    step[long] += length * _UNIT_STEP[first]
    cost[long] += length * _UNIT_COST[first]
    is_extension = _IS_EXTENSION[first]
    if is_extension.any():
        at, first, length = long[is_extension], first[is_extension], length[is_extension]
        code = piece[at + _CODE_AT[first]]
        contents = length + _SIZE[first]
        # A value of one byte is empty, or is not of this type.
        enters = _IS_NESTED[code] & (contents > 1)
        step[at] = np.where(enters, 1 + _CODE_AT[first], 1 + _CODE_AT[first] + contents)
        cost[at] = _EXTENSION_COST[code] + contents * _BYTE_COST[code] + _ITEM * enters
    return step, cost


def _reached(step: Ints, size: int) -> Ints:
    """Return where the parts of a piece start, in any order."""
    follows = np.arange(size + 1)
    follows[:size] += step
    np.minimum(follows, size, out=follows)
    further = [follows]  # 1, 2, 4, … parts on
    for _ in range(_DOUBLINGS):
        follows = follows.take(follows)
        further.append(follows)
    hops, at, hop = [], 0, further.pop().data
    while at < size:
        hops.append(at)
        at = hop[at]
    parts: Ints = np.array(hops)
    while further:
        parts = np.concatenate((parts, further.pop().take(parts)))
    return parts[parts < size]
