"""Fixtures for tests over real processes."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.processes import Programs, programs

# Windows open nowhere: here and in the programs that tests start.
os.environ["SDL_VIDEODRIVER"] = "dummy"

# How fast the machine is decides nothing. Where CI is set, Hypothesis repeats the same examples.
settings.register_profile(
    "untimed", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def broker_url() -> Iterator[str]:
    """The URL of a broker that all tests share; no test may stop it."""
    with programs() as started:
        yield started.broker()[1]


@pytest.fixture(name="programs")
def _programs() -> Iterator[Programs]:
    """Starts programs that are gone after the test."""
    with programs() as started:
        yield started
