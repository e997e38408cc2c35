"""Binds a listening ZeroMQ socket, so that peers can neither fill its memory nor abort it."""

from __future__ import annotations

import errno
import functools
import os
import re
import socket as hostsocket
import stat
import sys
from collections.abc import Callable
from typing import TypeVar

import zmq

from gymwire.protocol import logs
from gymwire.protocol.errors import ConfigurationError
from gymwire.protocol.transport import kernel
from gymwire.protocol.transport.hosts import addresses_of, is_this_host, unknown_host
from gymwire.protocol.transport.port_owner import listener_at, listener_on

IPC = "ipc://"
BACKLOG = 1024  # connections that wait to be accepted
MAX_CHOICES = 20  # of a free port
T = TypeVar("T")


def bind_all(socket: zmq.Socket[bytes], url: str, mark: int) -> list[str]:
    """Bind each address of the host's name, at the same port; return the URLs. Raises ZMQError.

    An address that this host lacks is left out if there is another one: /etc/hosts may name ::1 on
    a host without IPv6. `mark`: see `_bind`.
    """
    if url.endswith(":*"):
        return _at_free_port(lambda: _bind_each(socket, url, mark))
    return _bind_each(socket, url, mark)


def _at_free_port(bind: Callable[[], T]) -> T:
    """Call `bind` until the port that the kernel chooses is free, at most MAX_CHOICES times.

    With SO_REUSEADDR, which libzmq sets, the kernel may choose a port that another socket is bound
    to if that one does not listen yet. The later one to listen fails, and has to choose again.
    Raises ZMQError, as `bind` does.
    """
    for _ in range(MAX_CHOICES - 1):
        try:
            return bind()
        except zmq.ZMQError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    return bind()


def _bind_each(socket: zmq.Socket[bytes], url: str, mark: int) -> list[str]:
    bound: list[str] = []
    missing = zmq.ZMQError(errno.EADDRNOTAVAIL)
    for one in addresses_of(url):
        host, _, port = one.rpartition(":")
        try:
            _bind(socket, f"{host}:{bound[0].rpartition(':')[2] if bound else port}", mark)
        except zmq.ZMQError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.ENODEV, errno.EAFNOSUPPORT):
                for other in bound:
                    socket.unbind(other)
                raise
            missing = error
            continue
        bound.append(socket.get_string(zmq.LAST_ENDPOINT))
    if not bound:
        raise missing
    return [_readable(one) for one in bound]


def _bind(socket: zmq.Socket[bytes], url: str, mark: int) -> None:
    """Bind a socket to one address, with this receive mark where that is safe. Raises ZMQError.

    A peer that resets its connection while a queue is full could abort this process
    (docs/design.md), so a queue is only limited where the kernel drops resets.
    """
    filtered = _filtered(url) if sys.platform == "linux" and url.startswith("tcp:") else None
    socket.setsockopt(zmq.RCVHWM, 0 if filtered is None else mark)
    if filtered is None:
        _check_free(url)
        socket.bind(url)
        return
    with filtered:
        socket.setsockopt(zmq.USE_FD, filtered.fileno())
        socket.bind(url)
        filtered.detach()  # libzmq closes it
        socket.setsockopt(zmq.USE_FD, -1)


def _check_free(url: str) -> None:
    """Raise ZMQError if another program listens at an ipc:// URL, or if the path has another file.

    libzmq removes whatever is there.
    """
    path = url.removeprefix(IPC)
    if not url.startswith(IPC) or path.startswith(("*", "@")):  # a path of libzmq's own, or none
        return
    try:
        mode = os.lstat(path).st_mode
    except (OSError, ValueError):  # nothing is there; else libzmq reports it
        return
    if not stat.S_ISSOCK(mode):
        raise zmq.ZMQError(errno.ENOTSOCK)
    with hostsocket.socket(hostsocket.AF_UNIX, hostsocket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        if probe.connect_ex(path) in (0, errno.EAGAIN):
            raise zmq.ZMQError(errno.EADDRINUSE)  # else a killed process has left it


def _filtered(url: str) -> hostsocket.socket | None:
    """Return a socket that listens at a tcp:// URL, and whose connections the kernel never resets.

    Returns None, and logs that once, if the kernel cannot. Raises ZMQError.
    """
    head, _, port = url.rpartition(":")
    # libzmq also knows the names of interfaces. Its port, which may be this one, is free again when
    # its context has ended.
    with zmq.Context() as resolving, resolving.socket(zmq.STREAM) as resolver:
        resolver.setsockopt(zmq.IPV6, 1)
        _at_free_port(lambda: resolver.bind(f"{head}:*"))
        resolved = resolver.get_string(zmq.LAST_ENDPOINT).removeprefix("tcp://")
    host = resolved.rpartition(":")[0].strip("[]")
    address = host, 0 if port == "*" else int(port)
    family = hostsocket.AF_INET6 if ":" in host else hostsocket.AF_INET
    made = hostsocket.socket(family, hostsocket.SOCK_STREAM)
    try:
        # Before it listens: a connection has the filter that is attached when it is made.
        if not kernel.drop_resets(made.fileno()):
            made.close()
            _warn_unlimited()
            return None
        kernel.forget_at_close(made.fileno())
        made.setsockopt(hostsocket.SOL_SOCKET, hostsocket.SO_REUSEADDR, 1)
        if family == hostsocket.AF_INET6:
            made.setsockopt(hostsocket.IPPROTO_IPV6, hostsocket.IPV6_V6ONLY, 0)
        made.bind(address)
        made.listen(BACKLOG)
        made.setblocking(False)
    except OSError as error:
        made.close()
        raise zmq.ZMQError(error.errno) from None
    return made


@functools.cache
def _warn_unlimited() -> None:
    logs.logger().warning(
        "receive queues unlimited",
        why="this system has no packet filter for sockets (SO_ATTACH_FILTER), without which a "
        "limit would not be safe: limit the memory of this process",
    )


def _readable(url: str) -> str:
    """Return an endpoint as people write it: libzmq shows IPv4 addresses mapped into IPv6."""
    return re.sub(r"\[::ffff:([0-9.]+)\]", r"\1", url)


def check_host(url: str) -> None:
    """Raise ConfigurationError if the host of a URL is neither this one nor an interface of it."""
    host = url.removeprefix("tcp://").rpartition(":")[0]
    interfaces = (name for _, name in hostsocket.if_nameindex())
    if host != "*" and host not in interfaces and not is_this_host(url):
        raise ConfigurationError(_foreign(url))


def _foreign(url: str) -> str:
    why = unknown_host(url)
    return (
        f"{url} is not an address of this host{why and ': '}{why}. Bind one that is, or "
        f"tcp://*:PORT for all."
    )


def failure(url: str, error: zmq.ZMQError, elsewhere: str) -> str:
    """Return why a URL cannot be bound, and what to do; `elsewhere`: if its port is in use."""
    if error.errno == errno.EADDRINUSE and url.endswith(":*"):
        return f"{url}: no free port was found in {MAX_CHOICES} attempts. Name a port."
    if error.errno == errno.EADDRINUSE:
        port = url.rpartition(":")[2]
        if url.startswith(IPC):
            owner, elsewhere = listener_on(url.removeprefix(IPC)), "choose another path"
        else:
            owner = listener_at(int(port)) if port.isdigit() else ""
        found = f" by {owner}, which" if owner else ": another broker, or another program,"
        return (
            f"{url} is in use{found} listens there and would get the connections. Stop it, or "
            f"{elsewhere}."
        )
    if error.errno == errno.ENOTSOCK and url.startswith(IPC):
        return f"{url}: {url.removeprefix(IPC)} exists and is not a socket. Choose another path."
    if error.errno in (errno.EADDRNOTAVAIL, errno.ENODEV):
        return _foreign(url)
    return f"Cannot listen at {url}: {zmq.strerror(error.errno or 0)}."
