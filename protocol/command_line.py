"""What the command lines of all parts share: errors in one line, and checked numbers."""

from __future__ import annotations

import argparse
import math
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """An argument parser that reports an error in one line."""

    def error(self, message: str) -> NoReturn:
        """Print what was wrong and exit with status 2."""
        program = self.prog.removeprefix("python -m ").partition(" ")[0]
        self.exit(2, f"{program}: {message.rstrip('.')}. See `{self.prog} --help`.\n")


def natural(text: str) -> int:
    """Read a whole number of 0 or more. Raises argparse.ArgumentTypeError."""
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"a whole number of 0 or more is needed, not {text!r}")
    return int(text)


def count(text: str) -> int:
    """Read a whole number of 1 or more. Raises argparse.ArgumentTypeError."""
    if not (text.isascii() and text.isdecimal()) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number of 1 or more is needed, not {text!r}")
    return int(text)


def seconds(text: str) -> float:
    """Read seconds of 0 or more, also inf. Raises argparse.ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"seconds of 0 or more are needed, not {text!r}")
    return value


def positive_seconds(text: str) -> float:
    """Read seconds of more than 0, also inf. Raises argparse.ArgumentTypeError."""
    if not (value := seconds(text)) > 0:
        raise argparse.ArgumentTypeError("must be more than 0 seconds")
    return value
