"""Calls of blocking code in tasks, on stacks that later calls use again."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import pytest

pytest.importorskip("anyio")
pytest.importorskip("greenlet")

import anyio
from anyio.lowlevel import checkpoint

from gymwire.learner_agent.aio import calls
from gymwire.learner_agent.aio.calls import current_number, future_factory, run, suspend

CALLS = 20  # at the same time


@pytest.fixture(params=["asyncio", "trio"])
def go(request: pytest.FixtureRequest) -> Callable[[Callable[[], Awaitable[None]]], None]:
    """Run a coroutine function in an event loop of each kind."""
    pytest.importorskip(request.param)
    return lambda body: anyio.run(body, backend=request.param)


class Payload:
    """Something large, so to speak."""


def test_an_ended_call_keeps_neither_arguments_nor_result(go: Callable[..., None]) -> None:
    def give_back(argument: Payload, *, keyword: Payload) -> Payload:
        suspend(checkpoint())
        return Payload()

    async def body() -> None:
        given = Payload(), Payload()
        result = await run(give_back, given[0], keyword=given[1])
        alive = [weakref.ref(one) for one in (*given, result)]
        del given, result
        gc.collect()
        assert [one() for one in alive] == [None, None, None]

    go(body)


def test_calls_take_the_context_of_their_task_and_have_numbers_of_their_own(
    go: Callable[..., None],
) -> None:
    variable: ContextVar[int] = ContextVar("variable")
    numbers, seen = set[int](), list[int]()

    def work() -> None:
        numbers.add(current_number())
        value = variable.get()
        suspend(checkpoint())
        assert variable.get() == value
        variable.set(-value)

    async def task(value: int) -> None:
        variable.set(value)
        await run(work)
        seen.append(variable.get())

    async def body() -> None:
        for first in (1, CALLS + 1):  # the second time on the same stacks
            async with anyio.create_task_group() as group:
                for value in range(first, first + CALLS):
                    group.start_soon(task, value)

    go(body)
    assert sorted(seen) == list(range(-2 * CALLS, 0))
    assert len(numbers) == 2 * CALLS
    assert current_number() == -1


def test_a_stack_is_used_again_unless_its_call_raised(go: Callable[..., None]) -> None:
    stacks: list[Any] = []

    def work(error: Exception | None = None) -> None:
        stacks.append(calls.getcurrent())
        suspend(checkpoint())
        if error is not None:
            raise error

    async def body() -> None:
        await run(work)
        with pytest.raises(ValueError, match="broken"):
            await run(work, ValueError("broken"))
        await run(work)

    go(body)
    assert stacks[0] is stacks[1]
    assert stacks[1].dead
    assert stacks[2] is not stacks[1]


def test_an_interrupted_call_interrupts_no_later_one(go: Callable[..., None]) -> None:
    def go_on() -> str:
        try:
            suspend(checkpoint())
        except calls.Interrupted:
            return "interrupted"
        return "ended"

    async def body() -> None:
        stack = calls.take_stack()
        stack.interrupt()
        assert await calls.run_on(stack, go_on, (), {}) == "interrupted"
        assert await run(go_on) == "ended"

    go(body)


def test_a_future_lets_the_task_that_awaits_it_go_on(go: Callable[..., None]) -> None:
    async def body() -> None:
        future = future_factory()()
        async with anyio.create_task_group() as group:
            group.start_soon(run, lambda: suspend(future))
            await checkpoint()
            assert not future.done()
            future.set_result(None)
        assert future.done()

    go(body)
