"""The environment's numpy, Gymnasium and old gym, if it uses them."""

from __future__ import annotations

import importlib
import sys
from typing import Any

np: Any = None  # numpy, once an environment was loaded, if this interpreter has it
REWARDS: dict[type, int] = {float: 0}  # types of compact rewards → their numbers


def use_numpy() -> None:
    """Import numpy if this interpreter has it."""
    global np
    try:
        np = importlib.import_module("numpy")
        REWARDS[np.float64] = 1
    except ImportError:
        np = None


def classes(name: str, module: str = "") -> tuple[Any, ...]:
    """Return the classes of this name of Gymnasium and old gym, as far as they are used."""
    found = [getattr(sys.modules.get(one + module), name, None) for one in ("gymnasium", "gym")]
    return tuple(one for one in found if isinstance(one, type))


def vector_classes() -> tuple[Any, ...]:
    """Return the base classes of vectors of Gymnasium and old gym, as far as they are used."""
    return classes("VectorEnv", ".vector")
