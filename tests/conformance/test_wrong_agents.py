"""The agent of the documentation passes, and with one rule broken it fails by the right clause."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import pytest

from examples import env_agent_from_scratch as scratch
from gymwire.conformance import suite
from gymwire.conformance.as_broker import BrokersAgent
from gymwire.conformance.check import Silence
from gymwire.conformance.checks import CHECKS
from gymwire.protocol.codec import HEADER_SIZE, KIND_AT, PLAIN, read_header
from gymwire.protocol.errors import ConnectionFailed
from gymwire.protocol.messages import Kind, Open, Ping
from tests.conformance.agents import RightAgent, serving
from tests.conformance.wires import DeafWire
from tests.processes import PATIENCE_S

TIMEOUT_S = 5.0  # of the suite
Mend = Callable[[list[Any]], list[Any]]


@contextlib.contextmanager
def under_test(agent_type: type[scratch.Agent]) -> Iterator[BrokersAgent]:
    """Yield what the suite knows of such an agent."""
    agent, url = suite.as_broker("tcp://127.0.0.1:*", "", TIMEOUT_S)
    with serving(agent_type, url):
        try:
            agent.greet(PATIENCE_S)
            yield agent
        finally:
            agent.wire.close()


def fails_by(agent_type: type[scratch.Agent]) -> str:
    """Return the clause by which the first failing check fails."""
    with under_test(agent_type) as agent:
        failed = next(one for one in suite.run(agent) if one.status == suite.FAILED)
    assert failed.expected
    assert failed.actual
    assert failed.sent or failed.received
    return failed.clause


def test_the_right_agent_passes() -> None:
    with under_test(RightAgent) as agent:
        outcomes = [*suite.run(agent)]
    assert [one for one in outcomes if one.status == suite.FAILED] == []
    passed = {one.clause for one in outcomes if one.status == suite.PASSED}
    assert {"4.3.1", "6.2", "7.2", "7.3", "7.4", "7.12", "7.13", "11.8"} <= passed


# Wrong bytes


def refielded(frame: bytes, mend: Mend) -> bytes:
    """Return the frame with other fields."""
    head: bytes = msgpack.packb(mend(msgpack.unpackb(frame[HEADER_SIZE:], strict_map_key=False)))
    return frame[:4] + len(head).to_bytes(4, "little") + frame[8:HEADER_SIZE] + head


def fields(kind: Kind, mend: Mend) -> Callable[[Kind, bytes], bytes]:
    """Change the fields of messages of this kind."""
    return lambda sent, frame: refielded(frame, mend) if sent is kind else frame


def data(kind: Kind, mend: Callable[[bytes], bytes]) -> Callable[[Kind, bytes], bytes]:
    """Change the bytes of messages of this kind."""
    return lambda sent, frame: mend(frame) if sent is kind else frame


WRONG_FRAMES = {
    "a digest of something else": ("6.2", fields(Kind.OFFER, lambda f: [*f[:7], bytes(32), f[8]])),
    "an address with an identity": ("2.1", fields(Kind.OFFER, lambda f: ["a@b", *f[1:]])),
    "no capacity": ("6.1", fields(Kind.OFFER, lambda f: [*f[:6], 0, *f[7:]])),
    "a spec without an id": ("6.1", fields(Kind.OFFER, lambda f: [*f[:4], {}, *f[5:]])),
    "a space of an unknown kind": ("11.1", fields(Kind.OFFER, lambda f: [*f[:2], [["X"]], *f[3:]])),
    "a short name of the process": ("4.3.1", fields(Kind.HELLO, lambda f: [f[0], b"x", *f[2:]])),
    "no sessions in HELLO": ("4.3.1", fields(Kind.HELLO, lambda f: [*f[:4], []])),
    "no list of attributes": ("4.2.2", fields(Kind.OPENED, lambda f: [*f[:8], {}, *f[9:]])),
    "one agent where several were asked for": (
        "4.2.3",
        fields(
            Kind.OPENED,
            lambda f: [*f[:8], {**f[8], "capabilities": ["kinds"]}, *f[9:]],
        ),
    ),
    "a field too many": ("4", fields(Kind.STATUS, lambda f: [*f, None])),
    "a text for a flag": ("4", fields(Kind.OPENED, lambda f: [*f[:7], "0", *f[8:]])),
    "an observation too short": ("11.8", fields(Kind.STATUS, lambda f: [b"x", f[1]])),
    "an extension type that does not exist": (
        "10.1",
        fields(Kind.STATUS, lambda f: [f[0], {"x": msgpack.ExtType(99, b"")}]),
    ),
    "an error without a traceback": ("12.1", fields(Kind.ERROR, lambda f: [*f[:2], {}])),
    "an undefined flag": ("3.7", data(Kind.STATUS, lambda f: f[:3] + b"\x09" + f[4:])),
    "COMPACT where there is no space": ("11.8", data(Kind.OPENED, lambda f: f[:3] + b"\1" + f[4:])),
    "TIMED without a reason": ("8.2", data(Kind.STATUS, lambda f: f[:3] + b"\3" + f[4:])),
    "bytes after the head": ("3.9", data(Kind.STATUS, lambda f: f + bytes(32))),
    "a truncated head": ("3.7", data(Kind.STATUS, lambda f: f[:-1])),
    "another version": ("3.8", data(Kind.STATUS, lambda f: f[:1] + b"\2" + f[2:])),
    "the number of the next request": (
        "3.10",
        data(Kind.STATUS, lambda f: f[:16] + (f[16] + 1).to_bytes() + f[17:]),
    ),
}


@pytest.mark.parametrize("name", WRONG_FRAMES)
def test_wrong_bytes_are_caught(name: str) -> None:
    clause, change = WRONG_FRAMES[name]

    class Wrong(RightAgent):
        def changed(self, kind: Kind, frame: bytes) -> bytes | None:
            return change(kind, frame)

    assert fails_by(Wrong) == clause


# Wrong behavior


class ExecutesAgain(RightAgent):
    """Executes a repeated request as if it were new."""

    def _reply_to(self, message: scratch.Message, frame: bytes) -> bytes | None:
        session = self._sessions.get(message.sid)
        if session is not None and frame == session.request:
            return self._execute(session, message)
        return super()._reply_to(message, frame)


class RepeatsWhatever(RightAgent):
    """Looks at the number of a repeated request alone."""

    def _reply_to(self, message: scratch.Message, frame: bytes) -> bytes | None:
        session = self._sessions.get(message.sid)
        if session is not None and message.seq == session.last:
            return session.reply
        return super()._reply_to(message, frame)


class AnswersOlder(RightAgent):
    """Answers a request with an old number."""

    def _reply_to(self, message: scratch.Message, frame: bytes) -> bytes | None:
        session = self._sessions.get(message.sid)
        if session is not None and message.seq < session.last:
            return scratch.error(message, "protocol", "This is an old request.")
        return super()._reply_to(message, frame)


class ExecutesSkipped(RightAgent):
    """Takes any higher number."""

    def _reply_to(self, message: scratch.Message, frame: bytes) -> bytes | None:
        session = self._sessions.get(message.sid)
        if session is not None and message.seq > session.last:
            session.last = message.seq - 1
        return super()._reply_to(message, frame)


class CountsRefused(RightAgent):
    """Counts an ACT before RESET."""

    def _reply_to(self, message: scratch.Message, frame: bytes) -> bytes | None:
        session = self._sessions.get(message.sid)
        is_next = session is not None and message.seq == session.last + 1
        reply = super()._reply_to(message, frame)
        if session is not None and is_next:
            session.last = message.seq
        return reply


class StepsBeforeReset(RightAgent):
    """Does not demand a RESET."""

    def _open(self, message: scratch.Message) -> bytes:
        opened = super()._open(message)
        for session in self._sessions.values():
            session.in_episode = True
        return opened


class DropsUndecodable(RightAgent):
    """Ignores a request that it cannot decode."""

    def _execute(self, session: scratch.Session, message: scratch.Message) -> bytes:
        msgpack.unpackb(message.head, strict_map_key=False)  # raises ValueError
        return super()._execute(session, message)


class ForgetsNothing(RightAgent):
    """Keeps a session that is gone."""

    def _handle(self, message: scratch.Message, frame: bytes) -> None:
        if message.kind != Kind.GONE:
            super()._handle(message, frame)


class OpensAgain(RightAgent):
    """Refuses a repeated OPEN."""

    def _open(self, message: scratch.Message) -> bytes:
        if message.sid in self._sessions:
            return scratch.error(message, "open-failed", "This session exists.")
        return super()._open(message)


class OpensAnything(RightAgent):
    """Takes every address for its own."""

    def _open(self, message: scratch.Message) -> bytes:
        head = [scratch.ADDRESS, *message.fields(9)[1:]]
        return super()._open(message._replace(head=msgpack.packb(head)))


class TakesCompactOnly(RightAgent):
    """Cannot read an action in self-describing form."""

    def _execute(self, session: scratch.Session, message: scratch.Message) -> bytes:
        if message.kind == Kind.ACT and isinstance(message.fields(1)[0], msgpack.ExtType):
            return scratch.error(message, "protocol", "This is not an int.")
        return super()._execute(session, message)


class AnswersPing(RightAgent):
    """Takes the broker's PING for a learner's."""

    def _handle(self, message: scratch.Message, frame: bytes) -> None:
        if message.kind == Kind.PING:
            self._send(message.reply(Kind.PONG, None))
        super()._handle(message, frame)


class StaysSilentWhenForgotten(RightAgent):
    """Ignores BUSY."""

    def _handle(self, message: scratch.Message, frame: bytes) -> None:
        if message.kind != Kind.BUSY:
            super()._handle(message, frame)


class EndsByAnyError(RightAgent):
    """Takes an ERROR in a session for one of the broker."""

    def _handle(self, message: scratch.Message, frame: bytes) -> None:
        if message.kind == Kind.ERROR:
            sys.exit()
        super()._handle(message, frame)


class SendsTwoParts(RightAgent):
    """Sends header and head as two parts."""

    def _send(self, frame: bytes) -> None:
        if frame[KIND_AT] == Kind.STATUS:
            self._socket.send_multipart([frame[:HEADER_SIZE], frame[HEADER_SIZE:]])
        else:
            super()._send(frame)


WRONG_BEHAVIOUR: dict[type[RightAgent], str] = {
    ExecutesAgain: "7.2",
    RepeatsWhatever: "7.2",
    AnswersOlder: "7.2",
    ExecutesSkipped: "7.2",
    CountsRefused: "5.2",
    StepsBeforeReset: "5.2",
    DropsUndecodable: "7.3",
    ForgetsNothing: "7.12",
    OpensAgain: "7.4",
    OpensAnything: "4.2.1",
    TakesCompactOnly: "11.8",
    AnswersPing: "4.3",
    StaysSilentWhenForgotten: "4.3.2",
    EndsByAnyError: "4.3",
    SendsTwoParts: "3.2",
}


@pytest.mark.parametrize("agent_type", WRONG_BEHAVIOUR, ids=lambda one: one.__name__)
def test_wrong_behaviour_is_caught(agent_type: type[RightAgent]) -> None:
    assert fails_by(agent_type) == WRONG_BEHAVIOUR[agent_type]


# Silence


def test_an_agent_that_says_nothing_is_not_waited_for() -> None:
    wire = DeafWire()
    with pytest.raises(ConnectionFailed, match="No env agent has offered"):
        BrokersAgent(wire, wire.clock, 2.0).greet(5.0)
    assert wire.now < 6.0


@pytest.mark.parametrize("frame", [None, bytes(PLAIN.encode(Ping()))])
def test_an_agent_that_answers_nothing_ends_the_run(frame: bytes | None) -> None:
    wire = DeafWire(frame)
    agent = BrokersAgent(wire, wire.clock, 2.0)
    opening = [one for one in CHECKS if not one.as_broker]
    statuses = [one.status for one in suite.run(agent, opening)]
    silent = [suite.FAILED] * suite.MOST_SILENT
    assert statuses == silent + [suite.SKIPPED] * (len(opening) - len(silent))
    assert wire.now < 10.0


def test_the_numbers_of_open_and_the_nonces_are_random() -> None:
    opens: dict[int, bytes] = {}
    for _ in range(20):
        wire = DeafWire()
        with pytest.raises(Silence):
            BrokersAgent(wire, wire.clock, 0.5, "lake").open()
        request = PLAIN.decode(wire.sent[0])
        assert isinstance(request, Open)
        opens[read_header(wire.sent[0]).seq] = request.nonce
    assert len(opens) == len({*opens.values()}) == 20
    assert min(opens) >= 2**40
    assert max(opens) < 2**53
    assert max(opens) - min(opens) > 2**32
