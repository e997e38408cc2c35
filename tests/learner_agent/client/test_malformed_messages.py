"""A message that cannot be decoded is an error that names its sender, its kind and its session."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from gymwire import ProxyEnv
from gymwire.protocol import codec
from gymwire.protocol.errors import DecodingError
from gymwire.protocol.messages import Kind
from tests import wire
from tests.learner_agent.client.test_interrupted import in_memory
from tests.wire import BROKER, Network


@pytest.fixture
def network() -> Iterator[Network]:
    with in_memory() as made:
        yield made


@contextlib.contextmanager
def malformed(kind: Kind) -> Iterator[None]:
    """Replace the first byte after the header of all frames of a kind by one of no type."""
    arrived = wire.Dealer.arrived

    def arrive(self: wire.Dealer, frame: bytes) -> None:
        if codec.read_header(frame).kind is kind:
            changed = bytearray(frame)
            changed[codec.HEADER_SIZE] = 0xC1
            frame = bytes(changed)
        arrived(self, frame)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire.Dealer, "arrived", arrive)
        yield


def test_a_reply_names_the_env_agent_and_the_session(network: Network) -> None:
    with ProxyEnv("moody", BROKER) as env:
        text = r"The env agent of 'moody' \(.*\) sent a malformed STATUS in session \d+: "
        with malformed(Kind.STATUS), pytest.raises(DecodingError, match=text):
            env.reset(seed=1)
        env.reset(seed=1)


@pytest.mark.parametrize("kind", [Kind.WELCOME, Kind.OPENED])
def test_a_message_of_the_broker_names_the_broker(network: Network, kind: Kind) -> None:
    text = rf"The broker at {BROKER} sent a malformed {kind.name}.*: "
    with malformed(kind), pytest.raises(DecodingError, match=text):
        ProxyEnv("moody", BROKER)
