"""Convert values of types that cannot be serialized: enums, dataclasses, named tuples, tensors.

Only the env agent converts values, and only those that an environment returns
(docs/protocol.md §10).
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gymwire.protocol.named_tuples import count_type, named_type, rebuild


class Converted:
    """Stands for a value that another process has converted; its class is named as the value's.

    Attributes:
        became: what the value was converted to.
        value: the result, whose parts may have been converted, too.
    """

    became: str
    value: Any

    def __repr__(self) -> str:
        return repr(self.value)


class Converter:
    """Converts one value after another, and notes what it has converted.

    Args:
        only_tensors: whether nothing but tensors is converted.
        extended: whether the receiver has the capability `values`.

    Attributes:
        conversions: (path, type, what it became) of each value that was converted.
        types: those of the named tuples among the values.
    """

    def __init__(self, *, only_tensors: bool, extended: bool) -> None:
        self.only_tensors = only_tensors
        self.extended = extended
        self.conversions: list[tuple[str, str, str]] = []
        self.types: set[Any] = set()

    def convert(self, value: Any, path: str, walk: Callable[[Any, str], Any]) -> Any:
        """Return the converted value, or `value` itself if there is no conversion.

        `walk` copies the parts of the value, and converts them.
        """
        try:
            text, parts, build = self._parts(value)
        except BaseException:  # noqa: BLE001 - the value's own code, which may raise anything
            return value
        if not text:
            return value
        kind = type(value)
        self.conversions.append((path, f"{kind.__module__}.{kind.__qualname__}", text))
        copy = walk(parts, path)
        # It is an `Opaque` if it is nested too deep.
        return copy if build is None or type(copy) is not list else build(copy)

    def _parts(self, value: Any) -> tuple[str, Any, Callable[[Any], Any] | None]:
        """Return what the value becomes, its parts, and what makes the result of their copy.

        "" if there is no conversion.
        """
        kind = type(value)
        if hasattr(kind, "__dlpack__") and not isinstance(value, np.ndarray):
            return "array", _to_array(value), None
        if self.only_tensors:
            return "", None, None
        if isinstance(value, Converted):
            return value.became, value.value, None
        if isinstance(value, Mapping):
            return "dict", dict(value.items()), None
        if isinstance(value, enum.Enum):
            return "value", value.value, None
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            names = [one.name for one in dataclasses.fields(value)]
            return "dict", {name: getattr(value, name) for name in names}, None
        if isinstance(value, tuple) and hasattr(kind, "_fields"):
            if not self.extended:
                return "tuple", tuple(value), None
            name, fields = kind.__name__, tuple(kind._fields)
            named_type(name, fields)
            count_type(self.types, name, fields)
            return "named tuple", list(value), lambda items: rebuild(name, fields, items)
        return "", None, None


def _to_array(tensor: Any) -> np.ndarray[Any, Any]:
    """Return the values of a tensor of PyTorch, JAX or another library, as NumPy has them."""
    if hasattr(tensor, "detach"):  # PyTorch
        tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    array = np.asarray(tensor)
    return np.asarray(array, array.dtype)
