"""Each request is executed exactly once (§7)."""

from __future__ import annotations

from gymwire.conformance.agent import Agent
from gymwire.conformance.check import Check, Skipped, check, expect
from gymwire.conformance.session import Session
from gymwire.protocol.codec import HEADER_SIZE
from gymwire.protocol.messages import (
    Close,
    Closed,
    Code,
    Error,
    Gone,
    Message,
    Reset,
)

CHECKS: list[Check] = []
SEED = 11
STEPS = 6
UNPACKABLE = b"\xc1"  # the one byte that MessagePack never uses
STRANGE_SID = 12345


def reference(agent: Agent) -> list[bytes]:
    """Return an episode that another session repeats with the same seed. Raises Skipped."""
    episodes = []
    for _ in range(2):
        session = agent.open()
        episodes.append(session.episode(SEED, STEPS))
        session.must(Close())
    if episodes[0] != episodes[1]:
        raise Skipped("its environment is not deterministic, so that this cannot be seen")
    return episodes[0]


def same_episode(expected: list[bytes], actual: list[bytes], clause: str = "") -> None:
    """Check that two episodes are equal; the text names the first difference."""
    for number, (one, other) in enumerate(zip(expected, actual, strict=False)):
        text = f"reply {number + 1} of the episode, {one.hex():.80}"
        expect(one == other, text, f"{other.hex():.80}", clause)
    expect(len(actual) == len(expected), f"{len(expected)} replies", len(actual), clause)


@check(CHECKS, "7.2", "answers a repeated request with the same bytes")
def repeated(agent: Agent) -> None:
    """Repeat a step three times."""
    session = agent.open()
    session.reset()
    request = session.send_next(session.act())
    _, first = session.take(request)
    for _ in range(3):
        session.send_frame(request, session.last)
        message, again = session.reply(session.last, "the reply again")
        expect(again == first, f"the same reply again, {first.hex():.80}", message)


@check(CHECKS, "7.2", "does not execute a repeated request again")
def not_executed_again(agent: Agent) -> None:
    """Repeat each step of an episode, which must not differ from one without."""
    expected = reference(agent)
    session = agent.open()
    session.action_space.seed(SEED)
    actual = []
    for number in range(len(expected)):
        request = session.send_next(session.act() if number else Reset(SEED))
        actual.append(session.take(request)[1][HEADER_SIZE:])
        session.send_frame(request, session.last)
        session.reply(session.last, "the reply again")
    same_episode(expected, actual)


@check(CHECKS, "7.2", "executes a request once that is repeated while it executes")
def repeated_at_once(agent: Agent) -> None:
    """Send each request of an episode twice without waiting, then the next one."""
    expected = reference(agent)
    session = agent.open()
    session.action_space.seed(SEED)
    actual: list[bytes] = []
    for number in range(len(expected)):
        request = session.send_next(session.act() if number else Reset(SEED))
        session.send_frame(request, session.last)
        actual.append(_after(session, actual))
    same_episode(expected, actual)


def _after(session: Session, before: list[bytes]) -> bytes:
    """Return the body of the next reply; the one before it may arrive again."""
    while True:
        header, frame = session.receive(f"a reply to the request {session.last}")
        message = session.read(header, frame)
        if header.seq == session.last:
            return frame[HEADER_SIZE:]
        repeats = before and header.seq == session.last - 1 and frame[HEADER_SIZE:] == before[-1]
        expect(repeats, f"the reply {session.last}, or the one before it again", message)


@check(CHECKS, "7.2", "refuses other content under the last number")
def other_content(agent: Agent) -> None:
    """Send another request with the number of the last one."""
    session = agent.open()
    session.reset(7)
    session.refused(Reset(8), session.last, Code.PROTOCOL)
    session.step()


@check(CHECKS, "7.2", "drops requests with older numbers")
def older(agent: Agent) -> None:
    """Send the request before the last again, then the next one."""
    session = agent.open()
    old = session.send_next(Reset(7))
    session.take(old)
    session.step()
    session.send_frame(old, 1)
    session.step()


@check(CHECKS, "7.2", "refuses a number that is too high, and names the expected one")
def skipped_number(agent: Agent) -> None:
    """Skip three numbers, then send the expected one."""
    session = agent.open()
    session.reset()
    error = session.refused(session.act(), session.last + 4, Code.EXPECTED)
    number = error.details.get("expected")
    expect(number == session.last + 1, f'details {{"expected": {session.last + 1}}}', error)
    session.step()


@check(CHECKS, "7.2", "keeps two requests that arrive at once in order")
def two_at_once(agent: Agent) -> None:
    """Send a step and CLOSE without waiting, and those again that are expected."""
    session = agent.open()
    session.reset()
    step = session.last + 1
    frames = {step: session.send(session.act(), step), step + 1: session.send(Close(), step + 1)}
    expected = step
    while expected <= step + 1:
        header, frame = session.receive(f"a reply to the request {expected}")
        message = session.read(header, frame)
        if isinstance(message, Error) and message.code == Code.EXPECTED:
            number = message.details.get("expected")
            expect(number in (step, step + 1), f"expected {step} or {step + 1}", message)
            for again in range(int(number or 0), step + 2):
                session.send_frame(frames[again], again)
        elif header.seq == expected:
            expected += 1
        else:
            repeats = header.seq == step and expected == step + 1
            expect(repeats, f"a reply to the request {expected}", message)
    expect(message == Closed(), "CLOSED in answer to CLOSE", message)


@check(CHECKS, "7.2", "does not know a session that was never opened", as_broker=True)
def unknown_session(agent: Agent) -> None:
    """Send a request and CLOSE in a session that nobody has opened."""
    agent.receive_for(STRANGE_SID)
    agent.send(Reset(), STRANGE_SID, 1)
    error = agent.message_for(STRANGE_SID, "ERROR session-lost")
    is_lost = isinstance(error, Error) and error.code == Code.SESSION_LOST
    expect(is_lost, f"ERROR {Code.SESSION_LOST}", error)
    agent.send(Close(), STRANGE_SID, 2)
    answer = agent.message_for(STRANGE_SID, "CLOSED")
    expect(answer == Closed(), "CLOSED", answer)


@check(CHECKS, "7.3", "counts a request that cannot be decoded, and refuses it")
def undecodable(agent: Agent) -> None:
    """Send RESET with a head that is not MessagePack, then the next request."""
    session = agent.open()
    good = bytes(session.codec.encode(Reset(7), session.sid, 1))
    session.send_frame(good[:HEADER_SIZE] + UNPACKABLE * (len(good) - HEADER_SIZE), 1)
    session.last = 1
    answer = session.reply(1, "ERROR protocol")[0]
    is_refusal = isinstance(answer, Error) and answer.code == Code.PROTOCOL
    expect(is_refusal, f"ERROR {Code.PROTOCOL}", answer)
    session.reset()


@check(CHECKS, "7.12", "forgets a session that is gone", as_broker=True)
def gone(agent: Agent) -> None:
    """Send GONE, then a request."""
    session = agent.open()
    session.reset()
    agent.send(Gone("the learner has left"), session.sid)
    session.refused(session.act(), session.last + 1, Code.SESSION_LOST)


@check(CHECKS, "7.12", "survives GONE while it executes a request", as_broker=True)
def gone_while_executing(agent: Agent) -> None:
    """Send a step and GONE without waiting, then another request, and open another session."""
    session = agent.open()
    session.reset()
    session.send_next(session.act())
    agent.send(Gone("the learner has left"), session.sid)
    session.send(Reset(), session.last + 1)
    while True:
        header, frame = session.receive(f"ERROR {Code.SESSION_LOST}")
        message: Message = session.read(header, frame)
        if header.seq == session.last + 1:
            break
        expect(header.seq == session.last, f"a reply to {session.last} or none", message)
    is_lost = isinstance(message, Error) and message.code == Code.SESSION_LOST
    expect(is_lost, f"ERROR {Code.SESSION_LOST}", message)
    agent.open().reset()
