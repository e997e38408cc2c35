"""CALL in all its forms (§4.1)."""

from __future__ import annotations

from gymwire.conformance.agent import Agent
from gymwire.conformance.check import Check, Skipped, check, expect
from gymwire.conformance.session import Session
from gymwire.protocol import values
from gymwire.protocol.messages import Call, Code, Error, Result

CHECKS: list[Check] = []
DENIED = "__dict__"
GENERATOR = "np_random"
FAILURES = (Code.ENVIRONMENT_FAILED, Code.ENCODING, Code.TOO_LARGE)


def names_of(session: Session) -> list[str]:
    """Return the exposed attributes. Raises Skipped."""
    names = session.opened.limits.get("attributes") or []
    if not names:
        raise Skipped("it exposes no attributes")
    return [*names]


def result(answer: object) -> Result | None:
    """Return the RESULT; None for an ERROR that an exposed attribute may have."""
    is_failure = isinstance(answer, Error) and answer.code in FAILURES
    expect(is_failure or isinstance(answer, Result), "RESULT, or the environment's error", answer)
    return answer if isinstance(answer, Result) else None


def read_all(session: Session) -> list[tuple[str, object]]:
    """Read each exposed attribute. Returns names, and the maps that RESULT has."""
    read: list[tuple[str, object]] = []
    for name in names_of(session):
        found = result(session.ask(Call("get", name)))
        if found is not None:
            fine = isinstance(found.value, dict) and (
                {*found.value} == {"value"} or found.value == {"method": True}
            )
            expect(fine, '{"value": v} or {"method": true}', found)
            read.append((name, found.value))
    return read


@check(CHECKS, "12.1", "denies an attribute that it does not expose, in each mode")
def denied(agent: Agent) -> None:
    """Get, set and call it."""
    session = agent.open()
    for call in (Call("get", DENIED), Call("set", DENIED, (1,)), Call("call", DENIED)):
        answer = session.ask(call)
        is_denied = isinstance(answer, Error) and answer.code == Code.ATTRIBUTE_DENIED
        expect(is_denied, f"ERROR {Code.ATTRIBUTE_DENIED} to {call.mode}", answer)
    session.reset()


@check(CHECKS, "4.1", "reads each attribute that it exposes")
def get(agent: Agent) -> None:
    """Get each of them; one that cannot be read or encoded is an ERROR that counts."""
    session = agent.open()
    session.reset()
    read_all(session)
    session.step()


@check(CHECKS, "4.1", "sets attributes that it exposes")
def set_(agent: Agent) -> None:
    """Set each of them to the value that it has."""
    session = agent.open()
    session.reset()
    count = 0
    for name, found in read_all(session):
        if isinstance(found, dict) and "value" in found and name != GENERATOR:
            answer = result(session.ask(Call("set", name, (found["value"],))))
            count += 1
            expect(answer is None or answer.value is None, "RESULT with nil", answer)
    if not count:
        raise Skipped("it exposes no attribute with a value")
    session.reset()


@check(CHECKS, "4.1", "calls methods that it exposes")
def call(agent: Agent) -> None:
    """Call each with a keyword argument that hardly any method takes."""
    session = agent.open()
    session.reset()
    methods = [name for name, found in read_all(session) if found == {"method": True}]
    if not methods:
        raise Skipped("it exposes no methods")
    for name in methods:
        result(session.ask(Call("call", name, (), {"no_such_argument": 1})))
    session.reset()


@check(CHECKS, "4.1.1", "reads and writes the state of its random generator")
def generator(agent: Agent) -> None:
    """Write the state that was read."""
    session = agent.open()
    if GENERATOR not in names_of(session):
        raise Skipped("it does not expose the generator")
    session.reset()
    states = []
    for _ in range(2):
        found = result(session.ask(Call("get", GENERATOR)))
        if found is None:
            raise Skipped("its environment has no generator")
        state = found.value.get("value") if isinstance(found.value, dict) else None
        is_state = isinstance(state, dict) and isinstance(state.get("bit_generator"), str)
        expect(is_state, 'a map with a text as "bit_generator"', found)
        states.append(values.encode(state))
        written = session.ask(Call("set", GENERATOR, (state, True)))
        expect(isinstance(written, Result) and written.value is None, "RESULT with nil", written)
    expect(states[0] == states[1], "the state that was written", "another state")
