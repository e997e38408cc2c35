"""`gymwire.aio`: many tasks on one connection, cancellation, and everything else of a proxy."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest

pytest.importorskip("anyio")
pytest.importorskip("greenlet")

import anyio

from gymwire.aio import Connection, ProxyEnv
from gymwire.errors import (
    AddressUnknown,
    AttributeDenied,
    BrokerUnreachable,
    EnvironmentClosed,
    EnvironmentFailed,
    EnvironmentLost,
    MoveError,
    NoFreeSlot,
    ResetNeeded,
)
from gymwire.learner_agent.client import direct as direct_paths
from tests.processes import PATIENCE_S, Programs, programs
from tests.sameness import assert_same
from tests.time_limits import times_out

ENV = "CartPole-v1"
SLOW = "tests.learner_agent.aio.envs:Gate"
Body = Callable[[], Awaitable[None]]


@pytest.fixture(params=["asyncio", "trio"])
def go(request: pytest.FixtureRequest) -> Callable[[Body], None]:
    """Run a coroutine function in an event loop of each kind."""
    pytest.importorskip(request.param)
    return lambda body: anyio.run(body, backend=request.param)


@pytest.fixture(autouse=True)
def _direct_connections_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait as long as it takes: dozens of tasks that open sessions share the event loop's time."""
    monkeypatch.setattr(direct_paths, "ALWAYS_S", PATIENCE_S)


@pytest.fixture(scope="module")
def started() -> Iterator[Programs]:
    with programs() as found:
        yield found


@pytest.fixture(scope="module")
def url(started: Programs) -> str:
    found = started.broker()[1]
    services = ["--env", ENV, "--address", "cartpole", "--max-sessions", "64"]
    program = started.start(
        "gymwire", "serve", "--broker", found, "--log-format", "json", *services
    )
    program.wait_for("offering")
    started.env_agent(
        found, "--env", SLOW, "--address", "gate", "--max-sessions", "4", "--expose", "executed",
        "--expose", "fail", "--expose", "mood",
    )  # fmt: skip
    return found


class Gates:
    """Opens and closes the gate of the environments `Gate`: a closed one holds a step up."""

    def __init__(self, folder: str) -> None:
        self._path = os.path.join(folder, "closed")  # noqa: PTH118

    def shut(self) -> None:
        with open(self._path, "w"):  # noqa: PTH123
            pass

    def open(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)  # noqa: PTH108

    @property
    def kwargs(self) -> dict[str, Any]:
        return {"gate": self._path}


@pytest.fixture
def gates(tmp_path: Any) -> Iterator[Gates]:
    found = Gates(str(tmp_path))
    yield found
    found.open()


def at_gate(url: str, gates: Gates, **options: Any) -> ProxyEnv:
    return ProxyEnv("gate", url, env_kwargs=gates.kwargs, **options)


async def cancelled(call: Awaitable[Any]) -> None:
    with anyio.move_on_after(0.3) as scope:
        await call
    assert scope.cancelled_caught


def test_a_missing_attribute_says_how_to_get_it() -> None:
    env = ProxyEnv("cartpole")
    for name, said in (("spec", "once the environment is open"), ("gravity", r"env.get\('gravity")):
        with pytest.raises(AttributeError, match=said):
            getattr(env, name)


@pytest.mark.parametrize("direct", ["never", "always"])
def test_remote_and_local_trajectories_are_the_same(
    go: Callable[[Body], None], url: str, direct: str
) -> None:
    async def body() -> None:
        local = gymnasium.make(ENV)
        async with ProxyEnv("cartpole", url, direct=direct) as env:
            assert env.observation_space == local.observation_space
            assert env.action_space == local.action_space
            assert env.spec is not None
            assert env.spec.id == ENV
            assert env.metadata["render_modes"] == local.metadata["render_modes"]
            for seed in range(3):
                assert_same(await env.reset(seed=seed), local.reset(seed=seed))
                over = False
                while not over:
                    expected = local.step(1)
                    assert_same(await env.step(1), expected)
                    over = expected[2]

    go(body)


@pytest.mark.parametrize("direct", ["never", "always"])
def test_many_tasks_share_a_connection(go: Callable[[Body], None], url: str, direct: str) -> None:
    async def play(connection: Connection, seed: int, found: dict[int, Any]) -> None:
        async with ProxyEnv("cartpole", connection=connection, direct=direct) as env:
            await env.reset(seed=seed)
            found[seed] = [await env.step(step % 2) for step in range(8)]

    async def body() -> None:
        found: dict[int, Any] = {}
        async with Connection(url) as connection:
            async with anyio.create_task_group() as group:
                for seed in range(40):
                    group.start_soon(play, connection, seed, found)
            (offer,) = await connection.find("cartpole")
            assert offer["address"] == "cartpole"
        for seed, steps in found.items():
            local = gymnasium.make(ENV)
            local.reset(seed=seed)
            assert_same(steps, [local.step(step % 2) for step in range(8)])
        assert len(found) == 40

    go(body)


def test_a_cancelled_step_is_waited_for_by_the_same_call(
    go: Callable[[Body], None], url: str, gates: Gates
) -> None:
    async def body() -> None:
        async with at_gate(url, gates) as env:
            await env.reset()
            action = np.array([1, 2])
            gates.shut()
            await cancelled(env.step(action))
            await cancelled(env.step(action))
            gates.open()
            assert (await env.step(action))[1] == 1.0  # its number
            assert (await env.step(action))[1] == 2.0
            assert await env.get("executed") == [[1, 2], [1, 2]]

    go(body)


def test_the_reply_to_a_cancelled_step_is_dropped_before_another_call(
    go: Callable[[Body], None], url: str, gates: Gates
) -> None:
    async def body() -> None:
        async with at_gate(url, gates) as env:
            await env.reset()
            action = np.array([1, 2])
            gates.shut()
            await cancelled(env.step(action))
            action[:] = 3  # the caller reuses its array
            await cancelled(env.step(action))  # cancelled while the first one is awaited
            gates.open()
            assert (await env.step(action))[1] == 2.0
            assert await env.get("executed") == [[1, 2], [3, 3]]
            gates.shut()
            await cancelled(env.step(action))
            gates.open()
            await env.set("mood", "calm")
            assert await env.get("mood") == "calm"
            assert len(await env.get("executed")) == 3

    go(body)


@pytest.mark.parametrize("on_lost", ["raise", "replay"])
def test_a_reset_replaces_a_cancelled_step(
    go: Callable[[Body], None], url: str, gates: Gates, on_lost: str
) -> None:
    async def body() -> None:
        async with at_gate(url, gates, on_lost=on_lost) as env:
            await env.reset(seed=1)
            gates.shut()
            await cancelled(env.step(np.array([1, 2])))
            gates.open()
            observation, _ = await env.reset(seed=2)
            assert_same(observation, np.zeros(2, np.int64))
            assert (await env.step(np.array([0, 0])))[1] == 1.0

    go(body)


def test_a_failure_of_a_cancelled_step_is_dropped_with_it(
    go: Callable[[Body], None], url: str, gates: Gates
) -> None:
    async def body() -> None:
        async with at_gate(url, gates) as env:
            await env.reset()
            gates.shut()
            await cancelled(env.step(np.array([9, 9])))  # an action that fails
            gates.open()
            assert await env.get("executed") == [[9, 9]]

    go(body)


def test_a_time_limit_leaves_the_step_to_the_same_call(
    go: Callable[[Body], None], url: str, gates: Gates
) -> None:
    async def body() -> None:
        async with at_gate(url, gates) as env:
            await env.reset()
            gates.shut()
            assert env._env is not None
            with times_out(env._env):
                await env.step(np.array([1, 2]))
            with pytest.raises(MoveError):
                await env.step(np.array([2, 2]))
            gates.open()
            assert (await env.step(np.array([1, 2])))[1] == 1.0

    go(body)


def test_one_task_at_a_time_uses_an_environment_and_any_closes_it(
    go: Callable[[Body], None], url: str, gates: Gates
) -> None:
    async def body() -> None:
        env = await at_gate(url, gates).open()
        await env.reset()
        gates.shut()
        ended: list[BaseException] = []

        async def step() -> None:
            try:
                await env.step(np.array([1, 2]))
            except EnvironmentClosed as error:
                ended.append(error)

        async with anyio.create_task_group() as group:
            group.start_soon(step)
            await anyio.sleep(0)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(MoveError, match="Another task"):
                await env.step(np.array([1, 2]))
            await env.close()
        assert len(ended) == 1
        await env.close()
        for call in (env.reset(), env.step(0), env.render(), env.open(), env.get("mood")):
            with pytest.raises(EnvironmentClosed):
                await call

    go(body)


def test_errors_are_those_of_a_blocking_proxy(
    go: Callable[[Body], None], url: str, gates: Gates
) -> None:
    async def body() -> None:
        with pytest.raises(AddressUnknown):
            await ProxyEnv("nobody", url).open()
        with pytest.raises(BrokerUnreachable):
            await ProxyEnv("nobody", "tcp://127.0.0.1:9", timeout_s=0.5).open()
        with pytest.raises(MoveError, match="not open"):
            await ProxyEnv("cartpole", url).reset()
        with pytest.raises(EnvironmentClosed, match="not open"):
            await ProxyEnv("cartpole", connection=Connection(url)).open()
        async with Connection(url) as connection, contextlib.AsyncExitStack() as stack:
            for _ in range(4):
                env = ProxyEnv("gate", connection=connection, env_kwargs=gates.kwargs)
                await stack.enter_async_context(env)
            with pytest.raises(NoFreeSlot):
                await ProxyEnv("gate", connection=connection).open()
            with pytest.raises(ResetNeeded):
                await env.step(np.array([1, 2]))
            await env.reset()
            with pytest.raises(EnvironmentFailed, match="fails"):
                await env.step(np.array([9, 9]))
            with pytest.raises(AttributeDenied):
                await env.get("secret")

    go(body)


def test_a_closed_connection_is_named(go: Callable[[Body], None], url: str, gates: Gates) -> None:
    async def ends(call: Callable[[], Awaitable[Any]]) -> None:
        with pytest.raises(EnvironmentClosed, match="connection of this environment"):
            await call()

    async def body() -> None:
        async with anyio.create_task_group() as group, Connection(url) as connection:
            env = await ProxyEnv("cartpole", connection=connection).open()
            await env.reset()
            gates.shut()
            for _ in range(2):  # one of them receives for both
                busy = ProxyEnv("gate", connection=connection, env_kwargs=gates.kwargs)
                await (await busy.open()).reset()
                group.start_soon(ends, partial(busy.step, 0))
            await anyio.wait_all_tasks_blocked()
            group.start_soon(ends, partial(env.step, 0))  # in the same round as the close
            group.start_soon(connection.close)
        gates.open()
        for call in (partial(env.step, 0), env.reset, env.render):
            await ends(call)
        await env.close()

    go(body)


def test_what_blocks_is_run_without_blocking(go: Callable[[Body], None], url: str) -> None:
    async def body() -> None:
        async with ProxyEnv("cartpole", url) as env:
            local = gymnasium.make(ENV)

            def play(one: Any) -> list[Any]:
                wrapped = gymnasium.wrappers.TimeLimit(one, 5)
                found = [wrapped.reset(seed=4), one.unwrapped.np_random.integers(1000)]
                return [*found, *(wrapped.step(step % 2) for step in range(5)), wrapped.reset()]

            assert_same(await env.run(play), play(local))

    go(body)


def test_a_session_is_resumed_from_a_token(go: Callable[[Body], None], url: str) -> None:
    async def body() -> None:
        first = await ProxyEnv("cartpole", url, direct="never").open()
        await first.reset(seed=5)
        await first.step(1)
        token = await first.session_token()
        assert first._env is not None
        first._env._session.connection.close(goodbye=False)
        async with ProxyEnv.resume(token) as env:
            local = gymnasium.make(ENV)
            local.reset(seed=5)
            local.step(1)
            assert_same(await env.step(0), local.step(0))

    go(body)


@contextlib.asynccontextmanager
async def cut_off(programs: Programs, **options: Any) -> AsyncIterator[tuple[ProxyEnv, Any]]:
    """Yield an environment at an agent, and a function that replaces the agent."""
    url = programs.broker()[1]

    def agent() -> Any:
        return programs.env_agent(url, "--env", ENV, "--address", "cartpole")

    first = agent()

    def replace() -> None:
        first.kill()
        agent()

    async with ProxyEnv("cartpole", url, **options) as env:
        await env.reset(seed=1)
        await env.step(0)
        yield env, replace


def test_a_lost_environment_is_said_to_be_lost_and_reset_opens_another(
    go: Callable[[Body], None], programs: Programs
) -> None:
    async def body() -> None:
        async with cut_off(programs, wait_s=10) as (env, replace):
            replace()
            with pytest.raises(EnvironmentLost):
                await env.step(1)
            assert_same(await env.reset(seed=1), gymnasium.make(ENV).reset(seed=1))

    go(body)


def test_a_lost_episode_is_replayed(go: Callable[[Body], None], programs: Programs) -> None:
    async def body() -> None:
        async with cut_off(programs, on_lost="replay") as (env, replace):
            replace()
            local = gymnasium.make(ENV)
            local.reset(seed=1)
            local.step(0)
            assert_same(await env.step(1), local.step(1))

    go(body)


@pytest.mark.parametrize("direct", ["never", "always"])
def test_cancellations_at_any_time_lose_nothing_among_many_tasks(
    go: Callable[[Body], None], url: str, direct: str
) -> None:
    rng = random.Random(1)

    async def play(connection: Connection, seed: int) -> None:
        local = gymnasium.make(ENV)
        async with ProxyEnv("cartpole", connection=connection, direct=direct) as env:
            assert_same(await env.reset(seed=seed), local.reset(seed=seed))
            for step in range(8):
                got, limit_s = None, 0.02
                while got is None:
                    with anyio.move_on_after(rng.random() * limit_s):
                        got = await env.step(step % 2)
                    limit_s *= 1.5  # or a busy machine would never complete a step
                assert_same(got, local.step(step % 2))

    async def body() -> None:
        async with Connection(url) as connection, anyio.create_task_group() as group:
            for seed in range(30):
                group.start_soon(play, connection, seed)

    go(body)


def test_each_of_many_tasks_learns_of_a_lost_agent_and_of_a_restarted_broker(
    go: Callable[[Body], None], programs: Programs, gates: Gates
) -> None:
    broker, url = programs.broker()
    service = ("--env", SLOW, "--address", "gate", "--max-sessions", "20")
    agent = programs.env_agent(url, *service)
    ended: list[Any] = []

    async def body() -> None:
        async with Connection(url) as connection:
            envs = [
                ProxyEnv("gate", connection=connection, env_kwargs=gates.kwargs) for _ in range(20)
            ]

            async def step(env: ProxyEnv) -> None:
                try:
                    ended.append((await env.step(np.array([1, 2])))[1])
                except EnvironmentLost as error:
                    ended.append(type(error))

            async def in_steps(act: Callable[[], object]) -> None:
                gates.shut()
                ended.clear()
                async with anyio.create_task_group() as group:
                    for env in envs:
                        group.start_soon(step, env)
                    await anyio.sleep(0.2)
                    act()
                    gates.open()

            for env in envs:
                await env.open()
                await env.reset()

            def restart() -> None:
                broker.kill()
                programs.broker(url)

            await in_steps(restart)
            assert ended == [1.0] * 20
            await in_steps(agent.kill)
            assert ended == [EnvironmentLost] * 20
            for env in envs:
                await env.close()

    go(body)
