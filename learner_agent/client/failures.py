"""The exceptions that ERROR messages stand for."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import gymnasium.error

from gymwire.protocol import errors
from gymwire.protocol.codec import MAX_INT, Header
from gymwire.protocol.errors import DecodingError
from gymwire.protocol.messages import Code, EndedBy, Error

MAX_TEXT = 20_000  # characters of a text of the other side in an error

_CLASSES: dict[str, type[errors.GymwireError]] = {
    Code.VERSION: errors.VersionMismatch,
    Code.PROTOCOL: errors.ProtocolError,
    Code.EXPECTED: errors.ProtocolError,
    Code.ADDRESS_UNKNOWN: errors.AddressUnknown,
    Code.ADDRESS_INVALID: errors.AddressError,
    Code.ADDRESS_TAKEN: errors.AddressTaken,
    Code.NO_FREE_SLOT: errors.NoFreeSlot,
    Code.DENIED: errors.Denied,
    Code.ATTRIBUTE_DENIED: errors.AttributeDenied,
    Code.SESSION_LOST: errors.EnvironmentLost,
}


def error_for(error: Error) -> errors.GymwireError:
    """Return the exception for an ERROR.

    An exception of the environment becomes an EnvironmentFailed. If its type is one of Python or
    Gymnasium, the result is an instance of that type too, so that `except AssertionError` works as
    it does locally.
    """
    if error.code in (Code.ENVIRONMENT_FAILED, Code.OPEN_FAILED, Code.ENCODING):
        remote_type = cut(str(error.details.get("type", "")))
        kind = _failed_as(remote_type)
        text = cut(error.text)
        if error.code == Code.ENVIRONMENT_FAILED and kind is errors.EnvironmentFailed:
            # Other classes have the name of the remote type already.
            text = ": ".join(filter(None, (remote_type, text))) or "It raised an exception."
        trace = cut(str(error.details.get("traceback", "")))
        failure = kind(text, remote_type=remote_type, remote_traceback=trace)
        index = error.details.get("env_index")
        failure.env_index = index if type(index) is int and 0 <= index < MAX_INT else None
        return failure
    return _CLASSES.get(error.code, errors.Refused)(cut(error.text))


def lost_because(ended_by: str, text: str, advice: str) -> errors.EnvironmentLost:
    """Return the error for a lost session, without the advice if no session is allowed anymore."""
    if ended_by == EndedBy.POLICY:  # the broker's text says whom to ask
        advice = ""
    return errors.EnvironmentLost(text, advice=advice, ended_by=ended_by)


def cut(text: str) -> str:
    """Return the text of another party, cut off if it is long: an error must stay readable."""
    if len(text) <= MAX_TEXT:
        return text
    return f"{text[:MAX_TEXT]} … ({len(text):,} characters)"


@lru_cache(maxsize=256)  # bounded, because the other side chooses the names
def _failed_as(remote_type: str) -> type[errors.EnvironmentFailed]:
    name = remote_type.rpartition(".")[2]
    home = gymnasium.error if remote_type.startswith("gymnasium.error.") else builtins
    original = getattr(home, name, None)
    if (
        (home is builtins and "." in remote_type)
        or not isinstance(original, type)
        or not issubclass(original, Exception)
    ):
        return errors.EnvironmentFailed
    try:
        both = type(name, (errors.EnvironmentFailed, original), {"__module__": __name__})
        both("")
    except TypeError:  # the two types do not combine
        return errors.EnvironmentFailed
    return both


def malformed(error: DecodingError, sender: str, header: Header) -> DecodingError:
    """Return the error for a message that cannot be decoded: with its sender, kind and session."""
    session = f" in session {header.sid}" if header.sid else ""
    return DecodingError(
        f"{sender} sent a malformed {header.kind.name}{session}: {error}", path=error.path
    )


@contextmanager
def naming_agent(where: str) -> Iterator[None]:
    """Let a DecodingError name the env agent that sent what cannot be used: a space, for example.

    `where`: its address, as errors show it.
    """
    try:
        yield
    except DecodingError as error:
        text = f"The env agent of {where} broke the protocol: {error}"
        raise DecodingError(text, path=error.path) from None
