"""Addresses as OpenEnv servers, used as TRL and verifiers use them.

The calls are those of TRL 1.16 (its examples of `GRPOTrainer(environment_factory=…)`) and of the
OpenEnv taskset of verifiers 0.3. The latter itself runs where it is installed; openai-agents, which
it requires, needs an older version of websockets than constraints.txt pins.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import gymnasium
import pytest

from gymwire.protocol.json_values import to_json
from tests.processes import programs

openenv = pytest.importorskip("openenv", reason="needs the extra gymwire[openenv]")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The URL of an OpenEnv server."""
    with programs() as started:
        _, broker = started.broker()
        started.env_agent(broker, "cart", "CartPole-v1")
        gateway = started.start(
            *("gymwire", "web", "--broker", broker, "--listen", "127.0.0.1:0"),
            *("--log-format", "json", "--openenv", "cart"),
        )
        yield f"{gateway.wait_for('gateway listening')['url']}/openenv/cart"


def local_episode(seed: int, actions: list[int]) -> tuple[list[Any], float]:
    """Return the observations of a local episode, and the sum of its rewards."""
    env = gymnasium.make("CartPole-v1")
    seen, total = [to_json(env.reset(seed=seed)[0])], 0.0
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(action)
        seen.append(to_json(observation))
        total += float(reward)
        if terminated or truncated:
            break
    return seen, total


def test_the_environments_of_trl(url: str) -> None:
    class CartTools:
        """An environment as TRL's guide demands it: `reset`, and tools with typed arguments."""

        def __init__(self) -> None:
            self.client = openenv.GenericEnvClient(base_url=url)
            self.reward, self.done = 0.0, False

        def reset(self, **columns: Any) -> str:
            result = self.client.reset(seed=columns["seed"])
            self.reward, self.done = 0.0, False
            return str(result.observation["observation"])

        def push(self, direction: str) -> str:
            """
            Push the cart.

            Args:
                direction: "left" or "right".

            Returns:
                The observation after the push.
            """
            if self.done:
                raise ValueError("The episode has ended.")
            result = self.client.step({"action": int(direction == "right")})
            self.reward += result.reward or 0.0
            self.done = result.done
            return str(result.observation["observation"])

    pool = [CartTools() for _ in range(4)]  # the trainer keeps them, one for each completion
    for seed in (1, 2):
        expected, total = local_episode(seed, [1] * 100)
        for env in pool:
            seen = [env.reset(seed=seed, prompt="Balance the pole.")]
            while not env.done:
                seen.append(env.push("right"))
            assert (seen, env.reward) == ([*map(str, expected)], total)
            with pytest.raises(ValueError, match="has ended"):
                env.push("left")
    for env in pool:
        env.client.close()


async def run_as_verifiers(url: str, reset: dict[str, Any], player: Any) -> float:
    """Play an episode with the calls of verifiers' OpenEnv taskset; return the sum of rewards."""
    client, total = openenv.GenericEnvClient(base_url=url), 0.0
    async with client:
        base = client._base_url.replace("ws://", "http://", 1)
        schema = (await asyncio.to_thread(read_json, f"{base}/schema"))["action"]
        # With these titles it expects MCP tools instead of actions.
        assert schema["title"] not in {"Action", "CallToolAction", "ListToolsAction"}
        [field] = schema["required"]  # so the model may reply with the bare value
        result = await client.reset(**reset)
        while not result.done:
            payload = {"observation": result.observation, "action_schema": schema}
            reply = (await player.turn(json.dumps(payload, ensure_ascii=False))).last_reply
            result = await client.step({field: json.loads(reply)})
            total += result.reward or 0.0
    return total


def read_json(url: str) -> Any:
    import urllib.request

    with urllib.request.urlopen(url) as answer:
        return json.load(answer)


class Player:
    """A model that always pushes to the right, and keeps what it has seen."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.rewards: dict[str, float] = {}
        self.trace = SimpleNamespace(record_reward=self.rewards.__setitem__)

    @contextlib.asynccontextmanager
    async def interaction(self, task: Any) -> AsyncIterator[Player]:
        yield self

    async def turn(self, payload: str) -> Any:
        self.seen.append(json.loads(payload)["observation"]["observation"])
        return SimpleNamespace(terminated=False, last_reply="1")


def test_the_calls_of_verifiers(url: str) -> None:
    player = Player()
    total = asyncio.run(run_as_verifiers(url, {"seed": 3}, player))
    expected, local_total = local_episode(3, [1] * 100)
    assert (player.seen, total) == (expected[:-1], local_total)


def test_the_environment_of_verifiers_itself(url: str) -> None:
    taskset = pytest.importorskip("verifiers.v1.tasksets.openenv.taskset", reason="needs verifiers")
    config = taskset.OpenEnvConfig(base_url=url, resets=[{"seed": 3}])
    [task] = taskset.OpenEnvTaskset(config).load()
    player = Player()
    run = taskset.OpenEnvEnv.run(object(), task, SimpleNamespace(player=player))
    asyncio.run(run)
    expected, total = local_episode(3, [1] * 100)
    assert (player.seen, player.rewards) == (expected[:-1], {"openenv_reward": total})
