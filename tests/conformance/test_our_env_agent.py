"""Our own env agent passes, at the suite and through a broker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gymwire.conformance import suite
from gymwire.conformance.agent import Agent
from gymwire.conformance.check import Check
from gymwire.conformance.checks import CHECKS
from tests.conformance.agents import ADDRESS, ENV, EXPOSED, rich_agent
from tests.processes import PATIENCE_S, programs

# Of the checks that do not apply, each is of another env agent.
SKIPPED = {"refuses a render mode if it has none"}


def passes(agent: Agent, one: Check, skipped: set[str]) -> None:
    outcome, _ = suite.run_one(agent, one)
    assert outcome.status != suite.FAILED, outcome
    assert (outcome.status == suite.SKIPPED) == (one.title in skipped), outcome


@pytest.fixture(name="dialed", scope="module")
def _dialed() -> Iterator[Agent]:
    with rich_agent() as agent:
        yield agent


@pytest.fixture(name="through_broker", scope="module")
def _through_broker() -> Iterator[Agent]:
    with programs() as started:
        _, url = started.broker()
        started.env_agent(url, ADDRESS, ENV, "--max-sessions", "4", *EXPOSED)
        agent = suite.as_learner(url, ADDRESS, PATIENCE_S)
        agent.greet(PATIENCE_S)
        yield agent
        agent.wire.close()


# One test for all checks, because the last ones look at what has come during the others.
def test_over_sockets(dialed: Agent) -> None:
    for one in CHECKS:
        passes(dialed, one, SKIPPED)


def test_through_a_broker(through_broker: Agent) -> None:
    for one in CHECKS:
        if not one.as_broker:
            passes(through_broker, one, SKIPPED)
