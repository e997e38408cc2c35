"""What an env agent knows about spaces, computed once for all that are equal.

Each session has an environment of its own, and so spaces of its own. If thousands open at once, to
describe and compile the same space again and again would take most of the time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from gymnasium import Space, spaces

from gymwire.env_agent.bounded_cache import BoundedCache
from gymwire.protocol import space_codecs, values
from gymwire.protocol import spaces as descriptions
from gymwire.protocol.space_codecs import SpaceCodec

MAX_KNOWN = 64  # spaces that differ
MAX_DEPTH = 8  # of the spaces that are shared
MAX_KEY = 64  # bytes of an array in a key; a longer one is represented by its digest
MAX_ITEMS = 64  # parts of a space that has a key
NODE = 4096  # bytes of memory that the codec of a space takes, and each part of its description

_KEY_TYPES = {bool, int, str}
_ARRAYS, _INTEGERS = (np.ndarray, np.generic), (int, np.integer)


@dataclass(frozen=True)
class KnownSpace:
    """What follows from a space alone. Equal spaces of Gymnasium's own classes share an instance.

    Attributes:
        text: the beginning of its repr.
        description: its description, which must not be changed.
        codec: its codec.
    """

    text: str
    description: list[list[Any]]
    codec: SpaceCodec

    @property
    def digest(self) -> bytes:
        """The digest of the description: equal for spaces that learners cannot tell apart."""
        return self._measured[0]

    @property
    def size(self) -> int:
        """How many bytes of memory it takes, roughly."""
        return self._measured[1]

    @cached_property
    def _measured(self) -> tuple[bytes, int]:
        data = values.encode(self.description)
        return hashlib.sha256(data).digest(), len(data) + NODE * len(self.description)


_KNOWN = BoundedCache[KnownSpace](MAX_KNOWN)


def known(space: Space[Any], name: str) -> KnownSpace:
    """Return what is known about a space; errors name it by `name`.

    Raises UnsupportedSpaceError.
    """
    return _known(space, name, key_of(space))


def watch(space: Space[Any], name: str) -> tuple[KnownSpace, Callable[[], bool]]:
    """Return what is known about a space, and the function that `comparison` returns."""
    key = key_of(space)
    return _known(space, name, key), comparison(space, key)


def _known(space: Space[Any], name: str, key: Hashable | None) -> KnownSpace:
    found = _KNOWN.get(key)
    if found is not None:
        return found
    text = repr(space)[:200]  # first: a Box keeps parts of its text
    found = KnownSpace(
        text,
        descriptions.describe(space, root=name),
        space_codecs.compile(space),
    )
    if key is not None:
        _KNOWN.keep(key, found, found.size)
    return found


def fingerprint(space: Space[Any]) -> object:
    """Return something that is equal only for a space that has not changed.

    It may differ although the space is the same: some attributes are set when they are first used.
    """
    key = key_of(space)
    return _attributes(space, {}) if key is None else key


def comparison(space: Space[Any], key: Hashable | None) -> Callable[[], bool]:
    """Return a function that returns True only while a space, with this key, is as it is now.

    As with `fingerprint`, False does not prove a change. Environments are checked at every reset,
    so small spaces of the most frequent classes are compared in a fraction of the time.
    """
    part: Any = space
    if type(space) is spaces.Discrete:
        number = part.n, part.start, part.dtype
        return lambda: (part.n, part.start, part.dtype) == number
    if type(space) is not spaces.Box or key is None or part.low.nbytes > MAX_KEY:
        first = _attributes(space, {}) if key is None else key
        return lambda: fingerprint(space) == first
    before = _box_parts(part)
    content = b"".join(before[:4])

    def is_unchanged() -> bool:
        now = _box_parts(part)
        return (
            now[0] is before[0]
            and now[1] is before[1]
            and now[2] is before[2]
            and now[3] is before[3]
            and now[4:] == before[4:]
            and b"".join(now[:4]) == content
        )

    return is_unchanged


def _box_parts(box: Any) -> tuple[Any, ...]:
    return box.low, box.high, box.bounded_below, box.bounded_above, box.dtype, box.shape


# --- keys -----------------------------------------------------------------------------------------


def key_of(space: Space[Any]) -> Hashable | None:
    """Return a key that is equal only for equal spaces of the same classes, dtypes included.

    Returns None for spaces that are large, or not of Gymnasium's most frequent classes.
    """
    try:
        return _key(space, 0)
    except _NoKeyError:
        return None


class _NoKeyError(Exception):
    """A space without a key."""


def _key(space: object, depth: int) -> Hashable:
    kind: Any = type(space)
    part: Any = space
    if depth > MAX_DEPTH:
        raise _NoKeyError
    if kind is spaces.Box:
        bounds = (part.low, part.high, part.bounded_below, part.bounded_above)
        return (kind, part.dtype, part.shape, *map(_array_key, bounds))
    if kind is spaces.Discrete:
        return kind, part.dtype, *map(_number_key, (part.n, part.start))
    if kind is spaces.MultiDiscrete:
        return kind, part.dtype, part.shape, _array_key(part.nvec), _array_key(part.start)
    if kind is spaces.MultiBinary and isinstance(part.n, int | tuple):
        return kind, part.n
    if kind is spaces.Tuple and len(part.spaces) <= MAX_ITEMS:
        return kind, *(_key(one, depth + 1) for one in part.spaces)
    if kind is spaces.Dict and len(part.spaces) <= MAX_ITEMS:
        items = part.spaces.items()
        order = bool(getattr(space, "sort_keys", True))
        if not _KEY_TYPES.issuperset(map(type, part.spaces)):
            raise _NoKeyError
        return kind, order, *((type(k), k, _key(one, depth + 1)) for k, one in items)
    raise _NoKeyError


def _array_key(array: object) -> Hashable:
    if not isinstance(array, _ARRAYS) or array.dtype.hasobject:
        raise _NoKeyError
    content = array.tobytes()
    if len(content) > MAX_KEY:
        content = hashlib.sha256(content).digest()
    return array.dtype, array.shape, content


def _number_key(number: object) -> Hashable:
    if not isinstance(number, _INTEGERS):
        raise _NoKeyError
    return int(number)


# --- all other spaces -----------------------------------------------------------------------------


_PLAIN = (bool, int, float, str, bytes, np.dtype)
_CONTAINERS = (Space, list, tuple, Mapping)


def _attributes(value: Any, seen: dict[int, object]) -> object:
    """Return the attributes of a space, or of a part of one, in a form to compare.

    `seen`: the parts before it, by their ids. A part may refer to the whole.
    """
    if type(value) is np.ndarray:
        return value.dtype, value.shape, hash(value.tobytes())
    if isinstance(value, _PLAIN):
        return value
    if not isinstance(value, _CONTAINERS) or id(value) in seen:
        return id(value)
    seen[id(value)] = value
    if isinstance(value, Space):
        attributes = vars(value).items()
        return [(k, _attributes(part, seen)) for k, part in attributes if k != "_np_random"]
    if isinstance(value, Mapping):
        return [(key, _attributes(part, seen)) for key, part in value.items()]
    return [_attributes(part, seen) for part in value]
