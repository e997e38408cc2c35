"""docs/protocol.md is enough: an env agent written from it alone serves learners of ours."""

from __future__ import annotations

import ast
import os
import sys
import time
from collections.abc import Iterator

import gymnasium
import numpy as np
import pytest

from gymwire import ProxyEnv
from gymwire.cli.check import judge
from gymwire.protocol import codec, spaces
from gymwire.protocol.codec import PLAIN, Codec
from gymwire.protocol.errors import AttributeDenied, EnvironmentFailed, NoFreeSlot
from gymwire.protocol.messages import (
    Act,
    Bye,
    Close,
    Closed,
    Code,
    Error,
    Hello,
    Kind,
    Message,
    Open,
    Opened,
    Percept,
    Reset,
    Role,
    Status,
    Welcome,
)
from gymwire.protocol.transport.dealer import Dealer
from tests.processes import PATIENCE_S, ROOT, Programs, programs

MODULE = "examples.env_agent_from_scratch"


@pytest.fixture(scope="module")
def broker() -> Iterator[str]:
    """A broker where the corridor is on offer."""
    with programs() as started:
        _, url = started.broker()
        started.start(MODULE, url)
        yield url


def corridor(broker: str) -> ProxyEnv:
    return ProxyEnv("corridor", broker, wait_s=PATIENCE_S)


def walk_right(env: ProxyEnv) -> int:
    steps, done = 0, False
    while not done:
        _, _, done, _, _ = env.step(np.int64(1))
        steps += 1
    return steps


def test_the_agent_imports_nothing_of_gymwire() -> None:
    tree = ast.parse((ROOT / f"{MODULE.replace('.', '/')}.py").read_text())
    imported = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
        )
    }
    assert imported - sys.stdlib_module_names == {"msgpack", "zmq"}


def test_an_episode_is_what_the_corridor_says(broker: str) -> None:
    with corridor(broker) as env:
        start, info = env.reset(seed=3)
        assert (start.dtype, start.shape, info) == (np.float32, (1,), {})
        observation, reward, terminated, truncated, info = env.step(np.int64(0))
        assert observation[0] == max(0.0, start[0] - 1)
        assert (reward, terminated, truncated, info) == (0.0, False, False, {})
        assert walk_right(env) == 10 - observation[0]


def test_check_passes_for_an_agent_without_a_random_generator(broker: str) -> None:
    with corridor(broker) as env:
        verdict = judge(env)
    assert verdict.failure is None
    assert verdict.unchecked.startswith("not checked: the random generator")
    assert verdict.unchecked.count("not checked") == 1


def test_a_seed_repeats_an_episode(broker: str) -> None:
    with corridor(broker) as env:
        starts = {float(env.reset(seed=seed)[0][0]) for seed in (5, 5, 5)}
        assert len(starts) == 1


@pytest.mark.parametrize("action", [1, np.int64(1), np.int8(1), np.uint16(1)])
def test_an_action_of_any_integer_type_arrives(broker: str, action: object) -> None:
    with corridor(broker) as env:
        start, _ = env.reset(seed=3)
        assert env.step(action)[0][0] == start[0] + 1


def test_what_the_corridor_raises_comes_back(broker: str) -> None:
    with corridor(broker) as env:
        env.reset()
        with pytest.raises(EnvironmentFailed, match="7 is neither 0") as caught:
            env.step(np.int64(7))
        assert isinstance(caught.value, ValueError)
        assert "in step" in caught.value.remote_traceback
        env.step(np.int64(0))  # it lives on


def test_attributes_are_not_exposed(broker: str) -> None:
    with corridor(broker) as env, pytest.raises(AttributeDenied):
        env.get_wrapper_attr("secrets")


def test_slots_are_counted_and_freed(broker: str) -> None:
    envs = [corridor(broker) for _ in range(4)]
    with pytest.raises(NoFreeSlot):
        ProxyEnv("corridor", broker)
    for env in envs:
        env.close()
    corridor(broker).close()


CODEC = Codec(spaces.compile(gymnasium.spaces.Box(0, 10, (1,), np.float32)))


def observation(frame: bytes) -> float:
    message = CODEC.decode(frame)
    assert isinstance(message, Status | Percept)
    return float(message.observation[0])


class Speaker:
    """A learner that says just what a test wants said."""

    def __init__(self, broker: str) -> None:
        self._dealer = Dealer(broker)
        self._sid = 0
        token, self.open_msg = os.urandom(16), Open("corridor", os.urandom(16))
        try:
            welcome, _ = self.request(Hello(Role.LEARNER, token, "test", "here"), 1)
            assert isinstance(welcome, Welcome)
            opened, frame = self.request(self.open_msg, 2)
            assert isinstance(opened, Opened)
        except BaseException:
            self._dealer.close()
            raise
        self._sid = codec.read_header(frame).sid

    def request(self, message: Message, seq: int) -> tuple[Message, bytes]:
        """Send a message; returns the answer, and its frame."""
        frame = PLAIN.encode(message, self._sid, seq)
        deadline = time.monotonic() + PATIENCE_S
        while not self._dealer.send(frame, wait=True):
            assert time.monotonic() < deadline
        while True:
            assert time.monotonic() < deadline
            data = self._dealer.receive()
            # A broker may PING at any time, to check the connection.
            if data is not None and codec.read_header(data).kind is not Kind.PING:
                return CODEC.decode(data), bytes(data)

    def close(self) -> None:
        self._dealer.send(PLAIN.encode(Bye()))
        self._dealer.close(linger_s=1.0)


@pytest.fixture
def speaker(broker: str) -> Iterator[Speaker]:
    """One with an open session."""
    corridor(broker).close()  # so that the corridor is on offer
    made = Speaker(broker)
    try:
        yield made
    finally:
        made.close()


def test_a_repeated_request_gets_the_same_bytes_and_happens_once(speaker: Speaker) -> None:
    _, start = speaker.request(Reset(3), 1)
    _, first = speaker.request(Act(1), 2)
    _, again = speaker.request(Act(1), 2)
    assert first == again
    _, back = speaker.request(Act(0), 3)
    assert observation(back) == observation(start)


def test_a_repeated_open_is_answered_under_its_own_number(speaker: Speaker) -> None:
    _, first = speaker.request(speaker.open_msg, 2)
    opened, again = speaker.request(speaker.open_msg, 77)
    assert isinstance(opened, Opened)
    assert codec.read_header(again) == codec.read_header(first)._replace(seq=77)
    assert again[codec.HEADER_SIZE :] == first[codec.HEADER_SIZE :]


def test_another_request_under_a_used_number_is_refused(speaker: Speaker) -> None:
    speaker.request(Reset(3), 1)
    answer, _ = speaker.request(Reset(4), 1)
    assert isinstance(answer, Error)
    assert answer.code == Code.PROTOCOL


def test_a_skipped_number_is_named(speaker: Speaker) -> None:
    answer, _ = speaker.request(Reset(3), 3)
    assert isinstance(answer, Error)
    assert (answer.code, answer.details) == (Code.EXPECTED, {"expected": 1})


def test_an_act_before_reset_is_refused_and_not_counted(speaker: Speaker) -> None:
    answer, _ = speaker.request(Act(1), 1)
    assert isinstance(answer, Error)
    assert answer.code == Code.PROTOCOL
    answer, _ = speaker.request(Reset(3), 1)
    assert isinstance(answer, Status)


def test_closing_twice_is_confirmed_twice(speaker: Speaker) -> None:
    assert isinstance(speaker.request(Close(), 1)[0], Closed)
    assert isinstance(speaker.request(Close(), 1)[0], Closed)


def test_an_episode_goes_on_after_a_restart_of_the_broker(programs: Programs) -> None:
    first, url = programs.broker()
    programs.start(MODULE, url)
    with corridor(url) as env:
        start, _ = env.reset(seed=3)
        env.step(np.int64(1))
        first.kill()
        programs.broker(url)
        assert env.step(np.int64(1))[0][0] == start[0] + 2
