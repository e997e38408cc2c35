"""What may arrive in a frame (§3, §8, §13)."""

from __future__ import annotations

from gymwire.conformance.agent import Agent
from gymwire.conformance.check import Check, Skipped, check, expect
from gymwire.conformance.checks.peers import seen_by_broker
from gymwire.protocol.codec import FLAGS_AT, HEAD_LEN, PLAIN, TIMED
from gymwire.protocol.messages import Busy, BusyReason, Code, Error, Opened, Ping, Reset

CHECKS: list[Check] = []
UNDEFINED_FLAGS = 0xF8
TRUNCATED = bytes(PLAIN.encode(Ping()))[:23]
TOO_LONG = bytes(PLAIN.encode(Ping()))[: HEAD_LEN.start] + b"\xff\xff\xff\x7f" + bytes(17)
GARBAGE = (b"GET / HTTP/1.1\r\n\r\n", bytes(24), TRUNCATED, TOO_LONG)
MIN_REPLY = 2048  # bytes of a reply that is larger than an ERROR
ABOUT_ERRORS = 1024  # bytes that remain for an ERROR


@check(CHECKS, "13.1", "survives bytes that are not a frame", as_broker=True)
def garbage(agent: Agent) -> None:
    """Send bytes that are not a frame, then a request."""
    session = agent.open()
    for frame in GARBAGE:
        agent.send_frame(frame)
    session.reset()


@check(CHECKS, "3.7", "ignores flags that are not defined")
def undefined_flags(agent: Agent) -> None:
    """Set all undefined flags in a request."""
    session = agent.open()
    session.last = 1
    _send_flagged(agent, session.sid, UNDEFINED_FLAGS)
    expect_status = session.reply(1, "STATUS")[0]
    expect(not isinstance(expect_status, Error), "STATUS", expect_status)


@check(CHECKS, "8.2", "ignores TIMED where it means nothing")
def timed_reset(agent: Agent) -> None:
    """Set the flag TIMED in RESET."""
    session = agent.open()
    session.last = 1
    _send_flagged(agent, session.sid, TIMED)
    answer = session.reply(1, "STATUS")[0]
    expect(not isinstance(answer, Error), "STATUS", answer)


def _send_flagged(agent: Agent, sid: int, flags: int) -> None:
    """Send RESET as the first request, with more flags."""
    frame = bytearray(PLAIN.encode(Reset(7), sid, 1))
    frame[FLAGS_AT] |= flags
    agent.remember(sid, 1, bytes(frame))
    agent.send_frame(bytes(frame))


@check(CHECKS, "3.11", "ignores extension fields that it does not know")
def extension_fields(agent: Agent) -> None:
    """Open with known and unknown capabilities, and fields of this and of a later release."""
    capabilities = ["extensions", "x-unknown"]
    request = agent.request(capabilities=capabilities, learner_host="conformance", kind="env")
    opened = agent.ask_to_open(request)[3]
    expect(isinstance(opened, Opened), "OPENED", opened)


@check(CHECKS, "3.6", "answers ERROR too-large instead of a reply over the limit", as_broker=True)
def too_large(agent: Agent) -> None:
    """Name a limit in WELCOME that only the STATUS exceeds."""
    broker = seen_by_broker(agent)
    session = agent.open()
    status, frame = session.take(session.send_next(Reset(7)))
    biggest = max(len(session.opened_frame), MIN_REPLY - ABOUT_ERRORS)
    if len(frame) < biggest + ABOUT_ERRORS:
        raise Skipped("its observations are too small for that")
    assert not isinstance(status, Error)
    usual = broker.max_message
    broker.max_message = len(frame) - 1
    try:
        _greet_again(agent)
        session.refused(Reset(7), session.last + 1, Code.TOO_LARGE)
        session.last += 1
    finally:
        broker.max_message = usual
    _greet_again(agent)
    session.reset()


def _greet_again(agent: Agent) -> None:
    """Let the agent send HELLO, which the broker answers with WELCOME."""
    broker = seen_by_broker(agent)
    greeted = len(broker.hellos)
    agent.send(Busy(BusyReason.HELLO, 0.0))
    agent.wait_for(lambda: len(broker.hellos) > greeted or None, "HELLO after BUSY hello")
    # It has read WELCOME before the next request, which follows on the same connection.
