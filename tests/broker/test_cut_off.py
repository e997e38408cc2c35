"""A flood over a real connection."""

from __future__ import annotations

import contextlib
import threading

import pytest

from gymwire.broker import rate_limit, server
from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.protocol.codec import PLAIN
from gymwire.protocol.ending_signals import StopEvent
from gymwire.protocol.messages import Busy, BusyReason, Ping
from gymwire.protocol.transport.dealer import Dealer
from tests.chaos.fleet import until


def test_a_flood_gets_busy_then_is_cut_off_and_may_reconnect(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rate_limit, "BURST", 50.0)
    monkeypatch.setattr(rate_limit, "DEBT", 10.0)
    monkeypatch.setattr(server, "DROP_INPUT_S", 0.2)
    broker = server.Server(["tcp://127.0.0.1:*"])
    stop = StopEvent()
    thread = threading.Thread(target=broker.run, args=(stop,))
    thread.start()
    dealer = Dealer(broker.urls[0])
    try:
        went: list[bool] = []
        heard: list[object] = []

        def cut_off() -> bool:
            for _ in range(100):
                dealer.send(PLAIN.encode(Ping()))
            while dealer.poll():
                frame = dealer.receive()
                assert frame is not None
                heard.append(PLAIN.decode(frame))
            went.extend(event.up for event in dealer.link_events())
            return False in went

        until(cut_off, "the flood is cut off")
        assert Busy(BusyReason.RATE, 1.0) in heard
        until(
            lambda: any(one.up for one in dealer.link_events()) or went[-1], "it is connected again"
        )
        with contextlib.closing(BrokerConnection(broker.urls[0])) as connection:
            assert connection.find() == []
    finally:
        dealer.close()
        stop.set()
        thread.join()
