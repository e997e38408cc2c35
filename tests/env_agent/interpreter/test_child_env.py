"""An environment in another interpreter: its values, its exceptions, and its end."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import structlog
from gymnasium.vector import AutoresetMode

from gymwire.env_agent import failure_reports
from gymwire.env_agent.adapters import foreign
from gymwire.env_agent.description import describe
from gymwire.env_agent.elsewhere import EnvironmentGone, why_gone
from gymwire.env_agent.environments import Service
from gymwire.env_agent.factory import resolve
from gymwire.env_agent.interpreter import child, child_errors, child_factory
from gymwire.env_agent.interpreter.child_env import ChildEnv
from gymwire.env_agent.interpreter.child_errors import RaisedInChild
from gymwire.env_agent.interpreter.child_factory import ChildFactory
from gymwire.env_agent.interpreter.child_process import ChildProcess
from gymwire.env_agent.runners.runner import Runner
from gymwire.env_agent.sessions import SessionHost
from gymwire.protocol import generators
from gymwire.protocol.codec import Codec, read_header
from gymwire.protocol.errors import ConfigurationError, EncodingError, GymwireError
from gymwire.protocol.messages import (
    Act,
    Call,
    Code,
    EndedBy,
    EnvKind,
    Error,
    Open,
    Percept,
    Reset,
    Status,
)
from gymwire.protocol.space_codecs import compile as compile_space
from gymwire.protocol.step_codec import RawPercept, compile_steps
from gymwire.protocol.values import Opaque, check, convert, decode, encode
from tests.env_agent.adapters.test_foreign import Dm
from tests.rich_envs import Rich, Tensors
from tests.sameness import assert_same
from tests.space_zoo import ZOO
from tests.wire import close_all

Make = Callable[..., ChildEnv]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes environments that are closed after the test."""
    with contextlib.ExitStack() as stack:

        def make(env: str, python: str, **kwargs: Any) -> ChildEnv:
            made: Any = ChildFactory("lab/child", env, python, kwargs).make_first()
            stack.callback(made.close)
            return made  # type: ignore[no-any-return]

        yield make


PLAIN = "tests.plain_envs:Plain"
PROGRAM = Path(child.__file__).parent


def test_values_arrive_unchanged_from_every_interpreter(make: Make, python: str) -> None:
    from tests.plain_envs import INFO

    env = make(PLAIN, python)
    env.reset(seed=1)
    observation, reward, terminated, truncated, info = env.step(np.int64(1))
    assert_same(info, INFO)
    assert_same((reward, terminated, truncated), (1.0, False, False))
    assert observation.dtype == np.float32
    assert env.observation_space.contains(observation)


def test_asynchronous_methods_are_awaited(make: Make, python: str) -> None:
    env = make("tests.plain_envs:Asynchronous", python)
    assert env.reset(seed=1) == (1, {})
    with pytest.raises(RaisedInChild, match="cancelled in the step"):
        env.step(np.int64(9))
    assert env.step(np.int64(3)) == (3, 1.0, False, False, {})
    assert env.get_wrapper_attr("double")(21) == 42
    with pytest.raises(RaisedInChild, match="closed"):
        env.close()


def test_an_action_keeps_its_type(make: Make) -> None:
    env = make("tests.plain_envs:Kinds", sys.executable)
    env.reset()
    for action in (3, -3, 2**63, -(2**63), 2**70, True, np.int64(3), np.int32(3)):
        expected = {"kind": type(action).__name__, "value": int(action)}
        assert_same(env.step(action)[4], expected)


CHOOSING = """
import gymnasium
import numpy as np

class Choosing(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-9, 9, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(9)
    def reset(self, seed=None, options=None):
        return np.zeros(2, np.float32), {}
    def step(self, action):
        seen = np.array([action, 0.5], np.float32)
        return [
            (seen, 1.5, False, True, {}),
            (seen[::-1], -0.0, True, False, {}),
            (seen, np.float64(1.5), True, False, {}),
            (seen, 1.5, False, False, {"a": 1}),
            (seen, 1, False, False, {}),
            (seen, 1.5, np.bool_(True), False, {}),
            (seen.astype(np.float64), 1.5, False, False, {}),
            (seen[:1], 1.5, False, False, {}),
            b"a" * (8 + 12),
        ][action]

class InColumns(Choosing):
    observation_space = gymnasium.spaces.Box(0, 9, (2, 3), np.float32)
    def step(self, action):
        return np.ones((2, 3), np.float32, order="F"), 1.0, False, False, {}
"""
RAW = 2  # how many of its actions have a raw percept


@pytest.fixture
def choosing(tmp_path: Path) -> str:
    (tmp_path / "choosing.py").write_text(CHOOSING)
    return f"{tmp_path}/choosing.py:Choosing"


def test_a_percept_is_raw_if_its_frame_has_the_same_bytes(make: Make, choosing: str) -> None:
    env = make(choosing, sys.executable)
    env.reset()
    steps = compile_steps(compile_space(env.observation_space), compile_space(env.action_space))
    assert env.raw_size == steps.raw_size
    for action in range(9):
        raw, step = env.step_raw(action), env.step(action)
        if action < RAW:
            assert type(raw) is RawPercept
            frame = steps.encode_raw(raw, bytes(16))
            assert frame == steps.encode_percept(step, bytes(16))
            raw = steps.decode_percept(frame, bytes(16))
        assert_same(raw, step)
    env.begin_step(0)
    assert_same(env.step_raw(0), env.step(0))


def test_an_observation_without_an_info_keeps_its_order_in_memory(
    make: Make, choosing: str
) -> None:
    env = make(choosing.replace("Choosing", "InColumns"), sys.executable)
    env.reset()
    for step in (env.step, env.step_raw):
        assert step(0)[0].strides == (4, 8)


def test_a_session_has_the_same_frames_as_without_the_process(choosing: str) -> None:
    factories = resolve(choosing, {}), ChildFactory("a", choosing, sys.executable, {})
    hosts = [SessionHost([Service("a", factory)]) for factory in factories]
    replies: list[Any] = []
    for host in hosts:
        host.open(9, 1, Open("a", b"n" * 16), None)
        slot = host.slots[9]
        requests: list[Any] = [Reset(), *map(Act, range(8))]
        env: Any = slot.runner.env
        codec = Codec(*map(compile_space, (env.observation_space, env.action_space)))
        for seq, request in enumerate(requests, 1):
            frame = bytes(codec.encode(request, 9, seq))
            reply = host.requests.step(slot, frame)
            replies.append(reply or host.requests.handle(slot, read_header(frame), frame))
        host.requests.max_message = 40
        refused = host.requests.step(slot, bytes(codec.encode(Act(0), 9, 10)))
        error = codec.decode(bytes(refused or b""))
        assert isinstance(error, Error)
        assert error.code == Code.TOO_LARGE
        close_all(host)
    assert list(map(bytes, replies[:9])) == list(map(bytes, replies[9:]))


def test_spaces_are_read_by_their_attributes(make: Make, python: str) -> None:
    env = make("tests.plain_envs:Nested", python)
    spaces = gymnasium.spaces
    assert env.observation_space == spaces.Dict(
        {
            "box": spaces.Box(
                np.array([[0, 1], [2, 3]], np.uint8),
                np.array([[4, 5], [6, 7]], np.uint8),
                dtype=np.uint8,
            ),
            "pair": spaces.Tuple([spaces.Discrete(3, start=1), spaces.MultiDiscrete([2, 3])]),
            "bits": spaces.MultiBinary(4),
            "word": spaces.Text(5, min_length=0, charset="abc"),
        }
    )
    assert env.action_space == spaces.Box(-1.0, 1.0, (2, 3), np.float64)
    observation, _ = env.reset(seed=1)
    assert env.observation_space.contains(observation)
    action = np.array([[0.1, 0.2, -0.3], [0.4, -0.5, 0.6]])
    seen = env.step(action)[4]["action"]
    numbers = seen.replace("array(", "").replace(")", "").replace("\n", "")
    assert json.loads(numbers) == action.tolist()


def test_the_dialogue_of_old_gym_becomes_that_of_gymnasium(make: Make, python: str) -> None:
    env = make("tests.plain_envs:Old", python)
    assert env.metadata == {"render_modes": ["ansi"], "render_fps": 5}
    assert env.reset(seed=17) == (17, {})
    ends = [env.step(np.int64(0))[:4] for _ in range(4)][2:]
    assert ends == [(3, 1.0, False, False), (4, 1.0, True, False)]
    env.reset()
    assert [env.step(np.int64(2))[2:] for _ in range(4)][2:] == [
        (False, False, {}),
        (False, True, {}),
    ]


def test_four_values_without_an_info_are_not_those_of_old_gym(make: Make, bare_python: str) -> None:
    env = make("tests.plain_envs:Forgetful", bare_python)
    env.reset()
    assert env.step(np.int64(0)) == (1, 0.5, False, False)


@pytest.mark.parametrize("name", ["Old", "OldGeneric", "make_old", "OldWithoutConstructor"])
def test_old_gym_renders_in_the_mode_of_the_session(python: str, name: str) -> None:
    kwargs = {} if name == "OldWithoutConstructor" else {"limit": 2}
    env = ChildFactory("a", f"tests.plain_envs:{name}", python, {}).make("ansi", kwargs)
    with contextlib.closing(env):
        assert env.render_mode == "ansi"
        assert env.render() == "rendered as ansi"


def test_what_reset_does_not_take_is_not_ignored_silently(make: Make) -> None:
    with structlog.testing.capture_logs() as logs:
        env = make("tests.plain_envs:Unseedable", sys.executable)
        for _ in range(2):
            assert env.reset(seed=1, options={}) == (1, {})
        with pytest.raises(RaisedInChild, match="reset of Unseedable takes no options"):
            env.reset(options={"a": 1})
        assert env.step(np.int64(1)) == (2, 0.5, False, False, {})
        env.close()
    printed = [log["text"] for log in logs if log["event"] == "environment printed"]
    assert printed == ["The environment takes no seed."]


def test_it_runs_in_the_main_thread_of_a_process_that_inherits_nothing(
    make: Make, python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GYMWIRE_KEY", "secret")
    monkeypatch.setenv("MINE", "kept")
    info = make(PLAIN, python).reset(seed=1)[1]
    assert info["main"] is True
    assert [name for name in info["variables"] if name.startswith("GYMWIRE")] == []
    assert "MINE" in info["variables"]
    # Its requests, its answers, its output and its error output; no socket.
    assert [name.partition(":")[0] for name in info["descriptors"]] == ["pipe"] * 4
    assert info["modules"] == []


def test_an_exception_is_reported_with_its_type_and_traceback(make: Make, python: str) -> None:
    env = make(PLAIN, python)
    env.reset(seed=1)
    for action, kind in ((3, "tests.plain_envs.Peculiar"), (4, "SystemExit")):
        with pytest.raises(RaisedInChild) as caught:
            env.step(np.int64(action))
        report = failure_reports.request_failed(caught.value, env)
        assert report.code == Code.ENVIRONMENT_FAILED
        assert report.details["type"] == kind
        assert "plain_envs.py" in report.details["traceback"]
        assert "child_process.py" not in report.details["traceback"]
    assert env.step(np.int64(0))[1] == 0.0


@pytest.mark.parametrize(("action", "how"), [(5, "exit status 5"), (6, "SIGSEGV"), (9, "SIGKILL")])
def test_the_end_of_the_process_is_reported(make: Make, python: str, action: int, how: str) -> None:
    env, other = make(PLAIN, python), make(PLAIN, python)
    env.reset(seed=1)
    other.reset(seed=1)
    for _ in range(2):
        with pytest.raises(EnvironmentGone, match=how):
            env.step(np.int64(action))
    assert how in env.lost
    text = f"the environment is gone, because {env.lost}"
    report = Error(Code.SESSION_LOST, text, {"ended_by": EndedBy.ENVIRONMENT})
    assert failure_reports.request_failed(EnvironmentGone(env.lost), env) == report
    assert other.lost == ""
    assert other.step(np.int64(0))[1] == 0.0


def test_attributes_methods_and_rendering(python: str) -> None:
    env = ChildFactory("a", PLAIN, python, {"ground": 2.5}).make("ansi", {})
    with contextlib.closing(env):
        env.reset(seed=1)
        env.step(np.int64(0))
        runner = Runner(env)
        assert runner.access(Call("get", "ground", [], {})) == {"value": 2.5}
        assert runner.access(Call("get", "scaled", [], {})) == {"method": True}
        assert runner.access(Call("call", "scaled", [3.0], {"offset": 0.5})) == 3.5
        runner.access(Call("set", "ground", [7], {}))
        assert env.get_wrapper_attr("ground") == 7
        assert (env.has_wrapper_attr("ground"), env.has_wrapper_attr("sky")) == (True, False)
        with pytest.raises(RaisedInChild, match="sky"):
            env.get_wrapper_attr("sky")
        assert env.render() == "step 1"
        assert env.unwrapped is env


def test_every_space_of_gymnasium_gives_what_it_gives_here() -> None:
    factory = ChildFactory("a", "tests.space_zoo:ZooEnv", sys.executable, {})
    process = ChildProcess(factory._watch, sys.executable, "a")
    with contextlib.ExitStack() as stack:
        stack.callback(process.kill)
        for index, name in enumerate(ZOO):
            kwargs = {"observation": name, "action": name}
            remote = factory._make(process, None, kwargs, EnvKind.ENV, index)
            local = resolve("tests.space_zoo:ZooEnv", {}).make(None, kwargs)
            assert remote.observation_space == local.observation_space
            assert remote.action_space == local.action_space
            assert describe(remote, "x").metadata == describe(local, "x").metadata
            start: dict[str, Any] = {"seed": 3, "options": {"a": 1}}
            assert_same(remote.reset(**start), local.reset(**start))
            local.action_space.seed(5)
            for _ in range(9):
                action = local.action_space.sample()
                assert_same(remote.step(action), local.step(action))


def test_a_generator_is_read_and_set_by_its_state(make: Make) -> None:
    remote = make("CartPole-v1", sys.executable)
    local = gymnasium.make("CartPole-v1")
    remote.reset(seed=4)
    local.reset(seed=4)
    state = local.unwrapped.np_random.bit_generator.state
    assert remote.np_random.bit_generator.state == state
    assert remote.np_random_seed == 4
    remote.np_random = np.random.default_rng(9)
    local.unwrapped.np_random = np.random.default_rng(9)
    assert_same(remote.reset(), local.reset())
    assert remote.spec is not None
    assert (remote.spec.id, remote.spec.max_episode_steps) == ("CartPole-v1", 500)


@pytest.mark.parametrize("mode", AutoresetMode)
def test_a_vector_equals_a_local_one(mode: AutoresetMode) -> None:
    kwargs = {"observation": "dict", "action": "multi-discrete"}
    remote = ChildFactory("a", "tests.vector_envs:VectorZooEnv", sys.executable, {}).make_vector(
        3, mode, None, kwargs
    )
    local = resolve("tests.vector_envs:VectorZooEnv", {}).make_vector(3, mode, None, kwargs)
    with contextlib.closing(remote), contextlib.closing(local):
        assert_same(remote.reset(seed=1), local.reset(seed=1))
        local.action_space.seed(5)
        for number in range(20):
            if mode is AutoresetMode.DISABLED and number % 7 == 0:
                mask = {"reset_mask": np.array([True, True, True])}
                assert_same(remote.reset(options=dict(mask)), local.reset(options=dict(mask)))
            actions = local.action_space.sample()
            assert_same(remote.step(actions), local.step(actions))


def test_a_vector_that_raised_goes_on(python: str) -> None:
    vector = ChildFactory("a", PLAIN, python, {}).make_vector(3, AutoresetMode.NEXT_STEP, None, {})
    with contextlib.closing(vector):
        assert len(set(vector.reset(seed=1)[1]["pid"].tolist())) == 1
        with pytest.raises(RaisedInChild) as caught:
            vector.step(np.array([0, 3, 1]))
        assert failure_reports.request_failed(caught.value, vector).details["env_index"] == 1
        vector.reset(seed=1)
        assert vector.step(np.array([0, 2, 0]))[1].tolist() == [0.0, 2.0, 0.0]
        with pytest.raises(EnvironmentGone):
            vector.step(np.array([0, 5, 0]))
        assert why_gone(vector)


def test_steps_of_a_vector_are_sent_before_the_first_answer_is_read(
    bare_python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for name in ("begin", "finish"):
        original = getattr(ChildProcess, name)

        def logged(*args: Any, name: str = name, original: Any = original) -> Any:
            calls.append(name)
            return original(*args)

        monkeypatch.setattr(ChildProcess, name, logged)
    factory = ChildFactory("a", "tests.plain_envs:Long", bare_python, {})
    vector = factory.make_vector(64, AutoresetMode.NEXT_STEP, None, {})
    with contextlib.closing(vector):
        vector.reset(seed=1)
        calls.clear()
        infos = vector.step(np.ones(64, np.int64))[4]  # their answers are more than a pipe holds
        assert calls == ["begin"] * 64 + ["finish"] * 64
        assert [len(text) for text in infos["long"]] == [70_000] * 64


def test_a_generator_of_an_old_kind_is_an_error_that_says_so(make: Make, bare_python: str) -> None:
    runner = Runner(make("tests.plain_envs:OldRandom", bare_python))
    state = generators.describe(np.random.default_rng(1))
    for call in (Call("get", "np_random"), Call("set", "np_random", (state,))):
        with pytest.raises(AttributeError, match=r"np_random is a Random, but only a numpy\.rand"):
            runner.access(call)


def test_unknown_spaces_can_be_given(python: str) -> None:
    with pytest.raises(ConfigurationError, match=r"observation_space .*Values.* --spaces"):
        ChildFactory("a", "tests.plain_envs:Odd", python, {}).make_first()
    given = "tests.env_agent.interpreter.test_child_env:Given"
    env = ChildFactory("a", "tests.plain_envs:Odd", python, {}, given).make_first()
    with contextlib.closing(env):
        assert env.observation_space is Given.observation_space
        assert env.observation_space.contains(env.reset(seed=1)[0])


def test_other_values_arrive_as_documented(make: Make) -> None:
    remote = make("tests.rich_envs:Rich", sys.executable)
    local = Rich()
    (seen, info), (expected, given) = remote.reset(seed=1), local.reset(seed=1)
    assert_same(seen, expected)
    assert seen.flags.f_contiguous
    assert not seen.flags.c_contiguous
    assert info["order"].flags.f_contiguous
    converted, faults, conversions = convert(info, root="info")
    assert conversions == convert(given, root="info")[2]
    assert {became for _, _, became in conversions} == {"value", "dict", "named tuple"}
    for name in ("ordered", "objects", "complex", "date", "order"):
        assert_same(converted[name], given[name])
    assert (converted["enum"], converted["dataclass"]) == ("red", {"x": 3, "name": "here"})
    assert converted["mapping"] == {"a": 1}
    named = converted["named"]
    assert (type(named).__name__, named) == ("Pair", (1, np.float32(2)))
    assert named._fields == ("first", "second")
    assert converted["unknown"] == Opaque(f"{type(Path()).__module__}.PosixPath", "PosixPath('/x')")
    assert [fault.path for fault in faults] == ['info["structured"]', 'info["unknown"]']
    for one in (info, given):
        with pytest.raises(
            EncodingError, match=r'info\["enum"\] is a tests.rich_envs.Colour, which'
        ):
            check(one, root="info")
    with pytest.raises(EncodingError, match="PosixPath, which cannot be serialized"):
        check(info["unknown"])


def test_every_interpreter_names_the_types_that_it_converts(make: Make, python: str) -> None:
    info, faults, conversions = convert(make("tests.plain_envs:Cards", python).reset()[1], root="i")
    assert info == {
        "hand": {"cards": [("h", 7)]},
        "counts": {"a": 2, "b": 1},
        "scores": [1, 2],
        "h": {("h", 7): 1},
    }
    assert faults == []
    card = "i[<Suit.HEARTS: 'h'>][Card(suit=<Suit.HEARTS: 'h'>, rank=7)]"
    assert conversions == [
        ("the key i[<Suit.HEARTS: 'h'>]", "tests.plain_envs.Suit", "value"),
        ('i["hand"]', "tests.plain_envs.Hand", "dict"),
        ('i["hand"]["cards"][0]', "tests.plain_envs.Card", "named tuple"),
        ('i["hand"]["cards"][0][0]', "tests.plain_envs.Suit", "value"),
        ('i["counts"]', "collections.Counter", "dict"),
        ('i["scores"]', "array.array", "list"),
        (f"the key {card}", "tests.plain_envs.Card", "named tuple"),
        (f"the key {card}[0]", "tests.plain_envs.Suit", "value"),
    ]


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("name", ["Varied", "Tensors"])
def test_values_of_a_vector_are_converted_as_in_a_local_one(name: str, mode: AutoresetMode) -> None:
    name = f"tests.rich_envs:{name}"
    remote = ChildFactory("a", name, sys.executable, {}).make_vector(4, mode, None, {})
    local = resolve(name, {}).make_vector(4, mode, None, {})
    reports: list[set[tuple[str, str]]] = [set(), set()]
    with contextlib.closing(remote), contextlib.closing(local):
        for number in range(60):
            arrived = []
            for runner, reported in zip(map(Runner, (remote, local)), reports, strict=True):
                found: Any = None
                if number % 10 == 0:
                    found = runner.reset(number, None)
                else:
                    *found, infos = runner.step(np.zeros(4, np.int64))
                    found.append(runner.wire_infos(infos))
                copy, _, conversions = convert(found, root="values")
                arrived.append(decode(encode(copy)))
                reported.update(
                    (kind.rpartition(".")[2], became) for _, kind, became in conversions
                )
            assert_same(*arrived)
    assert reports[0] == reports[1]
    assert reports[0] == (VARIED if name.endswith("Varied") else {("Tensor", "array")})


VARIED = {
    ("Level", "value"),
    ("Colour", "value"),
    ("Tensor", "array"),
    ("Place", "dict"),
    ("mappingproxy", "dict"),
    ("Counter", "dict"),
    ("Pair", "named tuple"),
    ("Wide", "named tuple"),
}


def test_a_type_of_tensors_in_observations_and_rewards_is_reported_once(make: Make) -> None:
    space = compile_space(Tensors.observation_space)
    remote, local = make("tests.rich_envs:Tensors", sys.executable), Tensors()

    def arrived(result: Any) -> tuple[Any, list[tuple[str, str]]]:
        reports: list[tuple[str, str]] = []
        codec = Codec(space, on_converted=lambda *one: reports.append(one))
        message = Status(*result) if len(result) == 2 else Percept(*result)
        return dataclasses.astuple(codec.decode(codec.encode(message))), reports

    tensor = ("tests.rich_envs.Tensor", "array")
    for step in range(3):
        (there, reports), (here, expected) = [
            arrived(env.step(0) if step else env.reset(seed=1)) for env in (remote, local)
        ]
        assert_same(there, here)
        assert expected == [tensor] * (4 if step else 1)
        assert reports == [tensor]  # in a step, that in the info


def test_a_space_that_changes_after_the_constructor_is_an_error(make: Make, python: str) -> None:
    env = make("tests.plain_envs:Changing", python)
    for _ in range(2):
        env.reset()  # makes an equal space
    text = "The observation_space has changed to .*, but this session was opened with ."
    with pytest.raises(RaisedInChild, match=text):
        env.reset(options={"low": 0})
    given = "tests.env_agent.interpreter.test_child_env:Given"  # the environment's are not used
    other = ChildFactory("a", "tests.plain_envs:Changing", python, {}, given).make_first()
    with contextlib.closing(other):
        other.reset(options={"low": 0})


def test_an_environment_there_has_one_agent(bare_python: str) -> None:
    with pytest.raises(ConfigurationError, match="open it with ProxyEnv"):
        ChildFactory("a", PLAIN, bare_python, {}).make(None, {}, EnvKind.AEC)


class Given:
    observation_space = gymnasium.spaces.Box(-2, 2, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(10)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("nowhere", "write module:NAME"),
        ("tests.nowhere:X", "no module"),
        ("tests.plain_envs:Odd", "observation_space is Values, not a gymnasium.Space"),
        ("tests.plain_envs:INFO", "observation_space is NoneType"),
    ],
)
def test_given_spaces_that_are_none_are_an_error(name: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        ChildFactory("a", PLAIN, "python", {}, name)


def test_the_error_about_missing_spaces_says_how_to_give_them(bare_python: str) -> None:
    factory = ChildFactory("a", "tests.plain_envs:Spaceless", bare_python, {})
    with pytest.raises(GymwireError, match=r"observation_space is missing, or None\. Give them"):
        factory.make_first()


CLOSED = """
import os
from tests.plain_envs import Plain, Spaceless

class Closing:
    made = 0
    def __init__(self, path, fails_at=9, **kwargs):
        super().__init__(**kwargs)
        if Closing.made == fails_at:
            raise OSError("no more licences")
        Closing.made += 1
        self.path = path
    def close(self):
        with open(self.path, "a") as file:
            file.write("closed ")

class WithoutSpaces(Closing, Spaceless): pass
class WithSpaces(Closing, Plain): pass
"""


@pytest.mark.parametrize(
    ("name", "num_envs", "kind", "closed"),
    [
        ("WithoutSpaces", 0, EnvKind.ENV, 1),
        ("WithSpaces", 0, EnvKind.PARALLEL, 1),
        ("WithSpaces", 4, EnvKind.VECTOR, 3),
    ],
)
def test_environments_whose_session_fails_are_closed(
    name: str, num_envs: int, kind: str, closed: int, bare_python: str, tmp_path: Path
) -> None:
    (tmp_path / "closing_envs.py").write_text(CLOSED)
    kwargs = {"path": str(tmp_path / "closed"), "fails_at": 3}
    factory = ChildFactory("a", f"{tmp_path}/closing_envs.py:{name}", bare_python, kwargs)
    make: Callable[[], object] = partial(factory.make, None, {}, kind)
    if num_envs:
        make = partial(factory.make_vector, num_envs, AutoresetMode.NEXT_STEP, None, {})
    with pytest.raises((GymwireError, OSError, RaisedInChild)):
        make()
    assert (tmp_path / "closed").read_text() == "closed " * closed


@pytest.mark.parametrize(
    ("python", "why"),
    [
        ("/nowhere/python", "cannot be started"),
        ("", "--python '' is not the name of a program"),
        ("a\0b", "is not the name of a program"),
        ("/bin/false", "did not start as a Python interpreter .*exit status 1"),
        ("/bin/echo", "did not start as a Python interpreter .*exit status 0"),
    ],
)
def test_what_is_no_interpreter_is_an_error(python: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        ChildFactory("a", PLAIN, python, {}).make_first()


@pytest.mark.parametrize("leaves", [False, True])
def test_relative_paths_are_those_of_the_working_directory_at_the_start(
    bare_python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leaves: bool
) -> None:
    (tmp_path / "mine.py").write_text("from tests.plain_envs import Plain")
    (tmp_path / "python").symlink_to(bare_python)
    monkeypatch.setenv("PATH", "/nowhere")  # where another program may have this name
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    monkeypatch.chdir(tmp_path)
    factory = ChildFactory("a", "./mine.py:Plain", "./python", {})
    if leaves:  # as the code of another environment can
        monkeypatch.chdir("/")
    with contextlib.closing(factory.make_first()) as env:
        assert "pid" in env.reset(seed=1)[1]


def test_large_keys_in_an_info_do_not_end_the_session(bare_python: str, tmp_path: Path) -> None:
    (tmp_path / "keyed.py").write_text(
        "from tests.plain_envs import Plain\n\n"
        "class Keyed(Plain):\n"
        "    def reset(self, **kwargs):\n"
        "        return super().reset(**kwargs)[0], {'visits': {(0,) * 42: 1, '\\ud800': 2}}\n"
    )
    factory = ChildFactory("a", f"{tmp_path}/keyed.py:Keyed", bare_python, {})
    with contextlib.closing(factory.make_first()) as env:
        for _ in range(2):
            assert repr(env.reset()[1]["visits"]).startswith("{(0, 0,")


def test_the_module_of_the_spaces_does_not_change_where_processes_start(
    bare_python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "leaving.py").write_text(
        "import os\nfrom tests.env_agent.interpreter.test_child_env import Given\nos.chdir('/')"
    )
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    (tmp_path / "mine.py").write_text("from tests.plain_envs import Plain")
    factory = ChildFactory("a", "./mine.py:Plain", bare_python, {}, "./leaving.py:Given")
    assert Path.cwd() == Path("/")
    factory.make_first().close()


def test_a_working_directory_that_was_removed_is_no_obstacle(
    bare_python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    monkeypatch.chdir(tmp_path)
    before = ChildFactory("a", PLAIN, bare_python, {})
    tmp_path.rmdir()
    for factory in (before, ChildFactory("a", PLAIN, bare_python, {})):
        factory.make_first().close()
    with pytest.raises(ConfigurationError, match=r"--python \./python: .* Write the whole path"):
        ChildFactory("a", PLAIN, "./python", {})


def test_a_folder_instead_of_an_interpreter_names_the_interpreter_in_it(
    bare_python: str, tmp_path: Path
) -> None:
    folder = Path(bare_python).parents[1]
    with pytest.raises(
        ConfigurationError, match=rf"is a folder\. Give --python {folder}/bin/python\."
    ):
        ChildFactory("a", PLAIN, str(folder), {}).make_first()
    with pytest.raises(ConfigurationError, match=r"is a folder\. Give --python a program"):
        ChildFactory("a", PLAIN, str(tmp_path), {}).make_first()


@pytest.mark.parametrize("version", ["2.7", "3.6"])
def test_an_interpreter_that_is_too_old_is_an_error(version: str, tmp_path: Path) -> None:
    python = tmp_path / "python"
    major, minor = version.split(".")
    pretended = f"import sys; sys.version_info = ({major}, {minor}, 1); exec(sys.argv[1])"
    python.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] && exec {sys.executable} -c "{pretended}" "$2"\n'
        f"echo SyntaxError\nexit 1\n"
    )
    python.chmod(0o755)
    said = f"python is Python {version}, which is too old: --python needs version 3.7 or later"
    with pytest.raises(ConfigurationError, match=said):
        ChildFactory("a", PLAIN, str(python), {}).make_first()


@pytest.mark.parametrize("constructor", ["", "def __init__(self, size=1): pass"])
def test_a_class_without_render_modes_says_so(
    constructor: str, python: str, tmp_path: Path
) -> None:
    file = tmp_path / "modeless.py"
    file.write_text(
        "from tests.plain_envs import Spaceless, Values\n"
        "class Modeless(Spaceless):\n"
        f"    observation_space = action_space = Values(n=3)\n    {constructor}\n"
    )
    factory = ChildFactory("a", f"{file}:Modeless", python, {})
    said = r"^modeless:Modeless takes no render_mode\. Open it without one .*env-kwargs\)\.$"
    with pytest.raises(failure_reports.WrongKeywords, match=said):
        factory.make("rgb_array", {})


def test_what_cannot_be_made_is_named(python: str) -> None:
    with pytest.raises(failure_reports.WrongKeywords, match="no keyword argument 'wings'"):
        ChildFactory("a", PLAIN, python, {"wings": 2}).make_first()
    for name, why in (
        (
            "Values",
            "made a Values, which is not an environment: it has no 'reset'. Check the class",
        ),
        ("make_nothing", "made a NoneType, which is not an environment: it has no 'reset'. Check"),
        ("make_class", "made a class, Plain, and not an instance of it. Check the class"),
        ("Stepless", "made a Stepless, which is not an environment: it has no 'step'. Check the"),
        ("INFO", "INFO is neither a class nor a factory. Name one that is"),
        ("Plan", r"tests\.plain_envs has no 'Plan', and does not register .* Check the spelling"),
    ):
        with pytest.raises(ConfigurationError, match=rf"^tests\.plain_envs:{name}: .*{why}.*\.$"):
            ChildFactory("a", f"tests.plain_envs:{name}", python, {}).make_first()


def test_what_is_missing_is_named_with_what_to_do(python: str, tmp_path: Path) -> None:
    (tmp_path / "needy.py").write_text("import nowhere.at_all\n")
    (tmp_path / "lazy.py").write_text("def __getattr__(name): import nowhere.at_all\n")
    (tmp_path / "boom.py").write_text("def divide():\n    1 / 0\n\ndivide()\n")
    (tmp_path / "wrong.py").write_text("x = )\n")
    (tmp_path / "wheels.py").write_text(
        "class DependencyNotInstalled(Exception): pass\n"
        "raise DependencyNotInstalled('Wheels are missing: pip install wheels')\n"
    )
    for name, why in (
        ("tests.nowhere:X", r"no module 'tests\.nowhere'\. Install its package there, .*:MyEnv\.$"),
        ("./nowhere.py:X", r"X: there is no file /.*/nowhere\.py\.$"),
        (
            f"{tmp_path}/needy.py:X",
            r"no module 'nowhere.*needy\.py needs it: .* package there, or correct the import\.$",
        ),
        (
            f"{tmp_path}/boom.py:X",
            r"importing '.*' raised ZeroDivisionError: .* \(/.*/boom\.py, line 2\)\n\n +Traceback ",
        ),
        (f"{tmp_path}/wrong.py:X", r"importing '.*' raised SyntaxError: .*\(wrong\.py, line 1\)\n"),
        (f"{tmp_path}/wheels.py:X", r"wheels\.py:X cannot be used yet: .*pip install wheels$"),
        (
            f"{tmp_path}/lazy.py:X",
            r"'nowhere.*lazy\.py needs it: .* there, or correct the import\.$",
        ),
    ):
        with pytest.raises(ConfigurationError, match=why):
            ChildFactory("a", name, python, {}).make_first()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("CartPol-v1", "knows no environment 'CartPol-v1': .*CartPole.* Check the spelling"),
        ("Taxi-v2", r"Taxi-v2: .* deprecated. Please use `Taxi-v\d+` instead\.$"),
        ("no id", "knows no environment 'no id': Malformed .* Check the spelling"),
        ("pyproject.toml:", "pyproject.toml: ends with a colon. Behind it, name the class"),
        ("./tests/odd_envs.py", r"is a file. Also name the class .*odd_envs\.py:MyEnv\.$"),
        ("tests.odd_envs", r"but a file tests/odd_envs\.py. To use it, .*odd_envs\.py:MyEnv\.$"),
        ("openenv:http://localhost:1", r"the server runs the environment\. Omit --python\.$"),
        ("tests..envs:Plain", r"'tests\.\.envs' is not the name of a module"),
        ("NoGame/Pong-v5", "knows no environment 'NoGame/Pong-v5': Namespace NoGame not found"),
    ],
)
def test_the_error_about_a_name_without_an_environment_says_what_to_do(name: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        ChildFactory("a", name, sys.executable, {}).make_first()


OLD_GYM = """
import sys, types
gym = types.ModuleType("gym")
class Error(Exception): pass
class UnregisteredEnv(Error): pass
def make(name, **kwargs):
    raise Error(f"Attempted to look up malformed environment ID: {name.encode()!r}. (Currently...")
gym.error, gym.make = types.SimpleNamespace(Error=Error, UnregisteredEnv=UnregisteredEnv), make
sys.modules.update(gym=gym, gymnasium=None)
"""


def test_a_misspelt_class_is_named_with_old_gym_as_well(tmp_path: Path) -> None:
    (tmp_path / "oldie.py").write_text(OLD_GYM)
    why = r"^\S*oldie\.py:Nope: .*oldie\.py has no 'Nope', and does not .* Check the spelling\.$"
    with pytest.raises(ConfigurationError, match=why):
        ChildFactory("a", f"{tmp_path}/oldie.py:Nope", sys.executable, {}).make_first()


KEYWORDS = """
import gymnasium
class One(gymnasium.Env):
    observation_space = action_space = gymnasium.spaces.Discrete(3)
    def __init__(self, size, **more): self.inner(**more)
    def inner(self, speed=1): pass
class Two(One):
    def __init__(self, size, speed=1, render_mode=None): pass
class Calls(One):
    def __init__(self): self.inner(1, 2)
    def inner(self, a, b, c): pass
for kind in One, Two, Calls:
    gymnasium.register(f"{kind.__name__}-v0", kind)
"""


@pytest.mark.parametrize("name", ["One", "One-v0", "Two", "Two-v0"])
def test_a_wrong_keyword_is_named_without_a_traceback(name: str, tmp_path: Path) -> None:
    (tmp_path / "keywords.py").write_text(KEYWORDS)
    for kwargs, why in (
        ({"size": 1, "velocity": 2}, "takes no keyword argument 'velocity'"),
        ({}, "needs the keyword argument 'size'"),
    ):
        factory = ChildFactory("a", f"{tmp_path}/keywords.py:{name}", sys.executable, kwargs)
        remedy = " Check env_kwargs."  # they may be the learner's or the operator's
        for make, expected in (
            (factory.make_first, ""),  # the env agent adds what its operator can do
            (partial(factory.make, None, {}), remedy),
            (partial(factory.make_vector, 2, AutoresetMode.NEXT_STEP, None, {}), remedy),
        ):
            with pytest.raises(failure_reports.WrongKeywords) as caught:
                make()
            known = "; it takes size, speed" if name.startswith("Two") else ""
            assert str(caught.value) == f"keywords:{name} {why}{known}.{expected}"


@pytest.mark.parametrize("name", ["Calls", "Calls-v0"])
def test_a_call_of_the_constructor_is_not_about_keywords(name: str, tmp_path: Path) -> None:
    (tmp_path / "keywords.py").write_text(KEYWORDS)
    with pytest.raises(RaisedInChild, match="missing 1 required positional argument: 'c'"):
        ChildFactory("a", f"{tmp_path}/keywords.py:{name}", sys.executable, {}).make_first()


@pytest.mark.parametrize(
    "piece",
    [
        "missing 1 required ", "missing 1 required positional arguments: 'a", "missing 111111111",
        "got an unexpected keyword argument 'a", "takes no arguments", '  File "', "\n  File ",
    ],
)  # fmt: skip
def test_a_text_that_a_learner_chooses_is_searched_in_linear_time(piece: str) -> None:
    text = piece * 10_000
    error = child_errors.build(["builtins", "TypeError", text, text])
    begun = time.thread_time()
    assert not child_factory._wrong_keyword(error, {text}, PLAIN)
    assert time.thread_time() - begun < 1.0


def test_what_an_environment_makes_itself_is_no_id_of_the_operator(tmp_path: Path) -> None:
    (tmp_path / "nested.py").write_text(
        "import gymnasium\n"
        "def make(): return gymnasium.make('Missing-v0')\n"
        "gymnasium.register('Outer-v0', make)\n"
    )
    with pytest.raises(RaisedInChild, match="`Missing` doesn't exist"):
        ChildFactory("a", f"{tmp_path}/nested.py:Outer-v0", sys.executable, {}).make_first()


def test_an_id_needs_gymnasium_or_gym(bare_python: str) -> None:
    with pytest.raises(ConfigurationError, match="has neither gymnasium nor gym"):
        ChildFactory("a", "CartPole-v1", bare_python, {}).make_first()


@pytest.fixture
def namesakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the program's modules, which are also modules of the environment."""
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[3]}")
    names = [path.stem for path in PROGRAM.glob("[a-z]*.py")]
    for name in names:
        (tmp_path / f"{name}.py").write_text("from tests.plain_envs import Plain\n")
    return names


def test_a_file_is_loaded_with_the_modules_beside_it(
    make: Make, python: str, tmp_path: Path, namesakes: list[str]
) -> None:
    bases = ", ".join(f"{name}.Plain" for name in namesakes)
    (tmp_path / "mine.py").write_text(
        f"import {', '.join(namesakes)}\nassert len({{{bases}}}) == 1\n"
        f"class Mine({namesakes[0]}.Plain): pass\n"
    )
    before = others_compiled()
    env = make(f"{tmp_path}/mine.py:Mine", python)
    assert env.reset(seed=1)[1]["main"] is True
    assert others_compiled() <= before


def others_compiled() -> set[Path]:
    """Return what other interpreters have written beside the program."""
    return {*PROGRAM.rglob("*.pyc")} - {*PROGRAM.rglob(f"*.{sys.implementation.cache_tag}*")}


def test_warnings_about_calls_of_an_environment_are_logged_unless_the_operator_says_how(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outdated.py").write_text(
        "import warnings\nfrom tests.plain_envs import Plain\n\n"
        "def make():\n"
        "    warnings.warn('outdated', DeprecationWarning, stacklevel=2)\n"
        "    return Plain()\n"
    )
    for variable, is_logged in (("", True), ("ignore", False)):
        monkeypatch.setenv("PYTHONWARNINGS", variable)
        with structlog.testing.capture_logs() as logs:
            make(f"{tmp_path}/outdated.py:make", sys.executable).close()
        assert ("DeprecationWarning: outdated" in str(logs)) is is_logged


def test_close_closes_the_environment_and_ends_the_process(python: str, tmp_path: Path) -> None:
    factory = ChildFactory("a", PLAIN, python, {"text": str(tmp_path / "mark")})
    env = factory.make_first()
    pid = env.reset(seed=1)[1]["pid"]
    env.close()
    env.close()
    assert (tmp_path / "mark").read_text() == "closed\n"
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("discount", [0.0, 1.0])
def test_an_environment_of_dm_env_gives_what_it_gives_here(make: Make, discount: float) -> None:
    remote = make("tests.env_agent.adapters.test_foreign:Dm", sys.executable, discount=discount)
    local = foreign.DmEnv(Dm(discount=discount), None)
    assert remote.observation_space == local.observation_space
    assert remote.action_space == local.action_space
    assert_same(remote.reset(seed=3), local.reset(seed=3))
    for _ in range(5):
        action = local.action_space.sample()
        step = local.step(action)
        assert_same(remote.step(action), step)
        if step[2] or step[3]:
            assert_same(remote.reset(), local.reset())
    with pytest.raises(RaisedInChild, match=r"^The reset of Dm takes no options\.$") as raised:
        remote.reset(options={"a": 1})
    assert type(raised.value).__name__ == "TypeError"
