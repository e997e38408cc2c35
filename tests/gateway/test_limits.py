"""What one visitor may cost the gateway."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra gymwire[web]")
pytest.importorskip("httpx2", reason="needs httpx2")

from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from gymwire.gateway.access import Access, visitor_of
from gymwire.gateway.app import Gateway, make_app
from gymwire.gateway.limits import MAX_FORM, MAX_JSON
from gymwire.gateway.observer import Observer
from gymwire.gateway.tokens import Visitor
from gymwire.gateway.visitor_apps import VisitorApps
from gymwire.protocol.errors import BrokerUnreachable
from tests.processes import PATIENCE_S


def door(_: Gateway) -> list[BaseRoute]:
    async def size(request: Request) -> PlainTextResponse:
        return PlainTextResponse(f"{len(await request.body())} {len(await request.body())}")

    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        with contextlib.suppress(WebSocketDisconnect):
            while True:
                await websocket.send_text(str(len(await websocket.receive_text())))
        await websocket.close()

    return [Route("/size", size, methods=["GET", "POST"]), WebSocketRoute("/socket", socket)]


def client(*visitors: Visitor) -> TestClient:
    access = Access(visitors, Visitor("local"))
    app = make_app(Gateway("tcp://127.0.0.1:1", None, access), [door])
    return TestClient(app, base_url="http://127.0.0.1:8080")


def by(visitor: Visitor) -> dict[str, str]:
    return {"Cookie": f"gymwire={visitor.cookie}"}


ALICE, BOB = Visitor("alice", digest=b"a" * 32), Visitor("bob", digest=b"b" * 32)


def test_a_body_reaches_the_door_up_to_the_limit() -> None:
    web = client()
    assert web.get("/size").text == "0 0"
    assert web.post("/size", content=b"x" * MAX_JSON).text == f"{MAX_JSON} {MAX_JSON}"
    parts = [b"x" * 1000] * 100
    assert web.post("/size", content=iter(parts)).text == "100000 100000"


def test_a_larger_body_is_refused() -> None:
    for content in (b"x" * (MAX_JSON + 1), iter([b"x" * 1000] * 1100)):
        answer = client().post("/size", content=content)
        assert (answer.status_code, "at most 1,048,576 bytes" in answer.text) == (413, True)


def test_without_a_token_a_body_is_a_small_form() -> None:
    web = client(ALICE)
    assert web.post("/login", content=b"x" * MAX_FORM).status_code == 403
    assert web.post("/login", content=b"x" * (MAX_FORM + 1)).status_code == 413


def test_a_text_message_that_is_too_long_ends_the_websocket() -> None:
    with client(ALICE).websocket_connect("/socket", headers=by(ALICE)) as socket:
        socket.send_text("x" * MAX_JSON)
        assert socket.receive_text() == str(MAX_JSON)
        socket.send_text("x" * (MAX_JSON + 1))
        with pytest.raises(WebSocketDisconnect) as ended:
            socket.receive_text()
        assert ended.value.code == 1009


def test_one_visitor_cannot_take_the_places_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gymwire.gateway.app.MAX_OPEN", 5)
    web = client(ALICE, BOB)
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(web.websocket_connect("/socket", headers=by(ALICE)))
        with pytest.raises(WebSocketDenialResponse) as refused:
            stack.enter_context(web.websocket_connect("/socket", headers=by(ALICE)))
        assert refused.value.status_code == 503
        assert "at most 2" in refused.value.text
        assert web.get("/size", headers=by(ALICE)).status_code == 503
        assert web.get("/size", headers=by(BOB)).text == "0 0"
        assert web.get("/healthz").status_code == 200
    assert web.get("/size", headers=by(ALICE)).text == "0 0"


def test_a_visitor_whose_door_opens_slowly_keeps_no_other_waiting() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse(visitor_of(Request(scope)).name)(scope, receive, send)

    async def both() -> list[Any]:
        may_open = asyncio.Event()

        async def make(visitor: Visitor) -> ASGIApp:
            if visitor is ALICE:
                await may_open.wait()
            return app

        sent: list[Any] = []

        async def send(message: Message) -> None:
            sent.append(message.get("body", b""))

        async def receive() -> Message:
            return {"type": "http.disconnect"}

        doors = VisitorApps(make)

        async def ask(visitor: Visitor) -> None:
            await doors({"type": "http", "gymwire.visitor": visitor, "headers": []}, receive, send)

        waiting = asyncio.create_task(ask(ALICE))
        await asyncio.wait_for(ask(BOB), PATIENCE_S)
        may_open.set()
        await waiting
        return [text for text in sent if text]

    assert asyncio.run(both()) == [b"bob", b"alice"]


def test_all_who_look_at_a_broker_that_is_away_learn_it_at_once() -> None:
    asked: list[None] = []

    def connect() -> Any:
        asked.append(None)
        raise BrokerUnreachable("It is away.")

    async def look() -> list[Any]:
        observer = Observer(connect)
        looking = [observer.latest(repr) for _ in range(9)]
        errors = await asyncio.gather(*looking, return_exceptions=True)
        await observer.aclose()
        return errors

    errors = asyncio.run(look())
    assert [type(one) for one in errors] == [BrokerUnreachable] * 9
    assert len(asked) == 1
