"""What runs in a job of SLURM: one agent, drained and requeued by signals."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gymwire.env_agent.signals import DRAIN
from gymwire.fleet.processes import AgentProcess, ProcessSpec
from gymwire.fleet.slurm_queue import is_preempted
from gymwire.fleet.state import write_private
from gymwire.fleet.supervisor import TICK_S

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

REPORT, DRAINED = "report.json", "drained"  # files of the agent's folder


@dataclass
class AgentJob:
    """Runs an agent until a signal ends it; a function for submitit.

    Its folder, which all nodes share, has the agent's report and, after `drain`, a marker file.

    SIGUSR1 and SIGTERM drain the agent. Afterwards the job is requeued, unless somebody has drained
    or cancelled it: SLURM sends SIGUSR1 before the time limit, and SIGTERM before a preemption.
    """

    spec: ProcessSpec
    folder: Path
    _signals: set[int] = field(default_factory=set)

    def __call__(self) -> None:
        """Run the agent."""
        requeue = signal.getsignal(DRAIN)  # submitit's
        for number in (signal.SIGTERM, DRAIN):
            signal.signal(number, lambda got, _: self._signals.add(got))
        if self._is_drained():  # it was requeued, or started only after that
            return
        self._supervise()
        if (DRAIN in self._signals or self._is_preempted()) and not self._is_drained():
            # Not earlier: SLURM kills a job that is requeued.
            assert callable(requeue)
            requeue(DRAIN, None)

    def checkpoint(self) -> DelayedSubmission:
        """Return what a requeued job runs; submitit calls this."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(AgentJob(self.spec, self.folder))

    def _supervise(self) -> None:
        agent = AgentProcess(self.spec, time.monotonic())
        reported = None
        while not agent.is_over:
            if agent.report() != reported:
                reported = agent.report()
                write_private(self.folder / REPORT, json.dumps(asdict(reported)))
            time.sleep(TICK_S)
            if self._signals:
                agent.drain(time.monotonic())
            agent.tick(time.monotonic())
        (self.folder / REPORT).unlink(missing_ok=True)

    def _is_drained(self) -> bool:
        return (self.folder / DRAINED).exists()

    def _is_preempted(self) -> bool:
        """Return whether SLURM has sent SIGTERM to make room for another job."""
        job = os.environ.get("SLURM_JOB_ID")
        return job is not None and signal.SIGTERM in self._signals and is_preempted(job)
