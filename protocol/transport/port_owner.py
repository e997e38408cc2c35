"""Which process listens at a port or a Unix socket: Linux shows it, for processes of this user."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

LISTEN = "0A"  # the state of a listening socket in /proc/net/tcp,
ACCEPTS = 1 << 16  # and its flag in /proc/net/unix
_HEXADECIMAL = 16
PROC = Path("/proc")
MAX_COMMAND = 100  # characters of a command line that an error shows


def listener_at(port: int) -> str:
    """Return the process that listens at this TCP port, as `process 12 (COMMAND)`; "" if unknown.

    `port`: 1 to 65535.
    """
    return _process_with(_listening_inodes(port))


def listener_on(path: str) -> str:
    """Return the process that listens on the Unix socket at this path, as `listener_at` does."""
    return _process_with(_listening_unix_inodes(path))


def _process_with(inodes: Iterator[str]) -> str:
    """Return the process that has one of these sockets."""
    sockets = {f"socket:[{inode}]" for inode in inodes}
    if not sockets:
        return ""
    for process in PROC.glob("[0-9]*"):
        # It may belong to another user, or have ended.
        with contextlib.suppress(OSError):
            for descriptor in (process / "fd").iterdir():
                if _target(descriptor) in sockets:
                    return f"process {process.name} ({_command(process)})"
    return ""


def _target(descriptor: Path) -> str:
    """Return what a descriptor refers to; "" if its process has closed it."""
    try:
        return str(descriptor.readlink())
    except OSError:
        return ""


def _listening_inodes(port: int) -> Iterator[str]:
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in (PROC / "net" / table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == LISTEN and int(fields[1].rpartition(":")[2], _HEXADECIMAL) == port:
                    yield fields[9]


def _listening_unix_inodes(path: str) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for line in (PROC / "net" / "unix").read_text(errors="replace").splitlines()[1:]:
            fields = line.split(maxsplit=7)
            if fields[7:] == [path] and int(fields[3], _HEXADECIMAL) & ACCEPTS:
                yield fields[6]


def _command(process: Path) -> str:
    """Return the command line of a process, on one line; a long one ends with "…"."""
    words = (process / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    text = " ".join(words).strip()
    text = "".join(char if char.isprintable() else "?" for char in text)
    if len(text) <= MAX_COMMAND:
        return text
    whole_words = text[: MAX_COMMAND + 1].rpartition(" ")[0]  # half a port would be another port
    return f"{whole_words or text[:MAX_COMMAND]} …"
