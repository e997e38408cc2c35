"""The command `gymwire`.

`options` lists all options, `app` builds the commands from that list, and each command has a module
of its own name with its `Options` and one function `command(options, output)`. A command's module
is imported when the command runs, so that `gymwire --help` and shell completion start quickly.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: that of this process). Returns the exit status."""
    try:
        from gymwire.cli.app import run

        return run(argv)
    except KeyboardInterrupt:  # while modules are imported
        return 130
