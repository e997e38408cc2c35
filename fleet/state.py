"""The folder for a fleet's state on this machine, and the files that agents need."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gymwire.fleet.engine import AgentFile
from gymwire.protocol.errors import ConfigurationError

if sys.platform != "win32":
    import fcntl


def state_folder(name: str) -> Path:
    """Return the folder of the fleet of this name; create it, for this user only, if it is missing.

    It is below $XDG_STATE_HOME, or ~/.local/state. Raises ConfigurationError.
    """
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    folder = Path(base) / "gymwire" / "fleets" / name
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise ConfigurationError(
            f"Cannot create the folder {folder}: {error.strerror}. Set XDG_STATE_HOME to a folder "
            f"in which you may write."
        ) from None
    return folder


@contextmanager
def turn(name: str) -> Iterator[None]:
    """Let one process of this machine at a time start agents of the fleet of this name."""
    with (state_folder(name) / "lock").open("wb") as file:
        if sys.platform != "win32":
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_private(path: Path, text: str) -> None:
    """Write a file that only the user can read. It replaces an older one at once."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    temporary.replace(path)


def place_files(files: tuple[AgentFile, ...], folder: Path, *, copy: bool) -> dict[str, str]:
    """Return the variables of an agent's files; write those that are not files yet into a folder.

    `copy`: write all of them, because the agent runs on another machine.
    """
    variables: dict[str, str] = {}
    for file in files:
        path = file.path
        if path is None or copy:
            path = folder / file.variable.removeprefix("GYMWIRE_").lower()
            write_private(path, file.text)
        variables[file.variable] = str(path)
    return variables
