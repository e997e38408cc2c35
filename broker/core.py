"""The broker without socket and clock: frames and times go in, frames to send come out.

The tables are soft state: after a restart the env agents announce their sessions again. Nothing
that a peer sends makes them grow without bound.
"""

from __future__ import annotations

import contextlib
import random
import traceback
from collections.abc import Collection
from typing import NamedTuple

from gymwire.broker import announcements, directory, offers, snapshot
from gymwire.broker.auth import NO_POLICY, Policy
from gymwire.broker.connections import Connections
from gymwire.broker.decoding import CODEC, FREE_DECODED, decode
from gymwire.broker.events import Send, Sender
from gymwire.broker.journal import Drop, Journal, Note
from gymwire.broker.operators import Operators
from gymwire.broker.peers import Peers
from gymwire.broker.quotas import Quotas
from gymwire.broker.rate_limit import Admission, RateLimiter
from gymwire.broker.recovery import SessionRecovery
from gymwire.broker.refusals import MAX_WHY, Refusal, RetryLater, reply_to
from gymwire.broker.session_messages import SessionMessages
from gymwire.broker.sessions import Sessions
from gymwire.broker.snapshot import Snapshot
from gymwire.broker.tables import LARGE, MAX_UNANSWERED, Peer, Tables
from gymwire.protocol import codec
from gymwire.protocol.capabilities import CAPABILITIES, PAGES
from gymwire.protocol.codec import (
    HEADER_SIZE,
    KIND_AT,
    MAX_MESSAGE,
    SEQ,
    SID,
    UP_TO_KIND,
    Frame,
)
from gymwire.protocol.errors import DecodingError, GymwireError
from gymwire.protocol.messages import (
    CONTROL_KINDS,
    LIVENESS_PREFIX,
    VERSION,
    Attach,
    BusyReason,
    Bye,
    Code,
    Find,
    Found,
    Kind,
    Message,
    Observe,
    Offer,
    Offered,
    Open,
    Ping,
    Progress,
    Report,
    Resume,
    Stop,
    Watch,
    Watched,
    Welcome,
    Withdraw,
)
from gymwire.protocol.observations import BrokerTotals

SWEEP_S = 10.0  # interval between probes of peers whose connection cannot be watched
THROTTLE_RETRY_S = 1.0  # when a peer may repeat a message after it sent too many
MAX_TRACEBACK = 20_000  # characters of a traceback in the log, from its end
UNDELIVERED_RETRY_S = 0.05  # when a learner may repeat a request that was not delivered

# The first bytes of frames that are relayed unread. CLOSED ends a session and ERROR may refuse
# OPEN: the broker reads those.
_RELAYED = frozenset(
    bytes((codec.MAGIC, VERSION, kind))
    for kind in Kind
    if kind < CONTROL_KINDS and kind not in (Kind.CLOSED, Kind.ERROR)
)


class Attachment(NamedTuple):
    """The peer that a local channel belongs to: its routing id and public key."""

    rid: bytes
    key: bytes | None


class Core:
    """One run of a broker. All times are monotonic seconds.

    Args:
        epoch: a random number that identifies this run.
        now: the time at which it starts.
        rng: the source of session ids and attach tokens.
        software: the name and version of this program, for the peers.
        lease_s: how long a session waits for a lost learner, in seconds.
        max_message: the size of the largest frame, in bytes.
        policy: what each key may do.
        local: the URL for local channels, and the host whose peers may open them; None: no peer
            may.
    """

    def __init__(
        self,
        *,
        epoch: int,
        now: float,
        rng: random.Random,
        software: str,
        lease_s: float = 30.0,
        max_message: int = MAX_MESSAGE,
        policy: Policy = NO_POLICY,
        local: tuple[str, str] | None = None,
    ) -> None:
        self._epoch = epoch
        self._software = software
        self._started = now
        self._tables = tables = Tables(rng)
        self._journal = journal = Journal(tables.describe)
        self._connections = connections = Connections(tables, now, lease_s)
        recovery, quotas = SessionRecovery(tables, now), Quotas()
        self._announcements = recovery.announcements
        self._sessions = Sessions(tables, connections, recovery, quotas, journal, lease_s)
        self._messages = SessionMessages(tables, self._sessions, quotas, journal)
        url, host = local or ("", "")
        welcome = Welcome(
            epoch, software, "", max_message, lease_s, url, capabilities=list(CAPABILITIES)
        )
        self._peers = Peers(
            tables, connections, self._sessions, recovery, journal, policy, welcome, host
        )
        self._routes = tables.routes
        self._limiter = RateLimiter()
        self._operators = Operators(tables, self._sessions, self._limiter, journal, self._state)
        self._sweep_at = now + SWEEP_S
        self._flood_note_at = now

    # --- the hot path -----------------------------------------------------------------------------

    def relay(self, rid: bytes, data: bytes | memoryview, key: bytes | None) -> bytes | None:
        """Return the receiver of a frame of the gym dialogue; None: pass it to `receive`.

        Reads only the header and the sender.
        """
        size = len(data)
        if size < HEADER_SIZE:
            return None
        route = self._routes.get(rid + data[SID])
        if route is None or route.key != key or bytes(data[UP_TO_KIND]) not in _RELAYED:
            return None
        flow = route.flow
        frames = flow.frames + 1
        # As `Flow.admit`, without a call for a small frame.
        if (size >= LARGE or not frames % MAX_UNANSWERED) and not flow.has_answer(route.back):
            return None
        flow.frames = frames
        journal = self._journal  # as `Journal.relayed`, without a call
        journal.frames_relayed += 1
        journal.bytes_relayed += size
        return route.rid

    # --- rate limit -------------------------------------------------------------------------------

    def admit(
        self, rid: bytes, data: bytes | memoryview, key: bytes | None, now: float
    ) -> Admission:
        """Return what to do with a frame that `relay` did not relay.

        Frames of the sender's own sessions are free: they cost the other side as much. The quotas
        of a key limit what they name, and nothing else does. All other frames ask something of the
        broker itself, and wait for their turn. So do free frames that the broker may decode.
        """
        if len(data) >= HEADER_SIZE and (
            data[KIND_AT] < CONTROL_KINDS or data[KIND_AT] == Kind.OPENED
        ):
            sid = int.from_bytes(data[SID], "little")
            side = self._tables.side_of(sid, rid, key)
            if side is not None:
                metered = side.rights.metered  # a quota may refuse the frame, and then it counts
                free = self._limiter.admit_free(rid, now) if metered else Admission.PASS
                return self._in_turn(free, rid, now) if data[KIND_AT] in FREE_DECODED else free
        if len(data) >= HEADER_SIZE and data[KIND_AT] == Kind.WATCHED:
            numbers = (int.from_bytes(data[at], "little") for at in (SID, SEQ))
            if self._operators.awaits(rid, *numbers):  # it costs the watcher, who has asked for it
                return self._in_turn(self._limiter.admit_free(rid, now), rid, now)
        admission = self._limiter.admit(rid, len(data), now)
        if admission is Admission.DROP:
            self._journal.drop(rid, Drop.FLOOD)
        return self._in_turn(admission, rid, now)

    def _in_turn(self, admission: Admission, rid: bytes, now: float) -> Admission:
        """Let a frame that may pass wait for its turn."""
        if admission is not Admission.PASS:
            return admission
        return Admission.DEMANDING if self._limiter.is_demanding(rid, now) else Admission.WAIT

    def charge(self, rid: bytes, data: bytes | memoryview, cpu_s: float, now: float) -> None:
        """Charge the sender of a frame for the CPU time that `receive` took."""
        is_free = len(data) >= HEADER_SIZE and data[KIND_AT] in FREE_DECODED
        self._limiter.charge_time(rid, cpu_s, now, paid=not is_free)

    def multipart(self, rid: bytes, now: float) -> list[Send]:
        """Return the reply to a message of several parts, which the broker does not read."""
        if self._limiter.admit(rid, 0, now) is not Admission.PASS:
            self._journal.drop(rid, Drop.MULTIPART)
            return []
        text = "A message must have exactly one part, the frame; this one had more."
        return [reply_to(self._journal, rid, DecodingError(text))]

    def throttle(self, rid: bytes, data: bytes | memoryview) -> list[Send]:
        """Return BUSY for a frame that is not admitted; nothing if it is malformed."""
        try:
            header = codec.read_header(data)
        except GymwireError:
            self._journal.drop(rid, Drop.MALFORMED)
            return []
        busy = RetryLater(BusyReason.RATE, THROTTLE_RETRY_S)
        return [reply_to(self._journal, rid, busy, header.sid, header.seq)]

    def may_cut_off(self, rid: bytes, fd: int, now: float) -> bool:
        """Return whether to close the connection with this descriptor, over which `rid` floods.

        False if the descriptor belongs to another peer by now: a frame may stay queued for longer
        than its connection lasts.
        """
        holder = self._tables.by_fd.get(fd)
        if holder is not None and holder.rid != rid:
            return False
        peer = self._tables.peers.get(rid)
        if peer is not None and now >= self._flood_note_at:
            self._flood_note_at = now + SWEEP_S
            self._journal.note("flood cut off", **self._tables.describe(rid))
        return True

    # --- local channels ---------------------------------------------------------------------------

    @property
    def has_attach_tokens(self) -> bool:
        """Whether any peer may use a local channel."""
        return bool(self._tables.by_attach_token)

    def attach(self, data: Frame | memoryview, now: float) -> Attachment | None:
        """Return the peer that a local channel belongs to, by its first frame; None: none."""
        peer = None
        with contextlib.suppress(GymwireError):
            message = CODEC.decode(data)
            if isinstance(message, Attach):
                peer = self._tables.by_attach_token.get(message.attach_token)
        if peer is None or self._limiter.admit(peer.rid, len(data), now) is not Admission.PASS:
            self._journal.drop(b"" if peer is None else peer.rid, Drop.NO_TOKEN)
            return None
        return Attachment(peer.rid, peer.key)

    # --- frames -----------------------------------------------------------------------------------

    @property
    def frames_relayed(self) -> int:
        """How many frames have been relayed."""
        return self._journal.frames_relayed

    def receive(self, sender: Sender, data: bytes | memoryview, now: float) -> list[Send]:
        """Handle a frame that `relay` did not relay. Returns the frames to send."""
        if not data and sender.rid[:1] == LIVENESS_PREFIX:
            self._peers.liveness(sender, now)
            return []
        try:
            header = codec.read_header(data)
        except GymwireError as error:
            return [reply_to(self._journal, sender.rid, error)]
        try:
            return self._handle(sender, header, data, now)
        except GymwireError as error:
            if self._tables.side_of(header.sid, sender.rid, sender.key) is not None:
                self._limiter.charge_refusal(sender.rid, now)
            return [reply_to(self._journal, sender.rid, error, header.sid, header.seq)]
        except Exception as error:  # noqa: BLE001 - a bug must not end the broker for all peers
            self._note_bug()
            text = f"The broker failed to handle {header.kind.name}: {type(error).__name__}."
            bug = DecodingError(f"{text} This is a bug in gymwire.")
            return [reply_to(self._journal, sender.rid, bug, header.sid, header.seq)]

    def _note_bug(self) -> None:
        trace = traceback.format_exc()[-MAX_TRACEBACK:]
        self._journal.note("frame failed, a bug in gymwire", traceback=trace)

    @property
    def has_announcements(self) -> bool:
        """Whether sessions that a long HELLO lists still wait for `take_over`."""
        return bool(self._announcements)

    def take_over(self, now: float) -> list[Send]:
        """Take over some of the sessions that long HELLOs list. Call it between frames."""
        try:
            return self._peers.take_over(now)
        except Exception:  # noqa: BLE001 - as in `receive`
            self._note_bug()
            return []

    def _handle(
        self, sender: Sender, header: codec.Header, data: bytes | memoryview, now: float
    ) -> list[Send]:
        peer = self._tables.peers.get(sender.rid)
        if peer is not None:
            if peer.key != sender.key:  # somebody guesses routing ids
                text = "This routing id is in use under another key. Give each socket a random one."
                raise Refusal(Code.DENIED, text)
            peer.heard, peer.hung_up, peer.may_be_closing = now, False, False
        unread = header.kind < CONTROL_KINDS or header.kind is Kind.OPENED
        if header.kind is Kind.HELLO:
            hello, listed = announcements.read_hello(header, data)
            return self._peers.hello(sender, header, hello, now, listed)
        message = None if unread else decode(header, data)
        if peer is None:
            raise RetryLater(BusyReason.HELLO, 0.0)
        match message:
            case Observe():
                return self._operators.observe(peer, sender, header, message, now)
            case Stop():
                return self._operators.stop(peer, sender, header, message, now)
            case Watch():
                return self._operators.watch(peer, sender, header, message, now)
            case Watched():
                return self._operators.watched(peer, header, data, now)
        if message is not None:
            return self._answer(peer, header, message, now)
        if header.kind is Kind.OPENED:
            return self._sessions.opened(peer, header, data)
        return self._messages.relay(peer, header, data, now)

    def _answer(self, peer: Peer, header: codec.Header, message: Message, now: float) -> list[Send]:
        match message:
            case Offer():
                return [self._offer(peer, header, message)]
            case Withdraw():
                self._peers.withdraw(peer, message.address)
                return []
            case Find():
                return [self._find(peer, header, message, now)]
            case Open():
                return self._sessions.open(peer, header, message, now)
            case Resume():
                return self._sessions.resume(peer, header, message, now)
            case Progress():
                return self._messages.progress(peer, header, message, now)
            case Report():
                self._operators.report(peer, message, now)
                return []
            case Ping():
                return self._messages.ping(peer, header, now)
            case Bye(reason):
                return self._peers.bye(peer, reason)
        raise DecodingError(f"A broker does not accept {header.kind.name}.")

    def _offer(self, peer: Peer, header: codec.Header, offer: Offer) -> Send:
        facts = {"address": offer.address[:MAX_WHY], "env": offer.env_id[:MAX_WHY]}
        process = {"host": peer.host, "pid": peer.pid}
        try:
            is_first = offers.accept(self._tables, peer, offer, header.head_len)
        except GymwireError as error:
            if not peer.offer_refused:  # it may repeat the offer without end
                peer.offer_refused = True
                self._journal.note("offer refused", why=str(error)[:MAX_WHY], **facts, **process)
            raise
        peer.offer_refused = False
        if is_first:
            self._journal.note("offering", **facts, agent=peer.agent_id, **process)
        return Send.message(peer.rid, Offered(offer.address), 0, header.seq)

    def _find(self, peer: Peer, header: codec.Header, find: Find, now: float) -> Send:
        wait_s = self._limiter.listing_wait_s(peer.rid, now)
        if wait_s:
            raise RetryLater(BusyReason.RATE, wait_s)
        pages = PAGES in peer.capabilities
        page = directory.listing(self._tables, find, peer.rights, pages=pages)
        found = Found([], page.rest if pages else [])
        packed = codec.encode_packed(found, directory.pack_page(page), 0, header.seq)
        answer = Send(peer.rid, packed)
        self._limiter.charge_listing(peer.rid, len(answer.frame), page.examined, now)
        return answer

    # --- what became of sent frames ---------------------------------------------------------------

    def undelivered(
        self, to: bytes, data: Frame | memoryview, sender: bytes, full: bool, now: float
    ) -> list[Send]:
        """Handle a relayed frame that could not be sent. Returns BUSY if it was a request.

        `full`: the receiver does not read; otherwise it has no connection. A lost reply needs no
        message: the env agent keeps it and the learner asks for it again.
        """
        if not full:
            self._connections.unreachable(to, now)
        # Not `read_header`: a frame that was relayed unread may be damaged after kind and sid.
        *_, sid, seq = codec.HEADER.unpack_from(data)
        session = self._tables.sessions.get(sid)
        if session is None or session.learner is None or session.learner.rid != sender:
            self._journal.drop(sender, Drop.NOT_SENT)
            return []
        session.requests.forgive()
        reason = BusyReason.QUEUE_FULL if full else BusyReason.UNREACHABLE
        busy = RetryLater(reason, UNDELIVERED_RETRY_S)
        return [reply_to(self._journal, sender, busy, sid, seq)]

    def reachable(self, rid: bytes) -> None:
        """Note that a frame from the broker itself was sent to this peer."""
        self._connections.reachable(rid)

    def unreachable(self, rid: bytes, now: float) -> None:
        """Note that a frame from the broker itself found no connection to this peer."""
        self._connections.unreachable(rid, now)

    def queue_full(self, send: Send) -> None:
        """Note that a frame from the broker itself was dropped: its receiver does not read."""
        self._sessions.queue_full(send)

    # --- connections ------------------------------------------------------------------------------

    @property
    def peer_ids(self) -> Collection[bytes]:
        """The routing ids of all peers, including lost ones."""
        return self._tables.peers.keys()

    def link_up(self, fd: int) -> None:
        """Note that a connection with this descriptor was made."""
        self._connections.link_up(fd)

    def link_down(self, fd: int) -> None:
        """Note that the connection with this descriptor ended."""
        self._connections.link_down(fd)

    def link_doubtful(self, fd: int) -> None:
        """Note that the connection with this descriptor may have ended."""
        self._connections.link_doubtful(fd)

    def woke_up(self, now: float) -> None:
        """Note that this process was suspended and that its peers have to reconnect."""
        self._connections.woke_up(now)

    def learners_to_check(self, now: float) -> list[tuple[int, int]]:
        """Return the connections, as (descriptor, connection), for which `silent_for` is due.

        Call it once per tick, and `link_down` for those that have ended.
        """
        return self._connections.learners_to_check(now)

    def silent_for(self, fd: int, silent_s: float) -> None:
        """Note that nothing, not even a heartbeat, came over this connection for `silent_s`."""
        self._connections.silent_for(fd, silent_s)

    def take_hang_ups(self) -> list[tuple[int, int]]:
        """Return the connections to close, as (descriptor, connection), and forget them.

        Close them a tick later, so that the messages that explain it arrive first.
        """
        taken, self._connections.hang_ups = self._connections.hang_ups, []
        return taken

    # --- time, policy and state -------------------------------------------------------------------

    def expire(self, now: float) -> list[Send]:
        """Do what is due at this time: probes, and the end of leases and of lost env agents."""
        sends: list[Send] = []
        self._journal.admit_details()
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_S
            self._limiter.sweep(now)
            sends += self._connections.probe_unwatched()
        self._connections.drop_silent_agents(now)
        sends += self._sessions.retry_undelivered()
        sends += self._connections.probe()
        self._tables.expire_stuck(now)
        sends += self._peers.expire(now)
        sends += self._sessions.expire(now)
        return sends

    def apply_policy(self, policy: Policy) -> list[Send]:
        """Replace the policy and end all that the new one does not allow."""
        return self._peers.apply(policy)

    def goodbye(self) -> list[Send]:
        """Return BYE for every peer, for a broker that stops."""
        return self._peers.goodbye()

    def take_notes(self) -> list[Note]:
        """Return the events for the log and forget them."""
        return self._journal.take_notes()

    def snapshot(self, now: float) -> Snapshot:
        """Return the offers, peers, sessions and counters as plain values."""
        return snapshot.take(self._tables, self._state(now), now)

    def _state(self, now: float) -> BrokerTotals:
        uptime_s = now - self._started
        return snapshot.broker_state(
            self._tables,
            self._journal,
            epoch=self._epoch,
            software=self._software,
            uptime_s=uptime_s,
        )
