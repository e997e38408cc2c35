"""Environments with asynchronous methods."""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gymnasium
import numpy as np
import pytest
import structlog.testing
from gymnasium.spaces import Discrete
from gymnasium.vector import AutoresetMode

from gymwire.env_agent import failure_reports
from gymwire.env_agent.event_loop import Bridge, call, is_asynchronous
from gymwire.env_agent.factory import Factory
from tests.processes import PATIENCE_S


class Waits(gymnasium.Env[Any, Any]):
    """Each step waits until `together` environments are in a step."""

    observation_space = action_space = Discrete(10)
    together = 1
    arrived = 0
    all_arrived: asyncio.Event
    closed = 0

    def __init__(self, together: int = 1) -> None:
        self.loop = asyncio.get_running_loop()  # fails in any other thread
        self.thread = threading.get_ident()
        Waits.together, Waits.arrived, Waits.all_arrived = together, 0, asyncio.Event()

    def check(self) -> None:
        assert threading.get_ident() == self.thread

    async def reset(self, *, seed: Any = None, options: Any = None) -> tuple[int, dict[str, Any]]:  # type: ignore[override]
        super().reset(seed=seed)
        self.check()
        await asyncio.sleep(0)
        return 3, {"thread": self.thread}

    async def step(self, action: Any) -> Any:  # type: ignore[override]
        self.check()
        if isinstance(action, BaseException):
            raise action
        Waits.arrived += 1
        if Waits.arrived == Waits.together:
            Waits.all_arrived.set()
        await Waits.all_arrived.wait()
        return action, 1.0, action == 9, False, {}

    async def double(self, number: int) -> int:
        self.check()
        return 2 * number

    def plain(self) -> int:
        self.check()
        return 7

    def render(self) -> Any:
        self.check()
        return "picture"

    async def close(self) -> None:  # type: ignore[override]
        self.check()
        Waits.closed += 1


class OnlyStep(gymnasium.Env[Any, Any]):
    observation_space = action_space = Discrete(10)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[int, dict[str, Any]]:
        return 1, {}

    async def step(self, action: Any) -> Any:  # type: ignore[override]
        return action, 0.0, False, False, {}


@pytest.mark.parametrize("is_first", [True, False])
def test_an_asynchronous_environment_is_made_used_and_closed_in_the_event_loop(
    is_first: bool,
) -> None:
    factory = Factory("waits:Waits", Waits)
    env: Any = factory.make_first() if is_first else factory.make(None, {})
    observation, info = env.reset(seed=1)
    assert observation == 3
    assert info["thread"] != threading.get_ident()
    assert env.step(4) == (4, 1.0, False, False, {})
    assert env.render() == "picture"
    assert env.get_wrapper_attr("double")(21) == 42
    assert env.get_wrapper_attr("plain")() == 7
    closed = Waits.closed
    env.close()
    assert Waits.closed == closed + 1


def test_many_steps_wait_at_the_same_time() -> None:
    count = 100
    factory = Factory("waits:Waits", Waits)
    envs = [factory.make(None, {"together": count}) for _ in range(count)]
    with ThreadPoolExecutor(count) as threads:
        results = list(threads.map(lambda env: env.step(5)[0], envs))
    assert results == [5] * count


@pytest.mark.parametrize("made", [OnlyStep, lambda: OnlyStep()])
def test_one_asynchronous_method_is_enough(made: Any) -> None:
    env = Factory("only:OnlyStep", made).make(None, {})
    assert isinstance(env, Bridge)
    assert env.reset() == (1, {})
    assert env.step(2)[0] == 2


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_vectors_of_asynchronous_environments_work(mode: AutoresetMode) -> None:
    vector = Factory("waits:Waits", Waits).make_vector(3, mode, None, {})
    assert list(vector.reset(seed=1)[0]) == [3, 3, 3]
    assert list(vector.step([1, 2, 9])[0])[:2] == [1, 2]
    vector.close()


def test_an_asynchronous_environment_may_be_offered_by_its_id() -> None:
    gymnasium.register("Waits-v0", Waits, max_episode_steps=2)  # type: ignore[arg-type]
    factory = Factory("Waits-v0")
    try:
        env = factory.make(None, {"together": 1})
        assert env.reset(seed=1)[0] == 3
        assert [env.step(5)[:4] for _ in range(2)] == [
            (5, 1.0, False, False),
            (5, 1.0, False, True),
        ]
        assert env.spec is not None
        assert (env.spec.id, env.spec.max_episode_steps) == ("Waits-v0", 2)
        closed = Waits.closed
        env.close()
        assert Waits.closed == closed + 1
        vector = factory.make_vector(2, AutoresetMode.NEXT_STEP, None, {})
        assert vector.reset(seed=1)[0].tolist() == [3, 3]
        assert vector.step(np.array([4, 4]))[0].tolist() == [4, 4]
        vector.close()
    finally:
        del gymnasium.registry["Waits-v0"]


@pytest.mark.parametrize(
    "error", [ValueError("no"), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()]
)
def test_whatever_a_step_raises_reaches_its_caller_only(error: BaseException) -> None:
    env = Factory("waits:Waits", Waits).make(None, {})
    with pytest.raises(type(error)) as caught:
        env.step(error)
    assert caught.value is error
    assert env.step(1)[0] == 1


class Stops(OnlyStep):
    async def step(self, action: Any) -> Any:  # type: ignore[override]
        asyncio.get_running_loop().stop()
        return action, 0.0, False, False, {}


def test_an_environment_that_stops_the_event_loop_does_not_stop_the_others() -> None:
    for _ in range(2):
        env = Factory("stops:Stops", Stops).make(None, {})
        assert env.step(2)[0] == 2


class Exits(OnlyStep):
    """Each step leaves a task behind that raises the action."""

    async def step(self, action: Any) -> Any:  # type: ignore[override]
        async def fail() -> None:
            raise action

        self.task = asyncio.create_task(fail())
        return 1, 0.0, False, False, {}


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt("now"), ValueError("no")])
def test_a_background_task_that_raises_ends_no_event_loop(error: BaseException) -> None:
    env = Factory("exits:Exits", Exits).make(None, {})
    for _ in range(2):
        # In a thread of its own, because it would wait forever for an event loop that has ended.
        steps: list[Any] = []
        thread = threading.Thread(target=lambda: steps.append(env.step(error)), daemon=True)  # noqa: B023
        with structlog.testing.capture_logs() as log:
            thread.start()
            thread.join(PATIENCE_S)
        assert [one[0] for one in steps] == [1]
        logged = [(one["event"], one["error"]) for one in log]
        is_logged = isinstance(error, SystemExit | KeyboardInterrupt)  # the others, by asyncio
        assert logged == [("background task raised", failure_reports.summary(error))] * is_logged


def test_a_constructor_that_raises_says_so() -> None:
    def fail() -> None:
        raise OSError("no device")

    with pytest.raises(OSError, match="no device"):
        call(fail)


def test_marked_functions_are_asynchronous() -> None:
    def step(action: int) -> None: ...

    env = gymnasium.Env[int, int]()
    env.step = step  # type: ignore[method-assign, assignment]
    assert not is_asynchronous(env)
    if hasattr(inspect, "markcoroutinefunction"):  # since Python 3.12
        inspect.markcoroutinefunction(step)
        assert is_asynchronous(env)


def test_an_environment_with_a_method_of_its_own_is_not_kept() -> None:
    def looked_at() -> weakref.ref[Any]:
        env = gymnasium.make("CartPole-v1").unwrapped
        step = env.step
        env.step = lambda action: step(action)  # type: ignore[method-assign]
        assert not is_asynchronous(env)
        return weakref.ref(env)

    kept = looked_at()
    gc.collect()
    assert kept() is None


def test_ordinary_environments_are_not_bridged() -> None:
    assert not is_asynchronous(gymnasium.Env)
    assert not is_asynchronous(gymnasium.make("CartPole-v1"))
