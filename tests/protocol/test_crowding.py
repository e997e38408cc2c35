from __future__ import annotations

import pytest

from gymwire.protocol.crowding import is_crowded
from tests.hostile_values import PRIME, crowding_numbers

COUNT = 5000


@pytest.mark.parametrize("step", [1, 7, 10, 1000, 1024, 4096, 86_400, 10**6, 10**9, 2**32])
@pytest.mark.parametrize("first", [0, -2500, 1_700_000_000])
def test_whole_numbers_at_equal_distances_are_not_crowded(step: int, first: int) -> None:
    assert not is_crowded([hash(first + step * i) for i in range(COUNT)])


@pytest.mark.parametrize("step", [0.5, 0.25, 0.1, 0.01, 0.001, 1 / 3, 1 / 60])
def test_fractions_at_equal_distances_are_not_crowded(step: float) -> None:
    assert not is_crowded([hash(step * i) for i in range(COUNT)])


def test_keys_that_are_positions_are_not_crowded() -> None:
    assert not is_crowded([hash((x, y)) for x in range(100) for y in range(100)])
    assert not is_crowded([hash((x / 8, -y, None)) for x in range(70) for y in range(70)])


def test_keys_with_equal_hashes_are_crowded() -> None:
    assert is_crowded([hash(PRIME * i) for i in range(1, 1000)])


@pytest.mark.parametrize("count", [300, 1000, 3000, 10_000])
def test_keys_that_are_tried_at_many_places_are_crowded(count: int) -> None:
    numbers = crowding_numbers(count)
    assert len(set(map(hash, numbers))) == count
    assert is_crowded(numbers)


def test_keys_that_crowd_a_dict_while_it_is_small_or_large_are_found() -> None:
    numbers = crowding_numbers(3000)
    assert is_crowded(numbers + [10**9 + i for i in range(20_000)])
    assert is_crowded(numbers[:1700] + numbers[-300:])


def test_few_keys_are_not_crowded() -> None:
    assert not is_crowded([])
    assert not is_crowded([0] * 3)
