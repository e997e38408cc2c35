"""Impossible options are refused before anything is sent, and the error names them."""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from gymwire import ProxyEnv, ProxyVectorEnv
from gymwire.learner_agent.client import session_token
from gymwire.learner_agent.proxies.options import ProxyOptions, VectorProxyOptions
from gymwire.protocol.errors import AddressError, ConfigurationError

NOBODY = "tcp://127.0.0.1:9"


def test_a_url_in_the_place_of_the_address_is_an_error_that_names_its_argument() -> None:
    with pytest.raises(AddressError, match=r"is not an address: .* URL of a broker as broker=\."):
        ProxyEnv(NOBODY)


@pytest.mark.parametrize("proxy", [ProxyEnv, ProxyVectorEnv])
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"timeout_s": "60"}, "timeout_s must be a number of seconds of 0.5 or more, not '60'"),
        ({"timeout_s": 0}, "timeout_s must be a number of seconds of 0.5 or more, not 0"),
        ({"timeout_s": None}, "timeout_s must be a number of seconds of 0.5 or more, not None"),
        (
            {"timeout_s": float("nan")},
            "timeout_s must be a number of seconds of 0.5 or more, not nan",
        ),
        ({"timeout_s": 10**400}, "timeout_s must be a number of seconds of 0.5 or more, not 1000"),
        ({"wait_s": 10**5000}, "wait_s must be .* of 0 or more, not an integer of 16610 bits"),
        ({"wait_s": [10**5000]}, "wait_s must be a number of seconds .*, not such a value"),
        ({"step_timeout_s": -1}, "step_timeout_s must be a number of seconds of 0 or more, not -1"),
        ({"wait_s": "x"}, "wait_s must be a number of seconds of 0 or more, not 'x'"),
        ({"env_kwargs": [1]}, r"env_kwargs must be a dict .* not \[1\]"),
    ],
)
def test_arguments_of_both_proxies(proxy: Any, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        proxy("cartpole", broker=NOBODY, **wrong)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"num_envs": NOBODY}, r"num_envs must be an int, not 'tcp.*\(address, num_envs, broker\)"),
        ({"num_envs": 0}, "num_envs must be 1 or more, not 0"),
        ({"num_envs": 2, "sessions": -1}, "sessions must be 1 or more, not -1"),
        ({"num_envs": 2.5}, "num_envs must be an int, not 2.5"),
        ({"num_envs": 2, "sessions": "2"}, "sessions must be an int, not '2'"),
        (
            {"num_envs": 2, "sessions": 10**5000},
            "Cannot spread 2 environments over an integer of 16610 bits sessions",
        ),
        ({"autoreset_mode": "next"}, "one of 'NextStep', 'SameStep', 'Disabled', not 'next'"),
    ],
)
def test_arguments_of_a_vector(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        ProxyVectorEnv("cartpole", broker=NOBODY, **wrong)


def test_an_address_and_a_url_are_text() -> None:
    with pytest.raises(AddressError, match="An address must be a str such as 'cartpole', not 5"):
        ProxyEnv(5)  # type: ignore[arg-type]
    with pytest.raises(AddressError, match="5555 is not a broker URL: write tcp://HOST:PORT"):
        ProxyEnv("cartpole", 5555)  # type: ignore[arg-type]


def test_an_error_in_a_variable_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GYMWIRE_BROKER", "nonsense")
    with pytest.raises(AddressError, match="environment variable GYMWIRE_BROKER: 'nonsense'"):
        ProxyEnv("cartpole")
    monkeypatch.setenv("GYMWIRE_ADDRESS", "Not One")
    with pytest.raises(AddressError, match="environment variable GYMWIRE_ADDRESS: 'Not One'"):
        ProxyEnv()


def test_without_an_address_the_error_says_how_to_give_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GYMWIRE_ADDRESS", raising=False)
    with pytest.raises(ConfigurationError, match=r"Pass one, .* or set GYMWIRE_ADDRESS"):
        ProxyEnv(broker=NOBODY)


def test_each_proxy_lists_its_own_choices_of_on_lost() -> None:
    with pytest.raises(ConfigurationError, match='must be "raise" or "replay", not \'truncate\''):
        ProxyEnv("cartpole", on_lost="truncate")
    with pytest.raises(ConfigurationError, match='must be "raise" or "truncate", not \'replay\''):
        ProxyVectorEnv("cartpole", on_lost="replay")


@pytest.mark.parametrize(
    ("proxy", "options"), [(ProxyEnv, ProxyOptions), (ProxyVectorEnv, VectorProxyOptions)]
)
def test_a_constructor_and_its_options_have_the_same_names_and_defaults(
    proxy: type, options: type[ProxyOptions]
) -> None:
    parameters = inspect.signature(proxy).parameters.values()
    constructor = {one.name: one.default for one in parameters if one.name != "connection"}
    listed = {field.name: field.default for field in fields(options)}
    assert constructor.keys() == listed.keys()
    for name in listed.keys() - {"address", "broker", "env_kwargs"}:  # empty instead of None
        assert constructor[name] == listed[name]


def test_options_become_the_keywords_of_another_proxy() -> None:
    options = ProxyOptions(address="cartpole", broker=NOBODY, key=Path("keys") / "me")
    kwargs = options.as_kwargs()
    assert kwargs["key"] == str(Path("keys") / "me")
    assert ProxyOptions(**kwargs).as_kwargs() == kwargs


def test_a_session_token_keeps_every_option_of_a_proxy() -> None:
    assert {field.name for field in fields(ProxyOptions)} == session_token.KEYWORDS
