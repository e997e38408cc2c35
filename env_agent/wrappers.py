"""Wrappers that the operator names with `--wrap`, and what an environment needs before them."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium

from gymwire.env_agent import known_spaces
from gymwire.env_agent.adapters import pettingzoo
from gymwire.env_agent.closing import closed_on_error
from gymwire.protocol import spaces
from gymwire.protocol.errors import ConfigurationError
from gymwire.protocol.messages import MULTI_AGENT


@dataclass(frozen=True)
class Wrapper:
    """A wrapper that the operator names with `--wrap`.

    Attributes:
        name: its name.
        make: its class or function, called with the environment.
        kwargs: its keyword arguments.
    """

    name: str
    make: Callable[..., Any]
    kwargs: Mapping[str, Any]


def wrap(env: gymnasium.Env[Any, Any], wrappers: Sequence[Wrapper]) -> gymnasium.Env[Any, Any]:
    """Return an environment in these wrappers, the first one innermost.

    First, it gets copies of the custom spaces that its class shares with other sessions.

    Raises ConfigurationError, or what a wrapper's constructor raises; the environment is closed
    then.
    """
    _copy_shared_spaces(env)
    for one in wrappers:
        with closed_on_error([env]):
            wrapped = _wrapped(env, one)
            is_env = isinstance(wrapped, gymnasium.Env)
            if not is_env and pettingzoo.kind_of(wrapped) not in MULTI_AGENT:
                raise ConfigurationError(
                    f"--wrap {one.name} returned {type(wrapped).__name__}, not a gymnasium.Env."
                )
        env = wrapped
    return env


def _copy_shared_spaces(env: Any) -> None:
    """Give an environment copies of the custom spaces that its class holds.

    Learners draw from these spaces and seed them, and locally each has a process of its own.
    """
    copies: dict[int, Any] = {}
    # Its attributes and its spaces may raise anything. Without a copy, its sessions share a space.
    with contextlib.suppress(Exception):
        env = env.unwrapped
        for name in ("observation_space", "action_space"):
            if name in vars(env):
                continue
            space = inspect.getattr_static(env, name, None)
            if isinstance(space, gymnasium.Space) and _is_custom(space):
                setattr(env, name, copy.deepcopy(space, copies))


def _is_custom(space: gymnasium.Space[Any]) -> bool:
    if known_spaces.key_of(space) is not None:  # soon found out
        return False
    return any(one.sent_as == "RemoteSpace" for one in spaces.foreign(space, ""))


def _wrapped(env: gymnasium.Env[Any, Any], by: Wrapper) -> Any:
    try:
        return by.make(env, **by.kwargs)
    except TypeError as error:
        if error.__traceback__ is None or error.__traceback__.tb_next is not None:
            raise  # not by the call itself
        raise ConfigurationError(
            f"--wrap {by.name} does not take these arguments: {error}. Its keyword arguments "
            f"follow the name as JSON."
        ) from None
