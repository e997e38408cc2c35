"""Spaces for what a JSON Schema describes, for environments whose own description is JSON.

    boolean, enum, const             Discrete
    integer with both bounds         Discrete, if it has few values; else a Box of int64
    number                           a Box of float64
    string                           Text
    number, or one of the strings    the same: JSON has no other way to write these numbers
      NaN, Infinity and -Infinity
    array of numbers                 a Box, if its length is fixed; else a stacked Sequence
    array of anything else           Sequence
    object with properties           Dict

Nothing else has a space: objects without properties, unions, and what may be null.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import Space, spaces

from gymwire.protocol.json_values import NOT_FINITE, from_json, to_json

MAX_CHOICES = 2**16  # an integer with more values is a Box, not a Discrete
DEFAULT_MAX_LENGTH = 4096  # characters of a text whose schema has no maxLength
INT64 = np.iinfo(np.int64)
Values = Mapping[str, Any]

MAX_SCHEMAS = 10_000  # a $ref in a $ref in a … may stand for any number of them
MAX_ELEMENTS = 2**24  # of all arrays of fixed length


class SchemaTooLarge(ValueError):
    """A JSON Schema that describes more than MAX_SCHEMAS values or MAX_ELEMENTS elements."""


class Budget:
    """How much more the schemas of an environment may describe."""

    def __init__(self) -> None:
        self._schemas = self._elements = 0

    def spend(self, *, schemas: int = 0, elements: int = 0) -> None:
        """Count parts of a schema. Raises SchemaTooLarge."""
        self._schemas += schemas
        self._elements += elements
        if self._schemas > MAX_SCHEMAS or self._elements > MAX_ELEMENTS:
            raise SchemaTooLarge(
                f"it describes more than {MAX_SCHEMAS:,} values or {MAX_ELEMENTS:,} elements of "
                f"arrays"
            )


@dataclass(frozen=True)
class Field:
    """One value that a schema describes.

    Attributes:
        space: its space.
        encode: returns the JSON of a value of the space.
        decode: returns the value that JSON stands for; the second argument is its name for errors.
    """

    space: Space[Any]
    encode: Callable[[Any], Any]
    decode: Callable[[Any, str], Any]


def field_of(
    schema: Values, definitions: Values | None = None, budget: Budget | None = None
) -> Field | None:
    """Return how values of this schema are values of a space; None if there is no such space.

    `definitions`: what `#/$defs/NAME` refers to. Raises SchemaTooLarge, and what making a space of
    wrong bounds raises.
    """
    budget = budget or Budget()
    budget.spend(schemas=1)
    known = {**(definitions or {}), **schema["$defs"]} if "$defs" in schema else definitions or {}
    if "$ref" in schema:
        budget.spend(schemas=len(known) // 64)  # `rest` is a copy
        target = known.get(str(schema["$ref"]).rpartition("/")[2])
        rest = {name: value for name, value in known.items() if value is not target}
        return None if target is None else field_of(target, rest, budget)
    if "anyOf" in schema:
        kinds = [one for one in schema["anyOf"] if one != {"enum": list(NOT_FINITE)}]
        return field_of(kinds[0], known, budget) if len(kinds) == 1 else None
    if len(schema.get("allOf", ())) == 1:
        return field_of(schema["allOf"][0], known, budget)
    if "const" in schema or "enum" in schema:
        return _choice(schema.get("enum", [schema.get("const")]))
    match schema.get("type"):
        case "boolean":
            return _choice([False, True])
        case "integer":
            return _plain(_integer(schema))
        case "number":
            low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
            return _plain(spaces.Box(low, high, (), np.float64))
        case "string":
            longest = schema.get("maxLength", DEFAULT_MAX_LENGTH)
            return _plain(spaces.Text(longest, min_length=schema.get("minLength", 0)))
        case "array":
            return _array(schema, known, budget)
        case "object" if "properties" in schema:
            properties = schema["properties"].items()
            fields = {name: field_of(one, known, budget) for name, one in properties}
            return None if None in fields.values() else dict_of(fields)  # type: ignore[arg-type]
    return None


def dict_of(fields: Mapping[str, Field]) -> Field:
    """Return the field of an object with these fields."""

    def decode(data: Any, where: str) -> dict[str, Any]:
        missing = sorted({*fields} - {*data}) if isinstance(data, Mapping) else [*fields]
        if missing:
            raise ValueError(f"{where} lacks {', '.join(missing)}.")
        return {name: one.decode(data[name], f"{where}.{name}") for name, one in fields.items()}

    return Field(
        spaces.Dict({name: one.space for name, one in fields.items()}),
        lambda value: {name: one.encode(value[name]) for name, one in fields.items()},
        decode,
    )


def _plain(space: Space[Any]) -> Field:
    # A text may have other characters than the space; the learner gets it as it is.
    loose = isinstance(space, spaces.Text)

    def decode(data: Any, where: str) -> Any:
        return data if loose and isinstance(data, str) else from_json(space, data, where)

    return Field(space, to_json, decode)


def _choice(values: list[Any]) -> Field | None:
    if not values:
        return None

    def decode(data: Any, where: str) -> np.int64:
        for index, value in enumerate(values):
            if value == data and type(value) is type(data):
                return np.int64(index)
        raise ValueError(f"{where} must be one of {values}, not {data!r}.")

    return Field(spaces.Discrete(len(values)), lambda index: values[int(index)], decode)


def _integer(schema: Values) -> Space[Any]:
    low = schema.get("minimum", schema.get("exclusiveMinimum", INT64.min - 1) + 1)
    high = schema.get("maximum", schema.get("exclusiveMaximum", INT64.max + 1) - 1)
    if high - low < MAX_CHOICES:
        return spaces.Discrete(int(high - low + 1), start=int(low))
    return spaces.Box(max(low, INT64.min), min(high, INT64.max), (), np.int64)


def _array(schema: Values, known: Values, budget: Budget) -> Field | None:
    if "prefixItems" in schema:
        fields = [field_of(one, known, budget) for one in schema["prefixItems"]]
        return None if None in fields else _tuple(fields)  # type: ignore[arg-type]
    item = field_of(schema.get("items", {}), known, budget)
    if item is None:
        return None
    length = schema.get("minItems")
    if isinstance(item.space, spaces.Box) and length and length == schema.get("maxItems"):
        budget.spend(elements=length * item.space.low.size)
        low, high = (
            np.repeat(bound[None], length, axis=0) for bound in (item.space.low, item.space.high)
        )
        return _plain(spaces.Box(low, high, dtype=low.dtype.type))
    stacked = isinstance(item.space, spaces.Box)
    space = spaces.Sequence(item.space, stack=stacked)

    def decode(data: Any, where: str) -> Any:
        if stacked:
            return from_json(space, data, where)
        if not isinstance(data, list):
            raise ValueError(f"{where} must be a list, not {data!r:.80}.")
        return tuple(item.decode(one, f"{where}[{i}]") for i, one in enumerate(data))

    return Field(space, lambda value: [item.encode(one) for one in value], decode)


def _box(items: list[Any]) -> spaces.Box:
    low, high = np.stack([one.low for one in items]), np.stack([one.high for one in items])
    return spaces.Box(low, high, dtype=low.dtype.type)


def _tuple(fields: list[Field]) -> Field:
    boxes = [one.space for one in fields if isinstance(one.space, spaces.Box)]
    if len(boxes) == len(fields) and len({(one.shape, one.dtype) for one in boxes}) == 1:
        return _plain(_box(boxes))

    def decode(data: Any, where: str) -> tuple[Any, ...]:
        if not isinstance(data, list) or len(data) != len(fields):
            raise ValueError(f"{where} must be a list of {len(fields)}, not {data!r:.80}.")
        return tuple(one.decode(data[i], f"{where}[{i}]") for i, one in enumerate(fields))

    return Field(
        spaces.Tuple([one.space for one in fields]),
        lambda value: [one.encode(part) for one, part in zip(fields, value, strict=True)],
        decode,
    )
