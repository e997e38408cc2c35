"""A connection to a broker: socket and clock around the requests and sessions that use it.

Used from one thread, and from the process that made it.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import random
import secrets
import time
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, ClassVar, cast

from gymwire.learner_agent.client.connection_use import AT_EXIT, ConnectionUse
from gymwire.learner_agent.client.direct import DirectLinks
from gymwire.learner_agent.client.failures import error_for, malformed
from gymwire.learner_agent.client.listing import find_all
from gymwire.learner_agent.client.open_sessions import SessionOpener
from gymwire.learner_agent.client.patience import Contact, Patience
from gymwire.learner_agent.client.requests import (
    Answer,
    BrokerRequests,
    Keep,
    PendingRequest,
    ignore,
)
from gymwire.learner_agent.client.session import CLOSE_S, RemoteSession
from gymwire.learner_agent.client.session_timers import Repeats, SessionTimers
from gymwire.learner_agent.client.session_token import SessionToken
from gymwire.learner_agent.client.threads import is_elsewhere, is_ours, threads_in, wait_while
from gymwire.learner_agent.client.waiting import TICK_S, Source, Waiting, wait
from gymwire.protocol import codec, logs
from gymwire.protocol.codec import PLAIN, Header
from gymwire.protocol.errors import (
    BrokerUnreachable,
    DecodingError,
    Denied,
    EnvironmentClosed,
    RequestTimeout,
)
from gymwire.protocol.messages import (
    AGENT_SIZE,
    KINDS,
    Busy,
    BusyReason,
    Bye,
    Code,
    Error,
    Kind,
    Message,
    Role,
    Welcome,
)
from gymwire.protocol.security.keys import KeyPair, credentials
from gymwire.protocol.step_codec import compile_steps
from gymwire.protocol.transport.broker_link import BrokerLink
from gymwire.protocol.transport.dealer import Dealer
from gymwire.protocol.transport.handshake import CONNECT_S, Handshake

SERVE_EVERY_S = 0.01  # the least pause between two calls of `serve` that do something
MAX_DRAINED = 10_000  # frames received in one `drain`
MAX_STEP_CODECS = 64  # kept at the same time
# The broker sends these in answer to what has just reached it. Its own PING, or a PROGRESS, may
# arrive although nothing reaches it.
ANSWERS_AT_ONCE = frozenset((Kind.PONG, Kind.RESUMED, Kind.BUSY))
_OPEN: weakref.WeakSet[BrokerConnection] = weakref.WeakSet()


@atexit.register
def _close_at_exit() -> None:
    """Free the slots of a script that ends without closing its environments.

    Only a daemon thread may still be in a call then, and does not return from it.
    """
    connections = list(_OPEN)
    if connections and is_elsewhere(is_ours):
        for connection in connections:
            connection.use.ended = AT_EXIT
        if not wait_while(lambda: is_elsewhere(is_ours)):
            busy = set(threads_in(is_ours))
            connections = [one for one in connections if one.use.thread() not in busy]
    for connection in connections:
        connection.use.ended = None
        connection.close(goodbye=not connection.keeps_sessions)


class BrokerConnection:
    """A connection to the broker at `url`, ready for requests.

    A subclass may wait in another way: it replaces `waiting`, and the class of its sessions.

    Args:
        url: the broker's URL.
        timeout_s: how long to wait without hearing from the broker, in seconds; at least 0.5.
        wait_s: how many seconds longer to wait for the broker to appear, an address to be offered,
            and a slot to become free.
        key: this learner agent's key file, as `gymwire.protocol.security.keys.credentials` takes
            it.
        broker_key: the broker's public key or its file.
        clock: returns the time in seconds.
        clock_ns: returns the time in nanoseconds.
        dial: makes the ZeroMQ connection.

    Attributes:
        url, timeout_s, clock, clock_ns: the arguments.
        credentials: the keys that it uses.
        closed: whether `close` has begun.
        link: the connection itself, with the local channel.
        direct_links: the connections to env agents, of its sessions.
        rng: the source of the random parts of pauses.
        use: which thread uses it.
        contact: when the broker was last heard.
        broker_lost: whether the connection is down, as far as is known.
        failures: how often a session was lost or got a malformed frame.
        path_changes: how often a session took another path.
        exact_infos: whether infos of vectors are not cast, see `ProxyVectorEnv`.
        keeps_sessions: whether its sessions are kept for another process, which has a token of one.
        compile_steps: makes the codec of a session's steps; those with the same spaces share one.

    Raises:
        BrokerUnreachable: no broker answers.
        Denied: the broker rejects the key.
        VersionMismatch: the broker uses another version of the protocol.
        ConfigurationError: an argument is wrong.
    """

    session_type: ClassVar[type[RemoteSession]] = RemoteSession
    waiting: Waiting = staticmethod(wait)

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 60.0,
        wait_s: float = 0.0,
        key: str | os.PathLike[str] | KeyPair | None = None,
        broker_key: str | os.PathLike[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        dial: Callable[..., Any] = Dealer,
    ) -> None:
        self.url = url
        self.timeout_s = timeout_s
        self.clock = clock
        self.clock_ns = clock_ns
        self.closed = False
        self._said_bye = self._left = False  # which steps of `close` are done
        self.use = ConnectionUse()
        self.exact_infos = False
        self.keeps_sessions = False
        self._pid = os.getpid()
        self._log = logs.logger()
        self.rng = random.Random(secrets.randbits(64))
        self.direct_links = DirectLinks()
        self.failures = self.path_changes = 0  # counted, so that a caller can notice them
        self._sessions: dict[int, RemoteSession] = {}
        # When these do something next, at the earliest:
        self._closed_at = 0.0  # the timers of closed sessions, while others are opened
        self._serve_at = 0.0  # `serve`
        self.compile_steps = lru_cache(MAX_STEP_CODECS)(compile_steps)
        self._opener = SessionOpener(self, wait_s)
        self.broker_lost = False
        self.contact = Contact(timeout_s)
        self._requests = BrokerRequests(self.contact.ping_s, secrets.randbits)
        self._session_timers = SessionTimers(timeout_s, clock)
        self._patience = Patience(self.contact)
        self.credentials = credentials(key, broker_key)
        own, server_key = self.credentials.key, self.credentials.broker_key
        self.link = BrokerLink(dial(url, key=own, server_key=server_key))
        self._handshake = Handshake(self.link, Role.LEARNER, secrets.token_bytes(AGENT_SIZE))
        at_most_s = min(CONNECT_S, timeout_s) + wait_s
        try:
            self._handshake.connect(
                clock,
                at_most_s,
                pump=self.pump,
                done=lambda: self.welcome is not None,
                on_wait=lambda: self._log.info(
                    "waiting for broker", broker=url, at_most_s=at_most_s
                ),
            )
        except BaseException:
            self.link.close()
            raise
        _OPEN.add(self)

    @property
    def welcome(self) -> Welcome | None:
        """The broker's last answer to HELLO."""
        return self._handshake.welcome

    @property
    def is_inherited(self) -> bool:
        """Whether a parent process made the connection, and a fork must leave it alone."""
        return self._pid != os.getpid()

    # --- requests to the broker -------------------------------------------------------------------

    def find(self, address: str = "") -> list[dict[str, Any]]:
        """Return the offers (docs/protocol.md §6), of one address if it is given.

        Raises DecodingError if the broker's list is malformed, and what an ERROR stands for.
        """
        return find_all(address, lambda find: self.ask(find)[1], self.url)

    def open(
        self,
        address: str,
        *,
        render_mode: str | None = None,
        env_kwargs: Mapping[str, Any] | None = None,
        num_envs: int = 0,
        autoreset_mode: str = "",
        direct: str = "auto",
    ) -> RemoteSession:
        """Open one session. As `open_all`; `num_envs`: 0 for a single environment."""
        (session,) = self.open_all(
            address,
            [num_envs],
            render_mode=render_mode,
            env_kwargs=env_kwargs,
            autoreset_mode=autoreset_mode,
            direct=direct,
        )
        return session

    def open_all(  # noqa: PLR0913 - these are the fields of OPEN
        self,
        address: str,
        num_envs: Sequence[int],
        *,
        render_mode: str | None = None,
        env_kwargs: Mapping[str, Any] | None = None,
        autoreset_mode: str = "",
        direct: str = "auto",
        wait_s: float | None = None,
        timeout_s: float | None = None,
        kind: str = "",
    ) -> list[RemoteSession]:
        """Open several sessions at the same time, and return them in order; all or none.

        When one cannot be opened, or this call is interrupted, the others are closed, including
        those that an env agent opens only later.

        Args:
            address: the offer's address.
            num_envs: for each session how many environments it has, 0 for a single one.
            render_mode, env_kwargs: for the constructor of the environments.
            autoreset_mode: of a vector.
            direct: "auto" connects directly where the env agent offers that and can be reached;
                "never" relays; "always" raises ConnectionFailed where the agent cannot be reached.
            wait_s: replaces the connection's.
            timeout_s: how long an env agent may take to open a session, in seconds; None: as long
                as it takes.
            kind: the kind of environment, see `EnvKind`.

        Raises:
            RequestTimeout: after `timeout_s`.
            OfferError: the address or a slot is not available.
            EnvironmentFailed: an environment cannot be made.
            ConnectionFailed, BrokerUnreachable, VersionMismatch, Denied, ConfigurationError.
        """
        return self._opener.open_all(
            address,
            num_envs,
            render_mode=render_mode,
            env_kwargs=env_kwargs,
            autoreset_mode=autoreset_mode,
            direct=direct,
            wait_s=wait_s,
            timeout_s=timeout_s,
            kind=kind,
        )

    def resume(self, token: SessionToken) -> RemoteSession:
        """Continue a session of a process that has ended, after its request `token.seq`.

        The env agent may have executed the next request already: the same request again gets the
        same reply.

        Raises:
            EnvironmentLost: the session is lost.
            Denied: another process uses it, or the agent is not the pinned one.
            MoveError: the session has gone further than one request.
        """
        return self._opener.resume(token)

    def ask(self, message: Message, sid: int = 0, timeout_s: float | None = None) -> Answer:
        """Send a request to the broker, wait for the answer, and return it.

        An env agent answers OPEN. `timeout_s`: how long to wait, in seconds; None: the connection's
        `timeout_s`. After it, raises BrokerUnreachable if the broker has been silent for the
        connection's `timeout_s`, else RequestTimeout.
        """
        request = self.send_request(message, sid)
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        try:
            if self.wait_first({request.seq: request}, self.clock() + timeout_s) is None:
                is_running = self._patience.has_heard()
                if not is_running and timeout_s >= self.timeout_s:
                    raise self._silent_broker()
                raise RequestTimeout(
                    f"The {KINDS[type(message)].name} to the broker at {self.url} got no answer "
                    f"within {timeout_s:g} s{', although it is running' if is_running else ''}. "
                    f"Try again."
                )
        finally:
            self.forget_requests(request)
        assert request.answer is not None
        return request.answer

    def check_open(self) -> None:
        """Raise EnvironmentClosed if this connection has been closed."""
        if self.closed:
            raise self.link.closed_error()

    def send_request(self, message: Message, sid: int = 0, keep: Keep = ignore) -> PendingRequest:
        """Send a request to the broker without waiting; `forget_requests` ends it.

        `keep` gets the request before it is sent: an exception after that would lose it.
        """
        self.check_open()
        request = self._requests.add(message, sid, self.clock(), keep)
        self.link.send(request.frame)
        return request

    def forget_requests(self, *requests: PendingRequest) -> None:
        """Drop requests, answered or not."""
        self._requests.forget(requests)

    def wait_first(
        self, pending: Mapping[int, PendingRequest], deadline: float | None = None
    ) -> int | None:
        """Wait until a request is answered, and return its number; None after the deadline.

        Args:
            pending: the requests by their numbers.
            deadline: a reading of `clock`, in seconds; None: wait without limit.

        Raises DecodingError if the answer is malformed.
        """
        now = self.clock()
        self._patience.begin(now)
        if now >= self._closed_at:
            self._closed_at = now + TICK_S
            repeats = Repeats()
            for session in [one for one in self._sessions.values() if one.closed]:
                session.tick(now, repeats)  # frames may arrive without a pause in which timers run
        first_answered = partial(self._requests.first_answered, pending)
        self.wait(lambda: first_answered() is not None, deadline)
        return first_answered()

    # --- waiting ----------------------------------------------------------------------------------

    @property
    def path(self) -> BrokerLink:
        """The link to the broker, as a source of frames."""
        return self.link

    def wait(
        self,
        until: Callable[[], bool],
        deadline: float | None = None,
        sources: Iterable[Source] = (),
    ) -> bool:
        """Receive frames and run all timers until a condition holds.

        Args:
            until: the condition; whatever it raises ends the waiting.
            deadline: a reading of `clock`, in seconds; None: wait without limit.
            sources: sessions from whose paths to receive; default: the link to the broker.

        Returns False if the deadline comes first. Raises BrokerUnreachable, Denied.
        """
        self._handshake.begin_call()
        own, clock, pause = sources or (self,), self.clock, self.contact.ping_s
        timers = partial(self.tick, awaited=sources)
        return self.waiting(
            until, deadline, sources=own, run_timers=timers, clock=clock, longest_pause_s=pause
        )

    def pump(self) -> bool:
        """Receive one frame from the broker, within a tick; return whether one arrived."""
        data = self.link.receive()
        if data is None:
            return False
        self.receive_frame(data)
        return True

    def serve(self, now: float) -> None:
        """Check the link, and receive what has arrived, while requests take other paths.

        Many sessions that send at the same time need that once.
        """
        if now >= self._serve_at:
            self._serve_at = now + SERVE_EVERY_S
            self.check_link(now)
            self.drain()

    def drain(self) -> None:
        """Receive what has arrived from the broker, without waiting: `MAX_DRAINED` frames at most.

        A broker that sends without a pause must not hold the caller up.
        """
        for _ in range(MAX_DRAINED):
            if not self.link.poll():
                return
            self.pump()

    # --- frames -----------------------------------------------------------------------------------

    def receive_frame(self, data: bytes | memoryview) -> bool:
        """Handle a frame from the broker; return whether it answers a request."""
        header = codec.read_header(data)
        if header.kind in ANSWERS_AT_ONCE:
            self.contact.last = self.clock()
        try:
            session = self._sessions.get(header.sid)
            if session is not None:
                return session.receive(header, data)
            return self._receive_from_broker(header, data)
        except DecodingError as error:
            unreadable = malformed(error, f"The broker at {self.url}", header)
            if not self._requests.fail(header, unreadable):
                raise unreadable from None
            return True

    def _receive_from_broker(self, header: Header, data: bytes | memoryview) -> bool:
        """Handle a frame that belongs to no open session, as `receive_frame` does."""
        if self._requests.receive(header, data):
            return True
        if self._opener.receive(header, data):
            return False
        match header.kind:
            case Kind.WELCOME | Kind.BUSY:
                reply = PLAIN.decode(data, header)
                if isinstance(reply, Busy) and reply.reason == BusyReason.RATE:
                    self._requests.throttled(header.seq, reply.retry_after_s, self.clock())
                self._handshake.handle(reply, self.clock())
            case Kind.ERROR if self.welcome is None or _is_revocation(header, data):
                error = self._handshake.refuse(error_for(cast(Error, PLAIN.decode(data, header))))
                # Whoever waits for a session gets its loss, which the broker has sent before.
                if self.welcome is None or self._requests.is_waiting:
                    raise error
            case Kind.BYE:
                self._log.warning("broker stopping", broker=self.url)
            case _:
                self.log_dropped(header)
        return False

    def log_dropped(self, header: Header) -> None:
        """Log that a message answers no request: it is late, repeated, or has a wrong number."""
        self._log.debug(
            "message dropped", kind=header.kind.name, session=header.sid, number=header.seq
        )

    # --- timers and the connection ----------------------------------------------------------------

    def tick(self, now: float, awaited: Iterable[object] = ()) -> None:
        """Run all timers: check the link, and send again what is due.

        `awaited`: the sessions whose replies the caller waits for; a failure of another one does
        not concern it.

        Raises BrokerUnreachable if the broker has been silent for too long, Denied, and
        EnvironmentClosed if the connection is closed meanwhile.
        """
        self.contact.watch(now)
        self.check_link(now)
        if self.direct_links.check():
            self.drain()
        self._session_timers.run(self._sessions.values(), now, awaited)
        if self._requests.send_due(now, self.link.send):
            self._patience.sent_again(now)
        if self._patience.is_over(now) and self._requests.is_waiting:
            raise self._silent_broker()
        self.contact.watched_at = self.clock()  # slow timers do not count as a pause

    def _silent_broker(self) -> BrokerUnreachable:
        lost_again = self._patience.lost_again(f"a request to {self.url}", self._requests.largest)
        if lost_again is not None:
            return BrokerUnreachable(lost_again, advice="Check the MTU along the path.")
        return BrokerUnreachable(
            f"The broker at {self.url} has been silent for {self.timeout_s:g} s: it has stopped, "
            f"or cannot be reached."
        )

    def check_link(self, now: float) -> None:
        """Handle lost and new connections; over a new one, send HELLO and everything pending.

        Raises EnvironmentClosed if the connection is closed meanwhile.
        """
        self.use.check()
        self.check_open()  # a signal handler may have closed it
        is_new = False
        try:
            events = self._handshake.watch(now)
        except Denied:
            failures, events = self.failures, []
            self.drain()  # before it ended the connection, the broker may have said why
            if self.failures == failures:
                raise
        for event in events:
            if event.up:
                is_new = True
                if self.broker_lost:
                    self._log.warning("broker reconnected", broker=self.url)
                self.broker_lost = False
            elif not self.broker_lost:
                self.broker_lost = True
                direct = sum(one.is_direct for one in self._sessions.values())
                facts = {"broker": self.url, "at_most_s": self.timeout_s}
                if 0 < direct == len(self._sessions):
                    self._log.warning("broker lost, direct sessions go on", **facts)
                else:
                    self._log.warning("broker lost, waiting for it", **facts)
        if is_new:
            self._patience.reconnected(now)
            self._requests.reconnected(now)
            for session in list(self._sessions.values()):
                session.exchange.reconnected(now)

    def send_hello(self) -> None:
        """Send HELLO."""
        self._handshake.send_hello(self.clock())

    # --- sessions and the end ---------------------------------------------------------------------

    def add(self, session: RemoteSession) -> None:
        """Direct the frames of a session to it from now on."""
        self._sessions[session.sid] = session

    @property
    def sids(self) -> frozenset[int]:
        """The numbers of the sessions that use the connection."""
        return frozenset(self._sessions)

    def close_others(self, sids: Collection[int]) -> None:
        """Close the sessions that nobody uses, because an exception has interrupted their caller.

        `sids`: the numbers of the sessions that stay open.
        """
        for session in list(self._sessions.values()):
            if session.sid not in sids:
                session.close(wait=False)

    def close_given_up(self) -> None:
        """Wait briefly for the sessions whose opening was interrupted: they are closed then."""
        self.wait(lambda: not self._opener.has_given_up, self.clock() + CLOSE_S)

    def has_session(self, sid: int) -> bool:
        """Return whether a session with this number uses the connection."""
        return sid in self._sessions

    def forget(self, session: RemoteSession) -> None:
        """Remove a session that has ended."""
        self._sessions.pop(session.sid, None)

    def close(self, *, goodbye: bool = True) -> None:
        """Leave the broker, which ends the sessions that are still open. Idempotent.

        Without `goodbye` the sessions wait for the broker's lease, and can be resumed.
        """
        if self.is_inherited or self._left:
            return  # after a fork the sockets belong to the parent
        self.closed = True
        for session in self._sessions.values():
            session.paths.close_direct()
        self._sessions.clear()
        if goodbye and not self._said_bye:
            with contextlib.suppress(EnvironmentClosed):  # a signal handler has closed it meanwhile
                self.link.send_last(PLAIN.encode(Bye("done")))
            self._said_bye = True
        self.link.close(linger_s=0.5)
        _OPEN.discard(self)
        self._left = True  # last: after an interrupt, the next call goes on


def _is_revocation(header: Header, data: bytes | memoryview) -> bool:
    """Return whether this ERROR says that the key was removed from the broker's policy."""
    message = PLAIN.decode(data, header) if header.sid == header.seq == 0 else None
    return isinstance(message, Error) and message.code == Code.DENIED
