"""Tests that every engine passes. A module of an engine imports them, and has the fixture `shell`.

This is the shell of a fleet of two agents with a grace period of one second, which is down after
the test.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from tests.chaos.fleet import until
from tests.fleet.fleets import ADDRESS, PATIENCE_S, SLOTS, Learner, Shell
from tests.processes import ROOT


def play(learners: list[Learner], broker: str, count: int = 2) -> None:
    """Start learners, and wait until each plays."""
    learners += [Learner(broker, seed) for seed in range(count)]
    go_on(learners)


def go_on(learners: list[Learner]) -> None:
    for learner in learners:
        learner.wait_for_steps(20)


def heals(shell: Shell, before: dict[str, Any], *names: str) -> None:
    """Wait until all agents are ready and those with these names are new processes."""

    def healed() -> bool:
        now = shell.agents()
        return all(one["state"] == "ready" for one in now.values()) and not any(
            now[name]["pid"] == before[name]["pid"] for name in names
        )

    until(healed, "the fleet is healed", PATIENCE_S)
    assert shell.agents().keys() == before.keys()


def test_up_waits_until_all_agents_are_listed(shell: Shell) -> None:
    found = shell.run("up")
    assert shell.status == 0
    assert [one["name"].rpartition("/")[2] for one in found["agents"]] == ["0", "1"]
    assert all(one["state"] == "ready" for one in found["agents"])
    assert all(one["free"] == {ADDRESS: SLOTS} for one in found["agents"])


def test_another_process_finds_the_fleet_again(shell: Shell) -> None:
    def run(action: str) -> None:
        command = ["-m", "gymwire", "fleet", action, str(shell.path), "--on", shell.engine]
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True)

    run("up")
    before = shell.agents()
    after = shell.run("up")["agents"]
    assert [one["pid"] for one in after] == [one["pid"] for one in before.values()]
    run("down")
    assert shell.agents() == {}
    for one in after:
        with pytest.raises(ProcessLookupError):
            os.kill(one["pid"], 0)


def test_an_agent_that_is_killed_is_started_again(
    shell: Shell, learners: list[Learner], broker_url: str
) -> None:
    shell.run("up")
    play(learners, broker_url, 3)
    before = shell.agents()
    name, agent = next(iter(before.items()))
    os.kill(agent["pid"], signal.SIGKILL)
    heals(shell, before, name)
    assert shell.agents()[name]["detail"] == ""
    go_on(learners)
    assert sum(learner.lost for learner in learners) >= 1


def test_scaling_under_load_loses_no_session(
    shell: Shell, learners: list[Learner], broker_url: str
) -> None:
    shell.run("up")
    play(learners, broker_url, 1)
    assert len(shell.run("scale", "--agents", "4")["agents"]) == 4
    assert shell.status == 0
    go_on(learners)
    shell.run("scale", "--agents", "1")  # the one with the session stays
    until(lambda: len(shell.agents()) == 1, "three agents have ended", PATIENCE_S)
    go_on(learners)
    assert learners[0].lost == 0


def test_a_session_may_go_on_for_the_grace_period_and_is_lost_then(
    shell: Shell, learners: list[Learner], broker_url: str
) -> None:
    shell.run("up")
    play(learners, broker_url, 1)
    assert len(shell.run("drain")["draining"]) == 2
    go_on(learners)
    assert learners[0].lost == 0
    until(lambda: shell.agents() == {}, "the agents have ended", PATIENCE_S)
    until(lambda: learners[0].lost == 1, "the learner was told", PATIENCE_S)
    assert "has stopped: its grace period of 1 s is over" in learners[0].texts[0]
    shell.run("up")
    go_on(learners)
