"""Frames over a connected stream socket, each after its length (docs/protocol.md §9.6)."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from gymwire.protocol.codec import HEADER_SIZE, Pieces
from gymwire.protocol.outside_exceptions import is_from_outside

LENGTH_SIZE: Final = 4  # bytes of the length before each frame
CHUNK: Final = 16 * 1024  # bytes of one read; a larger frame gets memory of its own
BUFFER = 1024 * 1024  # bytes of send buffer to request from the kernel, which may grant less

NOW: Final = getattr(socket, "MSG_DONTWAIT", 0)
_empty, _UINT8 = np.empty, np.dtype(np.uint8)
_int_from_bytes = int.from_bytes  # called faster by Python 3.11 than the attribute
_WHOLE: Final = getattr(socket, "MSG_WAITALL", 0)


def _is_in_use(error: BaseException) -> bool:
    """Return whether a poll object is in use: a signal handler has interrupted its waiting."""
    return type(error) is RuntimeError and str(error) == "concurrent poll() invocation"


class _Ended(Exception):
    """The peer has closed the connection, or sent what no frame begins with."""


class Stream:
    """Frames over one connected socket, each after its length, as u32 little-endian.

    Attributes:
        up: whether the connection is open.
        write_closed: whether the peer has stopped reading. Data already received can still be
            read, followed by EOF.
        has_buffered: whether bytes beyond the last frame were received.
        unsent: the rest of the last frame sent, which the socket has not accepted yet.
    """

    up = False
    write_closed = False
    has_buffered = False
    unsent: memoryview | None = None
    _poll: Callable[[float], Sequence[object]] | None = None  # made for the first read that waits

    def __init__(self, max_message: int) -> None:
        self.max_message = max_message

    def start(self, sock: socket.socket, tick_ms: int) -> None:
        """Use this connected socket from now on, with timeouts of `tick_ms`."""
        tick = struct.pack("ll", tick_ms // 1000, tick_ms % 1000 * 1000)
        # The kernel's own timeouts: Python's would cost one poll per call.
        sock.setblocking(True)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, tick)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, tick)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        self.sock = sock
        self._recv, self._recv_into, self._send = sock.recv, sock.recv_into, sock.send
        self._poll, self._tick_ms = None, tick_ms
        self.up, self.write_closed, self.unsent = True, False, None
        self._pause(b"")
        self._frames: list[bytes] = []  # whole frames that came with the last one, in reverse
        self._frame: memoryview | None = None  # a large frame, received in part
        self._filled = 0  # its bytes received so far

    def _make_poll(self) -> Callable[[float], Sequence[object]]:
        """Return what waits for input. A read would also be woken when the peer reads a frame."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        self._poll = poll.poll
        return poll.poll

    def wait_for_input(self, timeout_ms: float) -> bool:
        """Return whether input arrives within `timeout_ms`."""
        try:
            return bool((self._poll or self._make_poll())(timeout_ms))
        except RuntimeError as error:
            if not _is_in_use(error):
                raise
            return bool(self._make_poll()(timeout_ms))

    @property
    def has_frame(self) -> bool:
        """Whether a whole frame is buffered, which `read` returns without waiting."""
        return bool(self._frames)

    def _pause(self, rest: bytes, expects_large: bool = False) -> None:
        self._rest, self.has_buffered = rest, bool(rest)
        self._plain = not rest and not expects_large  # one read may return the next frame whole

    def read(self, flags: int) -> bytes | memoryview | None:
        """Return the next frame, or None without one within a tick (with the flag NOW: at once).

        A large frame has memory of its own, which the caller may write to.
        """
        try:
            if not flags and not self.has_buffered:
                poll = self._poll or self._make_poll()
                if not poll(self._tick_ms):
                    return None
            if not self._plain:
                return self._read_in_parts(flags)
            recv = self._recv  # a local, which Python 3.11 calls faster than an attribute
            data = recv(CHUNK, flags)
            size = len(data) - LENGTH_SIZE
            if (
                _int_from_bytes(data[:LENGTH_SIZE], "little") == size
                and HEADER_SIZE <= size <= self.max_message
            ):
                return data[LENGTH_SIZE:]
            if not data:
                raise _Ended
            self._pause(data)
            return self._take(flags)
        except _Ended:
            self.end()
            return None
        except (OSError, MemoryError) as error:
            if is_from_outside(error):
                self.end()
                raise
            if not isinstance(error, BlockingIOError):
                self.end()
            return None
        except BaseException as error:
            if _is_in_use(error):
                self._make_poll()
                return self.read(flags)
            # An interrupt: bytes taken from the kernel may be lost.
            self.end()
            raise

    def _read_in_parts(self, flags: int) -> bytes | memoryview | None:
        if self._frames:
            whole = self._frames.pop()
            if not self._frames:
                self._pause(self._rest)
            return whole
        if self._frame is not None or self.has_buffered:
            return self._take(flags)
        recv = self._recv
        data = recv(LENGTH_SIZE, flags)  # so that no byte of a large frame is copied
        size = int.from_bytes(data, "little")
        if len(data) != LENGTH_SIZE or not CHUNK <= size <= self.max_message:
            if not data:
                raise _Ended
            self._pause(data)
            return self._take(flags)
        # The usual case among large frames, which `_take` would read with more calls.
        frame = self._frame = memoryview(_empty(size, _UINT8))  # type: ignore[arg-type]
        self._filled = 0
        recv_into = self._recv_into
        self._filled = recv_into(frame, 0, flags or _WHOLE)
        if self._filled == size:
            self._frame = None
            return frame
        if not self._filled:
            raise _Ended
        return None

    def _take(self, flags: int) -> bytes | memoryview | None:
        """Return a frame from the buffered bytes, reading more if they are not a whole frame."""
        frame = self._frame
        if frame is None:
            rest = self._rest
            if len(rest) < LENGTH_SIZE:
                data = self._recv(CHUNK, flags)
                if not data:
                    raise _Ended
                rest += data
                self._pause(rest)
                if len(rest) < LENGTH_SIZE:
                    return None
            size = int.from_bytes(rest[:LENGTH_SIZE], "little")
            if not HEADER_SIZE <= size <= self.max_message:
                raise _Ended
            end = LENGTH_SIZE + size
            if len(rest) >= end:
                self._keep(rest, end)
                return rest[LENGTH_SIZE:end]
            frame = self._frame = memoryview(np.empty(size, np.uint8))  # type: ignore[arg-type]
            self._filled = len(rest) - LENGTH_SIZE
            frame[: self._filled] = rest[LENGTH_SIZE:]
            self.has_buffered, self._plain = False, False
        # The kernel waits for the whole rest, but a tick at most: a peer that sends byte by byte
        # delays no other.
        got = self.sock.recv_into(frame[self._filled :], 0, flags or _WHOLE)
        if not got:
            raise _Ended
        self._filled += got
        if self._filled < len(frame):
            return None
        self._frame = None
        self._pause(b"", len(frame) >= CHUNK)
        return frame

    def _keep(self, data: bytes, begin: int) -> None:
        """Keep what follows a frame in the data: whole frames apart, and the rest.

        A frame that is too large remains in the rest: the next read may permit it.
        """
        frames, total, largest = [], len(data), self.max_message
        while (start := begin + LENGTH_SIZE) <= total:
            size = int.from_bytes(data[begin:start], "little")
            if start + size > total or not HEADER_SIZE <= size <= largest:
                break
            begin = start + size
            frames.append(data[start:begin])
        self._pause(data[begin:])
        if frames:
            frames.reverse()
            self._frames, self.has_buffered, self._plain = frames, True, False

    def write(self, frame: bytes | bytearray | memoryview | Pieces, flags: int) -> bool:
        """Send one frame; keep in `unsent` what the socket does not accept at once.

        Returns False, and drops the frame, if the socket accepts nothing or has closed.
        """
        if self.unsent is not None and not self.flush_pending(flags):
            return False
        size = len(frame)
        prefix = size.to_bytes(LENGTH_SIZE, "little")
        try:
            if size <= CHUNK and not isinstance(frame, Pieces):
                send = self._send  # a local, as in `read`
                sent = send(prefix + frame, flags)
            else:
                parts = frame.parts if isinstance(frame, Pieces) else (frame,)
                sent = self.sock.sendmsg((prefix, *parts), (), flags)
            if sent != size + LENGTH_SIZE:
                # A copy of pieces: the environment may change their memory.
                whole = bytes(frame) if isinstance(frame, Pieces) else frame
                if sent < LENGTH_SIZE:
                    self.unsent = memoryview(prefix[sent:] + whole)
                else:
                    self.unsent = memoryview(whole)[sent - LENGTH_SIZE :]
        except OSError as error:
            self._handle_unsent(error)
            return False
        except BaseException:  # an interrupt: how many bytes were sent is unknown
            self.end()
            raise
        return True

    def write_all(
        self, frames: Sequence[bytes | bytearray | memoryview], flags: int, wait_s: float = 0.0
    ) -> bool:
        """Send several frames, small ones together; keep in `unsent` what is not accepted at once.

        Returns False, and drops the rest of the frames, if the socket has closed, or accepts
        nothing: at the first attempt, and after `wait_s` seconds.
        """
        ends_at = time.monotonic() + wait_s
        small: list[bytes | bytearray | memoryview] = []
        size = 0
        for frame in frames:
            is_large = len(frame) >= CHUNK
            if small and (is_large or size >= CHUNK):
                if not self._write_before(ends_at, self._write_joined, small, flags):
                    return False
                small, size = [], 0
            if not is_large:
                small += (len(frame).to_bytes(LENGTH_SIZE, "little"), frame)
                size += len(frame)
            elif not self._write_before(ends_at, self.write, frame, flags):  # joining copies
                return False
        return not small or self._write_before(ends_at, self._write_joined, small, flags)

    def _write_before(
        self, ends_at: float, write: Callable[[Any, int], bool], data: object, flags: int
    ) -> bool:
        """Write data as soon as the socket accepts it; return False if it does not until then."""
        while not write(data, flags):
            if self.write_closed or not self.up or time.monotonic() >= ends_at:
                return False
        return True

    def _write_joined(self, parts: Sequence[bytes | bytearray | memoryview], flags: int) -> bool:
        if self.unsent is not None and not self.flush_pending(flags):
            return False
        data = b"".join(parts)
        try:
            sent = self._send(data, flags)
            if sent != len(data):
                self.unsent = memoryview(data)[sent:]
        except OSError as error:
            self._handle_unsent(error)
            return False
        except BaseException:  # as in `write`
            self.end()
            raise
        return True

    def flush_pending(self, flags: int) -> bool:
        """Send what is `unsent`; return whether all of it is sent."""
        if self.unsent is not None:
            try:
                self.unsent = self.unsent[self._send(self.unsent, flags) :] or None
            except OSError as error:
                self._handle_unsent(error)
            except BaseException:
                self.end()
                raise
        return self.unsent is None

    def _handle_unsent(self, error: OSError) -> None:
        """Handle the failure of a send: nothing more can be sent, or not now."""
        if is_from_outside(error):
            self.end()
            raise error
        if isinstance(error, BlockingIOError):
            return
        self.write_closed, self.unsent = True, None
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)  # data already received can still be read

    def end(self) -> None:
        """Close the connection. Idempotent."""
        if self.up:
            self.up, self.has_buffered, self.unsent = False, False, None
            self._frames, self._frame = [], None
            with contextlib.suppress(OSError):  # a forked process may still have it open
                self.sock.shutdown(socket.SHUT_RDWR)
            self.sock.close()
