"""What a learner gets when something is wrong: an error in time, readable, of the right type."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import zmq

from gymwire import ProxyEnv, ProxyVectorEnv
from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.protocol import codec
from gymwire.protocol.codec import PLAIN
from gymwire.protocol.errors import (
    AddressError,
    AddressUnknown,
    BrokerUnreachable,
    ConfigurationError,
    EncodingError,
    EnvironmentClosed,
    EnvironmentFailed,
    EnvironmentLost,
    NoFreeSlot,
    ResetNeeded,
    VersionMismatch,
)
from gymwire.protocol.messages import Code, Error, Ping
from tests.chaos.fleet import free_port
from tests.processes import PATIENCE_S, Programs, programs
from tests.sameness import assert_same

OFFERS = "".join(
    f'[[offer]]\naddress = "{address}"\nenv = "{env}"\n'
    for address, env in {
        "cartpole": "CartPole-v1",
        "pendulum": "Pendulum-v1",
        "picky": "tests.odd_envs:Picky",
        "careless": "tests.odd_envs:Careless",
        "boxed": "tests.odd_envs:Boxed",
        "slow": "tests.odd_envs:Slow",
        "unmakeable": "tests.odd_envs:Unmakeable",
    }.items()
)
NOBODY_LISTENS = "tcp://127.0.0.1:1"
PATIENCE_MS = int(PATIENCE_S * 1000)


@pytest.fixture(scope="module")
def broker(broker_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    config: Path = tmp_path_factory.mktemp("bad_input") / "offers.toml"
    config.write_text(OFFERS)
    with programs() as started:
        started.env_agent(broker_url, "--config", str(config))
        yield broker_url


# --- connecting -------------------------------------------------------------------------------


def test_a_missing_broker_is_an_error_within_seconds() -> None:
    with pytest.raises(BrokerUnreachable, match=r"No broker answers at tcp://127\.0\.0\.1:1\. "):
        ProxyEnv("cartpole", NOBODY_LISTENS, timeout_s=600.0)


@pytest.mark.parametrize("url", ["127.0.0.1:5555", "http://127.0.0.1:5555", "tcp://127.0.0.1", "tcp://a b:1", "tcp://*:5555", "ipc://"])  # fmt: skip # noqa: E501
def test_a_malformed_url_is_an_error_with_an_example(url: str) -> None:
    with pytest.raises(AddressError, match=r"is not a broker URL: write tcp://HOST:PORT"):
        ProxyEnv("cartpole", url)


@pytest.mark.parametrize("address", ["Cart Pole", "/cartpole", "cartpole/", "a" * 200])
def test_an_invalid_address_is_an_error_with_an_example(broker: str, address: str) -> None:
    with pytest.raises(
        AddressError, match=r"is not an address: use lower-case letters.*`gymwire ls`"
    ):
        ProxyEnv(address, broker)


def test_the_error_of_an_unknown_address_lists_the_nearest_and_all(broker: str) -> None:
    with pytest.raises(AddressUnknown) as caught:
        ProxyEnv("cart-pole", broker)
    text = str(caught.value)
    assert "No env agent offers 'cart-pole'. Did you mean 'cartpole'?" in text
    assert "boxed, careless, cartpole" in text


def test_a_missing_address_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GYMWIRE_ADDRESS", raising=False)
    with pytest.raises(ConfigurationError, match="No address given"):
        ProxyEnv()


def test_the_exception_of_a_constructor_is_passed_on(broker: str) -> None:
    with pytest.raises(EnvironmentFailed, match="the simulator's licence has expired") as caught:
        ProxyEnv("unmakeable", broker, env_kwargs={"works": False})
    assert caught.value.remote_type == "RuntimeError"
    assert "odd_envs.py" in caught.value.remote_traceback


def test_wrong_keyword_arguments_are_an_error(broker: str) -> None:
    with pytest.raises(EnvironmentFailed, match="takes no keyword argument 'nonsense'"):
        ProxyEnv("cartpole", broker, env_kwargs={"nonsense": 1})


def test_keyword_arguments_that_cannot_be_serialized_are_an_error(broker: str) -> None:
    with pytest.raises(EncodingError, match="nonsense"):
        ProxyEnv("cartpole", broker, env_kwargs={"nonsense": object()})


def test_taken_slots_are_an_error(broker_url: str, programs: Programs) -> None:
    programs.env_agent(
        broker_url, "--address", "scarce", "--env", "CartPole-v1", "--max-sessions", "1"
    )
    with (
        ProxyEnv("scarce", broker_url),
        pytest.raises(NoFreeSlot, match="The only slot of 'scarce' is in use"),
    ):
        ProxyEnv("scarce", broker_url)


# --- actions ----------------------------------------------------------------------------------


def test_an_action_that_the_environment_rejects_brings_its_own_exception(broker: str) -> None:
    with ProxyEnv("picky", broker) as env:
        env.reset()
        with pytest.raises(ValueError, match="seven is not to my taste") as caught:
            env.step(7)
        assert isinstance(caught.value, EnvironmentFailed)
        assert "odd_envs.py" in caught.value.remote_traceback
        with pytest.raises(gymnasium.error.InvalidAction, match="neither is eight"):
            env.step(8)
        with pytest.raises(EnvironmentFailed, match="nor nine") as caught_other:
            env.step(9)
        assert caught_other.value.remote_type == "tests.odd_envs.Peculiar"
        assert env.step(1)[0] == 1  # the agent and the session live on


@pytest.mark.parametrize(
    ("kind", "of_reset", "of_step"),
    [
        (1, "not NoneType", "not NoneType"),
        (2, r"2 values \(observation, info\), not 1\.", r"5 values .*, not 4\."),
        (3, "coroutine to await", "coroutine to await"),
        (5, r"not count\.", r"not count\."),
        (6, r"not ndarray\.", r"not dict\."),
    ],
    ids=["nothing", "too few", "a coroutine", "without end", "another container"],
)
def test_what_an_environment_must_return_is_said_if_it_returns_something_else(
    broker: str, kind: int, of_reset: str, of_step: str
) -> None:
    with ProxyEnv("careless", broker) as env:
        with pytest.raises(EnvironmentFailed, match=rf"^reset\(\) .*{of_reset}"):
            env.reset(options={"as": kind})
        env.reset()
        with pytest.raises(EnvironmentFailed, match=rf"^step\(\) .*{of_step}"):
            env.step(kind)
        assert env.step(4)[0] == 2  # in a list; the session lives on


def test_an_assertion_error_of_the_environment_is_one_at_the_learner(broker: str) -> None:
    with ProxyEnv("cartpole", broker) as env:
        env.reset()
        with pytest.raises(AssertionError):
            env.step(5)


@pytest.mark.parametrize(
    "action",
    [
        np.array([1.5, -3.0], np.float32),
        np.array([0.1, 0.2], np.float64),
        np.array([1, 0], np.int64),
        np.array([[0.5, 0.5]], np.float16),
        [0.1, 0.2],
        (1, None),
    ],
    ids=["out of bounds", "float64", "int64", "other shape", "list", "tuple"],
)
def test_an_action_outside_its_space_arrives_as_it_is(broker: str, action: Any) -> None:
    with ProxyEnv("boxed", broker) as env:
        env.reset()
        assert_same(env.step(action)[4]["action"], action)


def test_an_action_out_of_bounds_is_taken_as_the_local_environment_takes_it(broker: str) -> None:
    with ProxyEnv("pendulum", broker) as env, gymnasium.make("Pendulum-v1") as local:
        env.reset(seed=1)
        local.reset(seed=1)
        for action in (np.array([9.0]), np.array([2], np.int32), np.array([-5.0], np.float32)):
            assert_same(env.step(action), local.step(action))


@pytest.mark.parametrize(
    "action", [object(), {"a": {1, 2}}, 1 + 2j], ids=["object", "set", "complex"]
)  # fmt: skip
def test_an_action_that_cannot_be_serialized_is_an_error_before_it_is_sent(
    broker: str, action: Any
) -> None:
    with ProxyEnv("boxed", broker) as env:
        env.reset()
        with pytest.raises(EncodingError, match="action"):
            env.step(action)
        assert env.step(np.zeros(2, np.float32))[0] == 1


# --- out of turn ------------------------------------------------------------------------------


def test_step_before_reset_is_an_error(broker: str) -> None:
    with ProxyEnv("cartpole", broker) as env:
        with pytest.raises(ResetNeeded, match="call reset"):
            env.step(0)
        env.reset(seed=1)
        env.step(0)


def test_step_after_close_is_an_error(broker: str) -> None:
    env = ProxyEnv("cartpole", broker)
    env.close()
    with pytest.raises(EnvironmentClosed, match="Make a new one"):
        env.step(0)


# --- the env agent ----------------------------------------------------------------------------
# `step_timeout_s` bounds the wait: if the loss goes unnoticed, the tests see another error.


def _mortal(started: Programs, broker: str, address: str) -> Any:
    return started.env_agent(broker, "--address", address, "--env", "tests.odd_envs:Mortal")


@pytest.mark.parametrize("threads", ["1", "4"])
def test_an_env_agent_killed_during_a_step_is_lost(
    broker_url: str, programs: Programs, threads: str
) -> None:
    programs.env_agent(
        broker_url,
        *("--address", "mortal", "--env", "tests.odd_envs:Mortal", "--threads", threads),
    )
    with ProxyEnv("mortal", broker_url, step_timeout_s=PATIENCE_S) as env:
        env.reset()
        with pytest.raises(EnvironmentLost, match=r"'mortal' \(host .*\) is lost at request 2"):
            env.step(1)
        with pytest.raises(EnvironmentLost):
            env.step(0)


def test_a_frozen_env_agent_is_lost(broker_url: str, programs: Programs) -> None:
    _mortal(programs, broker_url, "freezing")
    with ProxyEnv("freezing", broker_url, step_timeout_s=PATIENCE_S) as env:
        env.reset()
        with pytest.raises(EnvironmentLost, match=r"'freezing' \(host .*\) is lost at request 2"):
            env.step(2)


def test_an_env_agent_restarted_during_a_step_has_lost_the_session(
    broker_url: str, programs: Programs
) -> None:
    first = _mortal(programs, broker_url, "reborn")

    def restart() -> None:
        first.wait()
        _mortal(programs, broker_url, "reborn")

    watch = threading.Thread(target=restart)
    watch.start()
    with ProxyEnv("reborn", broker_url, step_timeout_s=PATIENCE_S) as env:
        env.reset()
        with pytest.raises(EnvironmentLost, match=r"Call reset\(\)"):
            env.step(1)
        watch.join(PATIENCE_S)
        # The session does not continue on a fresh environment before reset asks for one.
        with pytest.raises(EnvironmentLost):
            env.step(0)
        assert env.reset()[0] == 0
        assert env.step(0)[0] == 1


def test_a_step_may_take_long_with_default_settings(broker: str) -> None:
    with ProxyEnv("slow", broker) as env:
        env.reset()
        assert env.step(8)[0] == 1


def test_a_long_step_outlasts_a_short_tolerance_of_silence(broker: str) -> None:
    with ProxyEnv("slow", broker, timeout_s=2.0) as env:
        env.reset()
        assert env.step(4)[0] == 1


# --- the broker -------------------------------------------------------------------------------


def test_a_broker_that_never_comes_back_is_an_error_after_timeout_s(programs: Programs) -> None:
    broker, url = programs.broker()
    programs.env_agent(url, "--address", "cartpole", "--env", "CartPole-v1")
    env = ProxyEnv("cartpole", url, timeout_s=2.0, step_timeout_s=PATIENCE_S)
    env.reset()
    broker.kill()
    with pytest.raises(BrokerUnreachable, match="silent for 2 s"):
        env.step(0)
    env.close()


def test_a_restart_of_the_broker_does_not_change_a_training(programs: Programs) -> None:
    url = f"tcp://127.0.0.1:{free_port()}"
    broker, _ = programs.broker(url)
    programs.env_agent(url, "--address", "cartpole", "--env", "CartPole-v1")
    with ProxyEnv("cartpole", url) as env, gymnasium.make("CartPole-v1") as local:
        assert_same(env.reset(seed=6), local.reset(seed=6))
        for step in range(60):
            if step in (20, 40):
                broker.kill()
                broker, _ = programs.broker(url)
            expected = local.step(step % 2)
            assert_same(env.step(step % 2), expected)
            if expected[2]:
                assert_same(env.reset(), local.reset())


def test_an_env_agent_that_waits_for_its_broker_says_so(programs: Programs) -> None:
    options = ("--address", "early", "--env", "CartPole-v1", "--log-format", "json")
    waiting = programs.start(
        "gymwire", "serve", "--broker", "tcp://127.0.0.1:1", "--wait", "60", *options
    )
    assert waiting.wait_for("waiting for broker")["broker"] == "tcp://127.0.0.1:1"


@pytest.mark.parametrize("command", [("ls",), ("ps",), ("run", "lake")])
def test_a_command_that_waits_for_its_broker_says_so(
    programs: Programs, command: tuple[str, ...]
) -> None:
    options = ("--broker", "tcp://127.0.0.1:1", "--wait", "60", "--log-format", "json")
    waiting = programs.start("gymwire", *command, *options)
    assert waiting.wait_for("waiting for broker")["broker"] == "tcp://127.0.0.1:1"


def test_an_unknown_host_is_an_error(programs: Programs) -> None:
    nowhere = "tcp://no-such-host.invalid:5555"
    with pytest.raises(BrokerUnreachable, match=r"the host 'no-such-host\.invalid' is unknown"):
        ProxyEnv("lake", nowhere)
    options = ("--address", "early", "--env", "CartPole-v1", "--broker", nowhere)
    agent = programs.start("gymwire", "serve", *options)
    assert agent.wait() == 2
    assert "the host 'no-such-host.invalid' is unknown" in agent.output[-1]


@pytest.mark.parametrize("options", [(), ("--python", sys.executable)], ids=["here", "there"])
def test_the_only_environment_reports_where_it_failed(
    programs: Programs, options: tuple[str, ...]
) -> None:
    _, url = programs.broker()
    env = "tests.registering_envs:broken"
    agent = programs.start("gymwire", "serve", "broken", env, "--broker", url, *options)
    assert agent.wait() == 2
    (first,) = [line for line in agent.output if line.startswith("gymwire serve: ")]
    assert "broken cannot be made: RuntimeError: no licence server" in first
    assert "child_process.py" not in first
    trace = "".join(agent.output)
    assert "Traceback" in trace
    assert 'registering_envs.py", line' in trace


@pytest.mark.parametrize("is_only", [True, False])
def test_an_offer_whose_environment_cannot_be_made_is_named(
    programs: Programs, tmp_path: Path, is_only: bool
) -> None:
    _, url = programs.broker()
    (file := tmp_path / "offers.toml").write_text(
        "[[offer]]\naddress = 'gone'\nenv = 'CartPole-v1'\npython = '/nope/python'\n"
        + "[[offer]]\naddress = 'pole'\nenv = 'CartPole-v1'\n" * (not is_only)
    )
    options = ("--broker", url, "--log-format", "json")
    agent = programs.start("gymwire", "serve", "--config", str(file), *options)
    where = f"{file}, offer 1 ('gone'): The interpreter /nope/python cannot be started"
    if is_only:
        assert agent.wait() == 2
        assert any(line.startswith(f"gymwire serve: {where}") for line in agent.output)
    else:
        assert agent.wait_for("offer left out")["why"].startswith(where)


def test_a_module_that_exits_is_an_error_that_says_where(
    programs: Programs, tmp_path: Path
) -> None:
    (tmp_path / "exits.py").write_text("import sys\nsys.exit(4)\n")
    agent = programs.start("gymwire", "serve", "x", f"{tmp_path}/exits.py:X")
    assert agent.wait() == 2
    said = [line for line in agent.output if line.startswith("gymwire serve: ")]
    assert len(said) == 1
    assert f"raised SystemExit: 4 ({tmp_path}/exits.py, line 2)" in said[0]
    assert "Traceback" in "".join(agent.output)


@pytest.mark.parametrize(
    ("env", "kwargs", "said"),
    [
        ("FrozenLake-v1", "is_slipperi", "FrozenLake-v1 takes no keyword argument 'is_slipperi'"),
        ("tests.registering_envs:Sized", "", "Sized needs the keyword argument 'size'"),
    ],
)
@pytest.mark.parametrize("python", [[], ["--python", sys.executable]], ids=["here", "elsewhere"])
def test_wrong_keyword_arguments_of_the_operator_are_an_error_of_one_line(
    programs: Programs, env: str, kwargs: str, said: str, python: list[str]
) -> None:
    _, url = programs.broker()
    given = json.dumps({kwargs: 1} if kwargs else {})
    options = ["--env-kwargs", given, "--broker", url, *python]
    agent = programs.start("gymwire", "serve", "x", env, *options)
    assert agent.wait() == 2
    (line,) = agent.output
    assert said in line
    assert "Correct --env-kwargs" in line


def test_more_sessions_than_slots_are_an_error(programs: Programs) -> None:
    _, url = programs.broker()
    slots = ("--max-sessions", "2", "--threads", "1")
    programs.env_agent(url, "--address", "lake", "--env", "FrozenLake-v1", *slots)
    with pytest.raises(
        NoFreeSlot, match=r"^3 sessions are needed at the same time, but 'lake' has only 2 slots\."
    ):
        ProxyVectorEnv("lake", 3, url, sessions=3)


def test_more_sessions_than_free_slots_are_another_error(programs: Programs) -> None:
    _, url = programs.broker()
    slots = ("--max-sessions", "2", "--threads", "1")
    programs.env_agent(url, "--address", "lake", "--env", "FrozenLake-v1", *slots)
    with (
        ProxyEnv("lake", url),
        pytest.raises(
            NoFreeSlot,
            match=r"^2 sessions are requested together, but fewer than 2 of the 2 slots of 'lake' "
            r"are free;",
        ),
    ):
        ProxyVectorEnv("lake", 2, url, sessions=2)


def test_a_port_in_use_is_an_error(broker_url: str, programs: Programs) -> None:
    second = programs.start("gymwire", "broker", "--bind", broker_url)
    assert second.wait() == 2
    (line,) = second.output
    assert line.startswith(f"gymwire broker: --bind: {broker_url} is in use")
    assert line.endswith(
        " listens there and would get the connections. Stop it, or choose another port with "
        "--bind, and give it to the others with --broker or GYMWIRE_BROKER.\n"
    )


# --- strangers --------------------------------------------------------------------------------

OTHER_VERSION = 99


def _of_another_version(frame: bytes | bytearray) -> bytes:
    return bytes(frame[:1]) + bytes([OTHER_VERSION]) + bytes(frame[2:])


def test_a_peer_of_another_version_gets_both_versions(broker_url: str) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as peer:
        peer.linger = 0
        peer.connect(broker_url)
        peer.send(_of_another_version(PLAIN.encode(Ping())))
        assert peer.poll(PATIENCE_MS)
        answer = PLAIN.decode(peer.recv())
    assert isinstance(answer, Error)
    assert answer.code == Code.VERSION
    assert f"version {OTHER_VERSION}" in answer.text
    assert "version 1" in answer.text


def test_a_broker_of_another_version_is_an_error_at_once() -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as stranger:
        stranger.linger = 0
        port = stranger.bind_to_random_port("tcp://127.0.0.1")

        def answer() -> None:
            if stranger.poll(PATIENCE_MS):
                sender, frame = stranger.recv_multipart()
                stranger.send_multipart([sender, _of_another_version(frame)])

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(VersionMismatch, match=f"version {OTHER_VERSION}, this side version 1"):
            ProxyEnv("cartpole", f"tcp://127.0.0.1:{port}", timeout_s=600.0)
        thread.join(PATIENCE_S)


GARBAGE = {
    "a browser": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "ZMTP 1": b"\x05\0gymw\x47\0" + bytes(300),
    "ZMTP 2": b"\xff\0\0\0\0\0\0\0\x01\x7f\x01\x05\0\0" + bytes(300),
    "half a ZMTP 3": b"\xff" + bytes(8) + b"\x7f\x03",
    "noise": np.random.default_rng(0).bytes(3000),
    "TLS": bytes.fromhex("1603010200010001fc0303") + bytes(517),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_garbage_on_the_port_has_no_effect_on_others(broker: str, garbage: bytes) -> None:
    host, port = broker.removeprefix("tcp://").split(":")
    with ProxyEnv("cartpole", broker) as env:
        env.reset(seed=1)
        with socket.create_connection((host, int(port))) as stranger:
            stranger.sendall(garbage)
            with (
                contextlib.closing(BrokerConnection(broker)) as connection,
                ProxyEnv("cartpole", connection=connection) as another,
            ):
                another.reset()
        env.step(0)


@pytest.mark.parametrize(
    "frames",
    [
        [np.random.default_rng(0).bytes(200)],
        [b""],
        [PLAIN.encode(Ping())[: codec.HEADER_SIZE]],
        [PLAIN.encode(Ping(), 77, 5) + b"more"],
    ],
    ids=["noise", "empty", "half a message", "too much"],
)
def test_garbage_in_a_frame_is_answered_and_has_no_effect_on_others(
    broker: str, frames: list[bytes]
) -> None:
    with ProxyEnv("cartpole", broker) as env, zmq.Context() as context:
        env.reset(seed=1)
        with context.socket(zmq.DEALER) as peer:
            peer.linger = 0
            peer.connect(broker)
            peer.send_multipart([b"three", b"frames", b"here"])
            peer.send_multipart(frames)
            assert peer.poll(PATIENCE_MS)
        env.step(0)


def test_a_message_of_several_parts_is_answered(broker: str) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as peer:
        peer.linger = 0
        peer.connect(broker)
        peer.send_multipart([b"three", b"frames", b"here"])
        assert peer.poll(PATIENCE_MS)
        error = PLAIN.decode(peer.recv())
    assert isinstance(error, Error)
    assert "exactly one part" in error.text


def test_a_listener_that_is_not_a_broker_is_an_error() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(BrokerUnreachable, match="No broker answers"),
    ):
        ProxyEnv("cartpole", f"tcp://127.0.0.1:{silent.getsockname()[1]}")
