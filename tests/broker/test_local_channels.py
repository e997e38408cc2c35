"""Whose turn it is: the lanes' or ZeroMQ's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from gymwire.broker.local_channels import LOOK_EVERY, Lanes
from gymwire.broker.tables import Peer
from gymwire.protocol.codec import PLAIN
from gymwire.protocol.messages import Ping, Role
from gymwire.protocol.transport.dealer import Dealer
from gymwire.protocol.transport.router import Router
from gymwire.protocol.transport.unix import CAN_LISTEN, UnixDealer

pytestmark = pytest.mark.skipif(not CAN_LISTEN, reason="this system has no lanes")

ATTEMPTS = 100  # ticks for what must happen, on a machine that may be busy
PING = bytes(PLAIN.encode(Ping()))


@pytest.fixture
def router() -> Iterator[Router]:
    with contextlib.closing(Router(["tcp://127.0.0.1:*"])) as made:
        yield made


@pytest.fixture
def lanes(router: Router) -> Iterator[Lanes]:
    with contextlib.closing(Lanes(router, max_lanes=10, max_message=1000)) as made:
        yield made


@pytest.fixture
def near(lanes: Lanes) -> Iterator[UnixDealer]:
    """One with a lane."""
    with contextlib.closing(UnixDealer(lanes.url)) as made:
        made.send(PING)
        received = next(filter(None, (lanes.receive() for _ in range(ATTEMPTS))))
        peer = Peer(b"\x01near", Role.LEARNER, b"", "", "", "", None, 0)
        lanes.open(received[0], peer)
        yield made


@pytest.fixture
def far(router: Router, lanes: Lanes) -> Iterator[Dealer]:
    """One without."""
    with contextlib.closing(Dealer(router.urls[0])) as made:
        assert any(made.send(PING, wait=True) for _ in range(ATTEMPTS))
        received = next(filter(None, (lanes.receive() for _ in range(ATTEMPTS))))
        assert received[1] is not None
        while lanes.receive() is not None:
            pass
        yield made


def test_who_comes_by_zeromq_is_heard_beside_a_lane_that_never_rests(
    lanes: Lanes, near: UnixDealer, far: Dealer
) -> None:
    far.send(PING)
    assert any(lanes._router.has_input() for _ in range(10_000))
    lanes._router.may_have_unsignalled_input = False  # it came after the last call
    origins = []
    for _ in range(2 * LOOK_EVERY):
        near.send(PING)
        received = lanes.receive()
        assert received is not None
        origins.append(received[1])
    assert sum(origin is not None for origin in origins) == 1


def test_who_has_a_lane_is_heard_beside_one_by_zeromq_that_never_rests(
    lanes: Lanes, near: UnixDealer, far: Dealer
) -> None:
    for _ in range(50):
        far.send(PING)
    assert any(lanes._router.has_input() for _ in range(10_000))
    near.send(PING)
    received = [lanes.receive() for _ in range(4)]
    assert any(one is not None and one[1] is None for one in received)
