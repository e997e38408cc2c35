"""From an ERROR to the exception that the learner's caller sees."""

from __future__ import annotations

import builtins
from functools import lru_cache

import gymnasium.error

from gymwire.protocol import errors
from gymwire.protocol.messages import Code, Error

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
    """The exception for an ERROR.

    What the environment raised comes back as EnvironmentFailed and, where the type is Python's own
    or Gymnasium's, as that type too, so that `except AssertionError` works as it does locally.
    """
    if error.code in (Code.ENVIRONMENT_FAILED, Code.OPEN_FAILED, Code.ENCODING):
        remote_type = str(error.details.get("type", ""))
        kind = _failed_as(remote_type)
        text = error.text
        if error.code == Code.ENVIRONMENT_FAILED:
            text = f"{remote_type}: {text}" if text else remote_type
        trace = str(error.details.get("traceback", ""))
        failure = kind(text, remote_type=remote_type, remote_traceback=trace)
        index = error.details.get("env_index")
        failure.env_index = index if type(index) is int else None
        return failure
    return _CLASSES.get(error.code, errors.Refused)(error.text)


@lru_cache(maxsize=256)  # the names are the other side's
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
    except TypeError:  # its instances are laid out, or made, in another way
        return errors.EnvironmentFailed
    return both
