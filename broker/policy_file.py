"""The policy file, read again whenever it changes."""

from __future__ import annotations

from pathlib import Path

import structlog

from gymwire.broker import auth
from gymwire.broker.auth import Policy
from gymwire.protocol.errors import ConfigurationError
from gymwire.protocol.files import read_text

SETTLE_S = 1.0  # a changed file counts once nobody has changed it for this long

_Version = tuple[int, int, int, int] | None  # None: there is no file


class PolicyFile:
    """The policy in a file. Raises ConfigurationError if the file is invalid at first.

    A file that is rewritten in place is empty or incomplete for a while, and may be valid all the
    same. Therefore a change counts only once the file has settled.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._version = self._seen = self._stat()
        self._seen_at = 0.0
        self.policy = self._read()

    def changed(self, now: float) -> Policy | None:
        """Return the new policy if the file has changed, has settled and is valid.

        `now`: monotonic seconds. If the new file is invalid, log why, keep the previous policy and
        return None.
        """
        version = self._stat()
        if version != self._seen:
            self._seen, self._seen_at = version, now
        if version == self._version or now - self._seen_at < SETTLE_S:
            return None
        log = structlog.get_logger()
        try:
            if version is not None and not self._path.is_file():  # a pipe would block the broker
                raise ConfigurationError(f"{self._path} is no longer a regular file.")
            policy = self._read()
        except ConfigurationError as error:
            self._version = version
            log.error("invalid policy ignored", why=str(error))
            return None
        if self._stat() != version:  # it changed while it was read
            return None
        self._version = version
        revoked = auth.revoked(self.policy, policy)
        self.policy = policy
        log.info("policy reloaded", file=str(self._path), keys=len(policy.peers))
        if revoked:
            log.warning("policy revokes rights", revoked=revoked)
        return policy

    def _stat(self) -> _Version:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino

    def _read(self) -> Policy:
        try:
            return auth.parse(read_text(self._path))
        except FileNotFoundError:
            raise ConfigurationError(f"The policy file {self._path} does not exist.") from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"Cannot read {self._path}: {error}.") from None
        except ConfigurationError as error:
            raise ConfigurationError(f"{self._path}: {error}") from None
