"""Named tuples of other programs: rebuilt from the names of the type and its fields."""

from __future__ import annotations

import keyword
import unicodedata
import weakref
from collections import namedtuple
from collections.abc import Iterable, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any, ClassVar, Self

MAX_FIELDS = 256  # of one type
MAX_NAME = 256  # characters
MAX_TYPES = 64  # of one message: making a type takes about 0.05 ms

_GETTERS = [property(itemgetter(i)) for i in range(MAX_FIELDS)]
_MADE: weakref.WeakSet[type] = weakref.WeakSet()


class _Named(tuple[Any, ...]):
    """What all rebuilt types have in common: they do what those of `namedtuple` do.

    `namedtuple` compiles a function for each type, which takes ten times as long as the type.
    """

    __slots__ = ()
    _fields: ClassVar[tuple[str, ...]] = ()
    _field_defaults: ClassVar[dict[str, Any]] = {}

    def __new__(cls, /, *items: Any, **named: Any) -> Self:
        rest = cls._fields[len(items) :]
        if len(items) + len(rest) != len(cls._fields) or named.keys() != {*rest}:
            raise TypeError(f"{cls.__name__} must get each of its fields {cls._fields} once")
        return tuple.__new__(cls, (*items, *(named[field] for field in rest)))

    @classmethod
    def _make(cls, items: Iterable[Any]) -> Self:
        return cls(*items)

    def _replace(self, /, **named: Any) -> Self:
        return type(self)(**{**self._asdict(), **named})

    def _asdict(self) -> dict[str, Any]:
        return dict(zip(self._fields, self, strict=True))

    def __repr__(self) -> str:
        items = ", ".join(f"{field}={item!r}" for field, item in self._asdict().items())
        return f"{type(self).__name__}({items})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Let `pickle` and `copy` find the type by its names: it is in no module."""
        return rebuild, (type(self).__name__, self._fields, tuple(self))


def rebuild(name: str, fields: tuple[str, ...], items: Sequence[Any]) -> Any:
    """Return a named tuple of a type with this name and these fields.

    Raises ValueError if the names are not those of a named tuple, TypeError if there is not one
    item for each field.
    """
    return named_type(name, fields)(*items)


def count_type(types: set[Any], name: Any, fields: Iterable[Any]) -> None:
    """Add a type to those of a message. Raises ValueError if they would be more than MAX_TYPES."""
    names = (name, *fields)
    if names not in types and len(types) >= MAX_TYPES:
        raise ValueError(f"a message has more than {MAX_TYPES} types of named tuples")
    types.add(names)


@lru_cache(256)
def named_type(name: str, fields: tuple[str, ...]) -> type[Any]:
    """Return the type with this name and these fields. Raises ValueError for impossible names."""
    if len(fields) > MAX_FIELDS or any(len(one) > MAX_NAME for one in (name, *fields)):
        raise ValueError(f"a named tuple has more than {MAX_FIELDS} fields, or a longer name")
    _check_names(name, fields)
    own = {"__slots__": (), "__module__": __name__, "_fields": fields, "__match_args__": fields}
    made = type(name, (_Named,), {**own, **dict(zip(fields, _GETTERS, strict=False))})
    _MADE.add(made)
    return made


def base_type(name: str, fields: tuple[str, ...]) -> type[Any]:
    """Return a type that `namedtuple` makes, also with fields that `rename=True` has renamed.

    Raises ValueError for impossible names.
    """
    _check_names(name, fields)
    return namedtuple(name, fields, rename=True)


def _check_names(name: str, fields: tuple[str, ...]) -> None:
    """Raise ValueError unless `namedtuple` with `rename=True` makes a type with these names.

    Raises TypeError if they are not text.
    """
    if not all(type(one) is str for one in (name, *fields)):
        raise TypeError("the names of a named tuple are not text")
    seen = set[str]()
    for i, field in enumerate(fields):
        # Python takes names for one that differ only before this.
        plain = field if field.isascii() else unicodedata.normalize("NFKC", field)
        is_free = _is_name(field) and not field.startswith("_") and plain not in seen
        if not is_free and field != f"_{i}":
            raise ValueError(f"{fields!r:.200} are not names of fields of a named tuple")
        seen.add(plain)
    if not _is_name(name):
        raise ValueError(f"{name!r:.200} is not a name of a type")


def _is_name(text: str) -> bool:
    return text.isidentifier() and not keyword.iskeyword(text)


def is_rebuilt(kind: type) -> bool:
    """Return whether this type was made here, so that its values can be serialized."""
    return kind in _MADE
