"""The dialogue of a session as a table of legal moves (docs/protocol.md §5).

Both sides use the same table: the learner checks a request before it sends it, the env agent before
it executes it. An illegal move raises an error and changes nothing.
"""

from __future__ import annotations

from enum import Enum

from gymwire.protocol.errors import EnvironmentClosed, MoveError, ResetNeeded
from gymwire.protocol.messages import Kind
from gymwire.protocol.outside_exceptions import is_from_outside


class State(Enum):
    """The state of a session between two requests."""

    __hash__ = object.__hash__  # that of Enum is a function in Python

    READY = "ready"  # open, no episode yet
    EPISODE = "episode"  # at least one reset has succeeded
    CLOSED = "closed"


# State → legal request → legal reply → next state. ERROR is a legal reply to every request and
# leaves the state unchanged.
MOVES: dict[State, dict[Kind, dict[Kind, State]]] = {
    State.READY: {
        Kind.RESET: {Kind.STATUS: State.EPISODE},
        Kind.RENDER: {Kind.FRAME: State.READY},
        Kind.CALL: {Kind.RESULT: State.READY},
        Kind.CLOSE: {Kind.CLOSED: State.CLOSED},
    },
    State.EPISODE: {
        Kind.RESET: {Kind.STATUS: State.EPISODE},
        Kind.ACT: {Kind.PERCEPT: State.EPISODE},
        Kind.RENDER: {Kind.FRAME: State.EPISODE},
        Kind.CALL: {Kind.RESULT: State.EPISODE},
        Kind.CLOSE: {Kind.CLOSED: State.CLOSED},
    },
    State.CLOSED: {
        Kind.CLOSE: {Kind.CLOSED: State.CLOSED},
    },
}

REQUESTS = frozenset(kind for moves in MOVES.values() for kind in moves)


def check_request(state: State, request: Kind) -> None:
    """Raise MoveError (ResetNeeded, EnvironmentClosed) if `request` is not legal in `state`."""
    if request in MOVES[state]:
        return
    verb = request.name.lower()
    if state is State.CLOSED:
        raise EnvironmentClosed(f"{verb} after close: this environment is closed. Make a new one.")
    if request is Kind.ACT:
        raise ResetNeeded("step() before reset(): call reset() first.")
    raise MoveError(f"{verb} is not a request of the gym dialogue.")


def after(state: State, request: Kind, reply: Kind) -> State:
    """Return the state after this reply to this request. Raises MoveError for an illegal reply."""
    if reply is Kind.ERROR:
        return state
    try:
        return MOVES[state][request][reply]
    except KeyError as error:
        if is_from_outside(error):
            raise
        raise MoveError(
            f"{reply.name} is not a reply to {request.name} in the state {state.value!r}."
        ) from None
