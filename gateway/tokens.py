"""The token file: who may use the gateway, and with which key each is known to the broker.

[token.alice]                # a name, for the log
token = "…32 or more random characters…"
key = "alice.key"            # of an entry of the broker's policy; relative to this file
"""

from __future__ import annotations

import hashlib
import hmac
import stat
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gymwire.protocol.errors import ConfigurationError
from gymwire.protocol.files import read_text
from gymwire.protocol.security import keys
from gymwire.protocol.security.keys import KeyPair

MIN_TOKEN = 32  # characters: with 5 random bits each, nobody can guess it
MAKE_ONE = "python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"


@dataclass(frozen=True, slots=True)
class Visitor:
    """Somebody who may use the gateway.

    `name`: for the log. `key`: the key pair with which the gateway connects to the broker for
    this visitor; None without keys. `digest`: the SHA-256 of the token; empty without tokens.
    """

    name: str
    key: KeyPair | None = None
    digest: bytes = field(default=b"", repr=False)

    @property
    def cookie(self) -> str:
        """The value of this visitor's cookie, which does not reveal the token."""
        return hmac.digest(self.digest, b"gymwire cookie", "sha256").hex()


def find(token: str, visitors: Iterable[Visitor]) -> Visitor | None:
    """Return the visitor with this token, in a time that does not depend on the tokens."""
    digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
    matches = [one for one in visitors if hmac.compare_digest(one.digest, digest)]
    return matches[0] if matches else None


def find_by_cookie(cookie: str, visitors: Iterable[Visitor]) -> Visitor | None:
    """Return the visitor with this cookie, in a time that does not depend on the cookies."""
    given = cookie.encode("utf-8", "surrogateescape")
    matches = [one for one in visitors if hmac.compare_digest(one.cookie.encode(), given)]
    return matches[0] if matches else None


def load(path: Path, key: KeyPair | None) -> tuple[Visitor, ...]:
    """Read a token file. `key`: that of entries without one. Raises ConfigurationError."""
    try:
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigurationError(
                f"Others can read {path}, so its tokens may have been exposed. Run "
                f"`chmod 600 {path}`, and replace the tokens if others may have read them."
            )
        document = tomllib.loads(read_text(path))
    except FileNotFoundError:
        raise ConfigurationError(f"The token file {path} does not exist.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"Cannot read {path}: {error}.") from None
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path} is not valid TOML: {error}.") from None
    tables = document.get("token")
    if not isinstance(tables, dict) or not tables or len(document) > 1:
        raise ConfigurationError(f"{path} must consist of tables [token.NAME], at least one.")
    visitors = tuple(_visitor(path, name, table, key) for name, table in tables.items())
    if len({one.digest for one in visitors}) < len(visitors):
        raise ConfigurationError(f"{path}: two entries have the same token. Give each its own.")
    return visitors


def _visitor(path: Path, name: str, table: Any, key: KeyPair | None) -> Visitor:
    where = f"{path}, [token.{name}]"
    if not isinstance(table, dict) or not table.keys() <= {"token", "key"}:
        raise ConfigurationError(f"{where}: give `token` and, with keys, `key`, and nothing else.")
    token, key_file = table.get("token"), table.get("key")
    if not isinstance(token, str) or len(token) < MIN_TOKEN or not is_token(token):
        raise ConfigurationError(
            f"{where}: token must be text of {MIN_TOKEN} or more of the characters A-Z, a-z, 0-9, "
            f"- and _. Make one with: {MAKE_ONE}"
        )
    if key_file is not None:
        if not isinstance(key_file, str):
            raise ConfigurationError(f"{where}: key must be the name of a .key file.")
        try:
            key = keys.load(path.parent / key_file)
        except ConfigurationError as error:
            raise ConfigurationError(f"{where}: {error}") from None
    return Visitor(name, key, hashlib.sha256(token.encode()).digest())


def is_token(text: str) -> bool:
    """Return whether a text consists of the characters of a token."""
    return text.isascii() and text.replace("-", "a").replace("_", "a").isalnum()
