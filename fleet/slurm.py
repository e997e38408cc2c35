"""The engine `slurm`: one array job of agents, submitted through submitit."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gymwire.fleet.description import Fleet
from gymwire.fleet.engine import DRAINING, PENDING, AgentPlan, Resources, RunningAgent
from gymwire.fleet.processes import KILL_S, spec_of
from gymwire.fleet.slurm_job import DRAINED, REPORT, AgentJob
from gymwire.fleet.slurm_queue import QueuedJob, SlurmQueue, ranges_text
from gymwire.fleet.state import place_files
from gymwire.protocol.errors import ConfigurationError, Refused
from gymwire.protocol.extras import install_line

try:
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"gymwire fleet --on slurm needs submitit. Install it with: {install_line('slurm')}",
        name="submitit",
    ) from error

FOLDER = ".gymwire-fleets"  # beside fleet.toml, which all nodes must see
TIME_LIMIT_MIN = 24 * 60
WARNING = "USR1"  # before the time limit. Agents drain on it; submitit's own choice kills them
LONGEST_WARNING = 65_535  # in seconds, that sbatch accepts
ANY_NUMBER = 1_000_000  # how often a job may come to its time limit


class SlurmEngine:
    """Agents in jobs of SLURM. Its files are beside fleet.toml, in a folder that all nodes share.

    The jobs' name is that of the fleet, and their comment holds the agents' numbers.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._name = f"gymwire-{fleet.name}"
        self._fleet = fleet.name
        self._options = dict(fleet.slurm)
        self._folder = fleet.path.parent / FOLDER / fleet.name
        self._queue = self._find_queue()

    def start(self, agents: Sequence[AgentPlan]) -> None:
        """Submit an array job with a task for each agent."""
        if not agents:
            return
        jobs = [self._job(plan) for plan in agents]
        executor = self._executor(self._parameters(agents))
        try:
            executor.submit_array(jobs)
        except (FailedJobError, FailedSubmissionError) as error:
            raise Refused(f"SLURM did not accept the job: {error}") from None

    def running(self) -> list[RunningAgent]:
        """Return the agents of all jobs that have not ended."""
        return [self._agent(job) for job in self._queue.jobs(self._name)]

    def drain(self, names: Sequence[str]) -> None:
        """Let agents end within their grace period; cancel jobs that wait."""
        jobs = self._drained(names)
        self._queue.cancel([job.id for job in jobs if job.is_waiting])
        self._queue.drain([job.id for job in jobs if not job.is_waiting])

    def stop(self, names: Sequence[str]) -> None:
        """Kill agents."""
        self._queue.kill([job.id for job in self._drained(names)])

    def _find_queue(self) -> SlurmQueue:
        if shutil.which("sbatch") is None:
            raise ConfigurationError(
                "--on slurm needs SLURM's commands, and there is no sbatch in the PATH. Run this "
                "on a login node of the cluster."
            )
        return SlurmQueue()

    def _executor(self, parameters: Mapping[str, Any]) -> submitit.Executor:
        executor = submitit.SlurmExecutor(self._folder / "jobs", max_num_timeout=ANY_NUMBER)
        executor.update_parameters(**parameters)
        return executor

    def _parameters(self, agents: Sequence[AgentPlan]) -> Mapping[str, Any]:
        """Return submitit's parameters; agents of one fleet need the same."""
        options = dict(self._options)
        plan = agents[0]
        minutes = options.pop("minutes", TIME_LIMIT_MIN)
        parameters: dict[str, Any] = {
            "job_name": self._name,
            "comment": ranges_text([one.number for one in agents]),
            "time": minutes,
            "stderr_to_stdout": True,
            "array_parallelism": len(agents),
            "setup": [f"export SUBMITIT_PREEMPT_SIGNAL={WARNING}", *options.pop("setup", ())],
            **resources_of(plan.resources),
        }
        if isinstance(plan.place, Mapping):
            parameters["constraint"] = "&".join(plan.place.values())
        delay_s = math.ceil(plan.grace_s + KILL_S)
        if delay_s > LONGEST_WARNING:
            raise ConfigurationError(
                f"SLURM cannot warn an agent {delay_s} s before its time limit. Set grace_s to at "
                f"most {LONGEST_WARNING - KILL_S:g}."
            )
        if delay_s >= minutes * 60:
            raise ConfigurationError(
                f"The time limit of {minutes} min is too short: SLURM must warn an agent "
                f"{delay_s} s before it. Set minutes in [slurm] to at least "
                f"{delay_s // 60 + 1}, or a smaller grace_s."
            )
        more = {"requeue": True, "signal": f"{WARNING}@{delay_s}", **options.pop("options", {})}
        return {**parameters, **options, "additional_parameters": more}

    def _job(self, plan: AgentPlan) -> AgentJob:
        folder = self._agent_folder(plan.number)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700, parents=True)
        # Keys stay where they are: the nodes see the same files.
        files = place_files(plan.files, folder, copy=False)
        return AgentJob(spec_of(plan, files, folder / "log"), folder)

    def _agent_folder(self, number: int) -> Path:
        return self._folder / "agents" / str(number)

    def _agent(self, job: QueuedJob) -> RunningAgent:
        folder = self._agent_folder(job.number)
        agent = RunningAgent(
            f"{self._fleet}/{job.number}", PENDING, since=job.since, detail=job.reason
        )
        if not job.is_waiting:
            try:
                agent = RunningAgent(**json.loads((folder / REPORT).read_text(encoding="utf-8")))
            except FileNotFoundError:  # its job has just begun
                agent = replace(agent, host=job.node)
            except (ValueError, TypeError):
                agent = replace(agent, host=job.node, detail=f"{folder / REPORT} is damaged")
        if (folder / DRAINED).exists():
            agent = replace(agent, state=DRAINING)
        return agent

    def _drained(self, names: Sequence[str]) -> list[QueuedJob]:
        """Mark these agents, so that no requeued job starts them again; return their jobs."""
        jobs = [
            job for job in self._queue.jobs(self._name) if f"{self._fleet}/{job.number}" in names
        ]
        for job in jobs:
            folder = self._agent_folder(job.number)
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # somebody may have removed it
            (folder / DRAINED).touch()
        return jobs


def resources_of(resources: Resources) -> dict[str, Any]:
    """Return submitit's parameters for what an agent needs. Raises ConfigurationError."""
    if resources.gpus != int(resources.gpus):
        raise ConfigurationError(
            f"SLURM gives an agent whole GPUs only, not {resources.gpus:g} of one. Set gpus to a "
            f"whole number."
        )
    parameters: dict[str, Any] = {"cpus_per_task": max(1, math.ceil(resources.cpus))}
    if resources.gpus:
        parameters["gpus_per_node"] = int(resources.gpus)
    if resources.memory is not None:
        parameters["mem"] = f"{math.ceil(resources.memory / 1024**2)}M"
    return parameters
