"""What sessions share about equal spaces."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gymnasium import Space
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete, Text, Tuple

from gymwire.env_agent import known_spaces
from gymwire.env_agent.known_spaces import MAX_KNOWN, known
from gymwire.protocol import spaces, values
from tests.space_zoo import ZOO

SHARED = {name for name, space in ZOO.items() if known_spaces.key_of(space) is not None}


class _OwnBox(Box[Any]):
    pass


def test_the_most_frequent_spaces_are_shared() -> None:
    assert {"box-image", "box-per-element", "discrete", "multi-discrete-start"} <= SHARED


@pytest.mark.parametrize("name", ZOO)
def test_what_is_known_follows_from_the_space(name: str) -> None:
    space = copy.deepcopy(ZOO[name])
    found = known(space, "space")
    assert found.description == spaces.describe(space)
    assert found.text == repr(space)[:200]
    assert known_spaces.watch(space, "it")[1]()


@pytest.mark.parametrize("name", sorted(SHARED))
def test_equal_spaces_share_what_is_known(name: str) -> None:
    one, other = copy.deepcopy(ZOO[name]), spaces.build(spaces.describe(ZOO[name]))
    assert known(one, "one") is known(other, "other")


def test_spaces_share_nothing_if_a_learner_can_tell_them_apart() -> None:
    others: list[Space[Any]] = [
        Discrete(5),
        Discrete(5, dtype=np.int32),
        Box(0, 5, (3,), np.uint8),
        Box(0, 5, (3, 1), np.uint8),
        Box(0, 5, (3,), np.int8),
        Box(-0.0, 5, (3,), np.float32),
        Box(0.0, 5, (3,), np.float32),
        Box(0, np.inf, (2,), np.int32),
        Box(0, np.iinfo(np.int32).max, (2,), np.int32),
        MultiDiscrete([5]),
        Dict({"1": Discrete(5)}),
        Dict({1: Discrete(5)}),  # type: ignore[dict-item]
        Dict({True: Discrete(5)}),  # type: ignore[dict-item]
        Tuple([Discrete(5)]),
        Tuple([Tuple([Discrete(5)])]),
    ]
    for one, other in itertools.combinations([*others, *ZOO.values()], 2):
        is_same = values.encode(spaces.describe(one)) == values.encode(spaces.describe(other))
        key = known_spaces.key_of(one)
        assert key is None or key != known_spaces.key_of(other) or (is_same and one == other)


@pytest.mark.parametrize(
    "space", [_OwnBox(0, 1, (2,)), Text(3), Tuple([_OwnBox(0, 1, (2,))])], ids=repr
)
def test_other_spaces_are_not_shared(space: Space[Any]) -> None:
    assert known_spaces.key_of(space) is None
    assert known(space, "space") is not known(space, "space")


def _set_low(space: Any) -> None:
    space.low[0] = -7


def _set_n(space: Any) -> None:
    space.n = 9


def _set_text(space: Any) -> None:
    space.low = "nothing"


def _set_dtype(space: Any) -> None:
    space.dtype = np.dtype(np.int32)


def _set_child(space: Any) -> None:
    space.spaces["a"] = Discrete(3)


@pytest.mark.parametrize(
    ("space", "change"),
    [
        (Box(-1, 1, (2,)), _set_low),
        (Box(-1, 1, (100,)), _set_low),
        (Box(-1, 1, (2,)), _set_text),
        (_OwnBox(-1, 1, (2,)), _set_low),
        (Box(-1, 1, (2,)), _set_dtype),
        (Discrete(3), _set_n),
        (Discrete(3), _set_dtype),
        (Dict({"a": Discrete(2)}), _set_child),
    ],
    ids=lambda one: getattr(one, "__name__", repr(one)),
)
def test_a_change_in_place_changes_the_fingerprint(
    space: Space[Any], change: Callable[[Space[Any]], None]
) -> None:
    before, is_unchanged = known_spaces.fingerprint(space), known_spaces.watch(space, "it")[1]
    assert is_unchanged()
    change(space)
    assert known_spaces.fingerprint(space) != before
    assert not is_unchanged()


def test_a_part_of_a_space_may_refer_to_the_whole() -> None:
    space: Any = Dict({"a": Text(3), "b": Text(4)})
    space["b"].parents = [space, space]
    is_unchanged = known_spaces.watch(space, "it")[1]
    assert is_unchanged()
    space["a"]._max_length = 5
    assert not is_unchanged()


def test_the_number_of_known_spaces_is_bounded() -> None:
    for n in range(MAX_KNOWN * 2):
        known(Discrete(1000 + n), "space")
    assert len(known_spaces._KNOWN) <= MAX_KNOWN
