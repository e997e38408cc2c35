"""Sessions that are signed end to end, for learners that pin an agent (docs/security.md).

CURVE protects each connection; between its two the broker sees and could change everything. Who
opens `address@identity` sends a fresh X25519 key along (`Open.challenge`); the agent answers with
its public key (`Opened.key`), and both derive, from that and the agent's own CURVE key, two keys
that nobody else can know. From OPENED on, each frame ends with a 16-byte BLAKE2b tag over the whole
frame, header included. That proves the agent, and that nothing was changed; it hides nothing.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from zmq.utils import z85

from gymwire.protocol.codec import Codec, Frame, Header
from gymwire.protocol.errors import DecodingError, Denied
from gymwire.protocol.messages import Kind, Message
from gymwire.protocol.security.keys import KeyPair, identity, is_public_key
from gymwire.protocol.spaces import SpaceCodec

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

TAG_SIZE = 16


class Signer(NamedTuple):
    """The keys of one session at one of its ends."""

    mine: bytes
    theirs: bytes

    def sign(self, frame: Frame) -> Frame:
        """The frame with its tag. The same frame gets the same tag."""
        return frame + _tag(frame, self.mine)

    def verify(self, data: bytes | bytearray | memoryview) -> memoryview:
        """The frame without its tag. Raises DecodingError if the tag is not the other end's."""
        view = memoryview(data)
        frame, tag = view[:-TAG_SIZE], view[-TAG_SIZE:]
        if not hmac.compare_digest(_tag(frame, self.theirs), tag):
            raise DecodingError(
                "A frame of a signed session has not the tag of the pinned agent: something "
                "between the two changed it or made it up."
            )
        return frame


class Challenge:
    """The learner's half: a key pair for one OPEN."""

    def __init__(self) -> None:
        from cryptography.hazmat.primitives.asymmetric import x25519

        self._private: X25519PrivateKey = x25519.X25519PrivateKey.generate()
        self.public: bytes = self._private.public_key().public_bytes_raw()

    def signer(
        self, pin: str, key: bytes, nonce: bytes, sid: int, opened: bytes | memoryview
    ) -> Signer:
        """The session's keys, after `opened`, the frame of OPENED, has proved its sender.

        `key`: the public key that it names. Raises Denied if this is not the pinned agent.
        """
        text = (
            f"The broker led to another agent than the pinned {pin}, or to one that cannot prove "
            f"itself: no session was opened."
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
    """The agent's half: the session's keys, or None for a challenge that is none."""
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
    """The keys for frames of the learner and of the agent."""
    about = challenge + key + nonce + sid.to_bytes(8, "little")
    return [
        hashlib.blake2b(about, key=shared, digest_size=32, person=role).digest()
        for role in (b"gymwire learner", b"gymwire agent")
    ]


def _tag(frame: Frame | memoryview, key: bytes) -> bytes:
    return hashlib.blake2b(frame, key=key, digest_size=TAG_SIZE).digest()


class SignedCodec(Codec):
    """A session's codec that adds and checks the tags."""

    def __init__(
        self,
        signer: Signer,
        observation: SpaceCodec | None = None,
        action: SpaceCodec | None = None,
        *,
        strict_infos: bool = False,
        on_opaque: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(observation, action, strict_infos=strict_infos, on_opaque=on_opaque)
        self._signer = signer

    def encode(self, message: Message, sid: int = 0, seq: int = 0) -> Frame:
        """One message as one frame, its tag at the end."""
        return self._signer.sign(super().encode(message, sid, seq))

    def decode(self, data: bytes | bytearray | memoryview, header: Header | None = None) -> Message:
        """The message of a frame, whose tag must be right.

        An ERROR may come without: brokers refuse, too. It ends a request and never answers one.
        """
        try:
            return super().decode(self._signer.verify(data), header)
        except DecodingError:
            if header is not None and header.kind is Kind.ERROR:
                return super().decode(data, header)
            raise
