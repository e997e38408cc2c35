"""What a broker knows as lines of text: the tables of `gymwire ps` and `gymwire top`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.text import Text

from gymwire.cli.terminal import columns, counted, one_line
from gymwire.learner_agent.client.observing import (
    BrokerTotals,
    Observation,
    ObservedOffer,
    ObservedSession,
)
from gymwire.protocol.process_ids import SESSION_ID

SHORT_ID = 8  # characters of a session's id, unless two begin alike
LONG_STEP_S = 1.0  # a step that takes longer than this, and than ten usual ones, is conspicuous
NONE = "-"


@dataclass(frozen=True)
class Column:
    """A column of the table of sessions.

    Attributes:
        heading: its heading, whose first letter or digit is the key that sorts by it in `top`.
        key: that key.
        text: the text of a session.
        order: what to sort by.
        is_number: whether it is aligned to the right, and sorted from the largest number down.
        is_shortened: whether it may be shortened.
        rank: in a narrow terminal the columns with the highest rank are left out first.
    """

    heading: str
    key: str
    text: Callable[[ObservedSession], str]
    order: Callable[[ObservedSession], float | str]
    is_number: bool = False
    is_shortened: bool = False
    rank: int = 0


def duration(seconds: float | None) -> str:
    """Return a duration in at most five characters, such as 1.2ms, 35s or 4h."""
    if seconds is None:
        return NONE
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size and seconds < 100:
            number = seconds / size
            return f"{number:.1f}{unit}" if number < 10 else f"{number:.0f}{unit}"
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("m", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return "0s"


def amount(number: float | None) -> str:
    """Return a number in at most five characters, such as 12, 1.2k or 340M."""
    if number is None:
        return NONE
    if 0 < number < 10 and number != int(number):
        return f"{number:.1f}"
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            scaled = number / size
            return f"{scaled:.1f}{unit}" if scaled < 10 else f"{scaled:.0f}{unit}"
    return f"{number:.0f}"


def _process(host: str | None, pid: int | None) -> str:
    return f"{host or '?'}:{pid or '?'}"


def _learner(one: ObservedSession) -> str:
    if one.learner is None:
        return one.identity or NONE
    name = "" if one.learner == "anyone" else f"{one.learner}@"
    return f"{name}{_process(one.learner_host, one.learner_pid)}"


def _agent(one: ObservedSession) -> str:
    return _process(one.host, one.pid)


def _path(one: ObservedSession) -> str:
    if one.state != "open":
        return one.state
    return {True: "direct", False: "relayed", None: "open"}[one.direct]


def _or_zero(number: float | None) -> float:
    return 0.0 if number is None else number


COLUMNS = (
    Column("address", "a", lambda one: one.address, lambda one: one.address, is_shortened=True),
    Column("learner", "l", _learner, _learner, is_shortened=True),
    Column("env agent", "e", _agent, _agent, is_shortened=True, rank=3),
    Column("path", "p", _path, _path, rank=1),
    Column(
        "age", "g", lambda one: duration(one.age_s), lambda one: one.age_s, is_number=True, rank=2
    ),
    Column(
        "steps",
        "s",
        lambda one: amount(one.steps),
        lambda one: _or_zero(one.steps),
        is_number=True,
        rank=4,
    ),
    Column(
        "steps/s",
        "r",
        lambda one: amount(one.steps_per_s),
        lambda one: _or_zero(one.steps_per_s),
        is_number=True,
    ),
    Column(
        "now",
        "n",
        lambda one: duration(one.in_step_s),
        lambda one: _or_zero(one.in_step_s),
        is_number=True,
    ),
    Column(
        "p50",
        "5",
        lambda one: duration(one.p50_s),
        lambda one: _or_zero(one.p50_s),
        is_number=True,
    ),
    Column(
        "p99",
        "9",
        lambda one: duration(one.p99_s),
        lambda one: _or_zero(one.p99_s),
        is_number=True,
    ),
)
OFFER_HEADINGS = ("env agent", "address", "environment", "host", "pid", "used", "state")


def is_conspicuous(one: ObservedSession) -> bool:
    """Return whether the current step takes much longer than usual."""
    now = _or_zero(one.in_step_s)
    return now >= LONG_STEP_S and now >= 10 * _or_zero(one.p99_s)


def session_lines(
    sessions: Sequence[ObservedSession], width: int | None, sort: Column | None = None
) -> list[Text]:
    """Return the table of these sessions, one line each below the headings.

    `width`: columns are shortened and left out until a line fits; None: they are not. `sort`: the
    column that is marked as the one by which they are sorted.
    """
    length = _id_length(sessions)
    shown = list(COLUMNS)
    while True:
        rows = [["session", *(one.heading for one in shown)]]
        rows += [
            [one.id[:length], *(one_line(column.text(one)) for column in shown)] for one in sessions
        ]
        _align(rows, [False, *(column.is_number for column in shown)])
        shortened = [number for number, one in enumerate(shown, 1) if one.is_shortened]
        lines = columns(rows, width=width, shortened=shortened)
        last = max(shown, key=lambda column: column.rank)
        if width is None or not last.rank or max(map(cell_len, lines)) <= width:
            break
        shown.remove(last)
    styled = [Text(lines[0], style="bold")]
    if sort is not None:
        styled[0].highlight_words([sort.heading], style="reverse")
    for one, line in zip(sessions, lines[1:], strict=True):
        style = "yellow" if is_conspicuous(one) else "dim" if one.state != "open" else ""
        styled.append(Text(line, style=style))
    return styled


def offer_lines(offers: Sequence[ObservedOffer], width: int | None) -> list[Text]:
    """Return the table of these offers, one line for each address and process.

    The workers of an env agent follow each other.
    """
    offers = sorted(offers, key=lambda one: (one.address, one.agent, one.pid or 0))
    rows = [list(OFFER_HEADINGS)]
    rows += [
        [
            one.agent or NONE,
            one.address,
            one.env_id,
            one.host,
            str(one.pid or "?"),
            f"{one.used}/{one.slots}",
            f"{one.state}, {one.stuck} stuck" if one.stuck else one.state,
        ]
        for one in offers
    ]
    rows = [[one_line(cell) for cell in row] for row in rows]
    lines = columns(rows, width=width, shortened=(1, 2, 3))
    styles = ["bold", *("" if one.state == "ready" else "yellow" for one in offers)]
    return [Text(line, style=style) for line, style in zip(lines, styles, strict=True)]


def summary_lines(found: Observation, url: str) -> list[str]:
    """Return two lines about the broker as a whole."""
    broker, sessions = found.broker, found.sessions
    stuck, direct = (
        sum(one.stuck for one in found.offers),
        sum(bool(one.direct) for one in sessions),
    )
    facts = [
        counted(len({one.address for one in found.offers}), "address", "addresses"),
        counted(len({one.agent for one in found.offers}), "env agent"),
        f"{counted(len(sessions), 'session')} ({direct} direct)",
        f"{amount(sum(_or_zero(one.steps_per_s) for one in sessions))} steps/s",
    ]
    if stuck:
        facts.append(f"{stuck} stuck")
    return [
        f"{url}  {one_line(broker.software)}  up {duration(broker.uptime_s)}",
        ", ".join(facts),
    ]


def counter_line(broker: BrokerTotals) -> str:
    """Return the counters since the broker's start in one line."""
    parts = [
        f"relayed {amount(broker.frames)} frames, {amount(broker.bytes)}B",
        f"sessions opened {broker.sessions_opened + broker.sessions_recovered}",
        f"closed {broker.sessions_closed}",
    ]
    counts: Mapping[str, Mapping[str, int]] = {
        "lost": broker.sessions_lost,
        "refused": broker.refusals,
        "busy": broker.busy,
        "dropped": broker.dropped,
    }
    for name, by_reason in counts.items():
        if by_reason:
            reasons = ", ".join(
                f"{one_line(reason)} {count}" for reason, count in sorted(by_reason.items())
            )
            parts.append(f"{name} {sum(by_reason.values())} ({reasons})")
    return "; ".join(parts)


def _id_length(sessions: Sequence[ObservedSession]) -> int:
    """Return how many characters tell the ids of these sessions apart."""
    for length in range(SHORT_ID, SESSION_ID):
        if len({one.id[:length] for one in sessions}) == len(sessions):
            return length
    return SESSION_ID


def _align(rows: list[list[str]], is_number: Sequence[bool]) -> None:
    for index, right in enumerate(is_number):
        if right:
            size = max(cell_len(row[index]) for row in rows)
            for row in rows:
                row[index] = " " * (size - cell_len(row[index])) + row[index]
