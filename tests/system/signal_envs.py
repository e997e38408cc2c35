"""Environments that use signals, or fork, in ways that could end or confuse their env agent."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from typing import Any

from tests.odd_envs import Odd, Result


class Alarmed(Odd):
    """Sets a timer in `reset` whose handler raises, and does not stop it."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        signal.signal(signal.SIGALRM, self._expired)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        return super().reset(seed=seed, options=options)

    def _expired(self, *_: object) -> None:
        raise TimeoutError("the time is over")


class Late(Odd):
    """Each step sets a timer whose handler raises soon after the step has returned."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        signal.signal(signal.SIGALRM, self._expired)
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> Result:
        signal.setitimer(signal.ITIMER_REAL, 2e-5 + 1e-5 * (self.steps % 30))
        return super().step(action)

    def _expired(self, _number: int, _frame: object) -> None:
        raise TimeoutError("the time is over")


class Timed(Odd):
    """Leaves a timer that goes off again and again, and a process that takes a while to end.

    `handler`: "raises", "returns" or "none"; the last one goes off after `close`, and only once.
    """

    def __init__(self, render_mode: str | None = None, *, handler: str) -> None:
        super().__init__(render_mode)
        self._handler = handler

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        atexit.register(time.sleep, 0.5)
        if self._handler != "none":
            signal.signal(signal.SIGALRM, self._expired)
            signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
        return super().reset(seed=seed, options=options)

    def close(self) -> None:
        if self._handler == "none":
            signal.setitimer(signal.ITIMER_REAL, 0.3)
        super().close()

    def _expired(self, *_: object) -> None:
        if self._handler == "raises":
            raise TimeoutError("the time is over")


class Unstoppable(Odd):
    """Removes the handlers of the signals that end a program; a step never returns."""

    def __init__(self, render_mode: str | None = None, *, ignores: bool) -> None:
        super().__init__(render_mode)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN if ignores else signal.SIG_DFL)

    def step(self, action: Any) -> Result:
        threading.Event().wait()
        return super().step(action)


class Forking(Odd):
    """Forks in each step; the child ends by the exception that the action selects."""

    def step(self, action: Any) -> Result:
        child = os.fork()
        if not child:
            if action == 3:
                raise ValueError("in the child")
            sys.exit([None, 0, 7, None, "words"][action])
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return status, *super().step(action)[1:]
