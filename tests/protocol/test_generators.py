from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gymwire.protocol import generators, values
from gymwire.protocol.errors import DecodingError, UsageError


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


def key_of(*words: int) -> Any:
    return np.array(words + (0,) * (624 - len(words)), np.uint32)


@pytest.mark.parametrize(
    ("kind", "state", "problem"),
    [
        ("PCG64", {"state": 0, "inc": 0}, "even"),
        ("PCG64", {"state": 1 << 127, "inc": 2}, "even"),
        ("PCG64DXSM", {"state": 0, "inc": 0}, "even"),
        ("PCG64DXSM", {"state": 1, "inc": 1 << 100}, "even"),
        ("MT19937", {"key": key_of(), "pos": 0}, "zero"),
        ("MT19937", {"key": key_of(2**31 - 1), "pos": 624}, "zero"),  # the other bits are unused
        ("MT19937", {"key": key_of(7), "pos": 0}, "zero"),
    ],
)
def test_a_state_after_which_no_number_is_random_is_refused(
    kind: str, state: dict[str, Any], problem: str
) -> None:
    """NumPy draws again until a number is in the range, which would never end."""
    whole = getattr(np.random, kind)(1).state | {"state": state}
    with pytest.raises(DecodingError, match=f"random generator.*{problem}"):
        generators.build(whole)


@pytest.mark.parametrize(
    ("kind", "state"),
    [
        ("MT19937", {"key": key_of(1 << 31), "pos": 624}),
        ("MT19937", {"key": key_of(0, 1), "pos": 624}),
        ("SFC64", {"state": np.zeros(4, np.uint64)}),
        ("Philox", {"counter": np.zeros(4, np.uint64), "key": np.zeros(2, np.uint64)}),
    ],
)
def test_every_other_state_is_used(kind: str, state: dict[str, Any]) -> None:
    whole = getattr(np.random, kind)(1).state | {"state": state}
    found = generators.build(whole).bit_generator
    assert len(set(found.random_raw(10_000).tolist())) > 10


class _Unknown(np.random.PCG64):
    """A bit generator whose state is fine, but its name unknown."""

    @property  # type: ignore[misc]
    def state(self) -> Any:
        return {**super().state, "bit_generator": "Unknown"}


def _even() -> np.random.Generator:
    bits = np.random.PCG64(1)
    bits.state = {**bits.state, "state": {"state": 1, "inc": 0}}
    return np.random.Generator(bits)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (5, "^np_random must be a numpy.random.Generator, not 5.$"),
        (None, "not None"),
        (np.random.RandomState(1), "not RandomState"),
        (_even(), "^np_random cannot be set to this generator.*inc is even"),
        (np.random.Generator(_Unknown(1)), "^np_random cannot be set to this generator.*'Unknown'"),
    ],
    ids=["number", "None", "RandomState", "even", "unknown"],
)
def test_a_generator_that_cannot_be_set_is_the_learners_fault(value: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        generators.describe_new(value)


def test_the_state_of_a_new_generator_is_its_own() -> None:
    generator = np.random.default_rng(3)
    assert generators.describe_new(generator) == generators.describe(generator)
