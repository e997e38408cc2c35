from __future__ import annotations

import builtins
import traceback

import gymnasium.error
import pytest

from gymwire.learner_agent.client.failures import error_for
from gymwire.protocol import errors
from gymwire.protocol.errors import EnvironmentFailed, GymwireError, Refused
from gymwire.protocol.messages import Code, Error

CODES = sorted(value for name, value in vars(Code).items() if name.isupper())
BUILTIN = sorted(
    name
    for name, kind in vars(builtins).items()
    if isinstance(kind, type) and issubclass(kind, BaseException)
)
GYMNASIUM = sorted(
    name
    for name, kind in vars(gymnasium.error).items()
    if isinstance(kind, type) and issubclass(kind, Exception)
)


def failed(remote_type: str, text: str = "text") -> GymwireError:
    details = {"type": remote_type, "traceback": "Traceback …"}
    return error_for(Error(Code.ENVIRONMENT_FAILED, text, details))


@pytest.mark.parametrize("code", [*CODES, "unheard-of"])
def test_every_code_becomes_an_error_of_ours_with_its_text(code: str) -> None:
    error = error_for(Error(code, "what was wrong"))
    assert isinstance(error, GymwireError)
    assert "what was wrong" in str(error)


def test_a_code_of_a_later_version_is_a_refusal() -> None:
    assert type(error_for(Error("unheard-of", "no"))) is Refused


@pytest.mark.parametrize("name", BUILTIN)
def test_exceptions_of_python_become_environment_failed(name: str) -> None:
    error = failed(name)
    assert isinstance(error, EnvironmentFailed)
    assert (error.remote_type, error.remote_traceback) == (name, "Traceback …")
    said = traceback.format_exception_only(error)[0]
    assert said.count(name) == 1
    assert "text" in said


@pytest.mark.parametrize("name", GYMNASIUM)
def test_exceptions_of_gymnasium_become_environment_failed(name: str) -> None:
    assert isinstance(failed(f"gymnasium.error.{name}"), EnvironmentFailed)


@pytest.mark.parametrize(
    "kind", [AssertionError, ValueError, KeyError, RuntimeError, ZeroDivisionError, OSError]
)
def test_a_failure_can_be_caught_by_its_original_type(kind: type[Exception]) -> None:
    assert isinstance(failed(kind.__name__), kind)
    assert isinstance(failed("gymnasium.error.InvalidAction"), gymnasium.error.InvalidAction)


@pytest.mark.parametrize(
    "name",
    ["KeyboardInterrupt", "SystemExit", "print", "__import__", "", "os.error", "a.ValueError"],
)
def test_only_plain_exceptions_of_python_and_gymnasium_are_taken_by_name(name: str) -> None:
    assert type(failed(name)) is EnvironmentFailed


@pytest.mark.parametrize(
    ("remote_type", "text", "shown"),
    [
        ("AssertionError", "7", "failures.AssertionError: 7"),
        ("AssertionError", "", "failures.AssertionError: "),
        ("KeyError", "'seven'", "failures.KeyError: 'seven'"),
        ("my.Error", "7", "errors.EnvironmentFailed: my.Error: 7"),
        ("my.Error", "", "errors.EnvironmentFailed: my.Error"),
        ("", "It broke.", "errors.EnvironmentFailed: It broke."),
        ("", "", "errors.EnvironmentFailed: It raised an exception."),
    ],
)
def test_a_failure_shows_its_type_once_and_its_text(
    remote_type: str, text: str, shown: str
) -> None:
    said = traceback.format_exception_only(failed(remote_type, text))[0]
    assert said.partition("\n")[0].endswith(shown)


def test_a_refused_attribute_is_an_attribute_error() -> None:
    assert isinstance(error_for(Error(Code.ATTRIBUTE_DENIED, "no")), AttributeError)
    assert type(error_for(Error(Code.SESSION_LOST, "no"))) is errors.EnvironmentLost


def test_the_failed_environment_of_a_vector_is_named() -> None:
    details = {"type": "ValueError", "env_index": 3}
    error = error_for(Error(Code.ENVIRONMENT_FAILED, "no", details))
    assert isinstance(error, EnvironmentFailed)
    assert error.env_index == 3
