from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from gymwire.protocol import values
from gymwire.protocol.errors import DecodingError, EncodingError
from gymwire.protocol.value_limits import MAX_INT_BYTES, MAX_OTHER_KEYS

PRIME = 2**61 - 1  # ints that differ by multiples of it have equal hashes


def ext(code: int, data: bytes) -> bytes:
    packed: bytes = msgpack.packb(msgpack.ExtType(code, data))
    return packed


def array(items: list[bytes]) -> bytes:
    return b"\xdd" + len(items).to_bytes(4, "big") + b"".join(items)


def mapping(keys: list[bytes]) -> bytes:
    return b"\xdf" + len(keys).to_bytes(4, "big") + b"".join(key + b"\0" for key in keys)


def colliding(n: int) -> bytes:
    return mapping([ext(3, (PRIME * (i + 16)).to_bytes(12, "little")) for i in range(n // 16)])


def colliding_tuples(n: int) -> bytes:
    return mapping([ext(4, msgpack.packb([i - 2**40])) for i in range(n // 13)])


def nested(n: int) -> bytes:
    value = b"\x90"
    for _ in range(60):
        value = ext(4, b"\x91" + value)
    return array([value] * (n // len(value)))


def copied_at_each_level(n: int) -> bytes:
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
    "tuples as keys": colliding_tuples,
}


def attempt(data: bytes) -> None:
    try:
        values.decode(data)
    except DecodingError:
        return


@pytest.mark.parametrize("size", [60_000, 200_000, 1_000_000])
@pytest.mark.parametrize("kind", HOSTILE)
def test_decoding_stays_within_its_memory(kind: str, size: int) -> None:
    data = HOSTILE[kind](size)
    tracemalloc.start()
    try:
        attempt(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 8 * len(data) + (16 << 20)


def cpu_s(data: bytes) -> float:
    best = float("inf")
    for _ in range(3):
        began = time.process_time()
        attempt(data)
        best = min(best, time.process_time() - began)
    return best


@pytest.mark.parametrize("size", [3_000, 60_000, 400_000])
@pytest.mark.parametrize("kind", HOSTILE)
def test_decoding_takes_at_most_20_times_the_cpu_time_of_an_honest_message(
    kind: str, size: int
) -> None:
    data = HOSTILE[kind](size)
    item: Any = {"position": [1, 2.5, -3], "name": "agent", "lives": 3, "at": (1, 2)}
    honest = values.encode([item] * (len(data) // len(values.encode(item))))
    assert cpu_s(data) <= 20 * cpu_s(honest)


@pytest.mark.parametrize("size", [MAX_INT_BYTES + 1, 2_000, 200_000])
def test_an_integer_that_is_too_large_is_refused(size: int) -> None:
    with pytest.raises(DecodingError, match=f"An integer has {size} bytes"):
        values.decode(ext(3, bytes(size - 1) + b"\1"))


def test_every_integer_within_the_bound_is_kept_and_can_be_printed() -> None:
    for number in (2 ** (8 * MAX_INT_BYTES - 1) - 1, -(2 ** (8 * MAX_INT_BYTES - 1) - 1)):
        assert values.decode(values.encode(number)) == number
        assert str(number)
    with pytest.raises(EncodingError, match="is an integer of 20001 bits"):
        values.encode({"a": 1 << 20_000})


def test_a_map_has_a_bounded_number_of_keys_that_are_not_text() -> None:
    for key in (lambda i: i, lambda i: i + 0.5, lambda i: (i, "x" * 20)):
        assert len(values.decode(values.encode({key(i): "text" * 3 for i in range(256)}))) == 256
        with pytest.raises(EncodingError, match=f"the maximum is {MAX_OTHER_KEYS}"):
            values.encode({key(i): 0 for i in range(MAX_OTHER_KEYS + 1)})
    big = {f"key {i}": i for i in range(20_000)}
    assert values.decode(values.encode(big)) == big


def test_long_honest_values_come_back() -> None:
    for value in (
        [{"position": [1, 2.5, -3], "at": (1, 2), 3: b"x"}] * 10_000,
        list(range(100_000)),
        "text" * 100_000,
        {"bytes": bytes(5_000_000)},
    ):
        assert values.decode(values.encode(value)) == value
