"""Where the time of a step went, from the stamps of all processes involved (protocol.md §8)."""

from __future__ import annotations

from dataclasses import dataclass

from gymwire.protocol.stamps import Stamps


@dataclass(frozen=True)
class Timings:
    """The parts of one step, in microseconds, none negative; their sum is `total_us`.

    Attributes:
        network_us: sockets, kernels and wires, and the threads that they wake.
        broker_us: the broker's code.
        queue_us: waiting at the env agent until it had finished earlier work.
        environment_us: the environment's `step`.
        codec_us: encoding and decoding, and the rest of the agents' own code.
        total_us: from the call of the step to its return.
        is_direct: whether the reply took the direct path.
        throttled: whether the broker delayed the step because of a rate limit; `network_us`
            includes that time.
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
    """Return whether the request may have waited for the env agent."""
    return stamps.received > stamps.busy_since


def apportion(
    began: int, encoded: int, arrived: int, decoded: int, stamps: Stamps, least_network: int
) -> Timings:
    """Divide the time of a step among its parts.

    Time that no stamp explains passed in the network or in the queue of the agent's socket. A
    request was in that queue for no longer than the agent had worked without a pause. From outside
    the two look the same, so the network gets `least_network` first.

    Args:
        began, encoded, arrived, decoded: readings of the learner's clock, in ns.
        stamps: the readings of the other processes.
        least_network: the shortest time, in ns, that the network took when nothing waited.
    """
    left = decoded - began

    def take(ns: int) -> float:
        """Take from what is left, not more: the rates of clocks differ."""
        nonlocal left
        part = max(0, min(ns, left))
        left -= part
        return part / 1000

    total_us = left / 1000
    coding = (encoded - began) + (decoded - arrived)
    coding += (stamps.started - stamps.received) + (stamps.sent - stamps.ended)
    codec_us = take(coding)
    broker_us = take(
        (stamps.request_sent - stamps.request_received)
        + (stamps.reply_sent - stamps.reply_received)
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
        is_direct=not stamps.reply_sent,
    )
