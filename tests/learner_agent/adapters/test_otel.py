"""OpenTelemetry spans of steps, through real processes and the SDK's exporter."""

from __future__ import annotations

from typing import Any

import gymnasium
import pytest

from gymwire import ProxyEnv
from gymwire.errors import ConfigurationError, ResetNeeded
from tests.processes import Programs

pytest.importorskip("opentelemetry.sdk", reason="needs the extra gymwire[otel] and its SDK")

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gymwire.otel import TracedEnv

PARTS = ("network", "broker", "queue", "environment", "codec")


@pytest.fixture
def exporter() -> Any:
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter: Any) -> Any:
    made = TracerProvider()
    made.add_span_processor(SimpleSpanProcessor(exporter))
    return made


@pytest.fixture
def env(broker_url: str, programs: Programs) -> ProxyEnv:
    programs.env_agent(broker_url, "traced", "CartPole-v1")
    return ProxyEnv("traced", broker_url, wait_s=20)


def test_each_reset_and_step_is_a_span(env: ProxyEnv, provider: Any, exporter: Any) -> None:
    with TracedEnv(env, tracer_provider=provider) as traced:
        local = gymnasium.make("CartPole-v1")
        assert (traced.reset(seed=1)[0] == local.reset(seed=1)[0]).all()
        for _ in range(3):
            found, expected = traced.step(1), local.step(1)
            assert (found[0] == expected[0]).all()
            assert found[1:] == expected[1:]
    spans = exporter.get_finished_spans()
    assert [one.name for one in spans] == ["gymwire.reset", *["gymwire.step"] * 3]
    for one in spans:
        assert one.attributes["gymwire.address"] == "traced"
    for one in spans[1:]:
        known = one.attributes
        total_s = known["gymwire.total_s"]
        parts = sum(known[f"gymwire.{name}_s"] for name in PARTS)
        assert parts == pytest.approx(total_s)
        assert 0 < total_s <= (one.end_time - one.start_time) / 1e9
        assert known["gymwire.is_direct"] is False
        assert known["gymwire.environment_s"] > 0


def test_only_some_steps_may_be_spans(env: ProxyEnv, provider: Any, exporter: Any) -> None:
    with TracedEnv(env, every=3, tracer_provider=provider) as traced:
        traced.reset(seed=1)
        for action in (0, 1, 0, 1, 0, 1, 0):
            traced.step(action)
    names = [one.name for one in exporter.get_finished_spans()]
    assert names == ["gymwire.reset", "gymwire.step", "gymwire.step"]


def test_an_exception_is_recorded(env: ProxyEnv, provider: Any, exporter: Any) -> None:
    with TracedEnv(env, tracer_provider=provider) as traced, pytest.raises(ResetNeeded):
        traced.step(0)
    [span] = exporter.get_finished_spans()
    assert not span.status.is_ok
    [event] = span.events
    assert event.attributes["exception.type"].endswith("ResetNeeded")


def test_what_cannot_be_traced_is_refused(env: ProxyEnv) -> None:
    with env:
        with pytest.raises(ConfigurationError, match="needs a ProxyEnv, not TimeLimit"):
            TracedEnv(gymnasium.wrappers.TimeLimit(env, 5))
        with pytest.raises(ConfigurationError, match="1 or more, not 0"):
            TracedEnv(env, every=0)
