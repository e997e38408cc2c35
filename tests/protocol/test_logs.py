"""Warnings of libraries become lines of the log."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

WARNS = r"""
import sys, warnings
from gymwire.protocol import logs
logs.configure(form=sys.argv[1])
warnings.warn("\x1b[33mWARN: CartPole-v0 is out of date.\x1b[0m", DeprecationWarning)
"""


def logged(form: str) -> str:
    """Return the standard error of a program in which a library warns."""
    done = subprocess.run(
        [sys.executable, "-c", WARNS, form],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONWARNINGS": "default"},
    )
    assert done.stdout == ""
    return done.stderr


def test_a_warning_of_a_library_is_a_log_line() -> None:
    row = json.loads(logged("json"))
    assert (row["level"], row["event"]) == ("warning", "library warning")
    assert (row["category"], row["text"]) == ("DeprecationWarning", "CartPole-v0 is out of date.")


def test_a_warning_of_a_library_is_one_line_without_colours_and_places_in_code() -> None:
    (line,) = logged("lines").splitlines()
    assert "[warning] library warning" in line
    assert "CartPole-v0 is out of date." in line
    assert ".py" not in line
    assert "\x1b" not in line


ONE_WRITE = r"""
import sys

import pytest
from gymwire.protocol import logs
written = []
class Recorder:
    def write(self, text):
        written.append(text)
        return len(text)
    def flush(self):
        pass
    def isatty(self):
        return False
if sys.argv[1] == "configured":
    logs.configure()
sys.stderr = Recorder()
logs.logger().warning("first")
logs.logger().warning("second")
assert [text[-1] for text in written] == ["\n", "\n"], written
"""


@pytest.mark.parametrize("how", ["configured", "not configured"])
def test_a_line_is_written_at_once_so_that_workers_do_not_mix_theirs(how: str) -> None:
    subprocess.run([sys.executable, "-c", ONE_WRITE, how], check=True)


COMMANDS = r"""
import sys
from gymwire.protocol import logs
if sys.argv[1] == "configured":
    logs.configure()
logs.logger().warning("offer", host="a\x1b[2J", text="b c\x9b\r\u202e\0", lines="1\n2", name="ü")
"""


@pytest.mark.parametrize("how", ["configured", "not configured"])
def test_what_a_peer_chose_does_not_command_the_terminal(how: str) -> None:
    done = subprocess.run([sys.executable, "-c", COMMANDS, how], capture_output=True, check=True)
    (line,) = done.stderr.decode().splitlines()
    assert line.isprintable()
    assert r"a\x1b[2J" in line
    assert "name=ü" in line
