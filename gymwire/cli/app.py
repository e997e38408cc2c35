"""The commands, built from the table of options; errors, signals and exit statuses."""

from __future__ import annotations

import errno
import os
import signal
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem, get_completion_class
from rich_click import (
    RichArgument,
    RichCommand,
    RichContext,
    RichGroup,
    RichHelpFormatter,
    RichOption,
    RichOptionPanel,
)

from gymwire.cli.interruption import Interrupted, handle_signals
from gymwire.cli.kinds import FLAG, Kind, flag
from gymwire.cli.option import PANELS, Option
from gymwire.cli.options import options_of

if TYPE_CHECKING:
    from gymwire.protocol.errors import GymwireError

PROGRAM = "gymwire"
COMPLETE_VARIABLE = "_GYMWIRE_COMPLETE"
SHELLS = ("bash", "zsh", "fish")
FAILED, MISUSED = 1, 2  # exit statuses
SIMILAR = 0.75  # of 1: how similar an option must be to be suggested
SETTINGS = {
    "help_option_names": ["-h", "--help"],
    "rich_help_config": {"max_width": 100},
}


@dataclass(frozen=True)
class Summary:
    """What the help of a command says in addition to its options.

    `handles_signals`: the command handles SIGINT, SIGTERM and SIGHUP itself.
    """

    help: str
    examples: tuple[str, ...]
    handles_signals: bool = False


COMMANDS = {
    "broker": Summary(
        "Run a broker: introduce learner agents to env agents, and relay between them.",
        ("gymwire broker", "gymwire broker --bind tcp://0.0.0.0:5555 --key keys/broker.key"),
        handles_signals=True,
    ),
    "serve": Summary(
        "Serve Gymnasium environments under an address.",
        (
            "gymwire serve cartpole CartPole-v1",
            "gymwire serve lab/arm ./arm.py:Arm --max-sessions 2 --wait 30",
        ),
        handles_signals=True,
    ),
    "web": Summary(
        "Run a gateway: WebSockets to a broker, for browsers and programs without ZeroMQ.",
        ("gymwire web", "gymwire web --listen 0.0.0.0:8080 --token-file tokens.toml"),
        handles_signals=True,
    ),
    "ls": Summary(
        "List the addresses on offer.",
        ("gymwire ls", "gymwire ls -v --broker tcp://broker.example.org:5555"),
    ),
    "ps": Summary(
        "List offers, sessions and counters of a broker.",
        ("gymwire ps", "gymwire ps --json"),
    ),
    "top": Summary(
        "Watch offers, sessions and counters of a broker.",
        ("gymwire top", "gymwire top --broker tcp://broker.example.org:5555 --key keys/me.key"),
    ),
    "stop": Summary(
        "End a session, or let an env agent drain.",
        ("gymwire stop 5f3a", "gymwire stop 0a1b2c3d4e --json"),
    ),
    "check": Summary(
        "Run Gymnasium's environment checker, and measure where the time of a step goes.",
        ("gymwire check cartpole", "gymwire check cartpole --steps 10000 --json"),
    ),
    "conformance": Summary(
        "Check an env agent in any language against the protocol.",
        (
            "gymwire conformance --listen tcp://127.0.0.1:5555",
            "gymwire conformance lab/arm --json",
        ),
    ),
    "run": Summary(
        "Play episodes with random actions, or with a policy.",
        (
            "gymwire run frozen-lake --episodes 1 --render",
            "gymwire run cartpole --policy model.zip --video cartpole.mp4",
        ),
    ),
    "train": Summary(
        "Train the built-in learner that fits the environment, or else PPO of Stable-Baselines3.",
        (
            "gymwire train cartpole",
            "gymwire train price-market --seed 1 --plot prices.png",
        ),
    ),
    "record": Summary(
        "Play episodes, and save them as a Minari dataset.",
        (
            "gymwire record cartpole --episodes 100 --out cartpole-random-v0",
            "gymwire record cartpole --policy model.zip --out cartpole-expert-v0",
        ),
    ),
    "replay": Summary(
        "Play recorded actions again, and compare the results bit for bit.",
        ("gymwire replay recorded", "gymwire replay recorded --address cartpole-next --json"),
    ),
    "fleet": Summary(
        "Run a fleet of env agents on this machine, Ray or SLURM.",
        (
            "gymwire fleet up fleet.toml --on ray",
            "gymwire fleet scale fleet.toml --on ray --agents 32",
        ),
    ),
    "keygen": Summary(
        "Make a CURVE key pair for a broker or an agent.",
        ("gymwire keygen broker --dir keys", "gymwire keygen alice --dir keys"),
    ),
}


# --- building the commands ------------------------------------------------------------------------


class _Type(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.5 only
    """A kind of value, for click."""

    def __init__(self, kind: Kind) -> None:
        self.kind, self.name = kind, kind.name

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> object:
        """Return the value of a text; defaults are values already."""
        if not isinstance(value, str):
            return value
        from gymwire.protocol.errors import UsageError

        try:
            return self.kind.read(value)
        except (ValueError, UsageError) as error:
            self.fail(str(error), param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return what the shell may complete."""
        if self.kind.completes:
            return [CompletionItem(incomplete, type=self.kind.completes)]
        return [CompletionItem(text) for text in self.kind.choices if text.startswith(incomplete)]


class _Flag(click.types.BoolParamType):
    """A flag; click's own type describes what it expects with an empty text among the values."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bool:
        """Return whether the flag is set."""
        if not isinstance(value, str):
            return bool(value)
        try:
            return flag(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _Examples(RichCommand):
    """A command whose epilog is a list of examples."""

    def format_epilog(self, ctx: RichContext, formatter: RichHelpFormatter) -> None:  # type: ignore[override]
        """Write the examples, each on its line."""
        examples = (f"   {example}" for example in str(self.epilog).splitlines())
        formatter.write("\n".join((" Examples:", *examples)) + "\n")


class _Command(_Examples):
    """A command that remembers its arguments as they were given, for the workers of `serve`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments."""
        ctx.meta["arguments"] = tuple(args)
        return super().parse_args(ctx, args)


class _Group(_Examples, RichGroup):  # type: ignore[misc]  # so are RichCommand and RichGroup
    """The commands, in the order in which a reader needs them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands."""
        return list(self.commands)


def _parameters(option: Option) -> list[click.Parameter]:
    made: list[click.Parameter] = []
    if option.positional:
        made.append(
            RichArgument(
                [_positional(option)],
                type=_Type(option.kind),
                required=False,
                metavar=f"[{option.metavar}]",
            )
        )
    is_flag = option.kind is FLAG
    made.append(
        RichOption(
            [option.option, option.keyword, *([option.short] if option.short else [])],
            type=_Flag() if is_flag else _Type(option.kind),
            is_flag=is_flag,
            default=option.default or (False if is_flag else None),
            show_default=bool(option.default),
            multiple=option.repeats,
            envvar=option.variable,
            show_envvar=True,
            hidden=option.internal,
            metavar=option.metavar or None,
            help=option.help + ("; may be repeated" if option.repeats else ""),
            panel=option.panel,
        )
    )
    return made


def _positional(option: Option) -> str:
    return f"{option.keyword}_argument"


def _command(name: str, summary: Summary) -> RichCommand:
    def callback(**_: Any) -> int:
        return _execute(click.get_current_context(), name)

    return _Command(
        name=name,
        params=[each for option in options_of(name) for each in _parameters(option)],
        callback=callback,
        help=summary.help,
        epilog="\n".join(summary.examples),
        panels=[RichOptionPanel(name) for name in PANELS],
        context_settings=SETTINGS,
    )


def build() -> RichGroup:
    """Return the command `gymwire` with all its commands."""

    def show_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        if value:
            from importlib.metadata import version

            click.echo(f"{PROGRAM} {version(PROGRAM)}")
            ctx.exit()

    def show_completion(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
        if value and not ctx.resilient_parsing:
            shell = get_completion_class(value)
            assert shell is not None
            click.echo(shell(ctx.command, {}, PROGRAM, COMPLETE_VARIABLE).source())
            ctx.exit()

    def callback() -> int:
        ctx = click.get_current_context()
        if ctx.invoked_subcommand is None:
            click.echo(ctx.get_help())
        return 0

    return _Group(
        name=PROGRAM,
        commands={name: _command(name, summary) for name, summary in COMMANDS.items()},
        params=[
            RichOption(
                ["--version"],
                is_flag=True,
                is_eager=True,
                expose_value=False,
                callback=show_version,
                help="Show the version and exit.",
            ),
            RichOption(
                ["--completion"],
                type=click.Choice(SHELLS),
                is_eager=True,
                expose_value=False,
                callback=show_completion,
                metavar="SHELL",
                help="Print the completion script for bash, zsh or fish, and exit.",
            ),
        ],
        callback=callback,
        invoke_without_command=True,
        help="Reinforcement-learning environments as a service: Gymnasium over ZeroMQ.",
        epilog="gymwire serve cartpole CartPole-v1\n"
        'eval "$(gymwire --completion bash)"  # completes commands and options',
        context_settings=SETTINGS,
    )


# --- running them ---------------------------------------------------------------------------------


def run(argv: Sequence[str] | None = None) -> int:
    """Run a command line. Returns the exit status."""
    try:
        status = build().main(
            argv if argv is None else list(argv),
            prog_name=PROGRAM,
            complete_var=COMPLETE_VARIABLE,
            standalone_mode=False,
        )
    except click.ClickException as error:
        _print_misuse(error)
        return MISUSED
    except click.Abort:
        return 128 + signal.SIGINT
    except OSError as error:
        return _stop(error)
    return int(status or 0)


def _stop(error: OSError) -> int:
    """Report why the system has ended the command. Returns the status.

    Commands handle the failures of their own files, so an error without a file is the output's.
    """
    if error.errno in (errno.EMFILE, errno.ENFILE):
        _print_error(
            PROGRAM,
            f"cannot open enough files and sockets: {error.strerror}. Raise the limit on open "
            f"files (ulimit -n).",
        )
        return FAILED
    if error.filename is not None:
        _print_error(PROGRAM, f"cannot use {error.filename}: {error.strerror}.")
        return FAILED
    return _stop_printing(error)


def _stop_printing(error: OSError) -> int:
    """Report that the output cannot be written, unless its reader has ended. Returns the status."""
    if not isinstance(error, BrokenPipeError):
        _print_error(PROGRAM, f"cannot write the output: {error.strerror or error}.")
    # What is buffered would fail again when the interpreter ends.
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)
    return FAILED


def _print_misuse(error: click.ClickException) -> None:
    ctx = error.ctx if isinstance(error, click.UsageError) else None
    path = PROGRAM if ctx is None else ctx.command_path
    message = error.format_message()
    if isinstance(error, click.BadParameter) and error.param is not None and ctx is not None:
        message = f"{origin(ctx, error.param)}: {error.message}"
    if isinstance(error, click.NoSuchOption):
        close = get_close_matches(error.option_name, error.possibilities or (), cutoff=SIMILAR)
        message = click.NoSuchOption(error.option_name, possibilities=close).format_message()
    end = "" if message.endswith(("?", ".")) else "."
    _print_error(path, f"{message}{end} See `{path} --help`.")


def _print_error(path: str, text: str) -> None:
    print(f"{path}: {text}", file=sys.stderr)  # noqa: T201 - the error output of the command


def origin(ctx: click.Context, param: click.Parameter) -> str:
    """Return the option, the argument or the variable that a parameter's value came from."""
    if ctx.get_parameter_source(param.name or "") is ParameterSource.ENVIRONMENT:
        return str(param.envvar)
    return param.opts[0] if isinstance(param, click.Option) else str(param.metavar).strip("[]")


def _execute(ctx: click.Context, name: str) -> int:
    """Run a command whose parameters were parsed. Returns the exit status."""
    options = fields_of(ctx, name)
    from gymwire.cli.honcho import end_with_honcho
    from gymwire.cli.output import Output
    from gymwire.protocol import logs
    from gymwire.protocol.errors import GymwireError, UsageError

    if "log_level" in options:
        logs.configure(form=options["log_format"], level=options["log_level"])
        end_with_honcho()
    if not COMMANDS[name].handles_signals:
        handle_signals()
    output = Output(as_json=bool(options.get("json")))
    try:
        module = import_module(f"gymwire.cli.{name}")
        status = int(module.command(module.Options(**options), output))
    except Interrupted as interrupted:
        status = interrupted.status
    except GymwireError as error:
        _print_error(ctx.command_path, _text(error))
        output.fail(error)
        # A broker or an env agent that fails could not start, whatever the reason.
        wrong = isinstance(error, UsageError) or COMMANDS[name].handles_signals
        status = MISUSED if wrong else FAILED
    output.finish()
    return status


def fields_of(ctx: click.Context, name: str) -> dict[str, Any]:
    """Return the fields of a command's Options from its parsed parameters, with their origins.

    Raises click.UsageError if a value is given both as an argument and as an option.
    """
    params = {param.name: param for param in ctx.command.params}
    chosen: dict[str, Any] = {"origins": {}}
    for option in options_of(name):
        keyword, value, argument = option.keyword, ctx.params[option.keyword], None
        if option.positional:
            argument = ctx.params[_positional(option)]
        explicit = ctx.get_parameter_source(keyword)
        if argument is not None:
            if explicit is ParameterSource.COMMANDLINE:
                raise click.UsageError(
                    f"Give either {option.metavar} or {option.option}, not both", ctx
                )
            value = argument
            chosen["origins"][keyword] = option.metavar
        elif explicit in (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT):
            chosen["origins"][keyword] = origin(ctx, params[keyword])
        if option.repeats and not value:  # a variable of nothing but spaces
            value = option.default
        chosen[keyword] = value
    if name == "serve":
        chosen["arguments"] = ctx.meta["arguments"]
    return chosen


def _text(error: GymwireError) -> str:
    """Return the error as it is printed; a traceback of the other side is indented."""
    from gymwire.cli.terminal import printable
    from gymwire.protocol.errors import EnvironmentFailed

    if error.advice:  # written for programs
        advice = _ADVICE.get(type(error).__name__, "")
        error.advice = _ADVICE_BY_END.get(getattr(error, "ended_by", ""), advice)
    text = str(error)
    if isinstance(error, EnvironmentFailed):
        said, _, trace = text.partition("\n\n")
        is_own = error.remote_type.startswith("gymwire.")  # its text says it all
        # An interpreter prints the type as the class of the error.
        if not is_own and error.remote_type not in said:
            said = f"{error.remote_type}: {said}" if said else error.remote_type
        text = f"{said}\n\n{textwrap.indent(trace, '    ')}" if error.remote_traceback else said
    return printable(text)


_ADVICE_BY_END = {  # what has ended a session, as in `protocol.messages.EndedBy`
    "operator": "Ask the operator why before you run the command again.",
    "environment": "The env agent is still running; its log may say why the environment ended.",
}
_ADVICE = {
    "EnvironmentLost": "Run the command again when an env agent offers the address (`gymwire ls` "
    "shows it), or with --wait SECONDS.",
    "BrokerUnreachable": "Run the command again when the broker is back, or with a longer "
    "--timeout.",
}
