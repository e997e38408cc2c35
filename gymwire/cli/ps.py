"""`gymwire ps`: print once what `gymwire top` shows."""

from __future__ import annotations

from dataclasses import dataclass

from rich.text import Text

from gymwire.cli.connection import LearnerOptions, connected
from gymwire.cli.observed import counter_line, offer_lines, session_lines, summary_lines
from gymwire.cli.output import Json, Output
from gymwire.learner_agent.client.observing import Observation, observe


@dataclass(frozen=True, kw_only=True)
class Options(LearnerOptions):
    """The options of `gymwire ps`."""


def command(options: Options, output: Output) -> int:
    """Print the broker's offers, sessions and counters. Returns the exit status."""
    with connected(options) as connection:
        found = observe(connection)
    output.result(**as_json(found, options.broker))
    console = output.text
    width = console.width if console.is_terminal else None
    for text in (*summary_lines(found, options.broker), counter_line(found.broker)):
        output.say(text)
    lines = [*offer_lines(found.offers, width)] if found.offers else []
    lines += [Text(""), *session_lines(found.sessions, width)] if found.sessions else []
    for line in (Text(""), *lines) if lines else ():
        console.print(line, soft_wrap=True)
    return 0


def as_json(found: Observation, url: str) -> dict[str, Json]:
    """Return the observation as docs/reference/command.md describes it."""
    found_json = found.as_json()
    return {"broker": url, "totals": found_json.pop("broker"), **found_json}
