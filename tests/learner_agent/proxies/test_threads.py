"""A proxy is used from one thread at a time: others get an error, and may close it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pytest

from gymwire import ProxyEnv, ProxyVectorEnv
from gymwire.learner_agent.client import connection, threads
from gymwire.learner_agent.client.connection_use import ConnectionUse
from gymwire.protocol.errors import EnvironmentClosed, MoveError
from gymwire.protocol.transport.broker_link import BrokerLink
from tests import prefork
from tests.processes import PATIENCE_S, programs

pytestmark = pytest.mark.usefixtures("patient")

OFFERS = """
[[offer]]
address = "gated"
env = "tests.vector_envs:Gated"
max_sessions = 3

[[offer]]
address = "moody"
env = "tests.vector_envs:Moody"
"""


@pytest.fixture(scope="module")
def broker(broker_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    config: Path = tmp_path_factory.mktemp("threads") / "offers.toml"
    config.write_text(OFFERS)
    with programs() as started:
        started.env_agent(
            broker_url, "--config", str(config), "--threads", "4", "--direct", "tcp://127.0.0.1:*"
        )
        yield broker_url


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as made:
        yield made


def make(broker: str, sessions: int, address: str = "gated", **options: Any) -> Any:
    if sessions:
        return ProxyVectorEnv(address, 3, broker, sessions=sessions, wait_s=5.0, **options)
    return ProxyEnv(address, broker, wait_s=5.0, **options)


def begun(pool: ThreadPoolExecutor, env: Any, call: Callable[[], Any]) -> Future[Any]:
    """Call in another thread, and return once it is in the call."""
    future = pool.submit(call)
    deadline = time.monotonic() + PATIENCE_S
    while not env.undoable.in_call:
        assert time.monotonic() < deadline
    return future


def one(sessions: int) -> Any:
    return [1] * 3 if sessions else 1


@pytest.mark.parametrize("sessions", [0, 1, 2])
def test_a_call_of_another_thread_raises_and_disturbs_nothing(
    broker: str, pool: ThreadPoolExecutor, tmp_path: Path, sessions: int
) -> None:
    gate = tmp_path / "gate"
    with make(broker, sessions, env_kwargs={"gate": str(gate)}) as env:
        env.reset(seed=1)
        future = begun(pool, env, lambda: env.step(one(sessions)))
        for call in (lambda: env.step(one(sessions)), env.reset, env.render, lambda: env.np_random):
            with pytest.raises(MoveError, match="Another thread is in a call"):
                call()
        gate.touch()
        future.result(PATIENCE_S)
        env.step(one(sessions))


@pytest.mark.parametrize("sessions", [0, 1, 2])
def test_close_ends_the_call_of_another_thread(
    broker: str, pool: ThreadPoolExecutor, tmp_path: Path, sessions: int
) -> None:
    gate = tmp_path / "gate"
    env = make(broker, sessions, env_kwargs={"gate": str(gate)})
    env.reset(seed=1)
    future = begun(pool, env, lambda: env.step(one(sessions)))
    env.close()
    with pytest.raises(EnvironmentClosed, match="Another thread has closed"):
        future.result(PATIENCE_S)
    with pytest.raises(EnvironmentClosed):
        env.step(one(sessions))
    gate.touch()
    make(broker, 3, env_kwargs={"gate": str(gate)}).close()  # all slots are free again


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timer signals")
@pytest.mark.parametrize("sessions", [0, 1, 2])
@pytest.mark.parametrize("direct", ["never", "always"])
@pytest.mark.parametrize("has_channel", [True, False])
def test_a_signal_handler_may_close_an_environment_that_is_in_a_call(
    broker: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sessions: int,
    direct: str,
    has_channel: bool,
) -> None:
    if not has_channel:
        monkeypatch.setattr(BrokerLink, "open_local_channel", lambda _: None)
    gate = tmp_path / "gate"
    env = make(broker, sessions, env_kwargs={"gate": str(gate)}, direct=direct)
    env.reset(seed=1)

    def close(*_: object) -> None:
        if env.undoable.in_call:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            env.close()

    former = signal.signal(signal.SIGALRM, close)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
        with pytest.raises(EnvironmentClosed, match="closed"):
            env.step([1, 2, 2] if sessions == 2 else one(sessions))  # one of two has its result
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, former)
    gate.touch()
    make(broker, 3, env_kwargs={"gate": str(gate)}).close()  # all slots are free again


@pytest.mark.parametrize("sessions", [0, 1, 2])
def test_many_threads_execute_what_they_get_a_result_for(
    broker: str, pool: ThreadPoolExecutor, sessions: int
) -> None:
    action = [2] * 3 if sessions else 2
    with make(broker, sessions) as env:
        env.reset(seed=1)

        def call() -> int:
            succeeded = 0
            for _ in range(100):
                with contextlib.suppress(MoveError):
                    env.step(action)
                    succeeded += 1
            return succeeded

        done = sum(future.result(PATIENCE_S) for future in [pool.submit(call) for _ in range(4)])
        assert done
        assert np.all(env.step(action)[0] == done + 1)


def test_an_exception_before_a_call_begins_does_not_lock_the_proxy(broker: str) -> None:
    with make(broker, 0, "moody") as env:
        env.undoable.in_call = True  # as an exception from outside may leave it
        env.reset(seed=1)
        env.step(1)


LEARNER = """
import sys, threading
from gymwire import ProxyEnv
from gymwire.learner_agent.client import threads

def use():
    env = ProxyEnv("gated", sys.argv[1], wait_s=5.0, env_kwargs={"gate": sys.argv[2]})
    env.reset(seed=1)
    if sys.argv[3] == "daemon":
        made.set()
        env.step(1)
    kept.append(env)

kept, made = [], threading.Event()
thread = threading.Thread(target=use, daemon=sys.argv[3] == "daemon")
thread.start()
made.wait() if thread.daemon else thread.join()
if sys.argv[3] == "beside a stuck one":
    threads.LEAVE_S, stuck, former = 0.1, threading.Event(), thread.ident
    for _ in range(20):  # until one gets the number of the thread that has ended
        thread = threading.Thread(target=threads.wait_while, args=(stuck.wait,), daemon=True)
        thread.start()
        if thread.ident == former:
            break
"""


@pytest.mark.parametrize("kind", ["ended", "daemon", "beside a stuck one"])
def test_a_normal_exit_closes_the_sessions_of_every_thread(
    broker: str, tmp_path: Path, kind: str
) -> None:
    gate = tmp_path / "gate"
    command = ["-c", LEARNER, broker, str(gate), kind]
    ended = prefork.run(command, env=os.environ, timeout=PATIENCE_S)
    gate.touch()
    assert (ended.returncode, ended.stderr) == (0, "")
    make(broker, 3, env_kwargs={"gate": str(gate)}).close()  # all slots are free again


def test_a_thread_that_stays_in_a_call_keeps_its_connection_at_exit(
    pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Connection:
        keeps_sessions = False

        def __init__(self) -> None:
            self.use = ConnectionUse()

        def close(self, *, goodbye: bool) -> None:
            closed.append(self)

    def stay() -> None:
        theirs = Connection()

        def is_used() -> bool:
            made.put(theirs)
            return not leaves.wait(PATIENCE_S)

        threads.wait_while(is_used)

    made: Queue[Connection] = Queue()
    closed: list[Connection] = []
    leaves = threading.Event()
    staying = pool.submit(stay)
    theirs, mine = made.get(timeout=PATIENCE_S), Connection()
    monkeypatch.setattr(threads, "LEAVE_S", 0.0)
    monkeypatch.setattr(connection, "_OPEN", [theirs, mine])
    connection._close_at_exit()
    leaves.set()
    staying.result(PATIENCE_S)
    assert closed == [mine]
    assert theirs.use.ended
