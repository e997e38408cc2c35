"""The policy file, read again whenever it changes."""

from __future__ import annotations

from pathlib import Path

import structlog

from gymwire.broker import auth
from gymwire.broker.auth import Policy
from gymwire.protocol.errors import ConfigurationError


class PolicyFile:
    """The policy in a file. Raises ConfigurationError if the file is invalid at first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._version = self._stat()
        self.policy = self._read()

    def changed(self) -> Policy | None:
        """Return the new policy if the file has changed and is valid.

        If the new file is invalid, log why, keep the previous policy and return None.
        """
        version = self._stat()
        if version == self._version:
            return None
        self._version = version
        log = structlog.get_logger()
        try:
            self.policy = self._read()
        except ConfigurationError as error:
            log.error("invalid policy ignored", why=str(error))
            return None
        log.info("policy reloaded", file=str(self._path), keys=len(self.policy.peers))
        return self.policy

    def _stat(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read(self) -> Policy:
        try:
            return auth.parse(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigurationError(f"The policy file {self._path} does not exist.") from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"Cannot read {self._path}: {error}.") from None
        except ConfigurationError as error:
            raise ConfigurationError(f"{self._path}: {error}") from None
