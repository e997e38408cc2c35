"""Broker errors and their wording."""

from __future__ import annotations

from typing import Any

from gymwire.broker.events import Send
from gymwire.broker.journal import Journal
from gymwire.broker.tables import Peer
from gymwire.protocol.errors import AddressError, GymwireError, VersionMismatch
from gymwire.protocol.messages import Busy, Code, Error

MAX_WHY = 400  # characters of an error in the log: one that names a key and its rights fits
ASK_OPERATOR = "ask the operator of the broker."
NOT_YOURS = "This session belongs to another learner."


class Refusal(GymwireError):
    """The broker refuses a request. `code` and `details` go into the ERROR reply."""

    def __init__(self, code: str, text: str, **details: Any) -> None:
        super().__init__(text)
        self.code = code
        self.details = details


class RetryLater(GymwireError):
    """The broker cannot deliver a frame now: it replies BUSY.

    `reason`: see `BusyReason`. The sender may repeat the frame after `retry_after_s` seconds.
    """

    def __init__(self, reason: str, retry_after_s: float) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after_s = retry_after_s


def reply_to(journal: Journal, rid: bytes, error: GymwireError, sid: int = 0, seq: int = 0) -> Send:
    """Return the reply to a request that failed with this error, ERROR or BUSY; count it."""
    if isinstance(error, RetryLater):
        journal.busy[error.reason] += 1
        journal.detail("frame refused", rid, code="busy", why=error.reason)
        return Send.message(rid, Busy(error.reason, error.retry_after_s), sid, seq)
    code, details = Code.PROTOCOL, {}
    match error:
        case Refusal():
            code, details = error.code, error.details
        case VersionMismatch():
            code = Code.VERSION
        case AddressError():
            code = Code.ADDRESS_INVALID
    journal.refusals[code] += 1
    journal.detail("frame refused", rid, code=code, why=str(error)[:MAX_WHY])
    return Send.message(rid, Error(code, str(error), details), sid, seq)


def describe_key(key: bytes | None, identity: str) -> str:
    """Return the subject of a sentence about a key."""
    if key is None:
        return "A peer without a key"
    return f"The key {key.decode('ascii')} (identity {identity})"


def not_allowed(peer: Peer, verb: str, address: str) -> str:
    """Return why this peer lacks the right `verb` at an address."""
    patterns: tuple[str, ...] = getattr(peer.rights, verb)
    allowed = f"only {', '.join(patterns)}" if patterns else "nothing"
    return (
        f"{describe_key(peer.key, peer.identity)}, named {peer.rights.name!r} in this broker's "
        f"policy, may not {verb} {address!r}. It may {verb} {allowed}. To change that, "
        f"{ASK_OPERATOR}"
    )
