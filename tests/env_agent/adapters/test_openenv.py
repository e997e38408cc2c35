"""Environments of OpenEnv servers: a server that speaks their protocol, and a real one."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from gymwire import ProxyEnv
from gymwire.env_agent.adapters.openenv import OpenEnv
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
        self._server = serve(self._session, "127.0.0.1", 0, process_request=self._schema)
        self.url = f"http://127.0.0.1:{self._server.socket.getsockname()[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()

    def _schema(self, connection: Any, request: Any) -> Any:
        if request.path != "/schema":
            return None
        return connection.respond(200, json.dumps(SCHEMAS))

    def _session(self, socket: Any) -> None:
        self.sessions += 1
        steps = 0
        for text in socket:
            request = json.loads(text)
            self.requests.append(request)
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
