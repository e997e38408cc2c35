"""A fleet on this machine: real processes, found again, healed, drained and ended."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gymwire.protocol.security import keys
from tests.chaos.fleet import until
from tests.fleet.engine_tests import (  # noqa: F401 - pytest collects them
    test_a_session_may_go_on_for_the_grace_period_and_is_lost_then,
    test_an_agent_that_is_killed_is_started_again,
    test_another_process_finds_the_fleet_again,
    test_scaling_under_load_loses_no_session,
    test_up_waits_until_all_agents_are_listed,
)
from tests.fleet.fleets import PATIENCE_S, SLOTS, Learner, Shell, write
from tests.processes import Programs

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs Unix sockets")
Make = Callable[..., Shell]


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a short path for the state of fleets."""
    folder = tempfile.mkdtemp()
    monkeypatch.setenv("XDG_STATE_HOME", folder)
    yield Path(folder)
    shutil.rmtree(folder, ignore_errors=True)  # a supervisor may still be removing its socket


@pytest.fixture
def make(state: Path, tmp_path: Path, broker_url: str) -> Iterator[Make]:
    """Return a function that makes the shell of a fleet, which is down after the test."""
    made: list[Shell] = []

    def make(agents: str, **changes: object) -> Shell:
        shell = Shell(write(tmp_path, broker_url, agents, **changes), "local")  # type: ignore[arg-type]
        made.append(shell)
        return shell

    yield make
    for shell in made:
        shell.run("down")


@pytest.fixture
def shell(make: Make) -> Shell:
    return make("count = 2", grace_s=1)


def test_all_agents_end_with_their_supervisor(make: Make) -> None:
    shell = make("count = 2")
    pids = {one["pid"] for one in shell.run("up")["agents"]}
    [supervisor] = {parent_of(pid) for pid in pids}
    os.kill(supervisor, signal.SIGKILL)
    until(lambda: not any(map(exists, pids)), "the agents have ended", PATIENCE_S)
    assert shell.agents() == {}
    assert len(shell.run("up")["agents"]) == 2
    assert shell.status == 0


def test_up_says_what_is_missing(make: Make) -> None:
    shell = make("count = 1")
    shell.path.write_text(shell.path.read_text().replace(":Ledger", ":Missing"))
    shell.run("up", "--wait", "0.1")
    until(
        lambda: any("Missing" in one["detail"] for one in shell.agents().values()),
        "the status says why",
        PATIENCE_S,
    )
    shell.run("up", "--wait", "0.1")
    assert shell.status == 1
    assert f"{shell.path}, line 13, env in [[offer]]: " in shell.errors
    assert "Missing" in shell.errors
    assert "GYMWIRE_CONFIG" not in shell.errors


def test_keys_stay_in_files_of_the_user(state: Path, tmp_path: Path, programs: Programs) -> None:
    broker_key, _ = keys.generate("broker", tmp_path)
    keys.generate("agent", tmp_path)
    _, url = programs.broker("tcp://127.0.0.1:*", "--key", str(broker_key))
    more = 'key = "agent.key"\nbroker_key = "broker.pub"'
    shell = Shell(write(tmp_path, url, "count = 1", more=more), "local")
    agent = shell.run("up")["agents"][0]
    assert shell.status == 0
    secret = keys.load(tmp_path / "agent.key").secret
    for name in ("cmdline", "environ"):
        assert secret not in Path(f"/proc/{agent['pid']}/{name}").read_bytes()
    for path in state.rglob("*"):
        if path.is_file() and secret in path.read_bytes():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    shell.run("down")
    assert shell.status == 0


def test_the_autoscaler_follows_the_load_and_leaves_the_fleet_as_it_is(
    make: Make, broker_url: str, programs: Programs
) -> None:
    shell = make("min = 1\nmax = 3\nfree_slots = 1\nidle_s = 0.5")
    watching = programs.start("gymwire", "fleet", "up", str(shell.path), "--watch")
    until(lambda: shell.ready() == 1, "the first agent is ready", PATIENCE_S)
    learners = [Learner(broker_url, seed) for seed in range(SLOTS + 1)]
    for learner in learners:  # the last one waits for the second agent
        learner.wait_for_steps(20)
    until(lambda: shell.ready() == 2, "the second agent is ready", PATIENCE_S)
    for learner in learners:
        learner.check()
        assert learner.lost == 0
    until(lambda: len(shell.agents()) == 1, "an idle agent has ended", PATIENCE_S)
    watching.process.terminate()
    assert watching.wait() == 0
    assert shell.ready() == 1


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def exists(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
