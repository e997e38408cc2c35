"""What libzmq does if a peer floods a socket that nobody reads, and then resets the connection.

Each combination of options runs in a process of its own, because some abort it (docs/design.md).
"""

from __future__ import annotations

import contextlib
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, Final

import pytest
import zmq

IVL_MS: Final = 400
FLOOD: Final = 40  # messages, more than the small queues hold
# For what must happen, such as the start of a process on a machine with many others.
PATIENCE_S: Final = 60.0

# Dials the port of the first argument and never receives. Ends once it has dialled again, or once
# several heartbeats were due after that.
DIAL: Final = """
import sys, zmq
from zmq.utils.monitor import recv_monitor_message
socket = zmq.Context().socket(zmq.DEALER)
socket.linger = 0
for option in sys.argv[2:]:
    name, value = option.split("=")
    socket.setsockopt(getattr(zmq, name), int(value))
monitor = socket.get_monitor_socket(zmq.Event.HANDSHAKE_SUCCEEDED)
socket.connect(f"tcp://127.0.0.1:{sys.argv[1]}")
recv_monitor_message(monitor)
monitor.poll(1200)
import os
os._exit(0)
"""

LIVENESS: Final = """
import os, sys, threading
from gymwire.protocol.transport.dealer import LivenessConnection
connection = LivenessConnection(f"tcp://127.0.0.1:{sys.argv[1]}", os.urandom(16))
threading.Thread(target=connection.hold, daemon=True).start()
sys.stdin.read()
connection.release()
os._exit(0)
"""

# Fills its connection, says so, and closes it at the next line of standard input.
CLOSE: Final = f"""
import os, sys
from gymwire.protocol.transport import dealer
from gymwire.protocol.transport.context import context
dealer.HEARTBEAT_IVL_MS = {IVL_MS}
connection = dealer.Dealer(f"tcp://127.0.0.1:{{sys.argv[1]}}")
while not connection.poll(0.1):
    pass
while connection.send(bytes(100_000), wait=True):
    pass
print("full", flush=True)
sys.stdin.readline()
print("closing", flush=True)
connection.close(linger_s=3 * {IVL_MS} / 1000)
context().term()
os._exit(0)
"""


def receive_exactly(peer: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = peer.recv(size - len(data))
        if not part:
            raise ConnectionError("the connection ended")
        data += part
    return data


def shake_hands(peer: socket.socket) -> None:
    """Greet as a ROUTER that speaks ZMTP 3.0 without keys."""
    peer.sendall(
        b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" + bytes(31)
    )
    receive_exactly(peer, 64)
    ready = b"\x05READY\x0bSocket-Type" + struct.pack(">I", 6) + b"ROUTER"
    peer.sendall(bytes((4, len(ready))) + ready)
    _, size = receive_exactly(peer, 2)
    receive_exactly(peer, size)


def reset(peer: socket.socket) -> None:
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


@contextlib.contextmanager
def dialling(program: str, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], Any]]:
    """Lend a process that dials a listening socket, and that socket."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE_S)
        command = [sys.executable, "-c", program, str(listener.getsockname()[1]), *options]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            try:
                yield process, listener
            finally:
                process.kill()


def accept(listener: socket.socket) -> socket.socket:
    """Accept a connection and shake hands.

    A dialling side to which this process, on a busy machine, does not answer for 3 s closes its
    connection and dials again.
    """
    while True:
        peer, _ = listener.accept()
        peer.settimeout(PATIENCE_S)
        try:
            shake_hands(peer)
        except ConnectionError:
            peer.close()
        else:
            return peer


def flood_and_reset(listener: socket.socket, parts: int) -> None:
    """Accept a connection, send many messages over it, and reset it once they were handled."""
    peer = accept(listener)
    message = b"".join(bytes((part < parts - 1, 9)) + b"x" * 9 for part in range(parts))
    peer.sendall(message * FLOOD)
    peer.settimeout(2 * IVL_MS / 1000)
    with contextlib.suppress(TimeoutError):  # until the first heartbeat, if any are sent
        peer.recv(1000)
    reset(peer)


HEARTBEATS: Final = (f"HEARTBEAT_IVL={IVL_MS}", "HEARTBEAT_TIMEOUT=4000", "HEARTBEAT_TTL=4000")


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize(
    "options",
    [(*HEARTBEATS, "RCVHWM=0"), (*HEARTBEATS, "CONFLATE=1"), ("RCVHWM=10",)],
    ids=["heartbeats, unlimited", "heartbeats, last message", "no heartbeats, limited"],
)
def test_these_combinations_are_safe(options: tuple[str, ...], parts: int) -> None:
    with dialling(DIAL, *options) as (process, listener):
        flood_and_reset(listener, parts)
        assert process.wait(PATIENCE_S) == 0


@pytest.mark.skipif(zmq.zmq_version() != "4.3.5", reason="a defect of libzmq 4.3.5")
@pytest.mark.skipif(sys.platform != "linux", reason="seen with epoll")
def test_heartbeats_with_a_limited_queue_abort_the_process() -> None:
    with dialling(DIAL, *HEARTBEATS, "RCVHWM=10") as (process, listener):
        flood_and_reset(listener, 1)
        assert process.wait(PATIENCE_S) == -signal.SIGABRT


@pytest.mark.parametrize("parts", [1, 3])
def test_the_liveness_connection_survives_a_flood_and_a_reset(parts: int) -> None:
    with dialling(LIVENESS) as (process, listener):
        for _ in range(2):  # it dials again after a reset
            flood_and_reset(listener, parts)
        with contextlib.closing(accept(listener)):
            process.communicate(b"", timeout=PATIENCE_S)
        assert process.returncode == 0


MESSAGE: Final = b"\0\x09" + b"x" * 9


def test_a_full_connection_that_closes_survives_a_reset() -> None:
    with dialling(CLOSE) as (process, listener):
        peer = accept(listener)
        peer.sendall(MESSAGE)
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"full\n"
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"closing\n"
        peer.settimeout(IVL_MS / 1000)
        # Until the process takes no more, or, on a busy machine, has closed the connection already.
        with contextlib.suppress(TimeoutError, ConnectionError):
            for _ in range(20):
                peer.sendall(MESSAGE * 100_000)
        reset(peer)
        assert process.wait(PATIENCE_S) == 0
