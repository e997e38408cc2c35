"""Values of spaces as JSON and back, and the schemas of spaces."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from gymnasium import Space, spaces

from gymwire.protocol.json_values import JsonMismatch, from_json, schema_of, to_json

SPACES: dict[str, Space[Any]] = {
    "Discrete": spaces.Discrete(5, start=-2),
    "scalar Box": spaces.Box(-1.0, 1.0, (), np.float64),
    "vector with own bounds": spaces.Box(
        np.array([-1, -np.inf]), np.array([1, 5]), dtype=np.float64
    ),
    "unbounded": spaces.Box(-np.inf, np.inf, (2, 3), np.float32),
    "picture": spaces.Box(0, 255, (4, 5, 3), np.uint8),
    "MultiBinary": spaces.MultiBinary((2, 3)),
    "MultiDiscrete": spaces.MultiDiscrete([3, 4], start=[1, -1]),
    "MultiDiscrete of two dimensions": spaces.MultiDiscrete(np.array([[3, 4], [5, 6]])),
    "Text": spaces.Text(12, min_length=1),
    "Dict": spaces.Dict(a=spaces.Discrete(2), b=spaces.Dict(c=spaces.Box(0, 1, (2,)))),
    "Tuple": spaces.Tuple((spaces.Discrete(2), spaces.Text(3))),
    "OneOf": spaces.OneOf((spaces.Discrete(2), spaces.Box(0, 1, (2,)))),
    "Sequence": spaces.Sequence(spaces.Box(0, 1, (2,))),
    "stacked Sequence": spaces.Sequence(spaces.Discrete(4), stack=True),
    "Graph": spaces.Graph(spaces.Box(0, 1, (2,)), spaces.Discrete(3)),
}


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_every_sample_comes_back(space: Space[Any]) -> None:
    space.seed(3)
    for _ in range(20):
        sample = space.sample()
        data = json.loads(json.dumps(to_json(sample), allow_nan=False))
        back = from_json(space, data, "action")
        assert space.contains(back)
        assert to_json(back) == to_json(sample)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_every_sample_fits_the_schema(space: Space[Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    space.seed(4)
    schema = schema_of(space)
    json.dumps(schema, allow_nan=False)
    for _ in range(20):
        jsonschema.validate(to_json(space.sample()), schema)


def test_values_that_json_cannot_hold() -> None:
    array = np.array([math.nan, math.inf, -math.inf, 1.5])
    assert to_json(array) == ["NaN", "Infinity", "-Infinity", 1.5]
    space = spaces.Box(-math.inf, math.inf, (2,))
    assert from_json(space, ["Infinity", 2], "action").tolist() == [math.inf, 2.0]
    assert to_json({1: (np.int64(2), {3}), "x": 1j}) == {"1": [2, [3]], "x": "1j"}
    assert to_json(np.array([None, "a"], object)) == [None, "a"]


@pytest.mark.parametrize(
    ("space", "data", "why"),
    [
        (spaces.Discrete(2), 2, "action must be in Discrete(2), not 2"),
        (spaces.Discrete(2), 0.5, "action must be a whole number"),
        (spaces.Discrete(2), True, "action must be a whole number"),
        (spaces.Discrete(2), "0", "action must be a whole number"),
        (spaces.Box(0, 1, (2,)), [0.5], r"action must have the shape \[2\], not \[1\]"),
        (spaces.Box(0, 1, (2,)), [0.5, "x"], "action must be numbers"),
        (spaces.Box(0, 1, (2,)), [0.5, [1]], "action must be numbers"),
        (spaces.Box(0, 1, (2,)), [0.5, 2.0], "action must be in Box"),
        (spaces.Box(0, 255, (1,), np.uint8), [1.5], "action must be whole numbers of uint8"),
        (spaces.Box(0, 255, (1,), np.uint8), [256], "action must be whole numbers of uint8"),
        (spaces.Dict(a=spaces.Discrete(2)), {"b": 1}, r"object with the keys \['a'\], not \['b'\]"),
        (spaces.Dict(a=spaces.Discrete(2)), {"a": 3}, "action.a must be in"),
        (spaces.Tuple((spaces.Discrete(2),)), [], "action must be a list of 1"),
        (spaces.OneOf((spaces.Discrete(2),)), [1, 0], r"action\[0\] must be in 0…0, not 1"),
        (spaces.Text(2), "abc", "action must be in Text"),
        (spaces.Text(2), None, "action must be in Text"),
    ],
)
def test_a_value_outside_of_its_space_is_named(space: Space[Any], data: Any, why: str) -> None:
    with pytest.raises(JsonMismatch, match=why.replace("(", r"\(").replace(")", r"\)")):
        from_json(space, data, "action")


DEEP: list[Any] = []
for _ in range(5000):
    DEEP = [DEEP]


@pytest.mark.parametrize("data", [math.nan, math.inf, 1e308, 10**400, "\ud800", {}, DEEP])
@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(2),
        spaces.Box(0, 1, (2,)),
        spaces.Box(0, 255, (), np.uint8),
        spaces.MultiDiscrete([2, 2]),
        spaces.Sequence(spaces.Discrete(2)),
        spaces.Text(2),
        spaces.Dict(a=spaces.Discrete(2)),
    ],
)
def test_no_json_value_raises_anything_else(space: Space[Any], data: Any) -> None:
    for given in (data, [data], {"a": data}):
        with pytest.raises(JsonMismatch, match="action"):
            from_json(space, given, "action")


def test_the_links_of_a_graph_are_checked() -> None:
    space = spaces.Graph(spaces.Discrete(2), spaces.Discrete(2))
    for links in ([[0]], "x", [[2**40, 0]], {"a": 1}, DEEP):
        with pytest.raises(JsonMismatch, match="action"):
            from_json(space, {"nodes": [0], "edges": [0], "edge_links": links}, "action")
