"""Exceptions from outside: raised by a signal handler, or set on this thread by another one.

They may arrive at any instruction, and may be of any class. Code that handles the failures of the
operating system or of a decoder must not take them for one (docs/reliability.md).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from traceback import walk_tb
from typing import TypeVar

Result = TypeVar("Result")

# What may stand between gymwire and the call that failed. The handler of a signal is in a module of
# the program that uses gymwire.
_LIBRARIES = sys.stdlib_module_names | {"gymwire", "gymnasium", "msgpack", "numpy", "zmq"}


def is_from_outside(error: BaseException) -> bool:
    """Return whether an exception that was just caught came from outside.

    Its class is then of a foreign module, its traceback leads into one, or it lacks what the failed
    call says: an exception that a thread sets on another one has no arguments and no frame of its
    own, while Python's own have arguments.
    """
    kind = type(error)
    if kind.__module__ == "builtins":
        if not error.args and kind is not MemoryError:
            return True
    elif not _is_library(kind.__module__):
        return True
    return has_foreign_frame(error)


def has_foreign_frame(error: BaseException) -> bool:
    """Return whether the traceback of an exception leads into a foreign module."""
    traceback = error.__traceback__
    while traceback is not None:
        module: str = traceback.tb_frame.f_globals.get("__name__", "")
        if not _is_library(module):
            return True
        traceback = traceback.tb_next
    return False


def is_from_signal_handler(error: BaseException) -> bool:
    """Return whether a signal handler in a foreign module raised an exception.

    Python passes a handler the frame that it interrupts. So a foreign function that has a frame of
    its callers among its arguments is a handler.
    """
    callers = set[int]()
    for frame, _ in walk_tb(error.__traceback__):
        if not _is_library(frame.f_globals.get("__name__", "")):
            for value in list(frame.f_locals.values()):
                arguments = value if type(value) is tuple else (value,)  # of `*arguments`
                if any(id(one) in callers for one in arguments):
                    return True
        callers.add(id(frame))
    return False


def until_returned(call: Callable[[BaseException | None], Result]) -> Result:
    """Call a function until it returns; pass it the exception of the last attempt, at first None.

    The outer loop catches what a signal handler raises at the jump back of the inner loop, which is
    outside the inner `try`.
    """
    raised: BaseException | None = None
    while True:
        try:
            while True:
                try:
                    return call(raised)
                except BaseException as error:  # noqa: BLE001 - the next call gets it
                    raised = error
        except BaseException as error:  # noqa: BLE001 - the next call gets it
            raised = error


def _is_library(module: str) -> bool:
    return module.partition(".")[0] in _LIBRARIES
