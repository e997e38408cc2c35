"""The signals that end an env agent, handled in a thread of their own."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import contextlib
import os
import signal
import threading
from collections.abc import Callable

from gymwire.protocol import logs
from gymwire.protocol.ending_signals import HANGUP, ending_signals
from gymwire.protocol.outside_exceptions import is_from_signal_handler, until_returned

# Drains like SIGTERM, but may be repeated. SLURM, systemd and Kubernetes signal every process of a
# job, some of them twice; a second SIGTERM ends the process. Windows has no SIGUSR1.
DRAIN = getattr(signal, "SIGUSR1", signal.SIGTERM)
DRAINING = {DRAIN, HANGUP}
ENDING = tuple({*ending_signals(), DRAIN})
# Of a worker that an operator of the broker has stopped: it is not started again. Environments that
# end their process use other numbers.
STOPPED = 113
_NO_HANDLERS = (signal.SIG_DFL, signal.SIG_IGN, None)
# Timers by the signal that they send. Windows has none.
_TIMERS = {
    getattr(signal, name): getattr(signal, timer)
    for name, timer in (
        ("SIGALRM", "ITIMER_REAL"),
        ("SIGVTALRM", "ITIMER_VIRTUAL"),
        ("SIGPROF", "ITIMER_PROF"),
    )
    if hasattr(signal, name)
}
# They do nothing by default. If SIGCHLD had SIG_IGN, the exit statuses of children would be lost.
_IGNORED_BY_DEFAULT = {
    getattr(signal, name)
    for name in ("SIGCHLD", "SIGCONT", "SIGURG", "SIGWINCH")
    if hasattr(signal, name)
}
CUT_OFF = 1  # exit status if a step or an environment's `close` did not end in time


def watch(on_signal: Callable[[int], None]) -> Callable[..., None]:
    """Call `on_signal` with the number of each signal of ENDING from now on.

    It is called in another thread: the main thread, in which Python runs the handlers of signals,
    may execute a step that does not return to the interpreter. Call this in the main thread.

    Returns a function to call after an environment's code, which may ignore signals, let them end
    the process, or use `asyncio.run`: it undoes that in the main thread. In others it does nothing.
    With `at_end`, after the last environment of the main thread, it also ends the timers that
    environments have left, and their handlers: they must not decide how the process ends.
    """
    numbers, wakeup = os.pipe()
    os.set_blocking(wakeup, False)

    def handle(number: int, frame: object) -> None:
        for timer in _TIMERS:  # else one without a handler would end the process
            if signal.getsignal(timer) is signal.SIG_DFL:
                signal.signal(timer, signal.SIG_IGN)
        # An environment may have set another file descriptor, which got this number instead.
        if signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False) != wakeup:
            with contextlib.suppress(OSError):
                os.write(wakeup, bytes([number]))

    def read() -> None:
        while number := os.read(numbers, 1):
            if number[0] in ENDING:
                on_signal(number[0])

    def restore(*, at_end: bool = False) -> None:
        if threading.get_ident() == main:
            if at_end and (error := until_returned(_end_timers_and_handlers)) is not None:
                raise error
            _restore(handle, wakeup, restored)

    main, restored = threading.get_ident(), set[int]()
    threading.Thread(target=read, name="signals", daemon=True).start()
    # First the file descriptor: without it, a signal between the two would be lost.
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    for number in ENDING:
        signal.signal(number, handle)
    return restore


def _end_timers_and_handlers(raised: BaseException | None) -> BaseException | None:
    """End the timers of this process, and ignore the signals that still have handlers.

    ENDING is left alone. A handler may raise meanwhile; `raised` is what came out of the last
    attempt. Return it if no handler of a signal has raised it.
    """
    if raised is not None and not is_from_signal_handler(raised):
        return raised
    for number, timer in _TIMERS.items():
        signal.setitimer(timer, 0.0)
        signal.signal(number, signal.SIG_IGN)
    for number in signal.valid_signals():
        if number not in ENDING and callable(signal.getsignal(number)):
            is_harmless = number in _IGNORED_BY_DEFAULT
            signal.signal(number, signal.SIG_DFL if is_harmless else signal.SIG_IGN)
    return None


def _restore(handle: Callable[[int, object], None], wakeup: int, restored: set[int]) -> None:
    """Set what `watch` has set, where the code of an environment has removed it.

    `restored`: the signals for which this has happened, which the log says once.
    """
    former = signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    if former not in (-1, wakeup):  # an event loop that the environment runs needs it
        signal.set_wakeup_fd(former, warn_on_full_buffer=False)
    for number in ENDING:
        # Not `signal.getsignal`: it looks for an enum member, which takes longer than a reset.
        if _signal.getsignal(number) in _NO_HANDLERS:
            signal.signal(number, handle)
            if number not in restored:
                restored.add(number)
                logs.logger().warning(
                    "signal handler restored",
                    signal=signal.Signals(number).name,
                    why="an environment has removed it, and this env agent needs it to end",
                )
