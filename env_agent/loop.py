"""The serving loop: one connection, one host, one thread; requests in, replies out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from gymwire.env_agent.host import MAX_MESSAGE, Host, Slot
from gymwire.env_agent.transports import RELAY, Arrived, Paths
from gymwire.env_agent.watch import Watch
from gymwire.protocol import codec, stamps
from gymwire.protocol.codec import FLAGS_AT, KIND_AT, PLAIN, SEQ, SID, TIMED, Frame, Header, Pieces
from gymwire.protocol.errors import AddressTaken, Denied, ProtocolError, Refused
from gymwire.protocol.messages import (
    CONTROL_KINDS,
    Busy,
    BusyReason,
    Bye,
    Closed,
    Code,
    Error,
    Gone,
    Kind,
    Message,
    Offer,
    Offered,
    Open,
    Ping,
    Resume,
    Resumed,
    Role,
    Welcome,
    Withdraw,
)
from gymwire.protocol.transport.handshake import Handshake
from gymwire.protocol.transport.interface import Origin

TIMERS_S = 0.1  # how often timers get their turn even when the socket never rests
PING_S = 1.0  # how often a loop asks whether the broker still knows it
AWAY_S = 300.0  # sessions end when the broker has been away for so long


InStep = tuple[int, int, float]
"""The request that a loop is executing: sid, seq, and since when (monotonic seconds)."""


class Loop:
    """Serves the offers over one connection. Made, run and stopped in one thread.

    `in_step` may be read from other threads; `stop` and `drain` may be set from them. Of the loops
    of an agent, one with `tells` logs what becomes of the broker: all of them would see the same.
    """

    def __init__(
        self, make_paths: Callable[[], Paths], host: Host, agent: bytes, *, tells: bool = True
    ) -> None:
        self._make_paths = make_paths
        self.host = host
        self._agent = agent
        self._tells = tells
        self._offers: Sequence[Offer] = ()
        self._log = structlog.get_logger()
        self._welcomed = False
        self._epoch = 0
        self._away_since: float | None = None
        self._awaited: set[str] = set()  # the addresses of which the broker has not said OFFERED
        self._draining = False
        self._ping_at = 0.0
        self._opened_at: dict[int, float] = {}
        self._loose: Slot | None = None  # whose last reply lies with its environment still
        self._watch = Watch(lambda: time.monotonic_ns())
        self.in_step: InStep | None = None
        self.stop = threading.Event()
        self.drain = threading.Event()

    @property
    def sessions(self) -> list[list[Any]]:
        """The live sessions as HELLO lists them. May be read from other threads."""
        return [
            [slot.session.sid, slot.session.nonce, slot.session.address, slot.session.learner]
            for slot in list(self.host.slots.values())
        ]

    @property
    def idle(self) -> bool:
        """Whether no session is open here."""
        return not self.host.slots

    def connect(self, offers: Sequence[Offer], wait_s: float) -> bool:
        """Introduce this loop to the broker and offer. False: told to stop meanwhile.

        Raises BrokerUnreachable after `wait_s`, Denied, VersionMismatch or AddressTaken.
        """
        self._offers = offers
        self._paths = self._make_paths()
        self._dealer = self._paths.dealer
        self._handshake = Handshake(self._dealer, Role.ENV, self._agent, lambda: self.sessions)
        self._await_offers()
        connected = False
        try:
            connected = self._handshake.connect(
                time.monotonic,
                wait_s,
                pump=self._pump,
                done=lambda: not self._awaited,
                stopped=lambda: self.stop.is_set() or self.drain.is_set(),
                on_wait=lambda: self._log.info(
                    "waiting for broker", broker=self._dealer.url, at_most_s=wait_s
                ),
            )
        finally:
            if not connected:
                self._paths.close()
        return connected

    def _pump(self) -> None:
        data = self._dealer.receive()
        if data is not None:
            self._control(codec.read_header(data), data)

    def run(self) -> None:
        """Serve until `stop`, or until `drain` and the last session has ended."""
        try:
            while not self.stop.is_set():
                self.turn()
                if self._draining and self.idle:
                    break
        finally:
            self.host.close_all()
            self._dealer.send(PLAIN.encode(Bye("the env agent stops")))
            self._paths.close()

    def turn(self) -> None:
        """Serve what has arrived, waiting for a tick at most, then see to what time brings."""
        self._serve()
        self._timers()

    # --- one frame --------------------------------------------------------------------------------

    def _serve(self) -> None:
        paths, host, slots, by_key = self._paths, self.host, self.host.slots, self.host.by_key
        dealer, direct, clock = paths.dealer, paths.direct, time.monotonic
        until = clock() + TIMERS_S
        receive = self._receive_watched if self._watch.is_on() else paths.receive
        now = 0.0
        while now < until:
            arrived = receive(len(slots))
            if arrived is None:
                self._settle()
                return
            now = clock()
            way, origin, data = arrived
            slot = by_key.get(bytes(data[SID]))
            if self._loose is not None and self._loose is not slot:
                self._settle()
            if slot is not None and (
                direct is None or not way or direct.allows(slot.session.sid, way, origin)
            ):
                seq = int.from_bytes(data[SEQ], "little")
                slot.heard = now
                self.in_step = (slot.session.sid, seq, now)
                reply: Frame | Pieces | None
                if data[FLAGS_AT] & TIMED:
                    reply = self._timed(slot, seq, data)
                    receive = self._receive_watched
                else:
                    reply = host.step(slot, seq, data)
                self.in_step = None
                if reply is not None:
                    if isinstance(reply, Pieces):
                        self._send_pieces(slot, way, reply)
                    elif direct is None or not way:
                        dealer.send(reply)
                    else:
                        direct.send(way, reply)
                    continue
            try:
                header = codec.read_header(data)
                if way and not self._admit(way, origin, header, data):
                    continue
                kind = header.kind
                slot = (
                    slots.get(header.sid)
                    if kind < CONTROL_KINDS and kind is not Kind.ERROR
                    else None
                )
                if slot is None:
                    self._control(header, data)
                    continue
            except ProtocolError as error:
                self._log.warning("refused a frame", error=str(error))
                self._refuse_frame(way, data, error)
                continue
            self.in_step = (header.sid, header.seq, now)
            answer = host.handle(slot, header, data)
            self.in_step = None
            if isinstance(answer, Pieces):
                self._send_pieces(slot, way, answer)
            elif answer is not None:
                paths.send(way, answer)
            if kind is Kind.CLOSE:
                if way != RELAY:  # the broker frees the slot when it sees this
                    self._dealer.send(PLAIN.encode(Closed(), header.sid, header.seq))
                self._ended(slot, "closed")

    def _receive_watched(self, sessions: int) -> Arrived | None:
        waited = not self._paths.poll()
        arrived = self._paths.receive(sessions)
        if arrived is not None:
            self._watch.read(waited)
        return arrived

    def _send_pieces(self, slot: Slot, way: bytes, reply: Pieces) -> None:
        """Send a reply from where the environment has left it, if that goes this way.

        Who asks for the next step has had the answer, so that it need not be kept any more when
        the environment changes what it has handed out.
        """
        if self._paths.takes_pieces(way):
            self._paths.send(way, reply)
            self._loose = slot
        else:
            whole = slot.session.answer = bytes(reply)
            self._paths.send(way, whole)

    def _settle(self) -> None:
        """Copy the last reply, before anything but the next step of its session happens."""
        if self._loose is not None:
            self._loose.session.settle()
            self._loose = None

    def _timed(self, slot: Slot, seq: int, data: bytes | memoryview) -> Frame | None:
        """Take an ACT that asks for time stamps (docs/protocol.md §8). None: it is none."""
        if data[KIND_AT] != Kind.ACT or slot.steps is None:
            return None
        busy_since, received = self._watch.asked()
        try:
            # What is judged, and compared if it is repeated, is the request without its stamps.
            request, passed = stamps.strip_request(data)
            header = codec.read_header(request)
        except ProtocolError as error:
            return PLAIN.encode(Error(Code.PROTOCOL, str(error)), slot.session.sid, seq)
        at: list[int] = []

        def stamp() -> None:
            at.append(time.monotonic_ns())

        host = self.host
        reply = host.step(slot, seq, request, stamp)
        if reply is None:
            reply = host.handle(slot, header, request, stamp)
        if isinstance(reply, Pieces):
            reply = slot.session.answer = bytes(reply)
        # Without two stamps nothing was executed now; what failed is no PERCEPT.
        fits = reply is not None and len(reply) + stamps.REPLY_SIZE <= host.max_message
        if reply is None or len(at) != 2 or reply[KIND_AT] != Kind.PERCEPT or not fits:
            return reply
        started, ended = at
        busy_since = max(busy_since, slot.replied)  # this request was not sent before that
        reply = stamps.append_reply(
            reply, passed, busy_since, received, started, ended, time.monotonic_ns
        )
        slot.session.answer = reply
        slot.replied = time.monotonic_ns()
        return reply

    def _admit(
        self, rid: bytes, origin: Origin | None, header: Header, data: bytes | memoryview
    ) -> bool:
        """Whether a direct frame is a request of a session that is bound to its connection."""
        direct = self._paths.direct
        assert direct is not None
        slot = self.host.slots.get(header.sid)
        if (
            slot is not None
            and header.kind < CONTROL_KINDS
            and direct.allows(header.sid, rid, origin)
        ):
            return True
        reply: Message = Busy(BusyReason.HELLO, 0.0)
        if slot is None:
            reply = Error(Code.SESSION_LOST, _UNKNOWN_SESSION)
        elif header.kind is Kind.RESUME:
            resume = PLAIN.decode(data, header)
            assert isinstance(resume, Resume)
            if direct.attach(slot.session, resume.nonce, rid, origin):
                reply = Resumed()
            else:
                reply = Error(Code.DENIED, "This session belongs to another learner.")
        direct.send(rid, PLAIN.encode(reply, header.sid, header.seq))
        return False

    def _control(self, header: Header, data: bytes | memoryview) -> None:
        """Take a frame from the broker itself."""
        kind = header.kind
        if kind is Kind.ERROR and header.sid:  # not the broker's word about this loop
            return
        if kind < CONTROL_KINDS and kind is not Kind.ERROR:
            self._unknown_session(header)
            return
        message = PLAIN.decode(data, header)
        match message:
            case Open():
                self._open(header, message)
            case Gone():
                slot = self.host.slots.get(header.sid)
                if slot is not None:
                    self._ended(slot, message.reason)
            case Welcome():
                self._welcome(message)
            case Busy(reason=BusyReason.HELLO):
                self._await_offers()
                self._handshake.take(message, time.monotonic())
            case Error():
                self._refused(message)
            case Bye():
                self._tell("the broker stops")
            case Offered():
                self._awaited.discard(message.address)

    def _refuse_frame(self, way: bytes, data: bytes | memoryview, error: ProtocolError) -> None:
        """Answer what cannot be understood, so that nobody waits for it in vain."""
        try:
            header = codec.read_header(data)
        except ProtocolError:
            return  # nobody to answer
        if header.sid:
            refusal = Error(Code.PROTOCOL, str(error))
            self._paths.send(way, PLAIN.encode(refusal, header.sid, header.seq))

    def _unknown_session(self, header: Header) -> None:
        if header.kind is Kind.CLOSE:
            reply: Closed | Error = Closed()
        else:
            reply = Error(Code.SESSION_LOST, _UNKNOWN_SESSION)
        self._dealer.send(PLAIN.encode(reply, header.sid, header.seq))

    # --- sessions ---------------------------------------------------------------------------------

    def _open(self, header: Header, wish: Open) -> None:
        known = header.sid in self.host.slots
        self.in_step = (header.sid, header.seq, time.monotonic())
        direct = self._paths.direct
        offer = direct.offer if direct is not None and wish.direct else None
        if direct is not None and wish.direct:
            direct.expect(header.sid, wish.learner)
        frame = self.host.open(header.sid, header.seq, wish, offer)
        self.in_step = None
        if header.sid in self.host.slots:
            if not known:
                self._opened_at[header.sid] = time.monotonic()
                self._log.info("session opened", address=wish.address, num_envs=wish.num_envs or 1)
        else:
            if direct is not None:
                direct.detach(header.sid)
            self._log.warning("session refused", address=wish.address, why=_error_text(frame))
        self._dealer.send(frame)

    def _ended(self, slot: Slot, why: str) -> None:
        session = slot.session
        self.host.close(session.sid)
        if self._paths.direct is not None:
            self._paths.direct.detach(session.sid)
        lasted_s = time.monotonic() - self._opened_at.pop(session.sid, time.monotonic())
        self._log.info(
            "session ended",
            address=session.address,
            why=why,
            steps=session.steps,
            steps_per_s=round(session.steps / lasted_s) if lasted_s > 0 else 0,
        )

    # --- the broker -------------------------------------------------------------------------------

    def _await_offers(self) -> None:
        """Expect OFFERED for each offer: a broker that gets HELLO gets the offers after it."""
        self._awaited = {offer.address for offer in self._offers}

    def _welcome(self, welcome: Welcome) -> None:
        if self._away_since is not None or (self._welcomed and welcome.epoch != self._epoch):
            again = "restarted" if welcome.epoch != self._epoch else "reached again"
            self._tell(f"broker {again}")
        self.host.max_message = min(MAX_MESSAGE, welcome.max_message)
        self._welcomed, self._epoch, self._away_since = True, welcome.epoch, None
        self._handshake.take(welcome, time.monotonic())
        for offer in self._offers:
            self._dealer.send(PLAIN.encode(offer))
            if self._draining:
                self._dealer.send(PLAIN.encode(Withdraw(offer.address)))

    def _refused(self, error: Error) -> None:
        if error.code == Code.ADDRESS_TAKEN:
            raise AddressTaken(error.text)
        if error.code == Code.DENIED:
            raise Denied(error.text)
        if not self._welcomed or error.code == Code.LIMIT:
            raise Refused(error.text)
        self._log.warning("the broker refused", why=error.text)

    def _timers(self) -> None:
        now = time.monotonic()
        self._watch_link(now)
        if self._awaited:  # until every offer stands, a frame of the handshake may have got lost
            self._handshake.repeat_hello(now)
        if now >= self._ping_at:
            self._ping_at = now + PING_S
            self._dealer.send(PLAIN.encode(Ping()))
        if self._away_since is not None and now - self._away_since > AWAY_S:
            for slot in list(self.host.slots.values()):
                if now - slot.heard > AWAY_S:
                    self._ended(slot, f"the broker has been away for {AWAY_S:g} s")
        if self.drain.is_set() and not self._draining:
            self._draining = True
            for offer in self._offers:
                self._dealer.send(PLAIN.encode(Withdraw(offer.address)))

    def _watch_link(self, now: float) -> None:
        for event in self._handshake.watch(now):
            if event.up:
                self._await_offers()
            elif self._away_since is None and self._welcomed:
                self._away_since = time.monotonic()
                self._tell("broker lost, waiting for it")

    def _tell(self, event: str) -> None:
        """Log what becomes of the broker; to an agent that leaves anyway it does not matter."""
        if self._tells and not self.drain.is_set() and not self.stop.is_set():
            self._log.info(event, broker=self._dealer.url)


_UNKNOWN_SESSION = "The env agent does not know this session: it was restarted, or the lease ended."


def _error_text(frame: codec.Frame) -> str:
    message = PLAIN.decode(frame)
    return message.text[:200] if isinstance(message, Error) else ""
