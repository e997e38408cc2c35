"""A space that changes in reset is an error: the learner would go on with the old one."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import Space
from gymnasium.spaces import Box, Dict, Discrete, Text, Tuple

from gymwire import ProxyEnv
from gymwire.env_agent.config import service
from gymwire.protocol.errors import EnvironmentFailed
from tests.learner_agent.client.test_interrupted import in_memory
from tests.wire import BROKER


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
