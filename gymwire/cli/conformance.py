"""`gymwire conformance`: check an env agent in any language against docs/protocol.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from gymwire.cli.connection import AgentOptions, naming
from gymwire.cli.output import Json, Output
from gymwire.cli.terminal import printable
from gymwire.conformance import suite
from gymwire.conformance.as_broker import BrokersAgent
from gymwire.conformance.as_learner import LearnersAgent
from gymwire.protocol.errors import ConfigurationError
from gymwire.protocol.security import keys

INDENT = " " * 17


@dataclass(frozen=True, kw_only=True)
class Options(AgentOptions):
    """The options of `gymwire conformance`."""

    address: str | None
    listen: str | None
    insecure: bool
    timeout_s: float
    json: bool


def command(options: Options, output: Output) -> int:
    """Run the checks, and print the outcome of each. Returns the exit status."""
    with _agent(options, output) as agent:
        with output.errors.status("waiting for the env agent …"):
            agent.greet(options.wait_s)
        by = "as its broker" if agent.is_broker else f"through the broker at {options.broker}"
        output.say(printable(f"{agent.address}, {by}"))
        outcomes = []
        for outcome in suite.run(agent):
            outcomes.append(outcome)
            for line in lines(outcome):
                output.say(printable(line))
    counts = Counter(one.status for one in outcomes)
    statuses = (suite.PASSED, suite.FAILED, suite.SKIPPED)
    output.say(", ".join(f"{counts[status]} {status}" for status in statuses))
    output.result(
        address=agent.address,
        **{status: counts[status] for status in statuses},
        checks=[as_json(one) for one in outcomes],
    )
    return 1 if counts[suite.FAILED] else 0


@contextmanager
def _agent(options: Options, output: Output) -> Iterator[BrokersAgent | LearnersAgent]:
    """Yield the env agent under test. Raises ConfigurationError."""
    agent: BrokersAgent | LearnersAgent
    if options.listen is not None:
        with naming(options, "key"):
            key = None if options.key is None else keys.load(options.key)
        with naming(options, "listen"):
            agent, url = suite.as_broker(
                options.listen,
                options.address or "",
                options.timeout_s,
                key=key,
                insecure=options.insecure,
            )
        output.say(f"listening at {url}: let the env agent connect to this URL")
    else:
        if options.address is None:
            raise ConfigurationError(
                "No address given: pass ADDRESS, or set GYMWIRE_ADDRESS; or be the broker of the "
                "env agent with --listen."
            )
        pair, broker_key = options.credentials()
        agent = suite.as_learner(
            options.broker, options.address, options.timeout_s, key=pair, broker_key=broker_key
        )
    try:
        yield agent
    finally:
        agent.wire.close()


def lines(outcome: suite.Outcome) -> Iterator[str]:
    """Yield the lines of a report about a check."""
    why = f" ({outcome.reason})" if outcome.reason else ""
    yield f"{outcome.status:8} §{outcome.clause:7} {outcome.check.title}{why}"
    if outcome.status == suite.FAILED:
        yield f"{INDENT} expected  {outcome.expected}"
        yield f"{INDENT} got       {outcome.actual}"
        yield f"{INDENT} sent      {suite.cut(outcome.sent) or 'nothing'}"
        yield f"{INDENT} received  {suite.cut(outcome.received) or 'nothing'}"


def as_json(outcome: suite.Outcome) -> dict[str, Json]:
    """Return what is known of a check, as docs/reference/command.md describes it."""
    found: dict[str, Json] = {
        "clause": outcome.clause,
        "title": outcome.check.title,
        "status": outcome.status,
    }
    if outcome.status == suite.SKIPPED:
        found["reason"] = outcome.reason
    if outcome.status == suite.FAILED:
        found |= {"expected": outcome.expected, "actual": outcome.actual}
        found |= {"sent": outcome.sent.hex(), "received": outcome.received.hex()}
    return found
