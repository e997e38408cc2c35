"""What the kernel knows about the connections of a ZeroMQ socket, by their descriptors."""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Iterator

# Linux's struct tcp_info: the bytes tcpi_state (the first), tcpi_retransmits and tcpi_probes;
# tcpi_last_data_recv, its 14th 32-bit word, in milliseconds; tcpi_bytes_acked and
# tcpi_bytes_received, 64-bit words; and tcpi_segs_in.
_STATE = slice(0, 1)
_REPETITIONS = slice(2, 4)
_LAST_DATA_RECV = slice(52, 56)
_BYTES_ACKED = slice(120, 128)
_BYTES_RECEIVED = slice(128, 136)
_SEGMENTS_RECEIVED = slice(140, 144)
# The socket option that counts, in its last word, the packets that were dropped.
_SO_MEMINFO = 55
_DROPS = slice(32, 36)
_LOOK_AGAIN_S = 0.005
_CLOSED = 7  # the tcpi_state of a connection that was reset, or that the kernel has given up
UNANSWERED = 5  # repetitions of a packet, without an answer, after which the other end is gone

# Programs for Linux's packet filter: instructions of (operation, jump if true, jump if false,
# operand). A packet begins with its TCP header; byte 12 has the header's length, byte 13 the flags.
_SO_ATTACH_FILTER = 26
_LOAD_BYTE, _LOAD_LENGTH, _COPY, _SHIFT_RIGHT, _AND = 0x30, 0x80, 0x07, 0x74, 0x54
_IF_BITS, _IF_GREATER, _RETURN = 0x45, 0x2D, 0x06
_DROP, _KEEP, _RESET = 0, 0xFFFFFFFF, 4
_DROP_RESETS = (
    (_LOAD_BYTE, 0, 0, 13),
    (_IF_BITS, 0, 1, _RESET),
    (_RETURN, 0, 0, _DROP),
    (_RETURN, 0, 0, _KEEP),
)
_DROP_INPUT = (
    (_LOAD_BYTE, 0, 0, 13),
    (_IF_BITS, 6, 0, _RESET),
    (_LOAD_BYTE, 0, 0, 12),
    (_SHIFT_RIGHT, 0, 0, 2),
    (_AND, 0, 0, 0x3C),
    (_COPY, 0, 0, 0),
    (_LOAD_LENGTH, 0, 0, 0),
    (_IF_GREATER, 0, 1, 0),
    (_RETURN, 0, 0, _DROP),
    (_RETURN, 0, 0, _KEEP),
)

if sys.platform == "linux":
    _getsockopt = ctypes.CDLL(None).getsockopt


@contextlib.contextmanager
def connection_socket(fd: int) -> Iterator[socket.socket | None]:
    """Lend libzmq's connection with this descriptor; None if there is none.

    The socket has a descriptor of its own: an exception from a signal handler could close one that
    it shared with libzmq, which then aborts the process.
    """
    try:
        found = socket.socket(fileno=os.dup(fd))
    except (OSError, ValueError):  # closed already, or unknown to libzmq
        yield None
        return
    with found:
        yield found


def connection_id(fd: int) -> int:
    """Return a number that identifies the connection with this descriptor; 0 if there is none.

    The system reuses descriptors but not these numbers.
    """
    try:
        return os.fstat(fd).st_ino
    except OSError:
        return 0


def is_from_host(fd: int) -> bool:
    """Return whether the other end of a connection is on this host: both have one address."""
    with connection_socket(fd) as found:
        if found is None:
            return False
        if found.family not in (socket.AF_INET, socket.AF_INET6):
            return True  # a Unix socket
        try:
            here, there = found.getsockname()[0], found.getpeername()[0]
        except OSError:
            return False
    return here == there or ipaddress.ip_address(there.partition("%")[0]).is_loopback


def peer_address(fd: int) -> str:
    """Return the IP address of the other end of a connection; "" if that is unknown."""
    with connection_socket(fd) as found:
        if found is None or found.family not in (socket.AF_INET, socket.AF_INET6):
            return ""
        try:
            address: str = found.getpeername()[0]
        except OSError:
            return ""
    return address.removeprefix("::ffff:")  # of an IPv4 address, in a socket for IPv6


def idle_s(fd: int) -> float | None:
    """Return for how many seconds nothing has arrived on a connection, heartbeats included.

    Returns None if that is unknown: for ipc, and on systems other than Linux.
    """
    idle_ms = _tcp_info(fd, _LAST_DATA_RECV)
    return None if idle_ms is None else idle_ms / 1000


def bytes_received(fd: int) -> int | None:
    """Return how many bytes a connection has delivered; None where `idle_s` returns None."""
    return _tcp_info(fd, _BYTES_RECEIVED)


def bytes_taken(fd: int) -> int | None:
    """Return how many sent bytes the other end's system has taken; None where `idle_s` does."""
    return _tcp_info(fd, _BYTES_ACKED)


def unread(fd: int) -> int:
    """Return how many sent bytes the other end's system has not taken; 0 where that is unknown."""
    if sys.platform != "linux":
        return 0
    import fcntl  # Windows has neither
    import termios

    with connection_socket(fd) as found:
        if found is None:
            return 0
        try:
            size = fcntl.ioctl(found, termios.TIOCOUTQ, bytes(4))  # SIOCOUTQ
        except OSError:
            return 0
    return int.from_bytes(size, sys.byteorder)


def is_gone(fd: int) -> bool:
    """Return whether the other end's system answers no more; False where `idle_s` returns None."""
    return max(divmod(_tcp_info(fd, _REPETITIONS) or 0, 256)) >= UNANSWERED


def has_failed(fd: int) -> bool:
    """Return whether a connection that is not closed here was reset, or given up by the kernel."""
    return _tcp_info(fd, _STATE) == _CLOSED


def segments_received(fd: int) -> int | None:
    """Return how many packets a connection has taken; None where `idle_s` returns None."""
    return _tcp_info(fd, _SEGMENTS_RECEIVED)


def packets_dropped(fd: int) -> int:
    """Return how many packets the kernel has dropped, by a filter or not; 0 if that is unknown.

    A filter drops a packet before `segments_received` counts it.
    """
    return _option(fd, socket.SOL_SOCKET, _SO_MEMINFO, _DROPS) or 0


def drop_resets(fd: int) -> bool:
    """Let the kernel drop the resets of the connections that a listening socket will accept.

    Returns False where that is impossible: for ipc, and on systems other than Linux.
    """
    return _attach_filter(fd, _DROP_RESETS)


def forget_at_close(fd: int) -> None:
    """Let the kernel reset a connection when it is closed, for those that a socket will accept.

    Their ports are free at once then. What has not been sent is lost: call `finish_at_close` before
    closing a connection whose last frames must arrive.
    """
    _set_linger(fd, (1, 0))


def finish_at_close(fd: int) -> None:
    """Let the kernel send everything although a connection is closed; undo `forget_at_close`."""
    _set_linger(fd, (0, 0))


def _set_linger(fd: int, linger: tuple[int, int]) -> None:
    with connection_socket(fd) as found, contextlib.suppress(OSError):
        if found is not None and found.family in (socket.AF_INET, socket.AF_INET6):
            found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", *linger))


def drop_input(fd: int) -> bool:
    """Let the kernel drop all data that arrives on a connection, and a reset.

    Returns False where `drop_resets` does.
    """
    return _attach_filter(fd, _DROP_INPUT)


def _attach_filter(fd: int, program: tuple[tuple[int, int, int, int], ...]) -> bool:
    with connection_socket(fd) as found:
        if found is None or sys.platform != "linux":
            return False
        if found.family not in (socket.AF_INET, socket.AF_INET6):
            return False
        code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
        memory = ctypes.create_string_buffer(code, len(code))
        pointer = struct.pack("HP", len(program), ctypes.addressof(memory))
        try:
            found.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, pointer)
        except OSError:
            return False
        return True


def shut_down(fd: int) -> None:
    """Close a connection; libzmq sees it end as if the peer had.

    Only for reading: if its other direction ended, too, while libzmq does not read it, the next
    heartbeat could abort the process (docs/design.md).
    """
    drop_input(fd)  # else libzmq never reaches the end of what a peer sends without a pause
    with connection_socket(fd) as found, contextlib.suppress(OSError):
        if found is not None:
            found.shutdown(socket.SHUT_RD)


def wait_until_sent(fd: int, timeout_s: float) -> bool:
    """Wait until a connection that is full has sent all its bytes; return whether it has.

    Returns True at once for one that is not full, and on systems other than Linux.
    """
    if sys.platform != "linux":
        return True
    deadline = time.monotonic() + timeout_s
    with connection_socket(fd) as found:
        if found is None:
            return True
        writable = select.poll()
        writable.register(found, select.POLLOUT)
        if writable.poll(0):
            return True
    while unread(fd):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_LOOK_AGAIN_S)
    return True


def _tcp_info(fd: int, field: slice) -> int | None:
    return _option(fd, socket.IPPROTO_TCP, socket.TCP_INFO, field)


def _option(fd: int, level: int, name: int, field: slice) -> int | None:
    if sys.platform != "linux":
        return None
    # Not by a socket object, which costs six calls of the kernel: idle agents ask ten times a
    # second. It fails for what is not a TCP connection.
    size = ctypes.c_uint32(field.stop)
    info = ctypes.create_string_buffer(field.stop)
    if _getsockopt(fd, level, name, info, ctypes.byref(size)):
        return None
    # An older kernel knows fewer fields.
    return int.from_bytes(info.raw[field], sys.byteorder) if size.value == field.stop else None
