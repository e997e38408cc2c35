"""Socket and clock around exchanges: a connection to a broker, and the sessions on it.

Used from one thread, and from the process that made it.
"""

from __future__ import annotations

import atexit
import os
import random
import secrets
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from gymwire.learner_agent.client.failures import error_for
from gymwire.learner_agent.client.requests import Answer, Asking, Question
from gymwire.learner_agent.client.session import RemoteSession, go_direct
from gymwire.learner_agent.client.session_token import SessionToken
from gymwire.protocol import codec, logs
from gymwire.protocol.address import parse_address
from gymwire.protocol.codec import PLAIN, Header
from gymwire.protocol.errors import (
    BrokerUnreachable,
    ConfigurationError,
    DecodingError,
    Denied,
    EnvironmentLost,
    GymwireError,
)
from gymwire.protocol.messages import (
    Bye,
    Close,
    Code,
    Error,
    Find,
    Found,
    Kind,
    Message,
    Open,
    Opened,
    Ping,
    Resume,
    Role,
    Welcome,
)
from gymwire.protocol.security.keys import credentials, identity
from gymwire.protocol.security.signing import Challenge, Signer
from gymwire.protocol.transport.broker_link import BrokerLink
from gymwire.protocol.transport.dealer import Dealer
from gymwire.protocol.transport.handshake import Handshake

CONNECT_S = 2.5  # how long a broker may take to answer at first
AGAIN_S = 0.1  # the first pause before a session is asked for again; each is longer, up to
AGAIN_MAX_S = 1.0
SILENT_S = 3.0  # what keeps a session from being opened is told after so long
IN_USE_S = 3.0  # how long resume waits for the broker to miss the process before

_MAY_CHANGE = (Code.ADDRESS_UNKNOWN, Code.NO_FREE_SLOT)


class _Opening(NamedTuple):
    """An OPEN, and what it takes to check the agent's answer."""

    wish: Open
    pin: str | None
    challenge: Challenge | None

    def signer(self, header: Header, opened: Opened, data: bytes | memoryview) -> Signer | None:
        """The signer of the session that OPENED begins. Raises Denied if it is not the pinned's."""
        if self.pin is None or self.challenge is None:
            return None
        return self.challenge.signer(self.pin, opened.key, self.wish.nonce, header.sid, data)


_OPEN: weakref.WeakSet[Channel] = weakref.WeakSet()


@atexit.register
def _leave_at_exit() -> None:
    """A script that ends without closing its environments frees their slots all the same."""
    for channel in list(_OPEN):
        # Another thread may be using its own still.
        if channel._thread == threading.get_ident():
            channel.close(goodbye=not channel.keeps_sessions)


class Channel:
    """A connection to the broker at `url`, introduced and ready.

    `timeout_s`: the longest silence of the broker that is tolerated while something is asked of
    it. `wait_s`: how much longer a broker may take to appear, an address to be offered, and a slot
    to become free.
    `key`, `broker_key`: this agent's key file and the broker's public key, as
    `gymwire.protocol.security.keys.credentials` takes them.
    Raises BrokerUnreachable, Denied, VersionMismatch, ConfigurationError.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 60.0,
        wait_s: float = 0.0,
        key: str | os.PathLike[str] | None = None,
        broker_key: str | os.PathLike[str] | None = None,
    ) -> None:
        if not timeout_s > 0:
            raise ConfigurationError(f"timeout_s must be a positive number, not {timeout_s!r}.")
        self.url = url
        self.timeout_s = timeout_s
        self._wait_s = wait_s
        self._pid = os.getpid()
        self._log = logs.logger()
        self.closed = False
        self.keeps_sessions = False  # for another process, which has a token of one of them
        self._thread = threading.get_ident()
        self._rng = random.Random(secrets.randbits(64))
        self._sessions: dict[int, RemoteSession] = {}
        self._asking = Asking()
        self._unwanted: dict[int, _Opening] = {}  # nobody waits any more for what they open
        self._broker_away = False
        self._heard = 0.0
        self.credentials = credentials(key, broker_key)
        own, server_key = self.credentials.key, self.credentials.broker_key
        self.dealer = BrokerLink(Dealer(url, key=own, server_key=server_key))
        self._handshake = Handshake(self.dealer, Role.LEARNER, secrets.token_bytes(16))
        try:
            self._handshake.connect(
                time.monotonic,
                min(CONNECT_S, timeout_s) + wait_s,
                pump=self.pump,
                done=lambda: self.welcome is not None,
            )
        except BaseException:
            self.dealer.close()
            raise
        _OPEN.add(self)

    @property
    def welcome(self) -> Welcome | None:
        """The broker's last answer to HELLO."""
        return self._handshake.welcome

    @property
    def foreign(self) -> bool:
        """Whether this is another process than the one that made the channel (after a fork)."""
        return self._pid != os.getpid()

    # --- requests to the broker -------------------------------------------------------------------

    def find(self, address: str = "") -> list[dict[str, Any]]:
        """What is on offer (docs/protocol.md §6); `address`: only there."""
        _, found, _ = self._ask(Find(address))
        assert isinstance(found, Found)
        return found.offers

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
        """Open a session. Raises OfferError, EnvironmentFailed, and what a connection may raise.

        `direct`: "auto" goes past the broker where the agent allows it and can be reached, "never"
        does not, "always" raises ConnectionFailed where it cannot.
        """
        (session,) = self.open_all(
            address,
            [num_envs],
            render_mode=render_mode,
            env_kwargs=env_kwargs,
            autoreset_mode=autoreset_mode,
            direct=direct,
        )
        return session

    def open_all(
        self,
        address: str,
        num_envs: Sequence[int],
        *,
        render_mode: str | None = None,
        env_kwargs: Mapping[str, Any] | None = None,
        autoreset_mode: str = "",
        direct: str = "auto",
        wait_s: float | None = None,
    ) -> list[RemoteSession]:
        """Open sessions at the same time, each for so many environments; in their order.

        All or none: when one cannot be opened, or this is interrupted, the others are closed, those
        too that are opened only later. `wait_s`: in the place of the channel's. Raises what `open`
        raises.
        """
        if direct not in ("auto", "never", "always"):
            raise ConfigurationError(f'direct must be "auto", "never" or "always", not {direct!r}.')
        pin = parse_address(address).identity
        kwargs = dict(env_kwargs or {})
        openings: list[_Opening] = []
        for count in num_envs:
            challenge = None if pin is None else Challenge()
            public = b"" if challenge is None else challenge.public
            nonce, past = secrets.token_bytes(16), direct != "never"
            wish = Open(
                address, nonce, render_mode, kwargs, count, autoreset_mode, past, challenge=public
            )
            openings.append(_Opening(wish, pin, challenge))
        opened: dict[int, RemoteSession] = {}
        asked: dict[int, Question] = {}
        try:
            self._open_all(openings, opened, asked, self._wait_s if wait_s is None else wait_s)
            sessions = [opened[i] for i in range(len(openings))]
            if direct != "never":
                go_direct(sessions, required=direct == "always")
            return sessions
        except BaseException:
            for i, question in asked.items():
                self._give_up(openings[i], question)
            for session in opened.values():
                session.close(wait=False)
            raise

    def _open_all(
        self,
        openings: Sequence[_Opening],
        opened: dict[int, RemoteSession],
        asked: dict[int, Question],
        wait_s: float,
    ) -> None:
        """Fill `opened`; what is under way is in `asked` meanwhile."""
        began = time.monotonic()
        pause_s, told = AGAIN_S, False
        while len(opened) < len(openings):
            for i, opening in enumerate(openings):
                if i not in opened:
                    asked[i] = self._ask_for(opening.wish)
            while asked:
                i = self._first_answered(asked)
                header, answer, data = _answer(asked[i])
                if isinstance(answer, Opened):
                    opening = openings[i]
                    signer = opening.signer(header, answer, data)
                    opened[i] = self._opened(header, opening.wish, answer, signer)
                self._asking.forget([asked.pop(i)])
                if isinstance(answer, Error):
                    if answer.code == Code.NO_FREE_SLOT and len(openings) > 1:
                        text = f"{len(openings)} sessions are wanted at once. {answer.text}"
                        answer = replace(answer, text=text)
                    waited_s = time.monotonic() - began
                    if answer.code not in _MAY_CHANGE or waited_s > wait_s:
                        raise error_for(answer)
                    if waited_s > SILENT_S and not told:
                        told = True
                        self._log.info("waiting", at_most_s=wait_s, why=answer.text)
            if len(opened) < len(openings):
                self.dealer.poll(pause_s)
                pause_s = min(pause_s * 1.5, AGAIN_MAX_S)

    def _give_up(self, opening: _Opening, question: Question) -> None:
        """Nobody waits any more for a session that may be opened, now or later."""
        self._asking.forget([question])
        self._unwanted[question.seq] = opening
        if question.answer is not None:
            self._turn_away(*question.answer)

    def _turn_away(self, header: Header, answer: Message, data: bytes | memoryview) -> None:
        """Close a session that nobody waits for any more, so that it holds no slot."""
        opening = self._unwanted.pop(header.seq)
        if isinstance(answer, Opened) and header.sid not in self._sessions:
            try:
                signer = opening.signer(header, answer, data)
                self._opened(header, opening.wish, answer, signer).close(wait=False)
            except GymwireError as error:
                self._log.debug("an unwanted session was not closed", why=str(error))

    def resume(self, token: SessionToken) -> RemoteSession:
        """Go on with a session of a process that has ended, after request `token.seq` of it.

        The request after it may have been executed already: sent again, the same, it gets the
        answer that it had. Raises EnvironmentLost, Denied, and MoveError if the session has gone
        further than that.
        """
        deadline = time.monotonic() + IN_USE_S
        while True:
            _, resumed, _ = self._ask(Resume(token.nonce), token.sid)
            if not isinstance(resumed, Error):
                break
            # The broker may not have noticed yet that the other process has ended.
            if resumed.code != Code.DENIED or time.monotonic() > deadline:
                raise error_for(resumed)
            self.dealer.poll(0.1)
        header, opened, data = self._ask(token.wish)
        if isinstance(opened, Error) and opened.code == Code.DENIED:
            raise error_for(opened)
        if not isinstance(opened, Opened) or header.sid != token.sid:
            raise EnvironmentLost("The session is lost: its env agent does not know it any more.")
        _check_pinned(token, opened, data)
        session = self._opened(header, token.wish, opened, token.signer)
        session.exchange.rejoin(token.seq, token.state)
        session.catch_up()
        if token.wish.direct:
            go_direct([session], required=False)
        return session

    def _opened(
        self, header: Header, wish: Open, opened: Opened, signer: Signer | None
    ) -> RemoteSession:
        try:
            session = RemoteSession(self, header.sid, wish, opened, signer)
        except GymwireError:  # its spaces are unknown here, say: it must not hold a slot
            close = PLAIN.encode(Close(), header.sid, 1)
            self.dealer.send(close if signer is None else signer.sign(close))
            raise
        self._sessions[header.sid] = session
        return session

    def _ask(self, request: Message, sid: int = 0) -> Answer:
        """Ask the broker (OPEN: through it, an agent), and wait for the answer."""
        question = self._ask_for(request, sid)
        try:
            self._first_answered({0: question})
        finally:
            self._asking.forget([question])
        return _answer(question)

    def _ask_for(self, request: Message, sid: int = 0) -> Question:
        question = self._asking.ask(request, sid, time.monotonic())
        self.dealer.send(question.frame)
        return question

    def _first_answered(self, asked: Mapping[int, Question]) -> int:
        """Wait until one of these is answered; the same bytes go out again when it is silent."""
        self._heard = time.monotonic()
        while True:
            for i, question in asked.items():
                if question.answer is not None:
                    return i
            arrived, now = self.pump(), time.monotonic()
            for session in [one for one in self._sessions.values() if one.closed]:
                session.tick(now)  # nobody else does
            if arrived:
                continue
            self.look(now)
            frames = self._asking.due(now)
            for frame in [PLAIN.encode(Ping()), *frames] if frames else []:
                self.dealer.send(frame)
            if now - self._heard > self.timeout_s:
                raise BrokerUnreachable(
                    f"The broker at {self.url} has been silent for {self.timeout_s:g} s: it is "
                    f"gone, or cut off."
                )

    # --- frames -----------------------------------------------------------------------------------

    def pump(self) -> bool:
        """Receive one frame, waiting for a tick at most, and hand it to whom it belongs."""
        data = self.dealer.receive()
        if data is None:
            return False
        self.dispatch(data)
        return True

    def hear(self) -> None:
        """Take in what has arrived, without waiting."""
        while self.dealer.poll():
            self.pump()

    def dispatch(self, data: bytes | memoryview) -> None:
        """Hand a frame to its session, or keep it as the broker's answer."""
        header = codec.read_header(data)
        session = self._sessions.get(header.sid)
        if session is not None:
            session.take(header, data)
            return
        self._heard = time.monotonic()
        if self._asking.take(header, data):
            return
        if header.seq in self._unwanted and header.kind in (Kind.OPENED, Kind.ERROR):
            self._turn_away(header, PLAIN.decode(data, header), data)
            return
        match header.kind:
            case Kind.WELCOME | Kind.BUSY:
                self._handshake.take(PLAIN.decode(data, header), time.monotonic())
            case Kind.ERROR:
                message = PLAIN.decode(data, header)
                if isinstance(message, Error) and self.welcome is None:
                    raise error_for(message)
            case Kind.BYE:
                self._log.warning("the broker stops", broker=self.url)
            case _:  # a stray of an earlier session
                return

    def _relinked(self, now: float) -> bool:
        """Whether the connection was made anew since the last call."""
        up = False
        for event in self._handshake.watch(now):
            if event.up:
                up = True
                if self._broker_away:
                    self._log.info("broker reached again", broker=self.url)
                self._broker_away = False
            elif not self._broker_away:
                self._broker_away = True
                self._log.warning(
                    "broker lost, waiting for it", broker=self.url, at_most_s=self.timeout_s
                )
        return up

    def tick(self, now: float) -> None:
        """Time has passed without a reply: watch the connection, resend what is owed."""
        self.look(now)
        for session in list(self._sessions.values()):
            session.tick(now)

    def look(self, now: float) -> None:
        """Watch the connection to the broker, and introduce everything again to a new one."""
        if self._relinked(now):
            self._asking.relinked(now)
            for session in self._sessions.values():
                session.exchange.relinked(now)

    def greet(self) -> None:
        """Say HELLO."""
        self._handshake.send_hello(time.monotonic())

    # --- the end ----------------------------------------------------------------------------------

    def forget(self, session: RemoteSession) -> None:
        """The session has ended."""
        self._sessions.pop(session.sid, None)

    def close(self, *, goodbye: bool = True) -> None:
        """Leave the broker; sessions still open end with it. Idempotent.

        Without `goodbye` they wait for the broker's lease, and can be resumed.
        """
        if self.foreign or self.closed:
            return  # after a fork the sockets are the parent's
        self.closed = True
        _OPEN.discard(self)
        for session in self._sessions.values():
            session.hang_up()
        self._sessions.clear()
        if goodbye:
            self.dealer.send(PLAIN.encode(Bye("done")))
        self.dealer.close(linger_s=0.5)


def _check_pinned(token: SessionToken, opened: Opened, data: bytes | memoryview) -> None:
    """Raise Denied unless the frame of OPENED comes from the agent that the address pins, if any.

    It has the session's tag then, and names the key from which that tag's key was derived.
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
        f"The session is not resumed: the agent that holds it is not the pinned one of "
        f"{token.wish.address!r}, or cannot prove it, or the token is not the session's."
    )


def _answer(question: Question) -> Answer:
    assert question.answer is not None
    return question.answer
