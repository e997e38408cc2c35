"""The process of an agent: what its supervisor outlasts."""

from __future__ import annotations

import io
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gymwire.env_agent.workers import FIRST_PAUSE_S, MAX_PAUSE_S, meaning, pause_after
from gymwire.fleet.engine import RESTARTING, RUNNING
from gymwire.fleet.processes import AgentProcess, ProcessSpec, last_line
from gymwire.fleet.supervisor import FleetSupervisor
from tests.chaos.fleet import until
from tests.fleet.fleets import PATIENCE_S


def test_an_agent_whose_log_was_removed_is_restarted(tmp_path: Path) -> None:
    log = tmp_path / "log"
    spec = ProcessSpec("lab/0", ("serve", "--no-such-option"), {}, str(tmp_path), str(log), 1.0)
    agent = AgentProcess(spec, 0.0)
    try:
        log.unlink()

        def has_ended() -> bool:
            agent.tick(1.0)
            return agent.report().state == RESTARTING

        until(has_ended, "the process has ended", PATIENCE_S)
        detail = agent.report().detail
        assert detail.startswith("exit 2: its log cannot be read: ")
        assert str(log) in detail
        agent.tick(1.0 + FIRST_PAUSE_S)
        assert agent.report().state == RUNNING
    finally:
        agent.stop()
        agent.tick(2.0)


@pytest.mark.parametrize(
    ("crashes", "pause_s"), [(0, FIRST_PAUSE_S), (2, 4 * FIRST_PAUSE_S), (5000, MAX_PAUSE_S)]
)
def test_the_pause_before_a_restart_doubles_up_to_a_limit(crashes: int, pause_s: float) -> None:
    assert pause_after(crashes) == pause_s


@pytest.mark.parametrize(
    ("status", "text"), [(3, "exit 3"), (-signal.SIGKILL, "SIGKILL"), (-35, "signal 35")]
)
def test_every_exit_status_has_a_meaning(status: int, text: str) -> None:
    assert meaning(status) == text


def test_the_last_line_of_a_log_is_not_indented() -> None:
    assert last_line(io.BytesIO(b"gymwire serve: failed\n\n    ValueError: b\n")) == "ValueError: b"


@pytest.mark.parametrize("signals", [1, 2])
def test_a_signal_may_come_while_an_agent_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, signals: int
) -> None:
    supervisor = FleetSupervisor()
    popen = subprocess.Popen

    def start(command: object, **options: Any) -> subprocess.Popen[bytes]:
        process: subprocess.Popen[bytes] = popen(["sleep", "1000"], **options)
        for _ in range(signals):
            supervisor.on_signal(signal.SIGTERM)
        return process

    monkeypatch.setattr(subprocess, "Popen", start)
    spec = {"name": "lab/0", "arguments": ("serve",), "variables": {}, "folder": str(tmp_path)}
    agent = {**spec, "log": str(tmp_path / "log"), "grace_s": 1.0}
    supervisor.answer({"do": "start", "agents": [agent]})

    def is_over() -> bool:
        supervisor.tick()
        return supervisor.is_over

    until(is_over, "the agent has ended", PATIENCE_S)
