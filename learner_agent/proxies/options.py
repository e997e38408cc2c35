"""What a proxy of one environment and one of a vector share when they open their sessions.

Both keep the keyword arguments that make another like them, their *keywords*.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec

from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.learner_agent.client.session import RemoteSession
from gymwire.protocol.address import DEFAULT_BROKER, check_url, parse_address
from gymwire.protocol.errors import ConfigurationError

OF_PARENTS: list[BrokerConnection] = []
"""Connections of parent processes. A fork must neither use nor close them, so it keeps them."""


def place(address: str | None, broker: str | None) -> tuple[str, str]:
    """The address and the broker's URL: what was given, else what the environment variables say.

    Raises AddressError, and ConfigurationError where there is no address.
    """
    address = address or os.environ.get("GYMWIRE_ADDRESS")
    if not address:
        raise ConfigurationError(
            "Which environment? Give its address, such as ProxyEnv('cartpole'), or set "
            "GYMWIRE_ADDRESS. `gymwire ls` shows what is on offer."
        )
    parse_address(address)
    return address, check_url(broker or os.environ.get("GYMWIRE_BROKER") or DEFAULT_BROKER)


def keywords(
    address: str | None,
    broker: str | None,
    env_kwargs: Mapping[str, Any] | None,
    on_lost: str,
    ways_to_lose: tuple[str, str],
    **others: Any,
) -> dict[str, Any]:
    """The keywords of a proxy. Raises AddressError and ConfigurationError."""
    address, broker = place(address, broker)
    if on_lost not in ways_to_lose:
        first, second = ways_to_lose
        raise ConfigurationError(f'on_lost must be "{first}" or "{second}", not {on_lost!r}.')
    if env_kwargs is not None and not isinstance(env_kwargs, Mapping):
        raise ConfigurationError(
            f"env_kwargs must be a dict of keyword arguments, such as {{'map_name': '8x8'}}, not "
            f"{env_kwargs!r:.100}."
        )
    for name in ("timeout_s", "step_timeout_s", "wait_s"):
        _check_seconds(name, others[name])
    return {
        "address": address,
        "broker": broker,
        "env_kwargs": dict(env_kwargs or {}),
        "on_lost": on_lost,
        **others,
    }


def _check_seconds(name: str, value: object) -> None:
    if value is None and name == "step_timeout_s":
        return
    if not isinstance(value, Real) or not float(value) >= 0 or (name == "timeout_s" and not value):
        least = "more than 0" if name == "timeout_s" else "0 or more"
        raise ConfigurationError(f"{name} is a number of seconds, {least}, not {value!r:.100}.")


def connect(kwargs: Mapping[str, Any]) -> BrokerConnection:
    """A connection as these keywords ask for it. Raises what BrokerConnection raises."""
    return BrokerConnection(
        kwargs["broker"],
        timeout_s=kwargs["timeout_s"],
        wait_s=kwargs["wait_s"],
        key=kwargs["key"],
        broker_key=kwargs["broker_key"],
    )


def open_all(
    channel: BrokerConnection,
    kwargs: Mapping[str, Any],
    num_envs: Sequence[int],
    autoreset_mode: str = "",
    *,
    wait_s: float | None = None,
) -> list[RemoteSession]:
    """Open sessions as these keywords ask for; see `BrokerConnection.open_all`."""
    return channel.open_all(
        kwargs["address"],
        num_envs,
        render_mode=kwargs["render_mode"],
        env_kwargs=kwargs["env_kwargs"],
        autoreset_mode=autoreset_mode,
        direct=kwargs["direct"],
        wait_s=wait_s,
    )


def spec_of_proxy(remote: Mapping[str, Any], kwargs: Mapping[str, Any]) -> EnvSpec | None:
    """The spec of a proxy of the environment that has this spec; None if it has none."""
    match remote:
        case {
            "id": str(env_id),
            "reward_threshold": float() | int() | None as reward_threshold,
            "nondeterministic": bool(nondeterministic),
            "max_episode_steps": int() | None as max_episode_steps,
            "order_enforce": bool(order_enforce),
            "disable_env_checker": bool(disable_env_checker),
        }:
            pass
        case _:
            return None
    try:
        return EnvSpec(
            id=env_id,
            entry_point="gymwire.learner_agent.proxies.proxy_env:make_proxy",
            reward_threshold=reward_threshold,
            nondeterministic=nondeterministic,
            max_episode_steps=max_episode_steps,
            order_enforce=order_enforce,
            disable_env_checker=disable_env_checker,
            kwargs=dict(kwargs),
        )
    except gymnasium.error.Error:  # not an id that Gymnasium would register
        return None
