"""Write the episodes of the sessions of a process to files (`gymwire serve --record`).

The threads of the sessions only append to a queue. One thread takes from it, and uses the disk.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import sys
import threading
from collections import deque
from pathlib import Path
from typing import Any, BinaryIO

import msgpack

from gymwire.protocol import logs, recordings, values
from gymwire.protocol.codec import HEADER_SIZE, KIND_AT, PLAIN, read_header
from gymwire.protocol.errors import ConfigurationError, ProtocolError
from gymwire.protocol.messages import Kind, Reset
from gymwire.protocol.recordings import COMPLETE, CONTINUED, RUNNING

with contextlib.suppress(ModuleNotFoundError):  # Windows has none
    import fcntl

FLUSH_S = 0.2  # how long what is recorded may stay in memory
MAX_BACKLOG = 256 * 1024 * 1024  # bytes that wait for the disk; an episode ends rather than a step
OVERHEAD = 512  # bytes that an exchange takes in memory in addition to its frames
MAX_LATER = 16 * 1024 * 1024  # bytes of a session that are kept for its next episode
MAX_PART = 64 * 1024 * 1024  # bytes of a file, then the next part begins
BLOCK = 4096  # bytes on disk that even the smallest file takes
SPARE = 16  # the oldest files go until 1/SPARE of the limit is free
UNLOCKED = ".opening"  # the suffix of a file for a moment, until this process holds its lock
WRITE_S = 2.0  # how long the disk may take for what waits when the process ends


class EpisodeWriter:
    """One episode, and the file that its present part is written to.

    The recorder's thread alone uses all but `cut` and `unrecorded`.

    Attributes:
        header: the header of each part.
        previous: the episode before it, until the first part begins.
        cut: whether the rest is not recorded, because the disk is too slow.
        changes: how many requests up to now may have changed the environment of the session, as
            `RecordedPart.changes_before` counts them.
        unrecorded: how many there were in addition since `cut`.
        later: the exchanges after its end that may have changed the environment.
        is_over: whether nothing more is written.
        is_complete: whether that is because it has ended.
    """

    def __init__(
        self, name: str, header: dict[str, Any], previous: EpisodeWriter | None = None
    ) -> None:
        self.header = header
        self.previous = previous
        self.cut = False
        self.name = name
        self.changes = self.unrecorded = 0
        self.later: list[bytes] = []
        self.later_size = 0
        self.file: BinaryIO | None = None
        self.path = Path()
        self.part = self.steps = self.size = 0
        self.is_over = self.is_complete = False


Item = tuple[EpisodeWriter, bytes, bytes, str]
"""An episode; the frames of a request and its reply; or nothing, and why the episode ended."""


class Recorder:
    """Records the episodes of all sessions of this process, in a folder that is bounded on disk.

    Any thread may call `begin`, `put` and `end`. A failure of the disk is logged, and never fails a
    step.

    Args:
        folder: for the files; made if there is none.
        limit: how many bytes all files in the folder may take; the oldest ones are removed.

    Raises:
        ConfigurationError: the folder cannot be used.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._limit = limit
        self._queue: deque[Item] = deque()
        self._backlog = 0
        self._lock = threading.Lock()
        self._news = threading.Event()
        self._stop = False
        self._written = limit  # bytes since the folder was measured: measure it first
        self._packages: dict[str, str] | None = None
        self._is_failing = False
        self._open: set[EpisodeWriter] = set()
        self._log = logs.logger()
        if "fcntl" not in globals():
            raise ConfigurationError("--record needs POSIX file locks, which this system lacks.")
        try:
            self._folder = folder.absolute()  # environments may change the working directory
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._recover()
        except OSError as error:
            raise ConfigurationError(
                f"{folder} cannot be used for recordings: {error.strerror}. Choose another folder."
            ) from None
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ConfigurationError(
                f"You may not write to the folder {folder}. Choose another folder."
            )
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    # --- for the threads of the sessions ----------------------------------------------------------

    def none(self) -> EpisodeWriter:
        """Return what is before the first episode of a session."""
        none = EpisodeWriter("", {})
        none.is_over = none.is_complete = True
        return none

    def begin(self, header: dict[str, Any], previous: EpisodeWriter) -> EpisodeWriter:
        """Begin an episode with this header, to which the recorder adds what it knows."""
        started = datetime.datetime.now(datetime.UTC)
        name = f"{started:%Y%m%dT%H%M%S%f}-{header['session']}-{header['episode']:06}"
        return EpisodeWriter(name, header, previous)

    def put(self, episode: EpisodeWriter, request: bytes, reply: bytes) -> None:
        """Record a request of an episode or after its end, and its reply."""
        if episode.cut:
            episode.unrecorded += _may_change(request)
            return
        with self._lock:
            self._backlog += _size(request, reply)
        self._queue.append((episode, request, reply, ""))
        if self._backlog > MAX_BACKLOG:
            episode.cut = True
            self.end(episode, "cut")
            self._log.warning("recording cut", why="the disk is too slow", episode=episode.name)

    def end(self, episode: EpisodeWriter, why: str) -> None:
        """End an episode; one that is over already stays as it is."""
        self._queue.append((episode, b"", b"", why))
        self._news.set()

    def close(self) -> None:
        """Write what waits, and end the thread."""
        self._stop = True
        self._news.set()
        self._thread.join(WRITE_S)

    # --- the recorder's thread --------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop:
            self._news.wait(FLUSH_S)
            self._news.clear()
            self._drain()
        self._drain()
        for episode in list(self._open):
            self._guard(episode, self._complete, "closed")

    def _drain(self) -> None:
        while self._queue:
            episode, request, reply, why = self._queue.popleft()
            if why:
                self._guard(episode, self._complete, why)
                continue
            with self._lock:
                self._backlog -= _size(request, reply)
            self._guard(episode, self._take, request, reply)
        for episode in list(self._open):
            self._guard(episode, self._flush)

    def _guard(self, episode: EpisodeWriter, call: Any, *args: Any) -> None:
        """Call for an episode; what fails ends it without its file."""
        try:
            call(episode, *args)
        except Exception as error:  # noqa: BLE001 - recording must never fail a session
            if not self._is_failing:
                self._log.error("recording failed", folder=str(self._folder), why=str(error))
            self._is_failing = episode.is_over = True
            self._open.discard(episode)
            if episode.file is not None:
                with contextlib.suppress(OSError):
                    episode.file.close()
                with contextlib.suppress(OSError):
                    episode.path.unlink()

    def _take(self, episode: EpisodeWriter, request: bytes, reply: bytes) -> None:
        if episode.is_complete:
            self._keep(episode, request, reply)
            return
        episode.changes += _may_change(request)
        if not episode.is_over:
            self._write(episode, request, reply)

    def _write(self, episode: EpisodeWriter, request: bytes, reply: bytes) -> None:
        if episode.file is None:
            before = self._begin(episode, request) if episode.previous is not None else []
            self._begin_part(episode)
            for data in before:
                self._append(episode, data)
        self._append(episode, recordings.pack_exchange(request, reply))
        if request[KIND_AT] == Kind.ACT:
            episode.steps += 1
            if not episode.header["num_envs"] and _is_last(reply):
                self._complete(episode, "ended")
                return
        if episode.size > MAX_PART:
            self._complete_part(episode, CONTINUED)

    def _begin(self, episode: EpisodeWriter, request: bytes) -> list[bytes]:
        """Complete the header. Returns the exchanges since the end of the previous episode."""
        previous, reset = episode.previous, PLAIN.decode(request)
        assert previous is not None
        assert isinstance(reset, Reset)
        changes = previous.changes + previous.unrecorded
        episode.header = {
            **episode.header,
            "seed": reset.seed,
            "options": reset.options,
            "changes_before": changes - len(previous.later),
        }
        episode.changes += changes
        episode.previous = None
        return previous.later

    def _keep(self, episode: EpisodeWriter, request: bytes, reply: bytes) -> None:
        """Keep an exchange after the end for the next episode if it may change the environment."""
        if request[KIND_AT] == Kind.CALL and not _may_change(request):
            return
        episode.changes += 1
        data = recordings.pack_exchange(request, reply)
        episode.later_size += len(data) + OVERHEAD
        if episode.later_size <= MAX_LATER:
            episode.later.append(data)

    def _begin_part(self, episode: EpisodeWriter) -> None:
        episode.part += 1
        episode.path = self._folder / f"{episode.name}-{episode.part:04}{RUNNING}"
        unlocked = episode.path.with_suffix(UNLOCKED)
        descriptor = os.open(unlocked, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        episode.file = os.fdopen(descriptor, "wb")
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # see `_recover`
        unlocked.rename(episode.path)
        self._open.add(episode)
        if self._packages is None:
            self._packages = _packages()
        header = {**episode.header, "part": episode.part, "steps_before": episode.steps}
        data = recordings.pack_header(_encodable({**header, "packages": self._packages}))
        episode.file.write(data)
        episode.size = 0
        self._count(episode, len(data))

    def _append(self, episode: EpisodeWriter, data: bytes) -> None:
        assert episode.file is not None
        episode.file.write(data)
        self._count(episode, len(data))

    def _count(self, episode: EpisodeWriter, size: int) -> None:
        episode.size += size
        self._written += size

    def _flush(self, episode: EpisodeWriter) -> None:
        if episode.file is not None:
            episode.file.flush()

    def _complete(self, episode: EpisodeWriter, why: str) -> None:
        if episode.is_over:
            return
        if episode.file is not None:
            self._complete_part(episode, why)
        episode.is_over = episode.is_complete = True

    def _complete_part(self, episode: EpisodeWriter, why: str) -> None:
        """Write the end of a file, and give it the name of a complete one."""
        assert episode.file is not None
        episode.file.write(recordings.pack_end(why, episode.steps))
        episode.file.close()
        episode.path.rename(episode.path.with_suffix(COMPLETE))
        episode.file = None
        self._open.discard(episode)
        self._is_failing = False
        self._written += BLOCK
        if self._written * SPARE > self._limit:
            self._remove_oldest()

    # --- the folder -------------------------------------------------------------------------------

    def _remove_oldest(self) -> None:
        """Remove the oldest complete files until all together take less than the limit."""
        sizes: dict[Path, int] = {}
        for path in sorted(self._folder.iterdir()):
            if path.suffix in (COMPLETE, RUNNING):
                with contextlib.suppress(FileNotFoundError):  # another worker has removed it
                    sizes[path] = -(-path.stat().st_size // BLOCK) * BLOCK
        total = sum(sizes.values())
        for path, size in sizes.items():
            if total <= self._limit - self._limit // SPARE:
                break
            if path.suffix == COMPLETE:
                path.unlink(missing_ok=True)
                total -= size
        self._written = 0

    def _recover(self) -> None:
        """Complete the files of processes that were killed: a live one holds a lock on its own."""
        for path in self._folder.glob(f"*{RUNNING}"):
            with contextlib.suppress(OSError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.rename(path.with_suffix(COMPLETE))


def _size(request: bytes, reply: bytes) -> int:
    return len(request) + len(reply) + OVERHEAD


def _may_change(request: bytes) -> bool:
    """Return whether this is a CALL that may change what comes after the next reset.

    A learner may send anything as a CALL; a malformed one was refused, and changes nothing.
    """
    if request[KIND_AT] != Kind.CALL:
        return False
    try:
        head = _head(request)
        mode, name = head.unpack(), head.unpack()
    except (ProtocolError, ValueError, msgpack.UnpackException):
        return False
    return type(mode) is str and type(name) is str and recordings.is_change(mode, name)


def _is_last(reply: bytes) -> bool:
    """Return whether a PERCEPT ends the episode of a single environment."""
    if reply[KIND_AT] != Kind.PERCEPT:
        return False
    head = _head(reply)
    head.skip()  # the observation
    head.skip()  # the reward
    return True in (head.unpack(), head.unpack())


def _head(frame: bytes) -> Any:
    """Return an Unpacker of the fields of a message."""
    head = msgpack.Unpacker()
    head.feed(frame[HEADER_SIZE : HEADER_SIZE + read_header(frame).head_len])
    head.read_array_header()
    return head


def _encodable(header: dict[str, Any]) -> dict[str, Any]:
    """Return a header that can be written: of other values, such as classes, only their repr."""
    return {name: values.opaque(value, root=name)[0] for name, value in header.items()}


def _packages() -> dict[str, str]:
    """Return the versions of the distributions whose modules this process has imported."""
    found: dict[str, str] = {}
    for name, distributions in importlib.metadata.packages_distributions().items():
        if name in sys.modules:
            for each in distributions:
                with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                    found[each] = importlib.metadata.version(each)
    return dict(sorted(found.items()))
