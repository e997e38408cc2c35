"""Ctrl-C at any moment of a step loses nothing and doubles nothing: the same call waits on.

CPython runs a signal's handler when a Python function begins, and when a built-in one has returned.
So every such moment of a step that lies in the learner's code gets its KeyboardInterrupt: of a loop
those of the first two rounds and of the last one.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv

import gymwire.learner_agent
from gymwire import ProxyEnv, ProxyVectorEnv
from gymwire.env_agent.config import service
from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.learner_agent.client.session import RemoteSession
from gymwire.learner_agent.proxies import options
from gymwire.protocol.errors import MoveError
from tests.sameness import assert_same
from tests.sampling import thorough
from tests.vector_envs import Moody
from tests.wire import BROKER, Network

ENV = "tests.vector_envs:Moody"  # whose infos are of all sorts
OURS = str(Path(gymwire.learner_agent.__file__).parent)
Moment = tuple[
    str, CodeType, int, int
]  # an event, its code, and the instructions of it and its call
Pair = tuple[Any, Any]  # a proxy, and the local environment that is the same
Make = Callable[[Network, float | None], Pair]


def _is_ours(frame: FrameType | None) -> bool:
    return frame is not None and frame.f_code.co_filename.startswith(OURS)


def run(call: Callable[[], Any], moment: int | None = None) -> list[Moment]:
    """Call, with an interrupt at the n-th moment; return the moments until the call ended."""
    seen: list[Moment] = []

    def at_event(frame: FrameType, event: str, _: object) -> None:
        # A generator is called to be closed, too.
        plain = not frame.f_code.co_flags & inspect.CO_GENERATOR
        entered = event == "call" and plain and (_is_ours(frame) or _is_ours(frame.f_back))
        if entered or (event == "c_return" and _is_ours(frame)):
            caller = frame.f_back.f_lasti if entered and frame.f_back else 0
            seen.append((event, frame.f_code, frame.f_lasti, caller))
            if len(seen) - 1 == moment:
                raise KeyboardInterrupt

    gc.disable()  # a __del__ of an object of another test is not an event of this call
    sys.setprofile(at_event)
    try:
        call()
    except KeyboardInterrupt:
        assert len(seen) - 1 == moment
    else:
        assert moment is None, f"{len(seen)} moments instead of more than {moment}"
    finally:
        sys.setprofile(None)
        gc.enable()
    return seen


def interrupted(call: Callable[[], Any], moment: int) -> str:
    """Interrupt a call at its n-th moment; return where."""
    event, code, _, _ = run(call, moment)[-1]
    return f"{event} in {code.co_qualname}, moment {moment}"


def moments(call: Callable[[], Any]) -> list[int]:
    """Return the moments to interrupt: each place the first two times and the last time."""
    places: dict[Moment, list[int]] = {}
    for number, place in enumerate(run(call)):
        places.setdefault(place, []).append(number)
    found = {number for numbers in places.values() for number in (*numbers[:2], numbers[-1])}
    assert len(found) > 5
    return sorted(found)


def single(network: Network, step_timeout_s: float | None) -> Pair:
    return ProxyEnv(
        "moody", connection=network.connection(), step_timeout_s=step_timeout_s
    ), Moody()


def vector(sessions: int) -> Make:
    def make(_: Network, step_timeout_s: float | None) -> Pair:
        remote = ProxyVectorEnv(
            "moody", 3, BROKER, sessions=sessions, step_timeout_s=step_timeout_s
        )
        return remote, SyncVectorEnv([Moody] * 3)

    return make


@contextlib.contextmanager
def in_memory() -> Iterator[Network]:
    """Return a network that also serves proxies which make their own connection."""
    with Network() as network, pytest.MonkeyPatch.context() as patch:

        def connect(_url: str, *, timeout_s: float, wait_s: float, **_: object) -> BrokerConnection:
            return network.connection(timeout_s, wait_s)

        patch.setattr(options.ProxyOptions, "CONNECTION", staticmethod(connect))
        network.env_agent(service(address="moody", env=ENV))
        yield network


@contextlib.contextmanager
def pairs(make: Make, step_timeout_s: float | None = None) -> Iterator[Pair]:
    """Yield a remote and a local environment that are the same."""
    with in_memory() as network:
        remote, local = make(network, step_timeout_s)
        yield remote, local
        remote.close()
        local.close()


@pytest.mark.parametrize(
    ("make", "step_timeout_s"),
    [
        (single, None),
        (single, 60.0),
        (vector(1), None),
        (vector(2), 60.0),
        thorough(vector(1), 60.0),
        thorough(vector(2), None),
    ],
    ids=["single", "single-60", "one", "two-60", "one-60", "two"],
)
def test_an_interrupted_step_is_neither_lost_nor_doubled(
    make: Make, step_timeout_s: float | None
) -> None:
    with pairs(make, step_timeout_s) as (remote, local):
        remote.action_space.seed(1)
        actions = [remote.action_space.sample() for _ in range(2)]
        remote.reset(seed=1)
        for moment in moments(partial(remote.step, actions[0])):
            assert_same(remote.reset(seed=1), local.reset(seed=1))
            where = interrupted(partial(remote.step, actions[0]), moment)
            for action in actions:
                assert_same(remote.step(action), local.step(action), where)


def test_what_was_interrupted_is_not_answered_to_other_actions() -> None:
    asked, other = np.array([0, 1, 2]), np.array([3, 3, 3])
    with pairs(vector(1)) as (remote, local):
        remote.reset(seed=1)
        for moment in moments(partial(remote.step_async, asked)):
            assert_same(remote.reset(seed=1), local.reset(seed=1))
            where = interrupted(partial(remote.step_async, asked), moment)
            for _ in range(2):
                with contextlib.suppress(MoveError):
                    got = remote.step(other)
                    assert_same(got, local.step(other), where)
                    break


def test_an_interrupted_recv_loses_nothing() -> None:
    actions = np.array([0, 1, 2])
    with pairs(vector(3)) as (remote, local):

        def send() -> None:
            assert_same(remote.reset(seed=1), local.reset(seed=1))
            remote.send(actions, env_ids=[0, 1, 2])

        send()
        for moment in moments(partial(remote.recv, 3)):
            send()
            where = interrupted(partial(remote.recv, 3), moment)
            observations, rewards, _, _, infos = remote.recv(3)
            expected = local.step(actions)
            assert_same(observations[np.argsort(infos["env_id"])], expected[0], where)
            assert_same(rewards[np.argsort(infos["env_id"])], expected[1], where)


@pytest.mark.parametrize("sessions", [0, 2])
def test_an_interrupted_close_frees_the_slots(
    sessions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with in_memory() as network:
        (loop,) = network.loops
        if sessions:
            remote: Any = ProxyVectorEnv("moody", 3, BROKER, sessions=sessions)
        else:
            remote = ProxyEnv("moody", BROKER)
        monkeypatch.setattr(RemoteSession, "finish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            remote.close()
        network.pass_time(1.0)
        assert loop.idle
