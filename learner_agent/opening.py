"""What a proxy of one environment and one of a vector share when they open their sessions."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec

from learner_agent.channel import Channel
from protocol.address import DEFAULT_BROKER, check_url, parse_address
from protocol.errors import ConfigurationError

OF_PARENTS: list[Channel] = []
"""Connections of parent processes. A fork must neither use nor close them, so it keeps them."""


def place(address: str | None, broker: str | None) -> tuple[str, str]:
    """The address and the broker's URL: what was given, else what the environment variables say.

    Raises AddressError, and ConfigurationError where there is no address.
    """
    address = address or os.environ.get("GYMWIRE_ADDRESS")
    if not address:
        raise ConfigurationError(
            "Which environment? Give its address, such as ProxyEnv('cartpole'), or set "
            "GYMWIRE_ADDRESS. `python -m learner_agent ls` shows what is on offer."
        )
    parse_address(address)
    return address, check_url(broker or os.environ.get("GYMWIRE_BROKER") or DEFAULT_BROKER)


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
            entry_point="learner_agent.proxy_env:make_proxy",
            reward_threshold=reward_threshold,
            nondeterministic=nondeterministic,
            max_episode_steps=max_episode_steps,
            order_enforce=order_enforce,
            disable_env_checker=disable_env_checker,
            kwargs=dict(kwargs),
        )
    except gymnasium.error.Error:  # not an id that Gymnasium would register
        return None
