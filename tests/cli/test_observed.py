"""What `gymwire ps`, `gymwire top` and `gymwire stop` make of an observation."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from rich.cells import cell_len

from gymwire.cli.observed import (
    COLUMNS,
    amount,
    counter_line,
    duration,
    offer_lines,
    session_lines,
    summary_lines,
)
from gymwire.cli.ps import as_json
from gymwire.cli.top import KEYS, View
from gymwire.learner_agent.client.observing import (
    BrokerTotals,
    Observation,
    ObservedOffer,
    ObservedSession,
)
from tests.learner_agent.client.test_observing import BROKER, OFFER, SESSION

HOSTILE = "x\x1b[2J\n\t\u202e" * 20


def a_session(**changes: Any) -> ObservedSession:
    return ObservedSession(**{**SESSION, **changes})


def an_offer(**changes: Any) -> ObservedOffer:
    return ObservedOffer(**{**OFFER, **changes})


def an_observation(*sessions: ObservedSession, **changes: Any) -> Observation:
    return Observation(BrokerTotals(**{**BROKER, **changes}), (an_offer(),), sessions)


def many(count: int) -> list[ObservedSession]:
    return [
        a_session(
            sid=number << 40,
            address=f"lab/{number % 3}",
            learner=f"name-{number}" * 3,
            steps=number**4,
            steps_per_s=float(number),
            age_s=10.0**number,
            p50_s=10.0 ** (number - 7),
            p99_s=10.0 ** (number - 6),
            in_step_s=10.0 ** (number - 6),
            host="a-host-with-a-long-name.example.org",
        )
        for number in range(count)
    ]


# --- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"), (0.0, "0s"), (1e-9, "0s"), (85e-6, "85µs"), (0.00123, "1.2ms"),
        (0.034, "34ms"),
        (0.25, "250ms"), (2.5, "2.5s"), (59.9, "60s"), (99.0, "99s"), (150.0, "2m"), (7200.0, "2h"),
        (200_000.0, "2d"), (1e9, "11574d"),
    ],
)  # fmt: skip
def test_a_duration_is_short(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (None, "-"), (0, "0"), (7, "7"), (0.3, "0.3"), (12.4, "12"), (999, "999"), (1200, "1.2k"),
        (34_000, "34k"), (5_600_000, "5.6M"), (7e9, "7.0G"), (8e13, "80T"),
    ],
)  # fmt: skip
def test_an_amount_is_short(number: float | None, text: str) -> None:
    assert amount(number) == text


# --- tables ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 81, 100, 132, 250])
def test_the_tables_fit_into_a_terminal(width: int) -> None:
    lines = session_lines(many(12), width)
    lines += offer_lines([an_offer(address="lab/" + "x" * 90, host="h" * 90)], width)
    assert max(cell_len(line.plain) for line in lines) <= width


def test_a_wide_terminal_shows_all_columns_and_a_narrow_one_the_important_ones() -> None:
    wide, narrow = (session_lines(many(12), width)[0].plain for width in (None, 80))
    assert all(one.heading in wide for one in COLUMNS)
    important = ("session", "address", "learner", "steps/s", "now", "p50", "p99")
    assert all(heading in narrow for heading in important)
    assert "env agent" not in narrow


def test_ids_are_as_long_as_needed_to_tell_sessions_apart() -> None:
    apart = session_lines([a_session(sid=1 << 60), a_session(sid=2 << 60)], None)
    assert [line.plain.split()[0] for line in apart[1:]] == ["10000000", "20000000"]
    alike = session_lines([a_session(sid=16), a_session(sid=32)], None)
    assert [line.plain.split()[0] for line in alike[1:]] == ["000000000000001", "000000000000002"]


@pytest.mark.parametrize(
    ("changes", "style"),
    [
        ({"in_step_s": 0.9, "p99_s": 0.01}, ""),
        ({"in_step_s": 5.0, "p99_s": 0.01}, "yellow"),
        ({"in_step_s": 5.0, "p99_s": 4.0}, ""),
        ({"in_step_s": 5.0, "p99_s": None}, "yellow"),
        ({"state": "waiting"}, "dim"),
    ],
)
def test_a_step_that_takes_much_longer_than_usual_is_conspicuous(
    changes: dict[str, Any], style: str
) -> None:
    assert session_lines([a_session(**changes)], None)[1].style == style


def test_the_text_of_others_controls_no_terminal() -> None:
    texts = {
        field.name: HOSTILE
        for field in dataclasses.fields(ObservedSession)
        if isinstance(SESSION[field.name], str)
    }
    view = View("tcp://b:1")
    sessions = (a_session(**texts, learner=HOSTILE),)
    offers = (
        an_offer(address=HOSTILE, env_id=HOSTILE, host=HOSTILE, state=HOSTILE, agent=HOSTILE),
    )
    broker = BrokerTotals(**{**BROKER, "software": HOSTILE, "sessions_lost": {HOSTILE: 1}})
    view.update(Observation(broker, offers, sessions), 1.0)
    shown = [line.plain for line in view.lines(100, 20)]
    view.press("o")
    shown += [line.plain for line in view.lines(100, 20)]
    shown += summary_lines(view.found, "u") if view.found else []
    shown.append(counter_line(broker))
    assert not [line for line in shown if not line.isprintable()]


def test_counters_are_shown_with_their_reasons() -> None:
    broker = BrokerTotals(**{**BROKER, "busy": {"rate": 3, "hello": 1}, "sessions_recovered": 2})
    assert counter_line(broker) == (
        "relayed 9 frames, 99B; sessions opened 3; closed 0; lost 2 (learner left 2); "
        "busy 4 (hello 1, rate 3)"
    )


def test_the_json_object_has_ids_as_text() -> None:
    found = as_json(an_observation(a_session()), "tcp://b:1")
    row = {name: value for name, value in SESSION.items() if name != "sid"}
    assert found["sessions"] == [{"id": "0000000000000007", **row}]
    assert found["totals"] == BROKER
    assert found["offers"] == [OFFER]


# --- the view of `top` ----------------------------------------------------------------------------


def shown(view: View, height: int = 24, width: int = 80) -> list[str]:
    lines = [line.plain for line in view.lines(width, height)]
    assert len(lines) == height
    assert max(map(cell_len, lines)) <= width
    return lines


def test_the_keys_fit_into_80_columns() -> None:
    assert max(map(cell_len, KEYS)) <= 80
    assert len({one.key for one in COLUMNS} | set("qou")) == len(COLUMNS) + 3


@pytest.mark.parametrize("column", COLUMNS, ids=lambda one: one.heading)
def test_a_key_sorts_by_a_column_and_another_reverses(column: Any) -> None:
    view = View("tcp://b:1")
    view.update(an_observation(*many(9)), 1.0)
    view.press(column.key)
    first = [line.split()[0] for line in shown(view)[5:14]]
    view.press("u")
    assert [line.split()[0] for line in shown(view)[5:14]] != first
    view.press(column.key)
    assert [line.split()[0] for line in shown(view)[5:14]] == first
    values = [column.order(one) for one in many(9)]
    ordered = sorted(values, reverse=column.is_number)
    ids = {one.id[:8]: column.order(one) for one in many(9)}
    assert [ids[one] for one in first] == ordered


def test_scrolling_ends_at_the_last_row() -> None:
    view = View("tcp://b:1")
    view.update(an_observation(*many(14)), 1.0)
    for _ in range(50):
        view.press("\x1b[B")
        shown(view, 12)
    assert view.first == 14 - 5
    for _ in range(50):
        view.press("\x1b[A")
    assert view.first == 0


@pytest.mark.parametrize("height", [1, 3, 6, 24, 200])
@pytest.mark.parametrize("width", [10, 80, 300])
def test_any_size_of_the_terminal_is_fine(width: int, height: int) -> None:
    view = View("tcp://b:1")
    assert view.lines(width, height)
    view.update(an_observation(*many(14)), 1.0)
    for key in ("", "o"):
        view.press(key)
        assert view.lines(width, height)


def test_rates_are_those_between_two_observations() -> None:
    view = View("tcp://b:1")
    view.update(an_observation(frames=100, bytes=1000), 1.0)
    assert "relaying" not in shown(view)[1]
    view.update(an_observation(frames=150, bytes=6000), 3.0)
    assert "relaying 25 frames/s" in view.lines(200, 24)[1].plain
    assert "2.5kB/s" in view.lines(200, 24)[1].plain
    view.update(an_observation(frames=0, bytes=0), 4.0)  # the broker was restarted
    assert "relaying 0 frames/s" in view.lines(200, 24)[1].plain


@pytest.mark.parametrize("key", ["q", "\x03", "\x04"])
def test_a_key_ends_it(key: str) -> None:
    view = View("tcp://b:1")
    view.press("?")
    assert not view.is_over
    view.press(key)
    assert view.is_over
