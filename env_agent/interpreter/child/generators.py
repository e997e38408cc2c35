"""The random generators of environments, and their states."""

from __future__ import annotations

from typing import Any

from . import libraries

GENERATOR = "np_random"


def continued(old: Any, state: Any) -> Any:
    """Return a generator in a state: the old one if there is one of the same kind."""
    bits = getattr(old, "bit_generator", None)
    if bits is None or bits.state["bit_generator"] != state["bit_generator"]:
        bits = getattr(libraries.np.random, state["bit_generator"])()
        old = libraries.np.random.Generator(bits)
    bits.state = state
    return old
