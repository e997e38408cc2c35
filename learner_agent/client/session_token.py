"""What another process needs to go on with a session: `ProxyEnv.session_token()`, as bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gymwire.protocol import values
from gymwire.protocol.dialogue import State
from gymwire.protocol.errors import ConfigurationError, GymwireError
from gymwire.protocol.messages import Open
from gymwire.protocol.security.signing import Signer

KEY_SIZE = 32  # of a signer
KEYWORDS = {
    *("address", "broker", "key", "broker_key", "direct", "on_lost", "render_mode", "env_kwargs"),
    *("timeout_s", "step_timeout_s", "wait_s"),
}


@dataclass(frozen=True)
class SessionToken:
    """A session after its request number `seq`. `kwargs`: the keywords of its ProxyEnv."""

    kwargs: dict[str, Any]
    sid: int
    nonce: bytes
    seq: int
    state: State
    challenge: bytes
    signer: Signer | None

    @property
    def wish(self) -> Open:
        """The OPEN that began the session."""
        return Open(
            self.kwargs["address"],
            self.nonce,
            self.kwargs["render_mode"],
            self.kwargs["env_kwargs"],
            direct=self.kwargs["direct"] != "never",
            challenge=self.challenge,
        )

    def encode(self) -> bytes:
        """The token's bytes."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        signer = None if self.signer is None else list(self.signer)
        return values.encode({**fields, "state": self.state.value, "signer": signer})


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
            "signer": None | [bytes(), bytes()] as signer,
        } if (
            set(kwargs) == KEYWORDS
            and 0 < sid < 2**64
            and len(nonce) == 16
            and 0 <= seq < 2**62
            and all(len(key) == KEY_SIZE for key in signer or ())
        ):
            made = None if signer is None else Signer(*signer)
            return SessionToken(kwargs, sid, nonce, seq, State(state), challenge, made)
    raise ConfigurationError(
        "This is not what session_token() returned: give the same bytes, all of them, to the same "
        "version of gymwire."
    )
