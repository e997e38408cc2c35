"""The files of recorded episodes (docs/how-to/recorded-data.md describes the format).

A file is a sequence of msgpack objects: a header (a map), then for each request a list of two byte
strings, the frame of the request and that of its reply, and at last a map that says why the episode
ended. The file of a killed process lacks the end; its last object may be cut off.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack

from gymwire.protocol import spaces, values
from gymwire.protocol.codec import MAX_MESSAGE, Codec
from gymwire.protocol.errors import DecodingError
from gymwire.protocol.messages import EXPOSED_BY_DEFAULT, Act, Call, Message, Reset

FORMAT, VERSION = "gymwire-episode", 1
COMPLETE = ".episode"  # the suffix of a file that is complete
RUNNING = ".running"  # that of one which is being written
KEYS = {  # of each header that a replay needs, with the type of the value
    "address": str, "session": str, "episode": int, "part": int, "num_envs": int,
    "autoreset_mode": str, "env_kind": str, "env_kwargs": dict, "render_mode": object,
    "observation_space": object, "action_space": object,
    "seed": object, "options": object, "generator": object,
}  # fmt: skip
CONTINUED = "continued"  # the end of a part that another part follows
READS = ("get", "each-get", "each-has", "each-wrapped")  # modes of CALL that change nothing


def is_change(mode: str, name: str) -> bool:
    """Return whether such a CALL may have changed what comes after the next reset.

    What is exposed by default does not, or it belongs to the generator, whose state is recorded.
    """
    return mode not in READS and name not in EXPOSED_BY_DEFAULT


def pack_header(header: dict[str, Any]) -> bytes:
    """Return the first object of a file."""
    return values.encode({"format": FORMAT, "version": VERSION, **header})


def pack_exchange(request: bytes, reply: bytes) -> bytes:
    """Return the object of a request and its reply."""
    return msgpack.packb([request, reply])  # type: ignore[no-any-return]


def pack_end(end: str, steps: int) -> bytes:
    """Return the last object of a file: why it ended, and after how many steps of the episode."""
    return msgpack.packb({"end": end, "steps": steps})  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Exchange:
    """A recorded request and its reply."""

    request: Message
    reply: Message


@dataclass(frozen=True)
class RecordedPart:
    """A file: an episode, or a part of a long one.

    `header`: what the header holds. `frames`: the frames of each request and its reply. `end`: why
    it ended, "" if the process was killed.
    """

    header: dict[str, Any]
    frames: list[tuple[bytes, bytes]]
    end: str

    @property
    def changes_before(self) -> int:
        """How many requests may have changed the environment before those in this episode's files.

        These are calls in episodes, and all requests between them.
        """
        found = self.header.get("changes_before")
        return found if isinstance(found, int) else 0

    def exchanges(self) -> Iterator[Exchange]:
        """Yield the requests with their replies. Raises DecodingError."""
        observation, action = (
            spaces.compile(spaces.build(self.header[name], root=name))
            for name in ("observation_space", "action_space")
        )
        codec = Codec(observation, action)
        for request, reply in self.frames:
            found = codec.decode(request)
            if not isinstance(found, Reset | Act | Call):
                raise DecodingError(f"{type(found).__name__} is not a request of an episode.")
            yield Exchange(found, codec.decode(reply))


def read_header(path: Path) -> dict[str, Any]:
    """Return the header of a file. Raises OSError, DecodingError."""
    with contextlib.closing(_objects(path)) as objects:
        return _header(path, objects)


def read(path: Path) -> RecordedPart:
    """Return what a file holds. Raises OSError, DecodingError."""
    frames: list[tuple[bytes, bytes]] = []
    with contextlib.closing(_objects(path)) as objects:
        header = _header(path, objects)
        for found in objects:
            match found:
                case [bytes(request), bytes(reply)]:
                    frames.append((request, reply))
                case {"end": str(end)}:
                    return RecordedPart(header, frames, end)
                case _:
                    raise DecodingError(f"{path} is damaged: it has an unknown object.")
    return RecordedPart(header, frames, "")  # the process was killed


def _objects(path: Path) -> Generator[Any]:
    """Yield the objects of a file, up to one that is cut off. Raises OSError, DecodingError.

    The file may come from anybody: msgpack only says where each object ends, and `values` decodes
    it as it decodes what a peer sends.
    """
    if not path.is_file():  # a pipe would have no end
        raise DecodingError(f"{path} is not a file.")
    with path.open("rb") as file:
        unpacker = msgpack.Unpacker(file, max_buffer_size=4 * MAX_MESSAGE)
        begin = 0
        while True:
            try:
                unpacker.skip()
            except (msgpack.UnpackException, ValueError):
                return
            end = unpacker.tell()
            yield values.decode(os.pread(file.fileno(), end - begin, begin))
            begin = end


def _header(path: Path, objects: Iterator[Any]) -> dict[str, Any]:
    try:
        header = next(objects, None)
    except DecodingError as error:
        raise DecodingError(f"{path} is not a recorded episode: {error}") from None
    if header is None:
        raise DecodingError(
            f"{path} is not a recorded episode, or its env agent was killed before it had written "
            f"the beginning."
        )
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise DecodingError(f"{path} is not a recorded episode of gymwire.")
    if header.get("version") != VERSION:
        raise DecodingError(
            f"{path} has version {header.get('version')!r} of the format; this gymwire reads "
            f"version {VERSION}. Upgrade gymwire."
        )
    for name, kind in KEYS.items():
        if name not in header or not isinstance(header[name], kind):
            raise DecodingError(f"{path} is damaged: {name!r} in its header is missing or wrong.")
    return header
