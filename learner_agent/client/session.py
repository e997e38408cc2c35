"""One session over a channel: requests out, the replies that belong to them back in."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from gymwire.learner_agent.client.direct import DirectLink, attach
from gymwire.learner_agent.client.exchange import Exchange, Pending, still_under_way
from gymwire.learner_agent.client.failures import error_for
from gymwire.learner_agent.client.timings import Timings, apportion, waited
from gymwire.protocol import codec, logs, spaces, stamps, vector_infos
from gymwire.protocol.address import parse_address
from gymwire.protocol.codec import FLAGS_AT, KIND_AT, PLAIN, TIMED, Codec, Frame, Header
from gymwire.protocol.errors import (
    BrokerUnreachable,
    ConfigurationError,
    ConnectionFailed,
    Denied,
    EnvironmentLost,
    GymwireError,
    MoveError,
    RequestTimeout,
)
from gymwire.protocol.messages import (
    KINDS,
    Act,
    Call,
    Close,
    Error,
    Kind,
    Message,
    Open,
    Opened,
    Percept,
    Resume,
)
from gymwire.protocol.security.keys import identity
from gymwire.protocol.security.signing import SignedCodec, Signer
from gymwire.protocol.step_codec import Step, compile_steps
from gymwire.protocol.transport.interface import TICK_MS, Transport
from gymwire.protocol.transport.polling import wait_among

if TYPE_CHECKING:
    from gymwire.learner_agent.client.connection import Channel

ATTACH_S = 0.5  # how long a direct connection may take before the relay serves instead,
DIRECT_S = 2.5  # and how long one that must be
LOOK_EVERY = 64  # steps after which a session looks at what is not on its way
PROBE_SEQ = 2**62  # a request number that is never next
CLOSE_S = 1.0  # how long close() waits for the env agent to confirm
SMALL = 64 * 1024  # requests up to this size are below every broker's limit
TIMERS_EVERY = 64  # frames after which timers get their turn even when the socket never rests

T = TypeVar("T")


class RemoteSession:
    """One environment, or one vector of them, at an env agent."""

    def __init__(
        self, channel: Channel, sid: int, wish: Open, opened: Opened, signer: Signer | None = None
    ) -> None:
        self.channel = channel
        self.signer = signer
        self.sid = sid
        self.wish = wish
        self.opened = opened
        self.observation_space = spaces.build(opened.observation_space, root="observation_space")
        self.action_space = spaces.build(opened.action_space, root="action_space")
        observation = spaces.compile(self.observation_space)
        action = spaces.compile(self.action_space)
        self._codec = (Codec if signer is None else partial(SignedCodec, signer))(
            observation, action
        )
        # The short way for steps has no tags.
        self._steps = (
            compile_steps(sid, observation, action, wish.num_envs) if signer is None else None
        )
        self.exchange = Exchange(
            sid,
            wish.nonce,
            where=f"{wish.address!r} ({opened.agent})",
            timeout_s=channel.timeout_s,
            rng=random.Random(secrets.randbits(64)),
        )
        self._reply: tuple[Header, bytes | memoryview] | None = None
        self._answered: Pending | None = None  # what `_reply` answers
        self._direct: DirectLink | None = None
        self.way: Transport = channel.dealer  # the connection that requests take at present
        self.closed = False  # on this side; the agent may still have to confirm it
        self._least_network: dict[bool, int] = {}  # directly or not → ns of a step, for `apportion`

    def dial_direct(self) -> DirectLink:
        """Dial the agent itself. Raises GymwireError if it cannot be dialled."""
        offer = self.opened.direct
        if offer is None:
            raise ConnectionFailed("it does not offer that (--direct).")
        key, pin = self.channel.credentials.key, parse_address(self.wish.address).identity
        if pin is not None and _identity_in(offer) != pin:
            raise Denied("Its direct endpoint is not that of the pinned agent.")
        self._direct = DirectLink(offer, self.sid, self.wish.nonce, key)
        return self._direct

    def settle_direct(self, why: str, *, required: bool) -> None:
        """Go past the broker from now on if the agent was reached; else it is said `why` not."""
        self._choose_way()
        if self.is_direct:
            return
        if self._direct is not None:
            why = f"{self._direct.dealer.url} does not answer."
            self.hang_up()
        if required:
            self.close()
            raise ConnectionFailed(
                f"The env agent at {self.wish.address!r} cannot be reached directly: {why} Use "
                f'direct="auto" to go through the broker then.'
            )
        logs.logger().debug("relayed", address=self.wish.address, why=why)

    def catch_up(self) -> None:
        """Ask the agent which request it awaits, after a resume."""
        deadline = time.monotonic() + self.channel.timeout_s
        probe = PLAIN.encode(Call("get", ""), self.sid, PROBE_SEQ)
        while self.exchange.expected is None:
            self.channel.dealer.send(probe)
            if not self.channel.pump() and time.monotonic() > deadline:
                raise BrokerUnreachable(f"The env agent at {self.wish.address!r} does not answer.")
        self.exchange.check_rejoined()

    @property
    def is_direct(self) -> bool:
        """Whether requests go past the broker at present."""
        return self._direct is not None and self._direct.up

    # --- requests ---------------------------------------------------------------------------------

    def request(self, message: Message, timeout_s: float | None = None) -> Message:
        """Send a request of the gym dialogue and wait for its reply.

        Raises MoveError and EncodingError before anything is sent; EnvironmentFailed,
        EnvironmentLost, AttributeDenied; RequestTimeout after `timeout_s` (None: as long as it
        takes), after which the same request may be repeated to wait on.
        """
        self.begin(message)
        return self.finish(timeout_s)

    def step(self, action: Any, timeout_s: float | None = None) -> Step:
        """`request` for an ACT: what `Env.step` returned, without detours where that can be.

        The infos of a vector are those that Gymnasium merges.
        """
        exchange, steps = self.exchange, self._steps
        seq = exchange.next_step()
        if seq and steps is not None and timeout_s is None and self._reply is None:
            number = seq.to_bytes(8, "little")
            frame = steps.encode_act(action, number)
            if frame is not None and len(frame) <= SMALL:
                exchange.sent(Kind.ACT, seq, frame)
                if not seq % LOOK_EVERY:
                    self._look_around(time.monotonic())
                way = self.way
                way.send(frame)
                data = way.receive()
                if data is not None:
                    step = steps.decode_percept(data, number)
                    if step is not None:
                        if step[4] and self.wish.num_envs:
                            step = _with_infos(step)
                        exchange.pending = None  # last: see `Exchange.sent`
                        return step
                    self._arrived(data)
                return self._finish_step()
        self.begin(Act(action))
        return self._finish_step(timeout_s)

    @property
    def is_timed(self) -> bool:
        """Whether the env agent takes time stamps in this session."""
        return self._steps is not None and self.opened.limits.get("stamps") is True

    def timed_step(self, action: Any) -> tuple[Step, Timings | None]:
        """`step`, and where its time went; None where the agent or this step has no stamps.

        It waits for as long as it takes. An interrupted one cannot be waited on: reset or close.
        """
        if not self.is_timed:
            return self.step(action), None
        assert self._steps is not None
        held_back = self.exchange.held_back
        began = time.monotonic_ns()
        seq = self._next(Kind.ACT)
        number = seq.to_bytes(8, "little")
        plain = self._steps.encode_act(action, number)
        if plain is None:
            plain = self._codec.encode(Act(action), self.sid, seq)
        frame = stamps.request_stamps(plain)
        self._check_size(Kind.ACT, frame)
        encoded = time.monotonic_ns()
        self._begin(Kind.ACT, seq, frame)
        data = self.way.receive()
        arrived = time.monotonic_ns()
        step = None
        if data is not None and data[KIND_AT] == Kind.PERCEPT and data[FLAGS_AT] & TIMED:
            reply, taken = stamps.strip_reply(data)
            step = self._steps.decode_percept(reply, number)
        if step is not None:
            self.exchange.pending = None
        else:
            if data is not None:
                self._arrived(data)
            if not self.ready:
                self._wait(None)
                arrived = time.monotonic_ns()
            header, data = self._take_reply()
            if header.kind is not Kind.PERCEPT or not header.flags & TIMED:
                return _step_of(self._decoded(header, data)), None
            reply, taken = stamps.strip_reply(data)
            step = _step_of(self._decoded(header, reply))
        decoded = time.monotonic_ns()
        is_direct = not taken.back_sent
        least = self._least_network.get(is_direct, 0)
        timings = apportion(began, encoded, arrived, decoded, taken, least)
        if self.exchange.held_back != held_back:
            return step, replace(timings, held_back=True)
        if not waited(taken):
            network = round(timings.network_us * 1000)
            self._least_network[is_direct] = min(network, least or network)
        return step, timings

    def begin(self, message: Message) -> None:
        """Send a request without waiting. The same request again, while pending, waits on."""
        kind = KINDS[type(message)]
        exchange = self.exchange
        pending = exchange.pending or self._answered
        if pending is not None and pending.kind is kind:
            again = self._codec.encode(message, self.sid, pending.seq)
            if again == pending.frame:
                exchange.keep_waiting(time.monotonic())
                return
        seq = self._next(kind)
        frame = None
        if self._steps is not None and type(message) is Act:
            frame = self._steps.encode_act(message.action, seq.to_bytes(8, "little"))
        if frame is None:
            frame = self._codec.encode(message, self.sid, seq)
        self._check_size(kind, frame)
        self._begin(kind, seq, frame)

    def _next(self, kind: Kind) -> int:
        """The number of a new request; MoveError while one is under way, or not yet taken."""
        # Its answer has come while another session of this channel was waited for.
        if self._answered is not None and kind not in (Kind.RESET, Kind.CLOSE):
            raise MoveError(still_under_way(self._answered.kind))
        return self.exchange.begin(kind)

    def _check_size(self, kind: Kind, frame: Frame) -> None:
        limit = self.channel.welcome.max_message if self.channel.welcome else 0
        if limit and len(frame) > limit:
            raise ConfigurationError(
                f"This {kind.name} has {len(frame)} bytes; the broker takes {limit} at most."
            )

    def _begin(self, kind: Kind, seq: int, frame: Frame) -> None:
        self._reply = self._answered = None
        if kind is Kind.RESET and self._direct is None:
            self.channel.dealer.open_local_channel()  # who only opens a session needs no lane
        self.exchange.sent(kind, seq, frame)
        if self._direct is not None:
            self._look_around(time.monotonic())
        self.way.send(frame)

    def _choose_way(self) -> None:
        self.way = self.channel.dealer
        if self._direct is not None and self._direct.up:
            self.way = self._direct.dealer

    def _look_around(self, now: float) -> None:
        """What does not come the way that requests take is seen only by who looks."""
        if self._direct is not None and self._direct.watch():
            self.exchange.resend(now)
        self._choose_way()
        self.channel.look(now)
        if self._direct is None:
            return
        while self.channel.dealer.poll():
            self.channel.pump()
        if self.exchange.resuming:
            self.exchange.resuming = False
            self.channel.greet()
            self.channel.dealer.send(PLAIN.encode(Resume(self.wish.nonce), self.sid))

    def tick(self, now: float) -> None:
        """Time has passed without a reply: resend what is owed."""
        direct = self._direct
        if direct is not None:
            self._look_around(now)
            if direct.up:  # its heartbeats say that the agent is there
                self.exchange.keep_waiting(now)
        try:
            greet, frames = self.exchange.tick(now)
        except BrokerUnreachable:
            if not self.closed:
                raise
            self.channel.forget(self)  # nobody waits for it
            return
        if greet:
            self.channel.greet()
        for frame in frames:
            if codec.read_header(frame).kind is Kind.PING:
                self.channel.dealer.send(frame)  # it is the broker who answers
            else:
                self.way.send(frame)

    def pump(self) -> bool:
        """Receive one frame on the session's way, waiting for a tick at most."""
        data = self.way.receive()
        if data is None:
            return False
        self._arrived(data)
        return True

    def _arrived(self, data: bytes | memoryview) -> None:
        direct = self._direct
        if direct is None or not direct.up:
            self.channel.dispatch(data)
            return
        header = codec.read_header(data)
        if header.sid == self.sid:
            if header.kind is Kind.RESUMED:
                direct.accept(data)
                self._choose_way()
            else:
                self.take(header, data)

    def finish(self, timeout_s: float | None = None) -> Message:
        """Wait for the reply to the pending request."""
        self._wait(timeout_s)
        return self._taken(self._decoded)

    def _finish_step(self, timeout_s: float | None = None) -> Step:
        self._wait(timeout_s)
        return self._taken(self._decoded_step)

    def _taken(self, read: Callable[[Header, bytes | memoryview], T]) -> T:
        """The reply, as it is read; interrupted, it stays for who makes the same request again."""
        assert self._reply is not None
        try:
            found = read(*self._reply)
        except Exception:  # an ERROR, or not to be read: that is an answer, too
            self.drop_reply()
            raise
        self._reply = self._answered = None
        return found

    def drop_reply(self) -> None:
        """Nobody takes the reply that is here."""
        self._reply = self._answered = None

    def _take_reply(self) -> tuple[Header, bytes | memoryview]:
        assert self._reply is not None
        reply, self._reply, self._answered = self._reply, None, None
        return reply

    def _decoded(self, header: Header, data: Frame | memoryview) -> Message:
        if self._steps is not None and header.kind is Kind.PERCEPT:
            step = self._steps.decode_percept(data, header.seq.to_bytes(8, "little"))
            if step is not None:
                return Percept(*step)
        message = self._codec.decode(data, header)
        if type(message) is Error:
            raise error_for(message)
        return message

    def _decoded_step(self, header: Header, data: Frame | memoryview) -> Step:
        step = _step_of(self._decoded(header, data))
        return _with_infos(step) if step[4] and self.wish.num_envs else step

    def _wait(self, timeout_s: float | None) -> None:
        channel = self.channel
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        frames = 0
        now = time.monotonic()
        if self.exchange.is_due(now):  # by what `step` has received
            channel.tick(now)
        while self._reply is None:
            self.check_lost()
            if deadline is not None:
                left_s = deadline - time.monotonic()
                if left_s < TICK_MS / 1000 and not self.way.poll(max(left_s, 0.0)):
                    assert timeout_s is not None
                    channel.tick(time.monotonic())  # whoever only ever waits briefly resends, too
                    raise RequestTimeout(self._timeout_text(timeout_s))
            arrived = self.pump()
            frames += 1
            if self._reply is None:
                now = time.monotonic()
                if not arrived or not frames % TIMERS_EVERY or self.exchange.is_due(now):
                    channel.tick(now)

    def _timeout_text(self, timeout_s: float) -> str:
        pending = self.exchange.pending
        verb = "request" if pending is None else pending.kind.name.lower()
        verb = "step" if verb == "act" else verb
        in_step_s = self.exchange.in_step_s
        doing = "" if in_step_s is None else f" (it has been executing for {in_step_s:.0f} s)"
        return (
            f"The {verb} at {self.wish.address!r} has not been answered within {timeout_s:g} s"
            f"{doing}. Call it again with the same arguments to wait on, or reset()."
        )

    @property
    def ready(self) -> bool:
        """Whether the reply to the pending request is here."""
        return self._reply is not None

    @property
    def pending(self) -> bool:
        """Whether a request has been sent whose reply was not taken yet."""
        return self._reply is not None or self.exchange.pending is not None

    def take(self, header: Header, data: bytes | memoryview) -> None:
        """A frame of this session has arrived."""
        pending = self.exchange.pending
        try:
            if self.exchange.receive(header, data, time.monotonic()):
                self._reply, self._answered = (header, data), pending
                if self.closed:
                    self.channel.forget(self)
        except EnvironmentLost:
            # Told to who waits for it, and to nobody who waits for another session.
            self.channel.forget(self)

    def check_lost(self) -> None:
        """Raise EnvironmentLost if the session is gone and there is no reply from before."""
        if self._reply is None and self.exchange.lost is not None:
            raise self.exchange.lost_error()

    # --- the end ----------------------------------------------------------------------------------

    def close(self, *, wait: bool = True) -> None:
        """End the session. Waits shortly for the agent, never for a step. Idempotent.

        Until the agent has confirmed it, the channel goes on asking whenever it is used.
        """
        if self.closed or self.channel.foreign or self.channel.closed:
            return
        self.closed = True
        wait = wait and self.exchange.pending is None
        try:
            self.begin(Close())
            if wait:
                self.finish(CLOSE_S)
        except GymwireError as error:
            logs.logger().debug("close was not confirmed", why=str(error))
        if self.exchange.pending is None or self.exchange.lost is not None:
            self.channel.forget(self)
        else:
            self.exchange.keep_waiting(time.monotonic())  # it is sent again after some silence
        self.hang_up()

    def hang_up(self) -> None:
        """Give up the direct connection, if there is one."""
        if self._direct is not None:
            self._direct.close()
            self._direct = None
            self._choose_way()


def go_direct(sessions: Sequence[RemoteSession], *, required: bool) -> None:
    """Go past the broker, each of these whose agent offers that and can be reached.

    All are dialled at once. Raises ConnectionFailed if it is `required` and one cannot be reached.
    """
    links: list[DirectLink] = []
    why: dict[int, str] = {}
    for session in sessions:
        try:
            links.append(session.dial_direct())
        except GymwireError as error:
            why[session.sid] = str(error)
    attach(links, DIRECT_S if required else ATTACH_S)
    for session in sessions:
        session.settle_direct(why.get(session.sid, ""), required=required)


def wait_any(sessions: Sequence[RemoteSession], timeout_s: float | None = None) -> None:
    """Wait until one of these sessions, all on one channel, has its reply.

    Raises RequestTimeout.
    """
    channel = sessions[0].channel
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    tick_s, frames = TICK_MS / 1000, 0
    while not any(session.ready for session in sessions):
        for session in sessions:
            session.check_lost()
        wait_s = tick_s if deadline is None else min(deadline - time.monotonic(), tick_s)
        if wait_s <= 0:
            raise RequestTimeout(f"None of {len(sessions)} requests was answered in {timeout_s} s.")
        ways = {session.way: session for session in sessions}
        if len(ways) == 1 and wait_s == tick_s:
            arrived = sessions[0].pump()
        else:
            ready = wait_among([*ways], wait_s)
            for i in ready:
                [*ways.values()][i].pump()
            arrived = bool(ready)
        frames += 1
        if not arrived or not frames % TIMERS_EVERY:
            channel.tick(time.monotonic())


def _step_of(percept: Message) -> Step:
    assert type(percept) is Percept
    return (
        percept.observation,
        percept.reward,
        percept.terminated,
        percept.truncated,
        percept.info,
    )


def _with_infos(step: Step) -> Step:
    """A vector's step, with the infos that were sent."""
    return *step[:4], vector_infos.from_wire(step[4])[0]


def _identity_in(offer: Mapping[str, Any]) -> str:
    key = offer.get("key")
    return identity(key) if isinstance(key, bytes) else ""
