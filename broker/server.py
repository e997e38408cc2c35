"""The broker's sockets, clock and log around the core."""

from __future__ import annotations

import os
import random
import socket as hostsocket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import structlog

from gymwire.broker.agenda import Agenda, Piece
from gymwire.broker.auth import NO_POLICY
from gymwire.broker.core import Core
from gymwire.broker.decoding import FREE_DECODED, takes_long
from gymwire.broker.events import Send, Sender
from gymwire.broker.local_channels import Bundle, LocalChannels, RelayedFrame
from gymwire.broker.policy_file import PolicyFile
from gymwire.broker.rate_limit import Admission
from gymwire.protocol import stamps
from gymwire.protocol.codec import FLAGS_AT, KIND_AT, MAX_MESSAGE, TIMED
from gymwire.protocol.ending_signals import StopEvent
from gymwire.protocol.errors import ConfigurationError
from gymwire.protocol.messages import Kind
from gymwire.protocol.security.keys import KeyPair, identity
from gymwire.protocol.transport.handshake import software
from gymwire.protocol.transport.interface import (
    TICK_MS,
    Delivery,
    Origin,
    Received,
    Waitable,
)
from gymwire.protocol.transport.polling import wait_among
from gymwire.protocol.transport.router import Router, fd_of, public_key_of
from gymwire.protocol.transport.unix import CAN_LISTEN

if sys.platform != "win32":
    import resource

# A flooding peer would reconnect at once, and accepting a connection costs more than a frame. The
# kernel therefore drops its input for a while before the broker closes the connection.
DROP_INPUT_S = 2.0
PIECE_S = 0.00025  # CPU time for short messages after which the broker looks for steps again
# What is not refused, and as what it waits; None: it does not.
_ADMITTED = {
    Admission.PASS: None,
    Admission.WAIT: Piece.SHORT,
    Admission.DEMANDING: Piece.DEMANDING,
}
_NOT_SENT_AGAIN = FREE_DECODED | {Kind.BYE}
_FROM_HOST = (Kind.OBSERVE, Kind.STOP, Kind.WATCH)  # without a policy, only from this host
SUSPENDED_S = 2.0  # a gap between two ticks that shows that this process was suspended


def _max_descriptors() -> int:
    """Return how many descriptors this process may open."""
    if sys.platform == "win32":
        return 0
    return min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 2**20)


class ReceivedFrame(NamedTuple):
    """A frame for the core. `at`: as in `Server._receive`."""

    sender: Sender
    origin: Origin | None
    data: bytes | memoryview
    at: int

    @property
    def outlives_connection(self) -> bool:
        """Whether it counts even if its connection has ended since: it is not sent again."""
        return len(self.data) > KIND_AT and self.data[KIND_AT] in _NOT_SENT_AGAIN


class Server:
    """A broker that listens at these URLs from construction until `run` returns.

    `key`: the broker's key pair; without it any peer may connect. `insecure`: listen beyond this
    host without keys. `lease_s`: how long a session waits for a lost learner. `max_message`: bytes.
    `local_channels`: let peers on this host use local channels. Raises ConfigurationError.
    """

    def __init__(
        self,
        urls: Iterable[str],
        *,
        key: KeyPair | None = None,
        policy: PolicyFile | None = None,
        insecure: bool = False,
        lease_s: float = 30.0,
        max_message: int = MAX_MESSAGE,
        local_channels: bool = True,
    ) -> None:
        self._policy_file = policy
        self._policy = NO_POLICY if policy is None else policy.policy
        self._router = Router(
            urls,
            key=key,
            allow=lambda public: self._policy.admits(public),
            insecure=insecure,
            max_message=max_message,
            elsewhere="choose another port with --bind, and give it to the others with --broker or "
            "GYMWIRE_BROKER",
        )
        self.urls = self._router.urls
        self._keyed = key is not None
        self._log = structlog.get_logger()
        self._host = hostsocket.gethostname()
        self._local = self._listen_locally(max_message) if local_channels else None
        self._bundle = Bundle(self._local, self._undelivered)
        now = time.monotonic()
        self.core = Core(
            epoch=random.SystemRandom().getrandbits(63),
            now=now,
            rng=random.SystemRandom(),
            software=software(),
            lease_s=lease_s,
            max_message=max_message,
            policy=self._policy,
            local=None if self._local is None else (self._local.url, self._host),
        )
        self._next_timers = now
        self._agenda: Agenda[ReceivedFrame] = Agenda(lambda: self.core.has_announcements)
        self._relayed, self._is_relaying = 0, False  # frames up to the last tick; any in that tick
        self._hang_ups: list[tuple[int, int]] = []
        # (when to close it, fd, connection) of flooding connections
        self._dropping_input: deque[tuple[float, int, int]] = deque()

    def run(self, stop: StopEvent) -> None:
        """Serve until `stop` is set. Then send BYE to the peers and close the sockets."""
        self._log.info("broker listening", urls=self.urls, host=self._host, pid=os.getpid())
        try:
            while not stop.is_set():
                is_idle = self._serve()
                if self._agenda:
                    self._work(is_idle)
                self._timers(time.monotonic())
        finally:
            self._deliver(self.core.goodbye())
            self._log.info("broker stopped")
            if self._local is not None:
                self._local.close()
            self._router.close(linger_s=0.3)

    def _listen_locally(self, max_message: int) -> LocalChannels | None:
        if not CAN_LISTEN:
            return None
        try:
            # Peers that connect over ZeroMQ only need descriptors, too.
            return LocalChannels(
                self._router, max_channels=_max_descriptors() // 4, max_message=max_message
            )
        except ConfigurationError as error:
            self._log.warning("local channels unavailable", why=str(error))
            return None

    # --- frames -----------------------------------------------------------------------------------

    def _serve(self) -> bool:
        """Handle frames until something else is due, or until no frame came for a tick.

        Returns whether no frame was left. While other work waits, it waits for no frame.
        """
        core, local = self.core, self._local
        receive, until = self._turn()
        with_local = self._may_be_local
        channel_of, owners = ({}, {}) if local is None else (local.of, local.owners)
        buffered, send_local = ((), None) if local is None else (local.buffered, local.send)
        send, relay = self._router.send, core.relay
        clock, keyed, done = time.monotonic, self._keyed, Delivery.DONE
        bundle = self._bundle
        while clock() < until:
            received = receive()
            if received is None:
                bundle.send()
                return True
            rid, origin, data = received
            key = None
            if origin is None:
                owner = owners.get(rid)
                if owner is None:
                    self._attach(rid, data)
                    continue
                rid, key = owner
            elif keyed:
                key = public_key_of(origin)
            at = time.monotonic_ns() if len(data) > 3 and data[FLAGS_AT] & TIMED else 0
            to = relay(rid, data, key)
            if to is None:
                bundle.send()
                self._receive(rid, origin, data, key, at)
                if self._agenda.due < until or with_local is not self._may_be_local:
                    return False
                continue
            frame = stamps.stamp_relay(data, at, time.monotonic_ns) if at else data
            channel = channel_of.get(to)
            if channel is not None and send_local is not None:
                if origin is None and (buffered or bundle.frames):
                    bundle.add(RelayedFrame(channel, to, frame, rid))
                    continue
                delivery = send_local(channel, frame)
            elif at or origin is None or type(data) is bytes:
                delivery = send(to, frame)
            else:  # pass on libzmq's own frame without a copy
                delivery = send(to, origin)
            if delivery is not done:
                self._undelivered(RelayedFrame(channel, to, frame, rid), delivery, origin)
        bundle.send()
        return False

    def _undelivered(
        self, relayed: RelayedFrame, delivery: Delivery, origin: Origin | None = None
    ) -> None:
        """Handle a relayed frame that was not sent. `origin`: as it was received."""
        channel, to, frame, sender = relayed
        if channel is not None and delivery is Delivery.UNREACHABLE:
            delivery = self._router.send(to, frame)  # only ZeroMQ shows whether the peer is lost
        if delivery is not Delivery.DONE:
            full, now = delivery is Delivery.FULL, time.monotonic()
            self._deliver(self.core.undelivered(to, frame, sender, full, now), sender, origin)

    @property
    def _may_be_local(self) -> bool:
        """Whether any peer may use a local channel."""
        return self._local is not None and self.core.has_attach_tokens

    def _turn(self) -> tuple[Callable[[], Received | None], float]:
        """Return how to receive the next frames, and until when."""
        # Waiting in libzmq itself is faster, as long as no peer may have a local channel.
        source = self._local if self._local is not None and self._may_be_local else self._router
        if self._agenda:
            return partial(source.receive, wait=False), min(self._next_timers, self._agenda.due)
        return source.receive, self._next_timers

    def _attach(self, channel: bytes, data: bytes | memoryview) -> None:
        """Handle the first frame over a connection that may become a local channel."""
        assert self._local is not None
        owner = self.core.attach(data, time.monotonic())
        if owner is None:
            self._local.hang_up(channel)
        else:
            self._local.attach(channel, owner.rid, owner.key)

    def _receive(
        self,
        rid: bytes,
        origin: Origin | None,
        data: bytes | memoryview,
        key: bytes | None,
        at: int,
    ) -> None:
        """Pass a frame that was not relayed to the core.

        `at`: when the frame arrived, in nanoseconds, if it has time stamps; else 0.
        """
        now = time.monotonic()
        admission = self.core.admit(rid, data, key, now)
        if admission not in _ADMITTED:
            self._reject(admission, rid, origin, data, now)
            return
        name = "" if key is None else identity(key)
        if origin is None:
            # HELLO is about a ZeroMQ connection: the peer has to send it there.
            if len(data) > 2 and data[KIND_AT] == Kind.HELLO:
                self._detach(rid)
                return
            sender = Sender(rid, -1, key, name, on_host=True)
        else:
            fd = fd_of(origin)
            asks = len(data) > KIND_AT and data[KIND_AT] in _FROM_HOST
            on_host = asks and self._router.is_from_host(fd)
            watches = asks and data[KIND_AT] == Kind.WATCH
            unread = self._router.unread(fd) if watches else 0
            sender = Sender(rid, fd, key, name, self._router.connection_id(fd), on_host, unread)
        frame = ReceivedFrame(sender, origin, data, at)
        piece = Piece.LONG if takes_long(data) else _ADMITTED[admission]
        if piece is None:
            self._handle(frame, now)
        elif piece is Piece.SHORT and self._agenda.is_free(now):
            took_s = self._handle(frame, now)
            self._note_ended(piece, took_s)
        elif not self._agenda.put(key or rid, len(data), frame, piece):
            self._reject(Admission.THROTTLE, rid, origin, data, now)

    def _handle(self, frame: ReceivedFrame, now: float) -> float:
        """Pass a frame to the core. Returns the CPU time that it took, in seconds."""
        sender, origin, data, at = frame
        began = time.thread_time()
        sends = self.core.receive(sender, data, now)
        took_s = time.thread_time() - began
        self.core.charge(sender.rid, data, took_s, now)
        if at:  # a relayed frame of a learner with limits still gets its stamps
            sends = [
                Send(
                    rid, stamps.stamp_relay(data, at, time.monotonic_ns) if frame is data else frame
                )
                for rid, frame in sends
            ]
        self._deliver(sends, sender.rid, origin)
        self._write_notes()
        return took_s

    # --- work that waits --------------------------------------------------------------------------

    def _work(self, is_idle: bool) -> None:
        """Do one piece of the work that waits, if it is due, or wait for the next frame.

        `is_idle`: whether no frame has arrived.
        """
        now, began = time.monotonic(), time.thread_time()
        piece = self._agenda.next(now, is_idle=is_idle, is_relaying=self._is_relaying)
        if piece is Piece.SESSIONS:
            self._deliver(self.core.take_over(now))
        elif piece is not None:
            self._take_turns(piece, now, began)
        elif is_idle:
            local = [self._local] if self._local is not None and self._may_be_local else []
            sources: list[Waitable] = [self._router, *local]
            wait_among(sources, max(0.0, min(self._agenda.due, self._next_timers) - now))
        if piece is not None:
            self._note_ended(piece, time.thread_time() - began)

    def _note_ended(self, piece: Piece, took_s: float) -> None:
        self._agenda.ended(piece, time.monotonic(), took_s, is_relaying=self._is_relaying)

    def _take_turns(self, piece: Piece, now: float, began: float) -> None:
        """Handle the message whose turn it is, or some short ones. `began`: in CPU time."""
        while (frame := self._agenda.take(piece)) is not None:
            if frame.outlives_connection or self._is_current(frame):
                self._handle(frame, now)
            if piece is Piece.LONG or time.thread_time() - began >= PIECE_S:
                return

    def _is_current(self, frame: ReceivedFrame) -> bool:
        """Return whether the connection of a frame still exists; if not, its sender starts over."""
        if frame.origin is None:
            return True
        return self._router.connection_id(frame.sender.fd) == frame.sender.connection

    def _reject(
        self,
        admission: Admission,
        rid: bytes,
        origin: Origin | None,
        data: bytes | memoryview,
        now: float,
    ) -> None:
        if admission is not Admission.DROP:
            self._deliver(self.core.throttle(rid, data), rid, origin)
        if admission is not Admission.CUT_OFF:
            return
        if origin is None:
            self._detach(rid)
            return
        fd = fd_of(origin)
        if not self.core.may_cut_off(rid, fd, now):
            return
        if self._router.drop_input(fd):
            self._dropping_input.append((now + DROP_INPUT_S, fd, self._router.connection_id(fd)))
        else:
            self._router.hang_up(fd)

    def _detach(self, rid: bytes) -> None:
        if self._local is not None:
            self._local.detach(rid)

    def _deliver(
        self, sends: list[Send], sender: bytes = b"", origin: Origin | None = None
    ) -> None:
        """Send frames from the core; replies to `sender` take the path of its frame.

        Over ZeroMQ, another process may claim the routing id of a peer that has a local channel.
        """
        local, core = self._local, self.core
        for send in sends:
            may_be_local = send.rid != sender or origin is None
            if may_be_local and local is not None and local.deliver(send.rid, send.frame):
                continue
            delivery = self._router.send(send.rid, send.frame)
            if delivery is Delivery.UNREACHABLE:
                core.unreachable(send.rid, time.monotonic())
            elif delivery is Delivery.FULL:
                core.queue_full(send)
            else:
                core.reachable(send.rid)

    # --- timers -----------------------------------------------------------------------------------

    def _timers(self, now: float) -> None:
        """Do what is due once per tick."""
        if now < self._next_timers:
            return
        core = self.core
        if now - self._next_timers > SUSPENDED_S:
            core.woke_up(now)
        self._next_timers = now + TICK_MS / 1000
        relayed = core.frames_relayed
        self._is_relaying, self._relayed = relayed != self._relayed, relayed
        for event in self._router.link_events():
            if event.up:
                core.link_up(event.fd)
            else:
                core.link_down(event.fd)
        for fd in self._router.take_doubtful():
            core.link_doubtful(fd)
        self._deliver(core.expire(now))
        for rid in self._router.take_multipart():
            self._deliver(core.multipart(rid, now))
        self._hang_up(now)
        for fd, connection in core.learners_to_check(now):
            if self._router.connection_id(fd) != connection:
                core.link_down(fd)
                continue
            idle_s = self._router.idle_s(fd)
            if idle_s is not None:
                core.silent_for(fd, idle_s)
        changed = None if self._policy_file is None else self._policy_file.changed(now)
        if changed is not None:
            self._policy = changed
            self._deliver(core.apply_policy(changed))
        self._hang_ups = core.take_hang_ups()
        if self._local is not None:
            self._local.keep(core.peer_ids)
        self._write_notes()

    def _hang_up(self, now: float) -> None:
        """Close the connections that were due in the previous tick, and floods after a while."""
        for fd, connection in self._hang_ups:
            self._router.hang_up(fd, connection)
        while self._dropping_input and now >= self._dropping_input[0][0]:
            _, fd, connection = self._dropping_input.popleft()
            self._router.hang_up(fd, connection)

    def _write_notes(self) -> None:
        for note in self.core.take_notes():
            (self._log.debug if note.detail else self._log.info)(note.event, **note.facts)
