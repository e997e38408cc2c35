"""A flood over a real connection, before a broker that soon has enough of it."""

from __future__ import annotations

import contextlib
import threading

import pytest

from gymwire.broker import rate_limit as flood
from gymwire.broker import server
from gymwire.learner_agent.client.connection import Channel
from gymwire.protocol.codec import PLAIN
from gymwire.protocol.messages import Busy, BusyReason, Ping
from gymwire.protocol.transport.dealer import Dealer
from tests.chaos.fleet import until


def test_a_flood_is_told_then_cut_off_and_may_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flood, "BURST", 50.0)
    monkeypatch.setattr(flood, "DEBT", 10.0)
    monkeypatch.setattr(server, "MUTED_S", 0.2)
    broker = server.Server(["tcp://127.0.0.1:*"])
    stop = threading.Event()
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
        until(lambda: any(one.up for one in dealer.link_events()) or went[-1], "it is back")
        with contextlib.closing(Channel(broker.urls[0])) as channel:
            assert channel.find() == []
    finally:
        dealer.close()
        stop.set()
        thread.join()
