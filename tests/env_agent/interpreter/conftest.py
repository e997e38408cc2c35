"""The interpreters in which the tests of this folder run environments."""

from __future__ import annotations

import pytest

from tests.interpreters import bare, others
from tests.sampling import sampled

OTHERS = others()


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter without packages."""
    return bare(tmp_path_factory.mktemp("bare"))


@pytest.fixture(params=["without-packages", *sampled(OTHERS, 2)])
def python(request: pytest.FixtureRequest, bare_python: str) -> str:
    """Every interpreter that there is."""
    return OTHERS.get(request.param, bare_python)
