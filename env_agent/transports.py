"""The transports of a serving loop: relayed by the broker, and direct (docs/protocol.md §9).

A reply takes the path by which its request came. A session may use both paths at any time: the
request numbers make the switch safe.
"""

from __future__ import annotations

import hmac
import math
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from gymwire.env_agent import failure_reports
from gymwire.env_agent.session import Session
from gymwire.protocol import logs
from gymwire.protocol.address import is_local
from gymwire.protocol.codec import KIND_AT, PLAIN, Frame, Header, Pieces
from gymwire.protocol.errors import ConfigurationError
from gymwire.protocol.messages import (
    CONTROL_KINDS,
    Busy,
    BusyReason,
    Code,
    Error,
    Kind,
    Message,
    Resume,
    Resumed,
)
from gymwire.protocol.security.keys import KeyPair, identity
from gymwire.protocol.transport.broker_link import BrokerLink
from gymwire.protocol.transport.interface import TICK_MS, Listener, Origin, Received, Waitable
from gymwire.protocol.transport.polling import wait_among
from gymwire.protocol.transport.private_folder import PrivateFolder
from gymwire.protocol.transport.registry import ListenOptions, listen, local_url
from gymwire.protocol.transport.router import Router, public_key_of
from gymwire.protocol.transport.unix import UnixRouter

RELAY = b""  # the path through the broker; a direct path is the routing id of its connection
DIRECT_TICK_MS = 2  # how long to wait for one direct socket before polling the other ones, too
POLL_ALL_EVERY = 64  # frames of one socket after which the other ones are polled, too
TICK_S = TICK_MS / 1000
MAX_LOSS_REASONS = 1000  # lost sessions whose learners get the reason
PAUSE_S = 1.0  # since the last `watch`, in which a connection may have failed unnoticed
NEW_LEARNER_POLLS = 1000  # frames, or idle ticks, within which a new learner connects directly


class DirectSettings(NamedTuple):
    """The settings of `--direct`.

    `url` is tcp://HOST:PORT of the first loop (the next loop uses PORT + 1, and so on), or None
    for connections from this host only.
    """

    url: str | None
    key: KeyPair | None = None
    insecure: bool = False


class DirectEndpoint:
    """The listening sockets of one loop, and which connection may use which session.

    Learners on this host use the Unix socket; with keys, which need ZeroMQ, they use ipc.

    Args:
        settings: the settings of `--direct`.
        index: the index of the loop among those of its agent.
        broker: the broker's URL, which shows the interface that learners can reach.

    Attributes:
        attached: sid → the connection to which the session is bound, its key, and its listener.
        only_socket: the socket that all attached sessions use, or None if they use several.
        receive_alone: receives from the socket that all sessions use, while `alone_for` sessions
            are open; None if that has to be found out again, as after each change.
        new_learner_polls: how many more times all sockets are polled, because a learner that was
            offered a direct connection has not connected yet.
        offer: how learners can connect, as OPENED carries it.
    """

    def __init__(self, settings: DirectSettings, index: int, broker: str) -> None:
        self.attached: dict[int, tuple[bytes, bytes | None, Listener]] = {}
        self.only_socket: Listener | None = None
        self.receive_alone: Callable[[], Received | None] | None = None
        self.alone_for = 0
        self.new_learner_polls = 0
        self._key = settings.key
        self._used: Counter[Listener] = Counter()  # by how many sessions
        self._losses: dict[int, Error] = {}  # sid → why the session was lost, the oldest first
        self._learners: dict[int, str] = {}  # sid → the identity that may attach to it
        self._not_connected: set[int] = set()  # the sessions whose learner is waited for
        urls = [] if settings.url is None else [_at_port(settings.url, index)]
        self._folder: PrivateFolder | None = None
        try:
            self._folder = PrivateFolder()
        except ConfigurationError as error:
            if settings.url is None:
                raise
            if index == 0:
                logs.logger().warning("Unix sockets unavailable", why=str(error))
        else:
            within_host = local_url(f"{self._folder.path}/direct", keyed=settings.key is not None)
            if within_host is not None:
                urls.append(within_host)
        options = ListenOptions(
            key=settings.key,
            allow=self._is_learners_key,
            insecure=settings.insecure,
            ended=self._connection_lost,
            tick_ms=DIRECT_TICK_MS,
            elsewhere="give --direct another port: each thread takes the next one",
        )
        try:
            self.listeners = listen(urls, options)
        except BaseException:
            self._remove_folder()
            raise
        self._by_mark = {listener.mark: listener for listener in self.listeners}
        self._unmarked = self._by_mark.get(-1)
        if settings.url is not None:
            port = self.listeners[0].urls[0].rpartition(":")[2]
            urls[0] = f"tcp://{_advertised_host(settings.url, broker)}:{port}"
        self.offer: dict[str, Any] = {
            "urls": urls,
            "host": socket.gethostname(),
            "key": b"" if settings.key is None else settings.key.public,
        }

    def expect(self, sid: int, learner: str) -> None:
        """Let the learner of this session connect; its identity is `learner`, "" without keys."""
        self._learners[sid] = learner
        if not self.new_learner_polls:
            self._not_connected.clear()
        self.new_learner_polls = NEW_LEARNER_POLLS
        self.receive_alone = None
        self._not_connected.add(sid)

    def admit(
        self,
        session: Session | None,
        rid: bytes,
        origin: Origin | None,
        header: Header,
        data: bytes | memoryview,
    ) -> bool:
        """Return whether a direct frame is a request of the session bound to its connection.

        If not, reply to it; RESUME binds the session.

        Args:
            session: the session that the frame names, or None if it is not open.
            rid: the connection by which the frame came.
            origin: what libzmq knows about the frame.
            header: its header.
            data: the frame.
        """
        if (
            session is not None
            and header.kind < CONTROL_KINDS
            and self.bound_listener(session.sid, rid, origin) is not None
        ):
            return True
        reply: Message = Busy(BusyReason.HELLO, 0.0)
        if session is None:
            reply = self._losses.get(header.sid) or failure_reports.session_lost()
        elif header.kind is Kind.RESUME:
            resume = PLAIN.decode(data, header)
            assert isinstance(resume, Resume)
            if self.attach(session, resume.nonce, rid, origin):
                reply = Resumed()
            else:
                reply = Error(Code.DENIED, "This session belongs to another learner.")
        self.send(rid, PLAIN.encode(reply, header.sid, header.seq))
        return False

    def attach(self, session: Session, nonce: bytes, rid: bytes, origin: Origin | None) -> bool:
        """Bind the session to this connection, and return True, if it is its learner's."""
        if not hmac.compare_digest(nonce, session.nonce):
            return False
        key = None
        if self._key is not None:
            key = None if origin is None else public_key_of(origin)
            if key is None or identity(key) != session.learner:
                return False
        listener = self.listener_of(rid)
        if listener is None:
            return False
        self._unbind(session.sid)
        self.attached[session.sid] = (rid, key, listener)
        self._used[listener] += 1
        self._stop_waiting(session.sid)
        self._choose_only_socket()
        return True

    def bound_listener(self, sid: int, rid: bytes, origin: Origin | None) -> Listener | None:
        """Return the listener of this connection if the session is bound to it, else None.

        It is bound to the routing id, and to the key if there are keys.
        """
        bound = self.attached.get(sid)
        if bound is None or bound[0] != rid:
            return None
        if self._key is not None and (origin is None or bound[1] != public_key_of(origin)):
            return None
        return bound[2]

    def detach(self, sid: int, loss: Error | None = None) -> None:
        """Forget a session that has ended. `loss`: why it is lost, for its learner."""
        if loss is not None:
            self._losses[sid] = loss
            if len(self._losses) > MAX_LOSS_REASONS:
                del self._losses[next(iter(self._losses))]
        self._learners.pop(sid, None)
        self._stop_waiting(sid)
        self._unbind(sid)
        self._choose_only_socket()

    def send(self, rid: bytes, frame: Frame | Pieces) -> None:
        """Send to a connection; `Pieces` only if its listener takes them.

        If the connection is lost or its queue is full, the learner repeats its request.
        """
        listener = self.listener_of(rid)
        if listener is not None:
            listener.send(rid, frame)  # type: ignore[arg-type]

    def close(self) -> None:
        """Close the sockets."""
        for listener in self.listeners:
            listener.close(linger_s=0.3)
        self._remove_folder()

    def _remove_folder(self) -> None:
        if self._folder is not None:
            self._folder.remove()

    def listener_of(self, rid: bytes) -> Listener | None:
        """Return the listener of this connection."""
        return self._by_mark.get(rid[0], self._unmarked)

    def _unbind(self, sid: int) -> None:
        bound = self.attached.pop(sid, None)
        if bound is not None:
            self._used[bound[2]] -= 1
            if not self._used[bound[2]]:
                del self._used[bound[2]]

    def _choose_only_socket(self) -> None:
        self.only_socket = next(iter(self._used)) if len(self._used) == 1 else None
        self.receive_alone = None

    def _stop_waiting(self, sid: int) -> None:
        """Do not wait any longer for the learner of this session."""
        self._not_connected.discard(sid)
        if not self._not_connected:
            self.new_learner_polls = 0

    def _is_learners_key(self, key: bytes) -> bool:
        """Return whether a session's learner has this key. Called in another thread."""
        return identity(key) in tuple(self._learners.values())

    def _connection_lost(self, rid: bytes) -> None:
        """Unbind the sessions of a connection; they may use another one, or the relay."""
        for sid in [sid for sid, bound in self.attached.items() if bound[0] == rid]:
            self._unbind(sid)
        self._choose_only_socket()


class Transports:
    """Receives from both paths, and sends on either.

    Attributes:
        link: the link to the broker.
        direct: the endpoint for direct connections, or None.
        zero_copy: the session whose last reply was sent from, and still is in, its environment's
            memory.
    """

    def __init__(self, link: BrokerLink, direct: DirectEndpoint | None) -> None:
        self.link = link
        self.direct = direct
        self.zero_copy: Session | None = None
        self._turns_left = POLL_ALL_EVERY  # frames to receive before all sockets are polled
        # A session that could connect directly uses the relay: how many more direct frames to
        # receive by polling all sockets.
        self._relayed_polls = 0
        self._watched_at = -math.inf
        self._listeners = [] if direct is None else direct.listeners
        self._sockets: list[Waitable] = [link, *self._listeners]

    def poll(self) -> bool:
        """Return whether a frame has arrived already."""
        return self.link.poll() if self.direct is None else bool(wait_among(self._sockets, 0))

    def receive(self, sessions: int) -> Received | None:
        """Return the next frame, or None after a tick without one.

        The frame's path stands in the place of the sender's routing id.

        While all sessions use one socket, wait for that one only: a poll over all costs more than
        2 µs. Poll all sockets if a session that is attached to a direct one uses the relay.

        Args:
            sessions: the number of open sessions.
        """
        direct = self.direct
        if direct is None:
            return self._receive_relayed()
        receive = direct.receive_alone
        if receive is None or direct.alone_for != sessions:
            receive = self._choose_alone(direct, sessions)
        if receive is not None and self._turns_left:
            self._turns_left -= 1
            received = receive()
            if received is not None:
                return received
            self._turns_left = 0  # poll all sockets until something arrives
            ticked_ms = TICK_MS if direct.only_socket is None else DIRECT_TICK_MS
            return self._receive_any((TICK_MS - ticked_ms) / 1000)
        received = self._receive_any(TICK_S)
        if received is not None:
            self._turns_left = POLL_ALL_EVERY
        return received

    def _choose_alone(
        self, direct: DirectEndpoint, sessions: int
    ) -> Callable[[], Received | None] | None:
        """Return what receives from the only socket in use, or None to poll all sockets."""
        only_socket, attached = direct.only_socket, len(direct.attached)
        if direct.new_learner_polls:
            direct.new_learner_polls -= 1
            return None
        if attached and (self._relayed_polls or only_socket is None or attached != sessions):
            return None
        receive = self._receive_relayed if only_socket is None else only_socket.receive
        direct.receive_alone, direct.alone_for = receive, sessions
        return receive

    @property
    def signals(self) -> Sequence[Waitable] | None:
        """What has input if there is something to do; None: call all methods regularly."""
        found = [self.link.signals, *(one.signals for one in self._listeners)]
        if None in found:
            return None
        return [one for signals in found if signals is not None for one in signals]

    def receive_or_wake(self, wakeup: Waitable) -> tuple[Received | None, bool]:
        """Return the next frame, or None after a tick; and whether `wakeup` ended the waiting."""
        ready = wait_among([*self._sockets, wakeup], TICK_S)
        woken = bool(ready) and ready[-1] == len(self._sockets)
        return self._receive_ready(ready[:-1] if woken else ready), woken

    def receive_buffered(self) -> Received | None:
        """Return a frame that has arrived together with an earlier one; None if there is none."""
        for index, one in enumerate(self._sockets):
            if one.has_buffered:
                return self._receive_ready([index])
        return None

    def _receive_any(self, wait_s: float) -> Received | None:
        """Return a frame from any socket, from the relay's first."""
        return self._receive_ready(wait_among(self._sockets, wait_s))

    def _receive_ready(self, ready: list[int]) -> Received | None:
        """Return a frame from the first of these sockets that has one."""
        for index in ready:
            if not index:
                relayed = self._receive_relayed()
                # A request of a session, not a message from the broker itself.
                if (
                    relayed is not None
                    and len(relayed[2]) > KIND_AT
                    and relayed[2][KIND_AT] < CONTROL_KINDS
                ):
                    self._relayed_polls = POLL_ALL_EVERY
                    if self.direct is not None:
                        self.direct.receive_alone = None
                return relayed
            arrived = self._listeners[index - 1].receive(wait=False)
            if arrived is not None:
                self._relayed_polls -= bool(self._relayed_polls)
                return arrived
        return None

    def _receive_relayed(self) -> Received | None:
        receive = self.link.receive  # a local, which Python 3.11 calls faster than an attribute
        data = receive()
        return None if data is None else (RELAY, None, data)

    def watch(self, now: float) -> None:
        """Close direct connections that deliver bytes without end. Call it every 100 ms.

        After a pause, close the endpoint if a connection has failed meanwhile that libzmq did not
        read: the next `receive` could abort the process.

        Args:
            now: the time in monotonic seconds.
        """
        paused, self._watched_at = now - self._watched_at > PAUSE_S, now
        for listener in self._listeners:
            if isinstance(listener, Router):
                listener.link_events()
                if paused and listener.has_failed():
                    self._close_direct()
                    return

    def watch_after_pause(self, now: float) -> None:
        """Call `watch` if its last call is long ago, as after a long step; before `receive`."""
        if now - self._watched_at > PAUSE_S:
            self.watch(now)

    def _close_direct(self) -> None:
        """Use the broker alone from now on."""
        logs.logger().warning(
            "direct sessions ended",
            why="a peer has filled its connection during a long step and vanished, and libzmq "
            "would abort this process: sessions continue through the broker. Restart this env "
            "agent to allow direct sessions again",
        )
        if self.direct is not None:
            self.direct.close()
        self.direct, self._listeners, self._sockets = None, [], [self.link]

    def send_pieces(
        self, session: Session, path: bytes, listener: Listener | None, reply: Pieces
    ) -> None:
        """Send the reply of a session from the environment's memory if its path supports that.

        `listener`: of a direct path; None: the path through the broker.

        A request for step n+1 proves that reply n arrived, so the reply need not be kept when the
        environment overwrites that memory in its next step.
        """
        frame: Frame | Pieces = reply
        if (self.link if listener is None else listener).takes_pieces:
            self.zero_copy = session
        else:
            frame = session.detach_reply()
        if listener is None:
            self.link.send(frame)
        else:
            listener.send(path, frame)  # type: ignore[arg-type]

    def detach_reply(self) -> None:
        """Copy the last reply before anything but the next step of its session happens."""
        if self.zero_copy is not None:
            self.zero_copy.detach_reply()
            self.zero_copy = None

    def listener_of(self, path: bytes) -> Listener | None:
        """Return the listener of a direct path, None for the path through the broker."""
        return None if not path or self.direct is None else self.direct.listener_of(path)

    def send(self, path: bytes, frame: Frame | Pieces) -> None:
        """Send a reply by the path of its request; if that is lost, the learner repeats it."""
        if not path:
            self.link.send(frame)
        elif self.direct is not None:
            self.direct.send(path, frame)

    def send_all(self, replies: Iterable[tuple[bytes, Frame]]) -> None:
        """Send replies, each by the path of its request: those of one path together.

        Each call of the kernel lets another thread have the interpreter, and takes long.
        """
        by_path: dict[bytes, list[Frame]] = {}
        for path, frame in replies:
            by_path.setdefault(path, []).append(frame)
        for path, frames in by_path.items():
            listener = self.listener_of(path)
            if not path:
                self.link.send_all(frames)
            elif isinstance(listener, UnixRouter):
                listener.send_all(path, frames)
            else:
                for frame in frames:
                    self.send(path, frame)

    def close(self) -> None:
        """Close all connections."""
        self.link.close(linger_s=0.3)
        if self.direct is not None:
            self.direct.close()


def _at_port(url: str, index: int) -> str:
    head, _, port = url.rpartition(":")
    return url if port == "*" else f"{head}:{int(port) + index}"


def _advertised_host(url: str, broker: str) -> str:
    """Return the host that learners dial: the given one, or for `*` the one facing the broker."""
    host = url.removeprefix("tcp://").rpartition(":")[0]
    if host not in ("*", "0.0.0.0", "[::]"):
        return host
    if is_local(broker):
        return "127.0.0.1"
    target = broker.removeprefix("tcp://").rpartition(":")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            target[0].strip("[]"), int(target[2]), type=socket.SOCK_DGRAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)  # sends nothing: it only picks the interface
            name = str(probe.getsockname()[0])
    except OSError as error:
        raise ConfigurationError(
            f"--direct {url}: cannot find the address of this host that learners should dial "
            f"({error.strerror}). Name it: --direct tcp://HOST:PORT."
        ) from None
    return f"[{name}]" if ":" in name else name
