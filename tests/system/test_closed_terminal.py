"""A closed terminal ends commands as SIGTERM does, unless `nohup` started them."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gymwire import ProxyEnv
from tests.processes import PATIENCE_S, ROOT, Programs

pty = pytest.importorskip("pty")

LAKE = ("--address", "lake", "--env", "FrozenLake-v1")


def take_terminal() -> None:
    """Make standard input the controlling terminal of a new process session."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup` may have started the tests
    os.close(os.open(os.ttyname(0), os.O_RDWR))


def in_terminal(*arguments: str) -> tuple[subprocess.Popen[bytes], int]:
    """Start gymwire in a terminal of its own; return the process and the terminal's other end."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "gymwire", *arguments],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        preexec_fn=take_terminal,  # noqa: PLW1509 - it only makes system calls
        cwd=ROOT,
        env={**os.environ, "TERM": "xterm-256color"},
    )
    os.close(slave)
    return process, master


def read_until(master: int, text: str) -> None:
    """Read what the terminal shows until it contains this text."""
    shown = ""
    while text not in shown:
        assert select.select([master], [], [], PATIENCE_S)[0], shown
        shown += os.read(master, 65536).decode(errors="replace")


def go_on(env: ProxyEnv) -> None:
    """Run more steps than one that was under way when a signal came."""
    for number in range(50):
        if env.step(number % 4)[2]:
            env.reset()


def test_a_training_is_saved_if_its_terminal_closes(programs: Programs, tmp_path: Path) -> None:
    _, url = programs.broker()
    programs.env_agent(url, *LAKE)
    path = tmp_path / "lake.npz"
    learner, master = in_terminal(
        "train", "lake", "--steps", "1000000", "--save", str(path), "--broker", url
    )
    try:
        read_until(master, "/s")
        os.close(master)
        learner.wait(PATIENCE_S)
    finally:
        learner.kill()
        learner.wait()
    with np.load(path) as file:
        assert 0 < json.loads(str(file["metadata"]))["steps"] < 1_000_000


def test_an_env_agent_drains_whose_terminal_closes(programs: Programs) -> None:
    _, url = programs.broker()
    agent = programs.env_agent(url, *LAKE, "--grace", "60")
    with ProxyEnv("lake", url) as env:
        env.reset(seed=1)
        agent.process.send_signal(signal.SIGHUP)
        agent.wait_for("stopping")
        agent.process.send_signal(signal.SIGHUP)  # the shell sends it again
        go_on(env)
    assert agent.wait() == 0


def test_workers_drain_whose_terminal_closes(programs: Programs) -> None:
    _, url = programs.broker()
    agent = programs.env_agent(url, *LAKE, "--workers", "2", "--grace", "60")
    with ProxyEnv("lake", url) as env:
        env.reset(seed=1)
        agent.process.send_signal(signal.SIGHUP)
        agent.wait_for("stopping")
        agent.process.send_signal(signal.SIGHUP)
        go_on(env)
    assert agent.wait() == 0


def test_a_broker_ends_whose_terminal_closes(programs: Programs) -> None:
    broker, _ = programs.broker()
    broker.process.send_signal(signal.SIGHUP)
    assert broker.wait() == 0


@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN], ids=["plain", "nohup"])
def test_a_command_ends_if_the_honcho_that_started_it_has_ended(handler: signal.Handlers) -> None:
    signal.signal(signal.SIGHUP, handler)  # the process inherits it
    process = subprocess.Popen(
        [sys.executable, "-m", "gymwire", "broker", "--bind", "tcp://127.0.0.1:*"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=ROOT,
        env={**os.environ, "HONCHO_PROCESS_NAME": "broker.1"},
    )
    try:
        assert process.stdout is not None
        assert b"broker listening" in process.stdout.readline()
        process.stdout.close()
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()


def test_a_command_goes_on_that_only_writes_to_a_pipe(programs: Programs, tmp_path: Path) -> None:
    _, url = programs.broker()
    programs.env_agent(url, *LAKE)
    path = tmp_path / "lake.npz"
    command = ("train", "lake", "--steps", "300", "--save", str(path), "--broker", url)
    process = subprocess.Popen(
        [sys.executable, "-m", "gymwire", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        env={**os.environ, "HONCHO_PROCESS_NAME": "learner.1"},
    )
    assert process.stdout is not None
    process.stdout.close()
    process.wait(PATIENCE_S)
    with np.load(path) as file:
        assert json.loads(str(file["metadata"]))["steps"] == 300


IGNORING = """
import os, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_IGN)
from gymwire.protocol.ending_signals import ending_signals
{more}
"""


@pytest.mark.parametrize(
    "more",
    [
        "assert signal.SIGHUP not in ending_signals()",
        """
from gymwire.env_agent import signals
restore = signals.watch(lambda number: os._exit(1))
signal.raise_signal(signal.SIGHUP)
restore()
assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
""",
    ],
    ids=["commands", "env agents"],
)
def test_nohup_lets_them_run_on(more: str) -> None:
    subprocess.run([sys.executable, "-c", IGNORING.format(more=more)], check=True, cwd=ROOT)
