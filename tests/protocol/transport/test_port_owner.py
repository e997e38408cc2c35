"""The process that listens at a port is named."""

from __future__ import annotations

import contextlib
import os
import socket
import sys

import pytest

from gymwire.protocol.errors import ConfigurationError
from gymwire.protocol.transport.port_owner import listener_at
from gymwire.protocol.transport.router import Router

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows the owner")


@pytest.mark.parametrize(
    ("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
)
def test_the_process_that_listens_at_a_port_is_named(
    family: socket.AddressFamily, host: str
) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(20):  # somebody may listen at this port of the other family
            listener = stack.enter_context(socket.socket(family))
            try:
                listener.bind((host, 0))
            except OSError:
                pytest.skip("this host does not have such addresses")
            port = listener.getsockname()[1]
            owner = listener_at(port)
            if not owner:
                break
        assert owner == ""
        listener.listen()
        assert listener_at(port).startswith(f"process {os.getpid()} (")


def test_the_error_of_a_port_in_use_names_the_process() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConfigurationError, match=rf"in use by process {os.getpid()} \("):
            Router([f"tcp://127.0.0.1:{port}"])
