"""CALL for some environments of a vector, at the env agent and through the learner's vector."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from gymwire import ProxyVectorEnv
from gymwire.env_agent.hosted_vector import HostedVector
from gymwire.env_agent.runners.each_env import access_each
from gymwire.protocol.errors import AttributeDenied, VersionMismatch
from gymwire.protocol.messages import Call
from tests.frameworks.envs import Mixed, timed
from tests.processes import programs
from tests.vector_envs import Counters


@pytest.fixture
def vector() -> HostedVector:
    """Three environments, in wrappers, with the levels 1, 2 and 3."""
    made = HostedVector([timed] * 3, AutoresetMode.SAME_STEP)
    made.set_attr("level", [1, 2, 3])
    return made


def test_only_the_named_environments_are_called(vector: HostedVector) -> None:
    assert access_each(vector, Call("each-call", "scaled", ([2, 0], 10), {"plus": 1})) == (31, 11)
    assert vector.get_attr("calls") == (1, 0, 1)
    assert access_each(vector, Call("each-set", "level", ([1], 9))) == (None,)
    assert vector.get_attr("level") == (1, 9, 3)


def test_reading_and_asking_call_no_method(vector: HostedVector) -> None:
    assert access_each(vector, Call("each-get", "level", ([0, 1],))) == (
        {"value": 1},
        {"value": 2},
    )
    assert access_each(vector, Call("each-get", "scaled", ([2],))) == ({"method": True},)
    assert access_each(vector, Call("each-has", "scaled", ([2],))) == (True,)
    assert access_each(vector, Call("each-has", "nothing", ([0, 1],))) == (False, False)
    assert vector.get_attr("calls") == (0, 0, 0)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("gymnasium.wrappers.common:TimeLimit", True),
        ("gymnasium.core:Wrapper", True),
        ("gymnasium.wrappers.common:Autoreset", False),
        ("tests.frameworks.envs:Mixed", False),  # the environment itself is no wrapper
        ("", False),
    ],
)
def test_wrappers_are_found_by_name(vector: HostedVector, name: str, found: bool) -> None:
    assert access_each(vector, Call("each-wrapped", name, ([0, 2],))) == (found, found)


@pytest.mark.parametrize(
    "numbers",
    [
        *(None, 1, [3], [-1], [True], ["0"], [0.0], {"a": 1}, [[]]),
        *([0, 0], [2, 1, 2], [0, 1, 2, 0], [0] * 100_000),
    ],
)
@pytest.mark.parametrize("mode", ["each-get", "each-call", "each-set", "each-has", "each-wrapped"])
def test_what_names_no_environments_is_refused(
    vector: HostedVector, mode: str, numbers: Any
) -> None:
    with pytest.raises(ValueError, match="from 0 to 2"):
        access_each(vector, Call(mode, "level", (numbers,)))
    assert vector.get_attr("calls") == (0, 0, 0)


def test_a_single_environment_is_the_environment_0() -> None:
    assert access_each(Mixed(), Call("each-call", "scaled", ([0], 3))) == (3,)
    with pytest.raises(ValueError, match=r"from 0 to 0, each at most once, not \[0, 0\]"):
        access_each(Mixed(), Call("each-wrapped", "a:B", ([0, 0],)))


def test_a_vector_of_its_own_kind_answers_as_a_whole() -> None:
    vector = Counters(2)
    with pytest.raises(ValueError, match="each at most once"):
        access_each(vector, Call("each-wrapped", "a:B", ([0, 0],)))
    assert access_each(vector, Call("each-get", "num_envs", ([0, 1],))) == ({"value": 2},) * 2
    vector.scale = np.array(3.5)  # type: ignore[attr-defined]
    assert access_each(vector, Call("each-get", "scale", ([0, 1],))) == ({"value": 3.5},) * 2
    vector.read = lambda: vector.scale  # type: ignore[attr-defined]
    assert access_each(vector, Call("each-call", "read", ([0, 1],))) == (3.5, 3.5)
    assert access_each(vector, Call("each-has", "num_envs", ([0, 1],))) == (True, True)
    assert access_each(vector, Call("each-wrapped", "a:B", ([1],))) == (False,)
    with pytest.raises(ValueError, match="does not consist of single environments"):
        access_each(vector, Call("each-get", "num_envs", ([1],)))


# --- through the learner's vector -----------------------------------------------------------------


@pytest.fixture(scope="module")
def broker(broker_url: str) -> Iterator[str]:
    """The URL of a broker with an env agent that offers `each`."""
    with programs() as started:
        started.env_agent(
            broker_url,
            *("--address", "each", "--env", "tests.frameworks.envs:timed"),
            *("--expose", "level", "--expose", "scaled", "--expose", "calls"),
        )
        yield broker_url


@pytest.mark.parametrize("sessions", [1, 2, 5])
def test_results_come_in_the_order_of_the_numbers(broker: str, sessions: int) -> None:
    with ProxyVectorEnv("each", 5, broker, sessions=sessions) as envs:
        envs.set_attr("level", [1, 2, 3, 4, 5])
        for numbers in ([4, 0, 2], [1], [], [3, 3, 0, 3], [*range(5)]):
            found = envs.access_each(Call("each-call", "scaled", (2,)), numbers)
            assert found == [2 * (number + 1) for number in numbers]
        assert envs.get_attr("calls") == (3, 2, 2, 4, 2)
        with pytest.raises(IndexError):
            envs.access_each(Call("each-call", "scaled", (2,)), [5])


def test_what_is_not_exposed_is_denied_but_wrappers_are_reported(broker: str) -> None:
    with ProxyVectorEnv("each", 2, broker) as envs:
        for mode in ("each-get", "each-has", "each-set", "each-call"):
            with pytest.raises(AttributeDenied, match="--expose hidden"):
                envs.access_each(Call(mode, "hidden"), [0])
        name = f"{gymnasium.wrappers.TimeLimit.__module__}:TimeLimit"
        assert envs.access_each(Call("each-wrapped", name), [1, 0]) == [True, True]


def test_an_env_agent_of_an_older_release_is_named(broker: str) -> None:
    with ProxyVectorEnv("each", 2, broker) as envs:
        envs._group[0].opened.limits["capabilities"] = []
        with pytest.raises(VersionMismatch, match=r"Upgrade the env agent at 'each'"):
            envs.access_each(Call("each-get", "level"), [0])
