"""/metrics: what Prometheus reads."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from gymwire import ProxyEnv
from tests.processes import Programs

pytest.importorskip("starlette", reason="needs the extra gymwire[web]")

from prometheus_client import parser

from gymwire.gateway.metrics import as_text
from gymwire.learner_agent.client.observing import (
    BrokerTotals,
    Observation,
    ObservedOffer,
    ObservedSession,
)


def metrics(url: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        families = parser.text_string_to_metric_families(answer.read().decode())
        return {
            (one.name, frozenset(one.labels.items())): one.value
            for family in families
            for one in family.samples
        }


def test_sessions_steps_and_slots(programs: Programs) -> None:
    _, broker = programs.broker()
    programs.env_agent(broker, "--address", "cart", "--env", "CartPole-v1", "--max-sessions", "5")
    gateway = programs.start(
        *("gymwire", "web", "--broker", broker, "--listen", "127.0.0.1:0", "--log-format", "json")
    )
    url = str(gateway.wait_for("gateway listening")["url"])
    cart = frozenset({("address", "cart")})
    none: frozenset[tuple[str, str]] = frozenset()
    with ProxyEnv("cart", broker) as env:
        env.reset(seed=1)
        found = metrics(url)
        assert found["gymwire_sessions", none] == 1
        assert found["gymwire_slots", cart] == 5
        assert found["gymwire_slots_used", cart] == 1
        assert found["gymwire_slots_free", cart] == 4
        assert found["gymwire_processes", cart | {("state", "ready")}] == 1
        assert found["gymwire_sessions_opened_total", none] == 1
        # Another program asks at the same time, and gets the same answer.
        assert metrics(url)["gymwire_peers", none] == found["gymwire_peers", none]


class Counted(tuple[Any, ...]):
    """A tuple that counts how often it is iterated over."""

    def __iter__(self) -> Iterator[Any]:
        self.times = getattr(self, "times", 0) + 1
        return super().__iter__()


def test_the_offers_are_read_once_however_many_addresses_there_are() -> None:
    names = [f"lab/{i}" for i in range(50)]
    kinds = {"str": "x", "int": 1, "float": 1.0, "str | None": None, "int | None": None}

    def row(kind: Any, address: str) -> Any:
        values = {one.name: kinds.get(str(one.type)) for one in fields(kind)}
        return kind(**{**values, "address": address, "state": "ready"})

    offers = Counted(row(ObservedOffer, name) for name in reversed(names))
    sessions = Counted(row(ObservedSession, name) for name in names)
    totals: dict[str, Any] = {
        one.name: {} if "Mapping" in str(one.type) else 1 for one in fields(BrokerTotals)
    }
    text = as_text(Observation(BrokerTotals(**totals), offers, sessions)).decode()
    shown = re.findall(r'^gymwire_slots{address="(.*)"} 1.0$', text, re.MULTILINE)
    assert shown == sorted(names)
    assert (offers.times, sessions.times) == (1, 1)


def test_a_broker_that_is_away_is_named(programs: Programs) -> None:
    broker, at = programs.broker()
    gateway = programs.start(
        *("gymwire", "web", "--broker", at, "--listen", "127.0.0.1:0", "--log-format", "json")
    )
    url = str(gateway.wait_for("gateway listening")["url"])
    broker.kill()
    with pytest.raises(urllib.error.HTTPError) as refused:
        metrics(url)
    assert refused.value.code == 503
    assert at in refused.value.read().decode()


def test_the_dashboard_shows_only_what_there_is() -> None:
    import json
    import re

    root = Path(__file__).parents[2]
    dashboard = json.loads((root / "docs/grafana-dashboard.json").read_text())
    source = (root / "gateway/metrics.py").read_text()
    queries = [t["expr"] for panel in dashboard["panels"] for t in panel["targets"]]
    names = {name for query in queries for name in re.findall(r"gymwire_\w+", query)}
    assert names
    for name in names:
        stem = name.removeprefix("gymwire_").removesuffix("_total")
        assert f'"{stem}"' in source or f'"gymwire_{stem}"' in source, name
