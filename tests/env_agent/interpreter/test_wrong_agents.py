"""Wrong results of environments with several agents: the text names value, agent and method."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from gymwire.env_agent import failure_reports
from gymwire.env_agent.interpreter import child_errors
from gymwire.env_agent.interpreter.child.agents import AECByAgent, ParallelByAgent
from gymwire.env_agent.interpreter.child.failures import describe_exception
from gymwire.env_agent.interpreter.child.results import WrongResult

ZERO, NO = {"a": 0.0, "b": 0.0}, {"a": False, "b": False}
NONE: dict[str, Any] = {"a": {}, "b": {}}
RIGHT = [ZERO, ZERO, NO, NO, NONE]
OF_AEC = ("_cumulative_rewards", "rewards", "terminations", "truncations", "infos")


class Env:
    """An environment that returns what it is told to, as a ParallelEnv or an AECEnv."""

    metadata: Any = {}  # noqa: RUF012 - never changed
    possible_agents = agents = ["a", "b"]  # noqa: RUF012 - never changed
    agent_selection = "b"
    observation_space = action_space = lambda self, agent: agent

    def __init__(self, returned: Any = None) -> None:
        self.returned = returned
        vars(self).update(zip(OF_AEC, (ZERO, *RIGHT[1:]), strict=True))

    def reset(self, seed: Any = None, options: Any = None) -> Any:
        return self.returned

    def step(self, actions: Any) -> Any:
        return self.returned

    def observe(self, agent: str) -> Any:
        return 0


def but(index: int, value: Any) -> list[Any]:
    """Return the right result of a step, except for one value."""
    return [*RIGHT[:index], value, *RIGHT[index + 1 :]]


STEP, RESET = "step() of a ParallelEnv", "reset() of a ParallelEnv"
FIVE = f"{STEP} must return 5 values (observations, rewards, terminations, truncations, infos), not"
TWO = f"{RESET} must return 2 values (observations, infos), not"
WRONG_STEPS = [
    (None, f"{FIVE} NoneType."),
    (1, f"{FIVE} int."),
    (RIGHT[:4], f"{FIVE} 4."),
    (but(0, None), f"observations of {STEP} must be a dict by agent, not None."),
    (but(1, 5), f"rewards of {STEP} must be a dict by agent, not 5."),
    (but(4, [1]), f"infos of {STEP} must be a dict by agent, not [1]."),
]


@pytest.mark.parametrize(("returned", "text"), WRONG_STEPS)
def test_a_wrong_step_of_a_parallel_env_is_named(returned: Any, text: str) -> None:
    with pytest.raises(WrongResult) as caught:
        ParallelByAgent(Env(returned), dict).step({})
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("returned", "text"),
    [
        (None, f"{TWO} NoneType."),
        (ZERO, f"{TWO} dict."),  # the observations only, as PettingZoo did before 1.23
        ((5, NONE), f"observations of {RESET} must be a dict by agent, not 5."),
        ((ZERO, None), f"infos of {RESET} must be a dict by agent, not None."),
    ],
)
def test_a_wrong_reset_of_a_parallel_env_is_named(returned: Any, text: str) -> None:
    with pytest.raises(WrongResult) as caught:
        ParallelByAgent(Env(returned), dict).reset()
    assert str(caught.value) == text


@pytest.mark.parametrize("name", OF_AEC)
@pytest.mark.parametrize("method", ["reset", "step"])
def test_a_wrong_attribute_of_an_aec_env_is_named(name: str, method: str) -> None:
    made = Env()
    call = getattr(AECByAgent(made, dict), method)
    args: list[Any] = [0] if method == "step" else []
    call(*args)
    setattr(made, name, 5)
    with pytest.raises(WrongResult, match=f"^{name} of an AECEnv must be a dict by agent, not 5"):
        call(*args)


def test_the_values_by_agent_are_passed_on_unchanged() -> None:
    rewards = {"a": np.ones(2), "new": "x"}
    flags: dict[str, Any] = defaultdict(bool, {"a": np.bool_(True)})
    found = ParallelByAgent(Env([ZERO, rewards, flags, {}, {}]), dict).step({})
    assert found == (ZERO, rewards, flags, {}, {"agents": ["a", "b"], "infos": {}})
    assert type(found[2]) is dict


def test_the_report_of_a_wrong_result_has_no_traceback_of_our_code() -> None:
    error = WrongResult("rewards must be a dict.")
    for one in (error, child_errors.build(describe_exception(error))):
        report = failure_reports.request_failed(one, None)
        assert report.text == "rewards must be a dict."
        assert report.details == {"type": "ValueError", "traceback": ""}
