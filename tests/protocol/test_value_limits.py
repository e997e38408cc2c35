from __future__ import annotations

import tracemalloc
from itertools import product
from typing import Any

import numpy as np
import pytest

from gymwire.protocol import values
from gymwire.protocol.errors import DecodingError, EncodingError
from gymwire.protocol.value_limits import MAX_INT_BYTES
from tests.fuzz.__main__ import cpu_s
from tests.hostile_values import (
    HOSTILE,
    PRIME,
    array,
    crowding_numbers,
    ext,
    honest,
    mapping,
)
from tests.sampling import sampled


def attempt(data: bytes) -> None:
    try:
        values.decode(data)
    except DecodingError:
        return


@pytest.mark.parametrize(("kind", "size"), sampled(product(HOSTILE, [60_000, 400_000]), 3))
def test_decoding_stays_within_its_memory(kind: str, size: int) -> None:
    data = HOSTILE[kind](size)
    tracemalloc.start()
    try:
        attempt(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 8 * len(data) + (16 << 20)


@pytest.mark.parametrize(("kind", "size"), sampled(product(HOSTILE, [3_000, 200_000]), 3))
def test_decoding_takes_at_most_20_times_the_cpu_time_of_an_honest_message(
    kind: str, size: int
) -> None:
    data = HOSTILE[kind](size)
    assert cpu_s(attempt, data) <= 20 * cpu_s(attempt, honest(len(data)))


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


def test_a_map_may_have_any_number_of_keys_of_any_type() -> None:
    big: dict[Any, Any] = {f"key {i}": i for i in range(20_000)}
    for key in (lambda i: i, lambda i: i + 0.5, lambda i: (i, "x" * 20), np.int64):
        for count in (256, 1000):
            value = {key(i): "text" * 3 for i in range(count)}
            assert values.decode(values.encode(value)) == value
            assert values.opaque({"agents": value})[1] == []
        big |= value
    assert values.decode(values.encode(big)) == big
    big = dict.fromkeys(range(100_000), 0)
    assert values.decode(values.encode(big)) == big


@pytest.mark.parametrize("numbers", [[PRIME * i for i in range(1000)], crowding_numbers(1000)])
def test_a_map_whose_keys_would_take_too_long_to_insert_is_refused(numbers: list[int]) -> None:
    value = {"agents": dict.fromkeys(numbers, 0)}
    with pytest.raises(EncodingError, match=r"agents.* has keys whose hashes are too similar"):
        values.encode(value)
    assert values.opaque(value)[1] == ['info["agents"]']
    packed = mapping([values.encode(number) for number in numbers])
    with pytest.raises(DecodingError, match="A map has keys whose hashes are too similar"):
        values.decode(packed)


@pytest.mark.parametrize("key", [("x" * 600,), (b"x" * 600,), tuple(range(600)), (1 << 2000,) * 3])
def test_a_key_that_is_neither_text_nor_bytes_has_a_bounded_size(key: Any) -> None:
    with pytest.raises(EncodingError, match=r"a key of about .* the maximum is 512"):
        values.encode({"a": {key: 0}})
    packed = mapping([values.encode(key)])
    padded = array([packed, values.encode("x" * 3000)])
    with pytest.raises(DecodingError, match="may have at most 512 bytes"):
        values.decode(padded)


def test_the_encoder_refuses_what_the_decoder_would_refuse() -> None:
    with pytest.raises(EncodingError, match=r"value cannot be serialized: .* too many parts"):
        values.encode([{} for _ in range(200_000)])


def test_long_honest_values_come_back() -> None:
    for value in (
        [{"position": [1, 2.5, -3], "at": (1, 2), 3: b"x"}] * 10_000,
        list(range(100_000)),
        "text" * 100_000,
        {"bytes": bytes(5_000_000)},
    ):
        assert values.decode(values.encode(value)) == value
