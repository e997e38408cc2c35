"""What several tests of the broker use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.broker.test_agenda import Bench


@pytest.fixture(name="bench", params=[True, False], ids=["with local channels", "without"])
def _bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(local_channels=request.param)
    yield made
    made.close()
