from __future__ import annotations

import argparse

import pytest

from gymwire.protocol.command_line import Parser, count, natural, positive_seconds, seconds


def test_a_wrong_command_line_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser(prog="python -m broker")
    parser.add_argument("--lease", type=seconds)
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["--lease", "x"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "broker: argument --lease: seconds of 0 or more are needed, not 'x'. "
        "See `python -m broker --help`.\n"
    )


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (natural, "-1"),
        (natural, "²"),
        (count, "0"),
        (count, "1.5"),
        (seconds, "-1"),
        (seconds, "nan"),
        (positive_seconds, "0"),
    ],
)
def test_a_number_that_makes_no_sense_is_refused(read: type[float], text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        read(text)


def test_for_ever_can_be_waited() -> None:
    assert seconds("inf") == float("inf")
