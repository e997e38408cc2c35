"""A space that changes is an error: the learner would go on with the old one."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import Space
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text, Tuple

from gymwire import ProxyEnv, ProxyVectorEnv
from gymwire.env_agent.config import service
from gymwire.protocol.errors import EnvironmentFailed
from tests.learner_agent.client.test_interrupted import in_memory
from tests.wire import BROKER, Network


class Changing(gymnasium.Env[Any, Any]):
    """Sets the spaces of `later` in a reset with options."""

    later: dict[str, Callable[[], Space[Any]]] = {}  # noqa: RUF012 - set by the tests

    def __init__(self) -> None:
        self.observation_space = Discrete(3)
        self.action_space = Discrete(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if options is not None:
            for name, make in self.later.items():
                setattr(self, name, make())
        return np.int64(0), {}


OTHERS: list[Callable[[], Space[Any]]] = [
    lambda: Discrete(4),
    lambda: Discrete(3, start=1),
    lambda: Box(0, 1, (2,)),
    lambda: Dict(a=Discrete(3)),
    lambda: Tuple([Discrete(3)]),
    lambda: Text(3),
]


@pytest.mark.parametrize("name", ["observation_space", "action_space"])
@pytest.mark.parametrize("make", OTHERS)
def test_another_space_fails_the_reset(
    monkeypatch: pytest.MonkeyPatch, name: str, make: Callable[[], Space[Any]]
) -> None:
    monkeypatch.setattr(Changing, "later", {name: make})
    with in_memory() as network:
        offered = "tests.learner_agent.proxies.test_changing_spaces:Changing"
        network.env_agent(service(address="changing", env=offered))
        with ProxyEnv("changing", BROKER) as env:
            env.reset(seed=1)
            text = re.escape(f"The {name} has changed to {make()!r:.30}")
            with pytest.raises(EnvironmentFailed, match=text):
                env.reset(options={"change": True})


def test_an_equal_space_is_no_change(monkeypatch: pytest.MonkeyPatch) -> None:
    equal = {"observation_space": lambda: Discrete(3), "action_space": lambda: Discrete(2)}
    monkeypatch.setattr(Changing, "later", equal)
    with in_memory() as network:
        offered = "tests.learner_agent.proxies.test_changing_spaces:Changing"
        network.env_agent(service(address="changing", env=offered))
        with ProxyEnv("changing", BROKER) as env:
            assert env.reset(options={"change": True}) == (0, {})


# --- spaces that change in place, in step, and inside a vector ------------------------------------


class Acting(gymnasium.Env[Any, Any]):
    """Calls `change` with itself in every step with action 1, or in every reset after the first."""

    change: Callable[[Any], None] = staticmethod(lambda _: None)
    in_reset = False

    def __init__(self) -> None:
        self.observation_space: Space[Any] = Dict(
            a=Box(-1.0, 1.0, (2,)), b=Discrete(3), c=MultiDiscrete([2, 3]), d=MultiBinary(2)
        )
        self.action_space = Discrete(2)
        self.resets = 0

    def observe(self) -> Any:
        return {
            "a": np.zeros(2, np.float32), "b": np.int64(0), "c": np.zeros(2, np.int64),
            "d": np.zeros(2, np.int8),
        }  # fmt: skip

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.resets += 1
        if self.in_reset and self.resets > 1:
            type(self).change(self)
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if action == 1 and not self.in_reset:
            type(self).change(self)
        return self.observe(), 0.0, bool(action), False, {}


def _set(path: str, value: Any) -> Callable[[Any], None]:
    """Return a change of one attribute of a part of the observation space."""
    key, name = path.split(".")

    def change(env: Acting) -> None:
        part: Any = env.observation_space[key]  # type: ignore[index]
        held = getattr(part, name)
        if isinstance(held, np.ndarray):
            held.flat[0] = value
        else:
            setattr(part, name, value)

    return change


def _add_key(env: Any) -> None:
    env.observation_space.spaces["e"] = Discrete(2)


def _set_action(env: Any) -> None:
    env.action_space.n = np.int64(5)


MUTATIONS: dict[str, Callable[[Any], None]] = {
    "low": _set("a.low", -5.0),
    "high": _set("a.high", 5.0),
    "n": _set("b.n", np.int64(7)),
    "start": _set("b.start", np.int64(1)),
    "nvec": _set("c.nvec", 9),
    "size": _set("d.n", 3),
    "a key": _add_key,
    "the action space": _set_action,
}
CHANGED = r"The (observation|action)_space has changed to .*, but this session was opened with "


def _offer(network: Network, monkeypatch: pytest.MonkeyPatch, **attributes: Any) -> None:
    for name, value in attributes.items():
        monkeypatch.setattr(Acting, name, value)
    offered = "tests.learner_agent.proxies.test_changing_spaces:Acting"
    network.env_agent(service(address="acting", env=offered))


@pytest.mark.parametrize("in_reset", [True, False])
@pytest.mark.parametrize("change", MUTATIONS.values(), ids=list(MUTATIONS))
def test_a_space_that_is_changed_in_place_fails_the_next_reset(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], None], in_reset: bool
) -> None:
    with in_memory() as network:
        _offer(network, monkeypatch, change=change, in_reset=in_reset)
        with ProxyEnv("acting", BROKER) as env:
            env.reset(seed=1)
            env.step(1)
            with pytest.raises(EnvironmentFailed, match=CHANGED):
                env.reset(seed=1)


def _reset_the_second(vector: ProxyVectorEnv, mode: str) -> None:
    if mode == "Disabled":
        vector.reset(options={"reset_mask": np.array([False, True])})
    for action in (1, 0):
        vector.step(np.array([0, action]))


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
@pytest.mark.parametrize("change", MUTATIONS.values(), ids=list(MUTATIONS))
def test_a_change_inside_a_vector_fails_the_step_that_resets(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], None], mode: str
) -> None:
    with in_memory() as network:
        _offer(network, monkeypatch, change=change, in_reset=True)
        with ProxyVectorEnv("acting", 2, BROKER, autoreset_mode=mode) as vector:
            vector.reset(seed=1)
            with pytest.raises(EnvironmentFailed, match=CHANGED) as raised:
                _reset_the_second(vector, mode)
            assert raised.value.env_index == 1


def _replace(env: Any) -> None:
    env.observation_space = Box(0, 1, (3,))
    env.observe = lambda: np.zeros(3, np.float32)


@pytest.mark.parametrize("signed", [True, False])
def test_an_observation_of_another_space_fails_the_step(
    monkeypatch: pytest.MonkeyPatch, signed: bool
) -> None:
    with in_memory() as network:
        _offer(network, monkeypatch, change=_replace)
        with ProxyEnv("acting", BROKER) as env:
            env.reset(seed=1)
            env.step(0)
            if signed:  # sessions that are signed do not use the fast path
                [slot] = network.loops[-1].host.slots.values()
                slot.steps = None
            text = f"The environment at 'acting' has changed a space: {CHANGED}"
            with pytest.raises(EnvironmentFailed, match=text):
                env.step(1)


def test_what_is_set_at_first_use_is_no_change(monkeypatch: pytest.MonkeyPatch) -> None:
    def use(env: Any) -> None:
        repr(env.observation_space)
        env.observation_space.seed(1)
        env.observation_space.sample()
        env.observation_space = Dict(env.observation_space.spaces)

    with in_memory() as network:
        _offer(network, monkeypatch, change=use)
        with ProxyEnv("acting", BROKER) as env:
            for _ in range(3):
                env.reset(seed=1)
                env.step(1)
