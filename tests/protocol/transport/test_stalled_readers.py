"""What libzmq does if a peer floods a socket that nobody reads, and then resets the connection.

Each combination of options runs in a process of its own, because some abort it (docs/design.md).
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import zmq

from gymwire.learner_agent.client.connection import BrokerConnection

IVL_MS: Final = 400
FLOOD: Final = 40  # messages, more than the small queues hold
# For what must happen, such as the start of a process on a machine with many others.
PATIENCE_S: Final = 60.0

# Dials the port of the first argument and never receives. Ends once it has dialed again, or once
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

# Listens, and receives only once a line of standard input says so; prints the number of messages.
# The line "end" shuts the connection down before that, in both directions.
LISTEN: Final = """
import os, socket, sys, zmq
from zmq.utils.monitor import recv_monitor_message
listening = zmq.Context().socket(zmq.ROUTER)
listening.linger = 0
for option in sys.argv[1:]:
    name, value = option.split("=")
    listening.setsockopt(getattr(zmq, name), int(value))
monitor = listening.get_monitor_socket(zmq.Event.ACCEPTED)
print(listening.bind_to_random_port("tcp://127.0.0.1"), flush=True)
fd = recv_monitor_message(monitor)["value"]
if sys.stdin.readline() == "end\\n":
    with socket.socket(fileno=os.dup(fd)) as connection:
        connection.shutdown(socket.SHUT_RDWR)
sys.stdin.readline()
number = 0
while listening.poll(1000):
    number += len(listening.recv_multipart()) > 0
print(number, flush=True)
os._exit(0)
"""

# The same with our own class, at the URL of the first argument; "end" closes the connection.
ROUTER: Final = """
import sys
from gymwire.protocol.transport.router import Router
router = Router(sys.argv[1:])
print(router.urls[0].rpartition(":")[2], flush=True)
if sys.stdin.readline() == "end\\n":
    router.hang_up(router.link_events()[0].fd)  # of the first connection only
sys.stdin.readline()
number = 0
while router.waitable.poll(1000):
    number += router.receive() is not None
print(number, flush=True)
"""

# The same where the kernel has no packet filter.
ROUTER_WITHOUT_FILTER: Final = f"""
from gymwire.protocol.transport import kernel
kernel._attach_filter = lambda fd, program: False
{ROUTER}
"""

# A broker that begins to receive when a line of standard input says so.
BROKER: Final = """
import sys, threading
from gymwire.broker.server import Server
from gymwire.protocol.ending_signals import StopEvent
server = Server(["tcp://127.0.0.1:*"])
print(server.urls[0].rpartition(":")[2], flush=True)
sys.stdin.readline()
stop = StopEvent()
thread = threading.Thread(target=server.run, args=(stop,))
thread.start()
sys.stdin.readline()
stop.set()
thread.join()
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


def greet_as_dealer(peer: socket.socket) -> None:
    """Shake hands with a ROUTER, under a routing id of its own."""
    peer.sendall(b"\xff" + bytes(8) + b"\x7f\x03\0" + b"NULL".ljust(20, b"\0") + b"\0" + bytes(31))
    receive_exactly(peer, 64)
    rid = b"\x01" + os.urandom(15)
    name = b"\x08Identity" + struct.pack(">I", len(rid)) + rid
    ready = b"\x05READY\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER" + name
    peer.sendall(bytes((4, len(ready))) + ready)
    _, size = receive_exactly(peer, 2)
    receive_exactly(peer, size)


def dial_as_dealer(port: int) -> socket.socket:
    """Return a connection to a ROUTER after the handshake."""
    peer = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
    greet_as_dealer(peer)
    return peer


def reset(peer: socket.socket) -> None:
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


@contextlib.contextmanager
def dialing(program: str, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], Any]]:
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

    A dialing side to which this process, on a busy machine, does not answer for 3 s closes its
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
    with dialing(DIAL, *options) as (process, listener):
        flood_and_reset(listener, parts)
        assert process.wait(PATIENCE_S) == 0


@pytest.mark.skipif(zmq.zmq_version() != "4.3.5", reason="a defect of libzmq 4.3.5")
@pytest.mark.skipif(sys.platform != "linux", reason="seen with epoll")
def test_heartbeats_with_a_limited_queue_abort_the_process() -> None:
    with dialing(DIAL, *HEARTBEATS, "RCVHWM=10") as (process, listener):
        flood_and_reset(listener, 1)
        assert process.wait(PATIENCE_S) == -signal.SIGABRT


@pytest.mark.parametrize("parts", [1, 3])
def test_the_liveness_connection_survives_a_flood_and_a_reset(parts: int) -> None:
    with dialing(LIVENESS) as (process, listener):
        for _ in range(2):  # it dials again after a reset
            flood_and_reset(listener, parts)
        with contextlib.closing(accept(listener)):
            process.communicate(b"", timeout=PATIENCE_S)
        assert process.returncode == 0


PING: Final = b"\x04PING" + struct.pack(">H", 100)  # with a TTL of 10 s
MESSAGE: Final = b"\0\x09" + b"x" * 9


def fill(peer: socket.socket) -> None:
    """Send more messages than a small queue holds, and a PING behind them."""
    # All in one segment, so that libzmq reads the command before it stops.
    peer.sendall(MESSAGE * FLOOD + bytes((4, len(PING))) + PING + MESSAGE)
    peer.settimeout(IVL_MS / 1000)
    with contextlib.suppress(TimeoutError):  # a PONG, from one that has not stopped
        peer.recv(1000)


def fill_and_reset(port: int) -> None:
    """Fill the queue of a ROUTER that does not receive, and reset the connection."""
    peer = dial_as_dealer(port)
    fill(peer)
    reset(peer)
    dial_as_dealer(port).close()  # libzmq's thread has seen the reset before that is done


@contextlib.contextmanager
def listening(program: str, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Lend a process that listens, and the line that says where."""
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE)
    with subprocess.Popen(
        [sys.executable, "-c", program, *options], **pipes, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def reset_when_full(program: str, *options: str) -> tuple[int, str]:
    """Return the exit status of a listening process, and what it has received."""
    with listening(program, *options) as (process, port):
        fill_and_reset(int(port))
        output, _ = process.communicate("go on\n\n", timeout=PATIENCE_S)
        return process.returncode, output


def close_when_full(program: str, *options: str) -> tuple[int, str]:
    """Let a listening process close a connection when it has filled its queue."""
    with listening(program, *options) as (process, port), dial_as_dealer(int(port)) as peer:
        fill(peer)
        assert process.stdin is not None
        process.stdin.write("end\n")
        process.stdin.flush()
        if program is LISTEN:  # the end shows that libzmq's thread has seen it, too
            peer.settimeout(PATIENCE_S)
            assert not peer.recv(1000)
        dial_as_dealer(int(port)).close()
        output, _ = process.communicate("\n", timeout=PATIENCE_S)
        return process.returncode, output


ENDS: Final = pytest.mark.parametrize("end_when_full", [reset_when_full, close_when_full])


@pytest.mark.skipif(zmq.zmq_version() != "4.3.5", reason="a defect of libzmq 4.3.5")
@pytest.mark.skipif(sys.platform != "linux", reason="seen with epoll")
@ENDS
def test_a_ping_behind_a_limited_queue_aborts_a_process_that_sends_no_heartbeats(
    end_when_full: Any,
) -> None:
    assert end_when_full(LISTEN, "RCVHWM=10")[0] == -signal.SIGABRT


@pytest.mark.parametrize(
    ("program", "option"),
    [
        (LISTEN, "RCVHWM=0"),
        (ROUTER, "tcp://127.0.0.1:*"),
        (ROUTER_WITHOUT_FILTER, "tcp://127.0.0.1:*"),
    ],
    ids=["libzmq, unlimited", "gymwire", "gymwire, without a filter"],
)
@ENDS
def test_the_end_of_a_connection_with_a_full_queue_is_harmless(
    end_when_full: Any, program: str, option: str
) -> None:
    assert end_when_full(program, option) == (0, f"{FLOOD + 1}\n")


def test_the_end_of_an_ipc_connection_is_harmless(tmp_path: Path) -> None:
    with listening(ROUTER, f"ipc://{tmp_path}/socket") as (process, _):
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(f"{tmp_path}/socket")
            greet_as_dealer(peer)
            fill(peer)
        output, _ = process.communicate("go on\n\n", timeout=PATIENCE_S)
        assert (process.returncode, output) == (0, f"{FLOOD + 1}\n")


def test_a_busy_broker_survives_a_reset_behind_a_full_queue() -> None:
    with listening(BROKER) as (process, port):
        fill_and_reset(int(port))
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        with contextlib.closing(BrokerConnection(f"tcp://127.0.0.1:{port}")) as connection:
            assert connection.find() == []
        process.communicate("\n", timeout=PATIENCE_S)
        assert process.returncode == 0


def test_a_full_connection_that_closes_survives_a_reset() -> None:
    with dialing(CLOSE) as (process, listener):
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
