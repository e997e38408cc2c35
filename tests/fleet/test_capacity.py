"""The capacity model adds up what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.capacity import Costs, Cpu, Demand, memory_mib, model, tables
from benchmarks.fleet import ratios

COSTS = Costs(
    ping=Cpu(50, 20),
    agent_kib=300,
    agent_fds=9,
    learner=Cpu(10, 20),
    learner_kib=30,
    open=Cpu(700, 100),
    close=Cpu(300, 50),
    session_kib=2,
    report=Cpu(10, 1),
    page=Cpu(2000, 100),
    relayed=Cpu(90, 80),
    relayed_bytes=81,
)
DEMAND = Demand(agents=100, sessions=1_000, learners=10, life_s=100, observe_s=1)


def test_each_line_is_a_number_a_second_times_its_cost() -> None:
    lines = {line.what: (line.per_s, line.own, line.zmq) for line in model(COSTS, DEMAND)}
    expected = {
        "PINGs of env agents": (900, 100 * 9 * 50e-6, 100 * (9 + 9 / 1.5) * 20e-6),
        "connected learners": (10, 10 * 10e-6, 10 * 20e-6),
        "sessions that report their steps": (1000, 1000 * 10e-6, 1000 * 1e-6),
        "sessions opened and closed": (10, 10 * 1000e-6, 10 * 150e-6),
        "pages for Prometheus": (11, 11 * 2000e-6, 11 * 100e-6),
    }
    assert lines.keys() == expected.keys()
    for what, values in expected.items():
        assert lines[what] == pytest.approx(values)


def test_memory_is_that_of_agents_learners_and_sessions() -> None:
    assert memory_mib(COSTS, DEMAND) == pytest.approx((100 * 300 + 10 * 30 + 1000 * 2) / 1024)


def test_the_tables_have_the_lines_of_the_documentation() -> None:
    console = Console(width=120)
    with console.capture() as capture:
        for table in tables(COSTS, DEMAND):
            console.print(table)
    shown = [[cell.strip() for cell in line.split("|")] for line in capture.get().splitlines()]
    page = Path(__file__).parents[2] / "docs" / "capacity.md"
    documented = [
        [cell.strip(" *") for cell in line.split("|")]
        for line in page.read_text(encoding="utf-8").splitlines()
        if line.startswith("| ")
    ]
    assert len(documented) > 20
    assert {cells[1] for cells in documented} <= {cells[1] for cells in shown if len(cells) > 1}


def test_a_ratio_compares_figures_of_the_same_way() -> None:
    found = ratios({8: [300.0, 110.0, 240.0], 1: [200.0, 100.0, 200.0]})
    expected = {"p50 µs": 240.0, "ratio": 1.2, "low": 1.1, "high": 1.5}
    assert found["8"] == pytest.approx(expected)
    assert found["1"] == {"p50 µs": 200.0, "ratio": 1.0, "low": 1.0, "high": 1.0}
