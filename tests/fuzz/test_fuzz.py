from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import __main__ as measuring
from tests.fuzz.__main__ import FREE_S, TRIALS, fuzz, is_slow
from tests.fuzz.mutate import mutate
from tests.fuzz.targets import Target, targets

TARGETS = targets()


@pytest.fixture(params=TARGETS, ids=lambda target: target.name)
def target(request: pytest.FixtureRequest) -> Target:
    chosen: Target = request.param
    return chosen


@given(data=st.binary(max_size=300))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_bytes_raise_only_what_is_promised(target: Target, data: bytes) -> None:
    target.run(data)


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_well_formed_bytes_with_changes_raise_only_what_is_promised(
    target: Target, data: st.DataObject
) -> None:
    seeds = st.sampled_from(target.seeds)
    rng = random.Random(data.draw(st.integers(0, 2**32)))
    target.run(mutate(data.draw(seeds), data.draw(seeds), rng))


def test_a_parser_that_raises_something_else_is_found() -> None:
    def broken(data: bytes) -> None:
        if b"\xdd" in data:
            raise MemoryError("four billion")

    findings: list[str] = []
    fuzz(Target("broken", [b"abcdef"], broken), 2000, random.Random(0), findings)
    assert findings
    assert "broken: MemoryError: four billion" in findings[0]


@pytest.mark.parametrize("slow_trials", [0, 1, TRIALS - 1, TRIALS])
def test_an_input_is_slow_only_if_it_is_each_time(
    slow_trials: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Target("slow", [b"abc"], lambda _data: None, decodes=True)
    own = iter([1.0] * slow_trials + [0.0] * TRIALS)

    def cpu_s(run: object, _data: bytes) -> float:
        return next(own) if run is slow.run else FREE_S

    monkeypatch.setattr(measuring, "cpu_s", cpu_s)
    assert is_slow(slow, b"abc", 1.0, FREE_S) == (slow_trials == TRIALS)
