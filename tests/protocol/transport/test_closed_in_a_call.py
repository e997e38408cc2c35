"""A connection that a signal handler closes during a call."""

from __future__ import annotations

import contextlib
import itertools
import signal
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from gymwire.protocol.errors import EnvironmentClosed
from gymwire.protocol.transport.dealer import Dealer
from gymwire.protocol.transport.polling import wait_among
from tests.learner_agent.opcodes import Interruption

pytestmark = pytest.mark.skipif(
    not hasattr(signal, "setitimer"), reason="this system has no timer signals"
)


@pytest.fixture
def dealer() -> Iterator[Dealer]:
    made = Dealer("tcp://127.0.0.1:1")

    def close(*_: object) -> None:
        made.close()

    former = signal.signal(signal.SIGALRM, close)
    yield made
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    signal.signal(signal.SIGALRM, former)


@pytest.mark.parametrize(
    "call",
    [
        lambda dealer: dealer.receive(),
        lambda dealer: dealer.poll(10.0),
        lambda dealer: dealer.poll(),
        lambda dealer: dealer.send(b"x"),
        lambda dealer: dealer.send(bytes(1024 * 1024), wait=True),
    ],
)
def test_each_call_of_a_connection_says_that_it_was_closed(
    dealer: Dealer, call: Callable[[Dealer], object]
) -> None:
    def call_for_ever() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.03)
        while True:
            call(dealer)

    with pytest.raises(EnvironmentClosed, match=r"connection to .* has been closed"):
        call_for_ever()


def test_waiting_for_several_connections_ends_when_one_of_them_is_closed(dealer: Dealer) -> None:
    other = Dealer("tcp://127.0.0.1:1")

    def wait_for_ever() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.03)
        while True:
            wait_among([dealer, other], 100.0)

    with contextlib.closing(other), pytest.raises(EnvironmentClosed):
        wait_for_ever()


@pytest.mark.parametrize(
    "call", [Dealer.close, lambda dealer: dealer.close(0.1), Dealer.link_events]
)
def test_a_close_at_any_instruction_of_a_call_does_no_harm(
    call: Callable[[Dealer], object],
) -> None:
    for instruction in itertools.count():
        made = Dealer("tcp://127.0.0.1:1")
        interruption = Interruption(instruction, action=partial(made.close, 0.1))
        interruption.run(partial(call, made))
        made.close(0.1)
        assert made.link_events() == []
        if not interruption.where:
            return
