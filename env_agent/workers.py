"""Workers: several processes behind one address. A crash of one ends only its own sessions."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from gymwire.env_agent.signals import CUT_OFF, DRAIN, DRAINING, ENDING, STOPPED
from gymwire.protocol import logs
from gymwire.protocol.ending_signals import StopEvent

TICK_S = 0.1  # how often the supervisor looks at its workers
FIRST_PAUSE_S = 0.5  # before a crashed worker is restarted; doubles while it keeps crashing
MAX_PAUSE_S = 30.0
MAX_DOUBLINGS = 10  # more than it takes to reach the longest pause
HEALTHY_S = 30.0  # after this long, a worker counts as healthy, and its crashes are forgotten
LAST_S = 5.0  # how long after the grace a worker may take to abandon what still runs
MISCONFIGURED = 2  # exit status of a worker whose options or environment are wrong
_PR_SET_PDEATHSIG = 1


@dataclass(slots=True)
class Worker:
    """A worker process, and when it was or will be started (monotonic seconds; inf: never)."""

    index: int
    process: subprocess.Popen[bytes]
    started: float
    crashes: int = 0
    restart_at: float | None = None


class Supervisor:
    """Runs `count` workers with these command-line arguments until `stop` is called.

    `grace_s`: how long a worker may take to end after a signal, in seconds.

    The standard input of a worker is a pipe from this process, so that the worker sees it close
    however this process ends.
    """

    def __init__(self, arguments: Sequence[str], count: int, grace_s: float) -> None:
        self._arguments = list(arguments)
        self._count = count
        self._grace_s = grace_s
        self._stop = StopEvent()
        self._is_draining = False
        self._signals: list[int] = []
        self._log = logs.logger()

    def run(self) -> int:
        """Run the workers; return the exit status.

        It is MISCONFIGURED if a worker cannot start, and CUT_OFF if something was cut off.
        """
        # Only one worker reports what prevents all from starting: the one that reads this byte.
        readable, writable = os.pipe()
        os.write(writable, b"1")
        os.close(writable)
        try:
            workers = [
                Worker(index, self._start(index, report_once=readable), time.monotonic())
                for index in range(self._count)
            ]
        finally:
            os.close(readable)
        status = 0
        try:
            while not self._stop.wait(TICK_S):
                for worker in workers:
                    if not self._supervise(worker, time.monotonic()):
                        status = MISCONFIGURED
                        self._stop.set()
                if all(worker.restart_at == math.inf for worker in workers):
                    self._stop.set()
        finally:
            ended = self._end(workers)
        return status or ended

    def stop(self, number: int) -> None:
        """Let the workers drain, or end them after Ctrl-C, and stop when they have ended.

        A signal handler may call this.
        """
        if number in DRAINING:
            self._is_draining = True
        else:
            self._signals.append(number)
        self._stop.set()

    def arguments_of(self, index: int, *more: str) -> list[str]:
        """Return the arguments of a worker; its own come first, because the others may hold `--`.

        `more`: further options of this worker.
        """
        return ["--worker", str(index), *more, *self._arguments]

    def _start(self, index: int, report_once: int | None = None) -> subprocess.Popen[bytes]:
        # Descriptors cannot be passed on Windows, where all workers report.
        passed = () if report_once is None or sys.platform == "win32" else (report_once,)
        more = [text for number in passed for text in ("--report-once", str(number))]
        arguments = self.arguments_of(index, *more)
        # Each worker has a process session of its own, so that a terminal's Ctrl-C reaches it
        # once: from this process.
        return subprocess.Popen(
            [sys.executable, "-m", "gymwire.env_agent", *arguments],
            stdin=subprocess.PIPE,
            start_new_session=True,
            pass_fds=passed,
        )

    def _supervise(self, worker: Worker, now: float) -> bool:
        """Restart a worker that has died. Returns False if it cannot start."""
        status = worker.process.poll()
        if status is None:
            if worker.crashes and now - worker.started > HEALTHY_S:
                worker.crashes = 0
            return True
        if worker.restart_at is None:
            if status == MISCONFIGURED and worker.crashes == 0:
                return False
            if status == STOPPED:
                worker.restart_at = math.inf
                return True
            pause_s = pause_after(worker.crashes)
            worker.crashes += 1
            worker.restart_at = now + pause_s
            self._log.error(
                "worker died",
                worker=worker.index,
                status=meaning(status),
                crashes=worker.crashes,
                restart_in_s=pause_s,
            )
        elif now >= worker.restart_at:
            worker.process = self._start(worker.index)
            worker.started, worker.restart_at = now, None
        return True

    def _end(self, workers: Sequence[Worker]) -> int:
        """End all workers; return CUT_OFF if one of them did not end by itself, or cut off.

        A second SIGTERM or Ctrl-C kills them. So does the end of the grace, for a worker whose
        environment does not release the interpreter.
        """
        alive = [worker.process for worker in workers if worker.process.poll() is None]
        # Not SIGTERM, which whoever signals all processes of a job has sent to the workers, too.
        number = signal.SIGINT if self._signals[:1] == [signal.SIGINT] else DRAIN
        if self._signals or self._is_draining:
            self._log.info("stopping", workers=len(alive), at_most_s=self._grace_s)
        for process in alive:
            process.send_signal(number)
        deadline = time.monotonic() + self._grace_s + LAST_S
        while any(process.poll() is None for process in alive):
            if len(self._signals) > 1:
                _kill(alive)
                return 128 + self._signals[-1]
            if time.monotonic() > deadline:
                self._log.error("cut off", workers=_kill(alive), grace_s=self._grace_s)
            if signal.SIGINT in self._signals and number != signal.SIGINT:
                number = signal.SIGINT
                for process in alive:
                    process.send_signal(number)
            time.sleep(0.05)
        # A worker that was still starting did not handle the signal, and had nothing to cut off.
        complete = {0, STOPPED, *(status for each in ENDING for status in (-each, 128 + each))}
        return 0 if all(process.returncode in complete for process in alive) else CUT_OFF


def _kill(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    """Kill the processes that are alive; return how many they were."""
    alive = [process for process in processes if process.poll() is None]
    for process in alive:
        process.kill()
    for process in alive:
        process.wait()
    return len(alive)


def die_with_supervisor() -> None:
    """Let the kernel kill this worker when its supervisor ends, also in a call that never returns.

    It does so on Linux only. A supervisor that is not killed ends its workers first.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def pause_after(crashes: int) -> float:
    """Return how many seconds to wait before a restart. `crashes`: in a row, before this one."""
    return min(FIRST_PAUSE_S * 2.0 ** min(crashes, MAX_DOUBLINGS), MAX_PAUSE_S)


def meaning(status: int) -> str:
    """Return what an exit status of `subprocess` means: "exit 1", or the name of a signal."""
    if status >= 0:
        return f"exit {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:  # most of the real-time signals have no name
        return f"signal {-status}"
