"""See what a broker knows, and stop sessions and env agents (docs/protocol.md §6.5).

For operators: `gymwire top`, `gymwire ps` and `gymwire stop`, and other doors that show a broker.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args, get_origin, get_type_hints

from gymwire.learner_agent.client.failures import cut, error_for
from gymwire.protocol.capabilities import OBSERVE, WATCH, common, require
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
from gymwire.protocol.process_ids import session_text
from gymwire.protocol.transport.handshake import software

if TYPE_CHECKING:
    from gymwire.learner_agent.client.connection import BrokerConnection

MAX_PAGES = 10_000
MAX_COUNT = 2**63

M = TypeVar("M", bound=Message)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class BrokerTotals:
    """A broker as a whole: how many peers and sessions it has, and counters since its start.

    Attributes:
        epoch: a random number that identifies this run of the broker.
        software: its name and version.
        uptime_s: seconds since its start.
        peers: how many connections have introduced themselves.
        sessions: how many sessions it has, also those that the observer may not see.
        frames, bytes: relayed, both ways.
        sessions_opened, sessions_recovered, sessions_closed: since its start. Recovered sessions
            were opened before it.
        sessions_lost: by reason.
        refusals: ERROR replies by code.
        busy: BUSY replies by reason.
        dropped: frames without a reply by reason.
    """

    epoch: int
    software: str
    uptime_s: float
    peers: int
    sessions: int
    frames: int
    bytes: int
    sessions_opened: int
    sessions_recovered: int
    sessions_closed: int
    sessions_lost: Mapping[str, int]
    refusals: Mapping[str, int]
    busy: Mapping[str, int]
    dropped: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class ObservedOffer:
    """What one process of an env agent (a worker) offers at one address.

    Attributes:
        address: the address.
        env_id: the id of the environment.
        agent: the name of the env agent, which all of its workers share, for `stop_agent`.
        host, pid: where the process runs; a pid of None is unknown.
        agent_pid: the process that people started: this one, or the supervisor of this worker.
        software: its name and version.
        identity: that of its key, "" without keys.
        name: the policy's name for its key.
        slots, used: how many sessions it takes, and has.
        stuck: ended sessions whose environment is still busy.
        state: "ready", "draining" (it takes no new sessions) or "silent" (not connected).
        direct: the URL for direct connections from other hosts, or None.
    """

    address: str
    env_id: str
    agent: str
    host: str
    pid: int | None
    agent_pid: int | None
    software: str
    identity: str
    name: str
    slots: int
    used: int
    stuck: int
    state: str
    direct: str | None


@dataclass(frozen=True, slots=True)
class ObservedSession:
    """One session.

    Attributes:
        sid: its number, for `stop_session`; `id` is the text that people see.
        address: the address under which it was opened.
        agent, host, pid: the env agent and the process that has its environment.
        learner: the policy's name for the learner's key; None while the learner is away.
        identity: that of the learner's key, "" without keys.
        learner_host, learner_pid: the learner's process; None: away, or unknown.
        state: "opening", "open", or "waiting" for its learner to come back.
        direct: whether its frames bypass the broker; None: unknown.
        age_s: seconds since the broker learned of it.
        frames: relayed, both ways.
        steps: how many steps were executed; None: the env agent has not reported.
        steps_per_s: the rate between the last two reports.
        p50_s, p99_s: percentiles of how long the env agent takes for a step, of the latest ones.
        in_step_s: how long the current step has taken, when that was last reported; None: no step.
    """

    sid: int
    address: str
    agent: str
    host: str
    pid: int | None
    learner: str | None
    identity: str
    learner_host: str | None
    learner_pid: int | None
    state: str
    direct: bool | None
    age_s: float
    frames: int
    steps: int | None
    steps_per_s: float | None
    p50_s: float | None
    p99_s: float | None
    in_step_s: float | None

    @property
    def id(self) -> str:
        """The session's id as people see it."""
        return session_text(self.sid)


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

    It takes no new sessions; those that it has may go on until its `--grace` is over. Returns how
    many processes were reached, and how many sessions they have.

    Args:
        connection: a connection to the broker, whose key needs the right `stop`.
        agent: the name of the env agent, as in `ObservedOffer.agent`.

    Raises Refused if there is no such env agent, or if it cannot be stopped through the broker, and
    otherwise as `stop_session`.
    """
    return _ask(connection, Stop(agent), Stopped)


def watch_session(
    connection: BrokerConnection, sid: int, after: int = 0, timeout_s: float | None = None
) -> Watched:
    """Return the latest frame of a session, of at most ten per second.

    Args:
        connection: a connection to the broker, whose key needs the right `watch`.
        sid: the session.
        after: `Watched.request` of the last frame that was received; an answer without a
            `media_type` says that there is no later one.
        timeout_s: how long to wait, in seconds; the environment may be in a long step.

    Raises Denied without the right `watch`, Refused if the session cannot be watched, and otherwise
    as `observe`.
    """
    found = _ask(connection, Watch(after), Watched, sid=sid, timeout_s=timeout_s, needs=WATCH)
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
        raise DecodingError(f"{who[0].upper()}{who[1:]} sent {type(answer).__name__} instead.")
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
        if type(value) in (int, float) and not 0 <= value < MAX_COUNT:
            raise _malformed(url, f"{name!r} is {value!r:.100}, out of range")
        values[name] = value
    return kind(**values)


def _counts(value: dict[Any, Any]) -> bool:
    return all(
        type(key) is str and type(count) is int and 0 <= count < MAX_COUNT
        for key, count in value.items()
    )


def _malformed(url: str, what: str) -> DecodingError:
    return DecodingError(
        f"The broker at {url} sent a malformed OBSERVED: {what}. This is a fault of the broker."
    )
