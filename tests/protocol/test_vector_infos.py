"""Infos of vectors on the wire: arrays of objects come back, and nothing else becomes one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gymwire.protocol import values, vector_infos
from gymwire.protocol.errors import DecodingError, EncodingError
from tests.sameness import assert_same


def objects(*items: Any) -> Any:
    array = np.empty(len(items), object)
    for i, item in enumerate(items):
        array[i] = item
    return array


INFOS: list[dict[Any, Any]] = [
    {},
    {"reward": np.zeros(3), "_reward": np.ones(3, np.bool_)},
    {"text": objects("a", None, "b"), "_text": np.array([True, False, True])},
    {"final_obs": objects(np.zeros(2), None, {"x": (1, "y")}), 3: objects([1], (2,), None)},
    {"a": {"b": {"c": objects(None)}, "d": np.zeros(1)}, "z": objects()},
    {"square": objects(1, None, "x", 2.5).reshape(2, 2)},
]


@pytest.mark.parametrize("infos", INFOS, ids=range(len(INFOS)))
def test_infos_come_back_as_they_were(infos: dict[Any, Any]) -> None:
    before = repr(infos)
    form = values.decode(values.encode(vector_infos.to_wire(infos)))
    assert_same(vector_infos.from_wire(form), (infos, {}))
    assert repr(infos) == before


def test_casts_can_be_undone() -> None:
    array, mask = np.array([1, 0, 3]), np.array([True, True, False])
    infos = {"a": {"prob": array, "_prob": mask}, "b": array.copy()}
    form = vector_infos.to_wire(infos, {id(array): [[1, 0.25]]})
    form = values.decode(values.encode(form))
    undone = {**infos, "a": {"prob": objects(1, 0.25, None), "_prob": mask}}
    assert_same(vector_infos.from_wire(form, exact=True), (undone, {}))


def test_an_array_of_objects_that_the_receiver_would_refuse_is_an_error() -> None:
    form = vector_infos.to_wire({"a": np.empty((2**18 + 1, 0), object), "b": objects(None)})
    with pytest.raises(EncodingError, match="without items"):
        values.encode(form)


def test_infos_without_objects_are_sent_unchanged() -> None:
    assert vector_infos.to_wire(INFOS[1]) is INFOS[1]


def test_values_that_were_cast_are_sent_beside_their_array() -> None:
    array = np.array([1, 0])
    form = vector_infos.to_wire({"a": {"prob": array}}, {id(array): [[1, 0.25]]})
    form = values.decode(values.encode(form))
    assert vector_infos.from_wire(form)[1] == {("a", "prob"): [(1, 0.25)]}


@pytest.mark.parametrize(
    "form",
    [
        None,
        [],
        [{}],
        [{}, [], 3],
        [{}, [[]], []],
        [{}, [[["a"], [1]]], []],
        [{"a": [1]}, [[["a"], [2]]], []],
        [{"a": [1]}, [[["a"], [-1]]], []],
        [{"a": [1]}, [[["a"], ["1"]]], []],
        [{"a": [1]}, [[[], [1]]], []],
        [{"a": [1]}, [[[["a"]], [1]]], []],
        [{"a": [1]}, [[["a", "b"], [1]]], []],
        [{"a": [1]}, [[["a"], [1] * 33]], []],
        [{"a": []}, [[["a"], [2**40, 0]]], []],
        [{"a": [], "b": []}, [[[key], [2**17 + 1, 0]] for key in "ab"], []],
        [{}, [], [3]],
        [{}, [], [["a", []], [[]]]],
        [{}, [], [[["a"], [[-1, 2]]]]],
        [{}, [], [[[["a"]], [[0, 2]]]]],
    ],
)
def test_a_malformed_form_is_refused(form: Any) -> None:
    with pytest.raises(DecodingError):
        vector_infos.from_wire(form)


@pytest.mark.parametrize("path", [["b"], ["b", "c"], ["a", "b"], ["n"], [], [["a"]]])
def test_casts_where_there_is_no_array_are_refused(path: list[Any]) -> None:
    form = [{"a": np.zeros(2), "n": np.zeros(())}, [], [[path, [[0, 2]]]]]
    with pytest.raises(DecodingError):
        vector_infos.from_wire(form, exact=True)
