"""Measure how soon a waiting learner is notified, one fault at a time, with default settings."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

from gymwire import ProxyEnv
from gymwire.protocol.errors import BrokerUnreachable, EnvironmentLost
from tests.chaos.fleet import ADDRESS, Fleet, fleet, until
from tests.chaos.relays import TcpRelay

DIRECT = ("--direct", "tcp://127.0.0.1:*")
SLOW = {"label": "loss-latency", "slow": [[1, 120.0]]}


def run(folder: Path, *, rounds: int, say: Callable[[str], None]) -> bool:
    """Measure each fault `rounds` times; print the worst. Returns whether the limits were kept."""
    kept = True
    for what, limit_s, measure in (
        ("env agent killed in a step", 3.0, _killed),
        ("env agent frozen in a step", 10.0, _frozen),
        ("env agent killed in a direct step", 3.0, _killed_direct),
        ("env agent frozen in a direct step", 10.0, _frozen_direct),
        ("env agent cut off in a step", 10.0, _cut_off),
        ("broker killed in a step, noticed", 3.0, _broker_noticed),
        ("broker killed, given up beyond timeout_s", 1.0, _broker_given_up),
    ):
        took = []
        for number in range(rounds):
            own = folder / f"loss-{measure.__name__}-{number}"
            own.mkdir()
            with fleet(own) as made:
                took.append(measure(made))
        kept &= max(took) <= limit_s
        say(f"{what:42} worst of {rounds}: {max(took):5.2f} s  (limit {limit_s:g} s)")
    return kept


def _waiting(made: Fleet, url: str, harm: Callable[[], object], timeout_s: float = 60.0) -> float:
    """Return the seconds from the fault to the exception in a learner that waits for a step."""
    at: list[float] = []
    with ProxyEnv(ADDRESS, url, wait_s=5.0, timeout_s=timeout_s) as env:
        env.reset(seed=1, options=SLOW)
        before = made.ledger.read_text().count("\n")

        def strike() -> None:
            until(lambda: made.ledger.read_text().count("\n") > before, "the step is executing")
            at.append(time.monotonic())
            harm()

        thread = threading.Thread(target=strike)
        thread.start()
        with contextlib.suppress(EnvironmentLost, BrokerUnreachable):
            env.step(1)
        raised = time.monotonic()
        thread.join()
    return raised - at[0]


def _killed(made: Fleet) -> float:
    made.broker()
    return _waiting(made, made.url, made.env_agent().kill)


def _frozen(made: Fleet) -> float:
    made.broker()
    return _waiting(made, made.url, made.env_agent().freeze)


def _killed_direct(made: Fleet) -> float:
    made.broker()
    return _waiting(made, made.url, made.env_agent(*DIRECT).kill)


def _frozen_direct(made: Fleet) -> float:
    made.broker()
    return _waiting(made, made.url, made.env_agent(*DIRECT).freeze)


def _cut_off(made: Fleet) -> float:
    made.broker()
    with contextlib.closing(TcpRelay(made.port)) as relay:
        made.env_agent(url=relay.url)

        def cut() -> None:
            relay.mode = "black-hole"

        return _waiting(made, made.url, cut)


def _broker_noticed(made: Fleet) -> float:
    """Measure by the learner's log."""
    broker = made.broker()
    made.env_agent()
    learner = made.learner("notices")
    learner.says("goes on")
    at = broker.kill()
    learner.says("broker lost")
    return time.monotonic() - at


def _broker_given_up(made: Fleet) -> float:
    broker = made.broker()
    made.env_agent()
    return _waiting(made, made.url, broker.kill, timeout_s=5.0) - 5.0
