"""Who may use the gateway: tokens, cookies, hosts and origins."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="needs the extra gymwire[web]")
pytest.importorskip("httpx2", reason="needs httpx2")

from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocket

from gymwire.gateway import tokens
from gymwire.gateway.access import Access, visitor_of
from gymwire.gateway.app import Gateway, make_app
from gymwire.gateway.tokens import Visitor
from gymwire.protocol.errors import ConfigurationError
from gymwire.protocol.security import keys

HOST = "http://127.0.0.1:8080"
ALICE, BOB = "a" * 40, "b" * 43


def door(_: Gateway) -> list[BaseRoute]:
    async def who(request: Request) -> PlainTextResponse:
        return PlainTextResponse(visitor_of(request).name)

    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(visitor_of(websocket).name)
        await websocket.close()

    return [Route("/who", who, methods=["GET", "POST"]), WebSocketRoute("/socket", socket)]


def client(visitors: tuple[Visitor, ...] = (), *origins: str, base: str = HOST) -> TestClient:
    gateway = Gateway("tcp://127.0.0.1:1", None, Access(visitors, Visitor("local"), origins))
    return TestClient(make_app(gateway, [door]), base_url=base, follow_redirects=False)


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.fixture(name="visitors")
def _visitors(tmp_path: Path) -> tuple[Visitor, ...]:
    text = f'[token.alice]\ntoken = "{ALICE}"\n[token.bob]\ntoken = "{BOB}"\n'
    return tokens.load(write(tmp_path / "tokens.toml", text), None)


def says(web: TestClient, headers: dict[str, str]) -> str | int:
    """Return the name that a WebSocket with these headers gets, or the status of its refusal."""
    try:
        with web.websocket_connect("/socket", headers=dict(headers)) as socket:
            return str(socket.receive_text())
    except WebSocketDenialResponse as refusal:
        status: int = refusal.status_code
        return status


def test_each_door_is_behind_the_token(visitors: tuple[Visitor, ...]) -> None:
    web = client(visitors, base="https://gate.example.org")
    for headers, name in [
        ({"Authorization": f"Bearer {ALICE}"}, "alice"),
        ({"Authorization": f"bearer {BOB}"}, "bob"),
        ({"Cookie": f"gymwire={visitors[1].cookie}"}, "bob"),
    ]:
        assert web.get("/who", headers=headers).text == name
        assert says(web, headers) == name
    assert says(web, {"Sec-WebSocket-Protocol": f"gymwire, gymwire.token.{ALICE}"}) == "alice"
    for headers in (
        {},
        {"Authorization": f"Bearer {ALICE}x"},
        {"Authorization": ALICE},
        {"Authorization": "Bearer "},
        {"Authorization": f"Basic {ALICE}"},
        {"Cookie": f"gymwire={ALICE}"},
        {"Cookie": "gymwire="},
        {"Cookie": f"gymwire={visitors[0].cookie[:-1]}"},
        {"Sec-WebSocket-Protocol": "gymwire.token."},
    ):
        assert web.get("/who", headers=headers).status_code == 401
        assert says(web, headers) == 401
    assert web.get("/healthz").json() == {"status": "ok"}


def test_no_answer_may_load_anything_from_elsewhere(visitors: tuple[Visitor, ...]) -> None:
    web = client(visitors)
    for path in ("/healthz", "/login", "/who", "/nothing"):
        policy = web.get(path).headers["content-security-policy"]
        assert policy.startswith("default-src 'self';"), path


def test_an_empty_token_never_opens_a_gateway(visitors: tuple[Visitor, ...]) -> None:
    assert tokens.find("", visitors) is None
    assert tokens.find_by_cookie("", visitors) is None


@pytest.mark.parametrize(("scheme", "secure"), [("http", False), ("https", True)])
def test_a_browser_exchanges_the_token_for_a_cookie_with_strict_flags(
    visitors: tuple[Visitor, ...], scheme: str, secure: bool
) -> None:
    web = client(visitors, base=f"{scheme}://gate.example.org")
    assert web.get("/who", headers={"Accept": "text/html"}).headers["location"] == "/login"
    assert web.get("/login").status_code == 200
    assert web.post("/login", data={"token": "wrong"}).status_code == 403
    assert web.post("/login", data={"token": "x" * 5000}).status_code == 413
    answer = web.post("/login", data={"token": BOB})
    assert answer.status_code == 303
    flags = answer.headers["set-cookie"].lower()
    assert "httponly" in flags
    assert "samesite=strict" in flags
    assert ("secure" in flags) is secure
    assert BOB not in flags
    assert web.get("/who").text == "bob"


@pytest.mark.parametrize(
    ("host", "answered"),
    [
        ("127.0.0.1:8080", True),
        ("localhost", True),
        ("LOCALHOST:9", True),
        ("[::1]:8080", True),
        ("[::1]", True),
        ("evil.example", False),
        ("evil.example:8080", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example:8080", False),
        ("", False),
    ],
)
def test_without_tokens_only_names_of_this_host_are_answered(host: str, answered: bool) -> None:
    headers = {"Host": host}
    assert client().get("/who", headers=headers).status_code == (200 if answered else 403)
    assert says(client(), headers) == ("local" if answered else 403)


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (None, True),
        ("http://127.0.0.1:8080", True),
        ("HTTP://127.0.0.1:8080", True),
        ("http://127.0.0.1:8000", False),
        ("http://localhost:8080", False),
        ("https://evil.example", False),
        ("http://127.0.0.1:8080.evil.example", False),
        ("null", False),
        ("", False),
        ("http://[", False),
        ("http://page.example:9", True),
    ],
)
def test_a_page_of_another_origin_may_neither_connect_nor_change_anything(
    origin: str | None, allowed: bool
) -> None:
    web = client((), "http://page.example:9/")
    headers = {"Host": "127.0.0.1:8080", **({} if origin is None else {"Origin": origin})}
    assert says(web, headers) == ("local" if allowed else 403)
    assert web.post("/who", headers=headers).status_code == (200 if allowed else 403)
    assert web.get("/who", headers=headers).status_code == 200
    assert "access-control-allow-origin" not in web.get("/who", headers=headers).headers


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "at least one"),
        ("token = 1", "at least one"),
        ("[token]", "at least one"),
        (f'[token.a]\ntoken = "{ALICE}"\n[peer.b]', "at least one"),
        ("[token.a]", "32 or more"),
        ('[token.a]\ntoken = "short"', "32 or more"),
        (f'[token.a]\ntoken = "{"ä" * 40}"', "32 or more"),
        (f'[token.a]\ntoken = "{"a b" * 20}"', "32 or more"),
        ("[token.a]\ntoken = 5", "32 or more"),
        (f'[token.a]\ntoken = "{ALICE}"\nuse = []', "`token` and, with keys, `key`"),
        ("token.a = 5", "`token` and, with keys, `key`"),
        (f'[token.a]\ntoken = "{ALICE}"\nkey = 5', "name of a .key file"),
        (f'[token.a]\ntoken = "{ALICE}"\nkey = "no.key"', "no key file"),
        (f'[token.a]\ntoken = "{ALICE}"\n[token.b]\ntoken = "{ALICE}"', "the same token"),
        ("[token", "not valid TOML"),
        (f"token = {'9' * 5000}", "not valid TOML"),
        (f"token = {'[' * 20_000}", "not valid TOML"),
    ],
)
def test_a_token_file_with_a_mistake_is_refused(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        tokens.load(write(tmp_path / "tokens.toml", text), None)


def test_others_must_not_be_able_to_read_the_token_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="chmod 600"):
        tokens.load(write(tmp_path / "t", f'[token.a]\ntoken = "{ALICE}"', 0o644), None)
    with pytest.raises(ConfigurationError, match="does not exist"):
        tokens.load(tmp_path / "none", None)


def test_each_entry_has_its_own_key_or_that_of_the_gateway(tmp_path: Path) -> None:
    own, alice = (keys.load(keys.generate(name, tmp_path)[0]) for name in ("own", "alice"))
    text = f'[token.a]\ntoken = "{ALICE}"\nkey = "alice.key"\n[token.b]\ntoken = "{BOB}"'
    found = tokens.load(write(tmp_path / "tokens.toml", text), own)
    assert [(one.name, one.key) for one in found] == [("a", alice), ("b", own)]
    assert ALICE not in repr(found)
