from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gymwire.protocol import generators, values
from gymwire.protocol.errors import DecodingError


@pytest.mark.parametrize("kind", ["PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"])
def test_a_generator_continues_from_its_state(kind: str) -> None:
    original = np.random.Generator(getattr(np.random, kind)(7))
    original.random(3)
    original.integers(10, dtype=np.uint32)  # leaves half a word behind
    state = values.decode(values.encode(generators.describe(original)))
    copy = generators.build(state)
    assert copy.integers(100, size=20).tolist() == original.integers(100, size=20).tolist()
    assert copy.random() == original.random()


@pytest.mark.parametrize(
    "state",
    [
        None, 7, {}, [], {"bit_generator": "Generator"}, {"bit_generator": "PCG64"},
        {"bit_generator": ["PCG64"]},
        {"bit_generator": "PCG64", "state": {"state": -1, "inc": 1}, "has_uint32": 0,
         "uinteger": 0},
        {"bit_generator": "MT19937", "state": {"key": [1], "pos": 0}},
        {"bit_generator": "MT19937", "state": {"key": "x" * 624, "pos": 10**30}},
        {"bit_generator": "MT19937", "state": {"key": np.zeros(624, np.uint32), "pos": 10**6}},
        {"bit_generator": "MT19937", "state": {"key": np.zeros(624, np.uint32), "pos": -1}},
        np.random.Philox(1).state | {"buffer_pos": -1},
        np.random.Philox(1).state | {"buffer_pos": 5},
        {"bit_generator": "SFC64", "state": 3},
        {"bit_generator": "Philox", "state": {"counter": None, "key": None}},
    ],
)  # fmt: skip
def test_a_malformed_state_is_refused(state: Any) -> None:
    with pytest.raises(DecodingError, match="random generator"):
        generators.build(state)
