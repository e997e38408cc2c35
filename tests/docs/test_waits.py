"""docs/reliability.md lists every wait: its bounds are those of the code, and none is missing."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from tests.docs.pages import read
from tests.processes import ROOT

PARTS = (
    *("protocol", "broker", "env_agent", "gateway", "conformance", "fleet"),
    *("learner_agent/aio", "learner_agent/client", "learner_agent/proxies"),
)
NAMED = re.compile(r"`(\w+\.[A-Z_]+_S)`")


@cache
def durations() -> dict[str, float]:
    """Return the durations in the code, as `module.NAME` with their seconds."""
    found: dict[str, float] = {}
    for path in (path for part in PARTS for path in (ROOT / part).rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            match node:
                case ast.Assign(
                    targets=[ast.Name(id=name)], value=ast.Constant(value=int() | float() as value)
                ) if name.endswith("_S"):
                    assert f"{path.stem}.{name}" not in found, "two modules of this name"
                    found[f"{path.stem}.{name}"] = value
    return found


SECTION = read("docs/reliability.md").partition("## Every wait")[2].partition("## How it is")[0]
ROWS = [row for row in SECTION.splitlines() if row.startswith("| ") and NAMED.search(row)]


def test_every_duration_in_the_code_is_listed() -> None:
    missing = durations().keys() - NAMED.findall(SECTION)
    assert not missing, f"{missing} are missing in the list of waits"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: " ".join(NAMED.findall(row)))
def test_the_listed_bounds_are_those_of_the_code(row: str) -> None:
    for name in NAMED.findall(row):
        assert name in durations(), f"the code has no {name}"
        seconds = f"{durations()[name]:g} s"
        assert re.search(rf"(?<![\w.]){re.escape(seconds)}\b", row), f"{name}: {seconds}"
