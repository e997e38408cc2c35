"""Sessions whose frames use a local channel to the broker, and what may happen to it."""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv

from gymwire import ProxyEnv, ProxyVectorEnv
from gymwire.learner_agent.client.open_sessions import MANY_OPENINGS
from gymwire.protocol.errors import EnvironmentLost, NoFreeSlot
from gymwire.protocol.security import keys
from gymwire.protocol.transport.unix import CAN_LISTEN, UnixDealer
from tests.odd_envs import Noise
from tests.processes import PATIENCE_S, Programs, programs
from tests.sameness import assert_same

pytestmark = pytest.mark.skipif(not CAN_LISTEN, reason="this system has no local channels")

LAKE = "FrozenLake-v1"
NOISE = "tests.odd_envs:Noise"


@pytest.fixture(scope="module")
def url(broker_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    config = tmp_path_factory.mktemp("channels") / "offers.toml"
    offers = {"lake-l": LAKE, "noise-l": "tests.odd_envs:Noise", "patient-l": "tests.odd_envs:Slow"}
    config.write_text(
        "\n".join(f'[[offer]]\naddress = "{a}"\nenv = "{e}"' for a, e in offers.items())
    )
    with programs() as started:
        started.env_agent(broker_url, "--config", str(config))
        yield broker_url


def local_channel_of(env: ProxyEnv | ProxyVectorEnv) -> UnixDealer | None:
    session = env._session if isinstance(env, ProxyEnv) else env._group[0]
    return session.connection.link._channel


def why_lost(env: ProxyEnv) -> str:
    """Step until the session is lost."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            env.step(0)
        except EnvironmentLost as error:
            return str(error)
    raise AssertionError("the session was not lost")


class Lake:
    """A remote lake beside a local one: each step must be the same."""

    def __init__(self, env: ProxyEnv) -> None:
        self.env = env
        self._local = gymnasium.make(LAKE)
        self._number = 0
        assert_same(self._local.reset(seed=5), env.reset(seed=5))

    def go(self, steps: int) -> None:
        for _ in range(steps):
            self._number += 1
            action = self._number * 7 % 4
            step = self._local.step(action)
            assert_same(step, self.env.step(action))
            if step[2] or step[3]:
                assert_same(self._local.reset(), self.env.reset())


def test_a_session_uses_the_local_channel_from_its_first_reset_on(url: str) -> None:
    with ProxyEnv("lake-l", url) as env:
        assert local_channel_of(env) is None  # an unused session costs the broker none
        lake = Lake(env)
        assert local_channel_of(env) is not None
        lake.go(300)


def test_a_learner_on_another_host_gets_no_local_channel(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "gymwire.protocol.transport.handshake.socket.gethostname", lambda: "elsewhere"
    )
    with ProxyEnv("lake-l", url) as env:
        Lake(env).go(100)
        assert local_channel_of(env) is None


def test_the_operator_can_disable_local_channels(programs: Programs) -> None:
    _, url = programs.broker("tcp://127.0.0.1:*", "--no-local-channels")
    programs.env_agent(url, "--address", "lake", "--env", LAKE)
    with ProxyEnv("lake", url) as env:
        Lake(env).go(100)
        assert local_channel_of(env) is None


def test_large_observations_are_the_same(url: str) -> None:
    local = Noise()
    with ProxyEnv("noise-l", url) as env:
        assert_same(local.reset(seed=1), env.reset(seed=1))
        env.action_space.seed(2)
        for _ in range(10):
            action = env.action_space.sample()
            assert_same(local.step(action), env.step(action))
        assert local_channel_of(env) is not None


def test_a_vector_of_several_sessions_shares_one_local_channel(url: str) -> None:
    local = SyncVectorEnv([lambda: gymnasium.make(LAKE)] * 6)
    remote = ProxyVectorEnv("lake-l", 6, url, sessions=3)
    assert_same(local.reset(seed=2), remote.reset(seed=2))
    assert local_channel_of(remote) is not None
    local.action_space.seed(3)
    for _ in range(100):
        actions = local.action_space.sample()
        assert_same(local.step(actions), remote.step(actions))
    remote.close()


@pytest.mark.parametrize("direct", ["never", "auto"])
def test_many_sessions_are_opened_over_the_local_channel(
    programs: Programs, broker_url: str, direct: str
) -> None:
    address = f"lakes-{direct}"
    programs.env_agent(
        broker_url, "--address", address, "--env", LAKE, "--max-sessions", str(MANY_OPENINGS)
    )
    for number in (MANY_OPENINGS - 1, MANY_OPENINGS):
        with ProxyVectorEnv(address, number, broker_url, sessions=number, direct=direct) as remote:
            assert (local_channel_of(remote) is not None) is (number == MANY_OPENINGS)
            local = SyncVectorEnv([lambda: gymnasium.make(LAKE)] * number)
            assert_same(local.reset(seed=2), remote.reset(seed=2))
            actions = np.ones(number, np.int64)
            assert_same(local.step(actions), remote.step(actions))


def test_steps_of_any_length_come_back(url: str) -> None:
    with ProxyEnv("patient-l", url) as env:
        env.reset()
        assert env.step(0)[0] == 1
        assert env.step(1)[0] == 2  # longer than many ticks
        assert local_channel_of(env) is not None


def test_a_closed_session_frees_its_slot_at_once(programs: Programs) -> None:
    _, url = programs.broker()
    programs.env_agent(url, "--address", "lake", "--env", LAKE, "--max-sessions", "1")
    for _ in range(5):
        with ProxyEnv("lake", url) as env:
            Lake(env).go(3)


# --- cut off --------------------------------------------------------------------------------------


def test_a_step_is_neither_lost_nor_doubled_when_the_local_channel_is_cut_between_steps(
    url: str,
) -> None:
    with ProxyEnv("lake-l", url) as env:
        lake = Lake(env)
        for _ in range(4):
            lake.go(70)
            channel = local_channel_of(env)
            assert channel is not None
            channel.sock.shutdown(socket.SHUT_RDWR)
        lake.go(70)


def test_a_step_is_neither_lost_nor_doubled_when_the_local_channel_is_cut_during_it(
    url: str,
) -> None:
    with ProxyEnv("patient-l", url) as env:
        env.reset()
        channel = local_channel_of(env)
        assert channel is not None
        cut = threading.Timer(0.3, channel.sock.shutdown, [socket.SHUT_RDWR])
        cut.start()
        assert env.step(1)[0] == 1
        cut.join()
        assert env.step(0)[0] == 2
        assert local_channel_of(env) not in (None, channel)


def test_after_a_restart_of_the_broker_local_channels_are_opened_again(programs: Programs) -> None:
    broker, url = programs.broker()
    programs.env_agent(url, "--address", "lake", "--env", LAKE)
    with ProxyEnv("lake", url) as env:
        lake = Lake(env)
        lake.go(20)
        first = local_channel_of(env)
        assert first is not None
        broker.kill()
        programs.broker(url)
        lake.go(200)
        deadline = time.monotonic() + PATIENCE_S
        while local_channel_of(env) in (None, first):
            assert time.monotonic() < deadline
            lake.go(64)


def test_the_loss_of_an_agent_is_reported_over_the_local_channel(programs: Programs) -> None:
    _, url = programs.broker()
    agent = programs.env_agent(url, "--address", "lake", "--env", LAKE)
    with ProxyEnv("lake", url) as env:
        Lake(env).go(20)
        assert local_channel_of(env) is not None
        agent.kill()
        assert "gone" in why_lost(env)


# A connection attempt that is interrupted leaves its socket to the garbage collector. An interrupt
# that comes while an object of pyzmq is destroyed is lost.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in.*(_zmq|Socket.__del__):pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize("direct", ["never", "always"])
def test_interrupted_steps_are_neither_lost_nor_doubled_nor_damaged(
    programs: Programs, direct: str
) -> None:
    """Ctrl-C at any moment of a step whose answer comes in many parts; then the same step again."""
    _, url = programs.broker()
    programs.env_agent(url, "--address", "noise", "--env", NOISE, "--direct", "host")
    moments = random.Random(1)
    local = Noise()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGALRM, interrupt)
    try:
        with ProxyEnv("noise", url, direct=direct, timeout_s=10.0) as env:
            assert_same(local.reset(seed=1), env.reset(seed=1))
            env.action_space.seed(2)
            for _ in range(40):
                action = env.action_space.sample()
                expected = local.step(action)
                step = None
                with contextlib.suppress(KeyboardInterrupt):
                    signal.setitimer(signal.ITIMER_REAL, moments.uniform(1e-5, 3e-3))
                    step = env.step(action)
                    signal.setitimer(signal.ITIMER_REAL, 0)  # no signal comes outside this block
                assert_same(expected, env.step(action) if step is None else step)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def test_close_sent_before_leaving_is_delivered(programs: Programs) -> None:
    """CLOSE is sent right after a step whose answer is abandoned."""
    _, url = programs.broker()
    programs.env_agent(url, "--address", "lake", "--env", LAKE, "--max-sessions", "8")
    for _ in range(5):
        envs = ProxyVectorEnv("lake", 8, url, sessions=8)
        envs.reset(seed=1)
        actions = envs.action_space.sample()
        envs.step(actions)
        envs.step_async(actions)
        envs.close()
        began = time.monotonic()
        while True:
            try:
                ProxyVectorEnv("lake", 8, url, sessions=8).close()
                break
            except NoFreeSlot:
                assert time.monotonic() - began < 5.0  # the lease is 30


def test_closing_after_an_interrupted_step_frees_the_slot(programs: Programs) -> None:
    """The interrupt ends the local channel, so BYE leaves over ZeroMQ."""
    _, url = programs.broker()
    agent = programs.env_agent(url, "--address", "slow", "--env", "tests.odd_envs:Slow")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGALRM, interrupt)
    env = ProxyEnv("slow", url, direct="never")
    try:
        env.reset()
        assert local_channel_of(env) is not None
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            env.step(1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
        env.close()
    assert agent.wait_for("session lost")["why"] == "the learner has left"


# --- with keys ------------------------------------------------------------------------------------


def policed(started: Programs, folder: Path) -> tuple[str, dict[str, Any], Path]:
    """Start a broker with a policy; return its URL, a learner's credentials and the policy."""
    secrets = {name: keys.generate(name, folder)[0] for name in ("broker", "lab", "alice")}
    policy = folder / "policy.toml"

    def row(name: str, right: str) -> str:
        public = keys.load(secrets[name]).public.decode()
        return f'[peer.{name}]\nkey = "{public}"\n{right} = ["lake"]\n'

    policy.write_text(row("lab", "offer") + row("alice", "use"))
    of_broker = ("--key", str(secrets["broker"]), "--policy", str(policy))
    _, url = started.broker("tcp://127.0.0.1:*", *of_broker)
    public = folder / "broker.pub"
    of_lab = ("--key", str(secrets["lab"]), "--broker-key", str(public))
    started.env_agent(url, "--address", "lake", "--env", LAKE, *of_lab)
    (folder / "without-alice.toml").write_text(row("lab", "offer"))
    return url, {"key": secrets["alice"], "broker_key": public}, policy


def test_with_keys_local_channels_last_until_the_key_is_removed(
    programs: Programs, tmp_path: Path
) -> None:
    url, credentials, policy = policed(programs, tmp_path)
    with ProxyEnv("lake", url, timeout_s=5.0, **credentials) as env:
        Lake(env).go(100)
        channel = local_channel_of(env)
        assert channel is not None
        (tmp_path / "without-alice.toml").replace(policy)
        assert "policy" in why_lost(env)
        deadline = time.monotonic() + PATIENCE_S
        while channel.up:
            assert time.monotonic() < deadline
            channel.receive()
