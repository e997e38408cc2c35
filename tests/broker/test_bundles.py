"""Frames that have arrived together are sent on together, each exactly once and in order."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from gymwire.broker.local_channels import MAX_BUNDLE
from gymwire.broker.server import Server
from gymwire.protocol import codec
from gymwire.protocol.codec import PLAIN, Frame, Header
from gymwire.protocol.ending_signals import StopEvent
from gymwire.protocol.messages import (
    Act,
    Busy,
    BusyReason,
    Hello,
    Message,
    Offered,
    Open,
    Opened,
    Role,
    Welcome,
)
from gymwire.protocol.transport.broker_link import BrokerLink
from gymwire.protocol.transport.dealer import Dealer
from gymwire.protocol.transport.interface import Delivery
from gymwire.protocol.transport.unix import CAN_LISTEN
from tests.broker.harness import offer, opened

pytestmark = pytest.mark.skipif(not CAN_LISTEN, reason="this system has no local channels")

ATTEMPTS = 300  # ticks for what must happen, on a machine that may be busy
SESSIONS = 3
STEPS = 3 * MAX_BUNDLE


def answer(link: BrokerLink) -> tuple[Header, Message]:
    for _ in range(ATTEMPTS):
        link.link_events()
        data = link.receive()
        if data is not None:
            header = codec.read_header(data)
            return header, PLAIN.decode(data, header)
    raise AssertionError("nothing came")


class Peers:
    """A broker, an env agent with sessions of one learner, and both on local channels.

    `bundles`: the numbers of frames that the broker has sent together.
    """

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.server = Server(["tcp://127.0.0.1:*"])
        stop = StopEvent()
        thread = threading.Thread(target=self.server.run, args=(stop,))
        thread.start()
        stack.callback(thread.join)
        stack.callback(stop.set)
        self.env, self.learner = (self._connect(stack, role) for role in (Role.ENV, Role.LEARNER))
        self.env.send(PLAIN.encode(offer("cartpole"), 0, 1))
        assert isinstance(answer(self.env)[1], Offered)
        self.sids = [self._open(number) for number in range(SESSIONS)]
        self.bundles: list[int] = []
        self.delivery: Delivery | None = None  # in the place of what the channel returns
        local: Any = self.server._local
        send_all = local.send_all

        def note(channel: bytes, frames: Sequence[Frame]) -> Delivery:
            self.bundles.append(len(frames))
            return self.delivery or send_all(channel, frames)

        local.send_all = note

    def _connect(self, stack: contextlib.ExitStack, role: str) -> BrokerLink:
        link = BrokerLink(Dealer(self.server.urls[0]), eager=True)
        stack.enter_context(contextlib.closing(link))
        hello = Hello(role, role.encode().ljust(16), "gymwire test", socket.gethostname())
        for _ in range(ATTEMPTS):
            if link.send_hello(PLAIN.encode(hello), wait=True):
                break
        welcome = answer(link)[1]
        assert isinstance(welcome, Welcome)
        link.handle_welcome(welcome)
        for _ in range(ATTEMPTS):  # a busy broker may be slow to accept
            link._check_pending(wait=True)
        assert link._channel is not None
        return link

    def _open(self, number: int) -> int:
        self.learner.send(PLAIN.encode(Open("cartpole", bytes([number]) * 16), 0, number + 1))
        header, message = answer(self.env)
        assert isinstance(message, Open)
        self.env.send(PLAIN.encode(opened(), header.sid, header.seq))
        header, message = answer(self.learner)
        assert isinstance(message, Opened)
        return header.sid

    def step(self) -> list[tuple[int, int]]:
        """Send steps of all sessions at once; return their sids and numbers."""
        sent = [(self.sids[n % SESSIONS], n // SESSIONS + 1) for n in range(STEPS)]
        self.learner.send_all([PLAIN.encode(Act(b"x" * 10 * seq), sid, seq) for sid, seq in sent])
        return sent


@pytest.fixture
def peers() -> Iterator[Peers]:
    with contextlib.ExitStack() as stack:
        yield Peers(stack)


def names(answers: Sequence[tuple[Header, Message]]) -> list[tuple[int, int]]:
    return [(header.sid, header.seq) for header, _ in answers]


def test_what_arrives_together_is_sent_on_together_and_in_order(peers: Peers) -> None:
    sent = peers.step()
    found = [answer(peers.env) for _ in sent]
    assert names(found) == sent
    assert all(message == Act(b"x" * 10 * header.seq) for header, message in found)
    assert max(peers.bundles) > 1
    assert max(peers.bundles) <= MAX_BUNDLE


def test_what_a_lost_local_channel_does_not_take_goes_over_zeromq(peers: Peers) -> None:
    peers.delivery = Delivery.UNREACHABLE
    sent = peers.step()
    found = [answer(peers.env) for _ in sent]
    assert sorted(names(found)) == sorted(sent)


def test_each_step_that_a_full_channel_does_not_take_gets_busy(peers: Peers) -> None:
    peers.delivery = Delivery.FULL
    sent = peers.step()
    refused: list[tuple[int, int]] = []
    while sum(peers.bundles) == 0 or len(refused) < sum(peers.bundles):
        header, message = answer(peers.learner)
        assert isinstance(message, Busy)
        assert message.reason == BusyReason.QUEUE_FULL
        refused.append((header.sid, header.seq))
    assert set(refused) <= set(sent)
