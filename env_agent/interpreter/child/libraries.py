"""The environment's numpy, Gymnasium and old gym, if it uses them."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from .frames import FLOAT, NUMPY_FLOAT

np: Any = None  # numpy, once an environment was loaded, if this interpreter has it
REWARDS: dict[type, bytes] = {float: FLOAT}  # the types of compact rewards


def use_numpy() -> None:
    """Import numpy if this interpreter has it."""
    global np
    try:
        np = importlib.import_module("numpy")
        REWARDS[np.float64] = NUMPY_FLOAT
    except ImportError:
        np = None


def classes(name: str, module: str = "", libraries: Any = ("gymnasium", "gym")) -> tuple[Any, ...]:
    """Return the classes of this name of Gymnasium and old gym, as far as they are used."""
    found = [getattr(sys.modules.get(one + module), name, None) for one in libraries]
    return tuple(one for one in found if isinstance(one, type))


def vector_classes() -> tuple[Any, ...]:
    """Return the base classes of vectors of Gymnasium and old gym, as far as they are used."""
    return classes("VectorEnv", ".vector")
