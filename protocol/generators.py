"""Serialize random generators by the state of a `numpy.random.Generator`, never by pickling."""

from __future__ import annotations

from typing import Any

import numpy as np

from gymwire.protocol.errors import DecodingError, UsageError
from gymwire.protocol.outside_exceptions import is_from_outside

_BIT_GENERATORS = {
    kind.__name__: kind
    for kind in (
        np.random.PCG64,
        np.random.PCG64DXSM,
        np.random.MT19937,
        np.random.Philox,
        np.random.SFC64,
    )
}

_TOP_BIT = 1 << 31


def describe(generator: np.random.Generator) -> dict[str, Any]:
    """Return the state of a generator, as `bit_generator.state` has it.

    Raises AttributeError for anything else, such as a RandomState.
    """
    check(generator)
    return dict(generator.bit_generator.state)


def describe_new(generator: Any) -> dict[str, Any]:
    """Return the state of a generator that a learner sets.

    Raises UsageError if it is not a generator, or in a state that `build` refuses.
    """
    try:
        state = describe(generator)
        build(state)
    except AttributeError:
        raise UsageError(
            f"np_random must be a numpy.random.Generator, not {generator!r:.100}."
        ) from None
    except DecodingError as error:
        raise UsageError(f"np_random cannot be set to this generator. {error}") from None
    return state


def check(generator: Any) -> None:
    """Raise AttributeError for anything but a `numpy.random.Generator`."""
    kind = type(generator)
    if not hasattr(kind, "bit_generator"):
        raise AttributeError(
            f"np_random is a {kind.__name__}, but only a numpy.random.Generator can be used from "
            f"another process."
        )


def continued(old: np.random.Generator | None, new: np.random.Generator) -> np.random.Generator:
    """Return `old` in the state of `new`, but `new` itself if they are of different kinds."""
    state = new.bit_generator.state
    if old is None or old.bit_generator.state["bit_generator"] != state["bit_generator"]:
        return new
    old.bit_generator.state = state
    return old


def build(state: Any) -> np.random.Generator:
    """Return a generator in this state. Raises DecodingError."""
    try:
        bits = _BIT_GENERATORS[state["bit_generator"]]()
        # numpy does not check these positions and would read memory outside its buffers.
        if not 0 <= state["state"].get("pos", 0) <= 624 or not 0 <= state.get("buffer_pos", 0) <= 4:
            raise ValueError("a position outside its buffer")
        bits.state = state
        _check_period(bits)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        if is_from_outside(error):
            raise
        raise DecodingError(f"Not the state of a random generator: {error!r}.") from None
    return np.random.Generator(bits)


def _check_period(bits: Any) -> None:
    """Raise ValueError for a state after which few different numbers follow, such as only zeros.

    NumPy draws again until a number is in the range, which would never end. No state of Philox or
    SFC64 is like this: they count.
    """
    kind, state = type(bits), bits.state["state"]
    if kind in (np.random.PCG64, np.random.PCG64DXSM) and state["inc"] % 2 == 0:
        raise ValueError("inc is even")
    # MT19937 does not use the other bits of the first word.
    if kind is np.random.MT19937 and state["key"][0] < _TOP_BIT and not state["key"][1:].any():
        raise ValueError("the key is zero")
