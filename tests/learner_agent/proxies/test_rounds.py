"""A call that names an environment several times reaches it exactly that often."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gymwire import ProxyVectorEnv
from gymwire.env_agent.config import service
from gymwire.protocol.errors import EncodingError, RequestTimeout
from gymwire.protocol.messages import Call
from tests.learner_agent.client.test_interrupted import in_memory, moments, run
from tests.wire import BROKER, Faults, Network

CALL = Call("each-call", "scaled", (2,))
EACH = 5  # of so many moments one is tried


@pytest.fixture
def network() -> Iterator[Network]:
    with in_memory() as made:
        exposed = ["level", "scaled", "calls"]
        made.env_agent(service(address="each", env="tests.frameworks.envs:timed", expose=exposed))
        yield made


@pytest.fixture(params=[1, 2])
def envs(network: Network, request: Any) -> ProxyVectorEnv:
    made = ProxyVectorEnv("each", 2, BROKER, sessions=request.param, step_timeout_s=5.0)
    made.set_attr("level", [1, 2])
    return made


def calls(envs: ProxyVectorEnv) -> list[int]:
    return list(envs.get_attr("calls"))


def in_round(number: int, envs: ProxyVectorEnv, action: Callable[[], object]) -> None:
    """Do something after the requests of this round have been sent."""
    group: Any = envs._group
    wait, count = group.wait_for_all, 0

    def act(*args: Any) -> None:
        nonlocal count
        count += 1
        if count == number:
            action()
        wait(*args)

    group.wait_for_all = act


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("env_ids", [[0, 0, 0], [0, 1, 0, 1, 0], [1, 0, 1, 1]], ids=str)
def test_after_a_timeout_the_same_call_goes_on(
    network: Network, envs: ProxyVectorEnv, env_ids: list[int], number: int
) -> None:
    def lose() -> None:
        network.faults = Faults(drop=1.0)
        network.after(6.0, lambda: setattr(network, "faults", Faults()))

    in_round(number, envs, lose)
    with pytest.raises(RequestTimeout):
        envs.access_each(CALL, env_ids)
    assert envs.access_each(CALL, env_ids) == [2 * (one + 1) for one in env_ids]
    assert calls(envs) == [env_ids.count(0), env_ids.count(1)]
    assert envs.access_each(CALL, env_ids) == [2 * (one + 1) for one in env_ids]
    assert calls(envs) == [2 * env_ids.count(0), 2 * env_ids.count(1)]


def test_a_timeout_recommends_a_reset_except_of_a_reset(
    network: Network, envs: ProxyVectorEnv
) -> None:
    calls_and_texts: list[tuple[Any, str]] = [
        (envs.reset, r"keep waiting\. If "),
        (lambda: envs.step([0, 0]), r"keep waiting, or call reset\(\) to drop the results?\. If "),
    ]
    for call, text in calls_and_texts:
        network.faults = Faults(drop=1.0)
        network.after(6.0, lambda: setattr(network, "faults", Faults()))
        with pytest.raises(RequestTimeout, match=text):
            call()
        call()


def test_after_another_call_the_same_one_begins_anew(
    network: Network, envs: ProxyVectorEnv
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    in_round(2, envs, interrupt)
    with pytest.raises(KeyboardInterrupt):
        envs.access_each(CALL, [0, 0])
    envs.reset(seed=1)
    before = calls(envs)
    envs.access_each(CALL, [0, 0])
    assert calls(envs) == [before[0] + 2, before[1]]


def test_another_call_gets_none_of_the_results(envs: ProxyVectorEnv) -> None:
    group: Any = envs._group
    ask, count = group.ask, 0

    def interrupted(*args: Any) -> Any:
        nonlocal count
        count += 1
        if count == 2:
            raise KeyboardInterrupt
        return ask(*args)

    group.ask = interrupted
    with pytest.raises(KeyboardInterrupt):
        envs.access_each(CALL, [0, 0])
    assert envs.access_each(replace(CALL, args=(3,)), [0, 0]) == [3, 3]


@pytest.mark.parametrize("values", [(object(),), (1, {"deep": [object()]})], ids=["0", "1"])
def test_an_error_names_the_same_value_as_without_repetitions(
    envs: ProxyVectorEnv, values: tuple[Any, ...]
) -> None:
    texts = []
    for env_ids in ([0], [0, 0]):
        with pytest.raises(EncodingError) as caught:
            envs.access_each(replace(CALL, args=values), env_ids)
        texts.append(str(caught.value))
    assert texts[0] == texts[1]
    assert envs.access_each(CALL, [0, 0]) == [2, 2]


def test_nothing_of_a_call_that_has_returned_is_kept(envs: ProxyVectorEnv) -> None:
    rounds = envs._steps.rounds
    array = np.ones(1000)
    assert len(envs.access_each(replace(CALL, args=(array,)), [0, 0, 1])) == 3
    assert rounds.finished is not None  # an exception may still come
    assert len(rounds.finished.call) < array.nbytes
    envs.get_attr("level")
    assert rounds.finished is None


def test_an_interrupt_at_any_moment_repeats_nothing(envs: ProxyVectorEnv) -> None:
    def call() -> None:
        assert envs.access_each(CALL, [0, 1, 0]) == [2, 4, 2]

    some = moments(call)[::EACH]
    for moment in some:
        run(call, moment)
        call()
    count = 1 + len(some)
    assert calls(envs) == [2 * count, count]
