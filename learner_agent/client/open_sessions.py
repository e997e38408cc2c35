"""The opening of sessions on a broker connection, and the resuming of them."""

from __future__ import annotations

import math
import secrets
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from gymwire.learner_agent.client.direct import connect_directly
from gymwire.learner_agent.client.failures import error_for
from gymwire.learner_agent.client.requests import PendingRequest
from gymwire.learner_agent.client.session import RemoteSession
from gymwire.learner_agent.client.session_token import SessionToken
from gymwire.protocol import logs
from gymwire.protocol.address import parse_address
from gymwire.protocol.capabilities import CAPABILITIES, KINDS, common, require
from gymwire.protocol.codec import PLAIN, Header
from gymwire.protocol.errors import (
    BrokerUnreachable,
    ConfigurationError,
    DecodingError,
    Denied,
    EnvironmentLost,
    GymwireError,
    ProtocolError,
    RequestTimeout,
)
from gymwire.protocol.messages import (
    MULTI_AGENT,
    NONCE_SIZE,
    Call,
    Close,
    Code,
    Error,
    Kind,
    Message,
    Open,
    Opened,
    Resume,
)
from gymwire.protocol.security.keys import identity
from gymwire.protocol.security.signing import Challenge, Signer
from gymwire.protocol.transport.handshake import software

if TYPE_CHECKING:
    from gymwire.learner_agent.client.connection import BrokerConnection

RETRY_S = 0.1  # the first pause before a session is requested again; each later one is longer
RETRY_MAX_S = 1.0  # the longest of these pauses
QUIET_S = 3.0  # how long a session may wait for a slot before a log event says why
# OPENs without an answer: fewer than a broker may refuse for a moment without cutting us off.
MAX_OPENING = 256
# With at least this many sessions, the local channel is opened first, which halves the time.
MANY_OPENINGS = 16
PROBE_SEQ = 2**62  # a request number that is never next
PROBE_S = 0.1  # the pause between two probes
IN_USE_S = 3.0  # how long resume waits for the broker to notice that the other process has ended

_MAY_CHANGE = (Code.ADDRESS_UNKNOWN, Code.NO_FREE_SLOT)


class _Opening(NamedTuple):
    """An OPEN, and what it takes to check the agent's answer."""

    open_msg: Open
    pin: str | None
    challenge: Challenge | None

    def signer(self, header: Header, opened: Opened, data: bytes | memoryview) -> Signer | None:
        """Return the keys of a signed session; None: the address pins no agent.

        Raises Denied if the answer is not the pinned agent's.
        """
        if self.pin is None or self.challenge is None:
            return None
        nonce = self.open_msg.nonce
        return self.challenge.signer(self.pin, opened.key, nonce, header.sid, data)


@dataclass(slots=True)
class _Batch:
    """Sessions that are opened together, by their places in the batch.

    Attributes:
        openings: what is requested.
        timeout_s: how long an env agent may take to open one, in seconds.
        opened: those that are open.
        pending: the requests by their numbers, the oldest first.
        places: their places in the batch.
        deadlines: when they have taken too long, as readings of the connection's clock.
    """

    openings: Sequence[_Opening]
    timeout_s: float | None
    opened: dict[int, RemoteSession] = field(default_factory=dict)
    pending: dict[int, PendingRequest] = field(default_factory=dict)
    places: dict[int, int] = field(default_factory=dict)
    deadlines: dict[int, float] = field(default_factory=dict)

    def send(self, i: int, connection: BrokerConnection) -> None:
        """Request a session."""

        def keep(request: PendingRequest) -> None:
            self.places[request.seq] = i
            if self.timeout_s is not None:
                self.deadlines[request.seq] = connection.clock() + self.timeout_s
            self.pending[request.seq] = request

        connection.send_request(self.openings[i].open_msg, keep=keep)

    @property
    def is_complete(self) -> bool:
        return len(self.opened) == len(self.openings)


class SessionOpener:
    """Opens and resumes sessions on one connection.

    It also closes the sessions that an env agent opens after their caller has given up.
    """

    def __init__(self, connection: BrokerConnection, wait_s: float) -> None:
        self._connection = connection
        self._wait_s = wait_s
        self._given_up: dict[int, _Opening] = {}  # request number → what it may still open
        self._log = logs.logger()

    def open_all(  # noqa: PLR0913 - these are the fields of OPEN
        self,
        address: str,
        num_envs: Sequence[int],
        *,
        render_mode: str | None,
        env_kwargs: Mapping[str, Any] | None,
        autoreset_mode: str,
        direct: str,
        wait_s: float | None,
        timeout_s: float | None,
        kind: str = "",
    ) -> list[RemoteSession]:
        """Open sessions at the same time; see `BrokerConnection.open_all`."""
        kind = self._checked_kind(kind)
        if direct not in ("auto", "never", "always"):
            raise ConfigurationError(f'direct must be "auto", "never" or "always", not {direct!r}.')
        pin = parse_address(address).identity
        kwargs = dict(env_kwargs or {})
        openings: list[_Opening] = []
        for count in num_envs:
            challenge = None if pin is None else Challenge()
            open_msg = Open(
                address,
                secrets.token_bytes(NONCE_SIZE),
                render_mode,
                kwargs,
                count,
                autoreset_mode,
                direct != "never",
                challenge=b"" if challenge is None else challenge.public,
                capabilities=list(CAPABILITIES),
                kind=kind,
            )
            openings.append(_Opening(open_msg, pin, challenge))
        batch = _Batch(openings, timeout_s)
        if len(openings) >= MANY_OPENINGS:  # fewer do so with their first RESET, if they need it
            self._connection.link.open_local_channel()
        try:
            self._complete(batch, self._wait_s if wait_s is None else wait_s)
            sessions = [batch.opened[i] for i in range(len(openings))]
            if direct != "never":
                connect_directly(sessions, required=direct == "always")
            return sessions
        except BaseException as error:
            is_interrupted = not isinstance(error, GymwireError)
            for number, request in batch.pending.items():
                self._give_up(openings[batch.places[number]], request, may_be_lost=is_interrupted)
            for session in batch.opened.values():
                session.close(wait=False)
            raise

    def _checked_kind(self, kind: str) -> str:
        """Return the kind of environment to name in OPEN. Raises VersionMismatch."""
        welcome = self._connection.welcome
        have = common([] if welcome is None else welcome.capabilities)
        if kind in MULTI_AGENT:
            require(
                KINDS,
                have,
                who=f"the broker at {self._connection.url}",
                theirs="" if welcome is None else welcome.software,
                ours=software(),
            )
        return kind if KINDS in have else ""

    def _complete(self, batch: _Batch, wait_s: float) -> None:
        """Open all sessions of a batch, and wait for slots for at most `wait_s` seconds."""
        connection = self._connection
        began = connection.clock()
        pause_s, is_logged = RETRY_S, False
        while True:
            waiting = deque(i for i in range(len(batch.openings)) if i not in batch.opened)
            while batch.pending or waiting:
                while waiting and len(batch.pending) < MAX_OPENING:
                    batch.send(waiting.popleft(), connection)
                error = self._receive_next(batch)
                if error is None:
                    continue
                waiting.clear()  # they would be refused, too
                waited_s = connection.clock() - began
                if error.code not in _MAY_CHANGE or waited_s > wait_s:
                    raise error_for(error)
                if waited_s > QUIET_S and not is_logged:
                    is_logged = True
                    is_unknown = error.code == Code.ADDRESS_UNKNOWN
                    what = "an env agent" if is_unknown else "a slot"
                    self._log.info(f"waiting for {what}", at_most_s=wait_s, why=error.text)
            if batch.is_complete:
                return
            connection.wait(lambda: False, connection.clock() + pause_s)
            pause_s = min(pause_s * 1.5, RETRY_MAX_S)

    def _receive_next(self, batch: _Batch) -> Error | None:
        """Wait for the next answer to a batch; return it if it is an ERROR."""
        connection = self._connection
        deadline = batch.deadlines.get(next(iter(batch.pending)))
        number = connection.wait_first(batch.pending, deadline)
        if number is None:
            raise RequestTimeout(
                f"No env agent has opened a session at {batch.openings[0].open_msg.address!r} "
                f"within {batch.timeout_s:g} s. If the environment's constructor takes longer, "
                f"raise step_timeout_s. If the env agent runs with --threads, the only free slots "
                f"may be in threads that are executing steps of other sessions. See the log of the "
                f"env agent."
            )
        i, request = batch.places[number], batch.pending[number]
        opening = batch.openings[i]
        assert request.answer is not None
        header, answer, data = request.answer
        if isinstance(answer, Opened):
            if not header.sid:
                raise ProtocolError(
                    f"The broker at {connection.url} sent OPENED of no session (sid 0). This is a "
                    f"fault of the broker."
                )
            signer = opening.signer(header, answer, data)
            batch.opened[i] = self._opened(header, opening.open_msg, answer, signer)
        del batch.pending[number]
        connection.forget_requests(request)
        if not isinstance(answer, Error):
            return None
        if answer.code == Code.NO_FREE_SLOT and len(batch.openings) > 1:
            return self._refused_together(batch, answer)
        return answer

    def _refused_together(self, batch: _Batch, refusal: Error) -> Error:
        """Return a NO_FREE_SLOT error that names how many sessions are needed at the same time."""
        slots = refusal.details.get("slots")
        # Those of this connection that are open already belong to the same vector.
        count = len(self._connection.sids) + len(batch.openings) - len(batch.opened)
        together, where = len(batch.openings), batch.openings[0].open_msg.address
        if type(slots) is not int or slots <= 0:
            text = f"{together} sessions are requested together. {refusal.text}"
            return replace(refusal, text=text)
        if slots >= count:
            text = (
                f"{together} sessions are requested together, but fewer than {together} of the "
                f"{slots} slots of {where!r} are free; other sessions, or their abandoned "
                f"requests, use the rest. Wait until these end, start another env agent for this "
                f"address, or use fewer sessions."
            )
            return replace(refusal, text=text)
        text = (
            f"{count} sessions are needed at the same time, but {where!r} has only {slots} "
            f"{'slot' if slots == 1 else 'slots'}. Start its env agent with a larger "
            f"--max-sessions, start further env agents for this address, or use fewer sessions. "
            f"Waiting helps only if further env agents start."
        )
        return replace(refusal, text=text)

    def _opened(
        self, header: Header, open_msg: Open, opened: Opened, signer: Signer | None
    ) -> RemoteSession:
        connection = self._connection
        try:
            session = connection.session_type(connection, header.sid, open_msg, opened, signer)
        except GymwireError:  # for example, an unknown kind of space: the slot must not stay in use
            close = PLAIN.encode(Close(), header.sid, 1)
            connection.link.send(close if signer is None else signer.sign(close))
            raise
        connection.add(session)
        return session

    # --- sessions that nobody waits for anymore ---------------------------------------------------

    def _give_up(self, opening: _Opening, request: PendingRequest, *, may_be_lost: bool) -> None:
        """Stop waiting for a session, which may be open already, or be opened later.

        `may_be_lost`: whether an exception may have come while the answer was received. The
        request is sent again then, and its answer closes the session.
        """
        self._connection.forget_requests(request)
        if request.error is not None and request.answer is None:
            return  # the answer has come, and cannot be read
        self._given_up[request.seq] = opening
        if request.answer is not None:
            self._close_unwanted(*request.answer)
        elif may_be_lost:
            self._connection.link.send(request.frame)

    def receive(self, header: Header, data: bytes | memoryview) -> bool:
        """Handle an answer to an OPEN that was given up; return whether the frame is one."""
        if header.seq not in self._given_up or header.kind not in (Kind.OPENED, Kind.ERROR):
            return False
        try:
            answer = PLAIN.decode(data, header)
        except DecodingError as error:  # nobody waits for it
            del self._given_up[header.seq]
            self._log.debug("unwanted session not closed", why=str(error))
        else:
            self._close_unwanted(header, answer, data)
        return True

    @property
    def has_given_up(self) -> bool:
        """Whether an env agent may still open a session that nobody waits for."""
        return bool(self._given_up)

    def _close_unwanted(self, header: Header, answer: Message, data: bytes | memoryview) -> None:
        opening = self._given_up.pop(header.seq)
        sid = header.sid
        if isinstance(answer, Opened) and sid and not self._connection.has_session(sid):
            try:
                signer = opening.signer(header, answer, data)
                self._opened(header, opening.open_msg, answer, signer).close(wait=False)
            except GymwireError as error:
                self._log.debug("unwanted session not closed", why=str(error))

    # --- resuming ---------------------------------------------------------------------------------

    def resume(self, token: SessionToken) -> RemoteSession:
        """Continue a session of a process that has ended; see `BrokerConnection.resume`."""
        connection = self._connection
        deadline = connection.clock() + IN_USE_S
        while True:
            _, resumed, _ = connection.ask(Resume(token.nonce), token.sid)
            if not isinstance(resumed, Error):
                break
            # The broker may not have noticed yet that the other process has ended.
            if resumed.code != Code.DENIED or connection.clock() > deadline:
                raise error_for(resumed)
            connection.wait(lambda: False, connection.clock() + RETRY_S)
        limit_s = token.kwargs.get("step_timeout_s")  # the agent may be in a step
        timeout_s = math.inf if limit_s is None else limit_s
        header, opened, data = connection.ask(token.open_msg, timeout_s=timeout_s)
        if isinstance(opened, Error) and opened.code == Code.DENIED:
            raise error_for(opened)
        if not isinstance(opened, Opened) or header.sid != token.sid:
            raise EnvironmentLost(
                "The session is lost: its env agent does not know it anymore. Open a new one."
            )
        _check_pinned(token, opened, data)
        session = self._opened(header, token.open_msg, opened, token.signer)
        session.exchange.restore_position(token.seq, token.state)
        query_position(session)
        if token.open_msg.direct:
            connect_directly([session], required=False)
        return session


def _check_pinned(token: SessionToken, opened: Opened, data: bytes | memoryview) -> None:
    """Raise Denied unless OPENED comes from the agent that the address pins, if it pins one.

    That agent signs the frame with the session's key, and names its own key in it.
    """
    pin, signer = parse_address(token.kwargs["address"]).identity, token.signer
    if pin is None and signer is None:
        return
    try:
        if signer is not None and pin == identity(opened.key):
            signer.verify(data)
            return
    except DecodingError:
        pass
    raise Denied(
        f"The session at {token.open_msg.address!r} is not resumed: its agent is not the pinned "
        f"one, or cannot prove it, or the token belongs to another session."
    )


def query_position(session: RemoteSession) -> None:
    """Ask the agent which request it expects, after a resume.

    Raises:
        BrokerUnreachable: no answer within the connection's `timeout_s`.
        MoveError: the agent has executed more than the request after the last one.
    """
    connection, exchange = session.connection, session.exchange
    deadline = connection.clock() + connection.timeout_s
    probe = PLAIN.encode(Call("get", ""), session.sid, PROBE_SEQ)
    while exchange.expected is None:
        if connection.clock() > deadline:
            raise BrokerUnreachable(
                f"The env agent at {session.open_msg.address!r} has not answered within "
                f"{connection.timeout_s:g} s. Resume the session again, or open a new one."
            )
        connection.link.send(probe)
        connection.wait(
            lambda: exchange.expected is not None or exchange.check_ready(),
            connection.clock() + PROBE_S,
        )
    exchange.check_position()
