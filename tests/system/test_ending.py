"""Env agents and pools of workers end as docs/reliability.md says, whatever still runs."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gymwire import ProxyEnv
from gymwire.env_agent.workers import Supervisor
from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.protocol.errors import GymwireError
from tests.processes import Program, Programs, programs
from tests.sampling import sampled

SIGNALS = (signal.SIGINT, signal.SIGTERM)
WORKERS = ((), ("--workers", "2"))
ENDS = sampled(itertools.product(WORKERS, SIGNALS), 3)
PATIENCE_S = 20.0


@pytest.fixture
def started() -> Iterator[Programs]:
    with programs(finalized=True) as made:
        yield made


def serve(started: Programs, url: str, gate: Path, where: str, *options: str) -> Program:
    """Start an env agent whose environment waits for the file `gate`."""
    kwargs = json.dumps({"gate": str(gate), "where": where})
    return started.env_agent(
        url,
        *("--address", "gated", "--env", "tests.system.ending_envs:Gated"),
        *("--env-kwargs", kwargs, *options),
    )


def eventually(condition: Callable[[], object]) -> None:
    """Wait until the condition holds."""
    tick = threading.Event()
    for _ in range(int(PATIENCE_S / 0.05)):
        if condition():
            return
        tick.wait(0.05)
    raise AssertionError("it did not happen")


class Stepping(threading.Thread):
    """Resets an environment and executes a step; `outcome` is the result or the error."""

    def __init__(self, env: ProxyEnv) -> None:
        super().__init__(daemon=True)
        self.env = env
        self.outcome: object = None

    def run(self) -> None:
        try:
            self.env.reset(seed=1)
            self.outcome = self.env.step(1)[0]
        except GymwireError as error:
            self.outcome = error


@contextlib.contextmanager
def stepping(url: str, gate: Path, sessions: int = 1) -> Iterator[list[Stepping]]:
    """Yield learners of which at least one is in a step that waits for `gate`."""
    with contextlib.ExitStack() as stack:
        connections = [
            stack.enter_context(contextlib.closing(BrokerConnection(url))) for _ in range(sessions)
        ]
        made = [Stepping(ProxyEnv("gated", connection=one)) for one in connections]
        for one in made:
            one.start()
        eventually(Path(f"{gate}.entered").exists)
        try:
            yield made
        finally:
            for one in made:
                one.join(PATIENCE_S)
                with contextlib.suppress(GymwireError):
                    one.env.close()


@pytest.mark.parametrize(("workers", "number"), ENDS)
def test_a_hanging_step_is_abandoned_after_the_grace(
    started: Programs, tmp_path: Path, number: signal.Signals, workers: tuple[str, ...]
) -> None:
    _, url = started.broker()
    agent = serve(started, url, tmp_path / "gate", "step", "--grace", "0.5", *workers)
    with stepping(url, tmp_path / "gate", sessions=2) as learners:
        agent.process.send_signal(number)
        assert agent.wait() == 1
        agent.wait_for("cut off")
        for learner in learners:
            learner.join(PATIENCE_S)
            assert isinstance(learner.outcome, GymwireError)
        if not workers:
            outcomes = [str(one.outcome) for one in learners]
            assert any("grace period of 0.5 s is over" in text for text in outcomes), outcomes
    text = re.compile(r"request 2 of session [0-9a-f]{16} at 'gated', for")
    assert any(map(text.search, agent.output))


@pytest.mark.parametrize(("workers", "number"), ENDS)
def test_running_steps_finish_in_every_loop(
    started: Programs, tmp_path: Path, number: signal.Signals, workers: tuple[str, ...]
) -> None:
    _, url = started.broker()
    gate = tmp_path / "gate"
    agent = serve(started, url, gate, "step", "--grace", "60", *workers)
    with stepping(url, gate, sessions=4) as learners:
        eventually(lambda: any("session opened" in line for line in agent.output))
        with contextlib.closing(BrokerConnection(url)) as connection:
            agent.process.send_signal(number)
            eventually(lambda: {row["state"] for row in connection.find("gated")} <= {"draining"})
        gate.touch()
        for learner in learners:
            learner.join(PATIENCE_S)
        assert 1 in [learner.outcome for learner in learners]
        for learner in learners:
            with contextlib.suppress(GymwireError):
                learner.env.close()
        assert agent.wait() == 0


@pytest.mark.parametrize(("workers", "number"), ENDS)
def test_a_second_signal_ends_at_once(
    started: Programs, tmp_path: Path, number: signal.Signals, workers: tuple[str, ...]
) -> None:
    _, url = started.broker()
    agent = serve(started, url, tmp_path / "gate", "step", "--grace", "inf", *workers)
    with stepping(url, tmp_path / "gate"):
        agent.process.send_signal(number)
        agent.wait_for("stopping")
        agent.process.send_signal(number)
        assert agent.wait() == 128 + number


@pytest.mark.parametrize("workers", WORKERS)
def test_ctrl_c_ends_what_still_drains(
    started: Programs, tmp_path: Path, workers: tuple[str, ...]
) -> None:
    _, url = started.broker()
    agent = serve(started, url, tmp_path / "gate", "never", "--grace", "inf", *workers)
    with ProxyEnv("gated", url) as env:
        env.reset(seed=1)  # the session is open, and between two requests
        agent.process.send_signal(signal.SIGUSR1)
        agent.wait_for("stopping")
        agent.process.send_signal(signal.SIGINT)
        assert agent.wait() == 0


@pytest.mark.parametrize(
    ("number", "what"), [(signal.SIGINT, "ends now"), (signal.SIGTERM, "may continue")]
)
def test_the_log_says_what_becomes_of_a_session_between_two_requests(
    started: Programs, tmp_path: Path, number: signal.Signals, what: str
) -> None:
    _, url = started.broker()
    agent = serve(started, url, tmp_path / "gate", "never", "--grace", "60")
    with ProxyEnv("gated", url) as env:
        env.reset(seed=1)
        agent.process.send_signal(number)
        stopping = agent.wait_for("stopping")
        assert stopping["running"] == [f"a session between two requests, which {what}"]
        assert ("a second Ctrl-C" in stopping.get("hint", "")) is (number == signal.SIGINT)
    assert agent.wait() == 0


@pytest.mark.parametrize("workers", WORKERS)
def test_signals_to_all_processes_of_a_job_let_it_drain(
    started: Programs, tmp_path: Path, workers: tuple[str, ...]
) -> None:
    """SLURM and systemd send them to the workers, too, and SIGUSR1 may come more than once."""
    _, url = started.broker()
    gate = tmp_path / "gate"
    agent = serve(started, url, gate, "step", "--grace", "60", *workers)
    pids = [agent.process.pid]
    if workers:
        pids += children_of(agent.process.pid)
    with stepping(url, gate, sessions=2) as learners:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):  # a worker without a session
                    os.kill(pid, number)
            agent.wait_for("stopping")
        gate.touch()
        for learner in learners:
            learner.join(PATIENCE_S)
            assert learner.outcome == 1
            with contextlib.suppress(GymwireError):
                learner.env.close()
        assert agent.wait() == 0


def children_of(pid: int) -> list[int]:
    """Return the children of a process."""
    files = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for file in files for child in file.read_text().split()]


@pytest.mark.parametrize("number", SIGNALS)
def test_an_environment_that_closes_is_abandoned_after_the_grace(
    started: Programs, tmp_path: Path, number: signal.Signals
) -> None:
    _, url = started.broker()
    agent = serve(started, url, tmp_path / "gate", "close", "--grace", "0.5")
    env = ProxyEnv("gated", url)
    env.reset()
    with contextlib.suppress(GymwireError):
        env.close()
    eventually((tmp_path / "gate.entered").exists)
    agent.process.send_signal(number)
    assert agent.wait() == 1
    assert not any('"count": 0' in line for line in agent.output)  # of "ending sessions"


@pytest.mark.parametrize("number", SIGNALS)
def test_a_constructor_that_hangs_before_the_offer_is_abandoned(
    started: Programs, tmp_path: Path, number: signal.Signals
) -> None:
    kwargs = json.dumps({"gate": str(tmp_path / "gate"), "where": "constructor"})
    agent = started.start(
        *("gymwire", "serve", "gated", "tests.system.ending_envs:Gated"),
        *("--env-kwargs", kwargs, "--log-format", "json"),
    )
    eventually((tmp_path / "gate.entered").exists)
    agent.process.send_signal(number)
    assert agent.wait() == 1
    line = agent.wait_for("cut off")
    assert (line["level"], "grace_s" in line) == ("info", False)  # it has had no time to end


@pytest.mark.parametrize("number", SIGNALS)
def test_an_exit_handler_that_hangs_is_abandoned(
    started: Programs, tmp_path: Path, number: signal.Signals
) -> None:
    _, url = started.broker()
    agent = serve(started, url, tmp_path / "gate", "exit", "--grace", "0.5")
    agent.process.send_signal(number)
    assert agent.wait() == 1
    assert (tmp_path / "gate.entered").exists()


def test_workers_end_with_a_killed_supervisor(started: Programs, tmp_path: Path) -> None:
    _, url = started.broker()
    agent = serve(started, url, tmp_path / "gate", "step", "--grace", "0.5", "--workers", "2")
    with stepping(url, tmp_path / "gate"):
        agent.process.kill()
        with contextlib.closing(BrokerConnection(url)) as connection:
            eventually(lambda: not connection.find("gated"))


@pytest.mark.parametrize("number", SIGNALS)
def test_a_worker_that_does_not_handle_signals_yet_has_nothing_to_cut_off(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    # `signal.pause` would miss a signal that comes just before it.
    wait = "import time\nprint(flush=True)\nwhile True: time.sleep(0.1)"
    starting = [sys.executable, "-c", wait]
    popen = subprocess.Popen
    started: list[subprocess.Popen[bytes]] = []

    def start(_arguments: object, **options: Any) -> subprocess.Popen[bytes]:
        process = popen(starting, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, **options)
        assert process.stdout is not None
        process.stdout.readline()
        started.append(process)
        return process

    monkeypatch.setattr(subprocess, "Popen", start)
    supervisor = Supervisor([], 2, 60.0)
    supervisor.stop(number)
    assert supervisor.run() == 0
    for process in started:
        process.communicate()
