"""Each request is executed once, whatever the network does, and the trajectory is the local one."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import gymnasium
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gymwire.env_agent.config import service
from gymwire.learner_agent.client.session import RemoteSession
from gymwire.protocol.errors import RequestTimeout
from gymwire.protocol.messages import Act, Message, Percept, Reset, Status
from tests.sameness import assert_same
from tests.wire import Entry, Faults, Network

ENV = "CartPole-v1"


def local_trajectory(seed: int, steps: int) -> list[tuple[Message, Message]]:
    """Return requests, and the replies of a local environment."""
    env: gymnasium.Env[Any, Any] = gymnasium.make(ENV)
    rng = random.Random(seed)
    found: list[tuple[Message, Message]] = []
    over = True
    for step in range(steps):
        if over:
            reset = Reset(seed + step)
            found.append((reset, Status(*env.reset(seed=reset.seed))))
            over = False
        else:
            act = Act(rng.randrange(2))
            percept = Percept(*env.step(act.action))
            found.append((act, percept))
            over = percept.terminated or percept.truncated
    env.close()
    return found


def assert_reply(reply: Message, expected: Message) -> None:
    assert type(reply) is type(expected)
    for name in type(reply).__slots__:
        assert_same(getattr(reply, name), getattr(expected, name), name)


def entry(request: Message) -> Entry:
    """Return the ledger entry of a request."""
    match request:
        case Reset(seed):
            return "reset", seed
        case Act(action):
            return "step", action
    raise AssertionError(request)


def assert_executed_once(
    network: Network, session: RemoteSession, trajectory: list[tuple[Message, Message]]
) -> None:
    """Assert that request n is entry n: none is missing, doubled or out of order."""
    assert network.ledgers == {session.sid: [entry(request) for request, _ in trajectory]}


CHAOS = st.builds(
    Faults,
    drop=st.floats(0.0, 0.3),
    double=st.floats(0.0, 0.5),
    late=st.floats(0.0, 0.5),
    late_s=st.sampled_from([0.01, 0.5, 3.0]),
)
RUNS = settings(max_examples=settings().max_examples // 4, print_blob=True)


def test_without_faults_the_remote_trajectory_is_the_local_one() -> None:
    with Network() as network:
        network.env_agent(service(address="cartpole", env=ENV))
        session = network.connection().open("cartpole")
        trajectory = local_trajectory(seed=1, steps=300)
        for request, expected in trajectory:
            assert_reply(session.request(request), expected)
        assert_executed_once(network, session, trajectory)


@RUNS
@given(seed=st.integers(0, 2**32), faults=CHAOS)
def test_lost_doubled_late_and_reordered_frames_change_nothing(seed: int, faults: Faults) -> None:
    with Network(seed) as network:
        network.env_agent(service(address="cartpole", env=ENV))
        connection = network.connection(timeout_s=600.0)
        network.faults = faults
        session = connection.open("cartpole")
        trajectory = local_trajectory(seed, steps=40)
        for request, expected in trajectory:
            assert_reply(session.request(request), expected)
        network.faults = Faults()
        network.pass_time(10.0)
        assert_executed_once(network, session, trajectory)


@RUNS
@given(seed=st.integers(0, 2**32), faults=CHAOS, restarts=st.sets(st.integers(0, 39), max_size=6))
def test_restarts_of_the_broker_change_nothing(
    seed: int, faults: Faults, restarts: set[int]
) -> None:
    with Network(seed) as network:
        network.env_agent(service(address="cartpole", env=ENV))
        session = network.connection(timeout_s=600.0).open("cartpole")
        network.faults = faults
        trajectory = local_trajectory(seed, steps=40)
        for index, (request, expected) in enumerate(trajectory):
            if index in restarts:
                network.after(network.rng.random() * 0.01, network.restart_broker)
            assert_reply(session.request(request), expected)
        network.faults = Faults()
        network.pass_time(10.0)
        assert_executed_once(network, session, trajectory)


@RUNS
@given(seed=st.integers(0, 2**32), cuts=st.sets(st.integers(0, 39), max_size=10))
def test_broken_connections_change_nothing(seed: int, cuts: set[int]) -> None:
    with Network(seed) as network:
        network.env_agent(service(address="cartpole", env=ENV))
        session = network.connection(timeout_s=600.0).open("cartpole")
        trajectory = local_trajectory(seed, steps=40)
        for index, (request, expected) in enumerate(trajectory):
            if index in cuts:
                cut = partial(network.cut, network.rng.choice(network.connections()), 0.5)
                network.after(0.003 * network.rng.random(), cut)
            assert_reply(session.request(request), expected)
        assert_executed_once(network, session, trajectory)


@RUNS
@given(seed=st.integers(0, 2**32), faults=CHAOS, patience_s=st.floats(0.002, 3.0))
def test_a_request_that_timed_out_is_waited_for_without_a_second_execution(
    seed: int, faults: Faults, patience_s: float
) -> None:
    with Network(seed) as network:
        network.env_agent(service(address="cartpole", env=ENV))
        session = network.connection(timeout_s=600.0).open("cartpole")
        network.faults = faults
        trajectory = local_trajectory(seed, steps=30)
        for request, expected in trajectory:
            while True:
                try:
                    reply = session.request(request, patience_s)
                    break
                except RequestTimeout:
                    continue
            assert_reply(reply, expected)
        network.faults = Faults()
        network.pass_time(10.0)
        assert_executed_once(network, session, trajectory)


@RUNS
@given(seed=st.integers(0, 2**32), faults=CHAOS)
def test_a_reset_instead_of_waiting_never_gets_an_older_answer(seed: int, faults: Faults) -> None:
    with Network(seed) as network:
        network.env_agent(service(address="cartpole", env=ENV))
        session = network.connection(timeout_s=600.0).open("cartpole")
        network.faults = faults
        asked: list[Entry] = []
        for round_ in range(15):
            for request, expected in local_trajectory(seed + round_, steps=4):
                patience_s = 0.003 if type(request) is Act and network.rng.random() < 0.5 else None
                asked.append(entry(request))
                try:
                    assert_reply(session.request(request, patience_s), expected)
                except RequestTimeout:
                    break
        network.faults = Faults()
        network.pass_time(30.0)
        assert network.ledgers[session.sid] == asked[: len(network.ledgers[session.sid])]


@RUNS
@given(seed=st.integers(0, 2**32), faults=CHAOS)
def test_an_open_happens_once(seed: int, faults: Faults) -> None:
    with Network(seed) as network:
        for _ in range(3):
            network.env_agent(service(address="cartpole", env=ENV))
        connection = network.connection(timeout_s=600.0)
        network.faults = faults
        sessions = [connection.open("cartpole") for _ in range(5)]
        network.faults = Faults()
        network.pass_time(60.0)
        live = [sid for host in network.hosts for sid in host.slots]
        assert sorted(live) == sorted(session.sid for session in sessions)
        assert len(network.core.snapshot(network.now).sessions) == 5


def test_sessions_share_a_connection_without_mixing_their_answers() -> None:
    with Network() as network:
        network.env_agent(service(address="cartpole", env=ENV))
        network.env_agent(service(address="cartpole", env=ENV))
        connection = network.connection()
        network.faults = Faults(drop=0.1, double=0.2, late=0.3, late_s=0.5)
        sessions = [connection.open("cartpole") for _ in range(4)]
        trajectories = [local_trajectory(seed, 50) for seed in range(4)]
        for row in zip(*trajectories, strict=True):
            for session, (request, _) in zip(sessions, row, strict=True):
                session.begin(request)
            for session, (_, expected) in zip(sessions, row, strict=True):
                assert_reply(session.finish(), expected)
        for session, trajectory in zip(sessions, trajectories, strict=True):
            assert network.ledgers[session.sid] == [entry(request) for request, _ in trajectory]


@pytest.mark.parametrize("idle_s", [10.0, 120.0, 550.0])
def test_a_learner_that_thinks_while_the_broker_restarts_keeps_its_session(idle_s: float) -> None:
    with Network() as network:
        network.env_agent(service(address="cartpole", env=ENV))
        session = network.connection().open("cartpole")
        trajectory = local_trajectory(seed=3, steps=20)
        for request, expected in trajectory[:10]:
            assert_reply(session.request(request), expected)
        network.restart_broker()
        network.pass_time(idle_s)
        for request, expected in trajectory[10:]:
            assert_reply(session.request(request), expected)
        assert_executed_once(network, session, trajectory)
