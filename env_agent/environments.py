"""The environments of an env agent: what it offers, and how it makes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gymwire.env_agent.factory import Factory


@dataclass(frozen=True)
class Service:
    """One environment under one address, as the operator asked for it."""

    address: str
    factory: Factory
    max_sessions: int = 8
    attributes: Sequence[str] = ()
    strict_infos: bool = False
