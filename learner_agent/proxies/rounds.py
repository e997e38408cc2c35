"""Calls that name an environment of a vector several times: one request after the other.

A request names each environment at most once (docs/protocol.md §4.1.3). If an exception ends the
call between two requests or during one, the same call again goes on from there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial, wraps
from hashlib import blake2b
from typing import Any, NamedTuple, Protocol, TypeVar

from gymwire.learner_agent.client.exchange import Exchange
from gymwire.learner_agent.client.session_group import SessionGroup
from gymwire.protocol import values
from gymwire.protocol.errors import EncodingError
from gymwire.protocol.messages import Call


class _Finished(NamedTuple):
    """The rounds of a call whose replies have arrived.

    Attributes:
        call: the digest of the call and all its numbers, from `_digest`.
        results: what each of them has returned.
        requests: the number of the last request of each session then.
    """

    call: bytes
    results: list[list[Any]]
    requests: dict[Exchange, int]


class Rounds:
    """The rounds of the calls of one vector.

    Args:
        group: the sessions of the vector.

    Attributes:
        finished: those of the last call that had several; replaced, never changed in place.
    """

    def __init__(self, group: SessionGroup) -> None:
        self._group = group
        self.finished: _Finished | None = None

    def drop_returned(self) -> None:
        """Drop the finished rounds if their call has returned, or another one has followed it.

        Call this when the next call begins: an exception may come after the end of a call.
        """
        requests = {} if self.finished is None else self.finished.requests
        for exchange in self._exchanges:
            count = exchange.seq - requests.get(exchange, -1)
            if count > 1 or (count == 1 and exchange.pending is None):
                self.finished = None

    def run(
        self, call: Call, rounds: Sequence[list[int]], ask: Callable[[list[int]], list[Any]]
    ) -> list[list[Any]]:
        """Return what `ask` returns for each round, those before an exception included."""
        if len(rounds) == 1:
            return [ask(rounds[0])]
        name, finished, results = _digest(call, rounds), self.finished, []
        if name and finished is not None and name == finished.call:
            results = finished.results
        for numbers in rounds[len(results) : -1]:
            results = [*results, ask(numbers)]
            requests = {one: one.seq for one in self._exchanges}
            self.finished = _Finished(name, results, requests)
        return [*results, ask(rounds[-1])]

    @property
    def _exchanges(self) -> list[Exchange]:
        return [self._group[i].exchange for i in range(len(self._group))]

    def keep(self) -> None:
        """Count the replies of finished rounds as returned, after `SessionGroup.undo`."""
        requests = {} if self.finished is None else self.finished.requests
        for exchange, number in requests.items():
            if exchange.seq == number:
                exchange.mark_returned()


def _digest(call: Call, rounds: Sequence[list[int]]) -> bytes:
    """Return the digest of a call and its numbers; b"" if it cannot be serialized.

    Then its first request raises the error, which names the value as that of any other call does.
    """
    try:
        encoded = values.encode([call.mode, call.name, list(call.args), call.kwargs, *rounds])
    except EncodingError:
        return b""
    return blake2b(encoded).digest()


class _HasRounds(Protocol):
    rounds: Rounds


class _Vector(Protocol):
    @property
    def undoable(self) -> _HasRounds: ...


S = TypeVar("S", bound=_Vector)
Each = Callable[[S, Call, Sequence[int]], list[Any]]
"""A method that applies a CALL to the environments with these numbers."""


def in_rounds(method: Each[S]) -> Each[S]:
    """Let a method accept repeated numbers: it is called for each round without repetitions."""

    @wraps(method)
    def access(self: S, call: Call, env_ids: Sequence[int]) -> list[Any]:
        rounds: list[list[int]] = [[]]  # of places
        calls = Counter[int]()
        for place, one in enumerate(env_ids):
            if calls[one] == len(rounds):
                rounds.append([])
            rounds[calls[one]].append(place)
            calls[one] += 1
        numbers = [[env_ids[place] for place in places] for places in rounds]
        found: list[Any] = [None] * len(env_ids)
        results = self.undoable.rounds.run(call, numbers, partial(method, self, call))
        for places, some in zip(rounds, results, strict=True):
            for place, value in zip(places, some, strict=True):
                found[place] = value
        return found

    return access
