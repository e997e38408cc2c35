"""A peer whose message never ends: no receive mark of libzmq bounds it, so gymwire closes it."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import struct
import sys
import threading
from collections import Counter
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
from gymwire.protocol.transport.router import Router, fd_of
from tests.chaos.fleet import descriptors, resident, until
from tests.protocol.transport.test_stalled_readers import (
    greet_as_dealer,
    receive_exactly,
    shake_hands,
)

MIB = 1024 * 1024
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's tcp_info")


def message(size: int, *, more: bool = False) -> bytes:
    return bytes((2 | more,)) + struct.pack(">Q", size) + bytes(size)


def dial_as_dealer(port: int) -> socket.socket:
    """Return a connection to a ROUTER after the handshake, with a routing id of its own."""
    peer = socket.create_connection(("127.0.0.1", port), timeout=20)
    greet_as_dealer(peer)
    return peer


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


@SIDES
def test_messages_that_nobody_receives_close_their_connection_at_a_bound(
    side: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inflow, "MAX_WAITING", 0)
    size = 64 * 1024
    with side(size) as (ours, peer):
        sent = 0

        def flood() -> None:
            nonlocal sent
            with contextlib.suppress(OSError):
                while True:
                    peer.sendall(message(size))
                    sent += 1

        flooder = threading.Thread(target=flood, daemon=True)
        flooder.start()
        until(lambda: sent > 100, "more has been sent than may wait")
        events: list[LinkEvent] = []
        for _ in range(100_000):  # it receives one message between two checks
            events += ours.link_events()
            if any(not event.up for event in events):
                break
            ours.receive()
        flooder.join(20)
        assert [event.up for event in events] == [True, False]


SMALL = 300_000  # messages of a flood: 20 MB, in the memory of libzmq


def flood_and_drop(ours: Router) -> int:
    """Flood a socket, drop that and close the connection; return how many messages came out."""
    with dial_as_dealer(int(ours.urls[0].rpartition(":")[2])) as peer:
        peer.sendall((b"\0\x1a" + bytes(26)) * SMALL)
        received = None
        while received is None:
            received = ours.receive()
        rid, origin, _ = received
        fd = fd_of(origin)
        assert ours.drop_input(fd, rid)
        ours.hang_up(fd)
        number, events = 1, list[LinkEvent]()
        while all(event.up for event in events):
            number += ours.receive() is not None
            events += ours.link_events()
        while ours.receive() is not None:
            number += 1
        return number


def test_floods_whose_input_is_dropped_leave_nothing_behind() -> None:
    ours = Router(["tcp://127.0.0.1:*"])
    flood_and_drop(ours)  # what is made once is made now
    pid = os.getpid()
    memory, files = resident(pid), descriptors(pid)
    for _ in range(15):
        assert flood_and_drop(ours) < SMALL / 100
    assert resident(pid) - memory < 48 * MIB  # two floods and a half
    assert descriptors(pid) <= files
    ours.close()


def slow_traffic(monkeypatch: pytest.MonkeyPatch) -> tuple[Inflow, list[int], list[int]]:
    """Return an inflow with one connection, what that has delivered, and what was closed."""
    delivered, closed = [0], list[int]()
    monkeypatch.setattr(kernel, "shut_down", closed.append)
    monkeypatch.setattr(kernel, "bytes_received", lambda _: delivered[0])
    monkeypatch.setattr(kernel, "connection_id", lambda fd: fd)
    monkeypatch.setattr(inflow, "MAX_WAITING", 0)
    watched = Inflow(1000, kernel.shut_down)
    watched.note(LinkEvent(True, 7))
    return watched, delivered, closed


def test_a_connection_that_pauses_after_each_message_stays_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The sum of what it has delivered exceeds the bound between two messages."""
    watched, delivered, closed = slow_traffic(monkeypatch)
    for _ in range(100):
        delivered[0] += 500
        watched.heard(7, 500)
        for _ in range(5):
            watched.close_overfull()
    assert closed == []


def test_a_connection_stays_open_at_a_socket_where_some_message_always_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched, delivered, closed = slow_traffic(monkeypatch)
    for _ in range(1000):
        delivered[0] += 3 * (500 + 9)
        for _ in range(3):
            watched.heard(7, 500)
        watched.close_overfull()
    assert closed == []
    for _ in range(100):  # now it sends more than is received
        delivered[0] += 3 * (500 + 9)
        watched.heard(7, 500)
        watched.close_overfull()
    assert 7 in closed


def test_small_messages_count_with_the_memory_that_they_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched, delivered, closed = slow_traffic(monkeypatch)
    while not closed and delivered[0] < 16_000:  # what may wait in messages of the largest size
        delivered[0] += 200 * (1 + 2)
        watched.heard(7, 1)
        watched.close_overfull()
    assert 7 in closed


def test_a_socket_that_has_nothing_left_to_receive_forgets_what_was_delivered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched, delivered, closed = slow_traffic(monkeypatch)
    for _ in range(1000):
        delivered[0] += 1500
        watched.heard(7, 1)
        watched.emptied = True
        watched.close_overfull()
    assert closed == []


def test_many_connections_are_looked_at_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[int] = []
    monkeypatch.setattr(kernel, "shut_down", closed.append)
    delivered: Counter[int] = Counter()

    def deliver(fd: int) -> int:
        delivered[fd] += 0 if fd % 2 else 2000
        return delivered[fd]

    monkeypatch.setattr(kernel, "bytes_received", deliver)
    monkeypatch.setattr(kernel, "connection_id", lambda fd: fd)
    watched = Inflow(500, kernel.shut_down)
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
    delivered = itertools.count(2000, 2000)
    monkeypatch.setattr(kernel, "bytes_received", lambda _: next(delivered))
    monkeypatch.setattr(kernel, "connection_id", lambda _: 1)
    watched = Inflow(500, kernel.shut_down)
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
