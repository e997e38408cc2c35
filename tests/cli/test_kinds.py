from __future__ import annotations

import pytest

from gymwire.cli.kinds import (
    Kind,
    choice,
    count,
    direct,
    flag,
    json_object,
    natural,
    positive_seconds,
    seconds,
    watch_rate,
)


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (natural, "-1"),
        (natural, "²"),
        (count, "0"),
        (count, "1.5"),
        (watch_rate, "0"),
        (watch_rate, "21"),
        (seconds, "-1"),
        (seconds, "nan"),
        (positive_seconds, "0"),
    ],
)
def test_a_number_out_of_range_is_an_error(read: type[float], text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        read(text)


def test_whole_numbers_say_their_bounds() -> None:
    assert [read("7") for read in (natural, count, watch_rate)] == [7, 7, 7]
    for read, bounds in (
        (natural, "of 0 or more"),
        (count, "of 1 or more"),
        (watch_rate, "1 to 20"),
    ):
        with pytest.raises(ValueError, match=f"expected a whole number .*{bounds}, got 'x'"):
            read("x")


def test_a_wait_may_last_forever() -> None:
    assert seconds("inf") == float("inf")


@pytest.mark.parametrize("text", ["host", "never", "tcp://127.0.0.1:5600", "tcp://*:*"])
def test_direct_is_a_word_or_a_tcp_url(text: str) -> None:
    assert direct(text) == text


@pytest.mark.parametrize("text", ["", "always", "ipc:///tmp/x", "tcp://127.0.0.1", "5600"])
def test_direct_is_nothing_else(text: str) -> None:
    with pytest.raises(ValueError, match="expected 'host', 'never' or tcp://HOST:PORT"):
        direct(text)


@pytest.mark.parametrize(
    ("text", "value"), [("1", True), ("0", False), ("Yes", True), ("off", False), ("", False)]
)
def test_the_variable_of_a_flag_is_1_or_0(text: str, value: bool) -> None:
    assert flag(text) is value


@pytest.mark.parametrize("text", ["2", "perhaps", " "])
def test_anything_else_is_no_flag(text: str) -> None:
    with pytest.raises(ValueError, match="expected 1 or 0, got"):
        flag(text)


def test_a_choice_names_its_texts() -> None:
    kind = choice("one", "two")
    assert isinstance(kind, Kind)
    assert kind.read("two") == "two"
    with pytest.raises(ValueError, match="expected one of one, two, got 'three'"):
        kind.read("three")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1]", "3", "null", f'{{"n": {"9" * 5000}}}'],
    ids=lambda text: text[:10],
)
def test_keyword_arguments_are_a_json_object(text: str) -> None:
    with pytest.raises(ValueError, match="JSON"):
        json_object(text)
