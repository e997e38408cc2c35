from __future__ import annotations

import contextlib
import itertools
import select
import socket as hostsocket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock, call

import pytest
import zmq

from gymwire.protocol.errors import AddressError, ConfigurationError
from gymwire.protocol.transport import dealer as dealer_module
from gymwire.protocol.transport.context import context
from gymwire.protocol.transport.dealer import Dealer, _make_dealer
from gymwire.protocol.transport.hosts import DialPlan
from gymwire.protocol.transport.interface import TICK_MS, Delivery, LinkEvent, Received
from gymwire.protocol.transport.router import Router, fd_of
from tests.chaos.fleet import free_port, until
from tests.processes import PATIENCE_S
from tests.protocol.transport.test_stalled_readers import shake_hands

ATTEMPTS = 100  # ticks for what must happen, on a machine that may be busy


@pytest.fixture
def router() -> Iterator[Router]:
    made = Router(["tcp://127.0.0.1:*"])
    yield made
    made.close()


@pytest.fixture
def dealer(router: Router) -> Iterator[Dealer]:
    made = Dealer(router.urls[0])
    yield made
    made.close()


def receive(router: Router) -> Received:
    for _ in range(ATTEMPTS):
        received = router.receive()
        if received is not None:
            return received
    raise AssertionError("nothing came")


def send(dealer: Dealer, frame: bytes) -> None:
    assert any(dealer.send(frame, wait=True) for _ in range(ATTEMPTS))


def answer(dealer: Dealer) -> bytes:
    for _ in range(ATTEMPTS):
        frame = dealer.receive()
        if frame is not None:
            return bytes(frame)
    raise AssertionError("nothing came")


@pytest.mark.parametrize("size", [0, 1, 5_000, 70_000, 3_000_000])
def test_a_frame_arrives_and_its_answer_comes_back(
    router: Router, dealer: Dealer, size: int
) -> None:
    frame = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    send(dealer, frame)
    received = receive(router)
    assert bytes(received[2]) == frame
    assert router.send(received[0], received[2]) is Delivery.DONE
    assert answer(dealer) == frame


def test_frames_sent_together_wait_for_room_in_the_queue(router: Router, dealer: Dealer) -> None:
    send(dealer, b"x")
    receive(router)
    dealer.link_events()
    sent = [b"%d" % number for number in range(30_000)]  # libzmq's queues hold a few thousand
    found: list[bytes] = []

    def read() -> None:
        found.extend(bytes(receive(router)[2]) for _ in sent)

    reader = threading.Thread(target=read)
    reader.start()
    assert dealer.send_all(sent, wait=True)
    reader.join()
    assert found == sent


def test_frames_sent_together_wait_for_a_peer_that_does_not_read_no_longer_than_stated(
    router: Router, dealer: Dealer, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(dealer, b"x")
    dealer.link_events()
    waits: list[bool] = []
    one = Dealer.send

    def spied(dealer: Dealer, frame: bytes | bytearray, wait: bool = False) -> bool:
        done = one(dealer, frame, wait)
        if wait:
            waits.append(done)
        return done

    monkeypatch.setattr(Dealer, "send", spied)
    monkeypatch.setattr(dealer_module, "SEND_ALL_S", 1.5 * TICK_MS / 1000)
    assert not dealer.send_all([bytes(4_000)] * 20_000, wait=True)
    assert waits.count(False) <= 2


def test_frames_sent_together_without_a_connection_are_dropped_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with contextlib.closing(Dealer("tcp://127.0.0.1:1")) as dealer:
        send = Mock(return_value=False)
        monkeypatch.setattr(dealer, "send", send)
        assert not dealer.send_all([b"x", b"y"], wait=True)
        assert send.mock_calls == [call(b"x"), call(b"y")]


def test_a_routing_id_is_its_sockets_own_and_cannot_be_guessed(router: Router) -> None:
    rids = set()
    for _ in range(3):
        dealer = Dealer(router.urls[0])
        send(dealer, b"x")
        rids.add(receive(router)[0])
        dealer.close()
    assert len(rids) == 3
    assert {(len(rid), rid[0]) for rid in rids} == {(16, 1)}


@pytest.mark.parametrize("frames", [2, 3, 4])
def test_a_multipart_message_is_dropped_whole(router: Router, frames: int) -> None:
    with context().socket(zmq.DEALER) as raw:
        raw.linger = 0
        raw.routing_id = b"\x01raw"
        raw.connect(router.urls[0])
        raw.send_multipart([b"\x01victim"] * frames)
        raw.send(b"good")
        received = receive(router)
    assert (received[0], received[2]) == (b"\x01raw", b"good")
    assert router.take_multipart() == {b"\x01raw"}
    assert router.take_multipart() == set()


def test_at_a_dealer_the_parts_of_a_message_are_frames(router: Router, dealer: Dealer) -> None:
    send(dealer, b"x")
    rid = receive(router)[0]
    raw = router.waitable
    raw.send_multipart([rid, b"two", b"frames"])
    router.send(rid, b"good")
    assert [answer(dealer) for _ in range(3)] == [b"two", b"frames", b"good"]


def test_an_unknown_peer_is_unreachable(router: Router) -> None:
    assert router.send(b"\x01nobody", b"x") is Delivery.UNREACHABLE


def test_a_peer_that_left_is_unreachable(router: Router) -> None:
    dealer = Dealer(router.urls[0])
    send(dealer, b"x")
    rid = receive(router)[0]
    dealer.close()
    deliveries = set()
    for _ in range(ATTEMPTS):
        deliveries.add(router.send(rid, b"y"))
        if Delivery.UNREACHABLE in deliveries:
            return
        router.receive()
        router.link_events()  # which finds a reset, if a frame was still on its way
    raise AssertionError(deliveries)


def test_a_peer_that_does_not_read_never_stops_the_sender(router: Router) -> None:
    with context().socket(zmq.DEALER) as raw:
        raw.linger = 0
        raw.rcvhwm = 10
        raw.connect(router.urls[0])
        raw.send(b"x")
        rid = receive(router)[0]
        frame = bytes(60_000)
        full = (router.send(rid, frame) is Delivery.FULL for _ in itertools.repeat(None, 20_000))
        assert any(full)


@pytest.mark.skipif(sys.platform != "linux", reason="a full backlog swallows packets on Linux")
def test_an_attempt_to_connect_to_a_host_that_swallows_packets_is_given_up() -> None:
    """The next attempt resolves the name again: the broker may have moved."""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(hostsocket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):  # nobody accepts them, so the kernel drops what comes after
            filler = stack.enter_context(hostsocket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        dealer = stack.enter_context(_make_dealer(b"\x01" + bytes(15), None, None, 1000))
        monitor = stack.enter_context(dealer.get_monitor_socket(zmq.Event.CONNECT_RETRIED))
        dealer.connect(f"tcp://127.0.0.1:{full.getsockname()[1]}")
        assert monitor.poll(20_000)
        dealer.disable_monitor()


@pytest.fixture(name="failures")
def _failures(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return when attempts to connect have failed, in monotonic seconds."""
    failures: list[float] = []
    plan_next = DialPlan.attempt_failed

    def attempt_failed(plan: DialPlan, now: float) -> bool:
        failures.append(now)
        return plan_next(plan, now)

    monkeypatch.setattr(DialPlan, "attempt_failed", attempt_failed)
    return failures


@pytest.mark.skipif(sys.platform != "linux", reason="a full backlog swallows packets on Linux")
def test_only_the_first_attempt_to_connect_is_given_up_soon(
    monkeypatch: pytest.MonkeyPatch, failures: list[float]
) -> None:
    monkeypatch.setattr(dealer_module, "QUICK_CONNECT_MS", 100)
    monkeypatch.setattr(dealer_module, "CONNECT_TIMEOUT_MS", 600_000)
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(hostsocket.create_server(("127.0.0.1", 0), backlog=0))
        with contextlib.ExitStack() as filling:
            for _ in range(3):  # as above
                filler = filling.enter_context(hostsocket.socket())
                filler.setblocking(False)
                filler.connect_ex(full.getsockname())
            others = _dialing_ports(full)
            dialing = stack.enter_context(
                contextlib.closing(Dealer(f"tcp://127.0.0.1:{full.getsockname()[1]}"))
            )
            until(lambda: dialing.link_events() or failures, "the first attempt is given up")
            until(lambda: _dialing_ports(full) - others, "the second attempt begins")
            (port,) = _dialing_ports(full) - others
        full.settimeout(PATIENCE_S)
        while True:  # its packet is repeated after a second
            peer = stack.enter_context(full.accept()[0])
            if peer.getpeername()[1] == port:
                break
            assert peer.getpeername()[1] in others or not peer.recv(1), "a third attempt"


def test_only_the_first_failed_attempt_is_made_again_at_once(
    monkeypatch: pytest.MonkeyPatch, failures: list[float]
) -> None:
    again: list[str] = []
    monkeypatch.setattr(Dealer, "_dial_instead_of", lambda _, former: again.append(former))
    with contextlib.closing(Dealer(f"tcp://127.0.0.1:{free_port()}")) as dealing:
        until(lambda: bool(dealing.link_events()) or len(failures) > 2, "three attempts fail")
    assert len(again) == 1


def _dialing_ports(server: hostsocket.socket) -> set[int]:
    """Return the ports from which connections to a server are being attempted."""
    tables = [Path(f"/proc/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    rows = [line.split()[1:4] for lines in tables for line in lines]
    target = server.getsockname()[1]
    return {
        int(here.rpartition(":")[2], 16)
        for here, there, state in rows
        if state == "02" and int(there.rpartition(":")[2], 16) == target
    }


def test_without_a_connection_nothing_is_queued() -> None:
    dealer = Dealer(f"tcp://127.0.0.1:{free_port()}")  # libzmq would close a listener later
    assert not dealer.send(b"x")
    dealer.close()


def test_an_oversized_message_drops_the_connection_not_the_socket(router: Router) -> None:
    small = Router(["tcp://127.0.0.1:*"], max_message=1000)
    big, good = Dealer(small.urls[0]), Dealer(small.urls[0])
    send(big, bytes(1001))
    send(good, bytes(1000))
    assert len(receive(small)[2]) == 1000
    assert small.receive() is None
    for socket in (big, good, small):
        socket.close()


@pytest.mark.parametrize("url", ["tcp://*:*", "tcp://0.0.0.0:*", "tcp://[::]:*"])
def test_listening_beyond_this_host_needs_keys_or_insecure(url: str) -> None:
    with pytest.raises(ConfigurationError, match="--insecure"):
        Router([url])
    Router([url], insecure=True).close()


def test_the_error_says_that_a_port_is_in_use(router: Router) -> None:
    with pytest.raises(ConfigurationError, match="is in use"):
        Router(router.urls)


@pytest.mark.parametrize("insecure", [False, True])
@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("192.0.2.1", r"is not an address of this host\. Bind"),
        ("no.such.host.invalid", "of this host: the host 'no.such.host.invalid' is unknown"),
    ],
)
def test_an_address_of_another_host_cannot_be_bound(host: str, why: str, insecure: bool) -> None:
    with pytest.raises(ConfigurationError, match=f"^tcp://{host}:5555 .*{why}"):
        Router([f"tcp://{host}:5555"], insecure=insecure)


def test_several_urls_may_be_listened_at(tmp_path: Path) -> None:
    router = Router(["tcp://127.0.0.1:*", f"ipc://{tmp_path}/socket"])
    for url in router.urls:
        dealer = Dealer(url)
        send(dealer, url.encode())
        assert receive(router)[2] == url.encode()
        dealer.close()
    router.close()


def test_a_malformed_url_is_not_a_zmq_error() -> None:
    with pytest.raises(AddressError):
        Dealer("tcp://nowhere")
    with pytest.raises(AddressError):
        Router(["udp://127.0.0.1:1"])


def test_connections_made_and_lost_are_seen(router: Router) -> None:
    dealer = Dealer(router.urls[0])
    send(dealer, b"x")
    fd = fd_of(receive(router)[1])
    dealer.close()
    seen: list[LinkEvent] = []
    for _ in range(ATTEMPTS):
        seen += router.link_events()
        if len(seen) == 2:
            break
        router.receive()
    assert [event.up for event in seen] == [True, False]
    assert seen[1].fd == fd


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels are not asked")
def test_a_connection_whose_input_is_dropped_delivers_nothing_until_it_reconnects(
    router: Router, dealer: Dealer
) -> None:
    send(dealer, b"before")
    fd = fd_of(receive(router)[1])
    assert router.drop_input(fd)
    send(dealer, b"muted")
    other = Dealer(router.urls[0])
    send(other, b"of another")
    assert bytes(receive(router)[2]) == b"of another"
    assert router.receive() is None
    router.hang_up(fd, router.connection_id(fd))
    heard = b""
    for _ in range(ATTEMPTS):
        dealer.send(b"after", wait=True)
        received = router.receive()
        if received is not None:
            heard = bytes(received[2])
            break
    assert heard == b"after"
    other.close()


def test_a_reused_descriptor_is_not_closed(router: Router, dealer: Dealer) -> None:
    send(dealer, b"one")
    fd = fd_of(receive(router)[1])
    router.hang_up(fd, router.connection_id(fd) + 1)
    send(dealer, b"two")
    assert bytes(receive(router)[2]) == b"two"
    assert not any(not event.up for event in router.link_events())


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels are not asked")
def test_the_idle_time_is_known_for_tcp_only(tmp_path: Path) -> None:
    router = Router(["tcp://127.0.0.1:*", f"ipc://{tmp_path}/socket"])
    known = []
    for url in router.urls:
        dealer = Dealer(url)
        send(dealer, b"x")
        known.append(router.idle_s(fd_of(receive(router)[1])))
        dealer.close()
    router.close()
    assert known[0] is not None
    assert 0.0 <= known[0] < 60.0
    assert known[1] is None


def test_an_unknown_descriptor_is_left_alone(router: Router) -> None:
    assert router.connection_id(-1) == 0
    assert router.idle_s(-1) is None
    assert not router.drop_input(-1)
    router.hang_up(-1)


def test_the_events_name_the_descriptor_of_a_connection() -> None:
    listener = Router(["tcp://127.0.0.1:*"])
    dialing = Dealer(listener.urls[0])
    while not dialing.send(b"hello", wait=True):
        pass
    received = None
    while received is None:
        received = listener.receive()
    fd = fd_of(received[1])
    assert listener.link_events() == [LinkEvent(True, fd)]
    [event] = dialing.link_events()
    assert event.up
    assert event.fd not in (0, -1, fd)
    dialing.close()
    seen: list[LinkEvent] = []
    while not seen:
        listener.receive()
        seen = listener.link_events()
    assert seen == [LinkEvent(False, fd)]
    listener.close()


@pytest.mark.skipif(sys.platform != "linux", reason="POLLRDHUP")
def test_after_handshakes_that_took_too_long_one_may_take_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dealer_module, "QUICK_HANDSHAKE_MS", 100)
    monkeypatch.setattr(dealer_module, "HANDSHAKE_MS", 60_000)
    late_ms = 1000
    with hostsocket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE_S)
        dialing = Dealer(f"tcp://127.0.0.1:{listener.getsockname()[1]}")
        ended = threading.Event()

        def answer_late() -> None:
            """Answer the first connection that is still open after `late_ms`."""
            while not ended.is_set():
                with listener.accept()[0] as peer:
                    closed = select.poll()
                    closed.register(peer, select.POLLRDHUP)
                    if not closed.poll(late_ms):
                        peer.settimeout(PATIENCE_S)
                        shake_hands(peer)
                        ended.wait(PATIENCE_S)

        server = threading.Thread(target=answer_late)
        server.start()
        try:
            until(lambda: any(event.up for event in dialing.link_events()), "a handshake succeeds")
        finally:
            ended.set()
            server.join()
            dialing.close()
