"""What a check is, and how it ends: it passes, fails with a violation, or is skipped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gymwire.protocol.messages import Error, Message

if TYPE_CHECKING:
    from gymwire.conformance.agent import Agent

MAX_TEXT = 200  # characters of a message in a report

Run = Callable[["Agent"], None]


@dataclass(frozen=True)
class Check:
    """One thing that an env agent must do.

    Attributes:
        clause: the number of the clause of docs/protocol.md that demands it.
        title: what it must do, as a phrase.
        run: does it with an agent; returns if the agent passes. Raises Violation, Skipped.
        as_broker: whether only the broker of the env agent can do it.
    """

    clause: str
    title: str
    run: Run
    as_broker: bool


class Violation(Exception):
    """The env agent violates a clause.

    Attributes:
        expected: what the clause demands.
        actual: what the env agent did.
        clause: the clause, if it is not that of the check.
    """

    def __init__(self, expected: str, actual: str, clause: str = "") -> None:
        super().__init__(f"expected {expected}; got {actual}")
        self.expected, self.actual, self.clause = expected, actual, clause


class Silence(Violation):
    """The env agent did not answer in time."""


class Skipped(Exception):
    """The check does not apply to this env agent; the text says why."""


def expect(ok: object, expected: str, actual: object, clause: str = "") -> None:
    """Raise Violation unless `ok`."""
    if not ok:
        raise Violation(expected, shown(actual), clause)


def shown(value: object) -> str:
    """Return a short text for a message or another value."""
    match value:
        case Error():
            text = f"ERROR {value.code}: {value.text} {value.details or ''}".rstrip()
        case str():
            text = value
        case _ if isinstance(value, Message):
            text = f"{type(value).__name__.upper()} {value!r}"
        case _:
            text = repr(value)
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"


def check(
    into: list[Check], clause: str, title: str, *, as_broker: bool = False
) -> Callable[[Run], Run]:
    """Add a function to a list of checks."""

    def add(run: Run) -> Run:
        into.append(Check(clause, title, run, as_broker))
        return run

    return add
