"""`gymwire serve --python`: environments in processes with another interpreter."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from gymwire import ProxyEnv, ProxyVectorEnv
from gymwire.protocol.errors import (
    AttributeDenied,
    ConfigurationError,
    EnvironmentFailed,
    EnvironmentLost,
)
from tests.interpreters import bare
from tests.processes import Program, Programs, programs
from tests.sameness import assert_same
from tests.system.test_pools import eventually, rows

pytestmark = pytest.mark.usefixtures("patient")

PATHS = ["never", "always"]  # relayed and direct


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter without packages."""
    return bare(tmp_path_factory.mktemp("bare"))


@pytest.fixture(scope="module")
def served(python: str) -> Iterator[tuple[Program, str]]:
    """An env agent with three slots for the plain environment, and the broker's URL."""
    with programs() as started:
        url = started.broker()[1]
        agent = started.env_agent(
            *(url, "--address", "plain", "--env", "tests.plain_envs:Plain", "--python", python),
            *("--max-sessions", "3", "--direct", "host", "--expose", "scaled"),
        )
        yield agent, url


def open_plain(url: str, path: str) -> ProxyEnv:
    return ProxyEnv("plain", url, direct=path, wait_s=20.0, render_mode="ansi")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("action", "how"), [(5, "exit status 5"), (6, "SIGSEGV"), (9, "SIGKILL")])
def test_the_end_of_a_process_ends_its_session_only(
    served: tuple[Program, str], path: str, action: int, how: str
) -> None:
    _, url = served
    with (
        contextlib.closing(open_plain(url, path)) as env,
        contextlib.closing(open_plain(url, path)) as other,
    ):
        other.reset(seed=1)
        pids = set()
        for _ in range(4):  # more often than there are slots
            pids.add(env.reset(seed=1)[1]["pid"])
            with pytest.raises(EnvironmentLost, match=how):
                env.step(np.int64(action))
            assert other.step(np.int64(0))[1] == 0.0
        assert len(pids) == 4


@pytest.mark.parametrize("path", PATHS)
def test_a_process_that_ends_between_two_requests_is_reported(
    served: tuple[Program, str], path: str
) -> None:
    agent, url = served

    def reason() -> str | None:
        reasons = [str(row["why"]) for row in rows(agent, "session lost")]
        return next((why for why in reasons if "SIGKILL" in why), None)

    with contextlib.closing(open_plain(url, path)) as env:
        os.kill(env.reset(seed=1)[1]["pid"], signal.SIGKILL)
        assert eventually(reason, "the end of the session")
        with pytest.raises(EnvironmentLost, match=r"SIGKILL|not know this session"):
            env.step(np.int64(0))
        assert env.reset(seed=1)[1]["main"] is True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_all_processes_of_a_job_ends_no_process_of_an_environment(
    served: tuple[Program, str], number: signal.Signals
) -> None:
    _, url = served
    with contextlib.closing(open_plain(url, "never")) as env:
        pid = env.reset(seed=1)[1]["pid"]
        os.kill(pid, number)
        assert env.step(np.int64(0))[1] == 0.0
        assert env.reset(seed=1)[1]["pid"] == pid


def test_a_step_that_holds_the_interpreter_silences_nobody(served: tuple[Program, str]) -> None:
    _, url = served
    with contextlib.closing(open_plain(url, "never")) as held:
        pid = held.reset(seed=1)[1]["pid"]
        failures: list[BaseException] = []

        def step() -> None:
            try:
                held.step(np.int64(7))
            except EnvironmentLost as error:
                failures.append(error)

        thread = threading.Thread(target=step)
        thread.start()
        for _ in range(5):
            with contextlib.closing(open_plain(url, "never")) as env:
                env.reset(seed=1)
                assert env.step(np.int64(0))[1] == 0.0
        os.kill(pid, signal.SIGKILL)
        thread.join()
        assert [type(error) for error in failures] == [EnvironmentLost]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_process_in_a_step_ends_with_its_env_agent(
    programs: Programs, python: str, number: signal.Signals
) -> None:
    url = programs.broker()[1]
    agent = programs.env_agent(
        url, "--address", "plain", "--env", "tests.plain_envs:Plain", "--python", python
    )
    with contextlib.closing(open_plain(url, "never")) as env:
        pid = env.reset(seed=1)[1]["pid"]

        def step() -> None:
            with contextlib.suppress(EnvironmentLost):
                env.step(np.int64(7))

        thread = threading.Thread(target=step)
        thread.start()

        def is_in_call() -> bool | None:
            printed = [row["text"] for row in rows(agent, "environment printed")]
            return "holds the interpreter" in printed or None

        eventually(is_in_call, "a call that holds the interpreter")
        agent.process.send_signal(number)
        agent.wait()
        eventually(lambda: not Path(f"/proc/{pid}/fd/0").exists() or None, "its end")
        thread.join()


def test_exceptions_attributes_and_rendering_pass(served: tuple[Program, str]) -> None:
    agent, url = served
    with contextlib.closing(open_plain(url, "never")) as env:
        env.reset(seed=1)
        with pytest.raises(EnvironmentFailed, match="not to my taste") as caught:
            env.step(np.int64(3))
        assert caught.value.remote_type == "tests.plain_envs.Peculiar"
        assert "plain_envs.py" in caught.value.remote_traceback
        assert env.get_wrapper_attr("scaled")(2.0, offset=1.0) == 3.0
        with pytest.raises(AttributeDenied):
            env.get_wrapper_attr("text")
        assert env.render() == "step 1"
        assert env.metadata["render_fps"] == 7
        env.step(np.int64(2))

    def printed() -> bool | None:
        texts = {(row["level"], row["text"]) for row in rows(agent, "environment printed")}
        return {("info", "first line"), ("warning", "to the error output")} <= texts or None

    assert eventually(printed, "what the environment printed")


def test_an_unknown_keyword_is_named(served: tuple[Program, str]) -> None:
    with pytest.raises(EnvironmentFailed, match="unexpected keyword argument 'wings'"):
        ProxyEnv("plain", served[1], env_kwargs={"wings": 2})


@pytest.mark.parametrize("path", PATHS)
def test_a_gymnasium_environment_equals_a_local_one(programs: Programs, path: str) -> None:
    url = programs.broker()[1]
    programs.env_agent(
        *(url, "--address", "cart", "--env", "CartPole-v1", "--python", sys.executable),
        *("--direct", "host"),
    )
    local = gymnasium.make("CartPole-v1", render_mode="rgb_array")
    with contextlib.closing(ProxyEnv("cart", url, direct=path, render_mode="rgb_array")) as env:
        assert env.spec is not None
        assert env.observation_space == local.observation_space
        assert_same(env.reset(seed=5), local.reset(seed=5))
        env.action_space.seed(1)
        for _ in range(100):
            action = env.action_space.sample()
            step = local.step(action)
            assert_same(env.step(action), step)
            if step[2]:
                assert_same(env.reset(), local.reset())
        assert_same(env.render(), local.render())
        state = local.unwrapped.np_random.bit_generator.state
        assert env.np_random.bit_generator.state == state
    for mode in ("sync", "vector_entry_point"):
        alike = gymnasium.make_vec("CartPole-v1", 3, vectorization_mode=mode)
        modes = {"vectorization_mode": mode}
        vector = ProxyVectorEnv("cart", 3, url, direct=path, env_kwargs=modes)
        with contextlib.closing(vector):
            assert_same(vector.reset(seed=5), alike.reset(seed=5))
            alike.action_space.seed(1)
            for _ in range(100):
                actions = alike.action_space.sample()
                assert_same(vector.step(actions), alike.step(actions))


def test_conversions_are_logged_and_refused_as_without_another_interpreter(
    programs: Programs,
) -> None:
    url = programs.broker()[1]
    there = ("--python", sys.executable)
    logged, refused = [], []
    for index, options in enumerate(((), there)):
        slots = ("--max-sessions", "2")  # each in a thread of its own
        served = (url, "--env", "tests.rich_envs:Rich", *slots, *options, "--address")
        agent = programs.env_agent(*served, f"rich{index}")
        programs.env_agent(*served, f"strict{index}", "--strict-infos")
        with (
            contextlib.closing(ProxyEnv(f"rich{index}", url)) as first,
            contextlib.closing(ProxyEnv(f"rich{index}", url)) as second,
        ):
            for env in (first, second, first):
                assert env.reset(seed=1)[1]["enum"] == "red"
        agent.process.send_signal(signal.SIGTERM)
        agent.wait()
        logged.append([(row["type"], row["becomes"]) for row in rows(agent, "values converted")])
        with (
            contextlib.closing(ProxyEnv(f"strict{index}", url)) as env,
            pytest.raises(EnvironmentFailed) as caught,
        ):
            env.reset(seed=1)
        refused.append(str(caught.value))
    assert logged[0] == logged[1]
    assert len(set(logged[1])) == len(logged[1])
    assert ("tests.rich_envs.Colour", "value") in logged[1]
    assert refused[0].replace("strict0", "strict1") == refused[1]
    assert 'info["enum"] is a tests.rich_envs.Colour, which cannot be serialized' in refused[1]


@pytest.mark.parametrize("path", PATHS)
def test_a_vector_of_its_own_without_any_package(
    programs: Programs, python: str, path: str
) -> None:
    url = programs.broker()[1]
    programs.env_agent(
        *(url, "--address", "flock", "--env", "tests.plain_envs:make_flock", "--python", python),
        *("--direct", "host", "--expose", "average"),
    )
    with contextlib.closing(ProxyVectorEnv("flock", 2, url, direct=path, wait_s=20.0)) as vector:
        observations, infos = vector.reset(seed=[4, 5], options={"first": 1})
        assert_same(observations, np.array([[1, 0.5], [1, 0.5]], np.float32))
        assert infos["seed"] == [4, 5]
        rewards = vector.step(np.array([0, 2]))[1]
        assert_same(rewards, np.array([0.0, 2.0]))
        assert vector.call("average", 2.0) == (4.0,)
        with pytest.raises(EnvironmentFailed, match="eight is not to my taste") as caught:
            vector.step(np.array([8, 0]))
        assert caught.value.remote_type == "tests.plain_envs.Peculiar"
        with pytest.raises(EnvironmentLost, match="SIGKILL"):
            vector.step(np.array([9, 0]))
        assert vector.reset(seed=1)[1]["birds"]["pid"] != infos["birds"]["pid"]
        assert_same(vector.step(np.array([0, 1]))[1], np.array([0.0, 1.0]))


def test_there_is_a_slot_for_each_processor(programs: Programs, python: str) -> None:
    url = programs.broker()[1]
    agent = programs.env_agent(
        url, "--address", "plain", "--env", "tests.plain_envs:Plain", "--python", python
    )
    assert rows(agent, "offering")[0]["slots"] == len(os.sched_getaffinity(0))


def test_spaces_without_python_and_wrappers_with_it_are_an_error() -> None:
    from gymwire.env_agent.config import service

    with pytest.raises(ConfigurationError, match=r"^Only .* Also give `python` \(--python\), or"):
        service(address="a", env="CartPole-v1", spaces="a:b")
    with pytest.raises(ConfigurationError, match=r"^.* Leave `wrap` \(--wrap\) out"):
        service(address="a", env="CartPole-v1", python="p", wrap=("a:b",))
