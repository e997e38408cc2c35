"""Values as bytes: the subset of msgpack that `protocol/values.py` describes."""

from __future__ import annotations

import dataclasses
import enum
import struct
import sys
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Mapping
from typing import Any

from . import libraries
from .frames import MARK

MAX_DEPTH = 64
# With lengths of four bytes:
_TEXT, _BYTES, _LIST, _MAP, _EXTENSION = b"\xdb", b"\xc6", b"\xdd", b"\xdf", b"\xc9"
_KEPT_KEYS = {str, bytes, int, float, bool, type(None)}
# Limits of `protocol/values.py` and `protocol/named_tuples.py`.
# MAX_NAME: characters of a name, and the number of fields of a named tuple.
# MAX_TYPES: of named tuples in a message.
MAX_INT_BYTES = MAX_OTHER_KEYS = MAX_NAME = 256
MAX_DIMS, MAX_EMPTY, MAX_TYPES = 32, 1 << 18, 64
_IN_KEY = 0  # stands in `above` while a key is packed; no object has this id


def _head(first: bytes, size: int) -> bytes:
    """Return the start of a text, bytes, a list, a map or an extension."""
    if size >= 2**32:
        raise ValueError("a value has 4 GiB or more")
    return first + size.to_bytes(4, "big")


def _extension(code: int, data: bytes) -> bytes:
    return _head(_EXTENSION, len(data)) + bytes([code]) + data


def _pack_int(value: int) -> bytes:
    if -(2**63) <= value < 2**63:
        return b"\xd3" + value.to_bytes(8, "big", signed=True)
    if 0 < value < 2**64:
        return b"\xcf" + value.to_bytes(8, "big")
    size = value.bit_length() // 8 + 1
    if size > MAX_INT_BYTES:
        return _pack_opaque(value)
    return _extension(3, value.to_bytes(size, "little", signed=True))


def _pack_text(value: str) -> bytes:
    try:
        data: bytes = value.encode()
    except UnicodeEncodeError:  # lone surrogates
        return _pack_opaque(value)
    return _head(_TEXT, len(data)) + data


def pack(value: Any, above: tuple[int, ...] = (), types: set[Any] | None = None) -> bytes:
    """Return the bytes of a value. What has no form becomes its type and repr.

    `above`: the ids of the containers around the value. `types`: those of the named tuples that
    were packed before it in the same message.
    """
    kind = type(value)
    if value is None:
        return b"\xc0"
    if kind is bool:
        return b"\xc3" if value else b"\xc2"
    if kind is int:
        return _pack_int(value)
    if kind is float:
        return b"\xcb" + struct.pack(">d", value)
    if kind is str:
        return _pack_text(value)
    if kind is bytes:
        return _head(_BYTES, len(value)) + bytes(value)
    if len(above) >= MAX_DEPTH - 1 or id(value) in above:
        return _pack_opaque(value)
    types = set() if types is None else types
    return _pack_container(value, kind, (*above, id(value)), types)


def _pack_items(items: Any, above: tuple[int, ...], types: set[Any] | None) -> bytes:
    return _head(_LIST, len(items)) + b"".join([pack(item, above, types) for item in items])


def _pack_container(value: Any, kind: type, above: tuple[int, ...], types: set[Any]) -> bytes:
    np = libraries.np
    if kind is list:
        return _pack_items(value, above, types)
    if kind is tuple:
        return _extension(4, _pack_items(value, above, types))
    if kind is dict or kind is OrderedDict:
        return _pack_dict(value, kind, above, types)
    if np is not None and (kind is np.ndarray or isinstance(value, np.generic)):
        return _pack_numpy(value, kind, above, types) or _pack_opaque(value)
    return _pack_other(value, kind, above, types)


def _pack_dict(value: Any, kind: type, above: tuple[int, ...], types: set[Any]) -> bytes:
    kinds = list(map(type, value))
    if set(kinds) <= {str} and "".join(value).isascii():
        keys = [_head(_TEXT, len(key)) + key.encode() for key in value]
    else:
        keys = [pack(key) for key in value] if set(kinds) <= _KEPT_KEYS else []
        others = len(kinds) - kinds.count(str) - kinds.count(bytes)
        if not keys or others > MAX_OTHER_KEYS or _EXTENSION in [key[:1] for key in keys]:
            return _pack_pairs(value, kind, above, types)
    parts = [_head(_MAP, len(value))]
    for key, item in zip(keys, value.values()):
        parts += (key, pack(item, above, types))
    packed = b"".join(parts)
    return _extension(7, packed) if kind is OrderedDict else packed


def _pack_pairs(value: Any, kind: type, above: tuple[int, ...], types: set[Any]) -> bytes:
    """Return the bytes of a dict as two lists: a map has limits, and its keys are not marked."""
    if len(above) > MAX_DEPTH - 2:
        return _pack_opaque(value)
    keys = _pack_items(list(value), (*above, _IN_KEY), types)
    items = _pack_items(list(value.values()), (*above, above[-1]), types)
    parts = pack(MARK), pack("pairs"), keys, items, pack(kind is OrderedDict)
    return _extension(4, _head(_LIST, len(parts)) + b"".join(parts))


_LARGEST = {"f": 8, "c": 8 + 8}  # bytes of a number of a kind: no long double


def _is_portable(dtype: Any) -> bool:
    most = _LARGEST.get(dtype.kind, 10**8)
    return dtype.kind in "biufcmMSU" and 0 < dtype.itemsize <= most


def _pack_numpy(value: Any, kind: type, above: tuple[int, ...], types: set[Any]) -> bytes:
    """Return the bytes of an array or a NumPy scalar, b"" if its dtype has no portable form."""
    np = libraries.np
    dtype, shape = value.dtype, value.shape
    if kind is np.ndarray:
        sizes = [n or 1 for n in shape]
        if len(shape) > MAX_DIMS or (0 in shape and np.multiply.reduce(sizes) > MAX_EMPTY):
            return b""
        axes = axes_order(value)
        if dtype.kind == "O" and len(above) < MAX_DEPTH - 1:
            array = value if axes is None else value.transpose(axes)
            items = [value[()]] if value.ndim == 0 else list(array.ravel())
            return _mark("objects", list(array.shape), items, axes, above=above, types=types)
        if not _is_portable(dtype):
            return b""
        if axes is not None:
            # A copy in C order: that of a transposed array may still have another.
            return _mark("reordered", axes, value.transpose(axes).copy("C"))
        return _extension(1, _pack_items([dtype.str, list(shape), value.tobytes()], above, types))
    if dtype.kind == "U":
        return _extension(2, b"U\0" + str(value).encode("utf-8", "backslashreplace"))
    if dtype.kind == "S":
        return _extension(2, b"S\0" + bytes(value))
    if not _is_portable(dtype):
        return b""
    return _extension(2, dtype.str.encode() + b"\0" + value.tobytes())


def axes_order(array: Any) -> list[int] | None:
    """Return the axes by decreasing stride; None for C order."""
    if array.ndim < 2 or array.flags.c_contiguous:
        return None
    strides = libraries.np.empty_like(array).strides
    axes = sorted(range(array.ndim), key=lambda axis: -strides[axis])
    return axes if axes != list(range(array.ndim)) else None


def _mark(
    code: str, *parts: Any, above: tuple[int, ...] = (), types: set[Any] | None = None
) -> bytes:
    return _extension(4, _pack_items((MARK, code, *parts), above, types))


def _pack_other(value: Any, kind: type, above: tuple[int, ...], types: set[Any]) -> bytes:
    if isinstance(value, tuple) and hasattr(kind, "_fields") and not isinstance(value, enum.Enum):
        if kind.__name__ == "GraphInstance":
            return _extension(5, _pack_items(value, above, types))
        names = (kind.__name__, *kind._fields)
        is_deep, most = len(above) > MAX_DEPTH - 2, max(map(len, (names[1:], *names)))
        if is_deep or most > MAX_NAME or not names[0].isidentifier():
            return _pack_opaque(value)
        named = (*names, _name_of(kind))
        if named not in types and len(types) >= MAX_TYPES:
            return _pack_opaque(value)
        types.add(named)
        parts = names[0], names[1:], tuple(value), named[-1]
        return _mark("named", *parts, above=above, types=types)
    # A vector of environments has the mask f"_{key}".
    texts = [_shown(value, show) for show in (repr, format) if _IN_KEY in above]
    try:
        form, converted = _convert(value, kind)
    except Exception:  # noqa: BLE001 - the value's own code, which may raise anything
        form = ""
    if form:
        name = _name_of(kind)
        return _mark("converted", name, form, converted, *texts, above=above, types=types)
    return _pack_opaque(value, *texts[1:])


def _name_of(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _convert(value: Any, kind: type) -> tuple[str, Any]:
    """Return what stands for a value, as in `protocol/conversions.py`, and in which form.

    The forms are those of `child_values.py`; "": the value cannot be converted.
    """
    np = libraries.np
    if isinstance(value, Mapping):
        return "dict" if isinstance(value, dict) else "mapping", dict(value.items())
    if isinstance(value, enum.Enum):
        form = "number" if isinstance(value, (int, float)) else "value"
        return "text" if isinstance(value, str) else form, value.value
    if dataclasses.is_dataclass(kind):
        fields = dataclasses.fields(value)
        return "fields", {one.name: getattr(value, one.name) for one in fields}
    if hasattr(value, "detach"):  # a torch tensor
        value = value.detach().cpu()
        for name in ("resolve_conj", "resolve_neg"):  # since torch 1.10
            value = getattr(value, name, lambda same=value: same)()
        return "array", value.numpy()
    if np is not None and hasattr(kind, "__dlpack__") and not isinstance(value, np.ndarray):
        array = np.asarray(value)
        return "" if array.dtype.kind == "O" else "array", array
    if isinstance(value, memoryview) or (kind.__module__, kind.__name__) == ("array", "array"):
        return "list", value.tolist()
    return "", value


def _pack_opaque(value: Any, *label: str) -> bytes:
    """Return the bytes of a value that only shows its type, its repr and, in a key, its text."""
    return _mark("other", _name_of(type(value)), _shown(value, repr)[:200], *label)


def _shown(value: Any, show: Callable[[Any], str]) -> str:
    try:
        return printable(show(value))
    except Exception as error:  # noqa: BLE001 - a foreign repr may raise anything
        return f"<repr raised {type(error).__name__}>"


def printable(text: str) -> str:
    """Return a text without lone surrogates."""
    return text.encode("utf-8", "backslashreplace").decode()


_SIZES = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4, 0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}
_SIZES.update({0xC7: 1, 0xC8: 2, 0xC9: 4})
_NUMBERS = {
    0xCA: ">f", 0xCB: ">d", 0xCC: "B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: "b", 0xD1: ">h",
    0xD2: ">i", 0xD3: ">q",
}  # fmt: skip


def unpack(data: bytes) -> Any:
    """Return the value in these bytes, which the env agent sent."""
    return _unpack(data, 0)[0]


def _unpack(data: bytes, at: int) -> tuple[Any, int]:
    first, at = data[at], at + 1
    if first < 0x80:
        return first, at
    if first >= 0xE0:
        return first - 256, at
    if first in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[first], at
    if first in _NUMBERS:
        form = struct.Struct(_NUMBERS[first])
        return form.unpack_from(data, at)[0], at + form.size
    if 0xD4 <= first <= 0xD8:
        return _unpack_extension(data, at, 1 << (first - 0xD4))
    width = _SIZES.get(first, 0)
    size = int.from_bytes(data[at : at + width], "big")
    at += width
    if first <= 0xBF:
        size = first & (0x0F if first <= 0x9F else 0x1F)
    if first <= 0x8F or first in (0xDE, 0xDF):
        items, at = _unpack_items(data, at, 2 * size)
        return dict(zip(items[::2], items[1::2])), at
    if first <= 0x9F or first in (0xDC, 0xDD):
        return _unpack_items(data, at, size)
    if 0xC7 <= first <= 0xC9:
        return _unpack_extension(data, at, size)
    raw = data[at : at + size]
    return (raw if first in (0xC4, 0xC5, 0xC6) else raw.decode()), at + size


def _unpack_items(data: bytes, at: int, count: int) -> tuple[list[Any], int]:
    items = []
    for _ in range(count):
        item, at = _unpack(data, at)
        items.append(item)
    return items, at


def _unpack_extension(data: bytes, at: int, size: int) -> tuple[Any, int]:
    np = libraries.np
    code, at = data[at], at + 1
    body, end = data[at : at + size], at + size
    if code == 1:
        text, shape, raw = unpack(body)
        return np.ndarray(shape, text, raw).copy(), end
    if code == 2:
        name, _, raw = body.partition(b"\0")
        if name in (b"U", b"S"):
            return (np.str_(raw.decode()) if name == b"U" else np.bytes_(raw)), end
        return np.frombuffer(raw, name.decode())[0], end
    if code == 3:
        return int.from_bytes(body, "little", signed=True), end
    items = unpack(body)
    if code == 5 and "gymnasium.spaces" in sys.modules:
        return sys.modules["gymnasium.spaces"].GraphInstance(*items), end
    if code == 8:
        name, fields, parts = items
        return namedtuple(name, fields, rename=True)(*parts), end
    if code == 9:
        array = np.empty(len(items[1]), object)
        for index, item in enumerate(items[1]):  # NumPy would make one array of a list of arrays
            array[index] = item
        items = items[2] if len(items) > 2 else range(len(items[0])), array.reshape(items[0])
    if code in (9, 10):
        axes, array = items
        return array.transpose([axes.index(axis) for axis in range(array.ndim)]), end
    return (OrderedDict(items) if code == 7 else tuple(items)), end
