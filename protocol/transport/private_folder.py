"""A folder of this process alone, which the next process clears away if this one is killed."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

if sys.platform != "win32":
    import fcntl

PREFIX = "gymwire-socket-"


class PrivateFolder:
    """A new folder (0700) in the system's folder for temporary files, until `remove`.

    A locked file in it says that its process lives: the kernel lets go of the lock however that
    ends. Making one removes those of this user whose lock is free.
    """

    def __init__(self) -> None:
        _clear_away()
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._lock = -1
        if sys.platform != "win32":
            # Locked before it has its name: a file of that name which is free is nobody's.
            unnamed = self.path / "locking"
            self._lock = os.open(unnamed, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                unnamed.rename(self.path / "lock")
            except OSError:  # a file system without locks: this folder stays if we are killed
                pass

    def remove(self) -> None:
        """Remove it with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _clear_away() -> None:
    """Remove what processes of this user have left that were killed."""
    if sys.platform == "win32":
        return
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            # Others may make folders of such names there, but not with this owner.
            if folder.lstat().st_uid != os.getuid():
                continue
            lock = os.open(folder / "lock", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:  # it has just been made, or removed, or is no such folder
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # its process lives
            continue
        else:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)
