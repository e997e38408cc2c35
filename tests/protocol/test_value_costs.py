"""The cost that NumPy adds up is the one that a walk from part to part finds."""

from __future__ import annotations

import random
from itertools import product
from typing import Any

import msgpack
import numpy as np
import pytest
from gymnasium.spaces import GraphInstance
from hypothesis import given, settings
from hypothesis import strategies as st

from gymwire.protocol import value_costs, values
from gymwire.protocol.value_costs import NESTED, cost_exceeds
from gymwire.protocol.value_limits import check_cost
from tests.fuzz.mutate import mutate
from tests.hostile_values import HOSTILE, ext

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**90), 2**90),
    st.floats(allow_nan=False),
    st.text(max_size=40),
    st.binary(max_size=300),
    st.sampled_from([np.float32(1), np.zeros((2, 3)), np.array([1, "a", (2,)], object)]),
    st.just(GraphInstance(np.zeros(2), None, None)),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=20),
        st.lists(inner, max_size=20).map(tuple),
        st.dictionaries(st.text(max_size=40), inner, max_size=20),
        st.dictionaries(st.integers(), inner, max_size=5),
    ),
    max_leaves=60,
)
FIXED = {0xCA: 5, 0xCB: 9, 0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9, 0xD0: 2, 0xD1: 3, 0xD2: 5, 0xD3: 9}
TEXTS = {0xD9: 1, 0xDA: 2, 0xDB: 4, 0xC4: 1, 0xC5: 2, 0xC6: 4}
HEADS = {0xDC: (2, 8), 0xDD: (4, 8), 0xDE: (2, 104), 0xDF: (4, 104)}


def walk(data: bytes) -> tuple[int, int]:
    """Return the cost of all parts, and where the last one ends."""
    at = cost = 0
    while at < len(data):
        first, rest = data[at], data[at + 1 :] + bytes(6)
        if first in FIXED or first >= 0xE0:
            cost, at = cost + 32, at + FIXED.get(first, 1)
        elif first < 0x80 or 0xC0 <= first < 0xC4:
            at += 1
        elif first < 0xA0:
            cost, at = cost + 120 + (first & 15) * (8 if first >= 0x90 else 104), at + 1
        elif first < 0xC0:
            cost, at = cost + 80, at + 1 + first - 0xA0
        elif first in TEXTS:
            size = int.from_bytes(rest[: TEXTS[first]], "big")
            cost, at = cost + 80 + 4 * size, at + 1 + TEXTS[first] + size
        elif first in HEADS:
            width, unit = HEADS[first]
            cost += 120 + unit * int.from_bytes(rest[:width], "big")
            at += 1 + width
        else:
            width = {0xC7: 1, 0xC8: 2, 0xC9: 4}.get(first, 0)
            size = int.from_bytes(rest[:width], "big") if width else 1 << (first - 0xD4)
            code = rest[width]
            cost += (400 if code == 1 else 120) + size * (9 if code in (8, 9) else 1)
            at += 2 + width
            if code in NESTED and size > 1:
                cost += 8
            else:
                at += size
    return cost, at


def assert_as_walked(data: bytes) -> None:
    cost, end = walk(data)
    if end > len(data):
        with pytest.raises(IndexError):
            cost_exceeds(data, cost)
    else:
        assert not cost_exceeds(data, cost)
    assert cost_exceeds(data, cost - 1) or not data


@pytest.fixture(params=[32, 1 << 15], autouse=True)
def piece(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(value_costs, "PIECE", request.param)


def test_every_value_costs_what_a_walk_finds() -> None:
    @given(VALUES)
    @settings(max_examples=50, deadline=None)
    def check(value: Any) -> None:
        assert_as_walked(values.encode(value))

    check()


def test_any_bytes_cost_what_a_walk_finds() -> None:
    @given(st.binary(max_size=400))
    @settings(max_examples=150, deadline=None)
    def check(data: bytes) -> None:
        assert_as_walked(data)

    check()


@pytest.mark.parametrize("kind", HOSTILE)
def test_damaged_hostile_values_cost_what_a_walk_finds(kind: str) -> None:
    rng = random.Random(kind)
    for size in (40, 4_000):
        data = HOSTILE[kind](size)
        assert_as_walked(data)
        for _ in range(10):
            assert_as_walked(mutate(data, data, rng))


@pytest.mark.parametrize("start", range(0, 256, 32))
def test_every_first_byte_at_the_end_of_a_piece(start: int) -> None:
    rests = (bytes(range(8)), b"\x01\x04\x91\x80", b"\x00\x00\x00\x02\x01ab", b"")
    for first, at, rest in product(range(start, start + 32), range(26, 34), rests):
        assert_as_walked(bytes(at) + bytes([first]) + rest + b"\x91\xc0" * 20)


def test_counting_stops_as_soon_as_the_bound_is_passed() -> None:
    broken = HOSTILE["tuples"](60_000) + msgpack.packb("x" * 70_000)[:-1]
    assert cost_exceeds(broken, 200_000)
    with pytest.raises(IndexError):
        cost_exceeds(broken, 10**9)


def test_an_empty_tuple_costs_no_more_than_a_list() -> None:
    check_cost(b"\x92" + ext(4, b"\x90") + b"\x90")
