"""How Ctrl-C, SIGTERM and SIGHUP end a command."""

from __future__ import annotations

import _thread
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

from gymwire.protocol.ending_signals import HANGUP, ending_signals

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

ExceptHook = Callable[[type[BaseException], BaseException, TracebackType | None], object]

REPEAT_S = 0.05


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, SIGTERM or SIGHUP; `status` is the exit status that shells expect."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.status = 128 + number


class _Hold:
    """Whether signals are held, and the one that was received meanwhile; 0: none.

    `repeats`: whether a thread sends a signal again, which has not been received yet.
    """

    is_on = False
    received = 0
    repeats = False


_hold = _Hold()


def handle_signals() -> None:
    """Let the signals that end a program raise Interrupted in the main thread.

    A second signal ends the process at once, but SIGHUP may be repeated.
    """
    for number in ending_signals():
        signal.signal(number, _interrupt)


@contextmanager
def held() -> Iterator[None]:
    """Delay Interrupted until this block ends, except in blocks that are `waiting`.

    If the block raises, its exception ends the command, and the signal is dropped.
    """
    _hold.is_on, _hold.received = True, 0
    try:
        yield
    except BaseException:
        _hold.received = 0
        raise
    finally:
        _hold.is_on = False
    _raise_received()


@contextmanager
def waiting() -> Iterator[None]:
    """Let signals raise Interrupted, also within a block in which they are `held`."""
    was_on, _hold.is_on = _hold.is_on, False
    try:
        _raise_received()
        yield
    finally:
        _hold.is_on = was_on


def _raise_received() -> None:
    number, _hold.received = _hold.received, 0
    if number:
        raise Interrupted(number)


def _interrupt(number: int, frame: FrameType | None) -> None:
    _hold.repeats = False
    for each in ending_signals():
        may_repeat = each == HANGUP and HANGUP != signal.SIGTERM  # on Windows, HANGUP is SIGTERM
        signal.signal(each, signal.SIG_IGN if may_repeat else signal.SIG_DFL)
    if _hold.is_on:
        _hold.received = number
    elif _is_in_hook(frame):
        _send_again(number)
    else:
        hooks = sys.unraisablehook, sys.excepthook
        sys.unraisablehook = partial(_handle_unraisable, number, *hooks)
        sys.excepthook = partial(_print_others, sys.excepthook)
        raise Interrupted(number)


def _handle_unraisable(
    number: int,
    otherwise: Callable[[UnraisableHookArgs], object],
    excepthook: ExceptHook,
    unraisable: UnraisableHookArgs,
) -> None:
    """Send the signal again if Python has dropped the exception.

    Python drops exceptions in callbacks of weak references and of the garbage collector, and in
    `__del__`. It calls this function instead, which cannot raise either.
    """
    if isinstance(unraisable.exc_value, Interrupted):
        sys.unraisablehook, sys.excepthook = otherwise, excepthook
        _send_again(number)
    else:
        otherwise(unraisable)


def _print_others(
    otherwise: ExceptHook,
    kind: type[BaseException],
    error: BaseException,
    traceback: TracebackType | None,
) -> None:
    """Print an exception unless it is Interrupted.

    Before Cython drops an exception, as in the `__dealloc__` of pyzmq's frames, it prints it.
    """
    if not isinstance(error, Interrupted):
        otherwise(kind, error, traceback)


def _is_in_hook(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code is _handle_unraisable.__code__:
            return True
        frame = frame.f_back
    return False


def _send_again(number: int) -> None:
    """Let another thread send the signal to the main thread, which meanwhile runs on."""
    signal.signal(number, _interrupt)
    if hasattr(signal, "SIGURG"):
        signal.signal(signal.SIGURG, _do_nothing)
    _hold.repeats = True
    # `threading.Thread` would wait for locks that the interrupted code may hold.
    _thread.start_new_thread(_send, (number,))


def _send(number: int) -> None:
    """Let Python call the handler, and end a wait of the main thread, which may have just begun.

    The signal itself must not be sent twice, because a second one would end the process.
    """
    _thread.interrupt_main(signal.Signals(number))
    while _hold.repeats:
        if hasattr(signal, "pthread_kill"):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGURG)
        time.sleep(REPEAT_S)


def _do_nothing(number: int, frame: FrameType | None) -> None:
    """Handle SIGURG: a signal without a handler ends no wait."""
