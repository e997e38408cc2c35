"""Sessions that go past the broker: when they do, when they cannot, and what harms them."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv

from gymwire import ProxyEnv, ProxyVectorEnv
from gymwire.env_agent.transports import DirectEndpoint, DirectSettings
from gymwire.learner_agent.client import direct as learner_direct
from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.learner_agent.client.exchange import Exchange
from gymwire.learner_agent.client.session import RemoteSession
from gymwire.protocol.codec import PLAIN, Frame
from gymwire.protocol.errors import ConnectionFailed, EnvironmentLost
from gymwire.protocol.messages import Act, Busy, BusyReason, Code, Error, Message, Resume, Resumed
from gymwire.protocol.security.keys import generate, load
from gymwire.protocol.transport.interface import Transport
from gymwire.protocol.transport.registry import dial, dial_first
from gymwire.protocol.transport.unix import UnixDealer
from tests.chaos.relays import TcpRelay
from tests.odd_envs import Noise
from tests.processes import PATIENCE_S, Programs, programs
from tests.sameness import assert_same
from tests.sampling import thorough

DIRECT = ("--direct", "tcp://127.0.0.1:*")
LOCATED = "tests.system.pool_envs:Located"
OFFERS = {
    "lake": "FrozenLake-v1",
    "slow": "tests.odd_envs:Slow",
    "noise": "tests.odd_envs:Noise",
}


@pytest.fixture(scope="module")
def url(broker_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A broker with env agents that take direct connections, and one that does not."""
    config: Path = tmp_path_factory.mktemp("direct") / "offers.toml"
    config.write_text(
        "\n".join(f'[[offer]]\naddress = "{a}-d"\nenv = "{e}"' for a, e in OFFERS.items())
    )
    with programs() as started:
        started.env_agent(broker_url, "--config", str(config), *DIRECT)
        # One serving loop, so that all sessions share an endpoint.
        located = ("--address", "located-d", "--env", LOCATED, "--threads", "1")
        started.env_agent(broker_url, *located, *DIRECT)
        relayed = ("--address", "relayed-d", "--env", OFFERS["lake"], "--threads", "1")
        started.env_agent(broker_url, *relayed)
        yield broker_url


def session_of(env: ProxyEnv) -> RemoteSession:
    return env._session


def url_in(offer: Mapping[str, Any], scheme: str = "tcp") -> str:
    return next(str(u) for u in offer["urls"] if u.startswith(f"{scheme}://"))


def answer(dealer: Transport) -> Message:
    """Return the next message that this dealer receives."""
    deadline = time.monotonic() + PATIENCE_S
    while (data := dealer.receive()) is None:
        assert time.monotonic() < deadline
    return PLAIN.decode(data)


@contextlib.contextmanager
def dialed(url: str) -> Iterator[Transport]:
    dealer = dial(url)
    try:
        while not dealer.send(PLAIN.encode(Resume(b"no nonce of anybody's")), wait=True):
            continue
        answer(dealer)  # that session is unknown
        yield dealer
    finally:
        dealer.close()


# --- which path -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("direct", "past"), [("always", True), ("auto", True), ("never", False)])
def test_the_learner_shows_which_path_its_session_uses(url: str, direct: str, past: bool) -> None:
    with ProxyEnv("located-d", url, direct=direct) as env:
        env.reset()
        for count in range(1, 5):
            assert env.step(1)[0] == count
        assert session_of(env).is_direct is past


def test_an_agent_without_a_direct_endpoint_is_used_through_the_broker(url: str) -> None:
    with ProxyEnv("relayed-d", url) as env:
        env.reset()
        assert not session_of(env).is_direct
    with pytest.raises(ConnectionFailed, match="offers no direct connection"):
        ProxyEnv("relayed-d", url, direct="always")


def test_without_a_reachable_endpoint_the_broker_relays(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learner_direct, "_urls_for_this_host", lambda offer: ["tcp://127.0.0.1:1"])
    with ProxyEnv("located-d", url) as env:
        env.reset()
        assert env.step(1)[0] == 1
        assert not session_of(env).is_direct
    with pytest.raises(ConnectionFailed, match=r"tcp://127.0.0.1:1 does not answer"):
        ProxyEnv("located-d", url, direct="always")


def test_within_a_host_sessions_are_direct_by_default(
    programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, url = programs.broker()
    programs.env_agent(url, "--address", "lake", "--env", OFFERS["lake"], "--direct", "host")
    local = gymnasium.make("FrozenLake-v1")
    # An agent that is still starting its threads may take too long for `auto`.
    ProxyEnv("lake", url, direct="always").close()
    with ProxyEnv("lake", url) as near, ProxyEnv("lake", url, direct="never") as relayed:
        monkeypatch.setattr(
            "gymwire.learner_agent.client.direct.socket.gethostname", lambda: "elsewhere"
        )
        with ProxyEnv("lake", url) as far:
            for env in (near, relayed, far):
                assert_same(local.reset(seed=3), env.reset(seed=3))
                for number in range(100):
                    step = local.step(number * 7 % 4)
                    assert_same(step, env.step(number * 7 % 4))
                    if step[2] or step[3]:
                        assert_same(local.reset(), env.reset())
                assert session_of(env).is_direct is (env is near)
        with pytest.raises(ConnectionFailed, match="can be dialed from this host"):
            ProxyEnv("lake", url, direct="always")


def test_on_one_host_direct_sessions_use_a_unix_socket(url: str) -> None:
    with ProxyEnv("located-d", url, direct="always") as env:
        link = session_of(env).paths.direct
        assert link is not None
        assert link.transport.url.startswith("unix://")


def test_a_direct_session_uses_tcp_if_the_socket_is_on_another_host(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "gymwire.learner_agent.client.direct.socket.gethostname", lambda: "elsewhere"
    )
    with ProxyEnv("located-d", url, direct="always") as env:
        link = session_of(env).paths.direct
        assert link is not None
        assert link.transport.url.startswith("tcp://")
        env.reset()
        assert env.step(1)[0] == 1


def test_a_vector_over_direct_sessions_is_that_of_a_sync_vector_env(url: str) -> None:
    local = SyncVectorEnv([lambda: gymnasium.make("FrozenLake-v1")] * 5)
    remote = ProxyVectorEnv("lake-d", 5, url, sessions=2, direct="always")
    assert_same(local.reset(seed=2), remote.reset(seed=2))
    local.action_space.seed(3)
    for _ in range(100):
        actions = local.action_space.sample()
        assert_same(local.step(actions), remote.step(actions))
    assert all(remote._group[i].is_direct for i in range(2))
    remote.close()


def test_large_observations_are_the_same_over_a_unix_socket(url: str) -> None:
    local, remote = Noise(), SyncVectorEnv([Noise, Noise])
    with ProxyEnv("noise-d", url, direct="always") as env:
        assert_same(local.reset(seed=1), env.reset(seed=1))
        env.action_space.seed(2)
        for _ in range(5):
            action = env.action_space.sample()
            assert_same(local.step(action), env.step(action))
        assert session_of(env).is_direct
    envs = ProxyVectorEnv("noise-d", 2, url, sessions=2, direct="always")
    assert_same(remote.reset(seed=1), envs.reset(seed=1))
    remote.action_space.seed(2)
    for _ in range(5):
        actions = remote.action_space.sample()
        assert_same(remote.step(actions), envs.step(actions))
    envs.close()


def test_one_serving_loop_serves_all_paths(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.ExitStack() as stack:

        def opened(direct: str) -> ProxyEnv:
            connection = stack.enter_context(contextlib.closing(BrokerConnection(url)))
            env = stack.enter_context(ProxyEnv("located-d", direct=direct, connection=connection))
            env.reset()
            return env

        envs = [opened("never"), opened("always"), opened("always")]
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(
                "gymwire.learner_agent.client.direct.socket.gethostname", lambda: "elsewhere"
            )
            envs.append(opened("always"))
        schemes = [session_of(env).path.url.partition(":")[0] for env in envs]
        assert schemes == ["tcp", "unix", "unix", "tcp"]
        counts = [0] * 4
        # Alone, two of a kind, all; and again with fewer, as they leave.
        for count in (1, 2, 3, 4):
            for _ in range(70):
                for i in range(count):
                    counts[i] += 1
                    assert envs[i].step(1)[0] == counts[i]
        for i in (0, 3, 1):
            envs[i].close()
            for _ in range(70):
                counts[2] += 1
                assert envs[2].step(1)[0] == counts[2]


def test_a_missing_unix_socket_is_skipped(url: str) -> None:
    with ProxyEnv("located-d", url, direct="always") as env:
        offer = session_of(env).opened.direct
        assert offer is not None
        tcp = url_in(offer)
        elsewhere = {**offer, "urls": ["unix:///of/another/container", tcp]}
        urls = learner_direct._urls_for_this_host(elsewhere)
        assert urls == elsewhere["urls"]
        dealer = dial_first(urls)
        assert dealer.url == tcp
        dealer.close()


def test_a_socket_in_another_users_folder_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(_: Path) -> bool:
        raise PermissionError

    monkeypatch.setattr(Path, "is_socket", denied)
    dealer = dial_first(["ipc:///private/x", "tcp://127.0.0.1:1"])
    assert dealer.url == "tcp://127.0.0.1:1"
    dealer.close()


def test_with_keys_no_unix_socket_is_offered_or_used(tmp_path: Path) -> None:
    key = load(generate("agent", tmp_path)[0])
    endpoint = DirectEndpoint(
        DirectSettings("tcp://127.0.0.1:*", key), 0, broker="tcp://127.0.0.1:1"
    )
    with contextlib.closing(endpoint):
        offer = endpoint.offer
        assert [url.partition(":")[0] for url in offer["urls"]] == ["tcp", "ipc"]
        offer["urls"].append("unix:///tmp/liar")
        assert learner_direct._urls_for_this_host(offer) == [url_in(offer, "ipc"), url_in(offer)]


# --- large answers, which are sent from where the environment has left them -----------------------


def asked(env: ProxyEnv, frame: Frame) -> bytes:
    """Send these bytes unchanged on the path of the session and return the answer."""
    path = session_of(env).path
    path.send(frame)
    deadline = time.monotonic() + PATIENCE_S
    while (data := path.receive()) is None:
        assert time.monotonic() < deadline
    return bytes(data)


def act(env: ProxyEnv) -> Frame:
    """Return the frame of the next step."""
    session = session_of(env)
    seq = session.exchange.seq + 1
    session.exchange.restore_position(seq, session.exchange.state)
    return PLAIN.encode(Act(1), session.sid, seq)


@pytest.mark.parametrize("direct", ["always", "never"])
def test_a_repeated_step_is_answered_the_same_though_another_session_changed_its_array(
    programs: Programs, direct: str
) -> None:
    _, url = programs.broker()
    shared = ("--address", "shared", "--env", "tests.odd_envs:Shared", "--threads", "1")
    programs.env_agent(url, *shared, *DIRECT)
    with ProxyEnv("shared", url, direct=direct) as one, ProxyEnv("shared", url) as other:
        one.reset()
        other.reset()
        request = act(one)
        answers = [asked(one, request)]
        for number in range(2, 5):
            assert other.step(1)[0][0, 0] == number
            answers.append(asked(one, request))
        assert answers == answers[:1] * 4
        assert asked(one, act(one)) != answers[0]


def test_a_repeated_step_is_answered_the_same_though_its_environment_never_rests(
    programs: Programs, tmp_path: Path
) -> None:
    _, url = programs.broker()
    restless = ("--address", "restless", "--env", "tests.odd_envs:Restless")
    programs.env_agent(url, *restless, *DIRECT)
    with ProxyEnv("restless", url, direct="always") as env:
        env.reset(options={"done": str(tmp_path / "done")})
        request = act(env)
        answer = asked(env, request)
        deadline = time.monotonic() + PATIENCE_S
        while not (tmp_path / "done").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert asked(env, request) == answer


# --- cut off --------------------------------------------------------------------------------------


@pytest.mark.parametrize("harm", ["reset", "half_open", thorough("doom")])
def test_a_step_is_neither_lost_nor_doubled_when_the_direct_connection_is_cut(
    url: str, harm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    relays: list[TcpRelay] = []

    def through_a_relay(offer: Mapping[str, Any]) -> list[str]:
        relays.append(TcpRelay(int(url_in(offer).rpartition(":")[2])))
        return [relays[-1].url]

    monkeypatch.setattr(learner_direct, "_urls_for_this_host", through_a_relay)
    local = gymnasium.make("FrozenLake-v1")
    try:
        with ProxyEnv("lake-d", url, direct="always") as env:
            assert_same(local.reset(seed=5), env.reset(seed=5))
            done = False
            for number in range(150):
                if number in (20, 70):
                    getattr(relays[0], harm)()
                if done:
                    assert_same(local.reset(), env.reset())
                step = local.step(number * 7 % 4)
                assert_same(step, env.step(number * 7 % 4))
                done = bool(step[2] or step[3])
            deadline = time.monotonic() + PATIENCE_S
            env.reset()
            while not session_of(env).is_direct:  # it comes back
                assert time.monotonic() < deadline
                env.reset()
            env.step(1)
    finally:
        for relay in relays:
            relay.close()


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_step_is_neither_lost_nor_doubled_when_a_unix_socket_is_cut(
    url: str, comes_back: bool
) -> None:
    local = gymnasium.make("FrozenLake-v1")
    with ProxyEnv("lake-d", url, direct="always") as env:
        assert_same(local.reset(seed=5), env.reset(seed=5))
        link = session_of(env).paths.direct
        assert link is not None
        assert isinstance(link.transport, UnixDealer)
        done, relayed = False, 0
        for number in range(300):
            if number in ((20, 70) if comes_back else (20,)):
                link.transport.sock.shutdown(socket.SHUT_RDWR)
            if number == 20 and not comes_back:
                link.transport._path += "-is-gone"
            if done:
                assert_same(local.reset(), env.reset())
            step = local.step(number * 7 % 4)
            assert_same(step, env.step(number * 7 % 4))
            done = bool(step[2] or step[3])
            relayed += not session_of(env).is_direct
        assert session_of(env).is_direct is comes_back
        assert relayed < 200 if comes_back else relayed > 200


def test_a_direct_session_does_not_need_the_broker(programs: Programs) -> None:
    broker, url = programs.broker()
    programs.env_agent(url, "--address", "lake", "--env", "FrozenLake-v1", *DIRECT)
    with ProxyEnv("lake", url, direct="always") as env:
        local = gymnasium.make("FrozenLake-v1")
        assert_same(local.reset(seed=4), env.reset(seed=4))

        def go_on(steps: int) -> None:
            for number in range(steps):
                step = local.step(number % 4)
                assert_same(step, env.step(number % 4))
                if step[2] or step[3]:
                    assert_same(local.reset(), env.reset())

        go_on(20)
        broker.kill()
        began = time.monotonic()
        while time.monotonic() - began < 1.0:
            go_on(20)
        assert session_of(env).is_direct
        programs.broker(url)
        with contextlib.closing(BrokerConnection(url, wait_s=PATIENCE_S)) as connection:

            def used() -> int:
                return sum(offer["used"] for offer in connection.find("lake"))

            deadline = time.monotonic() + PATIENCE_S
            while used() != 1:  # the new broker knows of the session
                assert time.monotonic() < deadline
                go_on(5)
            go_on(20)
            assert session_of(env).is_direct
            env.close()
            while used():
                assert time.monotonic() < deadline


def test_an_agent_killed_in_a_direct_step_is_noticed_at_once(programs: Programs) -> None:
    _, url = programs.broker()
    programs.env_agent(url, "--address", "mortal", "--env", "tests.odd_envs:Mortal", *DIRECT)
    with ProxyEnv("mortal", url, direct="always") as env:
        env.reset()
        env.step(0)
        killed = time.monotonic()
        with pytest.raises(EnvironmentLost, match="'mortal'"):
            env.step(1)
        assert time.monotonic() - killed <= 3.5


def test_an_agent_killed_between_direct_steps_is_noticed_at_the_next(programs: Programs) -> None:
    _, url = programs.broker()
    agent = programs.env_agent(url, "--address", "lake", "--env", "FrozenLake-v1", *DIRECT)
    with ProxyEnv("lake", url, direct="always") as env:
        env.reset()
        env.step(0)
        agent.kill()
        killed = time.monotonic()
        with pytest.raises(EnvironmentLost, match="'lake'"):
            env.step(1)
        assert time.monotonic() - killed <= 3.5


def test_an_agent_frozen_in_a_direct_step_is_noticed_in_time(programs: Programs) -> None:
    _, url = programs.broker()
    programs.env_agent(url, "--address", "mortal", "--env", "tests.odd_envs:Mortal", *DIRECT)
    with ProxyEnv("mortal", url, direct="always") as env:
        env.reset()
        env.step(0)
        assert session_of(env).is_direct
        frozen = time.monotonic()
        with pytest.raises(EnvironmentLost, match="'mortal'"):
            env.step(2)
        assert time.monotonic() - frozen <= 10.5


# --- slow is not dead -----------------------------------------------------------------------------


def test_a_long_direct_step_is_waited_for(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    busy: list[str] = []
    monkeypatch.setattr(Exchange, "_handle_busy", lambda _, reason, *__: busy.append(reason))
    with ProxyEnv("slow-d", url, direct="always") as env:
        env.reset()
        assert env.step(4)[0] == 1
        assert env.step(0)[0] == 2
        assert session_of(env).is_direct
    remote = ProxyVectorEnv("slow-d", 2, url, sessions=2, direct="always")
    remote.reset()
    assert remote.step(np.array([3, 0]))[0].tolist() == [1, 1]
    remote.close()
    assert not busy


# --- not another's --------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["tcp", "unix"])
def test_a_learner_with_a_wrong_nonce_is_refused(url: str, scheme: str) -> None:
    with ProxyEnv("located-d", url, direct="always") as env:
        env.reset()
        session = session_of(env)
        assert session.opened.direct is not None
        with dialed(url_in(session.opened.direct, scheme)) as dealer:
            dealer.send(PLAIN.encode(Resume(b"x" * len(session.open_msg.nonce)), session.sid))
            refusal = answer(dealer)
            assert isinstance(refusal, Error)
            assert refusal.code == Code.DENIED
            dealer.send(PLAIN.encode(Act(1), session.sid, 2))
            refusal = answer(dealer)
            assert isinstance(refusal, Busy)
            assert refusal.reason == BusyReason.HELLO
        assert env.step(1)[0] == 1


def test_a_session_that_the_agent_has_bound_to_another_connection_takes_its_path_back(
    url: str,
) -> None:
    with ProxyEnv("located-d", url, direct="always", step_timeout_s=PATIENCE_S) as env:
        env.reset()
        session = session_of(env)
        assert session.opened.direct is not None
        with dialed(url_in(session.opened.direct)) as dealer:
            dealer.send(PLAIN.encode(Resume(session.open_msg.nonce), session.sid))
            assert isinstance(answer(dealer), Resumed)
            count = 0
            while count < 2 or not session.is_direct:
                count += 1
                assert env.step(1)[0] == count


def test_a_frame_for_anothers_session_is_refused(url: str) -> None:
    with (
        contextlib.closing(BrokerConnection(url)) as connection,
        ProxyEnv("located-d", url, direct="always") as mine,
        ProxyEnv("located-d", direct="always", connection=connection) as others,
    ):
        for env in (mine, others):
            env.reset()
        link, sid = session_of(mine).paths.direct, session_of(others).sid
        assert link is not None
        link.transport.send(PLAIN.encode(Act(1), sid, 2))
        refusal = answer(link.transport)
        assert isinstance(refusal, Busy)
        assert refusal.reason == BusyReason.HELLO
        for env in (mine, others):
            assert env.step(1)[0] == 1
