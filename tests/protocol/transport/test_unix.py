from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import DEFAULT, Mock, patch

import numpy as np
import pytest

from gymwire.protocol.codec import Pieces
from gymwire.protocol.errors import ConfigurationError, ConnectionFailed
from gymwire.protocol.transport import unix as unix_sockets
from gymwire.protocol.transport.interface import Delivery, LinkEvent, Received
from gymwire.protocol.transport.polling import wait_among
from gymwire.protocol.transport.private_folder import FOLDER_PREFIX
from gymwire.protocol.transport.stream import CHUNK, NOW
from gymwire.protocol.transport.unix import CAN_LISTEN, UnixDealer, UnixRouter

pytestmark = pytest.mark.skipif(not CAN_LISTEN, reason="this system's Unix sockets cannot do it")

ATTEMPTS = 100  # ticks for what must happen, on a machine that may be busy
UP, DOWN = LinkEvent(True, -1), LinkEvent(False, -1)
SIZES = [24, 25, 4_000, 8_188, 8_189, 70_000, 1024 * 1024, 9_000_000]


@pytest.fixture
def url() -> Iterator[str]:
    folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX))  # pytest's own paths may be too long
    yield f"unix://{folder}/socket"
    shutil.rmtree(folder)


@pytest.fixture
def ended() -> list[bytes]:
    """Return the routing ids of the connections that have ended."""
    return []


@pytest.fixture
def router(url: str, ended: list[bytes]) -> Iterator[UnixRouter]:
    with contextlib.closing(UnixRouter(url, ended=ended.append, tick_ms=20)) as made:
        yield made


@pytest.fixture
def dealer(router: UnixRouter) -> Iterator[UnixDealer]:
    with contextlib.closing(UnixDealer(router.url)) as made:
        yield made


@contextlib.contextmanager
def raw(url: str) -> Iterator[socket.socket]:
    """Connect a peer that can send any bytes."""
    with socket.socket(socket.AF_UNIX) as made:
        made.settimeout(10)
        made.connect(url.removeprefix("unix://"))
        yield made


def frame(size: int, salt: int = 0) -> bytes:
    return np.random.default_rng(size + salt).bytes(size)


def framed(*frames: bytes) -> bytes:
    return b"".join(len(one).to_bytes(4, "little") + one for one in frames)


def receive(router: UnixRouter) -> Received:
    for _ in range(ATTEMPTS):
        received = router.receive()
        if received is not None:
            return received
    raise AssertionError("nothing came")


def answer(dealer: UnixDealer, router: UnixRouter | None = None) -> bytes:
    for _ in range(ATTEMPTS):
        data = dealer.receive()
        if data is not None:
            return bytes(data)
        if router is not None:  # it sends on when it looks
            router.receive(wait=False)
    raise AssertionError("nothing came")


@pytest.mark.parametrize("size", [20_000, 9_000_000])
def test_a_frame_in_pieces_arrives_as_it_was_when_it_was_sent(
    router: UnixRouter, dealer: UnixDealer, size: int
) -> None:
    rid = introduced(dealer, router)
    array = np.frombuffer(frame(size), np.uint8).copy()
    pieces = Pieces([frame(24), array.data, b"end"], size + 27)
    sent = bytes(pieces)
    assert router.send(rid, pieces) is Delivery.DONE
    array[:] = 0
    assert answer(dealer, router) == sent


def introduced(dealer: UnixDealer, router: UnixRouter) -> bytes:
    """Return the routing id that the router has for this dealer."""
    assert dealer.send(frame(24))
    return receive(router)[0]


def until_ended(router: UnixRouter, ended: list[bytes]) -> None:
    for _ in range(ATTEMPTS):
        if ended:
            return
        assert router.receive() is None
    raise AssertionError("nobody has left")


# --- frames ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_a_frame_arrives_and_its_answer_comes_back(
    router: UnixRouter, dealer: UnixDealer, size: int
) -> None:
    for salt in range(3):  # the second of a size is read differently from the first
        sent = frame(size, salt)
        # What the kernel does not take at once goes on while both look.
        dealer.send(sent)
        for _ in range(ATTEMPTS):
            received = router.receive()
            if received is not None:
                break
            dealer.link_events()
        assert received is not None
        assert received[2] == sent
        assert router.send(received[0], received[2]) is Delivery.DONE
        assert answer(dealer, router) == sent


def test_frames_of_all_sizes_keep_their_order(router: UnixRouter, dealer: UnixDealer) -> None:
    frames = [frame(size) for size in (24, 30_000, 40, 50, 9_000, 8_188, 30_000, 24)]
    for one in frames:
        assert dealer.send(one)
    assert [receive(router)[2] for _ in frames] == frames
    assert router.receive() is None


@pytest.mark.parametrize("at", range(1, 4 + 30 + 4 + 26))
def test_a_stream_may_be_cut_anywhere(router: UnixRouter, at: int) -> None:
    first, second = frame(30), frame(26)
    stream = framed(first, second)
    with raw(router.url) as peer:
        peer.sendall(stream[:at])
        received = [router.receive() for _ in range(4)]
        peer.sendall(stream[at:])
        received += [router.receive() for _ in range(4)]
    assert [one[2] for one in received if one is not None] == [first, second]


@pytest.mark.parametrize("at", [1, 3, 4, 5, 8_000, 20_003])
def test_a_large_frame_after_a_large_one_may_be_cut_anywhere(router: UnixRouter, at: int) -> None:
    frames = [frame(20_000), frame(20_000, 1), frame(30), frame(20_000, 2)]
    with raw(router.url) as peer:
        peer.sendall(framed(frames[0]))
        assert receive(router)[2] == frames[0]
        stream = framed(*frames[1:])
        peer.sendall(stream[:at])
        received = [router.receive() for _ in range(4)]
        peer.sendall(stream[at:])
        received += [router.receive() for _ in range(8)]
    assert [one[2] for one in received if one is not None] == frames[1:]


def test_frames_that_arrive_together_are_separated(router: UnixRouter) -> None:
    frames = [frame(24 + size) for size in range(20)]
    with raw(router.url) as peer:
        peer.sendall(framed(*frames))
        assert [receive(router)[2] for _ in frames] == frames


def test_frames_before_a_length_that_no_frame_has_are_received(
    router: UnixRouter, ended: list[bytes]
) -> None:
    frames = [frame(24 + size) for size in range(3)]
    with raw(router.url) as peer:
        peer.sendall(framed(*frames, b"short", frame(40)))
        assert [receive(router)[2] for _ in frames] == frames
        until_ended(router, ended)


def test_frames_that_arrived_together_are_dropped_with_their_connection(
    router: UnixRouter, ended: list[bytes]
) -> None:
    with raw(router.url) as peer:
        peer.sendall(framed(*(frame(24 + size) for size in range(3))))
        rid = receive(router)[0]
        router.hang_up(rid)
        assert router.receive() is None
        assert ended == [rid]


def test_a_buffered_frame_is_taken_although_the_peer_does_not_read(
    router: UnixRouter, dealer: UnixDealer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rid = introduced(dealer, router)
    router.send_all(rid, [frame(24), frame(25)])
    while dealer.send(frame(100_000)):
        pass  # until the rest of one waits here
    assert dealer.unsent is not None
    flags: list[int] = []
    monkeypatch.setattr(dealer, "flush_pending", flags.append)
    assert [dealer.receive(), dealer.receive(), dealer.has_frame] == [frame(24), frame(25), False]
    assert flags == [NOW, NOW]


def test_frames_sent_together_wait_until_the_peer_reads(
    router: UnixRouter, dealer: UnixDealer, monkeypatch: pytest.MonkeyPatch
) -> None:
    introduced(dealer, router)
    sent = [frame(24 + size) for size in range(3)]
    attempts: list[bool] = []
    one = UnixDealer._write_joined

    def late(dealer: UnixDealer, parts: Any, flags: int) -> bool:
        attempts.append(len(attempts) == 2)
        return attempts[-1] and one(dealer, parts, flags)

    monkeypatch.setattr(UnixDealer, "_write_joined", late)
    assert not dealer.send_all(sent)
    assert dealer.send_all(sent, wait=True)
    assert attempts == [False, False, True]
    assert [receive(router)[2] for _ in sent] == sent


def test_a_connection_that_has_ended_has_no_buffered_frames(
    router: UnixRouter, dealer: UnixDealer
) -> None:
    router.send_all(introduced(dealer, router), [frame(24 + size) for size in range(3)])
    answer(dealer)
    assert dealer.has_buffered
    dealer.end()
    assert not dealer.has_buffered
    assert dealer.read(0) is None


def test_buffered_frames_count_as_ready(router: UnixRouter, dealer: UnixDealer) -> None:
    rid = introduced(dealer, router)
    with raw(router.url) as peer:
        peer.sendall(framed(frame(24), frame(25)))
        assert receive(router)[2] == frame(24)
        assert wait_among([dealer, router], 0) == [1]
        assert receive(router)[2] == frame(25)
    assert router.receive() is None  # the peer has left
    for size in (24, 25):
        router.send(rid, frame(size))
    assert wait_among([dealer], 10) == [0]
    assert answer(dealer) == frame(24)
    assert dealer.poll()
    assert wait_among([router, dealer], 0) == [1]
    assert answer(dealer) == frame(25)
    assert not dealer.poll()


def test_a_frame_that_has_arrived_in_part_hides_no_other_connection(
    router: UnixRouter, dealer: UnixDealer, url: str
) -> None:
    with contextlib.closing(UnixDealer(url)) as other:
        rid, rid_of_other = introduced(dealer, router), introduced(other, router)
        router._peers[rid].sock.sendall(b"\x18\0")
        assert dealer.receive() is None
        assert (dealer.has_buffered, dealer.has_frame) == (True, False)
        router.send(rid_of_other, frame(24))
        assert wait_among([dealer, other], 10) == [0, 1]
        assert answer(other) == frame(24)


def test_buffered_frames_of_an_only_peer_count_as_ready(router: UnixRouter) -> None:
    with raw(router.url) as peer:
        peer.sendall(framed(frame(24)))
        receive(router)
        assert router.receive() is None  # from now on it waits for this peer only
        peer.sendall(framed(frame(24), frame(25)))
        assert receive(router)[2] == frame(24)
        assert wait_among([router], 0) == [0]
        assert receive(router)[2] == frame(25)
        assert wait_among([router], 0) == []


def test_a_large_frame_has_memory_of_its_own_that_may_be_written_to(
    router: UnixRouter, dealer: UnixDealer
) -> None:
    rid = introduced(dealer, router)
    views = []
    for _ in range(2):
        router.send(rid, frame(70_000))
        data = dealer.receive()
        assert isinstance(data, memoryview)
        assert not data.readonly
        views.append(np.frombuffer(data, np.uint8))
    assert not np.shares_memory(views[0], views[1])


@pytest.mark.parametrize("size", [0, 1, 23, 1001, 2**32 - 1])
def test_a_length_that_no_frame_has_ends_the_connection(
    url: str, ended: list[bytes], size: int
) -> None:
    small = UnixRouter(url, ended=ended.append, max_message=1000)
    with contextlib.closing(small), raw(url) as bad, raw(url) as good:
        bad.sendall(size.to_bytes(4, "little") + bytes(min(size, 1001)))
        until_ended(small, ended)
        with contextlib.suppress(ConnectionResetError):
            assert bad.recv(1) == b""
        good.sendall(framed(frame(1000)))
        assert receive(small)[2] == frame(1000)


@pytest.mark.parametrize("sent", [1, 3, 4, 20, 9_000])
def test_a_truncated_frame_is_not_returned(
    router: UnixRouter, ended: list[bytes], sent: int
) -> None:
    with raw(router.url) as peer:
        peer.sendall(framed(frame(10_000))[:sent])
    until_ended(router, ended)
    assert len(ended) == 1


def test_half_a_frame_does_not_delay_other_peers(router: UnixRouter, dealer: UnixDealer) -> None:
    with raw(router.url) as slow:
        slow.sendall(framed(frame(10_000))[:5_000])
        for _ in range(5):
            rid = introduced(dealer, router)
            assert router.send(rid, frame(30)) is Delivery.DONE
            assert answer(dealer) == frame(30)


# --- peers that do not read -----------------------------------------------------------------------


def test_a_peer_that_does_not_read_never_stops_the_sender(
    router: UnixRouter, dealer: UnixDealer
) -> None:
    large = frame(1024 * 1024)
    with raw(router.url) as silent:
        silent.sendall(framed(frame(24)))
        rid, _, _ = receive(router)
        sent = 0
        while router.send(rid, large) is Delivery.DONE:
            sent += 1
            assert sent < 100
        other = introduced(dealer, router)
        assert router.send(other, frame(30)) is Delivery.DONE
        assert answer(dealer) == frame(30)
        # What was taken comes whole, once it is read, and before anything else.
        heard = bytearray()
        expected, added = framed(large) * sent, 0
        while len(heard) < len(expected):
            heard += silent.recv(64 * 1024)
            if added < 9 and router.send(rid, frame(30)) is Delivery.DONE:
                expected += framed(frame(30))
                added += 1
            router.receive(wait=False)
        assert heard == expected
        assert added


def test_a_router_that_does_not_read_does_not_stop_a_dealer_for_good(
    router: UnixRouter, dealer: UnixDealer
) -> None:
    sent = 0
    while dealer.send(frame(1024 * 1024)):
        sent += 1
        assert sent < 100
    for _ in range(sent):
        for _ in range(ATTEMPTS):
            received = router.receive(wait=False)
            if received is not None:
                break
            dealer.link_events()
        assert received is not None
        assert received[2] == frame(1024 * 1024)


SIZES = [24, 25, 100, CHUNK - 1, CHUNK, 24, 70_000, 24, 3_000, 3_000, 3_000, 24]


@pytest.mark.parametrize("count", [1, 2, len(SIZES)])
def test_frames_that_are_sent_together_arrive_one_by_one(
    router: UnixRouter, dealer: UnixDealer, count: int
) -> None:
    rid = introduced(dealer, router)
    sent = [frame(size, salt) for salt, size in enumerate(SIZES[:count])]
    router.send_all(rid, sent)
    assert [answer(dealer, router) for _ in sent] == sent
    dealer.send_all(sent)
    assert [bytes(receive(router)[2]) for _ in sent] == sent


def test_frames_that_are_sent_together_to_nobody_are_dropped(
    router: UnixRouter, dealer: UnixDealer
) -> None:
    assert router.send_all(b"\2" + bytes(15), [frame(24)]) is Delivery.UNREACHABLE
    dealer.end()
    assert not dealer.send_all([frame(24)])


def test_frames_sent_together_to_a_peer_that_does_not_read_arrive_whole_or_not_at_all(
    router: UnixRouter, dealer: UnixDealer
) -> None:
    rid = introduced(dealer, router)
    sent = [frame(24 + salt % 900, salt) for salt in range(9_000)]  # more than the kernel takes
    router.send_all(rid, sent)
    other = [frame(24, 90_000), frame(24, 90_001)]
    router.send_all(rid, other)  # too early, or else behind all that was taken
    found = []
    while (data := dealer.receive()) is not None:
        found.append(bytes(data))
        router.receive(wait=False)
    assert 0 < len(found) < len(sent)
    assert found == sent[: len(found)]
    router.send_all(rid, other)
    assert [answer(dealer, router) for _ in other] == other


def test_a_frame_that_arrived_before_its_peer_was_admitted_is_read_after_it(url: str) -> None:
    with contextlib.closing(UnixRouter(url, max_first=100, tick_ms=20)) as router, raw(url) as peer:
        sent = [frame(50), frame(200), frame(60), frame(150)]
        peer.sendall(framed(*sent))
        rid, _, first = receive(router)
        router.admit(rid)
        assert [bytes(first), *(bytes(receive(router)[2]) for _ in sent[1:])] == sent


def test_whether_all_frames_that_are_sent_together_were_taken_is_returned(
    router: UnixRouter, dealer: UnixDealer
) -> None:
    introduced(dealer, router)
    assert dealer.send_all([frame(24), frame(9_000)])
    assert not dealer.send_all([frame(8_000, salt) for salt in range(2_000)])  # nobody reads
    dealer.end()
    assert not dealer.send_all([frame(24)])


# --- connections ----------------------------------------------------------------------------------


def test_each_connection_has_a_routing_id_that_cannot_be_guessed(router: UnixRouter) -> None:
    rids = set()
    for _ in range(3):
        with contextlib.closing(UnixDealer(router.url)) as dealer:
            rids.add(introduced(dealer, router))
    assert len(rids) == 3
    assert {(len(rid), rid[0]) for rid in rids} == {(16, unix_sockets.MARK)}


def test_a_peer_that_left_is_unreachable(
    router: UnixRouter, dealer: UnixDealer, ended: list[bytes]
) -> None:
    rid = introduced(dealer, router)
    dealer.close()
    until_ended(router, ended)
    assert ended == [rid]
    assert router.send(rid, frame(24)) is Delivery.UNREACHABLE


def test_a_send_notices_that_a_peer_has_left(
    router: UnixRouter, dealer: UnixDealer, ended: list[bytes]
) -> None:
    rid = introduced(dealer, router)
    dealer.close()
    assert router.send(rid, frame(24)) is Delivery.UNREACHABLE
    until_ended(router, ended)
    assert ended == [rid]


def test_frames_sent_before_a_peer_left_can_still_be_read(
    router: UnixRouter, dealer: UnixDealer, ended: list[bytes]
) -> None:
    rid = introduced(dealer, router)
    last = [frame(24, 1), frame(9_000, 2), frame(24, 3)]
    for one in last:
        dealer.send(one)
    dealer.close()
    for _ in range(2):
        assert router.send(rid, frame(24)) is Delivery.UNREACHABLE
    assert [receive(router)[2] for _ in last] == last
    until_ended(router, ended)


def test_frames_sent_before_a_router_left_can_still_be_read(
    router: UnixRouter, dealer: UnixDealer
) -> None:
    rid = introduced(dealer, router)
    dealer.link_events()
    assert router.send(rid, frame(100, salt=1)) is Delivery.DONE
    assert router.send(rid, frame(70_000, salt=2)) is Delivery.DONE
    router.hang_up(rid)
    for _ in range(2):
        assert not dealer.send(frame(24))
    assert [answer(dealer), answer(dealer)] == [frame(100, salt=1), frame(70_000, salt=2)]
    assert dealer.receive() is None
    assert dealer.link_events() == [DOWN, UP]
    assert dealer.send(frame(24))


class Interrupt(Exception):
    """What a signal handler raises."""


@pytest.fixture
def interrupted() -> Iterator[Callable[[Callable[[], object]], None]]:
    """Repeat a call until a signal interrupts it while it waits in the kernel."""

    def handler(*_: object) -> None:
        raise Interrupt

    def until_interrupted(call: Callable[[], object]) -> None:
        with pytest.raises(Interrupt):
            for_ever(call)

    def for_ever(call: Callable[[], object]) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.03)
        while True:
            call()

    former = signal.signal(signal.SIGALRM, handler)
    yield until_interrupted
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, former)


def test_an_interrupt_in_the_middle_of_a_large_frame_ends_the_connection(
    url: str, interrupted: Callable[[Callable[[], object]], None]
) -> None:
    """How many bytes were received is unknown: later bytes would be taken for the rest."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(url.removeprefix("unix://"))
        listener.listen()
        with contextlib.closing(UnixDealer(url)) as dealer:
            other, _ = listener.accept()
            with other:
                other.sendall(framed(frame(20_000))[:15_000])
                interrupted(dealer.receive)
                assert not dealer.up
                assert UP in dealer.link_events()  # reconnected


def test_an_interrupt_while_a_frame_is_sent_ends_the_connection(
    router: UnixRouter, dealer: UnixDealer, interrupted: Callable[[Callable[[], object]], None]
) -> None:
    large = frame(9_000_000)
    interrupted(lambda: dealer.send(large))
    assert not dealer.up


def test_a_peer_that_is_not_admitted_may_send_only_small_frames(
    url: str, ended: list[bytes]
) -> None:
    with contextlib.ExitStack() as stack:
        router = stack.enter_context(
            contextlib.closing(UnixRouter(url, ended=ended.append, max_first=64))
        )
        one, other = (stack.enter_context(contextlib.closing(UnixDealer(url))) for _ in "12")
        rid = introduced(one, router)
        router.admit(rid)
        one.send(frame(65))
        assert receive(router) == (rid, None, frame(65))
        other.send(frame(65))
        until_ended(router, ended)
        assert rid not in ended


def test_a_frame_that_is_too_large_is_so_also_behind_another_one(
    url: str, ended: list[bytes]
) -> None:
    made = UnixRouter(url, ended=ended.append, max_first=64)
    with contextlib.closing(made) as router, raw(url) as peer:
        peer.sendall(framed(frame(24), frame(65)))
        assert receive(router)[2] == frame(24)
        until_ended(router, ended)


def test_a_peer_that_is_admitted_may_have_sent_a_larger_frame_already(url: str) -> None:
    with contextlib.closing(UnixRouter(url, max_first=64)) as router, raw(url) as peer:
        peer.sendall(framed(frame(24), frame(30), frame(65), frame(31)))
        rid = receive(router)[0]
        router.admit(rid)
        assert [receive(router)[2] for _ in range(3)] == [frame(30), frame(65), frame(31)]


def test_busy_peers_take_turns(router: UnixRouter) -> None:
    with contextlib.ExitStack() as stack:
        dealers = [stack.enter_context(contextlib.closing(UnixDealer(router.url))) for _ in "12345"]
        rids = [introduced(dealer, router) for dealer in dealers]
        for dealer in dealers:
            for _ in range(3):
                dealer.send(frame(24))
        order = [receive(router)[0] for _ in range(15)]
        assert [set(order[i : i + 5]) for i in (0, 5, 10)] == [set(rids)] * 3


def test_a_new_peer_is_accepted_beside_a_busy_one(router: UnixRouter, dealer: UnixDealer) -> None:
    rid = introduced(dealer, router)
    with contextlib.closing(UnixDealer(router.url)) as newcomer:
        newcomer.send(frame(25))
        heard = []
        for _ in range(2 * unix_sockets.LONE_FRAMES):
            dealer.send(frame(24))
            heard.append(receive(router)[0])
    assert set(heard) > {rid}


def test_a_connection_is_accepted_once_a_descriptor_is_free(
    router: UnixRouter, dealer: UnixDealer
) -> None:
    none_left = OSError(errno.EMFILE, "Too many open files")
    with patch.object(router, "_listener", Mock(wraps=router._listener)) as listener:
        listener.accept.side_effect = [none_left, none_left, DEFAULT, BlockingIOError]
        introduced(dealer, router)
        assert listener.accept.call_count == 4


def test_a_router_without_input_looks_for_no_connection(
    router: UnixRouter, dealer: UnixDealer
) -> None:
    introduced(dealer, router)
    with patch.object(router, "_listener", Mock(wraps=router._listener)) as listener:
        assert [router.receive(wait=False) for _ in range(5)] == [None] * 5
        assert not listener.accept.called


def test_waiting_for_a_part_of_a_millisecond_is_no_busy_loop(
    dealer: UnixDealer, monkeypatch: pytest.MonkeyPatch
) -> None:
    poll = Mock(return_value=[])
    monkeypatch.setattr("gymwire.protocol.transport.polling.zmq.zmq_poll", poll)
    assert wait_among([dealer], 0.0004) == []
    assert poll.call_args.kwargs == {"timeout": 1}


# --- waiting for one peer alone -------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """Stand still in the router, so that it counts frames only."""
    made = Mock(return_value=0.0)
    monkeypatch.setattr(unix_sockets, "time", Mock(monotonic=made))
    return made


@pytest.fixture
def polls(router: UnixRouter, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the durations for which the router has waited for all peers."""
    made: list[float] = []
    poll = router._poll

    def counted(timeout_s: float, most: int) -> list[tuple[int, int]]:
        made.append(timeout_s)
        return poll(timeout_s, most)

    monkeypatch.setattr(router, "_poll", counted)
    return made


@pytest.fixture
def idle(router: UnixRouter) -> Iterator[UnixDealer]:
    """Connect another peer, which has sent nothing for long."""
    with contextlib.closing(UnixDealer(router.url)) as made:
        introduced(made, router)
        yield made


def step(dealer: UnixDealer, router: UnixRouter, times: int) -> list[bytes]:
    """Let a peer send frames, one after the other; return the senders of what is received."""
    senders = []
    for _ in range(times):
        assert dealer.send(frame(24))
        senders.append(receive(router)[0])
    return senders


def test_a_busy_peer_is_waited_for_alone_beside_an_idle_one(
    router: UnixRouter, idle: UnixDealer, dealer: UnixDealer, clock: Mock, polls: list[float]
) -> None:
    step(dealer, router, unix_sockets.LONE_AFTER + 2)
    polls.clear()
    step(dealer, router, 10 * (unix_sockets.LONE_FRAMES + 1))
    assert len(polls) == 10


def test_a_busy_peer_delays_an_idle_one_for_some_frames_at_most(
    router: UnixRouter, idle: UnixDealer, dealer: UnixDealer, clock: Mock
) -> None:
    rid = introduced(idle, router)
    step(dealer, router, unix_sockets.LONE_AFTER + 2)
    idle.send(frame(24))
    assert rid in step(dealer, router, unix_sockets.LONE_FRAMES + 3)


def test_a_busy_peer_delays_an_idle_one_for_a_fixed_time_at_most(
    router: UnixRouter, idle: UnixDealer, dealer: UnixDealer, clock: Mock
) -> None:
    rid = introduced(idle, router)
    step(dealer, router, unix_sockets.LONE_AFTER + 2)
    clock.return_value = unix_sockets.LONE_S
    idle.send(frame(24))
    assert rid in step(dealer, router, 3)


def test_a_busy_peer_that_pauses_delays_an_idle_one_for_a_tick_at_most(
    router: UnixRouter, idle: UnixDealer, dealer: UnixDealer, clock: Mock
) -> None:
    rid = introduced(idle, router)
    step(dealer, router, unix_sockets.LONE_AFTER + 2)
    idle.send(frame(24))
    assert router.receive() is None
    found = router.receive()
    assert found is not None
    assert found[0] == rid


def test_two_busy_peers_are_both_waited_for(
    router: UnixRouter, idle: UnixDealer, dealer: UnixDealer, clock: Mock, polls: list[float]
) -> None:
    step(dealer, router, unix_sockets.LONE_AFTER + 2)
    idle.send(frame(24))
    step(dealer, router, unix_sockets.LONE_FRAMES + 3)  # the other one is received, too
    receive(router)
    polls.clear()
    for _ in range(10):
        step(idle, router, 1)
        step(dealer, router, 9)
    assert len(polls) == 100


def test_a_frame_that_was_noticed_already_is_not_behind_a_wait_for_one_peer(
    router: UnixRouter, idle: UnixDealer, dealer: UnixDealer, clock: Mock
) -> None:
    step(dealer, router, unix_sockets.LONE_AFTER + 2)
    rid = introduced(idle, router)
    step(dealer, router, unix_sockets.LONE_AFTER + 2)
    idle.send(frame(24))
    dealer.send(frame(24))
    found = [router.receive(wait=False), router.receive()]
    assert rid in [one[0] for one in found if one is not None]


def test_a_dealer_comes_back_to_a_router_that_was_started_again(url: str) -> None:
    with contextlib.closing(UnixRouter(url)) as first:
        dealer = UnixDealer(url)
        introduced(dealer, first)
        assert dealer.link_events() == [UP]
    assert dealer.receive() is None
    assert dealer.link_events() == [DOWN]
    assert not dealer.send(frame(24))
    assert dealer.receive() is None
    assert not dealer.poll(0.01)
    assert wait_among([dealer], 0.01) == []
    Path(url.removeprefix("unix://")).unlink()
    with contextlib.closing(UnixRouter(url)) as second, contextlib.closing(dealer):
        assert dealer.link_events() == [UP]
        rid = introduced(dealer, second)
        second.send(rid, frame(30))
        assert answer(dealer) == frame(30)


def test_what_was_sent_before_closing_is_delivered(router: UnixRouter, dealer: UnixDealer) -> None:
    rid = introduced(dealer, router)
    router.send(rid, frame(70_000))
    router.close()
    assert answer(dealer) == frame(70_000)


def test_without_a_descriptor_a_dealer_stays_down(
    router: UnixRouter, dealer: UnixDealer, monkeypatch: pytest.MonkeyPatch
) -> None:
    none_left = Mock(side_effect=OSError(errno.EMFILE, "Too many open files"))
    dealer.link_events()
    dealer.end()
    with monkeypatch.context() as full:
        full.setattr(socket, "socket", none_left)
        assert dealer.link_events() == [DOWN]
        assert not dealer.send(frame(24), wait=True)
    assert dealer.link_events() == [UP]
    assert introduced(dealer, router)


def test_dialing_fails_if_nobody_listens(url: str) -> None:
    with pytest.raises(ConnectionFailed, match=f"Cannot dial {url}: No such file or directory"):
        UnixDealer(url)
    UnixRouter(url).close()
    with pytest.raises(ConnectionFailed, match="Connection refused"):
        UnixDealer(url)


@pytest.mark.parametrize("path", ["", "relative", "\0abstract", "/nul\0", "/" + "x" * 200, "/tmp"])
def test_an_impossible_path_is_refused(path: str) -> None:
    with pytest.raises(ConnectionFailed, match="Cannot dial"):
        UnixDealer(f"unix://{path}")


def test_a_path_that_cannot_be_bound_is_an_error(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"path too long\. .*TMPDIR"):
        UnixRouter(url + "x" * 200)


def test_another_user_is_disconnected(
    router: UnixRouter, monkeypatch: pytest.MonkeyPatch, ended: list[bytes]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    whose = 1001

    class OfAnother(socket.socket):
        def accept(self) -> tuple[socket.socket, object]:
            accepted, address = super().accept()
            return OfAnother(fileno=accepted.detach()), address

        def getsockopt(self, *_: object) -> bytes:  # type: ignore[override]
            return struct.pack("iII", 1, whose, whose)

    router._listener = OfAnother(fileno=router._listener.detach())
    with raw(router.url) as stranger:
        stranger.sendall(framed(frame(24)))
        assert router.receive() is None
        with contextlib.suppress(ConnectionResetError):
            assert stranger.recv(1) == b""
    for allowed in (1000, 0):  # this user, and root
        whose = allowed
        with raw(router.url) as welcome:
            welcome.sendall(framed(frame(24)))
            assert receive(router)[2] == frame(24)


def test_connections_are_bounded(url: str) -> None:
    with contextlib.ExitStack() as stack:
        router = stack.enter_context(contextlib.closing(UnixRouter(url, max_peers=3)))
        peers = [stack.enter_context(raw(router.url)) for _ in range(4)]
        for _ in range(3):
            router.receive(wait=False)
        assert peers[3].recv(1) == b""
        for peer in peers[:3]:
            peer.sendall(framed(frame(24)))
            receive(router)


def test_any_number_of_descriptors_may_be_open_already(url: str) -> None:
    """Python has one object for each small number only."""
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(Path(os.devnull).open("rb"))
        router = stack.enter_context(contextlib.closing(UnixRouter(url)))
        dealer = stack.enter_context(contextlib.closing(UnixDealer(url)))
        assert min(router.waitable, dealer.waitable) > 256
        dealer.send(frame(24))
        assert wait_among([dealer, router], 10) == [1]
        rid = receive(router)[0]
        router.send(rid, frame(25))
        assert wait_among([router, dealer], 10) == [1]


WAITER = """
import resource, sys
from gymwire.protocol.transport.unix import UnixDealer

def switches():
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw

dealer, frame = UnixDealer(sys.argv[1]), None
while frame is None:
    dealer.send(bytes(24))
    before = switches()
    frame = dealer.receive()
print(switches() - before)
"""


def test_a_dealer_that_waits_is_not_woken_when_the_router_reads_its_frame(
    router: UnixRouter,
) -> None:
    command = [sys.executable, "-c", WAITER, router.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as waiter:
        while waiter.poll() is None:
            if not wait_among([router], 0.02):
                continue
            wait_until_asleep(waiter.pid)
            received = router.receive()
            if received is not None:
                wait_until_asleep(waiter.pid)  # again, if the reading has woken it
                router.send(received[0], bytes(24))
        assert waiter.stdout is not None
        assert int(waiter.stdout.read()) <= 1


def wait_until_asleep(pid: int) -> None:
    """Wait until a process waits for something, or has ended."""
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "SZ":
        os.sched_yield()
