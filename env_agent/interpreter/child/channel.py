"""The pipes from and to the env agent."""

from __future__ import annotations

import os

from .frames import HEADER

MAX_READ = 1 << 16  # bytes: all that a pipe holds


class Channel:
    """Frames from and to the env agent; answers are written when no request is left to read."""

    def __init__(self, requests: int, answers: int) -> None:
        self._requests = requests
        self._written_to = answers
        self._arrived = bytearray()
        self._answers: list[bytes] = []

    def read(self) -> tuple[int, int, int, bytes] | None:
        """Return kind, number, index and body of the next request; None: the env agent is gone."""
        data = self._arrived
        while True:
            if len(data) >= HEADER.size:
                length, kind, number, index = HEADER.unpack_from(data)
                end = HEADER.size + length
                if len(data) >= end:
                    body = bytes(data[HEADER.size : end])
                    del data[:end]
                    return kind, number, index, body
            self.flush()
            more = os.read(self._requests, MAX_READ)
            if not more:
                return None
            data += more

    def answer(self, kind: int, number: int, index: int, body: bytes) -> None:
        """Answer a request."""
        self._answers += (HEADER.pack(len(body), kind, number, index), body)

    def flush(self) -> None:
        """Write the answers."""
        data = b"".join(self._answers)
        self._answers = []
        while data:
            data = data[os.write(self._written_to, data) :]
