"""Environments with several agents (PettingZoo)."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections import OrderedDict
from typing import Any

from .results import by_agent, unpack
from .signatures import parameters
from .spaces import SPACES

_RETURNED = ("observations", "rewards", "terminations", "truncations", "infos")
ENV, PARALLEL, AEC = "env", "parallel", "aec"  # one agent; all act at once, or one after another


def kind_of(made: Any) -> str:
    """Return the kind of an environment."""
    pettingzoo: Any = sys.modules.get("pettingzoo")  # its own package has imported it
    if pettingzoo is None:
        return ENV
    if isinstance(made, pettingzoo.ParallelEnv):
        return PARALLEL
    return AEC if isinstance(made, pettingzoo.AECEnv) else ENV


def is_module(value: Any) -> bool:
    """Return whether this is a module, or what PettingZoo has in the place of an outdated one."""
    stands_for_one = type(value).__module__ == "pettingzoo.utils.deprecated_module"
    return inspect.ismodule(value) or stands_for_one


def constructor(module: Any, kind: str) -> Any:
    """Return the function of a PettingZoo module that makes environments of a kind, or another."""
    for name in ("env", "parallel_env") if kind == AEC else ("parallel_env", "env"):
        if callable(getattr(module, name, None)):
            return getattr(module, name)
    raise TypeError(f"The module {module.__name__} has neither parallel_env nor env.")


def converted(made: Any, kind: str) -> Any:
    """Return an environment as one of a kind with several agents, if PettingZoo can convert it."""
    has = kind_of(made)
    if has == PARALLEL and kind == AEC:
        return importlib.import_module("pettingzoo.utils").parallel_to_aec(made)
    if has == AEC and kind == PARALLEL and made.metadata.get("is_parallelizable"):
        return importlib.import_module("pettingzoo.utils").aec_to_parallel(made)
    return made


class Agents:
    """An environment of PettingZoo as one whose spaces and values are dicts by agent.

    `make_dict` makes a space of pairs of names and spaces.
    """

    kind = ""

    def __init__(self, made: Any, make_dict: Any) -> None:
        self._made = made
        agents = made.possible_agents
        if not all(type(agent) is str for agent in agents):
            raise TypeError(f"The names of agents must be strings, not {agents!r:.200}.")
        for name in SPACES:
            setattr(self, name, make_dict([(one, getattr(made, name)(one)) for one in agents]))
        self.metadata = made.metadata
        self.render_mode = getattr(made, "render_mode", None)  # PettingZoo requires none

    def __getattr__(self, name: str) -> Any:
        made = object.__getattribute__(self, "_made")  # AttributeError before `__init__`
        # PettingZoo's conversions do not pass on what they do not know.
        return getattr(made if hasattr(made, name) else made.unwrapped, name)

    def set_wrapper_attr(self, name: str, value: Any, force: bool = True) -> Any:
        """Set an attribute of the environment itself, not of its wrappers."""
        setattr(self._made.unwrapped, name, value)

    @property
    def unwrapped(self) -> Any:
        """This environment."""
        return self

    np_random: Any = property(  # if the environment has one under this name
        lambda self: self._made.unwrapped.np_random,
        lambda self, value: setattr(self._made.unwrapped, "np_random", value),
    )

    def _reset(self, seed: Any, options: Any) -> Any:
        # PettingZoo before 1.23:
        more = {"return_info": True} if "return_info" in parameters(self._made.reset)[0] else {}
        return self._made.reset(seed=seed, options=options, **more)

    def render(self) -> Any:
        """Return what the environment renders."""
        return self._made.render()


class ParallelByAgent(Agents):
    """A ParallelEnv: each value of a step is a dict by agent; see docs/protocol.md §4.2.3."""

    kind = PARALLEL

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        """Return the observations; the info has the agents and their infos."""
        names, whose = ("observations", "infos"), "reset() of a ParallelEnv"
        observations, infos = unpack(self._reset(seed, options), "reset", names)
        return by_agent(observations, "observations", whose), self._info(infos, whose)

    def step(self, actions: Any) -> Any:
        """Let all agents act; return the five values by agent."""
        values = unpack(self._made.step(actions), "step", _RETURNED)
        whose = "step() of a ParallelEnv"
        first = [by_agent(value, name, whose) for value, name in zip(values, _RETURNED[:4])]
        return (*first, self._info(values[4], whose))

    def _info(self, infos: Any, whose: str) -> Any:
        return {"agents": list(self._made.agents), "infos": by_agent(infos, "infos", whose)}


class AECByAgent(Agents):
    """An AECEnv: a step returns the observation of the agent that is next, the rest by agent."""

    kind = AEC

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        """Return the observation of the first agent; the info has everything else."""
        self._reset(seed, options)
        observation, rewards, terminated, truncated, info = self._state()
        info.update(rewards=rewards, terminations=terminated, truncations=truncated)
        return observation, info

    def step(self, action: Any) -> Any:
        """Let the selected agent act; return the observation of the next one, the rest by agent."""
        self._made.step(action)
        return self._state()

    def _state(self) -> Any:
        made = self._made
        names = ("rewards", "terminations", "truncations", "infos", "_cumulative_rewards")
        values = {name: by_agent(getattr(made, name), name, "an AECEnv") for name in names}
        selected = made.agent_selection if made.agents else None
        info = {
            "agents": list(made.agents),
            "selected": made.agent_selection,
            "cumulative": values["_cumulative_rewards"],
            "infos": values["infos"],
        }
        observation = None if selected is None else made.observe(selected)
        return (observation, *(values[name] for name in names[:3]), info)


class DictSpace:
    """A space of spaces by name, with the attributes of Gymnasium's Dict."""

    sort_keys = False

    def __init__(self, pairs: Any) -> None:
        self.spaces = OrderedDict(pairs)
