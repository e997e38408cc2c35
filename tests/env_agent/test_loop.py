"""The serving loop goes on, whatever the handling of one request raises."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import gymnasium
import pytest
import structlog.testing
from gymnasium.spaces import Discrete

from gymwire.env_agent.agent import Agent
from gymwire.env_agent.bad_frames import WARN_EVERY_S
from gymwire.env_agent.environments import Service
from gymwire.env_agent.factory import Factory
from gymwire.env_agent.loop import ServingLoop
from gymwire.env_agent.session import _EXECUTING
from gymwire.env_agent.sessions import SessionHost
from gymwire.env_agent.transports import Transports
from gymwire.learner_agent.client.observing import watch_session
from gymwire.protocol.codec import COMPACT, HEADER, MAGIC, PLAIN, read_header
from gymwire.protocol.errors import EnvironmentFailed, GymwireError
from gymwire.protocol.messages import (
    VERSION,
    Act,
    Call,
    Close,
    Error,
    Kind,
    Message,
    Percept,
    Render,
    Reset,
)
from gymwire.protocol.security.signing import SignedCodec, Signer
from gymwire.protocol.transport.broker_link import BrokerLink
from tests.hostile_values import ext
from tests.wire import Network


class Panic(BaseException):
    """An exception like those of extension modules written in Rust."""


class Unprintable(Exception):
    """An exception whose text cannot be made."""

    def __str__(self) -> str:
        raise Panic


RAISED: list[BaseException] = [
    Panic("overflow"),
    asyncio.CancelledError(),
    GeneratorExit(),
    KeyboardInterrupt(),
    SystemExit(3),
    MemoryError(),
    RecursionError("too deep"),
    ValueError("Exceeds the limit (4300 digits) for integer string conversion"),
    Unprintable(),
]
raised = pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)


class Failing(gymnasium.Env[Any, Any]):
    """An environment that raises `error` where `where` says."""

    observation_space = action_space = Discrete(5)
    error: BaseException | None = None
    where = ""

    def __init__(self) -> None:
        self.fail("constructor")

    @classmethod
    def fail(cls, where: str) -> None:
        if cls.error is not None and cls.where == where:
            raise cls.error

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[int, dict[str, Any]]:
        self.fail("reset")
        return 1, {}

    def step(self, action: int) -> Any:
        self.fail("step")
        return 2, 0.5, False, False, {}

    def render(self) -> Any:
        self.fail("render")
        return "2"

    def shown(self) -> int:
        self.fail("call")
        return 3

    def close(self) -> None:
        self.fail("close")


SERVICE = Service("failing", Factory("failing:Failing", Failing), exposed=("shown",))
STEPPED = Percept(2, 0.5, False, False, {})
REQUESTS: dict[str, Message] = {
    "reset": Reset(),
    "step": Act(1),
    "render": Render(),
    "call": Call("call", "shown"),
}


@pytest.fixture(autouse=True)
def _nothing_fails() -> Iterator[None]:
    yield
    Failing.error = None


def assert_serves(network: Network) -> None:
    """Assert that the loop opens a session and executes a step in it."""
    session = network.connection().open("failing")
    session.request(Reset())
    assert session.request(Act(1)) == STEPPED
    session.request(Close())


@raised
@pytest.mark.parametrize("where", REQUESTS)
def test_whatever_an_environment_raises_is_a_reply(where: str, error: BaseException) -> None:
    with Network() as network:
        network.env_agent(SERVICE)
        session = network.connection().open("failing")
        session.request(Reset())
        Failing.where, Failing.error = where, error
        with pytest.raises(EnvironmentFailed) as caught:
            session.request(REQUESTS[where])
        assert type(error).__qualname__ in caught.value.remote_type
        Failing.error = None
        session.request(Reset())
        assert_serves(network)


@raised
def test_whatever_a_constructor_raises_refuses_only_that_session(error: BaseException) -> None:
    with Network() as network:
        network.env_agent(SERVICE)
        spare = network.connection().open("failing")  # uses the environment made for the offer
        Failing.where, Failing.error = "constructor", error
        with pytest.raises(GymwireError, match="could not be made"):
            network.connection().open("failing")
        Failing.error = None
        spare.request(Reset())
        assert_serves(network)


@raised
def test_whatever_close_raises_frees_the_slot(error: BaseException) -> None:
    with Network() as network:
        loop = network.env_agent(SERVICE)
        session = network.connection().open("failing")
        Failing.where, Failing.error = "close", error
        session.request(Close())
        Failing.error = None
        network.pass_time(1.0)
        assert loop.idle
        assert_serves(network)


@raised
@pytest.mark.parametrize("place", ["step", "handle"])
def test_a_bug_in_the_handling_of_a_request_is_its_reply(
    monkeypatch: pytest.MonkeyPatch, place: str, error: BaseException
) -> None:
    with Network() as network:
        loop = network.env_agent(SERVICE)
        session = network.connection().open("failing")
        session.request(Reset())
        with monkeypatch.context() as fault:
            fault.setattr(loop.host.requests, place, raising(error))
            if place == "handle":
                fault.setattr(loop.host.requests, "step", lambda *_: None)
            with pytest.raises(EnvironmentFailed, match="bug in gymwire"):
                session.request(Act(1))
        assert loop.jobs.failed_requests == 1
        assert session.request(Act(1)) == STEPPED
        assert_serves(network)


@pytest.mark.parametrize("place", ["step", "handle"])
def test_a_request_is_listed_while_it_is_executed(
    monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    with Network() as network:
        loop = network.env_agent(SERVICE)
        session = network.connection().open("failing")
        assert loop.current_requests == []
        seen: list[Any] = []
        monkeypatch.setattr(Failing, "fail", lambda self, _: seen.append(loop.current_requests))
        session.request(Reset())
        if place == "handle":
            monkeypatch.setattr(loop.host.requests, "step", lambda *_: None)
        session.request(Act(1))
        numbers = [[(sid, seq) for sid, seq, _ in requests] for requests in seen]
        assert numbers == [[(session.sid, 1)], [(session.sid, 2)]]
        assert loop.current_requests == []


def test_an_environment_that_is_being_made_is_described_as_such(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Network() as network:
        loop = network.env_agent(SERVICE)
        agent: Any = SimpleNamespace(_running={0}, _loops=[loop])
        found: list[str] = []
        make = loop.host.make

        def make_and_describe(*args: Any, **kwargs: Any) -> Any:
            found.extend(Agent._describe_running(agent))
            return make(*args, **kwargs)

        monkeypatch.setattr(loop.host, "make", make_and_describe)
        network.connection().open("failing")
        assert len(found) == 1
        assert re.fullmatch(
            r"making the environment of session [0-9a-f]{16} at 'failing', for [0-9.]+ s", found[0]
        )


@pytest.mark.parametrize("place", ["step", "handle"])
def test_a_request_without_a_reply_is_executed_when_it_is_repeated(
    monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Two bugs: the handling raises, and so does what makes the reply to it."""
    with Network() as network:
        loop = network.env_agent(SERVICE)
        session = network.connection().open("failing")
        session.request(Reset())
        frame = bytes(PLAIN.encode(Act(1), session.sid, 2))
        with monkeypatch.context() as fault:
            fault.setattr(loop.host.requests, "_finish", raising(Panic()))
            if place == "handle":
                fault.setattr(loop.host.requests, "step", lambda *_: None)
            else:
                fault.setattr(loop.host.slots[session.sid].runner, "step", raising(Panic()))
            fault.setattr("gymwire.env_agent.failure_reports.handling_failed", raising(Panic()))
            next(one for one in network.connections() if one.loop is loop).arrived(frame)
        slot = loop.host.slots[session.sid]
        assert (slot.session.last_seq, loop.jobs.failed_requests) == (1, 1)
        assert loop.current_requests == []
        assert session.request(Act(1)) == STEPPED


@raised
def test_a_bug_in_the_opening_of_a_session_is_its_reply(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    with Network() as network:
        loop = network.env_agent(SERVICE)
        with monkeypatch.context() as fault:
            fault.setattr(loop.host, "make", raising(error))
            with pytest.raises(GymwireError, match="bug in gymwire"):
                network.connection().open("failing")
        assert not loop.current_requests
        assert_serves(network)


def raising(error: BaseException) -> Any:
    def fail(*_: object, **__: object) -> Any:
        raise error

    return fail


# Python refuses to write this integer as decimal digits.
HUGE = ext(3, (-(2**15990)).to_bytes(2000, "little", signed=True))


@pytest.mark.parametrize("body", [HUGE, b"\x91" + HUGE, b"\x91\x91" + HUGE, b"\x81" + HUGE * 2])
def test_an_action_that_cannot_be_printed_is_refused(body: bytes) -> None:
    with Network() as network:
        loop = network.env_agent(SERVICE)
        session = network.connection().open("failing")
        session.request(Reset())
        frame = HEADER.pack(MAGIC, VERSION, Kind.ACT, COMPACT, len(body), session.sid, 2) + body
        reply = execute(network, loop, frame)
        assert isinstance(reply, Error)
        assert execute(network, loop, frame) == reply  # the repetition of the request
        assert not loop.current_requests
        assert_serves(network)


GARBAGE = [b"", b"x", b"GET / HTTP/1.1", bytes(16), HEADER.pack(MAGIC, VERSION, 99, 0, 0, 1, 1)]


def test_invalid_frames_are_counted_and_seldom_logged() -> None:
    with Network() as network:
        loop = network.env_agent(SERVICE)
        dealer = next(one for one in network.connections() if one.loop is loop)
        with structlog.testing.capture_logs() as entries:
            for frame in GARBAGE * 200:
                dealer.arrived(frame)
            network.pass_time(WARN_EVERY_S + 1)
            dealer.arrived(b"x")
        logged = [entry for entry in entries if entry["event"] == "invalid frame"]
        assert [entry["invalid_frames"] for entry in logged] == [1, 1001]
        assert_serves(network)


def test_a_loop_that_is_stopped_before_its_offers_are_confirmed_withdraws_them() -> None:
    with Network() as network:
        dealer = network.dealer()
        link, host = BrokerLink(cast(Any, dealer)), SessionHost([SERVICE])
        loop = ServingLoop(lambda: Transports(link, None), host, bytes(16), clock=network.monotonic)
        arrived = dealer.arrived

        def stop_at_last(frame: bytes) -> None:
            if read_header(frame).kind is Kind.OFFERED:
                assert network.connection().find("failing")
                loop.drain.set()
            else:
                arrived(frame)

        dealer.arrived = stop_at_last  # type: ignore[method-assign]
        offers = [host.environments.describe(SERVICE, 1, None)]
        assert not loop.connect(offers, wait_s=60.0)
        assert network.connection().find("failing") == []


def test_steps_in_a_row_are_counted_until_another_session_sends_a_request() -> None:
    with Network() as network:
        loop = network.env_agent(SERVICE)
        one, other = (network.connection().open("failing") for _ in range(2))
        one.request(Reset())
        other.request(Reset())
        counted = []
        for session in (one, one, one, other, one):
            session.request(Act(1))
            counted.append(loop.host.slots[session.sid].steps_alone)
        assert counted == [1, 2, 3, 1, 1]


def test_a_close_without_the_tag_of_a_signed_session_ends_no_abandoned_step() -> None:
    with Network() as network:
        loop = network.env_agent(SERVICE)
        sid = network.connection().open("failing").sid
        wire = next(one for one in network.connections() if one.loop is loop)
        slot = loop.host.slots[sid]
        mine, theirs = b"m" * 32, b"t" * 32
        slot.codec = SignedCodec(Signer(mine, theirs))
        slot.session.reply = _EXECUTING
        for seq in (2, 3):
            wire.arrived(bytes(PLAIN.encode(Close(), sid, seq)))
            assert loop.host.slots == {sid: slot}
        wire.arrived(bytes(SignedCodec(Signer(theirs, mine)).encode(Close(), sid, 2)))
        assert not loop.host.slots


def execute(network: Network, loop: ServingLoop, frame: bytes) -> Message:
    """Deliver a frame to the loop, and return what the session keeps as its reply."""
    next(one for one in network.connections() if one.loop is loop).arrived(frame)
    reply = bytes(loop.host.slots[read_header(frame).sid].session.reply)
    assert read_header(reply).seq == read_header(frame).seq
    return PLAIN.decode(reply)


def test_a_request_for_a_frame_is_none_of_the_session_however_slowly_it_is_read() -> None:
    service = Service("cart", Factory("CartPole-v1"), watchable=True)
    with Network() as network:
        loop = network.env_agent(service)
        session = network.connection().open("cart")
        session.request(Reset(seed=1))
        step, crew = loop.host.requests.step, loop.crew

        def step_slowly(*arguments: Any) -> Any:
            """Take the reader's role away meanwhile, as `Crew.relieve` does, and give it back."""
            crew.own.lent.clear()
            crew.own.jobs += 1
            crew.outside += 1
            return step(*arguments)

        loop.host.requests.step = step_slowly  # type: ignore[method-assign,assignment]
        # There is nothing to poll here; a serving loop of this network is woken.
        loop._transports.receive_or_wake = lambda wakeup: (None, False)  # type: ignore[method-assign]
        frame = watch_session(network.connection(), session.sid)
        assert (frame.request, frame.media_type) == (1, "image/png")
        loop.host.requests.step = step  # type: ignore[method-assign]
        assert isinstance(session.request(Act(1)), Percept)
        assert crew.wakeup is not None
        crew.wakeup.close()
