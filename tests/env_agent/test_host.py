"""The host over frames: what sockets never see. Its table of numbers is test_session.py's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
import structlog.testing
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from gymnasium.vector import AutoresetMode, VectorEnv

from gymwire.env_agent.factory import Factory
from gymwire.env_agent.host import Host, Service
from gymwire.protocol import spaces
from gymwire.protocol.codec import PLAIN, Codec, read_header
from gymwire.protocol.messages import (
    KINDS,
    Act,
    Call,
    Close,
    Closed,
    Code,
    Error,
    Message,
    Open,
    Opened,
    Percept,
    Reset,
    Result,
    Status,
)
from gymwire.protocol.values import Opaque

SID = 9


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Odd(gymnasium.Env[Any, Any]):
    """Does on a step what its action says."""

    observation_space = Box(-1, 1, (2,), np.float32)
    action_space = Discrete(9)
    made = 0
    closed = 0

    def __init__(self, fail: str = "") -> None:
        Odd.made += 1
        if fail == "exit":
            raise SystemExit(3)
        if fail == "surrogate":
            raise FileNotFoundError("no file \udcff")
        if fail == "unspeakable":
            raise UnspeakableError
        if fail == "value":
            raise ValueError("this world is too small")
        self.hidden = 1
        self.shown = 2

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {"options": options}

    def step(self, action: Any) -> Any:
        observation: Any = np.ones(2, np.float32)
        info: dict[str, Any] = {}
        match action:
            case "raise":
                raise ValueError("that was not wise")
            case "exit":
                raise SystemExit(3)
            case "surrogate":
                raise ValueError("\udcff")
            case "unspeakable":
                raise UnspeakableError
            case "four":
                return observation, 1.0, False, {}
            case "bad observation":
                observation = object()
            case "bad info":
                info = {"thing": {1}, "\udcff": object()}
        return observation, 1.0, False, False, info

    def double(self, number: int) -> int:
        return 2 * number

    def close(self) -> None:
        Odd.closed += 1
        raise OSError("cannot close")


class Client:
    """Numbers requests and reads replies."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.seq = 0
        self.codec = Codec(spaces.compile(Odd.observation_space), spaces.compile(Odd.action_space))

    def open(self, address: str = "odd", **env_kwargs: Any) -> Message:
        wish = Open(address, b"n" * 16, env_kwargs=env_kwargs)
        return PLAIN.decode(self.host.open(SID, 1, wish, None))

    def ask(self, message: Message) -> Message:
        self.seq += 1
        frame = bytes(self.codec.encode(message, SID, self.seq))
        reply = self.host.handle(self.host.slots[SID], read_header(frame), frame)
        assert reply is not None
        assert read_header(frame).kind == KINDS[type(message)]
        return self.codec.decode(bytes(reply))

    def error(self, message: Message) -> Error:
        reply = self.ask(message)
        assert isinstance(reply, Error), reply
        return reply


def make_host(**options: Any) -> Host:
    return Host(
        [Service("odd", Factory("odd:Odd", Odd), attributes=("shown", "double"), **options)]
    )


@pytest.fixture
def log() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as entries:
        yield entries


@pytest.fixture
def client(log: list[Any]) -> Iterator[Client]:
    made = Client(make_host())
    assert isinstance(made.open(), Opened)
    yield made
    made.host.close_all()


@pytest.fixture
def stepping(client: Client) -> Client:
    assert isinstance(client.ask(Reset()), Status)
    return client


def test_the_environment_made_for_the_offer_serves_the_first_session(log: list[Any]) -> None:
    host = make_host()
    before = Odd.made
    host.describe(Service("odd", Factory("odd:Odd", Odd)), 1, None)
    Client(host).open()
    assert Odd.made == before + 1


def test_an_unknown_address_is_refused(client: Client) -> None:
    error = PLAIN.decode(client.host.open(1, 1, Open("other", b"n" * 16), None))
    assert isinstance(error, Error)
    assert error.code == Code.ADDRESS_UNKNOWN


@pytest.mark.parametrize("fail", ["exit", "surrogate", "unspeakable", "value"])
def test_a_constructor_that_raises_is_an_answer(log: list[Any], fail: str) -> None:
    host = make_host()
    error = Client(host).open(fail=fail)
    assert isinstance(error, Error)
    assert error.code == Code.OPEN_FAILED
    assert not host.slots


@pytest.mark.parametrize(
    ("action", "remote_type"),
    [
        ("raise", "ValueError"),
        ("exit", "SystemExit"),
        ("surrogate", "ValueError"),
        ("unspeakable", f"{__name__}.UnspeakableError"),
        ("four", "ValueError"),
    ],
)
def test_what_a_step_raises_is_a_reply_and_the_session_goes_on(
    stepping: Client, action: str, remote_type: str
) -> None:
    error = stepping.error(Act(action))
    assert (error.code, error.details["type"]) == (Code.ENVIRONMENT_FAILED, remote_type)
    assert "Traceback" in error.details["traceback"]
    assert isinstance(stepping.ask(Act("fine")), Percept)


def test_an_observation_that_cannot_travel_is_said_to_have_been_stepped(stepping: Client) -> None:
    error = stepping.error(Act("bad observation"))
    assert error.code == Code.ENCODING
    assert "observation is a builtins.object" in error.text
    assert "The step has been executed" in error.text


class OddVector(VectorEnv[Any, Any, Any]):
    """Whose infos are what the test says, and no dict."""

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012
    single_observation_space = Box(-1, 1, (2,), np.float32)
    single_action_space = Discrete(9)
    observation_space = Box(-1, 1, (2, 2), np.float32)
    action_space = MultiDiscrete([9, 9])
    infos: Any = None

    def __init__(self, num_envs: int = 1) -> None:
        self.num_envs = num_envs

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return np.zeros((2, 2), np.float32), {}

    def step(self, actions: Any) -> Any:
        no = np.zeros(2, bool)
        return np.zeros((2, 2), np.float32), np.ones(2), no, no, self.infos


@pytest.mark.parametrize("infos", [np.ones(2), [1, 2], "infos", 5])
def test_infos_of_a_vector_that_are_no_dict_are_the_environments_fault(
    infos: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OddVector, "infos", infos)
    host = Host([Service("odd", Factory("odd:OddVector", OddVector))])
    host.open(SID, 1, Open("odd", b"n" * 16, num_envs=2, autoreset_mode="NextStep"), None)
    slot, requests = host.slots[SID], list[Message]([Reset(), Act([1, 1])])
    for seq, request in enumerate(requests, 1):
        frame = bytes(PLAIN.encode(request, SID, seq))
        reply = host.step(slot, seq, frame) or host.handle(slot, read_header(frame), frame)
    error = PLAIN.decode(bytes(reply or b""))
    assert isinstance(error, Error)
    assert error.code == Code.ENVIRONMENT_FAILED
    assert "The infos of a vector must be a dict" in error.text


def test_an_info_that_cannot_travel_is_opaque_and_warned_of_once(
    stepping: Client, log: list[Any]
) -> None:
    for _ in range(3):
        percept = stepping.ask(Act("bad info"))
        assert isinstance(percept, Percept)
        assert percept.info["thing"] == Opaque("builtins.set", "{1}")
    warned = [entry["path"] for entry in log if "cannot travel" in entry["event"]]
    assert warned.count('info["thing"]') == 1


def test_with_strict_infos_it_is_an_error_whatever_the_key(log: list[Any]) -> None:
    client = Client(make_host(strict_infos=True))
    client.open()
    client.ask(Reset())
    assert client.error(Act("bad info")).code == Code.ENCODING


def test_allowed_attributes_are_read_written_and_called(client: Client) -> None:
    assert client.ask(Call("get", "shown")) == Result({"value": 2})
    assert client.ask(Call("set", "shown", (5,))) == Result(None)
    assert client.ask(Call("get", "shown")) == Result({"value": 5})
    assert client.ask(Call("get", "double")) == Result({"method": True})
    assert client.ask(Call("call", "double", (21,))) == Result(42)


@pytest.mark.parametrize("name", ["hidden", "close", "__class__", "__dict__", "spec"])
@pytest.mark.parametrize("mode", ["get", "set", "call"])
def test_anything_else_is_denied(client: Client, mode: str, name: str) -> None:
    error = client.error(Call(mode, name, (1,)))
    assert error.code == Code.ATTRIBUTE_DENIED
    assert "--expose" in error.text


def test_a_call_with_wrong_arguments_fails_and_harms_nobody(client: Client) -> None:
    for call in (Call("set", "shown"), Call("call", "double"), Call("call", "double", 7)):
        assert client.error(call).code == Code.ENVIRONMENT_FAILED
    assert client.error(Call("set", "np_random", ({},))).code == Code.ENVIRONMENT_FAILED


def test_a_failing_close_is_logged_and_frees_the_slot(client: Client, log: list[Any]) -> None:
    assert client.ask(Close()) == Closed()
    closed = Odd.closed
    client.host.close(SID)
    assert Odd.closed == closed + 1
    assert not client.host.slots
    assert any(entry["event"] == "the environment failed to close" for entry in log)
    assert client.host.close(SID) is None


@pytest.mark.parametrize("num_envs", [-1, 4097, 2**60])
def test_an_absurd_number_of_environments_is_refused(num_envs: int) -> None:
    wish = Open("odd", bytes(16), num_envs=num_envs, autoreset_mode="NextStep")
    refusal = PLAIN.decode(make_host().open(SID, 1, wish, None))
    assert isinstance(refusal, Error)
    assert refusal.code == Code.OPEN_FAILED
    assert "4096 environments at most" in refusal.text


def test_an_answer_is_not_kept_in_an_environments_memory_longer_than_that_lasts(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large one lies there: in the next request, and with close, that memory may go."""
    assert isinstance(client.ask(Reset()), Status)
    slot = client.host.slots[SID]
    kept: list[object] = []

    def note(*_: object, **__: object) -> Any:
        kept.append(slot.session.answer)
        return 0, {}

    for name in ("reset", "step", "close"):
        monkeypatch.setattr(slot.env, name, note)
    assert slot.session.answer
    client.ask(Reset())
    client.ask(Act(1))
    act = bytes(client.codec.encode(Act(1), SID, client.seq + 1))
    slot.session.answer = b"of before"
    client.host.step(slot, client.seq + 1, act)
    slot.session.answer = b"of before"
    client.host.close(SID)
    assert kept == [b""] * 4
