"""Serialized values that cost much more memory or time than their size suggests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np

from gymwire.protocol import values

PRIME = 2**61 - 1  # ints that differ by multiples of it have equal hashes


def ext(code: int, data: bytes) -> bytes:
    """Return a value of an extension type."""
    packed: bytes = msgpack.packb(msgpack.ExtType(code, data))
    return packed


def array(items: list[bytes]) -> bytes:
    """Return a list of serialized items."""
    return b"\xdd" + len(items).to_bytes(4, "big") + b"".join(items)


def mapping(keys: list[bytes]) -> bytes:
    """Return a map with these serialized keys."""
    return b"\xdf" + len(keys).to_bytes(4, "big") + b"".join(key + b"\0" for key in keys)


def colliding(n: int) -> bytes:
    """Return a map of about n bytes whose keys have equal hashes."""
    return mapping([ext(3, (PRIME * (i + 16)).to_bytes(12, "little")) for i in range(n // 16)])


def colliding_tuples(n: int) -> bytes:
    """Return a map of about n bytes whose keys are tuples."""
    return mapping([ext(4, msgpack.packb([i - 2**40])) for i in range(n // 13)])


def crowding_numbers(n: int) -> list[int]:
    """Return n different keys with different hashes, for half of which a dict tries many places.

    The first half fills a series of places that follow one another when the rest of the hash is
    used up. The other keys enter that series, and are tried at all its places behind.
    """
    size = 8
    while size * 2 // 3 < n:
        size *= 2
    keys, place = [], 1
    taken = np.zeros(size, np.bool_)
    for _ in range(n // 2):
        keys.append(place)
        taken[place] = True
        place = (5 * place + 1) % size
    start = size + 1
    while len(keys) < n:
        numbers = np.arange(start, start + size)
        places, rests = numbers % size, numbers.copy()
        while (tried := taken[places] & (rests > 0)).any():
            rests[tried] >>= 5
            places[tried] = (5 * places[tried] + rests[tried] + 1) % size
        keys += numbers[taken[places]].tolist()
        start += size
    return keys[:n]


def crowding(n: int) -> bytes:
    """Return a map of about n bytes whose keys are tried at many places."""
    return mapping([msgpack.packb(key) for key in crowding_numbers(max(n // 6, 300))])


def nested(n: int) -> bytes:
    """Return tuples in tuples."""
    value = b"\x90"
    for _ in range(60):
        value = ext(4, b"\x91" + value)
    return array([value] * (n // len(value)))


def copied_at_each_level(n: int) -> bytes:
    """Return nested extension types around n bytes."""
    value = msgpack.packb(bytes(n))
    for _ in range(60):
        value = ext(4, b"\x91" + value)
    return bytes(value)


HOSTILE: dict[str, Callable[[int], bytes]] = {
    "maps": lambda n: array([b"\x80"] * n),
    "lists": lambda n: array([b"\x90"] * n),
    "tuples": lambda n: array([ext(4, b"\x90")] * (n // 3)),
    "ordered maps": lambda n: array([ext(7, b"\x80")] * (n // 3)),
    "short text": lambda n: array([b"\xa2ab"] * (n // 3)),
    "short numbers": lambda n: array([b"\xcd\x12\x34"] * (n // 3)),
    "equal keys": lambda n: mapping([b"\xa0"] * (n // 2)),
    "NumPy scalars": lambda n: array([ext(2, b"|u1\0\1")] * (n // 8)),
    "arrays": lambda n: array([ext(1, msgpack.packb(["|u1", [0], b""]))] * (n // 12)),
    "opaque values": lambda n: array([ext(6, msgpack.packb(["", ""]))] * (n // 6)),
    "graphs": lambda n: array([ext(5, b"\x93\xc0\xc0\xc0")] * (n // 6)),
    "nested tuples": nested,
    "copies": copied_at_each_level,
    "colliding keys": colliding,
    "crowding keys": crowding,
    "tuples as keys": colliding_tuples,
    "numbers as keys": lambda n: mapping([b"\xce" + i.to_bytes(4, "big") for i in range(n // 6)]),
}


def honest(n: int) -> bytes:
    """Return an ordinary value of about n bytes."""
    item: Any = {"position": [1, 2.5, -3], "name": "agent", "lives": 3, "at": (1, 2)}
    return values.encode([item] * (n // len(values.encode(item))))
