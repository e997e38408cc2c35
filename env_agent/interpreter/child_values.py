"""Values between the env agent and the process with its own interpreter (see `child`).

They are those of `protocol.values`, within its limits. Some Python values have no form there, and
arrive as a marked tuple, of which `decode` makes:

| (MARK, "reordered", axes, array)           | the array whose axes lie in memory in this order |
| (MARK, "objects", shape, items, axes)      | an array of objects; axes: None, or as in ext 9  |
| (MARK, "named", name, fields, items, type) | a named tuple with these names                   |
| (MARK, "converted", type, form, value)     | in an info, what stands for the original value;  |
|                                            | elsewhere, the value that the process made of it |
| (MARK, "other", type, repr)                | an object that only shows its type and its repr  |
| (MARK, "pairs", keys, values, is_ordered)  | a dict with keys that are marked, or no map has  |

In a key, "converted" has two more items, the repr and the text of the original, and "other" one
more, the text. The env agent then treats them as it treats such values of an environment of its
own: it converts and reports what is in an info, or refuses it. `_FORMS` has the forms.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, UserDict
from collections.abc import Callable
from functools import lru_cache
from itertools import islice
from typing import Any, Literal

import numpy as np
from gymnasium import Space, spaces

from gymwire.env_agent.interpreter.child.frames import (
    AS_INT,
    COMPACT_END,
    FLAGS,
    FLOAT,
    MARK,
    NUMPY_FLOAT,
)
from gymwire.protocol import values
from gymwire.protocol.arrays import copy_array, object_array, reorder
from gymwire.protocol.conversions import Converted
from gymwire.protocol.crowding import is_crowded
from gymwire.protocol.errors import DecodingError, EncodingError
from gymwire.protocol.named_tuples import MAX_FIELDS, MAX_NAME, MAX_TYPES, base_type, count_type
from gymwire.protocol.value_limits import FREE_BYTES, MAX_OTHER_KEYS, PER_BYTE

Form = tuple[str, list[int] | None]
"""Dtype and shape of the values of a space; shape None: NumPy scalars."""
Step = tuple[Any, float, bool, bool, dict[str, Any]]
_REPR_LENGTH = 200
_SHARED_NAME = "builtins.object"  # of types of which one message has too many
_MAX_KEY = 4096  # more than can be sent: equal hashes make Python compare the keys
_LIST, _ITEM, _NUMBER, _TEXT = 64, 8, 32, 80  # bytes of memory
_REWARDS: dict[bytes, Callable[[float], Any]] = {FLOAT: float, NUMPY_FLOAT: np.float64}
KNOWN_FLAGS = {packed: flags for flags, packed in FLAGS.items()}


def decode(data: bytes, tensors: set[str] | None = None) -> Any:
    """Return the value in these bytes. Raises DecodingError.

    `tensors`: the types of tensors that were reported outside of infos, if the value is the result
    of `reset` or `step`. A tensor of another type is left for the env agent to convert and report,
    and its type is added.
    """
    value = values.decode(data)
    if MARK not in data:
        return value
    restorer = _Restorer()
    try:
        if tensors is None:
            return restorer.restore(value)
        return restorer.restore_result(value, tensors)
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise DecodingError(f"A marked value is malformed: {error}.") from None


class _Restorer:
    """Copies the value of one message without marked tuples."""

    def __init__(self) -> None:
        self._types: set[Any] = set()  # of named tuples
        self._shown: dict[Any, type[Any]] = {}  # the types of what only shows a type
        self._tensors: set[str] | None = None
        self._is_info = False

    def restore_result(self, value: Any, tensors: set[str]) -> Any:
        """Return what `reset` or `step` returned, of which the last value is the info."""
        self._tensors = tensors
        match value:
            case (bytes(), "named", _, _, (*parts, info), _) if _is_marked(value):
                pass
            case (*parts, info) if not _is_marked(value):
                pass
            case _:
                return self.restore(value)
        parts = [self.restore(one) for one in parts]
        self._is_info = True
        return (*parts, self.restore(info))

    def restore(self, value: Any) -> Any:
        kind = type(value)
        if kind is list:
            return [self.restore(item) for item in value]
        if kind is dict or kind is OrderedDict:
            return kind(zip(value, map(self.restore, value.values()), strict=True))
        if kind is not tuple:
            return value
        if not _is_marked(value):
            return tuple(self.restore(item) for item in value)
        return _RESTORED[value[1]](self, *value[2:])

    def pairs(self, keys: Any, items: Any, is_ordered: Any) -> Any:
        found = [self._key(key) for key in keys]
        known: Counter[Any] = Counter()
        for key in found:
            if isinstance(key, _Equal):
                key.number_in(known)
        pairs = zip(found, map(self.restore, items), strict=True)
        made: dict[Any, Any] = OrderedDict() if is_ordered else {}
        others = [key for key in found if type(key) not in (str, bytes)]
        is_crowd = len(others) > MAX_OTHER_KEYS and is_crowded([hash(key) for key in found])
        if is_crowd or any(_size_of_key(key) > _MAX_KEY for key in others):
            shown = ", ".join(f"{key!r}: {item!r}" for key, item in islice(pairs, _REPR_LENGTH))
            return self._shown_as(type(made), f"{{{shown[:_REPR_LENGTH]}}}")
        for key, item in pairs:
            if key in made:
                key = self._shown_as(type(key), repr(key))  # noqa: PLW2901
                key.number_in(known)
            made[key] = item
        return made

    def _key(self, key: Any) -> Any:
        found, is_info = self.restore(key), self._is_info
        try:
            hash(found)
        except TypeError:  # outside of infos, a dataclass became a dict
            self._is_info = True
            found = self.restore(key)
            self._is_info = is_info
        return found

    def reordered(self, axes: Any, array: Any) -> Any:
        return reorder(axes, array)

    def objects(self, shape: Any, items: Any, axes: Any) -> Any:
        return object_array(shape, [self.restore(item) for item in items], axes)

    def named(self, name: str, fields: tuple[str, ...], items: Any, kind: Any) -> Any:
        names = (name, *fields)
        if len(names) > 1 + MAX_FIELDS or any(
            type(one) is not str or len(one) > MAX_NAME for one in names
        ):
            raise ValueError("a named tuple has too many fields, or names that are too long")
        count_type(self._types, name, (*fields, kind))
        return _named_tuple(name, fields, str(kind)[:MAX_NAME])(*map(self.restore, items))

    def converted(self, name: Any, form: Any, value: Any, *texts: Any) -> Any:
        name, value = str(name)[:MAX_NAME], self.restore(value)
        if self._is_info:
            return self._stand_in(form, name, value, *texts)
        known = self._tensors
        if form != "array" or known is None or name in known or len(known) >= MAX_TYPES:
            return value
        known.add(name)
        return self._stand_in(form, name, value)

    def other(self, name: Any, text: Any, label: Any = None) -> Any:
        return self._type(str(name)[:MAX_NAME], _Shown)(str(text), label)

    def _shown_as(self, kind: type, text: str) -> _Shown:
        name = f"{kind.__module__}.{kind.__qualname__}"[:MAX_NAME]
        shown: _Shown = self._type(name, _Shown)(text)
        return shown

    def _stand_in(self, form: Any, name: str, value: Any, *texts: Any) -> Any:
        """Return what stands for a value of the type `name`, which became this value.

        `texts`: of a key, its repr and its text.
        """
        became, bases = _FORMS[form]
        base = bases.get(type(value))
        if base is not None and base not in _ATOMS:
            if not texts:
                return self._type(name, base)(value)
            base = None
        kinds: list[type] = [Converted]
        if texts:
            kinds.insert(0, _Equal if base is None else _Labelled)
        made = self._type(name, *kinds)() if base is None else self._type(name, *kinds, base)(value)
        made.became, made.value = became, value
        if texts:
            made.texts = (*map(str, texts), repr(value))
        return made

    def _type(self, name: str, *bases: type) -> type[Any]:
        """Return a type that shows this name. A type takes about 1 KiB, so there are few of them.

        After the first MAX_TYPES of a message, those of the same bases share one.
        """
        label: Any = (name, *bases)
        if label not in self._shown and len(self._shown) >= MAX_TYPES:
            name, label = _SHARED_NAME, bases
        found = self._shown.get(label)
        if found is None:
            found = self._shown[label] = _type(name, *bases)
        return found


_RESTORED: dict[Any, Callable[..., Any]] = {
    "reordered": _Restorer.reordered,
    "objects": _Restorer.objects,
    "named": _Restorer.named,
    "converted": _Restorer.converted,
    "other": _Restorer.other,
    "pairs": _Restorer.pairs,
}


def _is_marked(value: Any) -> bool:
    return type(value) is tuple and len(value) > 1 and type(value[0]) is bytes and value[0] == MARK


# These caches are bounded, as the names are, because the process chooses them.
@lru_cache(maxsize=256)
def _type(name: str, *bases: type) -> type[Any]:
    """Return a type of these bases that shows a name in the other interpreter as its own."""
    module, _, qualname = name.rpartition(".")
    names = {"__module__": module, "__qualname__": qualname}
    return type(qualname, bases, names)


@lru_cache(maxsize=256)
def _named_tuple(name: str, fields: tuple[str, ...], kind: str) -> type[Any]:
    found = base_type(name, fields)
    found.__module__, _, found.__qualname__ = kind.rpartition(".")
    return found


class _Labelled:
    """Shows what its original shows: `texts` begins with its repr and its text."""

    texts: tuple[str, ...] = ("", "")

    def __repr__(self) -> str:
        return self.texts[0]

    def __str__(self) -> str:
        return self.texts[1]


class _Equal(_Labelled):
    """Equals others of the same type that have the same texts and the same number."""

    number = 0

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Equal) or type(other) is not type(self):
            return False
        return (self.texts, self.number) == (other.texts, other.number)

    def __hash__(self) -> int:
        return hash((self.texts, self.number))

    def number_in(self, known: Counter[Any]) -> _Equal:
        """Become different from those that are counted in `known`, and return itself."""
        label = type(self), self.texts
        self.number = known[label]
        known[label] += 1
        return self


class _Shown(_Equal):
    """Stands for an object that has no form."""

    def __init__(self, text: str, label: Any = None) -> None:
        self.texts = text, text if label is None else str(label)


def _size_of_key(key: Any) -> int:
    if isinstance(key, tuple):
        return _NUMBER + sum(map(_size_of_key, key))
    if isinstance(key, _Equal):
        return sum(map(len, key.texts))
    return len(key) if isinstance(key, str | bytes) else _NUMBER


class _Tensor:
    """Stands for a tensor: NumPy and `Converter` take it for one."""

    __dlpack__ = None

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self._array, self.shape = array, array.shape

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray[Any, Any]:
        return np.array(self._array, dtype, copy=copy)

    def __bool__(self) -> bool:
        return bool(self._array)

    def __int__(self) -> int:
        return int(self._array)

    def __float__(self) -> float:
        return float(self._array)


# What a value became, and the bases of the type of its stand-in, by the type of the result and the
# form in which it arrives. Gymnasium's vectors treat dicts and numbers differently from other
# mappings and other values.
_FORMS: dict[Any, tuple[str, dict[type, type]]] = {
    "array": ("array", {np.ndarray: _Tensor}),
    "dict": ("dict", {dict: dict}),
    "mapping": ("dict", {dict: UserDict}),
    "fields": ("dict", {}),
    "list": ("list", {}),
    "value": ("value", {}),
    "number": ("value", {int: int, float: float}),
    "text": ("value", {str: str}),
}
_ATOMS = (int, float, str)


def form_of(space: Space[Any]) -> Form | None:
    """Return the form of the values of a space in compact steps, or None."""
    if isinstance(space, spaces.Discrete):
        return space.dtype.str, None
    if isinstance(space, spaces.Box | spaces.MultiDiscrete | spaces.MultiBinary):
        assert space.dtype is not None
        assert space.shape is not None
        return space.dtype.str, list(space.shape)
    return None


def compile_action(form: Form) -> Callable[[Any], bytes | None]:
    """Return a function that returns the raw bytes of an action; None: it has another form.

    A number may also be a Python int: its bytes are followed by `AS_INT`.
    """
    dtype, shape = np.dtype(form[0]), form[1]
    kind = np.ndarray if shape is not None else dtype.type
    size = None if shape is None else tuple(shape)
    int_kind = int if shape is None else None
    has_order = size is not None and len(size) > 1  # in memory, which raw bytes do not show
    itemsize, is_signed = dtype.itemsize, dtype.kind == "i"
    order: Literal["big", "little"] = "big" if dtype.str[0] == ">" else "little"
    count = 0 if int_kind is None else 128  # of small ints, which every such dtype has
    small = [n.to_bytes(itemsize, order, signed=is_signed) + AS_INT for n in range(count)]

    def encode(action: Any) -> bytes | None:
        if type(action) is int_kind:
            if 0 <= action < count:
                return small[action]
            try:
                return action.to_bytes(itemsize, order, signed=is_signed) + AS_INT
            except OverflowError:
                return None
        if type(action) is not kind or (
            size is not None and (action.shape != size or action.dtype != dtype)
        ):
            return None
        if has_order and not action.flags.c_contiguous:
            return None
        raw: bytes = action.tobytes()
        return raw

    return encode


def raw_size(form: Form | None) -> int:
    """Return the bytes of a compact answer with an observation of a form; 0: it must be decoded.

    The bytes of a bool or a text may be no value of its dtype.
    """
    if form is None or np.dtype(form[0]).kind in "bU":
        return 0
    return _size(form) + COMPACT_END.size


def _size(form: Form) -> int:
    """Return the bytes of a value with this form."""
    return np.dtype(form[0]).itemsize * math.prod(form[1] or ())


def compile_step(form: Form | None) -> Callable[[bytes, int], Step]:
    """Return a function that decodes a compact answer from an offset on. It raises DecodingError.

    `form`: that of the observations; None: there are no compact answers.
    """
    unpack_end, rewards, known_flags = COMPACT_END.unpack_from, _REWARDS, KNOWN_FLAGS
    dtype, shape = (
        (np.dtype("u1"), ()) if form is None else (np.dtype(form[0]), tuple(form[1] or ()))
    )
    size = -1 if form is None else _size(form)
    ndarray, is_bool = np.ndarray, dtype.kind == "b"

    def decode(data: bytes, at: int) -> Step:
        end = len(data) - COMPACT_END.size
        if end - at != size:
            raise DecodingError(f"A step has {end - at} bytes of observation, not {size}.")
        kind, reward, flags = unpack_end(data, end)
        if kind not in rewards or flags not in known_flags:
            raise DecodingError("A step has an unknown kind of reward or unknown flags.")
        if is_bool:  # checks its bytes
            observation = copy_array(dtype, shape, data, at)
        else:
            observation = ndarray(shape, dtype, data, at).copy()
        return observation, rewards[kind](reward), *known_flags[flags], {}

    return decode


def without_numpy(value: Any) -> Any:
    """Return a value with lists and numbers in the place of arrays and NumPy's numbers.

    Raises EncodingError if the lists would take too much memory.
    """
    return _Lists().convert(value)


class _Lists:
    """Makes lists of the arrays of one message, which together are as bounded as other lists."""

    def __init__(self) -> None:
        self._left = FREE_BYTES

    def convert(self, value: Any) -> Any:
        kind = type(value)
        if kind is np.ndarray:
            self._charge(value)
            return value.tolist()
        if isinstance(value, np.generic):
            return value.tolist()
        if kind is dict or kind is OrderedDict:
            pairs = value.items()
            return kind((self.convert(key), self.convert(item)) for key, item in pairs)
        if kind is list or kind is tuple:
            return kind(map(self.convert, value))
        return value

    def _charge(self, array: np.ndarray[Any, Any]) -> None:
        dtype, items, cost = array.dtype, 1, 0
        for n in array.shape:
            cost += items * (_LIST + _ITEM * n)
            items *= n
        if dtype.kind in "SUmM":
            cost += items * (_TEXT + dtype.itemsize)
        elif dtype.itemsize > 1:  # Python keeps the small integers
            cost += items * _NUMBER
        self._left -= max(0, cost - PER_BYTE * array.nbytes)
        if self._left < 0:
            raise EncodingError(
                f"The environment runs without NumPy, and the list of the numbers of an array of "
                f"shape {array.shape} and dtype {dtype} would take too much memory."
            )


def coerce(space: Space[Any], value: Any) -> Any:
    """Return a value of an environment without NumPy with the type that the space has here."""
    if isinstance(space, spaces.Box | spaces.MultiDiscrete | spaces.MultiBinary):
        if isinstance(value, list | tuple | int | float):
            try:
                array = np.asarray(value, space.dtype)
            except (TypeError, ValueError, OverflowError):
                return value
            return array.reshape(space.shape) if array.size == np.prod(space.shape) else value
    elif isinstance(space, spaces.Dict) and isinstance(value, dict):
        inside = space.spaces
        return {k: coerce(inside[k], v) if k in inside else v for k, v in value.items()}
    elif (
        isinstance(space, spaces.Tuple)
        and isinstance(value, list | tuple)
        and len(value) == len(space.spaces)
    ):
        return tuple(map(coerce, space.spaces, value))
    return value
