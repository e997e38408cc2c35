"""/play: what a hostile page or a hostile env agent may send."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra gymwire[web]")

from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import ClientConnection, connect

from tests.gateway.sockets import gateway
from tests.processes import PATIENCE_S, programs


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The URL of a gateway."""
    with programs() as started:
        _, broker = started.broker()
        started.env_agent(broker, "--address", "cart", "--env", "CartPole-v1")
        started.env_agent(broker, "--address", "odd", "--env", "tests.odd_envs:Unshowable")
        yield gateway(started, broker)[1]


@pytest.fixture(name="play")
def _play(url: str, request: pytest.FixtureRequest) -> Iterator[ClientConnection]:
    address = getattr(request, "param", "cart")
    target = f"{url.replace('http', 'ws', 1)}/play?address={address}"
    with connect(target, proxy=None, open_timeout=PATIENCE_S) as socket:
        assert "action" in json.loads(socket.recv(PATIENCE_S))
        yield socket


def answer(socket: ClientConnection, text: str) -> Any:
    socket.send(text)
    return json.loads(socket.recv(PATIENCE_S))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("hello", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ('{"act": ' + "9" * 5000 + "}", "cannot be read as JSON"),
        ("[]", "A request is"),
        ('{"act": NaN}', "action is not a value of Discrete(2)"),
        ('{"act": Infinity}', "action is not a value of Discrete(2)"),
        ('{"act": 1e308}', "action is not a value of Discrete(2)"),
        ('{"act": ' + "[" * 900 + "]" * 900 + "}", "action must be a whole number"),
    ],
    ids=range(8),
)
def test_a_bad_request_is_answered_and_the_session_goes_on(
    play: ClientConnection, text: str, why: str
) -> None:
    assert why in answer(play, text)["error"]
    assert answer(play, '{"reset": {"seed": 1}}')["step"] == 0
    told = answer(play, '{"act": 1}')
    assert told.get("reward") == 1.0, told


def test_a_message_of_bytes_ends_the_session_with_the_reason(play: ClientConnection) -> None:
    play.send(b'{"reset": {}}')
    with pytest.raises(ConnectionClosedError, match="Send text messages"):
        play.recv(PATIENCE_S)


@pytest.mark.parametrize("play", ["odd"], indirect=True)
def test_what_cannot_be_shown_is_shown_as_text(play: ClientConnection) -> None:
    told = answer(play, '{"reset": {}}')
    assert told["observation"] == 0
    for action in range(4):
        told = answer(play, f'{{"act": {action}}}')
        assert (told["reward"], told["terminated"]) == (None, [True, False])
        assert ("frame" in told) == (action == 2)
