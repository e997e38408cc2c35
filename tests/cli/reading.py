"""Command lines read into the options of their commands, without running them."""

from __future__ import annotations

import io
import json
from importlib import import_module
from typing import Any

from rich.console import Console

from gymwire.cli.app import build, fields_of
from gymwire.cli.output import Output


def read(name: str, *arguments: str) -> Any:
    """Return the Options of the command `name` with these arguments."""
    ctx = build().commands[name].make_context(name, list(arguments))
    return import_module(f"gymwire.cli.{name}").Options(**fields_of(ctx, name))


class Screen:
    """The consoles of a command, in memory."""

    def __init__(self) -> None:
        self.file, self.error_file = io.StringIO(), io.StringIO()

    def output(self, *, as_json: bool = False) -> Output:
        return Output(
            as_json=as_json,
            out=Console(file=self.file, width=100, color_system=None),
            errors=Console(file=self.error_file, width=100, color_system=None),
        )

    @property
    def text(self) -> str:
        """What is on standard output."""
        return self.file.getvalue()

    @property
    def json(self) -> Any:
        """The one JSON object on standard output."""
        return json.loads(self.text)


def call(screen: Screen, name: str, *arguments: str) -> int:
    """Run a command. Returns its exit status; raises what the command raises."""
    options = read(name, *arguments)
    output = screen.output(as_json=getattr(options, "json", False))
    status = import_module(f"gymwire.cli.{name}").command(options, output)
    assert isinstance(status, int)
    output.finish()
    return status
