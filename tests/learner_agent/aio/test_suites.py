"""Suites for blocking code, in calls of an event loop: the guarantees are the same."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import pytest

pytest.importorskip("anyio")
pytest.importorskip("greenlet")

import anyio

import gymwire.learner_agent
from gymwire.learner_agent.aio import proxy_env
from gymwire.learner_agent.aio.calls import run
from tests import test_exactly_once, wire
from tests.learner_agent import opcodes
from tests.learner_agent.aio.virtual import VirtualConnection
from tests.learner_agent.client import test_interrupted
from tests.learner_agent.proxies import test_outside_exceptions

EXACTLY_ONCE = [one for name, one in vars(test_exactly_once).items() if name.startswith("test_")]
AIO = str(Path(gymwire.learner_agent.__file__).parent / "aio")


def interruptions() -> list[Callable[[], None]]:
    """Return the tests of interrupted calls."""
    module, replay = test_outside_exceptions, test_outside_exceptions.REPLAY
    tests: list[Callable[[], None]] = [
        partial(module.test_a_call_is_neither_lost_nor_doubled, sessions, call)
        for sessions in (replay, 0)
        for call in (module.step, module.reset)
    ]
    return [
        *tests,
        partial(module.test_an_interrupted_close_can_be_called_again, 0),
        partial(module.test_an_interrupted_recovery_leaves_no_session_behind, replay),
    ]


INTERRUPTIONS = [
    *interruptions(),
    partial(
        test_interrupted.test_an_interrupted_step_is_neither_lost_nor_doubled,
        test_interrupted.single,
        None,
    ),
]
# Each event loop once; the loop does not matter to the many examples of a property.
CASES = [
    pytest.param(
        one,
        backend,
        id=f"{one.__name__}-{backend}",
        marks=[pytest.mark.thorough] if hasattr(one, "hypothesis") else [],
    )
    for one in EXACTLY_ONCE
    for backend in ("asyncio", "trio")
    if backend == "asyncio" or not hasattr(one, "hypothesis")
]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[VirtualConnection]:
    """The connections that a test has made: all of them are those of an event loop."""
    found: list[VirtualConnection] = []

    def connect(*args: Any, **kwargs: Any) -> VirtualConnection:
        found.append(VirtualConnection(*args, **kwargs))
        return found[-1]

    monkeypatch.setattr(wire, "BrokerConnection", connect)
    monkeypatch.delattr(proxy_env._Options, "CONNECTION")  # that of `in_memory` then
    for module in (test_interrupted, test_outside_exceptions):
        monkeypatch.setattr(module, "ProxyEnv", proxy_env.BlockingEnv)
    return found


@pytest.mark.parametrize(("test", "backend"), CASES)
def test_each_request_is_executed_once(
    test: Callable[..., None], backend: str, made: list[VirtualConnection]
) -> None:
    pytest.importorskip(backend)
    arguments = {"idle_s": 550.0} if "idle_s" in inspect.signature(test).parameters else {}
    anyio.run(lambda: run(test, **arguments), backend=backend)
    assert made


def leave_out_the_event_loops_part(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupt only the code that blocks elsewhere, too: event loops cancel tasks instead."""
    is_ours = module._is_ours

    def chosen(frame: FrameType | None) -> bool:
        return is_ours(frame) and not frame.f_code.co_filename.startswith(AIO)  # type: ignore[union-attr]

    monkeypatch.setattr(module, "_is_ours", chosen)


def name_of(test: partial[None]) -> str:
    """Return a name that is the same in each process."""
    return "-".join(getattr(one, "__name__", repr(one)) for one in (test.func, *_flat(test.args)))


def _flat(values: Iterable[object]) -> Iterator[object]:
    for value in values:
        yield from _flat(value) if isinstance(value, tuple) else [value]


@pytest.mark.parametrize("test", INTERRUPTIONS, ids=name_of)
def test_an_exception_from_outside_loses_nothing(
    test: Callable[..., None], made: list[VirtualConnection], monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_out_the_event_loops_part(opcodes, monkeypatch)
    leave_out_the_event_loops_part(test_interrupted, monkeypatch)
    anyio.run(lambda: run(test))
    assert made
