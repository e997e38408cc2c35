"""PettingZoo environments at an env agent: `ProxyParallelEnv` and `ProxyAECEnv`.

Both use a ProxyEnv whose values are dicts by agent, so requests, failures, replay and interrupts
work as they do for one agent (docs/protocol.md §4.2.3).
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar

from gymwire.protocol.extras import install_line

try:
    from pettingzoo import AECEnv, ParallelEnv
except ImportError as error:
    raise ImportError(
        f"ProxyParallelEnv and ProxyAECEnv need PettingZoo. Install it with: "
        f"{install_line('pettingzoo')}"
    ) from error
import numpy as np
from gymnasium import Space, spaces

from gymwire.learner_agent.proxies.attributes import RemoteAttributes, declares
from gymwire.learner_agent.proxies.interrupts import kept_for_getattr, raise_kept
from gymwire.learner_agent.proxies.options import ProxyOptions
from gymwire.learner_agent.proxies.proxy_env import ProxyEnv
from gymwire.protocol.capabilities import KINDS
from gymwire.protocol.errors import ProtocolError, VersionMismatch
from gymwire.protocol.messages import EnvKind


class _ParallelOptions(ProxyOptions):
    KIND: ClassVar[str] = EnvKind.PARALLEL


class _AECOptions(ProxyOptions):
    KIND: ClassVar[str] = EnvKind.AEC


class _Parallel(ProxyEnv):
    """A ParallelEnv as a ProxyEnv."""

    _OPTIONS: ClassVar[type[ProxyOptions]] = _ParallelOptions


class _AEC(ProxyEnv):
    """An AECEnv as a ProxyEnv."""

    _OPTIONS: ClassVar[type[ProxyOptions]] = _AECOptions


def _open(kind: type[ProxyEnv], *args: Any, **kwargs: Any) -> ProxyEnv:
    """Return the remote environment. Raises what ProxyEnv raises, and VersionMismatch."""
    env = kind(*args, **kwargs)
    opened = env._session.opened  # noqa: SLF001 - of a class of this module
    if KINDS not in opened.limits.get("capabilities", []):
        env.close()
        raise VersionMismatch(
            f"The env agent ({opened.agent}) is too old for environments with several agents. "
            f"Upgrade gymwire there."
        )
    return env


def _spaces_of(space: Space[Any], name: str) -> dict[str, Space[Any]]:
    if not isinstance(space, spaces.Dict):
        raise ProtocolError(f"The {name} of an environment with several agents must be a Dict.")
    return dict(space.spaces)


class _RemoteAgents:
    """What both proxies have in common.

    Other names are attributes of the remote environment that its operator exposes, as in ProxyEnv.
    """

    def _use(self, env: ProxyEnv) -> None:
        self._env = env
        self.observation_spaces = _spaces_of(env.observation_space, "observation space")
        self.action_spaces = _spaces_of(env.action_space, "action space")
        self.possible_agents = [*self.observation_spaces]
        self._known = self.observation_spaces.keys() & self.action_spaces.keys()
        self.agents: list[str] = []
        self.metadata = env.metadata
        self.render_mode = env.render_mode

    def _check(self, agents: Any, *by_agent: Any) -> None:
        """Raise ProtocolError unless the agents are known and the other values are dicts."""
        try:
            is_right = isinstance(agents, list) and self._known.issuperset(agents)
        except TypeError:  # one cannot be hashed
            is_right = False
        for value in by_agent:
            is_right = is_right and isinstance(value, dict)
        if not is_right:
            raise self._malformed()

    def _malformed(self) -> ProtocolError:
        return ProtocolError(
            f"The env agent at {self._env._options.address!r} sent a malformed percept: its "  # noqa: SLF001 - of a class of this module
            f"agents are unknown, or its values are not dicts by agent. Upgrade it, or report "
            f"this to its operator."
        )

    def observation_space(self, agent: str) -> Space[Any]:
        """Return the observation space of an agent, always the same object."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> Space[Any]:
        """Return the action space of an agent, always the same object."""
        return self.action_spaces[agent]

    def state(self) -> Any:
        """Return the global state, if the environment has one."""
        return self._env.state()

    @property
    @kept_for_getattr
    def state_space(self) -> Space[Any]:
        """The space of the global state, if the environment has one."""
        return self._env.state_space  # type: ignore[no-any-return]

    @property
    @kept_for_getattr
    def np_random(self) -> np.random.Generator:
        """The environment's generator, if it has one of this name: see `ProxyEnv.np_random`."""
        return self._env.np_random

    @np_random.setter
    def np_random(self, value: np.random.Generator) -> None:
        self._env.np_random = value

    def render(self) -> Any:
        """Return what the remote environment renders."""
        return self._env.render()

    def close(self) -> None:
        """End the session and free its slot."""
        self._env.close()

    def __getattr__(self, name: str) -> Any:
        # Called for names that Python does not find, also while __init__ has not finished.
        raise_kept(self, name)
        if "_env" not in self.__dict__ or declares(type(self), name):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return self._exposed.get_exposed(name)

    def __setattr__(self, name: str, value: Any) -> None:
        is_own = "_env" not in self.__dict__ or name in self.__dict__ or declares(type(self), name)
        if is_own or name not in self._exposed.exposed:
            super().__setattr__(name, value)
        else:
            self._exposed.set_exposed(name, value)

    @property
    def _exposed(self) -> RemoteAttributes:
        return self._env._attributes  # noqa: SLF001 - of a class of this module


class ProxyParallelEnv(_RemoteAgents, ParallelEnv[str, Any, Any]):  # type: ignore[misc]
    """A PettingZoo ParallelEnv at an env agent: all agents act in one step.

    Takes the arguments of `ProxyEnv`, and raises what its methods raise. Methods return exactly
    what the remote environment returned.

    Attributes:
        agents: the agents that act in the next step.
        possible_agents: all agents that there can be.
        observation_spaces, action_spaces: the spaces by agent.
    """

    def __init__(
        self, address: str | None = None, broker: str | None = None, **kwargs: Any
    ) -> None:
        self._use(_open(_Parallel, address, broker, **kwargs))

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode; return the observations and the infos by agent."""
        observations, info = self._env.reset(seed=seed, options=options)
        return observations, self._update(info, observations)

    def step(
        self, actions: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, float], dict[str, bool], dict[str, bool], dict[str, Any]]:
        """Let all agents act, in one message; return the five values by agent."""
        *values, info = self._env.step(actions)
        return (*values, self._update(info, *values))

    def _update(self, info: dict[str, Any], *by_agent: Any) -> dict[str, Any]:
        agents, infos = info.get("agents"), info.get("infos")
        self._check(agents, infos, *by_agent)
        self.agents = agents  # type: ignore[assignment]
        return infos  # type: ignore[return-value]


class ProxyAECEnv(_RemoteAgents, AECEnv[str, Any, Any]):  # type: ignore[misc]
    """A PettingZoo AECEnv at an env agent: the agents act one after another.

    Takes the arguments of `ProxyEnv`, and raises what its methods raise. A step is one message: its
    reply has the observation of the agent that is selected next, and everything that `last`
    returns. `observe` of another agent is a request of its own.

    Attributes:
        agents: the agents that are alive.
        possible_agents: all agents that there can be.
        agent_selection: the agent that acts next.
        observation_spaces, action_spaces: the spaces by agent.
        rewards, terminations, truncations, infos: the last values by agent.
    """

    def __init__(
        self, address: str | None = None, broker: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__()
        self._use(_open(_AEC, address, broker, **kwargs))

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        """Start an episode."""
        observation, info = self._env.reset(seed=seed, options=options)
        get = info.get
        self._update(observation, get("rewards"), get("terminations"), get("truncations"), info)

    def step(self, action: Any) -> None:
        """Let the selected agent act; None if it is terminated or truncated."""
        self._update(*self._env.step(action))

    def _update(
        self, observation: Any, rewards: Any, terminations: Any, truncations: Any, info: Any
    ) -> None:
        agents, selected = info.get("agents"), info.get("selected")
        infos, cumulative = info.get("infos"), info.get("cumulative")
        self._check(agents, rewards, terminations, truncations, infos, cumulative)
        if agents:
            self._check([selected])
        self._observation = observation
        self.rewards = rewards
        self.terminations = terminations
        self.truncations = truncations
        self.infos = infos
        self._cumulative_rewards = cumulative
        self.agents = agents
        self.agent_selection = selected

    def last(self, observe: bool = True) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Return what the selected agent needs to act, as PettingZoo does.

        Raises ProtocolError if the env agent has sent no values for it.
        """
        by_agent = (self._cumulative_rewards, self.terminations, self.truncations, self.infos)
        if self.agents and not all(self.agent_selection in values for values in by_agent):
            raise self._malformed()
        found: tuple[Any, float, bool, bool, dict[str, Any]] = super().last(observe)
        return found

    def observe(self, agent: str) -> Any:
        """Return the observation of an agent."""
        if self.agents and agent == self.agent_selection:
            return copy.deepcopy(self._observation)
        return self._env.observe(agent)
