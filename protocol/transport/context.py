"""The ZeroMQ context of this process, and the options that all its sockets share."""

from __future__ import annotations

import errno
import os
import threading
from typing import Any

import zmq

from gymwire.protocol.errors import GymwireError
from gymwire.protocol.security.zap import Authenticator
from gymwire.protocol.transport.interface import TICK_MS
from gymwire.protocol.transport.open_files import allow_more

SPARE = 16  # descriptors that the context and a socket with its monitor and its folder need
HANDSHAKE_MS = 10_000  # on a starved host, each of its messages may wait for seconds
ZAP_ENDPOINT = "inproc://zeromq.zap.01"

_context: tuple[int, zmq.Context[Any]] | None = None
_authenticator: tuple[int, Authenticator] | None = None
_lock = threading.Lock()


class TooFewFiles(GymwireError):
    """This process cannot open enough files for another connection."""


def context() -> zmq.Context[Any]:
    """Return the context of this process, to make one socket.

    A fork gets its own and never touches its parent's. Raises GymwireError if so few files
    can be opened that libzmq might end the process.
    """
    global _context
    _check_descriptors()
    if _context is None or _context[0] != os.getpid():
        made: zmq.Context[Any] = zmq.Context()
        made.set(zmq.MAX_SOCKETS, 65535)
        _context = (os.getpid(), made)
    return _context[1]


def _check_descriptors() -> None:
    """Raise GymwireError unless this process can open SPARE more files, or may be allowed to."""
    opened: list[int] = []
    try:
        for _ in range(SPARE):
            opened.append(os.open(os.devnull, os.O_RDONLY))  # noqa: PERF401 - all are closed below
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        if error.errno == errno.EMFILE and allow_more():
            return
        raise TooFewFiles(
            f"This process cannot open enough files and sockets: the next socket needs up to "
            f"{SPARE}, and {len(opened)} are left. Raise the limit on open files (ulimit -n), or "
            f"use fewer of them (an env agent: fewer --threads)."
        ) from None
    finally:
        for descriptor in opened:
            os.close(descriptor)


def authenticator() -> Authenticator:
    """Return the thread that checks keys for libzmq in this process; start it on first use."""
    global _authenticator
    with _lock:
        if _authenticator is None or _authenticator[0] != os.getpid():
            socket: zmq.Socket[bytes] = context().socket(zmq.REP)
            socket.linger = 0
            socket.bind(ZAP_ENDPOINT)
            thread = Authenticator(socket)
            thread.start()
            _authenticator = (os.getpid(), thread)
        return _authenticator[1]


def set_common_options(socket: zmq.Socket[bytes], max_message: int, tick_ms: int = TICK_MS) -> None:
    """Set the options of every socket that sends or receives frames."""
    socket.linger = 0
    socket.setsockopt(zmq.MAXMSGSIZE, max_message)
    socket.setsockopt(zmq.IPV6, 1)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 30)
    socket.rcvtimeo = tick_ms
