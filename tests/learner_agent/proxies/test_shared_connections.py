"""The proxies that one thread makes share a connection, and do not disturb each other."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gymwire import ProxyEnv
from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.learner_agent.client.connection_use import ConnectionUse
from gymwire.learner_agent.client.moving import move
from gymwire.learner_agent.proxies import session_owner, shared_connections
from gymwire.learner_agent.proxies.interrupts import is_in_call
from gymwire.learner_agent.proxies.options import ProxyOptions
from gymwire.learner_agent.proxies.shared_connections import Share, share
from gymwire.protocol.errors import (
    AddressUnknown,
    EnvironmentClosed,
    EnvironmentFailed,
    EnvironmentLost,
    MoveError,
    RequestTimeout,
)
from gymwire.protocol.messages import Code, Error
from tests import prefork
from tests.learner_agent.client.test_interrupted import in_memory
from tests.learner_agent.opcodes import TIMES, Interruption
from tests.learner_agent.proxies.test_threads import begun
from tests.processes import PATIENCE_S, programs
from tests.sameness import assert_same
from tests.time_limits import times_out
from tests.vector_envs import Moody
from tests.wire import BROKER

pytestmark = pytest.mark.usefixtures("patient")

OFFERS = """
[[offer]]
address = "gated"
env = "tests.vector_envs:Gated"
max_sessions = 3

[[offer]]
address = "moody"
env = "tests.vector_envs:Moody"
max_sessions = 300
"""
STRIDE = int(os.environ.get("GYMWIRE_OPCODE_STRIDE", "0"))
STEP, WAIT, FAIL = 2, 1, 9  # actions of Gated
PATHS = pytest.mark.parametrize("direct", ["never", "always"])


@pytest.fixture(scope="module")
def broker(broker_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    config: Path = tmp_path_factory.mktemp("shared") / "offers.toml"
    config.write_text(OFFERS)
    with programs() as started:
        started.env_agent(broker_url, "--config", str(config), "--direct", "tcp://127.0.0.1:*")
        yield broker_url


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as made:
        yield made


@pytest.fixture
def gated(broker: str, tmp_path: Path) -> Iterator[Callable[..., ProxyEnv]]:
    """Make environments, reset, whose action WAIT waits for the file `gate`."""
    with contextlib.ExitStack() as closing:

        def make(direct: str = "auto", **options: Any) -> ProxyEnv:
            kwargs = {"gate": str(tmp_path / "gate")}
            env = ProxyEnv("gated", broker, wait_s=5.0, direct=direct, env_kwargs=kwargs, **options)
            closing.callback(env.close)
            env.reset(seed=1)
            return env

        yield make
        (tmp_path / "gate").touch()


def connection_of(env: ProxyEnv) -> Any:
    return env._session.connection


def all_slots_are_free(pool: ThreadPoolExecutor, make: Callable[..., ProxyEnv]) -> None:
    """Use all slots from a thread that shares nothing with this one."""

    def use() -> None:
        for env in [make() for _ in range(3)]:
            env.close()

    pool.submit(use).result(PATIENCE_S)


@PATHS
def test_proxies_of_one_thread_share_a_connection_and_equal_local_ones(
    broker: str, direct: str
) -> None:
    with contextlib.ExitStack() as closing:
        remote = [closing.enter_context(ProxyEnv("moody", broker, direct=direct)) for _ in range(3)]
        other = closing.enter_context(ProxyEnv("moody", broker, direct=direct, timeout_s=59.0))
        assert len({connection_of(env) for env in remote}) == 1
        assert connection_of(other) is not connection_of(remote[0])
        local = [Moody() for _ in remote]
        for seed, (one, same) in enumerate(zip(remote, local, strict=True)):
            assert_same(one.reset(seed=seed), same.reset(seed=seed))
        for number in range(60):
            for one, same in zip(remote, local, strict=True):
                assert_same(one.step(number % 4), same.step(number % 4))
        connection = connection_of(remote[0])
        remote[0].close()
        assert not connection.closed
        assert_same(remote[1].step(1), local[1].step(1))
    assert connection.closed


def test_a_thread_that_holds_a_proxy_frees_its_slot_when_it_is_dropped(broker: str) -> None:
    class Actor(threading.Thread):
        def run(self) -> None:
            self.env = ProxyEnv("moody", broker)

    actor = Actor()
    actor.start()
    actor.join(PATIENCE_S)
    connection = connection_of(actor.env)
    del actor
    assert connection.closed


def test_a_proxy_whose_step_has_failed_frees_its_slot_when_it_is_dropped(broker: str) -> None:
    env = ProxyEnv("gated", broker, wait_s=5.0)
    connection = connection_of(env)
    env.reset()
    with contextlib.suppress(EnvironmentFailed):
        env.step(FAIL)
    del env
    assert connection.closed


def test_a_proxy_that_is_dropped_while_all_calls_must_end_raises_nothing(
    broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ProxyEnv("moody", broker) as kept:
        dropped, raised = ProxyEnv("moody", broker), list[Any]()
        use = connection_of(kept).use
        monkeypatch.setattr(sys, "unraisablehook", raised.append)
        use.ended = True  # as at exit
        del dropped
        use.ended = None
        assert len(use.left) == 1
        kept.reset()
        assert not use.left
    assert raised == []


def test_a_shared_connection_belongs_to_the_thread_that_uses_it_last(broker: str) -> None:
    with ProxyEnv("moody", broker) as first:
        use = connection_of(first).use
        use.thread = weakref.ref(threading.Thread())  # one that has ended, with the same number
        with ProxyEnv("moody", broker) as second:
            assert connection_of(second).use is use
        assert use.thread() is threading.current_thread()


@PATHS
def test_a_failure_or_time_out_of_one_does_not_disturb_another(
    gated: Callable[..., ProxyEnv], tmp_path: Path, direct: str
) -> None:
    slow, other = gated(direct), gated(direct)
    with times_out(slow):
        slow.step(WAIT)
    with pytest.raises(EnvironmentFailed, match="nine is not"):
        other.step(FAIL)
    assert other.step(STEP)[0] == 1
    (tmp_path / "gate").touch()
    assert slow.step(WAIT)[0] == 1
    slow.close()
    assert other.step(STEP)[0] == 2


@PATHS
def test_another_thread_does_not_wait_for_the_step_of_another_proxy(
    gated: Callable[..., ProxyEnv], pool: ThreadPoolExecutor, tmp_path: Path, direct: str
) -> None:
    first, second, third = (gated(direct) for _ in range(3))
    waiting = begun(pool, first, lambda: first.step(WAIT))
    assert second.step(STEP)[0] == 1
    (tmp_path / "gate").touch()
    assert waiting.result(PATIENCE_S)[0] == 1
    envs = first, second, third
    for number in range(2, 30):  # in other threads each time
        steps = list(pool.map(lambda env: env.step(STEP)[0], envs))
        assert steps == [number, number, number - 1]
    assert len({connection_of(env) for env in envs}) == 3
    assert [env._session.is_direct for env in envs] == [direct == "always"] * 3


@PATHS
@pytest.mark.parametrize("repeats", [True, False])
def test_a_request_that_is_under_way_moves_to_the_other_thread(
    gated: Callable[..., ProxyEnv],
    pool: ThreadPoolExecutor,
    tmp_path: Path,
    direct: str,
    repeats: bool,
) -> None:
    slow, other = gated(direct), gated(direct)
    slow.step(STEP)
    with times_out(slow):
        slow.step(WAIT)
    with times_out(slow):
        pool.submit(slow.step, WAIT).result(PATIENCE_S)
    assert connection_of(slow) is not connection_of(other)
    (tmp_path / "gate").touch()
    if repeats:
        assert pool.submit(slow.step, WAIT).result(PATIENCE_S)[0] == 2
        assert slow.step(STEP)[0] == 3
    else:
        assert pool.submit(slow.reset).result(PATIENCE_S)[0] == 0
        assert slow.step(STEP)[0] == 1
    assert other.step(STEP)[0] == 1


@PATHS
def test_a_close_in_another_thread_ends_the_call_of_its_proxy_only(
    gated: Callable[..., ProxyEnv], pool: ThreadPoolExecutor, tmp_path: Path, direct: str
) -> None:
    first, second, third = (gated(direct) for _ in range(3))
    waiting = begun(pool, first, lambda: first.step(WAIT))
    second.close()
    with pytest.raises(EnvironmentClosed):
        second.step(STEP)
    assert gated().step(STEP)[0] == 1  # in the slot of the closed one
    first.close()
    with pytest.raises(EnvironmentClosed):
        waiting.result(PATIENCE_S)
    assert third.step(STEP)[0] == 1
    third.close()
    (tmp_path / "gate").touch()


@pytest.fixture
def held_move(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Hold the first move: the first event says that it has begun, the second lets it go on."""
    begins, goes_on = threading.Event(), threading.Event()

    def hold(*arguments: Any) -> Any:
        if not begins.is_set():
            begins.set()
            assert goes_on.wait(PATIENCE_S)
        return move(*arguments)

    monkeypatch.setattr(session_owner, "move", hold)
    return begins, goes_on


def test_a_second_thread_cannot_use_a_proxy_that_is_moving(
    gated: Callable[..., ProxyEnv],
    pool: ThreadPoolExecutor,
    held_move: tuple[threading.Event, threading.Event],
) -> None:
    env, _ = gated(), gated()
    begins, goes_on = held_move
    moving = pool.submit(env.step, STEP)
    assert begins.wait(PATIENCE_S)
    try:
        with pytest.raises(MoveError, match="Another thread"):
            env.step(STEP)
    finally:
        goes_on.set()
    assert moving.result(PATIENCE_S)[0] == 1


def test_a_proxy_is_closed_while_it_moves(
    gated: Callable[..., ProxyEnv],
    pool: ThreadPoolExecutor,
    held_move: tuple[threading.Event, threading.Event],
) -> None:
    env, _ = gated(), gated()
    begins, goes_on = held_move
    moving = pool.submit(env.step, WAIT)
    assert begins.wait(PATIENCE_S)
    closing = pool.submit(env.close)
    deadline = time.monotonic() + PATIENCE_S
    while not env._owner.closed:
        assert time.monotonic() < deadline
    goes_on.set()
    with pytest.raises(EnvironmentClosed):
        moving.result(PATIENCE_S)
    closing.result(PATIENCE_S)
    assert connection_of(env).closed


def test_a_session_that_is_lost_before_it_moves_sends_no_step(
    gated: Callable[..., ProxyEnv], monkeypatch: pytest.MonkeyPatch
) -> None:
    env = gated()
    session, lost = env._session, Error(Code.SESSION_LOST, "not known")
    monkeypatch.setattr(session.connection, "ask", lambda *_: (None, lost, b""))
    with pytest.raises(EnvironmentLost, match="lost at request 1: not known"):
        move(session, session.connection).step(STEP)


def test_a_move_waits_for_the_broker_like_any_other_call(
    gated: Callable[..., ProxyEnv], pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    env, _ = gated(), gated()
    waits = []

    def connect(options: ProxyOptions) -> Any:
        waits.append(options.wait_s)
        return connects(options)

    connects = ProxyOptions.connect
    monkeypatch.setattr(ProxyOptions, "connect", connect)
    assert pool.submit(env.step, STEP).result(PATIENCE_S)[0] == 1
    pool.submit(env.close).result(PATIENCE_S)
    assert waits == [60.0]


def test_an_interrupted_close_leaves_the_connection_to_its_thread(
    gated: Callable[..., ProxyEnv], pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    env, other = gated(), gated()
    here, moves = threading.get_ident(), iter([KeyboardInterrupt])

    def interrupt(*arguments: Any) -> Any:
        for error in moves:
            raise error
        return move(*arguments)

    def close() -> None:
        with pytest.raises(KeyboardInterrupt):
            env.close()
        env.close()

    monkeypatch.setattr(session_owner, "move", interrupt)
    pool.submit(close).result(PATIENCE_S)
    assert connection_of(other).use.thread_id == here
    assert other.step(STEP)[0] == 1


def test_a_close_whose_move_gets_no_answer_frees_the_slot(
    gated: Callable[..., ProxyEnv], pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    env, _ = gated(), gated()

    def time_out(*arguments: Any) -> None:
        move(*arguments)
        raise RequestTimeout("the answer is late")

    monkeypatch.setattr(session_owner, "move", time_out)
    pool.submit(env.close).result(PATIENCE_S)
    pool.submit(lambda: [gated() for _ in range(2)]).result(PATIENCE_S)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timer signals")
@PATHS
def test_a_signal_handler_may_use_and_close_proxies_during_a_step(
    gated: Callable[..., ProxyEnv], pool: ThreadPoolExecutor, tmp_path: Path, direct: str
) -> None:
    first, second, third = (gated(direct) for _ in range(3))
    steps = []

    def use(*_: object) -> None:
        if first.undoable.in_call:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            steps.append(second.step(STEP)[0])
            first.close()

    former = signal.signal(signal.SIGALRM, use)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
        with pytest.raises(EnvironmentClosed, match="closed"):
            first.step(WAIT)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, former)
    assert (steps, second.step(STEP)[0], third.step(STEP)[0]) == ([1], 2, 1)
    (tmp_path / "gate").touch()
    for env in (second, third):
        env.close()
    all_slots_are_free(pool, gated)


@pytest.mark.parametrize("is_elsewhere", [False, True])
def test_dropping_a_proxy_frees_its_slot(
    broker: str, pool: ThreadPoolExecutor, is_elsewhere: bool
) -> None:
    kept, *dropped = (ProxyEnv("gated", broker) for _ in range(3))
    kept.reset(seed=1)
    (pool.submit(dropped.clear).result if is_elsewhere else dropped.clear)()
    if is_elsewhere:  # the next calls of this thread do it
        deadline = time.monotonic() + PATIENCE_S
        while connection_of(kept).use.left:
            kept.step(STEP)
            assert time.monotonic() < deadline

    def use() -> None:
        for env in [ProxyEnv("gated", broker, wait_s=5.0) for _ in range(2)]:
            env.close()

    pool.submit(use).result(PATIENCE_S)
    kept.close()


@pytest.fixture
def options() -> Iterator[ProxyOptions]:
    """Return the options of a proxy in a network in memory."""
    with in_memory():
        with ProxyEnv("moody", BROKER) as env:
            options = env._owner.options
        yield options


def test_the_last_use_of_a_connection_may_end_at_any_instruction_of_the_search_for_it(
    options: ProxyOptions,
) -> None:
    instruction, where = 0, "not begun"
    while where:
        last, found = share(options), list[Share]()

        def search(found: list[Share] = found) -> None:
            found.append(share(options))

        interruption = Interruption(instruction, action=last.end)  # as a destructor does
        interruption.run(search)
        where = interruption.where
        assert not found[0].connection.closed, where
        for one in (last, *found):
            one.end()
        instruction += 1
    assert instruction > 100


@pytest.mark.parametrize("timeout_s", [60.0, 59.0])
def test_connections_may_be_made_and_closed_at_any_instruction_of_the_end_of_a_last_use(
    options: ProxyOptions, timeout_s: float
) -> None:
    others = replace(options, timeout_s=timeout_s)
    instruction, where = 0, "not begun"
    while where:
        last = share(options)
        interruption = Interruption(instruction, action=lambda: share(others).end())
        interruption.run(last.end)
        where = interruption.where
        assert last.connection.closed, where
        instruction += 1
    assert instruction > 50


def test_a_connection_is_not_closed_while_a_dropped_proxy_uses_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with in_memory(), ThreadPoolExecutor(1) as elsewhere:
        other, dropped = ProxyEnv("moody", BROKER), [ProxyEnv("moody", BROKER)]
        connection, is_closed = connection_of(other), []

        def check() -> None:
            elsewhere.submit(other.close).result(PATIENCE_S)
            is_closed.append(connection.closed)

        monkeypatch.setattr(connection.use, "check", check)
        dropped.clear()
        assert (is_closed, connection.closed) == ([False], True)


def test_a_connection_is_not_closed_while_a_failed_constructor_uses_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with in_memory(), ThreadPoolExecutor(1) as elsewhere:
        other = ProxyEnv("moody", BROKER)
        connection, is_closed = connection_of(other), []

        def close_others(_: object) -> None:
            elsewhere.submit(other.close).result(PATIENCE_S)
            is_closed.append(connection.closed)

        monkeypatch.setattr(connection, "close_others", close_others)
        with pytest.raises(AddressUnknown):
            ProxyEnv("nowhere", BROKER)
        assert (is_closed, connection.closed) == ([False], True)


def test_what_is_left_is_done_once_although_it_is_also_done_at_any_instruction() -> None:
    instruction, where = 0, "not begun"
    while where:
        use, done = ConnectionUse(), list[int]()
        use.left.append(partial(done.append, 1))
        interruption = Interruption(instruction, action=use.check)
        interruption.run(use.check)
        where = interruption.where
        assert done == [1], where
        instruction += 1
    assert instruction > 10


def test_a_look_at_the_stack_keeps_no_proxy() -> None:
    with in_memory():
        env = ProxyEnv("moody", BROKER)
        owner = weakref.ref(env._owner)
        assert not is_in_call(owner())
        del env
        assert owner() is None


def test_a_token_keeps_the_session_of_its_proxy_only(broker: str) -> None:
    with ProxyEnv("moody", broker) as one, ProxyEnv("moody", broker) as other:
        one.reset(seed=1)
        one.session_token()
        assert connection_of(one).keeps_sessions
        assert not connection_of(other).keeps_sessions


def run(code: str, *arguments: str, descriptors: int | None = None) -> Any:
    """Run a program, and return what it prints as JSON."""
    process = prefork.Forked(
        ["-c", code, *arguments],
        env=os.environ,
        stdout=subprocess.PIPE,
        descriptors=descriptors,
    )
    assert process.stdout is not None
    with process.stdout as output:
        printed = output.read()
    assert process.wait(PATIENCE_S) == 0
    return json.loads(printed)


FORKED = """
import json, os, sys
from gymwire import ProxyEnv
from gymwire.learner_agent.proxies import shared_connections

def use():
    observations = [env.reset(seed=7)[0].tolist() for env in envs]
    connections = {env._session.connection for env in envs}
    return observations, len(connections), inherited in connections

envs = [ProxyEnv("moody", sys.argv[1]) for _ in range(2)]
inherited = envs[0]._session.connection
before, reading, writing = use(), *os.pipe()
if not os.fork():
    assert not shared_connections._shared
    found = use(), [env.step(1)[1] for env in envs]
    os.write(writing, json.dumps(found).encode())
    os._exit(0)
os.wait()
print(json.dumps([before, json.loads(os.read(reading, 10000)), [env.step(1)[1] for env in envs]]))
"""


def test_a_fork_gives_the_child_a_connection_of_its_own(broker: str) -> None:
    before, (in_child, child_rewards), rewards = run(FORKED, broker)
    assert before[0] == in_child[0]
    assert (before[1:], in_child[1:]) == ([1, True], [1, False])
    assert rewards == child_rewards


MANY = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from gymwire import ProxyEnv
envs = [ProxyEnv("moody", sys.argv[1]) for _ in range(int(sys.argv[2]))]
for number, env in enumerate(envs):
    env.reset(seed=number)
with ThreadPoolExecutor(4) as pool:
    call = pool.map if sys.argv[3] == "pool" else map
    rewards = [list(call(lambda env: env.step(1)[1], envs)) for _ in range(4)]
print(json.dumps(rewards[-1]))
"""


@pytest.mark.parametrize(("number", "threads"), [(250, "one"), (40, "pool")])
def test_a_process_holds_more_proxies_than_it_may_open_files(
    broker: str, number: int, threads: str
) -> None:
    rewards = run(MANY, broker, str(number), threads, descriptors=128)
    for seed, reward in enumerate(rewards):
        local = Moody()
        local.reset(seed=seed)
        assert [local.step(1)[1] for _ in range(4)][-1] == reward


def test_an_interruption_leaves_no_lock_behind(pool: ThreadPoolExecutor) -> None:
    def lock_is_free() -> bool:
        is_free = shared_connections._lock.acquire(blocking=False)
        if is_free:
            shared_connections._lock.release()
        return is_free

    instruction, interrupted = 0, True
    while interrupted:
        interruption = Interruption(instruction)
        interrupted = interruption.run(partial(shared_connections._join, ("nobody",)))
        assert pool.submit(lock_is_free).result(PATIENCE_S), interruption.where
        instruction += 1
    assert instruction > 10


@pytest.mark.parametrize("ends", [False, True])
def test_an_interrupted_move_neither_loses_nor_doubles_a_step(ends: bool) -> None:
    def make() -> ProxyEnv:
        env = ProxyEnv("moody", BROKER)
        env.reset(seed=1)
        return env

    with in_memory() as network, ThreadPoolExecutor(1) as elsewhere:
        (loop,) = network.loops
        instruction, interrupted = 0, True
        while interrupted:
            env, other = (elsewhere.submit(make).result() for _ in range(2))
            local = Moody()
            local.reset(seed=1)
            interruption = Interruption(instruction)
            interrupted = interruption.run(env.close if ends else partial(env.step, 1))
            expected = local.step(1)
            if interrupted and not ends:
                assert_same(env.step(1), expected, interruption.where)
            if not ends:
                assert_same(env.step(2), local.step(2), interruption.where)
            assert_same(elsewhere.submit(other.step, 1).result(), expected, interruption.where)
            env.close()
            elsewhere.submit(other.close).result()
            # Else the lease of a session whose connection was just made.
            network.pass_time(1.0 if ends else 31.0)
            assert loop.idle, interruption.where
            instruction += STRIDE or 67 * TIMES
        assert not interruption.where
        assert instruction > 1000


def test_an_interrupted_constructor_leaves_the_other_proxies_alone() -> None:
    with in_memory() as network, contextlib.closing(ProxyEnv("moody", BROKER)) as other:
        local = Moody()
        assert_same(other.reset(seed=1), local.reset(seed=1))
        instruction, interrupted = 0, True
        while interrupted:
            interruption = Interruption(instruction)
            interrupted = interruption.run(partial(ProxyEnv, "moody", BROKER))
            assert_same(other.step(1), local.step(1), interruption.where)
            network.pass_time(1.0)
            assert len(network.hosts[0].slots) == (1 if interrupted else 2), interruption.where
            instruction += STRIDE or 23 * TIMES
        assert not interruption.where
        assert instruction > 1000


def test_an_interrupt_before_a_session_is_opened_closes_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    with in_memory(), contextlib.closing(ProxyEnv("moody", BROKER)) as other:
        other.reset(seed=1)
        with monkeypatch.context() as patch:
            patch.setattr(BrokerConnection, "sids", property(interrupt))
            with pytest.raises(KeyboardInterrupt):
                ProxyEnv("moody", BROKER)
        local = Moody()
        local.reset(seed=1)
        assert_same(other.step(1), local.step(1))
