"""The page's WebSocket for watching a session, at a real gateway."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra gymwire[web]")

from PIL import Image

from gymwire import ProxyEnv
from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.learner_agent.client.observing import observe
from gymwire.protocol.security import keys
from tests.gateway.sockets import gateway, private, until
from tests.processes import PATIENCE_S, Programs

NAMES = ("broker", "agent", "alice", "boss", "guard")


class Watcher:
    """A page that watches a session."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self.last: dict[str, Any] = {}

    def ask(self, request: Any) -> dict[str, Any]:
        """Send one message, and return its answer."""
        return self.tell(json.dumps(request))

    def tell(self, text: str) -> dict[str, Any]:
        """Send a text, and return its answer."""
        self._socket.send(text)
        self.last = json.loads(self._socket.recv(PATIENCE_S))
        return self.last


@contextmanager
def watching(url: str, session: str, token: str = "") -> Iterator[Watcher]:
    from websockets.sync.client import connect

    headers = {"Authorization": f"Bearer {token}"} if token else {}
    at = f"{url.replace('http', 'ws', 1)}/watch?session={session}"
    with connect(at, proxy=None, additional_headers=headers) as socket:
        yield Watcher(socket)


def only_session(broker: str, **known: Any) -> str:
    connection = BrokerConnection(broker, **known)
    try:
        [one] = observe(connection).sessions
        return one.id
    finally:
        connection.close()


def test_each_message_gets_one_answer(programs: Programs) -> None:
    _, broker = programs.broker()
    programs.env_agent(broker, "cart", "CartPole-v1", "--watchable")
    url = gateway(programs, broker)[1]
    with (
        ProxyEnv("cart", broker) as env,
        watching(url, only_session(broker)) as watcher,
    ):
        assert watcher.ask({"after": 0}) == {}
        env.reset(seed=1)
        until(lambda: "frame" in watcher.ask({"after": 0}))
        assert watcher.last["request"] == 1
        head, _, data = watcher.last["frame"].partition(",")
        assert head == "data:image/png;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (600, 400)
        assert watcher.ask({"after": 1}) == {}
        requests: list[Any] = [{"after": -1}, {"after": "1"}, {}, [], 7]
        for wrong in requests:
            assert "A request is" in watcher.ask(wrong)["error"]
        for text in ("", "{", "[" * 200_000):
            assert "cannot be read as JSON" in watcher.tell(text)["error"]
    with watching(url, "x" * 16) as watcher:
        assert "is not the id of a session" in watcher.ask({"after": 0})["error"]
    with watching(url, "7" * 16) as watcher:
        assert "There is no session 7777777777777777" in watcher.ask({"after": 0})["error"]


def test_a_visitor_watches_with_the_right_of_the_key(programs: Programs, tmp_path: Path) -> None:
    files = {name: keys.generate(name, tmp_path) for name in NAMES}
    known = {name: keys.load(files[name][0]) for name in NAMES}
    rights = {
        "agent": 'offer = ["*"]',
        "alice": 'use = ["*"]',
        "boss": 'watch = ["lab/*"]',
        "guard": 'observe = ["*"]\nstop = ["*"]\nwatch = ["other"]',
    }
    policy = tmp_path / "policy.toml"
    policy.write_text(
        "".join(
            f'[peer.{name}]\nkey = "{known[name].public.decode()}"\n{text}\n'
            for name, text in rights.items()
        )
    )
    tokens = private(
        tmp_path / "tokens.toml",
        "".join(
            f'[token.{name}]\ntoken = "{name * 16}"\nkey = "{name}.key"\n'
            for name in ("alice", "boss", "guard")
        ),
    )
    bind = ("tcp://127.0.0.1:*", "--key", str(files["broker"][0]), "--policy", str(policy))
    _, broker = programs.broker(*bind)
    public = files["broker"][1]
    at_broker = ("--broker-key", str(public))
    programs.env_agent(
        *(broker, "lab/cart", "CartPole-v1", "--watchable"),
        *("--key", str(files["agent"][0]), *at_broker),
    )
    key = ("--key", str(files["guard"][0]))
    url = gateway(programs, broker, "--token-file", str(tokens), *key, *at_broker)[1]
    mine = {"key": files["alice"][0], "broker_key": public}
    with ProxyEnv("lab/cart", broker, **mine) as env:  # type: ignore[arg-type]
        assert env.is_watchable
        env.reset(seed=1)
        guard = {"key": files["guard"][0], "broker_key": public}
        session = only_session(broker, **guard)
        with watching(url, session, "alice" * 16) as watcher:
            assert "has no `watch`" in watcher.ask({"after": 0})["error"]
        with watching(url, session, "guard" * 16) as watcher:
            error = watcher.ask({"after": 0})["error"]
            assert "may not watch 'lab/cart'. It may watch only other" in error
        with watching(url, session, "boss" * 16) as watcher:
            until(lambda: "frame" in watcher.ask({"after": 0}))
