"""The dialogue of a session as a table of legal moves (docs/protocol.md §5).

The table does not know which side it plays: the learner checks a request before it sends it, the
env agent before it executes it. An illegal move raises and moves nothing.
"""

from __future__ import annotations

from enum import Enum

from gymwire.protocol.errors import EnvironmentClosed, MoveError, ResetNeeded
from gymwire.protocol.messages import Kind


class State(Enum):
    """Where a session stands between two requests."""

    READY = "ready"  # open, no episode yet
    EPISODE = "episode"  # at least one reset has succeeded
    CLOSED = "closed"


# Which request is legal where, and the replies that it may get with the state that each leads to.
# ERROR is a legal reply to every request and leaves the state as it was.
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
        raise EnvironmentClosed(f"{verb} after close: this environment is closed; make a new one.")
    if request is Kind.ACT:
        raise ResetNeeded("step() before reset(): call reset() first.")
    raise MoveError(f"{verb} is not a request of the gym dialogue.")


def after(state: State, request: Kind, reply: Kind) -> State:
    """The state after `request` was answered by `reply`. Raises MoveError if it may not be."""
    if reply is Kind.ERROR:
        return state
    try:
        return MOVES[state][request][reply]
    except KeyError:
        raise MoveError(
            f"{reply.name} does not answer {request.name} in the state {state.value!r}."
        ) from None


def mermaid() -> str:
    """The table as a Mermaid state diagram, as docs/protocol.md shows it."""
    lines = ["stateDiagram-v2", "    [*] --> ready: OPEN / OPENED"]
    for state, moves in MOVES.items():
        for request, replies in moves.items():
            for reply, target in replies.items():
                label = f"{request.name} / {reply.name}"
                lines.append(f"    {state.value} --> {target.value}: {label}")
    lines.append("    closed --> [*]")
    return "\n".join(lines)
