from __future__ import annotations

import re

import gymnasium.error

from gymwire.protocol import errors
from gymwire.protocol.errors import EncodingError, EnvironmentFailed, GymwireError


def defined() -> dict[str, type[Exception]]:
    return {
        name: found
        for name, found in vars(errors).items()
        if isinstance(found, type)
        and issubclass(found, Exception)
        and found.__module__ == errors.__name__
    }


def test_the_exports_are_the_classes() -> None:
    assert sorted(errors.__all__) == sorted(defined())


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    drawn: dict[str, str | None] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"    ([│├└─ ]*)([A-Z]\w+)", line)
        if found is None:
            continue
        depth = len(found[1])
        above = [(at, name) for at, name in above if at < depth]
        drawn[found[2]] = above[-1][1] if above else None
        above.append((depth, found[2]))
    built = {
        name: next(
            (base.__name__ for base in kind.__bases__ if issubclass(base, GymwireError)), None
        )
        for name, kind in defined().items()
    }
    assert drawn == built


def test_each_error_has_one_root() -> None:
    assert all(issubclass(kind, GymwireError) for kind in defined().values())


def test_errors_that_gymnasium_knows_are_its_own_too() -> None:
    assert issubclass(errors.ResetNeeded, gymnasium.error.ResetNeeded)
    assert issubclass(errors.EnvironmentClosed, gymnasium.error.ClosedEnvironmentError)
    assert issubclass(errors.AttributeDenied, AttributeError)


def test_an_encoding_error_knows_the_place() -> None:
    assert EncodingError("text", path="info[0]").path == "info[0]"


def test_a_failed_environment_shows_its_traceback() -> None:
    error = EnvironmentFailed("ValueError: no", remote_type="ValueError", remote_traceback="T\n")
    assert str(error) == "ValueError: no\n\nTraceback at the env agent:\nT"
    assert str(EnvironmentFailed("no")) == "no"
