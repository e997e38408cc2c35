"""The ROUTER loop and the clock around the core."""

from __future__ import annotations

import os
import random
import socket as hostsocket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable
from importlib.metadata import version

import structlog

from gymwire.broker.auth import NO_POLICY
from gymwire.broker.core import Core
from gymwire.broker.events import Send, Sender
from gymwire.broker.local_channels import Lanes
from gymwire.broker.policy_file import PolicyFile
from gymwire.broker.rate_limit import Ruling
from gymwire.protocol import stamps
from gymwire.protocol.codec import FLAGS_AT, KIND_AT, TIMED
from gymwire.protocol.errors import ConfigurationError
from gymwire.protocol.messages import Kind
from gymwire.protocol.security.keys import KeyPair, identity
from gymwire.protocol.transport.interface import MAX_MESSAGE, TICK_MS, Delivery, Origin
from gymwire.protocol.transport.router import Router, fd_of, public_key_of
from gymwire.protocol.transport.unix import CAN_LISTEN

if sys.platform != "win32":
    import resource

# Hung up on, a flood would be back at once, and a connection that is made costs more than a frame.
MUTED_S = 2.0
STOPPED_S = 2.0  # a gap between two ticks that shows that this process was frozen


def _descriptors() -> int:
    """How many this process may have."""
    if sys.platform == "win32":
        return 0
    return min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 2**20)


class Server:
    """A broker at these URLs, listening from the moment it is made until `run` returns.

    `lanes`: peers of this host may have them.
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
        lanes: bool = True,
    ) -> None:
        self._policy_file = policy
        self._policy = NO_POLICY if policy is None else policy.policy
        self._router = Router(
            urls,
            key=key,
            allow=lambda public: self._policy.admits(public),
            insecure=insecure,
            max_message=max_message,
            elsewhere="choose another port (--bind; --broker or GYMWIRE_BROKER tell the others)",
        )
        self.urls = self._router.urls
        self._keyed = key is not None
        self._log = structlog.get_logger()
        self._host = hostsocket.gethostname()
        self._lanes = self._make_lanes(max_message) if lanes else None
        self.core = Core(
            epoch=random.SystemRandom().getrandbits(63),
            now=time.monotonic(),
            rng=random.SystemRandom(),
            software=f"gymwire {version('gymwire')}",
            lease_s=lease_s,
            max_message=max_message,
            policy=self._policy,
            lane="" if self._lanes is None else self._lanes.url,
            host=self._host,
        )
        self._next_timers = time.monotonic()
        self._hang_ups: list[tuple[int, int]] = []
        self._muted: deque[tuple[float, int, int]] = deque()  # until when, fd and connection

    def run(self, stop: threading.Event) -> None:
        """Serve until `stop` is set; then tell the peers and leave."""
        self._log.info("broker listens", urls=self.urls, host=self._host, pid=os.getpid())
        try:
            while not stop.is_set():
                self._serve()
                self._timers(time.monotonic())
        finally:
            self._deliver(self.core.peers.goodbye())
            self._log.info("broker stops")
            if self._lanes is not None:
                self._lanes.close()
            self._router.close(linger_s=0.3)

    def _make_lanes(self, max_message: int) -> Lanes | None:
        if not CAN_LISTEN:
            return None
        try:
            # Descriptors are for those, too, who come by ZeroMQ only.
            return Lanes(self._router, max_lanes=_descriptors() // 4, max_message=max_message)
        except ConfigurationError as error:
            self._log.warning("peers of this host get no lanes", why=str(error))
            return None

    def _serve(self) -> None:
        """What comes until timers are due, or until the sockets have rested for a tick."""
        send, lanes, tickets = self._router.send, self._lanes, self.core.tables.by_ticket
        # While nobody may have a lane, to wait in libzmq itself is faster.
        waits_for_lanes = lanes is not None and bool(tickets)
        receive = lanes.receive if lanes is not None and waits_for_lanes else self._router.receive
        lane_of, owners = ({}, {}) if lanes is None else (lanes.of, lanes.owners)
        relay = self.core.relay
        clock, until, keyed, done = time.monotonic, self._next_timers, self._keyed, Delivery.DONE
        while clock() < until:
            received = receive()
            if received is None:
                return
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
            at = time.monotonic_ns() if len(data) > FLAGS_AT and data[FLAGS_AT] & TIMED else 0
            to = relay(rid, data, key)
            if to is None:
                self._look_at(rid, origin, data, key, at)
                if lanes is not None and waits_for_lanes is not bool(tickets):
                    return
                continue
            frame = stamps.stamp_relay(data, at, time.monotonic_ns) if at else data
            to_lane = lane_of.get(to)
            if to_lane is not None and lanes is not None:
                delivery = lanes.send(to_lane, frame)
                if delivery is Delivery.UNREACHABLE:  # of that, only ZeroMQ can tell
                    delivery = send(to, frame)
            elif at or origin is None or type(data) is bytes:
                delivery = send(to, frame)
            else:  # as libzmq received it
                delivery = send(to, origin)
            if delivery is not done:
                full, now = delivery is Delivery.FULL, time.monotonic()
                self._deliver(self.core.undelivered(to, data, rid, full, now), rid, origin)

    def _attach(self, lane: bytes, data: bytes | memoryview) -> None:
        """The first frame of a connection that may become somebody's lane."""
        assert self._lanes is not None
        peer = self.core.attach(data, time.monotonic())
        if peer is None:
            self._lanes.hang_up(lane)
        else:
            self._lanes.open(lane, peer)

    def _look_at(
        self,
        rid: bytes,
        origin: Origin | None,
        data: bytes | memoryview,
        key: bytes | None,
        at: int,
    ) -> None:
        now = time.monotonic()
        ruling = self.core.rule(rid, data, key, now)
        if ruling is not Ruling.PASS:
            self._refuse(ruling, rid, origin, data, now)
            return
        name = "" if key is None else identity(key)
        if origin is None:
            if (
                len(data) > KIND_AT and data[KIND_AT] == Kind.HELLO
            ):  # that is about a ZeroMQ connection
                self._end_lane(rid)
                return
            sender = Sender(rid, -1, key, name)
        else:
            fd = fd_of(origin)
            sender = Sender(rid, fd, key, name, self._router.connection_id(fd))
        sends = self.core.receive(sender, data, now)
        if at:  # of a learner with limits
            sends = [
                Send(
                    rid, stamps.stamp_relay(data, at, time.monotonic_ns) if frame is data else frame
                )
                for rid, frame in sends
            ]
        self._deliver(sends, rid, origin)
        self._write_notes()

    def _refuse(
        self,
        ruling: Ruling,
        rid: bytes,
        origin: Origin | None,
        data: bytes | memoryview,
        now: float,
    ) -> None:
        if ruling is not Ruling.DROP:
            self._deliver(self.core.refuse(rid, data), rid, origin)
        if ruling is Ruling.CUT_OFF and origin is None:
            self._end_lane(rid)
        elif ruling is Ruling.CUT_OFF and origin is not None:
            fd = fd_of(origin)
            if not self.core.cut_off(rid, fd, now):
                return
            if self._router.drop_input(fd):
                self._muted.append((now + MUTED_S, fd, self._router.connection_id(fd)))
            else:
                self._router.hang_up(fd)

    def _end_lane(self, rid: bytes) -> None:
        if self._lanes is not None and rid in self._lanes.of:
            self._lanes.hang_up(self._lanes.of[rid])

    def _deliver(
        self, sends: list[Send], sender: bytes = b"", origin: Origin | None = None
    ) -> None:
        """Send what the core has said, to the sender of a frame on the way by which that came.

        Over ZeroMQ it may be somebody else who claims the routing id of a peer that has a lane.
        """
        lanes = self._lanes
        for send in sends:
            by_lane = send.rid != sender or origin is None
            if by_lane and lanes is not None and lanes.deliver(send.rid, send.frame):
                continue
            delivery = self._router.send(send.rid, send.frame)
            if delivery is Delivery.UNREACHABLE:
                self.core.connections.unreachable(send.rid, time.monotonic())
            elif delivery is Delivery.FULL:
                self.core.sessions.not_told(send)
            else:
                self.core.connections.reachable(send.rid)

    def _timers(self, now: float) -> None:
        if now < self._next_timers:
            return
        connections = self.core.connections
        if now - self._next_timers > STOPPED_S:
            connections.woke(now)
        self._next_timers = now + TICK_MS / 1000
        for event in self._router.link_events():
            if event.up:
                connections.link_up(event.fd)
            else:
                connections.link_down(event.fd)
        self._deliver(self.core.expire(now))
        # A tick later than the message that says why.
        for fd, connection in self._hang_ups:
            self._router.hang_up(fd, connection)
        while self._muted and now >= self._muted[0][0]:
            _, fd, connection = self._muted.popleft()
            self._router.hang_up(fd, connection)
        for learner in connections.learners_to_watch(now):
            idle_s = self._router.idle_s(learner.fd)
            if idle_s is not None:
                connections.quiet(learner, idle_s)
        changed = None if self._policy_file is None else self._policy_file.changed()
        if changed is not None:
            self._policy = changed
            self._deliver(self.core.peers.apply(changed))
        self._hang_ups, connections.hang_ups = connections.hang_ups, []
        if self._lanes is not None:
            self._lanes.keep(self.core.tables.peers)
        self._write_notes()

    def _write_notes(self) -> None:
        for note in self.core.notes:
            self._log.info(note.event, **note.facts)
        self.core.notes.clear()
