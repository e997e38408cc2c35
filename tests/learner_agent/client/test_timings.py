"""Where the time of a step went: its division, in memory and over real processes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from gymwire import ProxyEnv
from gymwire.env_agent.environments import Service
from gymwire.env_agent.factory import Factory
from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.learner_agent.client.timings import Timings, apportion, waited
from gymwire.protocol import stamps
from gymwire.protocol.codec import Frame, name_of, read_header
from gymwire.protocol.messages import Kind, Reset
from gymwire.protocol.stamps import Stamps
from tests.chaos.fleet import until
from tests.processes import PATIENCE_S, programs
from tests.sameness import assert_same
from tests.wire import Faults, Network

PARTS = ("network_us", "broker_us", "queue_us", "environment_us", "codec_us")


def check_sum(timings: Timings | None) -> Timings:
    assert timings is not None
    parts = [getattr(timings, part) for part in PARTS]
    assert min(parts) >= 0
    assert sum(parts) == pytest.approx(timings.total_us)
    return timings


# --- dividing the time ----------------------------------------------------------------------------

# The broker takes 3 µs and 4; the agent decodes for 5, is in its step for 100, and encodes for 6.
STAMPS = Stamps(
    request_received=0,
    request_sent=3_000,
    busy_since=77_000,
    received=77_000,
    started=82_000,
    ended=182_000,
    sent=188_000,
    reply_received=1_000,
    reply_sent=5_000,
)


def shared(taken: Stamps, total_us: int = 200, least_us: int = 0) -> Timings:
    """Let the learner encode for 1 µs and decode for 2 µs."""
    total = total_us * 1000
    return check_sum(apportion(500, 1_500, total - 1_500, total + 500, taken, least_us * 1000))


def test_each_part_is_measured_by_its_own_clock_and_the_network_gets_the_rest() -> None:
    assert shared(STAMPS) == Timings(79.0, 7.0, 0.0, 100.0, 14.0, 200.0, is_direct=False)


def test_without_the_brokers_stamps_the_step_was_direct() -> None:
    timings = shared(STAMPS._replace(request_sent=0, reply_received=0, reply_sent=0))
    assert (timings.is_direct, timings.broker_us) == (True, 0.0)


def test_time_beyond_the_least_of_the_network_was_spent_in_the_queue() -> None:
    busy = STAMPS._replace(busy_since=0)
    assert waited(busy)
    assert not waited(STAMPS)
    assert (shared(busy, least_us=50).network_us, shared(busy, least_us=50).queue_us) == (50, 29)


def test_time_in_the_queue_is_limited_by_how_long_the_agent_was_busy() -> None:
    timings = shared(STAMPS._replace(busy_since=67_000), least_us=50)
    assert (timings.network_us, timings.queue_us) == (69.0, 10.0)


def test_stamps_that_claim_too_much_get_no_more_than_the_whole_step() -> None:
    huge = 2**64 - 1
    timings = shared(STAMPS._replace(ended=huge, sent=huge, reply_sent=huge))
    assert timings.total_us == 200.0


# --- in memory ------------------------------------------------------------------------------------


@pytest.fixture
def network() -> Iterator[Network]:
    with Network(seed=3) as made:
        made.env_agent(Service("lake", Factory("FrozenLake-v1")))
        yield made


def test_a_timed_step_is_the_step_that_it_times(network: Network) -> None:
    session = network.connection().open("lake")
    session.request(Reset(5))
    local = gymnasium.make("FrozenLake-v1")
    local.reset(seed=5)
    for action in (1, 2, 1):
        step, timings = session.timed_step(action)
        assert_same(step, local.step(action))
        check_sum(timings)


def test_time_on_the_wire_counts_as_network(network: Network) -> None:
    session = network.connection().open("lake")
    session.request(Reset(5))
    timings = check_sum(session.timed_step(1)[1])
    # Four hops of a millisecond each; nothing else takes time.
    assert timings.network_us == timings.total_us == pytest.approx(4000.0, abs=1)
    assert not timings.is_direct


def test_timed_steps_happen_exactly_once_whatever_gets_lost(network: Network) -> None:
    session = network.connection().open("lake")
    session.request(Reset(5))
    local = gymnasium.make("FrozenLake-v1")
    local.reset(seed=5)
    network.faults = Faults(drop=0.2, double=0.2, late=0.2, late_s=2.0)
    for number in range(60):
        step, timings = session.timed_step(number % 4)
        expected = local.step(number % 4)
        assert_same(step, expected)
        check_sum(timings)
        if step[2] or step[3]:
            session.request(Reset(number))
            local.reset(seed=number)
    steps = [entry for entry in network.ledgers[session.sid] if entry[0] == "step"]
    assert len(steps) == 60


def test_a_repeated_request_with_other_stamps_of_the_broker_gets_the_same_reply(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = network.connection().open("lake")
    session.request(Reset(5))
    link: Any = network.loops[0]._link
    dealer = link._dealer
    asked: list[bytes] = []
    replies: list[bytes] = []
    deliver, send = dealer.arrived, link.send

    def arrived(frame: bytes) -> None:
        asked.extend([frame] if read_header(frame).kind is Kind.ACT else [])
        deliver(frame)

    def sent(frame: Frame, wait: bool = False) -> bool:
        replies.extend([bytes(frame)] if read_header(frame).kind is Kind.PERCEPT else [])
        return bool(send(frame, wait))

    monkeypatch.setattr(dealer, "arrived", arrived)
    monkeypatch.setattr(link, "send", sent)
    monkeypatch.setattr(link, "send_all", lambda frames: all([*map(sent, frames)]))
    session.timed_step(1)
    network.pass_time(3.0)
    again = bytes(stamps.stamp_relay(asked[0], network.monotonic_ns(), network.monotonic_ns))
    assert again != asked[0]
    dealer.arrived(again)
    assert len(replies) == 2
    assert replies[0] == replies[1]
    assert len(network.ledgers[session.sid]) == 2  # a reset and a step


def test_a_request_too_short_for_its_stamps_is_not_executed(network: Network) -> None:
    session = network.connection().open("lake")
    session.request(Reset(5))
    seq = session.exchange.begin(Kind.ACT)
    assert session._steps is not None
    act = session._steps.encode_act(1, name_of(session.sid, seq))
    assert act is not None
    session._send(Kind.ACT, seq, bytes(stamps.request_stamps(act)[:-1]))
    with pytest.raises(Exception, match="16 bytes of time stamps must end it"):
        session.finish()
    assert network.ledgers[session.sid] == [("reset", 5)]


# --- over real processes --------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["relayed", "direct"])
def path(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def broker(broker_url: str) -> Iterator[str]:
    """One where a CartPole, and an environment that waits for a file, are on offer."""
    with programs() as started:
        for address, env in (("pole", "CartPole-v1"), ("patient", "tests.odd_envs:Patient")):
            options = ("--address", f"timed/{address}", "--env", env, "--threads", "1")
            started.env_agent(broker_url, *options, "--direct", "tcp://127.0.0.1:*")
        yield broker_url


def opened(broker: str, name: str, path: str) -> ProxyEnv:
    direct = "never" if path == "relayed" else "always"
    return ProxyEnv(f"timed/{name}", broker, direct=direct)


def test_the_parts_add_up_to_the_total(broker: str, path: str) -> None:
    with opened(broker, "pole", path) as env:
        env.reset(seed=1)
        assert env.is_timed
        network_us = 0.0
        for _ in range(30):
            (_, _, terminated, _, _), timings = env.timed_step(env.action_space.sample())
            timings = check_sum(timings)
            assert timings.is_direct is (path == "direct")
            assert (timings.broker_us > 0) is (path == "relayed")
            assert min(timings.environment_us, timings.codec_us) > 0
            network_us += timings.network_us
            if terminated:
                env.reset()
        # Of one step it may be nothing, if the loop was at work before it: see `apportion`.
        assert network_us > 0


def test_the_steps_of_a_vector_are_timed_as_one(broker: str, path: str) -> None:
    connection = BrokerConnection(broker)
    try:
        session = connection.open(
            "timed/pole",
            num_envs=4,
            autoreset_mode="NextStep",
            direct="never" if path == "relayed" else "always",
        )
        session.request(Reset(1))
        step, timings = session.timed_step(np.ones(4, np.int64))
        assert step[0].shape == (4, 4)
        assert check_sum(timings).is_direct is (path == "direct")
    finally:
        connection.close()


def test_timed_and_plain_steps_may_be_mixed(broker: str, path: str) -> None:
    local = gymnasium.make("CartPole-v1")
    with opened(broker, "pole", path) as env:
        assert_same(env.reset(seed=1), local.reset(seed=1))
        for number in range(8):
            action = env.action_space.sample()
            step = env.timed_step(action)[0] if number % 2 else env.step(action)
            assert_same(step, local.step(action))


def test_what_an_environment_waits_for_is_the_environments(
    broker: str, path: str, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    found: list[Timings | None] = []
    with opened(broker, "patient", path) as env:
        env.reset(options={"gate": str(gate)})
        stepping = threading.Thread(target=lambda: found.append(env.timed_step(1)[1]), daemon=True)
        stepping.start()
        # The agent reports a step that has lasted for a second.
        until(lambda: env._session.exchange.in_step_s is not None, "the learner has got PROGRESS")
        in_step_s = env._session.exchange.in_step_s
        gate.touch()
        stepping.join(PATIENCE_S)
    assert in_step_s is not None
    timings = check_sum(found[0])
    assert timings.environment_us > in_step_s * 1e6 > 0
    assert timings.total_us > timings.environment_us


def test_what_waits_behind_another_session_of_the_loop_is_in_the_queue(
    broker: str, path: str, tmp_path: Path
) -> None:
    gates = [tmp_path / "first", tmp_path / "second"]
    found: list[Timings | None] = []
    with opened(broker, "patient", path) as other, opened(broker, "patient", path) as env:
        gates[1].touch()
        other.reset(options={"gate": str(gates[0])})
        env.reset(options={"gate": str(gates[1])})
        env.timed_step(1)
        env.timed_step(1)
        first = threading.Thread(target=other.step, args=(1,), daemon=True)
        first.start()
        until(lambda: other._session.exchange.in_step_s is not None, "the loop is in that step")
        second = threading.Thread(target=lambda: found.append(env.timed_step(1)[1]), daemon=True)
        second.start()
        exchange = env._session.exchange
        until(lambda: exchange.pending is not None, "there is a second step")
        ping_at = exchange._ping_at
        until(lambda: exchange._ping_at > ping_at, "it was sent a while ago")
        began = time.monotonic()
        assert not threading.Event().wait(0.2)
        waited_s = time.monotonic() - began
        gates[0].touch()
        first.join(PATIENCE_S)
        second.join(PATIENCE_S)
    timings = check_sum(found[0])
    assert timings.queue_us > waited_s * 1e6 > timings.environment_us >= 0
