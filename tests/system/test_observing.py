"""An operator sees and stops real sessions, relayed and direct ones, through real processes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest

from gymwire import ProxyEnv
from gymwire.errors import EnvironmentLost
from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.learner_agent.client.observing import (
    ObservedSession,
    observe,
    stop_agent,
    stop_session,
)
from gymwire.protocol.messages import EndedBy
from tests.processes import Programs, programs
from tests.system.test_pools import eventually, pool, rows, session, wait_for_rows

pytestmark = pytest.mark.usefixtures("patient")

PATHS = ("never", "always")
CARTPOLE = ("--address", "cartpole", "--env", "CartPole-v1")


@pytest.fixture
def started() -> Iterator[Programs]:
    with programs() as running:
        yield running


@contextlib.contextmanager
def operator(url: str) -> Iterator[BrokerConnection]:
    connection = BrokerConnection(url)
    try:
        yield connection
    finally:
        connection.close()


def reported(connection: BrokerConnection, steps: int) -> ObservedSession:
    """Return the only session once its env agent has reported so many steps."""

    def attempt() -> ObservedSession | None:
        [one] = observe(connection).sessions
        return one if one.steps == steps else None

    return eventually(attempt, f"a report of {steps} steps")


def step_until_lost(env: ProxyEnv) -> None:
    """Take steps: a direct one may precede the message that the session is lost."""
    while True:
        env.step(0)


@pytest.mark.parametrize("direct", PATHS)
def test_steps_are_reported_for_relayed_and_direct_sessions(started: Programs, direct: str) -> None:
    _, url = started.broker()
    agent = started.env_agent(url, *CARTPOLE, "--direct", "host")
    with ProxyEnv("cartpole", url, direct=direct) as env, operator(url) as connection:
        env.reset(seed=1)
        for _ in range(5):
            env.step(0)
        one = reported(connection, 5)
        assert one.direct is (direct == "always")
        assert one.p50_s is not None
        assert one.p99_s is not None
        assert 0 < one.p50_s <= one.p99_s
        assert (one.learner, one.learner_pid, one.state) == ("anyone", os.getpid(), "open")
        assert one.pid == agent.wait_for("offering")["pid"]


@pytest.mark.parametrize("direct", PATHS)
def test_a_stopped_session_tells_the_learner_who_stopped_it(started: Programs, direct: str) -> None:
    broker, url = started.broker()
    agent = started.env_agent(url, *CARTPOLE, "--direct", "host")
    with ProxyEnv("cartpole", url, direct=direct) as env, operator(url) as connection:
        env.reset(seed=1)
        [one] = observe(connection).sessions
        assert stop_session(connection, one.sid)
        with pytest.raises(EnvironmentLost) as caught:
            step_until_lost(env)
        said = f"an operator ('anyone', process {os.getpid()} on "
        assert said in str(caught.value)
        assert "Call reset()" in str(caught.value)
        assert caught.value.ended_by == EndedBy.OPERATOR
        env.reset(seed=2)
        assert len(observe(connection).sessions) == 1
    for program in (broker, agent):
        lost = program.wait_for("session lost")
        assert (lost["session"], lost["learner"]) == (one.id, "anyone")
        assert lost["learner_pid"] == os.getpid()
        assert said in lost["why"]
        program.wait_for("session closed")


def test_a_stopped_env_agent_drains_with_its_workers(started: Programs) -> None:
    _, url = started.broker()
    supervisor = pool(started, url, 2, "--grace", "30", "--max-sessions", "4")
    with operator(url) as connection, session(url) as (env, _):
        offers = observe(connection).offers
        assert len({one.pid for one in offers}) == 2
        [name] = {one.agent for one in offers}
        stopped = stop_agent(connection, name)
        assert (stopped.processes, stopped.sessions) == (2, 1)
        env.step(0)  # its sessions go on
        wait_for_rows(supervisor, "stopping", 2)
        eventually(lambda: len(observe(connection).offers) == 1 or None, "the idle worker to end")
    assert supervisor.wait() == 0
    assert not rows(supervisor, "worker died")
    assert all("an operator" in row["why"] for row in rows(supervisor, "stopping"))


def test_debug_shows_what_was_refused(started: Programs) -> None:
    broker, url = started.broker("tcp://127.0.0.1:*", "--log-level", "debug")
    with operator(url) as connection, contextlib.suppress(Exception):
        connection.open("nowhere")
    refused = broker.wait_for("frame refused")
    assert (refused["code"], refused["pid"]) == ("address-unknown", os.getpid())
    assert refused["level"] == "debug"
