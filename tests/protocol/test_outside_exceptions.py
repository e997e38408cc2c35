from __future__ import annotations

import ctypes
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import numpy as np
import pytest

from gymwire.protocol import values
from gymwire.protocol.outside_exceptions import is_from_outside


def caught(call: Callable[[], object]) -> Exception:
    try:
        call()
    except Exception as error:  # noqa: BLE001 - whatever it is
        return error
    raise AssertionError("nothing raised")


@pytest.fixture
def handler() -> Iterator[Callable[[Exception], Exception]]:
    """Return a function that lets the handler of a signal raise an exception, and catches it."""
    before = signal.getsignal(signal.SIGUSR1)

    def raised(error: Exception) -> Exception:
        def handle(_number: int, _frame: FrameType | None) -> None:
            raise error

        signal.signal(signal.SIGUSR1, handle)
        return caught(lambda: signal.raise_signal(signal.SIGUSR1))

    yield raised
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("kind", [TimeoutError, OSError, ValueError, MemoryError, KeyError])
@pytest.mark.parametrize("args", [(), ("text",), (5, "text")])
def test_what_a_handler_raises_is_from_outside(
    handler: Callable[[Exception], Exception], kind: type[Exception], args: tuple[object, ...]
) -> None:
    assert is_from_outside(handler(kind(*args)))


class Expired(TimeoutError):
    """What a program of a user sets on its threads."""


class Explained(ValueError):
    """The same, with a text of its own."""

    def __init__(self) -> None:
        super().__init__("the time is over")


# As text, because a lambda would be a function of a foreign module.
FAILURES: dict[str, dict[str, object]] = {
    "socket.create_connection(('127.0.0.1', 1))": {"socket": socket},
    "socket.getaddrinfo('', 'no port')": {"socket": socket},
    "open('/no/such/file')": {},
    "values._Reader(None, text_keys=True).read(bytes([0xC1]))": {"values": values},
    "values._Reader(None, text_keys=True).read(b'')": {"values": values},
    "np.empty(2**60)": {"np": np},
    "np.frombuffer(b'', '|S0')": {"np": np},
    "int('x')": {},
}


CALL = """
def call():
    try:
        {}
    except Exception as error:
        return error
"""


def caught_by_gymwire(expression: str, names: dict[str, object]) -> Exception:
    """Return the exception of an expression that a module of gymwire evaluates and catches."""
    module = {"__name__": "gymwire.tried", **names}
    exec(CALL.format(expression), module)
    call = module["call"]
    assert callable(call)
    error = call()
    assert isinstance(error, Exception)
    return error


@pytest.mark.parametrize("expression", FAILURES)
def test_what_a_call_of_gymwire_raises_is_not(expression: str) -> None:
    assert not is_from_outside(caught_by_gymwire(expression, FAILURES[expression]))


@pytest.mark.parametrize(
    "kind", [TimeoutError, BlockingIOError, ValueError, TypeError, Expired, Explained]
)
def test_what_a_thread_sets_on_another_is_from_outside(kind: type[Exception]) -> None:
    set_on = ctypes.pythonapi.PyThreadState_SetAsyncExc
    names: dict[str, object] = {
        "set_on": set_on,
        "thread": ctypes.c_ulong(threading.get_ident()),
        "kind": ctypes.py_object(kind),
    }
    expression = "set_on(thread, kind)\n        while True: pass"
    assert is_from_outside(caught_by_gymwire(expression, names))
