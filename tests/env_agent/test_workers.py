"""The supervisor of workers, with processes in memory."""

from __future__ import annotations

import itertools
import signal
import subprocess
from functools import partial
from typing import cast

import pytest

from gymwire.env_agent import workers
from gymwire.env_agent.signals import DRAIN
from gymwire.env_agent.workers import Supervisor, Worker
from tests.interrupted_lines import interrupt


class Process:
    """A process that runs until it gets a signal."""

    def __init__(self) -> None:
        self.returncode: int | None = None
        self.signals: list[int] = []

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        self.signals.append(number)
        self.returncode = 0


class InMemory(Supervisor):
    """A supervisor of two such processes."""

    def __init__(self) -> None:
        super().__init__([], 2, 60.0)
        self.processes: list[Process] = []
        self.looks = 0

    def _start(self, index: int, report_once: int | None = None) -> subprocess.Popen[bytes]:
        self.processes.append(Process())
        return cast("subprocess.Popen[bytes]", self.processes[-1])

    def _supervise(self, worker: Worker, now: float) -> bool:
        self.looks += 1
        return super()._supervise(worker, now)


@pytest.mark.parametrize(
    ("number", "sent"),
    [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM, DRAIN), (DRAIN, DRAIN)],
)
def test_a_signal_may_interrupt_the_supervisor_at_any_line(
    monkeypatch: pytest.MonkeyPatch, number: int, sent: int
) -> None:
    """It once waited forever for the lock of an event that it was waiting for."""
    monkeypatch.setattr(workers, "TICK_S", 0.001)
    for line in itertools.count():
        supervisor = InMemory()
        assert interrupt(line, supervisor.run, partial(supervisor.stop, number))
        assert [process.signals for process in supervisor.processes] == [[sent], [sent]]
        if supervisor.looks > 4:  # each line of two rounds was interrupted
            break
