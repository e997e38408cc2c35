"""A private folder for sockets; if this process is killed, the next one removes it."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
from pathlib import Path

from gymwire.protocol.errors import ConfigurationError, ConnectionFailed
from gymwire.protocol.outside_exceptions import is_from_outside

if sys.platform != "win32":
    import fcntl

FOLDER_PREFIX = "gymwire-socket-"
LOCKING = "locking"  # the name of the lock file until it is locked
UNLOCKED_S = 60.0  # a folder this old without its lock belongs to a process killed while making it


class PrivateFolder:
    """A new folder (mode 0700) among the system's temporary files, until `remove`.

    A locked file in it shows that its process is alive: the kernel releases the lock however the
    process ends. Creating a folder removes those of this user whose lock is free, and old ones
    without a lock. Raises ConfigurationError if no folder can be made.
    """

    def __init__(self) -> None:
        self._lock = -1
        try:
            self.path = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX))
            if sys.platform != "win32":
                # Lock it before it gets its name: an unlocked file of this name is abandoned.
                unnamed = self.path / LOCKING
                self._lock = os.open(unnamed, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigurationError(
                f"Cannot make a folder for Unix sockets: {error}. Set TMPDIR to a folder in which "
                f"this process may write, and check the limit on open files (ulimit -n)."
            ) from error
        if sys.platform != "win32":
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                unnamed.rename(self.path / "lock")
            except OSError:  # no locks on this file system: a killed process leaves its folder
                return
        _remove_abandoned(self.path)

    def remove(self) -> None:
        """Remove the folder with everything in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def check_private_socket(url: str) -> None:
    """Raise ConnectionFailed unless this URL names a socket in a private folder of gymwire.

    A peer chose the path, so it could name any socket on this host, and what is sent there.
    The folder must belong to this user or root, and be closed to others.
    """
    path = Path(url.partition("://")[2])
    try:
        folder, found = path.parent.lstat(), path.lstat()
    except (OSError, ValueError) as error:
        if is_from_outside(error):
            raise
        why = getattr(error, "strerror", None) or str(error)
        raise ConnectionFailed(f"Cannot dial {url}: {why}.") from None
    ours = (
        path.is_absolute()
        and os.path.normpath(path) == str(path)
        and path.parent.name.startswith(FOLDER_PREFIX)
        and stat.S_ISDIR(folder.st_mode)
        and not folder.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
        and folder.st_uid in (0, os.geteuid())
        and stat.S_ISSOCK(found.st_mode)
    )
    if not ours:
        raise ConnectionFailed(
            f"Cannot dial {url}: it is not a socket in a private folder of gymwire."
        )


def _remove_abandoned(new: Path) -> None:
    """Remove the folders that killed processes of this user have left; `new` was just made."""
    if sys.platform == "win32":
        return
    now = new.lstat().st_mtime  # of the file system, as the other times
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}*"):
        try:
            # Other users can create folders with such names, but not with this owner.
            found = folder.lstat()
            if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode):
                continue
            lock = _open_lock(folder, is_old=now - found.st_mtime > UNLOCKED_S)
        except OSError:  # just created, just removed, or not such a folder
            continue
        if lock is None:
            shutil.rmtree(folder, ignore_errors=True)
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # its process is alive
            continue
        else:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)


def _open_lock(folder: Path, *, is_old: bool) -> int | None:
    """Return a descriptor of the folder's lock file; None if the folder is old and has none.

    Raises OSError if the file cannot be opened, or if the folder may be still in the making.
    """
    for name in ("lock", LOCKING) if is_old else ("lock",):
        try:
            return os.open(folder / name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            if not is_old:
                raise
    return None
