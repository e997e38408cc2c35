"""Impossible options are refused before anything is sent, and the error names them."""

from __future__ import annotations

from typing import Any

import pytest

from gymwire import ProxyEnv, ProxyVectorEnv
from gymwire.protocol.errors import AddressError, ConfigurationError

NOBODY = "tcp://127.0.0.1:9"


@pytest.mark.parametrize("proxy", [ProxyEnv, ProxyVectorEnv])
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"timeout_s": "60"}, "timeout_s must be a number of seconds greater than 0, not '60'"),
        ({"timeout_s": 0}, "timeout_s must be a number of seconds greater than 0, not 0"),
        ({"timeout_s": None}, "timeout_s must be a number of seconds greater than 0, not None"),
        (
            {"timeout_s": float("nan")},
            "timeout_s must be a number of seconds greater than 0, not nan",
        ),
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
        ({"num_envs": 2.5}, "num_envs must be an int, not 2.5"),
        ({"num_envs": 2, "sessions": "2"}, "sessions must be an int, not '2'"),
        ({"autoreset_mode": "next"}, "one of 'NextStep', 'SameStep', 'Disabled', not 'next'"),
    ],
)
def test_arguments_of_a_vector(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        ProxyVectorEnv("cartpole", broker=NOBODY, **wrong)


def test_an_address_and_a_url_are_text() -> None:
    with pytest.raises(AddressError, match="An address is text, such as 'cartpole', not 5"):
        ProxyEnv(5)  # type: ignore[arg-type]
    with pytest.raises(AddressError, match="5555 is not a broker URL: write tcp://HOST:PORT"):
        ProxyEnv("cartpole", 5555)  # type: ignore[arg-type]
