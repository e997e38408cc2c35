"""PettingZoo environments, served as environments whose values are dicts by agent.

The learner's `ProxyParallelEnv` and `ProxyAECEnv` take these values apart again. PettingZoo is
imported only if the environment's own package has imported it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import gymnasium
from gymnasium import spaces

from gymwire.protocol.errors import ConfigurationError
from gymwire.protocol.messages import MULTI_AGENT, EnvKind

EXPOSED = ("observe", "state", "state_space")
"""Attributes that are always exposed in an environment with several agents."""


class EnvModule:
    """A module of PettingZoo, such as `pettingzoo.classic.chess_v6`, as a factory."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def __call__(self, **kwargs: Any) -> Any:
        """Make the environment, with all its agents acting at once if the module offers that."""
        return self.constructor(EnvKind.PARALLEL)(**kwargs)

    def constructor(self, kind: str) -> Callable[..., Any]:
        """Return the function that makes environments of this kind, or the only one."""
        names = ["parallel_env", "env"] if kind == EnvKind.PARALLEL else ["env", "parallel_env"]
        found: list[Callable[..., Any] | None] = [getattr(self._module, n, None) for n in names]
        return next(one for one in found if one is not None)


def is_env_module(value: object) -> bool:
    """Return whether this module makes environments in the way of PettingZoo's modules."""
    if not isinstance(value, ModuleType):
        return False
    return any(callable(getattr(value, name, None)) for name in ("parallel_env", "env"))


def kind_of(made: object) -> str:
    """Return the kind of an environment with several agents, or "" if it is none."""
    pettingzoo = sys.modules.get("pettingzoo")
    if pettingzoo is None:
        return ""
    if isinstance(made, pettingzoo.ParallelEnv):
        return EnvKind.PARALLEL
    return EnvKind.AEC if isinstance(made, pettingzoo.AECEnv) else ""


def adapt(made: Any, kind: str, name: str) -> MultiAgentEnv:
    """Return a PettingZoo environment as an environment of this kind.

    Raises ConfigurationError if it is none, or cannot be used as one of this kind.
    """
    has = kind_of(made)
    if not has:
        raise has_one_agent(name)
    if has != kind:
        made = _converted(made, kind, name)
    return (ParallelAdapter if kind == EnvKind.PARALLEL else AECAdapter)(made)


def has_one_agent(name: str) -> ConfigurationError:
    """Return the error for an environment that was opened as one with several agents."""
    return ConfigurationError(
        f"{name} is an environment with one agent: open it with ProxyEnv or ProxyVectorEnv."
    )


def _converted(made: Any, kind: str, name: str) -> Any:
    from pettingzoo.utils import aec_to_parallel, parallel_to_aec

    if kind == EnvKind.AEC:
        return parallel_to_aec(made)
    if made.metadata.get("is_parallelizable"):
        return aec_to_parallel(made)
    made.close()
    raise ConfigurationError(
        f"The agents of {name} act one after another (its metadata have no `is_parallelizable`): "
        f"open it with ProxyAECEnv."
    )


class MultiAgentEnv(gymnasium.Env[Any, Any]):
    """An environment with several agents. Its spaces are Dicts by agent.

    Attributes:
        kind: `EnvKind.PARALLEL` or `EnvKind.AEC`.
    """

    kind = ""

    def __init__(self, made: Any) -> None:
        self._made = made
        agents = made.possible_agents
        if not all(type(agent) is str for agent in agents):
            raise ConfigurationError(f"The names of agents must be strings, not {agents!r:.200}.")
        self.observation_space = _by_agent(agents, made.observation_space)
        self.action_space = _by_agent(agents, made.action_space)
        self.metadata = made.metadata
        self.render_mode = getattr(made, "render_mode", None)  # PettingZoo requires none

    def __getattr__(self, name: str) -> Any:
        if name == "_made":
            raise AttributeError(name)
        return getattr(self._made, name)

    @property
    def np_random(self) -> Any:
        """The generator of the environment, if it has one under this name."""
        return self._made.unwrapped.np_random

    @np_random.setter
    def np_random(self, value: Any) -> None:
        self._made.unwrapped.np_random = value

    def render(self) -> Any:
        """Return what the environment renders."""
        return self._made.render()

    def close(self) -> None:
        """Close the environment."""
        self._made.close()


def _by_agent(agents: list[str], space_of: Callable[[str], Any]) -> spaces.Dict:
    # A list of pairs, because a Dict sorts the keys of a dict.
    return spaces.Dict([(agent, space_of(agent)) for agent in agents])


class ParallelAdapter(MultiAgentEnv):
    """A ParallelEnv: each value of a step is a dict by agent; see docs/protocol.md §4.2.3."""

    kind = EnvKind.PARALLEL

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Return the observations; the info has the agents and their infos."""
        observations, infos = self._made.reset(seed=seed, options=options)
        return dict(observations), self._info(infos)

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Let all agents act; return the five values by agent."""
        *values, infos = self._made.step(action)
        # Some environments return a defaultdict.
        observations, rewards, terminated, truncated = map(dict, values)
        return observations, rewards, terminated, truncated, self._info(infos)

    def _info(self, infos: Any) -> dict[str, Any]:
        return {"agents": [*self._made.agents], "infos": dict(infos)}


class AECAdapter(MultiAgentEnv):
    """An AECEnv: a step returns the observation of the agent that is next, the rest by agent."""

    kind = EnvKind.AEC

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Return the observation of the first agent; the info has everything else."""
        self._made.reset(seed=seed, options=options)
        observation, rewards, terminated, truncated, info = self._state()
        return observation, {
            **info,
            "rewards": rewards,
            "terminations": terminated,
            "truncations": truncated,
        }

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Let the selected agent act; return the observation of the next one, the rest by agent."""
        self._made.step(action)
        return self._state()

    def _state(self) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        made = self._made
        selected = made.agent_selection if made.agents else None
        info = {
            "agents": [*made.agents],
            "selected": made.agent_selection,
            "cumulative": dict(made._cumulative_rewards),  # noqa: SLF001 - PettingZoo's own wrappers read it, too
            "infos": dict(made.infos),
        }
        observation = None if selected is None else made.observe(selected)
        return (
            observation,
            dict(made.rewards),
            dict(made.terminations),
            dict(made.truncations),
            info,
        )


def check_single(made: Any, name: str) -> None:
    """Raise ConfigurationError if this environment has several agents."""
    kind = kind_of(made)
    if kind in MULTI_AGENT:
        made.close()
        proxy = "ProxyParallelEnv" if kind == EnvKind.PARALLEL else "ProxyAECEnv"
        raise ConfigurationError(f"{name} has several agents: open it with {proxy}.")
