"""One option of the commands, and the variable of the same name."""

from __future__ import annotations

from dataclasses import dataclass

from gymwire.cli.kinds import Kind

PANELS = ("Options", "Connection", "Keys", "Log")


@dataclass(frozen=True, kw_only=True)
class Option:
    """An option, the variable of the same name, and where both apply.

    Attributes:
        keyword: the name in Python. The other names follow from it: `wait_s` is the option
            `--wait` and the variable GYMWIRE_WAIT.
        kind: how a text becomes a value.
        help: what it means, as a phrase.
        commands: the commands that take it.
        default: the text of its value if none is given; several texts if it repeats.
        metavar: what stands for its value in the help.
        panel: the part of the help in which it is listed, one of PANELS.
        short: a short form of the option, such as -v.
        repeats: the option may be given several times; the variable holds several values with
            spaces between them.
        positional: the value may also be given as an argument without the option's name.
        own_variable: the variable, where another option of the same name takes GYMWIRE_NAME.
        internal: for gymwire's own processes: in no help, and without a variable.
    """

    keyword: str
    kind: Kind
    help: str
    commands: tuple[str, ...]
    default: str | tuple[str, ...] | None = None
    metavar: str = ""
    panel: str = "Options"
    short: str = ""
    repeats: bool = False
    positional: bool = False
    own_variable: str | None = None
    internal: bool = False

    @property
    def option(self) -> str:
        """The option's name on the command line."""
        return "--" + self.keyword.removesuffix("_s").replace("_", "-")

    @property
    def variable(self) -> str | None:
        """The name of the environment variable."""
        if self.internal:
            return None
        return self.own_variable or "GYMWIRE_" + self.keyword.removesuffix("_s").upper()
