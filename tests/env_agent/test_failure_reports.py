"""What a learner reads about a failure whose cause is known."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from gymwire.env_agent.failure_reports import WrongKeywords, open_failed, request_failed
from gymwire.errors import ConfigurationError

REMEDY = "The environment uses signals, which only the main thread of a process may. Start the env"


def handle_by_asyncio() -> None:
    loop = asyncio.new_event_loop()
    try:
        loop.add_signal_handler(signal.SIGUSR2, lambda: None)
    finally:
        loop.close()


def handle_and_wrap() -> None:
    try:
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    except ValueError as error:
        raise KeyError("no handler") from error


def handle_and_fail_again() -> None:
    try:
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    except ValueError:
        raise OSError("It broke.")  # noqa: B904 - as careless environments do


def raised_in_another_thread(call: Callable[[], object]) -> BaseException:
    with ThreadPoolExecutor(1) as executor:
        error = executor.submit(call).exception()
    assert error is not None
    return error


@pytest.mark.parametrize(
    "call",
    [
        lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN),
        lambda: signal.set_wakeup_fd(-1),
        handle_by_asyncio,
        handle_and_wrap,
        handle_and_fail_again,
    ],
    ids=["signal", "wakeup", "asyncio", "wrapped", "failed again"],
)
def test_the_use_of_signals_in_a_thread_names_its_remedy(call: Callable[[], object]) -> None:
    error = raised_in_another_thread(call)
    for report in (request_failed(error, None), open_failed("lab/x", error)):
        assert REMEDY in report.text
        assert "--threads 1" in report.text
        assert ".." not in report.text


@pytest.mark.parametrize(
    "error",
    [
        ValueError("seven"),
        RuntimeError("it broke"),
        KeyError("signal"),
        threading.BrokenBarrierError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_other_failures_have_no_remedy(error: BaseException) -> None:
    assert "--threads" not in request_failed(error, None).text


def test_a_chain_of_exceptions_may_be_a_circle() -> None:
    one, other = ValueError("one"), ValueError("other")
    one.__context__, other.__context__ = other, one
    assert request_failed(one, None).text == "one"


def test_wrong_keyword_arguments_are_to_be_corrected() -> None:
    report = open_failed("lab/x", WrongKeywords("there is no 'siez'; it takes 'size'."))
    assert report.text.endswith("'size'. Correct env_kwargs (--env-kwargs).")


def test_an_error_of_gymwire_itself_has_no_traceback() -> None:
    report = open_failed("lab/x", ConfigurationError("Open it with ProxyAECEnv."))
    assert report.text == "The environment at 'lab/x' could not be made: Open it with ProxyAECEnv."
    assert report.details["traceback"] == ""
