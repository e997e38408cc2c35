from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gymwire.broker.server import Server
from gymwire.protocol.codec import PLAIN
from gymwire.protocol.ending_signals import StopEvent
from gymwire.protocol.errors import EnvironmentClosed
from gymwire.protocol.messages import Find, Found, Hello, Message, Ping, Pong, Role, Welcome
from gymwire.protocol.transport.broker_link import BrokerLink
from gymwire.protocol.transport.dealer import Dealer
from gymwire.protocol.transport.interface import LinkEvent
from gymwire.protocol.transport.polling import wait_among
from gymwire.protocol.transport.private_folder import FOLDER_PREFIX
from gymwire.protocol.transport.router import Router
from gymwire.protocol.transport.unix import CAN_LISTEN, UnixDealer

pytestmark = pytest.mark.skipif(not CAN_LISTEN, reason="this system has no local channels")

ATTEMPTS = 100  # ticks for what must happen, on a machine that may be busy
RECONNECTED = LinkEvent(True, -1)


@pytest.fixture
def broker() -> Iterator[Server]:
    made = Server(["tcp://127.0.0.1:*"])
    stop = StopEvent()
    thread = threading.Thread(target=made.run, args=(stop,))
    thread.start()
    yield made
    stop.set()
    thread.join()


@contextlib.contextmanager
def linked(url: str, *, eager: bool = True) -> Iterator[BrokerLink]:
    with contextlib.closing(BrokerLink(Dealer(url), eager=eager)) as made:
        yield made


def answer(link: BrokerLink) -> Message:
    for _ in range(ATTEMPTS):
        data = link.receive()
        if data is not None:
            return PLAIN.decode(data)
        link.link_events()
    raise AssertionError("nothing came")


def introduced(link: BrokerLink, host: str = "") -> Welcome:
    """Return the broker's answer to HELLO, which the link handles, too."""
    hello = PLAIN.encode(Hello(Role.LEARNER, b"a" * 16, "test", host or socket.gethostname()))
    for _ in range(ATTEMPTS):
        if link.send_hello(hello, wait=True):
            break
    welcome = answer(link)
    assert isinstance(welcome, Welcome)
    link.handle_welcome(welcome)
    return welcome


def local_channel_of(link: BrokerLink) -> UnixDealer | None:
    return link._channel


def until(link: BrokerLink, condition: Callable[[], bool]) -> list[LinkEvent]:
    """Read link events until the condition holds; return them."""
    events = []
    for _ in range(ATTEMPTS):
        events += link.link_events()
        if condition():
            return events
        link.poll(0.05)
    raise AssertionError("the condition never held")


def finds(link: BrokerLink) -> bool:
    """Whether the broker answers."""
    link.send(PLAIN.encode(Find()))
    return isinstance(answer(link), Found)


def test_on_the_brokers_host_frames_use_a_local_channel(broker: Server) -> None:
    with linked(broker.urls[0]) as link:
        assert introduced(link).local_channel.startswith("unix://")
        channel = local_channel_of(link)
        assert channel is not None
        assert link.waitable == channel.waitable
        assert finds(link)
        assert not link._dealer.poll(0.2)  # the answer came over the local channel only


def test_a_peer_on_another_host_gets_no_local_channel(broker: Server) -> None:
    with linked(broker.urls[0]) as link:
        welcome = introduced(link, "elsewhere")
        assert (welcome.local_channel, welcome.attach_token) == ("", b"")
        assert local_channel_of(link) is None
        assert finds(link)


def test_a_link_that_is_not_eager_opens_a_local_channel_on_request(broker: Server) -> None:
    with linked(broker.urls[0], eager=False) as link:
        introduced(link)
        assert local_channel_of(link) is None
        assert finds(link)
        link.open_local_channel()
        assert local_channel_of(link) is not None
        assert finds(link)


def test_frames_received_over_zeromq_before_the_local_channel_are_not_lost(broker: Server) -> None:
    with linked(broker.urls[0], eager=False) as link:
        introduced(link)
        link.send(PLAIN.encode(Find()))
        assert link._dealer.poll(5.0)
        link.open_local_channel()
        assert local_channel_of(link) is not None
        assert link.has_buffered
        assert link.poll()
        assert wait_among([link], 5.0) == [0]
        assert isinstance(answer(link), Found)
        assert not link.has_buffered
        assert finds(link)


def test_an_emptied_backlog_does_not_stop_reception(broker: Server) -> None:
    """An interrupt may come right after the last buffered frame was taken."""
    with linked(broker.urls[0]) as link:
        introduced(link)
        link._backlog.append(b"x")
        link.link_events()
        link._backlog.clear()
        assert finds(link)


def test_the_loss_of_a_local_channel_counts_as_a_new_connection(broker: Server) -> None:
    with linked(broker.urls[0]) as link:
        welcome = introduced(link)
        channel = local_channel_of(link)
        assert channel is not None
        link.link_events()  # the event of the first connection
        channel.sock.shutdown(socket.SHUT_RDWR)
        assert link.receive() is None
        assert until(link, lambda: local_channel_of(link) is None) == [RECONNECTED]
        assert finds(link)  # by ZeroMQ
        assert introduced(link) == welcome
        assert local_channel_of(link) not in (None, channel)
        assert finds(link)


def test_a_new_local_channel_of_a_peer_replaces_the_old_one(broker: Server) -> None:
    with linked(broker.urls[0], eager=False) as link, linked(broker.urls[0], eager=False) as thief:
        welcome = introduced(link)
        link.open_local_channel()
        introduced(thief, "elsewhere")
        thief.handle_welcome(welcome)
        thief.open_local_channel()
        assert local_channel_of(thief) is not None
        assert until(link, lambda: local_channel_of(link) is None or link.receive() is not None)
        assert local_channel_of(link) is None


@pytest.mark.parametrize("token", [b"", b"x" * 16], ids=["none", "of nobody"])
def test_a_wrong_attach_token_opens_no_local_channel(broker: Server, token: bytes) -> None:
    with linked(broker.urls[0], eager=False) as link:
        channel = introduced(link).local_channel
        link.handle_welcome(Welcome(1, "", "", 1000, 1.0, channel, token))
        link.open_local_channel()
        until(link, lambda: link._pending is None)
        assert local_channel_of(link) is None
        assert finds(link)


@pytest.mark.parametrize(
    "first",
    [
        b"\x18\0\0\0" + bytes(24),
        b"\xff\xff\xff\xff",
        (1_000_000).to_bytes(4, "little") + bytes(24),
        b"GET / HTTP/1.1\r\nHost: here\r\n\r\n",
        len(PLAIN.encode(Pong())).to_bytes(4, "little") + bytes(PLAIN.encode(Pong())),
    ],
    ids=["zeros", "a huge length", "a large frame", "HTTP", "another message"],
)
def test_a_connection_that_does_not_begin_with_attach_is_closed(
    broker: Server, first: bytes
) -> None:
    with linked(broker.urls[0]) as link, socket.socket(socket.AF_UNIX) as raw:
        path = introduced(link).local_channel.removeprefix("unix://")
        raw.settimeout(10)
        raw.connect(path)
        raw.sendall(first)
        assert raw.recv(1) == b""
        assert finds(link)


def test_hello_over_a_local_channel_closes_the_channel(broker: Server) -> None:
    with linked(broker.urls[0]) as link:
        introduced(link)
        link.send(PLAIN.encode(Hello(Role.LEARNER, b"a" * 16, "test", "host")))
        assert RECONNECTED in until(
            link, lambda: link.receive() is None and local_channel_of(link) is None
        )
        assert finds(link)


def test_a_flood_over_a_local_channel_closes_it(broker: Server) -> None:
    with linked(broker.urls[0]) as link:
        welcome = introduced(link)
        channel = local_channel_of(link)
        assert channel is not None
        while channel.up:  # a slow broker answers the first thousands within the rate limit
            if not link.send(PLAIN.encode(Find())):
                link.receive()
        # The peer does not get another one at once.
        link.handle_welcome(welcome)
        until(link, lambda: link._pending is None)
        assert local_channel_of(link) is None
        with linked(broker.urls[0]) as other:
            introduced(other)
            assert finds(other)


def test_without_an_answer_to_attach_the_link_uses_zeromq() -> None:
    """A broker that is short of descriptors does not accept new connections."""
    folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX))
    router = Router(["tcp://127.0.0.1:*"])
    try:
        with socket.socket(socket.AF_UNIX) as listener, linked(router.urls[0]) as link:
            listener.bind(f"{folder}/channels")
            listener.listen()
            link.handle_welcome(
                Welcome(1, "", "", 1000, 1.0, f"unix://{folder}/channels", b"t" * 16)
            )
            assert link._pending is not None
            while not link.send(PLAIN.encode(Find()), wait=True):
                link.link_events()
            received = router.receive()
            assert received is not None
            assert PLAIN.decode(received[2]) == Find()
            router.send(received[0], PLAIN.encode(Found([])))
            assert answer(link) == Found([])
            assert local_channel_of(link) is None
            # The broker answers late.
            accepted, _ = listener.accept()
            with accepted:
                attached = bytes.fromhex("e7012b00 01000000") + bytes(16) + b"\x90"
                accepted.sendall(len(attached).to_bytes(4, "little") + attached)
                until(link, lambda: local_channel_of(link) is not None)
    finally:
        router.close()
        shutil.rmtree(folder)


def test_a_missing_socket_is_skipped(broker: Server) -> None:
    with linked(broker.urls[0]) as link:
        introduced(link, "elsewhere")
        link.handle_welcome(
            Welcome(1, "", "", 1000, 1.0, "unix:///of/another/container", b"t" * 16)
        )
        assert local_channel_of(link) is None
        assert finds(link)


TOKEN = b"t" * 16


@contextlib.contextmanager
def other_socket(folder_prefix: str, mode: int) -> Iterator[tuple[str, socket.socket]]:
    """Lend the path of a listening socket that does not expect gymwire's frames."""
    folder = Path(tempfile.mkdtemp(prefix=folder_prefix))
    folder.chmod(mode)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/database")
        listener.listen()
        listener.setblocking(False)
        yield f"{folder}/database", listener
    shutil.rmtree(folder)


def was_dialed(listener: socket.socket) -> bool:
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True


@pytest.mark.parametrize(
    ("prefix", "mode", "url", "token", "broker_url"),
    [
        ("database-", 0o700, "unix://{path}", TOKEN, "tcp://127.0.0.1:9"),
        (FOLDER_PREFIX, 0o755, "unix://{path}", TOKEN, "tcp://127.0.0.1:9"),
        (FOLDER_PREFIX, 0o700, "unix://{folder}/../{name}/database", TOKEN, "tcp://127.0.0.1:9"),
        (FOLDER_PREFIX, 0o700, "unix://{path}", b"FLUSHALL\r\n", "tcp://127.0.0.1:9"),
        (FOLDER_PREFIX, 0o700, "unix://{path}", TOKEN * 2, "tcp://127.0.0.1:9"),
        (FOLDER_PREFIX, 0o700, "unix://{path}", b"", "tcp://127.0.0.1:9"),
        (FOLDER_PREFIX, 0o700, "unix://{path}", TOKEN, "tcp://192.0.2.1:9"),
        (FOLDER_PREFIX, 0o700, "unix://{path}", TOKEN, "tcp://[2001:db8::1]:9"),
        (FOLDER_PREFIX, 0o700, "unix://{path}", TOKEN, "tcp://nowhere.invalid:9"),
        (FOLDER_PREFIX, 0o700, "unix://{link}", TOKEN, "tcp://127.0.0.1:9"),
        (FOLDER_PREFIX, 0o700, "unix://{linked_folder}/database", TOKEN, "tcp://127.0.0.1:9"),
    ],
)
def test_a_broker_cannot_have_another_socket_dialed(
    prefix: str, mode: int, url: str, token: bytes, broker_url: str
) -> None:
    with other_socket(prefix, mode) as (path, listener), linked(broker_url) as link:
        folder = Path(path).parent
        link_to_socket, link_to_folder = folder / "link", folder.with_name(folder.name + "-link")
        link_to_socket.symlink_to(path)
        link_to_folder.symlink_to(folder)
        named = url.format(
            path=path,
            folder=folder,
            name=folder.name,
            link=link_to_socket,
            linked_folder=link_to_folder,
        )
        link.handle_welcome(Welcome(1, "", "", 1000, 1.0, named, token))
        link_to_folder.unlink()
        assert link._pending is None
        assert not was_dialed(listener)


def test_a_socket_of_another_user_gets_no_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    with other_socket(FOLDER_PREFIX, 0o700) as (path, listener):
        monkeypatch.setattr("gymwire.protocol.transport.unix._is_ours", lambda _sock: False)
        with linked("tcp://127.0.0.1:9") as link:
            link.handle_welcome(Welcome(1, "", "", 1000, 1.0, f"unix://{path}", TOKEN))
            assert link._pending is None
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.recv(100) == b""


def test_a_closed_link_says_so_whatever_it_is_asked_for(broker: Server) -> None:
    with linked(broker.urls[0]) as link:
        introduced(link)
    calls: list[Callable[[], object]] = [
        link.receive,
        lambda: link.send(b"", wait=True),
        lambda: link.send_all([b""], wait=True),
    ]
    for call in calls:
        with pytest.raises(EnvironmentClosed):
            call()


def test_a_ping_of_the_broker_uses_zeromq(broker: Server) -> None:
    with linked(broker.urls[0]) as link:
        introduced(link)
        (peer,) = broker.core._tables.peers.values()
        broker.core._connections.suspect(peer)
        assert link._dealer.poll(5.0)
        frame = link._dealer.receive()
        assert frame is not None
        assert PLAIN.decode(frame) == Ping()
