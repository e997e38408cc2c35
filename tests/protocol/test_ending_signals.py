"""An event that signal handlers set."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

from gymwire.protocol.ending_signals import StopEvent
from tests.interrupted_lines import interrupt


def test_waiting_ends_when_the_event_is_set() -> None:
    event = StopEvent()
    assert not event.is_set()
    assert not event.wait(0.0)
    event.set()
    assert event.is_set()
    for _ in range(2):  # it stays set
        assert event.wait(60.0)
    assert event.is_set()


def test_a_handler_may_interrupt_its_methods() -> None:
    for name in ("set", "wait"):
        for line in itertools.count():
            event = StopEvent()
            methods: dict[str, Callable[[], object]]
            methods = {"set": event.set, "wait": partial(event.wait, 0.001)}
            if not interrupt(line, methods[name], event.set):
                break
            assert event.wait(60.0)
        assert line > 0
