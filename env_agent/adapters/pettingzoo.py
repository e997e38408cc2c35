"""PettingZoo environments, served as environments whose values are dicts by agent.

The learner's `ProxyParallelEnv` and `ProxyAECEnv` take these values apart again. The code that
other interpreters share with this one is in `interpreter/child/agents.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
from gymnasium import spaces

from gymwire.env_agent.closing import closed_on_error
from gymwire.env_agent.interpreter.child import agents
from gymwire.protocol.errors import ConfigurationError
from gymwire.protocol.messages import MULTI_AGENT, EnvKind

EXPOSED = ("observe", "state", "state_space")
"""Attributes that are always exposed in an environment with several agents."""

kind_of = agents.kind_of


class EnvModule:
    """A module of PettingZoo, such as `pettingzoo.classic.chess_v6`, as a factory."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __call__(self, **kwargs: Any) -> Any:
        """Make the environment, with all its agents acting at once if the module offers that."""
        return self.constructor(EnvKind.PARALLEL)(**kwargs)

    def constructor(self, kind: str) -> Callable[..., Any]:
        """Return the function that makes environments of this kind, or the only one."""
        found: Callable[..., Any] = agents.constructor(self._module, kind)
        return found


def is_env_module(value: object) -> bool:
    """Return whether this module makes environments as those of PettingZoo do."""
    names = ("parallel_env", "env")
    return agents.is_module(value) and any(callable(getattr(value, one, None)) for one in names)


def adapt(made: Any, kind: str, name: str) -> MultiAgentEnv:
    """Return a PettingZoo environment as an environment of this kind.

    Raises ConfigurationError if it is not one, or cannot be used as one of this kind, or what its
    attributes raise; it is closed then.
    """
    with closed_on_error([made]):
        converted = agents.converted(made, kind)
        has = agents.kind_of(converted)
        check_kind(has, kind, name)
        adapter = ParallelAdapter if has == EnvKind.PARALLEL else AECAdapter
        return adapter(converted, spaces.Dict)


def check_kind(has: str, kind: str, name: str) -> None:
    """Raise ConfigurationError if an environment is not of the kind that the learner opens.

    Args:
        has: its kind, as `kind_of` returns it.
        kind: that of the learner's proxy.
        name: its name.
    """
    if has == kind:
        return
    if has == EnvKind.ENV:
        raise has_one_agent(name)
    proxy = "ProxyParallelEnv" if has == EnvKind.PARALLEL else "ProxyAECEnv"
    if kind in MULTI_AGENT:
        raise ConfigurationError(
            f"The agents of {name} act one after another (its metadata has no "
            f"`is_parallelizable`): open it with {proxy}."
        )
    raise ConfigurationError(
        f"{name} has several agents: open it with {proxy} in Python. The "
        f"commands of gymwire, such as run, are for environments with one agent."
    )


def has_one_agent(name: str) -> ConfigurationError:
    """Return the error for an environment that was opened as one with several agents."""
    return ConfigurationError(
        f"{name} is an environment with one agent: open it with ProxyEnv or ProxyVectorEnv."
    )


class ParallelAdapter(agents.ParallelByAgent, gymnasium.Env[Any, Any]):
    """A ParallelEnv as an environment of Gymnasium."""


class AECAdapter(agents.AECByAgent, gymnasium.Env[Any, Any]):
    """An AECEnv as an environment of Gymnasium."""


MultiAgentEnv = ParallelAdapter | AECAdapter
