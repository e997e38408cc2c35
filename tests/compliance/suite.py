"""What every env agent must do, in any implementation: inherit `EnvAgentCompliance` and run it.

The suite plays the broker. A subclass gives it a fixture `agent`: an `Agent` around a `Link` to an
env agent that has just dialled, offering one environment with a capacity of one session or more.
Tests are named after the clauses of docs/protocol.md.
"""

from __future__ import annotations

import itertools
from typing import Any, Protocol

import pytest

from gymwire.protocol import codec, spaces
from gymwire.protocol.codec import PLAIN, Codec, Header
from gymwire.protocol.messages import (
    Act,
    Busy,
    BusyReason,
    Call,
    Close,
    Closed,
    Code,
    Error,
    Gone,
    Hello,
    Message,
    Offer,
    Offered,
    Open,
    Opened,
    Percept,
    Ping,
    Pong,
    Reset,
    Role,
    Status,
    Welcome,
)


class Link(Protocol):
    """The broker's end of the connection on which an env agent serves."""

    def send(self, frame: bytes) -> None:
        """Send one frame to the agent."""

    def receive(self) -> bytes | None:
        """Return the agent's next frame, or None if none arrived in time."""


class Agent:
    """An env agent, seen from its broker."""

    def __init__(self, link: Link, *, epoch: int = 1) -> None:
        self._link = link
        self._sids = itertools.count(2**40)
        self.offers: dict[str, Offer] = {}
        self.hello = self.welcome(epoch)

    def send(self, message: Message, sid: int = 0, seq: int = 0, codec: Codec = PLAIN) -> bytes:
        """Send a message; returns its frame."""
        frame = bytes(codec.encode(message, sid, seq))
        self._link.send(frame)
        return frame

    def send_frame(self, frame: bytes) -> None:
        """Send bytes as they are."""
        self._link.send(frame)

    def receive(self) -> tuple[Header, bytes]:
        """Return the next frame. Answer PINGs instead of returning them."""
        while True:
            frame = self._link.receive()
            assert frame is not None, "the env agent says nothing"
            header = codec.read_header(frame)
            if type(PLAIN.decode(frame)) is not Ping if header.kind >= 16 else True:
                return header, frame
            self.send(Pong(), header.sid, header.seq)

    def expect(self, *kinds: type[Message]) -> Message:
        """Return the next message, which must be of one of these kinds."""
        header, frame = self.receive()
        message = PLAIN.decode(frame, header)
        assert type(message) in kinds, message
        return message

    def welcome(self, epoch: int) -> Hello:
        """Greet the agent as a broker of this epoch, up to the last OFFERED; its HELLO."""
        hello = self.expect(Hello)
        assert isinstance(hello, Hello)
        self.send(Welcome(epoch, "compliance", "", 2**26, 30.0))
        offer = self.expect(Offer)
        assert isinstance(offer, Offer)
        self.offers[offer.address] = offer
        self.send(Offered(offer.address))
        return hello

    def open(self, **fields: Any) -> Session:
        """Open a session and return it."""
        address = next(iter(self.offers))
        sid = next(self._sids)
        nonce = sid.to_bytes(16)
        frame = self.send(Open(address, nonce, **fields), sid, 1)
        header, answer = self.receive()
        opened = PLAIN.decode(answer, header)
        assert isinstance(opened, Opened), opened
        assert (header.sid, header.seq) == (sid, 1)
        return Session(self, sid, frame, answer, opened)


class Session:
    """A session at the agent, with the numbering in the test's own hands."""

    def __init__(
        self, agent: Agent, sid: int, open_frame: bytes, opened_frame: bytes, opened: Opened
    ) -> None:
        self.agent = agent
        self.sid = sid
        self.open_frame = open_frame
        self.opened_frame = opened_frame
        self.action_space = spaces.build(opened.action_space)
        self.action_space.seed(0)
        self.observation_space = spaces.build(opened.observation_space)
        self.codec = Codec(
            spaces.compile(self.observation_space), spaces.compile(self.action_space)
        )

    def send(self, message: Message, seq: int) -> bytes:
        """Send a request; returns its frame."""
        return self.agent.send(message, self.sid, seq, self.codec)

    def receive(self, seq: int) -> tuple[Message, bytes]:
        """Return the reply to this request, and its frame."""
        header, frame = self.agent.receive()
        assert (header.sid, header.seq) == (self.sid, seq), header
        return self.codec.decode(frame, header), frame

    def ask(self, message: Message, seq: int) -> Message:
        """Send a request and take its reply."""
        self.send(message, seq)
        return self.receive(seq)[0]

    def refused(self, message: Message, seq: int) -> Error:
        """Send a request that must get an ERROR."""
        error = self.ask(message, seq)
        assert isinstance(error, Error), error
        return error

    def act(self) -> Act:
        """Return a step with a random legal action."""
        return Act(self.action_space.sample())


class EnvAgentCompliance:
    """The suite. Inherit it and define the fixture `agent`."""

    @pytest.fixture
    def agent(self) -> Agent:
        raise NotImplementedError("a subclass gives the env agent")

    @pytest.fixture
    def session(self, agent: Agent) -> Session:
        return agent.open()

    # §4.3 Peers, §6 Offers

    def test_4_3_it_introduces_itself_as_a_serving_loop(self, agent: Agent) -> None:
        assert agent.hello.role == Role.ENV
        assert len(agent.hello.agent) == 16
        assert agent.hello.sessions == []

    def test_6_its_offer_describes_spaces_and_capacity(self, agent: Agent) -> None:
        [offer] = agent.offers.values()
        assert offer.capacity >= 1
        spaces.build(offer.observation_space)
        spaces.build(offer.action_space)

    # §4.2 Sessions

    def test_4_2_an_address_that_it_does_not_offer_is_refused(self, agent: Agent) -> None:
        agent.send(Open("no/such-address", bytes(16)), 99, 1)
        error = agent.expect(Error)
        assert isinstance(error, Error)
        assert error.code == Code.ADDRESS_UNKNOWN

    def test_4_2_an_environment_that_cannot_be_made_is_refused(self, agent: Agent) -> None:
        address = next(iter(agent.offers))
        request = Open(address, bytes(16), env_kwargs={"no_such_argument": 1})
        agent.send(request, 99, 1)
        error = agent.expect(Error)
        assert isinstance(error, Error)
        assert error.code == Code.OPEN_FAILED
        assert "no_such_argument" in error.text

    # §5 The dialogue of a session

    def test_5_reset_gives_a_status_and_act_a_percept(self, session: Session) -> None:
        status = session.ask(Reset(7), 1)
        assert isinstance(status, Status)
        assert status.observation in session.observation_space
        percept = session.ask(session.act(), 2)
        assert isinstance(percept, Percept)
        assert percept.observation in session.observation_space

    def test_5_act_before_reset_is_refused_and_not_counted(self, session: Session) -> None:
        assert session.refused(session.act(), 1).code == Code.PROTOCOL
        assert isinstance(session.ask(Reset(), 1), Status)

    def test_5_a_reply_is_not_a_request(self, session: Session) -> None:
        assert session.refused(Status(None, {}), 1).code == Code.PROTOCOL

    def test_5_close_ends_the_session(self, session: Session) -> None:
        assert session.ask(Close(), 1) == Closed()
        assert session.refused(Reset(), 2).code == Code.SESSION_LOST

    def test_5_the_same_seed_and_actions_give_the_same_episode(self, agent: Agent) -> None:
        episodes = []
        for _ in range(2):
            session = agent.open()
            session.send(Reset(11), 1)
            bodies = [session.receive(1)[1][24:]]
            for seq in range(2, 8):
                session.send(session.act(), seq)
                bodies.append(session.receive(seq)[1][24:])
            assert session.ask(Close(), 8) == Closed()
            episodes.append(bodies)
        assert episodes[0] == episodes[1]

    # §7 Exactly once

    def test_7_2_a_repeated_request_gets_the_same_reply_to_the_byte(self, session: Session) -> None:
        session.ask(Reset(7), 1)
        frame = session.send(session.act(), 2)
        _, first = session.receive(2)
        for _ in range(3):
            session.agent.send_frame(frame)
            assert session.receive(2)[1] == first

    def test_7_2_a_repeated_request_does_not_advance_the_episode(self, agent: Agent) -> None:
        replies = []
        for times in (1, 4):
            session = agent.open()
            session.ask(Reset(7), 1)
            for seq in (2, 3, 4):
                frame = session.send(session.act(), seq)
                reply = session.receive(seq)[1]
                for _ in range(times - 1):
                    session.agent.send_frame(frame)
                    session.receive(seq)
            replies.append(reply[24:])
            session.ask(Close(), 5)
        assert replies[0] == replies[1]

    def test_7_2_the_last_number_with_other_content_is_refused(self, session: Session) -> None:
        session.ask(Reset(7), 1)
        assert session.refused(Reset(8), 1).code == Code.PROTOCOL

    def test_7_2_older_requests_are_dropped(self, session: Session) -> None:
        old = session.send(Reset(7), 1)
        session.receive(1)
        session.ask(session.act(), 2)
        session.agent.send_frame(old)
        assert isinstance(session.ask(session.act(), 3), Percept)

    def test_7_2_a_skipped_number_is_refused_naming_the_expected_one(
        self, session: Session
    ) -> None:
        session.ask(Reset(7), 1)
        error = session.refused(session.act(), 5)
        assert error.code == Code.EXPECTED
        assert error.details["expected"] == 2
        assert isinstance(session.ask(session.act(), 2), Percept)

    def test_7_2_an_unknown_session_is_lost_and_its_close_is_closed(self, agent: Agent) -> None:
        agent.send(Reset(), 12345, 1)
        error = agent.expect(Error)
        assert isinstance(error, Error)
        assert error.code == Code.SESSION_LOST
        agent.send(Close(), 12345, 2)
        assert agent.expect(Closed) == Closed()

    def test_7_3_a_body_that_cannot_be_decoded_is_counted_and_refused(
        self, session: Session
    ) -> None:
        good = session.codec.encode(Reset(7), session.sid, 1)
        session.agent.send_frame(bytes(good[:24]) + b"\xc1" * (len(good) - 24))
        error = session.receive(1)[0]
        assert isinstance(error, Error)
        assert error.code == Code.PROTOCOL
        assert isinstance(session.ask(Reset(7), 2), Status)

    def test_7_4_a_repeated_open_gets_the_same_opened(self, session: Session) -> None:
        session.ask(Reset(7), 1)
        session.agent.send_frame(session.open_frame)
        assert session.receive(1)[1] == session.opened_frame
        assert isinstance(session.ask(session.act(), 2), Percept)

    def test_7_11_a_session_that_is_gone_is_lost(self, session: Session) -> None:
        session.agent.send(Gone("the learner has left"), session.sid)
        assert session.refused(Reset(), 1).code == Code.SESSION_LOST

    def test_7_13_sessions_are_announced_to_a_broker_that_forgot_them(
        self, session: Session
    ) -> None:
        session.ask(Reset(7), 1)
        session.agent.send(Busy(BusyReason.HELLO, 0.0))
        hello = session.agent.welcome(epoch=2)
        nonce, address = session.sid.to_bytes(16), next(iter(session.agent.offers))
        assert [session.sid, nonce, address, ""] in hello.sessions
        assert isinstance(session.ask(session.act(), 2), Percept)

    # §12 Errors

    def test_12_an_attribute_that_is_not_exposed_is_denied(self, session: Session) -> None:
        call = Call("get", "__dict__")
        assert session.refused(call, 1).code == Code.ATTRIBUTE_DENIED

    def test_12_what_the_environment_raises_is_a_reply(self, session: Session) -> None:
        session.ask(Reset(7), 1)
        error = session.refused(Act("no such action"), 2)
        assert error.code == Code.ENVIRONMENT_FAILED
        assert error.details["type"]
        assert isinstance(session.ask(Reset(7), 3), Status)

    # §13 What is checked

    @pytest.mark.parametrize("frame", [b"", b"GET / HTTP/1.1\r\n\r\n", bytes(24), b"\xe7\x09" * 12])
    def test_13_garbage_does_no_harm(self, session: Session, frame: bytes) -> None:
        session.agent.send_frame(frame)
        assert isinstance(session.ask(Reset(7), 1), Status)

    def test_13_an_error_from_a_learner_does_no_harm(self, session: Session) -> None:
        session.agent.send(Error(Code.DENIED, "go away"), 4711, 1)
        assert isinstance(session.ask(Reset(7), 1), Status)
