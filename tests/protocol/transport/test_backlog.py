from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

import pytest
import zmq

from gymwire.protocol.transport import backlog, inflow, kernel
from gymwire.protocol.transport.backlog import MARK_BYTES, Backlogs
from gymwire.protocol.transport.interface import Delivery
from gymwire.protocol.transport.router import Router
from tests.chaos.fleet import until

MIB = 1024 * 1024
LIMIT = 8 * MIB
KERNEL = 24 * MIB  # what the buffers of both sockets may hold beyond libzmq's queue
RID = b"\x01reader"


@pytest.fixture
def router(monkeypatch: pytest.MonkeyPatch) -> Iterator[Router]:
    monkeypatch.setattr(backlog, "MAX_WAITING", LIMIT)
    listening = Router(["tcp://127.0.0.1:*"])
    yield listening
    listening.close()


@pytest.fixture
def reader(router: Router) -> Iterator[zmq.Socket[bytes]]:
    """Return a connected peer that reads only when a test does."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.ROUTING_ID, RID)
    socket.rcvhwm, socket.linger, socket.rcvtimeo = 1, 0, 10_000
    socket.connect(router.urls[0])
    socket.send(b"hello" * 10)
    until(lambda: router.receive() is not None, "the peer is connected")
    yield socket
    socket.close()
    context.term()


def numbered(number: int, size: int) -> bytes:
    return number.to_bytes(4, "big") + bytes(size - 4)


def is_sent(router: Router, frame: bytes) -> bool:
    return router.send(RID, frame) is Delivery.DONE


def fill(router: Router, size: int) -> int:
    """Send frames until the peer is FULL; return how many."""
    for number in itertools.count():
        if router.send(RID, numbered(number, size)) is Delivery.FULL:
            return number
    raise AssertionError


@pytest.mark.parametrize("size", [64 * 1024, 300_000, MIB, 3 * MIB, LIMIT - 1])
def test_the_bytes_that_wait_for_a_peer_that_does_not_read_are_bounded(
    router: Router, reader: zmq.Socket[bytes], size: int
) -> None:
    sent = fill(router, size)
    assert LIMIT - MARK_BYTES - size < sent * size <= LIMIT + KERNEL
    assert router._backlogs.of(RID).waiting <= LIMIT + MARK_BYTES
    for number in range(sent):
        assert reader.recv()[:4] == number.to_bytes(4, "big")
    # A peer that reads gets more.
    until(lambda: router.send(RID, numbered(7, size)) is Delivery.DONE, "it has room again")
    assert reader.recv()[:4] == (7).to_bytes(4, "big")


def test_relayed_frames_count_too(router: Router, reader: zmq.Socket[bytes]) -> None:
    reader.send(numbered(3, 3 * MIB))
    received = None
    while received is None:
        received = router.receive()
    _, origin, _ = received
    assert origin is not None
    sent = 0
    while router.send(RID, origin) is Delivery.DONE:
        sent += 1
    assert sent * 3 * MIB <= LIMIT + KERNEL
    assert all(reader.recv() == numbered(3, 3 * MIB) for _ in range(sent))


def test_a_frame_larger_than_the_limit_is_sent_alone(
    router: Router, reader: zmq.Socket[bytes]
) -> None:
    for number in range(3):
        frame = numbered(number, LIMIT * 2)
        until(partial(is_sent, router, frame), "it is sent")
        assert reader.recv() == frame


def test_other_peers_are_not_affected(router: Router, reader: zmq.Socket[bytes]) -> None:
    fill(router, MIB)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    other = context.socket(zmq.DEALER)
    other.setsockopt(zmq.ROUTING_ID, b"\x01other")
    other.linger, other.rcvtimeo = 0, 10_000
    other.connect(router.urls[0])
    other.send(b"hello" * 10)
    until(lambda: router.receive() is not None, "the other is connected")
    assert router.send(b"\x01other", bytes(MIB)) is Delivery.DONE
    assert len(other.recv()) == MIB
    other.close()
    context.term()


@pytest.mark.parametrize(("resets", "unanswered"), [(3, 100), (100, 1)], ids=["reset", "silent"])
def test_a_peer_that_is_gone_is_forgotten(
    router: Router,
    reader: zmq.Socket[bytes],
    monkeypatch: pytest.MonkeyPatch,
    resets: int,
    unanswered: int,
) -> None:
    monkeypatch.setattr(inflow, "RESETS", resets)
    monkeypatch.setattr(kernel, "UNANSWERED", unanswered)
    fill(router, MIB)
    reader.close()  # with a reset, since it has not read all

    def is_unreachable() -> bool:
        router.link_events()
        return router.send(RID, b"x") is Delivery.UNREACHABLE

    until(is_unreachable, "the peer is gone")
    assert len(router._backlogs) == 0


def test_backlogs_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "MAX_BACKLOGS", 10)
    backlogs = Backlogs()
    backlogs.of(b"full").sent(MARK_BYTES, None)
    for number in range(100):
        backlogs.of(bytes([number])).sent(5000, None)
    assert len(backlogs) <= 10
    assert backlogs.of(b"full").waiting == MARK_BYTES
