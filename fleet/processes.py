"""The process of an agent: start it, restart it when it dies, drain it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from gymwire.env_agent.signals import DRAIN, STOPPED
from gymwire.env_agent.workers import HEALTHY_S, meaning, pause_after
from gymwire.fleet.engine import DRAINING, RESTARTING, RUNNING, AgentPlan, RunningAgent

KILL_S = 10.0  # a process that still runs this long after the grace period is killed
MAX_LOG = 64 * 1024 * 1024  # bytes, after which a restart begins a new log
TAIL = 4096  # bytes at the end of a log that are searched for its last line


@dataclass(frozen=True)
class ProcessSpec:
    """How to start the process of an agent on this machine.

    Attributes:
        name: as in its plan.
        arguments: those of the command `gymwire`.
        variables: environment variables in addition to those of this process.
        folder: where it runs.
        log: the file for its log.
        grace_s: as in its plan.
    """

    name: str
    arguments: Sequence[str]
    variables: Mapping[str, str]
    folder: str
    log: str
    grace_s: float


def spec_of(plan: AgentPlan, files: Mapping[str, str], log: Path) -> ProcessSpec:
    """Return how to start a planned agent. `files`: the variables with the paths of its files."""
    return ProcessSpec(
        plan.name,
        plan.arguments,
        {**plan.variables, **files},
        str(plan.folder),
        str(log),
        plan.grace_s,
    )


class AgentProcess:
    """The process of one agent.

    It ends with this process, however that ends, because its standard input is a pipe from it.
    Times are monotonic seconds.

    Attributes:
        is_over: whether it has ended and will not be restarted.
    """

    def __init__(self, spec: ProcessSpec, now: float) -> None:
        self.is_over = False
        self._spec = spec
        self._crashes = 0
        self._detail = ""
        self._kill_at: float | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._restart_at = now
        self._since = time.time()
        self.tick(now)

    def _start(self, now: float) -> None:
        spec = self._spec
        log = Path(spec.log)
        too_long = log.exists() and log.stat().st_size > MAX_LOG
        # Variables of the user who starts the fleet are not options of the agent.
        kept = {name: value for name, value in os.environ.items() if name[:8] != "GYMWIRE_"}
        command, *options = spec.arguments
        with log.open("wb" if too_long else "ab") as output:
            self._process = subprocess.Popen(
                # As a worker, it ends when its standard input closes.
                [sys.executable, "-m", "gymwire", command, "--worker", "0", *options],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
                cwd=spec.folder if Path(spec.folder).is_dir() else None,
                env={**kept, **spec.variables},
            )
        self._started, self._since = now, time.time()

    def tick(self, now: float) -> None:
        """Check whether it has ended; restart it when that is due."""
        if self._process is None:
            if now >= self._restart_at:
                try:
                    self._start(now)
                except OSError as error:
                    self._crashed(now, f"cannot be started: {error}")
            return
        status = self._process.poll()
        if status is None:
            if self._kill_at is not None and now >= self._kill_at:
                self.stop()
            elif self._crashes and now - self._started > HEALTHY_S:
                self._crashes, self._detail = 0, ""
            return
        if self._process.stdin is not None:
            self._process.stdin.close()
        if self._kill_at is not None or status == STOPPED:
            self.is_over = True
            return
        try:
            with Path(self._spec.log).open("rb") as log:
                said = last_line(log)
        except OSError as error:  # somebody has removed it
            said = f"its log cannot be read: {error}"
        self._crashed(now, f"{meaning(status)}: {said}")

    def _crashed(self, now: float, why: str) -> None:
        self._process, self._detail = None, why
        self._restart_at = now + pause_after(self._crashes)
        self._crashes += 1

    def drain(self, now: float) -> None:
        """Drain it; kill it if it still runs KILL_S after the grace period."""
        if self._kill_at is not None:
            return
        self._kill_at = now + self._spec.grace_s + KILL_S
        if self._process is None:
            self.is_over = True
        elif self._process.poll() is None:
            # SLURM may have sent SIGTERM to all processes, and a second one would cut sessions off.
            self._process.send_signal(DRAIN)

    def stop(self) -> None:
        """Kill it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self.is_over = True

    def report(self) -> RunningAgent:
        """Return its state."""
        process = self._process
        state = RUNNING if process is not None else RESTARTING
        return RunningAgent(
            self._spec.name,
            state if self._kill_at is None else DRAINING,
            socket.gethostname(),
            None if process is None else process.pid,
            self._since,
            self._detail,
        )


def last_line(log: IO[bytes]) -> str:
    """Return the last line of a log, which is usually the error that ended the process."""
    log.seek(max(0, log.seek(0, os.SEEK_END) - TAIL))
    lines = log.read().decode(errors="replace").splitlines()
    return lines[-1].strip() if lines else "no output"
