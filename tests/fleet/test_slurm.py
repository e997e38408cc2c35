"""The engine `slurm`: what it asks SLURM for, and its jobs under submitit's own executor."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from gymwire.fleet.description import Fleet, load
from gymwire.fleet.engine import RunningAgent
from gymwire.fleet.slurm_queue import QueuedJob, SlurmQueue, job_of, nth, ranges_text
from gymwire.protocol.errors import ConfigurationError, Refused
from tests.chaos.fleet import until
from tests.fleet.fleets import PATIENCE_S, Learner, write
from tests.processes import ROOT

submitit = pytest.importorskip("submitit", reason="needs the extra slurm")
slurm = pytest.importorskip("gymwire.fleet.slurm")


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([0], "0"), ([0, 1, 2, 3], "0-3"), ([3, 5, 6, 9], "3,5-6,9"), ([7, 6], "7,6")],
)
def test_ranges_keep_the_numbers_of_agents_and_their_order(numbers: list[int], text: str) -> None:
    assert ranges_text(numbers) == text
    assert [nth(text, index) for index in range(len(numbers))] == numbers
    with pytest.raises(ValueError, match="has no number"):
        nth(text, len(numbers))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("12_3|3|RUNNING|n1|2026-11-28T18:10:31|None|0-7", ("12_3", 3, False, "n1", "")),
        ("12_4|4|PENDING|n/a|N/A|Resources|2,9,20-22", ("12_4", 22, True, "", "Resources")),
        ("13|N/A|COMPLETING|n2|N/A|None|5", ("13", 5, False, "n2", "")),
    ],
)
def test_a_line_of_squeue_is_a_job(line: str, expected: tuple[Any, ...]) -> None:
    job = job_of(line)
    assert (job.id, job.number, job.is_waiting, job.node, job.reason) == expected


def test_a_command_that_fails_is_refused_with_its_text(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "squeue"
    script.write_text("#!/bin/sh\necho 'slurm_load_jobs error: no controller' >&2\nexit 1\n")
    script.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(Refused, match="squeue failed: slurm_load_jobs error: no controller"):
        SlurmQueue().jobs("any")


def test_jobs_of_the_same_name_that_are_not_the_fleets_are_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "squeue"
    lines = [f"{job}|N/A|RUNNING|n1|N/A|None|{text}" for job, text in ((1, "(null)"), (2, "3,5-6"))]
    script.write_text("#!/bin/sh\ncat <<END\n" + "\n".join(lines) + "\nEND\n")
    script.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert [(job.id, job.number) for job in SlurmQueue().jobs("any")] == [("2", 3)]


def test_a_job_that_slurm_does_not_take_is_refused_with_its_text(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("sbatch", "srun"):
        script = tmp_path / name
        script.write_text("#!/bin/sh\necho 'sbatch: error: invalid partition' >&2\nexit 1\n")
        script.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    fleet = fleet_of(tmp_path, "count = 2")
    with pytest.raises(Refused, match="did not accept the job: sbatch: error: invalid partition"):
        slurm.SlurmEngine(fleet).start([fleet.plan(number) for number in range(2)])


class NoQueue(SlurmQueue):
    """A queue without a cluster."""

    def jobs(self, name: str) -> list[QueuedJob]:
        return []


class Dry(slurm.SlurmEngine):  # type: ignore[name-defined,misc]
    """An engine that keeps what it would submit."""

    def _find_queue(self) -> SlurmQueue:
        return NoQueue()

    def _executor(self, parameters: Any) -> Any:
        self.parameters = parameters
        engine = self

        class Executor:
            def submit_array(self, jobs: Sequence[Any]) -> None:
                engine.jobs = jobs

        return Executor()


def fleet_of(tmp_path: Path, agents: str, **changes: Any) -> Fleet:
    return load(write(tmp_path, "tcp://127.0.0.1:5555", agents, **changes))


def test_one_array_job_asks_for_what_the_file_says(tmp_path: Path) -> None:
    fleet = fleet_of(
        tmp_path,
        'count = 3\ncpus = 1.5\ngpus = 1\nmemory = "1.5GiB"\nplace = { type = "a100" }\n'
        '[slurm]\npartition = "gpu"\naccount = "lab"\nminutes = 90\nsetup = ["module load cuda"]\n'
        "options = { nice = 100 }",
        grace_s=20,
    )
    engine = Dry(fleet)
    engine.start([fleet.plan(number) for number in range(3)])
    assert len(engine.jobs) == 3
    assert engine.parameters == {
        "job_name": f"gymwire-{fleet.name}",
        "comment": "0-2",
        "time": 90,
        "stderr_to_stdout": True,
        "array_parallelism": 3,
        "setup": ["export SUBMITIT_PREEMPT_SIGNAL=USR1", "module load cuda"],
        "cpus_per_task": 2,
        "gpus_per_node": 1,
        "mem": "1536M",
        "constraint": "a100",
        "partition": "gpu",
        "account": "lab",
        "additional_parameters": {"requeue": True, "signal": "USR1@30", "nice": 100},
    }
    # submitit accepts the names, and writes them as options of sbatch.
    script = submitit.slurm.slurm._make_sbatch_string("true", tmp_path, **engine.parameters)
    assert "#SBATCH --signal=USR1@30" in script
    assert "USR2" not in script
    assert "#SBATCH --requeue" in script


def test_a_part_of_a_gpu_is_refused(tmp_path: Path) -> None:
    fleet = fleet_of(tmp_path, "count = 1\ngpus = 0.5")
    with pytest.raises(ConfigurationError, match=r"whole GPUs only, not 0\.5"):
        Dry(fleet).start([fleet.plan(0)])


def test_a_grace_period_that_sbatch_does_not_take_is_refused(tmp_path: Path) -> None:
    fleet = fleet_of(tmp_path, "count = 1", grace_s=65_526)
    with pytest.raises(ConfigurationError, match="Set grace_s to at most 65525"):
        Dry(fleet).start([fleet.plan(0)])
    fleet = fleet_of(tmp_path, "count = 1", grace_s=65_525)
    Dry(fleet).start([fleet.plan(0)])


def test_a_time_limit_in_which_an_agent_would_only_drain_is_refused(tmp_path: Path) -> None:
    fleet = fleet_of(tmp_path, "count = 1\n[slurm]\nminutes = 2", grace_s=110)
    with pytest.raises(ConfigurationError, match="to at least 3, or a smaller"):
        Dry(fleet).start([fleet.plan(0)])
    fleet = fleet_of(tmp_path, "count = 1\n[slurm]\nminutes = 3", grace_s=110)
    Dry(fleet).start([fleet.plan(0)])


def test_without_slurm_the_engine_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigurationError, match="no sbatch in the PATH"):
        slurm.SlurmEngine(fleet_of(tmp_path, "count = 1"))


def test_a_job_that_has_just_begun_is_pending_on_its_node(tmp_path: Path) -> None:
    engine = Dry(fleet_of(tmp_path, "count = 1"))
    engine._queue.jobs = lambda name: [QueuedJob("1", 0, False, "n1", 5.0, "")]
    [agent] = engine.running()
    assert (agent.state, agent.host, agent.since) == ("pending", "n1", 5.0)


def test_a_damaged_report_is_named(tmp_path: Path) -> None:
    engine = Dry(fleet_of(tmp_path, "count = 1"))
    engine._queue.jobs = lambda name: [QueuedJob("1", 0, False, "n1", 5.0, "")]
    report = engine._agent_folder(0) / "report.json"
    report.parent.mkdir(parents=True)
    for text in ("{", '{"nonsense": 1}'):
        report.write_text(text)
        [agent] = engine.running()
        assert (agent.state, agent.detail) == ("pending", f"{report} is damaged")


def test_an_agent_whose_folder_is_gone_can_be_drained(tmp_path: Path) -> None:
    engine = Dry(fleet_of(tmp_path, "count = 1"))
    engine._queue.jobs = lambda name: [QueuedJob("1", 0, False, "n1", 5.0, "")]
    drained: list[str] = []
    engine._queue.cancel, engine._queue.drain = lambda ids: None, drained.extend
    [agent] = engine.running()
    engine.drain([agent.name])
    assert drained == ["1"]
    assert engine.running()[0].state == "draining"


class LocalQueue(SlurmQueue):
    """The jobs of submitit's LocalExecutor: processes of this machine."""

    def __init__(self) -> None:
        self.submitted: dict[int, Any] = {}

    def jobs(self, name: str) -> list[QueuedJob]:
        return [
            QueuedJob(str(number), number, False, "here", 0.0, "")
            for number, job in self.submitted.items()
            if job._process.poll() is None
        ]

    def drain(self, ids: Sequence[str]) -> None:
        for one in ids:
            os.kill(self.task(int(one)), signal.SIGUSR1)

    def cancel(self, ids: Sequence[str]) -> None:
        assert not ids

    def task(self, number: int) -> int:
        """Return the process of `submitit.core._submit`."""
        [pid] = children_of(self.submitted[number]._process.pid)
        return pid


def children_of(pid: int) -> list[int]:
    files = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for file in files for child in file.read_text().split()]


class Local(slurm.SlurmEngine):  # type: ignore[name-defined,misc]
    """The engine with submitit's LocalExecutor instead of SLURM."""

    def _find_queue(self) -> SlurmQueue:
        return LocalQueue()

    def _executor(self, parameters: Any) -> Any:
        executor = submitit.LocalExecutor(self._folder / "jobs")
        executor.update_parameters(timeout_min=60)
        queue = self._queue

        class Executor:
            def submit_array(self, jobs: Sequence[Any]) -> None:
                for job in jobs:
                    number = int(job.spec.name.rpartition("/")[2])
                    queue.submitted[number] = executor.submit(job)

        return Executor()


@pytest.fixture
def local(
    tmp_path: Path, broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Any, Fleet]]:
    """An engine with two agents, one session of which may go on for 30 s."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("SUBMITIT_PREEMPT_SIGNAL", "USR1")
    fleet = load(write(tmp_path, broker_url, "count = 2", grace_s=30))
    engine = Local(fleet)
    engine.start([fleet.plan(number) for number in range(2)])
    yield engine, fleet
    queue = engine._queue
    for job in queue.submitted.values():
        if job._process.poll() is None:
            for pid in children_of(job._process.pid):
                os.kill(pid, signal.SIGKILL)
        job._process.wait(PATIENCE_S)


def agents_of(engine: Any) -> dict[str, RunningAgent]:
    return {one.name: one for one in engine.running()}


def are_running(engine: Any) -> Callable[[], bool]:
    return lambda: [one.state for one in engine.running()] == ["running", "running"]


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_drained_job_ends_when_its_sessions_have(
    local: tuple[Any, Fleet], broker_url: str, number: signal.Signals
) -> None:
    engine, fleet = local
    until(are_running(engine), "both agents run", PATIENCE_S)
    learner = Learner(broker_url, 1)
    learner.wait_for_steps(20)
    if number == signal.SIGUSR1:
        engine.drain([f"{fleet.name}/0"])
        assert agents_of(engine)[f"{fleet.name}/0"].state == "draining"
    else:
        os.kill(engine._queue.task(0), number)
    learner.wait_for_steps(20)
    learner.check()
    assert learner.lost == 0
    until(lambda: f"{fleet.name}/0" not in agents_of(engine), "it has ended", PATIENCE_S)
    assert f"{fleet.name}/1" in agents_of(engine)


def test_a_warned_job_is_requeued_with_the_same_agent(local: tuple[Any, Fleet]) -> None:
    engine, fleet = local
    until(are_running(engine), "both agents run", PATIENCE_S)
    before = agents_of(engine)[f"{fleet.name}/0"]
    os.kill(engine._queue.task(0), signal.SIGUSR1)

    def is_another() -> bool:
        now = agents_of(engine).get(before.name)
        return now is not None and now.pid not in (None, before.pid) and now.state == "running"

    until(is_another, "another process runs the agent", PATIENCE_S)


def test_a_drained_agent_is_not_started_by_a_requeued_job(tmp_path: Path) -> None:
    engine = Dry(fleet_of(tmp_path, "count = 1"))
    engine.start([fleet_of(tmp_path, "count = 1").plan(0)])
    engine._queue.jobs = lambda name: [QueuedJob("1", 0, True, "", 0.0, "")]
    cancelled: list[str] = []
    engine._queue.cancel = cancelled.extend
    engine._queue.drain = lambda ids: None
    [agent] = engine.running()
    engine.drain([agent.name])
    assert cancelled == ["1"]
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        engine.jobs[0]()  # returns at once
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert not (engine.jobs[0].folder / "report.json").exists()
