"""Environments of OpenEnv servers: a server that speaks their protocol, and a real one."""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from gymwire import ProxyEnv
from gymwire.env_agent.adapters.openenv import MAX_SCHEMA, OpenEnv
from gymwire.env_agent.factory import resolve
from gymwire.protocol.errors import ConfigurationError, EnvironmentFailed, EnvironmentLost
from tests.processes import Programs

pytest.importorskip("websockets", reason="needs the extra `openenv`")

SCHEMAS = {
    "action": {
        "properties": {
            "push": {"type": "integer", "minimum": 0, "maximum": 1},
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "metadata": {"type": "object"},
        },
        "required": ["push"],
    },
    "observation": {
        "properties": {
            "done": {"type": "boolean"},
            "reward": {"type": "number"},
            "metadata": {"type": "object"},
            "cart": {"type": "array", "items": {"type": "number"}},
            "extra": {"type": "object"},
        }
    },
}


class Server:
    """An OpenEnv server that counts; a push of 1 in an episode's third step ends the socket."""

    def __init__(self) -> None:
        from websockets.sync.server import serve

        self.requests: list[dict[str, Any]] = []
        self.sessions = 0
        self.schemas = ""
        self.moved_to = ""
        self.replies: list[str] = []  # sent instead of what would be sent
        self._server = serve(self._session, "127.0.0.1", 0, process_request=self._schema)
        self.url = f"http://127.0.0.1:{self._server.socket.getsockname()[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()

    def _schema(self, connection: Any, request: Any) -> Any:
        if request.path != "/schema":
            return None
        if self.moved_to:
            response = connection.respond(302, "moved")
            response.headers["Location"] = self.moved_to
            return response
        return connection.respond(200, self.schemas or json.dumps(SCHEMAS))

    def _session(self, socket: Any) -> None:
        self.sessions += 1
        steps = 0
        for text in socket:
            request = json.loads(text)
            self.requests.append(request)
            if self.replies:
                socket.send(self.replies.pop())
                continue
            if request["type"] == "close":
                return
            if request["type"] == "state":
                socket.send(json.dumps({"type": "state", "data": {"step_count": steps}}))
                continue
            steps = 0 if request["type"] == "reset" else steps + 1
            if steps == 3 and request["data"]["push"]:
                socket.close(1011, "out of memory")
                return
            if steps == 4:
                error = {"code": "EXECUTION_ERROR", "message": "the cart is gone"}
                socket.send(json.dumps({"type": "error", "data": error}))
                continue
            data = {
                "observation": {"cart": [steps, 0.5], "extra": {"a": [1]}, "metadata": {}},
                "reward": steps / 2 if steps else None,
                "done": steps == 3,
                "metadata": {"truncated": True} if steps == 3 else {"seen": steps},
            }
            socket.send(json.dumps({"type": "observation", "data": data}))


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def test_an_episode(server: Server) -> None:
    with contextlib.closing(OpenEnv(server.url, task="easy")) as env:
        assert env.action_space == spaces.Dict(push=spaces.Discrete(2))
        observation, info = env.reset(seed=3, options={"level": 2})
        np.testing.assert_array_equal(observation["cart"], [0, 0.5])
        assert info == {"extra": {"a": [1]}, "seen": 0}
        assert env.step({"push": np.int64(1)})[1:4] == (0.5, False, False)
        assert env.state == {"step_count": 1}
        env.step({"push": np.int64(0)})
        assert env.step({"push": np.int64(0)})[1:4] == (1.5, False, True)
        with pytest.raises(RuntimeError, match="EXECUTION_ERROR: the cart is gone"):
            env.step({"push": np.int64(0)})
    assert server.requests[0]["data"] == {"task": "easy", "seed": 3, "level": 2}
    assert server.requests[1]["data"] == {"push": 1}
    assert server.sessions == 1


def test_a_lost_socket_is_a_lost_session(server: Server, programs: Programs) -> None:
    _, url = programs.broker()
    programs.env_agent(url, "--address", "cart", "--env", f"openenv:{server.url}")
    with ProxyEnv("cart", url, wait_s=20) as env:
        env.reset(seed=1)
        env.step({"push": 1})
        env.step({"push": 1})
        with pytest.raises(EnvironmentLost, match=r"has closed the connection.*out of memory"):
            env.step({"push": 1})
        observation, _ = env.reset()
        assert observation["cart"].tolist() == [0, 0.5]
        for _ in range(3):
            env.step({"push": 0})
        with pytest.raises(EnvironmentFailed, match="the cart is gone"):
            env.step({"push": 0})
    assert server.sessions == 2


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://127.0.0.1:9/sub/"])
def test_a_server_that_does_not_answer_is_named(url: str) -> None:
    with pytest.raises(
        ConfigurationError, match=r"No OpenEnv server answers at http://127\.0\.0\.1:9"
    ):
        resolve(f"openenv:{url}", {}).make_first()


@pytest.mark.parametrize("url", ["127.0.0.1:9", "ftp://x", "", "http://"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="is not the URL of an OpenEnv server"):
        resolve(f"openenv:{url}", {})


def test_an_action_without_a_space_is_named(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SCHEMAS["action"]["properties"], "push", {"type": "object"})  # type: ignore[index]
    with pytest.raises(ConfigurationError, match="need 'push', whose JSON Schema has no Gymnasium"):
        OpenEnv(server.url)


def bomb(levels: int, width: int) -> dict[str, Any]:
    """Return a small schema that stands for width ** levels values."""
    names = [f"D{i}" for i in range(levels)]
    definitions: dict[str, Any] = {names[-1]: {"type": "boolean"}}
    for name, below in itertools.pairwise(names):
        properties = {f"p{i}": {"$ref": f"#/$defs/{below}"} for i in range(width)}
        definitions[name] = {"type": "object", "properties": properties}
    return {"properties": {"push": {"$ref": "#/$defs/D0"}}, "$defs": definitions}


def nested(levels: int) -> dict[str, Any]:
    """Return a schema that is nested deeply, through definitions."""
    names = [f"D{i}" for i in range(levels)]
    definitions: dict[str, Any] = {names[-1]: {"type": "boolean"}}
    for name, below in itertools.pairwise(names):
        definitions[name] = {"type": "array", "items": {"$ref": f"#/$defs/{below}"}}
    return {"properties": {"push": {"$ref": "#/$defs/D0"}}, "$defs": definitions}


def arrays(*lengths: int) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "number"}
    for length in lengths:
        found = {"type": "array", "items": found, "minItems": length, "maxItems": length}
    return {"properties": {"push": found}}


@pytest.mark.parametrize(
    "schema",
    [
        bomb(30, 10),
        {"properties": {f"p{i}": bomb(6, 4)["properties"]["push"] for i in range(99)}}
        | {"$defs": bomb(6, 4)["$defs"]},
        nested(600),
        arrays(2**30),
        arrays(10_000, 10_000),
        {"properties": {"push": {"type": "integer", "minimum": "a"}}},
        {"properties": {"push": {"type": "number", "minimum": 2, "maximum": 1}}},
        {"properties": {"push": {"type": "string", "maxLength": -5}}},
        {"properties": {"push": 5}},
        {"properties": [1]},
        {"properties": {"push": {"enum": 5}}},
        [],
    ],
    ids=range(12),
)
def test_schemas_of_a_hostile_server_are_refused(server: Server, schema: Any) -> None:
    for one in ("action", "observation"):
        server.schemas = json.dumps({**SCHEMAS, one: schema})
        with pytest.raises(ConfigurationError, match=f"OpenEnv server (answers )?at {server.url}"):
            OpenEnv(server.url)


@pytest.mark.parametrize("text", ["[" * 100_000, " " * (MAX_SCHEMA + 1), "null", "{}", "\0"])
def test_what_is_no_schema_is_refused(server: Server, text: str) -> None:
    server.schemas = text
    with pytest.raises(ConfigurationError, match=f"No OpenEnv server answers at {server.url}"):
        OpenEnv(server.url)


def test_a_server_cannot_send_the_env_agent_elsewhere(server: Server) -> None:
    with contextlib.closing(Server()) as other:
        server.moved_to = f"{other.url}/schema"
        with pytest.raises(ConfigurationError, match="302"):
            OpenEnv(server.url)


OBSERVED = {"observation": {"cart": [1]}}


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "hello",
        "[" * 100_000,
        "[]",
        json.dumps({"type": "observation", "data": []}),
        json.dumps({"type": "error", "data": "x"}),
        json.dumps({"type": "observation", "data": {"observation": []}}),
        json.dumps({"type": "observation", "data": {"observation": {"cart": [[1]]}}}),
        json.dumps({"type": "observation", "data": {"observation": {"cart": "x"}}}),
        json.dumps({"type": "observation", "data": {**OBSERVED, "reward": "x"}}),
        json.dumps({"type": "observation", "data": {**OBSERVED, "reward": 10**400}}),
        json.dumps({"type": "observation", "data": {**OBSERVED, "metadata": [1]}}),
    ],
    ids=range(12),
)
def test_a_malformed_reply_names_the_server(server: Server, reply: str) -> None:
    with contextlib.closing(OpenEnv(server.url)) as env:
        env.reset()
        server.replies.append(reply)
        with pytest.raises(RuntimeError, match=f"The OpenEnv server at {server.url} sent "):
            env.step({"push": np.int64(0)})
        assert env.step({"push": np.int64(0)})[1] == 0.5


def test_a_reply_without_an_end_loses_the_session(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gymwire.env_agent.adapters.openenv.MAX_MESSAGE", 10_000)
    with contextlib.closing(OpenEnv(server.url)) as env:
        env.reset()
        server.replies.append("x" * 10_001)
        with pytest.raises(EnvironmentLost, match="closed the connection"):
            env.step({"push": np.int64(0)})
