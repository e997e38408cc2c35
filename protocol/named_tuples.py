"""Named tuples of other programs: rebuilt from the names of the type and its fields."""

from __future__ import annotations

import weakref
from collections import namedtuple
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

MAX_FIELDS = 256  # of one type
MAX_NAME = 256  # characters
MAX_TYPES = 64  # of one message: making a type takes about 0.1 ms

_MADE: weakref.WeakSet[type] = weakref.WeakSet()


def rebuild(name: str, fields: tuple[str, ...], items: Sequence[Any]) -> Any:
    """Return a named tuple of a type with this name and these fields.

    Raises ValueError if the names are not those of a named tuple, TypeError if there is not one
    item for each field.
    """
    return named_type(name, fields)(*items)


@lru_cache(256)
def named_type(name: str, fields: tuple[str, ...]) -> type[Any]:
    """Return the type with this name and these fields. Raises ValueError for impossible names."""
    if len(fields) > MAX_FIELDS or any(len(one) > MAX_NAME for one in (name, *fields)):
        raise ValueError(f"a named tuple has more than {MAX_FIELDS} fields, or a longer name")
    made = type(
        name,
        (base_type(name, fields),),
        {"__slots__": (), "__reduce__": _reduce, "__module__": __name__},
    )
    _MADE.add(made)
    return made


def base_type(name: str, fields: tuple[str, ...]) -> type[Any]:
    """Return a type that `namedtuple` makes, also with fields that `rename=True` has renamed.

    Raises ValueError for impossible names.
    """
    made = namedtuple(name, fields, rename=True)  # type: ignore[misc]
    if made._fields != fields:
        raise ValueError(f"{fields!r:.200} are not names of fields of a named tuple")
    return made


def _reduce(value: Any) -> tuple[Any, ...]:
    """Let `pickle` and `copy` find the type by its names: it is in no module."""
    return rebuild, (type(value).__name__, value._fields, tuple(value))


def is_rebuilt(kind: type) -> bool:
    """Return whether this type was made here, so that its values can be serialized."""
    return kind in _MADE
