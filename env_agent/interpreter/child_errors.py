"""The exceptions of an environment in a process with its own interpreter."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from gymwire.protocol.errors import DecodingError
from gymwire.protocol.named_tuples import MAX_NAME


class RaisedInChild(Exception):
    """The base of the exceptions that stand for those in the process.

    Attributes:
        remote_traceback: the traceback there, as text.
    """

    remote_traceback = ""


def build(reported: Any) -> RaisedInChild:
    """Return the exception that the process reports: [module, name, text, traceback].

    Raises DecodingError.
    """
    if type(reported) is not list or [type(part) for part in reported] != [str] * 4:
        raise DecodingError("The report of an exception is not a list of four texts.")
    module, name, text, trace = reported
    try:
        error = _class(module[:MAX_NAME], name[:MAX_NAME])(text)
    except ValueError as fault:
        raise DecodingError(f"The class of an exception is malformed: {fault}.") from None
    error.remote_traceback = trace
    return error


@lru_cache(maxsize=256)  # bounded as the names are, because the process chooses them
def _class(module: str, name: str) -> type[RaisedInChild]:
    members = {"__module__": module, "__qualname__": name, "__doc__": None}
    return type(name.rpartition(".")[2], (RaisedInChild,), members)
