"""A fleet on a real cluster of SLURM, which runs on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gymwire import ProxyEnv
from gymwire.fleet.description import load
from gymwire.protocol.security import keys
from tests.chaos.fleet import until
from tests.fleet import slurm_cluster
from tests.fleet.engine_tests import heals
from tests.fleet.fleets import ADDRESS, Learner, Shell, write
from tests.processes import ROOT, Programs

pytest.importorskip("submitit", reason="needs the extra slurm")
pytestmark = [
    pytest.mark.skipif(bool(slurm_cluster.missing()), reason=slurm_cluster.missing()),
    pytest.mark.timeout(400),
]
PATIENCE_S = 120.0
Make = Callable[..., Shell]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Path]:
    with slurm_cluster.cluster() as folder:
        yield folder


@pytest.fixture
def make(cluster: Path, tmp_path: Path, broker_url: str, monkeypatch: Any) -> Iterator[Make]:
    """Return a function that makes the shell of a fleet, which is down after the test."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    made: list[Shell] = []

    def make(agents: str, **changes: Any) -> Shell:
        url = changes.pop("url", broker_url)
        shell = Shell(write(tmp_path, url, agents, **changes), "slurm")
        made.append(shell)
        return shell

    yield make
    for shell in made:
        shell.run("drain")
        for job in job_ids(shell):
            subprocess.run(["scancel", "--quiet", "--signal=KILL", job], check=False)
    until(lambda: not any(map(job_ids, made)), "the jobs have ended", PATIENCE_S)


def squeue(*options: str) -> list[str]:
    command = ["squeue", "--noheader", "--array", *options]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def job_ids(shell: Shell) -> list[str]:
    return squeue("--format=%i", f"--name=gymwire-{name_of(shell)}")


def name_of(shell: Shell) -> str:
    return load(shell.path).name


def session(shell: Shell, url: str) -> tuple[ProxyEnv, int]:
    """Open a session; return it and the process id of its agent."""
    env = ProxyEnv(ADDRESS, url, wait_s=PATIENCE_S)
    return env, int(env.reset(seed=1)[1]["pid"])


def up(shell: Shell) -> dict[str, Any]:
    found = shell.run("up", "--wait", str(PATIENCE_S))
    assert shell.status == 0, found
    return {one["name"]: one for one in found["agents"]}


def test_a_fleet_is_one_array_job_that_another_process_finds_drains_and_ends(
    make: Make, broker_url: str
) -> None:
    shell = make("count = 3", grace_s=30)
    agents = up(shell)
    arrays, _ = zip(*(one.split("_") for one in job_ids(shell)), strict=True)
    assert len(arrays) == 3
    assert len({*arrays}) == 1
    env, pid = session(shell, broker_url)
    with env:
        [mine] = [name for name, one in agents.items() if one["pid"] == pid]
        other = Shell(shell.path, "slurm")
        assert other.run("drain", "--agent", mine)["draining"] == [mine]
        until(lambda: other.agents()[mine]["state"] == "draining", "it drains", PATIENCE_S)
        assert env.step(0)[4].get("pid", pid) == pid
    until(lambda: mine not in other.agents(), "it has ended", PATIENCE_S)
    assert other.ready() == 2
    assert other.run("down")["killed"] == []
    assert job_ids(shell) == []


def test_an_agent_that_dies_is_started_again_in_its_job(make: Make, broker_url: str) -> None:
    shell = make("count = 2")
    agents, jobs = up(shell), job_ids(shell)
    learners = [Learner(broker_url, seed) for seed in range(2)]
    for learner in learners:
        learner.wait_for_steps(20)
    name = next(iter(agents))
    os.kill(agents[name]["pid"], signal.SIGKILL)
    heals(shell, agents, name)
    assert job_ids(shell) == jobs
    for learner in learners:
        learner.wait_for_steps(20)
        learner.check()


def test_a_preempted_agent_drains_and_its_job_is_requeued(make: Make, broker_url: str) -> None:
    shell = make('count = 1\n[slurm]\npartition = "low"', grace_s=30)
    [agent] = up(shell).values()
    env, _ = session(shell, broker_url)
    with env:
        wrap = ["--partition=high", "--nodes=2", "--exclusive", "--wrap=sleep 1"]
        subprocess.run(
            ["sbatch", "--output=/dev/null", "--job-name=urgent", *wrap],
            check=True,
            capture_output=True,
        )
        until(lambda: has_draining_offer(broker_url), "it drains", PATIENCE_S)
        for _ in range(5):
            env.step(0)
    until(lambda: not squeue("--name=urgent"), "the urgent job has run", PATIENCE_S)
    until(lambda: shell.ready() == 1, "the agent is back", PATIENCE_S)
    [again] = shell.agents().values()
    assert again["name"] == agent["name"]
    assert again["pid"] != agent["pid"]


def test_an_agent_at_its_time_limit_drains_and_its_job_is_requeued(
    make: Make, broker_url: str
) -> None:
    shell = make("count = 1", grace_s=30)
    [agent] = up(shell).values()
    env, _ = session(shell, broker_url)
    with env:
        # As SLURM warns of the limit, which cannot be less than a minute.
        subprocess.run(["scancel", "--signal=USR1", *job_ids(shell)], check=True)
        until(lambda: has_draining_offer(broker_url), "it drains", PATIENCE_S)
        env.step(0)
    until(lambda: shell.ready() == 1, "the agent is back", PATIENCE_S)
    [again] = shell.agents().values()
    assert again["pid"] != agent["pid"]


def test_a_cancelled_agent_drains_and_its_job_is_not_requeued(make: Make, broker_url: str) -> None:
    shell = make("count = 1", grace_s=30)
    up(shell)
    env, _ = session(shell, broker_url)
    with env:
        subprocess.run(["scancel", *job_ids(shell)], check=True)
        until(lambda: has_draining_offer(broker_url), "it drains", PATIENCE_S)
        env.step(0)
    until(lambda: not job_ids(shell), "its job has ended", PATIENCE_S)


def test_agents_of_a_node_that_fails_run_on_another_one(make: Make, broker_url: str) -> None:
    shell = make("count = 1")
    [agent] = up(shell).values()
    [node] = squeue("--format=%N", f"--name=gymwire-{name_of(shell)}")
    change = ["scontrol", "update", f"NodeName={node}"]
    subprocess.run([*change, "State=DOWN", "Reason=test"], check=True)
    try:
        until(lambda: shell.ready() == 1, "the agent is back", PATIENCE_S)
        [again] = shell.agents().values()
        assert again["pid"] != agent["pid"]
        assert squeue("--format=%N", f"--name=gymwire-{name_of(shell)}") != [node]
    finally:
        subprocess.run([*change, "State=RESUME"], check=True)


def has_draining_offer(url: str) -> bool:
    from gymwire.learner_agent.client.connection import BrokerConnection

    connection = BrokerConnection(url)
    try:
        return "draining" in [one["state"] for one in connection.find(ADDRESS)]
    finally:
        connection.close()


def test_a_job_that_waits_says_why_and_can_be_cancelled(make: Make) -> None:
    shell = make("count = 2\ncpus = 2\n[slurm]\nminutes = 60")
    up(shell)
    shell.run("scale", "--agents", "3", "--wait", "1")
    [name] = [name for name, one in shell.agents().items() if one["state"] == "pending"]
    until(
        lambda: shell.agents()[name]["detail"] == "Resources",
        "SLURM has tried to place the job and says why it waits",
        PATIENCE_S,
    )
    shell.run("drain", "--agent", name)
    until(lambda: len(shell.agents()) == 2, "it is cancelled", PATIENCE_S)


def test_no_log_has_a_key(make: Make, cluster: Path, tmp_path: Path, programs: Programs) -> None:
    broker_key, _ = keys.generate("broker", tmp_path)
    key_path, _ = keys.generate("agent", tmp_path)
    _, url = programs.broker("tcp://127.0.0.1:*", "--key", str(broker_key))
    shell = make("count = 1", url=url, more='key = "agent.key"\nbroker_key = "broker.pub"')
    [agent] = up(shell).values()
    secret = keys.load(key_path).secret
    shown = subprocess.run(
        ["scontrol", "show", "job", *job_ids(shell)], capture_output=True, check=True
    )
    assert b"JobState=RUNNING" in shown.stdout
    assert secret not in shown.stdout
    assert secret not in Path(f"/proc/{agent['pid']}/environ").read_bytes()
    files = [path for folder in (cluster, tmp_path) for path in folder.rglob("*")]
    holders = [path for path in files if path.is_file() and secret in path.read_bytes()]
    assert holders == [key_path]
