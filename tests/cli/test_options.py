"""The table of options: names, and that commands and documentation match it."""

from __future__ import annotations

import dataclasses
from importlib import import_module
from pathlib import Path

import pytest

from gymwire.cli import kinds
from gymwire.cli.app import COMMANDS, build
from gymwire.cli.option import PANELS
from gymwire.cli.options import DEFAULT_BROKER, OPTIONS, markdown, options_of
from gymwire.protocol import address
from tests.cli.reading import read

ROOT = Path(__file__).parents[2]
# Fields of Options that are no options: where values came from, and what workers are started with.
NOT_OPTIONS = {"origins", "arguments"}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_options_of_a_command_are_the_fields_of_its_value(name: str) -> None:
    fields = dataclasses.fields(import_module(f"gymwire.cli.{name}").Options)
    assert {field.name for field in fields} - NOT_OPTIONS == {
        option.keyword for option in options_of(name)
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_takes_each_option_of_the_table_once(name: str) -> None:
    keywords = [option.keyword for option in options_of(name)]
    assert len(keywords) == len(set(keywords))
    taken = {name for param in build().commands[name].params for name in param.opts}
    assert {option.option for option in options_of(name)} <= taken


def test_every_command_of_the_table_exists() -> None:
    assert {name for option in OPTIONS for name in option.commands} == set(COMMANDS)


def test_names_follow_from_the_keyword() -> None:
    by_keyword = {option.keyword: option for option in OPTIONS}
    names = {
        keyword: (by_keyword[keyword].option, by_keyword[keyword].variable)
        for keyword in ("wait_s", "max_sessions", "broker", "worker")
    }
    assert names == {
        "wait_s": ("--wait", "GYMWIRE_WAIT"),
        "max_sessions": ("--max-sessions", "GYMWIRE_MAX_SESSIONS"),
        "broker": ("--broker", "GYMWIRE_BROKER"),
        "worker": ("--worker", None),
    }


def test_an_option_of_other_meaning_has_a_variable_of_its_own() -> None:
    variables = {
        (option.option, *option.commands): option.variable
        for option in OPTIONS
        if option.option == "--policy"
    }
    assert len(variables) == len({*variables.values()}) == 2


def test_each_option_has_a_help_a_panel_and_a_metavar() -> None:
    for option in OPTIONS:
        assert option.help, option
        assert option.panel in PANELS, option
        assert option.metavar or option.kind is kinds.FLAG or option.internal, option


def test_the_default_broker_is_that_of_the_protocol() -> None:
    assert DEFAULT_BROKER == address.DEFAULT_BROKER


def test_the_markdown_table_lists_every_public_option() -> None:
    rows = markdown().splitlines()[2:]
    assert len(rows) == sum(not option.internal for option in OPTIONS)
    for option in OPTIONS:
        assert any(f"`{option.variable}`" in row for row in rows) is not option.internal


def test_the_documentation_names_every_command_and_option() -> None:
    page = (ROOT / "docs" / "reference" / "command.md").read_text(encoding="utf-8")
    for name in COMMANDS:
        assert f"`gymwire {name}" in page
    for option in OPTIONS:
        assert option.internal or f"`{option.option}" in page, option.option


# A text for each kind, and its value, for the variables and the options alike.
VALUES: dict[str, tuple[str, object]] = {
    "text": ("word", "word"),
    "whole number": ("3", 3),
    "seconds": ("2.5", 2.5),
    "address": ("lab/arm", "lab/arm"),
    "URL": ("tcp://127.0.0.1:7", "tcp://127.0.0.1:7"),
    "host and port": ("127.0.0.1:80", ("127.0.0.1", 80)),
    "host, never or URL": ("never", "never"),
    "JSON object": ('{"a": 1}', {"a": 1}),
    "file": ("some/file.png", Path("some/file.png")),
    "folder": ("some", Path("some")),
    "file or key": ("some.pub", "some.pub"),
    "up or status or scale or drain or down or manifests": ("up", "up"),
    "local or ray or slurm": ("ray", "ray"),
    "broker or agent": ("agent", "agent"),
    "lines or json": ("json", "json"),
    "debug or info or warning or error": ("debug", "debug"),
}


@pytest.mark.parametrize(
    ("name", "option"),
    [
        pytest.param(name, option, id=f"{name} {option.option}")
        for name in COMMANDS
        for option in options_of(name)
        if not option.internal
    ],
)
def test_the_variable_sets_what_the_option_sets(
    name: str, option: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(option, type(OPTIONS[0]))
    text, value = ("1", True) if option.kind is kinds.FLAG else VALUES[option.kind.name]
    value = (value,) if option.repeats else value
    given = [option.option] if option.kind is kinds.FLAG else [option.option, text]
    by_option = read(name, *given)
    assert option.variable is not None
    monkeypatch.setenv(option.variable, text)
    by_variable = read(name)
    assert getattr(by_option, option.keyword) == getattr(by_variable, option.keyword) == value
    assert by_option.origins[option.keyword] == option.option
    assert by_variable.origins[option.keyword] == option.variable
