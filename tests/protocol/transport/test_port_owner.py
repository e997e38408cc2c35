"""The process that listens at a port is named."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from pathlib import Path

import pytest

from gymwire.protocol.errors import ConfigurationError
from gymwire.protocol.transport.port_owner import MAX_COMMAND, _command, listener_at
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


def test_descriptors_that_are_closed_meanwhile_hide_no_other_ones() -> None:
    lower = [socket.socket() for _ in range(20)]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for one in lower:  # the folder of descriptors is opened with one of these numbers
            one.close()
        assert listener_at(listener.getsockname()[1]).startswith(f"process {os.getpid()} (")


def test_the_error_of_a_port_in_use_names_the_process() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConfigurationError, match=rf"in use by process {os.getpid()} \("):
            Router([f"tcp://127.0.0.1:{port}"])


BIND = "--bind tcp://127.0.0.1:5555"


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (f"broker {BIND}", f"broker {BIND}"),
        (f"{'p' * (MAX_COMMAND - len(BIND) - 1)} {BIND}", None),
        (
            f"{'p' * (MAX_COMMAND - len(BIND))} {BIND}",
            f"{'p' * (MAX_COMMAND - len(BIND))} --bind …",
        ),
        ("p " * MAX_COMMAND, f"{'p ' * (MAX_COMMAND // 2)}…"),
        ("p" * MAX_COMMAND * 2, f"{'p' * MAX_COMMAND} …"),
    ],
    ids=["short", "just fits", "too long for its port", "words to the limit", "one word"],
)
def test_a_long_command_is_cut_at_a_word_and_ends_with_an_ellipsis(
    command: str, shown: str | None, tmp_path: Path
) -> None:
    (tmp_path / "cmdline").write_bytes(command.replace(" ", "\0").encode())
    assert _command(tmp_path) == (shown or command)
