"""Values, and where arrays are in a frame (§3.9, §10, §11)."""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
from gymnasium.spaces import Box

from gymwire.conformance.agent import Agent
from gymwire.conformance.check import Check, Skipped, check, expect
from gymwire.conformance.checks.exactly_once import SEED, STEPS, reference, same_episode
from gymwire.conformance.session import Session
from gymwire.protocol import values
from gymwire.protocol.arrays import LARGE, Tail, dtype_to_text
from gymwire.protocol.codec import PLAIN, encode_packed, join
from gymwire.protocol.messages import Code, Error, Kind, Percept, Reset, Status

CHECKS: list[Check] = []
ARRAY = 1  # the extension type of an array
SMALL, BIG = np.arange(3, dtype=np.float32), np.arange(LARGE, dtype=np.float32)
OPTIONS: dict[Any, Any] = {
    "tuple": (1, [2.0, None, True]),
    "scalar": np.float32(1.5),
    "large integer": 2**100,
    "infinity": float("inf"),
    "bytes": b"\x00\xff",
    "text": "±",
    7: "an integer as a key",
}


def accepted(answer: object, what: str) -> None:
    """Check that a RESET was understood; the environment itself may refuse its options."""
    refused = isinstance(answer, Error) and answer.code == Code.ENVIRONMENT_FAILED
    expect(refused or isinstance(answer, Status), f"{what}, and STATUS", answer)


@check(CHECKS, "11.8", "takes actions in self-describing form")
def self_describing(agent: Agent) -> None:
    """Play an episode in this form, and compare it with one in compact form."""
    session = agent.open()
    session.reset()
    session.must(session.act(), PLAIN)
    expected = reference(agent)
    same_episode(expected, agent.open().episode(SEED, STEPS, codec=PLAIN))


@check(CHECKS, "11.8", "takes actions in compact form")
def compact(agent: Agent) -> None:
    """Step once, if the action space has this form."""
    session = agent.open()
    action = session.act()
    plain = PLAIN.encode(action, session.sid, 2)
    if session.codec.encode(action, session.sid, 2) == plain:
        raise Skipped("the action space has no compact form")
    session.reset()
    session.must(action)


@check(CHECKS, "10.1", "takes values of many types")
def many_types(agent: Agent) -> None:
    """Send them as options of RESET."""
    session = agent.open()
    accepted(session.ask(Reset(7, OPTIONS)), "options of several types are accepted")
    session.reset()


@check(CHECKS, "10.3", "takes large arrays in the tail and in the head")
def large_arrays(agent: Agent) -> None:
    """Send one as an option of RESET, both ways."""
    session = agent.open()
    options = {"array": BIG, "other": BIG}
    accepted(session.ask(Reset(7, options)), "arrays in the tail are accepted")
    session.last += 1
    head = values.encode([7, options])
    request = bytes(encode_packed(Reset(), head, session.sid, session.last))
    session.send_frame(request, session.last)
    accepted(session.take(request)[0], "arrays in the head are accepted")
    session.reset()


@check(CHECKS, "10.3", "takes small arrays in the tail")
def small_arrays(agent: Agent) -> None:
    """Send two as options of RESET, and an action if that is an array."""
    session = agent.open()
    tail = Tail()
    fields = [7, {"array": in_tail(SMALL, tail), "other": in_tail(SMALL, tail)}]
    answer = _ask(session, Kind.RESET, fields, tail)
    accepted(answer, "small arrays in the tail are accepted")
    session.reset()
    if isinstance(session.action_space, Box):
        action, tail = session.act().action, Tail()
        answer = _ask(session, Kind.ACT, [in_tail(action, tail)], tail)
        expect(isinstance(answer, Percept), "an action in the tail, and PERCEPT", answer)


def in_tail(array: np.ndarray[Any, Any], tail: Tail) -> msgpack.ExtType:
    """Return an array whose bytes are in the tail."""
    body = [dtype_to_text(array.dtype), [*array.shape], tail.add(array)]
    return msgpack.ExtType(ARRAY, msgpack.packb(body))


def _ask(session: Session, kind: Kind, fields: list[Any], tail: Tail) -> object:
    """Do the next request, whose fields are ready for MessagePack."""
    session.last += 1
    head = msgpack.packb(fields)
    request = bytes(join(kind, 0, head, tail, session.sid, session.last))
    session.send_frame(request, session.last)
    return session.take(request)[0]
