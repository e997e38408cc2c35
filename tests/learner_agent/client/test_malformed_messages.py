"""A message that cannot be decoded is an error that names its sender, its kind and its session."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from gymwire import ProxyEnv, ProxyVectorEnv
from gymwire.env_agent.config import service
from gymwire.learner_agent.aio.calls import run
from gymwire.learner_agent.client.open_sessions import query_position
from gymwire.learner_agent.client.session import RemoteSession
from gymwire.protocol import codec
from gymwire.protocol.codec import Header
from gymwire.protocol.errors import DecodingError, ProtocolError, RequestTimeout
from gymwire.protocol.messages import Act, Find, Kind, Percept, Reset
from gymwire.protocol.values import Tail
from tests import wire
from tests.learner_agent.aio.virtual import VirtualConnection
from tests.learner_agent.client.network_faults import delay
from tests.learner_agent.client.test_interrupted import ENV, in_memory
from tests.wire import BROKER, Network


@pytest.fixture
def network() -> Iterator[Network]:
    with in_memory() as made:
        yield made


@contextlib.contextmanager
def malformed(kind: Kind) -> Iterator[None]:
    """Replace the first byte after the header of all frames of a kind by one of no type."""
    arrived = wire.Dealer.arrived

    def arrive(self: wire.Dealer, frame: bytes) -> None:
        if codec.read_header(frame).kind is kind:
            changed = bytearray(frame)
            changed[codec.HEADER_SIZE] = 0xC1
            frame = bytes(changed)
        arrived(self, frame)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire.Dealer, "arrived", arrive)
        yield


def test_a_reply_names_the_env_agent_and_the_session(network: Network) -> None:
    with ProxyEnv("moody", BROKER) as env:
        text = r"The env agent of 'moody' \(.*\) sent a malformed STATUS in session \d+: "
        with malformed(Kind.STATUS), pytest.raises(DecodingError, match=text):
            env.reset(seed=1)
        env.reset(seed=1)


@pytest.mark.parametrize("kind", [Kind.WELCOME, Kind.OPENED])
def test_a_message_of_the_broker_names_the_broker(network: Network, kind: Kind) -> None:
    text = rf"The broker at {BROKER} sent a malformed {kind.name}.*: "
    with malformed(kind), pytest.raises(DecodingError, match=text):
        ProxyEnv("moody", BROKER)


Change = Callable[[Header, bytes], list[bytes]]


@contextlib.contextmanager
def arriving(change: Change) -> Iterator[None]:
    """Replace each frame that arrives by those that `change` returns."""
    arrived = wire.Dealer.arrived

    def arrive(self: wire.Dealer, frame: bytes) -> None:
        for one in change(codec.read_header(frame), frame):
            arrived(self, one)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire.Dealer, "arrived", arrive)
        yield


def unreadable(kind: Kind, sid: int, seq: int) -> bytes:
    return bytes(codec.join(kind, 0, b"\xc1", Tail(), sid, seq))


@pytest.fixture
def pair(network: Network) -> Iterator[tuple[ProxyEnv, ProxyEnv]]:
    """Return proxies of two env agents on one connection."""
    network.env_agent(service(address="good", env=ENV))
    connection = network.connection()
    with (
        ProxyEnv("moody", connection=connection) as bad,
        ProxyEnv("good", connection=connection) as good,
    ):
        bad.reset(seed=1)
        good.reset(seed=1)
        yield bad, good


@pytest.mark.parametrize("ahead", [None, 5])
def test_an_error_of_one_session_is_raised_in_its_own_call(pair: Any, ahead: int | None) -> None:
    bad, good = pair
    sid, seq = bad._session.sid, bad._session.exchange.seq
    stray = unreadable(Kind.ERROR, sid, 0 if ahead is None else seq + ahead)
    with arriving(lambda _, frame: [stray, frame]):
        first = good.step(1)
    with pytest.raises(DecodingError, match=rf"The env agent of 'moody' .* ERROR in session {sid}"):
        bad.reset(seed=1)
    bad.reset(seed=1)
    assert good.step(1)[0][0] == first[0][0] + 1


@pytest.mark.parametrize("is_under_way", [True, False])
def test_an_error_is_not_raised_for_a_later_request_than_the_one_it_concerns(
    pair: Any, is_under_way: bool
) -> None:
    bad, good = pair
    session = bad._session
    stray = unreadable(Kind.PROGRESS, session.sid, session.exchange.seq + 1)

    def change(header: Header, frame: bytes) -> list[bytes]:
        is_of_bad = (header.sid, header.kind) == (session.sid, Kind.PERCEPT)
        return [stray, frame] if is_of_bad or not is_under_way else [frame]

    if is_under_way:
        session.begin(Act(1))
    with arriving(change):
        good.step(1)
        good.step(1)
    if is_under_way:
        session.finish()
    else:
        bad.step(1)  # on the fast path, which has its reply before it looks for errors
    bad.reset(seed=1)


@pytest.mark.parametrize("is_direct", [False, True])
def test_a_frame_about_a_session_comes_from_the_env_agent_if_it_comes_directly(
    pair: Any, monkeypatch: pytest.MonkeyPatch, is_direct: bool
) -> None:
    session = pair[0]._session
    monkeypatch.setattr(RemoteSession, "is_direct", is_direct)
    session.begin(Act(1))
    frame = unreadable(Kind.PROGRESS, session.sid, session.exchange.seq)
    session.receive(codec.read_header(frame), frame)
    with pytest.raises(DecodingError, match="env agent of 'moody'" if is_direct else "broker at"):
        session.exchange.check_ready()


def test_a_reply_of_the_wrong_kind_is_an_error_of_its_own_session(pair: Any) -> None:
    bad, good = pair
    begun = bad.step(1)
    session = bad._session

    def change(header: Header, frame: bytes) -> list[bytes]:
        if (header.sid, header.kind) != (session.sid, Kind.PERCEPT):
            return [frame]
        return [unreadable(Kind.STATUS, header.sid, header.seq)]

    with arriving(change):
        session.begin(Act(1))
        first = good.step(1)
        with pytest.raises(ProtocolError, match=r"'moody' .* broke the protocol: STATUS"):
            session.finish()
    assert good.step(1)[0][0] == first[0][0] + 1
    assert bad.step(1)[0][0] == begun[0][0] + 1  # waits on: executed once


def test_a_vector_notices_the_error_of_any_of_its_sessions(network: Network) -> None:
    network.env_agent(service(address="many", env=ENV, max_sessions=3))
    vector = ProxyVectorEnv("many", 3, BROKER, sessions=3, step_timeout_s=5.0)
    first, _ = vector.reset(seed=1)
    session = vector._group[1]

    def change(header: Header, frame: bytes) -> list[bytes]:
        if (header.sid, header.kind) != (session.sid, Kind.PERCEPT):
            return [frame]
        return [unreadable(Kind.ERROR, header.sid, 0)]

    began = network.now
    with arriving(change), pytest.raises(DecodingError, match=f"ERROR in session {session.sid}"):
        vector.step([1, 1, 1])
    assert network.now - began < 1.0
    second = vector.step([1, 1, 1])[0][:, 0].tolist()
    assert second == [number + 1 for number in first[:, 0].tolist()]  # executed once
    vector.close()


def test_the_answer_to_another_request_is_raised_to_whoever_waits_for_it(pair: Any) -> None:
    good = pair[1]
    connection = good._session.connection
    answer: list[bytes] = []

    def change(header: Header, frame: bytes) -> list[bytes]:
        if header.kind is Kind.FOUND:
            answer.append(unreadable(Kind.ERROR, 0, header.seq))
            return answer
        return [frame]

    with arriving(change):
        request = connection.send_request(Find(""))
        good.step(1)
        good.step(1)
    assert answer
    with pytest.raises(DecodingError, match="sent a malformed ERROR"):
        connection.wait_first({request.seq: request})
    connection.forget_requests(request)


def test_the_answer_to_a_request_that_was_given_up_disturbs_nobody(
    network: Network, pair: Any
) -> None:
    good = pair[1]
    connection, late = good._session.connection, list[bytes]()
    network.env_agent(service(address="late", env=ENV))

    def keep_back(header: Header, frame: bytes) -> list[bytes]:
        if header.kind is not Kind.OPENED:
            return [frame]
        late.append(unreadable(Kind.ERROR, 0, header.seq))
        return []

    with arriving(keep_back), pytest.raises(RequestTimeout):
        connection.open_all("late", [0], timeout_s=1.0)
    with arriving(lambda _, frame: [late[0], frame]):
        good.step(1)
    assert not connection._opener.has_given_up


def test_a_late_error_of_a_session_that_is_lost_disturbs_nobody(pair: Any) -> None:
    bad, good = pair
    session = bad._session
    session.connection.forget(session)
    late = unreadable(Kind.ERROR, session.sid, 0)
    with arriving(lambda _, frame: [late, frame]):
        good.step(1)


@pytest.mark.parametrize("is_doubled", [False, True])
def test_after_an_unreadable_answer_no_other_one_is_waited_for(
    pair: Any, monkeypatch: pytest.MonkeyPatch, is_doubled: bool
) -> None:
    connection = pair[1]._session.connection
    monkeypatch.setattr(wire.Dealer, "has_frame", property(lambda self: bool(self.inbox)))
    sids = list[int]()

    def change(header: Header, frame: bytes) -> list[bytes]:
        if header.kind is not Kind.OPENED:
            return [frame]
        sids.append(header.sid)
        return [unreadable(Kind.OPENED, header.sid, header.seq), *[frame] * is_doubled]

    with arriving(change), pytest.raises(DecodingError):
        connection.open("good")
    assert not connection._opener.has_given_up
    assert connection.has_session(sids[0]) == is_doubled  # until it is closed


def test_an_unreadable_position_is_the_error_of_the_session_that_asks_for_it(pair: Any) -> None:
    session = pair[0]._session
    session.exchange.expected = None

    def change(header: Header, frame: bytes) -> list[bytes]:
        is_position = (header.kind, header.sid) == (Kind.ERROR, session.sid)
        return [unreadable(Kind.ERROR, header.sid, header.seq) if is_position else frame]

    with arriving(change), pytest.raises(DecodingError, match="malformed ERROR in session"):
        query_position(session)


@pytest.mark.parametrize("arrives", ["relayed", "directly"])
@pytest.mark.parametrize("reads", ["bad", "good"])
def test_an_error_is_raised_at_once_in_the_task_of_its_own_session(
    network: Network, monkeypatch: pytest.MonkeyPatch, arrives: str, reads: str
) -> None:
    async def main() -> None:
        network.env_agent(service(address="slow", env=ENV, max_sessions=2))
        connection = VirtualConnection(
            BROKER,
            timeout_s=60.0,
            clock=network.monotonic,
            clock_ns=network.monotonic_ns,
            dial=lambda *_, **__: network.dealer(),
        )
        bad, good = [await run(connection.open, "slow") for _ in range(2)]
        for session in (bad, good):
            await run(session.request, Reset(1))
        delay(network, network.loops[-1], Kind.PERCEPT, 10.0, monkeypatch)
        ended_at = dict[RemoteSession, float]()

        async def act(session: RemoteSession) -> object:
            try:
                return await run(session.request, Act(0))
            except DecodingError as error:
                return error
            finally:
                ended_at[session] = network.now

        def fail() -> None:
            if arrives == "directly":
                bad.fail(DecodingError("Not a gymwire frame."))
            else:
                stray = unreadable(Kind.PROGRESS, bad.sid, bad.exchange.seq)
                cast(Any, connection.link._dealer).arrived(stray)

        network.after(2.0, fail)
        began, order = network.now, (bad, good) if reads == "bad" else (good, bad)
        found = dict(zip(order, await asyncio.gather(*map(act, order)), strict=True))
        assert isinstance(found[bad], DecodingError)
        assert ended_at[bad] - began < 3.0
        assert isinstance(found[good], Percept)
        assert isinstance(await act(bad), Percept)
        connection.close()

    asyncio.run(main())
