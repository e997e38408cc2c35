"""Time stamps (§8)."""

from __future__ import annotations

from gymwire.conformance.agent import Agent
from gymwire.conformance.audit import header_of
from gymwire.conformance.check import Check, Skipped, check, expect
from gymwire.protocol import stamps
from gymwire.protocol.codec import TIMED
from gymwire.protocol.messages import Percept

CHECKS: list[Check] = []


@check(CHECKS, "8.2", "puts time stamps into the PERCEPT that answers a timed ACT")
def stamped(agent: Agent) -> None:
    """Ask for stamps, and repeat the request with other stamps of the broker."""
    session = agent.open()
    if session.opened.limits.get("stamps") is not True:
        raise Skipped("it announces no `stamps`")
    session.reset()
    seq = session.last + 1
    plain = session.codec.encode(session.act(), session.sid, seq)
    request = bytes(stamps.request_stamps(plain))
    session.last = seq
    session.send_frame(request, seq)
    percept, first = session.reply(seq, "PERCEPT")
    expect(isinstance(percept, Percept), "PERCEPT", percept)
    expect(header_of(first).flags & TIMED, "the flag TIMED", f"flags {header_of(first).flags:#04x}")
    if agent.is_broker:
        times = stamps.strip_reply(first)[1]
        own = [times.reply_received, times.reply_sent]
        expect(own == [0, 0], "zeros where the broker writes its stamps", own, "8.3")
    broker_stamps = b"\x01" * stamps.REQUEST_SIZE
    session.send_frame(request[: -stamps.REQUEST_SIZE] + broker_stamps, seq)
    again, frame = session.reply(seq, "the kept reply")
    if agent.is_broker:
        expect(frame == first, "the kept reply, though the broker's stamps differ", again, "8.6")
    expect(isinstance(again, Percept), "the PERCEPT again", again, "8.6")
