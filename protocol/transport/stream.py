"""Frames over a connected stream socket, each after its length (docs/protocol.md §9.6)."""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import Final

import numpy as np

from gymwire.protocol.codec import HEADER_SIZE, Pieces

PREFIX: Final = 4  # bytes before each frame: its length
CHUNK: Final = 8 * 1024  # what a frame that comes in one piece may have, as bytes
BUFFER = 1024 * 1024  # asked of the kernel, which gives what it allows

NOW: Final = getattr(socket, "MSG_DONTWAIT", 0)
_WHOLE: Final = getattr(socket, "MSG_WAITALL", 0)


class Stream:
    """Frames over one connected socket, each after its length, as u32 little-endian.

    `holds`: bytes beyond the last frame were received. `owed`: what the socket has not taken yet
    of the last frame that was sent. `write_closed`: the other side reads no more; what it has said before
    that is here to be read, and behind it the end.
    """

    up = False
    write_closed = False
    has_buffered = False
    unsent: memoryview | None = None

    def __init__(self, max_message: int) -> None:
        self.max_message = max_message

    def start(self, sock: socket.socket, tick_ms: int) -> None:
        """Go on with this connection, anew."""
        tick = struct.pack("ll", tick_ms // 1000, tick_ms % 1000 * 1000)
        # The kernel's own time-outs: Python's would cost a poll before each call.
        sock.setblocking(True)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, tick)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, tick)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        self.sock = sock
        self._recv, self._send = sock.recv, sock.send
        self.up, self.write_closed, self.unsent = True, False, None
        self._pause(b"")
        self._frame: memoryview | None = None  # the one that is being received
        self._filled = 0

    def _pause(self, rest: bytes, expects_large: bool = False) -> None:
        self._rest, self.has_buffered = rest, bool(rest)
        self._plain = not rest and not expects_large  # the next frame may come in one piece

    def read(self, flags: int) -> bytes | memoryview | None:
        """The next frame; None if it is not here, within a tick unless `flags` say now.

        A large frame has memory of its own, which may be written to.
        """
        try:
            if not self._plain:
                return self._read_in_parts(flags)
            data = self._recv(CHUNK, flags)
            size = len(data) - PREFIX
            if (
                int.from_bytes(data[:PREFIX], "little") == size
                and HEADER_SIZE <= size <= self.max_message
            ):
                return data[PREFIX:]
            if not data:
                raise EOFError
            self._pause(data)
            return self._take(flags)
        except BlockingIOError:
            return None
        except (OSError, EOFError, MemoryError):
            self.end()
            return None
        except BaseException:  # an interrupt: bytes that the kernel has given may be lost
            self.end()
            raise

    def _read_in_parts(self, flags: int) -> bytes | memoryview | None:
        if self._frame is None and not self.has_buffered:
            data = self._recv(PREFIX, flags)  # nothing of a large frame is copied
            if not data:
                raise EOFError
            self._pause(data)
        return self._take(flags)

    def _take(self, flags: int) -> bytes | memoryview | None:
        """Go on with the bytes that are here, and read on if they are not a frame."""
        frame = self._frame
        if frame is None:
            rest = self._rest
            if len(rest) < PREFIX:
                data = self._recv(CHUNK, flags)
                if not data:
                    raise EOFError
                rest += data
                self._pause(rest)
                if len(rest) < PREFIX:
                    return None
            size = int.from_bytes(rest[:PREFIX], "little")
            if not HEADER_SIZE <= size <= self.max_message:
                raise EOFError
            end = PREFIX + size
            if len(rest) >= end:
                self._pause(rest[end:])
                return rest[PREFIX:end]
            frame = self._frame = memoryview(np.empty(size, np.uint8))  # type: ignore[arg-type]
            self._filled = len(rest) - PREFIX
            frame[: self._filled] = rest[PREFIX:]
            self.has_buffered, self._plain = False, False
        # The kernel waits for all of it, but for a tick at most: who sends byte by byte holds
        # nobody up.
        got = self.sock.recv_into(frame[self._filled :], 0, flags or _WHOLE)
        if not got:
            raise EOFError
        self._filled += got
        if self._filled < len(frame):
            return None
        self._frame = None
        self._pause(b"", len(frame) >= CHUNK)
        return frame

    def write(self, frame: bytes | bytearray | memoryview | Pieces, flags: int) -> bool:
        """Send one frame. What the socket does not take at once is owed. False: it is dropped."""
        if self.unsent is not None and not self.flush_pending(flags):
            return False
        size = len(frame)
        prefix = size.to_bytes(PREFIX, "little")
        try:
            if size <= CHUNK and not isinstance(frame, Pieces):
                sent = self._send(prefix + frame, flags)
            else:
                parts = frame.parts if isinstance(frame, Pieces) else (frame,)
                sent = self.sock.sendmsg((prefix, *parts), (), flags)
            if sent != size + PREFIX:
                # What is owed must stay as it is.
                whole = bytes(frame) if isinstance(frame, Pieces) else frame
                if sent < PREFIX:
                    self.unsent = memoryview(prefix[sent:] + whole)
                else:
                    self.unsent = memoryview(whole)[sent - PREFIX :]
        except BlockingIOError:
            return False
        except OSError:
            self._not_read()
            return False
        except BaseException:  # an interrupt: how much of it is on its way is not known
            self.end()
            raise
        return True

    def flush_pending(self, flags: int) -> bool:
        """Send what is owed. False: some of it is owed still."""
        if self.unsent is not None:
            try:
                self.unsent = self.unsent[self._send(self.unsent, flags) :] or None
            except BlockingIOError:
                return False
            except OSError:
                self._not_read()
            except BaseException:
                self.end()
                raise
        return self.unsent is None

    def _not_read(self) -> None:
        self.write_closed, self.unsent = True, None
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)  # what is here already can still be read

    def end(self) -> None:
        """Close the connection. Idempotent."""
        if self.up:
            self.up, self.has_buffered, self.unsent, self._frame = False, False, None, None
            with contextlib.suppress(OSError):  # a process that was forked may have it open, too
                self.sock.shutdown(socket.SHUT_RDWR)
            self.sock.close()
