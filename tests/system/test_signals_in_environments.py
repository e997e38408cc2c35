"""An environment that uses signals works in processes of its own, and says so elsewhere."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

import pytest

from gymwire import ProxyEnv
from gymwire.protocol.errors import EnvironmentFailed, RequestTimeout
from gymwire.protocol.messages import Act
from tests.processes import Program, Programs, programs

SERVED = ("--env", "tests.odd_envs:Signalling")


@pytest.fixture(scope="module")
def broker() -> Iterator[str]:
    with programs() as started:
        _, url = started.broker()
        started.env_agent(url, "--address", "threads", *SERVED)
        started.env_agent(url, "--address", "one", *SERVED, "--threads", "1")
        started.env_agent(url, "--address", "workers", *SERVED, "--threads", "1", "--workers", "2")
        yield url


@pytest.fixture
def started() -> Iterator[Programs]:
    with programs(finalized=True) as made:
        yield made


def serve(started: Programs, env: str, *options: str) -> tuple[Program, str]:
    """Start a broker and an env agent; return the latter, and the URL."""
    _, url = started.broker()
    return started.env_agent(
        url, "--address", "odd", "--env", f"tests.system.signal_envs:{env}", *options
    ), url


def step_together(broker: str, address: str) -> None:
    """Step two sessions that are open at the same time."""
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            env = stack.enter_context(contextlib.closing(ProxyEnv(address, broker, wait_s=20)))
            env.reset(seed=1)
            env.step(1)


def test_a_session_in_another_thread_names_the_remedy(broker: str) -> None:
    with pytest.raises(EnvironmentFailed, match="Start the env agent with --threads 1"):
        step_together(broker, "threads")


@pytest.mark.parametrize("address", ["one", "workers"])
def test_the_remedy_works(broker: str, address: str) -> None:
    step_together(broker, address)


def test_a_timer_that_goes_off_between_two_requests_ends_nothing(started: Programs) -> None:
    agent, url = serve(started, "Alarmed")
    with ProxyEnv("odd", url) as env:
        env.reset(seed=1)
        assert agent.wait_for("exception between requests ignored")["error"] == (
            "TimeoutError: the time is over"
        )
        assert env.step(1)[0] == 1
        ProxyEnv("odd", url).close()
    assert "Traceback" not in "".join(agent.output)


def test_a_timer_that_goes_off_in_the_handling_of_a_request_is_not_called_a_bug(
    started: Programs,
) -> None:
    agent, url = serve(started, "Late")
    with ProxyEnv("odd", url) as env:
        env.reset(seed=1)
        failed = ""
        for _ in range(20_000):
            try:
                env.step(1)
            except EnvironmentFailed as error:
                failed = str(error)
                if "signal handler" in failed:  # else it hit the end of the step itself
                    break
    raised = "a signal handler of an environment raised TimeoutError: the time is over."
    assert f"The env agent failed to handle ACT, because {raised}" in failed
    assert "cancel its timers" in failed
    logged = agent.wait_for("request failed, a signal handler raised")
    assert logged["error"] == "TimeoutError: the time is over"
    assert "a bug in gymwire" not in "".join(agent.output)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("handler", ["raises", "returns", "none"])
def test_the_timer_of_an_environment_does_not_decide_the_exit_status(
    started: Programs, handler: str, number: signal.Signals
) -> None:
    agent, url = serve(started, "Timed", "--env-kwargs", f'{{"handler": "{handler}"}}')
    env = ProxyEnv("odd", url)
    env.reset(seed=1)
    if number == signal.SIGTERM:
        env.close()
        assert agent.wait_for("session closed")
    agent.process.send_signal(number)
    assert agent.wait() == 0, agent.output
    env.close()


@pytest.mark.parametrize("ignores", ["true", "false"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_environment_that_removes_signal_handlers_does_not_keep_its_agent_from_ending(
    started: Programs, number: signal.Signals, ignores: str
) -> None:
    agent, url = serve(
        started, "Unstoppable", "--env-kwargs", f'{{"ignores": {ignores}}}', "--grace", "0.5"
    )
    env = ProxyEnv("odd", url)
    env.reset(seed=1)
    with pytest.raises(RequestTimeout):
        env._session.request(Act(1), timeout_s=0.1)
    agent.process.send_signal(number)
    assert agent.wait() == 1
    assert "request 2 of session" in str(agent.wait_for("cut off")["running"])
    assert agent.wait_for("signal handler restored")["signal"] in ("SIGINT", "SIGTERM")
    env.close()


def test_a_process_that_an_environment_forks_does_not_answer_in_its_place(
    started: Programs,
) -> None:
    _, url = serve(started, "Forking")
    with contextlib.ExitStack() as stack:
        for direct in ("never", "auto"):  # the first session is in the main thread
            env = stack.enter_context(ProxyEnv("odd", url, direct=direct))
            env.reset(seed=1)
            assert [env.step(action)[0] for action in range(5)] == [0, 0, 7, 1, 1]
