"""Session tokens: what another process needs to continue a session, as bytes.

Tokens are kept in files, and the process that reads one may run another release: the names of the
fields are those of release 0.1.0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gymwire.protocol import values
from gymwire.protocol.capabilities import CAPABILITIES
from gymwire.protocol.dialogue import State
from gymwire.protocol.errors import ConfigurationError, GymwireError
from gymwire.protocol.messages import NONCE_SIZE, Open
from gymwire.protocol.security.signing import Signer

KEY_SIZE = 32  # bytes, of a signed session
KEYWORDS = {
    *("address", "broker", "key", "broker_key", "direct", "on_lost", "render_mode", "env_kwargs"),
    *("timeout_s", "step_timeout_s", "wait_s"),
}


@dataclass(frozen=True)
class SessionToken:
    """A session after its request number `seq`, with the keyword arguments of its ProxyEnv."""

    kwargs: dict[str, Any]
    sid: int
    nonce: bytes
    seq: int
    state: State
    challenge: bytes
    signer: Signer | None

    @property
    def open_msg(self) -> Open:
        """The OPEN that began the session."""
        return Open(
            self.kwargs["address"],
            self.nonce,
            self.kwargs["render_mode"],
            self.kwargs["env_kwargs"],
            direct=self.kwargs["direct"] != "never",
            challenge=self.challenge,
            capabilities=list(CAPABILITIES),
        )

    def encode(self) -> bytes:
        """Return the token's bytes."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        signer = fields.pop("signer")
        seal = None if signer is None else list(signer)
        return values.encode({**fields, "state": self.state.value, "seal": seal})


def decode(token: bytes) -> SessionToken:
    """Read a token. Raises ConfigurationError."""
    try:
        fields = values.decode(token)
    except (GymwireError, TypeError):
        fields = None
    match fields:
        case {
            "kwargs": dict(kwargs),
            "sid": int(sid),
            "nonce": bytes(nonce),
            "seq": int(seq),
            "state": State.READY.value | State.EPISODE.value as state,
            "challenge": bytes(challenge),
            "seal": None | [bytes(), bytes()] as signer,
        } if (
            set(kwargs) == KEYWORDS
            and 0 < sid < 2**64
            and len(nonce) == NONCE_SIZE
            and 0 <= seq < 2**62
            and all(len(key) == KEY_SIZE for key in signer or ())
        ):
            made = None if signer is None else Signer(*signer)
            return SessionToken(kwargs, sid, nonce, seq, State(state), challenge, made)
    raise ConfigurationError(
        "This is not a session token. Pass the bytes that session_token() returned, all of them."
    )
