"""Several processes behind one address: a crash of one harms only its sessions; it is replaced."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

FIRST_PAUSE_S = 0.5  # before a crashed worker is started again; doubles while it keeps crashing
MAX_PAUSE_S = 30.0
HEALTHY_S = 30.0  # a worker that has lived for so long starts with the first pause again
MISCONFIGURED = 2  # exit status of a worker that can never start


@dataclass(slots=True)
class Worker:
    """One process, and when it was or will be started."""

    index: int
    process: subprocess.Popen[bytes]
    started: float
    crashes: int = 0
    restart_at: float | None = None


class Supervisor:
    """Runs `count` workers with these command-line arguments until it is told to stop.

    A worker's standard input is a pipe from here: it ends when this process does, however it dies.
    """

    def __init__(self, arguments: Sequence[str], count: int) -> None:
        self._arguments = list(arguments)
        self._count = count
        self._stop = threading.Event()
        self._signals: list[int] = []
        self._log = structlog.get_logger()

    def run(self) -> int:
        """Returns the exit status: 0, or that of a worker that can never start."""
        handle, token = tempfile.mkstemp(prefix="gymwire-")
        os.close(handle)
        alike = ("--report-once", token)  # what keeps all from starting is said once
        workers = [
            Worker(index, self._start(index, *alike), time.monotonic())
            for index in range(self._count)
        ]
        status = 0
        try:
            while not self._stop.wait(0.1):
                for worker in workers:
                    if not self._look_after(worker, time.monotonic()):
                        status = MISCONFIGURED
                        self._stop.set()
        finally:
            self._end(workers)
            Path(token).unlink(missing_ok=True)
        return status

    def stop(self, number: int) -> None:
        """Pass a signal on to the workers, and end with them."""
        self._signals.append(number)
        self._stop.set()

    def _start(self, index: int, *more: str) -> subprocess.Popen[bytes]:
        mine = (*self._arguments, "--worker", str(index), *more)
        # In a session of its own: a terminal's Ctrl-C comes once, from here.
        return subprocess.Popen(
            [sys.executable, "-m", "gymwire.env_agent", *mine],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def _look_after(self, worker: Worker, now: float) -> bool:
        """Replace a worker that has died. False: it never will start."""
        status = worker.process.poll()
        if status is None:
            if worker.crashes and now - worker.started > HEALTHY_S:
                worker.crashes = 0
            return True
        if worker.restart_at is None:
            if status == MISCONFIGURED and worker.crashes == 0:
                return False
            pause_s = min(FIRST_PAUSE_S * 2**worker.crashes, MAX_PAUSE_S)
            worker.crashes += 1
            worker.restart_at = now + pause_s
            self._log.error(
                "worker died",
                worker=worker.index,
                status=_name(status),
                crashes=worker.crashes,
                again_in_s=pause_s,
            )
        elif now >= worker.restart_at:
            worker.process = self._start(worker.index)
            worker.started, worker.restart_at = now, None
        return True

    def _end(self, workers: Sequence[Worker]) -> None:
        for worker in workers:
            if worker.process.poll() is None:
                worker.process.send_signal(self._signals[0] if self._signals else signal.SIGTERM)
        passed_on = 1
        for worker in workers:
            while True:
                try:
                    worker.process.wait(timeout=0.1)
                    break
                except subprocess.TimeoutExpired:
                    if len(self._signals) > passed_on:  # the operator insists
                        passed_on = len(self._signals)
                        for other in workers:
                            other.process.kill()


def _name(status: int) -> str:
    return f"exit {status}" if status >= 0 else signal.Signals(-status).name
