"""In which process a serving loop runs, and to which env agent it belongs (docs/protocol.md §6.1).

People see it in `gymwire ls -v`. Like the slots of the process it is an entry of `Offer.spec`,
which a broker without this feature ignores.
"""

from __future__ import annotations

from dataclasses import replace

from gymwire.protocol.messages import Offer

KEY = "gymwire.process"  # in `Offer.spec`
MAX_PID = 2**31


def with_process(offer: Offer, pid: int, agent_pid: int) -> Offer:
    """Return the offer with the process id of its loop, and that of its env agent.

    `agent_pid`: of a worker's supervisor; otherwise `pid` itself.
    """
    return replace(offer, spec={**offer.spec, KEY: [pid, agent_pid]})


def process_of(offer: Offer) -> tuple[int, int] | tuple[None, None]:
    """Return the two process ids; None if the env agent does not say, as one of release 0.1.0."""
    match offer.spec.get(KEY):
        case [int(pid), int(agent_pid)] if 0 < pid < MAX_PID and 0 < agent_pid < MAX_PID:
            return int(pid), int(agent_pid)
    return None, None
