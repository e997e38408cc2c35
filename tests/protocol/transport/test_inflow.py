"""A peer whose message never ends: no receive mark of libzmq bounds it, so gymwire closes it."""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from gymwire.protocol.transport import inflow, kernel
from gymwire.protocol.transport.context import context
from gymwire.protocol.transport.dealer import Dealer
from gymwire.protocol.transport.inflow import Inflow
from gymwire.protocol.transport.interface import LinkEvent
from gymwire.protocol.transport.router import MAX_MARK, Router, fd_of, receive_mark
from tests.chaos.fleet import until
from tests.protocol.transport.test_stalled_readers import (
    dial_as_dealer,
    receive_exactly,
    reset,
    shake_hands,
)

MIB = 1024 * 1024
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's tcp_info")


def message(size: int, *, more: bool = False) -> bytes:
    return bytes((2 | more,)) + struct.pack(">Q", size) + bytes(size)


@contextlib.contextmanager
def accepted(dial: Callable[[str], Any]) -> Iterator[tuple[Any, socket.socket]]:
    """Lend what `dial` makes of a URL, and the other side of its connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        ours = dial(f"tcp://127.0.0.1:{listener.getsockname()[1]}")
        peer, _ = listener.accept()
        peer.settimeout(20)
        with peer:
            shake_hands(peer)
            yield ours, peer
            ours.close()


@contextlib.contextmanager
def router(max_message: int) -> Iterator[tuple[Router, socket.socket]]:
    made = Router(["tcp://127.0.0.1:*"], max_message=max_message)
    with dial_as_dealer(int(made.urls[0].rpartition(":")[2])) as peer:
        yield made, peer
    made.close()


def dealer(max_message: int) -> Any:
    return accepted(lambda url: Dealer(url, max_message=max_message))


SIDES = pytest.mark.parametrize("side", [router, dealer])


@pytest.mark.parametrize("more", [False, True], ids=["messages", "parts"])
def test_a_receive_mark_counts_messages_and_not_parts(more: bool) -> None:
    """What libzmq 4.3.5 does; docs/design.md draws the conclusion."""

    def dial(url: str) -> zmq.Socket[bytes]:
        made: zmq.Socket[bytes] = context().socket(zmq.DEALER)
        made.linger = 0
        made.setsockopt(zmq.RCVHWM, 4)
        made.connect(url)
        return made

    part = message(MIB, more=more)
    with accepted(dial) as (_, peer):
        peer.settimeout(1)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 100:
                peer.sendall(part)
                sent += 1
        assert (sent == 100) is more


@SIDES
def test_a_message_without_end_closes_its_connection(side: Any) -> None:
    with side(MIB) as (ours, peer):

        def flood() -> None:
            with contextlib.suppress(OSError):
                while True:
                    peer.sendall(message(64 * 1024, more=True))

        flooder = threading.Thread(target=flood)
        flooder.start()
        events: list[LinkEvent] = []
        for _ in range(200):
            assert ours.receive() is None
            events += ours.link_events()
            if any(not event.up for event in events):
                break
        with contextlib.suppress(OSError):
            peer.shutdown(socket.SHUT_RDWR)
        flooder.join(20)
        assert [event.up for event in events] == [True, False]


@SIDES
def test_complete_messages_do_not_close_a_connection_however_many(side: Any) -> None:
    number = 100
    with side(MIB) as (ours, peer):
        data = message(MIB)
        sender = threading.Thread(
            target=lambda: [peer.sendall(data) for _ in range(number)], daemon=True
        )
        sender.start()
        received = 0
        while received < number:
            received += ours.receive() is not None
            assert all(event.up for event in ours.link_events())
        sender.join(20)


@SIDES
def test_messages_that_have_waited_do_not_close_a_connection(side: Any) -> None:
    number = 12
    with side(MIB) as (ours, peer):
        peer.sendall(message(MIB) * number)
        for _ in range(number):
            assert all(event.up for event in ours.link_events())
            assert ours.receive() is not None


@pytest.mark.parametrize("max_message", [1, 1000, MIB, 3 * MIB, 64 * MIB, 1024 * MIB])
def test_the_marks_of_a_listening_socket_bound_its_bytes(max_message: int) -> None:
    mark = receive_mark(max_message)
    assert 16 <= mark <= MAX_MARK
    assert mark * max_message <= max(1024 * MIB, 16 * max_message)


def test_many_connections_are_looked_at_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[int] = []
    monkeypatch.setattr(kernel, "shut_down", closed.append)
    monkeypatch.setattr(kernel, "bytes_received", lambda fd: 0 if fd % 2 else 2000)
    monkeypatch.setattr(kernel, "connection_id", lambda fd: fd)
    watched = Inflow(limit=1000)
    number = 3 * inflow.CHECKS
    for fd in range(number):
        watched.note(LinkEvent(True, fd))
    for _ in range(9):
        watched.close_overfull()
    assert sorted(closed) == list(range(0, number, 2))


def test_another_connection_with_the_same_descriptor_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernel, "shut_down", lambda _: pytest.fail("closed"))
    monkeypatch.setattr(kernel, "bytes_received", lambda _: 2000)
    monkeypatch.setattr(kernel, "connection_id", lambda _: 1)
    watched = Inflow(limit=1000)
    watched.note(LinkEvent(True, 7))
    monkeypatch.setattr(kernel, "connection_id", lambda _: 2)
    for _ in range(5):
        watched.close_overfull()


def test_the_kernel_counts_the_bytes_of_a_tcp_connection_only() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as sender,
        server.accept()[0] as peer,
    ):
        before = kernel.bytes_received(peer.fileno())
        sender.sendall(b"abc")
        receive_exactly(peer, 3)
        assert (before, kernel.bytes_received(peer.fileno())) == (0, 3)
    here, there = socket.socketpair()
    with here, there, Path(__file__).open() as no_socket:
        others = here.fileno(), no_socket.fileno(), -1
        assert [kernel.bytes_received(fd) for fd in others] == [None] * 3


def test_a_reset_is_distinguished_from_other_packets_that_were_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    closed: list[int] = []
    dropped, taken = 0, 0
    monkeypatch.setattr(kernel, "shut_down", closed.append)
    monkeypatch.setattr(kernel, "bytes_received", lambda _: 1)
    monkeypatch.setattr(kernel, "connection_id", lambda fd: fd)
    monkeypatch.setattr(kernel, "is_gone", lambda _: False)
    monkeypatch.setattr(kernel, "packets_dropped", lambda _: dropped)
    monkeypatch.setattr(kernel, "segments_received", lambda _: taken)
    watched = Inflow(limit=1000)
    watched.note(LinkEvent(True, 7))
    watched.close_overfull()
    for _ in range(10):  # a packet that comes twice is taken, and then dropped
        dropped, taken = dropped + 1, taken + 1
        watched.close_overfull()
    assert closed == []
    for _ in range(inflow.RESETS):
        dropped += 1
        watched.close_overfull()
    assert closed == [7]


def test_a_peer_that_resets_its_connection_counts_as_lost() -> None:
    router = Router(["tcp://127.0.0.1:*"])
    peer = dial_as_dealer(int(router.urls[0].rpartition(":")[2]))
    peer.sendall(message(9))
    received = None
    while received is None:
        received = router.receive()
    reset(peer)
    events: list[LinkEvent] = []

    def is_lost() -> bool:
        nonlocal events
        events += router.link_events()
        for fd in router.take_doubtful():
            assert fd == fd_of(received[1])
            router.send(received[0], b"probe")
        return any(not event.up for event in events)

    until(is_lost, "the connection is closed")
    assert [event.up for event in events] == [True, False]
    router.close()
