"""The handshake with a broker, HELLO → WELCOME, and why it fails (docs/protocol.md §6, §12).

Learners, serving loops and progress connections all introduce themselves with it: at first, after
each new connection, and whenever the broker asks. The caller passes the time.
"""

from __future__ import annotations

import math
import os
import shlex
import socket
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.metadata import version
from typing import Any

from gymwire.protocol.address import DEFAULT_BROKER, is_local
from gymwire.protocol.capabilities import CAPABILITIES, common
from gymwire.protocol.codec import PLAIN
from gymwire.protocol.errors import BrokerUnreachable, Denied, GymwireError
from gymwire.protocol.messages import Busy, BusyReason, Hello, Message, Welcome
from gymwire.protocol.transport.broker_link import BrokerLink
from gymwire.protocol.transport.hosts import unknown_host
from gymwire.protocol.transport.interface import LinkEvent

CONNECT_S = 2.5  # how long a broker that is up may take to answer
HELLO_AGAIN_S = 1.0  # how long to wait for an answer before sending HELLO again
URL_SOURCE = "--broker, broker=, GYMWIRE_BROKER"  # for an error that advises to check the URL
NOTICE_S = 3.0  # when `connect` calls `on_wait` while no broker answers


@lru_cache(maxsize=1)  # it opens files, of which a process may run out
def software() -> str:
    """Return the name and the version of this software, as HELLO and WELCOME give it."""
    return f"gymwire {version('gymwire')}"


class Handshake:
    """Introduces one connection to its broker.

    `role`: one of `messages.Role`. `agent`: 16 random bytes, the same for all connections of a
    process. `sessions`: returns the live sessions that HELLO lists.

    Attributes:
        welcome: the broker's last answer, None before the first.
        capabilities: those that the broker and this side share (docs/protocol.md §3.11).
        progress_at: when the broker last confirmed something; `wait_s` of `connect` starts again.
    """

    def __init__(
        self,
        link: BrokerLink,
        role: str,
        agent: bytes,
        sessions: Callable[[], Sequence[Any]] = tuple,
    ) -> None:
        self.welcome: Welcome | None = None
        self.capabilities: frozenset[str] = frozenset()
        self._link = link
        self._role = role
        self._agent = agent
        self._sessions = sessions
        software()
        self.progress_at = -math.inf
        self._repeat_at = 0.0
        self._reason = ""  # why the broker has refused this side, since its last WELCOME
        self._is_denied = False  # whether ZeroMQ has given up
        self._has_dialed = True  # whether this side has dialed since UP, and in this call

    def connect(
        self,
        clock: Callable[[], float],
        wait_s: float,
        *,
        pump: Callable[[], object],
        done: Callable[[], bool],
        stopped: Callable[[], bool] = lambda: False,
        on_wait: Callable[[], None] = lambda: None,
    ) -> bool:
        """Send HELLO until the broker has answered; return False if `stopped` meanwhile.

        Args:
            clock: returns the time in seconds.
            wait_s: how long the broker may take.
            pump: receives at most one frame, waiting a tick at most, and handles it.
            done: whether the answer is complete.
            stopped: whether to give up.
            on_wait: called once if the broker has not answered after `NOTICE_S`.

        Raises BrokerUnreachable, Denied, and whatever `pump` raises.
        """
        began = clock()
        notice_at = began + NOTICE_S
        sent = False
        while not done():
            if stopped():
                return False
            sent = self.repeat_hello(clock(), wait=True) or sent
            if sent:
                pump()
            self._read_events()
            now = clock()
            if now - max(began, self.progress_at) > wait_s:
                raise self._unanswered(wait_s)
            if now > notice_at:
                notice_at = began + wait_s
                on_wait()
        self._read_events()  # the first connection is not a reconnection
        return True

    def send_hello(self, now: float, *, wait: bool = False) -> bool:
        """Send HELLO; return whether there was a connection to send it over."""
        hello = Hello(
            self._role,
            self._agent,
            software(),
            socket.gethostname(),
            list(self._sessions()),
            list(CAPABILITIES),
            os.getpid(),
        )
        sent = self._link.send_hello(PLAIN.encode(hello), wait)
        if sent:
            self._repeat_at = now + HELLO_AGAIN_S
        return sent

    def repeat_hello(self, now: float, *, wait: bool = False) -> bool:
        """Send HELLO unless the last one is recent; it or its answer may have been lost."""
        return now >= self._repeat_at and self.send_hello(now, wait=wait)

    def pause(self, retry_after_s: float, now: float) -> None:
        """Send no HELLO until the broker's rate limit admits more: it did not handle a message."""
        pause_s = min(max(0.0, retry_after_s), HELLO_AGAIN_S)
        self._repeat_at = max(self._repeat_at, now + pause_s)

    def handle(self, message: Message, now: float) -> bool:
        """Handle WELCOME, and BUSY "hello", which asks for HELLO; return whether it was either."""
        match message:
            case Welcome():
                self.welcome, self._reason = message, ""
                self.capabilities = common(message.capabilities)
                self._link.handle_welcome(message)
            case Busy(reason=BusyReason.HELLO):
                self.send_hello(now)
            case _:
                return False
        return True

    def watch(self, now: float) -> list[LinkEvent]:
        """Return the connections made and lost since the last call; send HELLO over a new one.

        Raises Denied.
        """
        events = self._read_events()
        if any(event.up for event in events):
            self.send_hello(now)
        return events

    def begin_call(self) -> None:
        """Let a denial count only if it answers a dial from now on: others may be old."""
        self._has_dialed = False

    def _read_events(self) -> list[LinkEvent]:
        if self._is_denied:  # in an earlier call
            self._dial_again()
        events = self._link.link_events()
        for event in events:
            if event.up:
                self._has_dialed = False
            elif event.denied and not self._has_dialed:
                self._dial_again()  # the denial may be old, and the key be valid again
            elif event.denied:
                self._is_denied = True
                raise self.refuse(self._denied(event.denied))
        return events

    def _dial_again(self) -> None:
        self._is_denied, self._has_dialed = False, True
        self._link.dial_again()

    def refuse(self, error: GymwireError) -> GymwireError:
        """Note an error with which the broker refuses this side; return the first of them."""
        if self._reason:
            return Denied(self._reason)
        self._reason = str(error)
        return error

    def _denied(self, why: str) -> Denied:
        return Denied(f"Cannot connect to the broker at {self._link.url}: {why}")

    def _unanswered(self, waited_s: float) -> Denied | BrokerUnreachable:
        url = self._link.url
        if self.welcome is not None:
            return BrokerUnreachable(
                f"The broker at {url} answers, but has not confirmed all offers within "
                f"{waited_s:g} s. It may be overloaded: wait longer (--wait, wait_s=). Or the path "
                f"may lose large packets, as behind a tunnel with a wrong MTU. Check the MTU along "
                f"the path."
            )
        if self._link.handshake_hint:
            return self._denied(self._link.handshake_hint)
        unknown = unknown_host(url)
        if unknown:
            return BrokerUnreachable(f"No broker answers at {url}: {unknown}. Check the URL.")
        # ZeroMQ listens at numeric addresses only.
        at = url.replace("//localhost:", "//127.0.0.1:")
        bind = f" --bind {shlex.quote(at)}" if is_local(url) and at != DEFAULT_BROKER else ""
        return BrokerUnreachable(f"No broker answers at {url}.", url_source=URL_SOURCE, bind=bind)
