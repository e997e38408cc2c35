"""What an OPEN costs the broker, as processor time: the one kind of test that compares times."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from gymwire.broker.directory import MAX_NAMES
from gymwire.broker.tables import Session
from gymwire.protocol.messages import Code, Error, Open, Progress
from tests.broker.harness import Broker, offer, only, opened

ENV, LEARNER = b"\x01env", b"\x01learner"
MANY, FEW = 50_000, 100


def cheapest(call: Callable[[], object], times: int = 200) -> float:
    """Return the processor time of the cheapest of these calls, in seconds."""

    def costs() -> Iterator[float]:
        for _ in range(times):
            began = time.process_time_ns()
            call()
            yield (time.process_time_ns() - began) / 1e9

    return min(costs())


def with_sessions(count: int) -> Broker:
    """Return a broker with so many sessions in one loop, each of which was in a long step once."""
    broker = Broker()
    broker.env(ENV, "cartpole", "taxi", capacity=2**20)
    broker.learner(LEARNER)
    tables = broker.core._tables
    loop, learner = tables.peers[ENV], tables.peers[LEARNER]
    for sid in range(1, count + 1):
        session = Session(sid, sid.to_bytes(16), "taxi", "", loop, is_open=True, created=broker.now)
        tables.add_session(session)
        tables.bind_learner(session, learner)
        tables.progress(session, 1.0, broker.now - 100.0)
    return broker


def cost_of_open(broker: Broker) -> float:
    nonces = iter(range(2**64, 2**65))

    def one() -> None:
        broker.now += 0.01
        [forwarded] = broker.say(LEARNER, Open("cartpole", next(nonces).to_bytes(16)), seq=1)
        broker.say(ENV, opened(), forwarded.header.sid, 1)

    return cheapest(one)


def test_an_open_costs_no_more_among_many_sessions() -> None:
    few, many = with_sessions(FEW), with_sessions(MANY)
    ratios = (cost_of_open(many) / cost_of_open(few) for _ in range(5))
    assert any(ratio <= 1.5 for ratio in ratios)


def with_names(count: int) -> Broker:
    """Return a broker with so many long addresses on offer, from several loops."""
    broker = Broker()
    broker.learner(LEARNER)
    loop = b""
    for number in range(count):
        if number % 256 == 0:
            loop = b"\x01env%d" % number
            broker.env(loop, f"a{number}".ljust(128, "x"))
        else:
            broker.now += 0.01
            broker.say(loop, offer(f"a{number}".ljust(128, "x")))
    return broker


@pytest.fixture(scope="module")
def crowds() -> tuple[Broker, Broker]:
    """Return brokers with few and with many addresses."""
    return with_names(256), with_names(4096)


@pytest.mark.parametrize("unknown", ["a", "b" * 128, "a2".ljust(127, "x"), "0xa" * 40])
def test_an_unknown_address_costs_no_more_among_many(
    crowds: tuple[Broker, Broker], unknown: str
) -> None:
    few, many = crowds

    def cost(broker: Broker) -> float:
        def one() -> None:
            broker.now += 0.01
            [refused] = broker.say(LEARNER, Open(unknown, b"n" * 16), seq=1)
            assert isinstance(refused.message, Error)

        return cheapest(one, 50)

    ratios = (cost(many) / cost(few) for _ in range(5))
    assert any(ratio <= 1.5 for ratio in ratios)


def test_a_refusal_names_a_bounded_number_of_addresses_and_the_nearest() -> None:
    broker = with_names(600)
    broker.env(b"\x01other", "zebra")
    refused = only(broker.say(LEARNER, Open("zebr", b"n" * 16), seq=1), Error)
    assert refused.code == Code.ADDRESS_UNKNOWN
    assert "Did you mean 'zebra'?" in refused.text
    assert refused.text.endswith(", …")
    assert len(refused.details["known"]) == MAX_NAMES


def test_a_loop_in_a_long_step_gets_no_session_until_its_reports_end() -> None:
    broker = Broker()
    broker.learner(LEARNER)
    broker.env(b"\x01a", agent=b"a")
    broker.env(b"\x01b", agent=b"b")
    first = broker.open(LEARNER, nonce=b"1" * 16)
    second = broker.open(LEARNER, nonce=b"2" * 16)
    third = broker.open(LEARNER, nonce=b"3" * 16)
    sessions = broker.core._tables.sessions
    assert [sessions[sid].loop.rid for sid in (first, second, third)] == [
        b"\x01a", b"\x01b", b"\x01a",
    ]  # fmt: skip
    broker.say(b"\x01b", Progress(1.0), second, 1)
    fourth = broker.open(LEARNER, nonce=b"4" * 16)
    assert sessions[fourth].loop.rid == b"\x01a"
    broker.now += 3.0
    fifth = broker.open(LEARNER, nonce=b"5" * 16)
    assert sessions[fifth].loop.rid == b"\x01b"
