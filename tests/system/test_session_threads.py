"""Each session has its thread: slow steps run at the same time, and a stuck one stops no other."""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from gymwire import ProxyEnv, ProxyVectorEnv
from gymwire.env_agent.unfinished import MIN_UNFINISHED
from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.protocol.errors import NoFreeSlot, RequestTimeout
from gymwire.protocol.messages import Act, Reset
from tests.processes import Programs, programs
from tests.sampling import sampled, thorough
from tests.time_limits import times_out

pytestmark = pytest.mark.usefixtures("patient")

PATIENCE_S = 60.0
DIRECT = ("never", "auto")


@pytest.fixture
def started() -> Iterator[Programs]:
    with programs() as made:
        yield made


def eventually(condition: Callable[[], object]) -> None:
    """Wait until the condition holds."""
    for _ in range(int(PATIENCE_S / 0.1)):
        if condition():
            return
        threading.Event().wait(0.1)
    raise AssertionError("it did not happen")


def serve(started: Programs, url: str, name: str, *options: str, **kwargs: object) -> None:
    """Serve an environment of `thread_envs` under the address `it`, also directly."""
    started.env_agent(
        url,
        *("--address", "it", "--env", f"tests.system.thread_envs:{name}"),
        *("--env-kwargs", json.dumps(kwargs), "--direct", "host", *options),
    )


@pytest.mark.parametrize("direct", ["never", thorough("auto")])
def test_slow_steps_of_many_sessions_run_at_the_same_time(started: Programs, direct: str) -> None:
    count = 200
    _, url = started.broker()
    serve(started, url, "Together", "--max-sessions", str(count), parties=count)
    with contextlib.closing(
        ProxyVectorEnv("it", num_envs=count, broker=url, sessions=count, direct=direct)
    ) as vector:
        vector.reset(seed=1)
        for step in range(1, 4):
            assert (vector.step(np.zeros(count, np.int64))[0] == step).all()


def test_asynchronous_steps_of_many_sessions_run_at_the_same_time(started: Programs) -> None:
    count = 200
    _, url = started.broker()
    serve(started, url, "AsyncTogether", "--max-sessions", str(count), parties=count)
    with contextlib.closing(
        ProxyVectorEnv("it", num_envs=count, broker=url, sessions=count)
    ) as vector:
        vector.reset(seed=1)
        for step in range(1, 4):
            assert (vector.step(np.full(count, step))[0] == step).all()


@pytest.mark.parametrize(
    ("options", "direct"), sampled(itertools.product([(), ("--threads", "1")], DIRECT), 3)
)
def test_an_environment_is_made_used_and_closed_in_one_thread(
    started: Programs, direct: str, options: tuple[str, ...]
) -> None:
    _, url = started.broker()
    count, closed = 20, 0
    serve(started, url, "InOneThread", "--max-sessions", str(count), *options)
    for _ in range(3):
        with contextlib.ExitStack() as stack:
            envs = [ProxyEnv("it", broker=url, direct=direct) for _ in range(count)]
            for env in envs:
                stack.callback(env.close)
                closed = env.reset(seed=1)[1]["closed"]
            for step in range(1, 30):
                for env in envs:
                    assert env.step(0)[0] == step
            for env in envs:
                env.render()
                env.reset()
    assert closed == 2 * count


def test_one_session_at_a_time_is_in_the_main_thread(started: Programs) -> None:
    _, url = started.broker()
    serve(started, url, "InOneThread", "--max-sessions", "20")
    for _ in range(3):
        with contextlib.ExitStack() as stack:
            envs = [ProxyEnv("it", broker=url) for _ in range(20)]
            for env in envs:
                stack.callback(env.close)
            assert [env.reset()[0] for env in envs].count(1) == 1


def test_with_a_number_of_threads_these_execute_all_sessions(started: Programs) -> None:
    _, url = started.broker()
    serve(started, url, "InOneThread", "--max-sessions", "5", "--threads", "1")
    with contextlib.ExitStack() as stack:
        envs = [ProxyEnv("it", broker=url) for _ in range(5)]
        for env in envs:
            stack.callback(env.close)
        assert [env.reset()[0] for env in envs] == [1] * 5


@pytest.mark.parametrize(("others", "direct"), sampled(itertools.product([0, 23], DIRECT), 3))
def test_a_stuck_step_stops_no_other_session(
    started: Programs, tmp_path: Path, direct: str, others: int
) -> None:
    _, url = started.broker()
    gate = tmp_path / "gate"
    serve(started, url, "Stuck", "--max-sessions", str(others + 3), gate=str(gate))
    with contextlib.ExitStack() as stack:

        def opened(*, alone: bool) -> ProxyEnv:
            connection = BrokerConnection(url) if alone else None
            if connection is not None:
                stack.callback(connection.close)
            env = ProxyEnv("it", url, direct=direct, connection=connection)
            stack.callback(env.close)
            env.reset()
            return env

        stuck = opened(alone=False)
        rest = [opened(alone=number % 2 == 0) for number in range(others)]
        with times_out(stuck):
            stuck.step(1)
        for env in [*rest, opened(alone=False), opened(alone=True)]:
            for step in range(1, 30):
                assert env.step(0)[0] == step
        gate.touch()
        assert stuck.step(1)[0] == 1  # however often it was requested, it was executed once


@pytest.mark.parametrize(("kept", "direct"), sampled(itertools.product([0, 1], DIRECT), 3))
def test_an_abandoned_step_does_not_delay_the_next_session(
    started: Programs, tmp_path: Path, direct: str, kept: int
) -> None:
    _, url = started.broker()
    gate = tmp_path / "gate"
    serve(started, url, "Stuck", "--max-sessions", str(kept + 1), gate=str(gate))
    others = [ProxyEnv("it", broker=url, direct=direct) for _ in range(kept)]
    for env in others:  # on the connection of the stuck one, which therefore remains open
        env.reset()
    stuck = ProxyEnv("it", broker=url, direct=direct)
    stuck.reset()
    with times_out(stuck):
        stuck.step(1)
    with times_out(stuck, "may still execute the request before it"):
        stuck.reset()
    stuck.close()
    with contextlib.closing(ProxyEnv("it", broker=url, wait_s=PATIENCE_S)) as env:
        assert env.reset()[0] == 0  # the main thread is still in the abandoned step
        assert env.step(0)[0] == 1
        with contextlib.closing(BrokerConnection(url)) as connection:
            eventually(lambda: [row["stuck"] for row in connection.find("it")] == [1])
            gate.touch()
            eventually(lambda: [row["stuck"] for row in connection.find("it")] == [0])
    for env in others:
        assert env.step(0)[0] == 1
        env.close()


def test_abandoned_steps_do_not_pile_up(started: Programs, tmp_path: Path) -> None:
    _, url = started.broker()
    gate = tmp_path / "gate"
    serve(started, url, "Stuck", "--max-sessions", "2", gate=str(gate))  # in two loops

    def leave_stuck(times: int) -> None:
        for _ in range(times):
            with contextlib.closing(BrokerConnection(url)) as connection:
                (session,) = connection.open_all("it", [0], wait_s=0.0)
                session.request(Reset(), PATIENCE_S)
                session.begin(Act(np.int64(1)))

    leave_stuck(MIN_UNFINISHED + 1)
    with pytest.raises(NoFreeSlot, match="environments of ended sessions at 'it' are still busy"):
        leave_stuck(10 * MIN_UNFINISHED)  # a loop may notice late that a session has ended
    gate.touch()
    with contextlib.closing(ProxyEnv("it", broker=url, wait_s=PATIENCE_S)) as env:
        env.reset()


def test_with_a_number_of_threads_no_session_waits_for_an_abandoned_step(
    started: Programs, tmp_path: Path
) -> None:
    _, url = started.broker()
    gate = tmp_path / "gate"
    serve(started, url, "Stuck", "--max-sessions", "8", "--threads", "2", gate=str(gate))
    stuck = ProxyEnv("it", broker=url, step_timeout_s=2.0)
    stuck.reset()
    with pytest.raises(RequestTimeout):
        stuck.step(1)
    stuck.close()
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            env = stack.enter_context(contextlib.closing(ProxyEnv("it", broker=url)))
            assert env.reset()[0] == 0
        with pytest.raises(NoFreeSlot, match="4 of 8 are in use"):
            ProxyEnv("it", broker=url, step_timeout_s=PATIENCE_S)
        gate.touch()
        last = stack.enter_context(
            contextlib.closing(ProxyEnv("it", broker=url, wait_s=PATIENCE_S))
        )
        last.reset()
