"""Samples of long lists of cases: the other cases are marked `thorough`, or have other numbers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

is_plain = True  # conftest.py sets it, before the tests are imported


def sampled(cases: Iterable[Any], every: int, *, first: int = 0) -> list[Any]:
    """Return all cases as parameters of a test.

    Args:
        cases: the cases. A case of several parameters is a tuple.
        every: each so-many-th case stays in the plain run.
        first: the index of the first one that stays.
    """
    kept = set(range(first, len(listed := list(cases)), every))
    return [
        case if index in kept else thorough(*(case if isinstance(case, tuple) else (case,)))
        for index, case in enumerate(listed)
    ]


def thorough(*case: Any) -> Any:
    """Return one case that only a thorough run tries."""
    return pytest.param(*case, marks=pytest.mark.thorough)


def by_run(plain: int, full: int) -> int:
    """Return the number of this run: `full` tries all that `plain` tries, and more."""
    return plain if is_plain else full
