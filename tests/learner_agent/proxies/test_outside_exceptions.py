"""An exception from outside, at any instruction of a proxy's call, neither loses nor doubles it.

The same call again returns the reply that the undisturbed call would have returned, and the
environments have executed it once. Strides keep the tests short, a thorough run has shorter
strides, and GYMWIRE_OPCODE_STRIDE=1, with `--timeout 0`, tests every instruction.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv

from gymwire import ProxyEnv, ProxyVectorEnv
from gymwire.protocol.errors import AttributeDenied, EnvironmentClosed, EnvironmentLost, MoveError
from tests.learner_agent import opcodes
from tests.learner_agent.client.test_interrupted import in_memory
from tests.learner_agent.opcodes import TIMES, FromOutside, Interruption
from tests.sameness import assert_same
from tests.vector_envs import Moody
from tests.wire import BROKER, Network

STRIDE = int(os.environ.get("GYMWIRE_OPCODE_STRIDE", "0"))
Call = Callable[[Any], Any]


REPLAY = -1  # instead of a number of sessions: a plain environment that replays episodes


def make(network: Network, sessions: int) -> Any:
    """Return a proxy. `sessions` 0: a plain one on the caller's connection."""
    if sessions == REPLAY:
        return ProxyEnv("moody", BROKER, on_lost="replay")
    if sessions:
        return ProxyVectorEnv("moody", 3, BROKER, sessions=sessions)
    return ProxyEnv("moody", connection=network.connection())


def actions(env: Any, number: int) -> Any:
    return number % 3 if isinstance(env, gymnasium.Env) else np.array([0, 1, 2]) + number % 2


def step(env: Any) -> Any:
    return env.step(actions(env, 0))


def reset(env: Any) -> Any:
    return env.reset()


def send(env: Any) -> Any:
    env.send(actions(env, 0), [0, 1, 2])


def recv(env: Any) -> Any:
    observations, rewards, _, _, infos = env.recv(3)
    order = np.argsort(infos["env_id"])  # they come in the order in which they finished
    return observations[order], rewards[order]


def step_async(env: Any) -> Any:
    env.step_async(actions(env, 0))


def get(env: Any) -> Any:
    if isinstance(env, ProxyEnv):
        return env.np_random_seed
    return env.get_attr("np_random_seed")


def denied(env: Any) -> Any:
    try:
        return env.secret if isinstance(env, ProxyEnv) else env.get_attr("secret")
    except AttributeDenied as error:
        return str(error)


def replies(env: Any, call: Call) -> Iterator[Any]:
    """Yield what the call and the next ones return: a lost or doubled request changes that."""
    yield call(env)
    if call is step_async:
        yield env.step_wait()
    if call is send:
        yield recv(env)
    for number in (2, 3):
        yield env.step(actions(env, number))


def check(sessions: int, call: Call, stride: int, error: type[Exception] = FromOutside) -> int:
    """Interrupt a call at each `stride`-th instruction; return how many there were."""

    def prepare() -> None:
        env.reset(seed=1)
        env.step(actions(env, 1))
        if call is recv:
            send(env)

    instruction = 0
    with in_memory() as network, contextlib.closing(make(network, sessions)) as env:
        prepare()
        undisturbed = list(replies(env, call))
        while True:
            interruption = Interruption(instruction, error)
            prepare()
            if not interruption.run(partial(call, env)):
                assert not interruption.where, f"swallowed at {interruption.where}"
                return instruction
            try:
                got = list(replies(env, call))
            except MoveError as error:
                raise AssertionError(interruption.where) from error
            assert_same(got, undisturbed, interruption.where)
            instruction += STRIDE or stride


@pytest.mark.parametrize("sessions", [REPLAY, 0, 1, 2])
@pytest.mark.parametrize("call", [step, reset, get, denied])
def test_a_call_is_neither_lost_nor_doubled(sessions: int, call: Call) -> None:
    assert check(sessions, call, TIMES * (149 if sessions > 0 else 23)) > 149


class Expired(TimeoutError):
    """What a program of a user raises."""


@pytest.mark.parametrize(
    "error",
    [
        *(AttributeError, BlockingIOError, EOFError, KeyError, MemoryError, TypeError, ValueError),
        Expired,
    ],
)
@pytest.mark.parametrize("call", [step, reset, get])
@pytest.mark.parametrize("is_set", [False, True])
def test_an_exception_of_any_class_is_not_taken_for_a_failure(
    call: Call, error: type[Exception], is_set: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_set and error is not MemoryError:  # by another thread: then no frame is its own
        monkeypatch.setitem(vars(opcodes), "__name__", "gymwire.opcodes")
    assert check(0, call, 29 * TIMES, error) > 149


class Late(AttributeError):
    """What a program of a user raises."""


def generator_state(env: Any) -> Any:
    return env.np_random.bit_generator.state


def has(env: Any) -> Any:
    return env.has_wrapper_attr("action_masks")


@pytest.mark.parametrize("call", [get, generator_state, has])
def test_an_attribute_error_is_not_taken_for_a_missing_attribute(call: Call) -> None:
    with in_memory() as network, contextlib.closing(make(network, 0)) as env:
        env.reset(seed=1)
        assert Interruption(200, Late).run(partial(call, env))
    assert check(0, call, 23, AttributeError) > 200


@pytest.mark.parametrize("call", [send, recv, step_async])
def test_a_call_of_several_sessions_is_neither_lost_nor_doubled(call: Call) -> None:
    assert check(3, call, 211 * TIMES) > 211


@pytest.mark.parametrize("sessions", [0, 2])
def test_an_interrupted_close_can_be_called_again(sessions: int) -> None:
    with in_memory() as network:
        (loop,) = network.loops
        instruction, interrupted = 0, True
        while interrupted:
            env = make(network, sessions)
            env.reset(seed=1)
            interruption = Interruption(instruction)
            interrupted = interruption.run(env.close)
            env.close()
            network.pass_time(1.0)
            assert loop.idle, interruption.where
            instruction += STRIDE or 17 * TIMES
        assert not interruption.where
        assert instruction > 200


@pytest.mark.parametrize("sessions", [REPLAY, 1, 2])
@pytest.mark.parametrize("call", [step, reset, get])
def test_a_close_at_any_instruction_of_a_call_ends_it_with_its_result_or_says_so(
    sessions: int, call: Call
) -> None:
    with in_memory() as network:
        (loop,) = network.loops
        instruction = 0
        while True:
            env = make(network, sessions)
            env.reset(seed=1)
            interruption, began = Interruption(instruction, action=env.close), network.now
            try:
                interruption.run(partial(call, env))
            except EnvironmentClosed:
                assert interruption.where
            assert network.now - began < 5.0, interruption.where
            env.close()
            network.pass_time(1.0)
            assert loop.idle, interruption.where
            if not interruption.where:
                return
            instruction += STRIDE or 97 * TIMES


def lose(env: Any, sessions: int) -> int:
    """Let all sessions of a proxy be lost; return how many they are."""
    lost = [env._group[i] for i in range(sessions)] if sessions > 0 else [env._session]
    for session in lost:
        with contextlib.suppress(EnvironmentLost):
            session.exchange.lose("cut off")
    return len(lost)


def start(env: Any) -> Iterator[Any]:
    """Yield what the first calls of an episode return."""
    yield env.reset(seed=1)
    for number in range(3):
        yield env.step(actions(env, number))


def recovery(env: Any, sessions: int) -> Iterator[Any]:
    """Yield what the call that opens sessions for lost ones returns, and the next ones."""
    yield again(env, sessions)
    for number in (1, 2):
        yield env.step(actions(env, number))


@pytest.mark.parametrize("sessions", [REPLAY, 0, 2])
def test_an_interrupted_recovery_leaves_no_session_behind(sessions: int) -> None:
    local = SyncVectorEnv([Moody] * 3) if sessions > 0 else Moody()
    started, recovered = list(start(local)), list(recovery(local, sessions))
    with in_memory() as network:
        (loop,), (host,) = network.loops, network.hosts
        instruction, interrupted = 0, True
        while interrupted:
            env = make(network, sessions)
            assert_same(list(start(env)), started)
            count = lose(env, sessions)
            interruption = Interruption(instruction)
            interrupted = interruption.run(partial(again, env, sessions))
            if interrupted:
                assert_same(list(recovery(env, sessions)), recovered, interruption.where)
            assert len(host.slots) == 2 * count, interruption.where  # half of them are the lost
            env.close()
            if sessions == 0:
                env._session.connection.close()
            network.pass_time(1.0)
            assert loop.idle, interruption.where
            instruction += STRIDE or 499 * TIMES
        assert not interruption.where
        assert instruction > 5000


def again(env: Any, sessions: int) -> Any:
    """Call what opens sessions for lost ones."""
    return env.step(actions(env, 0)) if sessions == REPLAY else env.reset(seed=5)
