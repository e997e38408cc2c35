from __future__ import annotations

import itertools
from typing import Any

import pytest

from gymwire.cli.ls import as_json, group, table
from gymwire.learner_agent.client import listing
from gymwire.learner_agent.client.listing import find_all
from gymwire.protocol.errors import DecodingError
from gymwire.protocol.messages import Find, Found
from tests.cli.test_ls import an_entry

ODD_VALUES: tuple[Any, ...] = (None, True, -1, 1.5, "x", b"x", 2**63, [], {}, [{}])


def listed(*offers: Any) -> list[dict[str, Any]]:
    return find_all("", lambda _: Found(list(offers)), "tcp://b:1")


def test_all_pages_are_one_list() -> None:
    asked: list[Find] = []

    def ask(find: Find) -> Found:
        asked.append(find)
        number = len(asked)
        return Found([an_entry(used=number)], [["a", 1], ["a", 2], ["b", 0], []][number - 1])

    assert [entry["used"] for entry in find_all("", ask, "")] == [1, 2, 3, 4]
    assert [find.after for find in asked] == [[], ["a", 1], ["a", 2], ["b", 0]]


def test_a_malformed_entry_is_an_error_that_names_the_broker_and_the_field() -> None:
    with pytest.raises(DecodingError, match=r"broker at tcp://b:1 .* 'used' of an offer must be"):
        listed(an_entry(), an_entry(used="3"))
    with pytest.raises(DecodingError, match="lacks 'host'"):
        listed({key: value for key, value in an_entry().items() if key != "host"})


@pytest.mark.parametrize("field", an_entry())
@pytest.mark.parametrize("value", ODD_VALUES, ids=repr)
def test_any_value_of_a_field_is_an_error_or_can_be_shown(field: str, value: object) -> None:
    try:
        entries = listed(an_entry(**{field: value}))
    except DecodingError:
        return
    table(group(entries), verbose=True, width=80)
    for one in group(entries):
        as_json(one)


@pytest.mark.parametrize("entry", ODD_VALUES, ids=repr)
def test_any_entry_is_an_error_or_can_be_shown(entry: object) -> None:
    with pytest.raises(DecodingError):
        listed(entry)


@pytest.mark.parametrize(
    "rests",
    [[["a", 1], ["a", 1]], [["b", 0], ["a", 0]], [["a"]], [[1, "a"]], [["a", 0, 0]], [[None]]],
    ids=str,
)
def test_a_rest_that_does_not_go_forward_is_an_error(rests: list[list[Any]]) -> None:
    given = itertools.chain(rests, itertools.repeat([]))
    with pytest.raises(DecodingError, match="does not follow"):
        find_all("", lambda _: Found([], next(given)), "")


def test_pages_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MAX_PAGES", 5)
    numbers = itertools.count()
    with pytest.raises(DecodingError, match="5 pages of offers and has more"):
        find_all("", lambda _: Found([], ["a", next(numbers)]), "")
