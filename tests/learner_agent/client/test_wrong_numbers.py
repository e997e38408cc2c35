"""A reply with a wrong number or session is dropped, and the call ends in time all the same."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import pytest
import structlog
import structlog.testing

from gymwire import ProxyEnv, ProxyVectorEnv
from gymwire.broker.refusals import Refusal
from gymwire.protocol import codec
from gymwire.protocol.codec import PLAIN
from gymwire.protocol.errors import Denied, ProtocolError, RequestTimeout
from gymwire.protocol.messages import Code, Error, Kind
from tests import wire
from tests.learner_agent.client.test_interrupted import in_memory
from tests.wire import BROKER, Dealer, Network

LIMITS: dict[str, Any] = {"wait_s": 3.0, "step_timeout_s": 3.0, "timeout_s": 5.0}


@pytest.fixture
def network() -> Iterator[Network]:
    with in_memory() as made:
        yield made


@pytest.fixture
def logs() -> Iterator[list[Any]]:
    """Return the log entries of all levels, whatever an earlier test has configured."""
    before = structlog.get_config()
    structlog.reset_defaults()
    try:
        with structlog.testing.capture_logs() as entries:
            yield entries
    finally:
        structlog.configure(**before)


@contextlib.contextmanager
def falsified(kind: Kind, *, seq: int | None = None, sid: int | None = 0) -> Iterator[None]:
    """Add to the number or the session of all frames of a kind.

    `seq` 0: replace the number by it. `sid` None: name no session.
    """
    arrived = wire.Dealer.arrived

    def arrive(self: wire.Dealer, frame: bytes) -> None:
        header = codec.read_header(frame)
        if header.kind is kind:
            number = 0 if seq == 0 else header.seq + (seq or 0)
            changed = bytearray(frame)
            session = 0 if sid is None else header.sid + sid
            changed[codec.SID] = session.to_bytes(8, "little")
            changed[codec.SEQ] = number.to_bytes(8, "little")
            frame = bytes(changed)
        arrived(self, frame)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire.Dealer, "arrived", arrive)
        yield


@contextlib.contextmanager
def times_out(
    network: Network, *, after_s: float = 3.0, match: str | None = None
) -> Iterator[None]:
    began = network.now
    with pytest.raises(RequestTimeout, match=match):
        yield
    assert after_s <= network.now - began <= after_s + 1


@pytest.mark.parametrize("seq", [0, -1, 1, 2**50])
@pytest.mark.parametrize("make", [ProxyEnv, partial(ProxyVectorEnv, num_envs=4, sessions=2)])
def test_an_opened_that_answers_nothing(
    network: Network, seq: int, make: Callable[..., Any]
) -> None:
    text = "No env agent has opened a session at 'moody'"
    with falsified(Kind.OPENED, seq=seq), times_out(network, match=text):
        make("moody", broker=BROKER, **LIMITS)


@pytest.mark.parametrize("answer", [Kind.OPENED, Kind.ERROR])
def test_an_env_agent_cannot_answer_later_requests(
    network: Network, monkeypatch: pytest.MonkeyPatch, answer: Kind
) -> None:
    """An env agent whose session has been closed knows only the number of that session's OPEN."""
    seen: list[bytes] = []
    send, arrived = wire.Dealer.send, wire.Dealer.arrived

    def arrive(self: wire.Dealer, frame: bytes) -> None:
        if codec.read_header(frame).kind is Kind.OPENED:
            seen.append(frame)
        arrived(self, frame)

    def answer_first(self: wire.Dealer, frame: bytes | bytearray, wait: bool = False) -> bool:
        if seen and codec.read_header(frame).kind in (Kind.OPEN, Kind.FIND):
            header = codec.read_header(seen[0])
            error = PLAIN.encode(Error(Code.DENIED, "no"), header.sid)
            forged = bytearray(error if answer is Kind.ERROR else seen[0])
            for seq in range(header.seq + 1, header.seq + 256):  # as many as a broker relays
                forged[codec.SEQ] = seq.to_bytes(8, "little")
                self.inbox.append(bytes(forged))
        return send(self, frame, wait)

    monkeypatch.setattr(wire.Dealer, "arrived", arrive)
    monkeypatch.setattr(wire.Dealer, "send", answer_first)
    connection = network.connection()
    first = connection.open("moody")
    first.close()
    second = connection.open("moody")
    assert second.sid not in (first.sid, 0)
    assert [one["address"] for one in connection.find()] == ["moody"]
    connection.close()


def test_an_opened_of_another_session(network: Network) -> None:
    with falsified(Kind.OPENED, sid=1):
        env = ProxyEnv("moody", BROKER, **LIMITS)
    with times_out(network):
        env.reset()


@pytest.mark.parametrize("make", [ProxyEnv, partial(ProxyVectorEnv, num_envs=4, sessions=2)])
def test_an_opened_of_no_session(network: Network, make: Callable[..., Any]) -> None:
    text = "The broker at tcp://memory:1 sent OPENED of no session"
    with falsified(Kind.OPENED, sid=None), pytest.raises(ProtocolError, match=text):
        make("moody", broker=BROKER, **LIMITS)
    with ProxyEnv("moody", BROKER, **LIMITS) as env:
        env.reset(seed=1)


@pytest.mark.parametrize("change", [{"seq": -1}, {"seq": 1}, {"seq": 2**50}, {"sid": 1}])
def test_a_reply_that_answers_nothing(
    network: Network, change: dict[str, int], logs: list[Any]
) -> None:
    with ProxyEnv("moody", BROKER, **LIMITS) as env:
        with falsified(Kind.STATUS, **change), times_out(network):
            env.reset(seed=1)
        first = env.reset(seed=1)
        with falsified(Kind.PERCEPT, **change), times_out(network):
            env.step(1)
        assert env.step(1)[0][0] == first[0][0] + 1  # executed once
    dropped = [one["kind"] for one in logs if one["event"] == "message dropped"]
    assert {"STATUS", "PERCEPT"} <= {*dropped}


def test_a_found_that_answers_nothing(network: Network) -> None:
    connection = network.connection(timeout_s=5.0)
    with falsified(Kind.FOUND, seq=1), times_out(network, after_s=5.0, match="The FIND to the"):
        connection.find()


def test_a_listing_that_the_broker_refuses_says_why(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise Refusal(Code.DENIED, "This key may list nothing.")

    connection = network.connection()
    monkeypatch.setattr(network.core, "_find", refuse)
    with pytest.raises(Denied, match="This key may list nothing"):
        connection.find()


def test_a_revoked_key_is_raised_and_other_errors_of_no_request_are_dropped(
    network: Network, logs: list[Any]
) -> None:
    connection = network.connection(timeout_s=5.0)
    connection.receive_frame(bytes(PLAIN.encode(Error(Code.LIMIT, "too many"))))
    assert [one["kind"] for one in logs if one["event"] == "message dropped"] == ["ERROR"]
    denied = bytes(PLAIN.encode(Error(Code.DENIED, "removed from this broker's policy")))
    cast(Dealer, connection.link._dealer).inbox.append(denied)
    with pytest.raises(Denied, match="removed from this broker's policy"):
        connection.find()
