"""The env agent and its serving loops."""

from __future__ import annotations

import errno
import queue
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import structlog.testing
from gymnasium.error import DependencyNotInstalled

from gymwire.env_agent import agent
from gymwire.env_agent.config import service
from gymwire.env_agent.crew import Crew
from gymwire.env_agent.environments import Service
from gymwire.env_agent.factory import Factory
from gymwire.env_agent.interpreter.child_factory import ChildFactory
from gymwire.env_agent.sessions import SessionHost
from gymwire.protocol import logs
from gymwire.protocol.errors import ConfigurationError
from gymwire.protocol.messages import Offer


class ServingLoop:
    """A serving loop that connects when `may_connect` is set."""

    made: list[ServingLoop]

    def __init__(
        self, make_transports: object, host: SessionHost, token: bytes, **options: bool
    ) -> None:
        self.host = host
        self.stop, self.may_connect = threading.Event(), threading.Event()
        self.runs = threading.Event()
        self.crew = Crew(lambda _me: None)
        self.made.append(self)

    def connect(self, offers: Sequence[Offer], wait_s: float) -> bool:
        return self.may_connect.wait(60.0)

    def run(self) -> None:
        self.runs.set()
        self.stop.wait(60.0)


class Presence:
    def hold(self) -> None:
        pass

    def release(self) -> None:
        pass


class ProgressReporter(threading.Thread):
    def __init__(
        self,
        make_dealer: Callable[[], Any],
        loops: Sequence[ServingLoop],
        token: bytes,
        on_stop: Callable[[str], None],
    ) -> None:
        super().__init__()

    def stop(self) -> None:
        pass


def test_an_offer_is_logged_when_all_its_slots_are_registered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ServingLoop.made = []
    monkeypatch.setattr(agent, "ServingLoop", ServingLoop)
    monkeypatch.setattr(agent, "ProgressReporter", ProgressReporter)
    logged: list[dict[str, Any]] = []
    monkeypatch.setattr("gymwire.protocol.logs.logger", lambda: Log(logged.append))
    monkeypatch.setattr(logs, "LONG_S", 3600.0)  # a busy machine may need more than a second
    services = [service(address="cartpole", env="CartPole-v1", max_sessions=3)]
    made = agent.Agent(services, cast(Any, None), lambda _token: cast(Any, Presence()))
    running = threading.Thread(target=made.run)
    running.start()
    for loop in ServingLoop.made:
        assert logged == []
        loop.may_connect.set()
        assert loop.runs.wait(60.0)
    assert [(row["event"], row["slots"]) for row in logged] == [("offering", 3)]
    made.stop()
    running.join(60.0)
    assert not running.is_alive()


@pytest.mark.parametrize("failing", [0, 1, 2])
@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_too_few_descriptors_end_the_agent_with_one_error(
    monkeypatch: pytest.MonkeyPatch, failing: int, number: int
) -> None:
    ServingLoop.made = []
    monkeypatch.setattr(agent, "ServingLoop", ServingLoop)
    monkeypatch.setattr(agent, "ProgressReporter", ProgressReporter)
    services = [service(address="cartpole", env="CartPole-v1", max_sessions=3)]
    made = agent.Agent(services, cast(Any, None), lambda _token: cast(Any, Presence()))

    def connect(offers: Sequence[Offer], wait_s: float) -> bool:
        raise OSError(number, "Too many open files")

    for loop in ServingLoop.made:
        loop.may_connect.set()
    monkeypatch.setattr(ServingLoop.made[failing], "connect", connect)
    with pytest.raises(ConfigurationError, match="ulimit -n"):
        made.run()


@pytest.mark.parametrize(("slots", "is_warned"), [(4, False), (40, True)])
def test_slots_without_descriptors_for_their_processes_are_named(
    slots: int, is_warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    factory = ChildFactory("a", "tests.plain_envs:Plain", sys.executable, {})
    used = len([*Path("/proc/self/fd").iterdir()])
    monkeypatch.setattr("resource.getrlimit", lambda which: (used + 60, used + 60))
    other = service(address="b", env="CartPole-v1", max_sessions=4000)
    with structlog.testing.capture_logs() as logged:
        agent._warn_of_files([Service("a", factory, slots), other])
    rows = [(row["event"], row["limit"]) for row in logged]
    assert rows == ([("too few open files", used + 60)] if is_warned else [])


def test_all_loops_count_the_environments_of_ended_sessions_together() -> None:
    services = [service(address="cartpole", env="CartPole-v1", max_sessions=3)]
    made = agent.Agent(services, cast(Any, None), lambda _token: cast(Any, Presence()))
    assert len({id(loop.host.unfinished) for loop in made._loops}) == 1 < len(made._loops)


class Log:
    """A logger that collects the lines of all threads."""

    def __init__(self, log: Callable[[dict[str, Any]], None]) -> None:
        self._log = log

    def info(self, event: str, **facts: Any) -> None:
        self._log({"event": event, **facts})


def test_an_environment_that_lacks_a_package_is_an_error_that_says_how_to_install_it() -> None:
    def make(**kwargs: Any) -> Any:
        raise DependencyNotInstalled("Box2D is missing: `pip install swig`, then `pip install box`")

    services = [Service("lander", Factory("Lander-v3", make), 1)]
    made = agent.Agent(services, cast(Any, None), lambda _token: cast(Any, None))
    with pytest.raises(ConfigurationError) as caught:
        made.run()
    assert str(caught.value) == (
        "Lander-v3 cannot be used yet: Box2D is missing: `./run pip install swig`, then "
        "`./run pip install box`"
    )


def test_a_first_environment_that_takes_long_to_make_is_logged_once_before_it_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logged: queue.Queue[dict[str, Any]] = queue.Queue()
    monkeypatch.setattr(logs, "logger", lambda: Log(logged.put))
    monkeypatch.setattr(logs, "LONG_S", 0.0)
    seen: list[dict[str, Any]] = []

    def make(**kwargs: Any) -> Any:
        seen.append(logged.get(timeout=60.0))
        raise RuntimeError("no licence")

    services = [Service("slow", Factory("mine:Slow", make), 1)]
    made = agent.Agent(services, cast(Any, None), lambda _token: cast(Any, None))
    with pytest.raises(ConfigurationError, match="no licence"):
        made.run()
    assert seen == [{"event": "making environment", "address": "slow", "env": "mine:Slow"}]
    assert logged.empty()
