"""Recovery after the loss of an env agent, or of the learner's own process."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from typing import Any

import gymnasium
import pytest

from gymwire import ProxyEnv
from gymwire.learner_agent.client.recording import Recording
from gymwire.protocol.errors import (
    ConfigurationError,
    Denied,
    EnvironmentLost,
    MoveError,
    ReplayMismatch,
)
from tests.prefork import Forked
from tests.processes import Programs
from tests.sameness import assert_same

STEPS = 120
LAKE = ("--address", "lake", "--env", "FrozenLake-v1", "--max-sessions", "2")


def actions(number: int) -> int:
    return (number * 7) % 4


def local_trajectory(steps: int = STEPS) -> list[Any]:
    env = gymnasium.make("FrozenLake-v1")
    found: list[Any] = [env.reset(seed=5)]
    for number in range(steps):
        step = env.step(actions(number))
        found.append(step)
        if step[2] or step[3]:
            found.append(env.reset())
    env.close()
    return found


@pytest.mark.parametrize("killed_at", [0, 1, 50])
def test_an_episode_goes_on_at_another_agent_to_the_bit(programs: Programs, killed_at: int) -> None:
    _, url = programs.broker()
    first = programs.env_agent(url, *LAKE)
    with ProxyEnv("lake", url, on_lost="replay") as env:
        programs.env_agent(url, *LAKE)
        found: list[Any] = [env.reset(seed=5)]
        for number in range(STEPS):
            if number == killed_at:
                first.kill()
            step = env.step(actions(number))
            found.append(step)
            if step[2] or step[3]:
                found.append(env.reset())
    assert_same(found, local_trajectory())


def test_a_replay_without_another_agent_gives_up_after_timeout_s(programs: Programs) -> None:
    _, url = programs.broker()
    agent = programs.env_agent(url, *LAKE)
    with ProxyEnv("lake", url, on_lost="replay", timeout_s=1.0, wait_s=600.0) as env:
        env.reset(seed=5)
        agent.kill()
        with pytest.raises(EnvironmentLost, match="for 1 s no other agent could take the episode"):
            env.step(0)


def test_without_replay_the_loss_is_an_error(programs: Programs) -> None:
    _, url = programs.broker()
    agent = programs.env_agent(url, *LAKE)
    with ProxyEnv("lake", url) as env:
        env.reset(seed=5)
        agent.kill()
        with pytest.raises(EnvironmentLost, match="'lake'"):
            env.step(0)


def test_an_unknown_on_lost_is_refused() -> None:
    with pytest.raises(ConfigurationError, match='"raise" or "replay"'):
        ProxyEnv("lake", "tcp://127.0.0.1:1", on_lost="forget")


def test_a_replay_with_another_result_names_the_step() -> None:
    recording = Recording()
    recording.reset(None, 1, None, (0, {}))
    recording.step(b"\x01", (1, 0.0, False, False, {}))
    recording.step(b"\x01", (2, 0.0, False, False, {}))
    answers: Iterator[Any] = iter([(1, 0.0, False, False, {}), (3, 0.0, False, False, {})])
    with pytest.raises(ReplayMismatch, match=r"its step 2 had a different result"):
        recording.replay(lambda seed, options: (0, {}), lambda action: next(answers), print)


def test_a_replay_sets_the_generator_between_the_steps() -> None:
    recording, seen = Recording(), list[Any]()
    recording.draw({"before": "an episode"})
    recording.reset(None, 1, None, (0, {}))
    for number in (1, 2):
        recording.draw({"state": number})
        recording.step(bytes([number]), number)
    kept = recording.position
    recording.draw({"state": 3})
    recording.position = kept  # as after an exception

    def step(action: int) -> int:
        seen.append(action)
        return action

    recording.replay(lambda seed, options: (0, {}), step, seen.append)
    assert seen == [{"state": 1}, 1, {"state": 2}, 2]


def test_a_replay_compares_types_too() -> None:
    recording = Recording()
    recording.reset(None, 1, None, (0, {}))
    with pytest.raises(ReplayMismatch, match="its reset"):
        recording.replay(lambda seed, options: (0.0, {}), lambda action: None, print)


LEARNER = """
import sys
from gymwire import ProxyEnv
env = ProxyEnv("lake", sys.argv[1])
env.reset(seed=5)
for number in range(3):
    env.step((number * 7) % 4)
token = env.session_token()
for number in range(3, 3 + int(sys.argv[2])):
    env.step((number * 7) % 4)
print(token.hex(), flush=True)
sys.stdin.read()
"""


def token_of_killed_learner(url: str, steps_after: int) -> bytes:
    command = ["-c", LEARNER, url, str(steps_after)]
    process = Forked(command, env=os.environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin, process.stdout:
        token = bytes.fromhex(process.stdout.readline().decode())
        process.kill()
        process.wait()
    return token


@pytest.mark.parametrize("steps_after", [0, 1])
def test_a_killed_learner_comes_back_in_the_middle_of_its_episode(
    programs: Programs, steps_after: int
) -> None:
    _, url = programs.broker()
    programs.env_agent(url, *LAKE)
    token = token_of_killed_learner(url, steps_after)
    with gymnasium.make("FrozenLake-v1") as local:
        local.reset(seed=5)
        for number in range(3):
            local.step(actions(number))
        with ProxyEnv.resume(token) as env:
            for number in range(3, 8):
                assert_same(env.step(actions(number)), local.step(actions(number)))


def test_an_old_token_is_refused(programs: Programs) -> None:
    _, url = programs.broker()
    programs.env_agent(url, *LAKE)
    token = token_of_killed_learner(url, 2)
    with pytest.raises(MoveError, match="This token is old"):
        ProxyEnv.resume(token)


def test_a_session_in_use_is_not_given_to_another(programs: Programs) -> None:
    _, url = programs.broker()
    programs.env_agent(url, *LAKE)
    with ProxyEnv("lake", url) as env:
        env.reset(seed=5)
        with pytest.raises(Denied, match="in use by another process"):
            ProxyEnv.resume(env.session_token())
        env.step(1)


def test_a_token_outlives_a_restart_of_the_broker(programs: Programs) -> None:
    broker, url = programs.broker()
    programs.env_agent(url, *LAKE)
    token = token_of_killed_learner(url, 0)
    broker.kill()
    programs.broker(url)
    with ProxyEnv.resume(token) as env:
        env.step(0)


def test_a_malformed_token_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="not a session token"):
        ProxyEnv.resume(b"\x80")
