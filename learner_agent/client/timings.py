"""Where the time of a step went, from the stamps of all who had a hand in it (protocol.md §8)."""

from __future__ import annotations

from dataclasses import dataclass

from gymwire.protocol.stamps import Stamps


@dataclass(frozen=True)
class Timings:
    """The parts of one step, in microseconds, none negative; their sum is `total_us`.

    `network_us`: sockets, kernels and wires, and the threads that they wake. `broker_us`: the
    broker's code. `queue_us`: waiting at the env agent until it had done what came before.
    `environment_us`: the environment's `step`. `codec_us`: encoding and decoding, and the rest of
    the agents' own code. `is_direct`: the reply came past the broker. `throttled`: the broker made
    the step wait for a limit in its policy, and `network_us` holds that time, too.
    """

    network_us: float
    broker_us: float
    queue_us: float
    environment_us: float
    codec_us: float
    total_us: float
    is_direct: bool
    throttled: bool = False


def waited(stamps: Stamps) -> bool:
    """Whether the request may have waited for the env agent."""
    return stamps.received > stamps.busy_since


def apportion(
    began: int, encoded: int, arrived: int, decoded: int, stamps: Stamps, least_network: int
) -> Timings:
    """Share a step out, between four readings of the learner's clock, ns.

    What nobody's stamps explain was spent in the network, or waiting in the agent's socket, for as
    long at most as the agent was at work without a rest. The two look the same from outside; the
    network gets `least_network`, ns, first: the least that it has taken when nothing waited.
    """
    left = decoded - began

    def take(ns: int) -> float:
        """Clocks differ in their rates: no part gets more than is left."""
        nonlocal left
        part = max(0, min(ns, left))
        left -= part
        return part / 1000

    total_us = left / 1000
    coding = (encoded - began) + (decoded - arrived)
    coding += (stamps.started - stamps.received) + (stamps.sent - stamps.ended)
    codec_us = take(coding)
    broker_us = take(
        (stamps.there_sent - stamps.there_received) + (stamps.back_sent - stamps.back_received)
    )
    environment_us = take(stamps.ended - stamps.started)
    queue_us = take(min(stamps.received - stamps.busy_since, left - least_network))
    return Timings(
        network_us=left / 1000,
        broker_us=broker_us,
        queue_us=queue_us,
        environment_us=environment_us,
        codec_us=codec_us,
        total_us=total_us,
        is_direct=not stamps.back_sent,
    )
