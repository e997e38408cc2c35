"""The door /ws: learners and env agents over WebSockets, at a real broker."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import pytest

pytest.importorskip("starlette", reason="needs the extra gymwire[web]")

import msgpack
import uvicorn
from websockets.exceptions import ConnectionClosed, InvalidStatus

from gymwire import ProxyEnv
from gymwire.gateway import limits, server
from gymwire.gateway.access import Access
from gymwire.gateway.app import Gateway, make_app
from gymwire.gateway.doors import DOORS
from gymwire.gateway.tokens import Visitor
from gymwire.gateway.websocket import MAX_FRAMES, MAX_WAITING, _Peer
from gymwire.protocol import space_codecs, spaces
from gymwire.protocol.codec import MAX_MESSAGE, PLAIN, Codec
from gymwire.protocol.messages import (
    Act,
    Busy,
    Bye,
    Close,
    Closed,
    Code,
    Error,
    Gone,
    Offer,
    Offered,
    Open,
    Opened,
    Percept,
    Reset,
    Resume,
    Resumed,
    Role,
    Status,
)
from gymwire.protocol.security import keys
from tests.gateway.sockets import Peer, gateway, learner, private, until
from tests.processes import PATIENCE_S, Programs, programs

NONCE = bytes(range(16))


@pytest.fixture(name="shared", scope="module")
def _shared() -> Iterator[tuple[str, str]]:
    """The URLs of a broker that offers CartPole, and of its gateway."""
    with programs() as started:
        _, broker = started.broker("tcp://127.0.0.1:*", "--lease", "1")
        started.env_agent(broker, "cartpole", "CartPole-v1", "--max-sessions", "2")
        yield broker, gateway(started, broker)[1]


def codec_of(observation: Any, action: Any) -> Codec:
    return Codec(*(space_codecs.compile(spaces.build(one)) for one in (observation, action)))


def opened(peer: Peer, nonce: bytes = NONCE, address: str = "cartpole") -> tuple[int, Codec]:
    """Open a session; return its sid and the codec of its values."""
    while True:
        peer.send(Open(address, nonce, None, {}, 0, "", False, "", b""), 0, 1)
        header, data = peer.frame()
        message = PLAIN.decode(data, header)
        if isinstance(message, Opened):
            break
        assert isinstance(message, Error | Busy), message  # a slot that is being freed
    return header.sid, codec_of(message.observation_space, message.action_space)


def test_a_learner_over_a_websocket_steps_an_environment(shared: tuple[str, str]) -> None:
    with learner(shared[1]) as peer:
        sid, codec = opened(peer)
        peer.send(Reset(3, None), sid, 1, codec)
        header, _ = peer.expect(Status, codec)
        assert (header.sid, header.seq) == (sid, 1)
        request = peer.send(Act(1), sid, 2, codec)
        _, percept = peer.expect(Percept, codec)
        assert percept.reward == 1.0
        peer.socket.send(request)  # the same bytes again: executed once
        assert peer.expect(Percept, codec)[1].observation == pytest.approx(percept.observation)
        peer.send(Close(), sid, 3)
        peer.expect(Closed)


def test_an_env_agent_over_a_websocket_serves_our_learner(shared: tuple[str, str]) -> None:
    broker, web = shared
    agent = Peer(web)
    agent.hello(Role.ENV, b"e" * 16)
    box = [["Discrete", "<i8", 3, 0]]
    digest = sha256(msgpack.packb(["E-v0", box, box])).digest()
    agent.send(
        Offer("socket", "E-v0", box, box, {"id": "E-v0"}, {"render_modes": []}, 1, digest, None)
    )
    agent.expect(Offered)
    codec = codec_of(box, box)

    def serve() -> None:
        limits: dict[str, Any] = {"attributes": []}
        about: Any = ({"id": "E-v0"}, {"render_modes": []}, None, 0, limits, "", None, b"")
        with contextlib.suppress(ConnectionClosed):
            while True:
                header, data = agent.frame()
                answer: Any = None
                match codec.decode(data, header):
                    case Open():
                        answer = Opened(box, box, None, None, *about)
                    case Reset(seed=seed):
                        answer = Status(seed % 3, {})
                    case Act(action=action):
                        answer = Percept(int(action), 0.5, False, False, {})
                    case Close():
                        answer = Closed()
                if answer is not None:
                    agent.send(answer, header.sid, header.seq, codec)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    with ProxyEnv("socket", broker, wait_s=PATIENCE_S) as env:
        assert env.reset(seed=5) == (2, {})
        assert env.step(1) == (1, 0.5, False, False, {})
    agent.send(Bye("enough"))
    agent.close()
    thread.join(PATIENCE_S)


def test_a_lost_websocket_is_a_lost_peer(shared: tuple[str, str]) -> None:
    first = Peer(shared[1])
    first.hello(Role.LEARNER)
    sid, codec = opened(first)
    first.send(Reset(3, None), sid, 1, codec)
    first.expect(Status, codec)
    first.socket.socket.shutdown(socket.SHUT_RDWR)  # no BYE, no closing handshake
    with learner(shared[1]) as second:

        def resumed() -> bool:
            second.send(Resume(NONCE, False), sid, 7)
            header, data = second.frame()
            return isinstance(PLAIN.decode(data, header), Resumed)

        until(resumed)
        second.send(Act(1), sid, 2, codec)
        second.expect(Percept, codec)
        second.send(Close(), sid, 3)
        second.expect(Closed)


def test_the_session_of_a_lost_websocket_ends_with_its_lease(shared: tuple[str, str]) -> None:
    for number in range(4):  # of two slots
        peer = Peer(shared[1])
        peer.hello(Role.LEARNER)
        opened(peer, bytes([number]) * 16)
        peer.socket.socket.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("size", [5, 5_000, 900_000])
def test_what_is_no_frame_is_answered_and_only_that(shared: tuple[str, str], size: int) -> None:
    with learner(shared[1]) as peer:
        peer.socket.send(bytes(size))
        assert peer.expect(Error)[1].code == Code.PROTOCOL
        opened(peer, b"x" * 16)
        peer.send(Bye("done"))


def test_a_text_message_closes_the_websocket(shared: tuple[str, str]) -> None:
    with learner(shared[1]) as peer:
        peer.socket.send("hello")
        with pytest.raises(ConnectionClosed) as caught:
            peer.frame()
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1003


def test_a_message_that_is_too_large_closes_the_websocket(shared: tuple[str, str]) -> None:
    with learner(shared[1]) as peer:
        with contextlib.suppress(ConnectionClosed):
            peer.socket.send(bytes(MAX_MESSAGE + 1))
        with pytest.raises(ConnectionClosed) as caught:
            peer.frame()
        # The reason is lost if the rest of the message was still on its way.
        assert caught.value.rcvd is None or caught.value.rcvd.code == 1009


def test_without_a_broker_a_websocket_is_refused(programs: Programs) -> None:
    with pytest.raises(InvalidStatus) as caught:
        Peer(gateway(programs, "tcp://127.0.0.1:9")[1])
    assert caught.value.response.status_code == 503
    assert b"No broker answers at tcp://127.0.0.1:9" in (caught.value.response.body or b"")


def test_after_a_restart_of_the_broker_the_peer_is_asked_for_hello(programs: Programs) -> None:
    program, broker = programs.broker()
    with learner(gateway(programs, broker)[1]) as peer:
        epoch = peer.hello(Role.LEARNER).epoch
        program.kill()
        programs.broker(broker)
        assert peer.expect(Busy)[1].reason == "hello"
        assert peer.hello(Role.LEARNER).epoch != epoch


# Keys


class Keyed:
    """A broker with keys, and a gateway where alice may use and bob may offer."""

    def __init__(self, programs: Programs, folder: Path) -> None:
        names = ("broker", "alice", "bob", "eve")
        files = {name: keys.generate(name, folder) for name in names}
        self.keys = {name: keys.load(files[name][0]) for name in names}
        self.policy = folder / "policy.toml"
        self.policy.write_text(
            f'[peer.alice]\nkey = "{self.keys["alice"].public.decode()}"\nuse = ["*"]\n'
            f'[peer.bob]\nkey = "{self.keys["bob"].public.decode()}"\noffer = ["lab/*"]\n'
        )
        text = "".join(
            f'[token.{name}]\ntoken = "{name * 16}"\nkey = "{name}.key"\n' for name in names[1:]
        )
        tokens = private(folder / "tokens.toml", text)
        _, self.broker = programs.broker(
            "tcp://127.0.0.1:*", "--key", str(files["broker"][0]), "--policy", str(self.policy)
        )
        self.url = gateway(
            programs,
            self.broker,
            *("--token-file", str(tokens), "--key", str(files["alice"][0])),
            *("--broker-key", str(files["broker"][1])),
        )[1]

    def peer(self, name: str) -> Peer:
        return Peer(self.url, additional_headers={"Authorization": f"Bearer {name * 16}"})


def test_a_token_has_the_rights_of_its_key(programs: Programs, tmp_path: Path) -> None:
    keyed = Keyed(programs, tmp_path)
    offer = Offer(
        "lab/x",
        "E-v0",
        [["Discrete", "<i8", 2, 0]],
        [["Discrete", "<i8", 2, 0]],
        {},
        {},
        1,
        b"d" * 32,
        None,
    )
    bob = keyed.peer("bob")
    assert bob.hello(Role.ENV).identity == keys.identity(keyed.keys["bob"].public)
    bob.send(offer)
    bob.expect(Offered)
    alice = keyed.peer("alice")
    assert alice.hello(Role.LEARNER).identity == keys.identity(keyed.keys["alice"].public)
    alice.send(Open("lab/x", NONCE, None, {}, 0, "", False, "", b""), 0, 1)
    _, opening = bob.expect(Open)
    assert opening.learner == keys.identity(keyed.keys["alice"].public)
    other = keyed.peer("bob")
    other.hello(Role.LEARNER)
    other.send(Open("lab/x", b"n" * 16, None, {}, 0, "", False, "", b""), 0, 1)
    assert other.expect(Error)[1].code == Code.DENIED
    other.close()
    # A key that leaves the policy is evicted, and its WebSocket ends.
    text = keyed.policy.read_text()
    keyed.policy.write_text(text[: text.index("[peer.bob]")])
    bob.expect(Gone)  # its session
    assert bob.expect(Error)[1].code == Code.DENIED
    with pytest.raises(ConnectionClosed):
        bob.frame()
    alice.close()


def test_a_key_that_the_broker_does_not_know_is_refused(programs: Programs, tmp_path: Path) -> None:
    with pytest.raises(InvalidStatus) as caught:
        Keyed(programs, tmp_path).peer("eve")
    assert caught.value.response.status_code == 503
    assert b"it does not know the key" in (caught.value.response.body or b"")


def test_a_wrong_token_is_refused(programs: Programs, tmp_path: Path) -> None:
    with pytest.raises(InvalidStatus) as caught:
        Keyed(programs, tmp_path).peer("mallory")
    assert caught.value.response.status_code == 401


# Peers that do not read or do not answer


@contextlib.contextmanager
def served(broker: str, ping_timeout_s: float = PATIENCE_S) -> Iterator[tuple[str, uvicorn.Server]]:
    """Serve a gateway in a thread, which gives a silent WebSocket up after `ping_timeout_s`."""
    listener = server.listen("127.0.0.1", 0)
    gate = Gateway(broker, None, Access((), Visitor("local")))
    config = server.configuration(
        make_app(gate, DOORS), ping_interval_s=0.05, ping_timeout_s=ping_timeout_s
    )
    running = server.Server(config)
    thread = threading.Thread(target=asyncio.run, args=(running.serve([listener]),))
    thread.start()
    try:
        yield server.url_of(listener), running
    finally:
        running.should_exit = True
        thread.join(PATIENCE_S)
        listener.close()


def ask(url: str, *parts: str, answered: Callable[[], object] = lambda: None) -> bytes:
    """Send these texts over a connection of its own; return all that is answered.

    `answered` is called as soon as an answer arrives.
    """
    host, _, port = url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), PATIENCE_S) as client:
        for part in parts:
            client.sendall(part.encode())
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while received := client.recv(4096):
                answer += received
                answered()
        return answer


GET = "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n"


def test_a_client_that_sends_no_request_in_time_is_cut_off(
    shared: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hurry() -> None:
        monkeypatch.setattr(server, "REQUEST_S", 0.3)

    monkeypatch.setattr(server, "REQUEST_S", PATIENCE_S)
    monkeypatch.setattr(limits, "BODY_S", 0.3)
    with served(shared[0]) as (url, _), learner(url) as peer:
        ok = ask(url, f"{GET}\r\n", GET, answered=hurry)
        assert ok.endswith(b'{"status":"ok"}')
        assert ask(url) == ask(url, GET) == b""
        monkeypatch.setattr(server, "REQUEST_S", PATIENCE_S)
        head = f"POST{GET[3:]}Content-Length: 9\r\n\r\n"
        answer = ask(url, head, "123", answered=hurry)
        assert b" 408 " in answer
        assert b"must arrive within 0.3 s" in answer
        opened(peer, b"z" * 16)  # a WebSocket may need longer
        peer.send(Bye("done"))


def test_a_message_of_endless_fragments_is_cut_off(
    shared: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_FRAGMENTS", 100)
    with served(shared[0]) as (url, _), learner(url) as peer:
        frame = bytes(PLAIN.encode(Bye("done")))
        peer.socket.send([frame[:1], *[b""] * 90, frame[1:]])
        with pytest.raises(ConnectionClosed):
            peer.socket.send(itertools.repeat(b""))


def test_a_peer_that_neither_answers_nor_reads_is_cut_off(shared: tuple[str, str]) -> None:
    with served(shared[0], ping_timeout_s=0.2) as (url, running):
        host, _, port = url.removeprefix("http://").rpartition(":")
        with socket.create_connection((host, int(port))) as silent:
            request = (
                f"GET /ws HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: "
                f"Upgrade\r\nSec-WebSocket-Key: {'A' * 22}==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            )
            silent.sendall(request.encode())
            assert silent.recv(1) == b"H"  # it is connected, and reads no more
            until(lambda: not running.server_state.connections)
        running.config.ws_ping_timeout = PATIENCE_S  # also for a machine that is busy
        with learner(url) as peer:  # which answers pings by itself
            opened(peer, b"y" * 16)
            peer.send(Bye("done"))


class FakeDealer:
    def __init__(self, frames: list[bytes]) -> None:
        self.frames = frames

    def take(self) -> bytes | None:
        return self.frames.pop(0) if self.frames else None


@pytest.mark.parametrize(
    ("frames", "kept"),
    [
        ([b"x"] * 3, 3),
        ([b"x"] * (2 * MAX_FRAMES), MAX_FRAMES),
        ([bytes(MAX_WAITING // 2)] * 3, 2),
        ([bytes(MAX_WAITING + 5), b"x"], 1),
        ([b"x", bytes(MAX_WAITING), b"y"], 2),
    ],
)
def test_what_waits_for_a_peer_that_does_not_read_is_bounded(
    frames: list[bytes], kept: int
) -> None:
    async def keep() -> int:
        peer = _Peer(cast(Any, None), cast(Any, FakeDealer(list(frames))))
        peer._receive()
        return len(peer._frames)

    assert asyncio.run(keep()) == kept
