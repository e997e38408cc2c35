"""What the kernel knows about connections."""

from __future__ import annotations

import socket
import sys

import pytest

from gymwire.protocol.transport import kernel


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not say it")
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_what_the_other_end_does_not_read_is_counted(family: int) -> None:
    if family == socket.AF_UNIX:
        here, there = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as server:
            here = socket.create_connection(server.getsockname())
            there, _ = server.accept()
    with here, there:
        assert kernel.unread(here.fileno()) == 0
        here.setblocking(False)
        try:
            while True:
                here.send(bytes(1 << 20))
        except BlockingIOError:
            assert kernel.unread(here.fileno()) > 64 * 1024
    assert kernel.unread(10**6) == 0
