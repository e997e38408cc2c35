"""Equality to the bit: types, dtypes, shapes, key order, NaN payloads."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np


def assert_same(a: Any, b: Any, path: str = "value") -> None:
    """Fail unless `a` and `b` are indistinguishable, naming the first place where they differ."""
    assert type(a) is type(b), f"{path}: {type(a)} against {type(b)}"
    if isinstance(a, np.ndarray):
        assert (a.dtype, a.dtype.str, a.shape) == (b.dtype, b.dtype.str, b.shape), path
        if a.dtype.hasobject:  # in a vector's infos; its bytes are pointers
            assert_same(a.tolist(), b.tolist(), path)
        else:
            assert a.tobytes() == b.tobytes(), f"{path}: {a!r} against {b!r}"
    elif isinstance(a, (np.str_, np.bytes_)):
        assert a == b, path
    elif isinstance(a, np.generic):
        assert a.dtype == b.dtype, path
        assert a.tobytes() == b.tobytes(), f"{path}: {a!r} against {b!r}"
    elif isinstance(a, float):
        assert struct.pack("<d", a) == struct.pack("<d", b), f"{path}: {a!r} against {b!r}"
    elif isinstance(a, dict):
        assert len(a) == len(b), path
        for (key_a, item_a), (key_b, item_b) in zip(a.items(), b.items(), strict=True):
            assert_same(key_a, key_b, f"{path}, a key")
            assert_same(item_a, item_b, f"{path}[{key_a!r}]")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (item_a, item_b) in enumerate(zip(a, b, strict=True)):
            assert_same(item_a, item_b, f"{path}[{i}]")
    else:
        assert a == b, f"{path}: {a!r} against {b!r}"
