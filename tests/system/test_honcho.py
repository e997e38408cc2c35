"""`honcho start` as a whole: the demo that the README promises."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.chaos.fleet import free_port
from tests.processes import ROOT
from tests.sampling import thorough

PATIENCE_S = 90.0  # a machine that does nothing else needs 10


@pytest.fixture
def port() -> int:
    return free_port()


class Done(NamedTuple):
    """What a run of honcho came to."""

    returncode: int
    stdout: str


def honcho(port: int, *options: str, **variables: str) -> Done:
    """Run honcho with the broker at this port; variables are added to the environment."""
    scripts = Path(sys.executable).parent
    kept = {name: text for name, text in os.environ.items() if not name.startswith("GYMWIRE_")}
    with subprocess.Popen(
        [sys.executable, "-m", "honcho", *options],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={
            **kept,
            "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
            "GYMWIRE_BROKER": f"tcp://127.0.0.1:{port}",
            **variables,
        },
    ) as process:
        try:
            output, _ = process.communicate(timeout=PATIENCE_S)
        except BaseException:
            process.terminate()  # not kill: honcho has to end its own processes
            raise
    return Done(process.returncode, output)


def spoken_by(name: str, output: str) -> list[str]:
    """Return the lines of one process, without honcho's prefix."""
    parts = (line.partition("|") for line in output.splitlines())
    return [text.removeprefix(" ") for who, _, text in parts if f" {name}.1 " in who]


def test_the_demo_trains_prints_its_result_and_ends_well(port: int) -> None:
    done = honcho(port, "start")
    said = spoken_by("learner", done.stdout)
    assert done.returncode == 0, done.stdout
    report = said[next(i for i, line in enumerate(said) if "PriceAgent after 15,000" in line) :]
    assert any("in the first tenth" in line for line in report)
    # With honcho's prefix it fits a terminal of 80 columns.
    assert max(len(line.rstrip()) for line in report) <= 80 - len("17:00:00 learner.1 | ")
    assert not any(word in done.stdout for word in ("Traceback", "[warning]", "[error]"))


@pytest.mark.thorough
def test_another_address_can_be_trained_and_needs_only_its_own_parts(port: int) -> None:
    done = honcho(port, "start", "learner", "lake", "broker", ADDRESS="frozen-lake")
    said = spoken_by("learner", done.stdout)
    assert done.returncode == 0, done.stdout
    assert any("QLearner after 15,000 steps at frozen-lake" in line for line in said)


@pytest.mark.parametrize(
    ("variables", "at_fault"),
    [
        ({"ADDRESS": "No/Address"}, ["learner"]),
        # The first to say so, whichever it is, ends the others.
        thorough({"GYMWIRE_BROKER": "nonsense"}, ["broker", "market", "lake", "taxi", "learner"]),
    ],
)
def test_a_part_that_fails_gives_honcho_its_status(
    port: int, variables: Mapping[str, str], at_fault: list[str]
) -> None:
    done = honcho(port, "start", **variables)
    assert done.returncode == 2, done.stdout
    said = [line for name in at_fault for line in spoken_by(name, done.stdout)]
    assert any(": " in line for line in said)


def test_a_port_in_use_ends_the_demo_with_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = honcho(taken.getsockname()[1], "start")
    assert done.returncode != 0
    assert "in use" in "".join(spoken_by("broker", done.stdout))
