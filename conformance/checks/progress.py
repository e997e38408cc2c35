"""PROGRESS (§7.8). Each is checked when it comes."""

from __future__ import annotations

from gymwire.conformance.agent import Agent
from gymwire.conformance.check import Check, Skipped, check

CHECKS: list[Check] = []


@check(CHECKS, "7.8", "reports requests in flight, and no others, with PROGRESS")
def progress(agent: Agent) -> None:
    """Skip this if no PROGRESS has come in the checks so far."""
    if not agent.progress:
        raise Skipped("none has come; perhaps no request took longer than 1 s")
