"""Where a command prints: text for people, and one JSON object for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

from rich.console import Console

Json = None | bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"]


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is 1."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


class Output:
    """The output of a command.

    With `as_json`, standard output gets one JSON object when the command has ended, and the text
    for people goes to standard error.

    Attributes:
        text: the console for the text.
        errors: the console for progress, on standard error.
    """

    def __init__(
        self, *, as_json: bool = False, out: Console | None = None, errors: Console | None = None
    ) -> None:
        self._out = out or Console()
        self.errors = errors or Console(stderr=True)
        self.text = self.errors if as_json else self._out
        self._as_json = as_json
        self._result: dict[str, Json] = {}

    def say(self, text: str) -> None:
        """Print a line as it is: not wrapped, coloured or taken for markup."""
        self.text.print(text, markup=False, highlight=False, soft_wrap=True)

    def result(self, **fields: Json) -> None:
        """Add fields to the JSON object."""
        self._result.update(fields)

    def fail(self, error: Exception) -> None:
        """Add the error that ends the command to the JSON object."""
        self.result(error={"type": type(error).__name__, "message": str(error)})

    def finish(self) -> None:
        """Print the JSON object."""
        if self._as_json:
            text = json.dumps(_finite(self._result), allow_nan=False)
            self._out.print(text, markup=False, highlight=False, soft_wrap=True)


def _finite(value: Json) -> Json:
    """Return the value with null for numbers that JSON does not have."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {key: _finite(each) for key, each in value.items()}
        case list() | tuple():
            return [_finite(each) for each in value]
    return value
