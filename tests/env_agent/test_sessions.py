"""Sessions and requests as frames, without sockets; test_session.py tests the numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import structlog.testing
import zmq
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from gymnasium.vector import AutoresetMode, VectorEnv

from gymwire.env_agent.adapters import pettingzoo
from gymwire.env_agent.environments import Service
from gymwire.env_agent.factory import Factory
from gymwire.env_agent.runners.runner import Runner
from gymwire.env_agent.sessions import MAX_WARNED, MAX_WARNED_TEXT, SessionHost, Warned
from gymwire.env_agent.slot import Slot
from gymwire.protocol import spaces
from gymwire.protocol.capabilities import CAPABILITIES
from gymwire.protocol.codec import PLAIN, Codec, Header, read_header
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
from gymwire.protocol.percept_layouts import MAX_MISSES
from gymwire.protocol.security.keys import KeyPair
from gymwire.protocol.security.signing import Challenge
from gymwire.protocol.values import Opaque
from tests.wire import close_all

SID = 9


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Odd(gymnasium.Env[Any, Any]):
    """An environment whose action says how its step fails."""

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

    def __init__(self, host: SessionHost) -> None:
        self.host = host
        self.seq = 0
        self.codec = Codec(spaces.compile(Odd.observation_space), spaces.compile(Odd.action_space))

    def open(self, address: str = "odd", **env_kwargs: Any) -> Message:
        request = Open(address, b"n" * 16, env_kwargs=env_kwargs)
        return PLAIN.decode(self.host.open(SID, 1, request, None))

    def ask(self, message: Message) -> Message:
        self.seq += 1
        frame = bytes(self.codec.encode(message, SID, self.seq))
        reply = self.host.requests.handle(self.host.slots[SID], read_header(frame), frame)
        assert reply is not None
        assert read_header(frame).kind == KINDS[type(message)]
        return self.codec.decode(bytes(reply))

    def error(self, message: Message) -> Error:
        reply = self.ask(message)
        assert isinstance(reply, Error), reply
        return reply


def make_host(**options: Any) -> SessionHost:
    return SessionHost(
        [Service("odd", Factory("odd:Odd", Odd), exposed=("shown", "double"), **options)]
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
    close_all(made.host)


@pytest.fixture
def stepping(client: Client) -> Client:
    assert isinstance(client.ask(Reset()), Status)
    return client


def test_the_environment_made_for_the_offer_serves_the_first_session(log: list[Any]) -> None:
    host = make_host()
    before = Odd.made
    host.environments.describe(Service("odd", Factory("odd:Odd", Odd)), 1, None)
    Client(host).open()
    assert Odd.made == before + 1


def test_an_unknown_address_is_refused(client: Client) -> None:
    error = PLAIN.decode(client.host.open(1, 1, Open("other", b"n" * 16), None))
    assert isinstance(error, Error)
    assert error.code == Code.ADDRESS_UNKNOWN


@pytest.mark.parametrize("fail", ["exit", "surrogate", "unspeakable", "value"])
def test_an_open_whose_constructor_raises_is_answered_with_an_error(
    log: list[Any], fail: str
) -> None:
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
    assert ("Traceback" in error.details["traceback"]) is (action != "four")  # no code of its own
    assert isinstance(stepping.ask(Act("fine")), Percept)


def test_the_error_for_an_unserializable_observation_says_that_the_step_was_executed(
    stepping: Client,
) -> None:
    error = stepping.error(Act("bad observation"))
    assert error.code == Code.ENCODING
    assert "observation is a builtins.object" in error.text
    assert "The request has been executed" in error.text


class OddVector(VectorEnv[Any, Any, Any]):
    """A vector whose infos are not a dict."""

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
def test_infos_of_a_vector_that_are_not_a_dict_are_the_environments_fault(
    infos: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OddVector, "infos", infos)
    host = SessionHost([Service("odd", Factory("odd:OddVector", OddVector))])
    host.open(SID, 1, Open("odd", b"n" * 16, num_envs=2, autoreset_mode="NextStep"), None)
    slot, requests = host.slots[SID], list[Message]([Reset(), Act([1, 1])])
    for seq, request in enumerate(requests, 1):
        frame = bytes(PLAIN.encode(request, SID, seq))
        reply = host.requests.step(slot, frame) or host.requests.handle(
            slot, read_header(frame), frame
        )
    error = PLAIN.decode(bytes(reply or b""))
    assert isinstance(error, Error)
    assert error.code == Code.ENVIRONMENT_FAILED
    assert "The infos of a vector must be a dict" in error.text


def test_an_attribute_that_is_missing_is_no_warning(log: list[Any]) -> None:
    """`hasattr` at the learner asks so, as Gymnasium's checker does for `np_random`."""
    client = Client(SessionHost([Service("odd", Factory("odd:Odd", Odd), exposed=("no",))]))
    client.open()
    assert client.error(Call("get", "no")).code == Code.ENVIRONMENT_FAILED
    assert [entry for entry in log if entry["log_level"] == "warning"] == []
    client.error(Call("call", "no"))
    raised = [entry["request"] for entry in log if entry["log_level"] == "warning"]
    assert raised == ["CALL"]
    close_all(client.host)


def test_an_unserializable_info_is_opaque_and_logged_once(stepping: Client, log: list[Any]) -> None:
    for _ in range(3):
        percept = stepping.ask(Act("bad info"))
        assert isinstance(percept, Percept)
        assert percept.info["thing"] == Opaque("builtins.set", "{1}")
    warned = [entry["path"] for entry in log if "not serializable" in entry["event"]]
    assert warned.count('info["thing"]') == 1


def test_warnings_about_values_are_short_and_bounded(log: list[Any]) -> None:
    host = make_host()
    for number in range(2 * MAX_WARNED):
        host._warn_opaque("odd", f"{number}" + "x" * 100_000)
        host._warn_converted("odd", f"{number}" + "x" * 100_000, "y" * 100_000)
    warned = [{**entry} for entry in log if entry["log_level"] == "warning"]
    assert len(warned) == MAX_WARNED + 1
    assert warned[-1]["event"] == "no further warnings about values"
    assert max(len(str(entry)) for entry in warned) < 3 * MAX_WARNED_TEXT
    assert len(str(host._warned)) < 3 * MAX_WARNED_TEXT * MAX_WARNED


@pytest.mark.parametrize("at", [MAX_WARNED - 2, MAX_WARNED - 1])
def test_two_threads_say_once_that_no_further_warnings_come(at: int) -> None:
    events: list[str] = []
    host = SessionHost([], warned={(str(number),): object() for number in range(at)})

    class Log:
        def warning(self, event: str, **facts: Any) -> None:
            events.append(event)
            if facts.get("type") == "first":  # the other thread runs now
                host._warn_converted("odd", "second", "value")
                host._warn_converted("odd", "third", "value")

    host._log = Log()
    host._warn_converted("odd", "first", "value")
    assert events.count("no further warnings about values") == 1


def test_the_loops_of_an_env_agent_warn_once_together(log: list[Any]) -> None:
    warned: Warned = {}
    for _ in range(2):
        host = SessionHost([], warned=warned)
        host._warn_converted("odd", "m.Colour", "value")
        for index in range(3):
            host._warn_opaque("odd", f'info[{index}]["x"][{index + 1}]')
    assert [entry["event"] for entry in log] == [
        "values converted",
        "info value not serializable, repr sent",
    ]


def test_an_unserializable_info_is_an_error_with_strict_infos(log: list[Any]) -> None:
    client = Client(make_host(strict_infos=True))
    client.open()
    client.ask(Reset())
    error = client.error(Act("bad info"))
    assert error.code == Code.ENCODING
    assert "--strict-infos" in error.text
    assert "--strict-infos" not in client.error(Act("bad observation")).text


def test_exposed_attributes_are_read_written_and_called(client: Client) -> None:
    assert client.ask(Call("get", "shown")) == Result({"value": 2})
    assert client.ask(Call("set", "shown", (5,))) == Result(None)
    assert client.ask(Call("get", "shown")) == Result({"value": 5})
    assert client.ask(Call("get", "double")) == Result({"method": True})
    assert client.ask(Call("call", "double", (21,))) == Result(42)


@pytest.mark.parametrize("name", ["hidden", "close", "__class__", "__dict__", "spec"])
@pytest.mark.parametrize("mode", ["get", "set", "call"])
def test_attributes_that_are_not_exposed_are_denied(client: Client, mode: str, name: str) -> None:
    error = client.error(Call(mode, name, (1,)))
    assert error.code == Code.ATTRIBUTE_DENIED
    assert f"--expose {name}" in error.text


def test_a_call_with_wrong_arguments_fails_and_the_session_goes_on(client: Client) -> None:
    for call in (Call("set", "shown"), Call("call", "double"), Call("call", "double", 7)):
        assert client.error(call).code == Code.ENVIRONMENT_FAILED
    assert client.error(Call("set", "np_random", ({},))).code == Code.ENVIRONMENT_FAILED


def test_a_failing_close_is_logged_and_frees_the_slot(client: Client, log: list[Any]) -> None:
    assert client.ask(Close()) == Closed()
    closed = Odd.closed
    slot = client.host.slots[SID]
    client.host.remove(slot)
    client.host.close(slot)
    assert Odd.closed == closed + 1
    assert not client.host.slots
    assert any(entry["event"] == "environment failed to close" for entry in log)


@pytest.mark.parametrize("num_envs", [-1, 4097, 2**60])
def test_an_absurd_number_of_environments_is_refused(num_envs: int) -> None:
    request = Open("odd", bytes(16), num_envs=num_envs, autoreset_mode="NextStep")
    refusal = PLAIN.decode(make_host().open(SID, 1, request, None))
    assert isinstance(refusal, Error)
    assert refusal.code == Code.OPEN_FAILED
    assert "at most 4096 environments" in refusal.text


def test_a_reply_in_the_environments_memory_is_dropped_before_that_memory_changes(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next request, or closing the environment, may free or overwrite that memory."""
    assert isinstance(client.ask(Reset()), Status)
    slot = client.host.slots[SID]
    kept: list[object] = []

    def note(*_: object, **__: object) -> Any:
        kept.append(slot.session.reply)
        return 0, {}

    for name in ("reset", "step", "close"):
        monkeypatch.setattr(slot.runner.env, name, note)
    assert slot.session.reply
    slot.runner = Runner(slot.runner.env)
    client.ask(Reset())
    client.ask(Act(1))
    act = bytes(client.codec.encode(Act(1), SID, client.seq + 1))
    slot.session.restamp(b"previous reply")
    client.host.requests.step(slot, act)
    slot.session.restamp(b"previous reply")
    client.host.close(slot)
    assert kept == [b""] * 4


@pytest.mark.parametrize("capabilities", [[], list(CAPABILITIES)])
@pytest.mark.parametrize("key", [None, KeyPair(*zmq.curve_keypair())])
def test_opened_is_the_same_for_each_session_but_for_its_own_fields(
    capabilities: list[str], key: KeyPair | None
) -> None:
    host = SessionHost([Service("odd", Factory("Odd", Odd))], key)
    challenge = b"" if key is None else Challenge().public
    endpoints = [{"urls": ["unix:///a"]}, {"urls": ["unix:///b"]}, None]
    found = []
    for sid, direct in enumerate([*endpoints, *endpoints, endpoints[0], endpoints[0]]):
        request = Open("odd", b"n" * 16, challenge=challenge, capabilities=capabilities)
        frame = host.open(sid, 5, request, direct)
        header, opened = read_header(frame), PLAIN.decode(frame if key is None else frame[:-16])
        assert isinstance(opened, Opened)
        assert (header.sid, header.seq) == (sid, 5)
        assert opened.direct == direct
        assert opened.key == (b"" if key is None else key.public)
        assert opened.limits["stamps"] is (key is None)
        assert host.open(sid, 5, request, direct) == frame  # repeated
        found.append(replace(opened, direct=None))
    assert found == found[:1] * 8


def test_sessions_that_are_alike_share_the_codec_of_steps() -> None:
    services = [Service(name, Factory("Odd", Odd)) for name in ("odd", "other")]
    host = SessionHost(services)
    requests = [Open("odd", b"n" * 16, capabilities=list(CAPABILITIES)) for _ in range(2)]
    requests += [Open("odd", b"n" * 16), Open("other", b"n" * 16)]
    requests += [Open("odd", b"n" * 16, num_envs=n, autoreset_mode="NextStep") for n in (1, 2)]
    for sid, request in enumerate(requests):
        assert isinstance(PLAIN.decode(host.open(sid, 1, request, None)), Opened)
    one, same, *others = [slot.steps for slot in host.slots.values()]
    assert one is same
    assert len({id(steps) for steps in (one, *others)}) == 1 + len(others)


def test_a_further_session_may_teach_the_shared_codec_other_percepts() -> None:
    host, left = make_host(), []
    for sid in range(2):
        request = Open("odd", b"n" * 16, num_envs=1, autoreset_mode="NextStep")
        host.open(sid, 1, request, None)
        steps = host.slots[sid].steps
        assert steps is not None
        layouts = steps.encode_percept.__self__  # type: ignore[attr-defined]
        left.append(layouts._misses_left)
        layouts._misses_left = 0
    assert left == [MAX_MISSES] * 2


def test_a_space_that_one_session_has_replaced_concerns_no_other() -> None:
    host = make_host()
    for sid in (1, 2):
        host.open(sid, 1, Open("odd", b"n" * 16), None)
    slots = [host.slots[sid] for sid in (1, 2)]
    assert slots[0].steps is slots[1].steps
    assert slots[0].steps is not None
    replaced = Box(-1, 1, (3,), np.float64)
    for slot in slots:
        slot.runner.step = lambda _: (np.zeros(3), 0.0, False, False, {})  # does not fit the space
        assert host.requests.handle(slot, *_request(slot, Reset(), 1))
    slots[0].runner.env.observation_space = replaced
    found = [host.requests.step(slot, _request(slot, Act(1), 2)[1]) for slot in slots]
    replies = [
        slot.codec.decode(bytes(frame or b"")) for slot, frame in zip(slots, found, strict=True)
    ]
    assert [type(reply) for reply in replies] == [Error, Percept]


def _request(slot: Slot, message: Message, seq: int) -> tuple[Header, bytes]:
    frame = bytes(slot.codec.encode(message, slot.session.sid, seq))
    return read_header(frame), frame


class Boastful(Odd):
    """An environment with one agent that claims to have several."""

    kind = "parallel"
    state = 3


def opened(host: SessionHost, kind: str, num_envs: int) -> Message:
    mode = "NextStep" if num_envs else ""
    request = Open("odd", b"n" * 16, num_envs=num_envs, autoreset_mode=mode, kind=kind)
    return PLAIN.decode(host.open(SID, 1, request, None))


@pytest.mark.parametrize(
    ("kind", "num_envs", "why"),
    [
        ("parallel", 2, "contradicts num_envs=2"),
        ("aec", 2, "contradicts num_envs=2"),
        ("env", 2, "contradicts num_envs=2"),
        ("vector", 0, "contradicts num_envs=0"),
        ("nonsense", 0, "There is no kind of environment 'nonsense'"),
        ("x" * 1000, 2, "There is no kind of environment 'xxx"),
        ("parallel", 0, "is an environment with one agent"),
    ],
)
def test_a_kind_that_the_environment_is_not_of_is_refused(
    kind: str, num_envs: int, why: str
) -> None:
    refused = opened(make_host(), kind, num_envs)
    assert isinstance(refused, Error)
    assert refused.code == Code.OPEN_FAILED
    assert why in refused.text
    assert len(refused.text) < 400


@pytest.mark.parametrize("uses_spare", [False, True])
@pytest.mark.parametrize(("kind", "num_envs"), [("env", 0), ("", 0), ("vector", 2), ("", 2)])
def test_what_is_exposed_depends_on_the_environment_not_on_what_it_claims(
    kind: str, num_envs: int, *, uses_spare: bool
) -> None:
    service = Service("odd", Factory("odd:Boastful", Boastful))
    host = SessionHost([service])
    if uses_spare:
        host.environments.describe(service, 1, None)
    found = opened(host, kind, num_envs)
    assert isinstance(found, Opened)
    assert not {*pettingzoo.EXPOSED} & {*found.limits["attributes"]}
    close_all(host)


def test_an_environment_that_claims_to_have_several_agents_is_not_opened_as_such() -> None:
    service = Service("odd", Factory("odd:Boastful", Boastful))
    host = SessionHost([service])
    host.environments.describe(service, 1, None)
    assert isinstance(opened(host, "parallel", 0), Error)
