from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from gymwire.protocol.messages import LIVENESS_PREFIX
from gymwire.protocol.transport import dealer, kernel
from gymwire.protocol.transport.dealer import Dealer, LivenessConnection
from gymwire.protocol.transport.hosts import (
    CYCLE_S,
    LOOK_UP_EVERY_S,
    DialPlan,
    addresses_of,
    is_this_host,
    url_with,
)
from gymwire.protocol.transport.router import Router

Resolve = Callable[..., None]


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> Resolve:
    """Let names have these addresses. libzmq looks names up itself."""

    def use(*addresses: str) -> None:
        def look_up(*_: object, **__: object) -> list[Any]:
            if not addresses:
                raise socket.gaierror(socket.EAI_NONAME, "unknown")
            return [(0, 0, 0, "", (address, 0)) for address in addresses]

        monkeypatch.setattr(socket, "getaddrinfo", look_up)

    return use


def test_a_name_with_several_addresses_has_a_url_for_each(resolve: Resolve) -> None:
    resolve("::1", "127.0.0.1", "::1")
    assert addresses_of("tcp://a:1") == ["tcp://[::1]:1", "tcp://127.0.0.1:1"]


@pytest.mark.parametrize("url", ["ipc:///a:1", "tcp://*:1", "tcp://[::1]:1"])
def test_only_names_are_looked_up(url: str, resolve: Resolve) -> None:
    resolve("::1", "127.0.0.1")
    assert addresses_of(url) == [url]


@pytest.mark.parametrize("addresses", [(), ("127.0.0.1",), ("127.0.0.1", "127.0.0.1")])
def test_without_several_addresses_libzmq_looks_the_name_up(
    addresses: tuple[str, ...], resolve: Resolve
) -> None:
    resolve(*addresses)
    assert addresses_of("tcp://a:1") == ["tcp://a:1"]
    plan = DialPlan("tcp://a:1")
    assert not any(plan.attempt_failed(now) for now in (0.0, 1.0, 10.0, 100.0))


def test_all_addresses_are_dialed_in_turn_without_haste(resolve: Resolve) -> None:
    resolve("::1", "127.0.0.1")
    plan = DialPlan("tcp://a:1")
    cycle = ["tcp://[::1]:1", "tcp://127.0.0.1:1", "tcp://a:1"]
    for start in (100.0, 100.0 + CYCLE_S):
        dialed = []
        for _ in cycle:
            assert plan.attempt_failed(start)
            dialed.append(plan.current)
        assert dialed == cycle
        assert not plan.attempt_failed(start)
    resolve("192.0.2.1", "192.0.2.2")
    assert plan.attempt_failed(100.0 + LOOK_UP_EVERY_S)
    assert plan.current == "tcp://192.0.2.1:1"


@pytest.mark.parametrize("others", [("127.0.0.9",), ("::1", "127.0.0.9"), ("127.0.0.9", "::1")])
def test_a_listener_at_any_address_of_a_name_is_found(
    others: tuple[str, ...], resolve: Resolve
) -> None:
    resolve(*others, "127.0.0.1")
    with contextlib.closing(Router(["tcp://127.0.0.1:*"])) as router:
        port = router.urls[0].rpartition(":")[2]
        with contextlib.closing(Dealer(f"tcp://broker.invalid:{port}")) as dialing:
            for _ in range(100):
                if any(event.up for event in dialing.link_events()):
                    break
                dialing.poll(0.1)
            assert dialing.send(b"x", wait=True)
            received = router.receive()
            assert received is not None
            assert bytes(received[2]) == b"x"


def test_the_liveness_connection_dials_an_address_that_works(
    resolve: Resolve, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.closing(Router(["tcp://127.0.0.1:*"])) as router:
        url = f"tcp://broker.invalid:{router.urls[0].rpartition(':')[2]}"
        dial = socket.create_connection

        def refuse_the_first(address: tuple[str, int], timeout: float) -> socket.socket:
            if address[0] == "127.0.0.9":
                raise ConnectionRefusedError
            monkeypatch.undo()  # create_connection looks addresses up, too
            return dial(address, timeout)

        monkeypatch.setattr(socket, "create_connection", refuse_the_first)
        resolve("127.0.0.9", "127.0.0.1")
        connection = LivenessConnection(url, b"a" * 16)
        holder = threading.Thread(target=connection.hold)
        holder.start()
        received = next(filter(None, (router.receive() for _ in range(100))), None)
        connection.release()
        holder.join()
        assert received is not None
        assert received[0] == LIVENESS_PREFIX + b"a" * 15


def probe_of_the_liveness_connection(router: Router) -> bool:
    for _ in range(100):
        received = router.receive()
        if received is not None and received[0].startswith(LIVENESS_PREFIX):
            return True
    return False


def test_the_liveness_connection_follows_to_where_another_one_finds_the_broker(
    resolve: Resolve, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.closing(Router(["tcp://127.0.0.1:*"])) as former:
        first = former.urls[0]
        port = first.rpartition(":")[2]
        monkeypatch.setattr(dealer, "first_reachable", lambda _url: first)
        url = f"tcp://broker.invalid:{port}"
        liveness = LivenessConnection(url, b"a" * 16)
        holder = threading.Thread(target=liveness.hold, daemon=True)
        holder.start()
        assert probe_of_the_liveness_connection(former)
    with (
        contextlib.closing(Router([f"tcp://127.0.0.2:{port}"])) as router,
        contextlib.closing(Dealer(url)) as other,
    ):
        resolve("127.0.0.1", "127.0.0.2")
        other.on_up = liveness.follow
        for _ in range(100):
            if any(event.up for event in other.link_events()):
                break
            other.poll(0.1)
        assert probe_of_the_liveness_connection(router)
        liveness.release()
        holder.join()


def test_the_liveness_connection_keeps_an_address_to_which_a_name_leads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with contextlib.closing(Router(["tcp://localhost:*"])) as router:
        url = f"tcp://localhost:{router.urls[0].rpartition(':')[2]}"
        with contextlib.closing(Dealer(url)) as other:
            reached: list[tuple[str, int]] = []
            other.on_up = lambda *up: reached.append(up)
            for _ in range(100):
                if any(event.up for event in other.link_events()):
                    break
                other.poll(0.1)
            peer = url_with(url, kernel.peer_address(reached[0][1]))
            assert peer in router.urls
            for first, expected in ((peer, peer), ("tcp://[::1]:1", peer), (url, url)):
                monkeypatch.setattr(dealer, "first_reachable", lambda _url, first=first: first)
                liveness = LivenessConnection(url, b"a" * 16)
                liveness.follow(url, reached[0][1])
                assert liveness._next_url == expected
                liveness.follow(url, -1)  # it is unknown where that leads
                assert liveness._next_url == expected
                liveness.release()
                liveness.hold()


def test_a_release_right_after_another_order_ends_the_liveness_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    liveness = LivenessConnection("tcp://127.0.0.1:1", b"a" * 16)
    holder = threading.Thread(target=liveness.hold)
    followed, releasing = threading.Event(), threading.Event()
    read, write = os.read, os.write

    def read_before_the_release(fd: int, size: int) -> bytes:
        data = read(fd, size)
        followed.set()
        releasing.wait(20)
        return data

    def write_late(fd: int, data: bytes) -> int:
        if followed.is_set():
            releasing.set()
            holder.join(0.2)  # time to close the pipe too early
        return write(fd, data)

    monkeypatch.setattr(os, "read", read_before_the_release)
    monkeypatch.setattr(os, "write", write_late)
    liveness.follow("tcp://127.0.0.2:1", -1)
    holder.start()
    assert followed.wait(20)
    liveness.release()
    holder.join()


@pytest.mark.parametrize("port", ["*", "0"])
def test_a_router_listens_at_all_addresses_of_a_name(port: str, resolve: Resolve) -> None:
    resolve("2001:db8::1", "127.0.0.1", "127.0.0.2")
    with contextlib.closing(Router([f"tcp://localhost:{port}"])) as router:
        hosts = [url.removeprefix("tcp://").rpartition(":")[0] for url in router.urls]
        assert hosts == ["127.0.0.1", "127.0.0.2"]
        assert len({url.rpartition(":")[2] for url in router.urls}) == 1


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("ipc:///a", True),
        ("tcp://127.0.0.1:1", True),
        ("tcp://localhost:1", True),
        ("tcp://[::1]:1", True),
        ("tcp://127.3.2.1:1", True),
        ("tcp://192.0.2.1:1", False),
        ("tcp://[2001:db8::1]:1", False),
        ("tcp://nowhere.invalid:1", False),
        (f"tcp://{'x' * 80}:1", False),
    ],
)
def test_a_url_leads_to_this_host_if_its_address_is_ours(url: str, expected: bool) -> None:
    assert is_this_host(url) is expected
