"""Taking turns between local channels and ZeroMQ."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from gymwire.broker.local_channels import ZMQ_CHECK_EVERY, LocalChannels
from gymwire.protocol.codec import PLAIN
from gymwire.protocol.messages import Ping
from gymwire.protocol.transport.dealer import Dealer
from gymwire.protocol.transport.router import Router
from gymwire.protocol.transport.unix import CAN_LISTEN, UnixDealer

pytestmark = pytest.mark.skipif(not CAN_LISTEN, reason="this system has no local channels")

ATTEMPTS = 100  # ticks for what must happen, on a machine that may be busy
PING = bytes(PLAIN.encode(Ping()))


@pytest.fixture
def router() -> Iterator[Router]:
    with contextlib.closing(Router(["tcp://127.0.0.1:*"])) as made:
        yield made


@pytest.fixture
def channels(router: Router) -> Iterator[LocalChannels]:
    with contextlib.closing(LocalChannels(router, max_channels=10, max_message=1000)) as made:
        yield made


@pytest.fixture
def near(channels: LocalChannels) -> Iterator[UnixDealer]:
    """A peer with a local channel."""
    with contextlib.closing(UnixDealer(channels.url)) as made:
        made.send(PING)
        received = next(filter(None, (channels.receive() for _ in range(ATTEMPTS))))
        channels.attach(received[0], b"\x01near", None)
        yield made


@pytest.fixture
def far(router: Router, channels: LocalChannels) -> Iterator[Dealer]:
    """A peer without one."""
    with contextlib.closing(Dealer(router.urls[0])) as made:
        assert any(made.send(PING, wait=True) for _ in range(ATTEMPTS))
        received = next(filter(None, (channels.receive() for _ in range(ATTEMPTS))))
        assert received[1] is not None
        while channels.receive() is not None:
            pass
        yield made


def test_zeromq_is_read_beside_a_busy_local_channel(
    channels: LocalChannels, near: UnixDealer, far: Dealer
) -> None:
    far.send(PING)
    assert any(channels._router.has_input() for _ in range(10_000))
    channels._router.may_have_unsignalled_input = False  # the frame arrived after the last call
    origins = []
    for _ in range(2 * ZMQ_CHECK_EVERY):
        near.send(PING)
        received = channels.receive()
        assert received is not None
        origins.append(received[1])
    assert sum(origin is not None for origin in origins) == 1


def test_a_local_channel_is_read_beside_a_busy_zeromq_connection(
    channels: LocalChannels, near: UnixDealer, far: Dealer
) -> None:
    for _ in range(50):
        far.send(PING)
    assert any(channels._router.has_input() for _ in range(10_000))
    near.send(PING)
    received = [channels.receive() for _ in range(4)]
    assert any(one is not None and one[1] is None for one in received)
