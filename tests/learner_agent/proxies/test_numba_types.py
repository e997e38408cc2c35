"""Numba, which is not installed here, refuses the generators of remote environments."""

from __future__ import annotations

import sys
from functools import singledispatch
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from gymwire.learner_agent.proxies.remote_generators import RemoteGenerators
from gymwire.protocol import generators
from tests.packaging.test_distributions import PYPROJECT

STATES = [generators.describe(np.random.default_rng(seed)) for seed in (1, 2)]


def remote_generators() -> RemoteGenerators:
    remote = RemoteGenerators(lambda: STATES, lambda states: None)
    remote.make(STATES)
    return remote


def load_numba(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a numba of which only `numba.extending.typeof_impl` exists; return this."""

    @singledispatch
    def typeof_impl(value: Any, context: Any) -> str:
        return "NumPyRandomGeneratorType"

    extending = ModuleType("numba.extending")
    vars(extending)["typeof_impl"] = typeof_impl
    monkeypatch.setitem(sys.modules, "numba", ModuleType("numba"))
    monkeypatch.setitem(sys.modules, "numba.extending", extending)
    return typeof_impl


def begin_to_compile() -> None:
    """Call what numba calls before it compiles for the first time."""
    group = "numba_extensions"
    for name, value in PYPROJECT["project"]["entry-points"][group].items():
        assert name == "init"  # numba ignores others
        EntryPoint(name, value, group).load()()


def test_numba_imported_before_a_generator_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):  # the second time it is another module
        typeof_impl = load_numba(monkeypatch)
        for generator in remote_generators().give():
            with pytest.raises(TypeError, match="draw with the generator's methods"):
                typeof_impl(generator, None)
        assert typeof_impl(np.random.default_rng(1), None)


def test_numba_imported_after_a_generator_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = remote_generators().give()[0]
    typeof_impl = load_numba(monkeypatch)
    begin_to_compile()
    with pytest.raises(TypeError, match="remote environment"):
        typeof_impl(generator, None)


def test_a_program_without_proxies_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, RemoteGenerators.__module__)
    typeof_impl = load_numba(monkeypatch)
    begin_to_compile()
    assert list(typeof_impl.registry) == [object]
    assert RemoteGenerators.__module__ not in sys.modules


def test_a_numba_without_generators_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    load_numba(monkeypatch)
    monkeypatch.setitem(sys.modules, "numba.extending", ModuleType("numba.extending"))
    assert len(remote_generators().give()) == 2
