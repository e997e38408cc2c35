"""CURVE key pairs, their files, and their identities (docs/security.md)."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import re
import secrets
import stat
import string
import struct
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TextIO

import zmq
from zmq.utils import z85

from gymwire.protocol.errors import ConfigurationError

_KEPT = "keys are never overwritten. Move it away, or choose another name."
_HEADER = "# gymwire CURVE"
MAX_KEY_FILE = 64 * 1024  # bytes; `gymwire keygen` writes fewer than 200
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_Z85 = frozenset(string.ascii_letters + string.digits + ".-:+=^!/*?&<>()[]{}@%$#")


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A CURVE25519 key pair, z85: 40 ASCII bytes each. `repr` omits the secret key."""

    public: bytes
    secret: bytes = field(repr=False)


class KeyExists(ConfigurationError):
    """There is a key with this name already."""


class Credentials(NamedTuple):
    """An agent's own key pair and the broker's public key, or neither."""

    key: KeyPair | None = None
    broker_key: bytes | None = None


def credentials(
    key: str | os.PathLike[str] | KeyPair | None = None,
    broker_key: str | os.PathLike[str] | None = None,
) -> Credentials:
    """Load both keys; defaults are GYMWIRE_KEY and GYMWIRE_BROKER_KEY.

    `key`: a file, or the key pair itself. `broker_key`: a file, or the key itself as z85. Raises
    ConfigurationError, also if only one of the two is given.
    """
    key = key or os.environ.get("GYMWIRE_KEY") or None
    broker_key = broker_key or os.environ.get("GYMWIRE_BROKER_KEY") or None
    if (key is None) != (broker_key is None):
        missing = "the broker's public key (--broker-key, broker_key=, GYMWIRE_BROKER_KEY)"
        if key is None:
            missing = "your own key (--key, key=, GYMWIRE_KEY)"
        raise ConfigurationError(
            f"Keys work in pairs, and {missing} is missing. `gymwire keygen NAME` creates a "
            f"key; the broker's operator has the broker's .pub file."
        )
    if key is None or broker_key is None:
        return Credentials()
    own = key if isinstance(key, KeyPair) else load(Path(key))
    return Credentials(own, load_public(broker_key))


@lru_cache(maxsize=4096)
def identity(public: bytes) -> str:
    """Return the identity of a public key (z85): 16 characters, base32 of 80 bits of SHA-256."""
    return base64.b32encode(hashlib.sha256(public).digest()[:10]).decode("ascii").lower()


def check_name(name: str) -> None:
    """Raise ConfigurationError if this cannot be the name of a key."""
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"{name[:100]!r} is not a valid name for a key. Use only letters, digits and . _ - "
            f"and give the folder with --dir."
        )


def generate(name: str, folder: Path) -> tuple[Path, Path]:
    """Write a new key pair to `name.key` (secret, mode 0600) and `name.pub`; return both paths.

    If a call was killed between the two files, this one writes the missing `name.pub`. Raises
    KeyExists if either file exists otherwise, and ConfigurationError if it cannot write them.
    """
    check_name(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"Cannot create the folder {folder}: {error.strerror}.") from None
    secret_path, public_path = folder / f"{name}.key", folder / f"{name}.pub"
    for path in (secret_path, public_path):
        for unfinished in path.parent.glob(f".{path.name}.????????"):  # of a killed process
            with contextlib.suppress(OSError):
                unfinished.unlink()
    if public_path.exists():
        raise KeyExists(f"{public_path} exists: {_KEPT}")
    pair = _left_without_public_file(secret_path)
    is_unfinished = pair is not None
    if pair is None:
        pair = KeyPair(*zmq.curve_keypair())
    public = f"public {pair.public.decode()}\n"
    if not is_unfinished:
        secret = f"secret {pair.secret.decode()}\n"
        _write_new(secret_path, f"{_HEADER} key pair: keep it secret\n{public}{secret}", 0o600)
    try:
        _write_new(public_path, f"{_HEADER} public key: give it to your peers\n{public}", 0o644)
    except ConfigurationError:
        if not is_unfinished and not _has_public_key(public_path, pair):
            secret_path.unlink()
        raise
    return secret_path, public_path


def _has_public_key(path: Path, pair: KeyPair) -> bool:
    """Return whether another call has completed this pair meanwhile, by writing its public file."""
    try:
        return load_public(path) == pair.public
    except ConfigurationError:
        return False


def _left_without_public_file(path: Path) -> KeyPair | None:
    """Return the key pair of a call that was killed before it wrote the public file, if any.

    Remove an empty file, which earlier releases left. Raises ConfigurationError for any other file.
    """
    try:
        if not path.stat().st_size:
            path.unlink()
        return load(path) if path.exists() else None
    except FileNotFoundError:
        return None
    except (ConfigurationError, OSError):
        raise KeyExists(f"{path} exists: {_KEPT}") from None


def _write_new(path: Path, text: str, mode: int) -> None:
    """Write a file that does not exist yet: whole, or not at all if this process is killed."""
    try:
        if not _write_unnamed(path, text, mode):
            _write_named(path, text, mode)
    except FileExistsError:
        raise KeyExists(f"{path} exists: {_KEPT}") from None
    except OSError as error:
        raise ConfigurationError(f"Cannot write {path}: {error.strerror}.") from None


def _write_unnamed(path: Path, text: str, mode: int) -> bool:
    """Write a file that has no name until it is complete; return False where that is impossible.

    If this process is killed before, the kernel removes the file.
    """
    if not hasattr(os, "O_TMPFILE"):
        return False
    try:
        descriptor = os.open(path.parent, os.O_WRONLY | os.O_TMPFILE, mode)
    except OSError:  # the file system has no such files
        return False
    with os.fdopen(descriptor, "w") as file:
        _fill(file, text)
        try:
            opened = os.open("/proc/self/fd", os.O_RDONLY)
            try:
                os.link(str(descriptor), path, src_dir_fd=opened)
            finally:
                os.close(opened)
        except FileExistsError:
            raise
        except OSError:  # no /proc, or no hard links
            return False
    return True


def _write_named(path: Path, text: str, mode: int) -> None:
    """Write a file under a hidden name, then give it its own."""
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "w") as file:
            _fill(file, text)
        _name(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _fill(file: TextIO, text: str) -> None:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())


def _name(unfinished: Path, path: Path) -> None:
    """Give a file its final name. Raises FileExistsError instead of replacing another file."""
    try:
        os.link(unfinished, path)
    except FileExistsError:
        raise
    except OSError:  # the file system has no hard links
        if path.exists():
            raise FileExistsError from None
        unfinished.rename(path)


def load(path: Path) -> KeyPair:
    """Read a key pair. Raises ConfigurationError if it is malformed, or if others can read it."""
    fields = _read(path)
    if "secret" not in fields or "public" not in fields:
        raise ConfigurationError(
            f"{path} does not contain a secret key. Give the .key file of `gymwire keygen`."
        )
    if os.name == "posix" and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigurationError(
            f"Others can read {path}, so it may have been exposed. Run `chmod 600 {path}`, or "
            f"create a new key if others may have read it."
        )
    public, secret = fields["public"], fields["secret"]
    if zmq.curve_public(secret) != public:
        raise ConfigurationError(f"{path} is damaged: its public and secret keys do not match.")
    return KeyPair(public, secret)


def load_public(value: str | os.PathLike[str]) -> bytes:
    """Return a public key, given as z85 text or as a file. Raises ConfigurationError.

    A text may be both a key and the path of a file: then the file counts.
    """
    if isinstance(value, str) and is_public_key(value) and not _may_be_file(Path(value)):
        return value.encode("ascii")
    fields = _read(Path(value))
    if "public" not in fields:
        raise ConfigurationError(
            f"{value} does not contain a public key. Give the broker's .pub file."
        )
    if "secret" in fields:
        raise ConfigurationError(
            f"{value} contains a secret key, which belongs to its owner only. Give the .pub file "
            f"that `gymwire keygen` wrote beside it."
        )
    return fields["public"]


def _may_be_file(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # `_read` reports it
        return True


def _read(path: Path) -> dict[str, bytes]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_KEY_FILE + 1)
        text = data.decode("ascii")
    except FileNotFoundError:
        raise ConfigurationError(f"There is no key file at {path}.") from None
    except OSError as error:
        raise ConfigurationError(f"Cannot read {path} as a key file: {error}.") from None
    except UnicodeDecodeError:
        raise ConfigurationError(
            f"{path} is not a key file. Give a file of `gymwire keygen`."
        ) from None
    if len(data) > MAX_KEY_FILE:
        raise ConfigurationError(
            f"{path} is not a key file: it has more than {MAX_KEY_FILE} bytes. Give a file of "
            f"`gymwire keygen`."
        )
    fields = {}
    for line in text.splitlines():
        word, _, value = line.partition(" ")
        if word in ("public", "secret"):
            if not is_public_key(value):
                raise ConfigurationError(f"{path}: the {word} key is not 40 characters of z85.")
            fields[word] = value.encode("ascii")
    return fields


def is_public_key(value: str) -> bool:
    """Return whether this text is a key: 40 characters of z85."""
    if len(value) != 40 or not set(value) <= _Z85:
        return False
    try:
        z85.decode(value)
    except struct.error:  # five characters that encode more than 32 bits
        return False
    return True
