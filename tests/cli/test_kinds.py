from __future__ import annotations

import pytest

from gymwire.cli.kinds import (
    Kind,
    choice,
    count,
    direct,
    json_object,
    natural,
    positive_seconds,
    seconds,
)


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (natural, "-1"),
        (natural, "²"),
        (count, "0"),
        (count, "1.5"),
        (seconds, "-1"),
        (seconds, "nan"),
        (positive_seconds, "0"),
    ],
)
def test_a_number_out_of_range_is_an_error(read: type[float], text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        read(text)


def test_a_wait_may_last_forever() -> None:
    assert seconds("inf") == float("inf")


@pytest.mark.parametrize("text", ["host", "never", "tcp://127.0.0.1:5600", "tcp://*:*"])
def test_direct_is_a_word_or_a_tcp_url(text: str) -> None:
    assert direct(text) == text


@pytest.mark.parametrize("text", ["", "always", "ipc:///tmp/x", "tcp://127.0.0.1", "5600"])
def test_direct_is_nothing_else(text: str) -> None:
    with pytest.raises(ValueError, match="expected 'host', 'never' or tcp://HOST:PORT"):
        direct(text)


def test_a_choice_names_its_texts() -> None:
    kind = choice("one", "two")
    assert isinstance(kind, Kind)
    assert kind.read("two") == "two"
    with pytest.raises(ValueError, match="expected one of one, two, got 'three'"):
        kind.read("three")


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", "null"])
def test_keyword_arguments_are_a_json_object(text: str) -> None:
    with pytest.raises(ValueError, match="JSON"):
        json_object(text)
