"""`gymwire`, but its env agent has no vectors of environments, as some in other languages."""

from __future__ import annotations

import sys
from typing import Any

from gymwire.cli import main
from gymwire.env_agent import sessions
from gymwire.env_agent.factory import Factory
from gymwire.protocol.capabilities import CAPABILITIES, EACH


def refuse(*_: Any) -> None:
    """Refuse to make a vector."""
    raise RuntimeError("This env agent has no vectors.")


if __name__ == "__main__":
    Factory.make_vector = refuse  # type: ignore[assignment,method-assign]
    known: Any = tuple(one for one in CAPABILITIES if one != EACH)
    sessions.CAPABILITIES = known  # type: ignore[attr-defined]
    sys.exit(main())
