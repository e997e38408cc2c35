"""Make numba refuse the generators of remote environments, instead of crashing the process.

Compiled code would look for the address of the generator's bit generator, which a remote one does
not have, and numba does not check whether it was found.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from functools import lru_cache
from types import ModuleType
from typing import Any


def init() -> None:
    """Make numba refuse the generators if this process may have any.

    Numba calls this before it compiles anything: see `numba_extensions` in pyproject.toml. Nothing
    else is loaded in programs without proxies.
    """
    module = sys.modules.get(f"{__package__}.remote_generators")
    if module is not None:
        refuse(module.RemoteGenerator)


def refuse(kind: Any) -> None:
    """Make numba refuse generators of this class, if numba is loaded."""
    numba = sys.modules.get("numba")
    if numba is not None:
        with contextlib.suppress(ImportError, AttributeError):  # a release without generators
            _register(numba, kind)


@lru_cache(maxsize=1)  # a generator may be read in every step
def _register(numba: ModuleType, kind: Any) -> None:
    """Register the class with numba. Raises ImportError or AttributeError in an older release."""
    importlib.import_module(f"{numba.__name__}.extending").typeof_impl.register(kind, _no_type)


def _no_type(generator: Any, context: Any) -> None:
    raise TypeError(
        "Code that numba compiles cannot draw from the generator of a remote environment. Pass it "
        "numbers that you draw with the generator's methods, or a generator of your own: "
        "numpy.random.default_rng(seed), where you draw the seed."
    )
