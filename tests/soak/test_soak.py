"""A short soak: results and memory of honest peers beside hostile peers of many kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.sampling import by_run
from tests.soak import course
from tests.soak.place import CARTPOLE, PICTURE


@pytest.mark.timeout(600)  # on a busy machine, each of many phases takes seconds
def test_no_hostile_peer_changes_a_result_or_takes_the_memory(tmp_path: Path) -> None:
    said: list[str] = []
    held = course.run(
        tmp_path, minutes=by_run(5, 12) / 60, seed=1, say=said.append, times_count=False
    )
    assert held, "\n".join(said)


def test_a_wrong_result_and_too_much_memory_fail_a_soak() -> None:
    row: dict[str, Any] = {"steps": 100, "p50": 1.0, "p99": 2.0, "most": 3.0}
    report: dict[str, Any] = {"faults": [], CARTPOLE: row, PICTURE: row}
    small = course.Memory(0, 0, 0)
    large = course.Memory(0, 0, course.MEMORY_BYTES + 1)
    slow = {**report, PICTURE: {**row, "p99": 4.1}}
    wrong = {**report, "faults": ["a result differs"]}

    def faults(report: dict[str, Any], memory: course.Memory) -> list[str]:
        phases = [
            course.Phase(course.Attackers(), {"faults": [], CARTPOLE: row, PICTURE: row}, {}, {}),
            course.Phase(course.Attackers(("slow-find",)), report, {"broker": memory}, {}),
        ]
        return course.find_faults({"broker": small}, phases, times_count=True)

    assert faults(report, small) == []
    assert faults(wrong, small) == ["beside slow-find: a result differs"]
    assert faults(report, large) == ["beside slow-find: broker grew by 512 MiB"]
    assert faults(slow, small) == ["beside slow-find: p99 at lab/picture is 2.05 times"]


@pytest.mark.parametrize("kinds", [("slow-find",), ("slow-find", "big-offers")])
def test_the_part_of_the_machine_is_shown_for_one_kind_and_for_all(kinds: tuple[str, ...]) -> None:
    def phase(attackers: course.Attackers) -> course.Phase:
        p99 = 6.0 if attackers.kinds and not attackers.elsewhere else 4.0
        row = {"steps": 100, "p50": 1.0, "p99": p99, "most": p99}
        return course.Phase(attackers, {"faults": [], CARTPOLE: row, PICTURE: row}, {}, {})

    said: list[str] = []
    course._say_medians([*map(phase, course.plan(kinds, 1, elsewhere=True))], said.append)
    assert len([line for line in said if " / elsewhere" in line and line.endswith(" 1.50")]) == 2


def test_one_slow_phase_of_three_does_not_fail_a_soak_and_two_do() -> None:
    def phase(kinds: tuple[str, ...], p99: float) -> course.Phase:
        row = {"steps": 100, "p50": 1.0, "p99": p99, "most": p99}
        return course.Phase(
            course.Attackers(kinds), {"faults": [], CARTPOLE: row, PICTURE: row}, {}, {}
        )

    def faults(*times: float) -> list[str]:
        alone = iter([3.0, 1.0, 3.0])
        phases = [phase((), 1.0)]
        for each in times:  # the undisturbed phases around it: 1 ms and 3 ms
            phases += [phase(("slow-find",), 2.0 * each), phase((), next(alone))]
        return course.find_faults({}, phases, times_count=True)

    assert faults(1.0, 9.0, 1.5) == []
    assert len(faults(1.0, 9.0, 2.5)) == 2
