"""The least that a round trip over ZeroMQ costs: pyzmq with nothing around it.

Every part is a process of its own and blocks in `recv`; messages are opaque bytes; nothing is
checked, looked up or written down. Two shapes, as gymwire's own paths:

    direct   learner DEALER ── ROUTER env agent
    routed   learner DEALER ── ROUTER broker ROUTER ── DEALER env agent     (one ROUTER socket)

    python -m benchmarks.floors echo direct|routed URL REPLY_BYTES
    python -m benchmarks.floors router URL
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from typing import Literal, NoReturn

import zmq
from zmq.backend import Socket as RawSocket

from benchmarks.harness import Running, Side
from benchmarks.processes import part

Shape = Literal["direct", "routed"]
Transport = Literal["tcp", "ipc"]

LEARNER, ECHO = b"\x01learner", b"\x01echo"

# pyzmq's zero-copy path has a price of its own, which only larger messages win back.
ZERO_COPY_FROM_BYTES = 16 * 1024


def floor(
    shape: Shape, transport: Transport, request_bytes: int, reply_bytes: int, idle: int = 0
) -> Side:
    """Return a side that sends `request_bytes` and receives `reply_bytes`.

    `idle`: as many connections beside the one in use, each of which has carried a message
    and one back.
    """
    beside = f" beside {idle:,} idle" if idle else ""
    return Side(
        f"floor {shape} {transport}, {reply_bytes} B{beside}",
        partial(_open, shape, transport, request_bytes, reply_bytes, idle),
    )


@contextlib.contextmanager
def _open(
    shape: Shape, transport: Transport, request_bytes: int, reply_bytes: int, idle: int
) -> Iterator[Running]:
    with contextlib.ExitStack() as stack:
        bind_url = "tcp://127.0.0.1:*"
        if transport == "ipc":
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="floor-"))
            bind_url = f"ipc://{folder}/socket"
        processes = {}
        if shape == "routed":
            url, processes["broker"] = stack.enter_context(part(__name__, "router", bind_url))
            _, processes["echo"] = stack.enter_context(
                part(__name__, "echo", shape, url, reply_bytes)
            )
        else:
            url, processes["echo"] = stack.enter_context(
                part(__name__, "echo", shape, bind_url, reply_bytes)
            )
        context = stack.enter_context(zmq.Context())
        context.set(zmq.MAX_SOCKETS, idle + 8)
        for _ in range(idle):
            beside = stack.enter_context(context.socket(zmq.DEALER))
            beside.linger = 0
            beside.connect(url)
            beside.send(b"hello")
            beside.recv()
        socket = stack.enter_context(context.socket(zmq.DEALER))
        socket.linger = 0
        socket.routing_id = LEARNER
        socket.connect(url)

        request = bytes(request_bytes)
        send, recv = partial(RawSocket.send, socket), partial(RawSocket.recv, socket)
        copy = reply_bytes < ZERO_COPY_FROM_BYTES

        def step() -> object:
            send(request)
            return recv(0, copy)

        yield Running(step, processes)


def _echo(shape: Shape, url: str, reply_bytes: int) -> NoReturn:
    reply = bytes(reply_bytes)
    copy = reply_bytes < ZERO_COPY_FROM_BYTES
    socket = zmq.Context().socket(zmq.ROUTER if shape == "direct" else zmq.DEALER)
    send, recv = partial(RawSocket.send, socket), partial(RawSocket.recv, socket)
    # The public `send` is the one that knows about zero copies.
    send_reply = send if copy else partial(socket.send, copy=False)
    if shape == "direct":
        socket.bind(url)
        print(socket.getsockopt_string(zmq.LAST_ENDPOINT), flush=True)
        more = zmq.SNDMORE
        while True:
            sender = recv()
            recv()
            send(sender, more)
            send_reply(reply)
    socket.routing_id = ECHO
    socket.connect(url)
    print("connected", flush=True)
    while True:
        recv()
        send_reply(reply)


def _router(url: str) -> NoReturn:
    socket = zmq.Context().socket(zmq.ROUTER)
    # The first request may come before the echo's connection is through: it must not get lost.
    socket.router_mandatory = True
    socket.bind(url)
    print(socket.getsockopt_string(zmq.LAST_ENDPOINT), flush=True)
    send, recv = partial(RawSocket.send, socket), partial(RawSocket.recv, socket)
    other = {LEARNER: ECHO, ECHO: LEARNER}
    more = zmq.SNDMORE
    while True:
        sender = recv()
        to = other.get(sender, sender)
        body = recv(0, False)
        while True:
            try:
                send(to, more)
            except zmq.ZMQError as error:
                if error.errno != zmq.EHOSTUNREACH:
                    raise
            else:
                break
        send(body)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["echo", "direct" | "routed" as shape_, url_, size]:
            _echo("direct" if shape_ == "direct" else "routed", url_, int(size))
        case ["router", url_]:
            _router(url_)
        case _:
            sys.exit(__doc__)
