"""Faults of a network in memory: messages that leave late, and paths that lose large ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest

from gymwire.env_agent.loop import ServingLoop
from gymwire.protocol import codec
from gymwire.protocol.messages import Kind
from gymwire.protocol.transport.broker_link import BrokerLink
from tests.wire import Dealer, Network

DEAD_S = 6.0  # after how long a connection that carries nothing counts as lost
LARGE = 1000


def delay(
    network: Network, loop: ServingLoop, kind: Kind, by_s: float, patch: pytest.MonkeyPatch
) -> None:
    """Let what an agent sends of one kind leave later."""
    link = loop._link
    at_once: Any = link.send

    def send(frame: bytes | bytearray, wait: bool = False) -> Any:
        if codec.read_header(frame).kind is kind:
            network.after(by_s, partial(at_once, frame))
            return True
        return at_once(frame, wait)

    patch.setattr(link, "send", send)
    patch.setattr(link, "send_all", lambda frames: all([*map(send, frames)]))


def swallow_large(
    network: Network,
    link: BrokerLink,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
    *,
    least: int = LARGE,
    dead_s: float = DEAD_S,
) -> None:
    """Let each connection of a link stop at its first large message: one "out", or one "in".

    `least`: the size of a large message. `dead_s`: how long such a connection lasts.
    """
    ours = cast(Dealer, link._dealer)
    stopped: set[int] = set()  # connections
    pass_on: Callable[..., Any] = link.send if way == "out" else ours.arrived

    def carry(frame: bytes, *args: Any) -> Any:
        if ours.up and len(frame) > least and ours.generation not in stopped:
            stopped.add(ours.generation)
            network.after(dead_s, lambda: network.cut(ours, 0.5))
        return True if ours.generation in stopped else pass_on(frame, *args)

    if way == "out":
        monkeypatch.setattr(link, "send", carry)
        monkeypatch.setattr(link, "send_all", lambda frames: all([*map(carry, frames)]))
    else:
        monkeypatch.setattr(ours, "arrived", carry)
