"""How a listening socket is bound."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from pathlib import Path

import pytest
import structlog
import zmq

from gymwire.protocol.errors import ConfigurationError
from gymwire.protocol.transport import binding, kernel
from gymwire.protocol.transport.router import Router
from tests.chaos.fleet import free_port

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


def _wait_until_closed(port: int) -> None:
    """Wait until nothing listens at this port."""
    with contextlib.suppress(ConnectionRefusedError):
        while True:
            with contextlib.suppress(ConnectionResetError):  # it closes just now
                socket.create_connection(("127.0.0.1", port)).close()


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
