"""A custom space that a class holds for all its environments: each session has a copy."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium
import pytest
from gymnasium.spaces import Box, Dict

from gymwire.env_agent.factory import Factory
from gymwire.env_agent.runners.runner import Runner
from gymwire.env_agent.wrappers import Wrapper
from gymwire.protocol.messages import Call
from gymwire.protocol.remote_space import CALL
from tests.offered_spaces import Words


class Shared(gymnasium.Env[Any, Any]):
    """Observes samples of its space, which its class holds."""

    observation_space = Dict({"at": Box(0, 1, (2,)), "mission": Words()})
    action_space = Words(("green", "grey", "purple"))

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return self.action_space.sample(), {}


def ask(runner: Runner, path: str, method: str, *args: Any) -> Any:
    return runner.access(Call("call", CALL, (path, method, args)))


@pytest.mark.parametrize("wrappers", [(), (Wrapper("outer", gymnasium.Wrapper, {}),)])
@pytest.mark.parametrize("path", ["action_space", 'observation_space["mission"]'])
def test_a_session_draws_what_a_process_of_its_own_would(path: str, wrappers: Any) -> None:
    local = copy.deepcopy(Shared.action_space if path == "action_space" else Words())
    factory = Factory("shared", Shared, wrappers=wrappers)
    mine, other = (Runner(factory.make(None, {})) for _ in range(2))
    ask(mine, path, "seed", 7)
    local.seed(7)
    for _ in range(20):
        assert ask(mine, path, "sample") == local.sample()
        ask(other, path, "sample")
    if path == "action_space":  # the environment draws from the same copy
        assert [mine.reset(None, None)[0] for _ in range(20)] == [local.sample() for _ in range(20)]


class Uncopied(Words):
    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("no copy")


def test_a_space_that_cannot_be_copied_stays_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Shared, "action_space", Uncopied())
    made = Factory("shared", Shared).make(None, {})
    assert made.action_space is Shared.action_space


def test_gymnasiums_own_spaces_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Shared, "action_space", Box(0, 1, (2,)))
    made = Factory("shared", Shared).make(None, {})
    assert made.action_space is Shared.action_space
