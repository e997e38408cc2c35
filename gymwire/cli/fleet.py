"""`gymwire fleet`: env agents on this machine, Ray or SLURM."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path

from rich.text import Text

from gymwire.cli.connection import LogOptions, naming
from gymwire.cli.observed import duration
from gymwire.cli.output import Output
from gymwire.cli.terminal import columns, counted, printable
from gymwire.fleet.commands import AgentStatus, FleetControl
from gymwire.fleet.description import Fleet, load
from gymwire.fleet.engine import DRAINING, open_engine
from gymwire.fleet.manifests import manifests, manifests_text
from gymwire.fleet.scaling import READY
from gymwire.fleet.state import turn
from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.protocol.ending_signals import StopEvent, ending_signals
from gymwire.protocol.errors import (
    BrokerUnreachable,
    ConfigurationError,
    GymwireError,
    Refused,
)

HEADINGS = ("agent", "state", "host", "pid", "age", "used", "")
TIMEOUT_S = 20.0  # for a silent broker
NOT_READY = 1  # exit status if agents are missing, or were killed


@dataclass(frozen=True, kw_only=True)
class Options(LogOptions):
    """The options of `gymwire fleet`."""

    action: str
    file: Path
    on: str
    agents: int | None
    agent: tuple[str, ...]
    watch: bool
    wait_s: float
    json: bool


def command(options: Options, output: Output) -> int:
    """Do what the action says. Returns the exit status."""
    _check(options)
    with naming(options, "file"):
        fleet = load(options.file)
        if options.on == "local" and options.action in ("up", "scale"):
            fleet.check_interpreters()
    if options.action == "manifests":
        output.text.out(manifests_text(fleet), end="", highlight=False)
        output.result(fleet=fleet.name, manifests=manifests(fleet))
        return 0
    if options.action == "scale":
        _check_count(options, fleet)
    with naming(options, "on"):
        engine = open_engine(options.on, fleet)
    with ExitStack() as stack:

        @cache
        def connection() -> BrokerConnection:
            return stack.enter_context(closing(_connect(fleet)))

        # `drain` and `down` need no broker.
        control = FleetControl(
            fleet, engine, lambda: connection().find(), partial(turn, fleet.name)
        )
        try:
            return _act(options, control, output)
        except KeyboardInterrupt:
            output.say(f"interrupted; fleet {fleet.name} stays as it is now")
            raise
        except OSError as error:  # else `BrokenPipeError` would pass for the end of a reader
            raise Refused(f"{options.action} on {options.on} failed: {error!r}.") from error


def _connect(fleet: Fleet) -> BrokerConnection:
    broker_key = None if fleet.broker_key is None else str(fleet.broker_key)
    try:
        return BrokerConnection(
            fleet.broker, timeout_s=TIMEOUT_S, key=fleet.key, broker_key=broker_key
        )
    except BrokerUnreachable as error:
        if error.url_source:  # this command has no option for the URL
            error.url_source = f"in {fleet.path}"
        raise


def _act(options: Options, control: FleetControl, output: Output) -> int:
    began = time.monotonic()
    match options.action:
        case "up" if options.watch:
            _watch(control)
        case "up" | "scale":
            if options.agents is None:
                count = control.up()
            else:
                control.scale(count := options.agents)
            with output.errors.status("waiting until the broker lists the agents …"):
                agents, fault = control.wait_until_ready(count, began + options.wait_s)
            _show(options, control.fleet, agents, fault, output)
            return _missing(agents, count, output) if fault is None else NOT_READY
        case "drain":
            if unknown := set(options.agent) - set(control.names()):
                raise ConfigurationError(
                    f"--agent: fleet {control.fleet.name} has no agent {min(unknown)!r}. It has "
                    f"{', '.join(control.names()) or 'no agents'}."
                )
            names = control.drain(options.agent or None)
            output.result(fleet=control.fleet.name, draining=names)
            output.say(
                f"draining {counted(len(names), 'agent')}; sessions may continue for "
                f"{control.fleet.grace_s:g} s"
            )
        case "down":
            with output.errors.status("waiting for sessions to end …"):
                killed = control.down()
            output.result(fleet=control.fleet.name, killed=killed)
            output.say("the fleet is down" + (f"; killed: {', '.join(killed)}" if killed else ""))
            return NOT_READY if killed else 0
        case _:
            wait_s = options.wait_s if "wait_s" in options.origins else 0.0
            agents, fault = control.wait_until_ready(None, began + wait_s)
            _show(options, control.fleet, agents, fault, output)
            return 0 if fault is None else NOT_READY
    return 0


def _check(options: Options) -> None:
    """Raise ConfigurationError for options that belong to another action."""
    given = {
        "--agents": (options.agents is not None, "scale"),
        "--agent": (bool(options.agent), "drain"),
        "--watch": (options.watch, "up"),
    }
    for name, (is_given, action) in given.items():
        if is_given and options.action != action:
            raise ConfigurationError(
                f"{name} works with `gymwire fleet {action}` only. Leave it out."
            )
    if options.action == "scale" and options.agents is None:
        raise ConfigurationError("`gymwire fleet scale` needs --agents N, the number of agents.")


def _check_count(options: Options, fleet: Fleet) -> None:
    least, most = fleet.scale.least, fleet.scale.most
    assert options.agents is not None
    if least < most and not least <= options.agents <= most:
        raise ConfigurationError(
            f"--agents: expected {least} to {most}, the min and max of {fleet.path}, got "
            f"{options.agents}."
        )


def _show(
    options: Options,
    fleet: Fleet,
    agents: Sequence[AgentStatus],
    fault: GymwireError | None,
    output: Output,
) -> None:
    """Show the agents. `fault`: why the broker could not say which of them are ready."""
    output.result(
        fleet=fleet.name,
        engine=options.on,
        broker=fleet.broker,
        agents=[asdict(one) for one in agents],
    )
    if fault is not None:
        output.fail(fault)
        output.errors.print(Text(f"gymwire fleet: {printable(str(fault))}"), soft_wrap=True)
    ready = f"{sum(one.state == READY for one in agents)} of " if fault is None else ""
    unknown = " ready" if fault is None else "; which of them are ready is unknown"
    output.say(
        f"fleet {fleet.name} on {options.on}: {ready}{counted(len(agents), 'agent')}{unknown}"
    )
    if not agents:
        return
    rows = [HEADINGS, *map(_row, agents)]
    width = output.text.width if output.text.is_terminal else None
    for line in columns(rows, width=width, shortened=(len(HEADINGS) - 1,)):
        output.text.print(Text(line), soft_wrap=True)


def _row(agent: AgentStatus) -> tuple[str, ...]:
    return (
        agent.name,
        agent.state,
        printable(agent.host or "-"),
        str(agent.pid or "-"),
        duration(max(0.0, time.time() - agent.since)) if agent.since else "-",
        f"{agent.used}/{agent.slots}",
        printable(agent.detail),
    )


def _missing(agents: Sequence[AgentStatus], count: int, output: Output) -> int:
    """Say which agents the broker does not list. Returns the exit status."""
    staying = [one for one in agents if one.state != DRAINING]
    missing = [one for one in staying if one.state != READY]
    texts = [
        f"{one.name} is {one.state}: {one.detail or 'the broker does not list it yet'}"
        for one in missing
    ]
    if len(staying) < count:
        texts.append(f"{count - len(staying)} of {count} agents have ended meanwhile")
    for text in texts:
        output.errors.print(Text(printable(text)), soft_wrap=True)
    return NOT_READY if texts else 0


def _watch(control: FleetControl) -> None:
    """Start the fleet, and scale it until Ctrl-C, SIGTERM or SIGHUP; the fleet stays."""
    stop = StopEvent()
    for number in ending_signals():
        signal.signal(number, lambda *_: stop.set())
    control.up()
    control.watch(stop.wait)
