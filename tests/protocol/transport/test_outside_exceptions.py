"""An exception from a signal handler is not taken for the failure of a socket."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import FrameType

import pytest

from gymwire.protocol.outside_exceptions import is_from_signal_handler
from gymwire.protocol.transport.interface import Delivery
from gymwire.protocol.transport.private_folder import PrivateFolder
from gymwire.protocol.transport.stream import Stream
from gymwire.protocol.transport.unix import CAN_LISTEN, UnixDealer, UnixRouter

pytestmark = pytest.mark.skipif(not CAN_LISTEN, reason="this system's Unix sockets cannot do it")

ERRORS = [
    TimeoutError(),
    TimeoutError("too slow"),
    BlockingIOError(),
    BlockingIOError(errno.EAGAIN, "not now"),
    ConnectionResetError(errno.ECONNRESET, "of another socket"),
    MemoryError(),
    EOFError(),
    ValueError("of the handler"),
]
FRAME = bytes(100)


@pytest.fixture(params=ERRORS, ids=repr)
def alarm(request: pytest.FixtureRequest) -> Iterator[Exception]:
    """Return what the handler of SIGALRM raises."""
    error: Exception = request.param

    def handle(_number: int, _frame: FrameType | None) -> None:
        raise error

    before = signal.signal(signal.SIGALRM, handle)
    yield error
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def router() -> Iterator[UnixRouter]:
    folder = PrivateFolder()
    made = UnixRouter(f"unix://{folder.path}/s", ended=lambda _rid: None, tick_ms=20)
    yield made
    made.close()
    folder.remove()


@pytest.fixture
def dealer(router: UnixRouter) -> Iterator[UnixDealer]:
    made = UnixDealer(router.url)
    yield made
    made.close()


def raised_in(call: Callable[[], object], alarm: Exception) -> bool:
    """Repeat a call until the alarm ends one; return whether it does."""
    try:
        # On a busy machine, the alarm may already be due when this returns.
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        for _ in range(100):
            call()
    except type(alarm) as error:
        return error is alarm
    return False


def test_of_a_receive(dealer: UnixDealer, alarm: Exception) -> None:
    dealer.receive()  # the first one need not wait
    assert raised_in(lambda: dealer.receive(), alarm)


def test_of_a_send(dealer: UnixDealer, alarm: Exception) -> None:
    while dealer.send(bytes(1024 * 1024)):  # until the kernel accepts no more
        pass
    assert raised_in(lambda: dealer.send(FRAME, wait=True), alarm)


def test_a_listener_raises_it_too(router: UnixRouter, dealer: UnixDealer, alarm: Exception) -> None:
    dealer.send(FRAME)
    while (received := router.receive()) is None:
        pass
    assert router.send(received[0], FRAME) is Delivery.DONE
    assert raised_in(lambda: router.receive(), alarm)


def test_a_lost_connection_is_no_exception(router: UnixRouter, dealer: UnixDealer) -> None:
    assert isinstance(dealer, Stream)
    router.close()
    while dealer.up:
        assert dealer.receive() is None


def method_handler(error: Exception) -> Callable[..., None]:
    class Owner:
        def handle(self, *_: object) -> None:
            def fail() -> None:
                raise error

            fail()

    return Owner().handle


def lambda_handler(error: Exception) -> Callable[..., None]:
    return lambda _number, _frame: [][1 if error else 0]


@pytest.mark.parametrize("made", [method_handler, lambda_handler])
def test_the_handler_of_a_signal_is_found(made: Callable[..., Callable[..., None]]) -> None:
    before = signal.signal(signal.SIGALRM, made(ValueError("x")))
    try:
        with pytest.raises((ValueError, IndexError)) as caught:
            signal.raise_signal(signal.SIGALRM)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert is_from_signal_handler(caught.value)


def test_other_exceptions_are_of_no_signal_handler() -> None:
    with pytest.raises(ValueError, match="x") as caught:
        method_handler(ValueError("x"))(signal.SIGALRM, None)
    assert not is_from_signal_handler(caught.value)


# Both signals arrive in one call of C, after which Python runs one handler after the other.
TOGETHER = """
import ctypes, signal
from gymwire.protocol.outside_exceptions import until_returned

c, numbers, mask = ctypes.CDLL(None), (10, 12), ctypes.create_string_buffer(256)
c.sigemptyset(mask)
calls = []

def expire(*_):
    raise TimeoutError

def call(raised):
    calls.append(type(raised))
    if not raised:
        c.pthread_sigmask(signal.SIG_UNBLOCK, mask, None)
    return "done"

signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
for number in numbers:
    signal.signal(number, expire)
    c.sigaddset(mask, number)
    signal.raise_signal(number)
assert until_returned(call) == "done"
assert calls == [type(None), TimeoutError], calls
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the numbers of signals are those of Linux")
def test_exceptions_of_two_signals_that_arrive_together_do_not_end_a_repeated_call() -> None:
    subprocess.run([sys.executable, "-c", TOGETHER], timeout=60, check=True)
