"""Direct connections that are being made, with an injected clock."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import structlog
import zmq

from gymwire.learner_agent.client import direct
from gymwire.learner_agent.client.connection_use import ConnectionUse
from gymwire.learner_agent.client.direct import DirectLink, DirectLinks, DirectPath, SessionPaths
from gymwire.protocol.codec import PLAIN, read_header
from gymwire.protocol.errors import DecodingError, GymwireError
from gymwire.protocol.messages import Busy, BusyReason, Kind, Open, Resumed
from gymwire.protocol.security.keys import KeyPair
from gymwire.protocol.transport.interface import LinkEvent
from tests.learner_agent.opcodes import Interruption


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Dealer:
    """A connection that is up from `up_at` on; its peer answers RESUME at once, or never."""

    url = "tcp://127.0.0.1:1"

    def __init__(self, clock: Clock, up_at: float, *, answers: bool, denied: str = "") -> None:
        self._clock, self._up_at = clock, up_at
        self._answers, self._denied = answers, denied
        self._was_up = False
        self.events: list[LinkEvent] = []
        self._arrived: list[bytes | bytearray] = []
        self.sent: list[Kind] = []
        self.resumed: list[int] = []  # sessions
        self.refused = 1  # libzmq may not take a frame in the moment when a connection is made

    def link_events(self) -> list[LinkEvent]:
        events, self.events = self.events, []
        if not self._was_up and self._clock.now >= self._up_at:
            self._was_up = True
            events.append(LinkEvent(not self._denied, -1, self._denied))
        return events

    def send(self, frame: bytes | bytearray) -> bool:
        if self.refused:
            self.refused -= 1
            return False
        self.sent.append(read_header(frame).kind)
        self.resumed.append(read_header(frame).sid)
        if self._answers:
            self._arrived.append(PLAIN.encode(Resumed(), 7, 0))
        return True

    def poll(self, timeout_s: float = 0.0) -> bool:
        if not self._arrived:
            self._clock.now += timeout_s
        return bool(self._arrived)

    def receive(self) -> bytes | bytearray:
        return self._arrived.pop()

    def close(self, linger_s: float = 0.0) -> None:
        pass


@pytest.fixture
def clock() -> Clock:
    return Clock()


def path(dealer: Dealer) -> DirectPath:
    return DirectPath(DirectLink(cast(Any, dealer)), session(7))


def session(sid: int, fail: Callable[[GymwireError], None] = print) -> Any:
    return SimpleNamespace(
        sid=sid, open_msg=Open("lake", bytes(16)), fail=fail, receive=lambda *_: False
    )


def test_connections_are_made_side_by_side(clock: Clock) -> None:
    never, silent = Dealer(clock, 1e9, answers=False), Dealer(clock, 0.1, answers=False)
    late = Dealer(clock, 0.4, answers=True)
    links = [path(dealer) for dealer in (never, silent, never, late)]
    direct.wait_until_attached(links, 0.5, clock)
    assert [one.up for one in links] == [False, False, False, True]
    assert 0.5 <= clock.now < 0.51
    assert silent.sent == late.sent == [Kind.RESUME]


def test_a_pause_of_the_process_does_not_end_the_wait(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    dealer = Dealer(clock, 0.1, answers=True)
    link_events, pauses = dealer.link_events, iter([0.0, 3600.0])

    def paused() -> list[LinkEvent]:
        clock.now += next(pauses, 0.0)
        return link_events()

    dealer.refused = 3
    monkeypatch.setattr(dealer, "link_events", paused)
    link = path(dealer)
    direct.wait_until_attached([link], 0.5, clock)
    assert link.up


def test_connections_that_are_up_or_denied_are_not_waited_for(clock: Clock) -> None:
    denied = Dealer(clock, 0.2, answers=False, denied="it knows no such key")
    links = [path(dealer) for dealer in (denied, Dealer(clock, 0.1, answers=True))]
    direct.wait_until_attached(links, 0.5, clock)
    assert [one.up for one in links] == [False, True]
    assert clock.now < 0.21


def test_a_path_to_which_the_agent_has_not_bound_the_session_is_resumed(clock: Clock) -> None:
    dealer = Dealer(clock, 0.0, answers=True)
    dealer.refused = 0
    one = path(dealer)
    one.link.check()
    assert one.up
    for reason, is_up in ((BusyReason.RATE, True), (BusyReason.HELLO, False)):
        busy = bytes(PLAIN.encode(Busy(reason, 0.0), one.sid, 3))
        one.link.receive_frame(busy)
        assert one.up is is_up  # if not, the request takes the relayed path
    one.link.receive_frame(busy)  # of another frame that was sent before
    assert one.went_down
    one.link.check()
    assert one.up
    assert dealer.sent == [Kind.RESUME] * 2


@pytest.mark.parametrize(
    "key", ["text", 5, [1], b"x", b"\xff" * 40, b"a" * 39, {"a": 1}, True], ids=repr
)
def test_a_malformed_key_of_an_endpoint_is_an_error_of_the_env_agent(key: object) -> None:
    mine = KeyPair(*zmq.curve_keypair())
    with pytest.raises(DecodingError, match="direct endpoint"):
        DirectLinks().link({"urls": ["tcp://127.0.0.1:1"], "key": key}, mine)


class Transport:
    """A connection that notes whether it is closed."""

    is_closed = False

    def close(self, linger_s: float = 0.0) -> None:
        self.is_closed = True


@pytest.mark.parametrize("used", ["alone", "shared"])
def test_an_interrupted_close_of_a_direct_path_leaves_no_closed_one_in_use(used: str) -> None:
    url = "tcp://127.0.0.1:1"
    opened = cast(Any, SimpleNamespace(direct={"urls": [url], "host": socket.gethostname()}))
    for instruction in itertools.count():
        links = DirectLinks(lambda *_, **__: cast(Any, Transport()))
        relay: Any = Transport()
        connection: Any = SimpleNamespace(
            link=relay, direct_links=links, path_changes=0, credentials=SimpleNamespace(key=None)
        )
        all_paths = list[SessionPaths]()
        for sid in range(1 if used == "alone" else 2):
            one = session(sid)
            paths = SessionPaths(connection, sid, one.open_msg, opened, cast(Any, None))
            paths.dial_direct(one).up = True
            paths.finish_setup("", required=True)
            all_paths.append(paths)
        paths = all_paths[0]
        transport = cast(Any, paths.current)
        assert isinstance(transport, Transport)
        is_interrupted = Interruption(instruction).run(paths.close_direct)
        assert paths.current is relay or not transport.is_closed
        paths.close_direct()
        assert paths.current is relay
        assert transport.is_closed == (used == "alone")
        assert len(links.all) == len(all_paths) - 1
        if not is_interrupted:
            return


def test_a_session_that_has_moved_is_not_resumed_over_its_former_connection(clock: Clock) -> None:
    dealer = Dealer(clock, 0.0, answers=False)
    dealer.refused = 0
    links = DirectLinks(lambda *_, **__: cast(Any, dealer))
    connection: Any = SimpleNamespace(
        link=None,
        direct_links=links,
        use=ConnectionUse(),
        serve=print,
        path_changes=0,
        credentials=SimpleNamespace(key=None),
    )
    opened = cast(Any, SimpleNamespace(direct={"urls": [dealer.url], "host": ""}))
    exchange = cast(Any, SimpleNamespace(resume_pending=False))
    moved, paths = (
        SessionPaths(connection, sid, Open("lake", bytes(16)), opened, exchange) for sid in (7, 8)
    )
    moved.dial_direct(session(7))
    paths.dial_direct(session(8))
    connection.use.left.append(moved.close_direct)
    paths.serve_others(0.0)
    assert dealer.resumed == [8]


@pytest.mark.parametrize("cause", ["lost", "not bound"])
def test_only_a_lost_connection_counts_as_lost(clock: Clock, cause: str) -> None:
    dealer = Dealer(clock, 0.0, answers=True)
    dealer.refused = 0
    links = DirectLinks(lambda *_, **__: cast(Any, dealer))
    connection: Any = SimpleNamespace(
        link=None, direct_links=links, path_changes=0, credentials=SimpleNamespace(key=None)
    )
    opened = cast(Any, SimpleNamespace(direct={"urls": [dealer.url], "host": ""}))
    exchange: Any = SimpleNamespace(unanswered=3, resume_pending=False, resend=lambda _: None)
    paths = SessionPaths(connection, 7, Open("lake", bytes(16)), opened, exchange)
    link = paths.dial_direct(session(7)).link
    link.check()
    with structlog.testing.capture_logs() as logged:
        for _ in range(direct.MAX_DIRECT_LOSSES):
            assert paths.is_direct
            if cause == "lost":
                dealer.events += [LinkEvent(False, -1, ""), LinkEvent(True, -1, "")]
            else:
                link.receive_frame(bytes(PLAIN.encode(Busy(BusyReason.HELLO, 0.0), 7, 3)))
            link.check()  # also resumes the session
            paths.follow(clock.now)
    assert paths.is_direct is (cause == "not bound")
    assert [one["event"] for one in logged] == (
        ["direct connection given up, session relayed"] if cause == "lost" else []
    )


def test_what_cannot_be_read_is_an_error_of_all_sessions_of_its_agent_only(clock: Clock) -> None:
    link = DirectLink(cast(Any, Dealer(clock, 0.0, answers=False)))
    errors = list[GymwireError]()
    paths = [DirectPath(link, session(sid, errors.append)) for sid in (7, 8)]
    for one in paths:
        assert not link.receive_frame(bytes(30))  # this one is not up yet
        link.receive_frame(bytes(PLAIN.encode(Resumed(), one.sid, 0)))
    assert not errors
    assert link.receive_frame(bytes(30))
    assert [type(one) for one in errors] == [DecodingError] * 2
    assert errors[0] is not errors[1]
