"""The pipes from and to the env agent."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from .frames import HEADER, HEADER_SIZE

MAX_READ = 1 << 16  # bytes: all that a pipe holds


class Channel:
    """Frames from and to the env agent; answers are written when no request is left to read."""

    def __init__(self, requests: int, answers: int) -> None:
        self._requests = requests
        self._written_to = answers
        self._answers: list[bytes] = []

    def serve(self, execute: Callable[[int, int, bytes], tuple[int, bytes]]) -> None:
        """Answer requests until the env agent closes their pipe.

        `execute` gets the kind of a request, the index of its environment and its body, and returns
        the kind of the answer and its body.
        """
        requests, read, unpack = self._requests, os.read, HEADER.unpack_from
        arrived: Any = b""
        while True:
            more = read(requests, MAX_READ)
            if not more:
                return
            arrived += more
            begin, available = 0, len(arrived)
            while available - begin >= HEADER_SIZE:
                length, kind, number, index = unpack(arrived, begin)
                end = begin + HEADER_SIZE + length
                if available < end:
                    break
                kind, body = execute(kind, index, bytes(arrived[begin + HEADER_SIZE : end]))
                self.answer(kind, number, index, body)
                begin = end
            if begin == available:
                arrived = b""
            elif begin or type(arrived) is bytes:
                # A buffer: a large request arrives in pieces, each of which would copy bytes.
                arrived = bytearray(arrived[begin:])
            if self._answers:
                self.flush()

    def answer(self, kind: int, number: int, index: int, body: bytes) -> None:
        """Answer a request."""
        self._answers += (HEADER.pack(len(body), kind, number, index), body)

    def flush(self) -> None:
        """Write the answers."""
        data = b"".join(self._answers)
        self._answers.clear()
        while data:
            data = data[os.write(self._written_to, data) :]
