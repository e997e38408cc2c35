"""CURVE key pairs, their files, and the identities derived from them (docs/security.md)."""

from __future__ import annotations

import base64
import hashlib
import os
import stat
import string
from dataclasses import dataclass, field
from pathlib import Path

import zmq

from protocol.errors import ConfigurationError

_HEADER = "# gymwire CURVE"
_Z85 = frozenset(string.ascii_letters + string.digits + ".-:+=^!/*?&<>()[]{}@%$#")


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A CURVE25519 key pair, z85: 40 ASCII bytes each. The secret is kept out of `repr`."""

    public: bytes
    secret: bytes = field(repr=False)


def identity(public: bytes) -> str:
    """The identity of a public key (z85): 16 characters, base32 of 80 bits of its SHA-256."""
    return base64.b32encode(hashlib.sha256(public).digest()[:10]).decode("ascii").lower()


def generate(name: str, folder: Path) -> tuple[Path, Path]:
    """Write `name.key` (secret, mode 0600) and `name.pub`; returns both paths.

    Raises ConfigurationError if either exists: a key is never overwritten.
    """
    public, secret = zmq.curve_keypair()
    folder.mkdir(parents=True, exist_ok=True)
    secret_path, public_path = folder / f"{name}.key", folder / f"{name}.pub"
    lines = f"public {public.decode()}\n"
    pair = f"{_HEADER} key pair: keep it secret\n{lines}secret {secret.decode()}\n"
    _write_new(secret_path, pair, 0o600)
    _write_new(public_path, f"{_HEADER} public key: give it to your peers\n{lines}", 0o644)
    return secret_path, public_path


def _write_new(path: Path, text: str, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise ConfigurationError(
            f"{path} exists: a key is never overwritten. Move it away, or choose another name."
        ) from None
    except OSError as error:
        raise ConfigurationError(f"Cannot write {path}: {error.strerror}.") from None
    with os.fdopen(descriptor, "w") as file:
        file.write(text)


def load(path: Path) -> KeyPair:
    """Read a key pair. Raises ConfigurationError if others can read it, or it is not one."""
    fields = _read(path)
    if os.name == "posix" and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigurationError(
            f"{path} can be read by others, so its secret is none: run `chmod 600 {path}`, or make "
            f"a new key if others may have read it."
        )
    if "secret" not in fields or "public" not in fields:
        raise ConfigurationError(
            f"{path} holds no secret key. Give the .key file that `python -m protocol keygen` made."
        )
    public, secret = fields["public"], fields["secret"]
    if zmq.curve_public(secret) != public:
        raise ConfigurationError(f"{path} is damaged: its public key is not that of its secret.")
    return KeyPair(public, secret)


def load_public(value: str) -> bytes:
    """A public key, given as z85 text or as a file made by keygen. Raises ConfigurationError."""
    if _is_z85(value):
        return value.encode("ascii")
    fields = _read(Path(value))
    if "public" not in fields:
        raise ConfigurationError(f"{value} holds no public key. Give the broker's .pub file.")
    return fields["public"]


def _read(path: Path) -> dict[str, bytes]:
    try:
        text = path.read_text(encoding="ascii")
    except FileNotFoundError:
        raise ConfigurationError(f"There is no key file at {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read as a key file: {error}.") from None
    fields = {}
    for line in text.splitlines():
        word, _, value = line.partition(" ")
        if word in ("public", "secret"):
            if not _is_z85(value):
                raise ConfigurationError(f"{path}: the {word} key is not 40 characters of z85.")
            fields[word] = value.encode("ascii")
    return fields


def _is_z85(value: str) -> bool:
    return len(value) == 40 and set(value) <= _Z85
