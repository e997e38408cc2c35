"""The broker without its socket and clock: a frame and a time go in, frames to send come out.

Its tables are soft. They are filled again by what agents announce after a restart; nothing that a
peer sends makes them grow without bound.
"""

from __future__ import annotations

import random

from gymwire.broker import directory, offers
from gymwire.broker.auth import NO_POLICY, Policy
from gymwire.broker.connections import Connections
from gymwire.broker.events import Notes, Send, Sender, say
from gymwire.broker.peers import Peers
from gymwire.broker.quotas import Meters
from gymwire.broker.rate_limit import Gate, Ruling
from gymwire.broker.recovery import Awaited
from gymwire.broker.refusals import Refusal, refuse
from gymwire.broker.session_messages import SessionFrames
from gymwire.broker.sessions import Sessions
from gymwire.broker.tables import Peer, Tables
from gymwire.protocol import codec
from gymwire.protocol.capabilities import CAPABILITIES
from gymwire.protocol.codec import KIND_AT, PLAIN, SID, UP_TO_KIND, Frame
from gymwire.protocol.errors import DecodingError, GymwireError
from gymwire.protocol.messages import (
    CONTROL_KINDS,
    LIVENESS_PREFIX,
    VERSION,
    Attach,
    Busy,
    BusyReason,
    Bye,
    Code,
    Find,
    Found,
    Hello,
    Kind,
    Message,
    Offer,
    Offered,
    Open,
    Ping,
    Progress,
    Resume,
    Welcome,
    Withdraw,
)

MAX_CONTROL = 1024 * 1024  # bytes of a message that the broker itself reads
SWEEP_S = 10.0  # how often peers are asked for whose connection cannot be watched
RETRY_S = 1.0  # when who asked too much may try again

# Relayed unread. CLOSED ends a session and ERROR may refuse an OPEN: those are looked at.
_RELAYED = frozenset(
    bytes((codec.MAGIC, VERSION, kind))
    for kind in Kind
    if kind < CONTROL_KINDS and kind not in (Kind.CLOSED, Kind.ERROR)
)


class Core:
    """One run of a broker. `epoch`: a random number of this run; `lease_s`: for silent learners.

    `lane`: where peers of `host` may dial lanes; "" where nobody can.
    """

    def __init__(
        self,
        *,
        epoch: int,
        now: float,
        rng: random.Random,
        software: str,
        lease_s: float = 30.0,
        max_message: int = 64 * 1024 * 1024,
        policy: Policy = NO_POLICY,
        lane: str = "",
        host: str = "",
    ) -> None:
        self.tables = tables = Tables()
        self.notes = notes = Notes()
        self.connections = Connections(tables, now, lease_s)
        awaited, meters = Awaited(tables, now), Meters()
        self.sessions = Sessions(tables, self.connections, awaited, meters, notes, rng, lease_s)
        self._frames = SessionFrames(tables, self.sessions, meters, notes)
        welcome = Welcome(
            epoch, software, "", max_message, lease_s, lane, capabilities=list(CAPABILITIES)
        )
        self.peers = Peers(
            tables, self.connections, self.sessions, awaited, notes, policy, welcome, host, rng
        )
        self._routes = tables.routes
        self._gate = Gate()
        self._sweep_at = now + SWEEP_S
        self._flood_note_at = now

    # --- the hot path -----------------------------------------------------------------------------

    def relay(self, rid: bytes, data: bytes | memoryview, key: bytes | None) -> bytes | None:
        """Where a frame of the gym dialogue goes, or None if `receive` must look at it.

        Reads the header and the sender only.
        """
        if len(data) < codec.HEADER_SIZE:
            return None
        route = self._routes.get(rid + data[SID])
        if route is None or route.key != key or bytes(data[UP_TO_KIND]) not in _RELAYED:
            return None
        route.session.frames += 1
        return route.rid

    # --- floods -----------------------------------------------------------------------------------

    def rule(self, rid: bytes, data: bytes | memoryview, key: bytes | None, now: float) -> Ruling:
        """Whether the broker looks at a frame that `relay` did not place.

        The frames of its own sessions do not count: the other side pays for them, too.
        """
        if len(data) >= codec.HEADER_SIZE and (
            data[KIND_AT] < CONTROL_KINDS or data[KIND_AT] == Kind.OPENED
        ):
            route = self._routes.get(rid + bytes(data[SID]))
            if route is not None and route.key == key:
                return Ruling.PASS
        return self._gate.rule(rid, len(data), now)

    def refuse(self, rid: bytes, data: bytes | memoryview) -> list[Send]:
        """What is told to the sender of a frame that is not looked at, since it asks too much."""
        try:
            header = codec.read_header(data)
        except GymwireError:
            return []
        return [say(rid, Busy(BusyReason.RATE, RETRY_S), header.sid, header.seq)]

    def cut_off(self, rid: bytes, fd: int, now: float) -> bool:
        """Whether to close the connection of this descriptor, over which `rid` floods the broker.

        Not if it is another peer's by now: the frame may have waited longer than its connection.
        """
        holder = self.tables.by_fd.get(fd)
        if holder is not None and holder.rid != rid:
            return False
        peer = self.tables.peers.get(rid)
        if peer is not None and now >= self._flood_note_at:
            self._flood_note_at = now + SWEEP_S
            self.notes.add("hung up on a flood", host=peer.host, identity=peer.identity)
        return True

    # --- lanes ------------------------------------------------------------------------------------

    def attach(self, data: Frame | memoryview, now: float) -> Peer | None:
        """Whose lane a connection is, by its first frame; None: nobody's."""
        try:
            message = PLAIN.decode(data)
        except GymwireError:
            return None
        peer = (
            self.tables.by_ticket.get(message.attach_token) if isinstance(message, Attach) else None
        )
        if peer is None or self._gate.rule(peer.rid, len(data), now) is not Ruling.PASS:
            return None
        return peer

    # --- everything else --------------------------------------------------------------------------

    def receive(self, sender: Sender, data: bytes | memoryview, now: float) -> list[Send]:
        """Take a frame that `relay` did not place; returns what to send."""
        if not data and sender.rid[:1] == LIVENESS_PREFIX:
            self.peers.present(sender, now)
            return []
        try:
            header = codec.read_header(data)
        except GymwireError as error:
            return [refuse(sender.rid, error)]
        try:
            return self._look_at(sender, header, data, now)
        except GymwireError as error:
            return [refuse(sender.rid, error, header.sid, header.seq)]

    def _look_at(
        self, sender: Sender, header: codec.Header, data: bytes | memoryview, now: float
    ) -> list[Send]:
        peer = self.tables.peers.get(sender.rid)
        if peer is not None:
            if peer.key != sender.key:
                # Somebody guesses ids.
                text = "This routing id belongs to another connection."
                raise Refusal(Code.DENIED, text)
            peer.heard, peer.hung_up = now, False
        unread = header.kind < CONTROL_KINDS or header.kind is Kind.OPENED
        if not unread and len(data) > MAX_CONTROL:
            text = f"A {header.kind.name} may have {MAX_CONTROL} bytes, this one has {len(data)}."
            raise Refusal(Code.TOO_LARGE, text)
        message = None if unread else PLAIN.decode(data, header)
        if isinstance(message, Hello):
            return self.peers.hello(sender, header, message, now)
        if peer is None:
            return [say(sender.rid, Busy(BusyReason.HELLO, 0.0), header.sid, header.seq)]
        if message is not None:
            return self._answer(peer, header, message, now)
        if header.kind is Kind.OPENED:
            return self.sessions.opened(peer, header, data)
        return self._frames.frame(peer, header, data, now)

    def _answer(self, peer: Peer, header: codec.Header, message: Message, now: float) -> list[Send]:
        match message:
            case Offer():
                address, env = message.address, message.env_id
                if offers.admit(self.tables, peer, message, header.head_len):
                    self.notes.add("offer", address=address, env=env, host=peer.host)
                return [say(peer.rid, Offered(address), 0, header.seq)]
            case Withdraw():
                if message.address in peer.offers:
                    peer.draining.add(message.address)
                return []
            case Find():
                found = Found(directory.listing(self.tables, message.address, peer.rights))
                answer = say(peer.rid, found, 0, header.seq)
                self._gate.charge(peer.rid, len(answer.frame), now)
                return [answer]
            case Open():
                return self.sessions.open(peer, header, message, now)
            case Resume():
                return self.sessions.resume(peer, header, message, now)
            case Progress():
                return self._frames.progress(peer, header, message, now)
            case Ping():
                return self._frames.ping(peer, header, now)
            case Bye():
                return self.peers.bye(peer)
        raise DecodingError(f"{header.kind.name} is not for a broker.")

    def undelivered(
        self, to: bytes, data: bytes | memoryview, sender: bytes, full: bool, now: float
    ) -> list[Send]:
        """A relayed frame could not be delivered: tell a learner to send it again later.

        A reply is not worth a message: the env agent keeps it, and the learner asks again.
        """
        if not full:
            self.connections.unreachable(to, now)
        # Not `read_header`: what is relayed unread may be damaged behind the sid and the kind.
        *_, sid, seq = codec.HEADER.unpack_from(data)
        session = self.tables.sessions.get(sid)
        if session is None or session.learner is None or session.learner.rid != sender:
            return []
        reason = BusyReason.QUEUE_FULL if full else BusyReason.UNREACHABLE
        return [say(sender, Busy(reason, 0.05), sid, seq)]

    def expire(self, now: float) -> list[Send]:
        """What time alone brings about: probes, sessions of lost agents, leases."""
        sends: list[Send] = []
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_S
            self._gate.sweep(now)
            sends += self.connections.probe_unwatched()
        self.connections.listen(now)
        sends += self.sessions.tell_again()
        sends += self.connections.probe()
        sends += self.peers.expire(now)
        sends += self.sessions.expire(now)
        return sends
