"""Ctrl-C, SIGTERM and SIGHUP: whatever code they interrupt, they end the command."""

from __future__ import annotations

import _thread
import functools
import gc
import itertools
import signal
import threading
import weakref
from collections.abc import Callable

import pytest
import zmq

from gymwire.cli import interruption, keygen, main
from gymwire.cli.interruption import Interrupted, held, waiting
from gymwire.protocol.ending_signals import HANGUP


class Node:
    """An object that a weak reference can refer to."""


class Deleted:
    """An object whose `__del__` is interrupted."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __del__(self) -> None:
        signal.raise_signal(self._number)


def in_a_callback_of_a_weak_reference(number: int) -> None:
    node = Node()
    reference = weakref.ref(node, lambda _: signal.raise_signal(number))
    del node
    assert reference() is None


def in_del(number: int) -> None:
    Deleted(number)


def in_a_callback_within_del(number: int) -> None:
    class Outer:
        def __del__(self) -> None:
            in_a_callback_of_a_weak_reference(number)

    Outer()


def in_a_callback_of_the_garbage_collector(number: int) -> None:
    def interrupt(phase: str, _: object) -> None:
        gc.callbacks.remove(interrupt)
        signal.raise_signal(number)

    gc.callbacks.append(interrupt)
    gc.collect()


def in_the_deallocation_of_a_frame(number: int) -> None:
    # No Python code runs between the signal and the deallocation, which looks for signals.
    class Signalling:
        __del__ = staticmethod(functools.partial(_thread.interrupt_main, signal.Signals(number)))

    items = [zmq.Frame(b"data"), Signalling()]
    del items


def wait() -> None:
    threading.Event().wait()


def compute() -> None:
    for _ in itertools.repeat(None):
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, HANGUP])
@pytest.mark.parametrize(
    "interrupt",
    [
        in_a_callback_of_a_weak_reference,
        in_del,
        in_a_callback_within_del,
        in_a_callback_of_the_garbage_collector,
        in_the_deallocation_of_a_frame,
    ],
)
@pytest.mark.parametrize("go_on", [wait, compute])
def test_a_signal_where_python_drops_exceptions_ends_the_command(
    interrupt: Callable[[int], None],
    go_on: Callable[[], None],
    number: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if go_on is compute:  # as where threads cannot be signalled
        monkeypatch.delattr(signal, "pthread_kill", raising=False)
    signal.signal(HANGUP, signal.SIG_DFL)  # `nohup` lets all programs ignore it

    def command(*_: object) -> int:
        interrupt(number)
        go_on()
        return 0

    monkeypatch.setattr(keygen, "command", command)
    assert main(["keygen", "alice"]) == 128 + number
    assert capsys.readouterr().err == ""


def test_a_second_signal_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []

    def command(*_: object) -> int:
        in_del(signal.SIGINT)
        try:
            wait()
        finally:
            found.append(signal.getsignal(signal.SIGINT))
        return 0

    monkeypatch.setattr(keygen, "command", command)
    assert main(["keygen", "alice"]) == 128 + signal.SIGINT
    assert found == [signal.SIG_DFL]


def test_a_signal_that_is_held_raises_at_the_next_wait() -> None:
    done = []

    def write_and_wait() -> None:
        with held():
            signal.raise_signal(signal.SIGTERM)
            done.append("written")
            with waiting():
                done.append("waited")

    interruption.handle_signals()
    with pytest.raises(Interrupted) as caught:
        write_and_wait()
    assert (done, caught.value.status) == (["written"], 128 + signal.SIGTERM)


def test_a_signal_that_is_held_raises_at_the_end_of_the_block() -> None:
    done = []

    def write() -> None:
        with held():
            signal.raise_signal(signal.SIGINT)
            done.append("written")

    interruption.handle_signals()
    with pytest.raises(Interrupted):
        write()
    assert done == ["written"]


def test_a_wait_is_interrupted_and_what_follows_it_is_not() -> None:
    done = []

    def wait_and_save() -> None:
        with held():
            try:
                with waiting():
                    signal.raise_signal(signal.SIGINT)
                    done.append("waited")
            finally:
                interruption.handle_signals()
                signal.raise_signal(signal.SIGINT)
                done.append("saved")

    interruption.handle_signals()
    with pytest.raises(Interrupted):
        wait_and_save()
    assert done == ["saved"]
