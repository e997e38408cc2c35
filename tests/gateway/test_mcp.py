"""Addresses as MCP servers, used by the client of MCP's own SDK."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import gymnasium
import numpy as np
import pytest
import structlog

from gymwire import ProxyEnv
from gymwire.protocol.json_values import to_json
from tests.processes import programs

mcp = pytest.importorskip("mcp", reason="needs the extra gymwire[mcp]")

from starlette.requests import ClientDisconnect  # noqa: E402 - after the test that it is there


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[str, str]]:
    """The URLs of a broker and of a gateway with MCP servers."""
    with programs() as started:
        _, broker = started.broker()
        started.env_agent(
            broker,
            "--address",
            "cart",
            "--env",
            "CartPole-v1",
            "--expose",
            "gravity",
            "--max-sessions",
            "3",
        )
        started.env_agent(
            *(broker, "--address", "picture", "--env", "benchmarks.environments:Picture"),
            *("--env-kwargs", json.dumps({"shape": [8, 6, 3], "dtype": "uint8"})),
        )
        gateway = started.start(
            *("gymwire", "web", "--broker", broker, "--listen", "127.0.0.1:0"),
            *("--log-format", "json", "--mcp", "cart", "--mcp", "picture"),
        )
        yield broker, str(gateway.wait_for("gateway listening")["url"])


@contextlib.asynccontextmanager
async def client(url: str) -> AsyncIterator[Any]:
    from mcp.client.streamable_http import streamable_http_client

    async with (
        streamable_http_client(url) as (reads, writes, _),
        mcp.ClientSession(reads, writes) as session,
    ):
        await session.initialize()
        yield session


def value(result: Any) -> Any:
    assert not result.isError, result.content
    return json.loads(result.content[-1].text)


def test_an_episode_is_the_local_one(served: tuple[str, str]) -> None:
    local = gymnasium.make("CartPole-v1")

    async def play() -> None:
        async with client(f"{served[1]}/mcp/cart/") as session:
            found = value(await session.call_tool("reset", {"seed": 5}))
            assert found == {"observation": to_json(local.reset(seed=5)[0]), "info": {}}
            for step in range(10):
                found = value(await session.call_tool("act", {"action": step % 2}))
                observation, reward, terminated, truncated, info = local.step(step % 2)
                assert found == {
                    "observation": to_json(observation),
                    "reward": reward,
                    "terminated": terminated,
                    "truncated": truncated,
                    "info": info,
                }

    asyncio.run(play())


def test_the_tools_are_described(served: tuple[str, str]) -> None:
    async def tools() -> dict[str, Any]:
        async with client(f"{served[1]}/mcp/cart/") as session:
            return {tool.name: tool for tool in (await session.list_tools()).tools}

    found = asyncio.run(tools())
    assert {*found} == {"reset", "act", "call", "render"}
    action = found["act"].inputSchema["properties"]["action"]
    assert (action["type"], action["minimum"], action["maximum"]) == ("integer", 0, 1)
    assert all(tool.description for tool in found.values())


def test_frames_and_pictures_are_images(served: tuple[str, str]) -> None:
    picture = pytest.importorskip("PIL.Image")

    async def look() -> tuple[Any, Any]:
        async with client(f"{served[1]}/mcp/cart/") as session:
            await session.call_tool("reset", {"seed": 1})
            frame = await session.call_tool("render", {})
        async with client(f"{served[1]}/mcp/picture/") as session:
            observed = await session.call_tool("reset", {"seed": 1})
        return frame, observed

    frame, observed = asyncio.run(look())
    assert not frame.isError, frame.content
    assert frame.content[0].mimeType == "image/png"
    with ProxyEnv("picture", served[0]) as env:
        expected, _ = env.reset(seed=1)
    png = io.BytesIO(base64.b64decode(observed.content[0].data))
    np.testing.assert_array_equal(np.asarray(picture.open(png)), expected)
    assert "info" in json.loads(observed.content[1].text)


def test_mistakes_are_named_and_harm_nothing(served: tuple[str, str]) -> None:
    async def err() -> list[str]:
        async with client(f"{served[1]}/mcp/cart/") as session:
            await session.call_tool("reset", {"seed": 1})
            bad = [
                await session.call_tool("act", {"action": 9}),
                await session.call_tool("call", {"name": "secret"}),
            ]
            assert all(one.isError for one in bad)
            assert value(await session.call_tool("call", {"name": "gravity"})) == {"value": 9.8}
            value(await session.call_tool("act", {"action": 1}))
            return [one.content[0].text for one in bad]

    wrong, hidden = asyncio.run(err())
    assert "action must be in Discrete(2), not 9" in wrong
    assert "does not expose 'secret'" in hidden


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("session_token", []),
        ("spec", []),
        ("_owner", []),
        ("__class__", ["cart", "tcp://127.0.0.1:1"]),
        ("set_wrapper_attr", ["_owner", None]),
    ],
)
def test_a_client_cannot_reach_what_the_proxy_itself_has(
    served: tuple[str, str], name: str, args: list[Any]
) -> None:
    async def err() -> str:
        async with client(f"{served[1]}/mcp/cart/") as session:
            await session.call_tool("reset", {"seed": 1})
            result = await session.call_tool("call", {"name": name, "args": args})
            assert result.isError, result.content
            value(await session.call_tool("act", {"action": 1}))
            return str(result.content[0].text)

    text = asyncio.run(err())
    assert "does not expose" in text or "has no attribute" in text


@pytest.mark.parametrize(
    ("error", "level"),
    [
        (ConnectionResetError("gone"), "warning"),
        (anyio.ClosedResourceError(), "debug"),
        (ExceptionGroup("two", [ClientDisconnect(), anyio.BrokenResourceError()]), "debug"),
        (ExceptionGroup("two", [ClientDisconnect(), ValueError("wrong")]), "warning"),
    ],
)
def test_what_the_sdk_reports_is_one_line(error: Exception, level: str) -> None:
    from gymwire.gateway.mcp import door

    door(["cart"])
    with structlog.testing.capture_logs() as lines:
        try:
            raise error
        except Exception:
            logging.getLogger("mcp.server.streamable_http").exception("SSE response error")
    [line] = lines
    assert (line["event"], line["log_level"]) == ("mcp request failed", level)
    assert line["text"] == "SSE response error"
    assert line["why"] == f"{type(error).__name__}: {error}"


def test_clients_at_once_have_sessions_of_their_own(served: tuple[str, str]) -> None:
    async def play(seed: int) -> Any:
        async with client(f"{served[1]}/mcp/cart/") as session:
            await session.call_tool("reset", {"seed": seed})
            return value(await session.call_tool("act", {"action": 1}))["observation"]

    async def rounds() -> list[Any]:
        return [one for _ in range(4) for one in await asyncio.gather(*map(play, range(3)))]

    found = asyncio.run(rounds())  # 12 sessions, of which 3 fit at a time
    assert found[:3] * 4 == found
    assert len({*map(str, found)}) == 3
