"""What the commands do with an engine, and what they refuse."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gymwire.cli import fleet as command
from gymwire.fleet import commands, engines
from gymwire.fleet.commands import FleetControl
from gymwire.fleet.description import load
from gymwire.fleet.engine import DRAINING, RUNNING, AgentPlan, RunningAgent
from gymwire.fleet.state import state_folder
from gymwire.learner_agent.client import connection
from gymwire.protocol.errors import BrokerUnreachable, ConfigurationError, Refused
from tests.cli.reading import Screen, call
from tests.fleet.fleets import ADDRESS, SLOTS, write

HOST = "node"


class Memory:
    """An engine whose agents run nowhere, and a broker that lists them.

    Agents without sessions end as soon as they drain.
    """

    def __init__(self) -> None:
        self.agents: dict[str, RunningAgent] = {}
        self.used: dict[str, int] = {}
        self.unlisted: set[str] = set()
        self.killed: list[str] = []
        self.unreachable = 0
        self.asked = 0
        self.listed_from: int | None = None  # the question to which it lists all agents

    def start(self, agents: Sequence[AgentPlan]) -> None:
        for plan in agents:
            assert plan.name not in self.agents
            self.agents[plan.name] = RunningAgent(plan.name, RUNNING, HOST, 100 + plan.number)

    def running(self) -> list[RunningAgent]:
        self.asked += 1
        if self.asked == self.listed_from:
            self.unlisted.clear()
        return [*self.agents.values()]

    def drain(self, names: Sequence[str]) -> None:
        for name in names:
            if self.used.get(name):
                self.agents[name] = RunningAgent(name, DRAINING, HOST, self.agents[name].pid)
            else:
                del self.agents[name]

    def stop(self, names: Sequence[str]) -> None:
        self.killed += names
        for name in names:
            del self.agents[name]

    def find(self) -> list[dict[str, Any]]:
        if self.unreachable:
            self.unreachable -= 1
            raise BrokerUnreachable("no broker")
        return [
            {
                "address": ADDRESS,
                "host": HOST,
                "pid": one.pid,
                "agent_pid": one.pid,
                "capacity": SLOTS,
                "used": self.used.get(one.name, 0),
                "state": "draining" if one.state == DRAINING else "ready",
            }
            for one in self.agents.values()
            if one.name not in self.unlisted
        ]


class Connection:
    """A connection to that broker."""

    def __init__(self, memory: Memory) -> None:
        self.find = memory.find

    def close(self) -> None:
        """There is nothing to close."""


@pytest.fixture
def memory() -> Memory:
    return Memory()


def control(memory: Memory, folder: Path, agents: str) -> FleetControl:
    return FleetControl(load(write(folder, "tcp://b:1", agents)), memory, memory.find)


def numbers(memory: Memory) -> list[int]:
    return sorted(int(name.rpartition("/")[2]) for name in memory.agents)


def test_up_fills_gaps_and_drains_what_is_too_many(memory: Memory, tmp_path: Path) -> None:
    fleet = control(memory, tmp_path, "count = 3")
    fleet.up()
    assert numbers(memory) == [0, 1, 2]
    fleet.drain([name for name in memory.agents if name.endswith("/1")])
    fleet.up()
    assert numbers(memory) == [0, 1, 2]
    control(memory, tmp_path, "count = 1").up()
    assert numbers(memory) == [0]


def test_up_keeps_what_the_autoscaler_has_started(memory: Memory, tmp_path: Path) -> None:
    fleet = control(memory, tmp_path, "min = 1\nmax = 4")
    fleet.scale(3)
    fleet.up()
    assert numbers(memory) == [0, 1, 2]


def test_an_agent_is_ready_when_the_broker_lists_it(memory: Memory, tmp_path: Path) -> None:
    fleet = control(memory, tmp_path, "count = 2")
    fleet.up()
    first, second = memory.agents
    memory.unlisted.add(second)
    memory.used[first] = 3
    states = {one.name: (one.state, one.used, one.free) for one in fleet.status()}
    assert states == {first: ("ready", 3, {ADDRESS: 1}), second: ("starting", 0, {})}


def test_an_agent_that_is_ready_again_does_not_keep_its_last_error(
    memory: Memory, tmp_path: Path
) -> None:
    fleet = control(memory, tmp_path, "count = 1")
    fleet.up()
    ((name, agent),) = memory.agents.items()
    memory.agents[name] = replace(agent, detail="exit 1: boom")
    assert fleet.status()[0].detail == ""
    memory.unlisted.add(name)
    assert fleet.status()[0].detail == "exit 1: boom"


def test_scaling_asks_the_engine_once(memory: Memory, tmp_path: Path) -> None:
    fleet = control(memory, tmp_path, "count = 2")
    for scale in (fleet.up, lambda: fleet.scale(3), lambda: fleet.scale(3)):
        memory.asked = 0
        scale()
        assert memory.asked == 1
    assert numbers(memory) == [0, 1, 2]


def test_status_without_a_broker_shows_what_the_engine_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, screen = Memory(), Screen()
    path = write(tmp_path, "tcp://127.0.0.1:1", "count = 2")
    monkeypatch.setattr(command, "open_engine", lambda *_: memory)
    monkeypatch.setattr(connection, "CONNECT_S", 0.1)
    memory.start([load(path).plan(0), load(path).plan(1)])
    assert call(screen, "fleet", "status", str(path), "--json") == 1
    assert [one["state"] for one in screen.json["agents"]] == ["running", "running"]
    assert screen.json["error"]["type"] == "BrokerUnreachable"
    shown = screen.error_file.getvalue()
    assert "No broker answers at tcp://127.0.0.1:1" in shown
    assert f"(in {path})" in shown
    assert "2 agents; which of them are ready is unknown" in shown


def test_status_waits_only_if_asked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory()
    path = write(tmp_path, "tcp://b:1", "count = 1")
    monkeypatch.setattr(command, "open_engine", lambda *_: memory)
    monkeypatch.setattr(command, "_connect", lambda *_: Connection(memory))
    plan = load(path).plan(0)
    memory.start([plan])
    memory.unlisted.add(plan.name)
    monkeypatch.setattr(commands, "CHECK_S", 0.0)
    memory.listed_from = 3  # requests

    def status(*options: str) -> Any:
        screen = Screen()
        call(screen, "fleet", "status", str(path), "--json", *options)
        return screen.json["agents"][0]["state"]

    assert status() == "starting"
    assert memory.asked == 1
    assert status("--wait", "inf") == "ready"
    assert memory.asked > memory.listed_from


def test_up_without_a_broker_shows_the_agents_and_names_no_longer_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, screen = Memory(), Screen()
    path = write(tmp_path, "tcp://127.0.0.1:1", "count = 1")
    monkeypatch.setattr(command, "open_engine", lambda *_: memory)
    monkeypatch.setattr(connection, "CONNECT_S", 0.1)
    assert call(screen, "fleet", "up", str(path), "--wait", "0.2") == 1
    shown = screen.error_file.getvalue()
    assert "No broker answers at tcp://127.0.0.1:1" in shown
    assert not re.search(r"[0-9] s\b", shown)
    assert next(iter(memory.agents)) in screen.text


@pytest.mark.parametrize(
    ("raised", "expected"), [(KeyboardInterrupt, KeyboardInterrupt), (BrokenPipeError, Refused)]
)
def test_every_end_of_up_says_what_happened(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    raised: type[BaseException],
    expected: type[BaseException],
) -> None:
    def start(*_: object) -> None:
        raise raised

    memory, screen = Memory(), Screen()
    path = write(tmp_path, "tcp://b:1", "count = 1")
    monkeypatch.setattr(command, "open_engine", lambda *_: memory)
    monkeypatch.setattr(Memory, "start", start)
    with pytest.raises(expected) as caught:
        call(screen, "fleet", "up", str(path))
    said = screen.text + str(caught.value)
    assert ("interrupted; fleet" if raised is KeyboardInterrupt else "up on local failed") in said


def test_status_names_an_address_that_the_file_does_not_offer(
    memory: Memory, tmp_path: Path
) -> None:
    control(memory, tmp_path, "count = 1").up()
    path = tmp_path / "fleet.toml"
    path.write_text(path.read_text().replace(f'"{ADDRESS}"', '"changed"'))
    fleet = FleetControl(load(path), memory, memory.find)
    (agent,) = fleet.status()
    assert agent.state == "starting"
    assert f"it offers {ADDRESS}, which fleet.toml does not" in agent.detail


def test_status_names_the_line_of_an_offer_that_an_agent_leaves_out(
    memory: Memory, tmp_path: Path
) -> None:
    path = write(tmp_path, "tcp://b:1", "count = 1")
    path.write_text(f'{path.read_text()}\n[[offer]]\naddress = "other"\nenv = "Gone-v1"\n')
    line = path.read_text().splitlines().index('address = "other"') + 1
    fleet = FleetControl(load(path), memory, memory.find)
    fleet.up()
    (agent,) = fleet.status()
    assert agent.state == "starting"
    assert agent.detail == f"it does not offer other ({path}, line {line}): its log says why"


def test_agents_of_another_file_are_not_drained(memory: Memory, tmp_path: Path) -> None:
    control(memory, tmp_path, "count = 2").up()
    path = tmp_path / "fleet.toml"
    other = path.read_text().replace(f'"{ADDRESS}"', '"changed"').replace("count = 2", "count = 1")
    path.write_text(other)
    fleet = FleetControl(load(path), memory, memory.find)
    with pytest.raises(ConfigurationError, match="would be drained, but it offers"):
        fleet.up()
    assert len(memory.running()) == 2
    assert all(one.state == RUNNING for one in memory.running())


def test_down_kills_what_outlasts_the_grace_period(
    memory: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "END_S", -5.0)  # together with the grace: 0
    fleet = control(memory, tmp_path, "count = 2")
    fleet.up()
    busy = next(iter(memory.agents))
    memory.used[busy] = 1
    assert fleet.down() == memory.killed == [busy]
    assert memory.agents == {}


def test_watching_scales_until_it_is_stopped(memory: Memory, tmp_path: Path) -> None:
    fleet = control(memory, tmp_path, "min = 1\nmax = 3\nfree_slots = 2\nidle_s = 0")
    rounds: list[list[int]] = []

    def stopped(_: float) -> bool:
        rounds.append(numbers(memory))
        match len(rounds):
            case 1:
                memory.used = dict.fromkeys(memory.agents, SLOTS)
            case 2:
                memory.unreachable = 1
            case 3:
                memory.used = {}
        return len(rounds) == 5

    fleet.watch(stopped)
    assert rounds == [[0], [0, 1], [0, 1], [1], [1]]


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("scale",), "--agents N"),
        (("up", "--agents", "3"), "gymwire fleet scale"),
        (("up", "--agent", "lab/1"), "gymwire fleet drain"),
        (("down", "--watch"), "gymwire fleet up"),
    ],
)
def test_options_of_another_action_are_refused(arguments: tuple[str, ...], what: str) -> None:
    action, *options = arguments
    with pytest.raises(ConfigurationError, match=what):
        call(Screen(), "fleet", action, "fleet.toml", *options)


def test_scale_keeps_to_the_bounds_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, "tcp://b:1", "min = 2\nmax = 4")
    monkeypatch.setattr(command, "open_engine", lambda *_: Memory())
    with pytest.raises(ConfigurationError, match=r"expected 2 to 4.*got 5"):
        call(Screen(), "fleet", "scale", str(path), "--agents", "5")


def test_up_says_that_agents_have_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, screen = Memory(), Screen()
    path = write(tmp_path, "tcp://b:1", "count = 3")
    monkeypatch.setattr(command, "open_engine", lambda *_: memory)
    monkeypatch.setattr(Memory, "start", lambda *_: None)
    monkeypatch.setattr(command, "_connect", lambda *_: Connection(memory))
    assert call(screen, "fleet", "up", str(path), "--wait", "inf") == 1
    assert "3 of 3 agents have ended meanwhile" in screen.error_file.getvalue()


@pytest.mark.skipif(sys.platform == "win32", reason="needs flock")
@pytest.mark.parametrize("action", ["up", "scale", "watch"])
def test_one_process_at_a_time_starts_agents(
    action: str, memory: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    path = write(tmp_path, "tcp://b:1", "count = 1")
    lock = state_folder(load(path).name) / "lock"

    def can_start() -> bool:
        with lock.open("wb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    could_start: list[bool] = []
    monkeypatch.setattr(Memory, "start", lambda *_: could_start.append(can_start()))
    monkeypatch.setattr(command, "open_engine", lambda *_: memory)
    monkeypatch.setattr(command, "_connect", lambda *_: Connection(memory))
    monkeypatch.setattr(command, "_watch", lambda control: control.watch(lambda _: True))
    options = {"up": ("up",), "scale": ("scale", "--agents", "1"), "watch": ("up", "--watch")}
    name, *more = options[action]
    call(Screen(), "fleet", name, str(path), *more)
    assert could_start == [False]
    assert can_start()


def test_drain_needs_no_broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, screen = Memory(), Screen()
    path = write(tmp_path, "tcp://127.0.0.1:1", "count = 2")
    monkeypatch.setattr(command, "open_engine", lambda *_: memory)
    memory.start([load(path).plan(0), load(path).plan(1)])
    name = next(iter(memory.agents))
    assert call(screen, "fleet", "drain", str(path), "--agent", name, "--json") == 0
    assert screen.json["draining"] == [name]
    assert len(memory.agents) == 1


def test_drain_refuses_an_agent_that_the_fleet_does_not_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Memory()
    path = write(tmp_path, "tcp://127.0.0.1:1", "count = 1")
    monkeypatch.setattr(command, "open_engine", lambda *_: memory)
    memory.start([load(path).plan(0)])
    (name,) = memory.agents
    with pytest.raises(ConfigurationError, match=f"no agent 'other/9'. It has {name}"):
        call(Screen(), "fleet", "drain", str(path), "--agent", "other/9", "--agent", name)
    assert name in memory.agents


def test_an_engine_without_its_extra_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(engines.ENGINES, "ray", ("no_such_module", "Engine", "ray"))
    path = write(tmp_path, "tcp://b:1", "count = 1")
    with pytest.raises(ConfigurationError, match=r"no_such_module.*pip install .*\[ray\]"):
        call(Screen(), "fleet", "status", str(path), "--on", "ray")
