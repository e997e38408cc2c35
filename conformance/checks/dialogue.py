"""Requests and their replies (§5), and what an environment raises (§12)."""

from __future__ import annotations

from gymwire.conformance.agent import Agent
from gymwire.conformance.check import Check, Skipped, check, expect
from gymwire.conformance.session import Session
from gymwire.protocol.messages import (
    Act,
    Close,
    Closed,
    Code,
    Error,
    Percept,
    Render,
    Reset,
    Result,
    Status,
)

CHECKS: list[Check] = []
NO_ACTION = "no such action"


@check(CHECKS, "5.1", "answers RESET with STATUS and ACT with PERCEPT")
def episode(agent: Agent) -> None:
    """Reset and step."""
    session = agent.open()
    session.reset()
    session.step()


@check(CHECKS, "5.2", "refuses ACT before RESET, and does not count it")
def act_first(agent: Agent) -> None:
    """Step at once, then reset."""
    session = agent.open()
    session.refused(session.act(), 1, Code.PROTOCOL)
    session.reset()


@check(CHECKS, "5.2", "neither executes nor counts a reply that it is sent")
def no_requests(agent: Agent) -> None:
    """Send messages of the dialogue that are not requests, then a request of the same number."""
    session = agent.open()
    session.send(Result(None), 1)
    session.send(Error(Code.DENIED, "this is not a request"), 1)
    request = session.send_next(Reset(7))
    while True:
        header, frame = session.receive("STATUS in answer to RESET")
        message = session.read(header, frame)
        if isinstance(message, Status):
            return
        fine = isinstance(message, Error) and message.code == Code.PROTOCOL and request
        expect(fine, "nothing, or ERROR protocol; and STATUS", message)


@check(CHECKS, "5.1", "ends the session with CLOSE, and answers CLOSE again")
def close(agent: Agent) -> None:
    """Close twice, with a request in between."""
    session = agent.open()
    session.reset()
    session.must(Close())
    session.refused(Reset(), session.last + 1, Code.SESSION_LOST)
    answer = session.answer(Close(), session.last + 1)
    expect(answer == Closed(), "CLOSED", answer, "7.2")


@check(CHECKS, "5.1", "answers RENDER with FRAME or ERROR, and counts it")
def render(agent: Agent) -> None:
    """Render without a render mode."""
    session = agent.open()
    session.reset()
    _failed(session.ask(Render()), optional=True)
    session.step()


@check(CHECKS, "5.1", "renders in each mode that it announces")
def render_modes(agent: Agent) -> None:
    """Open with each render mode that opens no window, and render."""
    modes = agent.open().opened.metadata.get("render_modes") or []
    quiet = [mode for mode in modes if mode != "human"]
    if not quiet:
        raise Skipped("it announces no render mode")
    rendered = 0
    for mode in quiet:
        session = agent.try_open(render_mode=mode)
        if isinstance(session, Session):
            session.reset()
            rendered += not isinstance(_failed(session.ask(Render()), optional=True), Error)
            session.step()
            session.must(Close())
    if not rendered:
        raise Skipped(f"none of its render modes can be used now: {', '.join(quiet)}")


@check(CHECKS, "7.1", "numbers the requests of each session by themselves")
def two_sessions(agent: Agent) -> None:
    """Use two sessions in turn."""
    if agent.capacity < 2:
        raise Skipped("it takes one session at a time")
    one, other = agent.open(), agent.open()
    one.reset()
    one.step()
    other.reset()
    one.step()
    other.step()


@check(CHECKS, "12.1", "answers what the environment raises with ERROR, and counts it")
def raising(agent: Agent) -> None:
    """Step with an action that hardly any environment takes."""
    session = agent.open()
    session.reset()
    answer = session.ask(Act(NO_ACTION))
    if isinstance(answer, Percept):
        raise Skipped("its environment takes any action")
    _failed(answer)
    session.reset()


def _failed(answer: object, *, optional: bool = False) -> object:
    """Check that an answer is ERROR environment-failed, or, if that is optional, no ERROR."""
    if optional and not isinstance(answer, Error):
        return answer
    is_failure = isinstance(answer, Error) and answer.code == Code.ENVIRONMENT_FAILED
    expect(is_failure, f"ERROR {Code.ENVIRONMENT_FAILED}", answer)
    assert isinstance(answer, Error)
    for name in ("type", "traceback"):
        is_text = isinstance(answer.details.get(name), str)
        expect(is_text, f"details with a text as `{name}`", answer.details, "12.1")
    return answer
