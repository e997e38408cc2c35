"""Signed sessions, for learners that pin an env agent (docs/security.md).

CURVE protects each connection, but the broker between two connections sees everything and could
change it. A learner that opens the pinned address `address@identity` sends a fresh X25519 key
(`Open.challenge`), and the env agent answers with its public key (`Opened.key`). From both and the
env agent's own CURVE key, the two sides derive two keys that nobody else can know. From OPENED on,
each frame ends with a 16-byte BLAKE2b tag over the whole frame including the header. The tag proves
the sender and the content; it hides nothing.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Any, NamedTuple

from zmq.utils import z85

from gymwire.protocol.codec import Codec, Frame, Header
from gymwire.protocol.errors import DecodingError, Denied
from gymwire.protocol.messages import Kind, Message
from gymwire.protocol.security.keys import KeyPair, identity, is_public_key
from gymwire.protocol.space_codecs import SpaceCodec

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

TAG_SIZE = 16


class Signer(NamedTuple):
    """Signs and verifies the frames of one session, on one side.

    `mine`, `theirs`: the keys of this and of the other side, 32 bytes each.
    """

    mine: bytes
    theirs: bytes

    def sign(self, frame: Frame) -> Frame:
        """Return the frame with its tag. The same frame gets the same tag."""
        return frame + _tag(frame, self.mine)

    def verify(self, data: bytes | bytearray | memoryview) -> memoryview:
        """Return the frame without its tag. Raises DecodingError if the tag is wrong."""
        view = memoryview(data)
        frame, tag = view[:-TAG_SIZE], view[-TAG_SIZE:]
        if not hmac.compare_digest(_tag(frame, self.theirs), tag):
            raise DecodingError(
                "A frame of a signed session has a wrong tag: something between the learner and "
                "the pinned env agent changed or forged it."
            )
        return frame


class Challenge:
    """The learner's half of the key agreement: a key pair for one OPEN."""

    def __init__(self) -> None:
        from cryptography.hazmat.primitives.asymmetric import x25519

        self._private: X25519PrivateKey = x25519.X25519PrivateKey.generate()
        self.public: bytes = self._private.public_key().public_bytes_raw()

    def signer(
        self, pin: str, key: bytes, nonce: bytes, sid: int, opened: bytes | memoryview
    ) -> Signer:
        """Return the session's signer, after checking the sender of OPENED.

        `key`: the public key in OPENED. `opened`: its frame. Raises Denied if the sender is not the
        pinned env agent.
        """
        text = (
            f"No session was opened: the broker chose an env agent that is not the pinned {pin}, "
            f"or that cannot prove its identity."
        )
        if not is_public_key(key.decode("ascii", "replace")) or identity(key) != pin:
            raise Denied(text)
        shared = _agree(self._private, z85.decode(key))
        if shared is None:
            raise Denied(text)
        mine, theirs = _derive(shared, self.public, key, nonce, sid)
        signer = Signer(mine, theirs)
        try:
            signer.verify(opened)
        except DecodingError:
            raise Denied(text) from None
        return signer


def answer_challenge(pair: KeyPair, challenge: bytes, nonce: bytes, sid: int) -> Signer | None:
    """Return the session's signer for the env agent; None for an invalid challenge."""
    from cryptography.hazmat.primitives.asymmetric import x25519

    private = x25519.X25519PrivateKey.from_private_bytes(z85.decode(pair.secret))
    shared = _agree(private, challenge)
    if shared is None:
        return None
    theirs, mine = _derive(shared, challenge, pair.public, nonce, sid)
    return Signer(mine, theirs)


def _agree(private: X25519PrivateKey, public: bytes) -> bytes | None:
    from cryptography.hazmat.primitives.asymmetric import x25519

    try:
        return private.exchange(x25519.X25519PublicKey.from_public_bytes(public))
    except ValueError:  # not 32 bytes, or a point of low order
        return None


def _derive(shared: bytes, challenge: bytes, key: bytes, nonce: bytes, sid: int) -> list[bytes]:
    """Return the keys for the frames of the learner and of the env agent."""
    about = challenge + key + nonce + sid.to_bytes(8, "little")
    return [
        hashlib.blake2b(about, key=shared, digest_size=32, person=role).digest()
        for role in (b"gymwire learner", b"gymwire agent")
    ]


def _tag(frame: Frame | memoryview, key: bytes) -> bytes:
    return hashlib.blake2b(frame, key=key, digest_size=TAG_SIZE).digest()


class SignedCodec(Codec):
    """The codec of a signed session, which adds and verifies the tags."""

    def __init__(
        self,
        signer: Signer,
        observation: SpaceCodec | None = None,
        action: SpaceCodec | None = None,
        **options: Any,
    ) -> None:
        super().__init__(observation, action, **options)
        self._signer = signer

    def encode(self, message: Message, sid: int = 0, seq: int = 0) -> Frame:
        """Return a message as a frame with its tag."""
        return self._signer.sign(super().encode(message, sid, seq))

    def decode(self, data: bytes | bytearray | memoryview, header: Header | None = None) -> Message:
        """Return the message of a frame after verifying its tag.

        An ERROR may have no tag, since brokers also refuse requests. It ends a request and never
        passes for its result.
        """
        try:
            return super().decode(self._signer.verify(data), header)
        except DecodingError:
            if header is not None and header.kind is Kind.ERROR:
                return super().decode(data, header)
            raise
