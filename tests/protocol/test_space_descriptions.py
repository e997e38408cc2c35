from __future__ import annotations

from typing import Any

import pytest

from gymwire.protocol.errors import DecodingError
from gymwire.protocol.space_descriptions import MAX_NODES, check
from gymwire.protocol.spaces import build, describe
from tests.space_zoo import ZOO

DISCRETE = ["Discrete", "<i8", 2, 0]


def tuples(levels: int) -> list[Any]:
    return [["Tuple", 1]] * levels + [DISCRETE]


WRONG: dict[str, Any] = {
    "nothing": None,
    "no nodes": [],
    "a node alone": DISCRETE,
    "a map": {},
    "an unknown type": [["Cube", 3]],
    "a type that is a list": [[[], 3]],
    "surplus nodes": [DISCRETE, DISCRETE],
    "a missing child": [["Tuple", 2], DISCRETE],
    "children below zero": [["Tuple", -1]],
    "children without end": [["Tuple", 2**62]],
    "too many levels": tuples(100),
    "too many nodes": [["Tuple", MAX_NODES], *[DISCRETE] * MAX_NODES],
    "too few items": [["Discrete", "<i8", 2]],
    "too many items": [["Discrete", "<i8", 2, 0, 0]],
    "no actions": [["Discrete", "<i8", 0, 0]],
    "a number that is true": [["Discrete", "<i8", True, 0]],
    "a float dtype": [["Discrete", "<f4", 2, 0]],
    "an unknown dtype": [["Box", "object", [1], 0, 0]],
    "a size below zero": [["Box", "<f4", [-1], 0.0, 1.0]],
    "too many dimensions": [["Box", "<f4", [1] * 33, 0.0, 1.0]],
    "too few bytes": [["Box", "<f4", [2], b"\0" * 8, b"\0" * 7]],
    "a bound of another type": [["Box", "<f4", [2], 0, 1.0]],
    "a bound beyond the dtype": [["Box", "|u1", [2], 0, 256]],
    "one bounded array": [["Box", "<f4", [2], 0.0, 1.0, True]],
    "a key twice": [["Dict", ["a", "a"], True], DISCRETE, DISCRETE],
    "a key that is a list": [["Dict", [[]], True], DISCRETE],
    "a text of negative length": [["Text", 3, 2, "ab"]],
    "a stack that is a number": [["Sequence", 1], DISCRETE],
}


@pytest.mark.parametrize("name", ZOO)
def test_each_description_of_a_space_passes(name: str) -> None:
    check(describe(ZOO[name]), "space")


@pytest.mark.parametrize("description", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_description_is_refused_by_name(description: Any) -> None:
    with pytest.raises(DecodingError, match="observation_space"):
        check(description, "observation_space")


@pytest.mark.parametrize("description", WRONG.values(), ids=WRONG.keys())
def test_a_learner_could_not_build_it_either(description: Any) -> None:
    with pytest.raises(DecodingError):
        build(description)


def test_a_huge_space_is_checked_without_its_memory() -> None:
    check([["Box", "<f4", [2**40], 0.0, 1.0]], "space")
