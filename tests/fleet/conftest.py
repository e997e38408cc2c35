"""Learners of fleets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fleet.fleets import Learner


@pytest.fixture
def learners() -> Iterator[list[Learner]]:
    """An empty list of learners, all of which are checked at the end."""
    learners: list[Learner] = []
    yield learners
    for learner in learners:
        learner.check()
