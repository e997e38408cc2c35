"""The policy's file, read again whenever it changes."""

from __future__ import annotations

from pathlib import Path

import structlog

from gymwire.broker import auth
from gymwire.broker.auth import Policy
from gymwire.protocol.errors import ConfigurationError


class PolicyFile:
    """The policy in a file. Raises ConfigurationError if it is wrong when first read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = self._look()
        self.policy = self._read()

    def changed(self) -> Policy | None:
        """The new policy if the file has changed and is right; if it is wrong, the log says why."""
        stamp = self._look()
        if stamp == self._stamp:
            return None
        self._stamp = stamp
        log = structlog.get_logger()
        try:
            self.policy = self._read()
        except ConfigurationError as error:
            log.error("the policy that was in force stays", why=str(error))
            return None
        log.info("policy read again", file=str(self._path), keys=len(self.policy.peers))
        return self.policy

    def _look(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read(self) -> Policy:
        try:
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ConfigurationError(f"There is no policy file {self._path}.") from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{self._path} cannot be read: {error}.") from None
        try:
            return auth.parse(text)
        except ConfigurationError as error:
            raise ConfigurationError(f"{self._path}: {error}") from None
