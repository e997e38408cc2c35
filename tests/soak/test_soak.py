"""A short soak: results and memory of honest peers beside hostile peers of many kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.soak import course
from tests.soak.place import CARTPOLE, PICTURE

MINUTES = 1 / 3


def test_no_hostile_peer_changes_a_result_or_takes_the_memory(tmp_path: Path) -> None:
    said: list[str] = []
    held = course.run(tmp_path, minutes=MINUTES, seed=1, say=said.append, times_count=False)
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
            course.Phase((), {"faults": [], CARTPOLE: row, PICTURE: row}, {}),
            course.Phase(("slow-find",), report, {"broker": memory}),
        ]
        return course.find_faults({"broker": small}, phases, times_count=True)

    assert faults(report, small) == []
    assert faults(wrong, small) == ["beside slow-find: a result differs"]
    assert faults(report, large) == ["beside slow-find: broker grew by 512 MiB"]
    assert faults(slow, small) == ["beside slow-find: p99 at lab/picture is 2.05 times"]
