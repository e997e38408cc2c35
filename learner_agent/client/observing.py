"""See what a broker knows, and stop sessions and env agents (docs/protocol.md §6.5).

`gymwire top`, `gymwire ps`, `gymwire stop` and the gateway use this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args, get_origin, get_type_hints

from gymwire.learner_agent.client.failures import cut, error_for
from gymwire.protocol.capabilities import OBSERVE, WATCH, common, require
from gymwire.protocol.codec import MAX_INT
from gymwire.protocol.errors import DecodingError, Refused
from gymwire.protocol.messages import (
    Error,
    Message,
    Observe,
    Observed,
    Stop,
    Stopped,
    Watch,
    Watched,
)
from gymwire.protocol.observations import BrokerTotals, ObservedOffer, ObservedSession, row_of
from gymwire.protocol.process_ids import session_text
from gymwire.protocol.transport.handshake import software

if TYPE_CHECKING:
    from gymwire.learner_agent.client.connection import BrokerConnection

MAX_PAGES = 10_000

__all__ = [
    "BrokerTotals",
    "Observation",
    "ObservedOffer",
    "ObservedSession",
    "observe",
    "stop_agent",
    "stop_session",
    "watch_session",
]

M = TypeVar("M", bound=Message)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Observation:
    """What a broker knows, as far as the observer's key may see it.

    Attributes:
        broker: the broker as a whole.
        offers: sorted by address.
        sessions: in the order in which they were opened.
    """

    broker: BrokerTotals
    offers: tuple[ObservedOffer, ...]
    sessions: tuple[ObservedSession, ...]

    def as_json(self) -> dict[str, Any]:
        """Return all of it as JSON can hold it: a session has its `id` in place of its `sid`.

        JavaScript would round a sid, because it has no integers of 64 bits.
        """
        sessions = [{"id": one.id, **row_of(one)} for one in self.sessions]
        for row in sessions:
            del row["sid"]
        offers = [row_of(one) for one in self.offers]
        return {"broker": row_of(self.broker), "offers": offers, "sessions": sessions}


def observe(connection: BrokerConnection, timeout_s: float | None = None) -> Observation:
    """Return what the broker knows.

    A large answer comes in pages, between which the broker serves others: sessions may end
    meanwhile.

    Args:
        connection: a connection to the broker, whose key needs the right `observe`.
        timeout_s: how long to wait for each page, in seconds; None: the connection's `timeout_s`.

    Raises:
        Denied: the key may not observe, or there is no policy and this is another host.
        VersionMismatch: the broker is of release 0.1.0.
        RequestTimeout: no answer within `timeout_s`.
        BrokerUnreachable: the broker has sent nothing for the connection's `timeout_s`.
        DecodingError: the answer is malformed.
    """
    offers: list[ObservedOffer] = []
    sessions: list[ObservedSession] = []
    rest: list[Any] = []
    for _ in range(MAX_PAGES):
        found = _ask(connection, Observe(rest), Observed, timeout_s=timeout_s)
        broker = _read(BrokerTotals, found.broker, connection.url)
        offers += [_read(ObservedOffer, row, connection.url) for row in found.offers]
        sessions += [_read(ObservedSession, row, connection.url) for row in found.sessions]
        if not found.rest:
            return Observation(broker, tuple(offers), tuple(sessions))
        if not _is_after(found.rest, rest):
            raise _malformed(
                connection.url, f"its rest, {found.rest!r:.100}, does not follow {rest!r:.100}"
            )
        rest = found.rest
    raise _malformed(connection.url, f"it has more than {MAX_PAGES} pages")


def stop_session(connection: BrokerConnection, sid: int) -> bool:
    """End a session: its learner gets EnvironmentLost, which names this operator.

    The env agent abandons the running step. Returns False if the session had ended already.

    Raises Denied without the right `stop`, Refused if there is no such session, and otherwise as
    `observe`.
    """
    return _ask(connection, Stop(), Stopped, sid=sid).sessions > 0


def stop_agent(connection: BrokerConnection, agent: str) -> Stopped:
    """Let an env agent drain with all its workers, as on SIGTERM.

    It takes no new sessions; its sessions may continue until its `--grace` is over. Returns how
    many processes were reached, and how many sessions they have.

    Args:
        connection: a connection to the broker, whose key needs the right `stop`.
        agent: the name of the env agent, as in `ObservedOffer.agent`.

    Raises Refused if there is no such env agent, or if it cannot be stopped through the broker, and
    otherwise as `stop_session`.
    """
    return _ask(connection, Stop(agent), Stopped)


def watch_session(
    connection: BrokerConnection,
    sid: int,
    after: int = 0,
    timeout_s: float | None = None,
    *,
    env: int = 0,
) -> Watched:
    """Return the latest frame of a session; its env agent limits how many there are per second.

    A connection watches one environment at a time: another call ends the present one's wait.

    Args:
        connection: a connection to the broker, whose key needs the right `watch`.
        sid: the session.
        after: `Watched.request` of the last frame that was received; an answer without a
            `media_type` says that there is no later one.
        timeout_s: how long to wait, in seconds; the environment may be in a long step.
        env: which environment of a vector to show, of `Watched.envs`.

    Raises Denied without the right `watch`, Refused if the session cannot be watched, and otherwise
    as `observe`.
    """
    found = _ask(connection, Watch(after, env), Watched, sid=sid, timeout_s=timeout_s, needs=WATCH)
    if found.why:
        raise Refused(f"Session {session_text(sid)} cannot be watched. {cut(found.why)}")
    return found


def _ask(
    connection: BrokerConnection,
    request: Message,
    kind: type[M],
    *,
    sid: int = 0,
    timeout_s: float | None = None,
    needs: str = OBSERVE,
) -> M:
    welcome = connection.welcome
    assert welcome is not None, "a connection has begun with WELCOME"
    have = common(welcome.capabilities)
    who = f"the broker at {connection.url}"
    require(needs, have, who=who, theirs=welcome.software, ours=software())
    _, answer, _ = connection.ask(request, sid, timeout_s)
    if isinstance(answer, Error):
        raise error_for(answer)
    if not isinstance(answer, kind):
        sent = f"sent {type(answer).__name__} instead of {kind.__name__}"
        raise DecodingError(f"The broker at {connection.url} {sent}.")
    return answer


def _is_after(rest: list[Any], previous: list[Any]) -> bool:
    match rest, previous:
        case ([str(), str() | int(), int()], []):
            return True
        case ([str(part), *place], [str(before), *other]) if part == before:
            return [type(one) for one in place] == [type(one) for one in other] and place > other
        case ([str(part), int(), int()], [str(before), *_]):
            return (before, part) == ("offers", "sessions")
    return False


@lru_cache(maxsize=8)
def _types(kind: type[Any]) -> dict[str, tuple[type, ...]]:
    """Return the types that each value of a row may have."""
    found: dict[str, tuple[type, ...]] = {}
    hints = get_type_hints(kind)
    for one in fields(kind):
        hint = hints[one.name]
        is_map = get_origin(hint) is Mapping
        allowed: tuple[Any, ...] = (dict,) if is_map else get_args(hint) or (hint,)
        found[one.name] = (*allowed, int) if float in allowed else allowed
    return found


def _read(kind: type[T], row: object, url: str) -> T:
    """Return a row of OBSERVED as a value. Raises DecodingError naming what is wrong in it."""
    if not isinstance(row, dict):
        raise _malformed(url, f"a row must be a map, not {type(row).__name__}")
    values: dict[str, Any] = {}
    for name, allowed in _types(cast(Any, kind)).items():
        if name not in row:
            raise _malformed(url, f"a row lacks {name!r}")
        value = row[name]
        if type(value) not in allowed or (type(value) is dict and not _counts(value)):
            raise _malformed(url, f"{name!r} is {value!r:.100}")
        if type(value) in (int, float) and not 0 <= value < MAX_INT:
            raise _malformed(url, f"{name!r} is {value!r:.100}, out of range")
        values[name] = value
    return kind(**values)


def _counts(value: dict[Any, Any]) -> bool:
    return all(
        type(key) is str and type(count) is int and 0 <= count < MAX_INT
        for key, count in value.items()
    )


def _malformed(url: str, what: str) -> DecodingError:
    return DecodingError(
        f"The broker at {url} sent a malformed OBSERVED: {what}. This is a fault of the broker."
    )
