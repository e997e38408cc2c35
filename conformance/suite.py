"""Run the checks with one env agent, and report what was found."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from gymwire.conformance.agent import Agent
from gymwire.conformance.as_broker import BrokersAgent
from gymwire.conformance.as_learner import LearnersAgent
from gymwire.conformance.check import Check, Silence, Skipped, Violation
from gymwire.conformance.checks import CHECKS
from gymwire.conformance.wires import BrokerWire, LearnerWire
from gymwire.protocol.security.keys import KeyPair

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
MOST_SILENT = 3  # checks in a row without an answer; after that, none is run
SHOWN_BYTES = 64  # of a frame in a report


@dataclass(frozen=True)
class Outcome:
    """How a check has ended.

    Attributes:
        clause: the clause that was violated, or that of the check.
        reason: why the check was skipped.
        sent, received: the last frame of the suite, and of the env agent, in a failed check.
    """

    check: Check
    status: str
    clause: str
    reason: str = ""
    expected: str = ""
    actual: str = ""
    sent: bytes = b""
    received: bytes = b""


def run(agent: Agent, checks: Iterable[Check] = CHECKS) -> Iterator[Outcome]:
    """Run the checks, and yield the outcome of each when it is known."""
    silent = 0
    for one in checks:
        if one.as_broker and not agent.is_broker:
            why = "only the broker of an env agent sees it: use --listen"
            yield Outcome(one, SKIPPED, one.clause, why)
        elif silent == MOST_SILENT:
            yield Outcome(one, SKIPPED, one.clause, "the env agent does not answer anymore")
        else:
            outcome, was_silent = run_one(agent, one)
            silent = silent + 1 if was_silent else 0
            yield outcome


def run_one(agent: Agent, one: Check) -> tuple[Outcome, bool]:
    """Run a check. Returns its outcome, and whether the env agent was silent."""
    agent.begin()
    try:
        one.run(agent)
    except Skipped as skipped:
        return Outcome(one, SKIPPED, one.clause, str(skipped)), False
    except Violation as found:
        frames = agent.sent, agent.received
        texts = found.expected, found.actual
        clause = found.clause or one.clause
        return Outcome(one, FAILED, clause, "", *texts, *frames), isinstance(found, Silence)
    finally:
        agent.end()
    return Outcome(one, PASSED, one.clause), False


def cut(frame: bytes) -> str:
    """Return the first bytes of a frame as hexadecimal digits."""
    more = f" … ({len(frame)} bytes)" if len(frame) > SHOWN_BYTES else ""
    return frame[:SHOWN_BYTES].hex(" ") + more


def as_broker(
    url: str,
    address: str,
    timeout_s: float,
    *,
    key: KeyPair | None = None,
    insecure: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[BrokersAgent, str]:
    """Listen for an env agent. Returns it, before it has come, and the URL to dial."""
    wire = BrokerWire(url, key, insecure=insecure)
    return BrokersAgent(wire, clock, timeout_s, address), wire.url


def as_learner(
    url: str,
    address: str,
    timeout_s: float,
    *,
    key: KeyPair | None = None,
    broker_key: bytes | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> LearnersAgent:
    """Return the env agent at an address of a broker."""
    return LearnersAgent(LearnerWire(url, key, broker_key), clock, timeout_s, address)
