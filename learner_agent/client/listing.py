"""Check the offers that a broker lists: env agents shape them, and the broker passes them on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gymwire.learner_agent.client.failures import error_for
from gymwire.protocol.codec import MAX_INT
from gymwire.protocol.errors import DecodingError
from gymwire.protocol.messages import Error, Find, Found, Message

MAX_PAGES = 10_000
_TYPES: dict[str, tuple[type, ...]] = {
    "address": (str,),
    "env_id": (str,),
    "observation_space": (object,),
    "action_space": (object,),
    "metadata": (dict,),
    "capacity": (int,),
    "used": (int,),
    "host": (str,),
    "software": (str,),
    "identity": (str,),
    "direct": (str, type(None)),
    "state": (str,),
}
_LATER: dict[str, tuple[type, ...]] = {  # a broker of release 0.1.0 sends none of these
    "pid": (int, type(None)),
    "agent_pid": (int, type(None)),
    "stuck": (int,),
}


def find_all(address: str, ask: Callable[[Find], Message], broker: str) -> list[dict[str, Any]]:
    """Return the offers of all pages, checked (docs/protocol.md §6.3).

    `ask` sends one FIND and returns the reply. `broker`: its URL, for errors. Raises what an ERROR
    stands for, and DecodingError if the broker sends something else, or pages without an end.
    """
    entries: list[dict[str, Any]] = []
    rest: list[Any] = []
    for _ in range(MAX_PAGES):
        found = ask(Find(address, rest))
        if isinstance(found, Error):
            raise error_for(found)
        if not isinstance(found, Found):
            raise DecodingError(
                f"The broker at {broker} sent {type(found).__name__} instead of Found."
            )
        entries += [_checked(entry, broker) for entry in found.offers]
        if not found.rest:
            return entries
        if not _is_after(found.rest, rest):
            raise DecodingError(
                f"The broker at {broker} sent a FOUND whose rest, {found.rest!r:.100}, does not "
                f"follow {rest!r:.100}. This is a fault of the broker.",
                path="rest",
            )
        rest = found.rest
    raise DecodingError(
        f"The broker at {broker} sent {MAX_PAGES} pages of offers and has more. Name an address."
    )


def _is_after(rest: list[Any], previous: list[Any]) -> bool:
    match rest:
        case [str(), int()]:
            return not previous or rest > previous
    return False


def _checked(entry: object, broker: str) -> dict[str, Any]:
    """Return an entry of FOUND. Raises DecodingError naming what is wrong in it."""
    if not isinstance(entry, dict):
        raise _malformed(broker, f"an offer must be a map, not {type(entry).__name__}", "offers")
    for name, types in (_TYPES | _LATER).items():
        if name not in entry:
            if name in _LATER:
                continue
            raise _malformed(broker, f"an offer lacks {name!r}", name)
        value = entry[name]
        if types != (object,) and type(value) not in types:
            allowed = " or ".join("nil" if one is type(None) else one.__name__ for one in types)
            raise _malformed(
                broker, f"{name!r} of an offer must be {allowed}, not {type(value).__name__}", name
            )
        if type(value) is int and int in types and not 0 <= value < MAX_INT:
            raise _malformed(broker, f"{name!r} of an offer is out of range", name)
    return entry


def _malformed(broker: str, what: str, path: str) -> DecodingError:
    return DecodingError(
        f"The broker at {broker} sent a malformed FOUND: {what}. This is a fault of the broker.",
        path=path,
    )
