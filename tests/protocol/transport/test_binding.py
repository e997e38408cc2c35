"""How a listening socket is bound."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
import sys
from pathlib import Path

import pytest
import structlog
import zmq

from gymwire.protocol.errors import ConfigurationError
from gymwire.protocol.transport import binding, context, kernel
from gymwire.protocol.transport.interface import Delivery, LinkEvent
from gymwire.protocol.transport.router import Router
from tests.chaos.fleet import free_port, until
from tests.processes import PATIENCE_S
from tests.protocol.transport.test_stalled_readers import (
    greet_as_dealer,
    receive_exactly,
    reset,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the filter")


def test_no_connection_can_be_made_before_the_filter_is_attached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    port, attach, early = free_port(), kernel.drop_resets, []

    def try_to_connect_first(fd: int) -> bool:
        with contextlib.suppress(ConnectionRefusedError):
            early.append(socket.create_connection(("127.0.0.1", port)))
        return attach(fd)

    monkeypatch.setattr(kernel, "drop_resets", try_to_connect_first)
    with contextlib.closing(Router([f"tcp://127.0.0.1:{port}"])):
        socket.create_connection(("127.0.0.1", port)).close()
    assert early == []


def test_without_a_filter_receive_queues_have_no_limit_and_that_is_logged_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernel, "drop_resets", lambda _fd: False)
    binding._warn_unlimited.cache_clear()
    with structlog.testing.capture_logs() as logs:
        for _ in range(2):
            with contextlib.closing(Router(["tcp://127.0.0.1:*"])) as router:
                assert router.waitable.getsockopt(zmq.RCVHWM) == 0
    assert [entry["event"] for entry in logs] == ["receive queues unlimited"]
    binding._warn_unlimited.cache_clear()


def test_each_socket_that_was_bound_is_closed_with_its_router() -> None:
    port = free_port()
    for _ in range(3):  # the address would be in use
        router = Router([f"tcp://127.0.0.1:{port}"])
        assert router.urls == [f"tcp://127.0.0.1:{port}"]
        router.close()
        _wait_until_closed(port)


def test_another_port_is_chosen_if_the_first_choice_is_taken_before_it_listens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Taken(socket.socket):
        def listen(self, backlog: int = 1) -> None:
            if not taken:  # another program has bound the same port, and listens first
                port = self.getsockname()[1]
                taken.append(socket.socket())
                taken[0].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                taken[0].bind(("127.0.0.1", port))
                listen(taken[0])
            listen(self, backlog)

    taken: list[socket.socket] = []
    listen = socket.socket.listen
    monkeypatch.setattr(socket, "socket", Taken)
    with contextlib.closing(Router(["tcp://127.0.0.1:*"])) as router:
        monkeypatch.undo()
        socket.create_connection(("127.0.0.1", int(router.urls[0].rpartition(":")[2]))).close()
    taken[0].close()


def test_if_no_free_port_is_found_the_error_asks_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def bind(_socket: zmq.Socket[bytes], url: str, _mark: int) -> None:
        tried.append(url)
        raise zmq.ZMQError(errno.EADDRINUSE)

    tried: list[str] = []
    monkeypatch.setattr(binding, "_bind", bind)
    text = r"^tcp://127\.0\.0\.1:\*: no free port was found in 20 attempts\. Name a port\.$"
    with pytest.raises(ConfigurationError, match=text):
        Router(["tcp://127.0.0.1:*"])
    assert len(tried) == binding.MAX_CHOICES


def test_another_port_is_chosen_if_only_one_address_of_the_host_has_it_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def bind(zmq_socket: zmq.Socket[bytes], url: str, mark: int) -> None:
        if url.startswith("tcp://127.0.0.2:") and not taken:
            taken.append(socket.create_server(("127.0.0.2", int(url.rpartition(":")[2]))))
        bind_one(zmq_socket, url, mark)

    taken: list[socket.socket] = []
    bind_one = binding._bind
    monkeypatch.setattr(binding, "_bind", bind)
    hosts = ["127.0.0.1", "127.0.0.2"]
    monkeypatch.setattr(binding, "addresses_of", lambda _url: [f"tcp://{one}:*" for one in hosts])
    with contextlib.closing(Router(["tcp://two.invalid:*"], insecure=True)) as router:
        (port,) = {int(url.rpartition(":")[2]) for url in router.urls}
        assert [url.rpartition(":")[0] for url in router.urls] == [f"tcp://{one}" for one in hosts]
        assert port != taken[0].getsockname()[1]
        for host in hosts:
            socket.create_connection((host, port)).close()
        _wait_until_closed(taken[0].getsockname()[1])
    taken[0].close()


def _wait_until_closed(port: int) -> None:
    """Wait until nothing listens at this port."""
    with contextlib.suppress(ConnectionRefusedError):
        while True:
            with contextlib.suppress(ConnectionResetError):  # it closes just now
                socket.create_connection(("127.0.0.1", port)).close()


def _dial_from(port: int, router: Router) -> socket.socket:
    """Connect from this port; the kernel repeats its first packet only once."""
    peer = socket.socket()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, 1)
    peer.settimeout(PATIENCE_S)
    peer.bind(("127.0.0.1", port))
    peer.connect(("127.0.0.1", int(router.urls[0].rpartition(":")[2])))
    return peer


def _greet(peer: socket.socket, router: Router, frame: bytes) -> tuple[bytes, int]:
    """Shake hands and let the router send a frame; return the routing id and the descriptor."""
    greet_as_dealer(peer)
    peer.sendall(b"\0\1x")
    received = next(filter(None, (router.receive() for _ in itertools.count())))
    events = router.link_events()
    assert router.send(received[0], frame) is Delivery.DONE
    return received[0], events[-1].fd


@pytest.mark.parametrize("said", ["nothing", "a byte", "a message"])
def test_the_port_of_a_connection_that_was_reset_is_free_again(
    said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "HANDSHAKE_MS", 100 if said == "a byte" else 600_000)
    events: list[LinkEvent] = []
    with contextlib.closing(Router(["tcp://127.0.0.1:*"])) as router:
        port = free_port()
        peer = _dial_from(port, router)
        rid = b""
        if said == "a message":
            rid, _ = _greet(peer, router, b"unread")
        elif said == "a byte":
            peer.sendall(b"\xff")
        else:  # once it has been accepted
            until(router.link_events, "the connection is made")
        reset(peer)

        def is_closed() -> bool:
            nonlocal events
            events += router.link_events()
            for _ in router.take_doubtful() if rid else ():
                router.send(rid, b"probe")
            return any(event.fd >= 0 and not event.up for event in events)

        until(is_closed, "libzmq closes the connection")
        _dial_from(port, router).close()


@pytest.mark.parametrize("end", ["close", "hang_up"])
def test_frames_that_were_sent_before_a_connection_is_closed_arrive(end: str) -> None:
    size = 500_000  # the other end's kernel takes only some of them at once
    with (
        contextlib.closing(Router(["tcp://127.0.0.1:*"])) as router,
        _dial_from(free_port(), router) as peer,
    ):
        _, fd = _greet(peer, router, bytes(size))
        until(lambda: kernel.unread(fd) > size // 2, "the frame is in the kernel")
        connection = kernel.connection_id(fd)
        if end == "close":
            router.close(linger_s=0.3)
        else:
            router.hang_up(fd)
        until(lambda: kernel.connection_id(fd) != connection, "libzmq closes the connection")
        assert receive_exactly(peer, size + 9)[9:] == bytes(size)
        assert peer.recv(1) == b""


def test_a_unix_socket_is_not_taken_from_the_process_that_listens_there(tmp_path: Path) -> None:
    url = f"ipc://{tmp_path}/broker"
    with contextlib.closing(Router([url])):
        owner = rf"in use by process {os.getpid()} \(.* or choose another path\."
        with pytest.raises(ConfigurationError, match=owner):
            Router([url])
    left = socket.socket(socket.AF_UNIX)
    left.bind(f"{tmp_path}/left")
    left.close()  # as by a kill
    Router([f"ipc://{tmp_path}/left"]).close()


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_a_file_is_not_replaced_by_a_unix_socket(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind == "file":
        path.write_text("precious")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path)
    with pytest.raises(ConfigurationError, match=f"{path} exists and is not a socket"):
        Router([f"ipc://{path}"])
    assert path.is_file() or path.is_dir()
