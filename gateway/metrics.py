"""`/metrics`: what the broker knows, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from gymwire.gateway.app import Gateway
from gymwire.learner_agent.client.observing import Observation, ObservedOffer, ObservedSession
from gymwire.protocol.errors import GymwireError


def routes(gateway: Gateway) -> list[BaseRoute]:
    """Return the route for Prometheus."""

    async def metrics(request: Request) -> Response:
        try:
            text = await gateway.observer_of(request).latest(as_text)
        except GymwireError as error:
            return PlainTextResponse(f"{error}\n", 503)
        return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    return [Route("/metrics", metrics)]


def as_text(found: Observation) -> bytes:
    """Return an observation in the text format of Prometheus."""
    registry = CollectorRegistry()
    registry.register(_Collector(found))
    return generate_latest(registry)


Row = TypeVar("Row", ObservedOffer, ObservedSession)


def _by_name(rows: Iterable[Row]) -> list[tuple[str, list[Row]]]:
    """Return the rows of each address, sorted by address."""
    groups: dict[str, list[Row]] = {}
    for one in rows:
        groups.setdefault(one.address, []).append(one)
    return sorted(groups.items())


class _Collector:
    """One observation as metrics."""

    def __init__(self, found: Observation) -> None:
        self._found = found

    def collect(self) -> Iterator[Metric]:
        """Return the metrics."""
        broker = self._found.broker
        yield _gauge("broker_uptime_seconds", "Seconds since the broker's start.", broker.uptime_s)
        yield _gauge("peers", "Connections that have introduced themselves.", broker.peers)
        yield _gauge("sessions", "Sessions that the broker has.", broker.sessions)
        yield _counter("relayed_frames", "Frames that the broker has relayed.", broker.frames)
        yield _counter("relayed_bytes", "Bytes that the broker has relayed.", broker.bytes)
        yield _counter("sessions_opened", "Sessions that were opened.", broker.sessions_opened)
        yield _counter(
            "sessions_recovered",
            "Sessions of an earlier run of the broker.",
            broker.sessions_recovered,
        )
        yield _counter("sessions_closed", "Sessions that were closed.", broker.sessions_closed)
        yield _by("sessions_lost", "Sessions that were lost.", "reason", broker.sessions_lost)
        yield _by("refusals", "Requests answered with ERROR.", "code", broker.refusals)
        yield _by("busy", "Requests answered with BUSY.", "reason", broker.busy)
        yield _by("dropped_frames", "Frames without an answer.", "reason", broker.dropped)
        yield from self._offers()
        yield from self._steps()

    def _offers(self) -> Iterator[Metric]:
        slots = _by_address("slots", "Slots of an address.")
        used = _by_address("slots_used", "Slots of an address that are in use.")
        free = _by_address("slots_free", "Slots of an address that are free.")
        stuck = _by_address("sessions_stuck", "Ended sessions whose environment is still busy.")
        processes = GaugeMetricFamily(
            "gymwire_processes", "Processes that offer an address.", labels=["address", "state"]
        )
        for address, offers in _by_name(self._found.offers):
            ready = [one for one in offers if one.state == "ready"]
            slots.add_metric([address], sum(one.slots for one in offers))
            used.add_metric([address], sum(one.used for one in offers))
            free.add_metric([address], sum(one.slots - one.used for one in ready))
            stuck.add_metric([address], sum(one.stuck for one in offers))
            for state in sorted({one.state for one in offers}):
                count = sum(one.state == state for one in offers)
                processes.add_metric([address, state], count)
        yield from (slots, used, free, stuck, processes)

    def _steps(self) -> Iterator[Metric]:
        rate = _by_address("steps_per_second", "Steps per second of all sessions of an address.")
        slowest = GaugeMetricFamily(
            "gymwire_step_seconds",
            "The highest percentile of a step's duration among the sessions of an address.",
            labels=["address", "quantile"],
        )
        for address, sessions in _by_name(self._found.sessions):
            rate.add_metric([address], sum(one.steps_per_s or 0 for one in sessions))
            for quantile, times in (
                ("0.5", [one.p50_s for one in sessions if one.p50_s is not None]),
                ("0.99", [one.p99_s for one in sessions if one.p99_s is not None]),
            ):
                if times:
                    slowest.add_metric([address, quantile], max(times))
        yield from (rate, slowest)


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(f"gymwire_{name}", about, value=value)


def _counter(name: str, about: str, value: float) -> Metric:
    return CounterMetricFamily(f"gymwire_{name}", about, value=value)


def _by_address(name: str, about: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"gymwire_{name}", about, labels=["address"])


def _by(name: str, about: str, label: str, values: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(f"gymwire_{name}", about, labels=[label])
    for key, value in sorted(values.items()):
        family.add_metric([key], value)
    return family
