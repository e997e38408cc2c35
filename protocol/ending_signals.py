"""The signals that end a program, and an event for their handlers."""

from __future__ import annotations

import contextlib
import queue
import signal

# Of a closed terminal: the kernel sends it, and often the shell once more. Windows has none.
HANGUP = getattr(signal, "SIGHUP", signal.SIGTERM)


def ending_signals() -> tuple[int, ...]:
    """Return SIGINT, SIGTERM and SIGHUP; the last one unless `nohup` lets this process ignore it.

    Ask before SIGHUP gets a handler that ignores it.
    """
    numbers = {signal.SIGINT, signal.SIGTERM}
    if signal.getsignal(HANGUP) is not signal.SIG_IGN:
        numbers.add(HANGUP)
    return tuple(numbers)


class StopEvent:
    """An event that a signal handler may set.

    A handler must not set a `threading.Event`: the code that it interrupts may hold the lock of
    that event, and `set` would wait for it forever.
    """

    def __init__(self) -> None:
        self._set: queue.SimpleQueue[None] = queue.SimpleQueue()  # its `put` is reentrant

    def set(self) -> None:
        """Set the event."""
        self._set.put(None)

    def is_set(self) -> bool:
        """Return whether the event is set."""
        return not self._set.empty()

    def wait(self, timeout_s: float) -> bool:
        """Wait until the event is set, for at most `timeout_s` seconds. Returns whether it is."""
        with contextlib.suppress(queue.Empty):
            self._set.get(timeout=timeout_s)
            self.set()
        return self.is_set()
