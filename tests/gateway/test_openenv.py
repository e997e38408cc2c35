"""Addresses as OpenEnv servers, used by OpenEnv's own client."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest

from gymwire import ProxyEnv
from gymwire.protocol.json_values import to_json
from tests.processes import Program, Programs, programs

openenv = pytest.importorskip("openenv.core", reason="needs the extra gymwire[openenv]")


@pytest.fixture(scope="module")
def started_gateway() -> Iterator[tuple[str, Program]]:
    """The URL of a broker, and a gateway with two OpenEnv servers."""
    with programs() as started:
        _, broker = started.broker()
        started.env_agent(broker, "--address", "cart", "--env", "CartPole-v1")
        started.env_agent(
            broker, "--address", "lab/lake", "--env", "FrozenLake-v1", "--max-sessions", "2"
        )
        doors = ("--openenv", "cart", "--openenv", "lab/lake", "--openenv", "nowhere")
        gateway = started.start(
            *("gymwire", "web", "--broker", broker, "--listen", "127.0.0.1:0"),
            *("--log-format", "json", *doors),
        )
        yield broker, gateway


@pytest.fixture(scope="module")
def served(started_gateway: tuple[str, Program]) -> tuple[str, str]:
    """The URLs of the broker and of the gateway."""
    broker, gateway = started_gateway
    return broker, str(gateway.wait_for("gateway listening")["url"])


def get(url: str) -> Any:
    with urllib.request.urlopen(url) as answer:
        return json.load(answer)


def test_an_episode_is_the_local_one(served: tuple[str, str]) -> None:
    local = gymnasium.make("CartPole-v1")
    with openenv.GenericEnvClient(base_url=f"{served[1]}/openenv/cart").sync() as env:
        result = env.reset(seed=5)
        observation, _ = local.reset(seed=5)
        assert result.observation["observation"] == to_json(observation)
        assert not result.done
        for step in range(300):
            result = env.step({"action": step % 2})
            observation, reward, terminated, truncated, _ = local.step(step % 2)
            assert result.observation["observation"] == to_json(observation)
            assert result.reward == reward
            assert result.done == (terminated or truncated)
            flags = {"terminated": terminated, "truncated": truncated, "info": {}}
            assert result.observation["metadata"] == flags
            if result.done:
                break
        assert result.done
        state = env.state()
        assert state["step_count"] == step + 1


def test_sessions_at_once_do_not_meet(served: tuple[str, str]) -> None:
    async def play(seed: int) -> list[Any]:
        async with openenv.GenericEnvClient(base_url=f"{served[1]}/openenv/cart") as env:
            seen = [await env.reset(seed=seed), *[await env.step({"action": 1}) for _ in range(5)]]
            return [result.observation["observation"] for result in seen]

    async def all_of_them() -> list[list[Any]]:
        return await asyncio.gather(*map(play, range(16)))

    def locally(seed: int) -> list[Any]:
        env = gymnasium.make("CartPole-v1")
        return [to_json(env.reset(seed=seed)[0]), *(to_json(env.step(1)[0]) for _ in range(5))]

    assert asyncio.run(all_of_them()) == [*map(locally, range(16))]


def test_the_schemas_describe_the_spaces(served: tuple[str, str]) -> None:
    found = get(f"{served[1]}/openenv/lab/lake/schema")
    actions = found["action"]["properties"]["action"]
    assert {k: actions[k] for k in ("type", "minimum", "maximum")} == {
        "type": "integer",
        "minimum": 0,
        "maximum": 3,
    }
    assert found["observation"]["properties"]["observation"]["maximum"] == 15
    assert get(f"{served[1]}/openenv/lab/lake/health")["status"] == "healthy"
    assert get(f"{served[1]}/openenv/lab/lake/metadata")["name"] == "lab/lake"


@pytest.mark.parametrize(
    ("use", "why"),
    [
        (lambda env: env.step({"action": 1}), "Send a reset before the first step"),
        (lambda env: (env.reset(), env.step({"action": 7})), r"action must be in Discrete\(2\)"),
        (lambda env: (env.reset(), env.step({"push": 1})), "Invalid message"),
    ],
)
def test_a_mistake_is_named(served: tuple[str, str], use: Callable[[Any], Any], why: str) -> None:
    with openenv.GenericEnvClient(base_url=f"{served[1]}/openenv/cart").sync() as env:
        with pytest.raises(RuntimeError, match=why):
            use(env)
        assert env.reset(seed=1).observation["observation"]


@pytest.mark.parametrize(
    ("path", "body", "status", "why"),
    [
        ("step", {"action": {"action": 7}}, 422, "action must be in Discrete(2)"),
        ("step", {"action": {"push": 1}}, 422, "Field required"),
        ("step", {"action": {"action": 1}}, 409, "Send a reset before the first step"),
        ("reset", {"seed": -1}, 422, "greater than or equal to 0"),
    ],
)
def test_a_mistake_over_http_is_answered(
    started_gateway: tuple[str, Program], path: str, body: Any, status: int, why: str
) -> None:
    gateway = started_gateway[1]
    url = gateway.wait_for("gateway listening")["url"]
    request = urllib.request.Request(
        f"{url}/openenv/cart/{path}",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    assert refused.value.code == status
    assert why in refused.value.read().decode()
    assert "Traceback" not in "".join(gateway.output)


def test_full_and_unknown_addresses_are_named(served: tuple[str, str]) -> None:
    broker, url = served
    with (
        ProxyEnv("lab/lake", broker),
        ProxyEnv("lab/lake", broker),
        openenv.GenericEnvClient(base_url=f"{url}/openenv/lab/lake").sync() as env,
        pytest.raises(RuntimeError, match="All 2 slots of 'lab/lake' are in use"),
    ):
        env.reset()
    with pytest.raises(urllib.error.HTTPError, match="503") as refused:
        get(f"{url}/openenv/nowhere/schema")
    assert "No env agent offers 'nowhere'" in refused.value.read().decode()


def test_a_closed_client_frees_its_slot(served: tuple[str, str]) -> None:
    broker, url = served
    for _ in range(5):
        with openenv.GenericEnvClient(base_url=f"{url}/openenv/lab/lake").sync() as env:
            env.reset()
    with ProxyEnv("lab/lake", broker, wait_s=10), ProxyEnv("lab/lake", broker, wait_s=10):
        pass


def test_an_environment_goes_through_openenv_and_back(
    served: tuple[str, str], programs: Programs
) -> None:
    broker, url = served
    programs.env_agent(broker, "--address", "twice", "--env", f"openenv:{url}/openenv/cart")
    local = gymnasium.make("CartPole-v1")
    with ProxyEnv("twice", broker) as env:
        observation, info = env.reset(seed=3)
        np.testing.assert_array_equal(observation["observation"], local.reset(seed=3)[0])
        assert info == {"terminated": False, "truncated": False, "info": {}}
        for step in range(8):
            found, expected = env.step({"action": step % 2}), local.step(step % 2)
            np.testing.assert_array_equal(found[0]["observation"], expected[0])
            assert found[1:4] == expected[1:4]
