"""What attackers try, over real sockets: each test shows the attempt, and that it fails.

The victim is a keyed broker, or the direct endpoint of an env agent; after each attack an honest
learner must be served as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import zmq

from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.learner_agent.proxies.proxy_env import ProxyEnv
from gymwire.protocol import codec
from gymwire.protocol.codec import PLAIN
from gymwire.protocol.errors import Denied, EnvironmentLost, GymwireError
from gymwire.protocol.messages import (
    Act,
    Error,
    Find,
    Found,
    Hello,
    Kind,
    Message,
    Offer,
    Open,
    Ping,
    Reset,
    Resume,
    Role,
    Welcome,
)
from gymwire.protocol.security import keys
from gymwire.protocol.security.keys import KeyPair
from gymwire.protocol.transport.broker_link import BrokerLink
from gymwire.protocol.transport.dealer import HEARTBEAT_IVL_MS, Dealer
from tests.processes import PATIENCE_S, Program, Programs, programs

NAMES = ("broker", "lab", "alice", "mallory", "stranger")


class Site(NamedTuple):
    """A broker with keys, an env agent `lab`, and the keys of other peers."""

    folder: Path
    url: str
    broker: Program
    agent: Program
    direct: str  # the agent's direct endpoint

    def pair(self, name: str) -> KeyPair:
        return keys.load(self.folder / f"{name}.key")

    def of(self, name: str) -> dict[str, Any]:
        """How this one connects."""
        return {
            "key": self.folder / f"{name}.key",
            "broker_key": self.folder / "broker.pub",
            "timeout_s": 5.0,
        }

    def connection(self, name: str) -> BrokerConnection:
        return BrokerConnection(self.url, **self.of(name))

    def env(self, name: str = "alice", address: str = "lab/cartpole", **options: Any) -> ProxyEnv:
        return ProxyEnv(address, self.url, **self.of(name), **options)

    def policy(self, *names: str) -> None:
        """Put a policy in force that knows these."""
        rights = {
            "lab": 'offer = ["lab/*"]',
            "alice": 'use = ["lab/*"]',
            "mallory": 'offer = ["m/*"]\nuse = ["m/*"]',
        }
        text = "".join(
            f'[peer.{name}]\nkey = "{self.pair(name).public.decode()}"\n{rights[name]}\n'
            for name in names
        )
        made = self.folder / "policy.new"
        made.write_text(text)
        made.replace(self.folder / "policy.toml")


def _site(started: Programs, folder: Path) -> Site:
    for name in NAMES:
        keys.generate(name, folder)
    site = Site(folder, "", None, None, "")  # type: ignore[arg-type]
    site.policy("lab", "alice", "mallory")
    broker, url = started.broker(
        "tcp://127.0.0.1:*",
        "--key",
        str(folder / "broker.key"),
        "--policy",
        str(folder / "policy.toml"),
    )
    agent = started.env_agent(
        url,
        *("--address", "lab/cartpole", "--env", "CartPole-v1", "--threads", "1"),
        *("--direct", "tcp://127.0.0.1:*"),
        *("--key", str(folder / "lab.key"), "--broker-key", str(folder / "broker.pub")),
    )
    site = site._replace(url=url, broker=broker, agent=agent)
    with contextlib.closing(site.connection("alice")) as connection:
        session = connection.open("lab/cartpole", direct="never")
        session.close()
        asked = connection.open("lab/cartpole")
        offer = asked.opened.direct
        asked.close()
    assert offer is not None
    return site._replace(direct=next(u for u in offer["urls"] if u.startswith("tcp:")))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with programs() as started:
        yield _site(started, tmp_path_factory.mktemp("keys"))


@pytest.fixture
def own_site(programs: Programs, tmp_path: Path) -> Site:
    """A site that the test may change."""
    return _site(programs, tmp_path)


class Target(NamedTuple):
    site: Site
    url: str


@pytest.fixture(params=["broker", "direct"])
def target(request: pytest.FixtureRequest, site: Site) -> Target:
    """What to attack."""
    return Target(site, site.url if request.param == "broker" else site.direct)


@contextlib.contextmanager
def session_of(site: Site, name: str) -> Iterator[ProxyEnv]:
    """Open a direct session, so that the direct endpoint expects its learner."""
    with contextlib.closing(site.env(name, direct="always")) as env:
        yield env


@pytest.fixture(autouse=True)
def _honest_learners_are_served_afterwards(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "site" in request.fixturenames:
        site: Site = request.getfixturevalue("site")
        for program in (site.broker, site.agent):
            assert program.process.poll() is None, "".join(program.output[-20:])
        for direct in ("always", "never"):
            with contextlib.closing(site.env(direct=direct)) as env:
                env.reset(seed=1)
                env.step(env.action_space.sample())


class Attacker:
    """A bare socket with a key, that says what it likes."""

    def __init__(self, site: Site, name: str, url: str = "", rid: bytes = b"") -> None:
        self.context: zmq.Context[Any] = zmq.Context()
        self.socket: zmq.Socket[bytes] = self.context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.rcvtimeo = int(PATIENCE_S * 1000)
        pair = site.pair(name)
        self.socket.curve_publickey, self.socket.curve_secretkey = pair.public, pair.secret
        to_agent = url and url == site.direct
        self.socket.curve_serverkey = site.pair("lab" if to_agent else "broker").public
        self.socket.setsockopt(zmq.ROUTING_ID, rid or b"\x01" + os.urandom(15))
        self.socket.connect(url or site.url)

    def say(self, message: Message, sid: int = 0, seq: int = 0) -> None:
        self.socket.send(PLAIN.encode(message, sid, seq))

    def hears(self) -> Message:
        while isinstance(message := PLAIN.decode(self.socket.recv()), Ping):
            continue  # a PING of the broker
        return message

    def asks(self, message: Message, sid: int = 0, seq: int = 1) -> Message:
        self.say(message, sid, seq)
        return self.hears()

    def hello(self, role: str = Role.LEARNER, sessions: list[Any] | None = None) -> Message:
        return self.asks(Hello(role, os.urandom(16), "x", "x", sessions or []))

    def close(self) -> None:
        self.context.destroy(linger=0)


@contextlib.contextmanager
def attacker(site: Site, name: str = "mallory", **options: Any) -> Iterator[Attacker]:
    made = Attacker(site, name, **options)
    try:
        yield made
    finally:
        made.close()


def _rid(link: BrokerLink) -> bytes:
    return bytes(link._dealer.waitable.getsockopt(zmq.ROUTING_ID))


def _go_on(env: ProxyEnv) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        env.reset()


# --- keys that may connect ------------------------------------------------------------------------


def test_an_unknown_key_gets_an_error_at_once(site: Site) -> None:
    with pytest.raises(Denied, match=r"does not know the key .*identity [a-z2-7]{16}"):
        site.connection("stranger")  # after CONNECT_S there would be another error


def test_a_learner_without_keys_gets_an_error_at_once(site: Site) -> None:
    # libzmq may close the connection before it has sent that it uses keys.
    with pytest.raises(Denied, match=r"it uses keys.* --key and --broker-key .*`gymwire keygen"):
        BrokerConnection(site.url)


def test_a_learner_with_keys_gets_an_error_if_the_broker_has_none(
    site: Site, broker_url: str
) -> None:
    with pytest.raises(Denied, match="does not use keys"):
        BrokerConnection(broker_url, **site.of("alice"))


def test_an_impostor_of_the_broker_is_not_trusted(site: Site) -> None:
    wrong = {**site.of("alice"), "broker_key": site.pair("mallory").public.decode()}
    with pytest.raises(Denied, match="not the one given as --broker-key"):
        BrokerConnection(site.url, **wrong)


def test_an_env_agent_with_an_unknown_key_ends_and_says_why(site: Site, programs: Programs) -> None:
    program = programs.start(
        *("gymwire.env_agent", "--broker", site.url, "--address", "m/x", "--env", "CartPole-v1"),
        *("--key", str(site.folder / "stranger.key")),
        *("--broker-key", str(site.folder / "broker.pub")),
    )
    assert program.wait() == 2
    assert "does not know the key" in "".join(program.output)


def test_the_direct_endpoint_lets_in_only_learners_of_its_sessions(site: Site) -> None:
    dealer = Dealer(site.direct, key=site.pair("mallory"), server_key=site.pair("lab").public)
    with contextlib.closing(dealer):
        denied = ""
        deadline = time.monotonic() + PATIENCE_S
        while not denied and time.monotonic() < deadline:
            dealer.poll(0.05)
            denied = "".join(event.denied for event in dealer.link_events())
        assert "does not know the key" in denied


def test_a_key_removed_from_the_policy_is_disconnected(own_site: Site) -> None:
    with contextlib.closing(own_site.env(direct="never")) as env:
        env.reset(seed=1)
        own_site.policy("lab", "mallory")
        with pytest.raises((EnvironmentLost, Denied), match="removed from this broker's policy"):
            _go_on(env)
    with pytest.raises(Denied, match="does not know the key"):
        own_site.connection("alice")


def test_a_removed_key_loses_its_direct_sessions_too(own_site: Site) -> None:
    with contextlib.closing(own_site.env(direct="always")) as env:
        env.reset(seed=1)
        own_site.policy("lab", "mallory")
        with pytest.raises((EnvironmentLost, Denied)):
            _go_on(env)


def test_a_removed_agent_loses_its_offers_and_ends(own_site: Site) -> None:
    own_site.policy("alice", "mallory")
    assert own_site.agent.wait() == 2
    assert "removed from this broker's policy" in "".join(own_site.agent.output)
    with contextlib.closing(own_site.connection("alice")) as connection:
        assert connection.find() == []


def test_a_silent_connection_whose_key_was_removed_is_closed(own_site: Site) -> None:
    with attacker(own_site) as mallory:
        monitor = mallory.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        assert isinstance(mallory.hello(), Welcome)
        own_site.policy("lab", "alice")
        assert monitor.poll(int(PATIENCE_S * 1000))
        mallory.socket.disable_monitor()
        monitor.close(linger=0)


def test_an_invalid_policy_leaves_the_previous_one_in_force(own_site: Site) -> None:
    (own_site.folder / "policy.toml").write_text("[peer.lab]\nkey = 'short'\n")
    line = own_site.broker.wait_for("invalid policy ignored")
    assert "[peer.lab]" in line["why"]
    own_site.connection("alice").close()


def test_a_process_whose_key_check_died_does_not_go_on() -> None:
    code = (
        "from gymwire.protocol.security import keys\n"
        "from gymwire.protocol.transport import dealer, router\n"
        "import time, zmq\n"
        "public, secret = zmq.curve_keypair()\n"
        "pair = keys.KeyPair(public, secret)\n"
        "def broken(key): raise RuntimeError('broken')\n"
        "listening = router.Router(['tcp://127.0.0.1:*'], key=pair, allow=broken)\n"
        "dialing = dealer.Dealer(listening.urls[0], key=pair, server_key=public)\n"
        "time.sleep(600)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 70
    assert "key check failed" in done.stdout + done.stderr


def test_without_the_key_check_every_connection_is_refused(site: Site) -> None:
    """The other half of a dead ZAP thread: libzmq itself refuses when no thread answers."""
    context: zmq.Context[Any] = zmq.Context()
    try:
        router: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        pair = site.pair("broker")
        router.curve_server = True
        router.curve_publickey, router.curve_secretkey = pair.public, pair.secret
        router.setsockopt_string(zmq.ZAP_DOMAIN, "x")
        router.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        router.bind("tcp://127.0.0.1:*")
        with attacker(site, url=router.get_string(zmq.LAST_ENDPOINT)) as mallory:
            mallory.say(Find())
            assert not router.poll(500)
    finally:
        context.destroy(linger=0)


# --- rights ---------------------------------------------------------------------------------------


def test_an_address_outside_the_policy_cannot_be_offered(site: Site) -> None:
    with attacker(site) as mallory:
        mallory.hello(Role.ENV)
        answer = mallory.asks(Offer("lab/cartpole", "x", None, None, {}, {}, 1, b"d"))
        assert isinstance(answer, Error)
        assert answer.code == "denied"
        assert "may not offer 'lab/cartpole'" in answer.text
        assert "m/*" in answer.text


def test_an_address_outside_the_policy_cannot_be_used_or_listed(site: Site) -> None:
    with contextlib.closing(site.connection("mallory")) as connection:
        assert connection.find() == []
        with pytest.raises(Denied, match="may not use 'lab/cartpole'"):
            connection.open("lab/cartpole")


def test_an_agent_cannot_announce_sessions_at_an_address_that_the_policy_denies_it(
    site: Site,
) -> None:
    with attacker(site) as mallory:
        row = [1234, b"n" * 16, "lab/cartpole", keys.identity(site.pair("alice").public)]
        assert isinstance(mallory.hello(Role.ENV, [row]), Welcome)
        gone = mallory.hears()
        assert "may not offer" in getattr(gone, "reason", "")


# --- sessions of others ---------------------------------------------------------------------------


def test_a_forged_sid_reaches_nobody(site: Site) -> None:
    with contextlib.closing(site.env(direct="never")) as env, attacker(site) as mallory:
        first, _ = env.reset(seed=1)
        mallory.hello()
        sid = env._session.sid
        for message in (Act(1), Reset()):
            answer = mallory.asks(message, sid, env._session.exchange.seq + 1)
            assert isinstance(answer, Error)
            assert answer.code == "denied"
        again, _ = env.reset(seed=1)
        assert (first == again).all()


def test_a_session_is_not_resumed_without_its_nonce_or_by_another_key(site: Site) -> None:
    with contextlib.closing(site.env(direct="never")) as env, attacker(site) as mallory:
        mallory.hello()
        for nonce in (os.urandom(16), env._session.open_msg.nonce):
            answer = mallory.asks(Resume(nonce, take_over=True), env._session.sid)
            assert isinstance(answer, Error)
            assert answer.code == "denied"


def test_the_direct_endpoint_serves_a_session_only_to_its_learner(site: Site) -> None:
    with contextlib.closing(site.env(direct="always")) as env:
        with attacker(site, "alice", url=site.direct) as other:  # its key may even connect
            sid = env._session.sid
            answer = other.asks(Act(1), sid, 1)
            assert getattr(answer, "reason", "") == "hello"
            answer = other.asks(Resume(os.urandom(16)), sid)
            assert isinstance(answer, Error)
            assert answer.code == "denied"
        env.reset(seed=1)


def test_the_routing_id_of_another_peer_is_of_no_use_with_another_key(site: Site) -> None:
    """Knowing the routing id, 15 random bytes that are never shown, is not enough."""
    with contextlib.closing(site.env(direct="never")) as env:
        env.reset(seed=1)
        rid = _rid(env._session.connection.link)
        with attacker(site, rid=rid) as mallory:
            answer = mallory.asks(Act(1), env._session.sid, env._session.exchange.seq + 1)
            assert isinstance(answer, Error)
            assert answer.code == "denied"
            answer = mallory.hello()
            assert isinstance(answer, Error)
            assert answer.code == "denied"


def test_taking_over_ones_own_routing_id_does_not_end_the_process(target: Target) -> None:
    """It aborted libzmq while listening sockets sent heartbeats: a timer found a dead engine."""
    site, url = target
    rid = b"\x01" + os.urandom(15)
    frame = PLAIN.encode(Find(), 0, 1)
    with session_of(site, "alice") as env:  # so that the direct endpoint lets alice in
        with attacker(site, "alice", url=url, rid=rid) as first:
            first.asks(Find())
            with attacker(site, "alice", url=url, rid=rid) as second:
                second.asks(Find())
                for _ in range(3):
                    first.socket.send(frame)  # its input is dropped from now on
        # Served on for longer than a heartbeat's interval, after which it used to abort.
        until_s = time.monotonic() + 1.2 * HEARTBEAT_IVL_MS / 1000
        while time.monotonic() < until_s:
            env.reset(seed=1)
            assert site.broker.process.poll() is site.agent.process.poll() is None


def test_a_step_recorded_and_replayed_after_a_reconnect_is_not_done_again(site: Site) -> None:
    with contextlib.closing(site.env(direct="never")) as env:
        env.reset(seed=1)
        session = env._session
        step = PLAIN.encode(Act(0), session.sid, session.exchange.seq + 1)
        observation, *_ = env.step(0)
        with attacker(site, "alice") as recorder:  # the same key, from another connection
            recorder.hello()
            recorder.socket.send(step)
            answer = recorder.hears()
            assert isinstance(answer, Error)
            assert answer.code == "denied"
        session.connection.link.send(step)  # and from the right one: answered, not executed
        following, *_ = env.step(0)
        env.reset(seed=1)
        assert (env.step(0)[0] == observation).all()
        assert (env.step(0)[0] == following).all()


# --- bytes ----------------------------------------------------------------------------------------


def test_three_frames_do_not_pass_for_another_sender(site: Site) -> None:
    with contextlib.closing(site.env(direct="never")) as env, attacker(site) as mallory:
        env.reset(seed=1)
        victim = _rid(env._session.connection.link)
        act = PLAIN.encode(Act(1), env._session.sid, env._session.exchange.seq + 1)
        mallory.hello()
        mallory.socket.send_multipart([b"x", victim, act])
        mallory.say(Find(), seq=1)
        answers = [mallory.hears(), mallory.hears()]  # in either order
        assert {type(answer) for answer in answers} == {Error, Found}
        observation, *_ = env.step(0)
        env.reset(seed=1)
        assert (env.step(0)[0] == observation).all()


def test_a_routing_id_that_starts_with_zero_ends_nothing(site: Site) -> None:
    context: zmq.Context[Any] = zmq.Context()
    sockets: list[zmq.Socket[bytes]] = []
    try:
        for guess in range(64):
            bare: zmq.Socket[bytes] = context.socket(zmq.DEALER)
            sockets.append(bare)
            bare.linger = 0
            pair = site.pair("mallory")
            bare.curve_publickey, bare.curve_secretkey = pair.public, pair.secret
            bare.curve_serverkey = site.pair("broker").public
            with contextlib.suppress(zmq.ZMQError):  # libzmq refuses to set one
                bare.setsockopt(zmq.ROUTING_ID, b"\0" + struct.pack(">I", guess))
            bare.connect(site.url)
            hello = Hello(Role.LEARNER, os.urandom(16), "x", "x")
            bare.send(PLAIN.encode(hello, 0, 1))
        bare.rcvtimeo = int(PATIENCE_S * 1000)
        answer = PLAIN.decode(bare.recv())
        assert isinstance(answer, Error)
        assert "routing id of its own" in answer.text
    finally:
        for one in sockets:
            one.close()
        context.destroy(linger=0)


def test_raw_bytes_on_the_port_are_dropped(target: Target) -> None:
    host, _, port = target.url.removeprefix("tcp://").rpartition(":")
    for garbage in (
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x01\x00",  # ZMTP 1: an anonymous peer
        b"\x11\x00" + b"\x01" * 16 + b"\x03\x00ab",  # ZMTP 1: a name, and a message
        b"\xff" + b"\x00" * 8 + b"\x7f\x03\x00CURVE" + bytes(200),
        os.urandom(4096),
    ):
        with socket.create_connection((host.strip("[]"), int(port)), PATIENCE_S) as raw:
            raw.settimeout(1.0)
            with contextlib.suppress(OSError):
                raw.sendall(garbage)
                raw.recv(4096)


def test_a_slow_loris_is_disconnected(target: Target) -> None:
    host, _, port = target.url.removeprefix("tcp://").rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), PATIENCE_S) as raw:
        raw.settimeout(PATIENCE_S)
        raw.sendall(b"\xff\x00\x00")
        while True:  # until the end of the stream, which a timeout would not be
            try:
                if not raw.recv(4096):
                    break
            except ConnectionResetError:
                break


@pytest.mark.parametrize(
    "head",
    [
        b"\xdd\xff\xff\xff\xff",  # an array of four billion
        b"\xdf\xff\xff\xff\xff",  # a map
        b"\x92\xc6\xff\xff\xff\xff",  # bytes
        b"\x91" * 100_000,  # deep
        b"\xc9\xff\xff\xff\xff\x01",  # an extension
    ],
)
def test_lengths_that_claim_gigabytes_cost_nothing(site: Site, head: bytes) -> None:
    with attacker(site) as mallory:
        mallory.hello()
        for kind in (Kind.OPEN, Kind.FIND, Kind.HELLO, Kind.RESUME):
            header = codec.HEADER.pack(codec.MAGIC, 1, kind, 0, len(head), 0, 1)
            mallory.socket.send(header + head)
            answer = mallory.hears()
            assert isinstance(answer, Error)
            # What has very many parts is refused before it is found to be malformed.
            assert answer.code in (("protocol", "too-large") if len(head) > 1000 else ("protocol",))


def test_a_malicious_learner_does_not_harm_the_env_agent(site: Site) -> None:
    with attacker(site, "alice") as alice:
        alice.hello()
        alice.say(Open("lab/cartpole", os.urandom(16)), 0, 1)
        while (header := codec.read_header(alice.socket.recv())).kind is Kind.PING:
            continue
        assert header.kind is Kind.OPENED
        for seq, body in enumerate((b"\xdd\xff\xff\xff\xff", b"\xc1", b"", b"\x91\xc1"), 1):
            bad = codec.HEADER.pack(codec.MAGIC, 1, Kind.ACT, 255, len(body), header.sid, seq)
            alice.socket.send(bad + body)
            answer = alice.hears()
            assert isinstance(answer, Error)
            assert answer.code in ("protocol", "expected")


def test_a_malicious_broker_does_not_crash_the_learner(site: Site) -> None:
    context: zmq.Context[Any] = zmq.Context()
    try:
        router: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        router.linger = 0
        pair = site.pair("stranger")
        router.curve_server = True
        router.curve_publickey, router.curve_secretkey = pair.public, pair.secret
        router.bind("tcp://127.0.0.1:*")
        url = router.get_string(zmq.LAST_ENDPOINT)
        code = (
            "import sys\n"
            "from gymwire.learner_agent.client.connection import BrokerConnection\n"
            "from gymwire.protocol.errors import GymwireError\n"
            "url, key, broker_key = sys.argv[1:4]\n"
            "try: BrokerConnection(url, timeout_s=30.0, key=key, broker_key=broker_key)\n"
            "except GymwireError as error: print(type(error).__name__)\n"
        )
        learner = subprocess.Popen(
            [sys.executable, "-c", code, url]
            + [str(site.folder / name) for name in ("alice.key", "stranger.pub")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert router.poll(int(PATIENCE_S * 1000))
        rid, _ = router.recv_multipart()
        router.send_multipart([rid, codec.HEADER.pack(codec.MAGIC, 1, 33, 0, 1, 0, 1) + b"\xc1"])
        out, errors = learner.communicate(timeout=PATIENCE_S)
        assert out.strip() in ("DecodingError", "BrokerUnreachable")
        assert "Traceback" not in errors
    finally:
        context.destroy(linger=0)


# --- pinning --------------------------------------------------------------------------------------


@pytest.mark.parametrize("direct", ["always", "never"])
def test_a_pinned_agent_proves_itself_and_serves(site: Site, direct: str) -> None:
    pin = keys.identity(site.pair("lab").public)
    with contextlib.closing(site.env(address=f"lab/cartpole@{pin}", direct=direct)) as env:
        first, _ = env.reset(seed=1)
        env.step(0)
        assert (env.reset(seed=1)[0] == first).all()


def test_a_pinned_address_reaches_no_other_agent(site: Site) -> None:
    other = keys.identity(site.pair("mallory").public)
    with pytest.raises(GymwireError, match=f"not by {other}"):
        site.env(address=f"lab/cartpole@{other}")


def test_secrets_are_in_no_log_and_no_error(site: Site) -> None:
    written = "".join(site.broker.output + site.agent.output)
    for name in NAMES:
        secret = site.pair(name).secret.decode()
        assert secret not in written
        assert secret not in repr(site.pair(name))


def test_a_key_file_that_others_can_read_is_refused(site: Site, tmp_path: Path) -> None:
    copy = tmp_path / "copy.key"
    copy.write_text((site.folder / "alice.key").read_text())
    copy.chmod(0o640)
    with pytest.raises(GymwireError, match="Others can read"):
        keys.load(copy)
