"""How the broker says no: the errors that it raises and answers, and why somebody may not."""

from __future__ import annotations

from typing import Any

from gymwire.broker.events import Send, say
from gymwire.broker.tables import Peer
from gymwire.protocol.errors import AddressError, GymwireError, VersionMismatch
from gymwire.protocol.messages import Code, Error

ASK = "ask the broker's operator."
NOT_YOURS = "This session belongs to another learner."


class Refusal(GymwireError):
    """What was asked is not done; `code` and `details` go into the ERROR."""

    def __init__(self, code: str, text: str, **details: Any) -> None:
        super().__init__(text)
        self.code = code
        self.details = details


def refuse(rid: bytes, error: GymwireError, sid: int = 0, seq: int = 0) -> Send:
    """The ERROR that tells a peer of this."""
    code, details = Code.PROTOCOL, {}
    match error:
        case Refusal():
            code, details = error.code, error.details
        case VersionMismatch():
            code = Code.VERSION
        case AddressError():
            code = Code.ADDRESS_INVALID
    return say(rid, Error(code, str(error), details), sid, seq)


def whose(key: bytes | None, identity: str) -> str:
    """Whom a refusal is about."""
    return f"The key {'-' if key is None else key.decode('ascii')} (identity {identity})"


def may_not(peer: Peer, verb: str, address: str) -> str:
    """Why this peer may not `offer`, or `use`, an address."""
    patterns = peer.rights.offer if verb == "offer" else peer.rights.use
    allowed = f"{', '.join(patterns)} only" if patterns else "nothing"
    return (
        f"{whose(peer.key, peer.identity)}, which this broker calls {peer.rights.name!r}, may not "
        f"{verb} {address!r}: its policy lets it {verb} {allowed}. To change that, {ASK}"
    )
