"""The signals that end a program."""

from __future__ import annotations

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
