"""The spaces of JSON Schemas, and values of them in both directions."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from gymnasium import Space, spaces
from gymnasium.utils.env_checker import data_equivalence

from gymwire.env_agent.adapters.json_schemas import field_of

NUMBER = {"type": "number"}
CASES: dict[str, tuple[dict[str, Any], Space[Any], Any, Any]] = {
    "boolean": ({"type": "boolean"}, spaces.Discrete(2), True, np.int64(1)),
    "enum": ({"enum": ["left", "right"]}, spaces.Discrete(2), "right", np.int64(1)),
    "const": ({"const": 3}, spaces.Discrete(1), 3, np.int64(0)),
    "small integer": (
        {"type": "integer", "minimum": -1, "maximum": 3},
        spaces.Discrete(5, start=-1),
        2,
        np.int64(2),
    ),
    "exclusive bounds": (
        {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 4},
        spaces.Discrete(3, start=1),
        3,
        np.int64(3),
    ),
    "any integer": (
        {"type": "integer"},
        spaces.Box(-(2**63), 2**63 - 1, (), np.int64),
        7,
        np.array(7),
    ),
    "number": (
        {"type": "number", "minimum": 0},
        spaces.Box(0, np.inf, (), np.float64),
        0.5,
        np.array(0.5),
    ),
    "number that may be infinite": (
        {"anyOf": [NUMBER, {"enum": ["NaN", "Infinity", "-Infinity"]}]},
        spaces.Box(-np.inf, np.inf, (), np.float64),
        "Infinity",
        np.array(np.inf),
    ),
    "numbers with own bounds": (
        {"type": "array", "prefixItems": [{"type": "number", "minimum": 0}, NUMBER]},
        spaces.Box(np.array([0, -np.inf]), np.inf, (2,), np.float64),
        [1.0, -2.5],
        np.array([1.0, -2.5]),
    ),
    "string": ({"type": "string", "maxLength": 5}, spaces.Text(5, min_length=0), "ab", "ab"),
    "list of numbers": (
        {"type": "array", "items": NUMBER},
        spaces.Sequence(spaces.Box(-np.inf, np.inf, (), np.float64), stack=True),
        [1.0, 2.0],
        np.array([1.0, 2.0]),
    ),
    "fixed list of numbers": (
        {"type": "array", "items": NUMBER, "minItems": 2, "maxItems": 2},
        spaces.Box(-np.inf, np.inf, (2,), np.float64),
        [1.0, 2.0],
        np.array([1.0, 2.0]),
    ),
    "list of strings": (
        {"type": "array", "items": {"type": "string", "maxLength": 3}},
        spaces.Sequence(spaces.Text(3, min_length=0)),
        ["a", "b"],
        ("a", "b"),
    ),
    "tuple": (
        {"type": "array", "prefixItems": [{"type": "boolean"}, NUMBER]},
        spaces.Tuple((spaces.Discrete(2), spaces.Box(-np.inf, np.inf, (), np.float64))),
        [False, 1.5],
        (np.int64(0), np.array(1.5)),
    ),
    "object by reference": (
        {
            "$ref": "#/$defs/Place",
            "$defs": {"Place": {"type": "object", "properties": {"x": NUMBER}}},
        },
        spaces.Dict(x=spaces.Box(-np.inf, np.inf, (), np.float64)),
        {"x": 2.5},
        {"x": np.array(2.5)},
    ),
}


@pytest.mark.parametrize(("schema", "space", "data", "value"), CASES.values(), ids=CASES)
def test_a_schema_has_a_space(
    schema: dict[str, Any], space: Space[Any], data: Any, value: Any
) -> None:
    field = field_of(schema)
    assert field is not None
    assert field.space == space
    assert data_equivalence(field.decode(data, "it"), value)
    assert json.loads(json.dumps(field.encode(value))) == data


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object"},
        {"type": "null"},
        {"anyOf": [NUMBER, {"type": "null"}]},
        {"type": "array"},
        {"type": "array", "items": {"type": "object"}},
        {"type": "object", "properties": {"x": {}}},
        {"$ref": "#/$defs/Missing"},
        {"$ref": "#/$defs/A", "$defs": {"A": {"$ref": "#/$defs/A"}}},
        {"enum": []},
    ],
    ids=str,
)
def test_what_has_no_space_gets_none(schema: dict[str, Any]) -> None:
    assert field_of(schema) is None


def test_a_text_keeps_characters_that_the_space_lacks() -> None:
    field = field_of({"type": "string"})
    assert field is not None
    assert field.decode("häß\n", "it") == "häß\n"


@pytest.mark.parametrize(
    ("schema", "data", "why"),
    [
        ({"enum": ["a"]}, "b", r"it must be one of \['a'\], not 'b'"),
        ({"type": "boolean"}, 1, "it must be one of"),
        ({"type": "string"}, 3, "it must be in Text"),
        ({"type": "object", "properties": {"x": NUMBER}}, {}, "it lacks x"),
        ({"type": "object", "properties": {"x": NUMBER}}, {"x": "a"}, "it.x must be numbers"),
    ],
)
def test_a_wrong_value_is_named(schema: dict[str, Any], data: Any, why: str) -> None:
    field = field_of(schema)
    assert field is not None
    with pytest.raises(ValueError, match=why):
        field.decode(data, "it")
